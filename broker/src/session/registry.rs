//! Which sessions this node holds, by client, and which Opens of them are pending: a kick that names an epoch whose Open
//! has not come back yet must not be forgotten.

use std::sync::Arc;

use flotte_mqtt::ClientId;
use foldhash::quality::RandomState;
use hashbrown::HashMap;
use parking_lot::Mutex;

use super::{Limits, Session};

/// Locks are short, but connects and kicks come from all workers.
const SHARDS: usize = 16;

/// What a connection found when its Open had come back.
#[derive(Debug)]
pub enum Claim {
    /// The session is its own; and the one that it replaces, to be ended.
    Mine {
        /// To attach to.
        session: Arc<Session>,
        /// The session goes on.
        present: bool,
        /// Ends: the client started anew, or it was lost.
        replaced: Option<Arc<Session>>,
    },
    /// A later Open of the same client has kicked it already.
    TakenOver,
}

#[derive(Debug, Default)]
struct Entry {
    session: Option<Arc<Session>>,
    /// Opens that have not come back.
    pending: u32,
    /// Highest epoch kicked while an Open was pending.
    kicked: u64,
}

/// All sessions of this node.
#[derive(Debug)]
pub struct Registry {
    hasher: RandomState,
    shards: [Mutex<HashMap<ClientId, Entry, RandomState>>; SHARDS],
}

impl Default for Registry {
    fn default() -> Self {
        let hasher = RandomState::default();
        let shards = std::array::from_fn(|_| Mutex::new(HashMap::with_hasher(hasher.clone())));
        Registry { hasher, shards }
    }
}

impl Registry {
    /// An Open of this client is about to be proposed.
    pub fn opening(&self, client: &ClientId) {
        self.shard(client)
            .lock()
            .entry(client.clone())
            .or_default()
            .pending += 1;
    }

    /// The Open failed.
    pub fn open_failed(&self, client: &ClientId) {
        self.settle(client);
    }

    /// The Open came back: claims the session, or makes it.
    pub fn opened(&self, client: &ClientId, epoch: u64, present: bool, limits: &Limits) -> Claim {
        let claim = self.claim(client, epoch, present, limits);
        self.settle(client);
        claim
    }

    fn claim(&self, client: &ClientId, epoch: u64, present: bool, limits: &Limits) -> Claim {
        let mut shard = self.shard(client).lock();
        let entry = shard.entry(client.clone()).or_default();
        let newer = entry
            .session
            .as_ref()
            .is_some_and(|session| session.epoch() > epoch);
        if entry.kicked >= epoch || newer {
            return Claim::TakenOver;
        }
        if let Some(session) = entry
            .session
            .as_ref()
            .filter(|session| present && !session.is_ended())
        {
            session
                .epoch
                .store(epoch, std::sync::atomic::Ordering::Release);
            return Claim::Mine {
                session: Arc::clone(session),
                present: true,
                replaced: None,
            };
        }
        let session = Arc::new(Session::new(client.clone(), limits));
        session
            .epoch
            .store(epoch, std::sync::atomic::Ordering::Release);
        let replaced = entry.session.replace(Arc::clone(&session));
        Claim::Mine {
            session,
            present: false,
            replaced,
        }
    }

    /// A kick came. Returns the session it is about, if that is at or below the epoch.
    pub fn kicked(&self, client: &ClientId, epoch: u64) -> Option<Arc<Session>> {
        let mut shard = self.shard(client).lock();
        let entry = shard.get_mut(client)?;
        if entry.pending > 0 {
            entry.kicked = entry.kicked.max(epoch);
        }
        entry
            .session
            .clone()
            .filter(|session| session.epoch() <= epoch)
    }

    /// A session ended. Says whether it was this one that stood here: whoever gets true cleans up.
    pub fn remove(&self, session: &Arc<Session>) -> bool {
        let mut shard = self.shard(&session.client).lock();
        if let Some(entry) = shard.get_mut(&session.client)
            && entry
                .session
                .as_ref()
                .is_some_and(|held| Arc::ptr_eq(held, session))
        {
            entry.session = None;
            if entry.pending == 0 {
                shard.remove(&session.client);
            }
        }
        drop(shard);
        !session
            .ended
            .swap(true, std::sync::atomic::Ordering::AcqRel)
    }

    /// The session of a client, if this node holds it.
    pub fn find(&self, client: &str) -> Option<Arc<Session>> {
        let client = ClientId::try_from(client).ok()?;
        self.shard(&client).lock().get(&client)?.session.clone()
    }

    /// All sessions, in no order.
    pub fn all(&self) -> Vec<Arc<Session>> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(
                shard
                    .lock()
                    .values()
                    .filter_map(|entry| entry.session.clone()),
            );
        }
        all
    }

    /// Number of sessions.
    pub fn len(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| {
                shard
                    .lock()
                    .values()
                    .filter(|entry| entry.session.is_some())
                    .count()
            })
            .sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn settle(&self, client: &ClientId) {
        let mut shard = self.shard(client).lock();
        let Some(entry) = shard.get_mut(client) else {
            return;
        };
        entry.pending = entry.pending.saturating_sub(1);
        if entry.pending == 0 {
            entry.kicked = 0;
            if entry.session.is_none() {
                shard.remove(client);
            }
        }
    }

    fn shard(&self, client: &ClientId) -> &Mutex<HashMap<ClientId, Entry, RandomState>> {
        use std::hash::BuildHasher;
        let hash = self.hasher.hash_one(client.as_str());
        &self.shards[(hash >> 60) as usize % SHARDS]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            outbound: Arc::default(),
            inbound: Default::default(),
        }
    }

    fn id() -> ClientId {
        ClientId::try_from("c").unwrap()
    }

    fn open(registry: &Registry, epoch: u64, present: bool) -> Claim {
        registry.opening(&id());
        registry.opened(&id(), epoch, present, &limits())
    }

    #[test]
    fn a_present_session_is_claimed_and_another_replaced() {
        let registry = Registry::default();
        let Claim::Mine {
            session: first,
            present: false,
            replaced: None,
        } = open(&registry, 1, false)
        else {
            panic!()
        };
        let Claim::Mine {
            session,
            present: true,
            ..
        } = open(&registry, 2, true)
        else {
            panic!()
        };
        assert!(Arc::ptr_eq(&first, &session));
        assert_eq!(session.epoch(), 2);
        let Claim::Mine {
            replaced: Some(old),
            present: false,
            ..
        } = open(&registry, 3, false)
        else {
            panic!()
        };
        assert!(Arc::ptr_eq(&first, &old));
    }

    #[test]
    fn a_session_that_is_gone_is_not_present() {
        let registry = Registry::default();
        assert!(matches!(
            open(&registry, 1, true),
            Claim::Mine { present: false, .. }
        ));
    }

    #[test]
    fn a_kick_is_remembered_while_its_open_is_pending() {
        let registry = Registry::default();
        registry.opening(&id());
        registry.opening(&id());
        assert!(registry.kicked(&id(), 5).is_none());
        assert!(matches!(
            registry.opened(&id(), 5, false, &limits()),
            Claim::TakenOver
        ));
        assert!(matches!(
            registry.opened(&id(), 6, false, &limits()),
            Claim::Mine { .. }
        ));
        assert!(registry.kicked(&id(), 5).is_none(), "it is newer");
        assert!(registry.kicked(&id(), 6).is_some());
    }

    #[test]
    fn an_older_open_that_comes_back_late_is_taken_over() {
        let registry = Registry::default();
        registry.opening(&id());
        open(&registry, 6, false);
        assert!(matches!(
            registry.opened(&id(), 5, false, &limits()),
            Claim::TakenOver
        ));
    }

    #[test]
    fn nothing_is_left_behind() {
        let registry = Registry::default();
        let Claim::Mine { session, .. } = open(&registry, 1, false) else {
            panic!()
        };
        assert!(registry.remove(&session));
        assert!(!registry.remove(&session), "once");
        registry.opening(&id());
        registry.open_failed(&id());
        assert!(registry.shards.iter().all(|shard| shard.lock().is_empty()));
    }
}
