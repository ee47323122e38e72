//! Limits of 5.0: Maximum Packet Size, Receive Maximum, and what is left out of answers.

use std::time::Duration;

use flotte_tests::wire::prop;
use flotte_tests::{
    Client, connect, fresh, props, puback, publish, pubrec, pubrel, suback, subscribe, unsubscribe,
};

use crate::target::Target;

/// A client that takes packets up to this size.
async fn small(t: &Target, bytes_max: u32) -> Client {
    let limit = props().u32(prop::MAXIMUM_PACKET_SIZE, bytes_max);
    t.connect(connect(fresh("c")).props(limit)).await
}

pub async fn packets_beyond_the_maximum_are_not_sent(t: Target) {
    let topic = fresh("size");
    let mut subscriber = small(&t, 200).await;
    subscriber.subscribe(&topic, 0).await;
    let fits = "x".repeat(200 - 2 - 1 - 2 - topic.len() - 1);
    for payload in ["y".repeat(1_000), format!("{fits}y"), fits.clone()] {
        t.publish_from_elsewhere(publish(&topic).payload(payload))
            .await;
    }
    subscriber.recv(publish(&topic).payload(fits)).await;
    subscriber.fence().await;
}

/// The dropped message takes no place in the window: with one place the next one comes.
pub async fn message_too_big_counts_as_delivered(t: Target) {
    let topic = fresh("size");
    let limits = props()
        .u32(prop::MAXIMUM_PACKET_SIZE, 200)
        .u16(prop::RECEIVE_MAXIMUM, 1);
    let mut subscriber = t.connect(connect(fresh("c")).props(limits)).await;
    subscriber.subscribe(&topic, 2).await;
    let mut publisher = t.client().await;
    publisher
        .publish(publish(&topic).qos1(1).payload("y".repeat(1_000)))
        .await;
    publisher
        .publish(publish(&topic).qos2(2).payload("y".repeat(1_000)))
        .await;
    publisher
        .publish(publish(&topic).qos1(3).payload("small"))
        .await;
    subscriber.take("small").await;
    subscriber.fence().await;
}

/// What the broker announced it takes, it enforces.
pub async fn packet_beyond_the_brokers_maximum_ends_the_connection(t: Target) {
    let mut client = t.client().await;
    let Some(limit) = client.connack().int_prop(prop::MAXIMUM_PACKET_SIZE) else {
        return;
    };
    let mut head = vec![0x30];
    head.extend(flotte_tests::wire::varint(limit as usize));
    client.send(head).await;
    client.expect_refused(&[0x95]).await;
}

/// Answers to a client that takes only small packets carry nothing optional that would not fit.
async fn answers_fit(t: &Target, packets: Vec<(Vec<u8>, u8)>) {
    const LIMIT: u32 = 20;
    let mut client = small(t, LIMIT).await;
    for (packet, kind) in packets {
        client.send(packet).await;
        let answer = client.recv_kind(kind).await;
        assert!(answer.bytes.len() <= LIMIT as usize, "{answer:?}");
    }
}

fn bytes(packet: impl flotte_tests::Packet) -> Vec<u8> {
    packet.encode(flotte_tests::Version::V5)
}

pub async fn puback_fits_the_client(t: Target) {
    answers_fit(&t, vec![(bytes(publish(fresh("nobody")).qos1(1)), 4)]).await;
}

pub async fn pubrec_fits_the_client(t: Target) {
    answers_fit(&t, vec![(bytes(publish(fresh("nobody")).qos2(1)), 5)]).await;
}

pub async fn pubcomp_fits_the_client(t: Target) {
    answers_fit(&t, vec![(bytes(pubrel(99)), 7)]).await;
}

pub async fn suback_fits_the_client(t: Target) {
    answers_fit(&t, vec![(bytes(subscribe(1).to(fresh("f"), 0)), 9)]).await;
}

pub async fn unsuback_fits_the_client(t: Target) {
    answers_fit(&t, vec![(bytes(unsubscribe(1).from(fresh("f"))), 11)]).await;
}

pub async fn disconnect_fits_the_client(t: Target) {
    let id = fresh("c");
    let limit = props().u32(prop::MAXIMUM_PACKET_SIZE, 64);
    let mut older = t.connect(connect(&id).props(limit)).await;
    let _newer = t.connect(connect(&id)).await;
    let goodbye = older.recv_kind(14).await;
    assert!(goodbye.bytes.len() <= 64, "{goodbye:?}");
}

/// A refusal to a client that takes hardly anything: short, or nothing at all.
pub async fn connack_fits_the_client(t: Target) {
    let limit = props()
        .u32(prop::MAXIMUM_PACKET_SIZE, 20)
        .text(prop::AUTH_METHOD, "no-such-method");
    let mut client = t.dial().await;
    client.send(connect(fresh("c")).props(limit)).await;
    if let Some(answer) = client.next_or_end().await.expect("an answer or the end") {
        assert!(
            answer.reason() >= 0x80 && answer.bytes.len() <= 20,
            "{answer:?}"
        );
        client.expect_closed().await;
    }
}

/// Without Request Problem Information there is no text in answers.
pub async fn no_problem_information_unless_asked(t: Target) {
    let quiet = props().byte(prop::REQUEST_PROBLEM_INFO, 0);
    let mut client = t.connect(connect(fresh("c")).props(quiet)).await;
    client.send(publish(fresh("nobody")).qos1(1)).await;
    client.send(pubrel(9)).await;
    client.send(subscribe(2).to(fresh("f"), 0)).await;
    client.send(unsubscribe(3).from(fresh("f"))).await;
    for _ in 0..4 {
        let answer = client.next().await;
        assert!(matches!(answer.kind(), 4 | 7 | 9 | 11), "{answer:?}");
        assert_eq!(answer.prop(prop::REASON_STRING), [], "{answer:?}");
        assert_eq!(answer.user_props(), [], "{answer:?}");
    }
}

/// A subscriber with a receive maximum, and this many messages on their way to it.
async fn with_backlog(t: &Target, receive_maximum: u16, count: u16) -> (Client, String) {
    let topic = fresh("rm");
    let limit = props().u16(prop::RECEIVE_MAXIMUM, receive_maximum);
    let mut subscriber = t.connect(connect(fresh("c")).props(limit)).await;
    subscriber.subscribe(&topic, 2).await;
    let mut publisher = t.client().await;
    for id in 1..=count {
        publisher
            .publish(
                publish(&topic)
                    .qos_bits(1 + (id % 2) as u8, id)
                    .payload(id.to_string()),
            )
            .await;
    }
    (subscriber, topic)
}

/// Never more unacknowledged than allowed; each acknowledgement lets one more through.
pub async fn broker_stays_within_the_receive_maximum(t: Target) {
    let (mut subscriber, _) = with_backlog(&t, 2, 6).await;
    let mut open = subscriber.collect_to_fence().await;
    assert_eq!(open.len(), 2, "{open:?}");
    for number in 1..=4 {
        let done = open.remove(0);
        assert_eq!(done.payload(), number.to_string().into_bytes());
        if done.qos() == 1 {
            subscriber.send(puback(done.packet_id())).await;
        } else {
            subscriber.send(pubrec(done.packet_id())).await;
            subscriber.recv(pubrel(done.packet_id())).await;
            subscriber.fence().await;
            subscriber
                .send(flotte_tests::pubcomp(done.packet_id()))
                .await;
        }
        open.push(subscriber.recv_publish().await);
        subscriber.fence().await;
    }
}

/// A failing PUBREC frees the place at once.
pub async fn failing_pubrec_frees_its_place(t: Target) {
    let (mut subscriber, _) = with_backlog(&t, 1, 3).await;
    for number in 1..=3 {
        let message = subscriber.recv_publish().await;
        assert_eq!(message.payload(), number.to_string().into_bytes());
        let refusal = if message.qos() == 2 {
            pubrec(message.packet_id())
        } else {
            puback(message.packet_id())
        };
        subscriber.send(refusal.reason(0x83)).await;
    }
    subscriber.fence().await;
}

/// With the window full other packets are answered as promptly as ever, and QoS 0 needs no place.
pub async fn full_window_holds_back_only_publishes(t: Target) {
    let (mut subscriber, topic) = with_backlog(&t, 1, 3).await;
    let open = subscriber.recv_publish().await;
    subscriber.fence().await;
    subscriber.send(subscribe(500).to(fresh("f"), 0)).await;
    subscriber.recv(suback(500, &[0])).await;
    subscriber.publish(publish(fresh("own")).qos1(501)).await;
    subscriber.publish(publish(fresh("own")).qos2(502)).await;
    subscriber.send(unsubscribe(503).from(&topic)).await;
    assert_eq!(subscriber.recv_kind(11).await.packet_id(), 503);
    assert!(!open.dup());
}

/// A quota of one: exactly one message under way from the first moment.
pub async fn send_quota_begins_at_the_receive_maximum(t: Target) {
    let (mut subscriber, _) = with_backlog(&t, 1, 4).await;
    let open = subscriber.collect_to_fence().await;
    assert_eq!(open.len(), 1, "{open:?}");
}

/// A client that has more QoS 2 messages open than the broker announced is cut off.
pub async fn client_beyond_the_receive_maximum_is_cut_off(t: Target) {
    let mut client = t.client().await;
    let limit = client.server_receive_maximum();
    if limit == 65_535 {
        return;
    }
    let topic = fresh("rm");
    for id in 1..=limit {
        client.send(publish(&topic).qos2(id)).await;
    }
    for id in 1..=limit {
        client.recv_ack(5, id).await;
    }
    client.send(publish(&topic).qos2(limit + 1)).await;
    client.expect_refused(&[0x93]).await;
}

/// The keep alive of 5.0 allows long silence where the interval is 0.
pub async fn no_keep_alive_no_limit(t: Target) {
    let mut client = t.client().await;
    client.expect_silence(Duration::from_millis(1_500)).await;
    client.fence().await;
}

pub async fn pubrel_fits_the_client(t: Target) {
    let topic = fresh("rel");
    let mut client = small(&t, 64).await;
    client.subscribe(&topic, 2).await;
    t.publish_from_elsewhere(publish(&topic).qos2(1).payload("x"))
        .await;
    let id = client.recv_publish().await.packet_id();
    client.send(pubrec(id)).await;
    client.recv(pubrel(id)).await;
    // One that answers an id it does not know.
    client.send(pubrec(id + 1)).await;
    client.recv(pubrel(id + 1).reason(0x92)).await;
}

/// An answer that cannot be made smaller ends the connection instead.
pub async fn answer_beyond_the_clients_maximum_is_not_sent(t: Target) {
    let root = fresh("size");
    let mut client = small(&t, 20).await;
    let many = (0..30).fold(subscribe(1), |packet, number| {
        packet.to(format!("{root}/{number}"), 0)
    });
    client.send(many).await;
    client.expect_refused(&[0x95]).await;
}

/// A client that takes no CONNACK of ours is refused in the shortest way, or in silence.
pub async fn connack_beyond_the_clients_maximum_is_not_sent(t: Target) {
    let limit = |bytes| connect(fresh("c")).props(props().u32(prop::MAXIMUM_PACKET_SIZE, bytes));
    let mut client = t.dial().await;
    client.send(limit(5)).await;
    client.recv([0x20, 3, 0, 0x95, 0]).await;
    client.expect_closed().await;
    for bytes in 1..5 {
        let mut client = t.dial().await;
        client.send(limit(bytes)).await;
        client.expect_closed().await;
    }
}

/// Retained messages that are too large for the new subscriber are passed over; the others come.
pub async fn retained_message_too_big_is_passed_over(t: Target) {
    let root = fresh("size");
    for (name, payload) in [("a", "x".repeat(500)), ("b", "small".to_owned())] {
        let packet = publish(format!("{root}/{name}")).qos1(1).retain();
        t.publish_from_elsewhere(packet.payload(payload)).await;
    }
    let limits = props()
        .u32(prop::MAXIMUM_PACKET_SIZE, 200)
        .u16(prop::RECEIVE_MAXIMUM, 1);
    let mut subscriber = t.connect(connect(fresh("c")).props(limits)).await;
    subscriber.subscribe(format!("{root}/+"), 1).await;
    subscriber.take("small").await;
    subscriber.fence().await;
}

/// After a return the receive maximum of the new connection counts, for what is sent again, too.
pub async fn receive_maximum_of_the_next_connection_counts(t: Target) {
    let (id, topic) = (fresh("d"), fresh("rm"));
    let mut first = t.connect(t.durable(&id)).await;
    first.subscribe(&topic, 1).await;
    let mut publisher = t.client().await;
    for number in 1..=4 {
        publisher
            .publish(publish(&topic).qos1(number).payload(number.to_string()))
            .await;
    }
    assert_eq!(first.collect_to_fence().await.len(), 4);
    first.cut();
    let limits = props()
        .u32(prop::SESSION_EXPIRY, 300)
        .u16(prop::RECEIVE_MAXIMUM, 1);
    let mut again = t.connect(connect(&id).resume().props(limits)).await;
    for number in 1..=4 {
        let open = again.recv_publish().await;
        assert_eq!(open.payload(), number.to_string().into_bytes());
        assert!(open.dup(), "{open:?}");
        again.fence().await;
        again.send(puback(open.packet_id())).await;
    }
    again.fence().await;
}
