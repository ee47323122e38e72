//! A node without a quorum takes nothing, says so, and sends its clients away.

use std::time::Duration;

use flotte_tests::cluster::wait_node_ready;
use flotte_tests::run::until_blocking;
use flotte_tests::{Client, Cluster, Version, admin, block_on, connect, fresh, publish};

use crate::common::reconnect;

const GRACE: Duration = Duration::from_secs(3);

fn start() -> Cluster {
    Cluster::start_with(|launch| launch.env("FLOTTE_CLUSTER__MINORITY_GRACE_MS", GRACE.as_millis()))
}

/// Waits until /readyz says 503 and gives reasons.
fn wait_not_ready(cluster: &Cluster, node: usize) {
    let what = format!("503 from /readyz of {}", cluster.nodes[node].name());
    let body = until_blocking(Duration::from_secs(15), &what, || {
        let (status, body) = admin::get(cluster.nodes[node].admin(), "/readyz")?;
        (status == 503).then_some(body)
    });
    let reasons: serde_json::Value = serde_json::from_str(&body).expect("the reasons are JSON");
    assert_ne!(reasons, serde_json::Value::Null, "{body}");
    assert!(body.len() > 4, "no reason in {body}");
}

/// CONNECT is answered by 0x88, or return code 3 in 3.1.1, and the end.
async fn is_refused(cluster: &Cluster, node: usize) {
    for (version, code) in [(Version::V311, 3), (Version::V5, 0x88)] {
        let mut client = Client::dial(cluster.mqtt(node), version).await;
        client.patience = Duration::from_secs(15);
        client.send(connect(fresh("m"))).await;
        let answer = client.recv_kind(2).await;
        assert_eq!((answer.reason(), answer.bytes[2]), (code, 0), "{answer:?}");
        client.expect_closed().await;
    }
}

/// Sends a QoS 1 PUBLISH and waits for the end of the connection: no PUBACK may come before it.
async fn is_sent_away_unacknowledged(mut client: Client) {
    client.patience = GRACE + Duration::from_secs(15);
    let _ = client
        .try_send(publish(fresh("lost")).qos1(1).payload("x"))
        .await;
    loop {
        match client.next_or_end().await {
            Ok(None) => return,
            Ok(Some(packet)) if packet.kind() == 14 => {
                assert!(client.version.is_v5(), "3.x has no such packet: {packet:?}");
                assert!(matches!(packet.reason(), 0x9c | 0x88 | 0x8b), "{packet:?}");
            }
            Ok(Some(packet)) => panic!("wanted to be sent away, got {packet:?}"),
            Err(late) => panic!("still connected: {late}"),
        }
    }
}

/// Two of three are killed; `leader_stays` says whether the one that remains led.
async fn minority_takes_nothing(leader_stays: bool) {
    let mut cluster = start();
    let leader = cluster.leader();
    let rest = if leader_stays {
        leader
    } else {
        (leader + 1) % 3
    };
    let killed = [(rest + 1) % 3, (rest + 2) % 3];
    let old = cluster.client(rest, Version::V311).await;
    let new = cluster.client(rest, Version::V5).await;
    killed.iter().for_each(|node| cluster.nodes[*node].kill9());
    wait_not_ready(&cluster, rest);
    is_refused(&cluster, rest).await;
    let (old, new) = (
        is_sent_away_unacknowledged(old),
        is_sent_away_unacknowledged(new),
    );
    futures::join!(old, new);
    is_refused(&cluster, rest).await;
    assert_eq!(
        admin::get(cluster.nodes[rest].admin(), "/healthz").map(|answer| answer.0),
        Some(200)
    );
    killed
        .iter()
        .for_each(|node| cluster.nodes[*node].respawn());
    for node in 0..3 {
        cluster.nodes[node].wait_ready();
        wait_node_ready(&cluster.nodes[node]);
    }
    let topic = fresh("again");
    let mut subscriber = reconnect(cluster.mqtt(rest), Version::V5, connect(fresh("s"))).await;
    subscriber.subscribe(&topic, 1).await;
    let mut publisher =
        reconnect(cluster.mqtt(killed[0]), Version::V311, connect(fresh("p"))).await;
    publisher
        .publish(publish(&topic).qos1(1).payload("served"))
        .await;
    subscriber.take("served").await;
}

#[test]
fn former_leader_alone_takes_nothing() {
    block_on(minority_takes_nothing(true));
}

#[test]
fn follower_alone_takes_nothing() {
    block_on(minority_takes_nothing(false));
}

/// A node that was paused for longer than T finds itself Down: it drops its clients and comes back.
#[test]
fn paused_node_finds_itself_down_and_returns() {
    block_on(async {
        let cluster = Cluster::start();
        let paused = cluster.follower();
        let other = (paused + 1) % 3;
        let topic = fresh("pause");
        let mut frozen = cluster.client(paused, Version::V5).await;
        frozen.subscribe(&topic, 1).await;
        let mut publisher = cluster.client(other, Version::V5).await;
        publisher.patience = Duration::from_secs(15);
        cluster.nodes[paused].pause();
        cluster.wait_state(other, paused, "down");
        publisher
            .publish(publish(&topic).qos1(1).payload("missed"))
            .await;
        cluster.nodes[paused].resume();
        frozen.patience = Duration::from_secs(15);
        // Its session ended with NodeDown; it may hear why, and it gets no message from after that.
        frozen.expect_refused(&[0x88, 0x89, 0x8b, 0x8e, 0x9c]).await;
        wait_node_ready(&cluster.nodes[paused]);
        let mut back = reconnect(cluster.mqtt(paused), Version::V5, connect(fresh("s"))).await;
        back.subscribe(&topic, 1).await;
        publisher
            .publish(publish(&topic).qos1(2).payload("heard"))
            .await;
        back.take("heard").await;
    });
}
