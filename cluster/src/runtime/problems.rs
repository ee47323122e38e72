//! What is the matter, in words for whoever was woken by it: what comes first stops clients, what comes last can wait. Pure: it
//! is told what this node knows, which may be old where it does not hear of the others.

use std::collections::{BTreeMap, BTreeSet};

use super::status::{GroupStatus, NodeStatus, State};
use crate::id::{GroupId, NodeId};

/// What a node knows when it is asked.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub me: NodeId,
    /// Wall clock.
    pub now_ms: u64,
    pub state: State,
    /// What it is busy with or lacks on its way Up.
    pub progress: String,
    /// What keeps it from finding others.
    pub trouble: Option<String>,
    /// For how long it has not had the lease that it had, in ms.
    pub unleased_ms: Option<u64>,
    pub nodes: &'a [NodeStatus],
    pub groups: &'a [GroupStatus],
    /// Groups whose replica here has not caught up since this start.
    pub behind: &'a [GroupId],
    /// Replicas that lack entries of a group that this node leads, and how many.
    pub lagging: &'a [(GroupId, NodeId, u64)],
    /// How many replicas each node still holds, of those that are placed.
    pub replicas: &'a BTreeMap<NodeId, usize>,
}

impl View<'_> {
    /// One sentence for each; none = nothing is the matter.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        self.this_node(&mut problems);
        self.quorums(&mut problems);
        self.other_nodes(&mut problems);
        self.lags(&mut problems);
        self.departures(&mut problems);
        self.times(&mut problems);
        if self.nodes.len() == 2 {
            problems.push("two nodes tolerate no failure: add a third".into());
        }
        problems
    }

    fn this_node(&self, problems: &mut Vec<String>) {
        match self.state {
            State::Up => return,
            State::Joining => problems.push(format!("this node is not up: {}", self.progress)),
            State::NoQuorum => {
                let since = self.unleased_ms.map(|ms| format!(" for {}", duration(ms)));
                problems.push(format!(
                    "this node has had no lease to serve{}, as {}: it takes nothing from clients",
                    since.unwrap_or_default(),
                    self.why_unleased()
                ));
            }
        }
        problems.extend(self.trouble.clone());
        if !self.nodes.is_empty() {
            problems.push(
                "what is said here of other nodes is what this node heard last, and may be old"
                    .into(),
            );
        }
    }

    fn why_unleased(&self) -> String {
        let meta = self.groups.iter().find(|group| group.id == GroupId::META);
        if meta.is_some_and(|meta| self.lacks_quorum(meta)) {
            return "the meta group has no quorum from here".into();
        }
        match meta.and_then(|meta| meta.leader) {
            Some(leader) if leader != self.me => {
                format!(
                    "node {}, which leads the meta group, does not renew it",
                    self.name(leader)
                )
            }
            Some(_) => "the voters of the meta group do not answer this node in time".into(),
            None => "the meta group has no leader".into(),
        }
    }

    fn lacks_quorum(&self, group: &GroupStatus) -> bool {
        !group.voters.is_empty() && self.missing(group).len() * 2 >= group.voters.len()
    }

    /// Groups of whose voters this node reaches too few; those that lack the same ones in one sentence.
    fn quorums(&self, problems: &mut Vec<String>) {
        let mut lacking: BTreeMap<(Vec<NodeId>, Vec<NodeId>), Vec<GroupId>> = BTreeMap::new();
        let mut leaderless = Vec::new();
        for group in self.groups.iter().filter(|group| !group.voters.is_empty()) {
            if self.lacks_quorum(group) {
                let key = (group.voters.clone(), self.missing(group));
                lacking.entry(key).or_default().push(group.id);
            } else if group.leader.is_none() {
                leaderless.push(group.id);
            }
        }
        for ((voters, missing), groups) in lacking {
            let missing: Vec<String> = missing.iter().map(|id| self.whereabouts(*id)).collect();
            problems.push(format!(
                "no quorum of {} from here: of {} voters {} missing: {}",
                groups_named(&groups),
                voters.len(),
                match missing.len() {
                    1 => "1 is".into(),
                    more => format!("{more} are"),
                },
                missing.join(", ")
            ));
        }
        if self.state == State::Up && problems.iter().any(|one| one.starts_with("no quorum of")) {
            problems.push(
                "clients whose sessions are in a group without a quorum cannot connect".into(),
            );
        }
        if !leaderless.is_empty() {
            problems.push(format!(
                "no leader of {}: an election is under way",
                groups_named(&leaderless)
            ));
        }
    }

    /// The voters of a group that this node does not reach.
    fn missing(&self, group: &GroupStatus) -> Vec<NodeId> {
        let is_there = |id: &NodeId| {
            let node = self.nodes.iter().find(|node| node.id == *id);
            *id == self.me || node.is_some_and(|node| node.connected)
        };
        let voters = group.voters.iter().copied();
        voters.filter(|id| !is_there(id)).collect()
    }

    fn other_nodes(&self, problems: &mut Vec<String>) {
        for node in self.nodes.iter().filter(|node| node.id != self.me) {
            let NodeStatus { name, address, .. } = node;
            if !node.up {
                let since = self.since(node);
                problems.push(format!("node {name} ({address}) is down since {since}"));
            } else if !node.connected {
                problems.push(format!(
                    "node {name} ({address}) counts as up, but this node does not reach it"
                ));
            }
        }
    }

    fn lags(&self, problems: &mut Vec<String>) {
        let behind = self.behind.iter().map(|id| {
            let group = self.groups.iter().find(|group| group.id == *id);
            let group = group.map(|group| (group.committed, group.applied));
            let lag = group.map_or(0, |(committed, applied)| committed.saturating_sub(applied));
            (*id, self.me, lag)
        });
        let mut by_node: BTreeMap<NodeId, (Vec<GroupId>, u64)> = BTreeMap::new();
        for (group, node, lag) in behind.chain(self.lagging.iter().copied()) {
            let (groups, most) = by_node.entry(node).or_default();
            groups.push(group);
            *most = lag.max(*most);
        }
        for (node, (groups, most)) in by_node {
            let down = self.nodes.iter().any(|one| one.id == node && !one.up);
            let who = match node == self.me {
                true => "this node".to_owned(),
                false if down => continue,
                false => format!("node {}", self.name(node)),
            };
            let how_far = match most {
                0 => String::new(),
                most => format!(", by up to {most} entries"),
            };
            problems.push(format!(
                "{who} has not caught up in {}{how_far}: do not stop another node before it has",
                groups_named(&groups)
            ));
        }
    }

    /// Nodes with another T than this one: the longer one of a node and of the leader counts, so that nothing but time is lost.
    fn times(&self, problems: &mut Vec<String>) {
        let mine = self.nodes.iter().find(|node| node.id == self.me);
        let Some(mine) = mine.map(|me| me.down_after_ms).filter(|ms| *ms > 0) else {
            return;
        };
        let others = self.nodes.iter().filter(|node| node.down_after_ms > 0);
        for node in others.filter(|node| node.down_after_ms != mine) {
            problems.push(format!(
                "node {} has `cluster.node_down_after_ms` = {}, this one {mine}: it should be the same on all nodes",
                node.name, node.down_after_ms
            ));
        }
    }

    fn departures(&self, problems: &mut Vec<String>) {
        for node in self.nodes {
            let name = &node.name;
            if node.leaving {
                let left = self.replicas.get(&node.id).copied().unwrap_or(0);
                problems.push(format!(
                    "node {name} is leaving the cluster: {left} of its replicas have to move first"
                ));
            }
            if node.draining && node.up {
                problems.push(format!(
                    "node {name} is draining: its clients go to other nodes, and it takes no new ones until it is started again"
                ));
            }
        }
    }

    fn name(&self, id: NodeId) -> String {
        let node = self.nodes.iter().find(|node| node.id == id);
        node.map_or_else(|| id.to_string(), |node| node.name.clone())
    }

    fn whereabouts(&self, id: NodeId) -> String {
        match self.nodes.iter().find(|node| node.id == id) {
            Some(node) if !node.up => format!("{} (down since {})", node.name, self.since(node)),
            Some(node) => format!("{} (not reached at {})", node.name, node.address),
            None => format!("{id} (no member)"),
        }
    }

    fn since(&self, node: &NodeStatus) -> String {
        match node.since_ms {
            0 => "the beginning".into(),
            since => duration(self.now_ms.saturating_sub(since)),
        }
    }
}

/// As people say it: the two greatest units.
fn duration(ms: u64) -> String {
    let seconds = ms / 1_000;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// "the meta group and groups 1-3, 7".
pub(super) fn groups_named(groups: &[GroupId]) -> String {
    let all: BTreeSet<u32> = groups.iter().map(|group| group.0).collect();
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in all.iter().copied().filter(|number| *number != 0) {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let shown: Vec<String> = ranges
        .iter()
        .map(|(first, last)| match last - first {
            0 => first.to_string(),
            1 => format!("{first}, {last}"),
            _ => format!("{first}-{last}"),
        })
        .collect();
    let sessions = match all.iter().filter(|number| **number != 0).count() {
        0 => None,
        1 => Some(format!("group {}", shown.join(", "))),
        _ => Some(format!("groups {}", shown.join(", "))),
    };
    let meta = all.contains(&0).then(|| "the meta group".to_owned());
    meta.into_iter()
        .chain(sessions)
        .collect::<Vec<_>>()
        .join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::Role;

    const NOW: u64 = 1_700_000_000_000;

    fn node(id: u64) -> NodeStatus {
        NodeStatus {
            id: NodeId(id),
            name: format!("n{id}"),
            address: format!("n{id}.example:7883"),
            incarnation: 1,
            up: true,
            since_ms: NOW - 3_723_000,
            leaving: false,
            draining: false,
            leader: id == 1,
            voter: true,
            connected: true,
            feature_level: crate::level::FeatureLevel::KNOWN,
            down_after_ms: 2_000,
        }
    }

    fn group(id: u32) -> GroupStatus {
        GroupStatus {
            id: GroupId(id),
            role: Role::Follower,
            term: 1,
            leader: Some(NodeId(1)),
            committed: 20,
            applied: 20,
            voters: [1, 2, 3].map(NodeId).to_vec(),
        }
    }

    struct Known {
        nodes: Vec<NodeStatus>,
        groups: Vec<GroupStatus>,
        state: State,
        behind: Vec<GroupId>,
        lagging: Vec<(GroupId, NodeId, u64)>,
    }

    fn known() -> Known {
        Known {
            nodes: (1..=3).map(node).collect(),
            groups: (0..=2).map(group).collect(),
            state: State::Up,
            behind: Vec::new(),
            lagging: Vec::new(),
        }
    }

    impl Known {
        /// As node 3 puts it.
        fn problems(&self) -> Vec<String> {
            let view = View {
                me: NodeId(3),
                now_ms: NOW,
                state: self.state,
                progress: "asking to join the cluster".into(),
                trouble: None,
                unleased_ms: Some(35_000),
                nodes: &self.nodes,
                groups: &self.groups,
                behind: &self.behind,
                lagging: &self.lagging,
                replicas: &[(NodeId(1), 5)].into(),
            };
            view.problems()
        }
    }

    #[test]
    fn a_whole_cluster_has_no_problems() {
        assert_eq!(known().problems(), Vec::<String>::new());
    }

    #[test]
    fn nodes_with_another_t_are_named() {
        let mut known = known();
        known.nodes[0].down_after_ms = 5_000;
        known.nodes[1].down_after_ms = 0;
        let said = known.problems().join("; ");
        let words = "node n1 has `cluster.node_down_after_ms` = 5000, this one 2000: it should";
        assert!(said.starts_with(words) && !said.contains("n2"), "{said}");
    }

    #[test]
    fn one_node_down_is_told_with_its_time_and_takes_no_quorum() {
        let mut known = known();
        (known.nodes[0].up, known.nodes[0].connected) = (false, false);
        assert_eq!(
            known.problems(),
            ["node n1 (n1.example:7883) is down since 1 h 2 min"]
        );
    }

    #[test]
    fn a_minority_says_who_is_missing_where_and_that_it_may_be_old() {
        let mut known = known();
        known.state = State::NoQuorum;
        (known.nodes[0].up, known.nodes[0].connected) = (false, false);
        known.nodes[1].connected = false;
        let problems = known.problems();
        assert!(
            problems[0].contains("no lease to serve for 35 s, as the meta group has no quorum"),
            "{problems:?}"
        );
        assert!(problems[1].contains("may be old"), "{problems:?}");
        assert_eq!(
            problems[2],
            "no quorum of the meta group and groups 1, 2 from here: of 3 voters 2 are missing: \
             n1 (down since 1 h 2 min), n2 (not reached at n2.example:7883)"
        );
        assert!(
            problems[4].contains("n2.example:7883) counts as up, but"),
            "{problems:?}"
        );
    }

    #[test]
    fn a_leader_that_does_not_renew_is_named() {
        let mut known = known();
        known.state = State::NoQuorum;
        let problems = known.problems();
        assert!(
            problems[0].contains("as node n1, which leads the meta group, does not renew it"),
            "{problems:?}"
        );
    }

    #[test]
    fn a_lost_session_group_says_what_it_means_for_clients() {
        let mut known = known();
        (known.nodes[0].up, known.nodes[0].connected) = (false, false);
        known.groups[2].voters.pop();
        let problems = known.problems();
        assert!(
            problems[0].starts_with("no quorum of group 2 from here: of 2 voters 1 is missing: n1"),
            "{problems:?}"
        );
        assert!(problems[1].contains("cannot connect"), "{problems:?}");
    }

    #[test]
    fn an_election_is_no_lost_quorum() {
        let mut known = known();
        known.groups[1].leader = None;
        assert_eq!(
            known.problems(),
            ["no leader of group 1: an election is under way"]
        );
    }

    #[test]
    fn lags_name_node_groups_and_distance() {
        let mut known = known();
        known.behind = vec![GroupId(1)];
        known.groups[1].committed = 5_020;
        known.lagging = vec![(GroupId(1), NodeId(2), 9), (GroupId(2), NodeId(2), 7_000)];
        assert_eq!(
            known.problems(),
            [
                "node n2 has not caught up in groups 1, 2, by up to 7000 entries: do not stop another node before it has",
                "this node has not caught up in group 1, by up to 5000 entries: do not stop another node before it has",
            ]
        );
        known.nodes[1].up = false;
        let problems = known.problems();
        assert!(
            problems[0].contains("n2.example:7883) is down"),
            "{problems:?}"
        );
        assert_eq!(
            problems.len(),
            2,
            "that a dead node lags goes without saying"
        );
    }

    #[test]
    fn who_goes_is_told() {
        let mut known = known();
        known.nodes[0].leaving = true;
        known.nodes[1].draining = true;
        let problems = known.problems();
        assert!(
            problems[0].contains("n1 is leaving the cluster: 5 of its replicas"),
            "{problems:?}"
        );
        assert!(problems[1].contains("n2 is draining"), "{problems:?}");
    }

    #[test]
    fn two_nodes_are_warned_and_a_node_that_joins_says_what_it_waits_for() {
        let mut known = known();
        known.nodes.pop();
        known.groups.clear();
        known.state = State::Joining;
        let problems = known.problems();
        assert_eq!(
            problems[0],
            "this node is not up: asking to join the cluster"
        );
        assert_eq!(
            problems.last().map(String::as_str),
            Some("two nodes tolerate no failure: add a third")
        );
    }

    #[test]
    fn groups_are_listed_as_ranges() {
        let named =
            |all: &[u32]| groups_named(&all.iter().map(|id| GroupId(*id)).collect::<Vec<_>>());
        assert_eq!(named(&[0, 1, 2, 3, 7]), "the meta group and groups 1-3, 7");
        assert_eq!(named(&[5]), "group 5");
        assert_eq!(named(&[0]), "the meta group");
    }
}
