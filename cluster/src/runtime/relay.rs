//! Kicks between nodes that cannot reach each other, passed on in lease answers by the leader of meta. All of it is what nodes want
//! by their last renewals, so that what is not wanted any more is forgotten; lost with the leadership, as the node that wants a
//! kick repeats it.

use std::collections::BTreeMap;

use flotte_proto::{Kick, RenewRequest};

use crate::id::NodeId;

/// Kicks that one node may have under way here.
const EACH_MAX: usize = 256;

/// What is wanted, and what of it is done.
#[derive(Debug, Default)]
pub(super) struct Relay {
    /// By the node that wants them; to be carried out by their `node_id`.
    wanted: BTreeMap<NodeId, Vec<Kick>>,
    /// Carried out, and still wanted by someone; told to everyone.
    kicked: Vec<Kick>,
}

impl Relay {
    /// A renewal came: takes the kicks that its node wants and those that it carried out.
    pub fn take(&mut self, request: &mut RenewRequest) {
        let node = NodeId(request.node_id);
        let mut wanted = std::mem::take(&mut request.kicks);
        wanted.truncate(EACH_MAX);
        if wanted.is_empty() && self.wanted.is_empty() {
            request.kicked.clear();
            return;
        }
        match wanted.is_empty() {
            true => drop(self.wanted.remove(&node)),
            false => drop(self.wanted.insert(node, wanted)),
        }
        for kick in request.kicked.drain(..) {
            if !self.kicked.contains(&kick) {
                self.kicked.push(kick);
            }
        }
        self.forget();
    }

    /// Members changed: what nodes wanted that are no more is forgotten.
    pub fn keep(&mut self, is_up: impl Fn(NodeId) -> bool) {
        self.wanted.retain(|node, _| is_up(*node));
        self.forget();
    }

    /// For a node to carry out.
    pub fn for_node(&self, node: NodeId) -> Vec<Kick> {
        let mut kicks: Vec<Kick> = Vec::new();
        for kick in self.wanted.values().flatten() {
            let is_open = kick.node_id == node.0 && !self.kicked.contains(kick);
            if is_open && !kicks.contains(kick) && kicks.len() < EACH_MAX {
                kicks.push(kick.clone());
            }
        }
        kicks
    }

    /// For everyone, as who wants to know may be more than one.
    pub fn kicked(&self) -> Vec<Kick> {
        self.kicked.clone()
    }

    fn forget(&mut self) {
        let wanted = &self.wanted;
        let is_wanted = |kick: &Kick| wanted.values().flatten().any(|wanted| wanted == kick);
        self.kicked.retain(is_wanted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKER: NodeId = NodeId(1);
    const HOME: NodeId = NodeId(2);

    fn kick(epoch: u64) -> Kick {
        Kick {
            client: "c".into(),
            epoch,
            node_id: HOME.0,
            ..Kick::default()
        }
    }

    fn renewal(node: NodeId, kicks: Vec<Kick>, kicked: Vec<Kick>) -> RenewRequest {
        RenewRequest {
            node_id: node.0,
            kicks,
            kicked,
            ..RenewRequest::default()
        }
    }

    #[test]
    fn a_kick_goes_to_its_home_and_the_word_of_it_to_who_wants_it() {
        let mut relay = Relay::default();
        relay.take(&mut renewal(ASKER, vec![kick(5)], vec![]));
        assert_eq!(relay.for_node(HOME), [kick(5)]);
        assert!(relay.for_node(ASKER).is_empty() && relay.kicked().is_empty());
        relay.take(&mut renewal(HOME, vec![], vec![kick(5)]));
        assert!(relay.for_node(HOME).is_empty(), "it is done");
        assert_eq!(relay.kicked(), [kick(5)]);
        relay.take(&mut renewal(ASKER, vec![], vec![]));
        assert!(relay.kicked().is_empty(), "it has heard of it");
    }

    #[test]
    fn any_number_of_kicks_is_confirmed_one_after_the_other() {
        let mut relay = Relay::default();
        for epoch in 1..=3 * EACH_MAX as u64 {
            relay.take(&mut renewal(ASKER, vec![kick(epoch)], vec![]));
            assert_eq!(relay.for_node(HOME), [kick(epoch)]);
            relay.take(&mut renewal(HOME, vec![], vec![kick(epoch)]));
            assert_eq!(relay.kicked(), [kick(epoch)]);
        }
    }

    #[test]
    fn what_nobody_wants_any_more_is_forgotten() {
        let mut relay = Relay::default();
        relay.take(&mut renewal(ASKER, vec![kick(5), kick(6)], vec![]));
        relay.take(&mut renewal(ASKER, vec![kick(6)], vec![]));
        assert_eq!(relay.for_node(HOME), [kick(6)]);
        relay.take(&mut renewal(HOME, vec![], vec![kick(5), kick(6)]));
        assert_eq!(relay.kicked(), [kick(6)]);
        relay.keep(|node| node != ASKER);
        assert!(relay.for_node(HOME).is_empty() && relay.kicked().is_empty());
    }

    #[test]
    fn no_node_has_more_than_its_share_under_way() {
        let mut relay = Relay::default();
        let many = (0..1_000).map(kick).collect();
        relay.take(&mut renewal(ASKER, many, vec![]));
        assert_eq!(relay.for_node(HOME).len(), EACH_MAX);
    }
}
