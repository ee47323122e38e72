//! The last moments of a client whose node drains: from when it is served no more, over the commit of that, to when it is told.

use std::time::{Duration, Instant};

use flotte_tests::broker::START_LIMIT;
use flotte_tests::cluster::launches;
use flotte_tests::run::until_blocking;
use flotte_tests::{
    Client, Cluster, Version, admin, block_on, connect, fresh, pingreq, puback, publish, will,
};
use serde_json::json;

use crate::upset::{Upset, Upsets};

/// A node that waits for one client, which has not acknowledged its message: all others may go on.
struct Waiting {
    cluster: Cluster,
    client: Client,
    packet_id: u16,
    /// At another node, for the will of the client.
    watcher: Client,
}

/// The first of these nodes drains, and leads nothing any more.
async fn waiting(cluster: Cluster) -> Waiting {
    let (topic, wills) = (fresh("topic"), fresh("will"));
    let mut watcher = cluster.client(1, Version::V311).await;
    watcher.subscribe(&wills, 1).await;
    let packet = connect(fresh("c")).will(will(&wills, "never").qos(1));
    let mut client = Client::connect(cluster.mqtt(0), Version::V5, packet).await;
    client.subscribe(&topic, 1).await;
    let mut publisher = cluster.client(0, Version::V5).await;
    publisher
        .publish(publish(&topic).qos1(1).payload("0"))
        .await;
    publisher.leave().await;
    let packet_id = client.recv_publish().await.packet_id();
    let node = &cluster.nodes[0];
    let asked = admin::post(node.admin(), "/api/v1/drain", &json!({}));
    assert_eq!(asked.expect("an answer").0, 202);
    until_blocking(START_LIMIT, "others lead", || {
        let status = admin::json(node.admin(), "/api/v1/status")?;
        let groups = status["groups"].as_array()?;
        let is_led = |group: &serde_json::Value| {
            let leader = group["leader"].as_str();
            leader.is_some_and(|leader| leader != node.name())
        };
        (status["state"] == "draining" && groups.iter().all(is_led)).then_some(())
    });
    Waiting {
        cluster,
        client,
        packet_id,
        watcher,
    }
}

fn with_time(seconds: u32) -> Cluster {
    Cluster::start_with(|launch| launch.env("FLOTTE_CLUSTER__DRAIN_TIMEOUT_S", seconds))
}

fn pause_the_others(cluster: &Cluster) {
    cluster.nodes[1..]
        .iter()
        .for_each(flotte_tests::Broker::pause);
}

fn resume_the_others(cluster: &Cluster) {
    cluster.nodes[1..]
        .iter()
        .for_each(flotte_tests::Broker::resume);
}

/// Once the cluster knows that a connection is over, another node may serve the client: so this one serves it no more, though the client
/// has not been told.
#[test]
fn a_client_is_not_served_while_the_end_of_its_connection_is_committed() {
    const SYNC: Duration = Duration::from_millis(700);
    let upsets = Upsets::new();
    let launches = launches(3).into_iter().zip(1..);
    let launches = launches.map(|(launch, number)| {
        let launch = launch.env("FLOTTE_CLUSTER__DRAIN_TIMEOUT_S", 30);
        upsets.load(number, launch).spawn()
    });
    let mut cluster = Cluster {
        nodes: launches.collect(),
    };
    cluster.wait_ready();
    block_on(async {
        let Waiting {
            cluster: _cluster,
            mut client,
            packet_id,
            mut watcher,
        } = waiting(cluster).await;
        client.send(pingreq()).await;
        client.recv_kind(13).await;
        // No commit is faster than this.
        (2..=3).for_each(|node| upsets.set(node, Upset::slow_disk(SYNC)));
        client.send(puback(packet_id)).await;
        let mut served = Instant::now();
        let goodbye = loop {
            // Its socket may be gone already, and the last words still there.
            let _ = client.try_send(pingreq()).await;
            let packet = tokio::time::timeout(Duration::from_millis(20), client.next()).await;
            match packet {
                Ok(packet) if packet.kind() == 13 => served = Instant::now(),
                Ok(packet) => break packet,
                Err(_) => {}
            }
        };
        (2..=3).for_each(|node| upsets.set(node, Upset::NONE));
        assert_eq!((goodbye.kind(), goodbye.reason()), (14, 0x9c));
        assert!(served.elapsed() > SYNC / 2, "{:?}", served.elapsed());
        watcher.expect_silence(Duration::from_millis(500)).await;
    });
}

/// It is not told while the cluster cannot know, as long as there is time: it would be let in nowhere, and its will would be published.
#[test]
fn a_client_is_told_when_the_cluster_knows_however_late_that_is() {
    block_on(async {
        let Waiting {
            cluster,
            mut client,
            packet_id,
            mut watcher,
        } = waiting(with_time(60)).await;
        pause_the_others(&cluster);
        client.send(puback(packet_id)).await;
        client.expect_silence(Duration::from_secs(4)).await;
        resume_the_others(&cluster);
        let goodbye = client.recv_kind(14).await;
        assert_eq!(goodbye.reason(), 0x9c, "{goodbye:?}");
        client.expect_closed().await;
        watcher.expect_silence(Duration::from_millis(500)).await;
    });
}

/// When the time is over it is told nevertheless, and the log says so.
#[test]
fn a_client_is_told_when_the_time_is_over() {
    const TIME: u32 = 6;
    block_on(async {
        let begin = Instant::now();
        let Waiting {
            cluster,
            mut client,
            packet_id,
            ..
        } = waiting(with_time(TIME)).await;
        pause_the_others(&cluster);
        client.send(puback(packet_id)).await;
        client.patience = Duration::from_secs(20);
        let goodbye = client.recv_kind(14).await;
        assert_eq!(goodbye.reason(), 0x9c, "{goodbye:?}");
        assert!(begin.elapsed() > Duration::from_secs(u64::from(TIME)));
        let words = "told to go before the cluster knew that they went";
        let node = &cluster.nodes[0];
        until_blocking(START_LIMIT, words, || node.logged(words).then_some(()));
        resume_the_others(&cluster);
    });
}
