//! Clients that send on without waiting for answers.

use flotte_tests::{Packet as _, connect, disconnect, fresh, puback, publish, subscribe};

use crate::target::Target;

/// CONNECT, a message and the goodbye in one piece: it is answered, and the message arrives.
pub async fn whole_life_in_one_piece(t: Target) {
    let topic = fresh("piece");
    let mut subscriber = t.subscriber(&topic, 0).await;
    let mut client = t.dial().await;
    let mut bytes = connect(fresh("c")).encode(t.version);
    bytes.extend(publish(&topic).payload("x").encode(t.version));
    bytes.extend(disconnect().encode(t.version));
    client.send(bytes).await;
    let connack = client.recv_kind(2).await;
    assert_eq!(connack.reason(), 0, "{connack:?}");
    client.expect_closed().await;
    subscriber.take("x").await;
}

/// A broken packet right behind a good CONNECT: that is answered before the end.
pub async fn connect_is_answered_before_an_error_behind_it(t: Target) {
    let mut client = t.dial().await;
    let mut bytes = connect(fresh("c")).encode(t.version);
    bytes.extend([0x00, 0x00]);
    client.send(bytes).await;
    let connack = client.recv_kind(2).await;
    assert_eq!(connack.reason(), 0, "{connack:?}");
    if let Some(goodbye) = client.next_or_end().await.expect("a word or the end") {
        assert!(t.is_v5(), "{goodbye:?}");
        assert_eq!(
            (goodbye.kind(), goodbye.reason()),
            (14, 0x81),
            "{goodbye:?}"
        );
        client.expect_closed().await;
    }
}

/// Many subscriptions at once, while more retained messages are on their way than go out unacknowledged: what waits for
/// the client to take them must not keep the broker from reading that it did.
pub async fn requests_are_answered_during_a_slow_replay(t: Target) {
    const MESSAGES: usize = 1_300;
    const REQUESTS: u16 = 200;
    let root = fresh("replay");
    let mut publisher = t.client().await;
    for number in 1..=MESSAGES {
        let id = u16::try_from(number).expect("a packet id");
        let packet = publish(format!("{root}/{number}")).qos1(id).retain();
        publisher.send(packet.payload("x")).await;
        // In steps, within the receive maximum.
        if number % 100 == 0 {
            for id in id - 99..=id {
                publisher.recv_ack(4, id).await;
            }
        }
    }
    let mut client = t.client().await;
    client.send(subscribe(1).to(format!("{root}/#"), 1)).await;
    let mut unacknowledged = Vec::new();
    let (mut messages, mut answers, mut asked) = (0, 0, false);
    while messages < MESSAGES || answers < REQUESTS {
        let packet = client.next().await;
        if packet.is_publish() {
            messages += 1;
            unacknowledged.push(packet.packet_id());
        } else {
            answers += 1;
            assert_eq!((packet.kind(), packet.packet_id()), (9, answers));
        }
        if messages < 1_000 {
            continue;
        }
        let mut bytes = Vec::new();
        if !asked {
            asked = true;
            for id in 2..=REQUESTS {
                let filter = format!("{root}-{id}");
                bytes.extend(subscribe(id).to(filter, 1).encode(t.version));
            }
        }
        for id in unacknowledged.drain(..) {
            bytes.extend(puback(id).encode(t.version));
        }
        client.send(bytes).await;
    }
}

/// Topics that belong to the broker: acknowledged as ever or the end, and passed on in no case.
pub async fn message_to_a_topic_of_the_broker_goes_nowhere(t: Target) {
    let topic = format!("$SYS/{}", fresh("forged"));
    let mut subscriber = t.subscriber(&topic, 1).await;
    let mut publisher = t.client().await;
    publisher.send(publish(&topic).qos1(7).payload("x")).await;
    if let Some(answer) = publisher.next_or_end().await.expect("an answer or the end") {
        assert_eq!((answer.kind(), answer.packet_id()), (4, 7), "{answer:?}");
        if t.is_v5() {
            assert_eq!(answer.reason(), 0x87, "{answer:?}");
        }
    }
    subscriber.fence().await;
}
