//! Who founds the cluster: exactly one of the nodes that expect each other, however they start. Pure.
//!
//! An empty node *grants* its bootstrap to one initialiser only, written down before it is answered. Founding takes the
//! grants of exactly the expected nodes, its own among them. Where two try, the one with the higher id gives back what
//! it holds. Any cluster that exists is joined instead.
//!
//! Grants are numbered by the *attempt* of their holder. A node that gives grants back ends its attempt first, on disk, and
//! counts none of that attempt ever again; who receives it frees only what was given under that number. So it does not matter
//! how long messages are on their way, how often they come or in which order: what a late one frees, nobody counts on.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::NodeId;

/// A grant as it is given, and as it stands on the disk of who gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Grant {
    /// Who may found the cluster.
    pub holder: NodeId,
    /// The attempt of the holder under which it asked.
    pub attempt: u64,
}

/// What a probe of another node said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// Who answered.
    pub node: NodeId,
    /// It is a member of this cluster; 0 = it is empty.
    pub cluster_id: u64,
    /// How many nodes it expects; 0 = it founds nothing.
    pub expect: u32,
    /// The grant that it gave.
    pub grant: Option<Grant>,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Probe the others again after a while. Why, for people.
    Wait(String),
    /// Ask these for their grant, under the current attempt.
    Ask(BTreeSet<NodeId>),
    /// Give back the grants of these, given under these attempts.
    Release(BTreeMap<NodeId, u64>),
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
    /// The grant that this node gave; durable before anyone is told.
    grant: Option<Grant>,
    /// The number under which this node asks for grants, and the only one under which it counts them; durable before the
    /// grants of the one before are given back.
    attempt: u64,
    /// Latest answer of each other node.
    seen: BTreeMap<NodeId, Probed>,
}

impl Bootstrap {
    /// `grant` and `attempt` are what was written down before.
    pub fn new(me: NodeId, expect: u32, grant: Option<Grant>, attempt: u64) -> Self {
        Bootstrap {
            me,
            expect,
            grant,
            attempt,
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

    /// Another node, or this one, asks for this node's grant. Write it down before answering.
    pub fn handle_ask(&mut self, asked: Grant, asker_expect: u32) -> Result<Grant, String> {
        if asker_expect != self.expect {
            return Err(format!(
                "it expects {asker_expect} nodes, this node {}",
                self.expect
            ));
        }
        match self.grant {
            Some(given) if given.holder != asked.holder => {
                Err(format!("the grant is held by {}", given.holder))
            }
            Some(given) if given.attempt > asked.attempt => {
                Err("this attempt of it is over".into())
            }
            _ => {
                self.grant = Some(asked);
                Ok(asked)
            }
        }
    }

    /// A grant comes back. Only the very one that is given now is free then. Write it down before answering.
    pub fn handle_release(&mut self, released: Grant) {
        if self.grant == Some(released) {
            self.grant = None;
        }
    }

    /// This node is about to give back these grants. The attempt they were given under is over: write the new one down before
    /// anyone is told, and then this node's own grant.
    pub fn handle_giving_back(&mut self, grants: &BTreeMap<NodeId, u64>) {
        let latest = grants.values().max().copied().unwrap_or(0);
        self.attempt = self.attempt.max(latest.saturating_add(1));
        if let Some(attempt) = grants.get(&self.me) {
            self.handle_release(Grant {
                holder: self.me,
                attempt: *attempt,
            });
        }
    }

    /// The grant that this node gave.
    pub fn grant(&self) -> Option<Grant> {
        self.grant
    }

    /// What this node asks for now.
    pub fn asks_for(&self) -> Grant {
        Grant {
            holder: self.me,
            attempt: self.attempt,
        }
    }

    /// The next step, from all that is known.
    pub fn poll(&self) -> Step {
        if let Some(member) = self.seen.values().find(|p| p.cluster_id != 0) {
            return Step::Join(member.cluster_id);
        }
        if self.expect == 0 {
            return Step::Wait("looking for a cluster to join".into());
        }
        let held = self.held();
        // Grants of attempts to come: the disk of this node is an older one.
        let is_behind = held.values().any(|attempt| *attempt > self.attempt);
        let yields = self.rivals().first().is_some_and(|rival| *rival < self.me);
        if is_behind || yields && !held.is_empty() {
            return Step::Release(held);
        }
        match self.expected() {
            Ok(set) => self.compete(set, &held),
            Err(step) => step,
        }
    }

    /// The expected nodes, if exactly these were found.
    fn expected(&self) -> Result<BTreeSet<NodeId>, Step> {
        let differs = |p: &&Probed| p.expect != 0 && p.expect != self.expect;
        if let Some(other) = self.seen.values().find(differs) {
            return Err(Step::Conflict(format!(
                "node {} expects {} nodes, this node {}",
                other.node, other.expect, self.expect
            )));
        }
        let same = self.seen.values().filter(|p| p.expect == self.expect);
        let mut set: BTreeSet<NodeId> = same.map(|p| p.node).collect();
        set.insert(self.me);
        let expected = usize::try_from(self.expect).unwrap_or(usize::MAX);
        match set.len().cmp(&expected) {
            std::cmp::Ordering::Equal => Ok(set),
            std::cmp::Ordering::Less => Err(Step::Wait(format!(
                "{} of {} expected nodes found",
                set.len(),
                self.expect
            ))),
            std::cmp::Ordering::Greater => Err(Step::Conflict(format!(
                "{} nodes found where {} are expected",
                set.len(),
                self.expect
            ))),
        }
    }

    /// All grants that are known, by who gave them.
    fn grants(&self) -> impl Iterator<Item = (NodeId, Grant)> {
        let others = self.seen.values().filter_map(|p| Some((p.node, p.grant?)));
        others.chain(self.grant.map(|own| (self.me, own)))
    }

    /// What this node holds, of any attempt.
    fn held(&self) -> BTreeMap<NodeId, u64> {
        let own = self.grants().filter(|(_, grant)| grant.holder == self.me);
        own.map(|(node, grant)| (node, grant.attempt)).collect()
    }

    /// Who else holds something.
    fn rivals(&self) -> BTreeSet<NodeId> {
        let holders = self.grants().map(|(_, grant)| grant.holder);
        holders.filter(|holder| *holder != self.me).collect()
    }

    fn compete(&self, set: BTreeSet<NodeId>, held: &BTreeMap<NodeId, u64>) -> Step {
        // Only those of this attempt: others may be on their way back.
        let counts = |node: &NodeId| held.get(node) == Some(&self.attempt);
        if set.iter().all(counts) {
            return Step::Found(set);
        }
        let is_gone = |(_, grant): &(NodeId, Grant)| !set.contains(&grant.holder);
        if let Some((giver, grant)) = self.grants().find(is_gone) {
            return Step::Wait(format!(
                "node {giver} granted its bootstrap to node {}, which does not answer; if its disk is lost, empty the data \
                 directory of node {giver}",
                grant.holder
            ));
        }
        let rivals = self.rivals();
        if let Some(rival) = rivals.first().filter(|rival| **rival < self.me) {
            return Step::Wait(format!("node {rival} is founding the cluster"));
        }
        // Without rivals the lowest id goes first; others follow only where it already holds something.
        if rivals.is_empty() && held.is_empty() && set.first() != Some(&self.me) {
            return Step::Wait("a node with a lower id founds the cluster".into());
        }
        Step::Ask(set.into_iter().filter(|node| !counts(node)).collect())
    }
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;

    fn probed(node: u64, grant: Option<u64>) -> Probed {
        Probed {
            node: NodeId(node),
            cluster_id: 0,
            expect: 3,
            grant: grant.map(|holder| given(holder, 0)),
        }
    }

    fn given(holder: u64, attempt: u64) -> Grant {
        Grant {
            holder: NodeId(holder),
            attempt,
        }
    }

    /// Grants of these, all of one attempt.
    fn of_attempt(attempt: u64, nodes: &[u64]) -> BTreeMap<NodeId, u64> {
        nodes.iter().map(|id| (NodeId(*id), attempt)).collect()
    }

    fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    #[test]
    fn a_lone_node_founds_its_own_cluster() {
        let mut lone = Bootstrap::new(NodeId(5), 1, None, 0);
        assert_eq!(lone.poll(), Step::Ask(ids(&[5])));
        lone.handle_ask(given(5, 0), 1).unwrap();
        assert_eq!(lone.poll(), Step::Found(ids(&[5])));
    }

    #[test]
    fn the_lowest_id_collects_all_grants() {
        let mut low = Bootstrap::new(NodeId(1), 3, None, 0);
        let mut high = Bootstrap::new(NodeId(3), 3, None, 0);
        low.handle_probed(probed(2, None));
        assert!(matches!(low.poll(), Step::Wait(_)));
        low.handle_probed(probed(3, None));
        assert_eq!(low.poll(), Step::Ask(ids(&[1, 2, 3])));
        high.handle_probed(probed(1, None));
        high.handle_probed(probed(2, None));
        assert!(matches!(high.poll(), Step::Wait(_)));
        low.handle_ask(given(1, 0), 3).unwrap();
        low.handle_probed(probed(2, Some(1)));
        assert_eq!(low.poll(), Step::Ask(ids(&[3])));
        low.handle_probed(probed(3, Some(1)));
        assert_eq!(low.poll(), Step::Found(ids(&[1, 2, 3])));
    }

    #[test]
    fn a_grant_is_given_to_one_only() {
        let mut node = Bootstrap::new(NodeId(2), 3, None, 0);
        assert_eq!(node.handle_ask(given(3, 0), 3), Ok(given(3, 0)));
        assert!(node.handle_ask(given(1, 0), 3).is_err());
        node.handle_release(given(1, 0));
        assert_eq!(
            node.grant(),
            Some(given(3, 0)),
            "only the holder gives it back"
        );
        node.handle_release(given(3, 0));
        assert_eq!(node.handle_ask(given(1, 0), 3), Ok(given(1, 0)));
    }

    #[test]
    fn a_late_release_frees_nothing_that_was_given_again() {
        let mut node = Bootstrap::new(NodeId(2), 3, None, 0);
        node.handle_ask(given(3, 0), 3).unwrap();
        node.handle_ask(given(3, 1), 3).unwrap();
        node.handle_release(given(3, 0));
        assert_eq!(node.grant(), Some(given(3, 1)));
        assert!(
            node.handle_ask(given(3, 0), 3).is_err(),
            "an ask that was late as well"
        );
    }

    #[test]
    fn grants_of_an_attempt_that_is_over_do_not_count() {
        let mut node = Bootstrap::new(NodeId(1), 3, Some(given(1, 1)), 1);
        node.handle_probed(probed(2, Some(1)));
        node.handle_probed(Probed {
            grant: Some(given(1, 1)),
            ..probed(3, None)
        });
        assert_eq!(node.poll(), Step::Ask(ids(&[2])));
    }

    #[test]
    fn the_attempt_is_over_before_its_grants_are_given_back() {
        let mut node = Bootstrap::new(NodeId(3), 3, Some(given(3, 0)), 0);
        node.handle_giving_back(&of_attempt(0, &[2, 3]));
        assert_eq!(node.asks_for(), given(3, 1));
        assert_eq!(node.grant(), None);
        node.handle_giving_back(&of_attempt(0, &[2]));
        assert_eq!(node.asks_for(), given(3, 1), "one of before that came late");
    }

    #[test]
    fn a_holder_that_is_gone_is_named() {
        let mut node = Bootstrap::new(NodeId(1), 3, Some(given(9, 0)), 0);
        node.handle_probed(probed(2, None));
        node.handle_probed(probed(3, None));
        let Step::Wait(why) = node.poll() else {
            panic!("{:?}", node.poll());
        };
        assert!(why.contains(&NodeId(9).to_string()), "{why}");
    }

    #[test]
    fn who_cannot_found_does_not_stand_in_the_way() {
        // It finds two of three only, and the lower one cannot go on without its grant.
        let mut node = Bootstrap::new(NodeId(3), 3, Some(given(3, 0)), 0);
        node.handle_probed(probed(1, Some(1)));
        assert_eq!(node.poll(), Step::Release(of_attempt(0, &[3])));
    }

    #[test]
    fn the_higher_of_two_rivals_gives_back() {
        let mut high = Bootstrap::new(NodeId(3), 3, Some(given(3, 0)), 0);
        high.handle_probed(probed(1, Some(1)));
        high.handle_probed(probed(2, Some(3)));
        assert_eq!(high.poll(), Step::Release(of_attempt(0, &[2, 3])));
        let mut low = Bootstrap::new(NodeId(1), 3, Some(given(1, 0)), 0);
        low.handle_probed(probed(2, Some(3)));
        low.handle_probed(probed(3, Some(3)));
        assert_eq!(low.poll(), Step::Ask(ids(&[2, 3])));
    }

    #[test]
    fn a_cluster_that_exists_is_joined() {
        let mut node = Bootstrap::new(NodeId(1), 3, Some(given(1, 0)), 0);
        node.handle_probed(probed(2, None));
        node.handle_probed(Probed {
            cluster_id: 77,
            ..probed(3, None)
        });
        assert_eq!(node.poll(), Step::Join(77));
    }

    #[test]
    fn without_an_expectation_nothing_is_founded() {
        let node = Bootstrap::new(NodeId(1), 0, None, 0);
        assert!(matches!(node.poll(), Step::Wait(_)));
    }

    #[test]
    fn different_expectations_are_named() {
        let mut node = Bootstrap::new(NodeId(1), 3, None, 0);
        node.handle_probed(Probed {
            expect: 5,
            ..probed(2, None)
        });
        assert!(matches!(node.poll(), Step::Conflict(_)));
        assert!(node.handle_ask(given(2, 0), 5).is_err());
    }
}
