//! Times and limits of a group.

use openraft::SnapshotPolicy;

use crate::journal::GroupId;

/// How long a follower may take to restore a snapshot that it has received, in ms.
const INSTALL_SNAPSHOT_TIMEOUT_MS: u64 = 60_000;
/// Retries of a member that cannot be reached: the transport fails them at once.
const BACKOFF: &str = "50ms 100ms 200ms ...400ms";
/// The library, which does not send the heartbeats here, looks at its deadlines a few times in what it takes for the time
/// between two of them. As that is it waits for the answer to one, too.
const TIMER_STRETCH: u64 = 2;
/// Entries in one append request; its bytes are bounded by what is read from the log at a time.
const APPEND_ENTRIES_MAX: u64 = 1_024;

/// Times and limits of a group, the same on all its members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupConfig {
    /// Between two heartbeats of a leader; a multiple of the node's beat.
    pub heartbeat_ms: u64,
    /// A follower that has heard no leader for a random time between these two asks for votes.
    pub election_min_ms: u64,
    pub election_max_ms: u64,
    /// A snapshot is due after this many entries, or...
    pub snapshot_entries: u64,
    /// ...this many bytes of log, and in any case not before the log is as large as the last
    /// snapshot: so the cost of snapshots stays in proportion to what is written.
    pub snapshot_bytes: u64,
    /// Entries that stay in the log after a snapshot, for followers that are a little behind.
    pub log_tail_entries: u64,
    /// Bytes of them at most.
    pub log_tail_bytes: u64,
    /// Largest entry.
    pub entry_bytes_max: usize,
    /// Requests that wait for the group's task, and entries without a result.
    pub queue_max: u64,
}

impl GroupConfig {
    /// The defaults of group 0: an election fits into a serve lease.
    pub fn meta() -> Self {
        Self {
            heartbeat_ms: 100,
            election_min_ms: 300,
            election_max_ms: 600,
            snapshot_entries: 10_000,
            snapshot_bytes: 32 << 20,
            log_tail_entries: 2_000,
            log_tail_bytes: 64 << 20,
            entry_bytes_max: 8 << 20,
            queue_max: 4_096,
        }
    }

    /// The defaults of the session groups.
    pub fn sessions() -> Self {
        Self {
            heartbeat_ms: 200,
            election_min_ms: 600,
            election_max_ms: 1_200,
            ..Self::meta()
        }
    }

    /// The library's configuration.
    pub(super) fn library(&self, group: GroupId) -> openraft::Config {
        openraft::Config {
            cluster_name: format!("group {group}"),
            heartbeat_interval: TIMER_STRETCH * self.heartbeat_ms,
            election_timeout_min: self.election_min_ms,
            election_timeout_max: self.election_max_ms,
            enable_pre_vote: Some(true),
            // A restarted leader must not lead without an election: its state machine is behind, and it remembers none of the
            // decisions of its term that are not committed yet (a node that it declared Down would get leases).
            enable_leader_restore: Some(false),
            // Without it a leader that is heard but hears nobody blocks elections for ever.
            quorum_loss_probe_interval: Some(2 * self.election_max_ms + self.heartbeat_ms),
            install_snapshot_timeout: INSTALL_SNAPSHOT_TIMEOUT_MS,
            max_payload_entries: APPEND_ENTRIES_MAX,
            // Snapshots are triggered by the group's watcher, which also looks at bytes.
            snapshot_policy: SnapshotPolicy::Never,
            // So are heartbeats, those of all groups at once.
            enable_heartbeat: false,
            max_in_snapshot_log_to_keep: self.log_tail_entries,
            api_channel_size: Some(self.queue_max),
            backoff: BACKOFF.to_owned(),
            ..openraft::Config::default()
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        for config in [GroupConfig::meta(), GroupConfig::sessions()] {
            config.library(GroupId(1)).validate().unwrap();
        }
    }
}
