//! All that the broker sees of the cluster, and all that the cluster asks of the broker.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotte_mqtt::topic::{ShareName, SubscriptionFilter, TopicFilter};
use flotte_proto::{Close, Forward, Open, OpenReply, Retain, WillKey, retain_reply};
use futures::future::BoxFuture;
use prost::Message;
use smallvec::SmallVec;

use crate::id::{NodeId, NodeRef};
use crate::lease::Lease;
use crate::level::FeatureLevel;
use crate::link::{Lane, Placed, Pushed};
use crate::meta::{Destinations, Retained, ShareMembers};
use crate::runtime::{Life, Node, retaining};

pub use crate::config::Config;
pub use crate::group::FiredWill;
pub use crate::link::Kept;
pub use crate::meta::PART_BYTES;
pub use crate::raft::{Death, Role};
pub use crate::runtime::{
    GroupStatus, JoinError, JoinPlan, LeaveError, NodeStatus, StartError, State, Status, start,
};

/// How the cluster acts on the clients of this node. Calls must not block.
pub trait Local: Send + Sync + 'static {
    /// Puts a publish from another node into the outbound queues here. Says whether each share pick found a member.
    /// The other node keeps a shared message for the case that this one goes, as long as `kept` lives.
    fn deliver(&self, publish: Forward, kept: Option<Kept>) -> bool;
    /// A frame of publishes was delivered: write to the sockets.
    fn flush(&self);
    /// Ends the connection that this node holds for a client at or below an epoch (0x8E), and its session where asked;
    /// `done` is called when that is so, at once where there is none.
    fn kick(&self, kick: Kick, done: Box<dyn FnOnce() + Send>);
    /// Publishes a will under its key. Resolves to true once it is placed everywhere.
    fn publish_will(&self, will: FiredWill, key: WillKey) -> BoxFuture<'static, bool>;
    /// This incarnation is no more: ends all connections and sessions, without wills. Resolves when that is done.
    fn reset(&self) -> BoxFuture<'static, ()>;
    /// How many clients there are. With `shed` it begins to send those away that are too many.
    fn load(&self, shed: Option<Shed>) -> Load;
}

/// An order to send clients to other nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shed {
    /// So many stay.
    pub keep: u64,
    /// The others go to these.
    pub to: Vec<NodeId>,
}

impl From<flotte_proto::Shed> for Shed {
    fn from(shed: flotte_proto::Shed) -> Shed {
        Shed {
            keep: shed.keep,
            to: shed.to.into_iter().map(NodeId).collect(),
        }
    }
}

/// How a node is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Connected clients.
    pub clients: u64,
    /// Some of them are being sent away.
    pub sheds: bool,
}

/// An order to end what a node holds for a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kick {
    /// The client.
    pub client: Bytes,
    /// Whatever is at or below this epoch.
    pub epoch: u64,
    /// End the session too.
    pub session: bool,
}

/// Who waits for a QoS 1/2 publish to be placed at another node.
pub trait Placement: Send + Sync {
    /// Called once for each node it was forwarded to; for a share pick a second time, with [`Placed::Lost`], if the node
    /// goes before the member has acknowledged it. Must not block.
    fn placed(&self, node: NodeRef, placed: Placed);
    /// It is large, and some more of it has arrived there. Must not block.
    fn progressed(&self) {}
}

/// Who wants to know that something that takes long goes on.
pub trait Progress: Send + Sync {
    /// Some more of it is done. Must not block.
    fn progressed(&self);
}

/// Why the cluster did not do what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// This node does not serve right now: no quorum, not Up, or shutting down. It may well soon.
    #[error("this node does not serve now")]
    NotServing,
    /// It took longer than an election and 2 T.
    #[error("the cluster did not answer in time")]
    TimedOut,
    /// The client has a newer connection at another node.
    #[error("the client has connected elsewhere since")]
    Overtaken,
}

/// A CONNECT that arrived, and what this node had seen by then: a connection that another node opened later is newer.
#[derive(Debug, Clone, Copy)]
pub struct Arrived {
    displaces: u64,
    at: Instant,
}

/// So long after it arrived a CONNECT may still displace a connection that is newer than all that its node had seen then.
const CONTEST: Duration = Duration::from_secs(2);

/// A committed CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Fences everything this connection commits.
    pub epoch: u64,
    /// The session goes on: this node holds it.
    pub session_present: bool,
    /// Which start of the node it belongs to.
    pub incarnation: u64,
}

/// The cluster, as one node of it. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    node: Arc<Node>,
}

impl Cluster {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Cluster { node }
    }

    /// The serve lease: checked after each read and before each acknowledgement.
    pub fn lease(&self) -> &Arc<Lease> {
        self.node.lease()
    }

    /// This node and its current start; none while it is not Up.
    pub fn me(&self) -> Option<NodeRef> {
        self.node.life().map(|life| life.me)
    }

    /// Longest that a barrier or a commit takes where nothing is broken.
    pub fn barrier_max(&self) -> Duration {
        self.node.config().barrier_max()
    }

    /// Resolves when this node is Up; at once where it is.
    pub async fn up(&self) {
        self.node.up().await;
    }

    /// Resolves when this node is Up and its replicas have what their groups had committed when they were asked.
    pub async fn caught_up(&self) {
        self.node.caught_up().await;
    }

    /// host:port under which others reach this node.
    pub fn advertise(&self) -> String {
        self.node.advertise()
    }

    /// This node's id.
    pub fn node_id(&self) -> NodeId {
        self.node.id()
    }

    /// Changes whenever a route that this topic might match changes. Read it before [`Cluster::destinations`].
    pub fn route_epoch(&self, topic: &str) -> u64 {
        self.node.meta().epochs().of_topic(topic)
    }

    /// Where a topic goes beyond this node; this node may or may not be among them.
    pub fn destinations(&self, topic: &str) -> Destinations {
        let meta = self.node.meta().read();
        if meta.routes().lead_beyond(self.node.id()) {
            meta.routes().destinations(topic)
        } else {
            Destinations::default()
        }
    }

    /// Where a topic goes, this node included, as its replica has it.
    pub fn routes(&self, topic: &str) -> Destinations {
        self.node.meta().read().routes().destinations(topic)
    }

    /// The nodes with members of one shared subscription, sorted; this one as far as its routes are committed.
    pub fn share_members(
        &self,
        group: &ShareName,
        filter: &TopicFilter,
    ) -> SmallVec<[(NodeRef, ShareMembers); 2]> {
        let meta = self.node.meta().read();
        meta.routes().share_members(group, filter)
    }

    /// Sends a publish to another node. With `waiter` it is QoS 1/2, kept until placed, and the waiter is told.
    pub fn forward(
        &self,
        to: NodeRef,
        message: Forward,
        waiter: Option<Arc<dyn Placement>>,
    ) -> Pushed {
        match self.node.life() {
            Some(life) => life.links.push(to, message, waiter),
            None => {
                if let Some(waiter) = waiter {
                    waiter.placed(to, Placed::NodeGone);
                }
                Pushed::Dropped
            }
        }
    }

    /// Resolves when the lane of a link that answered [`Pushed::Full`] has room again, or its node is gone.
    pub async fn link_room(&self, to: NodeRef, lane: Lane) {
        if let Some(life) = self.node.life() {
            life.links.room(to, lane).await;
        }
    }

    /// The route of a filter, or share, to this start of this node in its replica: 1, or its members as bits, and the
    /// meta index that set it. None as long as the node is not Up.
    pub fn own_route(&self, filter: &SubscriptionFilter) -> Option<(u32, u64)> {
        let me = self.me()?;
        let meta = self.node.meta().read();
        Some(meta.routes().route_of(filter, me))
    }

    /// Announces or withdraws the route of a filter to this node. Calls take effect in the order in which they were
    /// made; the future resolves to the meta index that set it, once it is applied on this node.
    pub fn set_route(
        &self,
        filter: &TopicFilter,
        present: bool,
    ) -> BoxFuture<'static, Result<u64, Refused>> {
        let filter = Bytes::copy_from_slice(filter.as_str().as_bytes());
        let command = flotte_proto::meta_command::Command::SetRoute(flotte_proto::SetRoute {
            filter,
            present,
        });
        self.propose_meta(command)
    }

    /// Announces the members that this node has of a shared subscription. As [`Cluster::set_route`].
    pub fn set_share(
        &self,
        group: &str,
        filter: &TopicFilter,
        members: ShareMembers,
    ) -> BoxFuture<'static, Result<u64, Refused>> {
        let command = flotte_proto::meta_command::Command::SetShare(flotte_proto::SetShare {
            group: Bytes::copy_from_slice(group.as_bytes()),
            filter: Bytes::copy_from_slice(filter.as_str().as_bytes()),
            members: members.count,
            away: members.away,
        });
        self.propose_meta(command)
    }

    fn propose_meta(
        &self,
        command: flotte_proto::meta_command::Command,
    ) -> BoxFuture<'static, Result<u64, Refused>> {
        let Some(life) = self.node.life() else {
            return Box::pin(async { Err(Refused::NotServing) });
        };
        let reply = life.propose_meta(command);
        let node = Arc::clone(&self.node);
        Box::pin(async move {
            let (index, _) = reply.await?;
            node.meta_applied(index).await;
            Ok(index)
        })
    }

    /// Waits until every node that is Up has applied a meta index, which this node need not have applied yet.
    pub async fn barrier(&self, index: u64) -> Result<(), Refused> {
        let life = self.life()?;
        let limit = self.node.config().barrier_max();
        let passed = async {
            self.node.meta_applied(index).await;
            life.barrier.wait(index).await
        };
        tokio::time::timeout(limit, passed)
            .await
            .map_err(|_| Refused::TimedOut)?
    }

    /// Proposes a retained message under the limits of this node, in order of the calls; one of more than [`PART_BYTES`] not
    /// before this is polled, and `progress` hears of it then as it goes. Resolves once it is applied on this node, to its
    /// meta index and what became of it; a payload that is too large is refused at once.
    pub fn retain(
        &self,
        retain: Retain,
        progress: Option<Arc<dyn Progress>>,
    ) -> BoxFuture<'static, Result<(u64, retain_reply::Result), Refused>> {
        let Some(life) = self.node.life() else {
            return Box::pin(async { Err(Refused::NotServing) });
        };
        let config = self.node.config();
        let retain = Retain {
            messages_max: config.retained.messages_max,
            bytes_max: config.retained.bytes_max,
            ..retain
        };
        let message = retain.message.as_ref();
        let bytes = message.map_or(0, |message| message.payload.len());
        if bytes > config.retained_payload_max {
            retaining::refuse(&self.node, &life, retain)
        } else if bytes > PART_BYTES {
            retaining::propose_in_parts(Arc::clone(&self.node), life, retain, progress)
        } else {
            retaining::propose(&self.node, &life, retain)
        }
    }

    /// A meta index from a ReadIndex begun after this call, applied on this node when it resolves.
    pub async fn read_index(&self) -> Result<u64, Refused> {
        let life = self.life()?;
        let index = life.reads.read_index().await?;
        self.node.meta_applied(index).await;
        Ok(index)
    }

    /// Visits retained messages that match a filter and have not expired, each with what is left of its life in ms (none =
    /// it stays), in order, up to `limit`, from after a topic. Returns where to go on.
    pub fn retained_page(
        &self,
        filter: &TopicFilter,
        after: Option<&str>,
        limit: usize,
        visit: &mut dyn FnMut(&Retained, Option<u64>),
    ) -> Option<String> {
        let meta = self.node.meta();
        let now = meta.time().now_ms();
        let visit = |retained: &Retained| match retained.left_ms(now) {
            Some(0) => {}
            left => visit(retained, left),
        };
        meta.read()
            .retained()
            .tree()
            .page(filter, after, limit, visit)
    }

    /// The CONNECT of a client arrived just now.
    pub fn arrived(&self, client: &[u8]) -> Arrived {
        let life = self.node.life();
        let seen = life.and_then(|life| self.node.last_epoch(life.group_of(client)));
        Arrived {
            displaces: seen.unwrap_or(0),
            at: Instant::now(),
        }
    }

    /// Commits a CONNECT and has the former connection of the client closed, waiting for that at most 500 ms. Once it is not
    /// `wanted` any more, nothing is proposed that would displace a connection elsewhere; what was proposed before may be
    /// committed nevertheless.
    pub async fn open(
        &self,
        open: Open,
        arrived: Arrived,
        wanted: impl Fn() -> bool,
    ) -> Result<Opened, Refused> {
        let life = self.life()?;
        let group = life.group_of(&open.client);
        let mut open = Open {
            up_index: life.up_index,
            displaces: if wanted() { arrived.displaces } else { 0 },
            ..open
        };
        let reply = loop {
            let command = flotte_proto::session_command::Command::Open(open.clone());
            let (_, reply) = life.propose_session(group, command).await?;
            let reply = OpenReply::decode(reply).map_err(|_| Refused::NotServing)?;
            if reply.conflict == 0 {
                break reply;
            }
            if !wanted() || arrived.at.elapsed() >= CONTEST {
                return Err(Refused::Overtaken);
            }
            open.displaces = reply.conflict;
        };
        // Whether it is still wanted or not: what it displaced is not the connection of its client any more.
        life.kicks.former(group, &open.client, &reply).await;
        Ok(Opened {
            epoch: reply.epoch,
            session_present: reply.session_present,
            incarnation: life.me.incarnation,
        })
    }

    /// Commits the end of a connection. It is retried until the group has it or this start of the node is no more.
    pub fn close(&self, close: Close) -> BoxFuture<'static, Result<(), Refused>> {
        let Some(life) = self.node.life() else {
            return Box::pin(async { Err(Refused::NotServing) });
        };
        let group = life.group_of(&close.client);
        let reply =
            life.propose_session(group, flotte_proto::session_command::Command::Close(close));
        Box::pin(async move { reply.await.map(|_| ()) })
    }

    /// What all members understand, and no longer do not: what came with a later level is not used yet.
    pub fn feature_level(&self) -> FeatureLevel {
        self.node.meta().read().feature_level()
    }

    /// What is known of the cluster, for people and dashboards.
    pub fn status(&self) -> Status {
        self.node.status()
    }

    /// Has the member of this name leave: its replicas move to others first; [`Cluster::may_go`] resolves on it when that is
    /// done. With `force` it is gone when this resolves, up or down; refused where a group would lose its majority.
    pub async fn leave(&self, name: &str, force: bool) -> Result<(), LeaveError> {
        self.node.leave(name, force).await
    }

    /// Looks at the cluster at host:port, and at whether this node, a cluster of its own, may join it.
    pub async fn plan_join(&self, address: &str) -> Result<JoinPlan, JoinError> {
        self.node.plan_join(address).await
    }

    /// Writes down that the next start of this node sets its data aside and joins there, with a new identity.
    pub fn mark_join(&self, plan: &JoinPlan) -> Result<(), JoinError> {
        self.node.mark_join(plan)
    }

    /// Has a member that is leaving stay after all.
    pub async fn stay(&self, name: &str) -> Result<(), LeaveError> {
        self.node.stay(name).await
    }

    /// This node's name.
    pub fn node_name(&self) -> String {
        self.node.config().node_name.clone()
    }

    /// From now on no clients are referred to this node, and it leads nothing that others can lead. Resolves once the others
    /// know, or do not answer in time.
    pub async fn drain(&self) {
        self.node.drain().await;
    }

    /// host:port of other nodes for clients of such a listener, of those of `only` unless that is empty; none of a node that
    /// drains, leaves or is down.
    pub fn elsewhere(&self, listener: &str, protocol: &str, only: &[NodeId]) -> Vec<String> {
        self.node.elsewhere(listener, protocol, only)
    }

    /// The nodes that serve clients and go on doing so, by id, with their names.
    pub fn serving(&self) -> Vec<(NodeId, String)> {
        self.node.serving()
    }

    /// How another node, or this one, is doing; with `shed` it begins to send clients away. None = it does not answer.
    pub async fn load(&self, node: NodeId, shed: Option<Shed>) -> Option<Load> {
        self.node.load(node, shed).await
    }

    /// Resolves when this node is to leave and the cluster needs nothing of it any more.
    pub async fn may_go(&self) {
        self.node.may_go().await;
    }

    /// Leaves in good order: leaderships are handed over, storage is flushed. Clients must be gone before.
    pub async fn shutdown(&self) {
        self.node.shutdown().await;
    }

    /// Resolves when this node has to die: the storage failed or an entry cannot be understood. Says why.
    pub async fn fatal(&self) -> Death {
        self.node.fatal().await
    }

    fn life(&self) -> Result<Arc<Life>, Refused> {
        self.node.life().ok_or(Refused::NotServing)
    }
}
