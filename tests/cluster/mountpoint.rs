//! Listeners with a mountpoint or limits of their own: what their clients name lies below it, and they see nothing else.

use std::net::SocketAddr;

use flotte_tests::broker::Launch;
use flotte_tests::wire::prop;
use flotte_tests::{
    Broker, Client, Connect, Version, admin, block_on, connect, fresh, props, puback, publish,
    suback, subscribe, unsuback, unsubscribe, will,
};

use crate::access::Files;

const EVERY: [Version; 3] = [Version::V31, Version::V311, Version::V5];

/// A node with an ordinary listener, and one that is mounted at `site/a`.
fn node() -> Launch {
    Launch::new("mounted")
        .env("FLOTTE_LISTENER__TENANT__BIND", "127.0.0.1:0")
        .env("FLOTTE_LISTENER__TENANT__MOUNTPOINT", "site/a")
}

async fn inside(node: &Broker, version: Version, connect: Connect) -> Client {
    Client::connect(node.listener("tenant"), version, connect).await
}

async fn outside(node: &Broker, connect: Connect) -> Client {
    Client::connect(node.mqtt(), Version::V5, connect).await
}

#[test]
fn what_clients_name_lies_below_the_mountpoint() {
    block_on(async {
        let node = node().start();
        let mut whole = outside(&node, connect(fresh("o"))).await;
        whole.subscribe("#", 2).await;
        for version in EVERY {
            let mut tenant = inside(&node, version, connect(fresh("i"))).await;
            for filter in ["#", "t", "+/x"] {
                tenant.subscribe(filter, 2).await;
            }
            let mut speaker = inside(&node, version, connect(fresh("i"))).await;
            for (qos, topic) in (0..3).zip(["t", "/x", "a/b/c"]) {
                let payload = fresh("p");
                let message = publish(topic).payload(&payload);
                speaker.publish(message.qos_bits(qos, 1)).await;
                let got = tenant.take(&payload).await;
                assert_eq!(got.topic(), topic);
                let got = whole.take(&payload).await;
                assert_eq!(got.topic(), format!("site/a/{topic}"));
            }
            tenant.leave().await;
        }
    });
}

#[test]
fn clients_see_nothing_that_is_not_below_their_mountpoint() {
    block_on(async {
        let node = node().start();
        let mut whole = outside(&node, connect(fresh("o"))).await;
        for version in EVERY {
            let mut tenant = inside(&node, version, connect(fresh("i"))).await;
            for filter in ["#", "+", "$SYS/#", "site/#", "site/a/#"] {
                tenant.subscribe(filter, 1).await;
            }
            // `site/a` is the parent of all that lies below it, and has no name there.
            for (topic, id) in ["site/a", "t", "site/ab/t", "site/b/t"]
                .into_iter()
                .zip(1..)
            {
                whole.publish(publish(topic).qos1(id)).await;
            }
            whole
                .publish(publish("site/a/t").payload("seen").qos1(9))
                .await;
            assert_eq!(tenant.take("seen").await.topic(), "t");
            assert_eq!(
                tenant.collect_to_fence().await.len(),
                0,
                "nothing else came"
            );
            tenant.leave().await;
        }
        let dropped = "flotte_copies_dropped_total{reason=\"unmounted\"}";
        let dropped = admin::metric(node.admin(), dropped);
        assert_eq!(dropped, Some(3.0), "a copy for each that subscribed to `#`");
    });
}

#[test]
fn retained_messages_wills_and_shares_keep_to_it() {
    block_on(async {
        let node = node().start();
        let mut whole = outside(&node, connect(fresh("o"))).await;
        whole.subscribe("site/a/will", 1).await;
        whole
            .publish(publish("site/a/kept").payload("k").retain().qos1(1))
            .await;
        whole
            .publish(publish("kept").payload("other").retain().qos1(2))
            .await;
        let mut tenant = inside(&node, Version::V5, connect(fresh("i"))).await;
        tenant.subscribe("kept", 1).await;
        let got = tenant.take("k").await;
        assert_eq!((got.topic(), got.retain()), ("kept".to_owned(), true));
        tenant.subscribe("$share/g/jobs/+", 1).await;
        whole
            .publish(publish("site/a/jobs/1").payload("job").qos1(3))
            .await;
        assert_eq!(tenant.take("job").await.topic(), "jobs/1");
        let dying = connect(fresh("w")).will(will("will", "gone").qos(1));
        inside(&node, Version::V311, dying).await.cut();
        assert_eq!(whole.take("gone").await.topic(), "site/a/will");
        tenant.send(unsubscribe(9).from("$share/g/jobs/+")).await;
        tenant.recv(unsuback(9, &[0])).await;
        whole.publish(publish("site/a/jobs/2").qos1(4)).await;
        assert_eq!(tenant.collect_to_fence().await.len(), 0, "unsubscribed");
    });
}

#[test]
fn rules_see_the_whole_name() {
    const RULES: &str = "[[rule]]\neffect = \"allow\"\ntopics = [\"site/a/open/#\"]\n";
    block_on(async {
        let files = Files::new("flotte", RULES, "");
        let node = files.configure(node()).start();
        let mut tenant = inside(&node, Version::V5, connect(fresh("i"))).await;
        tenant
            .send(subscribe(1).to("open/#", 1).to("site/a/open/#", 1))
            .await;
        tenant.recv(suback(1, &[1, 0x87])).await;
        tenant.send(publish("open/t").payload("x")).await;
        assert_eq!(tenant.take("x").await.topic(), "open/t");
        tenant.send(publish("site/a/open/t").qos1(2)).await;
        tenant.recv(puback(2).reason(0x87)).await;
        let refused = connect(fresh("w")).will(will("shut", "x"));
        let mut late = Client::dial(node.listener("tenant"), Version::V5).await;
        late.send(refused).await;
        late.expect_refused(&[0x87]).await;
    });
}

#[test]
fn a_topic_that_would_become_too_long_is_refused() {
    block_on(async {
        let node = node().start();
        let long = "t".repeat(65_535 - "site/a/".len());
        let mut tenant = inside(&node, Version::V5, connect(fresh("i"))).await;
        tenant.subscribe(&long, 0).await;
        tenant.send(publish(&long).payload("fits")).await;
        assert_eq!(tenant.take("fits").await.topic(), long);
        tenant.send(publish(format!("{long}t")).qos1(2)).await;
        assert_eq!(tenant.recv_kind(14).await.reason(), 0x90);
        tenant.expect_closed().await;
    });
}

#[test]
fn a_listener_has_its_own_number_of_topic_aliases() {
    block_on(async {
        let node = node()
            .env("FLOTTE_LISTENER__TENANT__TOPIC_ALIAS_MAXIMUM", 2)
            .start();
        let told = |client: &Client| client.connack().int_prop(prop::TOPIC_ALIAS_MAXIMUM);
        let whole = outside(&node, connect(fresh("o"))).await;
        assert_eq!(told(&whole), Some(64));
        let id = fresh("i");
        for (address, alias, reason) in [
            (node.mqtt(), 64, None),
            (node.listener("tenant"), 2, None),
            (node.listener("tenant"), 3, Some(0x94)),
            // The session has been somewhere else.
            (node.mqtt(), 64, None),
        ] {
            use_alias(address, &id, alias, reason).await;
        }
        let tenant = inside(&node, Version::V5, connect(fresh("i"))).await;
        assert_eq!(told(&tenant), Some(2));
    });
}

async fn use_alias(address: SocketAddr, id: &str, alias: u16, refused: Option<u8>) {
    let resume = connect(id)
        .resume()
        .props(props().u32(prop::SESSION_EXPIRY, 60));
    let mut client = Client::connect(address, Version::V5, resume).await;
    let aliased = publish("t").props(props().u16(prop::TOPIC_ALIAS, alias));
    client.send(aliased.qos1(1)).await;
    match refused {
        Some(reason) => assert_eq!(client.recv_kind(14).await.reason(), reason),
        None => client.recv_ack(4, 1).await,
    }
}
