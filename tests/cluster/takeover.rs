//! One client, one connection, in the whole cluster.

use std::time::Duration;

use flotte_tests::{Client, Cluster, Version, admin, connect, fresh, publish, will};

use crate::common::{VERSIONS, durable, on_shared, reconnect};

/// The newer connection wins; the older hears why, where its version can say so.
async fn take_over(cluster: &Cluster, older: Version, newer: Version) {
    let id = fresh("t");
    let mut first = Client::connect(cluster.mqtt(0), older, connect(&id)).await;
    let mut second = Client::connect(cluster.mqtt(1), newer, connect(&id)).await;
    if older.is_v5() {
        assert_eq!(first.recv_kind(14).await.reason(), 0x8e);
    }
    first.expect_closed().await;
    second.fence().await;
    let mut third = Client::connect(cluster.mqtt(2), older, connect(&id)).await;
    if newer.is_v5() {
        assert_eq!(second.recv_kind(14).await.reason(), 0x8e);
    }
    second.expect_closed().await;
    third.fence().await;
    assert_eq!(connections(cluster, &id), 1, "of {id}");
}

/// How many nodes hold a connection of this client.
fn connections(cluster: &Cluster, id: &str) -> usize {
    let holds = |admin_address| {
        let client = admin::json(admin_address, &format!("/api/v1/clients/{id}"));
        client.is_some_and(|client| client["connected"] == true)
    };
    let mut names = std::collections::BTreeSet::new();
    for node in &cluster.nodes {
        if holds(node.admin()) {
            let client = admin::json(node.admin(), &format!("/api/v1/clients/{id}"));
            // A node may answer for the whole cluster: what counts is where the connection is.
            let home = client.and_then(|client| client["node"].as_str().map(str::to_owned));
            names.insert(home.unwrap_or_else(|| node.name().to_owned()));
        }
    }
    names.len()
}

#[test]
fn takeover_across_nodes_leaves_one_connection() {
    on_shared(|cluster| async move {
        for older in VERSIONS {
            for newer in VERSIONS {
                take_over(cluster, older, newer).await;
            }
        }
    });
}

/// Many connections of one id, at all nodes, one behind the other: the last stands, all others end.
#[test]
fn rapid_takeovers_end_with_the_last() {
    on_shared(|cluster| async move {
        let id = fresh("rapid");
        let mut older = Vec::new();
        for round in 0..15 {
            older.push(Client::connect(cluster.mqtt(round % 3), Version::V5, connect(&id)).await);
        }
        let mut last = older.pop().expect("fifteen clients");
        for client in &mut older {
            client.expect_refused(&[0x8e]).await;
        }
        last.fence().await;
        assert_eq!(connections(cluster, &id), 1);
    });
}

/// Connections of one id at all nodes at the same moment: one of them stands.
#[test]
fn simultaneous_connects_leave_one_connection() {
    on_shared(|cluster| async move {
        for _ in 0..5 {
            let id = fresh("race");
            let open = |node: usize| {
                let packet = connect(&id);
                async move {
                    let mut client = Client::dial(cluster.mqtt(node), Version::V5).await;
                    client.name = format!("{} at {node}", packet.id());
                    client.send(packet).await;
                    client
                }
            };
            let (a, b, c) = futures::join!(open(0), open(1), open(2));
            let mut alive = 0;
            for mut client in [a, b, c] {
                alive += usize::from(stands(&mut client).await);
            }
            assert_eq!(alive, 1, "connections of {id}");
        }
    });
}

/// Whether the connection is accepted and answers a PING for a second.
async fn stands(client: &mut Client) -> bool {
    client.patience = Duration::from_secs(2);
    match client.next_or_end().await {
        Ok(Some(answer)) if answer.kind() == 2 && answer.reason() == 0 => {}
        _ => return false,
    }
    for _ in 0..5 {
        if client.try_send(flotte_tests::pingreq()).await.is_err() {
            return false;
        }
        match client.next_or_end().await {
            Ok(Some(answer)) if answer.kind() == 13 => {}
            _ => return false,
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    true
}

/// A session is where its home is: an Open elsewhere ends it there.
#[test]
fn session_does_not_follow_to_another_node() {
    on_shared(|cluster| async move {
        for version in VERSIONS {
            let id = fresh("d");
            let home = Client::connect(cluster.mqtt(0), version, durable(version, &id)).await;
            home.leave().await;
            let back = Client::connect(cluster.mqtt(0), version, durable(version, &id)).await;
            assert!(back.session_present(), "at its home");
            back.leave().await;
            let elsewhere = Client::connect(cluster.mqtt(1), version, durable(version, &id)).await;
            assert!(!elsewhere.session_present(), "at another node");
            elsewhere.leave().await;
            let again = Client::connect(cluster.mqtt(0), version, durable(version, &id)).await;
            assert!(!again.session_present(), "at its former home");
        }
    });
}

/// Takeover by a clean connection publishes the will of the old one, once, everywhere.
#[test]
fn takeover_publishes_the_will_once() {
    on_shared(|cluster| async move {
        let (id, topic) = (fresh("t"), fresh("will"));
        let mut watchers = Vec::new();
        for node in 0..3 {
            let mut watcher = cluster.client(node, Version::V5).await;
            watcher.subscribe(&topic, 1).await;
            watchers.push(watcher);
        }
        let with_will = connect(&id).will(will(&topic, "gone").qos(1));
        let mut older = Client::connect(cluster.mqtt(0), Version::V311, with_will).await;
        let newer = Client::connect(cluster.mqtt(1), Version::V311, connect(&id)).await;
        older.expect_closed().await;
        for watcher in &mut watchers {
            watcher.take("gone").await;
        }
        newer.leave().await;
        let mut publisher = cluster.client(2, Version::V5).await;
        publisher
            .publish(publish(&topic).qos1(1).payload("after"))
            .await;
        for watcher in &mut watchers {
            watcher.take("after").await;
        }
    });
}

/// The goodbye of one node and the CONNECT at another are under way at once; which of them is committed first must not matter.
#[test]
fn a_goodbye_counts_though_the_client_is_back_at_another_node_at_once() {
    /// Longer than a will waits for a former owner.
    const NO_WILL_COMES: Duration = Duration::from_millis(2_500);
    on_shared(|cluster| async move {
        let topic = fresh("goodbye");
        let mut watcher = cluster.client(2, Version::V5).await;
        watcher.subscribe(&topic, 0).await;
        for round in 0..30 {
            let id = fresh("back");
            let with_will = connect(&id).will(will(&topic, "gone").qos(0));
            let mut older = Client::connect(cluster.mqtt(round % 3), Version::V5, with_will).await;
            let newer = Client::dial(cluster.mqtt((round + 1) % 3), Version::V5).await;
            older.send_raw(&[0xe0, 0x00]).await;
            newer.accepted(connect(&id)).await.fence().await;
            older.expect_closed().await;
        }
        watcher.expect_silence(NO_WILL_COMES).await;
    });
}

/// `DELETE /clients/{id}` at the node that holds it ends a connection.
#[test]
fn kicked_client_is_disconnected_and_may_return() {
    on_shared(|cluster| async move {
        let id = fresh("kick");
        let mut client = Client::connect(cluster.mqtt(1), Version::V5, connect(&id)).await;
        let path = format!("/api/v1/clients/{id}");
        let answer = admin::delete(cluster.nodes[1].admin(), &path);
        let (status, body) = answer.expect("the admin port answers");
        assert!((200..300).contains(&status), "{status} {body}");
        client.expect_refused(&[0x98]).await;
        reconnect(cluster.mqtt(1), Version::V5, connect(&id))
            .await
            .fence()
            .await;
    });
}

/// What reached the frozen node before the others let go of it must not reach a client that is elsewhere by then: when the
/// node runs again its lease is over.
#[test]
fn frozen_former_owner_delivers_nothing_more() {
    const CLIENTS: usize = 10;
    const MESSAGES: u16 = 100;
    flotte_tests::block_on(async {
        let cluster = Cluster::start();
        let frozen = cluster.follower();
        let other = (frozen + 1) % 3;
        let topic = fresh("late");
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            let id = fresh("frozen");
            let mut older = Client::connect(cluster.mqtt(frozen), Version::V5, connect(&id)).await;
            older.subscribe(&topic, 1).await;
            clients.push((id, older));
        }
        let mut publishers = Vec::new();
        for node in (0..3).filter(|node| *node != frozen) {
            publishers.push(cluster.client(node, Version::V311).await);
        }
        cluster.nodes[frozen].pause();
        for number in 1..=MESSAGES {
            for publisher in &mut publishers {
                let message = publish(&topic).qos1(number).payload("late");
                publisher.send(message).await;
            }
        }
        let address = cluster.mqtt(other);
        let newer = clients.iter().map(|(id, _)| async move {
            let mut client = reconnect(address, Version::V5, connect(id)).await;
            client.patience = Duration::from_secs(15);
            client
        });
        let newer = futures::future::join_all(newer).await;
        cluster.wait_state(other, frozen, "down");
        cluster.nodes[frozen].resume();
        for (_, older) in &mut clients {
            older.patience = Duration::from_secs(15);
            older.expect_refused(&[0x88, 0x89, 0x8b, 0x8e, 0x9c]).await;
        }
        for mut client in newer {
            client.fence().await;
        }
    });
}
