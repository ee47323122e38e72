//! What is counted: the names of the product's metrics, and the counters that sit on hot paths.
//!
//! Labels are bounded enums, never client ids or topics.

use std::sync::OnceLock;

use flotte_mqtt::QoS;
use flotte_mqtt::session::{DropReason, Tally};
use metrics::{Counter, counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Seconds: from 10 us to 10 s.
const SECONDS: &[f64] = &[
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025,
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Counters that are found once and kept.
struct Hot {
    accepted: Counter,
    delivered: Counter,
    expired: Counter,
    dropped: [Counter; DropReason::ALL.len()],
    sent: [Counter; 3],
    received: [Counter; 3],
    unmatched: Counter,
    bytes_received: Counter,
    bytes_sent: Counter,
    link_dropped: Counter,
}

/// Set once [`install`] has run; before (in tests of parts) nothing is counted.
static HOT: OnceLock<Hot> = OnceLock::new();

/// Installs the recorder of this process. Returns what renders it.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)?
        .install_recorder()?;
    describe();
    let per_qos = |name: &'static str| ["0", "1", "2"].map(|qos| counter!(name, "qos" => qos));
    let dropped = DropReason::ALL
        .map(|reason| counter!("flotte_copies_dropped_total", "reason" => reason.label()));
    let _ = HOT.set(Hot {
        accepted: counter!("flotte_copies_accepted_total"),
        delivered: counter!("flotte_copies_delivered_total"),
        expired: counter!("flotte_copies_expired_total"),
        dropped,
        sent: per_qos("flotte_messages_sent_total"),
        received: per_qos("flotte_messages_received_total"),
        unmatched: counter!("flotte_messages_unmatched_total"),
        bytes_received: counter!("flotte_bytes_total", "direction" => "in"),
        bytes_sent: counter!("flotte_bytes_total", "direction" => "out"),
        link_dropped: counter!("flotte_link_dropped_total"),
    });
    let commit = option_env!("FLOTTE_COMMIT").unwrap_or("unknown");
    gauge!("flotte_build_info", "version" => env!("CARGO_PKG_VERSION"), "commit" => commit)
        .set(1.0);
    Ok(handle)
}

/// Counts what became of copies.
pub fn count(tally: &Tally) {
    let Some(hot) = HOT.get() else { return };
    let add = |counter: &Counter, value: u32| {
        if value > 0 {
            counter.increment(u64::from(value));
        }
    };
    add(&hot.accepted, tally.accepted);
    add(&hot.delivered, tally.delivered);
    add(&hot.expired, tally.expired);
    if tally.dropped_total() > 0 {
        for (counter, reason) in hot.dropped.iter().zip(DropReason::ALL) {
            add(counter, tally.dropped(reason));
        }
    }
    for (counter, published) in hot.sent.iter().zip(tally.published) {
        add(counter, published);
    }
}

/// Counts a publish of a client.
pub fn message_received(qos: QoS) {
    if let Some(hot) = HOT.get() {
        hot.received[usize::from(qos as u8)].increment(1);
    }
}

/// Counts a publish that matched nobody.
pub fn unmatched() {
    if let Some(hot) = HOT.get() {
        hot.unmatched.increment(1);
    }
}

/// Counts bytes that a socket took.
pub fn bytes_sent(bytes: usize) {
    if let Some(hot) = HOT.get() {
        hot.bytes_sent.increment(bytes as u64);
    }
}

/// Counts bytes that came from a socket.
pub fn bytes_received(bytes: usize) {
    if let Some(hot) = HOT.get() {
        hot.bytes_received.increment(bytes as u64);
    }
}

/// Counts a QoS 0 message that a full link dropped.
pub fn link_dropped() {
    if let Some(hot) = HOT.get() {
        hot.link_dropped.increment(1);
    }
}

fn describe() {
    describe_gauge!("flotte_connections", "Connections, by listener");
    describe_counter!("flotte_connects_total", "CONNECTs, by result");
    describe_counter!("flotte_disconnects_total", "Ended connections, by reason");
    describe_gauge!(
        "flotte_sessions",
        "Sessions held by this node, by kind and state"
    );
    describe_gauge!(
        "flotte_subscriptions",
        "Subscriptions of the sessions of this node"
    );
    describe_gauge!("flotte_routes", "Routes in the cluster, by kind");
    describe_gauge!(
        "flotte_retained_messages",
        "Retained messages in the cluster"
    );
    describe_gauge!(
        "flotte_retained_bytes",
        "Their topics, properties and payloads in bytes"
    );
    describe_counter!(
        "flotte_messages_received_total",
        "PUBLISHes from clients, by QoS"
    );
    describe_counter!(
        "flotte_messages_sent_total",
        "PUBLISHes to clients, repetitions included, by QoS"
    );
    describe_counter!("flotte_bytes_total", "Bytes from and to clients");
    describe_counter!(
        "flotte_copies_accepted_total",
        "Copies (message, matched session) taken in"
    );
    describe_counter!("flotte_copies_delivered_total", "Copies delivered");
    describe_counter!(
        "flotte_copies_expired_total",
        "Copies that expired before they were sent"
    );
    describe_counter!("flotte_copies_dropped_total", "Copies dropped, by reason");
    describe_gauge!("flotte_copies_queued", "Copies held, in flight included");
    describe_counter!(
        "flotte_messages_unmatched_total",
        "Messages that matched nobody"
    );
    describe_counter!(
        "flotte_link_dropped_total",
        "QoS 0 messages that a full link dropped"
    );
    describe_histogram!(
        "flotte_barrier_seconds",
        "Time until all nodes had applied a route"
    );
    describe_gauge!(
        "flotte_lease_seconds_left",
        "How long this node may still serve"
    );
    describe_gauge!("flotte_nodes", "Members, by state");
    describe_gauge!(
        "flotte_raft_role",
        "0 learner, 1 follower, 2 candidate, 3 leader, by group"
    );
    describe_gauge!("flotte_raft_term", "Term, by group");
    describe_gauge!("flotte_raft_commit_index", "Last committed index, by group");
    describe_gauge!("flotte_raft_applied_index", "Last applied index, by group");
    describe_gauge!(
        "flotte_link_queue_messages",
        "Messages that wait for a node"
    );
    describe_gauge!("flotte_build_info", "Version and commit of this binary");
}
