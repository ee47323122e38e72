//! What the leader of the meta group does for the cluster: declares silent nodes Down, sees to it that every member takes
//! part in the meta group, that enough of them vote, and that the replicas of session groups are where they should be.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flotte_proto::{Down, Place, meta_command};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::leases::Condemned;
use super::node::Node;
use super::replicas::LAG_MAX;
use crate::beat;
use crate::id::{NodeId, NodeRef};
use crate::membership::{Voting, next_move};
use crate::raft::{GroupStatus, MembershipError, NodeInfo};

/// How often memberships are compared with what they should be.
const CARE_EVERY: Duration = Duration::from_millis(500);

impl Node {
    /// Declares Down whom the keeper condemned.
    pub(super) async fn run_downs(self: Arc<Self>, mut downs: mpsc::Receiver<Condemned>) {
        let mut proposed = BTreeSet::new();
        while let Some(Some(condemned)) = self.shutdown.run_until_cancelled(downs.recv()).await {
            proposed.retain(|(_, earlier): &(_, Condemned)| self.meta.read().is_up(earlier.node));
            self.declare_down(condemned, &mut proposed);
        }
    }

    /// Cares for the members while this node leads the meta group. Apart from what declares nodes Down, which waits for
    /// nothing: here is waited for commits.
    pub(super) async fn run_care(self: Arc<Self>) {
        let mut tick = beat::interval(CARE_EVERY);
        let mut membership = self.meta.membership();
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                Ok(()) = membership.changed() => {}
                _ = tick.tick() => {}
                // One entry removes only so many.
                () = tokio::time::sleep(beat::BEAT), if self.leads_and_something_expired() => {}
            }
            self.care().await;
        }
    }

    /// Once for each term that condemned it and each start of this node: what was proposed goes down with either.
    fn declare_down(&self, condemned: Condemned, proposed: &mut BTreeSet<(NodeRef, Condemned)>) {
        let Some(life) = self.life() else { return };
        if !proposed.insert((life.me, condemned)) {
            return;
        }
        let Condemned { node, term, cut } = condemned;
        if cut {
            warn!(%node, "it and another node do not reach each other: declared down");
        } else {
            warn!(%node, "no sign of it: declared down");
        }
        let down = Down {
            node_id: node.node.0,
            incarnation: node.incarnation,
            term,
            cut,
        };
        // The proposer repeats it until it is committed or this start of the node ends.
        drop(tokio::spawn(
            life.propose_meta(meta_command::Command::Down(down)),
        ));
    }

    fn leads_and_something_expired(&self) -> bool {
        let end = self.meta.read().retained().next_end_ms();
        self.meta_group.is_leader() && end.is_some_and(|end| end <= self.meta.time().now_ms())
    }

    async fn care(self: &Arc<Self>) {
        let status = self.meta_group.status();
        if status.leader.is_none() {
            self.find_again().await;
        }
        if status.leader != Some(self.id) {
            return;
        }
        if self.leads_and_something_expired() {
            self.meta_leader.advance();
        }
        // A commit may take as long as there is no quorum.
        let limit = self.config.barrier_max();
        match tokio::time::timeout(limit, self.care_for_voters(&status)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => info!(%error, "the members of the meta group do not change yet"),
            Err(_) => info!("the members of the meta group do not change in time"),
        }
        self.move_replicas();
        self.forget_the_gone();
    }

    /// Every member takes part in the meta group, as many vote as should, and nobody else.
    async fn care_for_voters(&self, status: &GroupStatus) -> Result<(), MembershipError> {
        let (members, settings) = {
            let meta = self.meta.read();
            (meta.members().clone(), *meta.settings())
        };
        let voters: BTreeSet<NodeId> = status.voters.iter().copied().collect();
        let learners: BTreeSet<NodeId> = status.learners.iter().copied().collect();
        for (id, member) in &members {
            if !voters.contains(id) && !learners.contains(id) {
                let info = NodeInfo::from(member);
                info!(node = %id, name = %member.name, "takes part in the meta group as a learner");
                return self.meta_group.add_learner(*id, info).await;
            }
        }
        let ready = self.meta_group.caught_up(LAG_MAX);
        let voting = Voting {
            members: &members,
            voters: &voters,
            ready: &ready.intersection(&learners).copied().collect(),
            voters_max: settings.voters.max(1),
        };
        if let Some(next) = voting.next() {
            if !next.contains(&self.id) {
                let heir = next
                    .intersection(&voters)
                    .copied()
                    .find(|id| ready.contains(id));
                if let Err(error) = self.meta_group.transfer_leader(heir).await {
                    info!(%error, "leadership of the meta group is not handed over yet");
                }
                return Ok(());
            }
            info!(voters = ?next, "vote in the meta group");
            return self.meta_group.change_voters(next).await;
        }
        let gone = learners.into_iter().filter(|id| !members.contains_key(id));
        let gone: BTreeSet<NodeId> = gone.collect();
        if !gone.is_empty() {
            info!(nodes = ?gone, "take no part in the meta group any more");
            return self.meta_group.remove_learners(gone).await;
        }
        Ok(())
    }

    /// Replicas of session groups follow the members, one at a time.
    fn move_replicas(&self) {
        let Some(life) = self.life() else { return };
        let moved = {
            let meta = self.meta.read();
            let factor = meta.settings().replication_factor.max(1);
            next_move(meta.members(), meta.placement(), factor)
        };
        let Some(moved) = moved else { return };
        info!(group = %moved.group, from = ?moved.from, to = ?moved.to, "a replica moves");
        let numbers = |ids: Vec<NodeId>| ids.into_iter().map(|id| id.0).collect();
        let place = Place {
            group: moved.group.0,
            from: numbers(moved.from),
            members: numbers(moved.to),
        };
        // A second one for the same move is void.
        drop(tokio::spawn(
            life.propose_meta(meta_command::Command::Place(place)),
        ));
    }
}
