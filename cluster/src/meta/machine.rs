//! The meta state behind its lock, as the consensus group applies it and the workers read it.

use std::hash::{BuildHasher, Hasher};
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use flotte_mqtt::topic::TopicFilter;
use flotte_proto::{AssemblyRecord, MetaRecord};
use parking_lot::{RwLock, RwLockReadGuard};
use tokio::sync::watch;

use super::assemblies::Held;
use super::records::{assembly_records, retained_records};
use super::retained::Retained;
use super::state::{Effects, MetaState};
use crate::raft::{Fatal, FrozenState, Machine, RestoreError};
use crate::snapshot;
use crate::state_time::StateTime;

/// Branches of the topic tree that are told apart: by their first level.
const BRANCHES: usize = 256;

/// Counters that rise when a route changes, one per branch, so that a cached match of a quiet branch stays good.
#[derive(Debug)]
pub struct BranchEpochs {
    branches: Box<[AtomicU64; BRANCHES]>,
    /// For filters that begin with a wildcard, and changes of all routes.
    all: AtomicU64,
    hasher: foldhash::fast::FixedState,
}

impl Default for BranchEpochs {
    fn default() -> Self {
        let branches = Box::new([const { AtomicU64::new(0) }; BRANCHES]);
        BranchEpochs {
            branches,
            all: AtomicU64::new(0),
            hasher: foldhash::fast::FixedState::default(),
        }
    }
}

impl BranchEpochs {
    /// Changes whenever a route that this topic might match changes. Read it *before* the routes.
    pub fn of_topic(&self, topic: &str) -> u64 {
        let branch = self.branches[self.slot(topic)].load(Ordering::Acquire);
        branch.wrapping_add(self.all.load(Ordering::Acquire))
    }

    /// A route of this filter changed: call it *after* the change.
    pub fn touch(&self, filter: &TopicFilter) {
        let counter = match filter.as_str().as_bytes().first() {
            Some(b'+' | b'#') | None => &self.all,
            Some(_) => &self.branches[self.slot(filter.as_str())],
        };
        counter.fetch_add(1, Ordering::Release);
    }

    /// Any route may have changed.
    pub fn touch_all(&self) {
        self.all.fetch_add(1, Ordering::Release);
    }

    fn slot(&self, name: &str) -> usize {
        let first = name.split('/').next().unwrap_or(name);
        let mut hasher = self.hasher.build_hasher();
        hasher.write(first.as_bytes());
        usize::try_from(hasher.finish() % BRANCHES as u64).unwrap_or(0)
    }
}

/// The replicated state of group 0 on this node.
#[derive(Debug)]
pub struct MetaMachine {
    /// Held for one entry at a time by apply, for one match or page by readers.
    state: RwLock<MetaState>,
    epochs: BranchEpochs,
    time: Arc<StateTime>,
    /// Rises with every change of members, their state or placement.
    membership: watch::Sender<u64>,
}

impl Default for MetaMachine {
    fn default() -> Self {
        MetaMachine {
            state: RwLock::default(),
            epochs: BranchEpochs::default(),
            time: Arc::default(),
            membership: watch::channel(0).0,
        }
    }
}

impl MetaMachine {
    /// Reads the state. Keep it short: apply waits.
    pub fn read(&self) -> RwLockReadGuard<'_, MetaState> {
        self.state.read()
    }

    /// Resolves once the cluster is founded in this replica.
    pub async fn founded(&self) {
        let mut membership = self.membership();
        // The sender lives as long as `self`.
        let _ = membership.wait_for(|_| self.read().cluster_id() != 0).await;
    }

    /// Counters for caches of matches.
    pub fn epochs(&self) -> &BranchEpochs {
        &self.epochs
    }

    /// State time as it passes.
    pub fn time(&self) -> &Arc<StateTime> {
        &self.time
    }

    /// Wakes at every change of members or placement.
    pub fn membership(&self) -> watch::Receiver<u64> {
        self.membership.subscribe()
    }

    /// Wakes all who watch the membership, though it did not change: what depends on it did.
    pub fn touch_membership(&self) {
        self.membership.send_modify(|version| *version += 1);
    }

    fn publish(&self, effects: &Effects) {
        for filter in &effects.routes {
            self.epochs.touch(filter);
        }
        if effects.all_routes {
            self.epochs.touch_all();
        }
        if effects.membership {
            self.membership.send_modify(|version| *version += 1);
        }
    }
}

impl Machine for MetaMachine {
    fn apply(&self, index: u64, term: u64, entry: Bytes) -> Result<Bytes, Fatal> {
        let mut effects = Effects::default();
        let mut state = self.state.write();
        let reply = state.apply(index, term, &entry, &mut effects);
        self.time.moved_to(state.time_ms());
        drop(state);
        self.publish(&effects);
        reply.map_err(|e| Fatal(e.to_string()))
    }

    fn freeze(&self) -> Box<dyn FrozenState> {
        let state = self.state.read();
        Box::new(Frozen {
            records: state.records_but_retained(),
            assemblies: state.assemblies.records().collect(),
            retained: state.retained().tree().iter().cloned().collect(),
        })
    }

    fn restore(&self, _index: u64, data: &mut dyn Read) -> Result<(), RestoreError> {
        let mut state = MetaState::default();
        snapshot::read_records(data, |record| state.restore(record))
            .map_err(|e| RestoreError::Format(e.to_string()))?;
        state.restored().map_err(RestoreError::Format)?;
        self.time.moved_to(state.time_ms());
        let former = std::mem::replace(&mut *self.state.write(), state);
        // It may be large, and nobody is to wait until it is gone.
        drop(former);
        self.publish(&Effects {
            membership: true,
            routes: Vec::new(),
            all_routes: true,
        });
        Ok(())
    }
}

/// The state as it was. Retained messages are shared with the state, which replaces and never changes them; so is what has
/// come of those under way, which only grows.
struct Frozen {
    records: Vec<MetaRecord>,
    assemblies: Vec<(AssemblyRecord, Held)>,
    retained: Vec<Retained>,
}

impl FrozenState for Frozen {
    fn write(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
        let Self {
            records,
            assemblies,
            retained,
        } = *self;
        snapshot::write_records(records, out)?;
        let assemblies = assemblies.into_iter();
        let assemblies = assemblies.flat_map(|(record, data)| assembly_records(record, data));
        snapshot::write_records(assemblies, out)?;
        snapshot::write_records(retained.iter().flat_map(retained_records), out)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn filter(text: &str) -> TopicFilter {
        TopicFilter::try_from(text).unwrap()
    }

    #[tokio::test]
    async fn founded_is_waited_for() {
        let machine = MetaMachine::default();
        let entry = crate::meta::a_founding_entry(3);
        let (founded, applied) = tokio::join!(machine.founded(), async {
            tokio::task::yield_now().await;
            assert_eq!(machine.read().cluster_id(), 0);
            machine.apply(1, 1, entry)
        });
        assert!(applied.is_ok());
        founded
    }

    #[test]
    fn only_the_branch_of_a_changed_filter_gets_a_new_epoch() {
        let epochs = BranchEpochs::default();
        let (a, b) = (epochs.of_topic("a/x"), epochs.of_topic("b/x"));
        epochs.touch(&filter("a/+"));
        assert_ne!(epochs.of_topic("a/y"), a);
        assert_eq!(epochs.of_topic("b/x"), b);
    }

    #[test]
    fn a_filter_that_begins_with_a_wildcard_touches_all_branches() {
        for wild in ["+/x", "#"] {
            let epochs = BranchEpochs::default();
            let before = epochs.of_topic("a/x");
            epochs.touch(&filter(wild));
            assert_ne!(epochs.of_topic("a/x"), before);
        }
    }
}
