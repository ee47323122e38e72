//! What happened in a run: what each client sent and received, and which faults there were, with monotonic times. It is
//! kept in memory for the checker and written as JSON lines for people. It judges nothing.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;
use tempfile::NamedTempFile;

/// The connection number of what no client did.
pub const NOBODY: u32 = 0;

/// Something that happened.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// Microseconds since the run began. What is sent is noted before it is sent, what is received after it came.
    pub at: u64,
    /// The number of the connection, unique in the run, or [`NOBODY`].
    pub conn: u32,
    #[serde(flatten)]
    pub what: What,
}

/// What happened. Nodes count from 1, as in their names n1 to n4; messages have numbers unique in the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum What {
    /// CONNECT is sent; the will's message and topic.
    Connecting {
        client: String,
        node: u8,
        will: Option<(u64, String)>,
    },
    /// CONNACK of success came.
    Connected {
        session_present: bool,
    },
    /// CONNACK of another kind came.
    Refused {
        reason: u8,
    },
    Subscribing {
        filter: String,
        qos: u8,
    },
    /// SUBACK came; 0x80 and above grants nothing.
    Subscribed {
        filter: String,
        code: u8,
    },
    Published {
        message: u64,
        topic: String,
        qos: u8,
        retain: bool,
        body: Body,
    },
    Acked {
        message: u64,
        ack: Ack,
        reason: u8,
    },
    Delivered {
        message: u64,
        topic: String,
        qos: u8,
        dup: bool,
        retain: bool,
    },
    /// DISCONNECT is sent.
    Leaving,
    /// DISCONNECT came.
    SentAway {
        reason: u8,
    },
    /// The connection is over.
    Ended {
        by: Side,
    },
    Fault {
        node: u8,
        kind: Kind,
        phase: Phase,
    },
    /// What a fresh subscriber at this node read as the retained message of this topic, or that there was none.
    Kept {
        node: u8,
        topic: String,
        message: Option<u64>,
    },
    /// What a node says at rest, of the start that it is in: copies accepted, and copies delivered, queued, expired or dropped.
    Accounted {
        node: u8,
        accepted: u64,
        accounted: u64,
    },
    /// All faults were taken back, and all nodes are ready.
    Healed,
    /// Everything that had to arrive had its time.
    Settled,
}

/// What a message holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// The message's number.
    Number,
    /// The same, for [`BRIEF_S`] seconds.
    Brief,
    /// Nothing: it deletes a retained message, and where it comes nobody can tell which of them it is.
    Nothing,
}

/// After how many seconds a brief message expires.
pub const BRIEF_S: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ack {
    Puback,
    Pubrec,
    Pubcomp,
}

/// Who ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    Broker,
    Client,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// kill -9, and started again later.
    Kill,
    /// kill -9, and started again at once: faster than the others notice.
    QuickRestart,
    /// SIGSTOP for less than T.
    PauseShort,
    /// SIGSTOP for longer than T.
    PauseLong,
    /// SIGTERM, and started again.
    Term,
    /// Asked to drain, then to end, and started again.
    Drain,
    /// No packet passes between the node and the others.
    Cut,
    /// The node hears nothing from the others.
    Deaf,
    /// The others hear nothing from the node.
    Mute,
    /// The node and the next one cannot reach each other; both reach the third.
    Split,
    /// The wall clock is set forwards, and back later.
    ClockAhead,
    /// The wall clock is set back, and forwards later.
    ClockBehind,
    /// Every sync takes long.
    SlowDisk,
    /// A fourth node joins with an empty disk, serves, and leaves.
    Guest,
    /// Leaves the cluster, and comes back under its name with an empty disk.
    Leave,
    /// kill -9, removed by force, and back under its name with an empty disk.
    Expel,
    /// kill -9, and back under its name with an empty disk.
    Wipe,
}

impl Kind {
    /// Whether the node is parted from the majority while its clients still reach it.
    pub fn parts(self) -> bool {
        matches!(self, Self::Cut | Self::Deaf | Self::Mute)
    }

    /// Whether the process dies without a word.
    pub fn kills(self) -> bool {
        matches!(
            self,
            Self::Kill | Self::QuickRestart | Self::Expel | Self::Wipe
        )
    }

    /// Whether replicas of groups have to move.
    pub fn changes_members(self) -> bool {
        matches!(self, Self::Guest | Self::Leave | Self::Expel | Self::Wipe)
    }

    /// Whether the node sends its clients away before it ends.
    pub fn drains(self) -> bool {
        matches!(self, Self::Term | Self::Drain | Self::Guest | Self::Leave)
    }
}

/// The phases of a fault, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Before anything is done.
    Begins,
    /// It is in force.
    Holds,
    /// Before it is taken back.
    Ends,
    /// The node is ready again.
    Over,
}

/// Takes down what happens, from many tasks.
pub struct Recorder {
    began: Instant,
    connections: AtomicU32,
    messages: AtomicU64,
    log: Mutex<Log>,
}

struct Log {
    events: Vec<Event>,
    file: NamedTempFile,
    kept: Option<PathBuf>,
}

impl Recorder {
    /// A record whose file goes away with it, unless [`Recorder::keep`] is called.
    pub fn new(seed: u64) -> Self {
        let prefix = format!("flotte-faults-{seed}-");
        let mut builder = tempfile::Builder::new();
        let file = builder.prefix(&prefix).suffix(".jsonl").tempfile();
        let file = file.expect("a temporary file can be made");
        Self {
            began: Instant::now(),
            connections: AtomicU32::new(NOBODY),
            messages: AtomicU64::new(0),
            log: Mutex::new(Log {
                events: Vec::new(),
                file,
                kept: None,
            }),
        }
    }

    pub fn note(&self, conn: u32, what: What) {
        let mut log = self.lock();
        // Under the lock, so that times never go backwards in the record.
        let at = u64::try_from(self.began.elapsed().as_micros()).expect("a run is short");
        log.events.push(Event { at, conn, what });
    }

    pub fn fresh_connection(&self) -> u32 {
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub fn fresh_message(&self) -> u64 {
        self.messages.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// All events so far.
    pub fn events(&self) -> Vec<Event> {
        self.lock().events.clone()
    }

    /// Writes the record, keeps its file beyond this process, and says where it is.
    pub fn keep(&self) -> PathBuf {
        let mut log = self.lock();
        if let Some(path) = &log.kept {
            return path.clone();
        }
        let mut lines = Vec::new();
        for event in &log.events {
            serde_json::to_writer(&mut lines, event).expect("an event is JSON");
            lines.push(b'\n');
        }
        let path = log.file.path().to_owned();
        log.file.disable_cleanup(true);
        let written = log.file.write_all(&lines);
        written.unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
        log.kept = Some(path.clone());
        path
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
