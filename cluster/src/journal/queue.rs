//! What callers, readers and the writer share: the index, the queue of requests and the open segments, behind
//! one short lock. It never touches a file while the lock is held.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::disk::DiskFile;
use super::index::Index;
use super::{Done, GroupId, JournalConfig, JournalError, JournalStats, Mark, Record};
use super::{format, spare};

/// The writer takes about this many bytes at once.
const BATCH_BYTES: usize = 2 << 20;

/// What a caller wants.
pub(super) enum Op {
    Append {
        records: Vec<Record>,
        /// Set at admission; tells apart entries that have the same index.
        ticket: u64,
    },
    Truncate {
        /// First entry to go.
        from: u64,
    },
    Purge(Mark),
    Vote(Bytes),
}

pub(super) struct Request {
    pub(super) group: GroupId,
    pub(super) op: Op,
    pub(super) done: Done,
}

/// A request the writer is finished with.
pub(super) struct Finished {
    pub(super) request: Request,
    /// Segment and offset of each entry of an append.
    pub(super) places: Vec<(u64, u32)>,
    pub(super) result: Result<(), JournalError>,
}

/// An open segment.
pub(super) struct Segment {
    pub(super) number: u64,
    /// Where the checksums of its records start from.
    pub(super) seed: u32,
    pub(super) len: u64,
    pub(super) file: Arc<dyn DiskFile>,
}

/// Counters that the writer and readers raise without the lock.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) fsyncs: AtomicU64,
    pub(super) last_fsync_ns: AtomicU64,
    pub(super) max_fsync_ns: AtomicU64,
    pub(super) total_fsync_ns: AtomicU64,
    pub(super) appended: AtomicU64,
    pub(super) written_bytes: AtomicU64,
    pub(super) refused_full: AtomicU64,
    pub(super) refused_busy: AtomicU64,
    pub(super) torn_bytes: AtomicU64,
    pub(super) disk_reads: AtomicU64,
}

pub(super) struct Shared {
    /// Guards the index, the queue and the table of segments; held for lookups and list operations only.
    state: Mutex<State>,
    /// Wakes the writer.
    work: Condvar,
    /// Wakes those who wait for room in the queue.
    room: Notify,
    pub(super) counters: Counters,
    config: JournalConfig,
}

struct State {
    index: Index,
    /// Admitted and not yet taken by the writer; bounded by `queue_max` and `queue_bytes_max`.
    queue: VecDeque<Request>,
    queue_bytes: usize,
    next_ticket: u64,
    /// Every segment that may be read, by number; the last is the one that is written.
    segments: BTreeMap<u64, Arc<Segment>>,
    dead: Option<JournalError>,
    closing: bool,
}

impl Op {
    fn bytes(&self) -> usize {
        match self {
            Self::Append { records, .. } => records
                .iter()
                .map(|r| format::record_size(r.data.len()))
                .sum(),
            Self::Vote(vote) => format::record_size(vote.len()),
            Self::Truncate { .. } | Self::Purge(_) => format::RECORD_HEADER,
        }
    }

    fn check(&self, segment_bytes: u64) -> Result<(), JournalError> {
        let (len, max) = match self {
            Self::Append { records, .. } => {
                let longest = records.iter().map(|record| record.data.len()).max();
                (longest.unwrap_or(0), spare::entry_max(segment_bytes))
            }
            Self::Vote(vote) => (vote.len(), spare::vote_max(segment_bytes)),
            Self::Truncate { .. } | Self::Purge(_) => return Ok(()),
        };
        if len > max {
            return Err(JournalError::TooLarge { len, max });
        }
        Ok(())
    }
}

impl Shared {
    pub(super) fn new(
        index: Index,
        segments: BTreeMap<u64, Arc<Segment>>,
        config: JournalConfig,
    ) -> Self {
        Self {
            state: Mutex::new(State {
                index,
                queue: VecDeque::new(),
                queue_bytes: 0,
                next_ticket: 1,
                segments,
                dead: None,
                closing: false,
            }),
            work: Condvar::new(),
            room: Notify::new(),
            counters: Counters::default(),
            config,
        }
    }

    // For callers.

    /// Lets a request take effect in the index and queues it, or gives it back with the reason why not.
    pub(super) fn admit(&self, mut request: Request) -> Result<(), (Request, JournalError)> {
        let bytes = request.op.bytes();
        if let Err(error) = request.op.check(self.config.segment_bytes) {
            return Err((request, error));
        }
        let mut state = self.state.lock();
        if let Err(error) = self
            .admissible(&state, bytes)
            .and_then(|()| state.apply(&mut request))
        {
            drop(state);
            return Err((request, error));
        }
        state.queue.push_back(request);
        state.queue_bytes += bytes;
        let first = state.queue.len() == 1;
        drop(state);
        if first {
            self.work.notify_one();
        }
        Ok(())
    }

    fn admissible(&self, state: &State, bytes: usize) -> Result<(), JournalError> {
        if let Some(error) = &state.dead {
            return Err(error.clone());
        }
        if state.closing {
            return Err(JournalError::Closed);
        }
        let full = state.queue.len() >= self.config.queue_max
            || (!state.queue.is_empty() && state.queue_bytes + bytes > self.config.queue_bytes_max);
        if full {
            self.counters.refused_busy.fetch_add(1, Ordering::Relaxed);
            return Err(JournalError::Busy {
                waiting: state.queue.len(),
            });
        }
        Ok(())
    }

    /// Resolves after the writer next took requests from the queue, or when there will be no more.
    pub(super) fn room(&self) -> Notified<'_> {
        self.room.notified()
    }

    pub(super) fn with_index<T>(&self, look: impl FnOnce(&Index) -> T) -> T {
        look(&self.state.lock().index)
    }

    /// As `with_index`, with the open segments, and fails when the journal is dead.
    pub(super) fn lookup<T>(
        &self,
        look: impl FnOnce(&Index, &BTreeMap<u64, Arc<Segment>>) -> T,
    ) -> Result<T, JournalError> {
        let state = self.state.lock();
        match &state.dead {
            Some(error) => Err(error.clone()),
            None => Ok(look(&state.index, &state.segments)),
        }
    }

    pub(super) fn pinning(&self) -> Vec<(GroupId, u64)> {
        let state = self.state.lock();
        let active = state
            .segments
            .last_key_value()
            .map_or(0, |(number, _)| *number);
        state.index.pinning(active)
    }

    pub(super) fn dead(&self) -> Option<JournalError> {
        self.state.lock().dead.clone()
    }

    pub(super) fn stats(&self) -> JournalStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        let state = self.state.lock();
        JournalStats {
            segments: state.segments.len() as u64,
            bytes: state.segments.values().map(|segment| segment.len).sum(),
            entries: state.index.entries(),
            cached_bytes: state.index.cached_bytes() as u64,
            waiting: state.queue.len() as u64,
            waiting_bytes: state.queue_bytes as u64,
            fsyncs: load(&counters.fsyncs),
            last_fsync_ns: load(&counters.last_fsync_ns),
            max_fsync_ns: load(&counters.max_fsync_ns),
            total_fsync_ns: load(&counters.total_fsync_ns),
            appended: load(&counters.appended),
            written_bytes: load(&counters.written_bytes),
            refused_full: load(&counters.refused_full),
            refused_busy: load(&counters.refused_busy),
            torn_bytes: load(&counters.torn_bytes),
            disk_reads: load(&counters.disk_reads),
        }
    }

    /// No more requests are admitted; the writer ends once the queue is empty.
    pub(super) fn close(&self) {
        self.state.lock().closing = true;
        self.work.notify_one();
        self.room.notify_waiters();
    }

    // For the writer.

    /// Waits for requests; none when the journal is closing and the queue is empty.
    pub(super) fn wait(&self) -> Vec<Request> {
        let mut state = self.state.lock();
        while state.queue.is_empty() && !state.closing {
            self.work.wait(&mut state);
        }
        drop(state);
        self.take()
    }

    /// The next batch of what waits.
    pub(super) fn take(&self) -> Vec<Request> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut state = self.state.lock();
        while bytes < BATCH_BYTES {
            let Some(request) = state.queue.pop_front() else {
                break;
            };
            bytes += request.op.bytes();
            batch.push(request);
        }
        state.queue_bytes -= bytes;
        drop(state);
        self.room.notify_waiters();
        batch
    }

    pub(super) fn idle(&self) -> bool {
        self.state.lock().queue.is_empty()
    }

    /// Enters what became of a batch, then tells the callers. When an append of a group was refused, those
    /// waiting behind it are too, since they follow an entry that is not there.
    pub(super) fn finish(&self, mut finished: Vec<Finished>) {
        let mut state = self.state.lock();
        let mut refused: BTreeMap<GroupId, JournalError> = BTreeMap::new();
        for Finished {
            request,
            places,
            result,
        } in &finished
        {
            match (&request.op, result) {
                (Op::Append { records, ticket }, Ok(())) => {
                    self.counters
                        .appended
                        .fetch_add(records.len() as u64, Ordering::Relaxed);
                    if let Some(first) = records.first() {
                        state
                            .index
                            .place(request.group, first.index, *ticket, places);
                    }
                }
                (Op::Append { .. }, Err(error)) => {
                    refused.insert(request.group, error.clone());
                }
                (Op::Truncate { .. } | Op::Purge(_), _) => state.index.settle(request.group),
                (Op::Vote(_), _) => {}
            }
        }
        for (group, error) in &refused {
            state.refuse(*group, error, &mut finished);
        }
        state.index.evict();
        #[cfg(test)]
        state.index.check_invariants();
        drop(state);
        let full = finished
            .iter()
            .filter(|one| matches!(one.result, Err(JournalError::Full { .. })));
        self.counters
            .refused_full
            .fetch_add(full.count() as u64, Ordering::Relaxed);
        for Finished {
            request, result, ..
        } in finished
        {
            (request.done)(result);
        }
    }

    /// Nothing works any more: fails these requests and all that wait.
    pub(super) fn die(&self, error: &JournalError, requests: Vec<Request>) {
        let mut state = self.state.lock();
        state.dead = Some(error.clone());
        let waiting = std::mem::take(&mut state.queue);
        state.queue_bytes = 0;
        drop(state);
        self.room.notify_waiters();
        for request in requests.into_iter().chain(waiting) {
            (request.done)(Err(error.clone()));
        }
    }

    /// The oldest segment that any log still needs.
    pub(super) fn floor(&self) -> Option<u64> {
        self.state.lock().index.floor()
    }

    pub(super) fn add_segment(&self, segment: Arc<Segment>) {
        self.state.lock().segments.insert(segment.number, segment);
    }

    /// Takes the segments before `keep` out of the table.
    pub(super) fn drop_segments(&self, keep: u64) -> Vec<Arc<Segment>> {
        let mut state = self.state.lock();
        let kept = state.segments.split_off(&keep);
        std::mem::replace(&mut state.segments, kept)
            .into_values()
            .collect()
    }

    pub(super) fn oldest_segment(&self) -> Option<u64> {
        self.state
            .lock()
            .segments
            .first_key_value()
            .map(|(number, _)| *number)
    }
}

impl State {
    fn apply(&mut self, request: &mut Request) -> Result<(), JournalError> {
        match &mut request.op {
            Op::Append { records, ticket } => {
                *ticket = self.next_ticket;
                self.next_ticket += 1;
                self.index.append(request.group, records, *ticket)
            }
            Op::Truncate { from } => self.index.truncate(request.group, *from),
            Op::Purge(upto) => {
                *upto = self.index.purge(request.group, *upto)?;
                Ok(())
            }
            Op::Vote(vote) => {
                self.index.save_vote(request.group, vote.clone());
                Ok(())
            }
        }
    }

    /// Takes back the entries of a group that are not written, and the requests that carry them.
    fn refuse(&mut self, group: GroupId, error: &JournalError, finished: &mut Vec<Finished>) {
        self.index.refuse(group);
        let mut kept = VecDeque::with_capacity(self.queue.len());
        for request in self.queue.drain(..) {
            if request.group == group && matches!(request.op, Op::Append { .. }) {
                self.queue_bytes -= request.op.bytes();
                finished.push(Finished {
                    request,
                    places: Vec::new(),
                    result: Err(error.clone()),
                });
            } else {
                kept.push_back(request);
            }
        }
        self.queue = kept;
    }
}
