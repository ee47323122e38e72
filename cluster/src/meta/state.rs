//! State machine of group 0: members, routes, retained messages, placement. A pure function of state and entry.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotte_mqtt::ByteStr;
use flotte_mqtt::topic::{TopicFilter, TopicName};
use flotte_proto::meta_command::Command;
use flotte_proto::{
    Batch, BatchReply, ClusterSettings, EntryReply, GroupEntry, Member, MetaCommand, Replies,
    SetRoute, SetShare, batch_reply,
};
use prost::Message;

use super::assemblies::Assemblies;
use super::membership::Placed;
use super::records::Restoring;
use super::retained::RetainedSet;
use super::routes::{Routes, ShareMembers, parse_filter, parse_share_name};
use crate::id::{GroupId, NodeId, NodeRef};
use crate::lease::Served;
use crate::ledger::{Admission, Ledger};
use crate::level::{FeatureLevel, unknown_command};
use crate::will_keys::WillKeys;

/// Retained messages that one entry removes as expired, so that none takes long.
const EXPIRED_MAX: usize = 4_096;

/// An entry that this version does not understand. The node must stop: going on would fork the state.
#[derive(Debug, thiserror::Error)]
#[error("{group} entry {index}: {what}")]
pub struct UnknownEntry {
    /// Group of the entry.
    pub group: GroupId,
    /// Its log index.
    pub index: u64,
    /// What is wrong with it.
    pub what: String,
}

/// What an entry changed that others must hear of.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Members, placement or their states changed.
    pub membership: bool,
    /// Routes with these filters changed.
    pub routes: Vec<TopicFilter>,
    /// All routes may have changed.
    pub all_routes: bool,
}

/// The state of group 0.
#[derive(Debug, Default)]
pub struct MetaState {
    /// 0 until founded.
    pub(super) cluster_id: u64,
    pub(super) settings: ClusterSettings,
    pub(super) members: BTreeMap<NodeId, Member>,
    /// Ids that never come back: their name returned under another id, or they have left.
    pub(super) refused: BTreeSet<NodeId>,
    pub(super) placement: BTreeMap<GroupId, Placed>,
    pub(super) routes: Routes,
    pub(super) retained: RetainedSet,
    /// Payloads of retained messages to come.
    pub(super) assemblies: Assemblies,
    /// Wills that were retained, or not for want of room.
    pub(super) will_keys: WillKeys,
    pub(super) ledger: Ledger,
    pub(super) time_ms: u64,
    pub(super) index: u64,
    /// What all members understand; never falls.
    pub(super) level: FeatureLevel,
    /// Term of the entry that is applied last.
    term: u64,
    /// While it is taken back from a snapshot.
    pub(super) restoring: Option<Box<Restoring>>,
}

impl MetaState {
    /// Applies one entry. Returns the encoded [`EntryReply`].
    pub fn apply(
        &mut self,
        index: u64,
        term: u64,
        entry: &[u8],
        effects: &mut Effects,
    ) -> Result<Bytes, UnknownEntry> {
        let unknown = |what: String| UnknownEntry {
            group: GroupId::META,
            index,
            what,
        };
        let entry = GroupEntry::decode(entry).map_err(|e| unknown(e.to_string()))?;
        (self.index, self.term) = (index, term);
        self.time_ms = self.time_ms.max(entry.time_ms);
        self.retained.expire(self.time_ms, EXPIRED_MAX);
        let mut reply = EntryReply::default();
        for batch in entry.batches {
            reply
                .batches
                .push(self.apply_batch(batch, effects).map_err(unknown)?);
        }
        Ok(reply.encode_to_vec().into())
    }

    fn apply_batch(&mut self, batch: Batch, effects: &mut Effects) -> Result<BatchReply, String> {
        use batch_reply::Result as R;
        let from = NodeRef {
            node: NodeId(batch.node_id),
            incarnation: batch.incarnation,
        };
        let answer = |index, result| {
            Ok(BatchReply {
                index,
                result: Some(result),
            })
        };
        if let Some(refusal) = self.turns_away(from, &batch) {
            return answer(self.index, refusal);
        }
        match self
            .ledger
            .admit(from.node, from.incarnation, batch.sequence)
        {
            Admission::Repeat(reply) => {
                return BatchReply::decode(reply).map_err(|e| e.to_string());
            }
            Admission::Gap(last) => return answer(self.index, R::Gap(last)),
            Admission::Stale => return answer(self.index, R::Stale(true)),
            Admission::Take => {}
        }
        let commands = batch
            .commands
            .into_iter()
            .map(decode_command)
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(refusal) = self.judge(from, batch.sequence, &commands) {
            return answer(self.index, refusal);
        }
        let mut replies = Replies::default();
        for command in commands {
            replies
                .replies
                .push(self.apply_command(from, command, effects)?);
        }
        let reply = BatchReply {
            index: self.index,
            result: Some(R::Replies(replies)),
        };
        // Of one that is no member any more nothing is kept: it never asks again.
        if self.members.contains_key(&from.node) {
            let encoded = reply.encode_to_vec().into();
            self.ledger
                .record(from.node, from.incarnation, batch.sequence, encoded);
        }
        Ok(reply)
    }

    fn apply_command(
        &mut self,
        from: NodeRef,
        command: Command,
        effects: &mut Effects,
    ) -> Result<Bytes, String> {
        let done = Bytes::new();
        match command {
            Command::Found(found) => {
                self.found(found)?;
                effects.membership = true;
                Ok(done)
            }
            Command::Up(up) => {
                self.come_up(from, up, effects);
                Ok(done)
            }
            Command::Down(down) => {
                self.go_down(from, &down, effects);
                Ok(done)
            }
            // Behind its Down or Forget, in the same batch.
            Command::SetRoute(_)
            | Command::SetShare(_)
            | Command::Draining(_)
            | Command::RetainPart(_)
                if !self.is_up(from) =>
            {
                Ok(done)
            }
            Command::SetRoute(route) => self.set_route(from, route, effects),
            Command::SetShare(share) => self.set_share(from, share, effects),
            Command::Retain(retain) => self.retain(from, retain),
            Command::RetainPart(part) => self.retain_part(from, part),
            Command::Join(join) => {
                effects.membership = true;
                Ok(self.join(join))
            }
            Command::Draining(draining) => {
                if let Some(member) = self.members.get_mut(&from.node) {
                    member.draining = draining.draining;
                }
                effects.membership = true;
                Ok(done)
            }
            Command::Leaving(leaving) => {
                effects.membership = true;
                Ok(self.leaving(&leaving))
            }
            Command::Forget(forget) => Ok(self.forget(from, &forget, effects)),
            Command::Place(place) => {
                effects.membership |= self.place(place);
                Ok(done)
            }
            Command::Settled(settled) => {
                effects.membership |= self.settled(settled);
                Ok(done)
            }
        }
    }

    fn come_up(&mut self, from: NodeRef, up: flotte_proto::Up, effects: &mut Effects) {
        self.close_member(from, effects);
        if let Some(member) = self.members.get_mut(&from.node) {
            member.incarnation = from.incarnation;
            member.up = true;
            member.cut = false;
            (member.name, member.advertise) = (up.name, up.advertise);
            (member.draining, member.endpoints) = (up.draining, up.endpoints);
            member.feature_level = up.feature_level;
            (member.process, member.down_after_ms) = (up.process, up.down_after_ms);
        }
        self.raise_level();
    }

    fn go_down(&mut self, from: NodeRef, down: &flotte_proto::Down, effects: &mut Effects) {
        let node = NodeRef {
            node: NodeId(down.node_id),
            incarnation: down.incarnation,
        };
        // One that a leader decided and its proposer handed to the next leader is void: that one may have answered
        // the node's renewals since, and the node serves.
        let valid = match down.term {
            0 => from.node == node.node,
            decided => decided == self.term,
        };
        if valid && self.is_up(node) {
            self.close_member(node, effects);
            if let Some(member) = self.members.get_mut(&node.node) {
                member.cut = down.cut;
            }
        }
    }

    fn found(&mut self, found: flotte_proto::Found) -> Result<(), String> {
        if self.cluster_id != 0 {
            return Ok(());
        }
        self.cluster_id = found.cluster_id;
        self.settings = found.settings.ok_or("Found without settings")?;
        for member in found.members {
            self.members.insert(
                NodeId(member.node_id),
                Member {
                    incarnation: 0,
                    up: false,
                    // Whoever does not come is away since now.
                    since_index: self.index,
                    since_ms: self.time_ms,
                    ..member
                },
            );
        }
        for placement in found.placement {
            self.placement
                .insert(GroupId(placement.group), placement.into());
        }
        self.raise_level();
        Ok(())
    }

    /// All that Down does, which Up does to older incarnations too.
    fn close_member(&mut self, node: NodeRef, effects: &mut Effects) {
        self.routes.remove_node(node);
        self.assemblies.drop_of(node.node);
        if let Some(member) = self.members.get_mut(&node.node) {
            member.up = false;
            member.since_index = self.index;
            member.since_ms = self.time_ms;
        }
        effects.membership = true;
        effects.all_routes = true;
    }

    fn set_route(
        &mut self,
        from: NodeRef,
        route: SetRoute,
        effects: &mut Effects,
    ) -> Result<Bytes, String> {
        let filter = parse_filter(route.filter)?;
        self.routes
            .set_node(&filter, from, self.index, route.present);
        effects.routes.push(filter);
        Ok(Bytes::new())
    }

    fn set_share(
        &mut self,
        from: NodeRef,
        share: SetShare,
        effects: &mut Effects,
    ) -> Result<Bytes, String> {
        let filter = parse_filter(share.filter)?;
        let group = parse_share_name(share.group)?;
        let members = ShareMembers {
            count: share.members,
            away: share.away,
        };
        self.routes
            .set_share(&group, &filter, from, members, self.index);
        effects.routes.push(filter);
        Ok(Bytes::new())
    }

    /// 0 until the cluster is founded.
    pub fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    /// Settings fixed when the cluster was founded.
    pub fn settings(&self) -> &ClusterSettings {
        &self.settings
    }

    /// All members, by id.
    pub fn members(&self) -> &BTreeMap<NodeId, Member> {
        &self.members
    }

    /// All nodes that are Up.
    pub fn up_nodes(&self) -> impl Iterator<Item = NodeRef> {
        let up = self.members.iter().filter(|(_, member)| member.up);
        up.map(|(id, member)| NodeRef {
            node: *id,
            incarnation: member.incarnation,
        })
    }

    /// The same, each with its own T.
    pub fn served(&self) -> Vec<Served> {
        let up = self.members.iter().filter(|(_, member)| member.up);
        let served = up.map(|(id, member)| Served {
            node: NodeRef {
                node: *id,
                incarnation: member.incarnation,
            },
            down_after_ns: u64::from(member.down_after_ms) * 1_000_000,
        });
        served.collect()
    }

    /// The longest T of all members, in ms; 0 = none has said any.
    pub fn longest_down_after_ms(&self) -> u32 {
        let all = self.members.values().map(|member| member.down_after_ms);
        all.max().unwrap_or(0)
    }

    /// Whether exactly this incarnation is Up.
    pub fn is_up(&self, node: NodeRef) -> bool {
        self.members
            .get(&node.node)
            .is_some_and(|m| m.up && m.incarnation == node.incarnation)
    }

    /// Whether this incarnation was Up and never is again. One that is not known yet is not gone: this replica has not
    /// applied its Up.
    pub fn is_gone(&self, node: NodeRef) -> bool {
        match self.members.get(&node.node) {
            Some(m) => {
                m.incarnation > node.incarnation || (m.incarnation == node.incarnation && !m.up)
            }
            None => self.refused.contains(&node.node),
        }
    }

    /// Where the replicas of each session group should be.
    pub fn placement(&self) -> &BTreeMap<GroupId, Placed> {
        &self.placement
    }

    /// Who wants what.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// The retained messages.
    pub fn retained(&self) -> &RetainedSet {
        &self.retained
    }

    /// Index of the last applied entry.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// State time in ms since the epoch.
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }
}

pub(super) fn decode_command(command: Bytes) -> Result<Command, String> {
    let decoded = MetaCommand::decode(command.clone()).map_err(|e| e.to_string())?;
    decoded.command.ok_or_else(|| unknown_command(&command))
}

pub(super) fn parse_topic(bytes: Bytes) -> Result<TopicName, String> {
    let text = ByteStr::try_from(bytes).map_err(|e| format!("topic: {e}"))?;
    TopicName::parse(text).map_err(|e| format!("topic: {e}"))
}
