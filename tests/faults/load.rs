//! The clients of a run and what they share.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flotte_tests::{Client, Received, Version, connect, publish, subscribe};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::actor::{Actor, Roams, Role};
use crate::history::{NOBODY, Recorder, What};

/// Topics of retained messages; all publishers write to all.
pub const KEPT_TOPICS: u64 = 4;
/// Topics of retained messages that expire.
pub const BRIEF_TOPICS: u64 = 2;
/// What members share.
pub const SHARE: &str = "$share/crew/jobs/#";
/// The last topics in order: retained once all else is, so that a reader knows that it has read everything.
const LAST_TOPICS: [&str; 2] = ["brief/last", "kept/last"];
/// How long the clients of the test's own may be refused.
const TRIES_LIMIT: Duration = Duration::from_secs(60);
/// How long a reader waits for retained messages behind those that should be the last.
const STRAGGLERS_LIMIT: Duration = Duration::from_millis(500);
/// Topics that wait for a publisher at most.
const WANTED_MAX: usize = 64;

/// Who is served by the fourth node, while it is there, besides those who come to it by chance.
const GUESTS: [Role; 5] = [
    Role::Listener,
    Role::Churner,
    Role::Publisher,
    Role::Mortal,
    Role::Member,
];

/// What all clients are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    Load,
    /// Nothing new: no message, no subscription, nobody leaves; what is under way arrives.
    Quiet,
    /// Say goodbye and end.
    Over,
}

/// What all clients share.
pub struct World {
    pub recorder: Recorder,
    pub addresses: Vec<SocketAddr>,
    pub mode: watch::Sender<Mode>,
    /// Topics that were subscribed to just now.
    wanted: Mutex<VecDeque<String>>,
    /// Rung for each of them.
    pub wants: Notify,
}

/// The running clients.
pub struct Load {
    pub world: Arc<World>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn start(recorder: Recorder, addresses: Vec<SocketAddr>, seed: u64) -> Self {
        let world = Arc::new(World {
            recorder,
            addresses,
            mode: watch::Sender::new(Mode::Load),
            wanted: Mutex::default(),
            wants: Notify::new(),
        });
        let mut clients = Vec::new();
        let mut add = |role, home: usize, name: String| {
            let number = clients.len() as u64;
            let actor = Actor {
                world: Arc::clone(&world),
                name,
                role,
                version: match role {
                    Role::Member | Role::Casual => Version::V5,
                    _ if number.is_multiple_of(2) => Version::V5,
                    _ => Version::V311,
                },
                home: home % 4,
                roams: if home < 3 {
                    Roams::Everywhere
                } else {
                    Roams::Nowhere
                },
                rng: StdRng::seed_from_u64(seed.wrapping_mul(1_000).wrapping_add(number)),
                turn: 0,
            };
            clients.push(tokio::spawn(actor.run()));
        };
        for home in 0..3 {
            add(Role::Listener, home, format!("listener{home}"));
            add(Role::Churner, home, format!("churner{home}"));
            add(Role::Publisher, home, format!("publisher{home}"));
            add(Role::Publisher, home, format!("publisher{}", home + 3));
            add(Role::Mortal, home, format!("mortal{home}"));
            add(Role::Member, home, format!("member{home}"));
            add(Role::Casual, home, format!("casual{home}"));
        }
        for place in 0..4 {
            let home = (place + place / 2) % 3;
            add(Role::Twin, home, format!("twin{}", place / 2));
        }
        // They wait for the fourth node.
        for role in GUESTS {
            add(role, 3, format!("guest{role:?}"));
        }
        Self { world, clients }
    }

    pub fn set(&self, mode: Mode) {
        self.world.mode.send_replace(mode);
    }

    /// Lets all clients say goodbye; a client that failed fails the test.
    pub async fn end(mut self) {
        self.set(Mode::Over);
        for client in std::mem::take(&mut self.clients) {
            client
                .await
                .unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
        }
    }
}

impl Drop for Load {
    /// The clients of a failed run must not outlive its nodes.
    fn drop(&mut self) {
        self.clients.iter().for_each(JoinHandle::abort);
    }
}

impl World {
    pub fn mode(&self) -> Mode {
        *self.mode.borrow()
    }

    pub fn note(&self, conn: u32, what: What) {
        self.recorder.note(conn, what);
    }

    /// Asks any publisher to publish there.
    pub fn want(&self, topic: String) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if wanted.len() < WANTED_MAX {
            wanted.push_back(topic);
            self.wants.notify_one();
        }
    }

    pub fn take_wanted(&self) -> Option<String> {
        self.wanted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }

    /// Sets the retained messages that say that there are no others.
    pub async fn mark_last(&self) {
        flotte_tests::until(TRIES_LIMIT, "the last retained messages", || {
            self.try_mark_last()
        })
        .await;
    }

    async fn try_mark_last(&self) -> Option<()> {
        let mut client = self.connect_to(1, "marker").await?;
        for (id, topic) in (1..).zip(LAST_TOPICS) {
            let packet = publish(topic).payload("0").retain().qos1(id);
            client.try_send(packet).await.ok()?;
            let answer = client.next_or_end().await.ok()??;
            if (answer.kind(), answer.packet_id()) != (4, id) {
                return None;
            }
        }
        Some(())
    }

    /// Reads the retained messages at a node with a fresh subscriber; again where the connection does not last.
    pub async fn read_kept(&self, node: u8) {
        let what = format!("retained messages read at n{node}");
        let found = flotte_tests::until(TRIES_LIMIT, &what, || self.try_read_kept(node)).await;
        let topics = (0..KEPT_TOPICS).map(kept_topic);
        for topic in topics.chain((0..BRIEF_TOPICS).map(brief_topic)) {
            let message = found.get(&topic).copied();
            let what = What::Kept {
                node,
                topic,
                message,
            };
            self.note(NOBODY, what);
        }
    }

    async fn try_read_kept(&self, node: u8) -> Option<BTreeMap<String, u64>> {
        let mut client = self.connect_to(node, "reader").await?;
        let packet = subscribe(1).to("kept/+", 0).to("brief/+", 0);
        client.try_send(packet).await.ok()?;
        let mut found = BTreeMap::new();
        loop {
            match client.next_or_end().await {
                Ok(Some(packet)) if packet.is_publish() => {
                    found.insert(packet.topic(), number(&packet));
                }
                Ok(Some(_)) => {}
                // What has not come by now is not there.
                Err(_) if LAST_TOPICS.iter().all(|last| found.contains_key(*last)) => {
                    return Some(found);
                }
                Ok(None) | Err(_) => return None,
            }
            if LAST_TOPICS.iter().all(|last| found.contains_key(*last)) {
                client.patience = STRAGGLERS_LIMIT;
            }
        }
    }

    /// A fresh client of this node.
    async fn connect_to(&self, node: u8, name: &str) -> Option<Client> {
        let address = self.addresses[usize::from(node - 1)];
        let mut client = Client::try_dial(address, Version::V5).await.ok()?;
        let packet = connect(format!("{name}{node}"));
        client.try_send(packet).await.ok()?;
        let answer = client.next_or_end().await.ok()??;
        ((answer.kind(), answer.reason()) == (2, 0)).then_some(client)
    }
}

pub fn kept_topic(number: u64) -> String {
    format!("kept/{number}")
}

pub fn brief_topic(number: u64) -> String {
    format!("brief/{number}")
}

/// The message's number, which is its payload.
pub fn number(packet: &Received) -> u64 {
    let text = String::from_utf8(packet.payload()).expect("the payload is text");
    text.parse().expect("the payload is a number")
}

/// Waits until `mode`, or a later one.
pub async fn until(modes: &mut watch::Receiver<Mode>, mode: Mode) {
    // The sender lives as long as the world, which every client holds.
    let _ = modes.wait_for(|now| *now >= mode).await;
}
