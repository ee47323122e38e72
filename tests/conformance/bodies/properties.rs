//! Properties of 5.0: what is forwarded, expiry, topic aliases.

use std::collections::HashMap;
use std::time::Duration;

use flotte_tests::wire::{Props, prop};
use flotte_tests::{Packet as _, connect, fresh, props, puback, publish, pubrec, subscribe, will};

use crate::target::Target;

/// The properties arrive as they were sent, at QoS 0 and retained.
async fn forwarded(t: &Target, properties: Props) {
    let topic = fresh("p");
    let mut subscriber = t.subscriber(&topic, 0).await;
    t.publish_from_elsewhere(publish(&topic).props(properties.clone()).payload("x"))
        .await;
    subscriber
        .recv(publish(&topic).props(properties).payload("x"))
        .await;
}

pub async fn empty_properties_have_a_length(t: Target) {
    forwarded(&t, props()).await;
}

pub async fn payload_format_is_forwarded(t: Target) {
    forwarded(&t, props().byte(prop::PAYLOAD_FORMAT, 1)).await;
}

pub async fn response_topic_is_forwarded(t: Target) {
    forwarded(&t, props().text(prop::RESPONSE_TOPIC, "reply/\u{e9}//to")).await;
}

pub async fn correlation_data_is_forwarded(t: Target) {
    forwarded(
        &t,
        props().text(prop::CORRELATION_DATA, b"\0\xff\x01binary"),
    )
    .await;
}

pub async fn content_type_is_forwarded(t: Target) {
    forwarded(
        &t,
        props().text(prop::CONTENT_TYPE, "application/json; charset=utf-8"),
    )
    .await;
}

pub async fn user_properties_are_forwarded_with_duplicates(t: Target) {
    forwarded(
        &t,
        props()
            .user("k", "v")
            .user("k", "v")
            .user("", "")
            .user("k", "w"),
    )
    .await;
}

pub async fn user_properties_keep_their_order(t: Target) {
    let pairs = (0..20).rev().fold(props(), |pairs, n| {
        pairs.user(format!("k{}", n % 3), n.to_string())
    });
    forwarded(&t, pairs).await;
}

pub async fn wildcard_in_a_response_topic_ends_the_connection(t: Target) {
    for topic in ["a/+", "#", "a/#"] {
        let mut client = t.client().await;
        client
            .send(publish("a").props(props().text(prop::RESPONSE_TOPIC, topic)))
            .await;
        client.expect_refused(&[0x81, 0x82, 0x90]).await;
    }
}

pub async fn expired_message_is_not_delivered(t: Target) {
    let (id, topic) = (fresh("d"), fresh("exp"));
    let mut first = t.connect(t.durable(&id)).await;
    first.subscribe(&topic, 1).await;
    first.leave().await;
    let mut publisher = t.client().await;
    let short = props().u32(prop::MESSAGE_EXPIRY, 1);
    publisher
        .publish(publish(&topic).qos1(1).props(short).payload("expired"))
        .await;
    publisher
        .publish(publish(&topic).qos1(2).payload("kept"))
        .await;
    tokio::time::sleep(Duration::from_millis(2_200)).await;
    let mut again = t.connect(t.durable(&id)).await;
    again.take("kept").await;
    again.fence().await;
}

pub async fn waiting_time_is_taken_off_the_expiry(t: Target) {
    let (id, topic) = (fresh("d"), fresh("exp"));
    let mut first = t.connect(t.durable(&id)).await;
    first.subscribe(&topic, 1).await;
    first.leave().await;
    let mut publisher = t.client().await;
    let long = props().u32(prop::MESSAGE_EXPIRY, 100);
    publisher
        .publish(publish(&topic).qos1(1).props(long).payload("x"))
        .await;
    tokio::time::sleep(Duration::from_millis(2_000)).await;
    let mut again = t.connect(t.durable(&id)).await;
    let left = again
        .take("x")
        .await
        .int_prop(prop::MESSAGE_EXPIRY)
        .expect("an expiry");
    assert!(
        (90..=98).contains(&left),
        "{left} seconds left of 100 after 2"
    );
}

/// A message whose PUBLISH went out does not expire any more.
pub async fn sent_qos2_message_does_not_expire(t: Target) {
    let (id, topic) = (fresh("d"), fresh("exp"));
    let mut first = t.connect(t.durable(&id)).await;
    first.subscribe(&topic, 2).await;
    let short = props().u32(prop::MESSAGE_EXPIRY, 1);
    t.publish_from_elsewhere(publish(&topic).qos2(1).props(short).payload("x"))
        .await;
    let sent = first.recv_publish().await;
    first.cut();
    tokio::time::sleep(Duration::from_millis(2_200)).await;
    let mut again = t.connect(t.durable(&id)).await;
    let resent = again.recv_publish().await;
    assert_eq!((resent.packet_id(), resent.dup()), (sent.packet_id(), true));
}

/// Expiry between PUBREC and PUBREL: the handshake goes on.
pub async fn expiry_does_not_interrupt_the_handshake(t: Target) {
    let topic = fresh("exp");
    let mut publisher = t.client().await;
    let short = props().u32(prop::MESSAGE_EXPIRY, 1);
    publisher
        .send(publish(&topic).qos2(1).props(short).payload("x"))
        .await;
    publisher.recv_ack(5, 1).await;
    publisher.expect_silence(Duration::from_millis(1_500)).await;
    publisher.send(flotte_tests::pubrel(1)).await;
    publisher.recv(flotte_tests::pubcomp(1)).await;
}

/// What the broker accepts from this client, 0 where it accepts none.
fn alias_maximum(client: &flotte_tests::Client) -> u16 {
    let announced = client
        .connack()
        .int_prop(prop::TOPIC_ALIAS_MAXIMUM)
        .unwrap_or(0);
    u16::try_from(announced).expect("a two-byte property")
}

/// Every alias up to the announced maximum is taken and stands for its topic.
pub async fn every_announced_alias_is_accepted(t: Target) {
    let root = fresh("alias");
    let mut subscriber = t.subscriber(&format!("{root}/+"), 0).await;
    let mut publisher = t.client().await;
    let aliases = 1..=alias_maximum(&publisher);
    for alias in aliases.clone() {
        let properties = props().u16(prop::TOPIC_ALIAS, alias);
        publisher
            .send(
                publish(format!("{root}/{alias}"))
                    .props(properties)
                    .payload("set"),
            )
            .await;
    }
    for alias in aliases.clone() {
        publisher
            .send(
                publish("")
                    .props(props().u16(prop::TOPIC_ALIAS, alias))
                    .payload("used"),
            )
            .await;
    }
    t.settle(&mut publisher).await;
    for payload in ["set", "used"] {
        for alias in aliases.clone() {
            subscriber
                .recv(publish(format!("{root}/{alias}")).payload(payload))
                .await;
        }
    }
}

/// An alias may get another topic; the next connection knows none.
pub async fn aliases_end_with_the_connection(t: Target) {
    let topic = fresh("alias");
    let mut publisher = t.client().await;
    if alias_maximum(&publisher) == 0 {
        return;
    }
    publisher
        .send(publish(&topic).props(props().u16(prop::TOPIC_ALIAS, 1)))
        .await;
    t.settle(&mut publisher).await;
    publisher.leave().await;
    let mut next = t.client().await;
    next.send(publish("").props(props().u16(prop::TOPIC_ALIAS, 1)))
        .await;
    next.expect_refused(&[0x82]).await;
}

pub async fn alias_0_ends_the_connection(t: Target) {
    let mut client = t.client().await;
    client
        .send(publish("a").props(props().u16(prop::TOPIC_ALIAS, 0)))
        .await;
    client.expect_refused(&[0x94, 0x82, 0x81]).await;
}

pub async fn alias_above_the_maximum_ends_the_connection(t: Target) {
    let mut client = t.client().await;
    let Some(beyond) = alias_maximum(&client).checked_add(1) else {
        return;
    };
    client
        .send(publish("a").props(props().u16(prop::TOPIC_ALIAS, beyond)))
        .await;
    client.expect_refused(&[0x94]).await;
}

/// Aliases towards the client stay within what it allows, and each stands for one topic.
pub async fn aliases_of_the_broker_stay_within_the_maximum(t: Target) {
    let root = fresh("alias");
    let allowed = props().u16(prop::TOPIC_ALIAS_MAXIMUM, 2);
    let mut subscriber = t.connect(connect(fresh("c")).props(allowed)).await;
    subscriber.subscribe(format!("{root}/+"), 0).await;
    let mut publisher = t.client().await;
    for round in 0..3 {
        for name in ["a", "b", "c"] {
            publisher
                .send(publish(format!("{root}/{name}")).payload(format!("{name}{round}")))
                .await;
        }
    }
    t.settle(&mut publisher).await;
    let mut known = HashMap::new();
    for round in 0..3 {
        for name in ["a", "b", "c"] {
            let message = subscriber.recv_publish().await;
            assert_eq!(message.payload(), format!("{name}{round}").into_bytes());
            let mut topic = message.topic();
            if let Some(alias) = message.int_prop(prop::TOPIC_ALIAS) {
                assert!((1..=2).contains(&alias), "{message:?}");
                if topic.is_empty() {
                    topic = known.get(&alias).cloned().expect("an alias that was set");
                }
                known.insert(alias, topic.clone());
            }
            assert_eq!(topic, format!("{root}/{name}"));
        }
    }
}

pub async fn no_alias_where_none_is_allowed(t: Target) {
    let topic = fresh("alias");
    for allowed in [props(), props().u16(prop::TOPIC_ALIAS_MAXIMUM, 0)] {
        let mut subscriber = t.connect(connect(fresh("c")).props(allowed)).await;
        subscriber.subscribe(&topic, 0).await;
        for _ in 0..3 {
            t.publish_from_elsewhere(publish(&topic).payload("x")).await;
            subscriber.recv(publish(&topic).payload("x")).await;
        }
    }
}

/// Properties the standard forbids in this place, twice, unknown, or with a value out of range.
pub async fn wrong_properties_end_the_connection(t: Target) {
    let connects = [
        props()
            .u32(prop::SESSION_EXPIRY, 1)
            .u32(prop::SESSION_EXPIRY, 1),
        props().u16(prop::RECEIVE_MAXIMUM, 0),
        props().u32(prop::MAXIMUM_PACKET_SIZE, 0),
        props().byte(prop::REQUEST_PROBLEM_INFO, 2),
        props().text(prop::AUTH_DATA, "without a method"),
    ];
    for properties in connects {
        let mut client = t.dial().await;
        client.send(connect(fresh("c")).props(properties)).await;
        client.expect_refused(&[0x81, 0x82]).await;
    }
    let publishes = [
        props()
            .byte(prop::PAYLOAD_FORMAT, 0)
            .byte(prop::PAYLOAD_FORMAT, 0),
        props().u32(prop::WILL_DELAY, 1),
        props().raw(&[0x7f, 0]),
        props().raw(&[prop::MESSAGE_EXPIRY, 0]),
    ];
    for properties in publishes {
        let mut client = t.client().await;
        client.send(publish("a").props(properties)).await;
        client.expect_refused(&[0x81, 0x82]).await;
    }
    let mut client = t.client().await;
    let zero = props().varint(prop::SUBSCRIPTION_ID, 0);
    client.send(subscribe(1).to("a", 0).props(zero)).await;
    client.expect_refused(&[0x81, 0x82]).await;
}

/// A property length that overruns the packet.
pub async fn property_length_beyond_the_packet_ends_the_connection(t: Target) {
    let mut bytes = publish("a")
        .props(props().byte(prop::PAYLOAD_FORMAT, 1))
        .encode(t.version);
    let length_at = bytes.len() - 3;
    bytes[length_at] = 9;
    let mut client = t.client().await;
    client.send(bytes).await;
    client.expect_refused(&[0x81]).await;
}

/// What is announced as UTF-8 text and is none: refused with a reason of its own, and delivered to nobody.
pub async fn text_that_is_none_is_refused(t: Target) {
    let topic = fresh("text");
    let mut watcher = t.subscriber(&topic, 2).await;
    let text = || props().byte(prop::PAYLOAD_FORMAT, 1);
    let none = || publish(&topic).props(text()).payload(b"\xc3\x28");
    let mut client = t.client().await;
    client.send(none().qos1(1)).await;
    client.recv(puback(1).reason(0x99)).await;
    client.send(none().qos2(2)).await;
    client.recv(pubrec(2).reason(0x99)).await;
    // Its id is free again.
    client
        .publish(publish(&topic).qos2(2).props(text()).payload("\u{e9}"))
        .await;
    client.send(none()).await;
    client.expect_refused(&[0x99]).await;
    let bytes = props().byte(prop::PAYLOAD_FORMAT, 0);
    t.publish_from_elsewhere(publish(&topic).props(bytes).payload(b"\xff"))
        .await;
    watcher.take("\u{e9}").await;
    watcher.take(b"\xff").await;
    let mut client = t.dial().await;
    let last = will(&topic, b"\xff").props(text());
    client.send(connect(fresh("c")).will(last)).await;
    assert_eq!(client.recv_kind(2).await.reason(), 0x99);
    client.expect_closed().await;
}

/// The first topics that are used get the aliases, each from its first message on, in the order of use.
pub async fn first_topics_get_the_aliases(t: Target) {
    let root = fresh("alias");
    let allowed = props().u16(prop::TOPIC_ALIAS_MAXIMUM, 2);
    let mut subscriber = t.connect(connect(fresh("c")).props(allowed)).await;
    subscriber.subscribe(format!("{root}/+"), 1).await;
    let mut publisher = t.client().await;
    let steps = [
        ("a", Some(1), true),
        ("a", Some(1), false),
        ("b", Some(2), true),
        ("c", None, true),
        ("b", Some(2), false),
        ("a", Some(1), false),
        ("c", None, true),
    ];
    for (number, (name, alias, named)) in (1..).zip(steps) {
        let topic = format!("{root}/{name}");
        publisher
            .publish(
                publish(&topic)
                    .qos_bits((number % 2) as u8, number)
                    .payload(name),
            )
            .await;
        t.settle(&mut publisher).await;
        let got = subscriber.take(name).await;
        let wanted = if named { topic } else { String::new() };
        let alias_of = got.int_prop(prop::TOPIC_ALIAS);
        assert_eq!((got.topic(), alias_of), (wanted, alias), "message {number}");
    }
}

/// A response topic that is none, and a subscription identifier beside it.
pub async fn empty_response_topic_ends_the_connection(t: Target) {
    let mut client = t.client().await;
    let empty = props().text(prop::RESPONSE_TOPIC, "");
    client.send(publish("a").props(empty)).await;
    client.expect_refused(&[0x81, 0x82, 0x90]).await;
}

/// A message expires while it waits behind a full window, and not only while its session is away.
pub async fn message_expires_behind_a_full_window(t: Target) {
    let topic = fresh("exp");
    let one = props().u16(prop::RECEIVE_MAXIMUM, 1);
    let mut subscriber = t.connect(connect(fresh("c")).props(one)).await;
    subscriber.subscribe(&topic, 1).await;
    let mut publisher = t.client().await;
    publisher
        .publish(publish(&topic).qos1(1).payload("open"))
        .await;
    let short = props().u32(prop::MESSAGE_EXPIRY, 1);
    publisher
        .publish(publish(&topic).qos1(2).props(short).payload("expired"))
        .await;
    let long = props().u32(prop::MESSAGE_EXPIRY, 60);
    publisher
        .publish(publish(&topic).qos1(3).props(long).payload("kept"))
        .await;
    let open = subscriber.recv_publish().await;
    subscriber
        .expect_silence(Duration::from_millis(2_100))
        .await;
    subscriber.send(puback(open.packet_id())).await;
    let kept = subscriber.take("kept").await;
    let left = kept.int_prop(prop::MESSAGE_EXPIRY).expect("an expiry");
    assert!(
        (50..=58).contains(&left),
        "{left} seconds left of 60 after 2"
    );
    subscriber.fence().await;
}

/// All that goes on to subscribers, at every QoS, and the rest of the lifetime.
pub async fn every_property_of_a_message_is_forwarded(t: Target) {
    let topic = fresh("p");
    let mut subscriber = t.subscriber(&topic, 2).await;
    let of_message = || {
        props()
            .byte(prop::PAYLOAD_FORMAT, 1)
            .text(prop::CONTENT_TYPE, "text/plain")
            .text(prop::RESPONSE_TOPIC, "r/1")
            .text(prop::CORRELATION_DATA, b"\0\x01")
            .user("b", "1")
            .user("a", "2")
            .user("b", "1")
    };
    for qos in 0..3 {
        let expiring = of_message().u32(prop::MESSAGE_EXPIRY, 600);
        let packet = publish(&topic).qos_bits(qos, 1).props(expiring);
        t.publish_from_elsewhere(packet.payload("x")).await;
        let got = subscriber.take("x").await;
        let left = got.int_prop(prop::MESSAGE_EXPIRY);
        assert!(
            left.is_some_and(|left| (590..=600).contains(&left)),
            "{got:?}"
        );
        let mut others = got.props();
        others.retain(|(id, _)| *id != prop::MESSAGE_EXPIRY);
        t.publish_from_elsewhere(publish(&topic).props(of_message()).payload("y"))
            .await;
        assert_eq!(others, subscriber.take("y").await.props());
    }
}
