//! One task for each group follows the consensus library: it tells the group's status, takes
//! snapshots when they are due, and raises the alarm when the replica cannot go on.

use std::sync::Arc;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::Fatal;
use openraft::metrics::RaftMetrics;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::apply::Progress;
use super::config::GroupConfig;
use super::snapshot::GroupSnapshots;
use super::status::{FatalSignal, GroupStatus, Role};
use super::types::{Raft, Types};
use crate::journal::GroupId;

/// What the task holds on to.
pub struct Watcher {
    pub group: GroupId,
    pub config: GroupConfig,
    pub raft: Raft,
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
        let mut metrics = self.raft.metrics();
        loop {
            let seen = metrics.borrow_and_update().clone();
            self.status.send_if_modified(|status| status.update(&seen));
            if let Err(fatal) = &seen.running_state {
                self.ended(fatal);
                break;
            }
            self.snapshot_if_due(&seen).await;
            if metrics.changed().await.is_err() {
                break;
            }
        }
        self.status
            .send_modify(|status| status.role = Role::Stopped);
        self.stopped.cancel();
    }

    fn ended(&self, fatal: &Fatal<Types>) {
        match fatal {
            Fatal::Stopped => {}
            Fatal::StorageError(_) | Fatal::Panicked => {
                self.fatal.raise(&format!("group {}: {fatal}", self.group));
            }
        }
    }

    async fn snapshot_if_due(&self, metrics: &RaftMetrics<Types>) {
        let (entries, bytes) = self.progress.log_since_snapshot();
        let config = &self.config;
        let enough = entries >= config.snapshot_entries || bytes >= config.snapshot_bytes;
        if !enough || bytes < self.snapshots.current_bytes() {
            return;
        }
        tracing::debug!(group = %self.group, entries, bytes, applied = ?metrics.last_applied, "snapshot is due");
        // While one is being written this does nothing. A stopped group is noticed by the caller.
        let _ = self.raft.trigger().snapshot().await;
    }
}
