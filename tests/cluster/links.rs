//! Publishes from node to node where the other one does not take them as fast as they come.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flotte_tests::packets::Packet as _;
use flotte_tests::{Cluster, Version, admin, fresh, publish};

/// Just not large: such messages share their lane with all others.
const PAYLOAD_BYTES: usize = 200 << 10;
/// Shorter than T, so that the node is not declared Down.
const PAUSE: Duration = Duration::from_millis(1_500);

/// Nobody acknowledges QoS 0 on the way, so that nothing but the sending itself makes room for who waits behind it.
#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_whose_qos_0_filled_a_link_goes_on_when_that_has_room_again() {
    let cluster = Cluster::start();
    let (flood, calm) = (fresh("flood"), fresh("calm"));
    let mut deaf = cluster.client(2, Version::V5).await;
    deaf.subscribe(&flood, 0).await;
    let mut reader = cluster.client(2, Version::V5).await;
    reader.subscribe(&calm, 1).await;
    let mut publisher = cluster.client(0, Version::V5).await;
    let dropped = || admin::metric(cluster.nodes[0].admin(), "flotte_link_dropped_total");
    for round in 1..=10_u16 {
        cluster.nodes[2].pause();
        let over = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&over);
        let message = publish(&flood).payload(vec![0; PAYLOAD_BYTES]);
        let flooding = tokio::spawn(async move {
            let message = message.encode(Version::V5);
            while !is_over.load(Ordering::Relaxed) {
                publisher.send_raw(&message).await;
            }
            publisher
        });
        tokio::time::sleep(PAUSE).await;
        cluster.nodes[2].resume();
        over.store(true, Ordering::Relaxed);
        publisher = flooding.await.expect("it is read again");
        publisher.fence().await;
        let last = publish(&calm).qos1(round).payload("after");
        publisher.publish(last).await;
        reader.take("after").await;
        if dropped().is_some_and(|dropped| dropped > 0.0) {
            return;
        }
    }
    panic!("the link was never full");
}
