//! Clients that an operator has spread evenly over the nodes.

use std::time::Duration;

use flotte_tests::run::until;
use flotte_tests::wire::prop;
use flotte_tests::{Client, Cluster, Version, admin, block_on, connect, fresh, props, will};
use tokio::task::JoinSet;

use crate::common::{ctl, durable};

const CLIENTS: usize = 30;
const NODES: usize = 3;
/// Until a client that was sent away is where it was sent to.
const GRACE: Duration = Duration::from_secs(5);

/// Goes where it is told to, for ever.
async fn obey(mut client: Client, wills: String) {
    loop {
        let goodbye = match client.next_or_end().await {
            Ok(goodbye) => goodbye.expect("a word before the end"),
            // Not yet.
            Err(_) => continue,
        };
        assert_eq!(
            (goodbye.kind(), goodbye.reason()),
            (14, 0x9c),
            "{goodbye:?}"
        );
        let there = goodbye
            .bytes_prop(prop::SERVER_REFERENCE)
            .expect("where to");
        let there = String::from_utf8(there).expect("text");
        let packet = connect(fresh("c")).will(will(&wills, "never").qos(1));
        client = Client::connect(there.parse().expect("an address"), Version::V5, packet).await;
    }
}

fn counts(cluster: &Cluster) -> Vec<u64> {
    let state = admin::json(cluster.nodes[1].admin(), "/api/v1/rebalance").expect("200");
    let nodes = state["nodes"].as_array().expect("a list");
    let clients = nodes.iter().map(|node| node["clients"].as_u64());
    clients
        .map(|clients| clients.expect("it answers"))
        .collect()
}

/// All are at one node; no will comes, and a session that outlives its connection stays.
#[test]
fn clients_are_spread_evenly_when_an_operator_says_so() {
    block_on(async {
        let cluster = Cluster::start();
        let wills = fresh("will");
        let mut watcher = cluster.client(1, Version::V5).await;
        watcher.subscribe(&wills, 1).await;
        let id = fresh("stays");
        let stays = durable(Version::V5, &id);
        let mut stays = Client::connect(cluster.mqtt(0), Version::V5, stays).await;
        let mut moving = JoinSet::new();
        for _ in 2..CLIENTS {
            let packet = connect(fresh("c")).will(will(&wills, "never").qos(1));
            let packet = packet.props(props().u32(prop::SESSION_EXPIRY, 0));
            let client = Client::connect(cluster.mqtt(0), Version::V5, packet).await;
            moving.spawn(obey(client, wills.clone()));
        }
        let mut before = counts(&cluster);
        before.sort_unstable();
        assert_eq!(before, [0, 1, CLIENTS as u64 - 1]);
        let asked = cluster.nodes[1].admin();
        let (text, code) = tokio::task::spawn_blocking(move || ctl(asked, &["rebalance"]))
            .await
            .expect("it runs");
        assert_eq!(code, Some(0), "{text}");
        // The last one may be on its way.
        let after = until(GRACE, "all are somewhere", async || {
            let after = counts(&cluster);
            (after.iter().sum::<u64>() == CLIENTS as u64).then_some(after)
        });
        let after = after.await;
        let (max, min) = (after.iter().max(), after.iter().min());
        assert!(
            max.zip(min).is_some_and(|(max, min)| max - min <= 1),
            "{after:?}"
        );
        assert_eq!(text.lines().count(), NODES, "{text}");
        assert!(moving.try_join_next().is_none(), "a client failed");
        stays.fence().await;
        watcher.expect_silence(Duration::from_millis(100)).await;
    });
}

/// A second round would only send more of them away.
#[test]
fn clients_that_do_not_come_back_are_not_followed_by_others() {
    block_on(async {
        let cluster = Cluster::start();
        let mut clients = Vec::new();
        for _ in 0..9 {
            clients.push(cluster.client(0, Version::V311).await);
        }
        let asked = cluster.nodes[2].admin();
        let (text, code) = tokio::task::spawn_blocking(move || ctl(asked, &["rebalance"]))
            .await
            .expect("it runs");
        assert_eq!(code, Some(1), "{text}");
        assert_eq!(counts(&cluster).iter().sum::<u64>(), 3, "{text}");
    });
}
