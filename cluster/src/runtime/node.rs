//! One node's part in the cluster: what lives as long as the process, and what it is made of.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flotte_proto::{Member, ProbeRequest};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::discovery::Discovery;
use super::draining::Drains;
use super::leases::Leases;
use super::life::Life;
use crate::config::Config;
use crate::group::GroupMachine;
use crate::handle::Local;
use crate::id::{GroupId, NodeId};
use crate::leader::Leader;
use crate::lease::Lease;
use crate::membership::Bootstrap;
use crate::meta::MetaMachine;
use crate::net::{Identity, Network};
use crate::raft::{Death, Group, GroupStatus, Host};
use crate::store::Store;

/// A session group of which this node holds a replica.
#[derive(Clone)]
pub struct Replica {
    pub(super) group: Group,
    pub(super) machine: Arc<GroupMachine>,
    pub(super) leader: Leader,
    /// Cancelled when this node is to hold it no longer.
    pub(super) stop: CancellationToken,
    /// Its own: that of the next one of the same group is another.
    pub(super) token: u64,
}

/// One node's part in the cluster.
pub struct Node {
    pub(super) config: Config,
    pub(super) id: NodeId,
    pub(super) identity: Arc<Identity>,
    pub(super) store: Store,
    /// What all groups of this node share.
    pub(super) host: Host,
    pub(super) network: Network,
    pub(super) meta: Arc<MetaMachine>,
    pub(super) meta_group: Group,
    pub(super) meta_leader: Leader,
    pub(super) leases: Leases,
    pub(super) lease: Arc<Lease>,
    pub(super) local: Arc<dyn Local>,
    /// The current start of this node, while it is Up.
    pub(super) life: RwLock<Option<Arc<Life>>>,
    pub(super) groups: RwLock<BTreeMap<GroupId, Replica>>,
    /// Knows whom to ask for a cluster.
    pub(super) discovery: Discovery,
    /// Decides who founds the cluster while this node is empty.
    pub(super) bootstrap: Mutex<Bootstrap>,
    /// What the node is busy with or lacks, for people.
    pub(super) progress: Mutex<String>,
    /// Raised whenever this node comes Up or is no more.
    pub(super) lives: watch::Sender<u64>,
    pub(super) drains: Drains,
    /// Cancelled before this node says its last word in the log: no start of it comes Up behind that.
    pub(super) leaving: CancellationToken,
    pub(super) started_ms: AtomicU64,
    pub(super) shutdown: CancellationToken,
}

impl Node {
    pub(crate) fn id(&self) -> NodeId {
        self.id
    }

    pub(crate) fn advertise(&self) -> String {
        self.identity.hello().advertise
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    pub(crate) fn meta(&self) -> &Arc<MetaMachine> {
        &self.meta
    }

    pub(crate) fn meta_group(&self) -> &Group {
        &self.meta_group
    }

    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    pub(crate) fn local(&self) -> &Arc<dyn Local> {
        &self.local
    }

    pub(crate) fn leases(&self) -> &Leases {
        &self.leases
    }

    /// The current start, while it is Up.
    pub(crate) fn life(&self) -> Option<Arc<Life>> {
        self.life.read().clone()
    }

    /// Resolves when this node is Up and holds its lease.
    pub(crate) async fn up(&self) {
        let mut lives = self.lives.subscribe();
        loop {
            lives.borrow_and_update();
            if self.life().is_some() && self.lease.held() {
                return;
            }
            // The lease follows the Up within a renewal.
            let _ =
                tokio::time::timeout(std::time::Duration::from_millis(20), lives.changed()).await;
        }
    }

    /// Resolves when this node has applied a meta index.
    pub(crate) async fn meta_applied(&self, index: u64) {
        if self.meta_group.wait_applied(index).await.is_err() {
            // The process ends.
            futures::future::pending::<()>().await;
        }
    }

    /// The leader of a group as this node's replica knows it, and where batches for it are handed in here.
    pub(super) fn leader_of(&self, group: GroupId) -> (Option<NodeId>, Option<Leader>) {
        if group == GroupId::META {
            return (
                self.meta_group.status().leader,
                Some(self.meta_leader.clone()),
            );
        }
        match self.groups.read().get(&group) {
            Some(replica) => (replica.group.status().leader, Some(replica.leader.clone())),
            None => (None, None),
        }
    }

    /// The highest epoch of a session group that this node has seen; none where it holds no replica.
    pub(crate) fn last_epoch(&self, group: GroupId) -> Option<u64> {
        let groups = self.groups.read();
        groups
            .get(&group)
            .map(|replica| replica.machine.last_epoch())
    }

    /// Resolves when this node's replica knows that another node leads the group.
    pub(super) fn succeeded(
        &self,
        group: GroupId,
        leader: NodeId,
    ) -> impl Future<Output = ()> + Send + use<> {
        let status = match group {
            GroupId::META => Some(self.meta_group.watch()),
            _ => self
                .groups
                .read()
                .get(&group)
                .map(|replica| replica.group.watch()),
        };
        async move {
            let is_other = |known: &GroupStatus| known.leader.is_some_and(|other| other != leader);
            if let Some(mut status) = status
                && status.wait_for(is_other).await.is_ok()
            {
                return;
            }
            std::future::pending().await
        }
    }

    /// A node to ask about a group of which this one has no replica, or one that nobody speaks to: another one with each call.
    pub(super) fn any_replica_of(&self, group: GroupId) -> Option<NodeId> {
        let meta = self.meta.read();
        let members: Vec<NodeId> = match group {
            GroupId::META => meta.members().keys().copied().collect(),
            _ => meta.placement().get(&group)?.members.clone(),
        };
        let others: Vec<NodeId> = members
            .into_iter()
            .filter(|node| *node != self.id)
            .collect();
        let turn = usize::try_from(rand::random::<u32>()).unwrap_or(0);
        others.get(turn % others.len().max(1)).copied()
    }

    /// The process has to end: nothing this node could still do would be right.
    pub(crate) fn die(&self, death: Death) {
        self.lease.retire();
        self.host.fatal.raise(death);
    }

    /// This node is no member any more, and never will be again: its data directory starts no node from now on, as each start
    /// would draw a higher number and might be taken for a newer one in the end.
    pub(super) fn die_banned(&self, why: impl Into<String>) {
        if self.leaving.is_cancelled() {
            // It is on its way out: what it still proposes behind its last word is refused, too.
            return;
        }
        let why = why.into();
        if let Err(error) = self.store.set_refused(&why) {
            warn!(%error, "it is not written down here that the cluster refuses this node");
        }
        self.die(Death::Refused(why));
    }

    pub(crate) async fn fatal(&self) -> Death {
        self.host.fatal.raised().await
    }

    pub(super) fn progress(&self, what: impl Into<String>) {
        *self.progress.lock() = what.into();
    }

    /// A request that only introduces this node.
    pub(super) fn introduction(&self) -> ProbeRequest {
        let bootstrap_expect = self.config.expect();
        ProbeRequest {
            hello: Some(self.identity.hello()),
            bootstrap_expect,
            ..ProbeRequest::default()
        }
    }

    /// Tells the network where members are, and writes it down for the next start. Those that are members no more are not
    /// called again: others may be at their addresses.
    pub(super) fn take_addresses<'a>(&self, members: impl Iterator<Item = &'a Member>) {
        let mut known: BTreeMap<NodeId, String> = self
            .store
            .addresses()
            .unwrap_or_default()
            .into_iter()
            .collect();
        let before = known.clone();
        for member in
            members.filter(|member| member.node_id != self.id.0 && !member.advertise.is_empty())
        {
            let id = NodeId(member.node_id);
            self.network
                .set_peer(id, &member.advertise, member.incarnation);
            known.insert(NodeId(member.node_id), member.advertise.clone());
        }
        let gone: Vec<NodeId> = {
            let meta = self.meta.read();
            let called = self.network.peers().into_iter().map(|(id, _)| id);
            called.filter(|id| meta.is_banned(*id)).collect()
        };
        for id in gone {
            self.network.remove_peer(id);
            known.remove(&id);
        }
        if known != before {
            let list: Vec<_> = known.into_iter().collect();
            if let Err(e) = self.store.set_addresses(&list) {
                self.die(Death::Disk(e.to_string()));
            }
        }
    }

    /// Wall clock at which this process took up its part, in ms.
    pub(super) fn started_ms(&self) -> u64 {
        self.started_ms.load(Ordering::Relaxed)
    }
}
