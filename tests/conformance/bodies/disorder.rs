//! Acknowledgements and repeated packets in another order than the standard wants: a client that breaks such a rule harms
//! nobody, and loses nothing.

use flotte_tests::{Client, fresh, puback, pubcomp, publish, pubrec, pubrel};

use crate::target::Target;

/// Five messages under way to a client, and their ids.
async fn under_way(t: &Target, qos: u8) -> (Client, Vec<u16>) {
    let topic = fresh("way");
    let mut subscriber = t.subscriber(&topic, qos).await;
    let mut publisher = t.client().await;
    for id in 1..=5 {
        publisher
            .publish(publish(&topic).qos_bits(qos, id).payload("x"))
            .await;
    }
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(subscriber.recv_publish().await.packet_id());
    }
    (subscriber, ids)
}

/// A client that acknowledges in another order breaks a rule that harms nobody: each message is done.
pub async fn pubacks_in_another_order_count(t: Target) {
    let (mut subscriber, ids) = under_way(&t, 1).await;
    for id in ids.iter().rev() {
        subscriber.send(puback(*id)).await;
    }
    subscriber.fence().await;
}

pub async fn pubrecs_in_another_order_count(t: Target) {
    let (mut subscriber, ids) = under_way(&t, 2).await;
    for id in ids.iter().rev() {
        subscriber.send(pubrec(*id)).await;
        subscriber.recv(pubrel(*id)).await;
    }
    for id in ids {
        subscriber.send(pubcomp(id)).await;
    }
    subscriber.fence().await;
}

pub async fn pubrels_in_another_order_count(t: Target) {
    let topic = fresh("rel");
    let mut subscriber = t.subscriber(&topic, 0).await;
    let mut publisher = t.client().await;
    for id in 1..=5 {
        publisher
            .send(publish(&topic).qos2(id).payload(id.to_string()))
            .await;
        publisher.recv_ack(5, id).await;
    }
    for id in (1..=5).rev() {
        publisher.send(pubrel(id)).await;
        publisher.recv(pubcomp(id)).await;
    }
    for id in 1..=5 {
        subscriber.take(id.to_string()).await;
    }
    subscriber.fence().await;
}

/// What a client sends again after its return, in whatever order, is acknowledged; QoS 2 arrives once.
pub async fn publishes_sent_again_in_another_order_count(t: Target) {
    let (id, topic) = (fresh("d"), fresh("again"));
    let mut subscriber = t.subscriber(&topic, 2).await;
    let mut publisher = t.connect(t.durable(&id)).await;
    for number in 1..=3 {
        let packet = publish(&topic).qos2(number).payload(number.to_string());
        publisher.send(packet).await;
        publisher.recv_ack(5, number).await;
    }
    publisher.cut();
    let mut again = t.connect(t.durable(&id)).await;
    for number in (1..=3).rev() {
        let packet = publish(&topic).qos2(number).payload(number.to_string());
        again.send(packet.dup()).await;
        again.recv_ack(5, number).await;
        again.send(pubrel(number)).await;
        again.recv_ack(7, number).await;
    }
    for number in 1..=3 {
        subscriber.take(number.to_string()).await;
    }
    subscriber.fence().await;
}
