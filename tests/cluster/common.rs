//! The cluster that harmless tests share, and steps that several tests take.

use std::future::Future;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use flotte_tests::broker::binary;
use flotte_tests::packets::Connect;
use flotte_tests::wire::prop;
use flotte_tests::{Client, Cluster, Received, Version, connect, fresh, props, publish, until};

/// Versions whose clients differ in what they see of a cluster.
pub const VERSIONS: [Version; 2] = [Version::V311, Version::V5];

static SHARED: OnceLock<Option<Cluster>> = OnceLock::new();

/// Runs a test on the shared cluster; on failure the logs of its nodes are printed.
pub fn on_shared<F, Fut>(body: F)
where
    F: FnOnce(&'static Cluster) -> Fut,
    Fut: Future<Output = ()>,
{
    on(&SHARED, Cluster::start, body);
}

/// As [`on_shared`], on a cluster that other tests share.
pub fn on<F, Fut>(cluster: &'static OnceLock<Option<Cluster>>, start: fn() -> Cluster, body: F)
where
    F: FnOnce(&'static Cluster) -> Fut,
    Fut: Future<Output = ()>,
{
    let started = cluster.get_or_init(|| catch_unwind(start).ok());
    let cluster = started
        .as_ref()
        .expect("the cluster did not start: see the first failure");
    let outcome = catch_unwind(AssertUnwindSafe(|| flotte_tests::block_on(body(cluster))));
    if let Err(panic) = outcome {
        cluster
            .nodes
            .iter()
            .for_each(|node| eprintln!("{}", node.log()));
        resume_unwind(panic);
    }
}

/// A CONNECT of a session that outlives its connection.
pub fn durable(version: Version, id: &str) -> Connect {
    let packet = connect(id).resume();
    if version.is_v5() {
        packet.props(props().u32(prop::SESSION_EXPIRY, 300))
    } else {
        packet
    }
}

/// Takes messages, acknowledging each, until there are `count`.
pub async fn take(client: &mut Client, count: usize) -> Vec<Received> {
    let mut taken = Vec::with_capacity(count);
    for _ in 0..count {
        let message = client.recv_publish().await;
        client.acknowledge(&message).await;
        taken.push(message);
    }
    taken
}

/// The payloads as numbers.
pub fn numbers(messages: &[Received]) -> Vec<u64> {
    let number = |message: &Received| {
        let text = String::from_utf8(message.payload()).expect("the payload is text");
        text.parse().expect("the payload is a number")
    };
    messages.iter().map(number).collect()
}

/// Publishes numbers at QoS 1, a window of them under way, and waits for every PUBACK.
pub async fn publish_numbers(client: &mut Client, topic: &str, numbers: std::ops::Range<u64>) {
    const WINDOW: usize = 50;
    let all: Vec<_> = numbers.collect();
    for window in all.chunks(WINDOW) {
        for number in window {
            let id = u16::try_from(number % 60_000 + 1).expect("below 65,536");
            client
                .send(publish(topic).qos1(id).payload(number.to_string()))
                .await;
        }
        for number in window {
            let id = u16::try_from(number % 60_000 + 1).expect("below 65,536");
            client.recv_ack(4, id).await;
        }
    }
}

/// Connects anew until the node accepts, as a real client would.
pub async fn reconnect(address: std::net::SocketAddr, version: Version, packet: Connect) -> Client {
    let what = format!("a connection to {address}");
    until(Duration::from_secs(30), &what, || {
        let packet = packet.clone();
        async move {
            let mut client = Client::try_dial(address, version).await.ok()?;
            client.name = packet.id();
            client.try_send(packet).await.ok()?;
            let answer = client.next_or_end().await.ok()??;
            if answer.kind() != 2 || answer.reason() != 0 {
                return None;
            }
            client.connack = Some(answer);
            Some(client)
        }
    })
    .await
}

/// A publisher that goes on through failures: each message is repeated on a new connection until it
/// was acknowledged, so every number arrives at least once.
pub struct Stubborn {
    address: std::net::SocketAddr,
    version: Version,
    client: Client,
    /// The longest time a message took, reconnects included.
    pub slowest: Duration,
}

impl Stubborn {
    pub async fn connect(address: std::net::SocketAddr, version: Version) -> Self {
        let client = reconnect(address, version, connect(fresh("p"))).await;
        Self {
            address,
            version,
            client,
            slowest: Duration::ZERO,
        }
    }

    pub async fn publish(&mut self, topic: &str, number: u64) {
        let start = Instant::now();
        while !self.try_publish(topic, number).await {
            assert!(
                start.elapsed() < Duration::from_secs(30),
                "{number} was never acknowledged"
            );
            self.client = reconnect(self.address, self.version, connect(fresh("p"))).await;
        }
        self.slowest = self.slowest.max(start.elapsed());
    }

    async fn try_publish(&mut self, topic: &str, number: u64) -> bool {
        // The broker gives up on a publisher after 10 s; until then silence is no answer.
        self.client.patience = Duration::from_secs(12);
        let packet = publish(topic).qos1(1).payload(number.to_string());
        if self.client.try_send(packet).await.is_err() {
            return false;
        }
        matches!(self.client.next_or_end().await, Ok(Some(answer)) if answer.kind() == 4 && answer.reason() < 0x80)
    }
}

/// Takes messages until `last` came, and demands that every number from 0 on came at least once.
pub async fn take_all_numbers(client: &mut Client, last: u64) -> Vec<u64> {
    let mut seen = Vec::new();
    while !seen.contains(&last) {
        let message = client.recv_publish().await;
        client.acknowledge(&message).await;
        seen.extend(numbers(&[message]));
    }
    for number in 0..=last {
        assert!(
            seen.contains(&number),
            "{number} of {last} never came: {seen:?}"
        );
    }
    seen
}

/// Output, both kinds, and exit code of `flotte ctl`, asking the admin port at this address.
pub fn ctl(admin: SocketAddr, arguments: &[&str]) -> (String, Option<i32>) {
    let url = format!("http://{admin}");
    let run = Command::new(binary())
        .args(["ctl", "--url", &url])
        .args(arguments)
        .output();
    let run = run.expect("it runs");
    let text = [run.stdout, run.stderr].concat();
    (String::from_utf8(text).expect("text"), run.status.code())
}
