//! Retained messages in full: expiry by the cluster's time, deletion, limits and what becomes of what they refuse, the rate of
//! delivery.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use flotte_tests::wire::prop;
use flotte_tests::{
    Broker, Client, Cluster, Launch, Publish, Version, admin, block_on, connect, fresh, props,
    publish, until,
};

use crate::common::{on_shared, take};

const QUOTA_EXCEEDED: u8 = 0x97;

/// A retained message of 5.0 that lasts so long.
fn lasting(topic: &str, seconds: u32) -> Publish {
    let expiry = props().u32(prop::MESSAGE_EXPIRY, seconds);
    publish(topic).retain().payload("kept").props(expiry)
}

/// What a new subscriber is sent for a topic, told by a marker that is replayed behind it.
async fn retained(address: std::net::SocketAddr, version: Version, topic: &str) -> Vec<String> {
    let marker = fresh("marker");
    let mut publisher = Client::connect(address, Version::V5, connect(fresh("p"))).await;
    publisher
        .publish(publish(&marker).qos1(1).retain().payload("marker"))
        .await;
    let mut reader = Client::connect(address, version, connect(fresh("r"))).await;
    reader.subscribe(topic, 0).await;
    reader.subscribe(&marker, 0).await;
    let mut found = Vec::new();
    loop {
        let message = reader.recv_publish().await;
        assert!(message.retain(), "{message:?}");
        if message.topic() == marker {
            break;
        }
        found.push(String::from_utf8_lossy(&message.payload()).into_owned());
    }
    publisher.publish(publish(&marker).qos1(2).retain()).await;
    found
}

/// Without a quorum it is neither delivered nor acknowledged, though publisher and subscriber are on one node; with it again it is both.
#[test]
fn a_retained_message_is_delivered_and_acknowledged_only_once_it_is_committed() {
    block_on(async {
        let cluster = Cluster::start();
        let here = cluster.follower();
        let topic = fresh("commit");
        let mut subscriber = cluster.client(here, Version::V311).await;
        subscriber.subscribe(&topic, 1).await;
        let mut publisher = cluster.client(here, Version::V5).await;
        let others = || (0..3).filter(|node| *node != here);
        others().for_each(|node| cluster.nodes[node].pause());
        let message = publish(&topic).qos1(1).retain().payload("late");
        publisher.send(message).await;
        subscriber.expect_silence(Duration::from_millis(300)).await;
        publisher.expect_silence(Duration::from_millis(50)).await;
        others().for_each(|node| cluster.nodes[node].resume());
        subscriber.take("late").await;
        publisher.recv_ack(4, 1).await;
    });
}

/// The remaining time is told, at any node, and past it nobody is sent the message any more.
#[test]
fn a_retained_message_expires_at_every_node() {
    on_shared(|cluster| async move {
        let topic = fresh("brief");
        let mut publisher = cluster.client(0, Version::V5).await;
        publisher.publish(lasting(&topic, 3).qos1(1)).await;
        let began = Instant::now();
        let mut reader = cluster.client(2, Version::V5).await;
        reader.subscribe(&topic, 1).await;
        let message = reader.take("kept").await;
        let left = message.int_prop(prop::MESSAGE_EXPIRY).expect("its rest");
        assert!(left <= 3 && left + 1 >= 3u32.saturating_sub(began.elapsed().as_secs() as u32));
        let gone = || async {
            let found = retained(cluster.mqtt(1), Version::V311, &topic).await;
            found.is_empty().then_some(())
        };
        until(Duration::from_secs(10), "the end of the message", gone).await;
        assert!(began.elapsed() >= Duration::from_millis(2_500), "too soon");
        for node in [0, 2] {
            let found = retained(cluster.mqtt(node), Version::V5, &topic).await;
            assert!(found.is_empty(), "still at node {node}: {found:?}");
        }
    });
}

/// Nobody publishes or subscribes: what has expired still goes.
#[test]
fn expired_messages_are_removed_though_nothing_happens() {
    let node = Launch::new("idle").start();
    block_on(async {
        let mut publisher = Client::connect(node.mqtt(), Version::V5, connect("p")).await;
        publisher.publish(lasting("a", 1).qos1(1)).await;
        publisher.publish(lasting("b", 600).qos1(2)).await;
        let count = || admin::metric(node.admin(), "flotte_retained_messages");
        let left = || async { count().filter(|count| *count == 1.0) };
        until(Duration::from_secs(10), "one message left", left).await;
        assert_eq!(
            admin::metric(node.admin(), "flotte_retained_bytes"),
            Some(5.0),
            "one of topic `b`"
        );
    });
}

/// A message that expires stays so over a restart: its end is a time, not a rest.
#[test]
fn expiry_goes_on_while_the_node_is_down() {
    let mut node = Launch::new("down").start();
    let began = Instant::now();
    block_on(async {
        let mut publisher = Client::connect(node.mqtt(), Version::V5, connect("p")).await;
        publisher.publish(lasting("brief", 2).qos1(1)).await;
        publisher.publish(lasting("long", 600).qos1(2)).await;
    });
    node.kill9();
    std::thread::sleep(Duration::from_secs(3));
    node.restart();
    block_on(async {
        assert!(retained(node.mqtt(), Version::V5, "brief").await.is_empty());
        let mut reader = Client::connect(node.mqtt(), Version::V5, connect("r")).await;
        reader.subscribe("long", 0).await;
        let left = reader.take("kept").await.int_prop(prop::MESSAGE_EXPIRY);
        let left = u64::from(left.expect("its rest"));
        let passed = began.elapsed().as_secs();
        assert!(
            left <= 597 && left + passed + 2 >= 600,
            "{left} left of 600 after {passed}"
        );
    });
}

#[test]
fn deleting_what_is_not_there_succeeds_and_is_passed_on() {
    on_shared(|cluster| async move {
        let topic = fresh("never");
        let mut reader = cluster.client(2, Version::V5).await;
        reader.subscribe(&topic, 1).await;
        let mut publisher = cluster.client(1, Version::V5).await;
        publisher.publish(publish(&topic).qos2(1).retain()).await;
        assert!(!reader.take("").await.retain());
        assert!(
            retained(cluster.mqtt(0), Version::V5, &topic)
                .await
                .is_empty()
        );
    });
}

async fn refused(node: &Broker, packet: Publish, kind: u8) {
    let mut publisher = Client::connect(node.mqtt(), Version::V5, connect(fresh("p"))).await;
    publisher.send(packet).await;
    let answer = publisher.recv_kind(kind).await;
    assert_eq!(answer.reason(), QUOTA_EXCEEDED, "{answer:?}");
}

#[test]
fn past_the_limits_5_0_is_told_and_nothing_changes() {
    let node = Launch::new("full")
        .env("FLOTTE_RETAINED__MAX_MESSAGES", 3)
        .env("FLOTTE_RETAINED__MAX_PAYLOAD", 8)
        .start();
    block_on(async {
        let mut publisher = Client::connect(node.mqtt(), Version::V5, connect("p")).await;
        for topic in ["a", "b"] {
            let kept = publish(topic).qos1(1).retain().payload("kept");
            publisher.publish(kept).await;
        }
        let mut reader = Client::connect(node.mqtt(), Version::V5, connect("r")).await;
        reader.subscribe("#", 0x21).await;
        let large = |topic: &str| publish(topic).retain().payload("nine char");
        refused(&node, large("a").qos1(7), 4).await;
        refused(&node, large("a").qos2(7), 5).await;
        publisher
            .publish(publish("c").qos1(2).retain().payload("kept"))
            .await;
        refused(&node, publish("d").qos1(7).retain().payload("x"), 4).await;
        assert_eq!(reader.take("kept").await.topic(), "c");
        reader.fence().await;
        publisher.publish(publish("c").qos1(3).retain()).await;
        assert_eq!(retained(node.mqtt(), Version::V5, "a").await, ["kept"]);
        let refused = admin::metric(node.admin(), "flotte_retained_refused_total");
        assert_eq!(refused, Some(3.0));
    });
}

/// What cannot be refused in words goes to its subscribers, and the topic does not go on with an older message.
#[test]
fn past_the_limits_others_are_delivered_and_not_retained() {
    let node = Launch::new("full")
        .env("FLOTTE_RETAINED__MAX_PAYLOAD", 8)
        .env("FLOTTE_RETAINED__MAX_BYTES", 64)
        .start();
    block_on(async {
        let mut reader = Client::connect(node.mqtt(), Version::V311, connect("r")).await;
        reader.subscribe("+", 0).await;
        let cases = [
            (Version::V311, 0),
            (Version::V311, 1),
            (Version::V311, 2),
            (Version::V5, 0),
        ];
        for (version, qos) in cases {
            let mut publisher = Client::connect(node.mqtt(), version, connect(fresh("p"))).await;
            let old = publish("t").qos1(1).retain().payload("old");
            publisher.publish(old).await;
            reader.take("old").await;
            let large = publish("t").qos_bits(qos, 2).retain().payload("nine char");
            publisher.publish(large).await;
            reader.take("nine char").await;
            let found = retained(node.mqtt(), Version::V5, "t").await;
            assert!(found.is_empty(), "{version:?} at QoS {qos}: {found:?}");
            // The marker of the reading.
            reader.take("marker").await;
            reader.take("").await;
        }
    });
}

#[test]
fn delivery_has_the_rate_that_is_set() {
    const MESSAGES: u16 = 30;
    let node = Launch::new("slow")
        .env("FLOTTE_RETAINED__DELIVERY_RATE", 20)
        .start();
    block_on(async {
        let mut publisher = Client::connect(node.mqtt(), Version::V5, connect("p")).await;
        for number in 0..MESSAGES {
            let topic = format!("t/{number}");
            let kept = publish(topic).qos1(number + 1).retain().payload("kept");
            publisher.publish(kept).await;
        }
        let mut reader = Client::connect(node.mqtt(), Version::V5, connect("r")).await;
        let began = Instant::now();
        reader.subscribe("t/#", 1).await;
        for _ in 0..MESSAGES {
            reader.take("kept").await;
        }
        // 30 at 20 a second, but for the first page.
        assert!(began.elapsed() >= Duration::from_millis(1_300), "too fast");
    });
}

/// A replay goes page by page with what the session's queue has room for, by number and by bytes.
#[test]
fn a_replay_never_overflows_the_queue_of_its_session() {
    const MESSAGES: u16 = 300;
    let narrow = [
        ("FLOTTE_SESSION__QUEUE_MAX_MESSAGES", 20),
        ("FLOTTE_SESSION__QUEUE_MAX_BYTES", 64 << 10),
    ];
    for ((key, value), bytes) in narrow.into_iter().zip([1, 10 << 10]) {
        let node = Launch::new("narrow").env(key, value).start();
        block_on(async {
            let mut publisher = Client::connect(node.mqtt(), Version::V5, connect("p")).await;
            for number in 1..=MESSAGES {
                let topic = format!("t/{number}");
                let kept = publish(topic).qos1(number).retain();
                publisher.publish(kept.payload(vec![b'x'; bytes])).await;
            }
            for qos in [0, 1] {
                let packet = connect(fresh("r")).props(props().u16(prop::RECEIVE_MAXIMUM, 2));
                let mut reader = Client::connect(node.mqtt(), Version::V5, packet).await;
                reader.subscribe("t/#", qos).await;
                let taken = take(&mut reader, usize::from(MESSAGES)).await;
                let topics: BTreeSet<_> = taken.iter().map(|one| one.topic().to_string()).collect();
                assert_eq!(topics.len(), usize::from(MESSAGES), "{key} at QoS {qos}");
            }
        });
    }
}
