//! `$SYS` and other topics that begin with `$`; and the metrics that every node shows.

use std::time::Duration;

use flotte_tests::{
    Broker, Client, Launch, Version, admin, block_on, connack, connect, fresh, publish, until, will,
};

use crate::common::{VERSIONS, on_shared};

const NOT_AUTHORIZED: u8 = 0x87;

fn ticking(name: &str) -> Broker {
    Launch::new(name).env("FLOTTE_SYS__INTERVAL_S", 1).start()
}

async fn client(node: &Broker, version: Version) -> Client {
    Client::connect(node.mqtt(), version, connect(fresh("c"))).await
}

/// The value of a topic as a new subscriber gets it.
async fn value(address: std::net::SocketAddr, topic: &str) -> String {
    let mut reader = Client::connect(address, Version::V5, connect(fresh("r"))).await;
    reader.subscribe(topic, 0).await;
    let message = reader.recv_publish().await;
    assert!(message.retain() && message.topic() == topic, "{message:?}");
    String::from_utf8(message.payload()).expect("text")
}

/// As [`value`], of a number.
async fn number(node: &Broker, name: &str) -> u64 {
    let text = value(node.mqtt(), &format!("$SYS/broker/{name}")).await;
    text.parse()
        .unwrap_or_else(|e| panic!("{name} is no number: {text}: {e}"))
}

#[test]
fn a_subscriber_gets_the_value_at_once_and_then_its_changes() {
    let node = ticking("sys");
    block_on(async {
        for version in VERSIONS {
            let mut reader = client(&node, version).await;
            reader.subscribe("$SYS/broker/uptime", 1).await;
            let first = reader.recv_publish().await;
            assert!(first.retain() && first.qos() == 0, "{first:?}");
            assert_eq!(first.topic(), "$SYS/broker/uptime");
            let text = String::from_utf8(first.payload()).expect("text");
            assert!(text.ends_with(" seconds"), "{text}");
            let next = reader.recv_publish().await;
            assert!(!next.retain(), "[MQTT-3.3.1-12] {next:?}");
            assert_ne!(next.payload(), first.payload());
        }
    });
}

#[test]
fn a_value_that_does_not_change_comes_once() {
    let node = ticking("sys");
    block_on(async {
        let mut reader = client(&node, Version::V5).await;
        reader.subscribe("$SYS/broker/version", 0).await;
        reader.subscribe("$SYS/broker/uptime", 0).await;
        let first = reader.recv_publish().await;
        assert_eq!(first.topic(), "$SYS/broker/version");
        for _ in 0..3 {
            assert_eq!(reader.recv_publish().await.topic(), "$SYS/broker/uptime");
        }
    });
}

#[test]
fn no_wildcard_in_the_first_level_matches_it() {
    let node = ticking("sys");
    block_on(async {
        let mut hidden = client(&node, Version::V5).await;
        for filter in ["#", "+/#", "+/broker/uptime"] {
            hidden.subscribe(filter, 0).await;
        }
        let mut reader = client(&node, Version::V5).await;
        reader.subscribe("$SYS/+/uptime", 0).await;
        for _ in 0..2 {
            assert_eq!(reader.recv_publish().await.topic(), "$SYS/broker/uptime");
        }
        hidden.fence().await;
    });
}

#[test]
fn what_is_counted_is_right() {
    let node = Launch::new("sys").start();
    block_on(async {
        let mut gone = Client::connect(node.mqtt(), Version::V311, connect("d").resume()).await;
        gone.subscribe("offline/#", 1).await;
        gone.leave().await;
        let mut reader = client(&node, Version::V5).await;
        reader.subscribe("a/+", 0).await;
        reader.subscribe("$share/g/b", 0).await;
        let mut publisher = client(&node, Version::V5).await;
        for id in 1..=3 {
            let message = publish("a/b").qos1(id).retain().payload("12345");
            publisher.publish(message).await;
            reader.take("12345").await;
        }
        publisher
            .publish(publish("offline/x").qos1(9).payload("kept"))
            .await;
        let all = [
            ("clients/connected", 3),
            ("clients/disconnected", 1),
            ("clients/total", 4),
            ("retained messages/count", 1),
            // Its own too.
            ("subscriptions/count", 3),
            ("shared_subscriptions/count", 1),
            ("publish/messages/received", 4),
            ("publish/messages/sent", 3),
            ("publish/bytes/received", 19),
            ("publish/bytes/sent", 15),
            ("messages/stored", 2),
            ("store/messages/count", 2),
        ];
        let mut checker = client(&node, Version::V5).await;
        checker.subscribe("$SYS/broker/#", 0).await;
        let mut found = std::collections::BTreeMap::new();
        while !found.contains_key("$SYS/broker/version") {
            let message = checker.recv_publish().await;
            found.insert(message.topic(), message.payload());
        }
        for (name, wanted) in all {
            let value = &found[&format!("$SYS/broker/{name}")];
            let value = String::from_utf8_lossy(value);
            assert_eq!(value, wanted.to_string(), "{name}");
        }
        assert!(number(&node, "clients/maximum").await >= 3);
        assert!(number(&node, "messages/received").await > 8);
        assert!(number(&node, "bytes/sent").await > 100);
    });
}

#[test]
fn an_interval_of_0_turns_it_off() {
    let node = Launch::new("sys").env("FLOTTE_SYS__INTERVAL_S", 0).start();
    block_on(async {
        let mut reader = client(&node, Version::V5).await;
        reader.subscribe("$SYS/#", 0).await;
        reader.subscribe("marker", 0).await;
        let mut publisher = client(&node, Version::V5).await;
        publisher.publish(publish("marker").qos1(1)).await;
        assert_eq!(reader.take("").await.topic(), "marker");
        reader.fence().await;
    });
}

#[test]
fn every_node_knows_the_cluster() {
    on_shared(|cluster| async move {
        for node in &cluster.nodes {
            let nodes = value(node.mqtt(), "$SYS/cluster/nodes").await;
            assert_eq!(nodes, "3");
            for other in &cluster.nodes {
                let topic = format!("$SYS/cluster/node/{}/state", other.name());
                assert_eq!(value(node.mqtt(), &topic).await, "up");
            }
        }
    });
}

/// A publish to a topic of `$`, at each QoS: refused or taken.
async fn publishes(node: &Broker, version: Version, topic: &str, refusal: u8) {
    let mut publisher = client(node, version).await;
    publisher.send(publish(topic).payload("0")).await;
    for (kind, packet) in [
        (4, publish(topic).qos1(1).payload("1")),
        (5, publish(topic).qos2(2).payload("2")),
    ] {
        publisher.send(packet).await;
        let answer = publisher.recv_kind(kind).await;
        assert_eq!(answer.reason(), refusal, "{topic}: {answer:?}");
    }
    publisher.fence().await;
}

#[test]
fn clients_publish_nothing_to_dollar_topics() {
    let node = Launch::new("dollar").start();
    block_on(async {
        let mut reader = client(&node, Version::V5).await;
        for filter in ["$x/#", "$SYS/mine/#"] {
            reader.subscribe(filter, 0).await;
        }
        let mut refused = 0.0;
        for topic in ["$x/y", "$SYS/mine/y", "$SYS/broker/uptime", "$share/g/t"] {
            publishes(&node, Version::V5, topic, NOT_AUTHORIZED).await;
            // 3.x has no word for it: an ordinary acknowledgement.
            publishes(&node, Version::V311, topic, 0).await;
            refused += 6.0;
            let mut wilful = Client::dial(node.mqtt(), Version::V5).await;
            wilful
                .send(connect(fresh("w")).will(will(topic, "w")))
                .await;
            wilful.expect_refused(&[NOT_AUTHORIZED]).await;
            let mut wilful = Client::dial(node.mqtt(), Version::V311).await;
            wilful
                .send(connect(fresh("w")).will(will(topic, "w")))
                .await;
            wilful.recv(connack(false, 5)).await;
            wilful.expect_closed().await;
        }
        reader.fence().await;
        let denied = |action: &str| {
            let series = format!("flotte_acl_denied_total{{action=\"{action}\"}}");
            admin::metric(node.admin(), &series)
        };
        assert_eq!(denied("publish"), Some(refused));
        assert_eq!(denied("will"), Some(8.0));
    });
}

/// A bridge says whether it is connected where mosquitto's do, at any node.
#[test]
fn bridges_say_what_they_are_doing() {
    on_shared(|cluster| async move {
        for version in [Version::V311, Version::V5] {
            let name = fresh("host.bridge");
            let topic = format!("$SYS/broker/connection/{name}/state");
            let packet = connect(&name).will(will(&topic, "0").qos(1).retain());
            let mut bridge = Client::connect(cluster.mqtt(0), version, packet).await;
            bridge
                .publish(publish(&topic).qos1(1).retain().payload("1"))
                .await;
            let mut reader = Client::connect(cluster.mqtt(1), version, connect(fresh("r"))).await;
            reader.subscribe(&topic, 1).await;
            assert!(reader.take("1").await.retain());
            bridge.cut();
            assert!(!reader.take("0").await.retain());
            let mut late = Client::connect(cluster.mqtt(2), version, connect(fresh("r"))).await;
            late.subscribe("$SYS/broker/connection/#", 1).await;
            loop {
                let found = late.recv_publish().await;
                late.acknowledge(&found).await;
                if found.topic() == topic {
                    assert!(found.payload() == b"0" && found.retain(), "{found:?}");
                    break;
                }
            }
        }
    });
}

#[test]
fn dollar_topics_that_are_allowed_are_those_of_nobody_else() {
    let node = Launch::new("dollar")
        .env("FLOTTE_MQTT__DOLLAR_TOPICS", "allow")
        .start();
    block_on(async {
        let mut reader = client(&node, Version::V5).await;
        for filter in ["$x/#", "$SYS/mine/#", "#"] {
            reader.subscribe(filter, 0).await;
        }
        publishes(&node, Version::V5, "$SYS/mine/y", NOT_AUTHORIZED).await;
        publishes(&node, Version::V5, "$share/g/t", NOT_AUTHORIZED).await;
        publishes(&node, Version::V311, "$x/y", 0).await;
        for payload in ["0", "1", "2"] {
            assert_eq!(reader.take(payload).await.topic(), "$x/y");
        }
        reader.fence().await;
    });
}

/// The metrics that dashboards rely on, as they begin in a scrape.
const METRICS: &[&str] = &[
    "flotte_connections{listener=",
    "flotte_connects_total{result=\"accepted\"}",
    "flotte_disconnects_total{reason=\"client\"}",
    "flotte_sessions{kind=\"live\",state=\"connected\"}",
    "flotte_sessions{kind=\"durable\",state=\"offline\"}",
    "flotte_subscriptions ",
    "flotte_routes{kind=",
    "flotte_retained_messages ",
    "flotte_retained_bytes ",
    "flotte_packets_total{direction=\"in\",type=\"publish\"}",
    "flotte_packets_total{direction=\"out\",type=\"puback\"}",
    "flotte_messages_received_total{qos=\"0\"}",
    "flotte_messages_sent_total{qos=\"2\"}",
    "flotte_bytes_total{direction=\"in\"}",
    "flotte_bytes_total{direction=\"out\"}",
    "flotte_copies_accepted_total ",
    "flotte_copies_delivered_total ",
    "flotte_copies_expired_total ",
    "flotte_copies_dropped_total{reason=\"queue_full\"}",
    "flotte_copies_queued ",
    "flotte_messages_unmatched_total ",
    "flotte_publish_ack_seconds_count{qos=\"1\"}",
    "flotte_publish_deliver_seconds_count{qos=\"0\"}",
    "flotte_fsync_seconds_count",
    "flotte_commit_seconds_count{group=\"0\"}",
    "flotte_raft_role{group=\"0\"}",
    "flotte_raft_term{group=\"0\"}",
    "flotte_raft_commit_index{group=\"0\"}",
    "flotte_raft_applied_index{group=\"0\"}",
    "flotte_raft_proposals_total{group=\"0\",result=\"committed\"}",
    "flotte_raft_batch_commands_count",
    "flotte_raft_snapshot_bytes{group=\"0\"}",
    "flotte_lease_seconds_left ",
    "flotte_nodes{state=\"up\"}",
    "flotte_barrier_seconds_count",
    "flotte_link_queue_messages{peer=",
    "flotte_link_queue_bytes{peer=",
    "flotte_link_kept_messages{peer=",
    "flotte_link_kept_bytes{peer=",
    "flotte_proposer_commands{group=\"0\"}",
    "flotte_proposer_bytes{group=\"0\"}",
    "flotte_link_bytes_total{peer=",
    "flotte_link_rtt_seconds_count{peer=",
    "flotte_auth_total{method=",
    "flotte_acl_denied_total{action=\"publish\"}",
    "flotte_event_loop_lag_seconds_count",
    "flotte_build_info{version=",
    "process_cpu_seconds_total ",
    "process_open_fds ",
    "process_max_fds ",
    "process_virtual_memory_bytes ",
    "process_resident_memory_bytes ",
    "process_start_time_seconds ",
];

#[test]
fn every_metric_is_shown_with_its_meaning() {
    on_shared(|cluster| async move {
        let topic = fresh("m");
        let mut reader = cluster.client(1, Version::V5).await;
        reader.subscribe(&topic, 1).await;
        let mut publisher = cluster.client(0, Version::V5).await;
        // One publish in 64 is timed by each worker; the first one is.
        for id in 1..=200 {
            publisher
                .publish(publish(&topic).qos1(id).payload("x"))
                .await;
            reader.take("x").await;
        }
        let (_, text) = admin::get(cluster.nodes[0].admin(), "/metrics").expect("metrics");
        let missing: Vec<_> = METRICS
            .iter()
            .filter(|name| !text.lines().any(|line| line.starts_with(*name)))
            .collect();
        assert!(missing.is_empty(), "{missing:?} in\n{text}");
        for line in text.lines().filter(|line| line.starts_with("# TYPE ")) {
            let name = line.split(' ').nth(2).expect("a name");
            let help = format!("# HELP {name} ");
            assert!(text.contains(&help), "{name} has no meaning");
        }
        let count = |name: &str| {
            let lines = text.lines().filter(|line| line.starts_with(name));
            let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            values.sum::<f64>()
        };
        for timed in [
            "flotte_publish_ack_seconds_count{qos=\"1\"}",
            "flotte_link_rtt_seconds_count",
            "flotte_event_loop_lag_seconds_count",
        ] {
            assert!(count(timed) > 0.0, "{timed}");
        }
    });
}

/// What is measured between scrapes is not piled up: the gauge of memory alone would not show it soon.
#[test]
fn counters_go_up_by_what_happened() {
    let node = Launch::new("counted").start();
    block_on(async {
        let metric = |series: &str| admin::metric(node.admin(), series).unwrap_or_default();
        let mut publisher = client(&node, Version::V5).await;
        publisher.publish(publish("a").qos2(1).payload("x")).await;
        publisher.fence().await;
        for (kind, direction) in [
            ("connect", "in"),
            ("connack", "out"),
            ("publish", "in"),
            ("pubrec", "out"),
            ("pubrel", "in"),
            ("pubcomp", "out"),
            ("pingreq", "in"),
            ("pingresp", "out"),
        ] {
            let series =
                format!("flotte_packets_total{{direction=\"{direction}\",type=\"{kind}\"}}");
            assert_eq!(metric(&series), 1.0, "{series}");
        }
        assert_eq!(metric("flotte_messages_unmatched_total"), 1.0);
        publisher.leave().await;
        let ended = || async {
            let ended = metric("flotte_disconnects_total{reason=\"client\"}");
            (ended == 1.0).then_some(())
        };
        until(Duration::from_secs(5), "the end in the metrics", ended).await;
    });
}
