//! Limits: how many clients, how often they connect, how fast they publish, how much memory. Who is within them notices
//! nothing, and nothing that was taken is dropped.

use std::path::Path;
use std::time::{Duration, Instant};

use flotte_tests::broker::fresh_dir;
use flotte_tests::{
    Broker, Client, Launch, Version, admin, block_on, connect, fresh, publish, until,
};

const BUSY: u8 = 0x89;
const BANNED: u8 = 0x8a;
const QUOTA_EXCEEDED: u8 = 0x97;
const RATE_EXCEEDED: u8 = 0x9f;

async fn client(node: &Broker) -> Client {
    Client::connect(node.mqtt(), Version::V5, connect(fresh("c"))).await
}

/// What CONNACK says, or none where the connection ends without.
async fn answer(node: &Broker, version: Version, id: &str) -> (Option<u8>, Client) {
    let mut client = Client::dial(node.mqtt(), version).await;
    client.send(connect(id)).await;
    let packet = client.next_or_end().await.expect("an answer, or the end");
    (packet.map(|packet| packet.reason()), client)
}

/// A client of this version is refused with this code, and the connection ends.
async fn is_refused(node: &Broker, version: Version, id: &str, code: u8) {
    let (reason, mut client) = answer(node, version, id).await;
    assert_eq!(reason, Some(code), "{version:?}");
    client.expect_closed().await;
}

async fn becomes_welcome(node: &Broker, what: &str) {
    let welcome = || async {
        let (reason, _) = answer(node, Version::V5, &fresh("c")).await;
        (reason == Some(0)).then_some(())
    };
    until(Duration::from_secs(10), what, welcome).await;
}

fn refusals(node: &Broker, result: &str) -> f64 {
    let series = format!("flotte_connects_total{{result=\"{result}\"}}");
    admin::metric(node.admin(), &series).unwrap_or_default()
}

#[test]
fn one_client_too_many_is_told_so() {
    let node = Launch::new("few")
        .env("FLOTTE_LIMITS__MAX_CONNECTIONS", 2)
        .start();
    block_on(async {
        let (_first, second) = (client(&node).await, client(&node).await);
        is_refused(&node, Version::V5, "third", QUOTA_EXCEEDED).await;
        is_refused(&node, Version::V311, "third", 3).await;
        assert_eq!(refusals(&node, "too_many"), 2.0);
        // Those that are refused take the place of nobody, even if they never say who they are.
        let mut silent = Vec::new();
        for _ in 0..20 {
            silent.push(Client::dial(node.mqtt(), Version::V5).await);
        }
        // It comes behind them.
        is_refused(&node, Version::V5, "third", QUOTA_EXCEEDED).await;
        second.leave().await;
        becomes_welcome(&node, "a place").await;
    });
}

#[test]
fn clients_past_the_rate_are_told_so() {
    let node = Launch::new("rate")
        .env("FLOTTE_LIMITS__CONNECT_RATE", 5)
        .start();
    block_on(async {
        let (mut taken, mut refused) = (0, 0);
        for _ in 0..30 {
            let (reason, _) = answer(&node, Version::V5, &fresh("c")).await;
            match reason {
                Some(0) => taken += 1,
                Some(RATE_EXCEEDED) => refused += 1,
                other => panic!("neither taken nor refused: {other:02x?}"),
            }
        }
        assert!(taken >= 5 && refused > 0, "{taken} {refused}");
        assert_eq!(refusals(&node, "rate"), f64::from(refused));
        becomes_welcome(&node, "the next second").await;
    });
}

#[test]
fn who_publishes_too_fast_is_read_slower_and_loses_nothing() {
    const MESSAGES: u16 = 60;
    let node = Launch::new("paced")
        .env("FLOTTE_LIMITS__PUBLISH_RATE", 20)
        .start();
    block_on(async {
        let mut reader = client(&node).await;
        reader.subscribe("fast", 1).await;
        let mut fast = client(&node).await;
        let began = Instant::now();
        for id in 1..=MESSAGES {
            fast.send(publish("fast").qos1(id).payload(id.to_string()))
                .await;
        }
        let mut other = client(&node).await;
        other.publish(publish("other").qos1(1)).await;
        assert!(began.elapsed() < Duration::from_secs(2), "others wait too");
        for id in 1..=MESSAGES {
            fast.recv_ack(4, id).await;
        }
        // 20 at once, and 40 at 20 a second.
        assert!(began.elapsed() >= Duration::from_millis(1_800), "too fast");
        assert!(began.elapsed() < Duration::from_secs(10), "too slow");
        for id in 1..=MESSAGES {
            reader.take(id.to_string()).await;
        }
        let held = admin::metric(node.admin(), "flotte_publishes_held_total{reason=\"rate\"}");
        assert!(held > Some(0.0), "{held:?}");
        fast.fence().await;
    });
}

#[test]
fn who_publishes_too_much_is_read_slower() {
    let node = Launch::new("paced")
        .env("FLOTTE_LIMITS__PUBLISH_BYTES_RATE", "10 KiB")
        .start();
    block_on(async {
        let mut large = client(&node).await;
        let began = Instant::now();
        let payload = vec![b'x'; 30 << 10];
        large.publish(publish("a").qos1(1).payload(&payload)).await;
        assert!(began.elapsed() < Duration::from_secs(2), "one is taken");
        large.publish(publish("a").qos1(2).payload("small")).await;
        assert!(began.elapsed() >= Duration::from_millis(1_900), "too fast");
    });
}

#[test]
fn who_connects_again_and_again_is_sent_away_for_a_while() {
    let node = Launch::new("flapping")
        .env("FLOTTE_LIMITS__FLAPPING__MAX_CONNECTS", 3)
        .env("FLOTTE_LIMITS__FLAPPING__BAN_S", 2)
        .start();
    block_on(async {
        for _ in 0..3 {
            let (reason, client) = answer(&node, Version::V5, "restless").await;
            assert_eq!(reason, Some(0));
            client.leave().await;
        }
        is_refused(&node, Version::V5, "restless", BANNED).await;
        is_refused(&node, Version::V311, "restless", 5).await;
        assert_eq!(refusals(&node, "flapping"), 2.0);
        let (reason, _) = answer(&node, Version::V5, "calm").await;
        assert_eq!(reason, Some(0));
        let forgiven = || async {
            let (reason, _) = answer(&node, Version::V5, "restless").await;
            (reason == Some(0)).then_some(())
        };
        until(Duration::from_secs(10), "the end of the ban", forgiven).await;
    });
}

/// Puts a memory mark in force, or none, and waits until the node says whether it is above.
async fn set_memory_mark(node: &Broker, file: &Path, mark: &str, above: f64) {
    std::fs::write(file, mark).expect("the file can be written");
    node.sighup();
    let seen = || async {
        let now = admin::metric(node.admin(), "flotte_memory_above_high_water");
        (now == Some(above)).then_some(())
    };
    until(Duration::from_secs(10), "the mark in the metrics", seen).await;
}

#[test]
fn short_of_memory_publishers_wait_and_others_go_on() {
    let file = fresh_dir("memory").join("flotte.toml");
    std::fs::write(&file, "").expect("the file can be written");
    let node = Launch::new("memory")
        .arg("--config")
        .arg(file.to_string_lossy())
        .start();
    block_on(async {
        let mut reader = client(&node).await;
        reader.subscribe("a", 1).await;
        let mut publisher = client(&node).await;
        let mark = "[limits]\nmemory_high_water = \"1 MiB\"\n";
        set_memory_mark(&node, &file, mark, 1.0).await;
        let began = Instant::now();
        for id in 1..=3 {
            publisher.publish(publish("a").qos1(id).payload("x")).await;
            reader.take("x").await;
            reader.fence().await;
        }
        assert!(began.elapsed() >= Duration::from_millis(1_900), "too fast");
        is_refused(&node, Version::V5, "new", BUSY).await;
        is_refused(&node, Version::V311, "new", 3).await;
        set_memory_mark(&node, &file, "", 0.0).await;
        becomes_welcome(&node, "room").await;
        for id in 4..=20 {
            publisher.publish(publish("a").qos1(id).payload("x")).await;
            reader.take("x").await;
        }
    });
}
