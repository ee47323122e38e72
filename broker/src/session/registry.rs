//! Which sessions this node holds, by client, and which Opens of them are pending: a kick that names an epoch whose Open
//! has not come back yet must not be forgotten.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use flotte_mqtt::ClientId;
use foldhash::quality::RandomState;
use hashbrown::{HashMap, HashTable};
use parking_lot::Mutex;

use super::{ClientInfo, Closer, Limits, Session, Signal};

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

/// Opens of a client that have not come back.
#[derive(Debug, Default)]
struct Pending {
    /// How many; never 0.
    opens: u32,
    /// Number of the latest, while any is pending.
    latest: u64,
    /// Highest epoch kicked meanwhile.
    kicked: u64,
}

/// All sessions of this node.
#[derive(Debug)]
pub struct Registry {
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
}

/// The sessions of some clients: no client has two.
#[derive(Debug, Default)]
struct Shard {
    /// Under the hash of their client; one pointer each.
    sessions: HashTable<Arc<Session>>,
    pending: HashMap<ClientId, Pending, RandomState>,
}

impl Default for Registry {
    fn default() -> Self {
        Registry {
            hasher: RandomState::default(),
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }
}

impl Registry {
    /// An Open of this client is about to be proposed. Returns its number among those that are pending.
    pub fn opening(&self, client: &ClientId) -> u64 {
        let mut shard = self.shard(self.hash(client)).lock();
        let pending = shard.pending.entry(client.clone()).or_default();
        pending.opens += 1;
        pending.latest += 1;
        pending.latest
    }

    /// Whether an Open that is pending is the latest of its client here: none came after it.
    pub fn is_latest(&self, client: &ClientId, number: u64) -> bool {
        let shard = self.shard(self.hash(client)).lock();
        let pending = shard.pending.get(client);
        pending.is_some_and(|pending| pending.latest == number)
    }

    /// Whether any Open has not come back.
    pub fn is_opening(&self) -> bool {
        let mut shards = self.shards.iter();
        shards.any(|shard| !shard.lock().pending.is_empty())
    }

    /// The Open failed.
    pub fn open_failed(&self, client: &ClientId) {
        self.shard(self.hash(client)).lock().settle(client);
    }

    /// The Open came back: claims the session, or makes it. The connection is attached to it in the same moment, so that
    /// a kick either finds the Open pending or a connection that hears it.
    pub fn opened(
        &self,
        client: &ClientId,
        opened: (u64, bool),
        limits: &Limits,
        connection: (ClientInfo, Arc<Signal>),
    ) -> Claim {
        let mut orphans = Vec::new();
        let hash = self.hash(client);
        let mut shard = self.shard(hash).lock();
        let claim = self.claim(&mut shard, hash, client, opened, limits);
        if let Claim::Mine { session, .. } = &claim {
            orphans = session.attach(connection.0, connection.1);
        }
        shard.settle(client);
        drop(shard);
        orphans.into_iter().for_each(|closed: Closer| closed());
        claim
    }

    /// A kick came. Returns the session it is about, if that is at or below the epoch.
    pub fn kicked(&self, client: &ClientId, epoch: u64) -> Option<Arc<Session>> {
        let hash = self.hash(client);
        let mut shard = self.shard(hash).lock();
        if let Some(pending) = shard.pending.get_mut(client) {
            pending.kicked = pending.kicked.max(epoch);
        }
        shard
            .find(hash, client)
            .filter(|session| session.epoch() <= epoch)
            .cloned()
    }

    /// A session ended. Says whether it was this one that stood here: whoever gets true cleans up.
    pub fn remove(&self, session: &Arc<Session>) -> bool {
        let hash = self.hash(&session.client);
        let mut shard = self.shard(hash).lock();
        let held = shard
            .sessions
            .find_entry(hash, |held| Arc::ptr_eq(held, session));
        if let Ok(held) = held {
            held.remove();
        }
        drop(shard);
        !session.ended.swap(true, Ordering::AcqRel)
    }

    /// The session of a client, if this node holds it.
    pub fn find(&self, client: &str) -> Option<Arc<Session>> {
        let client = ClientId::try_from(client).ok()?;
        let hash = self.hash(&client);
        self.shard(hash).lock().find(hash, &client).cloned()
    }

    /// All sessions, in no order.
    pub fn all(&self) -> Vec<Arc<Session>> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(shard.lock().sessions.iter().cloned());
        }
        all
    }

    /// Number of sessions.
    pub fn len(&self) -> usize {
        let shards = self.shards.iter();
        shards.map(|shard| shard.lock().sessions.len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn hash(&self, client: &ClientId) -> u64 {
        self.hasher.hash_one(client.as_str())
    }

    fn shard(&self, hash: u64) -> &Mutex<Shard> {
        // Not the bits that the tables use.
        &self.shards[(hash >> 32) as usize % SHARDS]
    }

    fn claim(
        &self,
        shard: &mut Shard,
        hash: u64,
        client: &ClientId,
        (epoch, present): (u64, bool),
        limits: &Limits,
    ) -> Claim {
        let kicked = shard.pending.get(client).map_or(0, |opens| opens.kicked);
        let held = shard.find(hash, client);
        if kicked >= epoch || held.is_some_and(|session| session.epoch() > epoch) {
            return Claim::TakenOver;
        }
        if let Some(session) = held.filter(|session| present && !session.is_ended()) {
            session.epoch.store(epoch, Ordering::Release);
            return Claim::Mine {
                session: Arc::clone(session),
                present: true,
                replaced: None,
            };
        }
        let session = Arc::new(Session::new(client.compact(), limits));
        session.epoch.store(epoch, Ordering::Release);
        let replaced = match shard.sessions.find_mut(hash, |held| held.client == *client) {
            Some(held) => Some(std::mem::replace(held, Arc::clone(&session))),
            None => {
                let rehash = |held: &Arc<Session>| self.hash(&held.client);
                shard
                    .sessions
                    .insert_unique(hash, Arc::clone(&session), rehash);
                None
            }
        };
        Claim::Mine {
            session,
            present: false,
            replaced,
        }
    }
}

impl Shard {
    fn find(&self, hash: u64, client: &ClientId) -> Option<&Arc<Session>> {
        self.sessions.find(hash, |held| held.client == *client)
    }

    /// An Open of this client has come back, or failed.
    fn settle(&mut self, client: &ClientId) {
        if let Some(pending) = self.pending.get_mut(client) {
            pending.opens -= 1;
            if pending.opens == 0 {
                self.pending.remove(client);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::session::Wake;

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
        opened(registry, epoch, present)
    }

    fn opened(registry: &Registry, epoch: u64, present: bool) -> Claim {
        let connection = (info(), Arc::new(Signal::default()));
        registry.opened(&id(), (epoch, present), &limits(), connection)
    }

    fn info() -> ClientInfo {
        ClientInfo {
            username: None,
            proof: crate::auth::Proof::Anonymous,
            address: Some("127.0.0.1:1".parse().unwrap()),
            version: flotte_mqtt::Version::V5,
            connected_at_ms: 0,
            keep_alive_s: 0,
            clean_start: true,
        }
    }

    async fn taken_over(signal: &Signal) -> bool {
        tokio::time::timeout(std::time::Duration::ZERO, signal.wait())
            .await
            .is_ok_and(|wake| wake.has(Wake::TAKEN_OVER))
    }

    #[tokio::test]
    async fn a_kick_right_behind_the_open_reaches_the_connection() {
        let (registry, signal) = (Registry::default(), Arc::new(Signal::default()));
        registry.opening(&id());
        registry.opened(&id(), (5, false), &limits(), (info(), Arc::clone(&signal)));
        let kicked = registry.kicked(&id(), 5).unwrap();
        assert!(kicked.close(Wake::TAKEN_OVER, Box::new(|| ())).is_none());
        assert!(taken_over(&signal).await, "though it has no output yet");
    }

    #[tokio::test]
    async fn a_former_connection_that_is_still_there_is_closed() {
        let (registry, former) = (Registry::default(), Arc::new(Signal::default()));
        let (told, closed) = std::sync::mpsc::channel();
        registry.opening(&id());
        registry.opened(&id(), (5, false), &limits(), (info(), Arc::clone(&former)));
        let session = registry.kicked(&id(), 5).unwrap();
        let done = move || told.send(()).unwrap();
        assert!(session.close(Wake::CLOSE, Box::new(done)).is_none());
        open(&registry, 6, true);
        assert!(taken_over(&former).await);
        assert!(closed.try_recv().is_ok(), "nobody waits for it any longer");
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
        assert!(matches!(opened(&registry, 5, false), Claim::TakenOver));
        assert!(matches!(opened(&registry, 6, false), Claim::Mine { .. }));
        assert!(registry.kicked(&id(), 5).is_none(), "it is newer");
        assert!(registry.kicked(&id(), 6).is_some());
    }

    #[test]
    fn the_latest_open_is_known_while_it_is_pending() {
        let registry = Registry::default();
        let first = registry.opening(&id());
        assert!(registry.is_latest(&id(), first));
        let second = registry.opening(&id());
        assert!(!registry.is_latest(&id(), first) && registry.is_latest(&id(), second));
        opened(&registry, 5, false);
        assert!(!registry.is_latest(&id(), first), "the later one is let in");
        registry.open_failed(&id());
        assert!(!registry.is_latest(&id(), first));
    }

    #[test]
    fn an_older_open_that_comes_back_late_is_taken_over() {
        let registry = Registry::default();
        registry.opening(&id());
        open(&registry, 6, false);
        assert!(matches!(opened(&registry, 5, false), Claim::TakenOver));
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
        let empty = |shard: &Mutex<Shard>| shard.lock().pending.is_empty();
        assert!(registry.is_empty() && registry.shards.iter().all(empty));
    }
}
