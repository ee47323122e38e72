//! Exchanges that suites compare byte by byte, and acknowledgements in every form and in the wrong place.

use flotte_tests::{
    Client, connect, fresh, puback, pubcomp, publish, pubrec, pubrel, subscribe, unsubscribe,
};

use crate::target::Target;

/// A subscriber with one message under way to it, and the id of that.
async fn one_under_way(t: &Target, qos: u8) -> (Client, u16) {
    let topic = fresh("way");
    let mut subscriber = t.subscriber(&topic, qos).await;
    t.publish_from_elsewhere(publish(&topic).qos_bits(qos, 1).payload("x"))
        .await;
    let id = subscriber.recv_publish().await.packet_id();
    (subscriber, id)
}

/// An acknowledgement of another QoS, or of another step, is a protocol error (sections 4.3.2 and 4.3.3).
pub async fn acknowledgement_of_another_kind_ends_the_connection(t: Target) {
    let (mut client, id) = one_under_way(&t, 1).await;
    client.send(pubrec(id)).await;
    client.expect_refused(&[0x82]).await;
    let (mut client, id) = one_under_way(&t, 1).await;
    client.send(pubcomp(id)).await;
    client.expect_refused(&[0x82]).await;
    let (mut client, id) = one_under_way(&t, 2).await;
    client.send(puback(id)).await;
    client.expect_refused(&[0x82]).await;
    let (mut client, id) = one_under_way(&t, 2).await;
    client.send(pubcomp(id)).await;
    client.expect_refused(&[0x82]).await;
    let (mut client, id) = one_under_way(&t, 2).await;
    client.send(pubrec(id)).await;
    client.recv(pubrel(id)).await;
    client.send(puback(id)).await;
    client.expect_refused(&[0x82]).await;
}

/// PUBREC that comes twice is answered twice: the client may not have had the first PUBREL.
pub async fn repeated_pubrec_gets_pubrel_again(t: Target) {
    let (mut client, id) = one_under_way(&t, 2).await;
    for _ in 0..3 {
        client.send(pubrec(id)).await;
        client.recv(pubrel(id)).await;
    }
    client.send(pubcomp(id)).await;
    client.fence().await;
}

/// The forms of an acknowledgement of success in 5.0: bare, with its reason, with empty properties, with some.
fn forms(first: u8, id: u16) -> [Vec<u8>; 4] {
    let [high, low] = id.to_be_bytes();
    let user = [0x26, 0, 1, b'k', 0, 1, b'v'];
    [
        vec![first, 2, high, low],
        vec![first, 3, high, low, 0],
        vec![first, 4, high, low, 0, 0],
        [&[first, 11, high, low, 0, 7][..], &user].concat(),
    ]
}

pub async fn every_form_of_an_acknowledgement_is_taken(t: Target) {
    for form in 0..4 {
        let (mut client, id) = one_under_way(&t, 1).await;
        client.send(forms(0x40, id)[form].clone()).await;
        client.fence().await;
        let (mut client, id) = one_under_way(&t, 2).await;
        client.send(forms(0x50, id)[form].clone()).await;
        client.recv(pubrel(id)).await;
        client.send(forms(0x70, id)[form].clone()).await;
        client.fence().await;
        let topic = fresh("form");
        let _subscriber = t.subscriber(&topic, 0).await;
        client.send(publish(&topic).qos2(9)).await;
        client.recv(pubrec(9)).await;
        client.send(forms(0x62, 9)[form].clone()).await;
        client.recv(pubcomp(9)).await;
    }
}

/// A life in 5.0, written out: what is not needed is left out everywhere, and answers of success are as short as can be.
pub async fn bytes_of_a_session(t: Target) {
    let topic = fresh("t");
    let mut client = t.connect(connect(fresh("c"))).await;
    if t.is_ours {
        // Receive Maximum 1024, Maximum Packet Size 1 MiB, Topic Alias Maximum 64.
        let said = [
            0x20, 14, 0, 0, 11, 0x21, 4, 0, 0x27, 0, 16, 0, 0, 0x22, 0, 64,
        ];
        assert_eq!(client.connack().bytes, said);
    }
    client.send(subscribe(1).to(&topic, 2)).await;
    client.recv([0x90, 4, 0, 1, 0, 2]).await;
    client.send(publish(&topic).payload("x")).await;
    client.recv(publish(&topic).payload("x")).await;
    let mut other = t.client().await;
    other.send(publish(&topic).qos1(7).payload("y")).await;
    other.recv([0x40, 2, 0, 7]).await;
    client.recv(publish(&topic).qos1(1).payload("y")).await;
    client.send([0x40, 2, 0, 1]).await;
    other.send(publish(&topic).qos2(7).payload("z")).await;
    other.recv([0x50, 2, 0, 7]).await;
    other.send([0x62, 2, 0, 7]).await;
    other.recv([0x70, 2, 0, 7]).await;
    let copy = client.recv_publish().await;
    let [high, low] = copy.packet_id().to_be_bytes();
    client.send([0x50, 2, high, low]).await;
    client.recv([0x62, 2, high, low]).await;
    client.send([0x70, 2, high, low]).await;
    client
        .send(unsubscribe(2).from(&topic).from("unknown"))
        .await;
    client.recv([0xb0, 5, 0, 2, 0, 0, 0x11]).await;
    client.send([0xc0, 0]).await;
    client.recv([0xd0, 0]).await;
    // SUBSCRIBE with the reserved bits of its options.
    client.send([0x82, 7, 0, 1, 0, 0, 1, b'a', 0xc0]).await;
    let end = client.recv_kind(14).await;
    assert_eq!(end.bytes[..2], [0xe0, 1], "{end:?}");
    client.expect_closed().await;
    other.send([0xe0, 0]).await;
    other.expect_closed().await;
}
