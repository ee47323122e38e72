//! SUBSCRIBE, UNSUBSCRIBE and their answers.

use flotte_tests::wire::prop;
use flotte_tests::{
    Packet, fresh, option, props, puback, pubcomp, publish, pubrec, pubrel, suback, subscribe,
    unsuback, unsubscribe,
};

use crate::target::Target;

/// Codes of UNSUBACK that say a filter was there, and that it was not.
const REMOVED: u8 = 0;
const NOT_THERE: u8 = 0x11;

async fn refused(t: &Target, packet: impl Packet, reasons: &[u8]) {
    let mut client = t.client().await;
    client.send(packet).await;
    client.expect_refused(reasons).await;
}

pub async fn empty_subscribe_ends_the_connection(t: Target) {
    refused(&t, subscribe(1), &[0x81, 0x82]).await;
}

pub async fn empty_unsubscribe_ends_the_connection(t: Target) {
    refused(&t, unsubscribe(1), &[0x81, 0x82]).await;
}

/// Upper bits, and QoS 3, in 3.x; in 5.0 the two reserved bits, QoS 3 and retain handling 3.
pub async fn reserved_option_bits_end_the_connection(t: Target) {
    let wrong: &[u8] = if t.is_v5() {
        &[0x40, 0x80, 0x03, 0x30]
    } else {
        &[0x04, 0x10, 0x80, 0x03]
    };
    for options in wrong {
        refused(&t, subscribe(1).to("a", *options), &[0x81, 0x82]).await;
    }
}

pub async fn every_subscribe_gets_a_suback(t: Target) {
    let root = fresh("s");
    let mut client = t.client().await;
    for id in 1..=5 {
        client
            .send(subscribe(id).to(format!("{root}/{id}"), 0))
            .await;
    }
    for _ in 1..=5 {
        assert_eq!(client.recv_kind(9).await.codes(), [0]);
    }
    client.fence().await;
}

pub async fn suback_has_the_id_of_its_subscribe(t: Target) {
    let root = fresh("s");
    let mut client = t.client().await;
    for id in [300, 1, 65_535] {
        client
            .send(subscribe(id).to(format!("{root}/{id}"), 1))
            .await;
        client.recv(suback(id, &[1])).await;
    }
}

/// The same filter again replaces the subscription: the QoS is the new one and the copy is one.
pub async fn same_filter_replaces_the_subscription(t: Target) {
    let topic = fresh("s");
    let mut client = t.client().await;
    for qos in [2, 0, 1] {
        client.subscribe(&topic, qos).await;
        t.publish_from_elsewhere(publish(&topic).qos2(1).payload("x"))
            .await;
        assert_eq!(client.take("x").await.qos(), qos);
        client.fence().await;
    }
}

/// The new subscription identifier takes the place of the old one.
pub async fn same_filter_replaces_options_and_identifier(t: Target) {
    let topic = fresh("s");
    let mut client = t.client().await;
    for (id, number) in [(1, 11), (2, 22)] {
        let with_number = props().varint(prop::SUBSCRIPTION_ID, number);
        client
            .send(subscribe(id).to(&topic, 0).props(with_number.clone()))
            .await;
        client.recv(suback(id, &[0])).await;
        t.publish_from_elsewhere(publish(&topic).payload("x")).await;
        client
            .recv(publish(&topic).props(with_number).payload("x"))
            .await;
        client.fence().await;
    }
    client.send(subscribe(3).to(&topic, option::NO_LOCAL)).await;
    client.recv(suback(3, &[0])).await;
    client.send(publish(&topic).qos1(9)).await;
    client.recv_ack(4, 9).await;
    client.fence().await;
}

pub async fn many_filters_yield_one_suback(t: Target) {
    let root = fresh("s");
    let mut client = t.client().await;
    let mut packet = subscribe(7);
    for (name, qos) in [("a", 2), ("b", 0), ("c", 1)] {
        packet = packet.to(format!("{root}/{name}"), qos);
    }
    client.send(packet).await;
    client.recv(suback(7, &[2, 0, 1])).await;
    for (name, qos) in [("a", 2), ("b", 0), ("c", 1)] {
        t.publish_from_elsewhere(publish(format!("{root}/{name}")).qos2(1).payload(name))
            .await;
        assert_eq!(client.take(name).await.qos(), qos);
    }
    client.fence().await;
}

/// The same filter twice in one packet: handled in sequence, so the second stands.
pub async fn filters_of_a_packet_are_handled_in_sequence(t: Target) {
    let topic = fresh("s");
    let mut client = t.client().await;
    client.send(subscribe(7).to(&topic, 0).to(&topic, 1)).await;
    client.recv(suback(7, &[0, 1])).await;
    t.publish_from_elsewhere(publish(&topic).qos2(1).payload("x"))
        .await;
    assert_eq!(client.take("x").await.qos(), 1);
    client.fence().await;
}

pub async fn suback_has_a_code_for_each_filter(t: Target) {
    let root = fresh("s");
    for count in [1, 2, 10] {
        let mut packet = subscribe(count);
        for number in 0..count {
            packet = packet.to(format!("{root}/{number}"), 1);
        }
        let mut client = t.client().await;
        client.send(packet).await;
        client
            .recv(suback(count, &vec![1; usize::from(count)]))
            .await;
    }
}

/// A code is the QoS granted, and what was granted is what comes.
pub async fn suback_code_is_the_granted_qos(t: Target) {
    let topic = fresh("s");
    for qos in 0..3 {
        let mut client = t.client().await;
        client.send(subscribe(1).to(&topic, qos)).await;
        let granted = client.recv_kind(9).await.codes();
        assert_eq!(granted, [qos]);
        t.publish_from_elsewhere(publish(&topic).qos2(1).payload("x"))
            .await;
        assert_eq!(client.take("x").await.qos(), qos);
    }
}

pub async fn codes_stand_in_the_order_of_the_filters(t: Target) {
    let root = fresh("s");
    let mut client = t.client().await;
    let mut packet = subscribe(7);
    let qos = [1, 0, 2, 2, 0, 1, 0];
    for (number, qos) in qos.iter().enumerate() {
        packet = packet.to(format!("{root}/{number}"), *qos);
    }
    client.send(packet).await;
    client.recv(suback(7, &qos)).await;
}

/// Good filters and a bad one: each code is one of the table.
pub async fn only_codes_of_the_table_stand_in_suback(t: Target) {
    let table: &[u8] = if t.is_v5() {
        &[
            0, 1, 2, 0x80, 0x83, 0x87, 0x8f, 0x91, 0x97, 0x9e, 0xa1, 0xa2,
        ]
    } else {
        &[0, 1, 2, 0x80]
    };
    let root = fresh("s");
    let mut client = t.client().await;
    client
        .send(
            subscribe(7)
                .to(format!("{root}/#"), 1)
                .to("$share/nogroup", 0)
                .to(&root, 2),
        )
        .await;
    match client.next_or_end().await.expect("an answer or the end") {
        Some(answer) if answer.kind() == 9 => {
            assert!(
                answer.codes().iter().all(|code| table.contains(code)),
                "{answer:?}"
            );
        }
        Some(answer) => assert!(t.is_v5() && answer.kind() == 14, "{answer:?}"),
        None => {}
    }
}

/// The lower of both: every pair of publish QoS and granted QoS.
pub async fn delivery_is_at_the_lower_qos(t: Target) {
    let topic = fresh("s");
    for granted in 0..3 {
        let mut client = t.subscriber(&topic, granted).await;
        for qos in 0..3 {
            t.publish_from_elsewhere(publish(&topic).qos_bits(qos, 1).payload("x"))
                .await;
            assert_eq!(client.take("x").await.qos(), qos.min(granted));
        }
    }
}

/// No wildcard is expanded: only the very same filter is removed.
pub async fn filters_are_compared_literally(t: Target) {
    let root = fresh("u");
    let mut client = t.client().await;
    client.subscribe(format!("{root}/a"), 0).await;
    client.subscribe(format!("{root}/+/b"), 0).await;
    for (id, filter) in [(1, "/#"), (2, "/+"), (3, "/A"), (4, "/x/b"), (5, "/a/")] {
        client
            .send(unsubscribe(id).from(format!("{root}{filter}")))
            .await;
        client.recv(unsuback(id, &[NOT_THERE])).await;
    }
    t.publish_from_elsewhere(publish(format!("{root}/a")).payload("1"))
        .await;
    client.take("1").await;
    client
        .send(unsubscribe(6).from(format!("{root}/+/b")))
        .await;
    client.recv(unsuback(6, &[REMOVED])).await;
    t.publish_from_elsewhere(publish(format!("{root}/x/b")).payload("2"))
        .await;
    client.fence().await;
}

pub async fn nothing_new_comes_after_unsubscribe(t: Target) {
    let topic = fresh("u");
    let mut client = t.subscriber(&topic, 1).await;
    t.publish_from_elsewhere(publish(&topic).qos1(1).payload("before"))
        .await;
    client.take("before").await;
    client.send(unsubscribe(9).from(&topic)).await;
    client.recv(unsuback(9, &[REMOVED])).await;
    t.publish_from_elsewhere(publish(&topic).qos1(1).payload("after"))
        .await;
    client.fence().await;
}

/// QoS 1 and 2 deliveries under way when the subscription goes are finished.
pub async fn begun_deliveries_are_finished(t: Target) {
    let (id, topic) = (fresh("d"), fresh("u"));
    let mut client = t.connect(t.durable(&id)).await;
    client.subscribe(&topic, 2).await;
    t.publish_from_elsewhere(publish(&topic).qos1(1).payload("one"))
        .await;
    t.publish_from_elsewhere(publish(&topic).qos2(2).payload("two"))
        .await;
    let one = client.recv_publish().await;
    let two = client.recv_publish().await;
    client.send(unsubscribe(900).from(&topic)).await;
    client.recv(unsuback(900, &[REMOVED])).await;
    client.send(pubrec(two.packet_id())).await;
    client.recv(pubrel(two.packet_id())).await;
    client.send(pubcomp(two.packet_id())).await;
    client.fence().await;
    client.cut();
    let mut again = t.connect(t.durable(&id)).await;
    let resent = again.recv_publish().await;
    assert_eq!((resent.packet_id(), resent.dup()), (one.packet_id(), true));
    again.send(puback(one.packet_id())).await;
    again.fence().await;
}

pub async fn every_unsubscribe_gets_an_unsuback(t: Target) {
    let root = fresh("u");
    let mut client = t.client().await;
    for id in [4, 400, 65_535] {
        client.subscribe(format!("{root}/{id}"), 0).await;
        client
            .send(unsubscribe(id).from(format!("{root}/{id}")))
            .await;
        client.recv(unsuback(id, &[REMOVED])).await;
    }
}

pub async fn unsuback_comes_for_unknown_filters_too(t: Target) {
    let mut client = t.client().await;
    client.send(unsubscribe(5).from(fresh("never"))).await;
    client.recv(unsuback(5, &[NOT_THERE])).await;
}

pub async fn many_filters_yield_one_unsuback(t: Target) {
    let root = fresh("u");
    let mut client = t.client().await;
    client.subscribe(format!("{root}/a"), 0).await;
    client.subscribe(format!("{root}/b"), 0).await;
    let all = ["a", "x", "b", "a"]
        .iter()
        .fold(unsubscribe(8), |packet, name| {
            packet.from(format!("{root}/{name}"))
        });
    client.send(all).await;
    client
        .recv(unsuback(8, &[REMOVED, NOT_THERE, REMOVED, NOT_THERE]))
        .await;
    t.publish_from_elsewhere(publish(format!("{root}/a")).payload("x"))
        .await;
    t.publish_from_elsewhere(publish(format!("{root}/b")).payload("x"))
        .await;
    client.fence().await;
}

pub async fn unsuback_codes_stand_in_order(t: Target) {
    let root = fresh("u");
    let mut client = t.client().await;
    client.subscribe(format!("{root}/b"), 0).await;
    client
        .send(
            unsubscribe(8)
                .from(format!("{root}/a"))
                .from(format!("{root}/b")),
        )
        .await;
    client.recv(unsuback(8, &[NOT_THERE, REMOVED])).await;
}

pub async fn only_codes_of_the_table_stand_in_unsuback(t: Target) {
    let topic = fresh("u");
    let mut client = t.subscriber(&topic, 0).await;
    client
        .send(
            unsubscribe(8)
                .from(&topic)
                .from(fresh("no"))
                .from("$share/g/a"),
        )
        .await;
    let codes = client.recv_kind(11).await.codes();
    assert_eq!(codes.len(), 3, "{codes:02x?}");
    assert!(
        codes
            .iter()
            .all(|code| [0, 0x11, 0x80, 0x83, 0x87, 0x8f, 0x91].contains(code)),
        "{codes:02x?}"
    );
}

pub async fn no_local_hides_own_messages(t: Target) {
    let topic = fresh("nl");
    let mut client = t.client().await;
    client.subscribe(&topic, option::NO_LOCAL | 1).await;
    client
        .publish(publish(&topic).qos1(77).payload("own"))
        .await;
    client.fence().await;
    t.publish_from_elsewhere(publish(&topic).qos1(1).payload("other's"))
        .await;
    client.take("other's").await;
}

pub async fn every_ping_is_answered(t: Target) {
    let mut client = t.client().await;
    client.send([0xc0, 0, 0xc0, 0, 0xc0, 0]).await;
    for _ in 0..3 {
        client.recv([0xd0, 0]).await;
    }
    client.fence().await;
}

/// One message, several filters with identifiers: all of them are named.
pub async fn identifiers_of_overlapping_filters_are_named(t: Target) {
    let root = fresh("id");
    let mut client = t.client().await;
    for (id, filter, number) in [(1, "/a", 5), (2, "/+", 300), (3, "/#", 0)] {
        let with_number = if number > 0 {
            props().varint(prop::SUBSCRIPTION_ID, number)
        } else {
            props()
        };
        client
            .send(
                subscribe(id)
                    .to(format!("{root}{filter}"), 0)
                    .props(with_number),
            )
            .await;
        client.recv(suback(id, &[0])).await;
    }
    t.publish_from_elsewhere(publish(format!("{root}/a")).payload("x"))
        .await;
    let copies = client.collect_to_fence().await;
    let mut named: Vec<_> = copies
        .iter()
        .flat_map(|copy| copy.prop(prop::SUBSCRIPTION_ID))
        .collect();
    named.sort_by_key(|value| format!("{value:?}").len());
    assert_eq!(
        named,
        [flotte_tests::Value::Int(5), flotte_tests::Value::Int(300)],
        "{copies:?}"
    );
}

pub async fn one_copy_names_all_identifiers(t: Target) {
    let root = fresh("id");
    let mut client = t.client().await;
    for (id, filter, number) in [(1, "/a", 7), (2, "/+", 8)] {
        let with_number = props().varint(prop::SUBSCRIPTION_ID, number);
        client
            .send(
                subscribe(id)
                    .to(format!("{root}{filter}"), 0)
                    .props(with_number),
            )
            .await;
        client.recv(suback(id, &[0])).await;
    }
    t.publish_from_elsewhere(publish(format!("{root}/a")).payload("x"))
        .await;
    let copies = client.collect_to_fence().await;
    let named = |copy: &flotte_tests::Received| copy.prop(prop::SUBSCRIPTION_ID).len();
    match copies.as_slice() {
        [one] => assert_eq!(named(one), 2, "{one:?}"),
        [one, other] if !t.is_ours => assert_eq!((named(one), named(other)), (1, 1), "{copies:?}"),
        _ => panic!("one copy, or one for each subscription: {copies:?}"),
    }
}

pub async fn identifier_in_a_clients_publish_ends_the_connection(t: Target) {
    refused(
        &t,
        publish("a").props(props().varint(prop::SUBSCRIPTION_ID, 1)),
        &[0x81, 0x82],
    )
    .await;
}

/// What is replayed names the subscription that it is replayed for.
pub async fn replay_names_the_identifier(t: Target) {
    let topic = fresh("id");
    t.publish_from_elsewhere(publish(&topic).qos1(1).retain().payload("kept"))
        .await;
    let mut client = t.client().await;
    let number = props().varint(prop::SUBSCRIPTION_ID, 268_435_455);
    client
        .send(subscribe(1).to(&topic, 0).props(number.clone()))
        .await;
    client.recv(suback(1, &[0])).await;
    let kept = publish(&topic).retain().props(number).payload("kept");
    client.recv(kept).await;
    // Subscribed again without one, it has none.
    client.send(subscribe(2).to(&topic, 0)).await;
    client.recv(suback(2, &[0])).await;
    client.recv(publish(&topic).retain().payload("kept")).await;
}

/// Options and identifiers are part of the session: they hold for the next connection, too.
pub async fn options_outlive_the_connection(t: Target) {
    let (id, topic) = (fresh("d"), fresh("opt"));
    let mut first = t.connect(t.durable(&id)).await;
    let number = props().varint(prop::SUBSCRIPTION_ID, 42);
    let options = option::NO_LOCAL | option::RETAIN_AS_PUBLISHED | 1;
    first
        .send(subscribe(1).to(&topic, options).props(number))
        .await;
    first.recv(suback(1, &[1])).await;
    first.leave().await;
    let mut again = t.connect(t.durable(&id)).await;
    again.send(publish(&topic).qos1(9).payload("own")).await;
    again.recv_ack(4, 9).await;
    t.publish_from_elsewhere(publish(&topic).qos1(1).retain().payload("x"))
        .await;
    let got = again.take("x").await;
    assert!(got.retain(), "{got:?}");
    assert_eq!(got.int_prop(prop::SUBSCRIPTION_ID), Some(42));
    again.fence().await;
}
