//! Who is a member, who is to leave, and where the replicas of session groups should be.

use bytes::Bytes;
use flotte_proto::{Forget, Join, Leaving, Member, Place, Placement, RefusedReply, Settled};
use prost::Message;

use super::state::{Effects, MetaState};
use crate::id::{GroupId, NodeId, NodeRef};
use crate::level::FeatureLevel;

/// Where the replicas of a session group should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placed {
    /// The nodes that should hold one.
    pub members: Vec<NodeId>,
    /// The first members: each of them makes the group, with exactly this list.
    pub first: Vec<NodeId>,
    /// The group itself has not followed yet.
    pub moving: bool,
}

impl From<Placement> for Placed {
    fn from(placement: Placement) -> Placed {
        let members = ids(placement.members);
        let first = match placement.first.is_empty() {
            true => members.clone(),
            false => ids(placement.first),
        };
        Placed {
            members,
            first,
            moving: placement.moving,
        }
    }
}

impl Placed {
    pub(super) fn record(&self, group: GroupId) -> Placement {
        let numbers = |ids: &[NodeId]| ids.iter().map(|id| id.0).collect();
        Placement {
            group: group.0,
            members: numbers(&self.members),
            first: numbers(&self.first),
            moving: self.moving,
        }
    }
}

fn ids(numbers: Vec<u64>) -> Vec<NodeId> {
    numbers.into_iter().map(NodeId).collect()
}

fn refused(reason: String) -> Bytes {
    RefusedReply { reason }.encode_to_vec().into()
}

impl MetaState {
    pub(super) fn join(&mut self, join: Join) -> Bytes {
        let id = NodeId(join.node_id);
        if let Some(why) = self.refuses_join(&join) {
            return refused(why);
        }
        let namesakes = self.members.iter();
        let namesakes = namesakes.filter(|(old, member)| **old != id && member.name == join.name);
        let replaced: Vec<NodeId> = namesakes.map(|(old, _)| *old).collect();
        for old in replaced {
            self.remove_member(old);
        }
        let (since_index, since_ms) = (self.index, self.time_ms);
        self.members.entry(id).or_insert_with(|| Member {
            node_id: id.0,
            name: join.name,
            advertise: join.advertise,
            since_index,
            since_ms,
            feature_level: join.feature_level,
            ..Member::default()
        });
        self.raise_level();
        Bytes::new()
    }

    /// What all members understand: commands that came with a later level are not used yet.
    pub fn feature_level(&self) -> FeatureLevel {
        self.level
    }

    /// Members, or what they know, changed: the level rises to the lowest of them.
    pub(super) fn raise_level(&mut self) {
        let known = self.members.values();
        let lowest = known.map(|member| FeatureLevel::said(member.feature_level));
        self.level = lowest
            .min()
            .map_or(self.level, |lowest| lowest.max(self.level));
    }

    /// Why a node that knows no higher level than this cannot be a member; none where it can.
    pub(super) fn lacks_level(&self, name: &str, known: u32) -> Option<String> {
        let known = FeatureLevel::said(known);
        (known < self.level).then(|| {
            let level = self.level;
            format!("node {name:?} knows feature level {known}, and the cluster uses level {level}: it needs a newer version")
        })
    }

    /// Whether this id was a member, and never will be again.
    pub fn is_banned(&self, id: NodeId) -> bool {
        self.refused.contains(&id)
    }

    pub(super) fn leaving(&mut self, leaving: &Leaving) -> Bytes {
        if let Some(why) = self.refuses_leaving(leaving) {
            return refused(why);
        }
        if let Some(member) = self.members.get_mut(&NodeId(leaving.node_id)) {
            member.leaving = !leaving.stays;
            member.expelled = leaving.expel && !leaving.stays;
        }
        Bytes::new()
    }

    pub(super) fn forget(
        &mut self,
        from: NodeRef,
        forget: &Forget,
        effects: &mut Effects,
    ) -> Bytes {
        let id = NodeId(forget.node_id);
        let Some(member) = self.members.get(&id) else {
            return Bytes::new();
        };
        if member.up && from.node != id {
            return refused(format!("node {id} is up"));
        }
        self.remove_member(id);
        self.raise_level();
        effects.membership = true;
        effects.all_routes = true;
        Bytes::new()
    }

    fn remove_member(&mut self, id: NodeId) {
        self.routes.remove_node(NodeRef {
            node: id,
            incarnation: u64::MAX,
        });
        self.assemblies.drop_of(id);
        self.members.remove(&id);
        self.ledger.forget(id);
        self.refused.insert(id);
    }

    /// One step at a time: it changes one replica, and not before the last change was followed, or cannot be any more, as it
    /// led to a node that is no member now.
    pub(super) fn place(&mut self, place: Place) -> bool {
        let (from, members) = (ids(place.from), ids(place.members));
        let come = members.iter().filter(|id| !from.contains(id)).count();
        let go = from.iter().filter(|id| !members.contains(id)).count();
        let is_lost = from.iter().any(|id| !self.members.contains_key(id));
        let Some(placed) = self.placement.get_mut(&GroupId(place.group)) else {
            return false;
        };
        let is_step = come <= 1 && go <= 1 && come + go > 0 && !members.is_empty();
        if placed.moving && !is_lost || placed.members != from || !is_step {
            return false;
        }
        placed.members = members;
        placed.moving = true;
        true
    }

    pub(super) fn settled(&mut self, settled: Settled) -> bool {
        let members = ids(settled.members);
        let placed = self.placement.get_mut(&GroupId(settled.group));
        match placed.filter(|placed| placed.moving && placed.members == members) {
            Some(placed) => {
                placed.moving = false;
                true
            }
            None => false,
        }
    }
}
