//! PUBLISH and its handshakes, both ways.

use flotte_tests::{
    Client, connect, fresh, puback, pubcomp, publish, pubrec, pubrel, subscribe, unsubscribe,
};

use crate::target::Target;

/// The broker sends no such packet; received with DUP it is forwarded without, or refused.
pub async fn qos0_is_never_a_duplicate(t: Target) {
    let topic = fresh("dup");
    let mut subscriber = t.subscriber(&topic, 0).await;
    let mut publisher = t.client().await;
    publisher.send(publish(&topic).dup().payload("x")).await;
    let end = publisher.next_or_end();
    let refused = tokio::time::timeout(std::time::Duration::from_millis(500), end).await;
    t.publish_from_elsewhere(publish(&topic).payload("after"))
        .await;
    if refused.is_err() {
        subscriber.recv(publish(&topic).payload("x")).await;
    }
    subscriber.recv(publish(&topic).payload("after")).await;
}

pub async fn dup_of_the_publisher_is_not_passed_on(t: Target) {
    let topic = fresh("dup");
    let mut subscriber = t.subscriber(&topic, 2).await;
    t.publish_from_elsewhere(publish(&topic).qos1(1).dup().payload("one"))
        .await;
    assert!(!subscriber.take("one").await.dup());
    t.publish_from_elsewhere(publish(&topic).qos2(2).dup().payload("two"))
        .await;
    assert!(!subscriber.take("two").await.dup());
}

pub async fn qos_3_ends_the_connection(t: Target) {
    let mut client = t.client().await;
    client.send(publish("a").qos_bits(3, 1)).await;
    client.expect_refused(&[0x81]).await;
}

pub async fn wildcard_in_a_topic_ends_the_connection(t: Target) {
    for topic in ["a/+", "#", "a/#", "+", "a+b", "a#"] {
        let mut client = t.client().await;
        client.send(publish(topic)).await;
        client.expect_refused(&[0x81, 0x82, 0x90]).await;
    }
}

pub async fn delivered_topic_matches_the_filter(t: Target) {
    let root = fresh("m");
    let mut subscriber = t.subscriber(&format!("{root}/+/c"), 0).await;
    for (topic, wanted) in [
        ("/b/c", true),
        ("/b/d", false),
        ("/b", false),
        ("/x/c", true),
        ("/b/c/d", false),
    ] {
        let topic = format!("{root}{topic}");
        t.publish_from_elsewhere(publish(&topic).payload("x")).await;
        if wanted {
            subscriber.recv(publish(&topic).payload("x")).await;
        }
        subscriber.fence().await;
    }
}

/// None for QoS 0, PUBACK for QoS 1, PUBREC for QoS 2.
pub async fn answer_follows_the_qos(t: Target) {
    let topic = fresh("qos");
    let mut client = t.client().await;
    client.send(publish(&topic)).await;
    client.fence().await;
    client.send(publish(&topic).qos1(1)).await;
    client.recv_ack(4, 1).await;
    client.send(publish(&topic).qos2(2)).await;
    client.recv_ack(5, 2).await;
}

pub async fn overlapping_filters_deliver_at_the_highest_qos(t: Target) {
    let root = fresh("over");
    let mut subscriber = t.client().await;
    subscriber.subscribe(format!("{root}/#"), 1).await;
    subscriber.subscribe(format!("{root}/a"), 2).await;
    subscriber.subscribe(format!("{root}/+"), 0).await;
    t.publish_from_elsewhere(publish(format!("{root}/a")).qos2(1).payload("x"))
        .await;
    let copies = subscriber.collect_to_fence().await;
    let mut qos: Vec<_> = copies.iter().map(|copy| copy.qos()).collect();
    if t.is_ours {
        assert_eq!(qos, [2], "{copies:?}");
    }
    // The standard lets a broker send a copy for each subscription.
    qos.sort_unstable();
    assert_eq!(qos.last(), Some(&2), "{copies:?}");
}

pub async fn qos0_is_sent_at_qos0(t: Target) {
    let topic = fresh("q0");
    let mut subscriber = t.subscriber(&topic, 2).await;
    t.publish_from_elsewhere(publish(&topic).payload("x")).await;
    subscriber.recv(publish(&topic).payload("x")).await;
}

/// A fresh id, QoS 1, no DUP; not sent again once acknowledged; the id stays taken until then.
pub async fn qos1_message_stays_open_until_puback(t: Target) {
    let (id, topic) = (fresh("d"), fresh("q1"));
    let mut subscriber = t.connect(t.durable(&id)).await;
    subscriber.subscribe(&topic, 1).await;
    let mut publisher = t.client().await;
    publisher
        .publish(publish(&topic).qos1(1).payload("one"))
        .await;
    publisher
        .publish(publish(&topic).qos1(2).payload("two"))
        .await;
    let one = subscriber.recv_publish().await;
    let two = subscriber.recv_publish().await;
    assert!(one.packet_id() != two.packet_id() && !one.dup() && !two.dup());
    subscriber.send(puback(one.packet_id())).await;
    subscriber.fence().await;
    subscriber.cut();
    let mut again = t.connect(t.durable(&id)).await;
    let open = again.recv_publish().await;
    assert_eq!(
        (open.packet_id(), open.payload()),
        (two.packet_id(), b"two".to_vec())
    );
    again.fence().await;
}

pub async fn first_qos1_publish_has_an_id_and_no_dup(t: Target) {
    let topic = fresh("q1");
    let mut subscriber = t.subscriber(&topic, 1).await;
    t.publish_from_elsewhere(publish(&topic).qos1(77).payload("x"))
        .await;
    let id = subscriber.take("x").await.packet_id();
    assert_ne!(id, 0);
    t.publish_from_elsewhere(publish(&topic).qos1(77).payload("y"))
        .await;
    let next = subscriber.recv_publish().await;
    assert_eq!(
        (next.qos(), next.dup(), next.payload()),
        (1, false, b"y".to_vec())
    );
}

/// The ids in flight towards a client are all different, however many there are.
pub async fn qos1_ids_are_free_ones(t: Target) {
    let topic = fresh("q1");
    let mut subscriber = t.subscriber(&topic, 1).await;
    let mut publisher = t.client().await;
    let mut open = Vec::new();
    for round in 0..12 {
        publisher
            .publish(publish(&topic).qos1(1).payload("x"))
            .await;
        let id = subscriber.recv_publish().await.packet_id();
        assert!(
            !open.contains(&id),
            "round {round}: {id} is in use: {open:?}"
        );
        open.push(id);
        if round % 3 == 2 {
            let done = open.remove(0);
            subscriber.send(puback(done)).await;
        }
    }
}

pub async fn qos1_publish_gets_puback_with_its_id(t: Target) {
    let topic = fresh("q1");
    let mut client = t.client().await;
    for id in [1, 2, 0x7fff, 0xffff] {
        client.send(publish(&topic).qos1(id).payload("x")).await;
        client.recv_ack(4, id).await;
    }
}

/// After PUBACK the id is new, DUP or not: the message arrives twice.
pub async fn acknowledged_qos1_id_is_a_new_message(t: Target) {
    let topic = fresh("q1");
    let mut subscriber = t.subscriber(&topic, 1).await;
    let mut publisher = t.client().await;
    publisher
        .publish(publish(&topic).qos1(9).payload("x"))
        .await;
    publisher
        .publish(publish(&topic).qos1(9).dup().payload("x"))
        .await;
    subscriber.take("x").await;
    subscriber.take("x").await;
    subscriber.fence().await;
}

/// As a sender: PUBLISH without DUP, PUBREL after PUBREC, all with one id.
pub async fn qos2_sender_runs_the_handshake(t: Target) {
    let topic = fresh("q2");
    let mut subscriber = t.subscriber(&topic, 2).await;
    t.publish_from_elsewhere(publish(&topic).qos2(1).payload("x"))
        .await;
    let message = subscriber.recv_publish().await;
    assert_eq!((message.qos(), message.dup()), (2, false));
    subscriber.send(pubrec(message.packet_id())).await;
    subscriber.recv(pubrel(message.packet_id())).await;
    subscriber.send(pubcomp(message.packet_id())).await;
    subscriber.fence().await;
}

pub async fn first_qos2_publish_has_an_id_and_no_dup(t: Target) {
    let topic = fresh("q2");
    let mut subscriber = t.subscriber(&topic, 2).await;
    t.publish_from_elsewhere(publish(&topic).qos2(8).dup().payload("x"))
        .await;
    let message = subscriber.recv_publish().await;
    assert_eq!((message.qos(), message.dup()), (2, false), "{message:?}");
    assert_ne!(message.packet_id(), 0);
}

pub async fn qos2_ids_are_free_ones(t: Target) {
    let topic = fresh("q2");
    let mut subscriber = t.subscriber(&topic, 2).await;
    let mut publisher = t.client().await;
    let mut open = Vec::new();
    for id in 1..=5 {
        publisher
            .publish(publish(&topic).qos2(id).payload("x"))
            .await;
        let taken = subscriber.recv_publish().await.packet_id();
        assert!(!open.contains(&taken), "{taken} is in use: {open:?}");
        open.push(taken);
    }
}

/// Half way to PUBREC, half way to PUBCOMP: the resumed session goes on where it stood.
pub async fn qos2_publish_stays_open_until_pubrec(t: Target) {
    let (id, topic) = (fresh("d"), fresh("q2"));
    let mut subscriber = t.connect(t.durable(&id)).await;
    subscriber.subscribe(&topic, 2).await;
    t.publish_from_elsewhere(publish(&topic).qos2(1).payload("x"))
        .await;
    let message = subscriber.recv_publish().await;
    subscriber.cut();
    let mut again = t.connect(t.durable(&id)).await;
    let resent = again.recv_publish().await;
    assert_eq!(
        (resent.packet_id(), resent.dup()),
        (message.packet_id(), true)
    );
}

pub async fn pubrel_stays_open_until_pubcomp(t: Target) {
    let (mut again, id) = released_and_reconnected(&t).await;
    again.recv(pubrel(id)).await;
    again.send(pubcomp(id)).await;
    again.fence().await;
}

pub async fn publish_is_not_resent_after_pubrel(t: Target) {
    let (mut again, _) = released_and_reconnected(&t).await;
    let resent = again.collect_to_fence().await;
    assert!(
        resent.iter().all(|packet| !packet.is_publish()),
        "{resent:?}"
    );
}

/// A durable subscriber that got PUBREL, lost its connection and came back.
async fn released_and_reconnected(t: &Target) -> (Client, u16) {
    let (id, topic) = (fresh("d"), fresh("q2"));
    let mut subscriber = t.connect(t.durable(&id)).await;
    subscriber.subscribe(&topic, 2).await;
    t.publish_from_elsewhere(publish(&topic).qos2(1).payload("x"))
        .await;
    let packet_id = subscriber.recv_publish().await.packet_id();
    subscriber.send(pubrec(packet_id)).await;
    subscriber.recv(pubrel(packet_id)).await;
    subscriber.cut();
    (t.connect(t.durable(&id)).await, packet_id)
}

pub async fn pubrec_gets_pubrel_with_its_id(t: Target) {
    let topic = fresh("q2");
    let mut subscriber = t.subscriber(&topic, 2).await;
    let mut publisher = t.client().await;
    for id in 1..=3 {
        publisher
            .publish(publish(&topic).qos2(id).payload("x"))
            .await;
        let taken = subscriber.recv_publish().await.packet_id();
        subscriber.send(pubrec(taken)).await;
        subscriber.recv(pubrel(taken)).await;
    }
}

/// As a receiver: PUBREC each time, delivery once.
pub async fn repeated_qos2_publish_is_delivered_once(t: Target) {
    let topic = fresh("q2");
    let mut subscriber = t.subscriber(&topic, 2).await;
    let mut publisher = t.client().await;
    for attempt in 0..3 {
        let packet = publish(&topic).qos2(4).payload("once");
        publisher
            .send(if attempt == 0 { packet } else { packet.dup() })
            .await;
        publisher.recv_ack(5, 4).await;
    }
    publisher.send(pubrel(4)).await;
    publisher.recv_ack(7, 4).await;
    subscriber.take("once").await;
    subscriber.fence().await;
}

pub async fn qos2_publish_gets_pubrec_with_its_id(t: Target) {
    let topic = fresh("q2");
    let mut client = t.client().await;
    for id in [1, 0x1234, 0xffff] {
        client.send(publish(&topic).qos2(id).payload("x")).await;
        client.recv_ack(5, id).await;
    }
}

pub async fn pubrel_gets_pubcomp_with_its_id(t: Target) {
    let topic = fresh("q2");
    let mut client = t.client().await;
    for id in [1, 0x1234, 0xffff] {
        client.send(publish(&topic).qos2(id).payload("x")).await;
        client.recv_ack(5, id).await;
        client.send(pubrel(id)).await;
        client.recv(pubcomp(id)).await;
    }
}

/// After PUBCOMP the id is new: the message arrives twice.
pub async fn completed_qos2_id_is_a_new_message(t: Target) {
    let topic = fresh("q2");
    let mut subscriber = t.subscriber(&topic, 2).await;
    let mut publisher = t.client().await;
    publisher
        .publish(publish(&topic).qos2(9).payload("x"))
        .await;
    publisher
        .publish(publish(&topic).qos2(9).payload("x"))
        .await;
    subscriber.take("x").await;
    subscriber.take("x").await;
    subscriber.fence().await;
}

/// Packets that only a server may send, and types that do not exist.
pub async fn packets_out_of_place_end_the_connection(t: Target) {
    let mut wrong: Vec<Vec<u8>> = vec![
        vec![0x20, 2, 0, 0],
        vec![0x90, 3, 0, 1, 0],
        vec![0xb0, 2, 0, 1],
        vec![0xd0, 0],
        vec![0x00, 0],
    ];
    if !t.is_v5() {
        wrong.push(vec![0xf0, 0]);
    }
    for packet in wrong {
        let mut client = t.client().await;
        client.send(packet).await;
        client.expect_refused(&[0x81, 0x82]).await;
    }
}

/// The fault of one client is none of another's.
pub async fn only_the_offending_connection_ends(t: Target) {
    let mut other = t.client().await;
    let id = fresh("c");
    let mut offender = t.connect(connect(&id)).await;
    offender.send([0x30, 0xff, 0xff, 0xff, 0xff, 0x01]).await;
    offender.expect_refused(&[0x81]).await;
    other.fence().await;
}

/// Packets in pieces of one byte, and many packets in one piece.
pub async fn stream_boundaries_mean_nothing(t: Target) {
    use flotte_tests::Packet as _;
    let topic = fresh("bytes");
    let mut client = t.dial().await;
    let mut bytes = connect(fresh("c")).encode(t.version);
    bytes.extend(subscribe(1).to(&topic, 1).encode(t.version));
    bytes.extend(publish(&topic).qos1(2).payload("x").encode(t.version));
    for byte in bytes {
        client.send([byte]).await;
    }
    assert_eq!(client.recv_kind(2).await.reason(), 0);
    // In which order a broker answers different requests is its own affair.
    let mut kinds = [0; 3];
    for kind in &mut kinds {
        *kind = client.next().await.kind();
    }
    kinds.sort_unstable();
    assert_eq!(kinds, [3, 4, 9]);
    let mut many = unsubscribe(3).from(&topic).encode(t.version);
    many.extend([0xc0, 0, 0xc0, 0]);
    client.send(many).await;
    for kind in &mut kinds {
        *kind = client.next().await.kind();
    }
    kinds.sort_unstable();
    assert_eq!(kinds, [11, 13, 13]);
}

/// A message that reaches nobody: told in 5.0, as success all the same.
pub async fn message_that_reaches_nobody_says_so(t: Target) {
    let topic = fresh("nobody");
    let mut client = t.client().await;
    client.send(publish(&topic).qos1(1)).await;
    client.recv(puback(1).reason(0x10)).await;
    client.send(publish(&topic).qos2(2)).await;
    client.recv(pubrec(2).reason(0x10)).await;
    client.send(pubrel(2)).await;
    client.recv(pubcomp(2)).await;
    client.subscribe(&topic, 0).await;
    client.send(publish(&topic).qos1(3)).await;
    let mut answers = [client.next().await, client.next().await];
    answers.sort_by_key(|packet| packet.kind());
    assert!(answers[0].is_publish(), "{answers:?}");
    assert_eq!(
        (answers[1].kind(), answers[1].reason()),
        (4, 0),
        "{answers:?}"
    );
}

/// The topic stands first: what follows its two bytes of length is the name, whatever it looks like.
pub async fn topic_is_the_first_field(t: Target) {
    let topic = format!("{}/\u{1}\u{2}0", fresh("first"));
    let mut subscriber = t.subscriber(&topic, 1).await;
    let mut body = flotte_tests::wire::text(&topic);
    body.extend([0, 9]);
    if t.is_v5() {
        body.push(0);
    }
    body.extend(b"payload");
    let mut publisher = t.client().await;
    publisher.send(flotte_tests::wire::frame(0x32, &body)).await;
    publisher.recv_ack(4, 9).await;
    assert_eq!(subscriber.take("payload").await.topic(), topic);
}
