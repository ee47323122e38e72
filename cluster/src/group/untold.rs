//! Former homes that have not said yet that what they held of a client is over: sessions that went to another node, or ended, without
//! them having asked for it. The leader of the group tells them until they have.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::id::{NodeId, NodeRef};

/// A session that ended, or went to another node, without its home having asked for it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ended {
    /// Who still holds it.
    pub home: NodeRef,
    /// Its client.
    pub client: Bytes,
    /// Its last epoch.
    pub epoch: u64,
}

/// A home is told by the leader once it has had so much time to say so by itself: the node that opened the client tells it too.
const TOLD_AFTER_MS: u64 = 100;

/// What homes hold that is over: at most one entry for each session that a home has held since it was last told, none of
/// homes that are no more.
#[derive(Debug, Default)]
pub struct Untold {
    homes: BTreeMap<NodeId, BTreeMap<Bytes, Former>>,
}

/// The newest that a home has to end of a client; that is all before it, too.
#[derive(Debug)]
struct Former {
    incarnation: u64,
    epoch: u64,
    /// State time.
    since_ms: u64,
}

impl Former {
    fn of(&self, node: NodeId, client: &Bytes) -> Ended {
        Ended {
            home: NodeRef {
                node,
                incarnation: self.incarnation,
            },
            client: client.clone(),
            epoch: self.epoch,
        }
    }
}

impl Untold {
    /// All, each with the state time since which its home is to be told.
    pub fn iter(&self) -> impl Iterator<Item = (Ended, u64)> {
        self.homes.iter().flat_map(|(node, clients)| {
            let each = clients.iter();
            each.map(|(client, former)| (former.of(*node, client), former.since_ms))
        })
    }

    /// Those whose homes the leader has to tell at a state time, but for those that are being told: so many for each home at once.
    pub fn due(&self, now_ms: u64, under_way: &BTreeSet<Ended>, at_once: usize) -> Vec<Ended> {
        let mut due = Vec::new();
        for (node, clients) in &self.homes {
            let busy = under_way.iter().filter(|ended| ended.home.node == *node);
            let room = at_once.saturating_sub(busy.count());
            if room == 0 {
                continue;
            }
            let is_due = |former: &&Former| former.since_ms.saturating_add(TOLD_AFTER_MS) <= now_ms;
            let formers = clients.iter().filter(|(_, former)| is_due(former));
            let ended = formers.map(|(client, former)| former.of(*node, client));
            due.extend(ended.filter(|ended| !under_way.contains(ended)).take(room));
        }
        due
    }

    /// Whether a home has not said yet that this is over.
    pub fn contains(&self, ended: &Ended) -> bool {
        let clients = self.homes.get(&ended.home.node);
        let former = clients.and_then(|clients| clients.get(&ended.client));
        former.is_some_and(|former| {
            (former.incarnation, former.epoch) == (ended.home.incarnation, ended.epoch)
        })
    }

    /// The homes that there is something to tell.
    pub fn homes(&self) -> BTreeSet<NodeRef> {
        let homes = self.homes.iter().flat_map(|(node, clients)| {
            let each = clients.values();
            each.map(|former| NodeRef {
                node: *node,
                incarnation: former.incarnation,
            })
        });
        homes.collect()
    }

    pub(super) fn insert(&mut self, ended: Ended, since_ms: u64) {
        let former = Former {
            incarnation: ended.home.incarnation,
            epoch: ended.epoch,
            since_ms,
        };
        let clients = self.homes.entry(ended.home.node).or_default();
        clients.insert(ended.client, former);
    }

    /// A home has said that this epoch of a client is over, or was told and has nothing to say.
    pub(super) fn heard(&mut self, home: NodeId, client: &Bytes, epoch: u64) {
        let Some(clients) = self.homes.get_mut(&home) else {
            return;
        };
        if clients
            .get(client)
            .is_some_and(|former| former.epoch == epoch)
        {
            clients.remove(client);
            if clients.is_empty() {
                self.homes.remove(&home);
            }
        }
    }

    /// This start of a node is no more, nor are those before it.
    pub(super) fn gone(&mut self, home: NodeRef) {
        if let Some(clients) = self.homes.get_mut(&home.node) {
            clients.retain(|_, former| former.incarnation > home.incarnation);
            if clients.is_empty() {
                self.homes.remove(&home.node);
            }
        }
    }

    /// Panics where its parts contradict each other. For tests.
    pub(super) fn check_invariants(&self, last_epoch: u64) {
        for clients in self.homes.values() {
            assert!(!clients.is_empty(), "a home with nothing to be told");
            let epochs = clients.values().map(|former| former.epoch);
            epochs.for_each(|epoch| assert!(epoch <= last_epoch));
        }
    }
}
