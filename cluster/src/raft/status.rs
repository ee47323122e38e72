//! What others may know of a group, and why it did not do what it was asked to.

use std::sync::Arc;
use std::time::Duration;

use openraft::ServerState;
use openraft::metrics::RaftMetrics;
use tokio::sync::watch;

use super::snapshot::SnapshotError;
use super::types::Types;
use crate::journal::GroupId;
use crate::net::NodeId;

/// What this replica is in its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Not a voter, or not a member yet.
    #[default]
    Learner,
    Follower,
    Candidate,
    Leader,
    /// The group has stopped on this node.
    Stopped,
}

/// A group as this replica sees it. Indices begin with 0, the entry that made the group; they are
/// also 0 while there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupStatus {
    pub role: Role,
    pub term: u64,
    /// Who leads this term, as far as is known here.
    pub leader: Option<NodeId>,
    pub last_log: u64,
    pub committed: u64,
    pub applied: u64,
    /// Last entry in the newest snapshot.
    pub snapshot: u64,
    /// Voters of the current configuration, of both while it changes, in order.
    pub voters: Arc<[NodeId]>,
    pub learners: Arc<[NodeId]>,
}

impl GroupStatus {
    /// Follows the library's metrics; says whether anything differs.
    pub(super) fn update(&mut self, metrics: &RaftMetrics<Types>) -> bool {
        let membership = metrics.membership_config.membership();
        let index = |id: Option<super::types::LogId>| id.map_or(0, |id| id.index);
        let next = Self {
            role: match metrics.state {
                ServerState::Learner => Role::Learner,
                ServerState::Follower => Role::Follower,
                ServerState::Candidate => Role::Candidate,
                ServerState::Leader => Role::Leader,
                ServerState::Shutdown => Role::Stopped,
            },
            term: metrics.current_term,
            leader: metrics.current_leader,
            last_log: metrics.last_log_index.unwrap_or(0),
            committed: index(metrics.local_committed),
            applied: index(metrics.last_applied),
            snapshot: index(metrics.snapshot),
            voters: kept(&self.voters, membership.voter_ids()),
            learners: kept(&self.learners, membership.learner_ids()),
        };
        let differs = *self != next;
        *self = next;
        differs
    }
}

/// The known list where it is still right, so that following metrics allocates nothing.
fn kept(known: &Arc<[NodeId]>, ids: impl Iterator<Item = NodeId>) -> Arc<[NodeId]> {
    let ids: smallvec::SmallVec<[NodeId; 8]> = ids.collect();
    if **known == *ids {
        Arc::clone(known)
    } else {
        Arc::from(&*ids)
    }
}

/// Why a group did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("group configuration: {0}")]
    Config(String),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The log, the snapshot or the machine does not let the replica come up.
    #[error("group {group} does not start: {cause}")]
    Storage { group: GroupId, cause: String },
}

/// Why an entry was not taken. It is not in the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Another node leads; `None` while that is not known.
    #[error("this node does not lead the group")]
    NotLeader(Option<NodeId>),
    #[error("an entry of {size} bytes is over the limit of {max}")]
    TooLarge { size: usize, max: usize },
    /// The group has stopped on this node.
    #[error("the group has stopped")]
    Stopped,
}

/// Why an entry has no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Not in the log: another node leads, or this one cannot take entries now (`None`): it has just
    /// been elected, has lost touch with the others, or hands its leadership over.
    #[error("this node does not lead the group")]
    NotLeader(Option<NodeId>),
    /// Leadership went: the entry may or may not become committed.
    #[error("leadership was lost; the entry may or may not be committed")]
    Lost,
    /// The group stopped on this node: the entry may or may not become committed.
    #[error("the group has stopped; the entry may or may not be committed")]
    Fatal,
}

/// Why there is no read index.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("this node does not lead the group")]
    NotLeader(Option<NodeId>),
    /// No quorum answered in time.
    #[error("no quorum answered in time")]
    NoQuorum,
    #[error("the group has stopped")]
    Stopped,
}

/// Why the members did not change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    #[error("this node does not lead the group")]
    NotLeader(Option<NodeId>),
    /// Leadership went: the change may or may not become committed.
    #[error("leadership was lost; the change may or may not be committed")]
    Lost,
    /// Another change is under way, or this one is impossible.
    #[error("the members cannot be changed: {0}")]
    Rejected(String),
    #[error("the group has stopped")]
    Stopped,
}

/// Why a group was not initialised.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InitializeError {
    /// It has a log or has voted already.
    #[error("the group has a past already")]
    NotEmpty,
    #[error("this node is not among the first members")]
    NotAMember,
    #[error("the group has stopped")]
    Stopped,
}

/// Why leadership was not handed over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    #[error("this node does not lead the group")]
    NotLeader,
    /// No other voter is connected, or the named one is not a voter or not connected.
    #[error("no voter can take over")]
    NobodyThere,
    #[error("nobody took over within {0:?}")]
    Timeout(Duration),
    #[error("the group has stopped")]
    Stopped,
}

/// The group has stopped on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the group has stopped")]
pub struct Stopped;

/// Why the process has to end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Death {
    /// The disk failed: what was to be written may not be there.
    #[error("{0}")]
    Disk(String),
    /// What is stored or committed means nothing to this version, or the state built from it cannot be trusted.
    #[error("{0}")]
    State(String),
    /// The cluster takes this node, as it is, for none of its own.
    #[error("the cluster refuses this node: {0}")]
    Refused(String),
}

/// Raised once this node cannot go on: the process has to end. Clones share it; the first reason stays.
#[derive(Clone, Debug)]
pub struct FatalSignal {
    reason: Arc<watch::Sender<Option<Death>>>,
}

impl FatalSignal {
    /// Not raised.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self {
            reason: Arc::new(watch::Sender::new(None)),
        }
    }

    /// Says that the process has to end.
    pub fn raise(&self, death: Death) {
        self.reason.send_if_modified(|reason| {
            if reason.is_some() {
                return false;
            }
            tracing::error!(reason = %death, "the node cannot go on");
            *reason = Some(death);
            true
        });
    }

    /// Whether, and why, the process has to end.
    pub fn reason(&self) -> Option<Death> {
        self.reason.borrow().clone()
    }

    /// Resolves with the reason once raised.
    pub async fn raised(&self) -> Death {
        let mut watch = self.reason.subscribe();
        if let Ok(reason) = watch.wait_for(Option::is_some).await
            && let Some(death) = reason.clone()
        {
            return death;
        }
        // The sender lives in `self`.
        std::future::pending().await
    }
}
