//! Nodes that find each other and found a cluster, by the core of the bootstrap: messages late, lost and repeated, nodes that crash between
//! any two writes, lists that overlap. There is never a second founder; and where all hear each other in the end there is one.

use std::collections::{BTreeMap, BTreeSet};

use super::net::MS;
use super::rng::Rng;
use crate::id::NodeId;
use crate::membership::{Bootstrap, Grant, Probed, Step};

/// Messages get lost, and nodes crash, for so long.
const FAULTS_FOR: u64 = 8_000 * MS;
const END: u64 = 20_000 * MS;
const ROUND: u64 = 300 * MS;

/// What the wiring leaves out, to see that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    /// Grants are given before they are written down.
    GrantsUnwritten,
}

#[derive(Debug, Default, Clone)]
struct Disk {
    grant: Option<Grant>,
    attempt: u64,
    cluster: u64,
}

struct Node {
    id: NodeId,
    disk: Disk,
    bootstrap: Option<Bootstrap>,
    /// Whom it is told to look for.
    list: Vec<usize>,
    /// Counts its processes.
    generation: u64,
    round: u64,
}

#[derive(Debug, Clone)]
enum Message {
    Probe(u64),
    Answer(u64, Probed),
    Ask(Grant),
    Release(Grant),
    /// A founder calls on those that granted.
    Member(u64),
}

#[derive(Debug)]
enum Event {
    Arrive(usize, usize, Message),
    /// The answers of a round are in.
    Decide(usize, u64, u64),
    Round(usize, u64),
    Start(usize),
}

struct Founding {
    now: u64,
    rng: Rng,
    queue: BTreeMap<(u64, u64), Event>,
    counter: u64,
    nodes: Vec<Node>,
    expect: u32,
    broken: Option<Broken>,
    founders: BTreeSet<NodeId>,
}

impl Founding {
    /// With `whole` every node knows all others, and all are expected; else more than half are, so that the sets overlap.
    fn new(seed: u64, whole: bool, broken: Option<Broken>) -> Founding {
        let mut rng = Rng::new(seed);
        let count = rng.range(2, 6) as usize;
        let expect = match whole {
            true => count as u32,
            false => rng.range(count as u64 / 2 + 1, count as u64 + 1) as u32,
        };
        let nodes = (0..count).map(|node| {
            let others = (0..count).filter(|other| *other != node);
            Node {
                id: NodeId(node as u64 + 1),
                disk: Disk::default(),
                bootstrap: None,
                list: others.filter(|_| whole || rng.percent(60)).collect(),
                generation: 0,
                round: 0,
            }
        });
        let nodes = nodes.collect();
        let mut founding = Founding {
            now: 0,
            rng,
            queue: BTreeMap::new(),
            counter: 0,
            nodes,
            expect,
            broken,
            founders: BTreeSet::new(),
        };
        for node in 0..count {
            let delay = founding.rng.below(2_000 * MS);
            founding.after(delay, Event::Start(node));
        }
        founding
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.counter += 1;
        self.queue.insert((self.now + delay, self.counter), event);
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        let faulty = self.now < FAULTS_FOR;
        let copies = match self.rng.below(20) {
            0..=2 if faulty => 0,
            3..=4 if faulty => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let most = if faulty && self.rng.percent(15) {
                4_000
            } else {
                120
            };
            let delay = self.rng.below(most * MS);
            self.after(delay, Event::Arrive(from, to, message.clone()));
        }
    }

    /// Runs to the end. An error says what was not kept.
    fn run(mut self, whole: bool) -> Result<usize, String> {
        while let Some(((at, _), event)) = self.queue.pop_first() {
            self.now = at;
            if at > END {
                break;
            }
            self.happen(event);
            if self.founders.len() > 1 {
                return Err(format!(
                    "two clusters at {} ms: {:?}",
                    at / MS,
                    self.founders
                ));
            }
        }
        let clusters: BTreeSet<u64> = self.nodes.iter().map(|node| node.disk.cluster).collect();
        if whole && (clusters.len() != 1 || clusters.contains(&0)) {
            return Err(format!("not one cluster in the end: {clusters:?}"));
        }
        Ok(self.founders.len())
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Start(node) => {
                let it = &mut self.nodes[node];
                let (grant, attempt) = (it.disk.grant, it.disk.attempt);
                it.bootstrap = Some(Bootstrap::new(it.id, self.expect, grant, attempt));
                let generation = it.generation;
                self.after(0, Event::Round(node, generation));
            }
            Event::Arrive(from, to, message) => {
                if self.nodes[to].bootstrap.is_some() {
                    self.arrive(from, to, message);
                }
            }
            Event::Round(node, generation) => {
                if self.nodes[node].generation == generation {
                    self.begin_round(node);
                }
            }
            Event::Decide(node, generation, round) => {
                let it = &self.nodes[node];
                if it.generation == generation && it.round == round {
                    self.decide(node);
                }
            }
        }
    }

    fn crash(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        it.bootstrap = None;
        it.generation += 1;
        let delay = self.rng.below(1_500 * MS);
        self.after(delay, Event::Start(node));
    }

    fn may_crash(&mut self, node: usize) -> bool {
        let crashes = self.now < FAULTS_FOR && self.rng.percent(6);
        if crashes {
            self.crash(node);
        }
        crashes
    }

    fn begin_round(&mut self, node: usize) {
        if self.may_crash(node) {
            return;
        }
        let it = &mut self.nodes[node];
        it.round += 1;
        let (generation, round, cluster) = (it.generation, it.round, it.disk.cluster);
        if let Some(bootstrap) = &mut it.bootstrap {
            bootstrap.forget_probes();
        }
        for other in it.list.clone() {
            let message = match self.nodes[node].id.0 == cluster {
                true => Message::Member(cluster),
                false => Message::Probe(round),
            };
            self.send(node, other, message);
        }
        self.after(ROUND, Event::Decide(node, generation, round));
    }

    fn arrive(&mut self, from: usize, to: usize, message: Message) {
        let expect = self.expect;
        let broken = self.broken;
        let it = &mut self.nodes[to];
        let Some(bootstrap) = &mut it.bootstrap else {
            return;
        };
        match message {
            Message::Probe(round) => {
                let probed = Probed {
                    node: it.id,
                    cluster_id: it.disk.cluster,
                    expect,
                    grant: bootstrap.grant(),
                };
                self.send(to, from, Message::Answer(round, probed));
            }
            Message::Answer(round, probed) => {
                if round == it.round {
                    bootstrap.handle_probed(probed);
                }
            }
            Message::Ask(grant) if it.disk.cluster == 0 => {
                let is_given = bootstrap.handle_ask(grant, expect).is_ok();
                if is_given && broken != Some(Broken::GrantsUnwritten) {
                    it.disk.grant = bootstrap.grant();
                }
            }
            Message::Ask(_) => {}
            Message::Release(grant) => {
                bootstrap.handle_release(grant);
                it.disk.grant = bootstrap.grant();
            }
            Message::Member(cluster) => {
                let is_granted = bootstrap.grant().is_some_and(|g| g.holder.0 == cluster);
                if it.disk.cluster == 0 && is_granted {
                    it.disk.cluster = cluster;
                }
            }
        }
    }

    fn decide(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        let Some(bootstrap) = &it.bootstrap else {
            return;
        };
        let step = match it.disk.cluster {
            0 => bootstrap.poll(),
            _ => Step::Wait(String::new()),
        };
        let generation = it.generation;
        match step {
            Step::Wait(_) | Step::Conflict(_) => {}
            Step::Join(cluster) => it.disk.cluster = cluster,
            Step::Ask(nodes) => self.ask(node, &nodes),
            Step::Release(grants) => self.give_back(node, &grants),
            Step::Found(_) => {
                it.disk.cluster = it.id.0;
                self.founders.insert(it.id);
            }
        }
        let delay = self.rng.below(ROUND);
        self.after(delay, Event::Round(node, generation));
    }

    /// Its own grant first: where another has that, no one else is asked.
    fn ask(&mut self, node: usize, nodes: &BTreeSet<NodeId>) {
        let (expect, it) = (self.expect, &mut self.nodes[node]);
        let Some(bootstrap) = &mut it.bootstrap else {
            return;
        };
        let (id, grant) = (it.id, bootstrap.asks_for());
        if nodes.contains(&id) {
            if bootstrap.handle_ask(grant, expect).is_err() {
                return;
            }
            it.disk.grant = bootstrap.grant();
        }
        for to in nodes.iter().filter(|to| **to != id) {
            self.send(node, to.0 as usize - 1, Message::Ask(grant));
        }
    }

    /// The attempt is over before anyone is told, and a crash may come between the two writes.
    fn give_back(&mut self, node: usize, grants: &BTreeMap<NodeId, u64>) {
        let it = &mut self.nodes[node];
        let Some(bootstrap) = &mut it.bootstrap else {
            return;
        };
        let id = it.id;
        bootstrap.handle_giving_back(grants);
        let grant = bootstrap.grant();
        it.disk.attempt = bootstrap.asks_for().attempt;
        if self.may_crash(node) {
            return;
        }
        self.nodes[node].disk.grant = grant;
        for (to, attempt) in grants.iter().filter(|(to, _)| **to != id) {
            let grant = Grant {
                holder: id,
                attempt: *attempt,
            };
            self.send(node, to.0 as usize - 1, Message::Release(grant));
        }
    }
}

fn found(seed: u64, whole: bool, broken: Option<Broken>) -> Result<usize, String> {
    Founding::new(seed, whole, broken).run(whole)
}

#[test]
fn there_are_never_two_clusters() {
    let mut founded = 0;
    for seed in 0..400 {
        for whole in [true, false] {
            let outcome = found(seed, whole, None);
            founded += outcome.unwrap_or_else(|what| panic!("seed {seed}, whole {whole}: {what}"));
        }
    }
    assert!(founded > 400, "only {founded} clusters were founded");
}

#[test]
fn finds_grants_that_are_not_written_down() {
    let broken = Some(Broken::GrantsUnwritten);
    let two = (0..3_000).find(|seed| found(*seed, false, broken).is_err());
    assert!(two.is_some());
}
