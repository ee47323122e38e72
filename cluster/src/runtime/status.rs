//! What a node knows of itself and of the cluster, for people and dashboards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::draining::Heirs;
use super::node::Node;
use super::problems::View;
use super::replicas::LAG_MAX;
use crate::id::{GroupId, NodeId};
use crate::leader::wall_ms;
use crate::level::FeatureLevel;
use crate::link::Queued;
use crate::proposer::Pending;
use crate::raft::Role;

/// How this node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It serves.
    Up,
    /// It has not come Up yet.
    Joining,
    /// It was Up, but holds no lease.
    NoQuorum,
}

/// One node as this one sees it.
#[derive(Debug, Clone)]
pub struct NodeStatus {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Where others reach it.
    pub address: String,
    /// Its last start.
    pub incarnation: u64,
    /// Up or Down.
    pub up: bool,
    /// Since when, ms since the epoch.
    pub since_ms: u64,
    /// It is to leave the cluster.
    pub leaving: bool,
    /// It sends its clients away.
    pub draining: bool,
    /// It leads the meta group.
    pub leader: bool,
    /// It votes in the meta group.
    pub voter: bool,
    /// This node's control stream to it stands.
    pub connected: bool,
    /// The highest feature level that it knows.
    pub feature_level: FeatureLevel,
    /// Its T in ms, as it said when it last came up; 0 = not yet.
    pub down_after_ms: u32,
}

/// One group as this node's replica sees it.
#[derive(Debug, Clone)]
pub struct GroupStatus {
    /// Its id.
    pub id: GroupId,
    /// This node's part in it.
    pub role: Role,
    /// Its term.
    pub term: u64,
    /// Who leads it.
    pub leader: Option<NodeId>,
    /// Last index known to be committed.
    pub committed: u64,
    /// Last index applied here.
    pub applied: u64,
    /// Who votes in it.
    pub voters: Vec<NodeId>,
}

/// What a node knows.
#[derive(Debug, Clone)]
pub struct Status {
    /// 0 = none yet.
    pub cluster_id: u64,
    /// This node.
    pub node_id: NodeId,
    /// Its name.
    pub node_name: String,
    /// Its start; 0 before the first Up.
    pub incarnation: u64,
    /// How long this process has run.
    pub uptime: Duration,
    /// How it stands.
    pub state: State,
    /// How long it may still serve.
    pub lease_left: Duration,
    /// All members.
    pub nodes: Vec<NodeStatus>,
    /// All groups with a replica here.
    pub groups: Vec<GroupStatus>,
    /// Groups whose replica here has not caught up since this start.
    pub behind: Vec<GroupId>,
    /// What is the matter, in words; empty = nothing.
    pub problems: Vec<String>,
    /// Live node routes and share routes.
    pub routes: (usize, usize),
    /// Retained messages and their bytes.
    pub retained: (usize, u64),
    /// Those of which parts have come, and what they will add to the bytes.
    pub retained_coming: (usize, u64),
    /// What waits on each link.
    pub links: Vec<(NodeId, Queued)>,
    /// Bytes that are held for other nodes, of large messages that are not whole.
    pub link_parts: Vec<(NodeId, usize)>,
    /// What this node has proposed to each group and is not answered.
    pub proposals: Vec<(GroupId, Pending)>,
    /// What all members understand.
    pub feature_level: FeatureLevel,
}

impl Node {
    pub(crate) fn status(self: &Arc<Self>) -> Status {
        let meta_status = self.meta_group.status();
        let life = self.life();
        let held = self.lease.held();
        let state = match &life {
            None => State::Joining,
            Some(_) if held => State::Up,
            Some(_) => State::NoQuorum,
        };
        let (nodes, routes, retained, retained_coming, feature_level) = {
            let meta = self.meta.read();
            let node = |(id, member): (&NodeId, &flotte_proto::Member)| NodeStatus {
                id: *id,
                name: member.name.clone(),
                address: member.advertise.clone(),
                incarnation: member.incarnation,
                up: member.up,
                since_ms: member.since_ms,
                leaving: member.leaving,
                draining: member.draining,
                leader: meta_status.leader == Some(*id),
                voter: meta_status.voters.contains(id),
                connected: *id == self.id || self.network.connected(*id),
                feature_level: FeatureLevel::said(member.feature_level),
                down_after_ms: member.down_after_ms,
            };
            let mut nodes: Vec<NodeStatus> = meta.members().iter().map(node).collect();
            nodes.sort_by(|one, other| one.name.cmp(&other.name));
            (
                nodes,
                meta.routes().counts(),
                (meta.retained().len(), meta.retained().bytes()),
                meta.assembling(),
                meta.feature_level(),
            )
        };
        let mut status = Status {
            cluster_id: self.identity.cluster_id(),
            node_id: self.id,
            node_name: self.config.node_name.clone(),
            incarnation: self.identity.incarnation(),
            uptime: Duration::from_millis(wall_ms().saturating_sub(self.started_ms())),
            state,
            lease_left: Duration::from_nanos(self.lease.left_ns()),
            problems: Vec::new(),
            nodes,
            groups: self.group_statuses(),
            behind: life
                .as_ref()
                .map(|life| self.behind(life))
                .unwrap_or_default(),
            routes,
            retained,
            retained_coming,
            feature_level,
            links: life
                .as_ref()
                .map(|life| life.links.queued())
                .unwrap_or_default(),
            link_parts: life
                .as_ref()
                .map(|life| life.receiver.lock().held_in_parts())
                .unwrap_or_default(),
            proposals: life.map(|life| life.proposals()).unwrap_or_default(),
        };
        status.problems = self.problems(&status);
        status
    }

    fn group_statuses(&self) -> Vec<GroupStatus> {
        let status = |id, status: crate::raft::GroupStatus| GroupStatus {
            id,
            role: status.role,
            term: status.term,
            leader: status.leader,
            committed: status.committed,
            applied: status.applied,
            voters: status.voters.to_vec(),
        };
        let mut all = vec![status(GroupId::META, self.meta_group.status())];
        all.extend(
            self.groups
                .read()
                .iter()
                .map(|(id, replica)| status(*id, replica.group.status())),
        );
        all
    }

    fn problems(&self, status: &Status) -> Vec<String> {
        let mut replicas: BTreeMap<NodeId, usize> = BTreeMap::new();
        for placed in self.meta.read().placement().values() {
            for member in &placed.members {
                *replicas.entry(*member).or_default() += 1;
            }
        }
        let view = View {
            me: self.id,
            now_ms: wall_ms(),
            state: status.state,
            progress: self.progress.lock().clone(),
            trouble: self.discovery.trouble(),
            unleased_ms: self.lease.lost_for_ns().map(|ns| ns / 1_000_000),
            nodes: &status.nodes,
            groups: &status.groups,
            behind: &status.behind,
            lagging: &self.lagging(),
            replicas: &replicas,
        };
        let fatal = self.host.fatal.reason().map(|death| death.to_string());
        fatal.into_iter().chain(view.problems()).collect()
    }

    /// Who lacks much of the groups that this node leads.
    fn lagging(&self) -> Vec<(GroupId, NodeId, u64)> {
        let groups = self.all_groups();
        let lagging = groups.iter().flat_map(|group| {
            let lagging = group.lagging(LAG_MAX).into_iter();
            lagging.map(|(node, lag)| (group.id(), node, lag))
        });
        lagging.collect()
    }

    /// Leaves in good order. Clients are gone already.
    pub(crate) async fn shutdown(self: &Arc<Self>) {
        self.leaving.cancel();
        if let Some(life) = self.life() {
            self.hand_over(self.all_groups(), Heirs::Any).await;
            // Whoever did not close in time is served no more: others count on that once the Down is committed.
            self.lease.retire();
            if self.has_left().await {
                self.stop().await;
                return;
            }
            let down = flotte_proto::Down {
                node_id: life.me.node.0,
                incarnation: life.me.incarnation,
                term: 0,
                cut: false,
            };
            let gone = life.propose_meta(flotte_proto::meta_command::Command::Down(down));
            // Others need not wait T then; alone, nobody has to know.
            if self.meta.read().members().len() > 1 {
                let _ = tokio::time::timeout(Duration::from_secs(1), gone).await;
            }
        }
        self.lease.retire();
        self.stop().await;
    }

    async fn stop(&self) {
        self.shutdown.cancel();
        for replica in self.replicas() {
            replica.group.shutdown().await;
        }
        self.meta_group.shutdown().await;
        self.host.journal.shutdown();
    }

    fn replicas(&self) -> Vec<super::node::Replica> {
        self.groups.read().values().cloned().collect()
    }
}
