//! Three nodes in network namespaces whose links are cut: between two of them, around one, one way, for less or more than T.

use std::time::{Duration, Instant};

use flotte_tests::cluster::NODE_DOWN_AFTER;
use flotte_tests::netns::{self, Netns};
use flotte_tests::run::until_blocking;
use flotte_tests::{Client, Cluster, Version, admin, block_on, connect, fresh, publish, skip};

use crate::barrier::{ELECTION_MAX, SLACK, suback_time};

/// Runs a test with three nodes in namespaces and the number of the leader's.
fn with_three(test: impl AsyncFnOnce(&Netns, &Cluster, u8)) {
    with_three_of(NODE_DOWN_AFTER, test);
}

/// The same with another T.
fn with_three_of(node_down_after: Duration, test: impl AsyncFnOnce(&Netns, &Cluster, u8)) {
    if let Some(reason) = netns::missing() {
        skip!(reason);
    }
    block_on(async {
        let netns = Netns::new(3);
        let cluster = start_in_namespaces(&netns, node_down_after);
        let leader = leader_inside(&netns);
        test(&netns, &cluster, leader).await;
    });
}

fn start_in_namespaces(netns: &Netns, node_down_after: Duration) -> Cluster {
    let launch = |number| {
        let launch = netns.launch(number, 3).arg("--bootstrap-expect").arg("3");
        let millis = node_down_after.as_millis();
        launch.env("FLOTTE_CLUSTER__NODE_DOWN_AFTER_MS", millis)
    };
    let mut cluster = Cluster {
        nodes: (1..=3).map(|number| launch(number).spawn()).collect(),
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
        .inside(number, || admin::is_ready(netns::ADMIN_INSIDE))
        .then_some(())
}

/// The number of the leader's namespace.
fn leader_inside(netns: &Netns) -> u8 {
    until_blocking(Duration::from_secs(30), "a leader", || {
        let status = netns.inside(1, || admin::json(netns::ADMIN_INSIDE, "/api/v1/status"))?;
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
    with_three(async |netns, cluster, leader| {
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
    });
}

/// A node cut off from both others is Down for them, and returns once the cut is healed.
#[test]
fn isolated_node_returns_after_the_cut_is_healed() {
    with_three(async |netns, cluster, lonely| {
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
            || ready_inside(netns, lonely),
        );
        let address = cluster.mqtt(usize::from(lonely - 1));
        let mut back = crate::common::reconnect(address, Version::V5, connect(fresh("p"))).await;
        back.publish(publish(&topic).qos1(9).payload("5")).await;
        // Repeats of what was published through the failure may come before it.
        while crate::common::numbers(&crate::common::take(&mut subscriber, 1).await) != [5] {}
        assert!(wait_is_up(netns, one, lonely), "n{one} sees n{lonely} up");
    });
}

fn wait_is_up(netns: &Netns, observer: u8, node: u8) -> bool {
    let name = format!("n{node}");
    until_blocking(Duration::from_secs(30), "the node is up again", || {
        let status = netns.inside(observer, || {
            admin::json(netns::ADMIN_INSIDE, "/api/v1/status")
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
    with_three(async |netns, cluster, leader| {
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
                admin::json(netns::ADMIN_INSIDE, "/api/v1/status")
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
        let reasons = netns.inside(gone, || admin::get(netns::ADMIN_INSIDE, "/readyz"));
        assert!(reasons.is_some_and(|(code, _)| code == 503));
        let address = cluster.mqtt(usize::from(stays - 1));
        let mut publisher = crate::common::Stubborn::connect(address, Version::V5).await;
        publisher.publish(&topic, 1).await;
        let place = usize::from(stays == other);
        crate::common::take(&mut subscribers[place], 1).await;
        let waits = netns.inside(gone, || admin::get(netns::ADMIN_INSIDE, "/readyz"));
        let (code, why) = waits.expect("it answers");
        assert!(code == 503 && why.contains("did not reach"), "{code} {why}");
        netns.heal(one);
        assert!(wait_is_up(netns, leader, gone));
    });
}

/// What the leader says of a node: its id, whether it is up, and its start.
fn told_inside(netns: &Netns, leader: u8, number: u8) -> Option<(u64, bool, u64)> {
    let status = netns.inside(leader, || {
        admin::json(netns::ADMIN_INSIDE, "/api/v1/status")
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
    with_three(async |netns, _, leader| {
        let told = |number| {
            until_blocking(Duration::from_secs(5), "the status of a node", || {
                told_inside(netns, leader, number)
            })
        };
        // Of two the one with the higher id goes.
        let [mut caller, mut callee] = others(leader);
        if told(caller).0 > told(callee).0 {
            std::mem::swap(&mut caller, &mut callee);
        }
        let (_, _, before) = told(callee);
        netns.bar(callee, caller, netns::CLUSTER);
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
        assert!(wait_is_up(netns, leader, callee));
        assert!(told(caller).1, "the other one stayed");
    });
}

/// A node that the leader of meta does not reach takes clients over from it while its lease lasts, in groups that it leads:
/// the leader hears of it from neither. The group has to get another leader, though the node does not know that it is Down.
#[test]
fn a_client_that_went_to_a_node_cut_off_from_the_leader_is_served_there_no_more() {
    const CLIENTS: usize = 24;
    with_three(async |netns, cluster, leader| {
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
    });
}

/// A CONNECT that waits at a node that is cut off, and is committed when that is over, displaces nobody: its client has hung up and been to
/// another node meanwhile.
#[test]
fn a_connect_that_waited_out_a_cut_displaces_nobody() {
    const CLIENTS: u16 = 24;
    /// Shorter than a lease.
    const CUT_FOR: Duration = Duration::from_millis(1_200);
    with_three(async |netns, cluster, leader| {
        let [cut_off, whole] = others(leader);
        let address = |number: u8| cluster.mqtt(usize::from(number - 1));
        let connects = || {
            let series = "flotte_packets_total{direction=\"in\",type=\"connect\"}";
            let count = netns.inside(cut_off, || admin::metric(netns::ADMIN_INSIDE, series));
            count.unwrap_or_default()
        };
        let before = connects();
        netns.cut(leader, cut_off);
        netns.cut(whole, cut_off);
        let healed_at = tokio::time::Instant::now() + CUT_FOR;
        let mut first = Vec::new();
        for _ in 0..CLIENTS {
            let (id, mut client) = (
                fresh("late"),
                Client::dial(address(cut_off), Version::V5).await,
            );
            client.send(connect(&id)).await;
            first.push((id, client));
        }
        until_blocking(CUT_FOR, "the node has read the CONNECTs", || {
            (connects() >= before + f64::from(CLIENTS)).then_some(())
        });
        let moves = first.into_iter().map(|(id, client)| async move {
            client.cut();
            let elsewhere = Client::connect(address(whole), Version::V5, connect(&id));
            // Groups that the node led elect another leader first.
            tokio::time::timeout_at(healed_at, elsewhere).await.ok()
        });
        let moved: Vec<_> = futures::future::join_all(moves).await;
        let mut moved: Vec<_> = moved.into_iter().flatten().collect();
        assert!(
            !moved.is_empty(),
            "no client was let in elsewhere meanwhile"
        );
        tokio::time::sleep_until(healed_at).await;
        netns.heal(leader);
        netns.heal(whole);
        // Behind all that the node had to say when it was healed.
        let mut last =
            crate::common::reconnect(address(cut_off), Version::V5, connect(fresh("c"))).await;
        last.subscribe(fresh("s"), 1).await;
        for client in &mut moved {
            client.fence().await;
        }
    });
}

/// A node whose lease is over gives its clients nothing, though another one still sends it messages for them: they may be
/// served elsewhere.
#[test]
fn clients_of_a_node_without_a_lease_are_given_nothing() {
    /// So long that the lease ends well before the node is Down, after which nobody sends it anything.
    const LONG: Duration = Duration::from_secs(6);
    with_three_of(LONG, async |netns, cluster, leader| {
        let [lonely, other] = others(leader);
        let address = |number: u8| cluster.mqtt(usize::from(number - 1));
        let topic = fresh("late");
        let mut subscriber =
            Client::connect(address(lonely), Version::V5, connect(fresh("s"))).await;
        subscriber.subscribe(&topic, 0).await;
        subscriber.patience = 3 * LONG;
        let mut publisher = Client::connect(address(other), Version::V5, connect(fresh("p"))).await;
        netns.cut(leader, lonely);
        let cut = Instant::now();
        let publishes = async {
            loop {
                publisher.send(publish(&topic).payload("x")).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let deliveries = async {
            let mut last = Duration::ZERO;
            while let Ok(Some(packet)) = subscriber.next_or_end().await {
                if packet.is_publish() {
                    last = cut.elapsed();
                }
            }
            last
        };
        let last = tokio::select! {
            last = deliveries => last,
            () = publishes => unreachable!(),
        };
        // 3/4 of T from when the last renewal was sent, and renewals are sent each T/8.
        assert!(last > LONG / 2, "{last:?}: it was served under its lease");
        assert!(
            last < LONG * 7 / 8,
            "{last:?}: it was served without a lease"
        );
    });
}

/// Publishes that wait behind a retained one, which cannot be committed, go to nobody once their node has no lease.
#[test]
fn publishes_that_waited_out_a_lease_are_given_to_nobody() {
    with_three(async |netns, cluster, leader| {
        let [lonely, other] = others(leader);
        let address = cluster.mqtt(usize::from(lonely - 1));
        let (topic, kept) = (fresh("waits"), fresh("kept"));
        let mut subscribers = Vec::new();
        for _ in 0..4 {
            let mut subscriber = Client::connect(address, Version::V5, connect(fresh("s"))).await;
            subscriber.subscribe(&topic, 1).await;
            subscribers.push(subscriber);
        }
        let mut publisher = Client::connect(address, Version::V5, connect(fresh("p"))).await;
        netns.cut(leader, lonely);
        netns.cut(other, lonely);
        publisher
            .send(publish(&kept).qos1(1).payload("kept").retain())
            .await;
        publisher
            .send(publish(&topic).qos1(2).payload("waits"))
            .await;
        until_blocking(Duration::from_secs(30), "the node is down", || {
            told_inside(netns, other, lonely).and_then(|(_, is_up, _)| (!is_up).then_some(()))
        });
        netns.heal(leader);
        netns.heal(other);
        for subscriber in &mut subscribers {
            subscriber.patience = Duration::from_secs(20);
            subscriber.expect_refused(&[0x9c]).await;
        }
    });
}
