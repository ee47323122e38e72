//! What clients in the field and the suites of other brokers rely on, beyond single clauses.

use std::time::Duration;

use flotte_tests::wire::prop;
use flotte_tests::{connect, disconnect, fresh, props, publish, suback, subscribe, will};

use crate::target::Target;

/// A will without payload is a message like others, and a retained one erases what was kept.
pub async fn empty_will_is_published_and_erases(t: Target) {
    let topic = fresh("will");
    t.publish_from_elsewhere(publish(&topic).qos1(1).retain().payload("kept"))
        .await;
    let mut watcher = t.subscriber(&topic, 1).await;
    assert!(watcher.take("kept").await.retain());
    t.connect(connect(fresh("c")).will(will(&topic, "")))
        .await
        .cut();
    watcher.take("").await;
    let mut other = t.subscriber(&topic, 1).await;
    assert!(other.take("kept").await.retain());
    t.connect(connect(fresh("c")).will(will(&topic, "").retain()))
        .await
        .cut();
    for client in [&mut watcher, &mut other] {
        client.take("").await;
    }
    t.subscriber(&topic, 1).await.fence().await;
}

/// Who takes over says nothing of the will of the connection that ends, clean session or not [MQTT-3.1.4-3]; a goodbye
/// does, and is not forgotten when the session goes on.
pub async fn will_is_that_of_its_connection(t: Target) {
    for (first_clean, second_clean) in [(true, true), (true, false), (false, true), (false, false)]
    {
        let (id, topic) = (fresh("d"), fresh("will"));
        let mut watcher = t.subscriber(&topic, 0).await;
        let packet = |clean| if clean { connect(&id) } else { t.durable(&id) };
        let first = packet(first_clean).will(will(&topic, "gone"));
        let first = t.connect(first).await;
        let second = t.connect(packet(second_clean)).await;
        assert_eq!(second.session_present(), !first_clean && !second_clean);
        watcher.take("gone").await;
        drop(first);
        second.cut();
        let third = packet(false).will(will(&topic, "never"));
        t.connect(third).await.leave().await;
        t.connect(packet(false)).await.cut();
        t.publish_from_elsewhere(publish(&topic).qos1(1).payload("after"))
            .await;
        watcher.take("after").await;
        t.connect(connect(&id)).await.leave().await;
    }
}

/// The session is ended by another CONNECT while its will waits.
pub async fn clean_start_ends_the_delay_of_a_session_without_client(t: Target) {
    let (id, topic) = (fresh("d"), fresh("will"));
    let mut watcher = t.subscriber(&topic, 0).await;
    let late = will(&topic, "gone").props(props().u32(prop::WILL_DELAY, 60));
    t.connect(t.durable(&id).will(late)).await.cut();
    watcher.expect_silence(Duration::from_millis(300)).await;
    t.connect(connect(&id)).await.leave().await;
    watcher.take("gone").await;
}

/// A connection without a will takes the place of one with a will that still waits.
pub async fn return_without_a_will_leaves_none(t: Target) {
    let (id, topic) = (fresh("d"), fresh("will"));
    let mut watcher = t.subscriber(&topic, 0).await;
    let late = will(&topic, "never").props(props().u32(prop::WILL_DELAY, 1));
    t.connect(t.durable(&id).will(late)).await.cut();
    t.connect(t.durable(&id)).await.cut();
    watcher.expect_silence(Duration::from_millis(1_700)).await;
    t.connect(connect(&id)).await.leave().await;
    watcher.fence().await;
}

/// DISCONNECT 0x04 asks for the will, and not for it to come at once.
pub async fn goodbye_with_will_waits_for_its_delay(t: Target) {
    let topic = fresh("will");
    let mut watcher = t.subscriber(&topic, 0).await;
    let late = will(&topic, "gone").props(props().u32(prop::WILL_DELAY, 1));
    let mut client = t.connect(t.durable(&fresh("d")).will(late)).await;
    client.send(disconnect().reason(0x04)).await;
    client.expect_closed().await;
    watcher.expect_silence(Duration::from_millis(700)).await;
    watcher.take("gone").await;
}

/// A string of no bytes is a user name, and binary data of no bytes a password.
pub async fn empty_username_and_password_are_well_formed(t: Target) {
    let named = connect(fresh("c")).username("");
    t.connect(named.clone()).await.leave().await;
    t.connect(named.password("")).await.leave().await;
}

/// What a client retained comes back to its own subscription behind it, both in one piece.
pub async fn own_retained_message_is_replayed(t: Target) {
    use flotte_tests::Packet as _;
    for qos in 0..3 {
        let topic = fresh("kept");
        let packet = match qos {
            0 => publish(&topic),
            1 => publish(&topic).qos1(7),
            _ => publish(&topic).qos2(7),
        };
        let packet = packet.retain().payload("kept").encode(t.version);
        let request = subscribe(9).to(&topic, 0).encode(t.version);
        let mut client = t.client().await;
        client.send([packet, request].concat()).await;
        let mut kept = 0;
        while kept == 0 {
            let answer = client.next().await;
            match answer.kind() {
                3 => {
                    assert_eq!(answer.payload(), b"kept");
                    kept += 1;
                }
                4 | 5 => assert_eq!(answer.packet_id(), 7),
                9 => assert_eq!((answer.packet_id(), answer.codes()), (9, vec![0])),
                _ => panic!("{answer:?}"),
            }
        }
        assert!(
            client
                .collect_to_fence()
                .await
                .iter()
                .all(|packet| !packet.is_publish())
        );
    }
}

/// Section 3.3.2.3.8: the same identifier stands there once for each subscription that has it.
pub async fn identifier_of_two_filters_is_named_for_each(t: Target) {
    let root = fresh("id");
    let mut client = t.client().await;
    let request = subscribe(1)
        .to(format!("{root}/a"), 0)
        .to(format!("{root}/+"), 0)
        .props(props().varint(prop::SUBSCRIPTION_ID, 7));
    client.send(request).await;
    client.recv(suback(1, &[0, 0])).await;
    t.publish_from_elsewhere(publish(format!("{root}/a")).payload("x"))
        .await;
    let copies = client.collect_to_fence().await;
    let named: usize = copies
        .iter()
        .map(|copy| copy.prop(prop::SUBSCRIPTION_ID).len())
        .sum();
    assert_eq!(named, 2, "{copies:?}");
}

/// A group whose only member is away is a session like others: what comes meanwhile waits.
pub async fn messages_wait_for_the_only_member_of_a_share(t: Target) {
    let (id, topic) = (fresh("d"), fresh("s"));
    let filter = format!("$share/group/{topic}");
    let mut member = t.connect(t.durable(&id)).await;
    member.subscribe(&filter, 1).await;
    member.leave().await;
    let mut publisher = t.client().await;
    for number in 1..=10 {
        publisher
            .publish(publish(&topic).qos1(number).payload(number.to_string()))
            .await;
    }
    let mut member = t.connect(t.durable(&id)).await;
    assert!(member.session_present());
    for number in 1..=10 {
        member.take(number.to_string()).await;
    }
    member.leave().await;
}

/// The subscription of a share names its identifier as others do.
pub async fn share_names_the_identifier_of_its_member(t: Target) {
    let topic = fresh("s");
    let mut members = Vec::new();
    for number in [11, 12] {
        let mut member = t.client().await;
        let request = subscribe(1)
            .to(format!("$share/group/{topic}"), 1)
            .props(props().varint(prop::SUBSCRIPTION_ID, number));
        member.send(request).await;
        member.recv(suback(1, &[1])).await;
        members.push((number, member));
    }
    let mut publisher = t.client().await;
    for id in 1..=8 {
        publisher.publish(publish(&topic).qos1(id)).await;
    }
    let mut count = 0;
    for (number, member) in &mut members {
        for copy in member.collect_to_fence().await {
            assert_eq!(
                copy.int_prop(prop::SUBSCRIPTION_ID),
                Some(*number as u32),
                "{copy:?}"
            );
            count += 1;
        }
    }
    assert_eq!(count, 8);
}

/// Bridges of 3.x add 0x80 to their level, as mosquitto's do: they get messages as they were published, and none of their own.
pub async fn bridge_gets_messages_as_published_and_none_of_its_own(t: Target) {
    let root = fresh("bridge");
    let bridge = || connect(fresh("c")).level(0x80 | t.version.level());
    let mut client = t.connect(bridge()).await;
    client.subscribe(format!("{root}/#"), 1).await;
    let mut other = t.subscriber(&format!("{root}/#"), 1).await;
    let message = |text: &str| publish(format!("{root}/a")).qos1(7).payload(text);
    client.publish(message("own").retain()).await;
    client.fence().await;
    assert!(!other.take("own").await.retain());
    for (text, retain) in [("kept", true), ("passing", false)] {
        let packet = message(text);
        let packet = if retain { packet.retain() } else { packet };
        t.publish_from_elsewhere(packet).await;
        assert_eq!(client.take(text).await.retain(), retain);
        assert!(!other.take(text).await.retain());
    }
    // A member of a share is one like others.
    let mut member = t.connect(bridge()).await;
    member.subscribe(format!("$share/g/{root}/#"), 1).await;
    client.publish(message("once")).await;
    member.take("once").await;
    client.fence().await;
}
