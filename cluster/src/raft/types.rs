//! The types that the consensus library is made of here.

use std::fmt;

use bytes::Bytes;
use openraft::OptionalSend;
use openraft::impls::{BoxedErrorSource, InlineBatch};
use openraft::raft::responder::Responder;
use openraft::vote::leader_id_std;
use tokio::sync::oneshot;

use super::apply::Applier;
use crate::net::NodeId;

/// How others know a member of a group. The address is a name to resolve, for people and for a
/// first contact: where a node really is travels in handshakes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeInfo {
    pub name: String,
    /// `host:port` of the cluster port.
    pub advertise: String,
}

impl From<&flotte_proto::Member> for NodeInfo {
    fn from(member: &flotte_proto::Member) -> Self {
        Self {
            name: member.name.clone(),
            advertise: member.advertise.clone(),
        }
    }
}

/// An entry of the log as the state machine knows it: opaque here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command(pub Bytes);

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// The choice of types for the consensus library. Standard Raft: one leader in a term, so that term
/// and index identify an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Types;

impl openraft::RaftTypeConfig for Types {
    type D = Command;
    type R = Bytes;
    type NodeId = NodeId;
    type Node = NodeInfo;
    type Term = u64;
    type LeaderId = leader_id_std::LeaderId<u64, NodeId>;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = super::pace::Paced;
    type Responder<T>
        = Reply<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = BoxedErrorSource;
}

pub type CommittedLeaderId = leader_id_std::CommittedLeaderId<u64>;
pub type Vote = openraft::impls::Vote<leader_id_std::LeaderId<u64, NodeId>>;
pub type LogId = openraft::LogId<CommittedLeaderId>;
pub type Payload = openraft::EntryPayload<Command, NodeId, NodeInfo>;
pub type Entry = openraft::Entry<CommittedLeaderId, Payload>;
pub type Membership = openraft::Membership<NodeId, NodeInfo>;
pub type StoredMembership = openraft::StoredMembership<CommittedLeaderId, NodeId, NodeInfo>;
pub type SnapshotMeta = openraft::SnapshotMeta<CommittedLeaderId, NodeId, NodeInfo>;
pub type Raft = openraft::Raft<Types, Applier>;

/// Where the result of a write goes. A caller that no longer waits is no fault.
#[derive(Debug)]
pub struct Reply<T>(pub oneshot::Sender<T>);

impl<T> Responder<Types, T> for Reply<T>
where
    T: OptionalSend + 'static,
{
    fn on_complete(self, result: T) {
        let _ = self.0.send(result);
    }
}
