//! The wills of a session group that are to be published. One that fired as another node took its client over is *held* until the
//! former owner has said how the connection ended, or has had its time.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotte_proto::Will;

/// A will that is to be published.
#[derive(Debug, Clone, PartialEq)]
pub struct FiredWill {
    /// Whose it is.
    pub client: Bytes,
    /// What to publish.
    pub will: Will,
    /// It is not to be published yet.
    pub held: Option<Held>,
}

/// What a will waits for whose connection was at another node than the one that took the client over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Of the former connection.
    pub epoch: u64,
    /// State time from which on nobody waits for its node any more.
    pub until_ms: u64,
}

/// How long a will waits for the word of the former owner, which may be frozen or cut off.
const HELD_MS: u64 = 2_000;

impl Held {
    /// Of a connection that another node took over at a state time.
    pub(super) fn of(epoch: u64, now_ms: u64) -> Self {
        let until_ms = now_ms.saturating_add(HELD_MS);
        Held { epoch, until_ms }
    }
}

/// Fired wills by key; keys rise and are never used again.
#[derive(Debug, Default)]
pub struct Outbox {
    wills: BTreeMap<u64, FiredWill>,
    /// Keys of those that are held, by client and epoch. Derived.
    held: BTreeMap<(Bytes, u64), u64>,
    pub(super) last_key: u64,
}

impl Outbox {
    /// All there are, by key.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &FiredWill)> {
        self.wills.iter().map(|(key, fired)| (*key, fired))
    }

    /// Those to be published at a state time.
    pub fn publishable(&self, now_ms: u64) -> impl Iterator<Item = (u64, &FiredWill)> {
        let is_due = move |fired: &FiredWill| fired.held.is_none_or(|held| held.until_ms <= now_ms);
        self.iter().filter(move |(_, fired)| is_due(fired))
    }

    /// Keys below this one are done.
    pub fn floor(&self) -> u64 {
        let first = self.wills.first_key_value();
        first.map_or(self.last_key + 1, |(key, _)| *key)
    }

    pub(super) fn fire(&mut self, fired: FiredWill) {
        self.last_key += 1;
        self.restore(self.last_key, fired);
    }

    pub(super) fn restore(&mut self, key: u64, fired: FiredWill) {
        if let Some(held) = fired.held {
            self.held.insert((fired.client.clone(), held.epoch), key);
        }
        self.wills.insert(key, fired);
    }

    pub(super) fn remove(&mut self, key: u64) {
        if let Some(fired) = self.wills.remove(&key)
            && let Some(held) = fired.held
        {
            self.held.remove(&(fired.client, held.epoch));
        }
    }

    /// The former owner of a client has said how its connection, of this epoch, ended. True = there is a will to publish.
    pub(super) fn release(&mut self, held: (Bytes, u64), discard: bool) -> bool {
        let Some(key) = self.held.remove(&held) else {
            return false;
        };
        if discard {
            self.wills.remove(&key);
        } else if let Some(fired) = self.wills.get_mut(&key) {
            fired.held = None;
        }
        !discard
    }

    /// Panics where its parts contradict each other. For tests.
    pub(super) fn check_invariants(&self) {
        assert!(self.wills.keys().all(|key| *key <= self.last_key));
        for ((id, epoch), key) in &self.held {
            let is_it =
                |f: &FiredWill| f.client == *id && f.held.is_some_and(|h| h.epoch == *epoch);
            let fired = self.wills.get(key);
            assert!(fired.is_some_and(is_it), "{id:?} holds nothing");
        }
    }
}
