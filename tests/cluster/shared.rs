//! Shared subscriptions over three nodes: who gets what by each strategy, and what becomes of the messages of a member
//! that goes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::time::Duration;

use flotte_tests::wire::prop;
use flotte_tests::{
    Client, Cluster, Version, admin, block_on, connect, fresh, option, props, puback, publish,
    unsubscribe, until, will,
};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::common::{numbers, on, publish_numbers, reconnect, take};

pub(crate) const NODES: usize = 3;
/// How long what a node leaves behind may take: it is Down after T and an election at most.
pub(crate) const RECOVERY: Duration = Duration::from_secs(15);

pub(crate) fn cluster_with(strategy: &str) -> Cluster {
    patient_cluster("FLOTTE_SHARED__STRATEGY", strategy)
}

/// A cluster whose nodes are not taken for dead on a busy machine.
pub(crate) fn patient_cluster(key: &str, value: &str) -> Cluster {
    Cluster::start_with(|launch| {
        launch
            .env(key, value)
            .env("FLOTTE_CLUSTER__NODE_DOWN_AFTER_MS", 20_000)
    })
}

/// Runs a test on a cluster that those of this file share.
pub(crate) fn on_patient<F, Fut>(body: F)
where
    F: FnOnce(&'static Cluster) -> Fut,
    Fut: Future<Output = ()>,
{
    static PATIENT: OnceLock<Option<Cluster>> = OnceLock::new();
    on(&PATIENT, || cluster_with("round-robin"), body);
}

/// A 5.0 client of a node that takes so many messages at once.
pub(crate) async fn narrow(cluster: &Cluster, node: usize, receive_maximum: u16) -> Client {
    let packet = connect(fresh("n")).props(props().u16(prop::RECEIVE_MAXIMUM, receive_maximum));
    Client::connect(cluster.mqtt(node), Version::V5, packet).await
}

/// A member at each of these nodes.
pub(crate) async fn members(cluster: &Cluster, nodes: &[usize], filter: &str) -> Vec<Client> {
    let mut members = Vec::new();
    for node in nodes {
        let mut member = cluster.client(*node, Version::V5).await;
        member.subscribe(filter, 1).await;
        members.push(member);
    }
    members
}

/// Everything up to a fence, acknowledged. With PUBACK given, all of it is in the queue of its member.
pub(crate) async fn take_what_is_there(member: &mut Client) -> Vec<u64> {
    let messages = member.collect_to_fence().await;
    for message in &messages {
        member.acknowledge(message).await;
    }
    numbers(&messages)
}

/// How many each has got; demands that all together got each number once.
pub(crate) async fn spread(members: &mut [Client], count: u64) -> Vec<usize> {
    let (mut all, mut spread) = (Vec::new(), Vec::new());
    for member in members {
        let got = take_what_is_there(member).await;
        spread.push(got.len());
        all.extend(got);
    }
    all.sort_unstable();
    assert!(all.iter().copied().eq(0..count), "lost or doubled: {all:?}");
    spread
}

/// Unsubscribes. With UNSUBACK it is no member any longer, at its node.
pub(crate) async fn part(member: &mut Client, filter: &str) {
    member.send(unsubscribe(99).from(filter)).await;
    assert_eq!(member.recv_kind(11).await.codes(), [0]);
}

/// One member at one node and three at another: each gets a quarter, from wherever it is published.
#[test]
fn members_are_weighed_not_nodes() {
    on_patient(|cluster| async move {
        for from in 0..NODES {
            let topic = fresh("share");
            let filter = format!("$share/g/{topic}");
            let mut members = members(cluster, &[0, 1, 1, 1], &filter).await;
            let mut publisher = cluster.client(from, Version::V311).await;
            publish_numbers(&mut publisher, &topic, 0..400).await;
            let spread = spread(&mut members, 400).await;
            assert!(
                spread.iter().all(|got| got.abs_diff(100) <= 3),
                "{spread:?}"
            );
        }
    });
}

/// The choice is made for each message, whatever a publisher remembers: who comes later gets its part.
#[test]
fn a_member_that_comes_later_gets_its_part() {
    on_patient(|cluster| async move {
        let topic = fresh("share");
        let filter = format!("$share/g/{topic}");
        let mut all = members(cluster, &[1], &filter).await;
        let mut publisher = cluster.client(0, Version::V5).await;
        publish_numbers(&mut publisher, &topic, 0..10).await;
        assert_eq!(spread(&mut all, 10).await, [10]);
        all.extend(members(cluster, &[1, 2], &filter).await);
        publish_numbers(&mut publisher, &topic, 0..90).await;
        let spread = spread(&mut all, 90).await;
        assert!(spread.iter().all(|got| got.abs_diff(30) <= 2), "{spread:?}");
    });
}

#[test]
fn random_gives_each_member_about_the_same() {
    block_on(async {
        let cluster = cluster_with("random");
        let topic = fresh("share");
        let mut members = members(&cluster, &[0, 1, 1, 1], &format!("$share/g/{topic}")).await;
        let mut publisher = cluster.client(2, Version::V5).await;
        publish_numbers(&mut publisher, &topic, 0..400).await;
        let spread = spread(&mut members, 400).await;
        // Five standard deviations.
        assert!(
            spread.iter().all(|got| got.abs_diff(100) < 45),
            "{spread:?}"
        );
    });
}

/// Who does not acknowledge gets little more, though it would take it, at the publisher's node and at others.
#[test]
fn least_inflight_spares_who_is_slow() {
    block_on(async {
        let cluster = cluster_with("least-inflight");
        for (slow_node, fast_node) in [(1, 1), (1, 2), (0, 2), (2, 0)] {
            let topic = fresh("share");
            let filter = format!("$share/g/{topic}");
            let mut slow = members(&cluster, &[slow_node], &filter).await.remove(0);
            let mut fast = members(&cluster, &[fast_node], &filter).await.remove(0);
            let mut publisher = cluster.client(0, Version::V5).await;
            let mut got = Vec::new();
            for round in 0..20 {
                publish_numbers(&mut publisher, &topic, round * 5..(round + 1) * 5).await;
                got.extend(take_what_is_there(&mut fast).await);
                // Its PUBACKs are on their way to the publisher's node.
                tokio::time::sleep(Duration::from_millis(40)).await;
            }
            let held = numbers(&slow.collect_to_fence().await);
            let at = format!("slow at {slow_node}, fast at {fast_node}");
            assert!(held.len() <= 10, "{at}: {} for the slow one", held.len());
            got.extend(held);
            got.sort_unstable();
            assert!(got.iter().copied().eq(0..100), "{at}: {got:?}");
        }
    });
}

#[test]
fn local_first_leaves_the_node_only_when_it_must() {
    block_on(async {
        let cluster = cluster_with("local-first");
        let topic = fresh("share");
        let filter = format!("$share/g/{topic}");
        let mut members = members(&cluster, &[0, 0, 1, 2], &filter).await;
        let mut publisher = cluster.client(0, Version::V5).await;
        publish_numbers(&mut publisher, &topic, 0..40).await;
        assert_eq!(spread(&mut members, 40).await, [20, 20, 0, 0]);
        for mut local in members.drain(..2) {
            part(&mut local, &filter).await;
        }
        publish_numbers(&mut publisher, &topic, 0..40).await;
        let spread = spread(&mut members, 40).await;
        assert!(spread.iter().all(|got| got.abs_diff(20) <= 1), "{spread:?}");
    });
}

/// What one publisher sends goes to one member, whichever node it is connected to; many use all members.
#[test]
fn hash_client_gives_a_publisher_one_member() {
    block_on(async {
        let cluster = cluster_with("hash-client");
        let topic = fresh("share");
        let mut members = members(&cluster, &[0, 1, 1, 2], &format!("$share/g/{topic}")).await;
        let mut used = BTreeSet::new();
        for _ in 0..24 {
            let id = fresh("p");
            for node in 0..NODES {
                let address = cluster.mqtt(node);
                let mut publisher = Client::connect(address, Version::V5, connect(&id)).await;
                let number = node as u64;
                publish_numbers(&mut publisher, &topic, number..number + 1).await;
                publisher.leave().await;
            }
            let spread = spread(&mut members, NODES as u64).await;
            let chosen = spread.iter().position(|got| *got == NODES);
            used.insert(chosen.unwrap_or_else(|| panic!("{id} has several: {spread:?}")));
        }
        assert_eq!(used.len(), members.len(), "{used:?}");
    });
}

/// What is published to one topic goes to one member, from whichever node; many topics use all members.
#[test]
fn hash_topic_gives_a_topic_one_member() {
    block_on(async {
        let cluster = cluster_with("hash-topic");
        let root = fresh("share");
        let mut members = members(&cluster, &[0, 1, 1, 2], &format!("$share/g/{root}/+")).await;
        let mut publishers = Vec::new();
        for node in 0..NODES {
            publishers.push(cluster.client(node, Version::V311).await);
        }
        let mut used = BTreeSet::new();
        for topic in 0..24 {
            let topic = format!("{root}/{topic}");
            for (publisher, number) in publishers.iter_mut().zip(0u64..) {
                publish_numbers(publisher, &topic, number..number + 1).await;
            }
            let spread = spread(&mut members, NODES as u64).await;
            let chosen = spread.iter().position(|got| *got == NODES);
            used.insert(chosen.unwrap_or_else(|| panic!("{topic} has several: {spread:?}")));
        }
        assert_eq!(used.len(), members.len(), "{used:?}");
    });
}

#[test]
fn sticky_stays_with_a_member_until_that_one_goes() {
    block_on(async {
        let cluster = cluster_with("sticky");
        let topic = fresh("share");
        let filter = format!("$share/g/{topic}");
        let mut nodes = vec![0, 1, 1, 2];
        let mut members = members(&cluster, &nodes, &filter).await;
        let mut publisher = cluster.client(0, Version::V5).await;
        while members.len() > 1 {
            let mut chosen = BTreeSet::new();
            for _ in 0..3 {
                publish_numbers(&mut publisher, &topic, 0..20).await;
                let spread = spread(&mut members, 20).await;
                let one = spread.iter().position(|got| *got == 20);
                chosen.insert(one.unwrap_or_else(|| panic!("not one member: {spread:?}")));
            }
            assert_eq!(chosen.len(), 1, "{chosen:?}");
            let place = chosen.pop_first().expect("there is one");
            part(&mut members.remove(place), &filter).await;
            nodes.remove(place);
            let left = nodes.iter().collect::<BTreeSet<_>>().len() as f64;
            let series = "flotte_routes{kind=\"share\"}";
            until(
                RECOVERY,
                "the route of a node without members goes",
                || async {
                    (admin::metric(cluster.nodes[0].admin(), series)? == left).then_some(())
                },
            )
            .await;
        }
    });
}

/// A client in two groups and with a subscription of its own gets a copy for each, with the identifier of each.
#[test]
fn groups_and_plain_subscriptions_of_a_client_each_get_a_copy() {
    on_patient(|cluster| async move {
        let topic = fresh("share");
        let filters = [
            format!("$share/a/{topic}"),
            format!("$share/b/{topic}"),
            topic.clone(),
        ];
        let mut member = cluster.client(1, Version::V5).await;
        for (id, filter) in (1..).zip(&filters) {
            let ids = props().varint(prop::SUBSCRIPTION_ID, id);
            let packet_id = member.fresh_id();
            let packet =
                flotte_tests::subscribe(packet_id).to(filter, 1 | option::RETAIN_AS_PUBLISHED);
            member.send(packet.props(ids)).await;
            assert_eq!(member.recv_kind(9).await.codes(), [1]);
        }
        let mut publisher = cluster.client(0, Version::V5).await;
        publisher
            .publish(publish(&topic).qos1(1).payload("0"))
            .await;
        let copies = take(&mut member, 3).await;
        member.fence().await;
        let ids: BTreeSet<_> = copies
            .iter()
            .map(|copy| copy.int_prop(prop::SUBSCRIPTION_ID))
            .collect();
        assert_eq!(ids, BTreeSet::from([Some(1), Some(2), Some(3)]));
    });
}

/// kill -9 of a member's node: QoS 1 that was not acknowledged goes to another member; QoS 2 does not.
#[test]
fn what_a_dead_node_held_goes_on() {
    block_on(async {
        let mut cluster = Cluster::start();
        let victim = cluster.follower();
        let (from, stays) = ((victim + 1) % NODES, (victim + 2) % NODES);
        let (topic, exact) = (fresh("share"), fresh("exact"));
        let mut lost = narrow(&cluster, victim, 5).await;
        for (filter, qos) in [(&topic, 1), (&exact, 2)] {
            lost.subscribe(format!("$share/g/{filter}"), qos).await;
        }
        let mut publisher = reconnect(cluster.mqtt(from), Version::V5, connect(fresh("p"))).await;
        publish_numbers(&mut publisher, &topic, 0..20).await;
        assert_eq!(numbers(&take(&mut lost, 2).await), [0, 1]);
        lost.fence_past_messages().await;
        publisher
            .publish(publish(&exact).qos2(9_999).payload("2000"))
            .await;
        let mut staying = reconnect(cluster.mqtt(stays), Version::V5, connect(fresh("s"))).await;
        for (filter, qos) in [(&topic, 1), (&exact, 2)] {
            staying.subscribe(format!("$share/g/{filter}"), qos).await;
        }
        // The acknowledgements of the two have reached the publisher's node long ago when this one has.
        wait_for_settlement().await;
        cluster.nodes[victim].kill9();
        staying.patience = RECOVERY;
        let got = numbers(&take(&mut staying, 18).await);
        assert!(got.iter().copied().eq(2..20), "{got:?}");
        staying.expect_silence(Duration::from_millis(300)).await;
    });
}

/// Settlements between nodes are gathered for some milliseconds.
async fn wait_for_settlement() {
    tokio::time::sleep(Duration::from_millis(200)).await;
}

/// A node that leaves in good order hands on what its members held.
#[test]
fn what_a_leaving_node_held_goes_on() {
    block_on(async {
        let mut cluster = cluster_with("round-robin");
        let (leaver, stays) = (0, 2);
        let topic = fresh("share");
        let filter = format!("$share/g/{topic}");
        // From a publisher of its own: nobody else keeps these.
        let mut held = members(&cluster, &[leaver, leaver], &filter).await;
        let mut publisher = cluster.client(leaver, Version::V5).await;
        publish_numbers(&mut publisher, &topic, 0..40).await;
        let mut staying = cluster.client(stays, Version::V5).await;
        staying.subscribe(&filter, 1).await;
        assert_eq!(cluster.nodes[leaver].sigterm(), Some(0));
        staying.patience = RECOVERY;
        let got: BTreeSet<u64> = numbers(&take(&mut staying, 40).await).into_iter().collect();
        assert!(got.iter().copied().eq(0..40), "{got:?}");
        held.clear();
    });
}

/// Members come and go at all nodes, half of them without acknowledging: nothing is lost, and the law of copies holds.
#[test]
fn nothing_is_lost_while_members_come_and_go() {
    const ROUNDS: u64 = 40;
    const EACH: u64 = 10;
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    block_on(async {
        let cluster = cluster_with("round-robin");
        let mut chance = StdRng::seed_from_u64(seed);
        let topic = fresh("share");
        let filter = format!("$share/g/{topic}");
        let mut anchor = members(&cluster, &[2], &filter).await.remove(0);
        let mut publishers = Vec::new();
        for node in 0..NODES {
            publishers.push(cluster.client(node, Version::V5).await);
        }
        let (mut others, mut acknowledged) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            if others.len() < 4 {
                let mut member = narrow(&cluster, chance.random_range(0..NODES), 7).await;
                member.subscribe(&filter, 1).await;
                others.push(member);
            }
            let publisher = &mut publishers[chance.random_range(0..NODES)];
            publish_numbers(publisher, &topic, round * EACH..(round + 1) * EACH).await;
            if chance.random_bool(0.5) {
                let place = chance.random_range(0..others.len());
                let mut leaving = others.swap_remove(place);
                if chance.random_bool(0.5) {
                    acknowledged.extend(take_what_is_there(&mut leaving).await);
                    // Only what was read is surely acknowledged.
                    leaving.fence_past_messages().await;
                }
                leaving.cut();
            }
            acknowledged.extend(take_what_is_there(&mut anchor).await);
        }
        others.drain(..).for_each(Client::cut);
        let wanted: BTreeSet<u64> = (0..ROUNDS * EACH).collect();
        let mut got: BTreeSet<u64> = acknowledged.into_iter().collect();
        while got != wanted {
            let message = anchor.recv_publish().await;
            anchor.acknowledge(&message).await;
            got.extend(numbers(&[message]));
        }
        until(RECOVERY, "the law of copies", || async {
            law_holds(&cluster)
        })
        .await;
    });
}

/// accepted = delivered + queued + expired + dropped, over all nodes.
fn law_holds(cluster: &Cluster) -> Option<()> {
    let sum = |series: &str| -> f64 {
        let nodes = cluster.nodes.iter();
        nodes
            .filter_map(|node| admin::metric(node.admin(), series))
            .sum()
    };
    let counts: BTreeMap<&str, f64> = [
        "flotte_copies_accepted_total",
        "flotte_copies_delivered_total",
        "flotte_copies_queued",
        "flotte_copies_expired_total",
        "flotte_copies_dropped_total",
    ]
    .map(|series| (series, sum(series)))
    .into();
    let accepted = counts["flotte_copies_accepted_total"];
    let rest: f64 = counts.values().sum::<f64>() - accepted;
    (accepted > 0.0 && accepted == rest).then_some(())
}

/// A refusal of a member is the end of the message.
#[test]
fn what_a_member_refused_goes_to_nobody_else() {
    on_patient(|cluster| async move {
        let topic = fresh("share");
        let filter = format!("$share/g/{topic}");
        let mut refusing = cluster.client(1, Version::V5).await;
        refusing.subscribe(&filter, 1).await;
        let mut publisher = cluster.client(0, Version::V5).await;
        publish_numbers(&mut publisher, &topic, 0..3).await;
        for _ in 0..3 {
            let message = refusing.recv_publish().await;
            refusing
                .send(puback(message.packet_id()).reason(0x97))
                .await;
        }
        refusing.fence().await;
        let mut other = cluster.client(2, Version::V5).await;
        other.subscribe(&filter, 1).await;
        refusing.cut();
        other.expect_silence(Duration::from_millis(300)).await;
    });
}

/// A node that has an ordinary subscriber, members of two shares, or one that cannot take it at first is sent it more than once.
#[test]
fn a_will_reaches_each_share_beside_all_others_at_the_same_node() {
    on_patient(|cluster| async move {
        let topic = fresh("will");
        let mut watcher = cluster.client(1, Version::V5).await;
        watcher.subscribe(&topic, 1).await;
        let mut members = Vec::new();
        for group in ["a", "b"] {
            let mut member = cluster.client(1, Version::V5).await;
            member.subscribe(format!("$share/{group}/{topic}"), 1).await;
            members.push(member);
        }
        for round in 0..4 {
            let payload = format!("gone {round}");
            let packet = connect(fresh("dying")).will(will(&topic, &payload).qos(1));
            Client::connect(cluster.mqtt(round % NODES), Version::V5, packet)
                .await
                .cut();
            watcher.take(&payload).await;
            for member in &mut members {
                member.take(&payload).await;
            }
        }
    });
}
