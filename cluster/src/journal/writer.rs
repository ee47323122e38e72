//! The one writer: takes what waits, stages it in one buffer, writes, syncs, reports. It never reports before
//! the sync returned, and after the disk failed once it never writes again.
//!
//! ```text
//! batch --stage--> buffer --flush: write, fdatasync--> segment --finish--> index, done
//!                    | does not fit: flush, then go on in the next segment
//!                    | no next segment: this append is refused and taken out again
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;

use super::disk::write_all_at;
use super::error::is_full;
use super::format::{self, Kind, Label, RECORD_HEADER, SEGMENT_HEADER};
use super::queue::{Finished, Op, Request, Segment, Shared};
use super::spare::{self, Spares};
use super::{GroupId, JournalError, Mark};

/// The buffer keeps this much between batches.
const BUFFER_KEPT: usize = 1 << 20;

/// Which part of a segment a record may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// All but what is kept for the others.
    Append,
    /// Votes, truncations, purges: all of it.
    Control,
}

/// What a flush did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flushed {
    Whole,
    /// The disk had no room after all: appends in the buffer were refused, the rest is durable.
    WithoutAppends,
}

/// Small state of a group, which must outlive the segment it stands in.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// The latest written vote and its segment.
    pub(super) vote: Option<(Bytes, u64)>,
    /// The highest written purge mark and its segment.
    pub(super) purged: Option<(Mark, u64)>,
}

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) spares: Spares,
    /// The segment that is written.
    pub(super) active: Arc<Segment>,
    /// Where its written part ends.
    end: u64,
    /// The segment has its Start record, on disk or in the buffer.
    pub(super) started: bool,
    /// Records to be written at `end`; bounded by the segment.
    buffer: Vec<u8>,
    /// Sequence of the next record.
    sequence: u64,
    /// All records up to this sequence are durable.
    pub(super) synced: u64,
    /// Raised whenever the buffer is emptied.
    emptied: u64,
    /// Requests of the batch that are not staged yet.
    todo: VecDeque<Request>,
    /// Requests whose last record is in the buffer.
    staged: Vec<Finished>,
    /// Requests that are durable or refused.
    finished: Vec<Finished>,
    /// Groups of which an append of this batch was refused, and why the first one was.
    refused: BTreeSet<GroupId>,
    full: Option<JournalError>,
    pub(super) kept: BTreeMap<GroupId, Kept>,
}

/// Where the journal goes on after open.
pub(super) struct Position {
    pub(super) active: Arc<Segment>,
    /// Sequence of the next record; all before it are durable.
    pub(super) sequence: u64,
    pub(super) kept: BTreeMap<GroupId, Kept>,
}

/// Where the buffer stood before a request was staged.
struct Before {
    segment: u64,
    emptied: u64,
    len: usize,
    sequence: u64,
    started: bool,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, spares: Spares, position: Position) -> Self {
        Self {
            shared,
            spares,
            active: position.active,
            end: SEGMENT_HEADER as u64,
            started: false,
            buffer: Vec::new(),
            sequence: position.sequence,
            synced: position.sequence - 1,
            emptied: 0,
            todo: VecDeque::new(),
            staged: Vec::new(),
            finished: Vec::new(),
            refused: BTreeSet::new(),
            full: None,
            kept: position.kept,
        }
    }

    /// From now on the next segment is prepared by a thread while this one is written.
    pub(super) fn prepare_ahead(&mut self) -> std::io::Result<()> {
        self.spares.spawn()?;
        self.spares.prepare(self.active.number + 1);
        Ok(())
    }

    /// Works until the journal is closed and nothing waits, or the disk fails.
    pub(super) fn run(mut self) {
        let _guard = DeadOnPanic(Arc::clone(&self.shared));
        loop {
            let batch = self.shared.wait();
            if batch.is_empty() || self.turn(batch).is_err() {
                return;
            }
        }
    }

    /// One batch. An error is final and has been told to everyone who waits.
    pub(super) fn turn(&mut self, batch: Vec<Request>) -> Result<(), JournalError> {
        let removes = |request: &Request| matches!(request.op, Op::Truncate { .. } | Op::Purge(_));
        let removal = batch.iter().any(removes);
        self.todo = batch.into();
        let outcome = self
            .commit()
            .and_then(|()| if removal { self.reclaim() } else { Ok(()) });
        if let Err(error) = outcome.and_then(|()| self.seal()) {
            tracing::error!(%error, "the journal is dead");
            let unfinished = self.finished.drain(..).chain(self.staged.drain(..));
            let requests = unfinished
                .map(|one| one.request)
                .chain(self.todo.drain(..))
                .collect();
            self.shared.die(&error, requests);
            return Err(error);
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), JournalError> {
        self.refused.clear();
        self.full = None;
        while let Some(request) = self.todo.pop_front() {
            self.stage(request)?;
        }
        self.flush()?;
        self.buffer.shrink_to(BUFFER_KEPT);
        self.shared.finish(std::mem::take(&mut self.finished));
        Ok(())
    }

    fn stage(&mut self, request: Request) -> Result<(), JournalError> {
        if self.refused.contains(&request.group) && matches!(request.op, Op::Append { .. }) {
            self.refuse(request);
            return Ok(());
        }
        let before = Before {
            segment: self.active.number,
            emptied: self.emptied,
            len: self.buffer.len(),
            sequence: self.sequence,
            started: self.started,
        };
        let mut places = Vec::new();
        let staged = self.stage_op(&request, &mut places);
        match (staged, &request.op) {
            (Err(error @ JournalError::Full { .. }), Op::Append { records, .. }) => {
                let first = records.first().map_or(0, |record| record.index);
                self.full.get_or_insert(error);
                let group = request.group;
                self.refuse(request);
                self.retract(group, first, &before)
            }
            (outcome, _) => {
                self.staged.push(Finished {
                    request,
                    places,
                    result: Ok(()),
                });
                outcome.map_err(exhausted)
            }
        }
    }

    fn stage_op(
        &mut self,
        request: &Request,
        places: &mut Vec<(u64, u32)>,
    ) -> Result<(), JournalError> {
        match &request.op {
            Op::Append { records, .. } => {
                places.reserve_exact(records.len());
                for record in records {
                    let label = Label {
                        kind: Kind::Entry,
                        group: request.group,
                        index: record.index,
                        term: record.term,
                    };
                    places.push(self.put(label, &record.data, Room::Append)?);
                }
                Ok(())
            }
            Op::Truncate { from } => self.put_truncate(request.group, *from),
            Op::Purge(upto) => self.put_purge(request.group, *upto),
            Op::Vote(vote) => self.put_vote(request.group, vote),
        }
    }

    fn put_truncate(&mut self, group: GroupId, from: u64) -> Result<(), JournalError> {
        let label = Label {
            kind: Kind::Truncate,
            group,
            index: from,
            term: 0,
        };
        self.put(label, &[], Room::Control).map(|_| ())
    }

    pub(super) fn put_purge(&mut self, group: GroupId, upto: Mark) -> Result<(), JournalError> {
        let label = Label {
            kind: Kind::Purge,
            group,
            index: upto.index,
            term: upto.term,
        };
        let (segment, _) = self.put(label, &[], Room::Control)?;
        let kept = self.kept.entry(group).or_default();
        if kept.purged.is_none_or(|(mark, _)| mark.index <= upto.index) {
            kept.purged = Some((upto, segment));
        }
        Ok(())
    }

    pub(super) fn put_vote(&mut self, group: GroupId, vote: &Bytes) -> Result<(), JournalError> {
        let label = Label {
            kind: Kind::Vote,
            group,
            index: 0,
            term: 0,
        };
        let (segment, _) = self.put(label, vote, Room::Control)?;
        self.kept.entry(group).or_default().vote = Some((vote.clone(), segment));
        Ok(())
    }

    /// Puts a record into the buffer, going on to the next segment when this one has no room; says where.
    fn put(&mut self, label: Label, data: &[u8], room: Room) -> Result<(u64, u32), JournalError> {
        if !self.fits(data.len(), room) {
            self.roll(room)?;
        }
        self.start();
        let offset = self.end + self.buffer.len() as u64;
        self.encode(label, data);
        Ok((self.active.number, offset as u32))
    }

    fn fits(&self, len: usize, room: Room) -> bool {
        let start = if self.started { 0 } else { RECORD_HEADER };
        let end = self.end + (self.buffer.len() + start + format::record_size(len)) as u64;
        match room {
            Room::Append => end + spare::reserve(self.active.len) <= self.active.len,
            Room::Control => end <= self.active.len,
        }
    }

    /// Begins the segment, if it is not begun yet.
    pub(super) fn start(&mut self) {
        if !self.started {
            self.started = true;
            let label = Label {
                kind: Kind::Start,
                group: GroupId(0),
                index: 0,
                term: 0,
            };
            self.encode(label, &[]);
        }
    }

    fn encode(&mut self, label: Label, data: &[u8]) {
        let numbers = (self.sequence, self.synced);
        format::encode(&mut self.buffer, self.active.seed, label, numbers, data);
        self.sequence += 1;
    }

    /// Goes on to the next segment. Fails with Full, and nothing changed, when there is none, or when the
    /// append that is being staged fell out of the buffer.
    fn roll(&mut self, room: Room) -> Result<(), JournalError> {
        if let (Room::Append, Some(full)) = (room, &self.full) {
            return Err(full.clone());
        }
        self.spares.ensure(self.active.number + 1)?;
        let flushed = self.flush()?;
        if let (Room::Append, Flushed::WithoutAppends, Some(full)) = (room, flushed, &self.full) {
            return Err(full.clone());
        }
        let next = self.spares.take().ok_or_else(|| JournalError::Dead {
            cause: "no next segment".to_owned(),
        })?;
        self.active = Arc::new(next);
        self.end = SEGMENT_HEADER as u64;
        self.started = false;
        self.shared.add_segment(Arc::clone(&self.active));
        self.spares.prepare(self.active.number + 1);
        Ok(())
    }

    /// Makes the buffer durable.
    pub(super) fn flush(&mut self) -> Result<Flushed, JournalError> {
        let mut flushed = Flushed::Whole;
        if let Err(error) = self.write()? {
            flushed = Flushed::WithoutAppends;
            self.full.get_or_insert(error);
            self.rewind();
            let mut restaged = Ok(());
            for one in std::mem::take(&mut self.staged) {
                if matches!(one.request.op, Op::Append { .. }) {
                    self.refuse(one.request);
                } else {
                    // It was in this buffer before, so it fits.
                    restaged = restaged.and_then(|()| self.stage_op(&one.request, &mut Vec::new()));
                    self.staged.push(one);
                }
            }
            restaged.and(self.write()?).map_err(exhausted)?;
        }
        self.finished.append(&mut self.staged);
        Ok(flushed)
    }

    /// Writes and syncs the buffer. The inner error is Full, with nothing of the buffer left on the disk; the
    /// outer one is final.
    fn write(&mut self) -> Result<Result<(), JournalError>, JournalError> {
        if self.buffer.is_empty() {
            return Ok(Ok(()));
        }
        if let Err((written, error)) = write_all_at(&*self.active.file, &self.buffer, self.end) {
            if !is_full(&error) {
                return Err(JournalError::dead("write", &error));
            }
            self.scrub(written)?;
            return Ok(Err(JournalError::Full {
                needed: self.buffer.len() as u64,
                free: 0,
                kept: 0,
            }));
        }
        self.sync()?;
        self.end += self.buffer.len() as u64;
        self.shared
            .counters
            .written_bytes
            .fetch_add(self.buffer.len() as u64, Ordering::Relaxed);
        self.buffer.clear();
        self.synced = self.sequence - 1;
        self.emptied += 1;
        Ok(Ok(()))
    }

    /// Overwrites what a failed write left behind: the same sequences are used again in the same place.
    fn scrub(&self, written: usize) -> Result<(), JournalError> {
        if written == 0 {
            return Ok(());
        }
        let scrubbed = write_all_at(&*self.active.file, &vec![0; written], self.end)
            .map_err(|(_, error)| error);
        scrubbed.map_err(|error| JournalError::dead("scrub a failed write", &error))?;
        self.sync()
    }

    fn sync(&self) -> Result<(), JournalError> {
        let begin = Instant::now();
        self.active
            .file
            .sync_data()
            .map_err(|error| JournalError::dead("fdatasync", &error))?;
        let ns = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let counters = &self.shared.counters;
        metrics::histogram!("flotte_fsync_seconds").record(ns as f64 / 1e9);
        counters.fsyncs.fetch_add(1, Ordering::Relaxed);
        counters.last_fsync_ns.store(ns, Ordering::Relaxed);
        counters.max_fsync_ns.fetch_max(ns, Ordering::Relaxed);
        counters.total_fsync_ns.fetch_add(ns, Ordering::Relaxed);
        Ok(())
    }

    fn refuse(&mut self, request: Request) {
        self.refused.insert(request.group);
        let result = self.full.clone().map_or(Err(JournalError::Closed), Err);
        self.finished.push(Finished {
            request,
            places: Vec::new(),
            result,
        });
    }

    /// Takes the records of a refused append out again.
    fn retract(&mut self, group: GroupId, first: u64, before: &Before) -> Result<(), JournalError> {
        if self.active.number != before.segment {
            // Some of its records are in an earlier segment; what is in the buffer is of this request alone.
            self.rewind();
            return self.put_truncate(group, first).map_err(exhausted);
        }
        // Otherwise none is on the disk: they are in the buffer, or were dropped with it.
        if self.emptied == before.emptied {
            self.buffer.truncate(before.len);
            self.sequence = before.sequence;
            self.started = before.started;
        }
        Ok(())
    }

    /// Empties the buffer as if nothing had been staged since the last flush.
    fn rewind(&mut self) {
        self.buffer.clear();
        self.emptied += 1;
        self.sequence = self.synced + 1;
        self.started = self.end > SEGMENT_HEADER as u64;
    }

    /// When nothing waits, writes that all is durable, so that damage to the last batch is told from a torn
    /// tail. Not synced: it need not survive a power cut, and the next batch overwrites it.
    fn seal(&mut self) -> Result<(), JournalError> {
        let room = self.end + RECORD_HEADER as u64 <= self.active.len;
        if self.end == SEGMENT_HEADER as u64 || !room || !self.shared.idle() {
            return Ok(());
        }
        let label = Label {
            kind: Kind::Seal,
            group: GroupId(0),
            index: 0,
            term: 0,
        };
        let mut bytes = Vec::with_capacity(RECORD_HEADER);
        format::encode(
            &mut bytes,
            self.active.seed,
            label,
            (self.sequence, self.synced),
            &[],
        );
        match write_all_at(&*self.active.file, &bytes, self.end) {
            Err((_, error)) if !is_full(&error) => Err(JournalError::dead("write", &error)),
            _ => Ok(()),
        }
    }
}

/// What is kept in each segment for votes, truncations and purges is used up. They took effect already, so
/// this is final.
fn exhausted(error: JournalError) -> JournalError {
    match error {
        JournalError::Full { .. } => JournalError::Dead {
            cause: format!("no room even for votes, truncations and purges; {error}"),
        },
        other => other,
    }
}

/// Tells everyone who waits when the writer panics.
struct DeadOnPanic(Arc<Shared>);

impl Drop for DeadOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = JournalError::Dead {
                cause: "the writer panicked".to_owned(),
            };
            self.0.die(&error, Vec::new());
        }
    }
}
