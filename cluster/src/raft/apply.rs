//! Runs the committed entries through a group's [`Machine`], and its snapshots with it.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine, Snapshot};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::machine::{FrozenState, Machine};
use super::snapshot::{GroupSnapshots, SnapshotError, SnapshotFile, Stored};
use super::types::{CommittedLeaderId, LogId, NodeInfo, SnapshotMeta, StoredMembership, Types};
use crate::net::NodeId;

/// What an entry costs in the log beyond its data, about.
const ENTRY_OVERHEAD: u64 = 64;
/// Waiters are told of progress at least this often within one batch.
const TELL_EVERY: u64 = 256;

type LibrarySnapshot = Snapshot<CommittedLeaderId, NodeId, NodeInfo, SnapshotFile>;

/// How far a replica is, shared with those who wait for it.
#[derive(Debug)]
pub struct Progress {
    /// Index of the last applied entry.
    applied: AtomicU64,
    /// The same for those who wait, told in steps.
    watch: watch::Sender<u64>,
    /// Log since the last snapshot was begun or installed.
    log_entries: AtomicU64,
    log_bytes: AtomicU64,
    /// What it met that means nothing to it.
    unreadable: OnceLock<String>,
}

impl Progress {
    pub fn new() -> Self {
        Self {
            applied: AtomicU64::new(0),
            watch: watch::Sender::new(0),
            log_entries: AtomicU64::new(0),
            log_bytes: AtomicU64::new(0),
            unreadable: OnceLock::new(),
        }
    }

    pub fn applied(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    pub fn watch(&self) -> watch::Receiver<u64> {
        self.watch.subscribe()
    }

    /// Entries and bytes in the log that no snapshot covers yet.
    pub fn log_since_snapshot(&self) -> (u64, u64) {
        (
            self.log_entries.load(Ordering::Relaxed),
            self.log_bytes.load(Ordering::Relaxed),
        )
    }

    /// The committed entry that this version could not apply, and why.
    pub fn unreadable(&self) -> Option<&str> {
        self.unreadable.get().map(String::as_str)
    }

    fn count(&self, bytes: usize) {
        self.log_entries.fetch_add(1, Ordering::Relaxed);
        self.log_bytes
            .fetch_add(bytes as u64 + ENTRY_OVERHEAD, Ordering::Relaxed);
    }

    fn snapshot_begun(&self) {
        self.log_entries.store(0, Ordering::Relaxed);
        self.log_bytes.store(0, Ordering::Relaxed);
    }

    fn tell(&self) {
        self.watch.send_replace(self.applied());
    }
}

/// The consensus library's view of a machine.
pub struct Applier {
    machine: Arc<dyn Machine>,
    snapshots: Arc<GroupSnapshots>,
    progress: Arc<Progress>,
    last: Option<LogId>,
    membership: StoredMembership,
}

impl Applier {
    /// A machine to which nothing has been applied.
    pub fn new(
        machine: Arc<dyn Machine>,
        snapshots: Arc<GroupSnapshots>,
        progress: Arc<Progress>,
    ) -> Self {
        Self {
            machine,
            snapshots,
            progress,
            last: None,
            membership: StoredMembership::default(),
        }
    }

    fn apply_one(&mut self, item: EntryResponder<Types>) -> io::Result<()> {
        let (entry, responder) = item;
        let id = entry.log_id;
        let (reply, bytes) = match entry.payload {
            EntryPayload::Blank => (bytes::Bytes::new(), 0),
            EntryPayload::Normal(command) => {
                let bytes = command.0.len();
                let reply = self.machine.apply(id.index, *id.leader_id, command.0);
                let reply = reply.map_err(|error| {
                    let why = format!("entry {} cannot be applied: {error}", id.index);
                    let _ = self.progress.unreadable.set(why.clone());
                    io::Error::other(why)
                })?;
                (reply, bytes)
            }
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(id), membership);
                (bytes::Bytes::new(), 0)
            }
        };
        self.last = Some(id);
        self.progress.count(bytes);
        // Before the reply: who gets it may read the state at once.
        self.progress.applied.store(id.index, Ordering::Release);
        if let Some(responder) = responder {
            responder.send(reply);
        }
        Ok(())
    }
}

impl RaftStateMachine<Types> for Applier {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.last, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        let mut untold = 0;
        while let Some(item) = entries.next().await {
            self.apply_one(item?)?;
            untold += 1;
            if untold == TELL_EVERY {
                untold = 0;
                self.progress.tell();
                // A long way to go must not keep this thread from others.
                tokio::task::yield_now().await;
            }
        }
        self.progress.tell();
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        self.progress.snapshot_begun();
        let machine = Arc::clone(&self.machine);
        // Nothing is applied meanwhile. Of a large state even this takes a while.
        let frozen = blocking(move || Ok(machine.freeze())).await;
        Builder {
            state: Mutex::new(frozen.ok()),
            meta: SnapshotMeta {
                last_log_id: self.last,
                last_membership: self.membership.clone(),
            },
            snapshots: Arc::clone(&self.snapshots),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> io::Result<()> {
        let index = meta.last_log_id.map_or(0, |id| id.index);
        let machine = Arc::clone(&self.machine);
        let snapshots = Arc::clone(&self.snapshots);
        let wanted = meta.last_log_id;
        blocking(move || {
            // At a start it is the one that is kept. A received one gets its name only now, after
            // the log entries that contradict it have gone.
            let known = snapshots.current();
            let known = known.is_some_and(|stored| stored.meta.last_log_id == wanted);
            if !known {
                snapshots.adopt(&snapshot)?;
            }
            machine
                .restore(index, &mut snapshot.state())
                .map_err(io::Error::other)
        })
        .await?;
        self.last = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.progress.snapshot_begun();
        self.progress.applied.store(index, Ordering::Release);
        self.progress.tell();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<LibrarySnapshot>> {
        Ok(self.snapshots.current().map(library_snapshot))
    }
}

/// Writes a frozen state while the group goes on.
pub struct Builder {
    /// Taken by the one build; none if the state could not be had. The lock is for the trait's sake alone.
    state: Mutex<Option<Box<dyn FrozenState>>>,
    meta: SnapshotMeta,
    snapshots: Arc<GroupSnapshots>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<LibrarySnapshot> {
        let state = self.state.lock().take();
        let Some(state) = state else {
            return Err(io::Error::other("there is no state to build a snapshot of"));
        };
        let meta = self.meta.clone();
        let snapshots = Arc::clone(&self.snapshots);
        let written = blocking(move || match snapshots.write(&meta, state) {
            Ok(stored) => Ok(stored),
            Err(error) => older_one(&snapshots, error),
        });
        Ok(library_snapshot(written.await?))
    }
}

/// Without room for a new snapshot the older one does: the log only stays longer.
fn older_one(snapshots: &GroupSnapshots, error: SnapshotError) -> io::Result<Stored> {
    let full = matches!(
        &error,
        SnapshotError::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    );
    match snapshots.current() {
        Some(older) if full => {
            tracing::error!(%error, "no room for a snapshot; the older one is kept");
            Ok(older)
        }
        _ => Err(error.into()),
    }
}

fn library_snapshot(stored: Stored) -> LibrarySnapshot {
    Snapshot {
        meta: stored.meta,
        snapshot: stored.file,
    }
}

/// Runs what takes long off the async threads.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}
