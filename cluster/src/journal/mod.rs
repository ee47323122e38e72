//! The journal: the logs of all consensus groups of a node, in shared segments on disk.
//!
//! It knows nothing of the consensus library: entries and votes are opaque bytes. It never reports a write as
//! done before fdatasync returned, never skips a record that it can not read, and never keeps an entry in
//! memory for longer than its cache allows.
//!
//! ```text
//! callers --admit--> index (memory) --queue--> writer thread: stage, write, fdatasync, done --> segments
//!                                                 ^ spare segments prepared and old ones recycled by a second thread
//! ```
//! - All groups share one queue, one writer and one fdatasync per batch of waiting requests (group commit).
//! - A request takes effect in the index at once, so reads see it; `done` is called when it is durable.
//! - Segments are preallocated. The next one is prepared while the present one is written.
//! - A segment is dropped when no live entry is in it or in an older one; votes and purge marks that were
//!   last written there are written again first.
//! - The name of one empty file (`*.floor`) says up to which record all was durable at the last open or drop of
//!   segments, so that a lost end of the journal is noticed.
//! - A part of each segment is kept for votes, truncations and purges, so that a full disk refuses appends but
//!   can still be purged.

mod disk;
mod error;
mod format;
mod found;
mod index;
mod queue;
mod read;
mod reclaim;
mod recover;
mod spare;
mod writer;

#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use parking_lot::Mutex;

pub use crate::id::GroupId;
pub use error::JournalError;

use disk::{Disk, RealDisk};
use queue::{Op, Request, Shared};
use recover::Opened;

/// A position in a group's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    pub index: u64,
    pub term: u64,
}

/// An entry of a group's log. `data` is kept in the cache as it is: it should not be a small part of a large
/// buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub index: u64,
    pub term: u64,
    pub data: Bytes,
}

/// Called once: with Ok after the fdatasync that made the request durable, or with why it was refused. It runs on the
/// writer thread, or on the caller's when the request is refused at once, so it must be short and never block.
pub type Done = Box<dyn FnOnce(Result<(), JournalError>) + Send>;

/// Sizes and limits of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalConfig {
    /// Length of a segment; also bounds a single record. 4 KiB to 1 GiB.
    pub segment_bytes: u64,
    /// Recent entries kept in memory over all groups. Entries still waiting to be written come on top.
    pub cache_bytes: usize,
    /// Requests that may wait for the writer.
    pub queue_max: usize,
    /// Bytes of data that may wait for the writer; one request is let in whatever its size.
    pub queue_bytes_max: usize,
    /// No new segment is allocated that would leave less than this free on the disk.
    pub min_free_bytes: u64,
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 16 << 20,
            cache_bytes: 1 << 20,
            queue_max: 16 * 1024,
            queue_bytes_max: 64 << 20,
            min_free_bytes: 64 << 20,
        }
    }
}

impl JournalConfig {
    fn check(&self) -> Result<(), JournalError> {
        if !(4 << 10..=1 << 30).contains(&self.segment_bytes)
            || !self.segment_bytes.is_multiple_of(4096)
        {
            return Err(JournalError::Config {
                key: "segment_bytes",
                value: self.segment_bytes,
                allowed: "a multiple of 4096 from 4 KiB to 1 GiB",
            });
        }
        for (key, value) in [
            ("queue_max", self.queue_max),
            ("queue_bytes_max", self.queue_bytes_max),
        ] {
            if value == 0 {
                return Err(JournalError::Config {
                    key,
                    value: 0,
                    allowed: "at least 1",
                });
            }
        }
        Ok(())
    }
}

/// Counters of the journal since it was opened, and its present size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JournalStats {
    /// Segments that hold records, the present one included.
    pub segments: u64,
    /// Bytes of the disk that these segments take; a spare one and one to be recycled come on top.
    pub bytes: u64,
    /// Live entries of all groups.
    pub entries: u64,
    /// Bytes of entries in the cache, with their overhead.
    pub cached_bytes: u64,
    /// Requests waiting for the writer now, and their bytes.
    pub waiting: u64,
    pub waiting_bytes: u64,
    /// Times the writer synced a segment, and how long that took: the last time, the longest, all together.
    pub fsyncs: u64,
    pub last_fsync_ns: u64,
    pub max_fsync_ns: u64,
    pub total_fsync_ns: u64,
    /// Entries and bytes (with headers) written.
    pub appended: u64,
    pub written_bytes: u64,
    /// Requests refused because the disk, or the queue, was full.
    pub refused_full: u64,
    pub refused_busy: u64,
    /// Bytes of a torn tail that were cut off at open.
    pub torn_bytes: u64,
    /// Entries that a read had to fetch from the disk.
    pub disk_reads: u64,
}

/// The handle to the journal: cheap to clone. The last one to go flushes and stops the writer.
#[derive(Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Journal {
    /// Opens the journal in `dir`, which must belong to it alone and to one process at a time; creates it when
    /// it is missing. A torn tail is cut off (`stats().torn_bytes` and a warning say how much); corruption is
    /// refused by name.
    pub fn open(dir: &Path, config: JournalConfig) -> Result<Self, JournalError> {
        config.check()?;
        let disk = RealDisk::open(dir)
            .map_err(|error| JournalError::open("open the directory", &error))?;
        Self::start(Arc::new(disk), config)
    }

    fn start(disk: Arc<dyn Disk>, config: JournalConfig) -> Result<Self, JournalError> {
        let Opened { shared, mut writer } = recover::open(disk, config)?;
        let threaded = writer.prepare_ahead();
        threaded
            .map_err(|error| JournalError::open("start the thread for spare segments", &error))?;
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| JournalError::open("start the writer", &error))?;
        Ok(Self {
            inner: Arc::new(Inner {
                shared,
                thread: Mutex::new(Some(thread)),
            }),
        })
    }

    /// Adds entries at the end of a group's log. The first must follow the last entry, or the purge mark of an
    /// empty log; an empty log without purge mark begins anywhere. No records: `done` waits for all before it.
    pub fn append(&self, group: GroupId, records: Vec<Record>, done: Done) {
        self.request(group, Op::Append { records, ticket: 0 }, done);
    }

    /// Removes all entries after `last_kept`; all there are for `None`.
    pub fn truncate_after(&self, group: GroupId, last_kept: impl Into<Option<u64>>, done: Done) {
        let from = last_kept.into().map_or(0, |index| index.saturating_add(1));
        self.request(group, Op::Truncate { from }, done);
    }

    /// Removes all entries up to `upto`, which may lie behind the end of the log: the log is then empty and
    /// goes on after it. A mark before the present one changes nothing.
    pub fn purge(&self, group: GroupId, upto: Mark, done: Done) {
        self.request(group, Op::Purge(upto), done);
    }

    /// Replaces the group's vote.
    pub fn save_vote(&self, group: GroupId, vote: Bytes, done: Done) {
        self.request(group, Op::Vote(vote), done);
    }

    fn request(&self, group: GroupId, op: Op, done: Done) {
        if let Err((request, error)) = self.inner.shared.admit(Request { group, op, done }) {
            (request.done)(Err(error));
        }
    }

    /// As [`Self::append`], but waits while the queue is full instead of refusing. Returns once the
    /// entries are queued; `done` is called later.
    pub async fn append_when_room(&self, group: GroupId, records: Vec<Record>, done: Done) {
        self.request_when_room(group, Op::Append { records, ticket: 0 }, done)
            .await;
    }

    /// As [`Self::append`]; waits for room and until the entries are durable.
    pub async fn append_durably(
        &self,
        group: GroupId,
        records: Vec<Record>,
    ) -> Result<(), JournalError> {
        self.request_durably(group, Op::Append { records, ticket: 0 })
            .await
    }

    /// As [`Self::truncate_after`]; waits for room and until the truncation is durable.
    pub async fn truncate_after_durably(
        &self,
        group: GroupId,
        last_kept: impl Into<Option<u64>>,
    ) -> Result<(), JournalError> {
        let from = last_kept.into().map_or(0, |index| index.saturating_add(1));
        self.request_durably(group, Op::Truncate { from }).await
    }

    /// As [`Self::purge`]; waits for room and until the purge is durable.
    pub async fn purge_durably(&self, group: GroupId, upto: Mark) -> Result<(), JournalError> {
        self.request_durably(group, Op::Purge(upto)).await
    }

    /// As [`Self::save_vote`]; waits for room and until the vote is durable.
    pub async fn save_vote_durably(&self, group: GroupId, vote: Bytes) -> Result<(), JournalError> {
        self.request_durably(group, Op::Vote(vote)).await
    }

    async fn request_durably(&self, group: GroupId, op: Op) -> Result<(), JournalError> {
        let (tx, rx) = tokio::sync::oneshot::channel();
        let done: Done = Box::new(move |result| {
            // The receiver is gone when the caller lost interest; the request stands all the same.
            let _ = tx.send(result);
        });
        self.request_when_room(group, op, done).await;
        rx.await.unwrap_or(Err(JournalError::Closed))
    }

    async fn request_when_room(&self, group: GroupId, op: Op, done: Done) {
        let shared = &self.inner.shared;
        let mut request = Request { group, op, done };
        loop {
            let room = shared.room();
            tokio::pin!(room);
            // Enabled before the attempt, so that room made in between is not missed.
            room.as_mut().enable();
            match shared.admit(request) {
                Ok(()) => return,
                Err((again, JournalError::Busy { .. })) => request = again,
                Err((refused, error)) => return (refused.done)(Err(error)),
            }
            room.await;
        }
    }

    /// The entries in `range` that exist, in order: what was purged, truncated or never written is left out. At
    /// most `max_bytes` of data, but at least one entry if there is any. Sees entries that are not durable
    /// yet. May read the disk: not for a thread that must not wait.
    pub fn read(
        &self,
        group: GroupId,
        range: Range<u64>,
        max_bytes: usize,
    ) -> Result<Vec<Record>, JournalError> {
        read::read(&self.inner.shared, group, &range, max_bytes)
    }

    /// Index of the first entry in the log.
    pub fn first_index(&self, group: GroupId) -> Option<u64> {
        self.inner.shared.with_index(|index| index.first(group))
    }

    /// The last entry in the log: index and term. None when the log is empty, also when it was purged.
    pub fn last(&self, group: GroupId) -> Option<(u64, u64)> {
        let last = self.inner.shared.with_index(|index| index.last(group));
        last.map(|mark| (mark.index, mark.term))
    }

    /// Index of the last entry before those that hold the last so many bytes of a log. None = the log holds no more.
    pub fn index_before_last(&self, group: GroupId, bytes: u64) -> Option<u64> {
        self.inner.shared.with_index(|index| {
            let mut left = bytes;
            let fits = |size: &u64| {
                let rest = left.checked_sub(*size);
                left = rest.unwrap_or(0);
                rest.is_some()
            };
            let kept = index.sizes(group).take_while(fits).count() as u64;
            let before = index.last(group)?.index.checked_sub(kept)?;
            (before >= index.first(group)?).then_some(before)
        })
    }

    /// The term of an entry in the log. Never reads the disk.
    pub fn term(&self, group: GroupId, index: u64) -> Option<u64> {
        self.inner
            .shared
            .with_index(|known| known.term(group, index))
    }

    /// The last purged entry.
    pub fn purged(&self, group: GroupId) -> Option<Mark> {
        self.inner.shared.with_index(|index| index.purged(group))
    }

    /// The latest vote.
    pub fn vote(&self, group: GroupId) -> Option<Bytes> {
        self.inner.shared.with_index(|index| index.vote(group))
    }

    /// The groups of which anything is kept, in order.
    pub fn groups(&self) -> Vec<GroupId> {
        self.inner.shared.with_index(index::Index::groups)
    }

    /// The groups whose log reaches back into older segments, and how many segments behind the present one:
    /// a snapshot and purge of the first in the list lets segments go.
    pub fn pinning(&self) -> Vec<(GroupId, u64)> {
        self.inner.shared.pinning()
    }

    /// The error after which nothing works any more, if there was one.
    pub fn dead(&self) -> Option<JournalError> {
        self.inner.shared.dead()
    }

    /// Counters and sizes.
    pub fn stats(&self) -> JournalStats {
        self.inner.shared.stats()
    }

    /// Writes what waits, then stops the writer and waits for it: blocks for that long, as does dropping the
    /// last handle. Later requests are refused; reads go on.
    pub fn shutdown(&self) {
        self.inner.stop();
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("stats", &self.stats())
            .finish()
    }
}

impl Inner {
    fn stop(&self) {
        self.shared.close();
        let mut thread = self.thread.lock();
        // The last handle may go inside a `done`, on the writer thread itself, which then ends by itself.
        if thread
            .as_ref()
            .is_some_and(|handle| handle.thread().id() == std::thread::current().id())
        {
            return;
        }
        if let Some(handle) = thread.take()
            && handle.join().is_err()
        {
            tracing::error!("the journal's writer panicked");
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}
