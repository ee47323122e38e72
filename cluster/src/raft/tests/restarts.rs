//! Nodes that end and come back at random while entries are proposed.
//!
//! `FLOTTE_TEST_SEED` repeats a run that failed; `FLOTTE_TEST_ROUNDS` makes it longer.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::nodes::{Cluster, LIMIT, quick};
use crate::net::Haste;
use crate::raft::GroupConfig;

/// What is known of the entries so far.
struct History {
    random: StdRng,
    proposed: u64,
    /// These must never go.
    acknowledged: Vec<Bytes>,
}

impl History {
    fn entry(&mut self) -> String {
        self.proposed += 1;
        let padding = "y".repeat(self.random.random_range(0..300));
        format!("{} {padding}", self.proposed)
    }

    /// Proposals under way while a node goes.
    async fn propose_and_kill(&mut self, cluster: &mut Cluster, victim: u64) {
        let leader = cluster.leader().await;
        let mut waiting = Vec::new();
        for _ in 0..self.random.random_range(0..60) {
            let entry = Bytes::from(self.entry());
            if let Ok(pending) = leader.group.submit(entry.clone()).await {
                waiting.push((entry, pending));
            }
        }
        if self.random.random_bool(0.3) {
            // Whether it succeeds is not the point here.
            let _ = leader.group.transfer_leader(None).await;
        }
        cluster.kill(victim).await;
        for (entry, pending) in waiting {
            let outcome = tokio::time::timeout(Duration::from_secs(1), pending).await;
            if let Ok(Ok(_)) = outcome {
                self.acknowledged.push(entry);
            }
        }
    }

    async fn propose_some(&mut self, cluster: &Cluster) {
        for _ in 0..self.random.random_range(1..40) {
            let entry = self.entry();
            cluster.propose(&entry).await;
            self.acknowledged.push(entry.into());
        }
    }

    /// All nodes get to where the leader is, hold the same, and miss nothing.
    async fn check(&self, cluster: &Cluster) {
        let index = cluster.leader().await.group.read_index(Haste::Now).await;
        let index = index.unwrap_or_else(|error| panic!("{error}"));
        for node in cluster.nodes.values() {
            let applied = tokio::time::timeout(LIMIT, node.group.wait_applied(index)).await;
            assert!(matches!(applied, Ok(Ok(()))), "{:?}", cluster.statuses());
        }
        let states: Vec<Vec<Bytes>> = cluster
            .nodes
            .values()
            .map(|node| node.machine.entries())
            .collect();
        let shortest = states.iter().map(Vec::len).min().unwrap();
        for state in &states {
            assert!(state[..shortest] == states[0][..shortest], "states differ");
            let held: HashSet<&Bytes> = state.iter().collect();
            let lost = self.acknowledged.iter().find(|entry| !held.contains(entry));
            assert_eq!(lost, None, "acknowledged, and gone");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_entries_survive_the_restart_of_any_node() {
    let given = |name| {
        std::env::var(name)
            .ok()
            .and_then(|value| value.parse().ok())
    };
    let seed = given("FLOTTE_TEST_SEED").unwrap_or_else(|| rand::rng().random());
    eprintln!("FLOTTE_TEST_SEED={seed}");
    let mut history = History {
        random: StdRng::seed_from_u64(seed),
        proposed: 0,
        acknowledged: Vec::new(),
    };
    let config = GroupConfig {
        snapshot_entries: 60,
        snapshot_bytes: 20_000,
        log_tail_entries: 20,
        ..quick()
    };
    let mut cluster = Cluster::founded(config).await;
    for _ in 0..given("FLOTTE_TEST_ROUNDS").unwrap_or(6) {
        let victim = history.random.random_range(1..=3);
        history.propose_and_kill(&mut cluster, victim).await;
        history.propose_some(&cluster).await;
        if history.random.random_bool(0.2) {
            let others: Vec<u64> = cluster.nodes.keys().copied().collect();
            for id in &others {
                cluster.kill(*id).await;
            }
            for id in &others {
                cluster.run(*id).await;
            }
        }
        cluster.run(victim).await;
        history.propose_some(&cluster).await;
        history.check(&cluster).await;
    }
    cluster.stop().await;
}
