//! What is counted: the names of the product's metrics, and the counters that sit on hot paths.
//!
//! Labels are bounded enums, never client ids or topics. What can be counted at all is shown from the start, with 0.

mod counts;
mod process;

pub use counts::Count;
pub use process::resident_bytes;

use std::sync::OnceLock;
use std::time::Duration;

use flotte_mqtt::QoS;
use flotte_mqtt::packet::PacketType;
use flotte_mqtt::session::{DropReason, Tally};
use metrics::{
    Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::time::MissedTickBehavior;

/// Seconds: from 10 us to 10 s.
const SECONDS: &[f64] = &[
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025,
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// Commands of a batch: from 1 to 16,384.
const COMMANDS: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1_024.0, 4_096.0, 16_384.0,
];
const QOS: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];
/// How often what histograms were given is put into their buckets; until then every value is held.
const UPKEEP: Duration = Duration::from_secs(5);
/// One publish in this many is timed by each worker.
pub const SAMPLE: u32 = 64;

/// Results of CONNECTs.
const CONNECT_RESULTS: &[&str] = &[
    "accepted",
    "refused",
    "malformed",
    "timeout",
    "taken_over",
    "too_many",
    "rate",
    "flapping",
    "memory",
];
/// Reasons of disconnects.
const DISCONNECT_REASONS: &[&str] = &[
    "client",
    "client_with_will",
    "lost",
    "keep_alive",
    "protocol",
    "taken_over",
    "sent_away",
    "moved",
    "reset",
];

/// Histograms that are found once and kept.
struct Hot {
    ack_seconds: [Histogram; 3],
    deliver_seconds: [Histogram; 3],
    loop_lag_seconds: Histogram,
}

/// Set once [`install`] has run; before (in tests of parts) nothing is measured.
static HOT: OnceLock<Hot> = OnceLock::new();

/// Installs the recorder of this process. Returns what renders it.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)?
        .set_buckets_for_metric(Matcher::Full("flotte_raft_batch_commands".into()), COMMANDS)?
        .install_recorder()?;
    describe();
    let per_qos = |name: &'static str| QOS.map(|qos| histogram!(name, "qos" => digit(qos)));
    let _ = HOT.set(Hot {
        ack_seconds: per_qos("flotte_publish_ack_seconds"),
        deliver_seconds: per_qos("flotte_publish_deliver_seconds"),
        loop_lag_seconds: histogram!("flotte_event_loop_lag_seconds"),
    });
    for result in CONNECT_RESULTS {
        counter!("flotte_connects_total", "result" => *result).absolute(0);
    }
    for reason in DISCONNECT_REASONS {
        counter!("flotte_disconnects_total", "reason" => *reason).absolute(0);
    }
    for action in ["publish", "subscribe", "will", "deliver"] {
        counter!("flotte_acl_denied_total", "action" => action).absolute(0);
    }
    counter!("flotte_retained_refused_total", "reason" => "quota").absolute(0);
    counter!("flotte_publishes_abandoned_total").absolute(0);
    let _ = histogram!("flotte_barrier_seconds");
    let commit = option_env!("FLOTTE_COMMIT").unwrap_or("unknown");
    gauge!("flotte_build_info", "version" => env!("CARGO_PKG_VERSION"), "commit" => commit)
        .set(1.0);
    Ok(handle)
}

/// Keeps what histograms hold small while nobody asks for them.
pub async fn keep_up(recorder: PrometheusHandle) {
    let mut tick = tokio::time::interval(UPKEEP);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        recorder.run_upkeep();
    }
}

/// All metrics as Prometheus reads them; gauges are up to date.
pub fn render(recorder: &PrometheusHandle) -> String {
    record_counts();
    let mut text = recorder.render();
    process::render(&mut text);
    text
}

fn record_counts() {
    use Count as C;
    for (name, count) in [
        ("flotte_copies_accepted_total", C::ACCEPTED),
        ("flotte_copies_delivered_total", C::DELIVERED),
        ("flotte_copies_expired_total", C::EXPIRED),
        ("flotte_messages_unmatched_total", C::UNMATCHED),
        ("flotte_link_dropped_total", C::LINK_DROPPED),
    ] {
        counter!(name).absolute(count.total());
    }
    for (name, label, value, count) in [
        ("flotte_bytes_total", "direction", "in", C::BYTES_IN),
        ("flotte_bytes_total", "direction", "out", C::BYTES_OUT),
        (
            "flotte_publishes_held_total",
            "reason",
            "rate",
            C::HELD_BY_RATE,
        ),
        (
            "flotte_publishes_held_total",
            "reason",
            "memory",
            C::HELD_BY_MEMORY,
        ),
    ] {
        counter!(name, label => value).absolute(count.total());
    }
    for reason in DropReason::ALL {
        counter!("flotte_copies_dropped_total", "reason" => reason.label())
            .absolute(C::dropped(reason).total());
    }
    for qos in QOS {
        counter!("flotte_messages_received_total", "qos" => digit(qos))
            .absolute(C::received(qos).total());
        counter!("flotte_messages_sent_total", "qos" => digit(qos)).absolute(C::sent(qos).total());
    }
    for kind in PacketType::ALL {
        let (received, sent) = (packets_in(*kind), packets_out(*kind));
        for (direction, total) in [("in", received), ("out", sent)] {
            counter!("flotte_packets_total", "direction" => direction, "type" => label_of(*kind))
                .absolute(total);
        }
    }
}

/// Packets of a type from clients.
pub fn packets_in(kind: PacketType) -> u64 {
    match kind {
        PacketType::Publish => QOS.iter().map(|qos| Count::received(*qos).total()).sum(),
        kind => Count::packets_in(kind).total(),
    }
}

/// Packets of a type to clients.
pub fn packets_out(kind: PacketType) -> u64 {
    match kind {
        PacketType::Publish => QOS.iter().map(|qos| Count::sent(*qos).total()).sum(),
        kind => Count::packets_out(kind).total(),
    }
}

/// Counts what became of copies.
pub fn count(tally: &Tally) {
    let add = |count: Count, value: u64| {
        if value > 0 {
            count.add(value);
        }
    };
    add(Count::ACCEPTED, tally.accepted.into());
    add(Count::DELIVERED, tally.delivered.into());
    add(Count::EXPIRED, tally.expired.into());
    if tally.dropped_total() > 0 {
        for reason in DropReason::ALL {
            add(Count::dropped(reason), tally.dropped(reason).into());
        }
    }
    for (qos, published) in QOS.into_iter().zip(tally.published) {
        add(Count::sent(qos), published.into());
    }
    add(Count::PAYLOAD_OUT, tally.payload_bytes);
    add(
        Count::packets_out(PacketType::PubRel),
        tally.released.into(),
    );
}

/// How long a publish took from its arrival to its PUBACK or PUBREC.
pub fn acknowledged(qos: QoS, took: Duration) {
    if let Some(hot) = HOT.get() {
        hot.ack_seconds[usize::from(qos as u8)].record(took);
    }
}

/// How long a publish took from its arrival until it was written to the subscribers of this node.
pub fn delivered(qos: QoS, took: Duration) {
    if let Some(hot) = HOT.get() {
        hot.deliver_seconds[usize::from(qos as u8)].record(took);
    }
}

/// How late a worker came to a timer.
pub fn loop_lag(lag: Duration) {
    if let Some(hot) = HOT.get() {
        hot.loop_lag_seconds.record(lag);
    }
}

const fn digit(qos: QoS) -> &'static str {
    match qos {
        QoS::AtMostOnce => "0",
        QoS::AtLeastOnce => "1",
        QoS::ExactlyOnce => "2",
    }
}

const fn label_of(kind: PacketType) -> &'static str {
    match kind {
        PacketType::Connect => "connect",
        PacketType::ConnAck => "connack",
        PacketType::Publish => "publish",
        PacketType::PubAck => "puback",
        PacketType::PubRec => "pubrec",
        PacketType::PubRel => "pubrel",
        PacketType::PubComp => "pubcomp",
        PacketType::Subscribe => "subscribe",
        PacketType::SubAck => "suback",
        PacketType::Unsubscribe => "unsubscribe",
        PacketType::UnsubAck => "unsuback",
        PacketType::PingReq => "pingreq",
        PacketType::PingResp => "pingresp",
        PacketType::Disconnect => "disconnect",
        PacketType::Auth => "auth",
    }
}

fn describe() {
    describe_clients();
    describe_messages();
    describe_cluster();
}

fn describe_clients() {
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
    describe_counter!(
        "flotte_subscriptions_refused_total",
        "Subscriptions refused for a limit, by reason"
    );
    describe_counter!(
        "flotte_auth_total",
        "Decisions about clients, by method and result"
    );
    describe_counter!(
        "flotte_acl_denied_total",
        "What clients were not allowed to do, by action"
    );
    describe_histogram!(
        "flotte_event_loop_lag_seconds",
        "How late the workers come to a timer of 100 ms"
    );
    describe_gauge!(
        "flotte_memory_above_high_water",
        "1 while the node takes no new clients and holds publishers back for want of memory"
    );
    describe_gauge!("flotte_build_info", "Version and commit of this binary");
}

fn describe_messages() {
    describe_counter!(
        "flotte_publishes_abandoned_total",
        "Publishes behind a retained one that were dropped after their client had left"
    );
    describe_counter!(
        "flotte_packets_total",
        "Packets from and to clients, by direction and type"
    );
    describe_counter!(
        "flotte_publishes_held_total",
        "Publishes after which nothing more was read from their client for a while, by reason"
    );
    describe_counter!(
        "flotte_retained_refused_total",
        "Messages that were not retained, by reason"
    );
    describe_histogram!(
        "flotte_publish_ack_seconds",
        "From the arrival of a publish to its PUBACK or PUBREC, by QoS; one publish in 64"
    );
    describe_histogram!(
        "flotte_publish_deliver_seconds",
        "From the arrival of a publish until it was written to its subscribers on the same node, by QoS; one publish in 64"
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
    describe_gauge!(
        "flotte_retained_coming_messages",
        "Large retained messages of which parts have come"
    );
    describe_gauge!(
        "flotte_retained_coming_bytes",
        "What they will add to the bytes of retained messages"
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
}

fn describe_cluster() {
    describe_counter!(
        "flotte_control_frames_sent_total",
        "Frames to and answers for other nodes, of all groups together"
    );
    describe_counter!(
        "flotte_control_messages_sent_total",
        "Requests and answers in those frames"
    );
    describe_histogram!(
        "flotte_fsync_seconds",
        "Time of an fdatasync of the journal"
    );
    describe_histogram!(
        "flotte_commit_seconds",
        "From an entry's hand-over to the log of its group until its leader has applied it"
    );
    describe_counter!(
        "flotte_raft_proposals_total",
        "Batches of commands handed to the leader here, by group and result"
    );
    describe_histogram!(
        "flotte_raft_batch_commands",
        "Commands in one entry of a log"
    );
    describe_gauge!(
        "flotte_raft_snapshot_bytes",
        "Size of the newest snapshot, by group"
    );
    describe_histogram!(
        "flotte_link_rtt_seconds",
        "From a frame of publishes to the acknowledgement of its last, by peer"
    );
    describe_counter!(
        "flotte_link_bytes_total",
        "Bytes of publishes to and from other nodes, by peer and direction"
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
    describe_gauge!(
        "flotte_feature_level",
        "What all members understand: the lowest feature level among them"
    );
    describe_gauge!("flotte_raft_term", "Term, by group");
    describe_gauge!("flotte_raft_commit_index", "Last committed index, by group");
    describe_gauge!("flotte_raft_applied_index", "Last applied index, by group");
    describe_waiting();
}

/// What waits for other nodes, or is kept for them.
fn describe_waiting() {
    describe_gauge!(
        "flotte_link_queue_messages",
        "Messages that wait for a node"
    );
    describe_gauge!("flotte_link_queue_bytes", "What they hold, by peer");
    describe_gauge!(
        "flotte_link_kept_messages",
        "Shared messages kept until their members at a node have done them, by peer"
    );
    describe_gauge!("flotte_link_kept_bytes", "What they hold, by peer");
    describe_gauge!(
        "flotte_link_parts_bytes",
        "Held of large messages that another node has begun to send, by peer"
    );
    describe_gauge!(
        "flotte_proposer_commands",
        "Commands proposed here and not answered, by group"
    );
    describe_gauge!("flotte_proposer_bytes", "What they hold, by group");
    describe_counter!(
        "flotte_proposals_refused_total",
        "Commands refused, as too many wait for the leader of a group"
    );
}
