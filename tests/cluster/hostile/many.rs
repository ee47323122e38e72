//! Those that send much of what is allowed: aliases, subscriptions, long topics, user properties, connects with one id, and
//! packets in which everything has length zero.

use std::time::Duration;

use flotte_tests::wire::{prop, props, text, varint};
use flotte_tests::{
    Broker, Client, Packet as _, Props, Version, block_on, connect, fresh, publish, subscribe,
    unsubscribe, will,
};

use super::impatient;
use super::watch::Watch;

async fn client_of(node: &Broker, version: Version) -> Client {
    let mut client = Client::dial(node.mqtt(), version).await;
    client.patience = Duration::from_secs(90);
    client.name = fresh("m");
    client.send(connect(&client.name)).await;
    let connack = client.recv_kind(2).await;
    assert_eq!(connack.reason(), 0, "not let in: {connack:?}");
    client.connack = Some(connack);
    client
}

fn alias(number: u16) -> Props {
    props().u16(prop::TOPIC_ALIAS, number)
}

#[test]
fn aliases_out_of_range_or_never_set_are_refused() {
    block_on(async {
        let node = impatient().start();
        for (number, reasons) in [(0, &[0x82, 0x94][..]), (65, &[0x94]), (u16::MAX, &[0x94])] {
            let mut client = client_of(&node, Version::V5).await;
            client.send(publish("a").props(alias(number))).await;
            client.expect_refused(reasons).await;
        }
        let mut client = client_of(&node, Version::V5).await;
        client.send(publish("").props(alias(5))).await;
        client.expect_refused(&[0x82]).await;
    });
}

/// 20,000 topics of up to 60,000 bytes for 64 aliases: the node keeps the last of each.
#[test]
fn aliases_bound_again_and_again_cost_no_more_than_their_maximum() {
    block_on(async {
        let node = impatient().start();
        let watch = Watch::begin(&node).await;
        let mut client = client_of(&node, Version::V5).await;
        for number in 0..20_000u32 {
            let length = if number < 500 { 60_000 } else { 100 };
            let topic = format!("{number}/{}", "x".repeat(length));
            let alias = alias(u16::try_from(number % 64).expect("below 64") + 1);
            client.send(publish(topic).props(alias)).await;
        }
        client.fence().await;
        watch.check_memory("64 aliases for 20,000 topics", 48 * 1024);
        watch.end().await;
    });
}

/// Filters of 128 levels that share nothing from the first level on.
fn deep_filter(number: usize) -> String {
    let mut levels = vec![format!("{number:x}")];
    levels.extend((1..127).map(|level| {
        let is_wild = (number >> (level % 14)) & 1 == 1;
        if is_wild {
            "+".to_owned()
        } else {
            format!("{}", level % 10)
        }
    }));
    levels.push("#".to_owned());
    levels.join("/")
}

/// Subscribes to `count` filters, 200 in a packet, and returns how many were granted.
async fn bomb(client: &mut Client, count: usize, filter: impl Fn(usize) -> String) -> usize {
    const PACKET: usize = 200;
    let mut granted = 0;
    for first in (0..count).step_by(PACKET) {
        let id = u16::try_from(first / PACKET % 60_000).expect("below 60,000") + 1;
        let mut packet = subscribe(id);
        for number in first..count.min(first + PACKET) {
            packet = packet.to(filter(number), 0);
        }
        client.send(packet).await;
        let codes = client.recv_kind(9).await.codes();
        granted += codes.iter().filter(|code| **code < 0x80).count();
    }
    granted
}

#[test]
fn thousands_of_deep_wildcard_filters_are_bounded_and_given_back() {
    let is_long = std::env::var("FLOTTE_LONG").is_ok_and(|long| long == "1");
    let count = if is_long { 10_000 } else { 2_000 };
    block_on(async {
        // What the node frees is looked at, not what glibc keeps of it: by default that keeps more with each large block.
        let node = impatient()
            .env("MALLOC_MMAP_THRESHOLD_", 128 * 1024)
            .start();
        let watch = Watch::begin(&node).await;
        for round in 0..2 {
            let mut attacker = client_of(&node, Version::V5).await;
            assert_eq!(bomb(&mut attacker, count, deep_filter).await, count);
            // 14 KiB for each of them, in an empty node.
            watch.check_memory("filters of 128 levels", count as u64 * 32);
            let peak = watch.grown_kib();
            let mut publisher = client_of(&node, Version::V5).await;
            let topic = deep_filter(0).replace(['+', '#'], "x");
            publisher.publish(publish(topic).qos1(1)).await;
            attacker.recv_publish().await;
            attacker.leave().await;
            publisher.leave().await;
            let what = format!("memory after round {round}");
            watch.wait_released(&what, peak / 2 + 8 * 1024).await;
        }
        watch.end().await;
    });
}

/// Every filter matches the one topic that is published: the most work that 2,000 filters can make.
#[test]
fn filters_that_all_match_do_not_stop_the_node() {
    block_on(async {
        let node = impatient().start();
        let watch = Watch::begin(&node).await;
        let mut attacker = client_of(&node, Version::V5).await;
        let filter = |number: usize| {
            let level = |bit: usize| {
                if number >> (bit % 11) & 1 == 1 {
                    "+"
                } else {
                    "a"
                }
            };
            let levels: Vec<_> = (0..64).map(level).collect();
            levels.join("/")
        };
        assert_eq!(bomb(&mut attacker, 2_000, filter).await, 2_000);
        let topic = vec!["a"; 64].join("/");
        let mut publisher = client_of(&node, Version::V311).await;
        for id in 1..=100 {
            publisher.publish(publish(&topic).qos1(id)).await;
            // Another topic each time, so that no cache helps.
            let other = format!("{}b{id}", &topic[..topic.len() - 1]);
            publisher.publish(publish(other).qos1(1_000 + id)).await;
        }
        // Half of the filters match the others, too.
        for _ in 0..200 {
            assert!(attacker.recv_publish().await.topic().starts_with("a/a/a"));
        }
        watch.end().await;
    });
}

/// One packet with as many filters as fit, and one that takes them back.
#[test]
fn one_packet_with_thousands_of_filters_is_answered_in_full() {
    const COUNT: usize = 20_000;
    block_on(async {
        let node = impatient().start();
        let watch = Watch::begin(&node).await;
        let mut attacker = client_of(&node, Version::V5).await;
        let (mut all, mut back) = (subscribe(1), unsubscribe(2));
        for number in 0..COUNT {
            all = all.to(format!("f/{number}"), 0);
            back = back.from(format!("f/{number}"));
        }
        attacker.send(all).await;
        assert_eq!(attacker.recv_kind(9).await.codes(), vec![0; COUNT]);
        attacker.send(back).await;
        assert_eq!(attacker.recv_kind(11).await.codes(), vec![0; COUNT]);
        watch.check_memory("20,000 filters in one packet", 128 * 1024);
        watch.end().await;
    });
}

#[test]
fn subscriptions_beyond_the_limit_are_refused_one_by_one() {
    const MAX: usize = 100;
    block_on(async {
        let node = impatient()
            .env("FLOTTE_SESSION__SUBSCRIPTIONS_MAX", MAX)
            .start();
        for (version, refusal) in [
            (Version::V31, 0x80),
            (Version::V311, 0x80),
            (Version::V5, 0x97),
        ] {
            let mut client = client_of(&node, version).await;
            let filter = |number| format!("limit/{number}");
            assert_eq!(bomb(&mut client, MAX, filter).await, MAX);
            let packet = subscribe(9)
                .to("limit/0", 1)
                .to("limit/new", 0)
                .to("limit/1", 2);
            client.send(packet).await;
            // One that is there already may change.
            assert_eq!(client.recv_kind(9).await.codes(), [1, refusal, 2]);
            client.send(unsubscribe(10).from("limit/5")).await;
            client.recv_kind(11).await;
            client.send(subscribe(11).to("limit/new", 0)).await;
            assert_eq!(client.recv_kind(9).await.codes(), [0]);
            client.leave().await;
        }
        let refused =
            flotte_tests::admin::metric(node.admin(), "flotte_subscriptions_refused_total");
        assert_eq!(refused, Some(3.0));
    });
}

#[test]
fn topics_and_filters_of_65535_bytes_are_carried() {
    block_on(async {
        let node = impatient().start();
        let watch = Watch::begin(&node).await;
        let topic = "t".repeat(65_535);
        for version in [Version::V311, Version::V5] {
            let mut subscriber = client_of(&node, version).await;
            subscriber.subscribe(&topic, 1).await;
            let mut publisher = client_of(&node, version).await;
            for id in 1..=50 {
                publisher
                    .publish(publish(&topic).qos1(id).payload("x"))
                    .await;
                assert_eq!(subscriber.take("x").await.topic(), topic);
            }
        }
        watch.check_memory("topics of 65,535 bytes", 48 * 1024);
        watch.end().await;
    });
}

#[test]
fn a_thousand_user_properties_are_carried_in_order() {
    block_on(async {
        let node = impatient().start();
        let watch = Watch::begin(&node).await;
        let user = |count: usize| {
            (0..count).fold(props(), |all, number| all.user("name", number.to_string()))
        };
        let mut subscriber = client_of(&node, Version::V5).await;
        subscriber
            .send(subscribe(1).to("user", 1).props(user(1_000)))
            .await;
        subscriber.recv_kind(9).await;
        let mut publisher = client_of(&node, Version::V5).await;
        for id in 1..=30 {
            let message = publish("user").qos1(id).props(user(1_000));
            publisher.publish(message).await;
            let received = subscriber.recv_publish().await;
            subscriber.acknowledge(&received).await;
            let values = received.user_props().into_iter().map(|(_, value)| value);
            assert!(values.eq((0..1_000).map(|number| number.to_string())));
        }
        // As tiny and as many as fit: in memory they are larger than on the wire.
        let tiny = [prop::USER, 0, 0, 0, 0].repeat(200_000);
        let body = [&text("user")[..], &varint(tiny.len()), &tiny].concat();
        for _ in 0..5 {
            let packet = [&[0x30][..], &varint(body.len()), &body].concat();
            publisher.send(packet).await;
            let received = subscriber.recv_publish().await;
            assert_eq!(received.user_props().len(), 200_000);
        }
        watch.check_memory("user properties", 160 * 1024);
        watch.end().await;
    });
}

/// More at once than the broker said it takes, none of them answered yet.
#[test]
fn receive_maximum_is_enforced() {
    block_on(async {
        let node = impatient().env("FLOTTE_MQTT__RECEIVE_MAXIMUM", 10).start();
        let watch = Watch::begin(&node).await;
        let mut client = client_of(&node, Version::V5).await;
        let packets = (1..=11).map(|id| publish("over").qos2(id).encode(Version::V5));
        let bytes: Vec<u8> = packets.flatten().collect();
        client.send(bytes).await;
        let mut last = client.next().await;
        while last.kind() == 5 {
            last = client.next().await;
        }
        assert_eq!((last.kind(), last.reason()), (14, 0x93), "{last:?}");
        client.expect_closed().await;
        watch.end().await;
    });
}

/// One id, again and again, each taking over from the one before.
#[test]
fn connects_with_one_id_leave_one_connection() {
    const COUNT: usize = 1_000;
    block_on(async {
        let node = impatient().start();
        let watch = Watch::begin(&node).await;
        let id = fresh("same");
        let address = node.mqtt();
        let lanes = (0..20).map(|_| {
            let id = id.clone();
            tokio::spawn(async move {
                for number in 0..COUNT / 20 {
                    let version = [Version::V311, Version::V5][number % 2];
                    let Ok(mut client) = Client::try_dial(address, version).await else {
                        continue;
                    };
                    // It may be taken over before it was let in.
                    let _ = client.try_send(connect(&id)).await;
                    let _ = client.next_or_end().await;
                }
            })
        });
        futures::future::join_all(lanes).await;
        let mut last = Client::connect(address, Version::V5, connect(&id)).await;
        last.fence().await;
        watch.check_memory("1,000 connects with one id", 48 * 1024);
        watch.end().await;
    });
}

#[test]
fn everything_of_length_zero_is_taken_where_it_may_be() {
    block_on(async {
        let node = impatient().start();
        let watch = Watch::begin(&node).await;
        for version in [Version::V311, Version::V5] {
            let hello = connect("").username("").password("").will(will("w", ""));
            let mut client = Client::connect(node.mqtt(), version, hello).await;
            client.subscribe("/", 2).await;
            let mut publisher = client_of(&node, version).await;
            publisher.publish(publish("/").qos2(1)).await;
            client.take("").await;
            publisher.publish(publish("/").retain()).await;
            client.take("").await;
            client.leave().await;
        }
        let mut client = client_of(&node, Version::V5).await;
        client.subscribe("zero", 0).await;
        let empty = props()
            .text(prop::CONTENT_TYPE, "")
            .text(prop::CORRELATION_DATA, "")
            .user("", "");
        client.send(publish("zero").props(empty)).await;
        let received = client.recv_publish().await;
        assert_eq!(received.bytes_prop(prop::CONTENT_TYPE), Some(Vec::new()));
        assert_eq!(received.user_props(), [(String::new(), String::new())]);
        for packet in [
            vec![0x10, 0],
            vec![0x30, 0],
            vec![0x82, 0],
            vec![0xa2, 0],
            vec![0x40, 0],
        ] {
            let mut client = Client::connect(node.mqtt(), Version::V5, connect(fresh("z"))).await;
            client.send(packet).await;
            client.expect_refused(&[0x81, 0x82]).await;
        }
        watch.end().await;
    });
}
