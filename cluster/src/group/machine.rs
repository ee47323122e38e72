//! The state of a session group behind its lock, as the consensus group applies it and the leader's runtime reads it.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use flotte_proto::GroupRecord;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::state::{Effects, GroupState};
use super::untold::Ended;
use crate::id::{GroupId, NodeRef};
use crate::raft::{Fatal, FrozenState, Machine, RestoreError};
use crate::snapshot;
use crate::state_time::StateTime;

/// The replicated state of a session group on this node.
#[derive(Debug)]
pub struct GroupMachine {
    group: GroupId,
    /// Held for one entry at a time by apply.
    state: Mutex<GroupState>,
    time: Arc<StateTime>,
    /// That of the state, for readers that must not wait for its lock.
    last_epoch: AtomicU64,
    /// Sessions that ended since the runtime last looked, for the home if that is this node. Bounded by [`ENDED_MAX`]: the
    /// leader tells all homes, by the state.
    ended: Mutex<Vec<Ended>>,
    /// Nodes with an Open since the runtime last looked; one entry for each start of a node at most.
    openers: Mutex<BTreeSet<NodeRef>>,
    /// Wakes the leader's runtime: there is something in the outbox or in `ended`.
    work: Notify,
}

/// Most ended sessions that wait for the runtime.
const ENDED_MAX: usize = 100_000;

impl GroupMachine {
    /// An empty group.
    pub fn new(group: GroupId) -> Self {
        GroupMachine {
            group,
            state: Mutex::default(),
            time: Arc::default(),
            last_epoch: AtomicU64::new(0),
            ended: Mutex::default(),
            openers: Mutex::default(),
            work: Notify::new(),
        }
    }

    /// Reads the state. Keep it short: apply waits.
    pub fn read(&self) -> MutexGuard<'_, GroupState> {
        self.state.lock()
    }

    /// State time as it passes.
    pub fn time(&self) -> &Arc<StateTime> {
        &self.time
    }

    /// The highest epoch that was assigned, as far as this replica knows. Never waits.
    pub fn last_epoch(&self) -> u64 {
        self.last_epoch.load(Ordering::Acquire)
    }

    /// Takes the sessions that ended since the last call.
    pub fn take_ended(&self) -> Vec<Ended> {
        std::mem::take(&mut *self.ended.lock())
    }

    /// Takes the nodes with an Open since the last call.
    pub fn take_openers(&self) -> BTreeSet<NodeRef> {
        std::mem::take(&mut *self.openers.lock())
    }

    /// Resolves when there may be work for the leader's runtime.
    pub async fn work(&self) {
        self.work.notified().await;
    }
}

impl Machine for GroupMachine {
    fn apply(&self, index: u64, _term: u64, entry: Bytes) -> Result<Bytes, Fatal> {
        let mut effects = Effects::default();
        let mut state = self.state.lock();
        let reply = state.apply(self.group, index, &entry, &mut effects);
        self.time.moved_to(state.time_ms());
        self.last_epoch.store(state.last_epoch(), Ordering::Release);
        drop(state);
        let busy = effects.fired || !effects.ended.is_empty();
        let mut ended = self.ended.lock();
        let room = ENDED_MAX.saturating_sub(ended.len());
        ended.extend(effects.ended.into_iter().take(room));
        drop(ended);
        self.openers.lock().extend(effects.openers);
        if busy {
            self.work.notify_one();
        }
        reply.map_err(|e| Fatal(e.to_string()))
    }

    fn freeze(&self) -> Box<dyn FrozenState> {
        Box::new(Frozen(self.state.lock().records()))
    }

    fn restore(&self, _index: u64, data: &mut dyn Read) -> Result<(), RestoreError> {
        let mut state = GroupState::default();
        snapshot::read_records(data, |record| state.restore(record))
            .map_err(|e| RestoreError::Format(e.to_string()))?;
        self.time.moved_to(state.time_ms());
        self.last_epoch.store(state.last_epoch(), Ordering::Release);
        *self.state.lock() = state;
        self.work.notify_one();
        Ok(())
    }
}

struct Frozen(Vec<GroupRecord>);

impl FrozenState for Frozen {
    fn write(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
        snapshot::write_records(self.0, out)
    }
}
