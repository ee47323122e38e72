//! Waits until every node that matters has applied a route: after it, no publish that any node accepts misses the
//! subscription. Pure: `handle_*` are inputs, `poll_*` outputs.
//!
//! A waiter needs all nodes that are Up in the replica of its node at its index and not Down since. It learns of them
//! fast, by asking each over its link, once per batch; or slowly, by the lowest index in lease answers.

use std::collections::BTreeMap;

use crate::id::NodeRef;

/// Waits of one node; `T` is how to tell a waiter.
#[derive(Debug)]
pub struct Barrier<T> {
    me: NodeRef,
    /// What each Up node is known to have applied.
    nodes: BTreeMap<NodeRef, Peer>,
    /// Meta index up to which `nodes` holds every node that is Up.
    members_index: u64,
    /// Every node that was Up at the time had applied this.
    lowest: u64,
    /// By index; the number keeps those of one index apart.
    waiters: BTreeMap<(u64, u64), T>,
    next_number: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Peer {
    applied: u64,
    /// Index of the question under way.
    asked: Option<u64>,
}

impl<T> Barrier<T> {
    /// A barrier of a node that alone is Up.
    pub fn new(me: NodeRef) -> Self {
        Barrier {
            me,
            nodes: BTreeMap::new(),
            members_index: 0,
            lowest: 0,
            waiters: BTreeMap::new(),
            next_number: 0,
        }
    }

    /// The nodes that are Up in this node's replica, which has applied `index`. One that came Up has applied all before its Up:
    /// it serves only then.
    pub fn handle_members(&mut self, up: &[(NodeRef, u64)], index: u64) {
        self.members_index = index;
        self.nodes
            .retain(|node, _| up.iter().any(|(other, _)| other == node));
        for (node, since_index) in up.iter().filter(|(node, _)| *node != self.me) {
            let peer = self.nodes.entry(*node).or_default();
            // It opens its listeners only after applying its Up.
            peer.applied = peer.applied.max(*since_index);
        }
    }

    /// Someone waits for an index that this node has applied.
    pub fn handle_wait(&mut self, index: u64, ticket: T) {
        self.next_number += 1;
        self.waiters.insert((index, self.next_number), ticket);
    }

    /// A node answered that it has applied an index.
    pub fn handle_applied(&mut self, node: NodeRef, index: u64) {
        if let Some(peer) = self.nodes.get_mut(&node) {
            peer.applied = peer.applied.max(index);
            peer.asked = None;
        }
    }

    /// A question got no answer; it may be asked again.
    pub fn handle_unanswered(&mut self, node: NodeRef) {
        if let Some(peer) = self.nodes.get_mut(&node) {
            peer.asked = None;
        }
    }

    /// A lease answer: every Up node has applied at least this.
    pub fn handle_lowest(&mut self, index: u64) {
        self.lowest = self.lowest.max(index);
    }

    /// The questions to ask now: at most one under way to each node, for the highest index that is waited for.
    pub fn poll_asks(&mut self) -> Vec<(NodeRef, u64)> {
        let Some(highest) = self.waiters.last_key_value().map(|((index, _), _)| *index) else {
            return Vec::new();
        };
        let mut asks = Vec::new();
        for (node, peer) in &mut self.nodes {
            if peer.applied < highest && peer.asked.is_none() && self.lowest < highest {
                peer.asked = Some(highest);
                asks.push((*node, highest));
            }
        }
        asks
    }

    /// Waiters that are through, in order of their index.
    pub fn poll_passed(&mut self) -> Vec<T> {
        let slowest = self
            .nodes
            .values()
            .map(|peer| peer.applied)
            .min()
            .unwrap_or(u64::MAX)
            // Behind what was read of the members another node may have come Up.
            .min(self.members_index);
        let through = slowest.max(self.lowest);
        let Some(beyond) = through.checked_add(1) else {
            return std::mem::take(&mut self.waiters).into_values().collect();
        };
        let rest = self.waiters.split_off(&(beyond, 0));
        std::mem::replace(&mut self.waiters, rest)
            .into_values()
            .collect()
    }

    /// Who is still waited for and for what, for people.
    pub fn laggards(&self) -> Vec<(NodeRef, u64)> {
        let Some(((index, _), _)) = self.waiters.first_key_value() else {
            return Vec::new();
        };
        self.nodes
            .iter()
            .filter(|(_, p)| p.applied < *index)
            .map(|(node, p)| (*node, p.applied))
            .collect()
    }

    /// Number of waiters.
    pub fn waiting(&self) -> usize {
        self.waiters.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeId;

    fn node(id: u64) -> NodeRef {
        NodeRef {
            node: NodeId(id),
            incarnation: 1,
        }
    }

    fn barrier() -> Barrier<&'static str> {
        let mut barrier = Barrier::new(node(1));
        barrier.handle_members(&[(node(1), 1), (node(2), 2), (node(3), 3)], 100);
        barrier
    }

    #[test]
    fn a_lone_node_waits_for_nobody() {
        let mut barrier = Barrier::new(node(1));
        barrier.handle_members(&[(node(1), 1)], 9);
        barrier.handle_wait(9, "w");
        assert!(barrier.poll_asks().is_empty());
        assert_eq!(barrier.poll_passed(), ["w"]);
    }

    #[test]
    fn it_passes_when_all_others_have_applied() {
        let mut barrier = barrier();
        barrier.handle_wait(9, "w");
        assert_eq!(barrier.poll_asks(), [(node(2), 9), (node(3), 9)]);
        assert!(barrier.poll_asks().is_empty(), "one question at a time");
        barrier.handle_applied(node(2), 9);
        assert!(barrier.poll_passed().is_empty());
        barrier.handle_applied(node(3), 10);
        assert_eq!(barrier.poll_passed(), ["w"]);
    }

    #[test]
    fn a_node_that_goes_down_is_not_waited_for() {
        let mut barrier = barrier();
        barrier.handle_wait(9, "w");
        barrier.handle_applied(node(2), 9);
        barrier.handle_members(&[(node(1), 1), (node(2), 2)], 100);
        assert_eq!(barrier.poll_passed(), ["w"]);
    }

    #[test]
    fn a_newer_incarnation_has_applied_what_was_before_its_up() {
        let mut barrier = barrier();
        barrier.handle_wait(9, "w");
        barrier.handle_applied(node(2), 9);
        let newer = NodeRef {
            incarnation: 2,
            ..node(3)
        };
        barrier.handle_members(&[(node(1), 1), (node(2), 2), (newer, 12)], 100);
        assert_eq!(barrier.poll_passed(), ["w"]);
        barrier.handle_wait(13, "x");
        barrier.handle_applied(node(3), 13);
        barrier.handle_applied(node(2), 13);
        assert!(
            barrier.poll_passed().is_empty(),
            "the answer of an older incarnation does not count"
        );
    }

    #[test]
    fn a_cut_link_is_made_good_by_lease_answers() {
        let mut barrier = barrier();
        barrier.handle_wait(9, "w");
        barrier.poll_asks();
        barrier.handle_applied(node(2), 9);
        barrier.handle_unanswered(node(3));
        assert_eq!(barrier.poll_asks(), [(node(3), 9)]);
        barrier.handle_lowest(8);
        assert!(barrier.poll_passed().is_empty());
        assert_eq!(barrier.laggards(), [(node(3), 3)]);
        barrier.handle_lowest(9);
        assert_eq!(barrier.poll_passed(), ["w"]);
    }

    #[test]
    fn nobody_passes_beyond_what_was_read_of_the_members() {
        let mut barrier = Barrier::new(node(1));
        barrier.handle_members(&[(node(1), 1)], 8);
        barrier.handle_wait(8, "w");
        barrier.handle_wait(12, "x");
        assert_eq!(barrier.poll_passed(), ["w"], "node 2 came up with 9");
        barrier.handle_members(&[(node(1), 1), (node(2), 9)], 12);
        assert!(barrier.poll_passed().is_empty());
        assert_eq!(barrier.poll_asks(), [(node(2), 12)]);
        barrier.handle_applied(node(2), 12);
        assert_eq!(barrier.poll_passed(), ["x"]);
    }

    #[test]
    fn waiters_pass_in_order_of_their_index() {
        let mut barrier = barrier();
        barrier.handle_wait(12, "c");
        barrier.handle_wait(9, "a");
        barrier.handle_wait(9, "b");
        barrier.handle_applied(node(2), 12);
        barrier.handle_applied(node(3), 10);
        assert_eq!(barrier.poll_passed(), ["a", "b"]);
        assert_eq!(barrier.waiting(), 1);
    }
}
