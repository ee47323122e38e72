//! How a cluster comes to be, and who is let in.

use std::path::{Path, PathBuf};
use std::time::Duration;

use flotte_tests::broker::START_LIMIT;
use flotte_tests::cluster::{launches, wait_node_ready};
use flotte_tests::run::until_blocking;
use flotte_tests::{
    Broker, Client, Cluster, Launch, Version, admin, block_on, connect, fresh, publish,
};

/// Exit code for a data directory that is locked, foreign or corrupt.
const BAD_DATA_DIR: Option<i32> = Some(73);

/// The status documents of all started nodes.
fn statuses(cluster: &Cluster) -> Vec<serde_json::Value> {
    let started = cluster.nodes.iter().filter(|node| node.is_started());
    let status = |node: &Broker| admin::json(node.admin(), "/api/v1/status").expect("a status");
    started.map(status).collect()
}

/// All nodes are members of one cluster of three.
fn assert_one_cluster(cluster: &Cluster) {
    cluster.leader();
    let all = statuses(cluster);
    for status in &all {
        assert_eq!(
            status["cluster_id"], all[0]["cluster_id"],
            "two clusters: {all:#?}"
        );
        assert_eq!(
            status["nodes"].as_array().map(Vec::len),
            Some(3),
            "{status:#}"
        );
    }
}

/// Starts the nodes in this order, a pause between them, and ends with one cluster.
fn start_in_order(order: [usize; 3], pause: Duration) {
    let mut waiting: Vec<_> = launches(3).into_iter().map(Some).collect();
    let mut nodes: Vec<Option<Broker>> = vec![None, None, None];
    for (turn, place) in order.into_iter().enumerate() {
        if turn > 0 {
            std::thread::sleep(pause);
        }
        nodes[place] = waiting[place].take().map(Launch::spawn);
    }
    let mut cluster = Cluster {
        nodes: nodes.into_iter().flatten().collect(),
    };
    cluster.wait_ready();
    assert_one_cluster(&cluster);
}

#[test]
fn nodes_started_together_make_one_cluster() {
    start_in_order([0, 1, 2], Duration::ZERO);
}

#[test]
fn nodes_started_in_reverse_make_one_cluster() {
    start_in_order([2, 1, 0], Duration::from_millis(1_500));
}

#[test]
fn nodes_started_seconds_apart_make_one_cluster() {
    start_in_order([1, 2, 0], Duration::from_secs(3));
}

/// All stop, all start: the same cluster, with higher incarnations, and it serves.
#[test]
fn second_start_finds_the_same_cluster() {
    block_on(async {
        let mut cluster = Cluster::start();
        let before = statuses(&cluster);
        for node in &mut cluster.nodes {
            assert_eq!(node.sigterm(), Some(0), "{}", node.log());
        }
        cluster.nodes.iter_mut().for_each(Broker::respawn);
        cluster.wait_ready();
        assert_one_cluster(&cluster);
        let after = statuses(&cluster);
        for (before, after) in before.iter().zip(&after) {
            assert_eq!(before["cluster_id"], after["cluster_id"]);
            assert_eq!(before["node"]["id"], after["node"]["id"]);
            let incarnation = |status: &serde_json::Value| status["node"]["incarnation"].as_u64();
            assert!(
                incarnation(after) > incarnation(before),
                "{before:#} {after:#}"
            );
        }
        let topic = fresh("again");
        let mut subscriber = cluster.client(2, Version::V5).await;
        subscriber.subscribe(&topic, 1).await;
        let mut publisher = cluster.client(0, Version::V5).await;
        publisher
            .publish(publish(&topic).qos1(1).payload("x"))
            .await;
        subscriber.take("x").await;
    });
}

/// Killed all at once and started again: nothing that was agreed is lost.
#[test]
fn cluster_survives_the_death_of_all_nodes() {
    let mut cluster = Cluster::start();
    let before = statuses(&cluster);
    cluster.nodes.iter_mut().for_each(Broker::kill9);
    cluster.nodes.iter_mut().for_each(Broker::respawn);
    cluster.wait_ready();
    assert_one_cluster(&cluster);
    assert_eq!(statuses(&cluster)[0]["cluster_id"], before[0]["cluster_id"]);
}

/// A node without `bootstrap_expect` that is told to join never makes a cluster of its own.
#[test]
fn node_that_joins_never_initialises() {
    let absent = flotte_tests::ports::free_address();
    let node = Launch::new("joiner").arg("--join").arg(absent.to_string());
    let node = node
        .bind("admin", flotte_tests::ports::free_address())
        .spawn();
    until_blocking(START_LIMIT, "/readyz answers 503", || {
        let (status, _) = admin::get(node.admin(), "/readyz")?;
        (status == 503).then_some(())
    });
    // Absence can only be waited for: an initialiser would need well under a second.
    std::thread::sleep(Duration::from_secs(3));
    assert!(
        !admin::is_ready(node.admin()),
        "it made a cluster of its own\n{}",
        node.log()
    );
}

#[test]
fn locked_data_directory_is_refused() {
    let first = Launch::new("first").start();
    let (code, log) = Launch::new("second")
        .data_dir(first.data_dir())
        .run_to_end(START_LIMIT);
    assert_eq!(code, BAD_DATA_DIR, "{log}");
    assert!(log.contains("lock"), "the log does not say why:\n{log}");
    assert!(
        admin::is_ready(first.admin()),
        "the first node suffered\n{}",
        first.log()
    );
}

/// The files of a directory, all levels.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path))
        } else {
            found.push(path)
        }
    }
    found
}

/// A segment of the journal that holds records, and where they end.
fn journal_segment(data_dir: &Path) -> (PathBuf, Vec<u8>, usize) {
    let of_journal = |path: &PathBuf| {
        path.strip_prefix(data_dir)
            .is_ok_and(|tail| tail.starts_with("journal"))
    };
    let mut segments: Vec<_> = files(data_dir).into_iter().filter(of_journal).collect();
    segments.sort();
    for path in segments {
        let bytes = std::fs::read(&path).expect("a segment is readable");
        let end = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        if end > 512 {
            return (path, bytes, end);
        }
    }
    panic!(
        "no journal with records in {data_dir:?}: {:?}",
        files(data_dir)
    );
}

/// One bit in the middle of the journal, with good records behind it: named and refused, not skipped.
#[test]
fn corrupt_journal_is_named_and_refused() {
    block_on(async {
        let mut node = Launch::new("corrupt").start();
        let mut client = Client::connect(node.mqtt(), Version::V5, connect(fresh("c"))).await;
        for id in 1..=50u16 {
            client
                .publish(
                    publish(format!("kept/{id}"))
                        .qos1(id)
                        .retain()
                        .payload("some payload"),
                )
                .await;
        }
        node.kill9();
        let (path, mut bytes, end) = journal_segment(node.data_dir());
        bytes[end / 2] ^= 0x10;
        std::fs::write(&path, bytes).expect("the segment can be written");
        node.respawn();
        let status = node.wait_end(START_LIMIT);
        let log = node.log();
        assert_eq!(status.code(), BAD_DATA_DIR, "{log}");
        let name = path
            .file_name()
            .expect("a file")
            .to_string_lossy()
            .into_owned();
        assert!(log.contains(&name), "the log does not name {name}:\n{log}");
    });
}

/// The last record written in half, as a power cut leaves it: repaired, and the node serves.
#[test]
fn torn_tail_is_repaired() {
    block_on(async {
        let mut node = Launch::new("torn").start();
        let mut client = Client::connect(node.mqtt(), Version::V5, connect(fresh("c"))).await;
        client
            .publish(publish("kept/early").qos1(1).retain().payload("early"))
            .await;
        client
            .publish(
                publish("kept/late")
                    .qos1(2)
                    .retain()
                    .payload("x".repeat(500)),
            )
            .await;
        node.kill9();
        let (path, mut bytes, end) = journal_segment(node.data_dir());
        bytes[end - 5..end].fill(0);
        std::fs::write(&path, bytes).expect("the segment can be written");
        node.restart();
        wait_node_ready(&node);
        let mut reader = Client::connect(node.mqtt(), Version::V5, connect(fresh("c"))).await;
        reader.subscribe("kept/early", 1).await;
        reader.take("early").await;
    });
}

/// A node with the data of another cluster comes to the address of a member: it is not let in.
#[test]
fn peer_of_another_cluster_is_refused() {
    block_on(async {
        let mut cluster = Cluster::start();
        let mut stranger = Launch::new("n3").start();
        assert_eq!(stranger.sigterm(), Some(0));
        let foreign = stranger.data_dir().to_owned();
        cluster.nodes[2].kill9();
        let join: Vec<_> = cluster
            .nodes
            .iter()
            .map(|node| node.cluster().to_string())
            .collect();
        let mut intruder = Launch::new("n3")
            .data_dir(&foreign)
            .bind("cluster", cluster.nodes[2].cluster());
        intruder = intruder.bind("admin", flotte_tests::ports::free_address());
        for address in join {
            intruder = intruder.arg("--join").arg(address);
        }
        let intruder = intruder.spawn();
        let said = |node: &Broker| {
            ["another cluster", "other cluster", "foreign"]
                .iter()
                .any(|word| node.logged(word))
        };
        until_blocking(START_LIMIT, "a word about another cluster in a log", || {
            let nodes = [&intruder, &cluster.nodes[0], &cluster.nodes[1]];
            nodes.into_iter().any(said).then_some(())
        });
        // The killed member is Down in time, and nobody came Up in its place.
        cluster.wait_state(0, 2, "down");
        let status = admin::json(cluster.nodes[0].admin(), "/api/v1/status").expect("a status");
        let nodes = status["nodes"].as_array().expect("nodes");
        assert_eq!(nodes.len(), 3, "the stranger is a member: {status:#}");
        let topic = fresh("safe");
        let mut subscriber = cluster.client(1, Version::V5).await;
        subscriber.patience = Duration::from_secs(15);
        subscriber.subscribe(&topic, 1).await;
        let mut publisher = cluster.client(0, Version::V5).await;
        publisher
            .publish(publish(&topic).qos1(1).payload("x"))
            .await;
        subscriber.take("x").await;
    });
}

/// The disk of a node was replaced: under its old name it joins as a node with a new id.
#[test]
fn empty_directory_under_a_known_name_is_a_new_node() {
    let mut cluster = Cluster::start();
    let old_id = statuses(&cluster)[2]["node"]["id"].clone();
    cluster.nodes[2].kill9();
    cluster.wait_state(0, 2, "down");
    let dir = cluster.nodes[2].data_dir().to_owned();
    std::fs::remove_dir_all(&dir).expect("the data can be removed");
    std::fs::create_dir_all(&dir).expect("the directory can be made");
    cluster.nodes[2].respawn();
    cluster.nodes[2].wait_ready();
    wait_node_ready(&cluster.nodes[2]);
    let new = admin::json(cluster.nodes[2].admin(), "/api/v1/status").expect("a status");
    assert_ne!(
        new["node"]["id"], old_id,
        "an id whose disk was wiped is never used again"
    );
    assert_eq!(new["cluster_id"], statuses(&cluster)[0]["cluster_id"]);
}
