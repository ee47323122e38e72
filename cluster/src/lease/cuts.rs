//! Links between nodes that are cut though both ends renew with the leader: messages between the clients of the two would wait
//! for ever, so one of them has to go. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::NodeId;

/// Which nodes say, and since when, that they do not reach which others.
#[derive(Debug, Default)]
pub struct Cuts {
    reports: BTreeMap<NodeId, BTreeMap<NodeId, u64>>,
}

impl Cuts {
    /// What a renewal says: these peers are not reached, all others are.
    pub fn handle_report(&mut self, node: NodeId, unreachable: &[NodeId], now_ns: u64) {
        if unreachable.is_empty() {
            self.reports.remove(&node);
            return;
        }
        let before = self.reports.remove(&node).unwrap_or_default();
        let since = |peer: &NodeId| (*peer, before.get(peer).copied().unwrap_or(now_ns));
        self.reports
            .insert(node, unreachable.iter().map(since).collect());
    }

    /// Nothing is known any more.
    pub fn clear(&mut self) {
        self.reports.clear();
    }

    /// Only of these nodes something is known.
    pub fn retain(&mut self, nodes: impl Fn(NodeId) -> bool) {
        self.reports.retain(|node, peers| {
            peers.retain(|peer, _| nodes(*peer));
            nodes(*node) && !peers.is_empty()
        });
    }

    /// Who is to go, where two nodes have been cut off from each other for `t_ns`: the one that most others do not reach, or
    /// do not hear from; the highest of them where that is undecided. Never `me`: the other one then. Only nodes that are
    /// `heard` count: that others do not reach one that is silent is no fault of theirs.
    pub fn victim(
        &self,
        me: NodeId,
        t_ns: u64,
        now_ns: u64,
        heard: impl Fn(NodeId) -> bool,
    ) -> Option<NodeId> {
        let mut apart: BTreeMap<NodeId, BTreeSet<NodeId>> = BTreeMap::new();
        for (node, peers) in &self.reports {
            for (peer, since) in peers {
                let is_old = now_ns.saturating_sub(*since) >= t_ns;
                if is_old && heard(*node) && heard(*peer) {
                    apart.entry(*node).or_default().insert(*peer);
                    apart.entry(*peer).or_default().insert(*node);
                }
            }
        }
        let others = apart.into_iter().filter(|(node, _)| *node != me);
        let ranked = others.map(|(node, from)| (from.len(), node));
        ranked.max().map(|(_, node)| node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: u64 = 1_000;

    fn ids(ids: &[u64]) -> Vec<NodeId> {
        ids.iter().map(|id| NodeId(*id)).collect()
    }

    #[test]
    fn two_nodes_that_are_apart_for_t_cost_the_higher_one() {
        let mut cuts = Cuts::default();
        for now in (0..=T).step_by(100) {
            cuts.handle_report(NodeId(2), &ids(&[3]), now);
            cuts.handle_report(NodeId(3), &ids(&[2]), now);
            let expected = (now == T).then_some(NodeId(3));
            assert_eq!(
                cuts.victim(NodeId(1), T, now, |_| true),
                expected,
                "at {now}"
            );
        }
    }

    #[test]
    fn who_is_apart_from_most_goes() {
        let mut cuts = Cuts::default();
        cuts.handle_report(NodeId(2), &ids(&[4, 5]), 0);
        assert_eq!(cuts.victim(NodeId(1), T, T, |_| true), Some(NodeId(2)));
        cuts.handle_report(NodeId(3), &ids(&[4]), 0);
        cuts.handle_report(NodeId(6), &ids(&[4]), 0);
        assert_eq!(cuts.victim(NodeId(1), T, T, |_| true), Some(NodeId(4)));
    }

    #[test]
    fn a_link_that_stands_again_costs_nobody() {
        let mut cuts = Cuts::default();
        cuts.handle_report(NodeId(2), &ids(&[3, 4]), 0);
        cuts.handle_report(NodeId(2), &ids(&[4]), T / 2);
        cuts.handle_report(NodeId(2), &ids(&[3, 4]), T);
        assert_eq!(cuts.victim(NodeId(1), T, T, |_| true), Some(NodeId(4)));
        cuts.handle_report(NodeId(2), &ids(&[3]), T + 1);
        assert_eq!(cuts.victim(NodeId(1), T, 2 * T - 1, |_| true), None);
        cuts.handle_report(NodeId(2), &[], 2 * T);
        assert_eq!(cuts.victim(NodeId(1), T, 9 * T, |_| true), None);
    }

    #[test]
    fn the_leader_never_takes_itself_down() {
        let mut cuts = Cuts::default();
        cuts.handle_report(NodeId(2), &ids(&[9]), 0);
        assert_eq!(cuts.victim(NodeId(9), T, T, |_| true), Some(NodeId(2)));
    }

    #[test]
    fn nodes_that_are_not_up_do_not_count() {
        let mut cuts = Cuts::default();
        cuts.handle_report(NodeId(2), &ids(&[3, 4]), 0);
        cuts.retain(|node| node != NodeId(4));
        assert_eq!(cuts.victim(NodeId(1), T, T, |_| true), Some(NodeId(3)));
        cuts.retain(|node| node != NodeId(3));
        assert_eq!(cuts.victim(NodeId(1), T, T, |_| true), None);
    }

    #[test]
    fn who_does_not_reach_a_silent_node_stays() {
        let mut cuts = Cuts::default();
        cuts.handle_report(NodeId(3), &ids(&[2]), 0);
        let heard = |node| node != NodeId(2);
        assert_eq!(cuts.victim(NodeId(1), T, 9 * T, heard), None);
    }
}
