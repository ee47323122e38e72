//! CONNECT and CONNACK.

use std::time::Duration;

use flotte_tests::wire::prop;
use flotte_tests::{
    Connect, Packet, connack, connect, fresh, pingreq, props, publish, suback, subscribe, will,
};

use crate::target::Target;

/// Sends a CONNECT that breaks a rule: 3.x closes in silence, 5.0 may say why in CONNACK.
async fn refused(t: &Target, packet: Connect, reasons: &[u8]) {
    let mut client = t.dial().await;
    client.send(packet).await;
    client.expect_refused(reasons).await;
}

pub async fn first_packet_must_be_connect(t: Target) {
    let mut client = t.dial().await;
    client.send(pingreq()).await;
    client.expect_refused(&[0x81, 0x82]).await;
    let mut client = t.dial().await;
    client.send(publish("a")).await;
    client.expect_refused(&[0x81, 0x82]).await;
}

pub async fn second_connect_ends_the_connection(t: Target) {
    let id = fresh("twice");
    let mut client = t.connect(connect(&id)).await;
    client.send(connect(&id)).await;
    client.expect_refused(&[0x82]).await;
}

/// Another name may be another protocol with another way to refuse: what counts is that it ends.
pub async fn unknown_protocol_name_is_refused(t: Target) {
    for name in ["MQTTX", "mqtt", "HTTP", ""] {
        let mut client = t.dial().await;
        client.send(connect(fresh("c")).protocol(name)).await;
        match client.next_or_end().await {
            Ok(None) => continue,
            Ok(Some(packet)) => {
                let wanted = if t.is_v5() { 0x84 } else { 0x01 };
                assert_eq!((packet.kind(), packet.reason()), (2, wanted), "{packet:?}");
            }
            Err(late) => panic!("{late} after protocol name {name:?}"),
        }
        client.expect_closed().await;
    }
}

pub async fn unsupported_level_of_3x_gets_return_code_1(t: Target) {
    let mut client = t.dial().await;
    client.send(connect(fresh("c")).level(2)).await;
    client.recv([0x20, 2, 0, 1]).await;
    client.expect_closed().await;
}

pub async fn unsupported_level_above_5_is_refused(t: Target) {
    for level in [6, 127] {
        let mut client = t.dial().await;
        client.send(connect(fresh("c")).level(level)).await;
        let Some(packet) = client.next_or_end().await.expect("an answer or the end") else {
            continue;
        };
        assert!(
            matches!(packet.bytes.as_slice(), [0x20, _, 0, 0x84 | 0x01, ..]),
            "{packet:?}"
        );
        client.expect_closed().await;
    }
}

pub async fn reserved_flag_ends_the_connection(t: Target) {
    refused(&t, connect(fresh("c")).flip_flags(0x01), &[0x81]).await;
}

pub async fn will_qos_without_will_is_refused(t: Target) {
    refused(&t, connect(fresh("c")).flip_flags(0x08), &[0x81]).await;
    refused(&t, connect(fresh("c")).flip_flags(0x10), &[0x81]).await;
}

pub async fn will_qos_3_is_refused(t: Target) {
    refused(&t, connect(fresh("c")).will(will("w", "x").qos(3)), &[0x81]).await;
}

pub async fn will_retain_without_will_is_refused(t: Target) {
    refused(&t, connect(fresh("c")).flip_flags(0x20), &[0x81]).await;
}

/// The will flag without will topic and payload: the packet ends too early.
pub async fn will_flag_without_will_is_refused(t: Target) {
    refused(&t, connect(fresh("c")).flip_flags(0x04), &[0x81]).await;
}

/// A will in the payload without the flag: bytes too many.
pub async fn will_without_flag_is_refused(t: Target) {
    refused(
        &t,
        connect(fresh("c")).will(will("w", "x")).flip_flags(0x04),
        &[0x81],
    )
    .await;
}

pub async fn username_without_flag_is_refused(t: Target) {
    refused(
        &t,
        connect(fresh("c")).username("u").flip_flags(0x80),
        &[0x81],
    )
    .await;
}

pub async fn username_flag_without_username_is_refused(t: Target) {
    refused(&t, connect(fresh("c")).flip_flags(0x80), &[0x81]).await;
}

pub async fn password_without_flag_is_refused(t: Target) {
    let packet = connect(fresh("c"))
        .username("u")
        .password("p")
        .flip_flags(0x40);
    refused(&t, packet, &[0x81]).await;
}

pub async fn password_flag_without_password_is_refused(t: Target) {
    refused(
        &t,
        connect(fresh("c")).username("u").flip_flags(0x40),
        &[0x81],
    )
    .await;
}

pub async fn password_without_username_is_refused(t: Target) {
    refused(&t, connect(fresh("c")).password("p"), &[0x81]).await;
}

/// 5.0 allows it: whatever the broker thinks of the password, the packet is well-formed.
pub async fn password_without_username_is_well_formed(t: Target) {
    let mut client = t.dial().await;
    client.send(connect(fresh("c")).password("p")).await;
    let answer = client.recv_kind(2).await;
    assert!(matches!(answer.reason(), 0 | 0x86 | 0x87), "{answer:?}");
}

/// Client id, will topic, will payload: the will that is published shows that they were read so.
pub async fn payload_fields_are_read_in_order(t: Target) {
    let topic = fresh("order");
    let mut watcher = t.subscriber(&topic, 0).await;
    let packet = connect(fresh("c")).will(will(&topic, "gone"));
    t.connect(packet).await.cut();
    watcher.take("gone").await;
}

pub async fn missing_client_id_ends_the_connection(t: Target) {
    refused(&t, connect("").no_client_id(), &[0x81]).await;
}

pub async fn plain_ids_of_1_to_23_bytes_are_accepted(t: Target) {
    let tail = fresh("");
    let long = format!("0123456789abcXYZ{tail}{tail}");
    for id in [fresh("Z"), long[..23].to_owned(), "q".to_owned()] {
        t.connect(connect(&id)).await.fence().await;
    }
}

pub async fn empty_id_gets_a_session_of_its_own(t: Target) {
    let mut one = t.connect(connect("")).await;
    let mut other = t.connect(connect("")).await;
    one.fence().await;
    other.fence().await;
}

pub async fn empty_id_without_clean_session_gets_return_code_2(t: Target) {
    let mut client = t.dial().await;
    client.send(connect("").resume()).await;
    client.recv([0x20, 2, 0, 2]).await;
    client.expect_closed().await;
}

pub async fn empty_id_is_answered_with_an_assigned_one(t: Target) {
    let mut ids = Vec::new();
    let mut clients = Vec::new();
    for packet in [connect(""), connect(""), connect("").resume()] {
        let client = t.connect(packet).await;
        let id = client
            .connack()
            .bytes_prop(prop::ASSIGNED_CLIENT_ID)
            .expect("an assigned id");
        assert!(
            !id.is_empty() && !ids.contains(&id),
            "{:?}",
            client.connack()
        );
        ids.push(id);
        clients.push(client);
    }
}

/// The session of an assigned id is resumed under that id.
pub async fn assigned_id_works_as_if_the_client_had_sent_it(t: Target) {
    let expiry = props().u32(prop::SESSION_EXPIRY, 300);
    let mut client = t.connect(connect("").resume().props(expiry)).await;
    client.subscribe(fresh("f"), 1).await;
    let id = client
        .connack()
        .bytes_prop(prop::ASSIGNED_CLIENT_ID)
        .expect("an assigned id");
    let id = String::from_utf8(id).expect("UTF-8");
    client.leave().await;
    let again = t.connect(t.durable(&id)).await;
    assert!(again.session_present());
    assert_eq!(again.connack().bytes_prop(prop::ASSIGNED_CLIENT_ID), None);
}

/// A remaining length that cuts the payload short, and bytes behind the last field.
pub async fn malformed_connect_gets_no_connack(t: Target) {
    refused(&t, connect(fresh("c")).tail(b"\0\x01x"), &[0x81]).await;
    let mut cut = connect(fresh("longer")).encode(t.version);
    cut.truncate(cut.len() - 3);
    cut[1] -= 3;
    let mut client = t.dial().await;
    client.send(cut).await;
    client.expect_refused(&[0x81]).await;
}

pub async fn accepted_connect_gets_code_0(t: Target) {
    let mut client = t.dial().await;
    client.send(connect(fresh("c"))).await;
    if t.is_v5() {
        let answer = client.recv_kind(2).await;
        assert_eq!(
            (answer.reason(), answer.flags(), answer.session_present()),
            (0, 0, false)
        );
    } else {
        client.recv(connack(false, 0)).await;
    }
}

/// What stands behind a refused CONNECT does nothing: here a PUBLISH that someone waits for.
pub async fn packets_behind_a_refused_connect_are_ignored(t: Target) {
    let topic = fresh("behind");
    let mut watcher = t.subscriber(&topic, 0).await;
    let refused = if t.is_v5() {
        connect(fresh("c")).props(props().text(prop::AUTH_METHOD, "no-such-method"))
    } else {
        connect("").resume()
    };
    let mut bytes = refused.encode(t.version);
    bytes.extend(publish(&topic).payload("never").encode(t.version));
    let mut client = t.dial().await;
    client.send(bytes).await;
    let wanted = if t.is_v5() { vec![0x8c, 0x87] } else { vec![2] };
    if let Some(answer) = client.next_or_end().await.expect("an answer or the end") {
        assert!(
            answer.kind() == 2 && wanted.contains(&answer.reason()),
            "{answer:?}"
        );
        client.expect_closed().await;
    }
    t.publish_from_elsewhere(publish(&topic).payload("after"))
        .await;
    watcher.take("after").await;
}

/// SUBSCRIBE, sent at once behind CONNECT, is answered behind CONNACK.
pub async fn nothing_precedes_the_connack(t: Target) {
    let mut bytes = connect(fresh("c")).encode(t.version);
    bytes.extend(subscribe(7).to(fresh("f"), 0).encode(t.version));
    let mut client = t.dial().await;
    client.send(bytes).await;
    assert_eq!(client.recv_kind(2).await.reason(), 0);
    client.recv(suback(7, &[0])).await;
}

/// A resumed session has a message waiting: CONNACK still comes first, and only once.
pub async fn one_connack_before_queued_messages(t: Target) {
    let (id, topic) = (fresh("d"), fresh("q"));
    let mut first = t.connect(t.durable(&id)).await;
    first.subscribe(&topic, 1).await;
    first.leave().await;
    t.publish_from_elsewhere(publish(&topic).qos1(1).payload("waited"))
        .await;
    let mut again = t.connect(t.durable(&id)).await;
    again.take("waited").await;
    again.fence().await;
}

/// A stored session, and a CONNECT of that id which is refused: no session flag.
pub async fn refusal_has_no_session_flag(t: Target) {
    let id = fresh("d");
    t.connect(t.durable(&id)).await.leave().await;
    let mut client = t.dial().await;
    if t.is_v5() {
        let method = props().text(prop::AUTH_METHOD, "no-such-method");
        client.send(connect(&id).resume().props(method)).await;
    } else {
        client.send(connect(&id).resume().level(2)).await;
    }
    if let Some(answer) = client.next_or_end().await.expect("an answer or the end") {
        assert!(answer.kind() == 2 && answer.reason() != 0, "{answer:?}");
        assert_eq!(answer.bytes[2], 0, "{answer:?}");
        client.expect_closed().await;
    }
}

pub async fn connack_flags_have_no_reserved_bit(t: Target) {
    let id = fresh("d");
    let client = t.connect(t.durable(&id)).await;
    assert_eq!(client.connack().bytes[2], 0);
    client.leave().await;
    let again = t.connect(t.durable(&id)).await;
    assert_eq!(again.connack().bytes[2], 1);
}

/// Without any packet the connection ends after 1.5 times the interval: not before, not long after.
pub async fn silence_beyond_the_keep_alive_ends_the_connection(t: Target) {
    let mut client = t.connect(connect(fresh("ka")).keep_alive(1)).await;
    let start = std::time::Instant::now();
    client.expect_refused(&[0x8d]).await;
    let silent = start.elapsed();
    assert!(
        silent >= Duration::from_millis(1_400),
        "closed after {silent:?}"
    );
    assert!(
        silent <= Duration::from_millis(4_000),
        "closed after {silent:?}"
    );
}

/// Packets within the interval keep the connection open well past it.
pub async fn keep_alive_of_the_client_is_honoured(t: Target) {
    let mut client = t.connect(connect(fresh("ka")).keep_alive(1)).await;
    assert_eq!(client.connack().int_prop(prop::SERVER_KEEP_ALIVE), None);
    for _ in 0..6 {
        client.expect_silence(Duration::from_millis(500)).await;
        client.fence().await;
    }
}

pub async fn older_connection_of_an_id_is_closed(t: Target) {
    let id = fresh("takeover");
    let mut older = t.connect(connect(&id)).await;
    let mut newer = t.connect(connect(&id)).await;
    if t.is_v5() {
        let goodbye = older.recv_kind(14).await;
        assert_eq!(goodbye.reason(), 0x8e, "{goodbye:?}");
    }
    older.expect_closed().await;
    newer.fence().await;
}

/// Each reason the broker gives for a refusal stands in the table of CONNACK.
pub async fn refusals_use_codes_of_the_table(t: Target) {
    const TABLE: [u8; 22] = [
        0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8c, 0x90, 0x95, 0x97,
        0x99, 0x9a, 0x9b, 0x9c, 0x9d, 0x9f, 0x00,
    ];
    let wrong = [
        connect(fresh("c")).flip_flags(1),
        connect(fresh("c")).props(props().text(prop::AUTH_METHOD, "no-such-method")),
        connect(fresh("c")).props(props().u16(prop::RECEIVE_MAXIMUM, 0)),
        connect(fresh("c")).props(props().u16(prop::TOPIC_ALIAS, 1)),
    ];
    for packet in wrong {
        refused(&t, packet, &TABLE).await;
    }
}

pub async fn no_response_information_unless_asked(t: Target) {
    for asked in [props(), props().byte(prop::REQUEST_RESPONSE_INFO, 0)] {
        let client = t.connect(connect(fresh("c")).props(asked)).await;
        assert_eq!(client.connack().bytes_prop(prop::RESPONSE_INFO), None);
    }
}

/// Longer ids than the standards promise, in 3.1 too, up to the longest that there can be.
pub async fn long_client_ids_are_accepted(t: Target) {
    for length in [24, 200, 65_535] {
        let id = format!("{:x<length$}", fresh("long"));
        let mut client = t.connect(connect(&id)).await;
        client.fence().await;
        client.leave().await;
    }
}

/// 3.1 knows no empty ids, clean session or not.
pub async fn empty_id_of_3_1_is_refused(t: Target) {
    for packet in [connect(""), connect("").resume()] {
        let mut client = t.dial().await;
        client.send(packet).await;
        client.recv([0x20, 2, 0, 2]).await;
        client.expect_closed().await;
    }
}

/// Ids are told apart byte by byte, and may hold any character.
pub async fn any_character_may_stand_in_an_id(t: Target) {
    let name = fresh("i");
    for id in ["/#+$", "\u{e9}\u{1f600}", " ", "A", "a"] {
        let mut client = t.connect(t.durable(&format!("{name}{id}"))).await;
        assert!(!client.session_present(), "{id:?}");
        client.fence().await;
        client.leave().await;
    }
}

/// A half-open connection: the client is gone and nothing said so. It ends by its keep alive, and others are told.
pub async fn half_open_connection_ends_by_keep_alive(t: Target) {
    let topic = fresh("half");
    let mut watcher = t.subscriber(&topic, 1).await;
    let silent = connect(fresh("c"))
        .keep_alive(1)
        .will(will(&topic, "gone").qos(1));
    let _silent = t.connect(silent).await;
    watcher.take("gone").await;
}
