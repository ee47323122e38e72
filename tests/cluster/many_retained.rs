//! Very many retained messages: set through all nodes, replayed while they change, brought to a node that joins under
//! traffic; all nodes alike in the end. With `FLOTTE_LONG=1` there are a million of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flotte_tests::cluster::wait_node_ready;
use flotte_tests::ports::free_address;
use flotte_tests::run::until_blocking;
use flotte_tests::{
    Broker, Client, Cluster, Launch, Version, admin, block_on, connect, fresh, publish,
};
use serde_json::Value;

use crate::common::Stubborn;

/// Publishes under way of one client.
const WINDOW: usize = 500;
/// Clients that set them.
const SETTERS: usize = 6;
/// Until all nodes have applied the last change.
const ALIKE_LIMIT: Duration = Duration::from_secs(60);
/// Until an empty node has them all, of a debug build.
const JOIN_LIMIT: Duration = Duration::from_secs(180);
/// What one of them may cost a node in memory: 100 bytes of payload and about 26 of topic are in it.
const BYTES_EACH_MAX: u64 = 400;
const MARKER: &str = "zz/marker";

fn is_long() -> bool {
    std::env::var("FLOTTE_LONG").is_ok_and(|long| long == "1")
}

fn topic(number: usize) -> String {
    format!("site/{}/device/{}/state", number / 1_000, number % 1_000)
}

fn payload(number: usize, round: usize) -> String {
    format!("{number:>90} {round:<9}")
}

/// Sets the messages of `numbers` at QoS 1 and waits for every PUBACK.
async fn set(mut client: Client, numbers: std::ops::Range<usize>) {
    client.patience = Duration::from_secs(60);
    let all: Vec<usize> = numbers.collect();
    for window in all.chunks(WINDOW) {
        for (id, number) in (1u16..).zip(window) {
            let packet = publish(topic(*number)).qos1(id).retain();
            client.send(packet.payload(payload(*number, 0))).await;
        }
        for (id, _) in (1u16..).zip(window) {
            client.recv_ack(4, id).await;
        }
    }
    client.leave().await;
}

async fn set_all(cluster: &Cluster, count: usize) {
    let share = count.div_ceil(SETTERS);
    let mut setters = Vec::new();
    for place in 0..SETTERS {
        let client = cluster.client(place % 3, Version::V311).await;
        let numbers = (place * share).min(count)..((place + 1) * share).min(count);
        setters.push(tokio::spawn(set(client, numbers)));
    }
    for setter in setters {
        setter.await.expect("all of them were taken");
    }
}

type Model = HashMap<String, String>;

/// Replaces and deletes messages all over the place until it is told to stop; what is retained then.
async fn change(mut client: Client, mut model: Model, stop: Arc<AtomicBool>) -> Model {
    let count = model.len();
    client.patience = Duration::from_secs(60);
    let mut number = 0;
    for round in 1.. {
        if stop.load(Ordering::Acquire) {
            break;
        }
        number = (number + 7_919) % count;
        let name = topic(number);
        let text = match round % 3 {
            0 => String::new(),
            _ => payload(number, round),
        };
        let packet = publish(&name).qos1(1).retain().payload(&text);
        client.publish(packet).await;
        match text.is_empty() {
            true => model.remove(&name),
            false => model.insert(name, text),
        };
    }
    client.leave().await;
    model
}

/// A pair of clients at two nodes that nothing else concerns; the longest that a message took.
async fn traffic(mut publisher: Stubborn, mut reader: Client, stop: Arc<AtomicBool>) -> Duration {
    let mut slowest = Duration::ZERO;
    for number in 0.. {
        if stop.load(Ordering::Acquire) {
            break;
        }
        let begin = Instant::now();
        publisher.publish("pair", number).await;
        reader.take(number.to_string()).await;
        slowest = slowest.max(begin.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    slowest
}

/// What a subscriber knows once it has read everything up to a marker that was retained.
async fn view(client: &mut Client, mut known: Model) -> Model {
    client.patience = Duration::from_secs(60);
    loop {
        let message = client.recv_publish().await;
        client.acknowledge(&message).await;
        if message.topic() == MARKER {
            return known;
        }
        let text = String::from_utf8(message.payload()).expect("text");
        match text.is_empty() {
            true => known.remove(&message.topic()),
            false => known.insert(message.topic(), text),
        };
    }
}

/// All that a node has retained, page by page: what `ctl retained list` shows.
fn listed(node: &Broker) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/api/v1/retained?filter=site/%23&limit=1000{cursor}");
        let page = admin::json(node.admin(), &path).expect("a page");
        for item in page["items"].as_array().expect("items") {
            let name = item["topic"].as_str().expect("a topic").to_owned();
            assert!(found.insert(name, item.clone()).is_none(), "twice: {item}");
        }
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return found,
        }
    }
}

fn retained(node: &Broker) -> usize {
    admin::metric(node.admin(), "flotte_retained_messages").unwrap_or(0.0) as usize
}

fn assert_alike(nodes: &[&Broker], model: &Model) {
    for node in nodes {
        let what = format!("{} has what is retained", node.name());
        until_blocking(ALIKE_LIMIT, &what, || {
            // The marker is one more.
            (retained(node) == model.len() + 1).then_some(())
        });
    }
    let first = listed(nodes[0]);
    assert_eq!(first.len(), model.len());
    assert!(model.keys().all(|name| first.contains_key(name)));
    for node in &nodes[1..] {
        // With publishers and times.
        assert!(listed(node) == first, "{} differs", node.name());
    }
}

/// For a million of them and those that come and go meanwhile.
fn with_room(launch: Launch) -> Launch {
    launch.env("FLOTTE_RETAINED__MAX_MESSAGES", 2_000_000)
}

/// Starts an empty node, and waits until it serves.
async fn join(first: &Broker) -> Broker {
    let launch = with_room(Launch::new("n4"))
        .bind("cluster", free_address())
        .arg("--join")
        .arg(first.cluster().to_string());
    let joined = tokio::task::spawn_blocking(move || {
        let begin = Instant::now();
        let mut node = launch.spawn();
        node.wait_ready_within(JOIN_LIMIT);
        wait_node_ready(&node);
        eprintln!("joined in {:?}", begin.elapsed());
        node
    });
    joined.await.expect("it joined")
}

#[test]
fn very_many_retained_messages_reach_a_subscriber_and_an_empty_node_while_they_change() {
    let count = if is_long() { 1_000_000 } else { 20_000 };
    let cluster = Cluster::start_with(with_room);
    block_on(async {
        let before = cluster.nodes[0].resident_kib();
        let begin = Instant::now();
        set_all(&cluster, count).await;
        eprintln!("{count} set in {:?}", begin.elapsed());
        let grown = cluster.nodes[0].resident_kib().saturating_sub(before) * 1_024;
        let each = grown / count as u64;
        eprintln!("{each} bytes of memory each");
        if is_long() {
            assert!(each <= BYTES_EACH_MAX, "{each} bytes of memory each");
        }
        let mut marker = cluster.client(0, Version::V5).await;
        marker
            .publish(publish(MARKER).qos1(1).retain().payload("end"))
            .await;

        let stop = Arc::new(AtomicBool::new(false));
        let model: Model = (0..count).map(|n| (topic(n), payload(n, 0))).collect();
        let changer = cluster.client(1, Version::V5).await;
        let changing = tokio::spawn(change(changer, model, Arc::clone(&stop)));
        let mut reader = cluster.client(1, Version::V5).await;
        reader.subscribe("pair", 0).await;
        let publisher = Stubborn::connect(cluster.mqtt(0), Version::V311).await;
        let pair = tokio::spawn(traffic(publisher, reader, Arc::clone(&stop)));

        let mut stuck = cluster.client(2, Version::V311).await;
        stuck.subscribe("site/#", 1).await;
        let fourth = join(&cluster.nodes[0]).await;
        let mut late = Client::connect(fourth.mqtt(), Version::V5, connect(fresh("late"))).await;
        late.subscribe("site/#", 1).await;
        late.subscribe(MARKER, 1).await;
        let known = view(&mut late, Model::new()).await;
        stop.store(true, Ordering::Release);
        let model = changing.await.expect("all changes were taken");
        let slowest = pair.await.expect("every message came");
        eprintln!("the slowest message of others took {slowest:?}");
        assert!(
            slowest < Duration::from_secs(5),
            "others waited {slowest:?}"
        );
        // What changed during the replay and after it came live.
        marker.publish(publish(MARKER).qos1(2).payload("end")).await;
        assert!(
            view(&mut late, known).await == model,
            "the subscriber knows something else"
        );
        stuck.cut();
        let nodes: Vec<&Broker> = cluster.nodes.iter().chain([&fourth]).collect();
        assert_alike(&nodes, &model);
    });
}
