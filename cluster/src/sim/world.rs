//! The loop of a simulation: takes the next event, lets it happen, and asks the oracle.

use flotte_proto::meta_command::Command;
use flotte_proto::{Batch, ClusterSettings, Found, GroupEntry, Member, MetaCommand};
use prost::Message as _;

use super::ctx::{Broken, Ctx, Event, id_of};
use super::log::Belief;
use super::message::Input;
use super::net::MS;
use super::oracle::Counts;
use super::process::Process;
use crate::id::GroupId;

/// Faults and load go on for so long.
const FAULTS_FOR: u64 = 9_000 * MS;
/// Then clients go on for so long, and then all comes to rest.
const LOAD_AFTER: u64 = 2_000 * MS;
const REST: u64 = 7_000 * MS;
const PULSE: u64 = 50 * MS;
const GROUPS: u32 = 2;

pub struct World {
    pub ctx: Ctx,
    pub processes: Vec<Option<Process>>,
    /// What waits for nodes that are paused.
    pub held: Vec<Vec<Input>>,
    pub clients: usize,
}

/// What became of a simulation.
#[derive(Debug)]
pub struct Outcome {
    pub violation: Option<String>,
    pub trace: Vec<String>,
    pub steps: u64,
    pub counts: Counts,
    /// Of all replicas at the end; two runs of one seed have the same.
    pub digest: u32,
}

impl World {
    pub fn new(seed: u64, broken: Option<Broken>) -> World {
        let nodes = if seed % 4 == 3 { 5 } else { 3 };
        let mut ctx = Ctx::new(seed, nodes, GROUPS, broken);
        let clients = 6;
        for group in 0..=GROUPS {
            let delay = ctx.rng.below(PULSE);
            ctx.after(delay, Event::Pulse(GroupId(group)));
        }
        for node in 0..nodes {
            let delay = ctx.rng.below(800 * MS);
            ctx.after(delay, Event::Undo(super::ctx::Undo::Start(node)));
        }
        for client in 0..clients {
            let delay = 700 * MS + ctx.rng.below(500 * MS);
            ctx.after(delay, Event::Client(client));
        }
        ctx.after(1_000 * MS, Event::Fault);
        ctx.at(FAULTS_FOR, Event::Heal);
        ctx.at(FAULTS_FOR + LOAD_AFTER + REST, Event::End);
        World {
            ctx,
            processes: (0..nodes).map(|_| None).collect(),
            held: (0..nodes).map(|_| Vec::new()).collect(),
            clients,
        }
    }

    /// Runs to the end, or to the first violation.
    pub fn run(mut self) -> Outcome {
        self.found();
        let mut steps = 0;
        while let Some(((at, _), event)) = self.ctx.queue.pop_first() {
            self.ctx.now = at;
            steps += 1;
            let is_last = matches!(event, Event::End);
            self.happen(event);
            self.ctx.oracle.step(at, &self.ctx.machines);
            if is_last || self.ctx.oracle.violation.is_some() {
                break;
            }
        }
        let mut digest = crc32fast::Hasher::new();
        for group in self.ctx.logs.keys() {
            digest.update(&self.ctx.oracle.truth_digest(*group).to_le_bytes());
        }
        Outcome {
            violation: self.ctx.oracle.violation.take(),
            trace: self.ctx.trace.take().unwrap_or_default(),
            steps,
            counts: self.ctx.oracle.counts,
            digest: digest.finalize(),
        }
    }

    /// The first entry of meta: who is a member.
    fn found(&mut self) {
        let node = self.ctx.rng.index(self.processes.len());
        let members = (0..self.processes.len()).map(|node| Member {
            node_id: id_of(node).0,
            name: format!("n{node}"),
            ..Member::default()
        });
        let found = Found {
            cluster_id: 1,
            members: members.collect(),
            settings: Some(ClusterSettings {
                session_groups: GROUPS,
                ..ClusterSettings::default()
            }),
            placement: Vec::new(),
        };
        let command = MetaCommand {
            command: Some(Command::Found(found)),
        };
        let batch = Batch {
            node_id: id_of(node).0,
            incarnation: 0,
            sequence: 1,
            commands: vec![command.encode_to_vec().into()],
        };
        let entry = GroupEntry {
            time_ms: 1,
            batches: vec![batch],
        };
        let now = self.ctx.now;
        if let Some(log) = self.ctx.logs.get_mut(&GroupId::META) {
            log.elect(node, 0, now);
            log.append(Some(entry.encode_to_vec().into()), now);
        }
        self.commit(GroupId::META, 2);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive { from, to, packet } => {
                if let Some(packet) = self.ctx.net.arrive(from, to, packet) {
                    let message = packet.message;
                    self.input(to, Input::Message { from, message });
                }
            }
            Event::Input {
                node,
                generation,
                input,
            } => {
                if self.ctx.machines[node].generation == generation {
                    self.input(node, input);
                }
            }
            Event::Pulse(group) => self.pulse(group),
            Event::Commit { group, term, index } => {
                let log = &self.ctx.logs[&group];
                if let Some(leader) = log.truth.leader
                    && log.truth.term == term
                    && self.ctx.has_quorum(group, leader)
                {
                    self.commit(group, index);
                }
            }
            Event::Client(client) => {
                if self.ctx.now < FAULTS_FOR + LOAD_AFTER {
                    self.client_acts(client);
                }
            }
            Event::Fault => self.fault(),
            Event::Undo(undo) => self.undo(undo),
            Event::Heal => self.heal(),
            Event::End => self.settle(),
        }
    }

    pub fn input(&mut self, node: usize, input: Input) {
        if self.ctx.machines[node].paused {
            self.held[node].push(input);
        } else if let Some(process) = &mut self.processes[node] {
            process.handle(&mut self.ctx, input);
        }
    }

    // ---- the logs ----

    fn commit(&mut self, group: GroupId, index: u64) {
        let now = self.ctx.now;
        let Some(log) = self.ctx.logs.get_mut(&group) else {
            return;
        };
        for index in log.committed + 1..=index.min(log.last()) {
            let entry = log.entry(index).clone();
            self.ctx.oracle.committed(group, index, &entry, now);
            log.committed = index;
        }
        let (leader, replicas) = (log.truth.leader, log.replicas.clone());
        for node in replicas {
            let most = if leader == Some(node) { 2 } else { 12 };
            let delay = self.ctx.rng.below(most * MS) + self.ctx.machines[node].apply_delay;
            if self.hears_leader(group, node) {
                self.ctx.input(node, delay, Input::Advance(group));
            }
        }
    }

    fn hears_leader(&self, group: GroupId, node: usize) -> bool {
        let leader = self.ctx.logs[&group].truth.leader;
        leader.is_some_and(|leader| {
            leader == node
                || self.ctx.machines[leader].works() && !self.ctx.net.is_cut(leader, node)
        })
    }

    fn pulse(&mut self, group: GroupId) {
        self.ctx.after(PULSE, Event::Pulse(group));
        let truth = self.ctx.logs[&group].truth;
        let leads = truth
            .leader
            .is_some_and(|leader| self.ctx.has_quorum(group, leader));
        let transfers = !self.ctx.healed && self.ctx.rng.percent(1);
        if leads && !transfers {
            let last = self.ctx.logs[&group].last();
            if let Some(log) = self.ctx.logs.get_mut(&group) {
                log.leaderless = None;
            }
            if self.ctx.rng.percent(30) {
                self.commit(group, last);
            }
        } else {
            self.elect(group, transfers);
        }
        self.tell_replicas(group);
    }

    /// After a timeout one that has a quorum is elected, with some of the entries that were not committed.
    fn elect(&mut self, group: GroupId, at_once: bool) {
        let now = self.ctx.now;
        let timeout = self.ctx.rng.range(300, 900) * MS;
        let Some(log) = self.ctx.logs.get_mut(&group) else {
            return;
        };
        let (since, timeout) = *log.leaderless.get_or_insert((now, timeout));
        if !at_once && now - since < timeout {
            return;
        }
        let replicas = log.replicas.clone();
        let open = log.last() - log.committed;
        let able = replicas.into_iter();
        let able: Vec<usize> = able.filter(|n| self.ctx.has_quorum(group, *n)).collect();
        let Some(node) = self.ctx.rng.pick(&able) else {
            return;
        };
        let kept = self.ctx.rng.below(open + 1);
        let delay = self.ctx.rng.range(MS, 30 * MS);
        let Some(log) = self.ctx.logs.get_mut(&group) else {
            return;
        };
        log.elect(node, kept, now);
        let (term, index) = (log.truth.term, log.last());
        self.ctx.note(|| {
            format!("group {group}: node {node} leads term {term}, {kept} of {open} entries kept")
        });
        self.ctx.after(delay, Event::Commit { group, term, index });
    }

    /// Replicas learn who leads, and what is committed.
    fn tell_replicas(&mut self, group: GroupId) {
        let log = &self.ctx.logs[&group];
        let (truth, committed) = (log.truth, log.committed);
        for node in log.replicas.clone() {
            if !self.ctx.machines[node].running {
                continue;
            }
            let log = &self.ctx.logs[&group];
            let (belief, applied) = (log.belief(node), log.applied[&node]);
            let hears = self.hears_leader(group, node);
            if hears && belief != truth && self.ctx.rng.percent(60) {
                self.believe(group, node, truth);
            } else if !hears && belief.leader.is_some() && self.ctx.rng.percent(4) {
                let leader = None;
                self.believe(group, node, Belief { leader, ..belief });
            }
            if hears && applied < committed {
                let delay = self.ctx.machines[node].apply_delay;
                self.ctx.input(node, delay, Input::Advance(group));
            }
        }
    }

    fn believe(&mut self, group: GroupId, node: usize, belief: Belief) {
        // A node that is paused learns nothing.
        if self.ctx.machines[node].paused {
            return;
        }
        if let Some(log) = self.ctx.logs.get_mut(&group) {
            log.beliefs.insert(node, belief);
        }
        self.ctx.input(node, 0, Input::Status(group));
    }

    // ---- the end ----

    fn settle(&mut self) {
        for (node, process) in self.processes.iter().enumerate() {
            let left = match process {
                Some(process) => process.unfinished(&self.ctx),
                None => vec!["it does not run".into()],
            };
            if !left.is_empty() {
                let what = format!("node {node}: {}", left.join("; "));
                return self.ctx.oracle.fail("liveness", what);
            }
        }
        for process in self.processes.iter().flatten() {
            for (group, replica) in &process.replicas {
                let log = &self.ctx.logs[group];
                let (applied, committed) = (replica.applied, log.committed);
                if applied != committed {
                    let what = format!(
                        "group {group} at node {}: {applied} of {committed}",
                        process.idx
                    );
                    return self.ctx.oracle.fail("liveness", what);
                }
                if replica.digest() != self.ctx.oracle.truth_digest(*group) {
                    let what =
                        format!("group {group} at node {} differs from the log", process.idx);
                    return self.ctx.oracle.fail("P6", what);
                }
            }
        }
        // Versions only rise here.
        let lowest = self.ctx.machines.iter().map(|machine| machine.level).min();
        let level = self.ctx.oracle.meta.feature_level().number();
        if lowest != Some(level) {
            let what = format!("the cluster is at level {level}, and all know {lowest:?}");
            return self.ctx.oracle.fail("feature level", what);
        }
        let messages = std::mem::take(&mut self.ctx.messages);
        self.ctx.oracle.settled(&messages);
    }
}
