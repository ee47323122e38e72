//! Bad input: the offender is cut off, everyone else goes on, and memory stays bounded.

mod handshakes;
mod many;
mod slow;
mod tls;
mod upgrades;
mod watch;

use std::time::{Duration, Instant};

use flotte_tests::{
    Broker, Client, Launch, Version, block_on, connect, fresh, publish, skip, subscribe, until,
};
use rand::{RngExt as _, SeedableRng as _};

/// A pair of clients that exchange a message now and then, to show that the node goes on.
struct Bystanders {
    publisher: Client,
    subscriber: Client,
    topic: String,
}

impl Bystanders {
    async fn at(node: &Broker) -> Self {
        let topic = fresh("bystander");
        let mut subscriber = Client::connect(node.mqtt(), Version::V5, connect(fresh("b"))).await;
        subscriber.subscribe(&topic, 1).await;
        let publisher = Client::connect(node.mqtt(), Version::V311, connect(fresh("b"))).await;
        Self {
            publisher,
            subscriber,
            topic,
        }
    }

    /// One message there, acknowledged and delivered in time.
    async fn check(&mut self) {
        self.publisher
            .publish(publish(&self.topic).qos1(1).payload("fine"))
            .await;
        self.subscriber.take("fine").await;
    }
}

/// A node whose unfinished connections end after two seconds.
fn impatient() -> Launch {
    Launch::new("hostile").env("FLOTTE_MQTT__CONNECT_TIMEOUT_S", 2)
}

/// What a node may grow by when everyone misbehaves within the limits of the configuration.
const GROWTH_KIB_MAX: u64 = 160 * 1024;

#[test]
fn garbage_is_cut_off() {
    block_on(async {
        let node = impatient().start();
        let mut bystanders = Bystanders::at(&node).await;
        let seed = rand::rng().random();
        eprintln!("seed {seed}");
        let mut random = rand::rngs::StdRng::seed_from_u64(seed);
        for round in 0..200 {
            let mut bytes = vec![0; random.random_range(1..2_000)];
            random.fill(bytes.as_mut_slice());
            let mut client = Client::dial(node.mqtt(), Version::V5).await;
            if round % 2 == 0 {
                client = Client::connect(node.mqtt(), Version::V5, connect(fresh("g"))).await;
            }
            let _ = client.try_send(bytes).await;
            // It may wait for the rest of what it takes for a packet; hanging up settles that.
            drop(client);
        }
        bystanders.check().await;
    });
}

#[test]
fn half_packets_end_with_the_connect_timeout() {
    block_on(async {
        let node = impatient().start();
        let mut bystanders = Bystanders::at(&node).await;
        let halves: [&[u8]; 4] = [
            b"\x10",
            b"\x10\x80",
            b"\x10\x20\x00\x04MQTT",
            b"\x10\x20\x00\x04MQTT\x05\x02",
        ];
        for half in halves {
            let mut client = Client::dial(node.mqtt(), Version::V5).await;
            client.send(half.to_vec()).await;
            let start = Instant::now();
            client.expect_refused(&[0x81, 0x8d]).await;
            assert!(
                start.elapsed() > Duration::from_millis(1_500),
                "cut off too early"
            );
        }
        bystanders.check().await;
    });
}

/// A connected client may stop in the middle of a packet for as long as its keep alive allows.
#[test]
fn half_packets_of_a_connected_client_end_with_its_keep_alive() {
    block_on(async {
        let node = impatient().start();
        let mut client =
            Client::connect(node.mqtt(), Version::V5, connect(fresh("h")).keep_alive(1)).await;
        client.send(b"\x30\x20\x00\x04half".to_vec()).await;
        client.expect_refused(&[0x8d]).await;
    });
}

/// 256 MB announced: refused from the header on, nothing is reserved for it.
#[test]
fn oversize_packets_are_refused_at_the_header() {
    block_on(async {
        let node = impatient().start();
        let mut bystanders = Bystanders::at(&node).await;
        let before = node.resident_kib();
        for version in [Version::V311, Version::V5] {
            let mut client = Client::connect(node.mqtt(), version, connect(fresh("o"))).await;
            client.send([0x30, 0xff, 0xff, 0xff, 0x7f]).await;
            client.expect_refused(&[0x95]).await;
            let mut client = Client::dial(node.mqtt(), version).await;
            client.send([0x10, 0xff, 0xff, 0xff, 0x7f]).await;
            client.expect_refused(&[0x95, 0x81]).await;
        }
        bystanders.check().await;
        let grown = node.resident_kib().saturating_sub(before);
        assert!(
            grown < 32 * 1024,
            "{grown} KiB for packets that were refused"
        );
    });
}

/// A subscriber that stops reading while a flood comes in: its queue is bounded, others get all.
async fn flood_past_a_client_that_never_reads(qos: u8) {
    const MESSAGES: u16 = 2_000;
    let node = impatient().start();
    let topic = fresh("flood");
    let mut deaf = Client::connect(node.mqtt(), Version::V5, connect(fresh("deaf"))).await;
    deaf.subscribe(&topic, qos).await;
    let mut bystanders = Bystanders::at(&node).await;
    let before = node.resident_kib();
    let payload = "x".repeat(128 * 1024);
    let mut publisher = Client::connect(node.mqtt(), Version::V5, connect(fresh("p"))).await;
    publisher.patience = Duration::from_secs(30);
    for id in 1..=MESSAGES {
        publisher
            .publish(publish(&topic).qos1(id).payload(&payload))
            .await;
        if id % 200 == 0 {
            bystanders.check().await;
        }
    }
    let grown = node.resident_kib().saturating_sub(before);
    assert!(
        grown < GROWTH_KIB_MAX,
        "{grown} KiB for one client that does not read ({} MiB sent)",
        MESSAGES / 8
    );
    bystanders.check().await;
    drop(deaf);
}

#[test]
fn client_that_never_reads_is_bounded_at_qos_0() {
    block_on(flood_past_a_client_that_never_reads(0));
}

#[test]
fn client_that_never_reads_is_bounded_at_qos_1() {
    block_on(flood_past_a_client_that_never_reads(1));
}

/// A client that floods with requests and reads none of the answers.
#[test]
fn client_that_never_reads_its_answers_is_bounded() {
    block_on(async {
        let node = impatient().start();
        let mut bystanders = Bystanders::at(&node).await;
        let before = node.resident_kib();
        let mut deaf = Client::connect(node.mqtt(), Version::V5, connect(fresh("deaf"))).await;
        deaf.patience = Duration::from_millis(500);
        let pings = [0xc0, 0].repeat(32 * 1024);
        // 64 MiB of PINGREQ, unless the node stops reading: that is the right answer.
        for _ in 0..1_000 {
            if deaf.try_send(pings.clone()).await.is_err() {
                break;
            }
        }
        bystanders.check().await;
        let grown = node.resident_kib().saturating_sub(before);
        assert!(grown < 32 * 1024, "{grown} KiB of answers nobody reads");
    });
}

/// 10,000 connections that send nothing: all end with the connect timeout, others connect meanwhile.
#[test]
fn silent_connections_end_with_the_connect_timeout() {
    const COUNT: usize = 10_000;
    if let Err(why) = raise_open_files(COUNT as u64 + 2_000) {
        skip!(why);
    }
    block_on(async {
        let node = impatient().start();
        let mut bystanders = Bystanders::at(&node).await;
        let mut silent = Vec::with_capacity(COUNT);
        for number in 0..COUNT {
            silent.push(Client::dial(node.mqtt(), Version::V5).await);
            if number % 2_000 == 0 {
                bystanders.check().await;
            }
        }
        bystanders.check().await;
        let start = Instant::now();
        for client in &mut silent {
            client.patience = Duration::from_secs(20);
            assert_eq!(client.next_or_end().await, Ok(None));
        }
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "closed after {:?}",
            start.elapsed()
        );
        bystanders.check().await;
        drop(silent);
        wait_few_files(&node).await;
    });
}

/// The node has closed its ends too.
async fn wait_few_files(node: &Broker) {
    let path = format!("/proc/{}/fd", node.pid());
    until(
        Duration::from_secs(10),
        "the node gives its sockets back",
        || async {
            let open = std::fs::read_dir(&path)
                .map(Iterator::count)
                .unwrap_or(usize::MAX);
            (open < 500).then_some(())
        },
    )
    .await;
}

/// Raises the limit of open files of this process, which its nodes inherit.
fn raise_open_files(wanted: u64) -> Result<(), String> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    if limit.maximum.is_some_and(|maximum| maximum < wanted) {
        return Err(format!(
            "at most {:?} open files are allowed, {wanted} are needed",
            limit.maximum
        ));
    }
    let raised = Rlimit {
        current: Some(wanted),
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised)
        .map_err(|e| format!("cannot raise the limit of open files: {e}"))
}

/// A topic as deep as the packet allows, beyond `mqtt.max_topic_levels`.
#[test]
fn very_deep_topics_are_refused_or_carried() {
    block_on(async {
        let node = impatient().start();
        let mut bystanders = Bystanders::at(&node).await;
        let deep = "/".repeat(65_535);
        let mut client = Client::connect(node.mqtt(), Version::V5, connect(fresh("deep"))).await;
        let _ = client.try_send(subscribe(1).to(&deep, 0)).await;
        let _ = client.next_or_end().await;
        let mut client = Client::connect(node.mqtt(), Version::V5, connect(fresh("deep"))).await;
        let _ = client.try_send(publish(&deep).qos1(1)).await;
        let _ = client.next_or_end().await;
        bystanders.check().await;
    });
}

/// Many filters in one packet, many packets of filters: memory goes back when the client leaves.
#[test]
fn subscription_churn_leaves_nothing_behind() {
    block_on(async {
        let node = impatient().start();
        let mut bystanders = Bystanders::at(&node).await;
        for round in 0..5 {
            let mut client =
                Client::connect(node.mqtt(), Version::V5, connect(fresh("churn"))).await;
            client.patience = Duration::from_secs(30);
            for packet in 0..10u16 {
                let mut filters = subscribe(packet + 1);
                for number in 0..100 {
                    filters = filters.to(format!("churn/{round}/{packet}/{number}"), 0);
                }
                client.send(filters).await;
            }
            for _ in 0..10 {
                assert_eq!(client.recv_kind(9).await.codes().len(), 100);
            }
            client.leave().await;
        }
        bystanders.check().await;
    });
}
