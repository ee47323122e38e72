//! One task for each group follows the consensus library: it tells the group's status, has it send
//! heartbeats on the node's beat, takes snapshots when they are due, goes on with members that are back, and raises the alarm when the
//! replica cannot go on.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use metrics::{Gauge, gauge};
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::Fatal;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::apply::Progress;
use super::config::GroupConfig;
use super::group::Rounds;
use super::snapshot::GroupSnapshots;
use super::status::{Death, FatalSignal, GroupStatus, Role};
use super::types::{Raft, Types};
use crate::beat;
use crate::journal::{GroupId, Journal};
use crate::net::{Network, NodeId};

/// What the task holds on to.
pub struct Watcher {
    pub group: GroupId,
    pub config: GroupConfig,
    pub rounds: Rounds,
    pub raft: Raft,
    pub network: Network,
    pub journal: Journal,
    pub snapshots: Arc<GroupSnapshots>,
    pub progress: Arc<Progress>,
    pub status: watch::Sender<GroupStatus>,
    pub fatal: FatalSignal,
    /// Cancelled by this task, when the group has stopped for whatever reason.
    pub stopped: CancellationToken,
}

impl Watcher {
    /// Runs until the group stops.
    pub async fn run(self) {
        let gauges = Gauges::new(self.group);
        let mut metrics = self.raft.metrics();
        let mut connections = self.network.changes();
        let mut connected = HashSet::new();
        let between = Duration::from_millis(self.config.heartbeat_ms);
        let mut heartbeat = beat::interval(between);
        let mut trimmed = 0;
        loop {
            let (leads, fatal) = {
                let seen = metrics.borrow_and_update();
                let changed = self.status.send_if_modified(|status| status.update(&seen));
                if changed {
                    gauges.show(&self.status.borrow());
                }
                let leads = seen.state == ServerState::Leader;
                (leads, seen.running_state.clone().err())
            };
            if let Some(fatal) = fatal {
                self.ended(&fatal);
                break;
            }
            self.snapshot_if_due(&gauges).await;
            self.trim(&mut trimmed).await;
            tokio::select! {
                changed = metrics.changed() => if changed.is_err() { break },
                Ok(()) = connections.changed() => self.resume(&mut connected).await,
                _ = heartbeat.tick(), if leads => if !self.rounds.began_within(between / 2) {
                    // A stopped group is noticed by its metrics.
                    let _ = self.raft.trigger().heartbeat().await;
                },
            }
        }
        self.status
            .send_modify(|status| status.role = Role::Stopped);
        self.stopped.cancel();
    }

    fn ended(&self, fatal: &Fatal<Types>) {
        match fatal {
            Fatal::Stopped => {}
            Fatal::StorageError(_) => {
                let death = match self.progress.unreadable() {
                    Some(why) => Death::State(format!("group {}: {why}", self.group)),
                    None => Death::Disk(format!("group {}: {fatal}", self.group)),
                };
                self.fatal.raise(death);
            }
            Fatal::Panicked => {
                let why = format!("group {}: {fatal}", self.group);
                self.fatal.raise(Death::State(why));
            }
        }
    }

    /// Members that can be reached again get the log at once, not after the present delay.
    async fn resume(&self, connected: &mut HashSet<NodeId>) {
        let up = self.network.peers().into_iter().filter(|(_, up)| *up);
        let up: HashSet<NodeId> = up.map(|(id, _)| id).collect();
        let new: Vec<NodeId> = up.difference(connected).copied().collect();
        *connected = up;
        if !new.is_empty() {
            // A stopped group is noticed by the caller.
            let _ = self.raft.trigger().reset_backoff(new).await;
        }
    }

    /// After each snapshot the log goes as far as that covers it, but for a tail; the library bounds that by entries alone,
    /// and there may be large ones.
    async fn trim(&self, trimmed: &mut u64) {
        let snapshot = self.status.borrow().snapshot;
        if snapshot == *trimmed {
            return;
        }
        *trimmed = snapshot;
        let tail = self.config.log_tail_bytes;
        if let Some(before) = self.journal.index_before_last(self.group, tail) {
            // A stopped group is noticed by the caller.
            let trigger = self.raft.trigger();
            let _ = trigger.purge_log(before.min(snapshot)).await;
        }
    }

    async fn snapshot_if_due(&self, gauges: &Gauges) {
        let (entries, bytes) = self.progress.log_since_snapshot();
        let config = &self.config;
        let enough = entries >= config.snapshot_entries || bytes >= config.snapshot_bytes;
        let last_bytes = self.snapshots.current_bytes();
        gauges.snapshot_bytes.set(last_bytes as f64);
        if !enough || bytes < last_bytes {
            return;
        }
        tracing::debug!(group = %self.group, entries, bytes, "snapshot is due");
        // While one is being written this does nothing. A stopped group is noticed by the caller.
        let _ = self.raft.trigger().snapshot().await;
    }
}

/// What the metrics page shows of a group.
struct Gauges {
    /// 0 learner, 1 follower, 2 candidate, 3 leader, -1 stopped.
    role: Gauge,
    term: Gauge,
    commit_index: Gauge,
    applied_index: Gauge,
    snapshot_bytes: Gauge,
}

impl Gauges {
    fn new(group: GroupId) -> Self {
        let group = group.to_string();
        Self {
            role: gauge!("flotte_raft_role", "group" => group.clone()),
            term: gauge!("flotte_raft_term", "group" => group.clone()),
            commit_index: gauge!("flotte_raft_commit_index", "group" => group.clone()),
            applied_index: gauge!("flotte_raft_applied_index", "group" => group.clone()),
            snapshot_bytes: gauge!("flotte_raft_snapshot_bytes", "group" => group),
        }
    }

    fn show(&self, status: &GroupStatus) {
        self.role.set(match status.role {
            Role::Stopped => -1.0,
            Role::Learner => 0.0,
            Role::Follower => 1.0,
            Role::Candidate => 2.0,
            Role::Leader => 3.0,
        });
        self.term.set(status.term as f64);
        self.commit_index.set(status.committed as f64);
        self.applied_index.set(status.applied as f64);
    }
}
