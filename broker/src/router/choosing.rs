//! Which node gets the next message of a shared subscription: by strategy, and by how many members each has. Pure: chance
//! and time are arguments.

use flotte_cluster::id::{NodeId, NodeRef};
use flotte_cluster::meta::ShareMembers;
use smallvec::SmallVec;

use crate::config::shared::Strategy;

/// How long a node is passed over whose members were full or blocked.
const REFUSED_MS: u64 = 100;

/// Nodes that were asked and could not take a message.
pub type Tried = SmallVec<[NodeRef; 2]>;

/// How far the search for a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// Connected members that have room.
    First,
    /// Any: better one that is full, blocked or not connected than none.
    Last,
}

/// What a choice depends on beside its history.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    /// As configured.
    pub strategy: Strategy,
    /// Of the publisher or the topic, where the strategy is a hash; the same on every node.
    pub key: u64,
    /// Chance, where the strategy takes some.
    pub draw: u64,
    /// How far the search is.
    pub round: Round,
    /// Any clock.
    pub now_ms: u64,
}

/// The history of one shared subscription on one publishing node.
///
/// - Commands: [`choose`](Self::choose).
/// - Input: `handle_*`.
#[derive(Debug, Default)]
pub struct Chooser {
    turn: u32,
    /// For "sticky".
    stuck_to: Option<NodeRef>,
    /// Nodes that refused, and until when they are passed over; bounded by the members of the cluster.
    refused: SmallVec<[(NodeId, u64); 1]>,
    /// For "least-inflight": what was given to each node and is not done.
    under_way: SmallVec<[(NodeId, u32); 2]>,
}

impl Chooser {
    /// The node to be asked next. None = there is none in this round.
    pub fn choose(
        &mut self,
        members: &[(NodeRef, ShareMembers)],
        tried: &[NodeRef],
        me: NodeId,
        ask: &Ask,
    ) -> Option<NodeRef> {
        let open = self.open(members, tried, ask);
        if open.is_empty() {
            return None;
        }
        let chosen = match ask.strategy {
            Strategy::RoundRobin => self.in_turn(&open),
            Strategy::Random => drawn(&open, ask.draw),
            Strategy::LeastInflight => self.least(&open),
            Strategy::LocalFirst => match open.iter().find(|(node, _)| node.node == me) {
                Some((node, _)) => *node,
                None => self.in_turn(&open),
            },
            Strategy::HashClient | Strategy::HashTopic => by_key(&open, ask.key),
            Strategy::Sticky => self.stuck(&open, members, ask.draw),
        };
        Some(chosen)
    }

    /// The members of a node were full or blocked, or gone.
    pub fn handle_refused(&mut self, node: NodeId, now_ms: u64) {
        self.refused
            .retain(|(known, until)| *known != node && *until > now_ms);
        self.refused.push((node, now_ms + REFUSED_MS));
    }

    /// A node was given a message.
    pub fn handle_given(&mut self, node: NodeId) {
        match self.under_way.iter_mut().find(|(known, _)| *known == node) {
            Some((_, count)) => *count += 1,
            None => self.under_way.push((node, 1)),
        }
    }

    /// A message that a node was given is done, or gone.
    pub fn handle_done(&mut self, node: NodeId) {
        if let Some((_, count)) = self.under_way.iter_mut().find(|(known, _)| *known == node) {
            *count = count.saturating_sub(1);
        }
        self.under_way.retain(|(_, count)| *count > 0);
    }

    /// The nodes that may be asked, with their weights. Those with connected members go before all others.
    fn open(
        &self,
        members: &[(NodeRef, ShareMembers)],
        tried: &[NodeRef],
        ask: &Ask,
    ) -> SmallVec<[(NodeRef, u32); 4]> {
        let untried = || {
            members
                .iter()
                .filter(|(node, share)| share.count > 0 && !tried.contains(node))
        };
        let weighed = |(node, share): &(NodeRef, ShareMembers)| (*node, share.count);
        let connected = || untried().filter(|(_, share)| !share.away);
        match ask.round {
            Round::First => connected()
                .filter(|(node, _)| !self.has_refused(node.node, ask.now_ms))
                .map(weighed)
                .collect(),
            Round::Last if connected().next().is_some() => connected().map(weighed).collect(),
            Round::Last => untried().map(weighed).collect(),
        }
    }

    fn has_refused(&self, node: NodeId, now_ms: u64) -> bool {
        self.refused
            .iter()
            .any(|(known, until)| *known == node && *until > now_ms)
    }

    fn in_turn(&mut self, open: &[(NodeRef, u32)]) -> NodeRef {
        self.turn = self.turn.wrapping_add(1);
        weighted(open, u64::from(self.turn))
    }

    /// The node with the least under way for each of its members; the next in turn among equals.
    fn least(&mut self, open: &[(NodeRef, u32)]) -> NodeRef {
        let load = |node: NodeId| {
            let known = self.under_way.iter().find(|(known, _)| *known == node);
            u64::from(known.map_or(0, |(_, count)| *count))
        };
        // a / m < b / n, without division.
        let is_less = |a: &(NodeRef, u32), b: &(NodeRef, u32)| {
            load(a.0.node) * u64::from(b.1) < load(b.0.node) * u64::from(a.1)
        };
        let least: SmallVec<[(NodeRef, u32); 4]> = open
            .iter()
            .filter(|one| !open.iter().any(|other| is_less(other, one)))
            .copied()
            .collect();
        self.in_turn(&least)
    }

    /// The node it is stuck to; another one only for this message, while that one is there.
    fn stuck(
        &mut self,
        open: &[(NodeRef, u32)],
        members: &[(NodeRef, ShareMembers)],
        draw: u64,
    ) -> NodeRef {
        if let Some(stuck) = self.stuck_to
            && open.iter().any(|(node, _)| *node == stuck)
        {
            return stuck;
        }
        let chosen = drawn(open, draw);
        let is_there = |stuck: NodeRef| {
            members
                .iter()
                .any(|(node, share)| *node == stuck && share.count > 0 && !share.away)
        };
        if !self.stuck_to.is_some_and(is_there) {
            self.stuck_to = Some(chosen);
        }
        chosen
    }
}

/// A hash that is the same on every node and in every version.
pub fn key_of(text: &str) -> u64 {
    // FNV-1a.
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mixed(hash)
}

/// The finalizer of SplitMix64.
pub fn mixed(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn drawn(open: &[(NodeRef, u32)], draw: u64) -> NodeRef {
    weighted(open, draw)
}

/// The node that has the member with this number, around and around; `open` is not empty and has no weight of 0.
fn weighted(open: &[(NodeRef, u32)], number: u64) -> NodeRef {
    let members: u64 = open.iter().map(|(_, count)| u64::from(*count)).sum();
    let mut left = number % members.max(1);
    for (node, count) in open {
        if left < u64::from(*count) {
            return *node;
        }
        left -= u64::from(*count);
    }
    open[0].0
}

/// Weighted rendezvous: few keys move when members come or go, and each node gets keys by its weight.
fn by_key(open: &[(NodeRef, u32)], key: u64) -> NodeRef {
    let score = |(node, count): &(NodeRef, u32)| {
        // In (0, 1): 53 bits of it, and never 0.
        let unit = ((mixed(key ^ mixed(node.node.0)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        -f64::from(*count) / unit.ln()
    };
    let best = open
        .iter()
        .max_by(|a, b| score(a).total_cmp(&score(b)).then_with(|| b.0.cmp(&a.0)));
    best.map_or(open[0].0, |(node, _)| *node)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const ME: NodeId = NodeId(1);

    fn node(id: u64) -> NodeRef {
        NodeRef {
            node: NodeId(id),
            incarnation: 1,
        }
    }

    fn has(id: u64, count: u32) -> (NodeRef, ShareMembers) {
        (node(id), ShareMembers { count, away: false })
    }

    fn away(id: u64, count: u32) -> (NodeRef, ShareMembers) {
        (node(id), ShareMembers { count, away: true })
    }

    fn ask(strategy: Strategy) -> Ask {
        Ask {
            strategy,
            key: 0,
            draw: 0,
            round: Round::First,
            now_ms: 0,
        }
    }

    fn last(strategy: Strategy) -> Ask {
        Ask {
            round: Round::Last,
            ..ask(strategy)
        }
    }

    /// How often each node is chosen in `count` messages.
    fn spread(
        members: &[(NodeRef, ShareMembers)],
        count: u64,
        ask_of: impl Fn(u64) -> Ask,
    ) -> BTreeMap<u64, u64> {
        let (mut chooser, mut spread) = (Chooser::default(), BTreeMap::new());
        for number in 0..count {
            let chosen = chooser.choose(members, &[], ME, &ask_of(number));
            *spread
                .entry(chosen.map_or(0, |node| node.node.0))
                .or_default() += 1;
        }
        spread
    }

    #[test]
    fn in_turn_each_member_of_the_cluster_gets_the_same() {
        let members = [has(1, 1), has(2, 3)];
        let spread = spread(&members, 400, |_| ask(Strategy::RoundRobin));
        assert_eq!(spread, BTreeMap::from([(1, 100), (2, 300)]));
    }

    #[test]
    fn chance_and_keys_weigh_members_too() {
        let members = [has(1, 1), has(2, 3)];
        for strategy in [Strategy::Random, Strategy::HashClient, Strategy::HashTopic] {
            let spread = spread(&members, 4_000, |number| Ask {
                key: key_of(&number.to_string()),
                draw: mixed(number),
                ..ask(strategy)
            });
            assert!(spread[&1].abs_diff(1_000) < 150, "{strategy:?}: {spread:?}");
        }
    }

    #[test]
    fn a_key_keeps_its_node_and_few_move_when_members_go() {
        let (before, after) = ([has(1, 2), has(2, 2), has(3, 2)], [has(1, 2), has(3, 2)]);
        let mut chooser = Chooser::default();
        for number in 0..1_000 {
            let ask = Ask {
                key: key_of(&number.to_string()),
                ..ask(Strategy::HashTopic)
            };
            let first = chooser.choose(&before, &[], ME, &ask);
            assert_eq!(chooser.choose(&before, &[], NodeId(3), &ask), first);
            let then = chooser.choose(&after, &[], ME, &ask);
            assert!(first == Some(node(2)) || then == first);
        }
    }

    #[test]
    fn the_least_loaded_node_by_member_is_next() {
        let (mut chooser, members) = (Chooser::default(), [has(1, 1), has(2, 2)]);
        for id in [1, 2] {
            chooser.handle_given(NodeId(id));
        }
        let ask = ask(Strategy::LeastInflight);
        assert_eq!(chooser.choose(&members, &[], ME, &ask), Some(node(2)));
        chooser.handle_given(NodeId(2));
        chooser.handle_given(NodeId(2));
        assert_eq!(chooser.choose(&members, &[], ME, &ask), Some(node(1)));
        chooser.handle_done(NodeId(2));
        chooser.handle_done(NodeId(2));
        chooser.handle_done(NodeId(2));
        assert_eq!(chooser.choose(&members, &[], ME, &ask), Some(node(2)));
    }

    #[test]
    fn without_a_load_least_inflight_takes_turns() {
        let spread = spread(&[has(1, 1), has(2, 1)], 10, |_| {
            ask(Strategy::LeastInflight)
        });
        assert_eq!(spread, BTreeMap::from([(1, 5), (2, 5)]));
    }

    #[test]
    fn local_members_come_first_where_there_are_any() {
        let strategy = Strategy::LocalFirst;
        let spread_with = spread(&[has(1, 1), has(2, 9)], 10, |_| ask(strategy));
        assert_eq!(spread_with, BTreeMap::from([(1, 10)]));
        let spread_without = spread(&[has(2, 1), has(3, 1)], 10, |_| ask(strategy));
        assert_eq!(spread_without, BTreeMap::from([(2, 5), (3, 5)]));
        let mut chooser = Chooser::default();
        let members = [away(1, 1), has(2, 1)];
        assert_eq!(
            chooser.choose(&members, &[], ME, &ask(strategy)),
            Some(node(2)),
            "a connected one elsewhere"
        );
    }

    #[test]
    fn sticky_changes_only_when_its_node_has_no_member_left() {
        let (mut chooser, members) = (Chooser::default(), [has(1, 1), has(2, 1), has(3, 1)]);
        let drawn = |draw| Ask {
            draw,
            ..ask(Strategy::Sticky)
        };
        let stuck = chooser.choose(&members, &[], ME, &drawn(1));
        assert_eq!(stuck, Some(node(2)));
        assert_eq!(chooser.choose(&members, &[], ME, &drawn(2)), stuck);
        // Full for one message: another takes that one.
        let other = chooser.choose(&members, &[node(2)], ME, &drawn(1));
        assert_eq!(other, Some(node(3)));
        assert_eq!(chooser.choose(&members, &[], ME, &drawn(0)), stuck);
        let without = [has(1, 1), has(3, 1)];
        assert_eq!(chooser.choose(&without, &[], ME, &drawn(1)), Some(node(3)));
        assert_eq!(chooser.choose(&members, &[], ME, &drawn(0)), Some(node(3)));
    }

    #[test]
    fn a_node_that_refused_is_passed_over_for_a_while() {
        let (mut chooser, members) = (Chooser::default(), [has(1, 1), has(2, 1)]);
        chooser.handle_refused(NodeId(2), 0);
        let at = |now_ms, round| Ask {
            now_ms,
            round,
            ..ask(Strategy::RoundRobin)
        };
        for _ in 0..4 {
            let chosen = chooser.choose(&members, &[], ME, &at(REFUSED_MS - 1, Round::First));
            assert_eq!(chosen, Some(node(1)));
        }
        let tried = [node(1)];
        let first = at(1, Round::First);
        assert_eq!(chooser.choose(&members, &tried, ME, &first), None);
        let second = at(1, Round::Last);
        assert_eq!(chooser.choose(&members, &tried, ME, &second), Some(node(2)));
        let mut later = Vec::new();
        for _ in 0..2 {
            later.push(chooser.choose(&members, &[], ME, &at(REFUSED_MS, Round::First)));
        }
        later.sort();
        assert_eq!(later, [Some(node(1)), Some(node(2))]);
    }

    #[test]
    fn who_is_not_connected_gets_what_no_other_can_get() {
        let mut chooser = Chooser::default();
        let members = [away(1, 5), has(2, 1)];
        let first = ask(Strategy::RoundRobin);
        let second = last(Strategy::RoundRobin);
        assert_eq!(chooser.choose(&members, &[], ME, &first), Some(node(2)));
        assert_eq!(chooser.choose(&members, &[], ME, &second), Some(node(2)));
        let tried = [node(2)];
        assert_eq!(chooser.choose(&members, &tried, ME, &first), None);
        assert_eq!(chooser.choose(&members, &tried, ME, &second), Some(node(1)));
        assert_eq!(
            chooser.choose(&members, &[node(1), node(2)], ME, &second),
            None
        );
        assert_eq!(chooser.choose(&[], &[], ME, &second), None);
    }
}
