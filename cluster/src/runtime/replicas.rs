//! The replicas of session groups on this node: started where one is placed here, stopped where it is not any more; and, where
//! this node leads a group, its members changed to those that should be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotte_proto::{Settled, meta_command};
use tracing::{info, warn};

use super::draining::Heirs;
use super::node::{Node, Replica};
use crate::group::GroupMachine;
use crate::id::{GroupId, NodeId};
use crate::leader::Leader;
use crate::meta::Placed;
use crate::net::Haste;
use crate::raft::{Death, Group, GroupConfig, InitializeError, MembershipError, NodeInfo};

/// How often the members of groups are compared with what they should be, besides every change in meta.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The same while a group that this node leads is on its way.
const LOOK_SOON: Duration = Duration::from_millis(20);
/// The same while this node, which is Up, has no lease.
const LOOK_UNLEASED: Duration = Duration::from_millis(100);
/// How long a node leads groups on without a lease.
const UNLEASED_MAX: Duration = Duration::from_millis(250);
/// How often it tries to give them to others: they may have none either, and give them back.
const GIVEN_UP_MAX: u32 = 3;
/// Entries that a replica may lack and counts as caught up.
pub(super) const LAG_MAX: u64 = 1_000;

/// How long a node that is Up has had no lease, and what it did about it.
#[derive(Debug, Default)]
struct Unleased {
    since: Option<Instant>,
    given_up: u32,
    /// When it last tried to give up meta.
    meta_given_up: Option<Instant>,
}

impl Unleased {
    /// Whether what this node leads is to be led by others.
    fn handle_look(&mut self, is_leased: bool, now: Instant) -> bool {
        if is_leased {
            *self = Self::default();
            return false;
        }
        let since = *self.since.get_or_insert(now);
        let is_due = now.duration_since(since) >= UNLEASED_MAX && self.given_up < GIVEN_UP_MAX;
        self.given_up += u32::from(is_due);
        is_due
    }

    /// Whether meta is to be led by another node, if this one leads it: each time that `patience` has passed once more.
    fn handle_meta_look(&mut self, patience: Duration, now: Instant) -> bool {
        let Some(since) = self.meta_given_up.or(self.since) else {
            return false;
        };
        let is_due = now.duration_since(since) >= patience;
        if is_due {
            self.meta_given_up = Some(now);
        }
        is_due
    }
}

impl Node {
    /// Holds the replicas that are placed on this node, and has the groups that it leads follow their placement.
    pub(super) async fn run_groups(self: Arc<Self>) {
        let mut membership = self.meta.membership();
        let mut unleased = Unleased::default();
        loop {
            membership.borrow_and_update();
            let (members, level) = {
                let meta = self.meta.read();
                (meta.members().clone(), meta.feature_level())
            };
            self.identity.set_cluster_level(level);
            self.take_addresses(members.values());
            let placement = self.meta.read().placement().clone();
            for (group, placed) in &placement {
                let result = self.hold(*group, placed).await;
                if let Err(why) = result {
                    return self.die(Death::State(format!("{group}: {why}")));
                }
            }
            let is_leased = self.life().is_none() || self.lease.held();
            // A node that went for a cut link, or lost its lease, is not reached by one that is Up, whose clients would wait for it
            // and who would not hear that a client of its own is elsewhere: others lead then.
            let is_cut = members.get(&self.id).is_some_and(|me| me.cut && !me.up);
            let is_lost = unleased.handle_look(is_leased, Instant::now());
            if self.is_draining() {
                self.hand_over(self.all_groups(), Heirs::Staying).await;
            } else if is_lost || is_cut {
                self.hand_over(self.session_groups(), Heirs::Staying).await;
            }
            if unleased.handle_meta_look(self.config.node_down_after / 2, Instant::now()) {
                self.give_up_meta().await;
            }
            let mut pause = if is_leased { LOOK_EVERY } else { LOOK_UNLEASED };
            for (group, placed) in &placement {
                if self.follow(*group, placed).await {
                    pause = LOOK_SOON;
                }
            }
            let wait = async {
                tokio::select! {
                    changed = membership.changed() => changed.is_ok(),
                    () = tokio::time::sleep(pause) => true,
                }
            };
            if self.shutdown.run_until_cancelled(wait).await != Some(true) {
                return;
            }
        }
    }

    /// The leader of meta declares everyone Down but itself. Where it has no lease though a quorum answers it, as its own replica stays
    /// behind, every SUBACK would wait for it: another one leads then.
    async fn give_up_meta(&self) {
        if !self.meta_group.is_leader() {
            return;
        }
        let read = self.meta_group.read_index(Haste::Now);
        if let Ok(Ok(_)) = tokio::time::timeout(UNLEASED_MAX, read).await {
            warn!("this node leads the meta group and has no lease: another one is to lead it");
            self.hand_over(vec![self.meta_group.clone()], Heirs::Near)
                .await;
        }
    }

    /// Starts the replica of a group, or stops it, as the placement says.
    async fn hold(&self, id: GroupId, placed: &Placed) -> Result<(), String> {
        let held = self.groups.read().get(&id).cloned();
        let is_placed = placed.members.contains(&self.id);
        match held {
            None if is_placed => self.start_replica(id, placed).await,
            // While the group moves, whoever goes still takes part.
            Some(replica) if !is_placed && !placed.moving => {
                info!(group = %id, "its replica here is no more");
                self.groups.write().remove(&id);
                replica.stop.cancel();
                // So that nothing of it keeps old segments of the journal. What stays is a vote and a snapshot: should the
                // group come back here, it goes on as a member that was away.
                if let Err(error) = replica.group.compact().await {
                    warn!(group = %id, %error, "its log stays");
                }
                replica.group.shutdown().await;
                Ok(())
            }
            None | Some(_) => Ok(()),
        }
    }

    async fn start_replica(&self, id: GroupId, placed: &Placed) -> Result<(), String> {
        let machine = Arc::new(GroupMachine::new(id));
        let group = Group::start(id, GroupConfig::sessions(), machine.clone(), &self.host);
        let group = group.await.map_err(|e| e.to_string())?;
        let is_first = placed.first.contains(&self.id);
        if is_first && !group.is_initialized().await.map_err(|e| e.to_string())? {
            // All first members initialise with exactly the same list; that of a node that lost its disk has another id.
            match group.initialize(self.infos(&placed.first)).await {
                // Another of its members was faster and has reached this one.
                Ok(()) | Err(InitializeError::NotEmpty) => {}
                Err(e) => return Err(e.to_string()),
            }
        }
        let stop = self.shutdown.child_token();
        let time = Arc::clone(machine.time());
        let leader = Leader::start(group.clone(), Arc::clone(&time), stop.clone());
        self.keep_time(group.clone(), time, stop.clone());
        let replica = Replica {
            group,
            machine,
            leader,
            stop,
            token: rand::random(),
        };
        self.groups.write().insert(id, replica);
        // Whoever watches for new groups looks again.
        self.meta.touch_membership();
        Ok(())
    }

    fn infos(&self, ids: &[NodeId]) -> BTreeMap<NodeId, NodeInfo> {
        let meta = self.meta.read();
        let info = |id: &NodeId| {
            let info = meta.members().get(id).map(NodeInfo::from);
            (*id, info.unwrap_or_default())
        };
        ids.iter().map(info).collect()
    }

    /// Changes the members of a group that this node leads to those that should be: new ones get the log first, then they
    /// vote, then the others go. Each step is one commit of the group; it is looked at again until all is done. Says whether
    /// there is something left to do here.
    async fn follow(&self, id: GroupId, placed: &Placed) -> bool {
        let Some(replica) = self.groups.read().get(&id).cloned() else {
            return false;
        };
        let status = replica.group.status();
        if status.leader != Some(self.id) || !placed.moving {
            return false;
        }
        let wanted: BTreeSet<NodeId> = placed.members.iter().copied().collect();
        let voters: BTreeSet<NodeId> = status.voters.iter().copied().collect();
        let step = self.step(id, &replica.group, &wanted, &voters, &status.learners);
        // A commit may take as long as there is no quorum, and other groups shall not wait for this one.
        match tokio::time::timeout(self.config.barrier_max(), step).await {
            Ok(Ok(true)) => self.settle(id, placed).await,
            Ok(Ok(false)) => {}
            Ok(Err(error)) => {
                info!(group = %id, %error, "its members do not change yet");
                return false;
            }
            Err(_) => {
                info!(group = %id, "its members do not change in time");
                return false;
            }
        }
        true
    }

    /// True once the members are those that should be.
    async fn step(
        &self,
        id: GroupId,
        group: &Group,
        wanted: &BTreeSet<NodeId>,
        voters: &BTreeSet<NodeId>,
        learners: &[NodeId],
    ) -> Result<bool, MembershipError> {
        let new = wanted.difference(voters);
        if let Some(new) = new.copied().find(|new| !learners.contains(new)) {
            info!(group = %id, node = %new, "gets a replica");
            let info = self.infos(&[new]).remove(&new).unwrap_or_default();
            group.add_learner(new, info).await?;
            return Ok(false);
        }
        if voters != wanted {
            let ready = group.caught_up(LAG_MAX);
            if !wanted
                .iter()
                .all(|id| voters.contains(id) || ready.contains(id))
            {
                return Ok(false);
            }
            if !wanted.contains(&self.id) {
                // Its successor goes on.
                let heir = wanted
                    .intersection(voters)
                    .copied()
                    .find(|id| ready.contains(id));
                if let Err(error) = group.transfer_leader(heir).await {
                    info!(group = %id, %error, "leadership is not handed over yet");
                }
                return Ok(false);
            }
            info!(group = %id, voters = ?wanted, "its replicas vote");
            group.change_voters(wanted.clone()).await?;
            return Ok(false);
        }
        let left: BTreeSet<NodeId> = learners.iter().copied().collect();
        if !left.is_empty() {
            group.remove_learners(left).await?;
            return Ok(false);
        }
        Ok(true)
    }

    async fn settle(&self, id: GroupId, placed: &Placed) {
        let Some(life) = self.life() else { return };
        let settled = Settled {
            group: id.0,
            members: placed.members.iter().map(|id| id.0).collect(),
        };
        let told = life.propose_meta(meta_command::Command::Settled(settled));
        if let Ok(Ok((index, _))) = tokio::time::timeout(self.config.barrier_max(), told).await {
            // So that it is not told again.
            self.meta_applied(index).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaderships_are_given_up_a_while_after_the_lease_and_not_for_ever() {
        let begin = Instant::now();
        let mut unleased = Unleased::default();
        let mut look =
            |ms: u64, is_leased| unleased.handle_look(is_leased, begin + Duration::from_millis(ms));
        assert!(!look(0, true));
        assert!(!look(100, false) && !look(200, false));
        assert!(!look(300, true), "it was renewed");
        assert!(!look(400, false) && !look(600, false));
        let given_up = (0..10).filter(|n| look(650 + n * 100, false)).count();
        assert_eq!(given_up, 3, "others may have no lease either");
        assert!(!look(2_000, true) && !look(2_100, false) && look(2_400, false));
    }

    #[test]
    fn meta_is_given_up_later_and_again_and_again() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let patience = Duration::from_millis(1_000);
        let mut unleased = Unleased::default();
        assert!(
            !unleased.handle_meta_look(patience, at(9_000)),
            "it has a lease"
        );
        unleased.handle_look(false, at(9_000));
        assert!(!unleased.handle_meta_look(patience, at(9_900)));
        assert!(unleased.handle_meta_look(patience, at(10_000)));
        assert!(!unleased.handle_meta_look(patience, at(10_900)));
        assert!(unleased.handle_meta_look(patience, at(11_000)));
        unleased.handle_look(true, at(11_100));
        assert!(!unleased.handle_meta_look(patience, at(13_000)));
    }
}
