//! A rolling restart of three nodes under load, as an operator or an orchestrator does it: SIGTERM, start, wait for /readyz, go
//! on with the next. Clients follow the reference that they are given, or their list.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flotte_tests::cluster::wait_node_ready;
use flotte_tests::wire::prop;
use flotte_tests::{
    Client, Cluster, Received, Version, admin, block_on, connect, fresh, puback, publish,
    subscribe, will,
};

const PUBLISHERS: u64 = 4;
const SUBSCRIBERS: usize = 2;
/// Between two messages of a publisher.
const PACE: Duration = Duration::from_millis(20);
/// An acknowledgement this long before the end of a subscriber's connection was before that end for sure: what the test itself
/// takes to notice either.
const SURELY: Duration = Duration::from_secs(1);
/// How long one connection attempt may take before the next node is tried.
const ATTEMPT: Duration = Duration::from_secs(10);

/// What all clients know.
struct World {
    nodes: Vec<SocketAddr>,
    stop: AtomicBool,
    wills: String,
}

/// A client that is somewhere in the cluster all the time.
struct Roamer {
    world: Arc<World>,
    id: String,
    version: Version,
    /// Where it goes first the next time.
    next: SocketAddr,
}

impl Roamer {
    fn new(world: &Arc<World>, place: usize, version: Version) -> Roamer {
        Roamer {
            world: Arc::clone(world),
            id: fresh("roamer"),
            version,
            next: world.nodes[place % world.nodes.len()],
        }
    }

    /// Connects where it was told to, else at the next node of the list that takes it: one of them does.
    async fn connect(&mut self) -> Client {
        let mut others = self.world.nodes.clone();
        let first = others.iter().position(|node| *node == self.next);
        others.rotate_left(first.expect("a node of the cluster"));
        let mut refused = Vec::new();
        for node in others {
            match self.attempt(node).await {
                Ok(client) => return client,
                Err(why) => refused.push(format!("{node}: {why}")),
            }
        }
        panic!("{} is refused everywhere: {refused:?}", self.id);
    }

    async fn attempt(&mut self, node: SocketAddr) -> Result<Client, String> {
        let dialed = Client::try_dial(node, self.version).await;
        let mut client = dialed.map_err(|e| e.to_string())?;
        client.name.clone_from(&self.id);
        client.patience = ATTEMPT;
        let last = will(format!("{}/{}", self.world.wills, self.id), "fired")
            .qos(1)
            .retain();
        let sent = client.try_send(connect(&self.id).will(last)).await;
        sent.map_err(|e| e.to_string())?;
        match client.next_or_end().await? {
            Some(answer) if answer.kind() == 2 && answer.reason() == 0 => Ok(client),
            Some(answer) => Err(format!("{answer:?}")),
            None => Err("closed".into()),
        }
    }

    /// The connection ended, with or without a word: where to go next.
    fn sent_away(&mut self, goodbye: Option<&Received>) {
        let node = self.world.nodes.iter().position(|node| *node == self.next);
        let around = node.map_or(0, |node| node + 1) % self.world.nodes.len();
        self.next = self.world.nodes[around];
        let Some(goodbye) = goodbye else {
            assert!(!self.version.is_v5(), "{}: closed without a word", self.id);
            return;
        };
        assert_eq!(
            (goodbye.kind(), goodbye.reason()),
            (14, 0x9c),
            "{goodbye:?}"
        );
        let told = goodbye
            .bytes_prop(prop::SERVER_REFERENCE)
            .expect("a reference");
        let told = String::from_utf8(told)
            .expect("text")
            .parse()
            .expect("an address");
        assert!(self.world.nodes.contains(&told), "{told} is another node");
        self.next = told;
    }
}

/// When each number was sent last, and acknowledged.
struct Published {
    sent: Vec<Instant>,
    acked: Vec<Instant>,
}

/// Publishes number after number, each until it is acknowledged.
async fn publisher(mut roamer: Roamer, topic: String) -> Published {
    let (mut sent_at, mut acked) = (Vec::new(), Vec::new());
    let mut client = roamer.connect().await;
    while !roamer.world.stop.load(Ordering::Acquire) {
        let number = acked.len() as u64;
        let id = u16::try_from(number % 60_000 + 1).expect("below 65,536");
        let packet = publish(&topic).qos1(id).payload(number.to_string());
        let began = Instant::now();
        let sent = client.try_send(packet).await;
        let answer = match sent {
            Ok(()) => client.next_or_end().await.expect("an answer in time"),
            // Something was said before the socket closed, or nothing.
            Err(_) => client.next_or_end().await.ok().flatten(),
        };
        match answer {
            Some(answer) if answer.kind() == 4 => {
                assert_eq!(
                    (answer.packet_id(), answer.reason() < 0x80),
                    (id, true),
                    "{answer:?}"
                );
                sent_at.push(began);
                acked.push(Instant::now());
                tokio::time::sleep(PACE).await;
            }
            end => {
                roamer.sent_away(end.as_ref());
                client = roamer.connect().await;
            }
        }
    }
    client.leave().await;
    Published {
        sent: sent_at,
        acked,
    }
}

/// One connection of a subscriber.
struct Stay {
    /// SUBACK came, if it did.
    from: Option<Instant>,
    /// It ended, by the node or at the end of the test.
    to: Instant,
    got: BTreeSet<u64>,
}

/// Takes all messages of a topic, wherever it is, until one past the end of the test's load.
async fn subscriber(mut roamer: Roamer, topic: String) -> Vec<Stay> {
    let mut stays = Vec::new();
    loop {
        let mut client = roamer.connect().await;
        client.patience = Duration::from_secs(30);
        let _ = client.try_send(subscribe(1).to(&topic, 1)).await;
        let (mut from, mut got) = (None, BTreeSet::new());
        let end = loop {
            match client.next_or_end().await.expect("messages go on") {
                Some(answer) if answer.kind() == 9 => {
                    assert_eq!(answer.codes(), [1]);
                    from = Some(Instant::now());
                }
                Some(message) if message.is_publish() => {
                    if client.try_send(puback(message.packet_id())).await.is_err() {
                        continue;
                    }
                    let text = String::from_utf8(message.payload()).expect("text");
                    if text == "end" {
                        break None;
                    }
                    got.insert(text.parse().expect("a number"));
                }
                end => break Some(end),
            }
        };
        let to = Instant::now();
        stays.push(Stay { from, to, got });
        match end {
            None => {
                client.leave().await;
                return stays;
            }
            Some(goodbye) => roamer.sent_away(goodbye.as_ref()),
        }
    }
}

/// Nothing that was acknowledged while a subscriber was connected is missing; and what it had has no gap.
fn judge(name: &str, published: &Published, stays: &[Stay]) {
    for (place, stay) in stays.iter().enumerate() {
        let Some(from) = stay.from else { continue };
        let last = stay.got.last().copied();
        let times = published.sent.iter().zip(&published.acked);
        for (number, (sent, acked)) in (0..).zip(times) {
            let before_others = last.is_some_and(|last| number < last);
            let is_due = *sent > from && (before_others || *acked + SURELY < stay.to);
            assert!(
                !is_due || stay.got.contains(&number),
                "{name}, connection {place}: {number} is missing; the last is {last:?}, its end {:?} after the acknowledgement",
                stay.to.saturating_duration_since(*acked)
            );
        }
    }
}

/// The restart of all nodes, one after the other.
async fn restart_all(mut cluster: Cluster) -> Cluster {
    for node in 0..cluster.nodes.len() {
        cluster = tokio::task::spawn_blocking(move || {
            let broker = &mut cluster.nodes[node];
            assert_eq!(broker.sigterm(), Some(0), "{}", broker.log());
            broker.restart();
            wait_node_ready(broker);
            // Ready means that the next one may go.
            let status = admin::json(broker.admin(), "/api/v1/status").expect("200");
            let groups = status["groups"].as_array().expect("a list");
            assert_eq!(groups.len(), 9, "all replicas are back: {status:#}");
            assert!(
                groups.iter().all(|group| group["leader"].is_string()),
                "{status:#}"
            );
            cluster
        })
        .await
        .expect("no panic");
    }
    cluster
}

#[test]
fn a_rolling_restart_under_load_loses_nothing_and_nobody() {
    block_on(async {
        let cluster = Cluster::start();
        let root = fresh("rolling");
        let world = Arc::new(World {
            nodes: (0..3).map(|node| cluster.mqtt(node)).collect(),
            stop: AtomicBool::new(false),
            wills: format!("{root}/wills"),
        });
        let (mut publishers, mut subscribers) = (Vec::new(), Vec::new());
        for number in 0..PUBLISHERS {
            let topic = format!("{root}/{number}");
            let place = usize::try_from(number).expect("small");
            let versions = [Version::V5, Version::V311];
            let version = versions[place % 2];
            for more in 0..SUBSCRIBERS {
                let roamer = Roamer::new(&world, place + more, versions[(place + more) % 2]);
                subscribers.push((number, tokio::spawn(subscriber(roamer, topic.clone()))));
            }
            publishers.push(tokio::spawn(publisher(
                Roamer::new(&world, place, version),
                topic,
            )));
        }
        // A while before, between and after.
        tokio::time::sleep(SURELY * 2).await;
        let cluster = restart_all(cluster).await;
        tokio::time::sleep(SURELY * 2).await;
        world.stop.store(true, Ordering::Release);
        let mut published = Vec::new();
        for task in publishers {
            published.push(task.await.expect("no panic"));
        }
        let mut last = cluster.client(0, Version::V5).await;
        for number in 0..PUBLISHERS {
            let packet = publish(format!("{root}/{number}")).qos1(1).payload("end");
            last.publish(packet).await;
        }
        let mut moves = 0;
        for (number, task) in subscribers {
            let stays = task.await.expect("no panic");
            moves += stays.len() - 1;
            let place = usize::try_from(number).expect("small");
            judge(&format!("topic {number}"), &published[place], &stays);
        }
        assert!(moves >= 8, "each was sent away at least once: {moves}");
        // A will would be retained.
        last.subscribe(format!("{}/#", world.wills), 1).await;
        assert!(
            last.collect_to_fence().await.is_empty(),
            "a will was published"
        );
        let count: usize = published.iter().map(|one| one.acked.len()).sum();
        eprintln!("{count} messages, {moves} moves of subscribers");
    });
}
