//! rumqttc, a client that others wrote, through three nodes: 3.1.1 and 5.0.

mod peer;

use std::sync::OnceLock;
use std::time::Duration;

use flotte_tests::{Cluster, block_on, fresh};

use peer::{Level, Options, Peer, Seen, Version};

static SHARED: OnceLock<Cluster> = OnceLock::new();

/// The cluster of the tests that leave it as it was.
fn shared() -> &'static Cluster {
    SHARED.get_or_init(Cluster::start)
}

const LEVELS: [Level; 3] = [Level::AtMostOnce, Level::AtLeastOnce, Level::ExactlyOnce];
const COUNT: usize = 20;

async fn every_node_to_every_node_in_order(version: Version) {
    let cluster = shared();
    for level in LEVELS {
        for (from, to) in [(0, 1), (1, 2), (2, 0), (1, 0), (2, 1), (0, 2)] {
            let topic = fresh("rumqttc/");
            let mut subscriber = Peer::connect(version, cluster.mqtt(to), Options::default()).await;
            let mut publisher =
                Peer::connect(version, cluster.mqtt(from), Options::default()).await;
            subscriber.subscribe(&format!("{topic}/+"), level).await;
            for number in 0..COUNT {
                let text = number.to_string();
                publisher
                    .publish(&format!("{topic}/x"), level, false, &text)
                    .await;
            }
            for number in 0..COUNT {
                let message = subscriber.message().await;
                assert_eq!(
                    message.payload,
                    number.to_string(),
                    "{from} to {to}, {level:?}"
                );
                assert_eq!((message.level, message.retain), (level, false));
            }
        }
    }
}

async fn retained_at_one_node_is_read_at_all(version: Version) {
    let cluster = shared();
    let mut publisher = Peer::connect(version, cluster.mqtt(0), Options::default()).await;
    // At QoS 0 nothing says when it is kept.
    for level in [Level::AtLeastOnce, Level::ExactlyOnce] {
        let topic = fresh("rumqttc/");
        publisher.publish(&topic, level, true, "kept").await;
        for node in 0..3 {
            let mut late = Peer::connect(version, cluster.mqtt(node), Options::default()).await;
            late.subscribe(&topic, Level::ExactlyOnce).await;
            let message = late.message().await;
            assert_eq!((message.payload.as_str(), message.level), ("kept", level));
            assert!(message.retain);
        }
        publisher
            .publish(&topic, Level::AtLeastOnce, true, "")
            .await;
        let mut late = Peer::connect(version, cluster.mqtt(2), Options::default()).await;
        late.subscribe(&topic, Level::AtLeastOnce).await;
        publisher
            .publish(&topic, Level::AtLeastOnce, false, "sentinel")
            .await;
        assert_eq!(late.message().await.payload, "sentinel");
    }
}

async fn will_of_a_lost_connection_reaches_another_node(version: Version) {
    let cluster = shared();
    let topic = fresh("rumqttc/");
    let will = Options {
        will: Some(topic.clone()),
        ..Options::default()
    };
    let mut watcher = Peer::connect(version, cluster.mqtt(2), Options::default()).await;
    watcher.subscribe(&topic, Level::AtLeastOnce).await;
    let clean = Peer::connect(version, cluster.mqtt(1), will.clone()).await;
    clean.disconnect().await;
    let lost = Peer::connect(version, cluster.mqtt(0), will.clone()).await;
    let name = lost.id().to_owned();
    lost.vanish();
    let message = watcher.message().await;
    assert_eq!((message.topic, message.payload), (topic, name));
}

async fn session_is_resumed_on_its_node(version: Version) {
    let cluster = shared();
    let topic = fresh("rumqttc/");
    let options = Options {
        id: Some(fresh("resume")),
        keep_session: true,
        will: None,
    };
    let mut first = Peer::connect(version, cluster.mqtt(1), options.clone()).await;
    assert!(!first.session_present());
    first.subscribe(&topic, Level::AtLeastOnce).await;
    first.disconnect().await;
    let mut publisher = Peer::connect(version, cluster.mqtt(2), Options::default()).await;
    for number in 0..COUNT {
        publisher
            .publish(&topic, Level::AtLeastOnce, false, &number.to_string())
            .await;
    }
    let mut again = Peer::connect(version, cluster.mqtt(1), options).await;
    assert!(again.session_present());
    for number in 0..COUNT {
        assert_eq!(again.message().await.payload, number.to_string());
    }
}

async fn client_reconnects_after_its_node_was_killed(version: Version) {
    let mut cluster = Cluster::start();
    let topic = fresh("rumqttc/");
    let mut victim = Peer::connect(version, cluster.mqtt(1), Options::default()).await;
    let mut witness = Peer::connect(version, cluster.mqtt(2), Options::default()).await;
    let mut publisher = Peer::connect(version, cluster.mqtt(0), Options::default()).await;
    victim.subscribe(&topic, Level::AtLeastOnce).await;
    witness.subscribe(&topic, Level::AtLeastOnce).await;
    cluster.nodes[1].kill9();
    victim.wait_for(|seen| matches!(seen, Seen::Ended(_))).await;
    publisher
        .publish(&topic, Level::AtLeastOnce, false, "meanwhile")
        .await;
    assert_eq!(witness.message().await.payload, "meanwhile");
    cluster.nodes[1].restart();
    victim
        .wait_for(|seen| matches!(seen, Seen::Connected { .. }))
        .await;
    victim.subscribe(&topic, Level::AtLeastOnce).await;
    publisher
        .publish(&topic, Level::AtLeastOnce, false, "after")
        .await;
    assert_eq!(victim.message().await.payload, "after");
    assert_eq!(witness.message().await.payload, "after");
}

/// Each test for both versions.
macro_rules! for_both_versions {
    ($($test:ident),* $(,)?) => {
        mod v311 {
            $(#[test]
            fn $test() {
                super::block_on(super::$test(super::Version::V311));
            })*
        }
        mod v5 {
            $(#[test]
            fn $test() {
                super::block_on(super::$test(super::Version::V5));
            })*
        }
    };
}

for_both_versions!(
    every_node_to_every_node_in_order,
    retained_at_one_node_is_read_at_all,
    will_of_a_lost_connection_reaches_another_node,
    session_is_resumed_on_its_node,
    client_reconnects_after_its_node_was_killed,
);

#[test]
fn shared_subscription_gives_each_message_to_one_member() {
    block_on(async {
        let cluster = shared();
        let topic = fresh("rumqttc/");
        let mut members = Vec::new();
        for node in [1, 2] {
            let mut member =
                Peer::connect(Version::V5, cluster.mqtt(node), Options::default()).await;
            member
                .subscribe(&format!("$share/group/{topic}"), Level::AtLeastOnce)
                .await;
            members.push(member);
        }
        let mut publisher = Peer::connect(Version::V5, cluster.mqtt(0), Options::default()).await;
        for number in 0..2 * COUNT {
            publisher
                .publish(&topic, Level::AtLeastOnce, false, &number.to_string())
                .await;
        }
        let (mut one, mut two) = (members.remove(0), members.remove(0));
        let mut taken = [0, 0];
        let mut numbers: Vec<usize> = Vec::new();
        for _ in 0..2 * COUNT {
            let (place, message) = tokio::select! {
                message = one.message() => (0, message),
                message = two.message() => (1, message),
            };
            taken[place] += 1;
            numbers.push(message.payload.parse().expect("a number"));
        }
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..2 * COUNT), "each message once");
        assert!(taken.iter().all(|&count| count > 0), "shares {taken:?}");
    });
}

#[test]
fn takeover_from_another_node_ends_the_old_connection() {
    block_on(async {
        let cluster = shared();
        let topic = fresh("rumqttc/");
        let options = Options {
            id: Some(fresh("takeover")),
            ..Options::default()
        };
        let mut old = Peer::connect(Version::V5, cluster.mqtt(0), options.clone()).await;
        let mut new = Peer::connect(Version::V5, cluster.mqtt(2), options).await;
        // rumqttc 0.25 cannot read a DISCONNECT without a property length, so it knows no reason.
        old.wait_for(|seen| matches!(seen, Seen::Ended(_))).await;
        // It would take the session over again.
        old.vanish();
        new.subscribe(&topic, Level::AtLeastOnce).await;
        let mut publisher = Peer::connect(Version::V5, cluster.mqtt(1), Options::default()).await;
        publisher
            .publish(&topic, Level::AtLeastOnce, false, "yours")
            .await;
        assert_eq!(new.message().await.payload, "yours");
    });
}

/// How long the tests wait for anything.
const PATIENCE: Duration = Duration::from_secs(30);
