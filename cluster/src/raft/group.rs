//! A consensus group, as the rest of the node uses it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use flotte_proto::{RaftRequest, RaftResponse};
use futures::future::BoxFuture;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{
    ClientWriteError, InitializeError as LibraryInitializeError, LinearizableReadError, RaftError,
};
use openraft::raft::ClientWriteResult;
use openraft::{ChangeMembers, ReadPolicy};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::apply::{Applier, Progress};
use super::config::GroupConfig;
use super::inbound::Inbound;
use super::log::LogStore;
use super::machine::Machine;
use super::peers::Peers;
use super::snapshot::SnapshotStore;
use super::status::{
    FatalSignal, GroupStatus, InitializeError, MembershipError, ProposeError, ReadError, Role,
    StartError, Stopped, SubmitError, TransferError,
};
use super::types::{Command, NodeInfo, Raft, Reply, Types};
use super::watcher::Watcher;
use crate::journal::{GroupId, Journal};
use crate::net::{Haste, Network, NodeId};

/// How long [`Group::compact`] waits for its snapshot.
const COMPACT_TIMEOUT: Duration = Duration::from_secs(60);

/// What all groups of a node share.
#[derive(Clone)]
pub struct Host {
    pub node_id: NodeId,
    pub journal: Journal,
    pub snapshots: SnapshotStore,
    pub network: Network,
    pub fatal: FatalSignal,
}

/// This node's replica of a group. Clones share it.
#[derive(Clone)]
pub struct Group {
    inner: Arc<Inner>,
}

struct Inner {
    id: GroupId,
    config: GroupConfig,
    host: Host,
    raft: Raft,
    inbound: Arc<Inbound>,
    progress: Arc<Progress>,
    status: watch::Receiver<GroupStatus>,
    /// Reads under way that may not wait.
    urgent: Arc<AtomicUsize>,
    rounds: Rounds,
    /// Cancelled once the group has stopped.
    stopped: CancellationToken,
}

/// When the last round of all members began that a quorum answered: it was a heartbeat, too.
#[derive(Clone, Default)]
pub struct Rounds(Arc<Mutex<Option<Instant>>>);

impl Rounds {
    fn note(&self, began: Instant) {
        *self.0.lock() = Some(began);
    }

    /// Whether one began no longer ago than this.
    pub fn began_within(&self, time: Duration) -> bool {
        self.0.lock().is_some_and(|began| began.elapsed() <= time)
    }
}

impl Group {
    /// Restores the replica from its snapshot and log, and lets it take part. Its tasks run on the
    /// current runtime. The members' addresses are set on the network
    /// by its owner.
    pub async fn start(
        id: GroupId,
        config: GroupConfig,
        machine: Arc<dyn Machine>,
        host: &Host,
    ) -> Result<Self, StartError> {
        let library = config
            .library(id)
            .validate()
            .map_err(|error| StartError::Config(error.to_string()))?;
        let snapshots = Arc::new(host.snapshots.group(id)?);
        let progress = Arc::new(Progress::new());
        let applier = Applier::new(machine, Arc::clone(&snapshots), Arc::clone(&progress));
        let urgent = Arc::new(AtomicUsize::new(0));
        let peers = Peers {
            group: id,
            network: host.network.clone(),
            append_timeout: Duration::from_millis(2 * config.election_max_ms),
            urgent: Arc::clone(&urgent),
        };
        let log = LogStore::new(id, host.journal.clone());
        let raft = Raft::new(host.node_id, Arc::new(library), peers, log, applier)
            .await
            .map_err(|error| StartError::Storage {
                group: id,
                cause: error.to_string(),
            })?;
        let (status_sender, status) = watch::channel(GroupStatus::default());
        let stopped = CancellationToken::new();
        let rounds = Rounds::default();
        let watcher = Watcher {
            group: id,
            rounds: rounds.clone(),
            config: config.clone(),
            raft: raft.clone(),
            network: host.network.clone(),
            journal: host.journal.clone(),
            snapshots: Arc::clone(&snapshots),
            progress: Arc::clone(&progress),
            status: status_sender,
            fatal: host.fatal.clone(),
            stopped: stopped.clone(),
        };
        tokio::spawn(watcher.run());
        let inner = Inner {
            id,
            config,
            host: host.clone(),
            inbound: Arc::new(Inbound::new(id, raft.clone(), snapshots)),
            raft,
            progress,
            status,
            urgent,
            rounds,
            stopped,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The group's number.
    pub fn id(&self) -> GroupId {
        self.inner.id
    }

    /// Makes the group, with these voters. Every one of them may do so, with the same list.
    pub async fn initialize(
        &self,
        members: BTreeMap<NodeId, NodeInfo>,
    ) -> Result<(), InitializeError> {
        let result = self.inner.raft.initialize(members).await;
        result.map_err(|error| match error {
            RaftError::APIError(LibraryInitializeError::NotAllowed(_)) => InitializeError::NotEmpty,
            RaftError::APIError(LibraryInitializeError::NotInMembers(_)) => {
                InitializeError::NotAMember
            }
            RaftError::Fatal(_) => InitializeError::Stopped,
        })
    }

    /// Whether this replica has anything of the group: a log, or a vote.
    pub async fn is_initialized(&self) -> Result<bool, Stopped> {
        self.inner.raft.is_initialized().await.map_err(|_| Stopped)
    }

    /// Puts an entry in the log, if this node leads. Entries of one task have the order of these
    /// calls. Waits only while the group's queue is full.
    pub async fn submit(&self, entry: Bytes) -> Result<Pending, SubmitError> {
        let max = self.inner.config.entry_bytes_max;
        if entry.len() > max {
            return Err(SubmitError::TooLarge {
                size: entry.len(),
                max,
            });
        }
        let (role, leader) = {
            let status = self.inner.status.borrow();
            (status.role, status.leader)
        };
        match role {
            Role::Leader => {}
            Role::Stopped => return Err(SubmitError::Stopped),
            Role::Learner | Role::Follower | Role::Candidate => {
                return Err(SubmitError::NotLeader(leader));
            }
        }
        let (sender, receiver) = oneshot::channel();
        self.inner
            .raft
            .client_write_ff(Command(entry), Some(Reply(sender)))
            .await
            .map_err(|_| SubmitError::Stopped)?;
        Ok(Pending { receiver })
    }

    /// An index that a quorum confirmed, in a round begun after this call: who has applied it sees
    /// everything that was committed before the call. Leader only.
    pub async fn read_index(&self, haste: Haste) -> Result<u64, ReadError> {
        let _urgent = (haste == Haste::Now).then(|| Urgent::new(&self.inner.urgent));
        let began = Instant::now();
        let linearizer = self.inner.raft.get_read_linearizer(ReadPolicy::ReadIndex);
        match linearizer.await {
            Ok(linearizer) => {
                self.inner.rounds.note(began);
                Ok(linearizer.read_log_id().index())
            }
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to))) => {
                Err(ReadError::NotLeader(to.leader_id))
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(ReadError::NoQuorum)
            }
            Err(RaftError::Fatal(_)) => Err(ReadError::Stopped),
        }
    }

    /// The group as it is now.
    pub fn status(&self) -> GroupStatus {
        self.inner.status.borrow().clone()
    }

    /// Follows the group.
    pub fn watch(&self) -> watch::Receiver<GroupStatus> {
        self.inner.status.clone()
    }

    /// Whether this node leads the group, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.term_led().is_some()
    }

    /// The term in which this node leads the group, as far as it knows.
    pub fn term_led(&self) -> Option<u64> {
        let status = self.inner.status.borrow();
        (status.role == Role::Leader).then_some(status.term)
    }

    /// The leader, as far as is known here.
    pub fn leader(&self) -> Option<NodeId> {
        self.inner.status.borrow().leader
    }

    /// Index of the last entry that the machine has applied. An atomic read.
    pub fn applied(&self) -> u64 {
        self.inner.progress.applied()
    }

    /// Follows the index of the last applied entry. May run a few hundred entries behind
    /// [`Self::applied`] during a long batch.
    pub fn watch_applied(&self) -> watch::Receiver<u64> {
        self.inner.progress.watch()
    }

    /// Resolves once the machine has applied an index.
    pub async fn wait_applied(&self, index: u64) -> Result<(), Stopped> {
        if self.applied() >= index {
            return Ok(());
        }
        let mut applied = self.watch_applied();
        tokio::select! {
            reached = applied.wait_for(|applied| *applied >= index) => reached.map(drop).map_err(|_| Stopped),
            () = self.inner.stopped.cancelled() => Err(Stopped),
        }
    }

    /// The members whose logs lack at most so many of this leader's entries.
    pub fn caught_up(&self, lag_max: u64) -> BTreeSet<NodeId> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let last = metrics.last_log_index.unwrap_or(0);
        let matched = metrics.replication.iter().flatten();
        let near = matched
            .filter(|(_, matched)| matched.is_some_and(|matched| matched.index + lag_max >= last));
        near.map(|(id, _)| *id).collect()
    }

    /// The members that lack more than so many of this leader's entries, and how many they lack; nobody where it does not lead.
    pub fn lagging(&self, lag_max: u64) -> Vec<(NodeId, u64)> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let last = metrics.last_log_index.unwrap_or(0);
        let matched = metrics.replication.iter().flatten();
        let lags = matched.map(|(id, matched)| {
            let index = matched.map_or(0, |matched| matched.index);
            (*id, last.saturating_sub(index))
        });
        lags.filter(|(_, lag)| *lag > lag_max).collect()
    }

    /// Adds a node that gets the log but has no vote. Returns once that is committed, not once
    /// the node has caught up.
    pub async fn add_learner(&self, id: NodeId, info: NodeInfo) -> Result<(), MembershipError> {
        let added = self.inner.raft.add_learner(id, info, false).await;
        added.map(drop).map_err(membership_error)
    }

    /// Changes who votes; all of them are members already. Former voters become learners.
    pub async fn change_voters(&self, voters: BTreeSet<NodeId>) -> Result<(), MembershipError> {
        let change = ChangeMembers::ReplaceAllVoters(voters);
        let changed = self.inner.raft.change_membership(change, true).await;
        changed.map(drop).map_err(membership_error)
    }

    /// Takes learners out of the group.
    pub async fn remove_learners(&self, ids: BTreeSet<NodeId>) -> Result<(), MembershipError> {
        let change = ChangeMembers::RemoveNodes(ids);
        let changed = self.inner.raft.change_membership(change, false).await;
        changed.map(drop).map_err(membership_error)
    }

    /// Hands leadership to a voter: the named one, or the connected one that has most of the log.
    /// Returns once this node leads no more. Meanwhile entries are refused.
    pub async fn transfer_leader(&self, to: Option<NodeId>) -> Result<NodeId, TransferError> {
        let mut status = self.watch();
        if !self.is_leader() {
            return Err(TransferError::NotLeader);
        }
        let to = self.successor(to).ok_or(TransferError::NobodyThere)?;
        let trigger = self.inner.raft.trigger();
        trigger
            .transfer_leader(to)
            .await
            .map_err(|_| TransferError::Stopped)?;
        let limit = Duration::from_millis(2 * self.inner.config.election_max_ms);
        let taken_over = |status: &GroupStatus| {
            status.role != Role::Leader
                && status
                    .leader
                    .is_some_and(|id| id != self.inner.host.node_id)
        };
        match timeout(limit, status.wait_for(taken_over)).await {
            Ok(Ok(status)) => Ok(status.leader.unwrap_or(to)),
            Ok(Err(_)) => Err(TransferError::Stopped),
            Err(_) => Err(TransferError::Timeout(limit)),
        }
    }

    /// The connected voter that is furthest, or the named one if it is connected.
    fn successor(&self, named: Option<NodeId>) -> Option<NodeId> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let matched = metrics.replication.as_ref()?;
        let voters = metrics.membership_config.membership().voter_ids();
        voters
            .filter(|id| *id != self.inner.host.node_id)
            .filter(|id| named.is_none_or(|named| named == *id))
            .filter(|id| self.inner.host.network.connected(*id))
            .max_by_key(|id| matched.get(id).copied().flatten())
    }

    /// Writes a snapshot of what is applied now and drops the whole log before it: for a group that
    /// keeps old segments of the journal from going.
    pub async fn compact(&self) -> Result<(), Stopped> {
        let target = self.applied();
        let mut status = self.watch();
        let snapshot = async {
            loop {
                let reached = status.borrow_and_update().snapshot;
                if reached >= target {
                    return Ok(reached);
                }
                // Does nothing while one is being written; the next change asks again.
                let trigger = self.inner.raft.trigger();
                trigger.snapshot().await.map_err(|_| Stopped)?;
                status.changed().await.map_err(|_| Stopped)?;
            }
        };
        let reached = match timeout(COMPACT_TIMEOUT, snapshot).await {
            Ok(reached) => reached?,
            // It goes on by itself; the log goes with the next attempt.
            Err(_) => return Ok(()),
        };
        let trigger = self.inner.raft.trigger();
        trigger.purge_log(reached).await.map_err(|_| Stopped)
    }

    /// Answers a request of another member. Calls come in the order of arrival; what has to be done
    /// in that order is done when this returns.
    pub fn handle(&self, from: NodeId, request: RaftRequest) -> BoxFuture<'static, RaftResponse> {
        self.inner.inbound.handle(from, request)
    }

    /// Stops the replica. What it has promised is on disk already.
    pub async fn shutdown(&self) {
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::error!(group = %self.inner.id, %error, "the group ended badly");
        }
        self.inner.stopped.cancelled().await;
    }
}

/// Counts a read that may not wait, for as long as it lives.
struct Urgent<'a>(&'a AtomicUsize);

impl<'a> Urgent<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Urgent<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn membership_error(error: RaftError<Types, ClientWriteError<Types>>) -> MembershipError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
            MembershipError::NotLeader(to.leader_id)
        }
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => MembershipError::Lost,
        RaftError::APIError(error) => MembershipError::Rejected(error.to_string()),
        RaftError::Fatal(_) => MembershipError::Stopped,
    }
}

/// An entry on its way: resolves with what the machine replied once it is applied here. That may
/// take as long as there is no quorum. Dropped, the entry goes its way all the same.
#[derive(Debug)]
pub struct Pending {
    receiver: oneshot::Receiver<ClientWriteResult<Types>>,
}

impl Future for Pending {
    type Output = Result<Bytes, ProposeError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match ready!(Pin::new(&mut self.receiver).poll(cx)) {
            Ok(Ok(response)) => Ok(response.data),
            Ok(Err(ClientWriteError::ForwardToLeader(to))) => {
                Err(ProposeError::NotLeader(to.leader_id))
            }
            Ok(Err(_)) => Err(ProposeError::Lost),
            Err(_) => Err(ProposeError::Fatal),
        })
    }
}
