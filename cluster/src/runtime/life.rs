//! One start (incarnation) of this node, from its Up to its end: all that names the incarnation is made anew with it.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use flotte_proto::{
    Batch, BatchReply, MetaCommand, ProposeRequest, ProposeResponse, SessionCommand, envelope,
    meta_command, propose_response, session_command,
};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::barriers::Barriers;
use super::kicks::Kicks;
use super::links::Links;
use super::node::Node;
use super::reads::Reads;
use super::retaining::Retaining;
use crate::handle::Refused;
use crate::id::{GroupId, NodeId, NodeRef};
use crate::leader::{Leader, refusal};
use crate::link::{Keeps, Receiver};
use crate::meta::MetaMachine;
use crate::proposer::{Pending, Proposer, Refusal, Reply, Route};
use crate::raft::Death;

/// How long a proposal may take before it counts as lost and is sent again.
const PROPOSE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);

/// One start of this node.
pub struct Life {
    /// This node and its incarnation.
    pub me: NodeRef,
    /// Meta index of its Up.
    pub up_index: u64,
    pub(crate) links: Links,
    pub(crate) barrier: Barriers,
    pub(crate) reads: Reads,
    pub(crate) kicks: Kicks,
    pub(super) retaining: Retaining,
    /// Receiving ends of the links from all nodes; held while a frame is delivered.
    pub(super) receiver: Mutex<Receiver>,
    /// What other nodes keep for this one: of the newest incarnation that sent something.
    pub(super) keeps: Mutex<BTreeMap<NodeId, (u64, Arc<Keeps>)>>,
    /// One proposer for each group; proposals for groups that do not exist yet are refused.
    pub(super) proposers: BTreeMap<GroupId, Proposer>,
    pub(super) session_groups: u32,
    /// Groups whose replica here has been where its group was at some time since this start.
    pub(super) caught_up: watch::Sender<BTreeSet<GroupId>>,
    pub(super) shutdown: CancellationToken,
}

impl Life {
    /// What a start of another node keeps for this one. None = there was a newer start.
    pub(super) fn keeps_of(&self, sender: NodeRef) -> Option<Arc<Keeps>> {
        let mut all = self.keeps.lock();
        let known = all.get(&sender.node);
        match known.map(|(incarnation, keeps)| (incarnation.cmp(&sender.incarnation), keeps)) {
            Some((Ordering::Equal, keeps)) => return Some(Arc::clone(keeps)),
            Some((Ordering::Greater, _)) => return None,
            Some((Ordering::Less, older)) => older.handle_gone(),
            None => {}
        }
        let keeps = Arc::new(Keeps::default());
        all.insert(sender.node, (sender.incarnation, Arc::clone(&keeps)));
        Some(keeps)
    }

    /// Members changed: ends the links to and from all that are gone, and lets go of what these had begun to send.
    pub(super) fn handle_members(&self, meta: &MetaMachine) {
        self.links.handle_members();
        // One lock at a time: publishes are delivered under that of the receiver, and read the routes.
        let mut senders = self.receiver.lock().senders();
        {
            let meta = meta.read();
            senders.retain(|sender| meta.is_gone(*sender));
        }
        let mut receiver = self.receiver.lock();
        senders
            .into_iter()
            .for_each(|gone| receiver.handle_gone(gone));
        drop(receiver);
        let keeps = self.keeps.lock().clone();
        let meta = meta.read();
        for (node, (incarnation, keeps)) in keeps {
            if meta.is_gone(NodeRef { node, incarnation }) {
                keeps.handle_gone();
            }
        }
    }

    pub(crate) fn propose_meta(
        &self,
        command: meta_command::Command,
    ) -> BoxFuture<'static, Result<Reply, Refused>> {
        self.propose(
            GroupId::META,
            MetaCommand {
                command: Some(command),
            }
            .encode_to_vec()
            .into(),
        )
    }

    pub(crate) fn propose_session(
        &self,
        group: GroupId,
        command: session_command::Command,
    ) -> BoxFuture<'static, Result<Reply, Refused>> {
        self.propose(
            group,
            SessionCommand {
                command: Some(command),
            }
            .encode_to_vec()
            .into(),
        )
    }

    fn propose(
        &self,
        group: GroupId,
        command: Bytes,
    ) -> BoxFuture<'static, Result<Reply, Refused>> {
        match self.proposers.get(&group) {
            Some(proposer) => proposer.propose(command),
            None => Box::pin(async { Err(Refused::NotServing) }),
        }
    }

    /// What is proposed to each group and not answered, for metrics.
    pub(super) fn proposals(&self) -> Vec<(GroupId, Pending)> {
        let proposers = self.proposers.iter();
        proposers
            .map(|(group, one)| (*group, one.pending()))
            .collect()
    }

    /// The session group of a client; the same on all nodes and in all versions.
    pub(crate) fn group_of(&self, client: &[u8]) -> GroupId {
        GroupId(1 + crc32fast::hash(client) % self.session_groups.max(1))
    }
}

impl Node {
    /// Hands a batch to the leader of a group here, unless it is of a start that is no more.
    pub(super) fn take_batch(
        &self,
        group: GroupId,
        leader: &Leader,
        batch: Batch,
    ) -> BoxFuture<'static, Option<ProposeResponse>> {
        match refusal(group, &batch, &self.meta.read()) {
            Some(refused) => Box::pin(async { Some(refused) }),
            None => leader.propose(batch),
        }
    }
}

/// The way of one proposer's batches to the leader of its group.
pub(super) struct ToLeader {
    pub node: Arc<Node>,
    pub group: GroupId,
    /// The leader as an answer named it, where this node has no replica that knows.
    pub hint: Arc<Mutex<Option<NodeId>>>,
    /// Ends the life that the proposer belongs to.
    pub life: CancellationToken,
}

impl Route for ToLeader {
    fn send(&self, batch: Batch) -> BoxFuture<'static, Option<BatchReply>> {
        let (known, leader) = self.node.leader_of(self.group);
        let hint = Arc::clone(&self.hint);
        let target = known
            .or(*hint.lock())
            .or_else(|| self.node.any_replica_of(self.group));
        let Some(target) = target else {
            return Box::pin(async { None });
        };
        let response: BoxFuture<'static, _> = if target == self.node.id() {
            match leader {
                Some(leader) => self.node.take_batch(self.group, &leader, batch),
                None => return Box::pin(async { None }),
            }
        } else {
            let request = envelope::Body::ProposeRequest(ProposeRequest {
                group: self.group.0,
                batch: Some(batch),
            });
            let network = self.node.network().clone();
            let succeeded = self.node.succeeded(self.group, target);
            Box::pin(async move {
                let call = network.call(target, request, PROPOSE_TIMEOUT);
                tokio::select! {
                    answer = call => match answer {
                        Ok(envelope::Body::ProposeResponse(response)) => Some(response),
                        _ => None,
                    },
                    // What a former leader still says comes too late to wait for.
                    () = succeeded => None,
                }
            })
        };
        Box::pin(async move {
            match response.await.and_then(|response| response.result) {
                Some(propose_response::Result::Reply(reply)) => Some(reply),
                Some(propose_response::Result::NotLeader(leader)) => {
                    *hint.lock() = Some(NodeId(leader)).filter(|id| id.0 != 0);
                    None
                }
                None => {
                    *hint.lock() = None;
                    None
                }
            }
        })
    }

    fn ended(&self, refusal: Option<Refusal>) {
        match refusal {
            Some(Refusal::ForEver(why)) => self.node.die_banned(why),
            Some(Refusal::Now(why)) => self.node.die(Death::Refused(why)),
            None => {}
        }
        self.life.cancel();
    }
}
