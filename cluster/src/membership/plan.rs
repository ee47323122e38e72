//! What a leader of the meta group has to change so that members, voters and replicas become what they should be: one step
//! at a time. Pure: it is asked again after each step.

use std::collections::{BTreeMap, BTreeSet};

use flotte_proto::Member;

use super::place;
use crate::id::{GroupId, NodeId};
use crate::meta::Placed;

/// A step that moves a replica of a session group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The group.
    pub group: GroupId,
    /// Where its replicas should be until now.
    pub from: Vec<NodeId>,
    /// Where they should be from now on: one comes, one goes, or both.
    pub to: Vec<NodeId>,
}

/// The next replica to move, once the last move is followed. Replicas follow membership, never the state of nodes: that one
/// is down moves nothing, and none is moved to one that is.
pub fn next_move(
    members: &BTreeMap<NodeId, Member>,
    placement: &BTreeMap<GroupId, Placed>,
    factor: u32,
) -> Option<Move> {
    // One that moves to a node that is no more would move for ever: it is sent elsewhere.
    let is_lost = |placed: &Placed| placed.members.iter().any(|id| !members.contains_key(id));
    let mut moving = placement.values().filter(|placed| placed.moving);
    if moving.any(|placed| !is_lost(placed)) {
        return None;
    }
    let stay = members.iter().filter(|(_, member)| !member.leaving);
    let stay: Vec<NodeId> = stay.map(|(id, _)| *id).collect();
    placement.iter().find_map(|(group, placed)| {
        let wanted = place(*group, &stay, factor);
        let to = step(&placed.members, &wanted, members)?;
        Some(Move {
            group: *group,
            from: placed.members.clone(),
            to,
        })
    })
}

fn step(
    now: &[NodeId],
    wanted: &[NodeId],
    members: &BTreeMap<NodeId, Member>,
) -> Option<Vec<NodeId>> {
    let is_up = |id: &NodeId| members.get(id).is_some_and(|member| member.up);
    let coming = wanted.iter().filter(|id| !now.contains(id));
    let comes = coming.copied().find(is_up);
    let going = now.iter().filter(|id| !wanted.contains(id));
    // Those that are no more first: their group has the fewest replicas left.
    let goes = going
        .copied()
        .min_by_key(|id| (members.contains_key(id), is_up(id)));
    let is_full = now.len() >= wanted.len();
    let goes = goes.filter(|id| {
        // One more is better than one other, and one other better than one less, but for a node that is no more.
        let is_gone = !members.contains_key(id);
        is_gone || comes.is_some() && is_full || wanted.iter().all(|id| now.contains(id))
    });
    let mut to: Vec<NodeId> = now.iter().copied().filter(|id| Some(*id) != goes).collect();
    to.extend(comes);
    to.sort_unstable();
    (to != now && !to.is_empty()).then_some(to)
}

/// Who takes part in the meta group.
#[derive(Debug, Clone, Copy)]
pub struct Voting<'a> {
    /// The members of the cluster.
    pub members: &'a BTreeMap<NodeId, Member>,
    /// Who votes now.
    pub voters: &'a BTreeSet<NodeId>,
    /// Who could: learners that have caught up.
    pub ready: &'a BTreeSet<NodeId>,
    /// `cluster.voters`
    pub voters_max: u32,
}

impl Voting<'_> {
    /// Who is to vote, where that is to change: as many as should, of those that stay. One that is down is replaced by one
    /// that is up. None where a quorum could be lost by it.
    pub fn next(&self) -> Option<BTreeSet<NodeId>> {
        let stays = |id: &NodeId| self.members.get(id).is_some_and(|member| !member.leaving);
        let is_up = |id: &NodeId| self.members.get(id).is_some_and(|member| member.up);
        let staying = self.members.keys().filter(|id| stays(id)).count();
        let wanted = voter_count(staying, self.voters_max);
        let mut ranked: Vec<(bool, bool, NodeId)> = Vec::new();
        for id in self.voters.iter().filter(|id| stays(id)) {
            ranked.push((!is_up(id), false, *id));
        }
        let ready = self.ready.difference(self.voters);
        for id in ready.filter(|id| stays(id) && is_up(id)) {
            ranked.push((false, true, *id));
        }
        // Those that are up before those that are not, and those that vote already before others.
        ranked.sort_unstable();
        let next: BTreeSet<NodeId> = ranked.into_iter().take(wanted).map(|(.., id)| id).collect();
        let has_quorum =
            |set: &BTreeSet<NodeId>| set.iter().filter(|id| is_up(id)).count() * 2 > set.len();
        // Fewer than wanted, and even, for want of learners that are ready: later.
        let is_worth_it = next.len() == wanted || next.len() % 2 == 1;
        let keeps = has_quorum(self.voters) && has_quorum(&next);
        (next != *self.voters && is_worth_it && keeps).then_some(next)
    }
}

/// min(members, voters), where 4 count as 3 and 2 as 2: an even number tolerates no more than the odd one below.
pub fn voter_count(members: usize, voters_max: u32) -> usize {
    match members.min(usize::try_from(voters_max).unwrap_or(usize::MAX)) {
        4 => 3,
        count => count,
    }
}

/// Whether no replica of a session group is on a node, and none may be on its way there.
pub fn holds_nothing(id: NodeId, placement: &BTreeMap<GroupId, Placed>) -> bool {
    let mut placed = placement.values();
    placed.all(|placed| !placed.moving && !placed.members.contains(&id))
}

/// Why a member cannot be done without: a group that would lose its majority, in words.
pub fn needed_by(
    leaves: NodeId,
    members: &BTreeMap<NodeId, Member>,
    voters: &BTreeSet<NodeId>,
    placement: &BTreeMap<GroupId, Placed>,
) -> Option<String> {
    // One that is removed by force is Up until its lease is over, and counts for nothing any more.
    let is_up = |id: &&NodeId| members.get(id).is_some_and(|one| one.up && !one.expelled);
    let lacks = |all: &mut dyn Iterator<Item = &NodeId>, count: usize| {
        let others = all.filter(|id| **id != leaves).filter(is_up).count();
        (others * 2 <= count).then_some((others, count))
    };
    let meta = voters
        .contains(&leaves)
        .then(|| lacks(&mut voters.iter(), voters.len()));
    let meta = meta.flatten().map(|lack| (GroupId::META, lack));
    let sessions = placement
        .iter()
        .filter(|(_, placed)| placed.members.contains(&leaves));
    let mut sessions = sessions.filter_map(|(group, placed)| {
        let lack = lacks(&mut placed.members.iter(), placed.members.len())?;
        Some((*group, lack))
    });
    let (group, (others, count)) = meta.or_else(|| sessions.next())?;
    Some(format!(
        "without it {others} of the {count} replicas of {group} would be up, which is no majority"
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn member(up: bool, leaving: bool) -> Member {
        Member {
            up,
            leaving,
            ..Member::default()
        }
    }

    fn all_up(ids: &[u64]) -> BTreeMap<NodeId, Member> {
        let ids = ids.iter().map(|id| (NodeId(*id), member(true, false)));
        ids.collect()
    }

    fn set(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().map(|id| NodeId(*id)).collect()
    }

    fn list(ids: &[u64]) -> Vec<NodeId> {
        ids.iter().map(|id| NodeId(*id)).collect()
    }

    fn placed(members: &[u64]) -> Placed {
        Placed {
            members: list(members),
            first: list(members),
            moving: false,
        }
    }

    fn next_voters(
        members: &BTreeMap<NodeId, Member>,
        voters: &[u64],
        ready: &[u64],
        voters_max: u32,
    ) -> Option<Vec<u64>> {
        let voting = Voting {
            members,
            voters: &set(voters),
            ready: &set(ready),
            voters_max,
        };
        let next = voting.next()?;
        Some(next.into_iter().map(|id| id.0).collect())
    }

    #[test]
    fn a_node_holds_something_while_a_replica_is_there_or_any_is_on_its_way() {
        let (four, one) = (NodeId(4), GroupId(1));
        let mut placement = BTreeMap::from([(one, placed(&[1, 2, 3]))]);
        assert!(holds_nothing(four, &placement));
        placement.insert(GroupId(2), placed(&[2, 3, 4]));
        assert!(!holds_nothing(four, &placement));
        let moving = Placed {
            moving: true,
            ..placed(&[1, 2, 3])
        };
        placement.insert(GroupId(2), moving);
        assert!(!holds_nothing(four, &placement), "the last one leaves it");
    }

    #[test]
    fn four_voters_count_as_three() {
        let counts: Vec<usize> = (1..=6).map(|members| voter_count(members, 5)).collect();
        assert_eq!(counts, [1, 2, 3, 3, 5, 5]);
        assert_eq!(voter_count(5, 3), 3);
    }

    #[test]
    fn a_cluster_grows_from_one_voter_to_five_and_back() {
        let grown = all_up(&[1, 2]);
        assert_eq!(
            next_voters(&grown, &[1], &[], 5),
            None,
            "none has caught up"
        );
        assert_eq!(next_voters(&grown, &[1], &[2], 5), Some(vec![1, 2]));
        let grown = all_up(&[1, 2, 3, 4, 5]);
        assert_eq!(
            next_voters(&grown, &[1, 2, 3], &[4], 5),
            None,
            "four are no better"
        );
        assert_eq!(
            next_voters(&grown, &[1, 2, 3], &[4, 5], 5),
            Some(vec![1, 2, 3, 4, 5])
        );
        let mut shrunk = grown.clone();
        shrunk.insert(NodeId(2), member(true, true));
        assert_eq!(
            next_voters(&shrunk, &[1, 2, 3, 4, 5], &[], 5),
            Some(vec![1, 3, 4])
        );
    }

    #[test]
    fn a_dead_voter_is_replaced_where_somebody_can_take_its_place() {
        let mut members = all_up(&[1, 2, 3, 4]);
        members.insert(NodeId(2), member(false, false));
        assert_eq!(
            next_voters(&members, &[1, 2, 3], &[4], 3),
            Some(vec![1, 3, 4])
        );
        assert_eq!(next_voters(&members, &[1, 2, 3], &[], 3), None);
        members.insert(NodeId(3), member(false, false));
        assert_eq!(
            next_voters(&members, &[1, 2, 3], &[4], 3),
            None,
            "there is no quorum"
        );
    }

    #[test]
    fn one_that_was_forgotten_votes_no_more() {
        let members = all_up(&[1, 3]);
        assert_eq!(next_voters(&members, &[1, 2, 3], &[], 3), Some(vec![1, 3]));
    }

    #[test]
    fn nothing_moves_for_a_node_that_is_down_or_to_one() {
        let mut members = all_up(&[1, 2, 3]);
        let placement = BTreeMap::from([(GroupId(1), placed(&[1, 2, 3]))]);
        members.insert(NodeId(2), member(false, false));
        assert_eq!(next_move(&members, &placement, 3), None);
        members.insert(NodeId(2), member(true, true));
        members.insert(NodeId(4), member(false, false));
        assert_eq!(
            next_move(&members, &placement, 3),
            None,
            "nobody can take it"
        );
        members.insert(NodeId(4), member(true, false));
        let moved = next_move(&members, &placement, 3).map(|moved| moved.to);
        assert_eq!(moved, Some(list(&[1, 3, 4])));
    }

    #[test]
    fn one_move_waits_for_another_unless_that_leads_to_a_node_that_is_no_more() {
        let members = all_up(&[1, 2, 3, 4]);
        let moving = |ids: &[u64]| Placed {
            moving: true,
            ..placed(ids)
        };
        let mut placement = BTreeMap::from([
            (GroupId(1), moving(&[1, 2, 3])),
            (GroupId(2), placed(&[1, 2, 9])),
        ]);
        assert_eq!(next_move(&members, &placement, 3), None);
        placement.insert(GroupId(1), moving(&[1, 2, 8]));
        let moved = next_move(&members, &placement, 3).map(|moved| (moved.group, moved.from));
        assert_eq!(moved, Some((GroupId(1), list(&[1, 2, 8]))));
    }

    #[test]
    fn who_leaves_the_last_three_leaves_two_behind() {
        let mut members = all_up(&[1, 2, 3]);
        members.insert(NodeId(3), member(true, true));
        let placement = BTreeMap::from([(GroupId(1), placed(&[1, 2, 3]))]);
        let moved = next_move(&members, &placement, 3).map(|moved| moved.to);
        assert_eq!(moved, Some(list(&[1, 2])));
    }

    #[test]
    fn a_node_without_which_a_majority_is_lost_is_needed() {
        let mut members = all_up(&[1, 2, 3]);
        let placement = BTreeMap::from([(GroupId(1), placed(&[1, 2, 3]))]);
        let needed = |members: &_, id| needed_by(NodeId(id), members, &set(&[1, 2, 3]), &placement);
        assert_eq!(needed(&members, 3), None);
        members.insert(NodeId(2), member(false, false));
        assert_eq!(needed(&members, 2), None, "it is not there anyway");
        let why = needed(&members, 3).unwrap_or_default();
        assert!(why.contains("1 of the 3 replicas"), "{why}");
        members.remove(&NodeId(2));
        assert!(needed(&members, 1).is_some());
        // Up until its lease is over, but it counts for nothing any more.
        let expelled = Member {
            expelled: true,
            ..member(true, true)
        };
        members.insert(NodeId(2), expelled);
        assert_eq!(needed(&members, 2), None);
        assert!(needed(&members, 3).is_some());
    }

    proptest! {
        /// Whatever the members are, steps lead to where replicas should be, one at a time, and none is given up while
        /// another could have been added before.
        #[test]
        fn moves_lead_to_where_replicas_should_be(
            states in prop::collection::btree_map(1u64..9, (any::<bool>(), any::<bool>()), 1..8),
            first in prop::collection::btree_set(1u64..9, 1..4),
            factor in 1u32..5,
        ) {
            let states = states.into_iter();
            let members: BTreeMap<_, _> = states
                .map(|(id, (up, leaving))| (NodeId(id), member(up, leaving)))
                .collect();
            let first: Vec<u64> = first.into_iter().collect();
            let mut placement = BTreeMap::from([(GroupId(1), placed(&first))]);
            for _ in 0..20 {
                let Some(moved) = next_move(&members, &placement, factor) else { break };
                let here = placement.get_mut(&GroupId(1)).unwrap();
                prop_assert_eq!(&moved.from, &here.members);
                let came = moved.to.iter().filter(|id| !moved.from.contains(id)).count();
                let went = moved.from.iter().filter(|id| !moved.to.contains(id)).count();
                prop_assert!(came <= 1 && went <= 1 && came + went > 0);
                here.members = moved.to;
            }
            prop_assert_eq!(next_move(&members, &placement, factor), None, "it comes to rest");
            let staying: Vec<_> = members.iter().filter(|(_, m)| !m.leaving).map(|(id, _)| *id).collect();
            if !staying.is_empty() && staying.iter().all(|id| members[id].up) {
                prop_assert_eq!(&placement[&GroupId(1)].members, &place(GroupId(1), &staying, factor));
            }
        }
    }
}
