//! Who may propose to group 0 at all, and who may become a member or go. Nothing is changed here.

use flotte_proto::batch_reply::Result as R;
use flotte_proto::meta_command::Command;
use flotte_proto::{Batch, Hello, Join, Leaving};

use super::state::{MetaState, decode_command};
use crate::id::{NodeId, NodeRef};

impl MetaState {
    /// Whether a batch comes from a member, and from the process that the cluster knows by that incarnation. This is asked before
    /// the ledger, which knows nothing of those that went, and takes the Up of an older copy of a disk for a repeat.
    pub(super) fn turns_away(&self, from: NodeRef, batch: &Batch) -> Option<R> {
        if self.cluster_id == 0 {
            return None;
        }
        let Some(member) = self.members.get(&from.node) else {
            return Some(self.stranger(from.node));
        };
        if batch.sequence != 1 || from.incarnation > member.incarnation {
            return None;
        }
        let first = batch.commands.first().cloned();
        match first.map(decode_command) {
            Some(Ok(Command::Up(up))) if up.process != member.process => {
                Some(older_copy(from.incarnation, member.incarnation))
            }
            _ => None,
        }
    }

    fn stranger(&self, id: NodeId) -> R {
        match self.refused.contains(&id) {
            true => R::Banned(format!(
                "node id {id} was removed or replaced, or has left, and is refused for ever"
            )),
            false => R::Refused("this node is not a member of the cluster".into()),
        }
    }

    /// Whether this incarnation may propose: it begins with Up, and is Up for all the rest.
    pub(super) fn judge(&self, from: NodeRef, sequence: u64, commands: &[Command]) -> Option<R> {
        if matches!(commands.first(), Some(Command::Found(_))) && self.cluster_id == 0 {
            return None;
        }
        let Some(member) = self.members.get(&from.node) else {
            return Some(self.stranger(from.node));
        };
        if let (1, Some(Command::Up(up))) = (sequence, commands.first()) {
            if let Some(why) = self.lacks_level(&up.name, up.feature_level) {
                return Some(R::Refused(why));
            }
            if member.expelled {
                return Some(R::Refused("an operator removes this node".into()));
            }
            return (from.incarnation <= member.incarnation)
                .then(|| older_copy(from.incarnation, member.incarnation));
        }
        (!member.up || member.incarnation != from.incarnation).then_some(R::Stale(true))
    }

    /// Why a node cannot become a member; none where it can, or is one.
    pub fn refuses_join(&self, join: &Join) -> Option<String> {
        let id = NodeId(join.node_id);
        if self.refused.contains(&id) {
            return Some(format!(
                "node id {id} was replaced, or has left, and is refused for ever"
            ));
        }
        if let Some(why) = self.lacks_level(&join.name, join.feature_level) {
            return Some(why);
        }
        let mut others = self.members.iter().filter(|(other, _)| **other != id);
        let (other, namesake) = others.find(|(_, other)| other.up && other.name == join.name)?;
        Some(format!(
            "a member of this name is up: {:?}, node {other} at {}; give this node another `node.name`, or stop that one",
            namesake.name, namesake.advertise
        ))
    }

    /// Why a member is not to leave.
    pub(super) fn refuses_leaving(&self, leaving: &Leaving) -> Option<String> {
        let id = NodeId(leaving.node_id);
        let Some(member) = self.members.get(&id) else {
            return Some(format!("node {id} is no member"));
        };
        if leaving.stays {
            return None;
        }
        let mut others = self.members.iter().filter(|(other, _)| **other != id);
        if others.clone().all(|(_, other)| other.leaving) {
            let name = &member.name;
            return Some(format!(
                "{name:?} is the last member that stays: there is nobody to leave its sessions to"
            ));
        }
        // Both may be needed by the same group, and neither knew of the other.
        let (_, expelled) = others.find(|(_, other)| leaving.expel && other.expelled)?;
        let name = &expelled.name;
        Some(format!(
            "{name:?} is being removed by force: ask again once it is gone"
        ))
    }

    /// Whether a later start of this node is known, or another process with the number of this one: its disk is an older copy.
    pub fn is_older_copy(&self, hello: &Hello) -> bool {
        let member = self.members.get(&NodeId(hello.node_id));
        member.is_some_and(|member| {
            member.incarnation > hello.incarnation
                || member.incarnation == hello.incarnation && member.process != hello.process
        })
    }
}

fn older_copy(incarnation: u64, recorded: u64) -> R {
    R::Banned(format!(
        "incarnation {incarnation} is not above the recorded {recorded}: an old disk was restored, its disk is an older copy"
    ))
}
