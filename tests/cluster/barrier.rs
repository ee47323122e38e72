//! Subscribed means routed: a SUBACK waits for every node that is Up, and for no other.

use std::time::{Duration, Instant};

use flotte_tests::cluster::{NODE_DOWN_AFTER, wait_node_ready};
use flotte_tests::netns::{self, Netns};
use flotte_tests::run::until_blocking;
use flotte_tests::{
    Client, Cluster, Launch, Version, admin, block_on, connect, fresh, publish, skip, subscribe,
};

/// An election of the meta group, at most.
const ELECTION_MAX: Duration = Duration::from_millis(600);
/// What a debug build on a busy machine may take beyond the times of the design.
const SLACK: Duration = Duration::from_secs(3);

/// Sends a SUBSCRIBE for a filter nobody has, and returns when its SUBACK came.
async fn suback_time(client: &mut Client, filter: &str) -> Instant {
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

/// Ports inside the namespaces, where each node has an address of its own.
const MQTT: u16 = 1883;
const CLUSTER: u16 = 7883;
const ADMIN: u16 = 8080;

/// Three nodes in namespaces. Admin ports are on each node's own loopback.
fn start_in_namespaces(netns: &Netns) -> Cluster {
    let launch = |number: u8| {
        let mut launch = Launch::new(&format!("n{number}"))
            .namespace(&netns.name(number))
            .bind("mqtt", netns.socket(number, MQTT))
            .bind("cluster", netns.socket(number, CLUSTER))
            .bind("admin", ([127, 0, 0, 1], ADMIN).into())
            .env("FLOTTE_CLUSTER__INSECURE", true)
            .arg("--allow-anonymous")
            .arg("--bootstrap-expect")
            .arg("3");
        for peer in 1..=3 {
            launch = launch
                .arg("--join")
                .arg(netns.socket(peer, CLUSTER).to_string());
        }
        launch.spawn()
    };
    let mut cluster = Cluster {
        nodes: (1..=3).map(launch).collect(),
    };
    cluster
        .nodes
        .iter_mut()
        .for_each(flotte_tests::Broker::wait_ready);
    for number in 1..=3 {
        let what = format!("/readyz in namespace {number}");
        until_blocking(Duration::from_secs(30), &what, || {
            ready_inside(netns, number)
        });
    }
    cluster
}

fn ready_inside(netns: &Netns, number: u8) -> Option<()> {
    netns
        .inside(number, || admin::is_ready(([127, 0, 0, 1], ADMIN).into()))
        .then_some(())
}

/// The number of the leader's namespace.
fn leader_inside(netns: &Netns) -> u8 {
    until_blocking(Duration::from_secs(30), "a leader", || {
        let status = netns.inside(1, || {
            admin::json(([127, 0, 0, 1], ADMIN).into(), "/api/v1/status")
        })?;
        let leader = flotte_tests::cluster::leader_name(&status)?;
        leader.strip_prefix('n')?.parse().ok()
    })
}

/// The numbers of the other two namespaces.
fn others(number: u8) -> [u8; 2] {
    match number {
        1 => [2, 3],
        2 => [1, 3],
        _ => [1, 2],
    }
}

/// Two followers cannot reach each other, though both reach the leader: SUBACK comes all the same.
#[test]
fn suback_comes_with_the_link_between_two_followers_cut() {
    if let Some(reason) = netns::missing() {
        skip!(reason);
    }
    block_on(async {
        let netns = Netns::new(3);
        let cluster = start_in_namespaces(&netns);
        let leader = leader_inside(&netns);
        let [one, other] = others(leader);
        let mut client = cluster.client(usize::from(one - 1), Version::V5).await;
        client.subscribe(fresh("before"), 1).await;
        netns.cut(one, other);
        let start = Instant::now();
        let took = suback_time(&mut client, &fresh("b")).await - start;
        let latest = ELECTION_MAX + 2 * NODE_DOWN_AFTER + SLACK;
        assert!(
            took <= latest,
            "SUBACK after {took:?}, wanted within {latest:?}"
        );
        netns.heal(one);
        drop(cluster);
    });
}

/// A node cut off from both others is Down for them, and returns once the cut is healed.
#[test]
fn isolated_node_returns_after_the_cut_is_healed() {
    if let Some(reason) = netns::missing() {
        skip!(reason);
    }
    block_on(async {
        let netns = Netns::new(3);
        let cluster = start_in_namespaces(&netns);
        let lonely = leader_inside(&netns);
        let [one, other] = others(lonely);
        let topic = fresh("cut");
        let mut subscriber = cluster.client(usize::from(one - 1), Version::V5).await;
        subscriber.subscribe(&topic, 1).await;
        netns.cut(one, lonely);
        netns.cut(other, lonely);
        let mut publisher =
            crate::common::Stubborn::connect(cluster.mqtt(usize::from(other - 1)), Version::V5)
                .await;
        for number in 0..5 {
            publisher.publish(&topic, number).await;
        }
        subscriber.patience = Duration::from_secs(20);
        crate::common::take_all_numbers(&mut subscriber, 4).await;
        netns.heal(one);
        netns.heal(other);
        until_blocking(
            Duration::from_secs(30),
            "the lonely node is ready again",
            || ready_inside(&netns, lonely),
        );
        let address = cluster.mqtt(usize::from(lonely - 1));
        let mut back = crate::common::reconnect(address, Version::V5, connect(fresh("p"))).await;
        back.publish(publish(&topic).qos1(9).payload("5")).await;
        // Repeats of what was published through the failure may come before it.
        while crate::common::numbers(&crate::common::take(&mut subscriber, 1).await) != [5] {}
        assert!(wait_is_up(&netns, one, lonely), "n{one} sees n{lonely} up");
        drop(cluster);
    });
}

fn wait_is_up(netns: &Netns, observer: u8, node: u8) -> bool {
    let name = format!("n{node}");
    until_blocking(Duration::from_secs(30), "the node is up again", || {
        let status = netns.inside(observer, || {
            admin::json(([127, 0, 0, 1], ADMIN).into(), "/api/v1/status")
        })?;
        let nodes = status["nodes"].as_array()?.clone();
        nodes
            .iter()
            .find(|entry| entry["name"] == *name && entry["state"] == "up")
            .map(|_| ())
    });
    true
}

/// Two followers cannot reach each other, though both reach the leader: one of them goes, so that nobody waits for ever, and
/// comes back when they do.
#[test]
fn one_of_two_nodes_that_are_cut_off_from_each_other_goes_and_returns() {
    if let Some(reason) = netns::missing() {
        skip!(reason);
    }
    block_on(async {
        let netns = Netns::new(3);
        let cluster = start_in_namespaces(&netns);
        let leader = leader_inside(&netns);
        let [one, other] = others(leader);
        let topic = fresh("cut");
        let mut subscribers = Vec::new();
        for number in [one, other] {
            let mut subscriber = cluster.client(usize::from(number - 1), Version::V5).await;
            subscriber.subscribe(&topic, 1).await;
            subscribers.push(subscriber);
        }
        netns.cut(one, other);
        let state = |number: u8| {
            let status = netns.inside(leader, || {
                admin::json(([127, 0, 0, 1], ADMIN).into(), "/api/v1/status")
            })?;
            let nodes = status["nodes"].as_array()?.clone();
            let name = format!("n{number}");
            let node = nodes.iter().find(|entry| entry["name"] == *name)?;
            node["state"].as_str().map(str::to_owned)
        };
        let gone = until_blocking(Duration::from_secs(30), "one of them is down", || {
            let mut both = [one, other].into_iter();
            both.find(|number| state(*number).as_deref() == Some("down"))
        });
        let stays = one + other - gone;
        let reasons = netns.inside(gone, || {
            admin::get(([127, 0, 0, 1], ADMIN).into(), "/readyz")
        });
        assert!(reasons.is_some_and(|(code, _)| code == 503));
        let address = cluster.mqtt(usize::from(stays - 1));
        let mut publisher = crate::common::Stubborn::connect(address, Version::V5).await;
        publisher.publish(&topic, 1).await;
        let place = usize::from(stays == other);
        crate::common::take(&mut subscribers[place], 1).await;
        let waits = netns.inside(gone, || {
            admin::get(([127, 0, 0, 1], ADMIN).into(), "/readyz")
        });
        let (code, why) = waits.expect("it answers");
        assert!(code == 503 && why.contains("did not reach"), "{code} {why}");
        netns.heal(one);
        assert!(wait_is_up(&netns, leader, gone));
        drop(cluster);
    });
}

/// What the leader says of a node: its id, whether it is up, and its start.
fn told_inside(netns: &Netns, leader: u8, number: u8) -> Option<(u64, bool, u64)> {
    let status = netns.inside(leader, || {
        admin::json(([127, 0, 0, 1], ADMIN).into(), "/api/v1/status")
    })?;
    let name = format!("n{number}");
    let mut nodes = status["nodes"].as_array()?.iter();
    let node = nodes.find(|entry| entry["name"] == *name)?;
    let (id, incarnation) = (node["id"].as_str()?, node["incarnation"].as_u64()?);
    let id = u64::from_str_radix(id, 16).ok()?;
    Some((id, node["state"] == "up", incarnation))
}

/// A node that another one cannot call, though its own calls to that one are answered, is taken down and comes up when both can:
/// if it came up at once, it would go again T later, and so on.
#[test]
fn a_node_that_another_one_cannot_call_stays_down_until_it_can() {
    if let Some(reason) = netns::missing() {
        skip!(reason);
    }
    let netns = Netns::new(3);
    let cluster = start_in_namespaces(&netns);
    let leader = leader_inside(&netns);
    let told = |number| {
        until_blocking(Duration::from_secs(5), "the status of a node", || {
            told_inside(&netns, leader, number)
        })
    };
    // Of two the one with the higher id goes.
    let [mut caller, mut callee] = others(leader);
    if told(caller).0 > told(callee).0 {
        std::mem::swap(&mut caller, &mut callee);
    }
    let (_, _, before) = told(callee);
    netns.bar(callee, caller, CLUSTER);
    until_blocking(Duration::from_secs(30), "the node is down", || {
        let (_, is_up, incarnation) = told(callee);
        (!is_up || incarnation > before).then_some(())
    });
    let gone = Instant::now();
    while gone.elapsed() < 3 * NODE_DOWN_AFTER {
        let (_, is_up, incarnation) = told(callee);
        assert!(!is_up, "start {incarnation} after {:?}", gone.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    netns.heal(callee);
    assert!(wait_is_up(&netns, leader, callee));
    assert!(told(caller).1, "the other one stayed");
    drop(cluster);
}

/// A node that the leader of meta does not reach takes clients over from it while its lease lasts, in groups that it leads:
/// the leader hears of it from neither. The group has to get another leader, though the node does not know that it is Down.
#[test]
fn a_client_that_went_to_a_node_cut_off_from_the_leader_is_served_there_no_more() {
    const CLIENTS: usize = 24;
    if let Some(reason) = netns::missing() {
        skip!(reason);
    }
    block_on(async {
        let netns = Netns::new(3);
        let cluster = start_in_namespaces(&netns);
        let leader = leader_inside(&netns);
        let [one, _] = others(leader);
        let address = |number: u8| cluster.mqtt(usize::from(number - 1));
        let mut older = Vec::new();
        for _ in 0..CLIENTS {
            let id = fresh("twin");
            let client = Client::connect(address(leader), Version::V5, connect(&id)).await;
            older.push((id, client));
        }
        netns.cut(leader, one);
        let moves = older.into_iter().map(|(id, older)| async move {
            let mut newer = Client::dial(address(one), Version::V5).await;
            newer.send(connect(&id)).await;
            newer.patience = NODE_DOWN_AFTER;
            let answer = newer.next_or_end().await;
            let is_there =
                matches!(answer, Ok(Some(answer)) if answer.kind() == 2 && answer.reason() == 0);
            is_there.then_some((older, newer))
        });
        let moved: Vec<_> = futures::future::join_all(moves).await;
        let moved: Vec<_> = moved.into_iter().flatten().collect();
        assert!(
            !moved.is_empty(),
            "no group was led by the node that was cut off"
        );
        // Its lease, until the group has another leader, and a busy machine.
        let limit = 3 * NODE_DOWN_AFTER;
        let closed = moved.into_iter().map(|(mut older, _newer)| async move {
            older.patience = limit;
            older.expect_refused(&[0x8e]).await;
        });
        futures::future::join_all(closed).await;
        drop(cluster);
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
