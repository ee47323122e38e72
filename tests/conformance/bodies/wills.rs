//! Wills.

use std::time::Duration;

use flotte_tests::wire::prop;
use flotte_tests::{connect, disconnect, fresh, props, publish, will};

use crate::target::Target;

pub async fn will_is_published_when_the_connection_is_lost(t: Target) {
    let topic = fresh("will");
    let mut watcher = t.subscriber(&topic, 0).await;
    let mut client = t
        .connect(connect(fresh("c")).will(will(&topic, "gone")))
        .await;
    client.fence().await;
    watcher.fence().await;
    client.cut();
    watcher.recv(publish(&topic).payload("gone")).await;
}

/// A protocol error of the client is no goodbye either.
pub async fn will_is_published_after_a_protocol_error(t: Target) {
    let (topic, id) = (fresh("will"), fresh("c"));
    let mut watcher = t.subscriber(&topic, 0).await;
    let mut client = t.connect(connect(&id).will(will(&topic, "gone"))).await;
    client.send(connect(&id)).await;
    client.expect_refused(&[0x82]).await;
    watcher.take("gone").await;
}

pub async fn qos_and_retain_of_the_will_are_applied(t: Target) {
    let topic = fresh("will");
    let mut watcher = t.subscriber(&topic, 2).await;
    for qos in 0..3 {
        let packet = connect(fresh("c")).will(will(&topic, format!("qos {qos}")).qos(qos).retain());
        t.connect(packet).await.cut();
        let message = watcher.take(format!("qos {qos}")).await;
        assert_eq!(
            (message.qos(), message.retain()),
            (qos, false),
            "{message:?}"
        );
    }
}

/// Published once: neither the next connection of the client nor its end brings it back.
pub async fn will_fires_once(t: Target) {
    let (topic, id) = (fresh("will"), fresh("c"));
    let mut watcher = t.subscriber(&topic, 1).await;
    t.connect(connect(&id).will(will(&topic, "gone").qos(1)))
        .await
        .cut();
    watcher.take("gone").await;
    t.connect(connect(&id)).await.leave().await;
    t.connect(connect(&id)).await.cut();
    t.publish_from_elsewhere(publish(&topic).qos1(1).payload("after"))
        .await;
    watcher.take("after").await;
}

pub async fn no_will_no_message(t: Target) {
    let topic = fresh("will");
    let mut watcher = t.subscriber("#", 0).await;
    let id = fresh("c");
    t.connect(connect(&id)).await.cut();
    // The next connection of the id comes after all that the end of the last one did.
    t.connect(connect(&id)).await.leave().await;
    t.publish_from_elsewhere(publish(&topic).payload("after"))
        .await;
    loop {
        // Other tests publish too: what counts is that nothing names this client.
        let message = watcher.recv_publish().await;
        if message.topic() == topic {
            assert_eq!(message.payload(), b"after");
            return;
        }
    }
}

pub async fn will_without_retain_is_not_kept(t: Target) {
    let topic = fresh("will");
    let mut watcher = t.subscriber(&topic, 0).await;
    t.connect(connect(fresh("c")).will(will(&topic, "gone")))
        .await
        .cut();
    assert!(!watcher.take("gone").await.retain());
    let mut late = t.subscriber(&topic, 0).await;
    late.fence().await;
}

pub async fn will_with_retain_is_kept(t: Target) {
    let topic = fresh("will");
    let mut watcher = t.subscriber(&topic, 0).await;
    t.connect(connect(fresh("c")).will(will(&topic, "gone").retain()))
        .await
        .cut();
    watcher.take("gone").await;
    let mut late = t.subscriber(&topic, 0).await;
    assert!(late.take("gone").await.retain());
}

pub async fn goodbye_drops_the_will(t: Target) {
    let topic = fresh("will");
    let mut watcher = t.subscriber(&topic, 0).await;
    t.connect(connect(fresh("c")).will(will(&topic, "never")))
        .await
        .leave()
        .await;
    t.publish_from_elsewhere(publish(&topic).payload("after"))
        .await;
    watcher.take("after").await;
}

/// DISCONNECT 0x04 asks for the will.
pub async fn goodbye_with_will_publishes_it(t: Target) {
    let topic = fresh("will");
    let mut watcher = t.subscriber(&topic, 0).await;
    let mut client = t
        .connect(connect(fresh("c")).will(will(&topic, "gone")))
        .await;
    client.send(disconnect().reason(0x04)).await;
    client.expect_closed().await;
    watcher.take("gone").await;
}

/// The will waits for its delay, and no longer.
pub async fn will_waits_for_its_delay(t: Target) {
    let topic = fresh("will");
    let mut watcher = t.subscriber(&topic, 0).await;
    let late = will(&topic, "gone").props(props().u32(prop::WILL_DELAY, 1));
    t.connect(t.durable(&fresh("d")).will(late)).await.cut();
    watcher.expect_silence(Duration::from_millis(700)).await;
    watcher.take("gone").await;
}

/// The session ends before the delay: the will does not wait.
pub async fn end_of_the_session_ends_the_delay(t: Target) {
    let topic = fresh("will");
    let mut watcher = t.subscriber(&topic, 0).await;
    let late = will(&topic, "gone").props(props().u32(prop::WILL_DELAY, 60));
    t.connect(connect(fresh("c")).will(late)).await.cut();
    watcher.take("gone").await;
}

pub async fn return_within_the_delay_cancels_the_will(t: Target) {
    let (topic, id) = (fresh("will"), fresh("d"));
    let mut watcher = t.subscriber(&topic, 0).await;
    let late = will(&topic, "never").props(props().u32(prop::WILL_DELAY, 1));
    t.connect(t.durable(&id).will(late)).await.cut();
    let again = t.connect(t.durable(&id)).await;
    assert!(again.session_present());
    watcher.expect_silence(Duration::from_millis(2_000)).await;
}

pub async fn user_properties_of_the_will_keep_their_order(t: Target) {
    let topic = fresh("will");
    let mut watcher = t.subscriber(&topic, 0).await;
    let pairs = props()
        .user("b", "1")
        .user("a", "2")
        .user("b", "1")
        .user("c", "");
    t.connect(connect(fresh("c")).will(will(&topic, "gone").props(pairs.clone())))
        .await
        .cut();
    watcher
        .recv(publish(&topic).props(pairs).payload("gone"))
        .await;
}

/// The older connection of a client ends when a newer one comes, and so its will is due, unless it has a delay and the
/// session goes on.
pub async fn takeover_publishes_the_will(t: Target) {
    let (id, topic) = (fresh("d"), fresh("will"));
    let mut watcher = t.subscriber(&topic, 0).await;
    let with_will = |text: &str| t.durable(&id).will(will(&topic, text));
    let _older = t.connect(with_will("one")).await;
    let _newer = t.connect(with_will("two")).await;
    watcher.take("one").await;
    t.connect(t.durable(&id)).await.leave().await;
    watcher.take("two").await;
    watcher.fence().await;
}

pub async fn takeover_within_the_delay_cancels_the_will(t: Target) {
    let (id, topic) = (fresh("d"), fresh("will"));
    let mut watcher = t.subscriber(&topic, 0).await;
    let late = |text: &str| will(&topic, text).props(props().u32(prop::WILL_DELAY, 60));
    let _older = t.connect(t.durable(&id).will(late("never"))).await;
    let _newer = t.connect(t.durable(&id).will(late("clean"))).await;
    // A clean start ends the session, and with it the delay.
    t.connect(connect(&id)).await.leave().await;
    watcher.take("clean").await;
    watcher.fence().await;
}

/// The session ends before the delay has passed: its end counts.
pub async fn session_expiry_ends_the_delay(t: Target) {
    let topic = fresh("will");
    let mut watcher = t.subscriber(&topic, 0).await;
    let late = will(&topic, "gone").props(props().u32(prop::WILL_DELAY, 600));
    let expiry = props().u32(prop::SESSION_EXPIRY, 1);
    let packet = connect(fresh("d")).resume().props(expiry).will(late);
    t.connect(packet).await.cut();
    watcher.expect_silence(Duration::from_millis(700)).await;
    watcher.take("gone").await;
}

/// All but the delay, which is the broker's; the lifetime begins when the will is published.
pub async fn every_property_of_the_will_is_forwarded(t: Target) {
    let topic = fresh("will");
    let mut watcher = t.subscriber(&topic, 1).await;
    let of_message = || {
        props()
            .byte(prop::PAYLOAD_FORMAT, 1)
            .text(prop::CONTENT_TYPE, "text/plain")
            .text(prop::RESPONSE_TOPIC, "r/1")
            .text(prop::CORRELATION_DATA, b"\0\x01")
            .user("b", "1")
            .user("a", "2")
    };
    let of_will = of_message()
        .u32(prop::WILL_DELAY, 1)
        .u32(prop::MESSAGE_EXPIRY, 600);
    let last = will(&topic, "gone").qos(1).props(of_will);
    t.connect(t.durable(&fresh("d")).will(last)).await.cut();
    let got = watcher.take("gone").await;
    let left = got.int_prop(prop::MESSAGE_EXPIRY);
    assert!(
        left.is_some_and(|left| (595..=600).contains(&left)),
        "{got:?}"
    );
    assert_eq!(got.int_prop(prop::WILL_DELAY), None);
    let mut others = got.props();
    others.retain(|(id, _)| *id != prop::MESSAGE_EXPIRY);
    t.publish_from_elsewhere(publish(&topic).qos1(1).props(of_message()).payload("live"))
        .await;
    assert_eq!(others, watcher.take("live").await.props());
}

/// A will whose time is over before its session's subscribers come is not delivered to them.
pub async fn expired_will_is_not_delivered(t: Target) {
    let (id, topic) = (fresh("d"), fresh("will"));
    let mut away = t.connect(t.durable(&id)).await;
    away.subscribe(&topic, 1).await;
    away.leave().await;
    let short = will(&topic, "gone")
        .qos(1)
        .props(props().u32(prop::MESSAGE_EXPIRY, 1));
    t.connect(connect(fresh("c")).will(short)).await.cut();
    tokio::time::sleep(Duration::from_millis(2_300)).await;
    t.connect(t.durable(&id)).await.fence().await;
}
