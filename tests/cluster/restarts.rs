//! kill -9 of each role and what comes after: the rest goes on, the killed one returns, nothing is stale.

use std::time::Duration;

use flotte_tests::cluster::{NODE_DOWN_AFTER, wait_node_ready};
use flotte_tests::{Client, Cluster, Version, block_on, connect, fresh, publish, will};

use crate::common::{Stubborn, VERSIONS, durable, reconnect, take_all_numbers};

/// How long an acknowledgement may be late when a node is gone: it is Down after T and an election at
/// most, and debug builds on a busy machine need their time.
const RECOVERY_LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug)]
enum Role {
    Leader,
    Follower,
}

/// The killed node, and the two that stay.
fn pick(cluster: &Cluster, role: Role) -> (usize, usize, usize) {
    let leader = cluster.leader();
    let victim = match role {
        Role::Leader => leader,
        Role::Follower => (leader + 1) % 3,
    };
    (victim, (victim + 1) % 3, (victim + 2) % 3)
}

/// Publishing from one remaining node to the other goes on, also to a filter that the dead node shared.
async fn rest_goes_on(role: Role) {
    let mut cluster = Cluster::start();
    let (victim, from, to) = pick(&cluster, role);
    let topic = fresh("flow");
    let mut on_victim = cluster.client(victim, Version::V5).await;
    on_victim.subscribe(&topic, 1).await;
    let mut subscriber = reconnect(cluster.mqtt(to), Version::V5, connect(fresh("s"))).await;
    subscriber.subscribe(&topic, 1).await;
    subscriber.patience = Duration::from_secs(30);
    let mut publisher = Stubborn::connect(cluster.mqtt(from), Version::V311).await;
    for number in 0..20 {
        publisher.publish(&topic, number).await;
    }
    cluster.nodes[victim].kill9();
    for number in 20..60 {
        publisher.publish(&topic, number).await;
    }
    take_all_numbers(&mut subscriber, 59).await;
    assert!(
        publisher.slowest < RECOVERY_LIMIT,
        "{role:?}: {:?} until a PUBACK",
        publisher.slowest
    );
    cluster.wait_state(from, victim, "down");
    cluster.nodes[victim].restart();
    wait_node_ready(&cluster.nodes[victim]);
    returned_node_takes_part(&cluster, victim, from).await;
}

/// Subscribes at the returned node, publishes there, and finds no session from before.
async fn returned_node_takes_part(cluster: &Cluster, returned: usize, other: usize) {
    let topic = fresh("back");
    let mut here = reconnect(cluster.mqtt(returned), Version::V5, connect(fresh("s"))).await;
    here.subscribe(format!("{topic}/in"), 1).await;
    let mut there = reconnect(cluster.mqtt(other), Version::V5, connect(fresh("s"))).await;
    there.subscribe(format!("{topic}/out"), 1).await;
    there
        .publish(publish(format!("{topic}/in")).qos1(100).payload("in"))
        .await;
    here.take("in").await;
    here.publish(publish(format!("{topic}/out")).qos1(100).payload("out"))
        .await;
    there.take("out").await;
}

#[test]
fn killed_leader_is_survived_and_returns() {
    block_on(rest_goes_on(Role::Leader));
}

#[test]
fn killed_follower_is_survived_and_returns() {
    block_on(rest_goes_on(Role::Follower));
}

/// An election of the meta group fits into a serve lease: between two nodes that stay, messages of live sessions flow on
/// while the leader is dead and not even Down.
#[test]
fn messages_flow_on_through_an_election() {
    block_on(async {
        let mut cluster = Cluster::start();
        let (victim, from, to) = pick(&cluster, Role::Leader);
        let topic = fresh("election");
        let mut subscriber = reconnect(cluster.mqtt(to), Version::V5, connect(fresh("s"))).await;
        subscriber.subscribe(&topic, 1).await;
        let mut publisher = Stubborn::connect(cluster.mqtt(from), Version::V5).await;
        publisher.publish(&topic, 0).await;
        let killed = std::time::Instant::now();
        cluster.nodes[victim].kill9();
        let mut number = 0;
        while killed.elapsed() < NODE_DOWN_AFTER {
            number += 1;
            publisher.publish(&topic, number).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        eprintln!("slowest PUBACK {:?} of {number}", publisher.slowest);
        take_all_numbers(&mut subscriber, number).await;
        // Without the lease each would have waited until an election was won and the next renewal answered.
        assert!(
            publisher.slowest < NODE_DOWN_AFTER / 2,
            "{:?} until a PUBACK",
            publisher.slowest
        );
        // New clients and subscriptions need the new leader: it is there before the dead one is Down, or soon after.
        let asked = std::time::Instant::now();
        let mut late = reconnect(cluster.mqtt(to), Version::V5, connect(fresh("s"))).await;
        late.patience = RECOVERY_LIMIT;
        late.subscribe(fresh("late"), 1).await;
        eprintln!("CONNECT and SUBSCRIBE {:?} after T", asked.elapsed());
    });
}

/// Back before anyone called it Down: its old routes, owners and sessions are gone all the same.
async fn quick_restart_leaves_nothing_stale(role: Role) {
    let mut cluster = Cluster::start();
    let (victim, from, _) = pick(&cluster, role);
    let (id, topic) = (fresh("d"), fresh("stale"));
    let mut stays =
        Client::connect(cluster.mqtt(victim), Version::V5, durable(Version::V5, &id)).await;
    stays.subscribe(&topic, 1).await;
    let mut publisher = Stubborn::connect(cluster.mqtt(from), Version::V5).await;
    publisher.publish(&topic, 0).await;
    let before = std::time::Instant::now();
    cluster.nodes[victim].kill9();
    cluster.nodes[victim].respawn();
    for number in 1..10 {
        publisher.publish(&topic, number).await;
    }
    assert!(
        publisher.slowest < RECOVERY_LIMIT,
        "{role:?}: {:?} until a PUBACK",
        publisher.slowest
    );
    cluster.nodes[victim].wait_ready();
    wait_node_ready(&cluster.nodes[victim]);
    eprintln!(
        "{role:?}: ready again {:?} after the kill, T is {NODE_DOWN_AFTER:?}",
        before.elapsed()
    );
    let back = reconnect(cluster.mqtt(victim), Version::V5, durable(Version::V5, &id)).await;
    assert!(
        !back.session_present(),
        "its queue was lost with the process"
    );
    drop(back);
    returned_node_takes_part(&cluster, victim, from).await;
}

#[test]
fn quick_restart_of_the_leader_leaves_nothing_stale() {
    block_on(quick_restart_leaves_nothing_stale(Role::Leader));
}

#[test]
fn quick_restart_of_a_follower_leaves_nothing_stale() {
    block_on(quick_restart_leaves_nothing_stale(Role::Follower));
}

/// A session whose home died is not present anywhere, and its client can connect at another node.
#[test]
fn clients_of_a_dead_node_connect_elsewhere() {
    block_on(async {
        let mut cluster = Cluster::start();
        let (victim, other, _) = pick(&cluster, Role::Follower);
        let id = fresh("d");
        let home =
            Client::connect(cluster.mqtt(victim), Version::V5, durable(Version::V5, &id)).await;
        cluster.nodes[victim].kill9();
        drop(home);
        let elsewhere =
            reconnect(cluster.mqtt(other), Version::V5, durable(Version::V5, &id)).await;
        assert!(!elsewhere.session_present());
    });
}

/// The clients of a killed node leave wills: each reaches the subscribers of the others exactly once.
async fn wills_of_a_killed_node(role: Role) {
    const WILLS: u64 = 10;
    let mut cluster = Cluster::start();
    let (victim, one, other) = pick(&cluster, role);
    let topic = fresh("will");
    let mut watchers = Vec::new();
    for (node, version) in [(one, Version::V5), (other, Version::V311)] {
        let mut watcher = cluster.client(node, version).await;
        watcher.subscribe(format!("{topic}/+"), 1).await;
        watcher.patience = Duration::from_secs(20);
        watchers.push(watcher);
    }
    let mut dying = Vec::new();
    for number in 0..WILLS {
        let last = will(format!("{topic}/{number}"), number.to_string()).qos(1);
        let version = VERSIONS[usize::from(number % 2 == 0)];
        dying.push(
            Client::connect(
                cluster.mqtt(victim),
                version,
                connect(fresh("w")).will(last),
            )
            .await,
        );
    }
    cluster.nodes[victim].kill9();
    for watcher in &mut watchers {
        let mut got = crate::common::numbers(&crate::common::take(watcher, WILLS as usize).await);
        got.sort_unstable();
        assert!(got.iter().copied().eq(0..WILLS), "{got:?}");
    }
    // The killed node returns, and with it everyone who might publish a will again.
    cluster.nodes[victim].restart();
    wait_node_ready(&cluster.nodes[victim]);
    for watcher in &mut watchers {
        watcher.expect_silence(NODE_DOWN_AFTER).await;
    }
}

#[test]
fn wills_of_a_killed_follower_come_once() {
    block_on(wills_of_a_killed_node(Role::Follower));
}

#[test]
fn wills_of_a_killed_leader_come_once() {
    block_on(wills_of_a_killed_node(Role::Leader));
}

/// Every node in turn, again and again: the cluster is whole after each.
#[test]
fn nodes_are_killed_one_after_the_other() {
    block_on(async {
        let mut cluster = Cluster::start();
        let topic = fresh("rolling");
        for victim in 0..3 {
            let (from, to) = ((victim + 1) % 3, (victim + 2) % 3);
            let mut subscriber =
                reconnect(cluster.mqtt(to), Version::V5, connect(fresh("s"))).await;
            subscriber.patience = Duration::from_secs(30);
            subscriber.subscribe(format!("{topic}/{victim}"), 1).await;
            let mut publisher = Stubborn::connect(cluster.mqtt(from), Version::V5).await;
            cluster.nodes[victim].kill9();
            for number in 0..10 {
                publisher
                    .publish(&format!("{topic}/{victim}"), number)
                    .await;
            }
            take_all_numbers(&mut subscriber, 9).await;
            cluster.nodes[victim].restart();
            wait_node_ready(&cluster.nodes[victim]);
        }
        cluster.leader();
    });
}

/// Retained messages survive the restart of every node, one at a time and all at once.
#[test]
fn retained_messages_survive_restarts() {
    block_on(async {
        let mut cluster = Cluster::start();
        let topic = fresh("kept");
        let mut publisher = cluster.client(0, Version::V5).await;
        publisher
            .publish(publish(&topic).qos1(1).retain().payload("kept"))
            .await;
        drop(publisher);
        cluster
            .nodes
            .iter_mut()
            .for_each(flotte_tests::Broker::kill9);
        cluster
            .nodes
            .iter_mut()
            .for_each(flotte_tests::Broker::respawn);
        cluster.wait_ready();
        for node in 0..3 {
            let mut late = reconnect(cluster.mqtt(node), Version::V5, connect(fresh("s"))).await;
            late.subscribe(&topic, 1).await;
            late.take("kept").await;
        }
    });
}

/// SIGTERM: exit code 0, the clients are let go without wills, the others go on.
#[test]
fn sigterm_ends_a_node_cleanly() {
    block_on(async {
        let mut cluster = Cluster::start();
        let (victim, other, _) = pick(&cluster, Role::Leader);
        let topic = fresh("will");
        let mut watcher = cluster.client(other, Version::V5).await;
        watcher.subscribe(&topic, 1).await;
        let with_will = connect(fresh("w")).will(will(&topic, "never").qos(1));
        let mut client = Client::connect(cluster.mqtt(victim), Version::V5, with_will).await;
        assert_eq!(
            cluster.nodes[victim].sigterm(),
            Some(0),
            "{}",
            cluster.nodes[victim].log()
        );
        client.expect_refused(&[0x8b, 0x9c, 0x9d]).await;
        watcher
            .expect_silence(NODE_DOWN_AFTER + Duration::from_secs(1))
            .await;
        watcher.fence().await;
        cluster.nodes[victim].restart();
        wait_node_ready(&cluster.nodes[victim]);
        returned_node_takes_part(&cluster, victim, other).await;
    });
}

/// A node that stops says Down, and nothing after it: a start that followed would be Up, never serve, and every SUBACK in the
/// cluster would wait for it until it is declared Down.
#[test]
fn no_start_follows_the_down_of_a_node_that_stops() {
    let mut cluster = Cluster::start();
    let (victim, other, _) = pick(&cluster, Role::Follower);
    let name = cluster.nodes[victim].name().to_owned();
    for stop in 0..4 {
        let before = start_of(&cluster, other, &name);
        let code = cluster.nodes[victim].sigterm();
        assert_eq!(code, Some(0), "{}", cluster.nodes[victim].log());
        cluster.wait_state(other, victim, "down");
        // Whatever it proposed behind its Down is committed before what is proposed now.
        block_on(async {
            let mut late = reconnect(cluster.mqtt(other), Version::V5, connect(fresh("s"))).await;
            late.subscribe(fresh("late"), 1).await;
        });
        assert_eq!(start_of(&cluster, other, &name), before, "stop {stop}");
        cluster.nodes[victim].restart();
        wait_node_ready(&cluster.nodes[victim]);
        let back = start_of(&cluster, other, &name);
        assert_eq!(back, before + 1, "stop {stop}: one start for each process");
    }
}

/// The incarnation of a node as another one knows it.
fn start_of(cluster: &Cluster, observer: usize, name: &str) -> u64 {
    let status = flotte_tests::admin::json(cluster.nodes[observer].admin(), "/api/v1/status");
    let status = status.expect("a status");
    let nodes = status["nodes"].as_array().expect("nodes");
    let node = nodes.iter().find(|node| node["name"] == name);
    let incarnation = node.and_then(|node| node["incarnation"].as_u64());
    incarnation.expect("it is a member")
}
