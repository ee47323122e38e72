//! Who founds the cluster: exactly one of the nodes that expect each other, however they start. Pure.
//!
//! An empty node *grants* its bootstrap to one initialiser only, written down before it is answered. Founding takes the
//! grants of exactly the expected nodes, its own among them. Where two try, the one with the higher id gives back what
//! it holds. Any cluster that exists is joined instead.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::NodeId;

/// What a probe of another node said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// Who answered.
    pub node: NodeId,
    /// It is a member of this cluster; 0 = it is empty.
    pub cluster_id: u64,
    /// How many nodes it expects; 0 = it founds nothing.
    pub expect: u32,
    /// Who holds its grant.
    pub grant: Option<NodeId>,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Probe the others again after a while. Why, for people.
    Wait(String),
    /// Ask these for their grant.
    Ask(BTreeSet<NodeId>),
    /// Give back the grants of these: a lower id is at it too.
    Release(BTreeSet<NodeId>),
    /// All expected grants are there: found the cluster with exactly these.
    Found(BTreeSet<NodeId>),
    /// A cluster exists: join it.
    Join(u64),
    /// It can never work out as configured.
    Conflict(String),
}

/// The bootstrap of one empty node.
#[derive(Debug)]
pub struct Bootstrap {
    me: NodeId,
    /// `bootstrap_expect`; 0 = never found.
    expect: u32,
    /// Who holds this node's grant; durable before anyone is told.
    grant: Option<NodeId>,
    /// Latest answer of each other node.
    seen: BTreeMap<NodeId, Probed>,
}

impl Bootstrap {
    /// `grant` is what was written down before.
    pub fn new(me: NodeId, expect: u32, grant: Option<NodeId>) -> Self {
        Bootstrap {
            me,
            expect,
            grant,
            seen: BTreeMap::new(),
        }
    }

    /// Takes note of what a node said.
    pub fn handle_probed(&mut self, probed: Probed) {
        if probed.node != self.me {
            self.seen.insert(probed.node, probed);
        }
    }

    /// A new round of probes begins: who does not answer in it counts no more.
    pub fn forget_probes(&mut self) {
        self.seen.clear();
    }

    /// Another node, or this one, asks for this node's grant. Says who holds it now; write it down before answering.
    pub fn handle_ask(&mut self, asker: NodeId, asker_expect: u32) -> Result<NodeId, String> {
        if asker_expect != self.expect {
            return Err(format!(
                "it expects {asker_expect} nodes, this node {}",
                self.expect
            ));
        }
        match self.grant {
            Some(holder) if holder != asker => Err(format!("the grant is held by {holder}")),
            _ => {
                self.grant = Some(asker);
                Ok(asker)
            }
        }
    }

    /// The holder gives the grant back. Write it down before answering.
    pub fn handle_release(&mut self, holder: NodeId) {
        if self.grant == Some(holder) {
            self.grant = None;
        }
    }

    /// This node is about to give back the grant of another: from now on it counts as not held.
    pub fn handle_giving_back(&mut self, node: NodeId) {
        if node == self.me {
            self.handle_release(node);
        } else if let Some(seen) = self.seen.get_mut(&node) {
            seen.grant = None;
        }
    }

    /// Who holds this node's grant.
    pub fn grant(&self) -> Option<NodeId> {
        self.grant
    }

    /// The next step, from all that is known.
    pub fn poll(&self) -> Step {
        if let Some(member) = self.seen.values().find(|p| p.cluster_id != 0) {
            return Step::Join(member.cluster_id);
        }
        if self.expect == 0 {
            return Step::Wait("looking for a cluster to join".into());
        }
        let mut set: BTreeSet<NodeId> = self
            .seen
            .values()
            .filter(|p| p.expect == self.expect)
            .map(|p| p.node)
            .collect();
        set.insert(self.me);
        let expected = usize::try_from(self.expect).unwrap_or(usize::MAX);
        if let Some(other) = self
            .seen
            .values()
            .find(|p| p.expect != 0 && p.expect != self.expect)
        {
            return Step::Conflict(format!(
                "node {} expects {} nodes, this node {}",
                other.node, other.expect, self.expect
            ));
        }
        if set.len() < expected {
            return Step::Wait(format!(
                "{} of {} expected nodes found",
                set.len(),
                self.expect
            ));
        }
        if set.len() > expected {
            return Step::Conflict(format!(
                "{} nodes found where {} are expected",
                set.len(),
                self.expect
            ));
        }
        self.compete(set)
    }

    fn compete(&self, set: BTreeSet<NodeId>) -> Step {
        let holder = |node: &NodeId| {
            if *node == self.me {
                self.grant
            } else {
                self.seen.get(node).and_then(|p| p.grant)
            }
        };
        let mine: BTreeSet<NodeId> = set
            .iter()
            .filter(|node| holder(node) == Some(self.me))
            .copied()
            .collect();
        if mine == set {
            return Step::Found(set);
        }
        let rivals: BTreeSet<NodeId> = set
            .iter()
            .filter_map(holder)
            .filter(|holder| *holder != self.me)
            .collect();
        if let Some(rival) = rivals.first() {
            if *rival < self.me && !mine.is_empty() {
                return Step::Release(mine);
            }
            if *rival < self.me {
                return Step::Wait(format!("node {rival} is founding the cluster"));
            }
        }
        // Without rivals the lowest id goes first; others follow only where it already holds something.
        if rivals.is_empty() && mine.is_empty() && set.first() != Some(&self.me) {
            return Step::Wait("a node with a lower id founds the cluster".into());
        }
        Step::Ask(set.difference(&mine).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probed(node: u64, grant: Option<u64>) -> Probed {
        Probed {
            node: NodeId(node),
            cluster_id: 0,
            expect: 3,
            grant: grant.map(NodeId),
        }
    }

    fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    #[test]
    fn a_lone_node_founds_its_own_cluster() {
        let mut lone = Bootstrap::new(NodeId(5), 1, None);
        assert_eq!(lone.poll(), Step::Ask(ids(&[5])));
        lone.handle_ask(NodeId(5), 1).unwrap();
        assert_eq!(lone.poll(), Step::Found(ids(&[5])));
    }

    #[test]
    fn the_lowest_id_collects_all_grants() {
        let mut low = Bootstrap::new(NodeId(1), 3, None);
        let mut high = Bootstrap::new(NodeId(3), 3, None);
        low.handle_probed(probed(2, None));
        assert!(matches!(low.poll(), Step::Wait(_)));
        low.handle_probed(probed(3, None));
        assert_eq!(low.poll(), Step::Ask(ids(&[1, 2, 3])));
        high.handle_probed(probed(1, None));
        high.handle_probed(probed(2, None));
        assert!(matches!(high.poll(), Step::Wait(_)));
        low.handle_ask(NodeId(1), 3).unwrap();
        low.handle_probed(probed(2, Some(1)));
        assert_eq!(low.poll(), Step::Ask(ids(&[3])));
        low.handle_probed(probed(3, Some(1)));
        assert_eq!(low.poll(), Step::Found(ids(&[1, 2, 3])));
    }

    #[test]
    fn a_grant_is_given_to_one_only() {
        let mut node = Bootstrap::new(NodeId(2), 3, None);
        assert_eq!(node.handle_ask(NodeId(3), 3), Ok(NodeId(3)));
        assert!(node.handle_ask(NodeId(1), 3).is_err());
        node.handle_release(NodeId(1));
        assert_eq!(
            node.grant(),
            Some(NodeId(3)),
            "only the holder gives it back"
        );
        node.handle_release(NodeId(3));
        assert_eq!(node.handle_ask(NodeId(1), 3), Ok(NodeId(1)));
    }

    #[test]
    fn the_higher_of_two_rivals_gives_back() {
        let mut high = Bootstrap::new(NodeId(3), 3, Some(NodeId(3)));
        high.handle_probed(probed(1, Some(1)));
        high.handle_probed(probed(2, Some(3)));
        assert_eq!(high.poll(), Step::Release(ids(&[2, 3])));
        let mut low = Bootstrap::new(NodeId(1), 3, Some(NodeId(1)));
        low.handle_probed(probed(2, Some(3)));
        low.handle_probed(probed(3, Some(3)));
        assert_eq!(low.poll(), Step::Ask(ids(&[2, 3])));
    }

    #[test]
    fn a_cluster_that_exists_is_joined() {
        let mut node = Bootstrap::new(NodeId(1), 3, Some(NodeId(1)));
        node.handle_probed(probed(2, None));
        node.handle_probed(Probed {
            cluster_id: 77,
            ..probed(3, None)
        });
        assert_eq!(node.poll(), Step::Join(77));
    }

    #[test]
    fn without_an_expectation_nothing_is_founded() {
        let node = Bootstrap::new(NodeId(1), 0, None);
        assert!(matches!(node.poll(), Step::Wait(_)));
    }

    #[test]
    fn different_expectations_are_named() {
        let mut node = Bootstrap::new(NodeId(1), 3, None);
        node.handle_probed(Probed {
            expect: 5,
            ..probed(2, None)
        });
        assert!(matches!(node.poll(), Step::Conflict(_)));
        assert!(node.handle_ask(NodeId(2), 5).is_err());
    }

    proptest::proptest! {
        /// Five nodes with overlapping views of each other, asked in any order, found at most one cluster.
        #[test]
        fn overlapping_sets_never_found_two(steps in proptest::collection::vec((0_usize..5, 0_usize..5), 0..400), hide in 0_usize..5) {
            let mut nodes: Vec<_> = (0..5).map(|id| Bootstrap::new(NodeId(id), 3, None)).collect();
            let mut founded = Vec::new();
            for (actor, other) in steps {
                // Each node knows three of the five only.
                if (actor + 5 - other) % 5 > 2 && other != hide {
                    continue;
                }
                let seen = Probed { node: NodeId(other as u64), cluster_id: 0, expect: 3, grant: nodes[other].grant() };
                nodes[actor].handle_probed(seen);
                let me = NodeId(actor as u64);
                match nodes[actor].poll() {
                    Step::Ask(set) if set.contains(&NodeId(other as u64)) => {
                        let _ = nodes[other].handle_ask(me, 3);
                    }
                    Step::Release(set) if set.contains(&NodeId(other as u64)) => {
                        nodes[actor].handle_giving_back(NodeId(other as u64));
                        nodes[other].handle_release(me);
                    }
                    Step::Found(set) if !founded.contains(&set) => founded.push(set),
                    _ => {}
                }
            }
            for (at, one) in founded.iter().enumerate() {
                for two in &founded[at + 1..] {
                    proptest::prop_assert!(one.is_disjoint(two), "{one:?} and {two:?}");
                }
            }
        }
    }
}
