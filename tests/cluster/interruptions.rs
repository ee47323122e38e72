//! How long a killed node interrupts those who do not need it, and those who wait for its subscribers: many kills of one
//! cluster. Times are promised of a release build on a machine with room; a short run of a debug build asks for less.

use std::time::{Duration, Instant};

use flotte_tests::cluster::wait_node_ready;
use flotte_tests::{Client, Cluster, Version, block_on, connect, fresh, publish};

use crate::common::reconnect;

/// Pause between a PUBACK and the next message.
const PACE: Duration = Duration::from_millis(10);
/// Messages before the kill.
const RUN_UP: u16 = 50;
/// Longer than any interruption that is allowed.
const AFTERMATH: Duration = Duration::from_secs(6);

/// How long each pair of clients stood still.
#[derive(Debug, Clone, Copy)]
struct Interruption {
    /// Both at nodes that stay: the longest time without a delivery or with a PUBACK outstanding.
    apart: Duration,
    /// The same, with one more subscriber at the node that is killed.
    waiting: Duration,
    /// The killed node led the meta group.
    led: bool,
}

/// A publisher, and a subscriber at another node.
struct Pair {
    topic: String,
    publisher: Client,
    subscriber: Client,
    published: u16,
}

impl Pair {
    async fn connect(cluster: &Cluster, from: usize, to: usize) -> Self {
        let topic = fresh("pair");
        let client = async |node| {
            let address = cluster.mqtt(node);
            let mut client = reconnect(address, Version::V5, connect(fresh("c"))).await;
            client.patience = 2 * AFTERMATH;
            client
        };
        let (publisher, mut subscriber) = (client(from).await, client(to).await);
        subscriber.subscribe(&topic, 1).await;
        Self {
            topic,
            publisher,
            subscriber,
            published: 0,
        }
    }

    /// One message, all the way; how long it took.
    async fn publish(&mut self) -> Duration {
        self.published += 1;
        let id = self.published;
        let begin = Instant::now();
        let message = publish(&self.topic).qos1(id).payload(id.to_string());
        self.publisher.send(message).await;
        let delivered = async {
            self.subscriber.take(id.to_string()).await;
        };
        futures::join!(delivered, self.publisher.recv_ack(4, id));
        begin.elapsed()
    }

    /// Messages one after the other until `end` says so; the longest of all.
    async fn flow(&mut self, mut end: impl FnMut(u16) -> bool) -> Duration {
        let mut longest = Duration::ZERO;
        while !end(self.published) {
            longest = longest.max(self.publish().await);
            tokio::time::sleep(PACE).await;
        }
        longest
    }
}

async fn kill(cluster: &mut Cluster, victim: usize) -> Interruption {
    let led = cluster.leader() == victim;
    let (from, to) = ((victim + 1) % 3, (victim + 2) % 3);
    let mut apart = Pair::connect(cluster, from, to).await;
    let mut waiting = Pair::connect(cluster, from, to).await;
    let mut doomed = reconnect(cluster.mqtt(victim), Version::V5, connect(fresh("c"))).await;
    doomed.subscribe(&waiting.topic, 1).await;
    let run_up = |published| published >= RUN_UP;
    futures::join!(apart.flow(run_up), waiting.flow(run_up));
    cluster.nodes[victim].kill9();
    let killed = Instant::now();
    let over = |_| killed.elapsed() >= AFTERMATH;
    let (apart, waiting) = futures::join!(apart.flow(over), waiting.flow(over));
    cluster.wait_state(from, victim, "down");
    cluster.nodes[victim].restart();
    wait_node_ready(&cluster.nodes[victim]);
    for observer in 0..3 {
        cluster.wait_state(observer, victim, "up");
    }
    Interruption {
        apart,
        waiting,
        led,
    }
}

/// Kills nodes in turn, and every other time the one that leads the meta group.
fn kills(count: usize) -> Vec<Interruption> {
    block_on(async {
        let mut cluster = Cluster::start();
        let mut found = Vec::new();
        for round in 0..count {
            let leader = cluster.leader();
            let victim = if round % 2 == 0 {
                leader
            } else {
                (leader + 1 + round / 2 % 2) % 3
            };
            let interruption = kill(&mut cluster, victim).await;
            println!("kill {round}: {interruption:?}");
            found.push(interruption);
        }
        found
    })
}

/// The longest of each kind: apart, waiting, waiting where the killed node led.
fn longest(found: &[Interruption]) -> [Duration; 3] {
    let most = |pick: &dyn Fn(&Interruption) -> Option<Duration>| {
        found.iter().filter_map(pick).max().unwrap_or_default()
    };
    [
        most(&|i| Some(i.apart)),
        most(&|i| (!i.led).then_some(i.waiting)),
        most(&|i| i.led.then_some(i.waiting)),
    ]
}

#[test]
fn a_killed_node_interrupts_the_others_for_seconds_at_most() {
    const LIMITS: [Duration; 3] = [Duration::from_secs(3), Duration::from_secs(5), AFTERMATH];
    let longest = longest(&kills(2));
    let is_short = longest
        .iter()
        .zip(LIMITS)
        .all(|(time, limit)| *time <= limit);
    assert!(is_short, "{longest:?}, allowed are {LIMITS:?}");
}

/// With `FLOTTE_BIN` a release build.
#[test]
#[ignore = "twenty kills; tests/run --long runs it"]
fn twenty_killed_nodes_interrupt_the_others_no_longer_than_promised() {
    const LIMITS: [Duration; 3] = [
        Duration::from_millis(1_500),
        Duration::from_secs(3),
        Duration::from_secs(4),
    ];
    let longest = longest(&kills(20));
    println!("longest: apart, waiting, waiting for a leader: {longest:?}");
    let is_short = longest
        .iter()
        .zip(LIMITS)
        .all(|(time, limit)| *time <= limit);
    assert!(is_short, "{longest:?}, promised are {LIMITS:?}");
}
