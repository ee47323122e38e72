//! What suites and clients in the field take for granted where the standard leaves the broker free: mostly that what a
//! client sent first counts first.

use flotte_tests::{
    Client, Packet as _, connect, disconnect, fresh, pingreq, puback, pubcomp, publish, pubrec,
    pubrel, subscribe, unsubscribe,
};

use crate::target::Target;

/// Many command-line clients publish, say goodbye and are gone: what they published goes on.
pub async fn retained_message_of_a_client_that_leaves_at_once(t: Target) {
    const COUNT: usize = 100;
    let topic = fresh("leaving");
    let mut subscriber = t.subscriber(&topic, 0).await;
    for goodbye in [true, false] {
        let mut bytes = Vec::new();
        for number in 0..COUNT {
            let message = publish(&topic).retain().payload(number.to_string());
            bytes.extend(message.encode(t.version));
        }
        if goodbye {
            bytes.extend(disconnect().encode(t.version));
        }
        let mut publisher = Client::connect(t.elsewhere, t.version, connect(fresh("p"))).await;
        publisher.send(bytes).await;
        drop(publisher);
        for number in 0..COUNT {
            let copy = subscriber.take(number.to_string()).await;
            assert!(!copy.retain(), "a live copy: {copy:?}");
        }
    }
    let mut late = t.subscriber(&topic, 0).await;
    assert!(late.take((COUNT - 1).to_string()).await.retain());
}

/// The same at QoS 1, where nobody waits for the acknowledgement.
pub async fn acknowledged_message_of_a_client_that_leaves_at_once(t: Target) {
    let topic = fresh("leaving");
    let mut subscriber = t.subscriber(&topic, 1).await;
    let mut publisher = Client::connect(t.elsewhere, t.version, connect(fresh("p"))).await;
    let mut bytes = publish(&topic)
        .retain()
        .qos1(1)
        .payload("1")
        .encode(t.version);
    bytes.extend(publish(&topic).qos1(2).payload("2").encode(t.version));
    bytes.extend(disconnect().encode(t.version));
    publisher.send(bytes).await;
    drop(publisher);
    subscriber.take("1").await;
    subscriber.take("2").await;
    subscriber.fence().await;
}

/// A message that came before the subscription is no news to it: it is replayed as a retained one, behind SUBACK.
pub async fn retained_message_ahead_of_a_subscribe(t: Target) {
    for round in 0..10u16 {
        let topic = fresh("ahead");
        let mut client = t.client().await;
        let mut bytes = publish(&topic).retain().payload("kept").encode(t.version);
        bytes.extend(subscribe(round + 1).to(&topic, 0).encode(t.version));
        client.send(bytes).await;
        let answer = client.recv_kind(9).await;
        assert_eq!(answer.codes(), [0], "{answer:?}");
        assert!(client.take("kept").await.retain(), "a retained message");
        client.fence().await;
    }
}

/// A message that came before UNSUBSCRIBE still meets the subscription.
pub async fn retained_message_ahead_of_an_unsubscribe(t: Target) {
    let topic = fresh("ahead");
    let mut client = t.subscriber(&topic, 0).await;
    let mut bytes = publish(&topic).retain().payload("kept").encode(t.version);
    bytes.extend(unsubscribe(9).from(&topic).encode(t.version));
    client.send(bytes).await;
    assert!(!client.take("kept").await.retain(), "a live copy");
    client.recv_kind(11).await;
    client.fence().await;
}

/// Whoever hears the answer to a ping knows that what was sent before is done, also what has no acknowledgement.
pub async fn ping_behind_a_retained_message(t: Target) {
    for _ in 0..10 {
        let topic = fresh("pinged");
        let mut late = t.client().await;
        let mut publisher = Client::connect(t.elsewhere, t.version, connect(fresh("p"))).await;
        let mut bytes = publish(&topic).retain().payload("kept").encode(t.version);
        bytes.extend(pingreq().encode(t.version));
        publisher.send(bytes).await;
        publisher.recv_kind(13).await;
        late.subscribe(&topic, 0).await;
        assert!(late.take("kept").await.retain());
    }
}

/// PUBCOMP was lost with the connection: PUBREL that comes again is no error of the client (section 3.7.2.1: "not an
/// error during recovery").
pub async fn pubcomp_that_was_lost_comes_again(t: Target) {
    let id = fresh("recovering");
    let packet = || t.durable(&id);
    let mut client = t.connect(packet()).await;
    let topic = fresh("recovered");
    let _subscriber = t.subscriber(&topic, 0).await;
    client.publish(publish(&topic).qos2(7)).await;
    drop(client);
    let mut client = t.connect(packet()).await;
    assert!(client.session_present());
    client.send(pubrel(7)).await;
    client.recv(pubcomp(7)).await;
}

/// A subscription that No Local keeps the message from is a subscription all the same.
pub async fn hidden_by_no_local_is_not_unmatched(t: Target) {
    let topic = fresh("own");
    let mut client = t.client().await;
    client.subscribe(&topic, 0x04 | 1).await;
    client.send(publish(&topic).qos1(1)).await;
    client.recv(puback(1)).await;
    client.send(publish(&topic).qos2(2)).await;
    client.recv(pubrec(2)).await;
    client.send(pubrel(2)).await;
    client.recv(pubcomp(2)).await;
    client.fence().await;
    // Nor does it last longer than the subscription.
    client.send(unsubscribe(3).from(&topic)).await;
    client.recv_kind(11).await;
    client.send(publish(&topic).qos1(4)).await;
    client.recv(puback(4).reason(0x10)).await;
}
