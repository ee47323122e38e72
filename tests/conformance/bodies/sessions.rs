//! Sessions: what is kept, what is thrown away, what is sent again.

use std::time::Duration;

use flotte_tests::wire::prop;
use flotte_tests::{
    connect, disconnect, fresh, props, puback, pubcomp, publish, pubrec, pubrel, suback, subscribe,
    will,
};

use crate::target::Target;

pub async fn session_is_resumed(t: Target) {
    let (id, topic) = (fresh("d"), fresh("kept"));
    let mut first = t.connect(t.durable(&id)).await;
    assert!(!first.session_present());
    first.subscribe(&topic, 1).await;
    first.leave().await;
    let mut again = t.connect(t.durable(&id)).await;
    assert!(again.session_present());
    t.publish_from_elsewhere(publish(&topic).qos1(1).payload("still here"))
        .await;
    again.take("still here").await;
}

/// QoS 1 and 2 wait for the client, in order.
pub async fn messages_wait_for_an_offline_session(t: Target) {
    let (id, topic) = (fresh("d"), fresh("wait"));
    let mut first = t.connect(t.durable(&id)).await;
    first.subscribe(&topic, 2).await;
    first.leave().await;
    let mut publisher = t.client().await;
    publisher
        .publish(publish(&topic).qos1(1).payload("one"))
        .await;
    publisher
        .publish(publish(&topic).qos2(2).payload("two"))
        .await;
    let mut again = t.connect(t.durable(&id)).await;
    assert_eq!(again.take("one").await.qos(), 1);
    assert_eq!(again.take("two").await.qos(), 2);
    again.fence().await;
}

pub async fn clean_start_throws_the_session_away(t: Target) {
    let (id, topic) = (fresh("d"), fresh("gone"));
    let mut first = t.connect(t.durable(&id)).await;
    first.subscribe(&topic, 1).await;
    first.leave().await;
    t.publish_from_elsewhere(publish(&topic).qos1(1)).await;
    let mut clean = t.connect(connect(&id)).await;
    assert!(!clean.session_present());
    t.publish_from_elsewhere(publish(&topic).qos1(1)).await;
    clean.fence().await;
}

/// A clean session ends with its connection: the next one finds nothing.
pub async fn clean_session_is_never_reused(t: Target) {
    let (id, topic) = (fresh("c"), fresh("gone"));
    let mut clean = t.connect(connect(&id)).await;
    clean.subscribe(&topic, 1).await;
    clean.leave().await;
    let mut next = t.connect(t.durable(&id)).await;
    assert!(!next.session_present());
    t.publish_from_elsewhere(publish(&topic).qos1(1)).await;
    next.fence().await;
}

pub async fn clean_connection_is_answered_without_session(t: Target) {
    let id = fresh("d");
    t.connect(t.durable(&id)).await.leave().await;
    let mut client = t.dial().await;
    client.send(connect(&id)).await;
    let answer = client.recv_kind(2).await;
    assert_eq!(
        (answer.reason(), answer.session_present()),
        (0, false),
        "{answer:?}"
    );
}

pub async fn stored_session_is_announced(t: Target) {
    let id = fresh("d");
    let first = t.connect(t.durable(&id)).await;
    first.leave().await;
    let mut client = t.dial().await;
    client.send(t.durable(&id)).await;
    let answer = client.recv_kind(2).await;
    assert_eq!(
        (answer.reason(), answer.session_present()),
        (0, true),
        "{answer:?}"
    );
}

pub async fn unknown_session_is_made_anew(t: Target) {
    let mut client = t.dial().await;
    client.send(t.durable(&fresh("d"))).await;
    let answer = client.recv_kind(2).await;
    assert_eq!(
        (answer.reason(), answer.session_present()),
        (0, false),
        "{answer:?}"
    );
    client.fence().await;
}

/// Two ids, two sessions: neither gets what the other subscribed to.
pub async fn sessions_belong_to_client_ids(t: Target) {
    let (one, other, topic) = (fresh("d"), fresh("d"), fresh("mine"));
    let mut first = t.connect(t.durable(&one)).await;
    first.subscribe(&topic, 1).await;
    first.leave().await;
    t.connect(t.durable(&other)).await.leave().await;
    t.publish_from_elsewhere(publish(&topic).qos1(1).payload("x"))
        .await;
    let mut stranger = t.connect(t.durable(&other)).await;
    stranger.fence().await;
    t.connect(t.durable(&one)).await.take("x").await;
}

/// The connection stays idle for a while and a takeover's end is not a session's end.
pub async fn session_lives_as_long_as_its_connection(t: Target) {
    let topic = fresh("alive");
    let mut subscriber = t.subscriber(&topic, 1).await;
    for _ in 0..3 {
        subscriber.expect_silence(Duration::from_millis(300)).await;
    }
    t.publish_from_elsewhere(publish(&topic).qos1(1).payload("x"))
        .await;
    subscriber.take("x").await;
}

pub async fn session_survives_a_takeover(t: Target) {
    let (id, topic) = (fresh("d"), fresh("kept"));
    let mut older = t.connect(t.durable(&id)).await;
    older.subscribe(&topic, 1).await;
    let mut newer = t.connect(t.durable(&id)).await;
    assert!(newer.session_present());
    t.publish_from_elsewhere(publish(&topic).qos1(1).payload("x"))
        .await;
    newer.take("x").await;
}

/// Unacknowledged PUBLISHes come again in order, with DUP and their ids; a message whose PUBREC was
/// received comes as PUBREL.
pub async fn unacknowledged_packets_are_sent_again(t: Target) {
    let (id, topic) = (fresh("d"), fresh("again"));
    let mut first = t.connect(t.durable(&id)).await;
    first.subscribe(&topic, 2).await;
    let mut publisher = t.client().await;
    publisher
        .publish(publish(&topic).qos1(1).payload("one"))
        .await;
    publisher
        .publish(publish(&topic).qos2(2).payload("two"))
        .await;
    publisher
        .publish(publish(&topic).qos2(3).payload("three"))
        .await;
    let one = first.recv_publish().await;
    let two = first.recv_publish().await;
    let three = first.recv_publish().await;
    first.send(pubrec(two.packet_id())).await;
    first.recv(pubrel(two.packet_id())).await;
    first.cut();
    let mut again = t.connect(t.durable(&id)).await;
    let mut resent = again.collect_to_fence().await;
    let released = pubrel(two.packet_id());
    let bytes = flotte_tests::Packet::encode(&released, t.version);
    assert!(
        resent.iter().any(|packet| packet.bytes == bytes),
        "no PUBREL in {resent:?}"
    );
    resent.retain(|packet| packet.is_publish());
    let ids: Vec<_> = resent.iter().map(|packet| packet.packet_id()).collect();
    assert_eq!(ids, [one.packet_id(), three.packet_id()]);
    assert!(resent.iter().all(|packet| packet.dup()), "{resent:?}");
    again.send(pubcomp(two.packet_id())).await;
    again.send(puback(one.packet_id())).await;
    again.acknowledge(&three).await;
    again.fence().await;
}

pub async fn redelivery_carries_dup(t: Target) {
    let (id, topic) = (fresh("d"), fresh("dup"));
    let mut first = t.connect(t.durable(&id)).await;
    first.subscribe(&topic, 1).await;
    t.publish_from_elsewhere(publish(&topic).qos1(1).payload("x"))
        .await;
    let before = first.recv_publish().await;
    assert!(!before.dup());
    first.cut();
    let mut again = t.connect(t.durable(&id)).await;
    let after = again.recv_publish().await;
    assert!(after.dup(), "{after:?}");
    assert_eq!(after.packet_id(), before.packet_id());
}

/// Within one connection nothing is sent twice, however long the acknowledgement takes.
pub async fn nothing_is_resent_without_reconnect(t: Target) {
    let topic = fresh("once");
    let mut subscriber = t.subscriber(&topic, 1).await;
    t.publish_from_elsewhere(publish(&topic).qos1(1).payload("x"))
        .await;
    subscriber.recv_publish().await;
    subscriber
        .expect_silence(Duration::from_millis(1_500))
        .await;
}

pub async fn refused_messages_are_not_sent_again(t: Target) {
    let (id, topic) = (fresh("d"), fresh("no"));
    let mut first = t.connect(t.durable(&id)).await;
    first.subscribe(&topic, 2).await;
    let mut publisher = t.client().await;
    publisher
        .publish(publish(&topic).qos1(1).payload("one"))
        .await;
    publisher
        .publish(publish(&topic).qos2(2).payload("two"))
        .await;
    let one = first.recv_publish().await;
    let two = first.recv_publish().await;
    first.send(puback(one.packet_id()).reason(0x80)).await;
    first.send(pubrec(two.packet_id()).reason(0x83)).await;
    first.fence().await;
    first.cut();
    let mut again = t.connect(t.durable(&id)).await;
    assert!(again.session_present());
    again.fence().await;
}

/// Everyone with a matching subscription has it: online or not, whatever the QoS asked for.
pub async fn message_reaches_every_matching_session(t: Target) {
    let (id, topic) = (fresh("d"), fresh("all/x"));
    let mut offline = t.connect(t.durable(&id)).await;
    offline.subscribe(&topic, 1).await;
    offline.leave().await;
    let mut others = Vec::new();
    for qos in 0..3 {
        others.push(t.subscriber(&topic, qos).await);
    }
    t.publish_from_elsewhere(publish(&topic).qos2(1).payload("x"))
        .await;
    for (qos, other) in (0..).zip(&mut others) {
        assert_eq!(other.take("x").await.qos(), qos);
    }
    t.connect(t.durable(&id)).await.take("x").await;
}

pub async fn session_lives_on_for_its_expiry_interval(t: Target) {
    let (id, topic) = (fresh("d"), fresh("kept"));
    let expiry = |s: u32| {
        connect(&id)
            .resume()
            .props(props().u32(prop::SESSION_EXPIRY, s))
    };
    let mut first = t.connect(expiry(60)).await;
    first.subscribe(&topic, 1).await;
    first.cut();
    t.publish_from_elsewhere(publish(&topic).qos1(1).payload("x"))
        .await;
    let mut again = t.connect(expiry(60)).await;
    assert!(again.session_present());
    again.take("x").await;
}

pub async fn session_ends_when_its_expiry_interval_passed(t: Target) {
    let id = fresh("d");
    let expiry = |s: u32| {
        connect(&id)
            .resume()
            .props(props().u32(prop::SESSION_EXPIRY, s))
    };
    t.connect(expiry(1)).await.leave().await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let again = t.connect(expiry(1)).await;
    assert!(!again.session_present());
}

/// Without Session Expiry Interval a session of 5.0 ends with its connection; DISCONNECT may shorten a
/// longer one.
pub async fn disconnect_may_change_the_expiry_interval(t: Target) {
    let id = fresh("d");
    let mut first = t.connect(t.durable(&id)).await;
    first
        .send(disconnect().props(props().u32(prop::SESSION_EXPIRY, 0)))
        .await;
    first.expect_closed().await;
    let again = t.connect(t.durable(&id)).await;
    assert!(!again.session_present());
}

/// A QoS 2 exchange with the publisher outlives its connection: the repeated PUBLISH is the old one.
pub async fn begun_qos2_of_a_publisher_survives(t: Target) {
    let (id, topic) = (fresh("d"), fresh("begun"));
    let mut watcher = t.subscriber(&topic, 2).await;
    let mut publisher = t.connect(t.durable(&id)).await;
    publisher
        .send(publish(&topic).qos2(5).payload("once"))
        .await;
    publisher.recv_ack(5, 5).await;
    publisher.cut();
    let mut again = t.connect(t.durable(&id)).await;
    again
        .send(publish(&topic).qos2(5).dup().payload("once"))
        .await;
    again.recv_ack(5, 5).await;
    again.send(pubrel(5)).await;
    again.recv_ack(7, 5).await;
    watcher.take("once").await;
    watcher.fence().await;
}

/// The subscription itself is part of the session: SUBACK comes, the connection is cut, it is there.
pub async fn subscriptions_are_session_state(t: Target) {
    let (id, topic) = (fresh("d"), fresh("state"));
    let mut first = t.connect(t.durable(&id)).await;
    first.send(subscribe(1).to(&topic, 2)).await;
    first.recv(suback(1, &[2])).await;
    first.cut();
    let mut again = t.connect(t.durable(&id)).await;
    t.publish_from_elsewhere(publish(&topic).qos2(1).payload("x"))
        .await;
    again.take("x").await;
}

/// A session that was to end with its connection cannot be kept by DISCONNECT.
pub async fn disconnect_cannot_make_a_session_outlive(t: Target) {
    let (id, topic) = (fresh("c"), fresh("will"));
    let mut watcher = t.subscriber(&topic, 0).await;
    let mut client = t.connect(connect(&id).will(will(&topic, "gone"))).await;
    client
        .send(disconnect().props(props().u32(prop::SESSION_EXPIRY, 60)))
        .await;
    client.expect_refused(&[0x82]).await;
    // It was no goodbye.
    watcher.take("gone").await;
    assert!(!t.connect(t.durable(&id)).await.session_present());
}

/// DISCONNECT may make it longer, too, and the interval begins with the end of the connection.
pub async fn disconnect_may_lengthen_the_expiry_interval(t: Target) {
    let (id, kept) = (fresh("d"), fresh("d"));
    let expiry = |id: &str, seconds| {
        let asked = props().u32(prop::SESSION_EXPIRY, seconds);
        connect(id).resume().props(asked)
    };
    let mut longer = t.connect(expiry(&id, 1)).await;
    let mut idle = t.connect(expiry(&kept, 1)).await;
    longer
        .send(disconnect().props(props().u32(prop::SESSION_EXPIRY, u32::MAX)))
        .await;
    longer.expect_closed().await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    idle.fence().await;
    idle.leave().await;
    assert!(t.connect(expiry(&kept, 0)).await.session_present());
    assert!(t.connect(expiry(&id, 0)).await.session_present());
}

/// What was begun and what waits comes in the order in which it was published, across two returns.
pub async fn order_is_kept_over_returns(t: Target) {
    let (id, topic) = (fresh("d"), fresh("order"));
    let mut first = t.connect(t.durable(&id)).await;
    first.subscribe(&topic, 1).await;
    let mut publisher = t.client().await;
    for number in 1..=3 {
        publisher
            .publish(publish(&topic).qos1(number).payload(number.to_string()))
            .await;
    }
    assert_eq!(first.collect_to_fence().await.len(), 3);
    first.cut();
    for number in 4..=6 {
        publisher
            .publish(publish(&topic).qos1(number).payload(number.to_string()))
            .await;
    }
    for _ in 0..2 {
        let mut again = t.connect(t.durable(&id)).await;
        let all = again.collect_to_fence().await;
        let payloads: Vec<_> = all.iter().map(|message| message.payload()).collect();
        let wanted: Vec<_> = (1..=6).map(|n: u8| n.to_string().into_bytes()).collect();
        assert_eq!(payloads, wanted, "{all:?}");
        again.cut();
    }
    let mut last = t.connect(t.durable(&id)).await;
    for number in 1..=6 {
        let message = last.take(number.to_string()).await;
        assert!(message.dup(), "{message:?}");
    }
    last.fence().await;
}
