//! Retained messages.

use flotte_tests::wire::prop;
use flotte_tests::{
    Client, Packet as _, Received, connect, fresh, option, props, publish, suback, subscribe,
};

use crate::target::Target;

/// Subscribes and returns all that is replayed for it. A replay may come at any time behind SUBACK, so
/// its end is marked by the retained message of a second subscription.
async fn replay(t: &Target, client: &mut Client, filter: &str, options: u8) -> Vec<Received> {
    client.subscribe(filter, options).await;
    replay_so_far(t, client).await
}

/// What was still to be replayed to the client.
async fn replay_so_far(t: &Target, client: &mut Client) -> Vec<Received> {
    let mark = fresh("mark");
    t.publish_from_elsewhere(publish(&mark).qos1(1).retain().payload("mark"))
        .await;
    client.subscribe(&mark, 0).await;
    let mut replayed = Vec::new();
    loop {
        let message = client.recv_publish().await;
        if message.topic() == mark {
            return replayed;
        }
        client.acknowledge(&message).await;
        replayed.push(message);
    }
}

/// The payloads replayed to a new client.
async fn payloads_for_late(t: &Target, filter: &str, options: u8) -> Vec<String> {
    let mut late = t.client().await;
    let plain = |message: &Received| String::from_utf8(message.payload()).expect("text");
    replay(t, &mut late, filter, options)
        .await
        .iter()
        .map(plain)
        .collect()
}

pub async fn retained_message_is_kept_with_its_qos(t: Target) {
    let topic = fresh("kept");
    t.publish_from_elsewhere(publish(&topic).qos2(1).retain().payload("old"))
        .await;
    t.publish_from_elsewhere(publish(&topic).qos1(1).retain().payload("new"))
        .await;
    let mut late = t.client().await;
    let got = replay(&t, &mut late, &topic, 2).await;
    assert_eq!(got.len(), 1, "{got:?}");
    assert_eq!((got[0].qos(), got[0].payload()), (1, b"new".to_vec()));
}

pub async fn new_subscription_gets_the_latest_of_each_topic(t: Target) {
    let root = fresh("kept");
    for (topic, payload) in [("a", "1"), ("b", "2"), ("a", "3"), ("c/d", "4")] {
        t.publish_from_elsewhere(
            publish(format!("{root}/{topic}"))
                .qos1(1)
                .retain()
                .payload(payload),
        )
        .await;
    }
    let mut late = t.client().await;
    let got = replay(&t, &mut late, &format!("{root}/+"), 0).await;
    let mut got: Vec<_> = got
        .iter()
        .map(|message| (message.topic(), message.payload()))
        .collect();
    got.sort();
    let wanted = [
        (format!("{root}/a"), b"3".to_vec()),
        (format!("{root}/b"), b"2".to_vec()),
    ];
    assert_eq!(got, wanted);
}

pub async fn qos0_evicts_the_older_message(t: Target) {
    let topic = fresh("kept");
    t.publish_from_elsewhere(publish(&topic).qos1(1).retain().payload("old"))
        .await;
    t.publish_from_elsewhere(publish(&topic).retain().payload("new"))
        .await;
    let got = payloads_for_late(&t, &topic, 1).await;
    assert!(got.iter().all(|payload| payload == "new"), "{got:?}");
}

pub async fn replay_carries_retain(t: Target) {
    let topic = fresh("kept");
    t.publish_from_elsewhere(publish(&topic).qos1(1).retain().payload("x"))
        .await;
    let mut late = t.subscriber(&topic, 0).await;
    late.recv(publish(&topic).retain().payload("x")).await;
}

pub async fn live_delivery_carries_no_retain(t: Target) {
    let topic = fresh("live");
    let mut subscriber = t.subscriber(&topic, 0).await;
    t.publish_from_elsewhere(publish(&topic).qos1(1).retain().payload("x"))
        .await;
    subscriber.recv(publish(&topic).payload("x")).await;
}

pub async fn empty_payload_is_forwarded_and_erases(t: Target) {
    let topic = fresh("erase");
    t.publish_from_elsewhere(publish(&topic).qos1(1).retain().payload("x"))
        .await;
    let mut subscriber = t.subscriber(&topic, 0).await;
    subscriber.take("x").await;
    t.publish_from_elsewhere(publish(&topic).qos1(1).retain())
        .await;
    subscriber.recv(publish(&topic)).await;
    assert!(payloads_for_late(&t, &topic, 0).await.is_empty());
}

pub async fn empty_payload_is_never_stored(t: Target) {
    let topic = fresh("empty");
    t.publish_from_elsewhere(publish(&topic).qos1(1).retain())
        .await;
    assert!(payloads_for_late(&t, &topic, 0).await.is_empty());
}

pub async fn message_without_retain_changes_nothing(t: Target) {
    let topic = fresh("kept");
    t.publish_from_elsewhere(publish(&topic).qos1(1).payload("none yet"))
        .await;
    assert!(payloads_for_late(&t, &topic, 0).await.is_empty());
    t.publish_from_elsewhere(publish(&topic).qos1(1).retain().payload("kept"))
        .await;
    t.publish_from_elsewhere(publish(&topic).qos1(1).payload("passing"))
        .await;
    t.publish_from_elsewhere(publish(&topic).qos1(1)).await;
    assert_eq!(payloads_for_late(&t, &topic, 0).await, ["kept"]);
}

pub async fn retained_message_outlives_its_publisher(t: Target) {
    let (id, topic) = (fresh("c"), fresh("kept"));
    let mut publisher = t.connect(connect(&id)).await;
    publisher
        .publish(publish(&topic).qos1(1).retain().payload("x"))
        .await;
    publisher.leave().await;
    t.connect(connect(&id)).await.leave().await;
    t.subscriber(&topic, 0).await.take("x").await;
}

/// The same filter again: the retained message comes again.
pub async fn repeated_subscription_replays(t: Target) {
    let topic = fresh("kept");
    t.publish_from_elsewhere(publish(&topic).qos1(1).retain().payload("x"))
        .await;
    let mut subscriber = t.client().await;
    for _ in 0..2 {
        assert_eq!(replay(&t, &mut subscriber, &topic, 0).await.len(), 1);
    }
}

pub async fn retain_handling_0_replays_at_every_subscribe(t: Target) {
    let topic = fresh("kept");
    t.publish_from_elsewhere(publish(&topic).qos1(1).retain().payload("x"))
        .await;
    let mut subscriber = t.client().await;
    for _ in 0..3 {
        let got = replay(&t, &mut subscriber, &topic, 1).await;
        assert!(got.len() == 1 && got[0].retain(), "{got:?}");
    }
}

pub async fn retain_handling_1_replays_to_new_subscriptions(t: Target) {
    let topic = fresh("kept");
    t.publish_from_elsewhere(publish(&topic).qos1(1).retain().payload("x"))
        .await;
    let mut subscriber = t.client().await;
    assert_eq!(
        replay(&t, &mut subscriber, &topic, option::RETAIN_IF_NEW)
            .await
            .len(),
        1
    );
    assert_eq!(
        replay(&t, &mut subscriber, &topic, option::RETAIN_IF_NEW)
            .await
            .len(),
        0
    );
}

pub async fn retain_handling_2_replays_nothing(t: Target) {
    let topic = fresh("kept");
    t.publish_from_elsewhere(publish(&topic).qos1(1).retain().payload("x"))
        .await;
    assert!(
        payloads_for_late(&t, &topic, option::RETAIN_NEVER)
            .await
            .is_empty()
    );
}

pub async fn retain_as_published_0_clears_the_flag(t: Target) {
    let topic = fresh("rap");
    let mut subscriber = t.subscriber(&topic, 0).await;
    for packet in [
        publish(&topic).payload("x"),
        publish(&topic).retain().payload("y"),
    ] {
        t.publish_from_elsewhere(packet).await;
        assert!(!subscriber.recv_publish().await.retain());
    }
}

pub async fn retain_as_published_1_keeps_the_flag(t: Target) {
    let topic = fresh("rap");
    let mut subscriber = t.subscriber(&topic, option::RETAIN_AS_PUBLISHED).await;
    t.publish_from_elsewhere(publish(&topic).payload("x")).await;
    assert!(!subscriber.take("x").await.retain());
    t.publish_from_elsewhere(publish(&topic).retain().payload("y"))
        .await;
    assert!(subscriber.take("y").await.retain());
}

/// Properties are kept with the message.
pub async fn replay_has_the_properties_of_the_message(t: Target) {
    let topic = fresh("kept");
    let properties = props()
        .byte(prop::PAYLOAD_FORMAT, 1)
        .text(prop::CONTENT_TYPE, "text/plain")
        .user("k", "v");
    t.publish_from_elsewhere(
        publish(&topic)
            .qos1(1)
            .retain()
            .props(properties)
            .payload("x"),
    )
    .await;
    let mut late = t.subscriber(&topic, 0).await;
    let got = late.take("x").await;
    assert_eq!(got.int_prop(prop::PAYLOAD_FORMAT), Some(1));
    assert_eq!(
        got.bytes_prop(prop::CONTENT_TYPE),
        Some(b"text/plain".to_vec())
    );
    assert_eq!(got.user_props(), [("k".to_owned(), "v".to_owned())]);
}

/// Replacing a subscription replays, and what is published meanwhile is not lost.
pub async fn replacing_a_subscription_loses_nothing(t: Target) {
    let topic = fresh("live");
    t.publish_from_elsewhere(publish(&topic).qos1(1).retain().payload("kept"))
        .await;
    let mut subscriber = t.subscriber(&topic, 1).await;
    subscriber.take("kept").await;
    let mut publisher = t.client().await;
    for id in 1..=10u16 {
        publisher
            .send(publish(&topic).qos1(id).payload(id.to_string()))
            .await;
        if id == 5 {
            subscriber.send(subscribe(50).to(&topic, 1)).await;
        }
    }
    for id in 1..=10 {
        publisher.recv_ack(4, id).await;
    }
    let wanted = suback(50, &[1]).encode(t.version);
    let mut got = Vec::new();
    while got.len() < 10 || !got.iter().any(|packet: &Received| packet.bytes == wanted) {
        got.push(subscriber.next().await);
    }
    got.extend(replay_so_far(&t, &mut subscriber).await);
    let payloads: Vec<_> = got
        .iter()
        .filter(|packet| packet.is_publish())
        .map(|m| m.payload())
        .collect();
    for id in 1..=10 {
        assert!(
            payloads.contains(&id.to_string().into_bytes()),
            "{id} is lost: {got:?}"
        );
    }
    let replays = payloads
        .iter()
        .filter(|payload| *payload == b"kept")
        .count();
    assert_eq!(replays, 1, "{got:?}");
}

/// [MQTT-3.3.1-6]: who subscribes again gets all that is retained again, also what came live since the first time.
pub async fn what_came_live_is_replayed_to_who_subscribes_again(t: Target) {
    let root = fresh("again");
    let kept = |name| publish(format!("{root}/{name}")).qos1(1).retain();
    t.publish_from_elsewhere(kept("a").payload("kept")).await;
    let mut subscriber = t.client().await;
    let filter = format!("{root}/#");
    assert_eq!(replay(&t, &mut subscriber, &filter, 1).await.len(), 1);
    t.publish_from_elsewhere(kept("b").payload("kept")).await;
    let live = subscriber.recv_publish().await;
    assert!(!live.retain(), "{live:?}");
    subscriber.acknowledge(&live).await;
    assert_eq!(replay(&t, &mut subscriber, &filter, 1).await.len(), 2);
}

/// Messages retained while a subscription is made come live or replayed: none is missing, and none comes twice.
pub async fn retained_message_comes_live_or_replayed(t: Target) {
    let here = t.client().await;
    come_live_or_replayed(&t, here).await;
    let elsewhere = Client::connect(t.elsewhere, t.version, connect(fresh("p"))).await;
    come_live_or_replayed(&t, elsewhere).await;
}

async fn come_live_or_replayed(t: &Target, mut publisher: Client) {
    const HALF: u16 = 150;
    let root = fresh("both");
    let mut subscriber = t.client().await;
    for number in 1..=2 * HALF {
        if number == HALF {
            subscriber
                .send(subscribe(1).to(format!("{root}/#"), 1))
                .await;
        }
        // With a payload: an empty one retains nothing.
        let packet = publish(format!("{root}/{number}")).payload("kept");
        publisher.send(packet.qos1(number).retain()).await;
    }
    for number in 1..=2 * HALF {
        publisher.recv_ack(4, number).await;
    }
    let mut topics = std::collections::BTreeSet::new();
    while topics.len() < usize::from(2 * HALF) {
        let packet = subscriber.next().await;
        if packet.is_publish() {
            subscriber.acknowledge(&packet).await;
            assert!(topics.insert(packet.topic()), "twice: {packet:?}");
        }
    }
    subscriber.fence().await;
}
