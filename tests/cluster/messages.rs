//! Messages between nodes: every QoS, version and pair of nodes; retained; wildcards; shared.

use std::collections::BTreeMap;
use std::time::Duration;

use flotte_tests::{Client, Cluster, Version, connect, fresh, publish, until};

use crate::common::{VERSIONS, durable, numbers, on_shared, publish_numbers, take};

const NODES: usize = 3;

/// A subscriber at QoS 2 on each node in each version.
async fn subscribers(cluster: &Cluster, filter: &str) -> Vec<Client> {
    let mut clients = Vec::new();
    for node in 0..NODES {
        for version in VERSIONS {
            let mut client = cluster.client(node, version).await;
            client.subscribe(filter, 2).await;
            clients.push(client);
        }
    }
    clients
}

/// From each node, each version publishes at each QoS; everyone everywhere gets each message once.
async fn every_qos_reaches_every_node(cluster: &Cluster, version: Version) {
    let root = fresh("matrix");
    let mut subscribers = subscribers(cluster, &format!("{root}/#")).await;
    let mut wanted = BTreeMap::new();
    for node in 0..NODES {
        let mut publisher = cluster.client(node, version).await;
        for qos in 0..3 {
            let (topic, id) = (format!("{root}/{node}/{qos}"), u16::from(qos) + 1);
            publisher
                .publish(publish(&topic).qos_bits(qos, id).payload(&topic))
                .await;
            wanted.insert(topic, qos);
        }
    }
    for subscriber in &mut subscribers {
        let mut got = BTreeMap::new();
        for message in take(subscriber, wanted.len()).await {
            assert_eq!(message.payload(), message.topic().into_bytes());
            assert!(!message.retain() && !message.dup(), "{message:?}");
            assert_eq!(
                got.insert(message.topic(), message.qos()),
                None,
                "twice: {message:?}"
            );
        }
        assert_eq!(got, wanted, "at {}", subscriber.name);
        subscriber.fence().await;
    }
}

#[test]
fn every_qos_of_3_1_1_reaches_every_node() {
    on_shared(|cluster| every_qos_reaches_every_node(cluster, Version::V311));
}

#[test]
fn every_qos_of_5_0_reaches_every_node() {
    on_shared(|cluster| every_qos_reaches_every_node(cluster, Version::V5));
}

/// Per topic and QoS the order of the publisher holds across nodes.
#[test]
fn order_holds_across_nodes() {
    on_shared(|cluster| async move {
        let topic = fresh("order");
        let mut subscriber = cluster.client(2, Version::V5).await;
        subscriber.subscribe(&topic, 1).await;
        let mut publisher = cluster.client(0, Version::V311).await;
        publish_numbers(&mut publisher, &topic, 0..500).await;
        let got = numbers(&take(&mut subscriber, 500).await);
        assert!(got.iter().copied().eq(0..500), "{got:?}");
    });
}

/// Acknowledged at one node, a retained message is there for a subscriber of any other; so is its end.
#[test]
fn retained_messages_are_one_set() {
    on_shared(|cluster| async move {
        for node in 0..NODES {
            let topic = fresh("kept");
            let mut publisher = cluster.client(node, Version::V5).await;
            publisher
                .publish(publish(&topic).qos1(1).retain().payload("kept"))
                .await;
            for reader in 0..NODES {
                let mut late = cluster.client(reader, Version::V311).await;
                late.subscribe(&topic, 1).await;
                assert!(late.take("kept").await.retain());
            }
            publisher.publish(publish(&topic).qos1(2).retain()).await;
            let marker = fresh("marker");
            publisher
                .publish(publish(&marker).qos1(3).retain().payload("marker"))
                .await;
            for reader in 0..NODES {
                let mut late = cluster.client(reader, Version::V5).await;
                late.subscribe(&topic, 1).await;
                late.subscribe(&marker, 1).await;
                late.take("marker").await;
            }
        }
    });
}

/// Three publishers on three nodes write the same topic at once: all nodes end with one message.
#[test]
fn retained_messages_have_one_order() {
    on_shared(|cluster| async move {
        let topic = fresh("race");
        let write = |node: usize| {
            let topic = topic.clone();
            async move {
                let mut publisher = cluster.client(node, Version::V5).await;
                for round in 0..20u16 {
                    let payload = format!("{node} {round}");
                    publisher
                        .publish(publish(&topic).qos1(round + 1).retain().payload(payload))
                        .await;
                }
            }
        };
        futures::join!(write(0), write(1), write(2));
        let mut kept = Vec::new();
        for node in 0..NODES {
            let mut late = cluster.client(node, Version::V5).await;
            late.subscribe(&topic, 0).await;
            kept.push(late.recv_publish().await.payload());
        }
        assert!(kept.iter().all(|payload| *payload == kept[0]), "{kept:?}");
        assert!(kept[0].ends_with(b" 19"), "not a last one: {kept:?}");
    });
}

#[test]
fn wildcards_match_across_nodes() {
    on_shared(|cluster| async move {
        let root = fresh("w");
        let filters =
            ["+/b/#", "a/+", "#", "a/b", "+", "a/b/c/d"].map(|tail| format!("{root}/{tail}"));
        let topics = ["a", "a/b", "a/b/c", "a/b/c/d", "x/b", "a/"];
        let wanted: [&[&str]; 6] = [
            &["a/b", "a/b/c", "a/b/c/d", "x/b"],
            &["a/b", "a/"],
            &["a", "a/b", "a/b/c", "a/b/c/d", "x/b", "a/"],
            &["a/b"],
            &["a"],
            &["a/b/c/d"],
        ];
        let mut subscribers = Vec::new();
        for (place, filter) in filters.iter().enumerate() {
            let mut client = cluster.client(place % NODES, VERSIONS[place % 2]).await;
            client.subscribe(filter, 1).await;
            subscribers.push(client);
        }
        for (id, topic) in (1..).zip(topics) {
            let mut publisher = cluster.client(usize::from(id) % NODES, Version::V311).await;
            publisher
                .publish(publish(format!("{root}/{topic}")).qos1(id).payload(topic))
                .await;
        }
        for (wanted, subscriber) in wanted.iter().zip(&mut subscribers) {
            for topic in *wanted {
                subscriber.take(topic).await;
            }
            subscriber.fence().await;
        }
    });
}

/// What was unsubscribed at one node is matched at none.
#[test]
fn unsubscribed_means_gone_everywhere() {
    on_shared(|cluster| async move {
        let topic = fresh("gone");
        let mut subscriber = cluster.client(1, Version::V5).await;
        subscriber.subscribe(&topic, 1).await;
        let mut publisher = cluster.client(0, Version::V5).await;
        publisher
            .publish(publish(&topic).qos1(1).payload("before"))
            .await;
        subscriber.take("before").await;
        subscriber
            .send(flotte_tests::unsubscribe(9).from(&topic))
            .await;
        assert_eq!(subscriber.recv_kind(11).await.codes(), [0]);
        publisher
            .publish(publish(&topic).qos1(2).payload("after"))
            .await;
        subscriber.fence().await;
    });
}

/// 300 messages over three members on three nodes: each gets its third, none comes twice.
#[test]
fn shared_subscription_spreads_over_nodes() {
    const SLACK: usize = 6;
    on_shared(|cluster| async move {
        for publisher_node in 0..NODES {
            let topic = fresh("share");
            let mut members = Vec::new();
            for node in 0..NODES {
                let mut member = cluster.client(node, Version::V5).await;
                member.subscribe(format!("$share/workers/{topic}"), 1).await;
                members.push(member);
            }
            let mut publisher = cluster.client(publisher_node, Version::V5).await;
            publish_numbers(&mut publisher, &topic, 0..300).await;
            let mut all = Vec::new();
            for member in &mut members {
                let got = take_all_there_is(member).await;
                assert!(
                    got.len().abs_diff(100) <= SLACK,
                    "{} of 300 for one member",
                    got.len()
                );
                all.extend(got);
            }
            all.sort_unstable();
            assert!(all.iter().copied().eq(0..300), "lost or doubled: {all:?}");
        }
    });
}

/// Everything up to a fence: with PUBACK given, all of it is in the queue of its member.
async fn take_all_there_is(member: &mut Client) -> Vec<u64> {
    let messages = member.collect_to_fence().await;
    for message in &messages {
        member.acknowledge(message).await;
    }
    numbers(&messages)
}

/// A member that went gets nothing more, and what it had not acknowledged goes to who stays, with all that comes after.
#[test]
fn shared_messages_go_to_the_members_that_stay() {
    on_shared(|cluster| async move {
        let topic = fresh("share");
        let filter = format!("$share/workers/{topic}");
        let mut leaving = cluster.client(0, Version::V5).await;
        leaving.subscribe(&filter, 1).await;
        let mut publisher = cluster.client(1, Version::V5).await;
        publish_numbers(&mut publisher, &topic, 0..10).await;
        leaving.recv_publish().await;
        let mut staying = cluster.client(2, Version::V311).await;
        staying.subscribe(&filter, 1).await;
        leaving.cut();
        publish_numbers(&mut publisher, &topic, 10..30).await;
        let mut got = numbers(&take(&mut staying, 30).await);
        // Those that found the one that left still there come behind those that did not.
        got.sort_unstable();
        assert!(got.iter().copied().eq(0..30), "{got:?}");
        staying.fence().await;
    });
}

/// A session stays with its node: messages from other nodes wait there for the client.
#[test]
fn messages_wait_at_the_home_of_an_offline_session() {
    on_shared(|cluster| async move {
        for version in VERSIONS {
            let (id, topic) = (fresh("d"), fresh("wait"));
            let mut first = Client::connect(cluster.mqtt(1), version, durable(version, &id)).await;
            first.subscribe(&topic, 1).await;
            first.leave().await;
            let mut publisher = cluster.client(2, Version::V5).await;
            publish_numbers(&mut publisher, &topic, 0..20).await;
            let mut again = Client::connect(cluster.mqtt(1), version, durable(version, &id)).await;
            assert!(again.session_present());
            assert!(
                numbers(&take(&mut again, 20).await)
                    .iter()
                    .copied()
                    .eq(0..20)
            );
        }
    });
}

/// A clean start at another node ends the session at its home: nothing is kept for it any more.
#[test]
fn clean_start_elsewhere_ends_the_session_at_its_home() {
    on_shared(|cluster| async move {
        let (id, topic) = (fresh("d"), fresh("gone"));
        let mut first =
            Client::connect(cluster.mqtt(0), Version::V5, durable(Version::V5, &id)).await;
        first.subscribe(&topic, 1).await;
        first.leave().await;
        Client::connect(cluster.mqtt(1), Version::V5, connect(&id))
            .await
            .leave()
            .await;
        let back = Client::connect(cluster.mqtt(0), Version::V5, durable(Version::V5, &id)).await;
        assert!(!back.session_present());
    });
}

/// The admin API of each node knows the clients connected to it.
#[test]
fn clients_are_listed() {
    on_shared(|cluster| async move {
        let id = fresh("listed");
        let _client = Client::connect(cluster.mqtt(1), Version::V5, connect(&id)).await;
        let admin = cluster.nodes[1].admin();
        let found = until(Duration::from_secs(5), "the client in the list", || async {
            let path = format!("/api/v1/clients/{id}");
            flotte_tests::admin::json(admin, &path)
        })
        .await;
        assert_eq!(found["client_id"], *id);
        assert_eq!(found["connected"], true);
    });
}
