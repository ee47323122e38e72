//! Topic names, filters and how they match.

use flotte_tests::{Client, fresh, publish, subscribe};

use crate::target::Target;

/// A filter that breaks the rules: refused in SUBACK, or by the end of the connection.
pub async fn filter_is_refused(t: &Target, filter: &str) {
    let mut client = t.client().await;
    client.send(subscribe(1).to(filter, 0)).await;
    let Some(answer) = client.next_or_end().await.expect("an answer or the end") else {
        return;
    };
    match answer.kind() {
        9 => {
            let code = answer.codes()[0];
            let fits = if t.is_v5() {
                matches!(code, 0x80 | 0x8f | 0x9e)
            } else {
                code == 0x80
            };
            assert!(fits, "{filter:?}: {answer:?}");
        }
        14 if t.is_v5() => {
            assert!(
                matches!(answer.reason(), 0x81 | 0x82 | 0x8f),
                "{filter:?}: {answer:?}"
            );
            client.expect_closed().await;
        }
        _ => panic!("{filter:?}: {answer:?}"),
    }
}

/// Whether the topic reaches a subscriber of the filter.
async fn check(t: &Target, filter: &str, topic: &str, wanted: bool) {
    let mut subscriber = t.subscriber(filter, 0).await;
    t.publish_from_elsewhere(publish(topic).payload("x")).await;
    if wanted {
        subscriber.recv(publish(topic).payload("x")).await;
    }
    subscriber.fence().await;
}

pub async fn multi_level_wildcard_stands_last_and_alone(t: Target) {
    for filter in ["a#", "a/#/b", "#/a", "a/b#", "##"] {
        filter_is_refused(&t, filter).await;
    }
    let root = fresh("m");
    check(&t, &format!("{root}/#"), &root, true).await;
    check(&t, &format!("{root}/#"), &format!("{root}/a/b/c"), true).await;
    check(&t, &format!("{root}/#"), &format!("{root}a"), false).await;
}

pub async fn single_level_wildcard_fills_its_level(t: Target) {
    for filter in ["a+", "+a", "a/b+/c", "++", "a/+b"] {
        filter_is_refused(&t, filter).await;
    }
    let root = fresh("m");
    check(&t, &format!("{root}/+/c/+"), &format!("{root}/b/c/d"), true).await;
    check(&t, &format!("{root}/+"), &root, false).await;
    check(&t, &format!("{root}/+"), &format!("{root}/"), true).await;
    check(&t, &format!("{root}/+"), &format!("{root}/a/b"), false).await;
}

/// A wildcard in a filter is one; in a topic name the packet is refused, at every QoS.
pub async fn wildcards_belong_in_filters_only(t: Target) {
    let root = fresh("m");
    let mut subscriber = t.subscriber(&format!("{root}/#"), 0).await;
    for packet in [
        publish(format!("{root}/+")).qos1(1),
        publish(format!("{root}/#")).qos2(1),
    ] {
        let mut client = t.client().await;
        client.send(packet).await;
        client.expect_refused(&[0x81, 0x82, 0x90]).await;
    }
    subscriber.fence().await;
}

/// `#` and `+` at the front see no `$` topic. Where clients may not publish to `$`, the broker's own
/// `$SYS` topics are the test.
pub async fn leading_wildcards_hide_dollar_topics(t: Target) {
    let mut all = t.subscriber("#", 0).await;
    let mut plus = t.subscriber("+/broker/#", 0).await;
    let mut client = t.client().await;
    client
        .send(publish("$SYS/broker/forged").payload("x"))
        .await;
    let _ = tokio::time::timeout(std::time::Duration::from_millis(300), client.next_or_end()).await;
    let mark = fresh("mark");
    t.publish_from_elsewhere(publish(&mark).payload("x")).await;
    t.publish_from_elsewhere(publish(format!("{mark}/broker/x")).payload("x"))
        .await;
    expect_only_plain(&mut all, &mark).await;
    expect_only_plain(&mut plus, &format!("{mark}/broker/x")).await;
}

/// Other tests publish too: none of it may begin with `$`.
async fn expect_only_plain(client: &mut Client, last: &str) {
    loop {
        let topic = client.recv_publish().await.topic();
        assert!(!topic.starts_with('$'), "{topic}");
        if topic == last {
            return;
        }
    }
}

pub async fn empty_topics_and_filters_are_refused(t: Target) {
    let mut client = t.client().await;
    client.send(publish("")).await;
    client.expect_refused(&[0x81, 0x82, 0x90]).await;
    filter_is_refused(&t, "").await;
}

/// The longest topic there can be is carried whole.
pub async fn topic_of_65535_bytes_is_carried(t: Target) {
    let topic = format!("{:x<65535}", fresh("long"));
    let mut subscriber = t.subscriber(&topic, 1).await;
    t.publish_from_elsewhere(publish(&topic).qos1(1).payload("x"))
        .await;
    assert_eq!(subscriber.take("x").await.topic().len(), 65_535);
}

/// Case, empty levels, spaces, and two ways to write the same letter: all different.
pub async fn nothing_is_normalised(t: Target) {
    let root = fresh("n");
    let names = [
        "/a",
        "/A",
        "//a",
        "/a/",
        "/ a",
        "/\u{e9}",
        "/e\u{301}",
        "/\u{1f600}",
    ];
    let mut subscribers = Vec::new();
    for name in names {
        subscribers.push(t.subscriber(&format!("{root}{name}"), 0).await);
    }
    for name in names {
        t.publish_from_elsewhere(publish(format!("{root}{name}")).payload(name))
            .await;
    }
    for (name, subscriber) in names.iter().zip(&mut subscribers) {
        subscriber
            .recv(publish(format!("{root}{name}")).payload(name))
            .await;
        subscriber.fence().await;
    }
}
