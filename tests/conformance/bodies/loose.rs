//! A broker that allows what it may, and the limits of queues.

use std::time::{Duration, Instant};

use flotte_tests::wire::prop;
use flotte_tests::{Packet as _, connect, fresh, props, publish, will};

use crate::target::Target;

/// `mqtt.connect_timeout_s` of this broker is one second.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_millis(3_500);

/// Nothing, half a CONNECT, one byte after the other: none of it keeps a connection open.
pub async fn connection_without_connect_ends(t: Target) {
    let whole = connect(fresh("c")).encode(t.version);
    for begin in [&[][..], &whole[..1], &whole[..whole.len() - 1]] {
        let mut client = t.dial().await;
        client.send_raw(begin).await;
        let since = Instant::now();
        client.expect_closed().await;
        let took = since.elapsed();
        assert!(
            took >= Duration::from_millis(800) && took <= CONNECT_TIMEOUT_MAX,
            "{took:?} with {} bytes",
            begin.len()
        );
    }
    let mut slow = t.dial().await;
    let since = Instant::now();
    for byte in whole {
        if slow.try_send_raw(&[byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(120)).await;
    }
    slow.expect_closed().await;
    assert!(
        since.elapsed() <= CONNECT_TIMEOUT_MAX,
        "{:?}",
        since.elapsed()
    );
    // One that was answered stays.
    let mut client = t.client().await;
    client.expect_silence(Duration::from_millis(1_500)).await;
    client.fence().await;
}

/// `$anything` is an ordinary topic, which only filters that name it match; `$SYS` and `$share` stay the broker's.
pub async fn dollar_topics_but_the_brokers_are_allowed(t: Target) {
    let name = fresh("x");
    let topic = format!("${name}/a");
    let mut subscriber = t.subscriber(&format!("${name}/#"), 0).await;
    // Other nodes have settings of their own.
    let mut publisher = t.client().await;
    publisher.publish(publish(&topic).payload("x")).await;
    subscriber.recv(publish(&topic).payload("x")).await;
    let last_words = will(format!("${name}/w"), "gone");
    t.connect(connect(fresh("c")).will(last_words)).await.cut();
    subscriber.take("gone").await;
    for taken in ["$SYS", "$SYS/forged", "$share", "$share/g/a"] {
        let mut watcher = t.client().await;
        if !taken.starts_with("$share") {
            watcher.subscribe(taken, 0).await;
        }
        let mut publisher = t.client().await;
        publisher
            .send(publish(taken).qos1(1).payload("never"))
            .await;
        let answer = publisher.recv_kind(4).await;
        let reason = if t.is_v5() { 0x87 } else { 0 };
        assert_eq!(answer.reason(), reason, "{taken}: {answer:?}");
        watcher.fence().await;
        let mut client = t.dial().await;
        let forged = connect(fresh("c")).will(will(taken, "never"));
        client.send(forged).await;
        let reason = if t.is_v5() { 0x87 } else { 5 };
        assert_eq!(client.recv_kind(2).await.reason(), reason, "{taken}");
        client.expect_closed().await;
    }
}

/// A client that names no receive maximum, or cannot, still has no more than the broker's own under way.
pub async fn few_messages_are_under_way(t: Target) {
    let topic = fresh("f");
    let mut subscriber = t.subscriber(&topic, 1).await;
    let mut publisher = t.client().await;
    for id in 1..=4 {
        publisher
            .publish(publish(&topic).qos1(id).payload(id.to_string()))
            .await;
    }
    let open = subscriber.collect_to_fence().await;
    assert_eq!(open.len(), 2, "{open:?}");
    for message in &open {
        subscriber.acknowledge(message).await;
    }
    subscriber.take("3").await;
    subscriber.take("4").await;
}

pub async fn qos0_waits_for_its_session(t: Target) {
    let (id, topic) = (fresh("d"), fresh("f"));
    let mut first = t.connect(t.durable(&id)).await;
    first.subscribe(&topic, 0).await;
    first.leave().await;
    t.publish_from_elsewhere(publish(&topic).payload("waited"))
        .await;
    let mut again = t.connect(t.durable(&id)).await;
    again.take("waited").await;
    again.fence().await;
}

pub async fn full_queue_drops_what_comes_last(t: Target) {
    let (id, topic) = (fresh("d"), fresh("f"));
    let mut first = t.connect(t.durable(&id)).await;
    first.subscribe(&topic, 1).await;
    first.leave().await;
    let mut publisher = t.client().await;
    for number in 1..=9 {
        publisher
            .publish(publish(&topic).qos1(number).payload(number.to_string()))
            .await;
    }
    let mut again = t.connect(t.durable(&id)).await;
    for number in 1..=5 {
        again.take(number.to_string()).await;
    }
    again.fence().await;
}

/// What expired holds no place that a message could have [MQTT-3.3.2-5].
pub async fn expired_messages_make_room(t: Target) {
    let (id, topic) = (fresh("d"), fresh("f"));
    let mut first = t.connect(t.durable(&id)).await;
    first.subscribe(&topic, 1).await;
    first.leave().await;
    let mut publisher = t.client().await;
    let short = || props().u32(prop::MESSAGE_EXPIRY, 1);
    for number in 1..=5 {
        let packet = publish(&topic).qos1(number).payload(number.to_string());
        let packet = if number % 2 == 0 {
            packet.props(short())
        } else {
            packet
        };
        publisher.publish(packet).await;
    }
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    for number in 6..=8 {
        publisher
            .publish(publish(&topic).qos1(number).payload(number.to_string()))
            .await;
    }
    let mut again = t.connect(t.durable(&id)).await;
    for number in [1, 3, 5, 6, 7] {
        again.take(number.to_string()).await;
    }
    again.fence().await;
}

/// Who asks for more than the maximum, or for none, gets the maximum; who asks for less, that.
pub async fn keep_alive_is_shortened_and_told(t: Target) {
    for (asked, told) in [
        (0, Some(8)),
        (60, Some(8)),
        (9, Some(8)),
        (8, None),
        (2, None),
    ] {
        let client = t.connect(connect(fresh("ka")).keep_alive(asked)).await;
        let server = client.connack().int_prop(prop::SERVER_KEEP_ALIVE);
        assert_eq!(server, told, "{asked} was asked for");
    }
    let mut client = t.connect(connect(fresh("ka")).keep_alive(60)).await;
    client.patience = Duration::from_secs(20);
    let since = Instant::now();
    client.expect_refused(&[0x8d]).await;
    let silent = since.elapsed();
    assert!(
        silent >= Duration::from_millis(11_900) && silent <= Duration::from_secs(18),
        "{silent:?}"
    );
}

/// Without `mqtt.strict` what is announced as text may be anything.
pub async fn payload_format_is_not_checked(t: Target) {
    let topic = fresh("text");
    let mut subscriber = t.subscriber(&topic, 0).await;
    let text = props().byte(prop::PAYLOAD_FORMAT, 1);
    let packet = publish(&topic).props(text.clone()).payload(b"\xff\xfe");
    // Other nodes of its cluster do check it.
    t.client().await.publish(packet).await;
    let as_sent = publish(&topic).props(text).payload(b"\xff\xfe");
    subscriber.recv(as_sent).await;
}
