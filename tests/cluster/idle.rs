//! What a cluster costs that has nothing to do: the heartbeats of all groups go together.

use std::time::{Duration, Instant};

use flotte_tests::{Broker, Cluster, admin};

/// Long enough for renewals, and for what is done now and then.
const WATCHED: Duration = Duration::from_secs(10);
/// Until elections and first snapshots are over.
const SETTLED: Duration = Duration::from_secs(3);

/// What a node has done since it began.
#[derive(Clone, Copy)]
struct Spent {
    cpu: f64,
    frames: f64,
    messages: f64,
}

impl Spent {
    fn of(node: &Broker) -> Self {
        let metric = |name| admin::metric(node.admin(), name).unwrap_or_default();
        Self {
            cpu: metric("process_cpu_seconds_total"),
            frames: metric("flotte_control_frames_sent_total"),
            messages: metric("flotte_control_messages_sent_total"),
        }
    }

    fn all(cluster: &Cluster) -> Vec<Self> {
        cluster.nodes.iter().map(Self::of).collect()
    }
}

/// Three nodes with nine groups. Each group by itself would send a frame for each heartbeat to each follower and one for each
/// answer: as many as messages.
#[test]
fn heartbeats_of_all_groups_share_frames_and_an_idle_cluster_is_cheap() {
    let cluster = Cluster::start();
    cluster.leader();
    std::thread::sleep(SETTLED);
    let begin = Instant::now();
    let before = Spent::all(&cluster);
    std::thread::sleep(WATCHED);
    let after = Spent::all(&cluster);
    let seconds = begin.elapsed().as_secs_f64();
    let sum = |of: fn(&Spent) -> f64| {
        let ended: f64 = after.iter().map(of).sum();
        ended - before.iter().map(of).sum::<f64>()
    };
    let (frames, messages) = (sum(|s| s.frames), sum(|s| s.messages));
    let told = format!("{frames} frames with {messages} messages in {seconds:.1} s");
    assert!(messages > 100.0 * seconds, "heartbeats are counted: {told}");
    assert!(frames < 0.72 * messages, "they do not go together: {told}");
    for (before, after) in before.iter().zip(&after) {
        let share = (after.cpu - before.cpu) / seconds;
        // Of a debug build, which costs ten times as much, on a machine that does other things.
        assert!(share < 0.5, "an idle node takes {share:.2} of a core");
    }
}
