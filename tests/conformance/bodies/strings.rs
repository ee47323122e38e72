//! UTF-8 strings and Variable Byte Integers.

use flotte_tests::wire::{frame, prop, text};
use flotte_tests::{connect, fresh, props, publish, subscribe, unsubscribe, will};

use crate::target::Target;

/// A lone surrogate, an overlong form, a byte that never occurs, a value past U+10FFFF, a cut sequence.
const ILL_FORMED: [&[u8]; 5] = [
    b"a\xed\xa0\x80b",
    b"a\xc0\x80b",
    b"a\xffb",
    b"a\xf4\x90\x80\x80b",
    b"a\xe2\x82",
];

pub async fn ill_formed_topic_ends_the_connection(t: Target) {
    for bad in ILL_FORMED {
        let mut client = t.client().await;
        client.send(publish(bad)).await;
        client.expect_refused(&[0x81]).await;
    }
}

pub async fn ill_formed_filter_ends_the_connection(t: Target) {
    for bad in ILL_FORMED {
        let mut client = t.client().await;
        client.send(subscribe(1).to(bad, 0)).await;
        client.expect_refused(&[0x81]).await;
    }
}

pub async fn ill_formed_filter_in_unsubscribe_ends_the_connection(t: Target) {
    for bad in ILL_FORMED {
        let mut client = t.client().await;
        client.send(unsubscribe(1).from(bad)).await;
        client.expect_refused(&[0x81]).await;
    }
}

pub async fn ill_formed_client_id_ends_the_connection(t: Target) {
    for bad in ILL_FORMED {
        let mut client = t.dial().await;
        client.send(connect(bad)).await;
        client.expect_refused(&[0x81, 0x85]).await;
    }
}

pub async fn ill_formed_will_topic_ends_the_connection(t: Target) {
    for bad in ILL_FORMED {
        let mut client = t.dial().await;
        client
            .send(connect(fresh("c")).will(will(bad, "gone")))
            .await;
        client.expect_refused(&[0x81]).await;
    }
}

pub async fn ill_formed_username_ends_the_connection(t: Target) {
    for bad in ILL_FORMED {
        let mut client = t.dial().await;
        client.send(connect(fresh("c")).username(bad)).await;
        client.expect_refused(&[0x81]).await;
    }
}

pub async fn nul_in_a_string_ends_the_connection(t: Target) {
    let mut client = t.client().await;
    client.send(publish(b"a\0b")).await;
    client.expect_refused(&[0x81, 0x90]).await;
    let mut client = t.dial().await;
    client.send(connect(b"a\0b")).await;
    client.expect_refused(&[0x81, 0x85]).await;
}

pub async fn nul_in_topics_and_filters_ends_the_connection(t: Target) {
    let mut client = t.client().await;
    client.send(publish(b"a/\0").qos1(1)).await;
    client.expect_refused(&[0x81, 0x90]).await;
    let mut client = t.client().await;
    client.send(subscribe(1).to(b"a/\0", 0)).await;
    client.expect_refused(&[0x81, 0x8f]).await;
    let mut client = t.client().await;
    client.send(unsubscribe(1).from(b"a/\0")).await;
    client.expect_refused(&[0x81, 0x8f]).await;
}

pub async fn byte_order_mark_is_kept(t: Target) {
    let bare = fresh("bom");
    let marked = format!("\u{feff}{bare}");
    let mut plain = t.subscriber(&bare, 0).await;
    let mut subscriber = t.subscriber(&marked, 0).await;
    t.publish_from_elsewhere(publish(&marked).payload("x"))
        .await;
    subscriber.recv(publish(&marked).payload("x")).await;
    plain.fence().await;
}

pub async fn ill_formed_user_property_ends_the_connection(t: Target) {
    for bad in ILL_FORMED {
        for properties in [props().user(bad, "value"), props().user("name", bad)] {
            let mut client = t.client().await;
            client.send(publish("a").props(properties)).await;
            client.expect_refused(&[0x81]).await;
        }
    }
}

pub async fn ill_formed_response_topic_ends_the_connection(t: Target) {
    for bad in ILL_FORMED {
        let mut client = t.client().await;
        client
            .send(publish("a").props(props().text(prop::RESPONSE_TOPIC, bad)))
            .await;
        client.expect_refused(&[0x81]).await;
    }
}

pub async fn ill_formed_content_type_ends_the_connection(t: Target) {
    for bad in ILL_FORMED {
        let mut client = t.client().await;
        client
            .send(publish("a").props(props().text(prop::CONTENT_TYPE, bad)))
            .await;
        client.expect_refused(&[0x81]).await;
    }
}

/// Property length 0 written as `80 00`.
pub async fn padded_integer_ends_the_connection(t: Target) {
    let mut body = text("a");
    body.extend([0x80, 0x00]);
    let mut client = t.client().await;
    client.send(frame(0x30, &body)).await;
    client.expect_refused(&[0x81]).await;
}
