//! Shared subscriptions.

use std::time::Duration;

use flotte_tests::{
    Client, connect, fresh, option, puback, pubcomp, publish, pubrec, pubrel, suback, subscribe,
};

use super::matching::filter_is_refused;
use crate::target::Target;

pub async fn shared_filter_has_a_name_and_a_filter(t: Target) {
    for filter in [
        "$share/",
        "$share/name",
        "$share//a",
        "$share/name/",
        "$share",
    ] {
        // `$share` alone is an ordinary topic by its form; a broker may take it for one.
        if filter != "$share" {
            filter_is_refused(&t, filter).await;
        }
    }
    let topic = fresh("s");
    let mut member = t.subscriber(&format!("$share/group/{topic}"), 0).await;
    t.publish_from_elsewhere(publish(&topic).payload("x")).await;
    member.take("x").await;
}

pub async fn share_name_has_no_wildcard(t: Target) {
    for filter in [
        "$share/+/a",
        "$share/#/a",
        "$share/a+b/a",
        "$share/a#/a",
        "$share/#",
    ] {
        filter_is_refused(&t, filter).await;
    }
}

pub async fn no_local_on_a_shared_subscription_ends_the_connection(t: Target) {
    let mut client = t.client().await;
    client
        .send(subscribe(1).to("$share/group/a", option::NO_LOCAL))
        .await;
    client.expect_refused(&[0x82]).await;
}

/// Members with different QoS: each delivery is at that of its member.
pub async fn delivery_is_at_the_members_qos(t: Target) {
    let topic = fresh("s");
    let filter = format!("$share/group/{topic}");
    let mut low = t.subscriber(&filter, 0).await;
    let mut high = t.subscriber(&filter, 2).await;
    let mut publisher = t.client().await;
    for id in 1..=10 {
        publisher
            .publish(publish(&topic).qos2(id).payload(id.to_string()))
            .await;
    }
    let to_low = low.collect_to_fence().await;
    let to_high = high.collect_to_fence().await;
    assert_eq!(to_low.len() + to_high.len(), 10, "{to_low:?} {to_high:?}");
    assert!(
        to_low.iter().all(|message| message.qos() == 0),
        "{to_low:?}"
    );
    assert!(
        to_high.iter().all(|message| message.qos() == 2),
        "{to_high:?}"
    );
    assert!(
        !to_low.is_empty() && !to_high.is_empty(),
        "one member got all"
    );
}

/// A durable member and one other; the message waits half delivered at the durable one.
async fn half_delivered(t: &Target, id: &str, topic: &str) -> (Client, u16) {
    let filter = format!("$share/group/{topic}");
    let mut chosen = t.connect(t.durable(id)).await;
    chosen.subscribe(&filter, 2).await;
    t.publish_from_elsewhere(publish(topic).qos2(1).payload("x"))
        .await;
    let packet_id = chosen.recv_publish().await.packet_id();
    let other = t.subscriber(&filter, 2).await;
    chosen.send(pubrec(packet_id)).await;
    chosen.recv(pubrel(packet_id)).await;
    chosen.cut();
    (other, packet_id)
}

pub async fn half_delivered_message_is_finished_with_its_member(t: Target) {
    let (id, topic) = (fresh("d"), fresh("s"));
    let (mut other, packet_id) = half_delivered(&t, &id, &topic).await;
    other.fence().await;
    let mut again = t.connect(t.durable(&id)).await;
    again.recv(pubrel(packet_id)).await;
    again.send(pubcomp(packet_id)).await;
    again.fence().await;
    other.fence().await;
}

pub async fn half_delivered_message_goes_to_no_other_member(t: Target) {
    let (id, topic) = (fresh("d"), fresh("s"));
    let (mut other, _) = half_delivered(&t, &id, &topic).await;
    // A clean start ends the session of the chosen member.
    t.connect(connect(&id)).await.leave().await;
    other.expect_silence(Duration::from_millis(300)).await;
}

pub async fn rejected_message_is_not_tried_on_others(t: Target) {
    let topic = fresh("s");
    let filter = format!("$share/group/{topic}");
    let mut one = t.subscriber(&filter, 2).await;
    let mut other = t.subscriber(&filter, 2).await;
    let mut publisher = t.client().await;
    for id in 1..=4u16 {
        publisher
            .publish(
                publish(&topic)
                    .qos_bits(1 + (id % 2) as u8, id)
                    .payload(id.to_string()),
            )
            .await;
    }
    let mut seen = 0;
    for member in [&mut one, &mut other] {
        for message in member.collect_to_fence().await {
            seen += 1;
            let id = message.packet_id();
            let refusal = if message.qos() == 1 {
                puback(id)
            } else {
                pubrec(id)
            };
            member.send(refusal.reason(0x97)).await;
        }
    }
    assert_eq!(seen, 4);
    one.fence().await;
    other.fence().await;
    one.expect_silence(Duration::from_millis(200)).await;
}

/// Each message goes to one member; a plain subscription beside it gets all.
pub async fn each_message_goes_to_one_member(t: Target) {
    let topic = fresh("s");
    let filter = format!("$share/group/{topic}");
    let mut plain = t.subscriber(&topic, 0).await;
    let mut members = [
        t.subscriber(&filter, 0).await,
        t.subscriber(&filter, 0).await,
    ];
    let mut publisher = t.client().await;
    for number in 0..20u8 {
        publisher.send(publish(&topic).payload([number])).await;
    }
    t.settle(&mut publisher).await;
    assert_eq!(plain.collect_to_fence().await.len(), 20);
    let mut got = Vec::new();
    for member in &mut members {
        got.extend(
            member
                .collect_to_fence()
                .await
                .iter()
                .map(|message| message.payload()),
        );
    }
    got.sort();
    let wanted: Vec<_> = (0..20u8).map(|number| vec![number]).collect();
    assert_eq!(got, wanted);
}

/// A shared subscription again: no retained message is replayed for it.
pub async fn retained_messages_are_not_replayed_to_shares(t: Target) {
    let topic = fresh("s");
    t.publish_from_elsewhere(publish(&topic).qos1(1).retain().payload("kept"))
        .await;
    let mut member = t.client().await;
    member
        .send(subscribe(1).to(format!("$share/group/{topic}"), 0))
        .await;
    member.recv(suback(1, &[0])).await;
    member.expect_silence(Duration::from_millis(200)).await;
}
