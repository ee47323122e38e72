//! Gauges that are read off the state when someone asks for the metrics.

use flotte_cluster::handle::Role;
use metrics::gauge;

use crate::connection::Shared;
use crate::sys::Census;

/// Sets all gauges that nobody keeps up to date otherwise.
pub(super) fn record(shared: &Shared) {
    sessions(shared);
    let status = shared.cluster().status();
    gauge!("flotte_lease_seconds_left").set(status.lease_left.as_secs_f64());
    gauge!("flotte_feature_level").set(f64::from(status.feature_level.number()));
    gauge!("flotte_routes", "kind" => "node").set(status.routes.0 as f64);
    gauge!("flotte_routes", "kind" => "share").set(status.routes.1 as f64);
    gauge!("flotte_retained_messages").set(status.retained.0 as f64);
    gauge!("flotte_retained_bytes").set(status.retained.1 as f64);
    let coming = status.retained_coming;
    gauge!("flotte_retained_coming_messages").set(coming.0 as f64);
    gauge!("flotte_retained_coming_bytes").set(coming.1 as f64);
    let up = status.nodes.iter().filter(|node| node.up).count();
    gauge!("flotte_nodes", "state" => "up").set(up as f64);
    gauge!("flotte_nodes", "state" => "down").set((status.nodes.len() - up) as f64);
    for group in &status.groups {
        let label = group.id.to_string();
        let role = match group.role {
            Role::Learner | Role::Stopped => 0.0,
            Role::Follower => 1.0,
            Role::Candidate => 2.0,
            Role::Leader => 3.0,
        };
        gauge!("flotte_raft_role", "group" => label.clone()).set(role);
        gauge!("flotte_raft_term", "group" => label.clone()).set(group.term as f64);
        gauge!("flotte_raft_commit_index", "group" => label.clone()).set(group.committed as f64);
        gauge!("flotte_raft_applied_index", "group" => label).set(group.applied as f64);
    }
    for (peer, queued) in &status.links {
        let set = |name: &'static str, value: usize| {
            gauge!(name, "peer" => peer.to_string()).set(value as f64);
        };
        set("flotte_link_queue_messages", queued.messages);
        set("flotte_link_queue_bytes", queued.bytes);
        set("flotte_link_kept_messages", queued.kept);
        set("flotte_link_kept_bytes", queued.kept_bytes);
    }
    for (peer, bytes) in &status.link_parts {
        gauge!("flotte_link_parts_bytes", "peer" => peer.to_string()).set(*bytes as f64);
    }
    for (group, pending) in &status.proposals {
        let label = group.to_string();
        gauge!("flotte_proposer_commands", "group" => label.clone()).set(pending.commands as f64);
        gauge!("flotte_proposer_bytes", "group" => label).set(pending.bytes as f64);
    }
}

fn sessions(shared: &Shared) {
    let census = Census::take(shared);
    for (durable, kind) in [(0, "live"), (1, "durable")] {
        for (connected, state) in [(0, "offline"), (1, "connected")] {
            gauge!("flotte_sessions", "kind" => kind, "state" => state)
                .set(census.sessions[durable][connected] as f64);
        }
    }
    gauge!("flotte_copies_queued").set(census.copies as f64);
    gauge!("flotte_subscriptions").set(shared.router.subscription_count() as f64);
}
