//! Fixed headers and packet identifiers.

use flotte_tests::wire::{frame, text};
use flotte_tests::{
    Packet, auth, connect, disconnect, fresh, puback, pubcomp, publish, pubrec, pubrel, suback,
    subscribe, unsuback, unsubscribe,
};

use crate::target::Target;

async fn refused_as_malformed(t: &Target, packet: impl Packet) {
    let mut client = t.client().await;
    client.send(packet).await;
    client.expect_refused(&[0x81]).await;
}

pub async fn wrong_flags_end_the_connection(t: Target) {
    refused_as_malformed(&t, puback(1).first(0x41)).await;
    refused_as_malformed(&t, pubrec(1).first(0x52)).await;
    refused_as_malformed(&t, pubcomp(1).first(0x78)).await;
    refused_as_malformed(&t, [0xc1, 0]).await;
    let mut client = t.dial().await;
    client.send(connect(fresh("c")).first(0x11)).await;
    client.expect_refused(&[0x81]).await;
}

pub async fn pubrel_with_wrong_flags_ends_the_connection(t: Target) {
    for first in [0x60, 0x61, 0x63, 0x66, 0x6a] {
        refused_as_malformed(&t, pubrel(1).first(first)).await;
    }
}

pub async fn subscribe_with_wrong_flags_ends_the_connection(t: Target) {
    for first in [0x80, 0x81, 0x83, 0x86, 0x8a] {
        refused_as_malformed(&t, subscribe(1).to("a", 0).first(first)).await;
    }
}

pub async fn unsubscribe_with_wrong_flags_ends_the_connection(t: Target) {
    for first in [0xa0, 0xa1, 0xa3, 0xa6, 0xaa] {
        refused_as_malformed(&t, unsubscribe(1).from("a").first(first)).await;
    }
}

pub async fn disconnect_with_wrong_flags_ends_the_connection(t: Target) {
    for first in [0xe1, 0xe2, 0xe4, 0xe8] {
        refused_as_malformed(&t, disconnect().first(first)).await;
    }
}

pub async fn auth_with_wrong_flags_ends_the_connection(t: Target) {
    for first in [0xf1, 0xf2, 0xf8] {
        refused_as_malformed(&t, auth().first(first)).await;
    }
}

/// Every packet a server sends, with its flags: CONNACK, SUBACK, UNSUBACK, the four acknowledgements,
/// PINGRESP. Each is compared whole.
pub async fn packets_of_the_server_have_the_fixed_flags(t: Target) {
    let topic = fresh("flags");
    let mut client = t.client().await;
    assert_eq!(client.connack().flags(), 0);
    client.send(subscribe(3).to(&topic, 2)).await;
    client.recv(suback(3, &[2])).await;
    t.publish_from_elsewhere(publish(&topic).qos2(9).payload("x"))
        .await;
    let message = client.recv_publish().await;
    client.send(pubrec(message.packet_id())).await;
    client.recv(pubrel(message.packet_id())).await;
    client.send(pubcomp(message.packet_id())).await;
    client.send(unsubscribe(4).from(&topic)).await;
    client.recv(unsuback(4, &[0])).await;
    client.send(publish(&topic).qos1(5)).await;
    assert_eq!(client.recv_kind(4).await.flags(), 0);
    client.send(publish(&topic).qos2(6)).await;
    assert_eq!(client.recv_kind(5).await.flags(), 0);
    client.send(pubrel(6)).await;
    assert_eq!(client.recv_kind(7).await.flags(), 0);
    client.fence().await;
}

/// Packet id 0 where one is required.
pub async fn packet_id_zero_ends_the_connection(t: Target) {
    for packet in [publish("a").qos1(0), publish("a").qos2(0)] {
        let mut client = t.client().await;
        client.send(packet).await;
        client.expect_refused(&[0x81, 0x82]).await;
    }
    for packet in [subscribe(0).to("a", 0), unsubscribe(0).from("a")] {
        let mut client = t.client().await;
        client.send(packet).await;
        client.expect_refused(&[0x81, 0x82]).await;
    }
}

/// At QoS 0 the payload follows the topic (and properties): no two bytes of id between.
pub async fn qos0_has_no_packet_id(t: Target) {
    let topic = fresh("noid");
    let mut subscriber = t.subscriber(&topic, 2).await;
    let mut body = text(&topic);
    if t.is_v5() {
        body.push(0);
    }
    body.extend(b"ab");
    let whole = frame(0x30, &body);
    let mut publisher = t.client().await;
    publisher.send(whole.clone()).await;
    subscriber.recv(whole).await;
}

/// Three messages in flight at once: three ids, none of them 0.
pub async fn ids_of_the_server_are_free_ones(t: Target) {
    let topic = fresh("ids");
    let mut subscriber = t.subscriber(&topic, 1).await;
    let mut publisher = t.client().await;
    for id in 1..=3 {
        publisher.publish(publish(&topic).qos1(id)).await;
    }
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(subscriber.recv_publish().await.packet_id());
    }
    assert!(!ids.contains(&0), "{ids:?}");
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 3, "{ids:?}");
}

pub async fn acknowledgements_repeat_the_packet_id(t: Target) {
    let topic = fresh("ack");
    let mut client = t.client().await;
    client.send(publish(&topic).qos1(0xfffe)).await;
    client.recv_ack(4, 0xfffe).await;
    client.send(publish(&topic).qos2(0x0102)).await;
    client.recv_ack(5, 0x0102).await;
    client.send(pubrel(0x0102)).await;
    client.recv_ack(7, 0x0102).await;
}

pub async fn suback_and_unsuback_repeat_the_packet_id(t: Target) {
    let filter = fresh("f");
    let mut client = t.client().await;
    client.send(subscribe(0xabcd).to(&filter, 0)).await;
    client.recv(suback(0xabcd, &[0])).await;
    client.send(unsubscribe(0xffff).from(&filter)).await;
    client.recv(unsuback(0xffff, &[0])).await;
}
