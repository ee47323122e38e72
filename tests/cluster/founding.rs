//! Founding against the odds: nodes that know a part of each other, are killed while they found, come with an older disk or from
//! another cluster.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use flotte_tests::broker::{START_LIMIT, fresh_dir};
use flotte_tests::cluster::wait_node_ready;
use flotte_tests::ports::free_address;
use flotte_tests::run::until_blocking;
use flotte_tests::{Broker, Cluster, Launch, Version, admin, block_on, fresh, publish};
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;

const NODES: usize = 5;
/// Exit code of a node that the cluster refuses.
const REFUSED: Option<i32> = Some(1);
/// That of every later start with its data directory.
const BAD_DATA_DIR: Option<i32> = Some(73);

fn status(node: &Broker) -> Value {
    admin::json(node.admin(), "/api/v1/status").expect("a status")
}

/// Five nodes, each told of the next two only: no list is complete, and all overlap.
fn overlapping() -> Vec<Launch> {
    let cluster: Vec<SocketAddr> = (0..NODES).map(|_| free_address()).collect();
    let launch = |place: usize| {
        let launch = Launch::new(&format!("n{}", place + 1))
            .bind("mqtt", free_address())
            .bind("admin", free_address())
            .bind("cluster", cluster[place])
            .arg("--bootstrap-expect")
            .arg(NODES.to_string());
        (1..=2).fold(launch, |launch, next| {
            let other = cluster[(place + next) % NODES];
            launch.arg("--join").arg(other.to_string())
        })
    };
    (0..NODES).map(launch).collect()
}

/// Starts the five in an order drawn from this seed, kills some while they found, and demands one cluster.
fn found_with_kills(seed: u64) {
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut launches: Vec<Launch> = overlapping();
    launches.shuffle(&mut random);
    let mut nodes = Vec::new();
    for launch in launches {
        nodes.push(launch.spawn());
        std::thread::sleep(Duration::from_millis(random.random_range(0..300)));
    }
    // Kills fall anywhere into founding: at once, and until well after it is over.
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(random.random_range(0..700)));
        let victim = &mut nodes[random.random_range(0..NODES)];
        victim.kill9();
        victim.respawn();
    }
    let mut cluster = Cluster { nodes };
    cluster.wait_ready();
    let ids: Vec<Value> = cluster
        .nodes
        .iter()
        .map(|node| status(node)["cluster_id"].clone())
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "seed {seed}: {ids:?}");
    for node in &cluster.nodes {
        let what = format!("seed {seed}: {} sees {NODES} members", node.name());
        until_blocking(START_LIMIT, &what, || {
            let status = admin::json(node.admin(), "/api/v1/status")?;
            (status["nodes"].as_array()?.len() == NODES).then_some(())
        });
    }
}

#[test]
fn five_nodes_with_overlapping_lists_make_one_cluster() {
    for seed in [1, 2, 3] {
        found_with_kills(seed);
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory can be made");
    for entry in std::fs::read_dir(from).expect("a directory").flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy(&source, &target);
        } else {
            std::fs::copy(&source, &target).expect("a file can be copied");
        }
    }
}

/// The disk of a node is restored from a copy, and the node was up since: what it acknowledged since it does not have. It is
/// refused, says why, and the others go on without it.
#[test]
fn an_older_copy_of_a_disk_is_refused() {
    let mut cluster = Cluster::start();
    let older = fresh_dir("older");
    let dir = cluster.nodes[2].data_dir().to_owned();
    assert_eq!(cluster.nodes[2].sigterm(), Some(0));
    copy(&dir, &older);
    for _ in 0..2 {
        cluster.nodes[2].restart();
        wait_node_ready(&cluster.nodes[2]);
        assert_eq!(cluster.nodes[2].sigterm(), Some(0));
    }
    std::fs::remove_dir_all(&dir).expect("it can be removed");
    copy(&older, &dir);
    cluster.nodes[2].respawn();
    let end = cluster.nodes[2].wait_end(START_LIMIT);
    let log = cluster.nodes[2].log();
    assert_eq!(end.code(), REFUSED, "{log}");
    let said = log.lines().filter(|line| line.contains("refuses"));
    let words = ["older copy", "old disk was restored"];
    let word = words.into_iter().find(|word| log.contains(word));
    assert!(said.count() > 0 && word.is_some(), "{log}");
    // Whoever supervises it starts it again and again: each start would draw a higher number, and be taken for a newer one.
    for start in 2..=5 {
        cluster.nodes[2].respawn();
        let end = cluster.nodes[2].wait_end(START_LIMIT);
        let log = cluster.nodes[2].log();
        assert_eq!(end.code(), BAD_DATA_DIR, "start {start}: {log}");
        let again = log.lines().filter(|line| line.contains("does not start"));
        let again = again.filter(|line| word.is_some_and(|word| line.contains(word)));
        assert_eq!(again.count(), start - 1, "the same words: {log}");
    }
    cluster.leader();
    cluster.wait_state(0, 2, "down");
    block_on(async {
        let topic = fresh("others");
        let mut subscriber = cluster.client(0, Version::V5).await;
        subscriber.subscribe(&topic, 1).await;
        let mut publisher = cluster.client(1, Version::V5).await;
        publisher
            .publish(publish(&topic).qos1(1).payload("x"))
            .await;
        subscriber.take("x").await;
    });
}

/// A node with the data of another cluster is refused, and both sides name the other and the two clusters.
#[test]
fn a_node_of_another_cluster_is_named_on_both_sides() {
    let member = Launch::new("member")
        .bind("cluster", free_address())
        .start();
    let mut stranger = Launch::new("stranger")
        .bind("cluster", free_address())
        .start();
    let ids = [&member, &stranger].map(|node| status(node)["cluster_id"].clone());
    let [ours, theirs] = ids.map(|id| id.as_str().expect("an id").to_owned());
    assert_eq!(stranger.sigterm(), Some(0));
    // At the address of the stranger, told of the member: it calls, and is called back.
    let stranger = Launch::new("stranger")
        .data_dir(stranger.data_dir())
        .bind("cluster", stranger.cluster())
        .arg("--join")
        .arg(member.cluster().to_string())
        .start();
    for node in [&member, &stranger] {
        let what = format!("{} names both clusters", node.name());
        until_blocking(START_LIMIT, &what, || {
            let named = |id: &str| node.logged(id) && node.logged("another cluster");
            (named(&ours) && named(&theirs)).then_some(())
        });
    }
}
