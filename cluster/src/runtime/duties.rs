//! What a node does for the cluster besides serving: starts the groups that are placed on it and, where it leads meta,
//! declares silent nodes Down and sees to it that every member holds a replica.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flotte_proto::{Down, meta_command};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use super::leases::Condemned;
use super::node::{Node, Replica};
use super::start::voter_count;
use crate::group::GroupMachine;
use crate::id::{GroupId, NodeId, NodeRef};
use crate::leader::Leader;
use crate::raft::{Death, Group, GroupConfig, InitializeError, NodeInfo};

/// How often memberships are compared with what they should be.
const CARE_EVERY: Duration = Duration::from_millis(500);

impl Node {
    /// Starts every session group that is placed on this node.
    pub(super) async fn run_groups(self: Arc<Self>) {
        let mut membership = self.meta.membership();
        loop {
            membership.borrow_and_update();
            let members = self.meta.read().members().clone();
            self.take_addresses(members.values());
            let mine: Vec<GroupId> = {
                let meta = self.meta.read();
                let placed = meta
                    .placement()
                    .iter()
                    .filter(|(_, members)| members.contains(&self.id));
                placed.map(|(group, _)| *group).collect()
            };
            for group in mine {
                if self.groups.read().contains_key(&group) {
                    continue;
                }
                if let Err(why) = self.start_group(group).await {
                    return self.die(Death::State(format!("{group}: {why}")));
                }
            }
            let changed = self
                .shutdown
                .run_until_cancelled(membership.changed())
                .await;
            if !matches!(changed, Some(Ok(()))) {
                return;
            }
        }
    }

    async fn start_group(&self, id: GroupId) -> Result<(), String> {
        let machine = Arc::new(GroupMachine::new(id));
        let group = Group::start(id, GroupConfig::sessions(), machine.clone(), &self.host);
        let group = group.await.map_err(|e| e.to_string())?;
        if !group.is_initialized().await.map_err(|e| e.to_string())? {
            // All first members initialise with exactly the same list; that of a node that lost its disk has another id.
            let members = {
                let meta = self.meta.read();
                let ids = meta.placement().get(&id).cloned().unwrap_or_default();
                let info = |node: NodeId| {
                    let member = meta.members().get(&node);
                    let (name, advertise) = member
                        .map(|m| (m.name.clone(), m.advertise.clone()))
                        .unwrap_or_default();
                    (node, NodeInfo { name, advertise })
                };
                ids.into_iter().map(info).collect()
            };
            match group.initialize(members).await {
                // Another of its members was faster and has reached this one.
                Ok(()) | Err(InitializeError::NotEmpty) => {}
                Err(e) => return Err(e.to_string()),
            }
        }
        let time = Arc::clone(machine.time());
        let leader = Leader::start(group.clone(), time, self.shutdown.clone());
        self.groups.write().insert(
            id,
            Replica {
                group,
                machine,
                leader,
            },
        );
        // Whoever watches for new groups looks again.
        self.meta.touch_membership();
        Ok(())
    }

    /// Declares Down whom the keeper condemned, and cares for the membership of the meta group while this node leads it.
    pub(super) async fn run_duties(self: Arc<Self>, mut downs: mpsc::Receiver<Condemned>) {
        let mut tick = tokio::time::interval(CARE_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut proposed = BTreeSet::new();
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                down = downs.recv() => {
                    let Some(condemned) = down else { return };
                    self.declare_down(condemned, &mut proposed);
                }
                _ = tick.tick() => {
                    proposed.retain(|(_, condemned)| self.meta.read().is_up(condemned.node));
                    self.care().await;
                }
            }
        }
    }

    /// Once for each term that condemned it and each start of this node: what was proposed goes down with either.
    fn declare_down(&self, condemned: Condemned, proposed: &mut BTreeSet<(NodeRef, Condemned)>) {
        let Some(life) = self.life() else { return };
        if !proposed.insert((life.me, condemned)) {
            return;
        }
        let Condemned { node, term } = condemned;
        warn!(%node, "no sign of it: declared down");
        let down = Down {
            node_id: node.node.0,
            incarnation: node.incarnation,
            term,
        };
        // The proposer repeats it until it is committed or this start of the node ends.
        drop(tokio::spawn(
            life.propose_meta(meta_command::Command::Down(down)),
        ));
    }

    async fn care(&self) {
        let status = self.meta_group.status();
        if status.leader.is_none() {
            self.find_again().await;
        }
        if status.leader != Some(self.id) {
            return;
        }
        let end = self.meta.read().retained().next_end_ms();
        if end.is_some_and(|end| end <= self.meta.time().now_ms()) {
            self.meta_leader.advance();
        }
        let (members, settings) = {
            let meta = self.meta.read();
            (meta.members().clone(), *meta.settings())
        };
        for (id, member) in &members {
            if !status.voters.contains(id) && !status.learners.contains(id) {
                let info = NodeInfo {
                    name: member.name.clone(),
                    advertise: member.advertise.clone(),
                };
                info!(node = %id, name = %member.name, "takes part in the meta group as a learner");
                if let Err(e) = self.meta_group.add_learner(*id, info).await {
                    info!(node = %id, error = %e, "not added yet");
                }
                return;
            }
        }
        let wanted = voter_count(members.len(), settings.voters.max(1));
        let ready = status
            .learners
            .iter()
            .find(|id| members.get(id).is_some_and(|member| member.up));
        if let (true, Some(id)) = (status.voters.len() < wanted && wanted % 2 == 1, ready) {
            let voters: BTreeSet<NodeId> = status.voters.iter().copied().chain([*id]).collect();
            info!(node = %id, "becomes a voter of the meta group");
            if let Err(e) = self.meta_group.change_voters(voters).await {
                info!(node = %id, error = %e, "not a voter yet");
            }
        }
    }
}
