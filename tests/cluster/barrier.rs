//! Subscribed means routed: a SUBACK waits for every node that is Up, and for no other.

use std::time::{Duration, Instant};

use flotte_tests::cluster::{NODE_DOWN_AFTER, wait_node_ready};
use flotte_tests::{Client, Cluster, Version, block_on, fresh, publish, subscribe};

/// An election of the meta group, at most.
pub const ELECTION_MAX: Duration = Duration::from_millis(600);
/// What a debug build on a busy machine may take beyond the times of the design.
pub const SLACK: Duration = Duration::from_secs(3);

/// Sends a SUBSCRIBE for a filter nobody has, and returns when its SUBACK came.
pub async fn suback_time(client: &mut Client, filter: &str) -> Instant {
    client.patience = Duration::from_secs(20);
    client.send(subscribe(9).to(filter, 1)).await;
    let answer = client.recv_kind(9).await;
    assert_eq!(answer.codes(), [1]);
    Instant::now()
}

/// The paused node runs again before it is Down: the SUBACK comes after that, and soon.
#[test]
fn suback_waits_for_a_paused_node_that_resumes() {
    block_on(async {
        let cluster = Cluster::start();
        let leader = cluster.leader();
        let (here, paused) = (leader, (leader + 1) % 3);
        let mut client = cluster.client(here, Version::V5).await;
        cluster.nodes[paused].pause();
        let waiting =
            tokio::spawn(async move { (suback_time(&mut client, &fresh("b")).await, client) });
        tokio::time::sleep(Duration::from_millis(800)).await;
        let resumed = Instant::now();
        cluster.nodes[paused].resume();
        let (came, mut client) = waiting.await.expect("the SUBACK came");
        assert!(
            came >= resumed,
            "SUBACK {:?} before the node ran again",
            resumed - came
        );
        let late = came - resumed;
        assert!(
            late < Duration::from_millis(500) + SLACK,
            "SUBACK {late:?} after the node ran again"
        );
        client.fence().await;
    });
}

/// The paused node stays away: the SUBACK comes once it is Down, within an election and 2 T.
async fn suback_waits_until_down(at_leader: bool) {
    let cluster = Cluster::start();
    let leader = cluster.leader();
    let paused = (leader + 1) % 3;
    let here = if at_leader { leader } else { (leader + 2) % 3 };
    let mut client = cluster.client(here, Version::V311).await;
    cluster.nodes[paused].pause();
    let start = Instant::now();
    let took = suback_time(&mut client, &fresh("b")).await - start;
    // The last renewal may have been answered up to T/8 before the pause.
    let earliest = NODE_DOWN_AFTER - NODE_DOWN_AFTER / 4;
    assert!(
        took >= earliest,
        "SUBACK after {took:?}, before the paused node was Down"
    );
    let latest = ELECTION_MAX + 2 * NODE_DOWN_AFTER + SLACK;
    assert!(
        took <= latest,
        "SUBACK after {took:?}, wanted within {latest:?}"
    );
    cluster.nodes[paused].resume();
}

#[test]
fn suback_at_the_leader_waits_until_the_paused_node_is_down() {
    block_on(suback_waits_until_down(true));
}

#[test]
fn suback_at_a_follower_waits_until_the_paused_node_is_down() {
    block_on(suback_waits_until_down(false));
}

/// A paused leader: an election comes first, then the same.
#[test]
fn suback_survives_a_paused_leader() {
    block_on(async {
        let cluster = Cluster::start();
        let paused = cluster.leader();
        let mut client = cluster.client((paused + 1) % 3, Version::V5).await;
        cluster.nodes[paused].pause();
        let start = Instant::now();
        let took = suback_time(&mut client, &fresh("b")).await - start;
        assert!(
            took <= 2 * ELECTION_MAX + 2 * NODE_DOWN_AFTER + SLACK,
            "SUBACK after {took:?}"
        );
        cluster.nodes[paused].resume();
    });
}

/// What SUBACK promised: a publish at any node right behind it arrives, a hundred times over.
#[test]
fn every_publish_behind_a_suback_arrives() {
    crate::common::on_shared(|cluster| async move {
        let mut publishers = Vec::new();
        for node in 0..3 {
            publishers.push(cluster.client(node, Version::V5).await);
        }
        let mut subscriber = cluster.client(0, Version::V5).await;
        for round in 1..=100u16 {
            let topic = fresh("p3");
            subscriber.subscribe(&topic, 1).await;
            let publisher = &mut publishers[usize::from(round) % 3];
            publisher
                .publish(publish(&topic).qos1(round).payload("x"))
                .await;
            subscriber.take("x").await;
        }
    });
}

/// Resuming late: a node that was Down does not hold back later SUBACKs.
#[test]
fn suback_is_prompt_once_the_paused_node_is_down() {
    block_on(async {
        let cluster = Cluster::start();
        let leader = cluster.leader();
        let (paused, here) = ((leader + 1) % 3, (leader + 2) % 3);
        let mut client = cluster.client(here, Version::V5).await;
        cluster.nodes[paused].pause();
        cluster.wait_state(here, paused, "down");
        let start = Instant::now();
        let took = suback_time(&mut client, &fresh("b")).await - start;
        assert!(
            took < Duration::from_secs(1),
            "SUBACK after {took:?} with the node Down"
        );
        cluster.nodes[paused].resume();
        wait_node_ready(&cluster.nodes[paused]);
    });
}
