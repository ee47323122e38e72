//! Three real nodes and the faults that can be done to them; where namespaces are permitted, each has an address of its own
//! and can be cut off. Clients come from the host and reach every node at all times.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use flotte_tests::netns::{self, Netns};
use flotte_tests::{Broker, Cluster, Launch, admin};

use crate::history::{Kind, NOBODY, Phase, Recorder, What};
use crate::schedule::{MINORITY_GRACE_MS, NODE_DOWN_AFTER_MS, Step};
use crate::upset::{Upset, Upsets};

/// Ports of the nodes that have addresses of their own.
const MQTT: u16 = 1883;
const CLUSTER: u16 = 7883;
const ADMIN: u16 = 8080;

/// How long a healed cluster may take to be whole again, on a busy machine.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// How long a node may take to come to rest.
const REST_LIMIT: Duration = Duration::from_secs(10);
/// How far a clock is set, in seconds.
const HOUR: i64 = 3_600;
/// What a slow disk adds to each sync.
const SYNC_TAKES: Duration = Duration::from_millis(150);

pub struct Arena {
    cluster: Cluster,
    netns: Option<Netns>,
    upsets: Upsets,
}

impl Arena {
    /// Starts three nodes and waits until they are ready.
    pub fn start() -> Self {
        let upsets = Upsets::new();
        let timed = |node: u8, launch| timed(upsets.load(node, launch));
        let (netns, cluster) = match netns::missing() {
            Some(_) => {
                let nodes = (1..).zip(flotte_tests::cluster::launches(3));
                let nodes = nodes.map(|(node, launch)| timed(node, launch).spawn());
                let mut cluster = Cluster {
                    nodes: nodes.collect(),
                };
                cluster.wait_ready();
                (None, cluster)
            }
            None => {
                let netns = Netns::new(3);
                let nodes = (1..=3).map(|node| timed(node, launch_in(&netns, node)).spawn());
                let mut cluster = Cluster {
                    nodes: nodes.collect(),
                };
                cluster.wait_ready();
                (Some(netns), cluster)
            }
        };
        Self {
            cluster,
            netns,
            upsets,
        }
    }

    pub fn links_can_be_cut(&self) -> bool {
        self.netns.is_some()
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.cluster.nodes.iter().map(Broker::mqtt).collect()
    }

    /// Does one fault, from its begin until the node is ready again.
    pub async fn suffer(&mut self, step: Step, recorder: &Recorder) {
        let note = |phase| {
            let (node, kind) = (step.node, step.kind);
            recorder.note(NOBODY, What::Fault { node, kind, phase });
        };
        note(Phase::Begins);
        self.begin(step);
        note(Phase::Holds);
        tokio::time::sleep(step.hold).await;
        note(Phase::Ends);
        self.end(step);
        self.wait_all_ready();
        note(Phase::Over);
    }

    fn begin(&mut self, Step { kind, node, .. }: Step) {
        let broker = &mut self.cluster.nodes[usize::from(node - 1)];
        match kind {
            Kind::Kill | Kind::QuickRestart => broker.kill9(),
            Kind::PauseShort | Kind::PauseLong => broker.pause(),
            Kind::Term => {
                let code = broker.sigterm();
                assert_eq!(
                    code,
                    Some(0),
                    "{} after SIGTERM\n{}",
                    broker.name(),
                    broker.log()
                );
            }
            Kind::Split => self.netns().cut(node, next(node)),
            Kind::ClockAhead => self.upsets.set(node, Upset::clock(HOUR)),
            Kind::ClockBehind => self.upsets.set(node, Upset::clock(-HOUR)),
            Kind::SlowDisk => self.upsets.set(node, Upset::slow_disk(SYNC_TAKES)),
            Kind::Cut | Kind::Deaf | Kind::Mute => {
                let netns = self.netns();
                for peer in peers(node) {
                    match kind {
                        Kind::Deaf => netns.deafen(node, peer),
                        Kind::Mute => netns.deafen(peer, node),
                        _ => netns.cut(node, peer),
                    }
                }
            }
        }
    }

    fn end(&mut self, Step { kind, node, .. }: Step) {
        let broker = &mut self.cluster.nodes[usize::from(node - 1)];
        match kind {
            Kind::Kill | Kind::QuickRestart | Kind::Term => broker.restart(),
            Kind::PauseShort | Kind::PauseLong => broker.resume(),
            Kind::ClockAhead | Kind::ClockBehind | Kind::SlowDisk => {
                self.upsets.set(node, Upset::NONE);
            }
            Kind::Cut | Kind::Deaf | Kind::Split => self.heal(node),
            Kind::Mute => peers(node).for_each(|peer| self.heal(peer)),
        }
    }

    fn heal(&self, node: u8) {
        self.netns().heal(node);
    }

    fn netns(&self) -> &Netns {
        let netns = self.netns.as_ref();
        netns.expect("links are cut only where they can be")
    }

    /// Notes what each node accounts for, once it is at rest or has had its time.
    pub async fn account(&self, recorder: &Recorder) {
        for (node, broker) in (1..).zip(&self.cluster.nodes) {
            let begin = Instant::now();
            let [accepted, accounted] = loop {
                let counts = accounts(broker.admin());
                let is_over = begin.elapsed() > REST_LIMIT;
                match counts {
                    Some([accepted, accounted]) if accepted == accounted || is_over => {
                        break [accepted, accounted];
                    }
                    None if is_over => panic!("no metrics of {}\n{}", broker.name(), broker.log()),
                    _ => tokio::time::sleep(Duration::from_millis(200)).await,
                }
            };
            let what = What::Accounted {
                node,
                accepted,
                accounted,
            };
            recorder.note(NOBODY, what);
        }
    }

    /// Waits until all nodes say that they are ready, several times in a row: one that was declared Down says so until it
    /// learns of it.
    fn wait_all_ready(&self) {
        const LOOKS: u32 = 4;
        const LOOK_AGAIN: Duration = Duration::from_millis(150);
        let mut good = 0;
        let logs = || {
            self.cluster
                .nodes
                .iter()
                .map(Broker::log)
                .collect::<String>()
        };
        let begin = Instant::now();
        while good < LOOKS {
            assert!(
                begin.elapsed() < READY_LIMIT,
                "not all nodes are ready\n{}",
                logs()
            );
            std::thread::sleep(LOOK_AGAIN);
            let ready = self
                .cluster
                .nodes
                .iter()
                .all(|node| admin::is_ready(node.admin()));
            good = if ready { good + 1 } else { 0 };
        }
    }
}

/// Copies accepted, and copies that are somewhere.
fn accounts(admin_address: SocketAddr) -> Option<[u64; 2]> {
    let series = [
        "flotte_copies_accepted_total",
        "flotte_copies_delivered_total",
        "flotte_copies_queued",
        "flotte_copies_expired_total",
        "flotte_copies_dropped_total",
    ];
    let [accepted, rest @ ..] = admin::metrics(admin_address, series)?.map(|count| count as u64);
    Some([accepted, rest.iter().sum()])
}

/// The node behind this one, in a ring.
fn next(node: u8) -> u8 {
    node % 3 + 1
}

fn peers(node: u8) -> impl Iterator<Item = u8> {
    (1..=3).filter(move |peer| *peer != node)
}

fn timed(launch: Launch) -> Launch {
    let launch = launch.env("FLOTTE_CLUSTER__NODE_DOWN_AFTER_MS", NODE_DOWN_AFTER_MS);
    launch.env("FLOTTE_CLUSTER__MINORITY_GRACE_MS", MINORITY_GRACE_MS)
}

fn launch_in(netns: &Netns, node: u8) -> Launch {
    let mut launch = Launch::new(&format!("n{node}"))
        .namespace(&netns.name(node))
        .bind("mqtt", netns.socket(node, MQTT))
        .bind("cluster", netns.socket(node, CLUSTER))
        .bind("admin", netns.socket(node, ADMIN))
        .env("FLOTTE_CLUSTER__INSECURE", true)
        .arg("--allow-anonymous")
        .arg("--bootstrap-expect")
        .arg("3");
    for peer in 1..=3 {
        launch = launch
            .arg("--join")
            .arg(netns.socket(peer, CLUSTER).to_string());
    }
    launch
}
