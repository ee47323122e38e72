//! Members come and go while clients are served: growth from one node to five and back, members that are removed by force,
//! and what is refused.

use std::net::SocketAddr;

use flotte_tests::broker::{START_LIMIT, STOP_LIMIT};
use flotte_tests::cluster::{launches, wait_node_ready};
use flotte_tests::ports::free_address;
use flotte_tests::run::until_blocking;
use flotte_tests::{
    Broker, Client, Cluster, Launch, Version, admin, block_on, connect, fresh, publish,
};
use serde_json::{Value, json};

use crate::common::{Stubborn, take_all_numbers};

/// The eight session groups, and meta.
const GROUPS: usize = 9;

fn status(node: &Broker) -> Value {
    admin::json(node.admin(), "/api/v1/status").expect("a status")
}

/// A node that joins the cluster of another.
fn joining(name: &str, first: &Broker) -> Launch {
    Launch::new(name)
        .bind("cluster", free_address())
        .arg("--join")
        .arg(first.cluster().to_string())
}

fn ask(node: &Broker, path: &str, body: Value) -> (u16, Value) {
    let answer = admin::post(node.admin(), path, &body).expect("an answer");
    (
        answer.0,
        serde_json::from_str(&answer.1).unwrap_or_default(),
    )
}

fn leave(at: &Broker, name: &str) -> (u16, Value) {
    ask(at, "/api/v1/cluster/leave", json!({ "node": name }))
}

fn expel(at: &Broker, name: &str) -> (u16, Value) {
    let body = json!({ "node": name, "force": true });
    ask(at, "/api/v1/cluster/leave", body)
}

/// Waits until this node sees so many members, so many of them voters.
fn wait_members(node: &Broker, members: usize, voters: usize) {
    let what = format!("{} sees {members} members, {voters} voters", node.name());
    until_blocking(START_LIMIT, &what, || {
        let status = admin::json(node.admin(), "/api/v1/status")?;
        let nodes = status["nodes"].as_array()?;
        let voting = nodes.iter().filter(|node| node["voter"] == true).count();
        (nodes.len() == members && voting == voters).then_some(())
    });
}

/// Waits until the replicas of this node are so many, and none is without a leader.
fn wait_replicas(node: &Broker, count: usize) {
    let what = format!("{} has {count} replicas", node.name());
    until_blocking(START_LIMIT, &what, || {
        let status = admin::json(node.admin(), "/api/v1/status")?;
        let groups = status["groups"].as_array()?;
        let led = groups.iter().all(|group| group["leader"].is_string());
        (groups.len() == count && led).then_some(())
    });
}

/// Publishes from one node to another, and to a client that comes anew.
async fn serves(from: SocketAddr, to: SocketAddr) {
    let topic = fresh("serves");
    let mut subscriber = Client::connect(to, Version::V5, connect(fresh("s"))).await;
    subscriber.subscribe(&topic, 1).await;
    let mut publisher = Client::connect(from, Version::V311, connect(fresh("p"))).await;
    publisher
        .publish(publish(&topic).payload("x").qos1(1))
        .await;
    subscriber.take("x").await;
}

#[test]
fn a_cluster_grows_from_one_node_to_five_and_shrinks_to_three_under_traffic() {
    block_on(async {
        let mut first = Launch::new("m1").bind("cluster", free_address()).start();
        wait_node_ready(&first);
        let topic = fresh("flow");
        let mut subscriber = Client::connect(first.mqtt(), Version::V5, connect(fresh("s"))).await;
        subscriber.subscribe(&topic, 1).await;
        let mut publisher = Stubborn::connect(first.mqtt(), Version::V311).await;
        let mut numbers = 0..;
        let mut flow = async |publisher: &mut Stubborn| {
            for number in numbers.by_ref().take(50) {
                publisher.publish(&topic, number).await;
            }
        };
        flow(&mut publisher).await;
        let mut others = Vec::new();
        for name in ["m2", "m3", "m4", "m5"] {
            others.push(joining(name, &first).start());
            flow(&mut publisher).await;
        }
        for node in others.iter().chain([&first]) {
            wait_node_ready(node);
            wait_members(node, 5, 3);
            serves(first.mqtt(), node.mqtt()).await;
        }
        let replicas = || {
            others
                .iter()
                .chain([&first])
                .map(|node| status(node)["groups"].as_array().map_or(0, Vec::len))
                .sum::<usize>()
        };
        until_blocking(START_LIMIT, "three replicas of each group", || {
            (replicas() == 5 + 3 * (GROUPS - 1)).then_some(())
        });
        for mut node in others.drain(2..) {
            let (code, answer) = leave(&node, node.name());
            assert_eq!(code, 202, "{answer}");
            flow(&mut publisher).await;
            assert_eq!(node.wait_end(STOP_LIMIT).code(), Some(0), "{}", node.log());
            let (code, log) = again(&mut node);
            assert_eq!(code, Some(73), "its directory starts no node: {log}");
        }
        for node in others.iter().chain([&first]) {
            wait_members(node, 3, 3);
            wait_replicas(node, GROUPS);
            serves(node.mqtt(), first.mqtt()).await;
        }
        flow(&mut publisher).await;
        take_all_numbers(&mut subscriber, 349).await;
        // The one that was there first goes, too.
        let (code, answer) = leave(&others[0], "m1");
        assert_eq!(code, 202, "{answer}");
        assert_eq!(
            first.wait_end(STOP_LIMIT).code(),
            Some(0),
            "{}",
            first.log()
        );
        for node in &others {
            wait_members(node, 2, 2);
            wait_replicas(node, GROUPS);
        }
        serves(others[0].mqtt(), others[1].mqtt()).await;
    });
}

/// Starts a node once more that will not live long.
fn again(node: &mut Broker) -> (Option<i32>, String) {
    node.respawn();
    let code = node.wait_end(STOP_LIMIT).code();
    (code, node.log())
}

#[test]
fn a_dead_member_is_removed_by_force_and_may_not_come_back() {
    let mut cluster = Cluster::start();
    let (victim, left, right) = (1, 0, 2);
    cluster.nodes[victim].kill9();
    cluster.wait_state(left, victim, "down");
    let name = cluster.nodes[victim].name().to_owned();
    let (code, answer) = leave(&cluster.nodes[left], &name);
    assert_eq!(code, 409, "it cannot hand over: {answer}");
    let (code, answer) = expel(&cluster.nodes[right], &name);
    assert_eq!(code, 200, "{answer}");
    for node in [left, right] {
        wait_members(&cluster.nodes[node], 2, 2);
        wait_replicas(&cluster.nodes[node], GROUPS);
    }
    let (code, log) = again(&mut cluster.nodes[victim]);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("the cluster refuses this node"), "{log}");
    block_on(serves(cluster.mqtt(left), cluster.mqtt(right)));
}

#[test]
fn a_live_member_is_removed_by_force_when_its_lease_is_over() {
    block_on(async {
        let mut cluster = Cluster::start();
        let victim = cluster.leader();
        let other = (victim + 1) % 3;
        let name = cluster.nodes[victim].name().to_owned();
        let mut client = cluster.client(victim, Version::V5).await;
        let (code, answer) = expel(&cluster.nodes[other], &name);
        assert_eq!(code, 200, "{answer}");
        let ended = client.next_or_end().await;
        assert!(ended.is_ok(), "{ended:?}");
        let node = &mut cluster.nodes[victim];
        assert_eq!(node.wait_end(STOP_LIMIT).code(), Some(1), "{}", node.log());
        wait_members(&cluster.nodes[other], 2, 2);
        serves(cluster.mqtt(other), cluster.mqtt((victim + 2) % 3)).await;
    });
}

#[test]
fn nobody_is_removed_who_is_needed() {
    let mut cluster = Cluster::start();
    cluster.nodes[2].kill9();
    cluster.wait_state(0, 2, "down");
    let name = cluster.nodes[1].name().to_owned();
    let (code, answer) = expel(&cluster.nodes[0], &name);
    assert_eq!(code, 409, "{answer}");
    let detail = answer["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("no majority"), "{detail}");
    let (code, answer) = expel(&cluster.nodes[0], "nobody");
    assert_eq!(code, 404, "{answer}");
    block_on(serves(cluster.mqtt(0), cluster.mqtt(1)));
    let single = Launch::new("alone").start();
    let (code, answer) = leave(&single, "alone");
    assert_eq!(code, 409, "{answer}");
}

#[test]
fn a_member_that_was_away_for_too_long_is_forgotten() {
    let forget = |launch: Launch| launch.env("FLOTTE_CLUSTER__FORGET_AFTER_S", 5);
    let mut nodes: Vec<Broker> = launches(3)
        .into_iter()
        .map(|one| forget(one).spawn())
        .collect();
    nodes.iter_mut().for_each(Broker::wait_ready);
    nodes.iter().for_each(wait_node_ready);
    nodes[2].kill9();
    for node in &nodes[..2] {
        wait_members(node, 2, 2);
        wait_replicas(node, GROUPS);
    }
    block_on(serves(nodes[0].mqtt(), nodes[1].mqtt()));
}

#[test]
fn a_drained_node_takes_nobody_and_ends_when_told() {
    block_on(async {
        let mut cluster = Cluster::start();
        let mut client = cluster.client(0, Version::V5).await;
        let node = &cluster.nodes[0];
        let (code, _) = ask(node, "/api/v1/drain", json!({}));
        assert_eq!(code, 202);
        assert_eq!(client.recv_kind(14).await.reason(), 0x9c);
        client.expect_closed().await;
        assert!(!admin::is_ready(node.admin()));
        until_blocking(START_LIMIT, "it leads nothing", || {
            let status = status(node);
            let groups = status["groups"].as_array()?;
            let leads = groups.iter().any(|group| group["role"] == "leader");
            (!leads).then_some(())
        });
        let (code, _) = ask(node, "/api/v1/drain", json!({ "stop": true }));
        assert_eq!(code, 202);
        let node = &mut cluster.nodes[0];
        assert_eq!(node.wait_end(STOP_LIMIT).code(), Some(0), "{}", node.log());
        serves(cluster.mqtt(1), cluster.mqtt(2)).await;
    });
}
