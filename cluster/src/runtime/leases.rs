//! The tasks that run the two sides of the lease: the keeper at every node (idle where it does not lead meta), and the
//! renewer of each start of this node.

use std::sync::Arc;
use std::time::Duration;

use flotte_proto::{RenewRequest, RenewResponse, envelope, renew_response};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::kicks::Kicks;
use super::node::Node;
use super::relay::Relay;
use crate::beat;
use crate::id::{NodeId, NodeRef};
use crate::lease::{Answer, Keeper, Lease, Renewal, Renewer, Timing, boot_ns};
use crate::meta::MetaMachine;
use crate::net::{CallError, Haste};
use crate::raft::{Group, GroupStatus, ReadError};

/// Renewals that wait for the keeper; each node has at most a few under way.
const QUEUE: usize = 1_024;
/// Renewals of one node that wait for their answers.
const UNDER_WAY_MAX: usize = 16;

/// Pause after a round that no quorum answered.
const READ_AGAIN: Duration = Duration::from_millis(20);

type Asked = oneshot::Sender<RenewResponse>;

/// A node that the keeper declares Down, and the term of the meta group in which it led: in a later one that says nothing,
/// as another leader may have answered the node since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Condemned {
    pub node: NodeRef,
    pub term: u64,
    /// It still renewed, but did not reach another node.
    pub cut: bool,
}

/// Where renewals are handed in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Leases {
    queue: mpsc::Sender<(RenewRequest, Asked)>,
}

impl Leases {
    /// Starts the keeper's task. It sends the nodes to be declared Down through `down`.
    pub(super) fn start(
        me: NodeId,
        down_after: Duration,
        group: Group,
        meta: Arc<MetaMachine>,
        down: mpsc::Sender<Condemned>,
        shutdown: CancellationToken,
    ) -> Leases {
        let (queue, renewals) = mpsc::channel(QUEUE);
        let t = u64::try_from(down_after.as_nanos()).unwrap_or(u64::MAX);
        let timing = Timing {
            down_after_ns: t,
            stall_ns: t / 4,
        };
        let membership = meta.membership();
        let core = Keeper::new(me, timing);
        let kicks = Relay::default();
        let service = KeeperService {
            core,
            me,
            tick: down_after / 20,
            group,
            meta,
            membership,
            renewals,
            down,
            kicks,
            read: None,
        };
        tokio::spawn(async move { shutdown.run_until_cancelled(service.run()).await });
        Leases { queue }
    }

    /// Hands a renewal in. None = no answer can come.
    pub fn renew(&self, request: RenewRequest) -> BoxFuture<'static, Option<RenewResponse>> {
        let (asked, response) = oneshot::channel();
        match self.queue.try_send((request, asked)) {
            Ok(()) => Box::pin(async move { response.await.ok() }),
            Err(_) => Box::pin(async { None }),
        }
    }
}

struct KeeperService {
    core: Keeper<(NodeId, Asked)>,
    me: NodeId,
    tick: Duration,
    group: Group,
    meta: Arc<MetaMachine>,
    membership: watch::Receiver<u64>,
    renewals: mpsc::Receiver<(RenewRequest, Asked)>,
    down: mpsc::Sender<Condemned>,
    kicks: Relay,
    read: Option<BoxFuture<'static, Option<u64>>>,
}

impl KeeperService {
    async fn run(mut self) {
        let mut status = self.group.watch();
        let mut tick = beat::interval(self.tick);
        self.take_members();
        let mut led = None;
        loop {
            let leads = term_led(&status.borrow_and_update(), self.me);
            if leads != led {
                // Another node may have led, and answered, between two terms of this one.
                led = leads;
                self.kicks = Relay::default();
                self.core.handle_leadership(false, boot_ns());
                if led.is_some() {
                    self.core.handle_leadership(true, boot_ns());
                }
            }
            if self.core.poll_read(boot_ns()) {
                let group = self.group.clone();
                self.read = Some(Box::pin(read_index(group)));
            }
            self.answer();
            tokio::select! {
                Some((mut request, asked)) = self.renewals.recv() => {
                    self.kicks.take(&mut request);
                    let node = NodeRef { node: NodeId(request.node_id), incarnation: request.incarnation };
                    self.core.handle_renewal(Renewal {
                        node,
                        applied: request.applied,
                        unreachable: request.unreachable.into_iter().map(NodeId).collect(),
                        ticket: (node.node, asked),
                    });
                }
                index = wait_for(&mut self.read) => {
                    self.read = None;
                    self.take_members();
                    self.core.handle_read(index, boot_ns());
                }
                Ok(()) = self.membership.changed() => self.take_members(),
                Ok(()) = status.changed() => {}
                _ = tick.tick() => for node in self.core.handle_tick(boot_ns()) {
                    let term = led.unwrap_or(0);
                    // A full queue holds the same nodes already; the next tick tells again.
                    let cut = self.core.is_cut(node.node);
                    let _ = self.down.try_send(Condemned { node, term, cut });
                },
            }
        }
    }

    fn answer(&mut self) {
        for ((node, asked), answer) in self.core.poll_answers() {
            let leader = self
                .group
                .status()
                .leader
                .filter(|leader| *leader != self.me);
            let result = match answer {
                Answer::Lease {
                    read_index,
                    lowest_applied,
                } => renew_response::Result::Lease(flotte_proto::Lease {
                    read_index,
                    lowest_applied,
                    kicks: self.kicks.for_node(node),
                    kicked: self.kicks.kicked(),
                }),
                Answer::Down => renew_response::Result::Down(true),
                Answer::NotLeader => renew_response::Result::NotLeader(leader.map_or(0, |id| id.0)),
            };
            let _ = asked.send(RenewResponse {
                result: Some(result),
            });
        }
    }

    fn take_members(&mut self) {
        let meta = self.meta.read();
        let up = meta.served();
        let index = meta.index();
        let expelled = meta.members().iter().filter(|(_, member)| member.expelled);
        let expelled: Vec<NodeId> = expelled.map(|(id, _)| *id).collect();
        drop(meta);
        self.kicks
            .keep(|id| up.iter().any(|served| served.node.node == id));
        self.core.handle_members(&up, index, boot_ns());
        self.core.handle_expelled(&expelled);
    }
}

/// The library gives a round of a quorum no longer than a heartbeat, which a busy machine misses at times: a node is not to
/// lose its lease for that. Every round begins after the renewals that wait for it arrived.
async fn read_index(group: Group) -> Option<u64> {
    loop {
        match group.read_index(Haste::MayWait).await {
            Ok(index) => return Some(index),
            Err(ReadError::NoQuorum) => tokio::time::sleep(READ_AGAIN).await,
            Err(ReadError::NotLeader(_) | ReadError::Stopped) => return None,
        }
    }
}

/// The term in which this node leads.
fn term_led(status: &GroupStatus, me: NodeId) -> Option<u64> {
    (status.leader == Some(me)).then_some(status.term)
}

async fn wait_for<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => futures::future::pending().await,
    }
}

/// Renews the lease of one start of this node until it is told that it is Down.
pub(super) struct RenewerTask {
    pub node: Arc<Node>,
    pub me: NodeRef,
    pub lease: Arc<Lease>,
    pub lowest: watch::Sender<u64>,
    pub kicks: Kicks,
}

impl RenewerTask {
    /// Resolves when this start is Down.
    pub async fn run(self) {
        let down_after = self.node.config().node_down_after;
        let mut renewer = Renewer::new(u64::try_from(down_after.as_nanos()).unwrap_or(u64::MAX));
        let mut tick = beat::interval(down_after / 8);
        let mut calls = FuturesUnordered::new();
        let mut status = self.node.meta_group().watch();
        let leader_hint = Mutex::new(None);
        loop {
            let applied = status.borrow_and_update().applied;
            if let Some(deadline) = renewer.handle_applied(applied, || self.is_up()) {
                self.lease.extend(deadline);
            }
            tokio::select! {
                _ = tick.tick() => if calls.len() < UNDER_WAY_MAX {
                    calls.push(self.renew(*leader_hint.lock(), down_after));
                },
                Some((sent_ns, result)) = calls.next() => match result {
                    Some(renew_response::Result::Lease(lease)) => {
                        self.lowest.send_if_modified(|lowest| {
                            let higher = lease.lowest_applied > *lowest;
                            *lowest = lease.lowest_applied.max(*lowest);
                            higher
                        });
                        self.kicks.handle_lease(lease.kicks, lease.kicked);
                        let deadline = renewer.handle_answer(sent_ns, lease.read_index, || self.is_up());
                        deadline.into_iter().for_each(|deadline| self.lease.extend(deadline));
                    }
                    Some(renew_response::Result::NotLeader(hint)) => {
                        *leader_hint.lock() = Some(NodeId(hint)).filter(|id| id.0 != 0);
                    }
                    Some(renew_response::Result::Down(_)) if !self.is_up() => {
                        warn!(node = %self.me, "this start of the node was declared down");
                        return;
                    }
                    Some(renew_response::Result::Down(_)) | None => *leader_hint.lock() = None,
                },
                Ok(()) = status.changed() => {}
            }
        }
    }

    /// What our own replica says: a leader that has not applied our Up yet says Down too.
    fn is_up(&self) -> bool {
        self.node.meta().read().is_up(self.me)
    }

    /// The nodes that are Up and that this one does not reach.
    fn unreachable(&self) -> Vec<u64> {
        let meta = self.node.meta().read();
        let others = meta.up_nodes().map(|up| up.node);
        let network = self.node.network();
        let cut = others.filter(|id| *id != self.me.node && !network.connected(*id));
        cut.map(|id| id.0).collect()
    }

    async fn renew(
        &self,
        hint: Option<NodeId>,
        timeout: Duration,
    ) -> (u64, Option<renew_response::Result>) {
        let sent_ns = boot_ns();
        let group = self.node.meta_group();
        let (kicks, kicked) = self.kicks.for_renewal();
        let request = RenewRequest {
            node_id: self.me.node.0,
            incarnation: self.me.incarnation,
            applied: group.applied(),
            unreachable: self.unreachable(),
            kicks,
            kicked,
        };
        let Some(leader) = group.status().leader.or(hint) else {
            return (sent_ns, None);
        };
        if leader == self.me.node {
            let answer = tokio::time::timeout(timeout, self.node.leases().renew(request)).await;
            return (
                sent_ns,
                answer.ok().flatten().and_then(|response| response.result),
            );
        }
        let body = envelope::Body::RenewRequest(request);
        let network = self.node.network();
        let call = async {
            network
                .send(leader, body, timeout, Haste::MayWait)
                .await?
                .wait()
                .await
        };
        match tokio::time::timeout(timeout, call)
            .await
            .unwrap_or(Err(CallError::Timeout))
        {
            Ok(envelope::Body::RenewResponse(response)) => (sent_ns, response.result),
            _ => (sent_ns, None),
        }
    }
}
