//! Three real nodes, a fourth that is there at times, and the faults that can be done to them; where namespaces are
//! permitted, each has an address of its own and can be cut off. Clients come from the host and reach every node at all times.

mod members;

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use flotte_tests::netns::{self, Netns};
use flotte_tests::ports::free_address;
use flotte_tests::{Broker, Launch, admin, cluster};

use crate::history::{Kind, NOBODY, Phase, Recorder, What};
use crate::schedule::{GUEST, MINORITY_GRACE_MS, NODE_DOWN_AFTER_MS, Step};
use crate::upset::{Upset, Upsets};

/// How long a healed cluster may take to be whole again, on a busy machine.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// How long a node may take to end that drains first.
const ENDED_LIMIT: Duration = Duration::from_secs(60);

/// How long a node may take to come to rest.
const REST_LIMIT: Duration = Duration::from_secs(10);
/// How far a clock is set, in seconds.
const HOUR: i64 = 3_600;
/// What a slow disk adds to each sync.
const SYNC_TAKES: Duration = Duration::from_millis(150);

pub struct Arena {
    /// n1 to n3.
    nodes: Vec<Broker>,
    /// How the fourth is started: each time with an empty disk.
    invitation: Launch,
    guest: Option<Broker>,
    guest_mqtt: SocketAddr,
    netns: Option<Netns>,
    upsets: Upsets,
}

impl Arena {
    /// Starts three nodes and waits until they are ready.
    pub fn start() -> Self {
        let upsets = Upsets::new();
        let netns = netns::missing().is_none().then(|| Netns::new(GUEST));
        let (launches, invitation, guest_mqtt) = match &netns {
            Some(netns) => launches_in(netns),
            None => launches(),
        };
        let timed = |(node, launch)| timed(upsets.load(node, launch));
        let nodes = (1..).zip(launches).map(|one| timed(one).spawn()).collect();
        let mut arena = Self {
            nodes,
            invitation: timed((GUEST, invitation)),
            guest: None,
            guest_mqtt,
            netns,
            upsets,
        };
        arena.nodes.iter_mut().for_each(Broker::wait_ready);
        arena.wait_all_ready();
        arena
    }

    pub fn links_can_be_cut(&self) -> bool {
        self.netns.is_some()
    }

    /// Where the nodes take clients, the fourth one included.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let guest = std::iter::once(self.guest_mqtt);
        self.nodes.iter().map(Broker::mqtt).chain(guest).collect()
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
        if step.kind.changes_members() {
            self.wait_whole();
        }
        note(Phase::Over);
    }

    fn begin(&mut self, Step { kind, node, .. }: Step) {
        match kind {
            Kind::Kill | Kind::QuickRestart | Kind::Expel | Kind::Wipe => self.node(node).kill9(),
            Kind::PauseShort | Kind::PauseLong => self.node(node).pause(),
            Kind::Term => {
                self.node(node).ask_to_end();
                self.wait_end(node);
            }
            Kind::Drain => self.drain(node),
            Kind::Guest => self.welcome(),
            Kind::Leave => self.leave(node),
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
        match kind {
            Kind::Kill | Kind::QuickRestart | Kind::Term => self.node(node).restart(),
            Kind::Drain => {
                self.stop_drained(node);
                self.node(node).restart();
            }
            Kind::Guest => self.see_off(),
            Kind::Leave | Kind::Wipe => self.return_anew(node),
            Kind::Expel => {
                self.expel(node);
                self.return_anew(node);
            }
            Kind::PauseShort | Kind::PauseLong => self.node(node).resume(),
            Kind::ClockAhead | Kind::ClockBehind | Kind::SlowDisk => {
                self.upsets.set(node, Upset::NONE);
            }
            Kind::Cut | Kind::Deaf | Kind::Split => self.heal(node),
            Kind::Mute => peers(node).for_each(|peer| self.heal(peer)),
        }
    }

    fn node(&mut self, node: u8) -> &mut Broker {
        &mut self.nodes[usize::from(node - 1)]
    }

    /// Waits for the end of the process, which must be a good one.
    fn wait_end(&mut self, node: u8) {
        let broker = self.node(node);
        let code = broker.wait_end(ENDED_LIMIT).code();
        assert_eq!(code, Some(0), "{} ends\n{}", broker.name(), broker.log());
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
        for (node, broker) in (1..).zip(&self.nodes) {
            let begin = Instant::now();
            let [accepted, accounted] = loop {
                let counts = self.ask(node, accounts);
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
        let begin = Instant::now();
        while good < LOOKS {
            assert!(
                begin.elapsed() < READY_LIMIT,
                "not all nodes are ready\n{}",
                self.logs()
            );
            std::thread::sleep(LOOK_AGAIN);
            let ready = (1..=3).all(|node| self.ask(node, admin::is_ready));
            good = if ready { good + 1 } else { 0 };
        }
    }

    fn logs(&self) -> String {
        self.nodes
            .iter()
            .chain(&self.guest)
            .map(Broker::log)
            .collect()
    }

    /// Asks a node at its admin port, which is on the loopback of its namespace.
    fn ask<T: Send + 'static>(
        &self,
        node: u8,
        question: impl FnOnce(SocketAddr) -> T + Send + 'static,
    ) -> T {
        let broker = match node {
            GUEST => self.guest.as_ref().expect("the guest is there"),
            _ => &self.nodes[usize::from(node - 1)],
        };
        let address = broker.admin();
        match &self.netns {
            Some(netns) => netns.inside(node, move || question(address)),
            None => question(address),
        }
    }
}

/// The logs of a failed run are kept whole: what went before may lie long before the end.
impl Drop for Arena {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for node in self.nodes.iter().chain(&self.guest) {
            let mut builder = tempfile::Builder::new();
            let prefix = format!("flotte-faults-{}-", node.name());
            let file = builder.prefix(&prefix).suffix(".log").tempfile();
            let kept = file.and_then(|mut file| {
                file.write_all(node.whole_log().as_bytes())?;
                Ok(file.keep()?)
            });
            match kept {
                Ok((_, path)) => eprintln!("--- whole log of {}: {}", node.name(), path.display()),
                Err(why) => eprintln!("--- the log of {} is not kept: {why}", node.name()),
            }
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

/// Launches of the first three nodes and of the fourth, and where that one takes clients.
fn launches() -> (Vec<Launch>, Launch, SocketAddr) {
    let founders = cluster::launches(3);
    let (mqtt, mut guest) = (free_address(), Launch::new(&name(GUEST)));
    for founder in &founders {
        guest = guest
            .arg("--join")
            .arg(founder.address("cluster").to_string());
    }
    let guest = guest
        .bind("mqtt", mqtt)
        .bind("cluster", free_address())
        .bind("admin", free_address());
    (founders, guest, mqtt)
}

/// The same in namespaces.
fn launches_in(netns: &Netns) -> (Vec<Launch>, Launch, SocketAddr) {
    let founder = |node| netns.launch(node, 3).arg("--bootstrap-expect").arg("3");
    let guest = netns.launch(GUEST, 3);
    let founders = (1..=3).map(founder).collect();
    (founders, guest, netns.socket(GUEST, netns::MQTT))
}

fn name(node: u8) -> String {
    format!("n{node}")
}
