//! The order of messages and of acknowledgements.

use flotte_tests::{fresh, puback, publish, pubrel};

use crate::target::Target;

/// One publisher, one topic, one QoS at a time, many messages at once: first in, first out.
pub async fn messages_keep_their_order(t: Target) {
    for qos in 0..3 {
        let topic = fresh("order");
        let mut subscriber = t.subscriber(&topic, qos).await;
        let mut publisher = t.client().await;
        for id in 1..=15 {
            publisher
                .send(publish(&topic).qos_bits(qos, id).payload(id.to_string()))
                .await;
        }
        if qos == 2 {
            // A broker may deliver as late as at PUBREL. PUBCOMPs may come between PUBRECs: only
            // each kind has its order.
            let (mut received, mut completed) = (0, 0);
            while completed < 15 {
                let ack = publisher.next().await;
                match ack.kind() {
                    5 => {
                        received += 1;
                        assert_eq!(ack.packet_id(), received);
                        publisher.send(pubrel(received)).await;
                    }
                    7 => {
                        completed += 1;
                        assert_eq!(ack.packet_id(), completed);
                    }
                    other => panic!("type {other} among PUBRECs and PUBCOMPs"),
                }
            }
        }
        for id in 1..=15 {
            subscriber.take(id.to_string()).await;
        }
    }
}

/// No topic is exempt: many topics, each in order.
pub async fn every_topic_is_ordered(t: Target) {
    let root = fresh("order");
    let mut subscriber = t.subscriber(&format!("{root}/+"), 1).await;
    let mut publisher = t.client().await;
    for id in 1..=15u16 {
        publisher
            .send(
                publish(format!("{root}/{}", id % 3))
                    .qos1(id)
                    .payload([id as u8]),
            )
            .await;
    }
    let mut last = [0; 3];
    for _ in 1..=15 {
        let got = subscriber.recv_publish().await;
        subscriber.send(puback(got.packet_id())).await;
        let number = got.payload()[0];
        let seen = &mut last[usize::from(number % 3)];
        assert!(*seen < number, "{number} after {seen}");
        *seen = number;
    }
}

/// Acknowledgements go out in the order the messages came in.
pub async fn acknowledgements_come_in_order(t: Target) {
    let topic = fresh("acks");
    let mut client = t.client().await;
    for id in [5, 3, 9, 1] {
        client.send(publish(&topic).qos1(id)).await;
    }
    for id in [5, 3, 9, 1] {
        client.recv_ack(4, id).await;
    }
}
