//! A node that sends its clients away: the others know, it leads nothing that they can lead, and they are where its clients
//! may go.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flotte_proto::{Draining, LoadRequest, Member, envelope, meta_command};
use futures::future::join_all;

use super::node::Node;
use super::replicas::LAG_MAX;
use crate::handle::{Load, Shed};
use crate::id::{GroupId, NodeId};
use crate::raft::Group;

/// How long the others may take to know. Without a quorum they never do, and the clients go nevertheless.
const TELL_MAX: Duration = Duration::from_secs(1);
/// How long a node may take to say how it is doing.
const LOAD_MAX: Duration = Duration::from_secs(2);

/// Whether this process drains, whatever becomes of its starts.
#[derive(Debug, Default)]
pub(super) struct Drains(AtomicBool);

/// Who may lead instead of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heirs {
    /// Those that stay.
    Staying,
    /// Those that stay and are near in their log.
    Near,
    /// Any that is Up, where none stays: this node ends.
    Any,
}

impl Node {
    /// Whether this node sends its clients away.
    pub(super) fn is_draining(&self) -> bool {
        self.drains.0.load(Ordering::Acquire)
    }

    /// From now on, and until this process ends, no clients are referred to this node and it leads nothing that others can
    /// lead. Resolves once the others know and its leaderships are handed over, or do not answer in time.
    pub(crate) async fn drain(&self) {
        self.drains.0.store(true, Ordering::Release);
        if let Some(life) = self.life() {
            let draining = meta_command::Command::Draining(Draining { draining: true });
            // Past that it is told all the same, later.
            let _ = tokio::time::timeout(TELL_MAX, life.propose_meta(draining)).await;
        }
        self.hand_over(self.all_groups(), Heirs::Staying).await;
    }

    /// The members that are Up and stay, by id, with their names.
    pub(crate) fn serving(&self) -> Vec<(NodeId, String)> {
        let meta = self.meta.read();
        let serving = meta.members().iter().filter(|(_, member)| stays(member));
        serving
            .map(|(id, member)| (*id, member.name.clone()))
            .collect()
    }

    /// How a node is doing; with `shed` it begins to send clients away. None = it does not answer.
    pub(crate) async fn load(&self, node: NodeId, shed: Option<Shed>) -> Option<Load> {
        if node == self.id {
            return Some(self.local.load(shed));
        }
        let shed = shed.map(|shed| flotte_proto::Shed {
            keep: shed.keep,
            to: shed.to.iter().map(|id| id.0).collect(),
        });
        let request = envelope::Body::LoadRequest(LoadRequest { shed });
        match self.network.call(node, request, LOAD_MAX).await {
            Ok(envelope::Body::LoadResponse(load)) => Some(Load {
                clients: load.clients,
                sheds: load.sheds,
            }),
            _ => None,
        }
    }

    /// host:port of other nodes for clients of such a listener: of each that is Up and stays one, of the same name rather than
    /// only the same protocol.
    pub(crate) fn elsewhere(&self, listener: &str, protocol: &str, only: &[NodeId]) -> Vec<String> {
        let address = |member: &Member| {
            let endpoints = member.endpoints.iter();
            let alike = endpoints.filter(|endpoint| endpoint.protocol == protocol);
            let best = alike.min_by_key(|endpoint| endpoint.listener != listener);
            best.map(|endpoint| endpoint.address.clone())
        };
        let meta = self.meta.read();
        let others = meta.members().iter().filter(|(id, _)| **id != self.id);
        let asked = others.filter(|(id, _)| only.is_empty() || only.contains(id));
        let stay = asked.filter(|(_, member)| stays(member));
        stay.filter_map(|(_, member)| address(member)).collect()
    }

    /// The groups of sessions that this node holds.
    pub(super) fn session_groups(&self) -> Vec<Group> {
        let held = self.groups.read();
        held.values().map(|replica| replica.group.clone()).collect()
    }

    /// These, and the meta group.
    pub(super) fn all_groups(&self) -> Vec<Group> {
        let mut groups = self.session_groups();
        groups.push(self.meta_group.clone());
        groups
    }

    /// Hands leaderships to others, as far as there are any who may have them: all at the same time.
    pub(super) async fn hand_over(&self, groups: Vec<Group>, heirs: Heirs) {
        let led = groups.into_iter().filter(Group::is_leader);
        let handed = led.filter_map(|group| {
            let heir = self.heir(&group, heirs);
            // Whoever cares looks at it again, should it fail.
            (heir.is_some() || heirs == Heirs::Any)
                .then_some(async move { drop(group.transfer_leader(heir).await) })
        });
        join_all(handed).await;
    }

    /// A voter to lead a group that this node leads: reached and Up, near in its log if there is such a one; another one for each
    /// group.
    fn heir(&self, group: &Group, heirs: Heirs) -> Option<NodeId> {
        let (near, status) = (group.caught_up(LAG_MAX), group.status());
        let meta = self.meta.read();
        let member = |id: &NodeId| meta.members().get(id).filter(|member| member.up);
        let is_able = |id: &NodeId| *id != self.id && self.network.connected(*id);
        let able = status.voters.iter().copied().filter(is_able);
        let able: Vec<NodeId> = able.filter(|id| member(id).is_some()).collect();
        let is_staying = |id: &NodeId| member(id).is_some_and(stays);
        let staying: Vec<NodeId> = able.iter().copied().filter(is_staying).collect();
        let best: Vec<NodeId> = staying
            .iter()
            .copied()
            .filter(|id| near.contains(id))
            .collect();
        let choices = [best, staying, able];
        let count = match heirs {
            Heirs::Near => 1,
            Heirs::Staying => 2,
            Heirs::Any => 3,
        };
        let mut choices = choices.iter().take(count);
        pick(choices.find(|choice| !choice.is_empty())?, group.id())
    }
}

fn stays(member: &Member) -> bool {
    member.up && !member.draining && !member.leaving
}

/// So that what one node led is shared by the others.
fn pick(heirs: &[NodeId], group: GroupId) -> Option<NodeId> {
    let turn = usize::try_from(group.0).unwrap_or(0);
    heirs.get(turn % heirs.len().max(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heirs_share_the_groups() {
        let heirs = [NodeId(7), NodeId(9)];
        let picked: Vec<_> = (1..=4).map(|group| pick(&heirs, GroupId(group))).collect();
        assert_eq!(
            picked,
            [9, 7, 9, 7].map(|id| Some(NodeId(id))),
            "each takes every other group"
        );
        assert_eq!(pick(&[], GroupId(3)), None);
    }
}
