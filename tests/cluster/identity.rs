//! Who a node is: a name that is taken, an older copy of a disk, two processes of one identity, and one that is removed while it
//! cannot hear of it. Each is told in words, and stays out.

use std::time::Duration;

use flotte_tests::broker::{START_LIMIT, STOP_LIMIT};
use flotte_tests::cluster::wait_node_ready;
use flotte_tests::ports::free_address;
use flotte_tests::run::until_blocking;
use flotte_tests::{
    Broker, Client, Cluster, Launch, Version, admin, block_on, connect, fresh, publish,
};
use serde_json::{Value, json};

/// Exit code of a node that the cluster refuses, and of a start with its data directory afterwards.
const REFUSED: Option<i32> = Some(1);
const BAD_DATA_DIR: Option<i32> = Some(73);

fn status(node: &Broker) -> Value {
    admin::json(node.admin(), "/api/v1/status").expect("a status")
}

fn members(node: &Broker) -> Option<usize> {
    let status = admin::json(node.admin(), "/api/v1/status")?;
    status["nodes"].as_array().map(Vec::len)
}

/// Index in the log of the meta group.
fn log_index(node: &Broker) -> u64 {
    let status = status(node);
    let groups = status["groups"].as_array().expect("groups");
    let meta = groups.iter().find(|group| group["id"] == 0);
    meta.and_then(|meta| meta["applied"].as_u64())
        .expect("an index")
}

/// A node that joins the cluster of another; its ports are known before it is ready.
fn joining(name: &str, other: &Broker) -> Launch {
    Launch::new(name)
        .bind("mqtt", free_address())
        .bind("admin", free_address())
        .bind("cluster", free_address())
        .arg("--join")
        .arg(other.cluster().to_string())
}

async fn serves(node: &Broker) {
    let topic = fresh("serves");
    let mut subscriber = Client::connect(node.mqtt(), Version::V5, connect(fresh("s"))).await;
    subscriber.subscribe(&topic, 1).await;
    let mut publisher = Client::connect(node.mqtt(), Version::V311, connect(fresh("p"))).await;
    publisher
        .publish(publish(&topic).payload("x").qos1(1))
        .await;
    subscriber.take("x").await;
}

/// `node.name` is the name of the host where nothing else is said: two nodes on one machine have the same.
#[test]
fn a_node_with_the_name_of_a_live_one_waits_outside_and_says_why() {
    let first = Launch::new("same").bind("cluster", free_address()).start();
    wait_node_ready(&first);
    let second = joining("same", &first).spawn();
    let words = "a member of this name is up";
    until_blocking(START_LIMIT, "the second one says why", || {
        let (_, said) = admin::get(second.admin(), "/readyz")?;
        (said.contains(words) && said.contains("node.name")).then_some(())
    });
    assert!(second.logged(words), "{}", second.log());
    // Well past the time after which the leader would have declared it Down.
    let until = std::time::Instant::now() + Duration::from_secs(3);
    while std::time::Instant::now() < until {
        assert_eq!(members(&first), Some(1));
        assert!(admin::is_ready(first.admin()), "{}", first.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    block_on(serves(&first));
}

/// In a cluster that can do without it: once the old one is down for good, the new one takes its place.
#[test]
fn a_node_takes_the_place_of_its_namesake_once_that_is_down() {
    let mut cluster = Cluster::start();
    let other = cluster.follower();
    let asked = (0..3).find(|node| *node != other).expect("three nodes");
    let name = cluster.nodes[other].name().to_owned();
    let mut second = joining(&name, &cluster.nodes[asked]).spawn();
    until_blocking(START_LIMIT, "the second one says why", || {
        second.logged("a member of this name is up").then_some(())
    });
    block_on(serves(&cluster.nodes[other]));
    assert_eq!(members(&cluster.nodes[other]), Some(3));
    cluster.nodes[other].kill9();
    second.wait_ready();
    wait_node_ready(&second);
    assert_eq!(members(&cluster.nodes[asked]), Some(3));
    block_on(serves(&second));
}

/// Removed by force while it is stopped: nobody can tell it by the log, and what it proposes would be asked for again for ever.
#[test]
fn a_node_that_was_removed_while_it_was_frozen_ends_soon_and_says_why() {
    let mut cluster = Cluster::start();
    let frozen = cluster.follower();
    let asked = (0..3).find(|node| *node != frozen).expect("three nodes");
    let name = cluster.nodes[frozen].name().to_owned();
    block_on(serves(&cluster.nodes[frozen]));
    cluster.nodes[frozen].pause();
    let body = json!({ "node": name, "force": true });
    let answer = admin::post(cluster.nodes[asked].admin(), "/api/v1/cluster/leave", &body);
    assert_eq!(
        answer.as_ref().map(|(code, _)| *code),
        Some(200),
        "{answer:?}"
    );
    let before = log_index(&cluster.nodes[asked]);
    cluster.nodes[frozen].resume();
    let end = cluster.nodes[frozen].wait_end(START_LIMIT);
    let log = cluster.nodes[frozen].log();
    assert_eq!(end.code(), REFUSED, "{log}");
    assert!(log.contains("the cluster refuses this node"), "{log}");
    let grown = log_index(&cluster.nodes[asked]) - before;
    assert!(grown < 50, "the log grew by {grown} entries");
    cluster.nodes[frozen].respawn();
    let end = cluster.nodes[frozen].wait_end(STOP_LIMIT);
    assert_eq!(end.code(), BAD_DATA_DIR, "{}", cluster.nodes[frozen].log());
    block_on(serves(&cluster.nodes[asked]));
}
