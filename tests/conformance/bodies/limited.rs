//! A broker with every limit low and every optional feature off.

use std::time::{Duration, Instant};

use flotte_tests::wire::prop;
use flotte_tests::{
    Client, Connect, Packet, Value, connect, disconnect, fresh, props, publish, suback, subscribe,
    will,
};

use crate::target::Target;

/// `mqtt.server_keep_alive_s` of this broker.
const KEEP_ALIVE: Duration = Duration::from_secs(8);
/// One byte more than `mqtt.max_client_id_bytes`.
const LONG_ID_BYTES: usize = 41;
/// `mqtt.session_expiry_max_s` and `mqtt.session_expiry_3x_s`, and what a timer may be late.
const EXPIRED: Duration = Duration::from_millis(4_000);

fn long_id() -> String {
    format!("{:x<LONG_ID_BYTES$}", fresh("c"))
}

/// CONNECT is answered by this code and the end.
async fn refused(t: &Target, packet: Connect, code: u8) {
    let mut client = t.dial().await;
    client.send(packet).await;
    let answer = client.recv_kind(2).await;
    assert_eq!(
        (answer.reason(), answer.session_present()),
        (code, false),
        "{answer:?}"
    );
    client.expect_closed().await;
}

/// A packet of an accepted client is answered by DISCONNECT in 5.0, and by the end.
async fn ends_with(t: &Target, packet: impl Packet, reason: u8) {
    let mut client = t.client().await;
    client.send(packet).await;
    client.expect_refused(&[reason]).await;
}

pub async fn long_client_id_gets_return_code_2(t: Target) {
    refused(&t, connect(long_id()), 2).await;
    // The longest that is taken.
    t.connect(connect(&long_id()[..LONG_ID_BYTES - 1]))
        .await
        .fence()
        .await;
}

pub async fn empty_client_id_gets_return_code_2(t: Target) {
    refused(&t, connect(""), 2).await;
    refused(&t, connect("").resume(), 2).await;
}

pub async fn refused_client_ids_get_0x85(t: Target) {
    refused(&t, connect(long_id()), 0x85).await;
    refused(&t, connect(""), 0x85).await;
}

/// The one with the wildcard is refused, the one beside it is not.
pub async fn wildcards_are_refused_with_0x80(t: Target) {
    let topic = fresh("w");
    let mut client = t.client().await;
    let wild = subscribe(1)
        .to(format!("{topic}/+"), 0)
        .to(&topic, 1)
        .to(format!("{topic}/#"), 1);
    client.send(wild).await;
    client.recv(suback(1, &[0x80, 1, 0x80])).await;
    t.publish_from_elsewhere(publish(format!("{topic}/a")).payload("never"))
        .await;
    t.publish_from_elsewhere(publish(&topic).payload("x")).await;
    client.recv(publish(&topic).payload("x")).await;
    client.fence().await;
}

pub async fn wildcards_end_the_connection(t: Target) {
    for filter in ["a/+", "#", "a/#"] {
        ends_with(&t, subscribe(1).to(filter, 0), 0xa2).await;
    }
}

pub async fn shared_subscriptions_are_refused_with_0x80(t: Target) {
    let mut client = t.client().await;
    client.send(subscribe(1).to("$share/group/a", 0)).await;
    client.recv(suback(1, &[0x80])).await;
}

pub async fn shared_subscriptions_end_the_connection(t: Target) {
    ends_with(&t, subscribe(1).to("$share/group/a", 0), 0x9e).await;
}

pub async fn subscription_identifiers_end_the_connection(t: Target) {
    let number = props().varint(prop::SUBSCRIPTION_ID, 1);
    ends_with(&t, subscribe(1).to("a", 0).props(number), 0xa1).await;
}

/// In 3.1.1 no return code says that: the connection is closed without CONNACK.
pub async fn will_beyond_the_limits_is_refused_in_silence(t: Target) {
    for beyond in [will("w", "x").qos(2), will("w", "x").retain()] {
        let mut client = t.dial().await;
        client.send(connect(fresh("c")).will(beyond)).await;
        client.expect_closed().await;
    }
}

pub async fn publish_beyond_the_limits_ends_the_connection(t: Target) {
    for beyond in [publish("a").qos2(1), publish("a").retain()] {
        let mut client = t.client().await;
        client.send(beyond).await;
        client.expect_closed().await;
    }
}

pub async fn publish_above_the_maximum_qos_ends_the_connection(t: Target) {
    let topic = fresh("q");
    let mut watcher = t.subscriber(&topic, 0).await;
    ends_with(&t, publish(&topic).qos2(1).payload("never"), 0x9b).await;
    watcher.fence().await;
}

pub async fn will_above_the_maximum_qos_is_refused(t: Target) {
    refused(&t, connect(fresh("c")).will(will("w", "x").qos(2)), 0x9b).await;
    let fine = connect(fresh("c")).will(will("w", "x").qos(1));
    t.connect(fine).await.leave().await;
}

pub async fn retained_will_is_refused(t: Target) {
    refused(&t, connect(fresh("c")).will(will("w", "x").retain()), 0x9a).await;
}

pub async fn retained_publish_ends_the_connection(t: Target) {
    let topic = fresh("r");
    let mut watcher = t.subscriber(&topic, 0).await;
    for packet in [publish(&topic).retain(), publish(&topic).qos1(1).retain()] {
        ends_with(&t, packet.payload("never"), 0x9a).await;
    }
    watcher.fence().await;
}

pub async fn alias_where_none_is_taken_ends_the_connection(t: Target) {
    let alias = props().u16(prop::TOPIC_ALIAS, 1);
    ends_with(&t, publish("a").props(alias), 0x94).await;
}

/// Every limit that differs from what the standard assumes, and nothing that does not.
pub async fn capabilities_are_told(t: Target) {
    let asked = props().u32(prop::SESSION_EXPIRY, 100);
    let client = t
        .connect(connect(fresh("c")).props(asked).keep_alive(60))
        .await;
    let mut told = client.connack().props();
    told.sort_by_key(|(id, _)| *id);
    let wanted = [
        (prop::SESSION_EXPIRY, 2),
        (prop::SERVER_KEEP_ALIVE, 8),
        (prop::RECEIVE_MAXIMUM, 2),
        (prop::MAXIMUM_QOS, 1),
        (prop::RETAIN_AVAILABLE, 0),
        (prop::MAXIMUM_PACKET_SIZE, 1_000),
        (prop::WILDCARD_AVAILABLE, 0),
        (prop::SUBSCRIPTION_IDS_AVAILABLE, 0),
        (prop::SHARED_AVAILABLE, 0),
    ];
    let wanted = wanted.map(|(id, value)| (id, Value::Int(value)));
    assert_eq!(told, wanted, "{:?}", client.connack());
}

/// Any QoS may be asked for; what is granted is what there is.
pub async fn subscribe_at_any_qos_is_granted_what_there_is(t: Target) {
    let topic = fresh("q");
    for (asked, granted) in [(0, 0), (1, 1), (2, 1)] {
        let mut client = t.client().await;
        client.send(subscribe(1).to(&topic, asked)).await;
        client.recv(suback(1, &[granted])).await;
        t.publish_from_elsewhere(publish(&topic).qos1(1).payload("x"))
            .await;
        assert_eq!(client.take("x").await.qos(), granted);
    }
}

/// The client asks for none, or for more: it is told, and held to, the broker's.
pub async fn server_keep_alive_takes_the_place_of_the_clients(t: Target) {
    let begin = Instant::now();
    let mut clients: Vec<Client> = Vec::new();
    for asked in [0, 600, 1] {
        let client = t.connect(connect(fresh("ka")).keep_alive(asked)).await;
        assert_eq!(
            client.connack().int_prop(prop::SERVER_KEEP_ALIVE),
            Some(8),
            "{asked} was asked for"
        );
        clients.push(client);
    }
    for client in &mut clients {
        client.patience = KEEP_ALIVE * 3;
        client.expect_refused(&[0x8d]).await;
        let silent = begin.elapsed();
        assert!(
            silent >= KEEP_ALIVE * 3 / 2 - Duration::from_millis(100),
            "{silent:?}"
        );
        assert!(silent <= KEEP_ALIVE * 5 / 2, "{silent:?}");
    }
}

/// 3.x has no word to tell it by: a client that asked for none may be silent.
pub async fn keep_alive_of_3x_is_not_changed(t: Target) {
    let mut client = t.client().await;
    client
        .expect_silence(KEEP_ALIVE * 3 / 2 + Duration::from_millis(700))
        .await;
    client.fence().await;
}

pub async fn topics_have_a_limited_number_of_levels(t: Target) {
    let four = format!("{}/b/c/d", fresh("a"));
    let five = format!("{four}/e");
    let mut client = t.client().await;
    let refusal = if t.is_v5() { 0x8f } else { 0x80 };
    client.send(subscribe(1).to(&four, 0).to(&five, 0)).await;
    client.recv(suback(1, &[0, refusal])).await;
    t.publish_from_elsewhere(publish(&four).payload("x")).await;
    client.recv(publish(&four).payload("x")).await;
    ends_with(&t, publish(&five).payload("never"), 0x90).await;
    let mut client = t.dial().await;
    client
        .send(connect(fresh("c")).will(will(&five, "never")))
        .await;
    client.expect_refused(&[0x90]).await;
}

/// A packet of just the announced size is taken, one more byte is not.
pub async fn packet_size_is_limited(t: Target) {
    let topic = fresh("size");
    let mut watcher = t.subscriber(&topic, 0).await;
    let sized = |bytes: usize| {
        let empty = publish(&topic).payload("x".repeat(200)).encode(t.version);
        publish(&topic).payload("x".repeat(bytes - empty.len() + 200))
    };
    assert_eq!(sized(1_000).encode(t.version).len(), 1_000);
    t.publish_from_elsewhere(sized(1_000)).await;
    watcher.recv(sized(1_000)).await;
    ends_with(&t, sized(1_001), 0x95).await;
    watcher.fence().await;
}

/// In CONNECT and in DISCONNECT: no more than the maximum.
pub async fn session_expiry_is_limited_and_told(t: Target) {
    let expiry = |id: &str, seconds| {
        let asked = props().u32(prop::SESSION_EXPIRY, seconds);
        connect(id).resume().props(asked)
    };
    let (lost, left, short) = (fresh("d"), fresh("d"), fresh("d"));
    let client = t.connect(expiry(&lost, u32::MAX)).await;
    assert_eq!(client.connack().int_prop(prop::SESSION_EXPIRY), Some(2));
    client.cut();
    let mut client = t.connect(expiry(&left, 1)).await;
    assert_eq!(client.connack().int_prop(prop::SESSION_EXPIRY), None);
    let longer = props().u32(prop::SESSION_EXPIRY, 1_000);
    client.send(disconnect().props(longer)).await;
    client.expect_closed().await;
    t.connect(expiry(&short, 2)).await.leave().await;
    assert!(t.connect(expiry(&short, 0)).await.session_present());
    tokio::time::sleep(EXPIRED).await;
    for id in [&lost, &left] {
        let again = t.connect(expiry(id, 0)).await;
        assert!(!again.session_present(), "{:?}", again.connack());
    }
}

pub async fn session_of_3x_ends_when_its_time_is_over(t: Target) {
    let (id, soon) = (fresh("d"), fresh("d"));
    t.connect(t.durable(&soon)).await.leave().await;
    assert!(t.connect(t.durable(&soon)).await.session_present());
    t.connect(t.durable(&id)).await.leave().await;
    tokio::time::sleep(EXPIRED).await;
    assert!(!t.connect(t.durable(&id)).await.session_present());
}

/// `%c` stands for the client id; where that makes no topic there is none.
pub async fn response_information_is_given_to_who_asks(t: Target) {
    let asked = || props().byte(prop::REQUEST_RESPONSE_INFO, 1);
    let id = fresh("c");
    let client = t.connect(connect(&id).props(asked())).await;
    let info = client.connack().bytes_prop(prop::RESPONSE_INFO);
    assert_eq!(info, Some(format!("reply/{id}").into_bytes()));
    let wild = t.connect(connect(format!("{id}+")).props(asked())).await;
    assert_eq!(wild.connack().bytes_prop(prop::RESPONSE_INFO), None);
    let silent = t.connect(connect(fresh("c"))).await;
    assert_eq!(silent.connack().bytes_prop(prop::RESPONSE_INFO), None);
}
