//! The clients of a run and what they share.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flotte_tests::{Client, Received, Version, connect, subscribe};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::actor::{Actor, Role};
use crate::history::{NOBODY, Recorder, What};

/// Topics of retained messages; all publishers write to all.
pub const KEPT_TOPICS: u64 = 4;
/// Topics that wait for a publisher at most.
const WANTED_MAX: usize = 64;

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
                version: if number.is_multiple_of(2) {
                    Version::V5
                } else {
                    Version::V311
                },
                home: home % 3,
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
        }
        for place in 0..4 {
            add(Role::Twin, place + place / 2, format!("twin{}", place / 2));
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

    /// Reads the retained messages at a node with a fresh subscriber, once all topics came or `limit` is over; again where
    /// the connection does not last.
    pub async fn read_kept(&self, node: u8, limit: Duration) {
        const TRIES_LIMIT: Duration = Duration::from_secs(60);
        let what = format!("retained messages read at n{node}");
        let found =
            flotte_tests::until(TRIES_LIMIT, &what, || self.try_read_kept(node, limit)).await;
        for topic in (0..KEPT_TOPICS).map(kept_topic) {
            let message = found.get(&topic).copied();
            self.note(
                NOBODY,
                What::Kept {
                    node,
                    topic,
                    message,
                },
            );
        }
    }

    async fn try_read_kept(&self, node: u8, limit: Duration) -> Option<BTreeMap<String, u64>> {
        let address = self.addresses[usize::from(node - 1)];
        let mut client = Client::try_dial(address, Version::V5).await.ok()?;
        client.patience = limit;
        client
            .try_send(connect(format!("reader{node}")))
            .await
            .ok()?;
        let answer = client.next_or_end().await.ok()??;
        if (answer.kind(), answer.reason()) != (2, 0) {
            return None;
        }
        client.try_send(subscribe(1).to("kept/+", 0)).await.ok()?;
        let (mut found, mut granted) = (BTreeMap::new(), false);
        while !granted || found.len() < usize::try_from(KEPT_TOPICS).ok()? {
            match client.next_or_end().await {
                Ok(Some(packet)) if packet.is_publish() => {
                    found.insert(packet.topic(), number(&packet));
                }
                Ok(Some(packet)) => granted |= packet.kind() == 9,
                // What has not come by now is not there.
                Err(_) if granted => break,
                Ok(None) | Err(_) => return None,
            }
        }
        Some(found)
    }
}

pub fn kept_topic(number: u64) -> String {
    format!("kept/{number}")
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
