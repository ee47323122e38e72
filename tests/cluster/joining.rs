//! A node that is alone joins another cluster: `flotte ctl join`. What it held is set aside, and it says so before.

use std::path::Path;

use flotte_tests::broker::START_LIMIT;
use flotte_tests::cluster::wait_node_ready;
use flotte_tests::ports::free_address;
use flotte_tests::run::until_blocking;
use flotte_tests::{Broker, Client, Launch, Version, admin, block_on, connect, fresh, publish};

use crate::common::{ctl, reconnect};

/// A cluster of one, on ports that stay the same over its restarts.
fn alone(name: &str) -> Launch {
    ["mqtt", "cluster", "admin"]
        .iter()
        .fold(Launch::new(name), |launch, listener| {
            launch.bind(listener, free_address())
        })
}

fn set_aside(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).expect("a directory");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    names
        .filter(|name| name.to_string_lossy().starts_with("left-"))
        .count()
}

async fn retain(node: &Broker, topic: &str) {
    let mut client = Client::connect(node.mqtt(), Version::V5, connect(fresh("c"))).await;
    client
        .publish(publish(topic).qos1(1).retain().payload(topic))
        .await;
    client.leave().await;
}

#[test]
fn a_node_that_is_alone_joins_a_cluster() {
    let (first, mut second) = (alone("first").start(), alone("second").start());
    let (there, nowhere) = (first.cluster().to_string(), free_address().to_string());
    block_on(async {
        retain(&first, "kept").await;
        retain(&second, "given up").await;
    });
    let pid = second.pid();
    for (arguments, words) in [
        (vec!["join", &nowhere], "does not answer"),
        (
            vec!["join", &second.cluster().to_string()],
            "this node itself",
        ),
        (vec!["join", "nonsense"], "not a host and a port"),
        (vec!["join", &there], "1 retained messages and 0 sessions"),
    ] {
        let (said, code) = ctl(second.admin(), &arguments);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(set_aside(second.data_dir()), 0);
    let (said, code) = ctl(second.admin(), &["join", &there, "--force"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("given up: 1 retained"), "{said}");
    second.wait_ready();
    wait_node_ready(&second);
    assert_eq!(
        second.pid(),
        pid,
        "whoever supervises it sees the same process"
    );
    assert_eq!(set_aside(second.data_dir()), 1);
    let (said, code) = ctl(second.admin(), &["join", &there]);
    assert_eq!(
        (said.contains("a member of that cluster already"), code),
        (true, Some(1)),
        "{said}"
    );
    let (said, _) = ctl(first.admin(), &["join", &nowhere]);
    assert!(said.contains("does not answer"), "{said}");
    // It has what the cluster has, and nothing else; and it still does after a restart by its old configuration.
    for _ in 0..2 {
        block_on(async {
            let mut client = reconnect(second.mqtt(), Version::V5, connect(fresh("c"))).await;
            client.subscribe("#", 1).await;
            client.take("kept").await;
            client.fence().await;
        });
        second.kill9();
        second.restart();
        wait_node_ready(&second);
    }
    let nodes = admin::json(first.admin(), "/api/v1/nodes").expect("200");
    assert_eq!(
        nodes["items"].as_array().map(Vec::len),
        Some(2),
        "{nodes:#}"
    );
}

/// The node died between writing down that it joins and doing it.
#[test]
fn a_join_that_was_cut_short_is_finished_by_the_next_start() {
    let (first, mut second) = (alone("first").start(), alone("second").start());
    second.kill9();
    let mark = format!("left-7\n{}\n", first.cluster());
    std::fs::write(second.data_dir().join("joining"), mark).expect("it is ours");
    second.restart();
    wait_node_ready(&second);
    until_blocking(START_LIMIT, "two members", || {
        let nodes = admin::json(first.admin(), "/api/v1/nodes")?;
        (nodes["items"].as_array()?.len() == 2).then_some(())
    });
    assert!(second.data_dir().join("left-7/state").exists());
}
