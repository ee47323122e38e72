//! What all nodes of a simulation share: time, chance, the ways between them, the modelled logs, their disks and clocks, and the oracle.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::log::{Belief, Log};
use super::message::{Input, Message};
use super::net::{MS, Net, Packet, Stream};
use super::oracle::Oracle;
use super::rng::Rng;
use crate::id::{GroupId, NodeId};

/// T, but where an operator has given it to some nodes and not to the others yet.
pub const T: u64 = 2_000 * MS;

/// A safety that the wiring of the simulation leaves out, to see that the oracle finds what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// SUBACK does not wait for the barrier.
    Barrier,
    /// The lease is not looked at.
    Lease,
    /// The end of a connection is committed under whatever epoch its client has now.
    Epochs,
    /// Retained messages are matched before they are committed.
    RetainedEarly,
    /// Wills are published whether their key was seen or not.
    WillKeys,
    /// What a link sends again is delivered again.
    LinkRepeats,
    /// The keeper answers by what it believes, without a round of a quorum.
    ReadIndex,
    /// Kicks are not carried out.
    Kicks,
    /// A leader that does not carry the time asks nobody who does.
    Survey,
    /// An Open displaces whatever its client has by the time it is committed.
    Displaces,
    /// A leader goes by its own T alone.
    OwnT,
    /// Former homes are told by the node that opened the client, and by nobody else.
    Untold,
}

#[derive(Debug)]
pub enum Event {
    Arrive {
        from: usize,
        to: usize,
        packet: Packet,
    },
    Input {
        node: usize,
        generation: u64,
        input: Input,
    },
    /// Elections, and replicas that have fallen behind.
    Pulse(GroupId),
    Commit {
        group: GroupId,
        term: u64,
        index: u64,
    },
    Client(usize),
    Fault,
    Undo(Undo),
    Heal,
    End,
}

/// The end of a fault.
#[derive(Debug, Clone, Copy)]
pub enum Undo {
    Start(usize),
    Continue(usize),
    Heal(usize, usize),
    Speed,
}

/// Outlives the processes of a node.
#[derive(Debug, Default)]
pub struct Disk {
    pub incarnation: u64,
    pub snapshots: BTreeMap<GroupId, (u64, Bytes)>,
}

#[derive(Debug, Default)]
pub struct Machine {
    pub disk: Disk,
    /// CLOCK_BOOTTIME is so far ahead, and runs so many millionths slower or faster.
    boot_offset: u64,
    boot_ppm: i64,
    /// The wall clock is set so far ahead or behind.
    pub wall_offset_ms: i64,
    /// The feature level that its version knows.
    pub level: u32,
    /// Its configuration has T so many times.
    pub t_times: u64,
    /// Entries are applied so much later.
    pub apply_delay: u64,
    /// Counts the processes; inputs of earlier ones are dropped.
    pub generation: u64,
    pub running: bool,
    pub paused: bool,
}

impl Machine {
    pub fn new(rng: &mut Rng) -> Machine {
        Machine {
            boot_offset: rng.below(1_000_000 * MS),
            boot_ppm: rng.below(20_000) as i64 - 10_000,
            level: 1,
            t_times: 1,
            ..Machine::default()
        }
    }

    pub fn works(&self) -> bool {
        self.running && !self.paused
    }

    pub fn boot_ns(&self, now: u64) -> u64 {
        let drift = (now as i64 / 1_000_000) * self.boot_ppm;
        self.boot_offset + (now as i64 + drift) as u64
    }

    pub fn wall_ms(&self, now: u64) -> u64 {
        (1_000_000_000 + (now / MS) as i64 + self.wall_offset_ms) as u64
    }
}

/// A connection, as its client sees it.
#[derive(Debug)]
pub struct Conn {
    pub client: usize,
    pub node: usize,
    pub is_open: bool,
    /// CONNACK came.
    pub is_connected: bool,
    /// Delay of its will in seconds, and the message.
    pub will: Option<(u32, u64)>,
    pub expiry_s: u32,
    pub numbers: u64,
}

#[derive(Debug, Clone, Copy)]
pub struct Msg {
    pub conn: usize,
    pub topic: usize,
    /// Of its connection.
    pub number: u64,
    pub retain: bool,
    pub is_will: bool,
}

#[derive(Debug)]
pub struct Ctx {
    pub now: u64,
    base: Instant,
    pub rng: Rng,
    pub queue: BTreeMap<(u64, u64), Event>,
    counter: u64,
    pub net: Net,
    pub logs: BTreeMap<GroupId, Log>,
    pub machines: Vec<Machine>,
    pub conns: Vec<Conn>,
    pub messages: Vec<Msg>,
    pub oracle: Oracle,
    pub broken: Option<Broken>,
    /// Lines of what happened, where they are wanted.
    pub trace: Option<Vec<String>>,
    pub healed: bool,
    /// Since when nothing was disturbed.
    pub calm_since: u64,
    /// Entries take so long to be committed.
    pub commit_max: u64,
}

impl Ctx {
    pub fn new(seed: u64, nodes: usize, groups: u32, broken: Option<Broken>) -> Ctx {
        let mut rng = Rng::new(seed);
        let machines = (0..nodes).map(|_| Machine::new(&mut rng)).collect();
        let everyone: Vec<usize> = (0..nodes).collect();
        let mut logs = BTreeMap::from([(GroupId::META, Log::new(everyone))]);
        for group in 1..=groups {
            let replicas = (0..3).map(|i| (i + group as usize) % nodes).collect();
            logs.insert(GroupId(group), Log::new(replicas));
        }
        Ctx {
            now: MS,
            base: Instant::now(),
            rng,
            queue: BTreeMap::new(),
            counter: 0,
            net: Net::default(),
            logs,
            machines,
            conns: Vec::new(),
            messages: Vec::new(),
            oracle: Oracle::new(groups),
            broken,
            trace: None,
            healed: false,
            calm_since: 0,
            commit_max: 8 * MS,
        }
    }

    /// A line of the trace.
    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let line = line();
            trace.push(format!("{:11.3} ms  {line}", self.now as f64 / MS as f64));
        }
    }

    pub fn at(&mut self, at: u64, event: Event) {
        self.counter += 1;
        self.queue.insert((at.max(self.now), self.counter), event);
    }

    pub fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    /// Something happens within a node, if its process lives then.
    pub fn input(&mut self, node: usize, delay: u64, input: Input) {
        let generation = self.machines[node].generation;
        let event = Event::Input {
            node,
            generation,
            input,
        };
        self.after(delay, event);
    }

    pub fn send(&mut self, from: usize, to: usize, stream: Stream, message: Message) {
        let sent = self.net.send(from, to, stream, (self.now, &mut self.rng));
        if let Some((at, generation)) = sent {
            let packet = Packet {
                generation,
                message,
            };
            self.at(at, Event::Arrive { from, to, packet });
        }
    }

    pub fn next_id(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// A monotonic clock of a node, as the type that cores take.
    pub fn instant(&self, node: usize) -> Instant {
        self.base + Duration::from_nanos(self.machines[node].boot_ns(self.now))
    }

    /// T of a node.
    pub fn t_ns(&self, node: usize) -> u64 {
        T * self.machines[node].t_times
    }

    pub fn boot_ns(&self, node: usize) -> u64 {
        self.machines[node].boot_ns(self.now)
    }

    pub fn belief(&self, group: GroupId, node: usize) -> Belief {
        self.logs[&group].belief(node)
    }

    /// Whether a node would have answers of a quorum of a group.
    pub fn has_quorum(&self, group: GroupId, node: usize) -> bool {
        let replicas = &self.logs[&group].replicas;
        let answer =
            |other: &&usize| self.machines[**other].works() && self.net.is_whole(node, **other);
        let answers = replicas.iter().filter(answer).count();
        self.machines[node].works() && answers * 2 > replicas.len()
    }

    /// The leader hands an entry to its log. None = it does not lead any more, though it believes so.
    pub fn append(
        &mut self,
        group: GroupId,
        (node, term): (usize, u64),
        data: Bytes,
    ) -> Option<u64> {
        let now = self.now;
        let delay = self.rng.range(MS / 2, self.commit_max);
        let log = self.logs.get_mut(&group)?;
        if !log.is_led_by(node, term) {
            return None;
        }
        let index = log.append(Some(data), now);
        self.after(delay, Event::Commit { group, term, index });
        Some(index)
    }

    pub fn node_of(&self, id: NodeId) -> usize {
        id.0 as usize - 1
    }

    /// The node closed a connection, or its process is gone.
    pub fn closed(&mut self, conn: usize) {
        self.conns[conn].is_open = false;
        self.oracle.closed(conn);
    }
}

pub fn id_of(node: usize) -> NodeId {
    NodeId(node as u64 + 1)
}
