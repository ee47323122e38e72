//! Large retained messages: they go into the log in parts, between those of others; all nodes have all of one or nothing.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use flotte_tests::run::until_blocking;
use flotte_tests::{
    Broker, Client, Cluster, Launch, Version, admin, block_on, connect, fresh, publish,
};

use super::wire::{Raw, noise};
use super::{MIB, Pair, forget_peak, is_long, memory, with_large_packets};

/// For what takes as long as the machine takes.
const LIMIT: Duration = Duration::from_secs(60);
/// What a node may need beside the message: the log on its way.
const BESIDE: usize = 16 * MIB;

/// More than the log may have grown before a snapshot is written: that is due when a part of it has come.
fn bytes() -> usize {
    if is_long() { 200 * MIB } else { 48 * MIB }
}

fn gauge(node: &Broker, name: &str) -> Option<f64> {
    admin::metric(node.admin(), name)
}

/// Waits until a node knows of so many messages of which parts have come.
fn wait_coming(node: &Broker, count: f64) {
    until_blocking(LIMIT, "parts of retained messages", || {
        (gauge(node, "flotte_retained_coming_messages")? == count).then_some(())
    });
}

/// A late subscriber at each node gets exactly this.
fn is_retained_everywhere(cluster: &Cluster, topic: &str, payload: &[u8]) {
    for place in 0..3 {
        let mut late = Raw::connect(cluster.mqtt(place));
        late.subscribe(topic);
        assert!(!late.take(payload), "sent twice");
    }
}

#[test]
fn a_large_retained_message_is_kept_by_all_while_others_go_on_and_memory_is_bounded() {
    let mut cluster = Cluster::start_with(with_large_packets);
    let (topic, payload) = (fresh("retained"), noise(bytes(), 6));
    let mut publisher = Raw::connect(cluster.mqtt(0));
    let at_rest = Pair::at_rest(&cluster, 1, 2);
    let pair = Pair::start(&cluster, 1, 2);
    let nodes = cluster.nodes.iter();
    let before: Vec<usize> = nodes.map(|node| memory(node, "VmRSS:")).collect();
    cluster.nodes.iter().for_each(forget_peak);
    let begin = Instant::now();
    publisher
        .retain(&topic, 7, &payload)
        .expect("the node reads");
    publisher.recv_puback(7);
    eprintln!("{} bytes retained in {:?}", bytes(), begin.elapsed());
    pair.stop_undisturbed(at_rest, "beside a large retained message");
    for (node, before) in cluster.nodes.iter().zip(&before) {
        let grown = memory(node, "VmHWM:").saturating_sub(*before);
        let stays = memory(node, "VmRSS:").saturating_sub(*before);
        let times = |grown: usize| grown as f64 / bytes() as f64;
        eprintln!(
            "{} grew by {:.2} times the message, now {:.2}",
            node.name(),
            times(grown),
            times(stays)
        );
        assert!(grown < 3 * bytes(), "{} grew by {grown}", node.name());
        assert!(stays < bytes() + BESIDE, "{} keeps {stays}", node.name());
        assert_eq!(gauge(node, "flotte_retained_coming_messages"), Some(0.0));
    }
    is_retained_everywhere(&cluster, &topic, &payload);
    cluster.nodes.iter_mut().for_each(Broker::kill9);
    cluster.nodes.iter_mut().for_each(Broker::respawn);
    cluster.wait_ready();
    is_retained_everywhere(&cluster, &topic, &payload);
}

/// The publisher's node dies when the others have a part of it.
#[test]
fn half_of_a_large_retained_message_is_nothing() {
    let mut cluster = Cluster::start_with(with_large_packets);
    let (topic, payload) = (fresh("half"), noise(64 * MIB, 7));
    let mut first = Raw::connect(cluster.mqtt(1));
    first
        .retain(&topic, 1, b"before it")
        .expect("the node reads");
    first.recv_puback(1);
    let others = [1, 2];
    let before = others.map(|place| memory(&cluster.nodes[place], "VmRSS:"));
    let mut publisher = Raw::connect(cluster.mqtt(0));
    let (sent, sent_topic) = (Arc::clone(&payload), topic.clone());
    let sending = thread::spawn(move || publisher.retain(&sent_topic, 1, &sent));
    wait_coming(&cluster.nodes[1], 1.0);
    until_blocking(LIMIT, "much of it", || {
        let mut grown = others.iter().zip(before);
        let has_much = |(place, before): (&usize, usize)| {
            memory(&cluster.nodes[*place], "VmRSS:") > before + 2 * BESIDE
        };
        grown.all(has_much).then_some(())
    });
    assert_eq!(
        gauge(&cluster.nodes[1], "flotte_retained_coming_messages"),
        Some(1.0),
        "it is under way"
    );
    cluster.nodes[0].kill9();
    let _ = sending.join().expect("it wrote, or could not");
    cluster.wait_state(1, 0, "down");
    for (place, before) in others.into_iter().zip(before) {
        let node = &cluster.nodes[place];
        wait_coming(node, 0.0);
        until_blocking(LIMIT, "memory that is given back", || {
            (memory(node, "VmRSS:") < before + BESIDE).then_some(())
        });
        let mut late = Raw::connect(node.mqtt());
        late.subscribe(&topic);
        assert!(!late.take(b"before it"), "sent twice");
    }
    cluster.nodes[0].respawn();
    cluster.wait_ready();
    is_retained_everywhere(&cluster, &topic, b"before it");
    assert_eq!(
        gauge(&cluster.nodes[0], "flotte_retained_coming_messages"),
        Some(0.0)
    );
}

/// Whatever goes in parts and whatever does not.
#[test]
fn the_last_of_one_publisher_is_what_stays() {
    let cluster = Cluster::start_with(with_large_packets);
    let large = noise(3 * MIB, 8);
    for payloads in [[&large[..], b"small"], [b"small", &large[..]]] {
        let topic = fresh("last");
        let mut live = Raw::connect(cluster.mqtt(1));
        live.subscribe(&topic);
        let mut publisher = Raw::connect(cluster.mqtt(0));
        for (packet_id, payload) in (1..).zip(payloads) {
            publisher
                .retain(&topic, packet_id, payload)
                .expect("the node reads");
        }
        (1..=2).for_each(|packet_id| publisher.recv_puback(packet_id));
        for payload in payloads {
            assert!(!live.take(payload), "sent twice");
        }
        is_retained_everywhere(&cluster, &topic, payloads[1]);
    }
}

/// As small ones are: with the same word, and before any of it goes into the log.
#[test]
fn a_large_retained_message_for_which_there_is_no_room_is_refused_at_once() {
    let launch = Launch::new("full").env("FLOTTE_RETAINED__MAX_BYTES", 5 * MIB);
    let node = with_large_packets(launch).start();
    let committed = || gauge(&node, "flotte_raft_commit_index{group=\"0\"}").expect("a metric");
    block_on(async {
        let mut publisher = Client::connect(node.mqtt(), Version::V5, connect("p")).await;
        let large = |topic: &str| publish(topic).retain().payload(vec![b'x'; 3 * MIB]);
        publisher.publish(large("a").qos1(1)).await;
        let before = committed();
        publisher.send(large("b").qos1(2)).await;
        let answer = publisher.recv_kind(4).await;
        assert_eq!(answer.reason(), 0x97, "{answer:?}");
        assert!(committed() < before + 3.0, "parts of it were sent");
        // In place of the former there is room, and where that is gone.
        publisher.publish(large("a").qos1(3)).await;
        publisher.publish(publish("a").qos1(4).retain()).await;
        publisher.publish(large("b").qos1(5)).await;
    });
}
