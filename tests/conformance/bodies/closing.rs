//! DISCONNECT, AUTH and reason codes of 5.0.

use flotte_tests::wire::prop;
use flotte_tests::{
    Packet as _, auth, connect, disconnect, fresh, props, puback, pubcomp, publish, pubrec, pubrel,
    suback, subscribe,
};

use crate::target::Target;

/// A refused CONNECT is answered by CONNACK or the end: DISCONNECT never comes before a success.
pub async fn no_disconnect_before_a_successful_connack(t: Target) {
    let wrong = [
        connect(fresh("c")).flip_flags(1),
        connect(fresh("c")).props(props().text(prop::AUTH_METHOD, "no-such-method")),
        connect(fresh("c")).props(props().u32(prop::WILL_DELAY, 1)),
    ];
    for packet in wrong {
        let mut client = t.dial().await;
        client.send(packet).await;
        while let Some(answer) = client.next_or_end().await.expect("an answer or the end") {
            assert_eq!(answer.kind(), 2, "{answer:?}");
        }
    }
}

/// Reasons that do not exist, and some that only a server may use: with these the client has said goodbye, too.
pub async fn unknown_disconnect_reason_is_refused(t: Target) {
    for reason in [0x01, 0x42, 0x8e, 0x8b, 0xff] {
        let mut client = t.client().await;
        client.wants_reasons = ![0x8e, 0x8b].contains(&reason);
        client.send(disconnect().reason(reason)).await;
        client.expect_refused(&[0x81, 0x82]).await;
    }
}

pub async fn disconnect_of_the_server_has_no_session_expiry(t: Target) {
    let id = fresh("d");
    let mut older = t.connect(t.durable(&id)).await;
    let _newer = t.connect(t.durable(&id)).await;
    let goodbye = older.recv_kind(14).await;
    assert_eq!(goodbye.prop(prop::SESSION_EXPIRY), [], "{goodbye:?}");
}

/// After its DISCONNECT the server sends nothing more: not even what was on its way.
pub async fn nothing_follows_a_disconnect(t: Target) {
    let (id, topic) = (fresh("c"), fresh("t"));
    let mut older = t.connect(connect(&id)).await;
    older.subscribe(&topic, 0).await;
    let mut newer = t.connect(connect(&id)).await;
    t.publish_from_elsewhere(publish(&topic).payload("late"))
        .await;
    assert_eq!(older.recv_kind(14).await.reason(), 0x8e);
    older.expect_closed().await;
    newer.fence().await;
}

/// The sender of DISCONNECT closes: the server does so after its own.
pub async fn server_closes_behind_its_disconnect(t: Target) {
    let mut client = t.client().await;
    client.send(subscribe(1)).await;
    let goodbye = client.recv_kind(14).await;
    assert!(goodbye.reason() >= 0x80, "{goodbye:?}");
    client.expect_closed().await;
}

/// A DISCONNECT that reports a failure ends the connection like any other.
pub async fn failing_disconnect_of_a_client_closes(t: Target) {
    for reason in [0x80, 0x81, 0x83, 0x97] {
        let mut client = t.client().await;
        client.send(disconnect().reason(reason)).await;
        client.expect_closed().await;
    }
}

async fn refused_reason(t: &Target, packet: impl flotte_tests::Packet) {
    let mut client = t.client().await;
    client.send(packet).await;
    client.expect_refused(&[0x81, 0x82]).await;
}

/// A message under way, so that only the reason is at fault.
pub async fn unknown_puback_reason_ends_the_connection(t: Target) {
    let topic = fresh("r");
    let mut client = t.subscriber(&topic, 1).await;
    t.publish_from_elsewhere(publish(&topic).qos1(1)).await;
    let id = client.recv_publish().await.packet_id();
    client.send(puback(id).reason(0x42)).await;
    client.expect_refused(&[0x81, 0x82]).await;
}

pub async fn unknown_pubrec_reason_ends_the_connection(t: Target) {
    let topic = fresh("r");
    let mut client = t.subscriber(&topic, 2).await;
    t.publish_from_elsewhere(publish(&topic).qos2(1)).await;
    let id = client.recv_publish().await.packet_id();
    client.send(pubrec(id).reason(0x01)).await;
    client.expect_refused(&[0x81, 0x82]).await;
}

pub async fn unknown_pubrel_reason_ends_the_connection(t: Target) {
    let mut client = t.client().await;
    client.send(publish(fresh("r")).qos2(1)).await;
    client.recv_ack(5, 1).await;
    client.send(pubrel(1).reason(0x80)).await;
    client.expect_refused(&[0x81, 0x82]).await;
}

pub async fn unknown_pubcomp_reason_ends_the_connection(t: Target) {
    let topic = fresh("r");
    let mut client = t.subscriber(&topic, 2).await;
    t.publish_from_elsewhere(publish(&topic).qos2(1)).await;
    let id = client.recv_publish().await.packet_id();
    client.send(pubrec(id)).await;
    client.recv(pubrel(id)).await;
    client.send(pubcomp(id).reason(0x10)).await;
    client.expect_refused(&[0x81, 0x82]).await;
}

/// Codes the server uses stand in their tables: with and without subscribers, unknown ids.
pub async fn puback_codes_stand_in_the_table(t: Target) {
    let mut client = t.client().await;
    for topic in [fresh("nobody"), "$SYS/forged".to_owned()] {
        client.send(publish(&topic).qos1(1)).await;
        let reason = client.recv_kind(4).await.reason();
        assert!(
            [0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99].contains(&reason),
            "{reason:#04x}"
        );
    }
}

pub async fn pubrec_codes_stand_in_the_table(t: Target) {
    let mut client = t.client().await;
    for (id, topic) in [(1, fresh("nobody")), (2, "$SYS/forged".to_owned())] {
        client.send(publish(&topic).qos2(id)).await;
        let reason = client.recv_kind(5).await.reason();
        assert!(
            [0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99].contains(&reason),
            "{reason:#04x}"
        );
    }
}

pub async fn pubcomp_of_an_unknown_id_says_so(t: Target) {
    let mut client = t.client().await;
    client.send(pubrel(77)).await;
    let answer = client.recv_kind(7).await;
    assert_eq!(
        (answer.packet_id(), answer.reason()),
        (77, 0x92),
        "{answer:?}"
    );
}

/// A refused QoS 2 message leaves its id free: the next PUBLISH of that id is delivered.
pub async fn id_of_a_refused_qos2_message_is_free(t: Target) {
    let topic = fresh("r");
    let mut subscriber = t.subscriber(&topic, 0).await;
    let mut client = t.client().await;
    client.send(publish("$SYS/forged").qos2(5)).await;
    let refusal = client.recv_kind(5).await;
    if refusal.reason() < 0x80 {
        return;
    }
    client.publish(publish(&topic).qos2(5).payload("x")).await;
    subscriber.take("x").await;
}

pub async fn unknown_authentication_method_is_refused(t: Target) {
    let mut client = t.dial().await;
    client
        .send(connect(fresh("c")).props(props().text(prop::AUTH_METHOD, "no-such-method")))
        .await;
    client.expect_refused(&[0x8c, 0x87]).await;
}

/// No method in CONNECT: none in CONNACK, no AUTH, and the first packet is the CONNACK.
pub async fn no_authentication_unless_asked(t: Target) {
    let mut client = t.client().await;
    assert_eq!(client.connack().prop(prop::AUTH_METHOD), []);
    assert_eq!(client.connack().prop(prop::AUTH_DATA), []);
    client.send(subscribe(1).to(fresh("f"), 0)).await;
    client.recv(suback(1, &[0])).await;
    client.fence().await;
}

pub async fn auth_without_a_method_ends_the_connection(t: Target) {
    for reason in [0x18, 0x19] {
        refused_reason(
            &t,
            auth()
                .reason(reason)
                .props(props().text(prop::AUTH_METHOD, "m")),
        )
        .await;
    }
}

pub async fn unknown_auth_reason_ends_the_connection(t: Target) {
    for reason in [0x00, 0x01, 0x42] {
        refused_reason(
            &t,
            auth()
                .reason(reason)
                .props(props().text(prop::AUTH_METHOD, "m")),
        )
        .await;
    }
}

/// Errors for which the standard has a code: each ends the connection.
pub async fn errors_with_a_code_end_the_connection(t: Target) {
    refused_reason(&t, [0x30, 0x80, 0x80, 0x80, 0x80, 0x01]).await;
    refused_reason(&t, [0x30, 1, 0]).await;
    refused_reason(&t, [0x40, 1, 0]).await;
    refused_reason(&t, [0x82, 2, 0, 1]).await;
    refused_reason(&t, [0xc0, 1, 0]).await;
}

/// What stands behind a goodbye is not looked at.
pub async fn nothing_behind_a_goodbye_counts(t: Target) {
    let topic = fresh("behind");
    let mut watcher = t.subscriber(&topic, 0).await;
    let mut client = t.client().await;
    let mut bytes = disconnect().encode(t.version);
    bytes.extend(publish(&topic).qos1(1).payload("never").encode(t.version));
    client.send(bytes).await;
    client.expect_closed().await;
    t.publish_from_elsewhere(publish(&topic).payload("after"))
        .await;
    watcher.take("after").await;
}

/// A client that says goodbye and does not close: the broker does.
pub async fn goodbye_is_answered_by_the_end(t: Target) {
    let mut client = t.client().await;
    client.send(disconnect()).await;
    client.expect_closed().await;
}

/// Every refusal that says why is followed by the end.
pub async fn refusing_connack_is_followed_by_the_end(t: Target) {
    let (packet, code) = if t.is_v5() {
        let method = props().text(prop::AUTH_METHOD, "no-such-method");
        (connect(fresh("c")).props(method), 0x8c)
    } else {
        (connect("").resume(), 2)
    };
    let mut client = t.dial().await;
    client.send(packet).await;
    let answer = client.recv_kind(2).await;
    assert_eq!(answer.reason(), code, "{answer:?}");
    client.expect_closed().await;
}

/// Re-authentication on a connection without a method.
pub async fn re_authentication_without_a_method_ends_the_connection(t: Target) {
    let method = props().text(prop::AUTH_METHOD, "m");
    refused_reason(&t, auth().reason(0x19).props(method)).await;
}

/// Behind a CONNECT with a method only AUTH and DISCONNECT may come: a message there goes nowhere.
pub async fn nothing_but_auth_behind_a_method(t: Target) {
    let topic = fresh("behind");
    let mut watcher = t.subscriber(&topic, 0).await;
    let method = props().text(prop::AUTH_METHOD, "no-such-method");
    let mut bytes = connect(fresh("c")).props(method).encode(t.version);
    bytes.extend(publish(&topic).payload("never").encode(t.version));
    let mut client = t.dial().await;
    client.send(bytes).await;
    client.expect_refused(&[0x8c, 0x87]).await;
    t.publish_from_elsewhere(publish(&topic).payload("after"))
        .await;
    watcher.take("after").await;
}
