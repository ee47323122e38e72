//! Wall clocks that are wrong when nodes start: the cluster's time goes on by the clocks that have run since before, and by the median of
//! all where none has.

use std::time::Duration;

use flotte_tests::broker::START_LIMIT;
use flotte_tests::cluster::{launches, wait_node_ready};
use flotte_tests::wire::prop;
use flotte_tests::{
    Broker, Client, Cluster, Publish, Received, Version, admin, block_on, connect, fresh, props,
    publish, run::until_blocking, until, will,
};
use serde_json::json;

use crate::upset::{Upset, Upsets};

const HOURS: i64 = 2 * 3_600;

/// Three nodes that are told the time.
fn start(upsets: &Upsets) -> Cluster {
    let launches = launches(3).into_iter().zip(1..);
    let nodes = launches.map(|(launch, number)| upsets.load(number, launch).spawn());
    let mut cluster = Cluster {
        nodes: nodes.collect(),
    };
    cluster.wait_ready();
    cluster
}

fn lasting(topic: &str, seconds: u32) -> Publish {
    let expiry = props().u32(prop::MESSAGE_EXPIRY, seconds);
    publish(topic)
        .qos1(1)
        .retain()
        .payload("kept")
        .props(expiry)
}

fn leads_all_groups(node: &Broker) -> bool {
    let status = admin::json(node.admin(), "/api/v1/status");
    let groups = status.and_then(|status| status["groups"].as_array().cloned());
    groups.is_some_and(|groups| {
        groups.len() > 1 && groups.iter().all(|group| group["role"] == "leader")
    })
}

/// Seconds that a retained message has left, as a new subscriber is told; none where it is gone.
async fn left(node: &Broker, topic: &str) -> Option<u32> {
    let (marker, address) = (fresh("marker"), node.mqtt());
    let mut publisher = Client::connect(address, Version::V5, connect(fresh("p"))).await;
    publisher.publish(lasting(&marker, 100_000)).await;
    let mut reader = Client::connect(address, Version::V5, connect(fresh("r"))).await;
    reader.subscribe(topic, 0).await;
    reader.subscribe(&marker, 0).await;
    let first = reader.recv_publish().await;
    if first.topic() == marker {
        return None;
    }
    first.int_prop(prop::MESSAGE_EXPIRY)
}

/// A node comes back with a clock that is two hours ahead and leads all groups before anything happened in them: neither the delay of a
/// will nor the life of a retained message is over for that.
#[test]
fn a_restarted_node_whose_clock_is_wrong_does_not_make_the_time_jump() {
    let upsets = Upsets::new();
    let mut cluster = start(&upsets);
    let (wills, kept) = (fresh("will"), fresh("kept"));
    block_on(async {
        let mut publisher = cluster.client(0, Version::V5).await;
        publisher.publish(lasting(&kept, 1_000)).await;
        publisher.leave().await;
        // Of all groups.
        for _ in 0..40 {
            let delay = props().u32(prop::WILL_DELAY, 1_000);
            let packet = connect(fresh("c")).props(props().u32(prop::SESSION_EXPIRY, 2_000));
            let packet = packet.will(will(&wills, "early").qos(1).props(delay));
            Client::connect(cluster.mqtt(0), Version::V5, packet)
                .await
                .cut();
        }
    });
    cluster.nodes[2].kill9();
    cluster.wait_state(0, 2, "down");
    upsets.set(3, Upset::clock(HOURS));
    cluster.nodes[2].restart();
    wait_node_ready(&cluster.nodes[2]);
    for node in &cluster.nodes[..2] {
        let asked = admin::post(node.admin(), "/api/v1/drain", &json!({}));
        assert_eq!(asked.expect("an answer").0, 202);
    }
    let back = &cluster.nodes[2];
    until_blocking(START_LIMIT, "it leads all groups", || {
        leads_all_groups(back).then_some(())
    });
    block_on(async {
        let mut watcher = Client::connect(back.mqtt(), Version::V5, connect(fresh("w"))).await;
        watcher.subscribe(&wills, 1).await;
        // Something happens in every group.
        for _ in 0..40 {
            Client::connect(back.mqtt(), Version::V5, connect(fresh("c")))
                .await
                .leave()
                .await;
        }
        watcher.expect_silence(Duration::from_secs(1)).await;
        let left = left(back, &kept).await.expect("it is kept");
        assert!((900..=1_000).contains(&left), "{left} s left");
    });
}

/// After all nodes were down the time goes on where the clocks of most are: what expired meanwhile is gone, and a clock that is ahead
/// does not make more of it.
#[test]
fn after_all_nodes_were_down_most_clocks_say_what_time_it_is() {
    let upsets = Upsets::new();
    let mut cluster = start(&upsets);
    let (brief, long) = (fresh("brief"), fresh("long"));
    block_on(async {
        let mut publisher = cluster.client(0, Version::V5).await;
        publisher.publish(lasting(&brief, 600)).await;
        publisher.publish(lasting(&long, 3_600)).await;
    });
    cluster.nodes.iter_mut().for_each(Broker::kill9);
    // They were down for a quarter of an hour, as two of them see it.
    for (node, clock) in [(1, 900), (2, HOURS), (3, 900)] {
        upsets.set(node, Upset::clock(clock));
    }
    cluster.nodes.iter_mut().for_each(Broker::respawn);
    cluster.wait_ready();
    block_on(async {
        for node in &cluster.nodes {
            let rest = left(node, &long).await.expect("it is kept");
            assert!((2_600..=2_700).contains(&rest), "{rest} s left");
            let gone = || async { left(node, &brief).await.is_none().then_some(()) };
            until(Duration::from_secs(10), "the end of the message", gone).await;
        }
    });
}

/// A message that is not retained lasts as long at a node whose clock is wrong, or is set while it waits there.
#[test]
fn a_message_lasts_as_long_whatever_the_clock_of_the_node_where_it_waits() {
    let upsets = Upsets::new();
    let cluster = start(&upsets);
    upsets.set(2, Upset::clock(HOURS));
    let topic = fresh("lasting");
    block_on(async {
        let packet = || connect("sleeper").resume();
        let session = || packet().props(props().u32(prop::SESSION_EXPIRY, 1_000));
        let mut sleeper = Client::connect(cluster.mqtt(1), Version::V5, session()).await;
        sleeper.subscribe(&topic, 1).await;
        let mut publisher = cluster.client(0, Version::V5).await;
        let lasting = |id| {
            let expiry = props().u32(prop::MESSAGE_EXPIRY, 600);
            publish(&topic).qos1(id).payload("waits").props(expiry)
        };
        publisher.publish(lasting(1)).await;
        let left = |message: Received| message.int_prop(prop::MESSAGE_EXPIRY).expect("its rest");
        let at_once = left(sleeper.take("waits").await);
        assert!((590..=600).contains(&at_once), "{at_once} s left");
        sleeper.cut();
        publisher.publish(lasting(2)).await;
        upsets.set(2, Upset::clock(3 * HOURS));
        let mut sleeper = Client::connect(cluster.mqtt(1), Version::V5, session()).await;
        let later = left(sleeper.take("waits").await);
        assert!((500..=600).contains(&later), "{later} s left");
    });
}
