//! What a group promises, over a group of real nodes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::nodes::{Cluster, GROUP, LIMIT, Node, POISON, is_follower, propose_at, quick, until};
use crate::net::{Haste, NodeId};
use crate::raft::{
    Death, GroupConfig, InitializeError, ProposeError, ReadError, Role, SubmitError, TransferError,
};

/// Entries in one go, in order.
async fn fill(cluster: &Cluster, from: usize, count: usize) {
    let leader = cluster.leader().await;
    let mut waiting = Vec::new();
    for number in from..from + count {
        let entry = Bytes::from(format!("entry {number}"));
        waiting.push(leader.group.submit(entry).await.unwrap());
    }
    for (offset, pending) in waiting.into_iter().enumerate() {
        let reply = pending.await.unwrap();
        assert_eq!(reply, (from + offset + 1).to_string(), "in order");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_entries_reach_all_in_the_order_of_submission() {
    let cluster = Cluster::founded(quick()).await;
    fill(&cluster, 0, 1_000).await;
    cluster.agree(1_000).await;
    let entries = cluster.nodes[&2].machine.entries();
    for (number, entry) in entries.iter().enumerate() {
        assert_eq!(*entry, format!("entry {number}"));
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_leader_is_replaced_and_catches_up_from_its_disk() {
    let mut cluster = Cluster::founded(quick()).await;
    fill(&cluster, 0, 50).await;
    let old = cluster.leader().await.id.0;
    cluster.kill(old).await;
    let start = Instant::now();
    cluster.propose("after").await;
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
    cluster.agree(51).await;
    cluster.run(old).await;
    cluster.agree(51).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_come_back_with_what_was_committed() {
    let config = GroupConfig {
        snapshot_entries: 40,
        snapshot_bytes: 1 << 30,
        log_tail_entries: 10,
        ..quick()
    };
    let mut cluster = Cluster::founded(config).await;
    fill(&cluster, 0, 100).await;
    for id in 1..=3 {
        until(&cluster.nodes[&id], "snapshot", |s| s.snapshot > 0).await;
    }
    for id in 1..=3 {
        cluster.kill(id).await;
    }
    for id in 1..=3 {
        cluster.run(id).await;
        assert!(cluster.nodes[&id].group.is_initialized().await.unwrap());
    }
    cluster.propose("after").await;
    cluster.agree(101).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_node_gets_a_snapshot_and_the_rest_of_the_log() {
    let config = GroupConfig {
        snapshot_entries: 20,
        log_tail_entries: 5,
        ..quick()
    };
    let mut cluster = Cluster::founded(config).await;
    // Large enough for several pieces.
    let large = "x".repeat(200_000);
    for _ in 0..20 {
        cluster.propose(&large).await;
    }
    let leader = cluster.leader().await;
    until(leader, "snapshot", |s| s.snapshot > 0).await;
    leader.group.compact().await.unwrap();
    cluster.add(4).await;
    let leader = cluster.leader().await;
    let info = cluster.info(4);
    leader.group.add_learner(NodeId(4), info).await.unwrap();
    cluster.propose("after").await;
    cluster.agree(21).await;
    let status = cluster.nodes[&4].group.status();
    assert_eq!((status.role, status.snapshot >= 20), (Role::Learner, true));
    // The new node becomes a voter in place of another one.
    let leader = cluster.leader().await;
    let others: Vec<NodeId> = [1, 2, 3]
        .map(NodeId)
        .into_iter()
        .filter(|id| *id != leader.id)
        .collect();
    let voters = BTreeSet::from([leader.id, others[0], NodeId(4)]);
    leader.group.change_voters(voters.clone()).await.unwrap();
    let status = leader.group.status();
    assert_eq!(
        status.voters.iter().copied().collect::<BTreeSet<_>>(),
        voters
    );
    assert_eq!(*status.learners, [others[1]]);
    leader
        .group
        .remove_learners(BTreeSet::from([others[1]]))
        .await
        .unwrap();
    until(leader, "no learner", |s| s.learners.is_empty()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_index_covers_all_that_was_committed_before() {
    let cluster = Cluster::founded(quick()).await;
    for number in 1..=20 {
        cluster.propose("entry").await;
        let index = cluster
            .leader()
            .await
            .group
            .read_index(Haste::Now)
            .await
            .unwrap();
        for node in cluster.nodes.values() {
            node.group.wait_applied(index).await.unwrap();
            assert_eq!(node.machine.len(), number);
        }
    }
    let leader = cluster.leader().await.id;
    for node in cluster.nodes.values().filter(|node| node.id != leader) {
        assert_eq!(
            node.group.read_index(Haste::Now).await,
            Err(ReadError::NotLeader(Some(leader)))
        );
        assert!(matches!(
            node.group.submit(Bytes::new()).await,
            Err(SubmitError::NotLeader(Some(to))) if to == leader
        ));
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_to_whom_it_was_meant_for() {
    let cluster = Cluster::founded(quick()).await;
    fill(&cluster, 0, 10).await;
    let old = cluster.leader().await;
    let to = [1, 2, 3].map(NodeId).into_iter().find(|id| *id != old.id);
    until(&cluster.nodes[&to.unwrap().0], "follower", is_follower).await;
    let start = Instant::now();
    assert_eq!(old.group.transfer_leader(to).await.ok(), to);
    assert!(
        start.elapsed() < Duration::from_millis(300),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(
        old.group.transfer_leader(None).await,
        Err(TransferError::NotLeader)
    );
    cluster.propose("after").await;
    cluster.agree(11).await;
    // Whom nobody has named is found.
    let leader = cluster.leader().await;
    assert!(leader.group.transfer_leader(None).await.is_ok());
    assert_eq!(
        cluster
            .leader()
            .await
            .group
            .transfer_leader(Some(NodeId(9)))
            .await,
        Err(TransferError::NobodyThere)
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_commits_nothing_and_answers_no_read() {
    let mut cluster = Cluster::founded(quick()).await;
    fill(&cluster, 0, 10).await;
    let alone = cluster.leader().await.id.0;
    for id in [1, 2, 3].into_iter().filter(|id| *id != alone) {
        cluster.kill(id).await;
    }
    let node = &cluster.nodes[&alone];
    let mut refused = None;
    let start = Instant::now();
    while refused.is_none() {
        assert!(start.elapsed() < LIMIT);
        match node.group.submit(Bytes::from_static(b"lost")).await {
            Ok(pending) => match tokio::time::timeout(Duration::from_millis(200), pending).await {
                Err(_) => {}
                Ok(Err(error)) => refused = Some(error),
                Ok(Ok(_)) => panic!("committed without a quorum"),
            },
            Err(SubmitError::NotLeader(_)) => refused = Some(ProposeError::NotLeader(None)),
            Err(error) => panic!("{error}"),
        }
    }
    assert!(
        matches!(refused, Some(ProposeError::NotLeader(_))),
        "{refused:?}"
    );
    assert!(node.group.read_index(Haste::Now).await.is_err());
    assert_eq!(node.machine.len(), 10);
    // With one of the others back there is a quorum again.
    let other = [1, 2, 3].into_iter().find(|id| *id != alone).unwrap();
    cluster.run(other).await;
    cluster.propose("after").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_cluster_gets_nothing() {
    let cluster = Cluster::founded(quick()).await;
    cluster.propose("entry").await;
    let dir = tempfile::tempdir().unwrap();
    let stranger = Node::start_in(4, dir.path(), quick(), 0, 8).await;
    for node in cluster.nodes.values() {
        node.knows(stranger.id, stranger.address);
        stranger.knows(node.id, node.address);
    }
    let leader = cluster.leader().await;
    let info = crate::raft::NodeInfo::default();
    leader.group.add_learner(stranger.id, info).await.unwrap();
    cluster.propose("another").await;
    cluster.agree(2).await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(500) {
        assert_eq!(stranger.machine.len(), 0);
        assert!(!stranger.network.connected(leader.id));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stranger.kill().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_node_is_a_group_of_one() {
    let mut cluster = Cluster::start(1, quick()).await;
    assert!(!cluster.nodes[&1].group.is_initialized().await.unwrap());
    cluster.found(&[1]).await;
    fill(&cluster, 0, 100).await;
    assert_eq!(
        cluster.nodes[&1].group.initialize([].into()).await,
        Err(InitializeError::NotEmpty)
    );
    let before = cluster.leader().await.group.status().term;
    cluster.kill(1).await;
    cluster.run(1).await;
    // What a leader decided that nobody remembers must not be committed in a term in which the node leads again.
    assert!(cluster.leader().await.group.status().term > before);
    cluster.propose("after").await;
    cluster.agree(101).await;
    let node = &cluster.nodes[&1];
    node.group.compact().await.unwrap();
    until(node, "snapshot", |s| s.snapshot == s.applied).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_command_stops_the_node_and_says_so() {
    let cluster = Cluster::start(1, quick()).await;
    cluster.found(&[1]).await;
    let node = cluster.leader().await;
    let pending = node.group.submit(Bytes::from_static(POISON)).await.unwrap();
    assert_eq!(pending.await, Err(ProposeError::Fatal));
    let reason = tokio::time::timeout(LIMIT, node.fatal.raised())
        .await
        .unwrap();
    assert!(matches!(reason, Death::State(_)), "{reason:?}");
    assert!(
        reason.to_string().contains("an unknown command"),
        "{reason}"
    );
    until(node, "stopped", |s| s.role == Role::Stopped).await;
    assert!(node.group.wait_applied(1_000).await.is_err());
    assert!(matches!(
        node.group.submit(Bytes::new()).await,
        Err(SubmitError::Stopped)
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_over_the_limit_is_refused_and_one_at_it_passes() {
    let config = GroupConfig {
        entry_bytes_max: 500_000,
        ..quick()
    };
    let cluster = Cluster::founded(config).await;
    let leader = cluster.leader().await;
    let large = Bytes::from(vec![0; 500_001]);
    assert!(matches!(
        leader.group.submit(large.clone()).await,
        Err(SubmitError::TooLarge { max: 500_000, .. })
    ));
    let fits = leader.group.submit(large.slice(1..)).await.unwrap();
    assert!(fits.await.is_ok());
    cluster.agree(1).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_newest_snapshot_stays_on_disk() {
    let config = GroupConfig {
        snapshot_entries: 10,
        log_tail_entries: 5,
        ..quick()
    };
    let cluster = Cluster::founded(config).await;
    for number in 0..10 {
        fill(&cluster, number * 30, 30).await;
    }
    cluster.agree(300).await;
    for node in cluster.nodes.values() {
        node.group.compact().await.unwrap();
        let files = std::fs::read_dir(cluster.dir(node.id.0).join("snapshots")).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        // A next one may be under way.
        let names: Vec<_> = names.filter(|name| name.ends_with(".snap")).collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }
    let leader = cluster.leader().await;
    assert!(propose_at(leader, "after").await.is_ok());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_large_entries_that_a_snapshot_covers_no_more_stay_than_their_bytes_allow() {
    let config = GroupConfig {
        snapshot_bytes: 200_000,
        log_tail_bytes: 100_000,
        ..quick()
    };
    let cluster = Cluster::founded(config).await;
    let leader = cluster.leader().await;
    for number in 0..60 {
        let entry = Bytes::from(vec![number; 20_000]);
        leader.group.submit(entry).await.unwrap().await.unwrap();
    }
    cluster.agree(60).await;
    for node in cluster.nodes.values() {
        // There are snapshots at 0.2, 0.4 and 0.8 MB; by their number all entries might stay.
        let cut = async {
            while node.journal.index_before_last(GROUP, 700_000).is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, cut).await.unwrap();
    }
    assert!(propose_at(leader, "after").await.is_ok());
    cluster.agree(61).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_log_stops_the_node_and_says_so() {
    let cluster = Cluster::founded(quick()).await;
    let node = cluster.leader().await;
    node.break_journal();
    let pending = node
        .group
        .submit(Bytes::from_static(b"entry"))
        .await
        .unwrap();
    let reason = tokio::time::timeout(LIMIT, node.fatal.raised())
        .await
        .unwrap();
    assert!(matches!(reason, Death::Disk(_)), "{reason:?}");
    let group = node.group.id().to_string();
    assert!(reason.to_string().contains(&group), "{reason}");
    assert!(pending.await.is_err());
    until(node, "stopped", |s| s.role == Role::Stopped).await;
}
