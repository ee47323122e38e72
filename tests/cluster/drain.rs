//! A node that sends its clients away: each hears where to go, at a rate, and has what waited for it first.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use flotte_tests::broker::STOP_LIMIT;
use flotte_tests::packets::Connect;
use flotte_tests::wire::prop;
use flotte_tests::{
    Broker, Client, Cluster, Launch, Received, Version, admin, block_on, connect, fresh, props,
    puback, publish, until, will,
};
use serde_json::json;

use crate::common::{VERSIONS, numbers, publish_numbers};

fn drain(node: &Broker) {
    let asked = admin::post(node.admin(), "/api/v1/drain", &json!({}));
    assert_eq!(asked.expect("an answer").0, 202);
}

/// Where a DISCONNECT or CONNACK sends the client.
fn reference(packet: &Received) -> Option<SocketAddr> {
    let text = String::from_utf8(packet.bytes_prop(prop::SERVER_REFERENCE)?).expect("text");
    Some(text.parse().expect("an address"))
}

/// Sent away by the node it is connected to: the reference, where there is one.
async fn sent_away(client: &mut Client) -> Option<SocketAddr> {
    let goodbye = client.recv_kind(14).await;
    assert_eq!(goodbye.reason(), 0x9c, "{goodbye:?}");
    client.expect_closed().await;
    reference(&goodbye)
}

/// A CONNECT at a node that drains: 0x9C and where to go in 5.0, return code 3 before.
async fn turned_away(node: SocketAddr) -> Option<SocketAddr> {
    let mut old = Client::dial(node, Version::V311).await;
    old.send(connect(fresh("c"))).await;
    let answer = old.next().await;
    assert_eq!((answer.kind(), answer.reason()), (2, 3), "{answer:?}");
    old.expect_closed().await;
    let mut new = Client::dial(node, Version::V5).await;
    new.send(connect(fresh("c"))).await;
    let answer = new.next().await;
    assert_eq!((answer.kind(), answer.reason()), (2, 0x9c), "{answer:?}");
    new.expect_closed().await;
    reference(&answer)
}

/// Node after node drains: clients are referred to those that stay, in turn, and to nobody once nobody stays. No will comes.
#[test]
fn clients_are_referred_to_nodes_that_stay() {
    block_on(async {
        let cluster = Cluster::start();
        let stays = [cluster.mqtt(1), cluster.mqtt(2)];
        let wills = fresh("will");
        let mut watcher = cluster.client(2, Version::V5).await;
        watcher.subscribe(&wills, 1).await;
        let mut leaving = Vec::new();
        for _ in 0..4 {
            let packet = connect(fresh("c")).will(will(&wills, "never").qos(1));
            leaving.push(Client::connect(cluster.mqtt(0), Version::V5, packet).await);
        }
        let old = connect(fresh("c")).will(will(&wills, "never").qos(1));
        let mut old = Client::connect(cluster.mqtt(0), Version::V311, old).await;
        drain(&cluster.nodes[0]);
        let mut told = Vec::new();
        for client in &mut leaving {
            told.extend(sent_away(client).await);
        }
        assert_eq!(told.len(), 4, "each is told");
        for node in stays {
            let count = told.iter().filter(|address| **address == node).count();
            assert_eq!(count, 2, "{node} of {told:?}");
        }
        old.expect_closed().await;
        let referred = turned_away(cluster.mqtt(0)).await;
        assert!(
            stays.iter().any(|node| Some(*node) == referred),
            "{referred:?}"
        );
        // Who drains is not named: there is one left.
        let mut second = cluster.client(1, Version::V5).await;
        drain(&cluster.nodes[1]);
        assert_eq!(sent_away(&mut second).await, Some(cluster.mqtt(2)));
        assert_eq!(turned_away(cluster.mqtt(0)).await, Some(cluster.mqtt(2)));
        watcher.fence().await;
        drain(&cluster.nodes[2]);
        assert_eq!(sent_away(&mut watcher).await, None, "nobody stays");
    });
}

/// Who leaves the cluster does so for good, and says so: 0x9D.
#[test]
fn clients_of_a_member_that_leaves_are_told_that_it_moved() {
    block_on(async {
        let mut cluster = Cluster::start();
        let mut client = cluster.client(2, Version::V5).await;
        client.patience = STOP_LIMIT;
        let left = admin::post(
            cluster.nodes[2].admin(),
            "/api/v1/cluster/leave",
            &json!({}),
        );
        assert_eq!(left.expect("an answer").0, 202);
        let goodbye = client.recv_kind(14).await;
        assert_eq!(goodbye.reason(), 0x9d, "{goodbye:?}");
        let stays = [cluster.mqtt(0), cluster.mqtt(1)];
        let referred = reference(&goodbye).expect("others stay");
        assert!(stays.contains(&referred), "{referred}");
        let code = cluster.nodes[2].wait_end(STOP_LIMIT).code();
        assert_eq!(code, Some(0), "{}", cluster.nodes[2].log());
    });
}

/// A client of 5.0 that takes one message at a time, or one of 3.1.1 that is slow to say anything.
async fn slow(node: SocketAddr, version: Version, topic: &str) -> Client {
    let mut packet: Connect = connect(fresh("slow"));
    if version.is_v5() {
        packet = packet.props(props().u16(prop::RECEIVE_MAXIMUM, 1));
    }
    let mut client = Client::connect(node, version, packet).await;
    client.subscribe(topic, 2).await;
    client
}

/// What was acknowledged to its publisher the client has, acknowledged, before it is sent away.
#[test]
fn a_client_has_its_queue_before_it_goes() {
    block_on(async {
        let cluster =
            Cluster::start_with(|launch| launch.env("FLOTTE_CLUSTER__DRAIN_TIMEOUT_S", 30));
        let mut clients = Vec::new();
        for (number, version) in VERSIONS.into_iter().enumerate() {
            let topic = fresh("queue");
            let mut client = slow(cluster.mqtt(0), version, &topic).await;
            let mut publisher = cluster.client(number + 1, Version::V5).await;
            publish_numbers(&mut publisher, &topic, 0..10).await;
            publisher
                .publish(publish(&topic).qos2(100).payload("10"))
                .await;
            client.fence_past_messages().await;
            clients.push((client, version));
        }
        drain(&cluster.nodes[0]);
        until(STOP_LIMIT, "it drains", async || {
            (!admin::is_ready(cluster.nodes[0].admin())).then_some(())
        })
        .await;
        for (client, version) in &mut clients {
            for number in 0..=10 {
                let message = client.recv_publish().await;
                assert_eq!(numbers(std::slice::from_ref(&message)), [number]);
                client.acknowledge(&message).await;
            }
            match version {
                Version::V5 => assert!(sent_away(client).await.is_some(), "others stay"),
                _ => client.expect_closed().await,
            }
        }
    });
}

/// A client that never acknowledges anything.
async fn mute(node: &Broker) -> Client {
    let topic = fresh("mute");
    let mut client = Client::connect(node.mqtt(), Version::V5, connect(fresh("c"))).await;
    client.subscribe(&topic, 1).await;
    let mut publisher = Client::connect(node.mqtt(), Version::V5, connect(fresh("p"))).await;
    publisher
        .publish(publish(&topic).qos1(1).payload("0"))
        .await;
    publisher.leave().await;
    client.fence_past_messages().await;
    client.recv_publish().await;
    client
}

#[test]
fn a_drain_ends_when_its_time_is_over() {
    const TIME: Duration = Duration::from_secs(3);
    let mut node = Launch::new("slow")
        .env("FLOTTE_CLUSTER__DRAIN_TIMEOUT_S", TIME.as_secs())
        .start();
    block_on(async {
        let mut client = mute(&node).await;
        let began = Instant::now();
        let ended = tokio::task::spawn_blocking(move || node.sigterm());
        sent_away(&mut client).await;
        assert!(began.elapsed() >= TIME, "{:?}", began.elapsed());
        assert_eq!(ended.await.expect("no panic"), Some(0));
    });
}

#[test]
fn a_second_signal_ends_a_drain() {
    let mut node = Launch::new("impatient")
        .env("FLOTTE_CLUSTER__DRAIN_TIMEOUT_S", 600)
        .start();
    block_on(async {
        let mut client = mute(&node).await;
        node.ask_to_end();
        until(STOP_LIMIT, "it drains", async || {
            (!admin::is_ready(node.admin())).then_some(())
        })
        .await;
        client.expect_silence(Duration::from_millis(300)).await;
        let ended = tokio::task::spawn_blocking(move || node.sigterm());
        sent_away(&mut client).await;
        assert_eq!(ended.await.expect("no panic"), Some(0));
    });
}

/// What comes while a client waits for what stood in its line does not keep it for ever, and what is sent it still has.
#[test]
fn a_client_with_messages_always_under_way_goes() {
    block_on(async {
        let cluster =
            Cluster::start_with(|launch| launch.env("FLOTTE_CLUSTER__DRAIN_TIMEOUT_S", 600));
        let topic = fresh("busy");
        let mut client = cluster.client(0, Version::V5).await;
        client.subscribe(&topic, 1).await;
        let mut feeder = cluster.client(1, Version::V5).await;
        drain(&cluster.nodes[0]);
        // Its own acknowledgement is always one message late.
        let mut pending = None;
        let mut next = 0_u64;
        let goodbye = loop {
            let id = u16::try_from(next % 60_000 + 1).expect("below 65,536");
            feeder
                .send(publish(&topic).qos1(id).payload(next.to_string()))
                .await;
            next += 1;
            let packet = client.next().await;
            if packet.kind() == 14 {
                break packet;
            }
            if let Some(late) = pending.replace(packet.packet_id()) {
                client.send(puback(late)).await;
            }
        };
        assert_eq!(goodbye.reason(), 0x9c);
    });
}

/// So that they do not arrive at the others at once.
#[test]
fn clients_are_told_at_a_rate() {
    const CLIENTS: usize = 300;
    let mut node = Launch::new("many")
        .env("FLOTTE_CLUSTER__DRAIN_TIMEOUT_S", 4)
        .start();
    block_on(async {
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(Client::connect(node.mqtt(), Version::V5, connect(fresh("c"))).await);
        }
        let began = Instant::now();
        let ended = tokio::task::spawn_blocking(move || node.sigterm());
        let waiting = clients.into_iter().map(|mut client| async move {
            sent_away(&mut client).await;
            began.elapsed()
        });
        let mut went = futures::future::join_all(waiting).await;
        went.sort_unstable();
        // 107 in a second.
        assert!(
            went[CLIENTS - 1] > Duration::from_secs(2),
            "{:?}",
            went[CLIENTS - 1]
        );
        assert!(
            went[CLIENTS / 2] > Duration::from_secs(1),
            "{:?}",
            went[CLIENTS / 2]
        );
        assert_eq!(ended.await.expect("no panic"), Some(0));
    });
}
