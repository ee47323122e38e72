//! Segments before and after their use: prepares the next one ahead of time and recycles or removes the old
//! ones, on a thread of its own. It never touches a segment that holds live records.
//!
//! A file gets its segment name only when it is whole and durable: blocks, header, name, directory. So a named
//! segment with a bad header is corrupt and not merely new.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::disk::{Disk, DiskFile, write_all_at};
use super::error::is_full;
use super::format::{RECORD_HEADER, SEGMENT_HEADER, SegmentHeader};
use super::queue::Segment;
use super::{JournalConfig, JournalError};

/// A file that is being filled with zeroes; worthless after a crash.
pub(super) const FRESH: &str = "fresh.tmp";
/// A former segment whose blocks serve again.
pub(super) const RECYCLED: &str = "recycled.tmp";

/// When the disk is full at open, a segment may be smaller by this factor.
const SMALLER: u64 = 256;
/// Tasks that may wait for the thread.
const TASKS: usize = 8;

/// Bytes at the end of a segment that appends leave to votes, truncations and purges.
pub(super) fn reserve(segment_len: u64) -> u64 {
    (segment_len / 16).max(1024)
}

/// Longest data of an entry.
pub(super) fn entry_max(segment_len: u64) -> usize {
    let taken = (SEGMENT_HEADER + 2 * RECORD_HEADER) as u64 + reserve(segment_len);
    (segment_len.saturating_sub(taken) & !7) as usize
}

/// Longest vote.
pub(super) fn vote_max(segment_len: u64) -> usize {
    (reserve(segment_len) / 4).min(4096) as usize
}

/// File name of a segment.
pub(super) fn segment_name(number: u64) -> String {
    format!("{number:016x}.seg")
}

/// The number in a segment's file name.
pub(super) fn segment_number(name: &str) -> Option<u64> {
    let digits = name
        .strip_suffix(".seg")
        .filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// File name that says: all records up to this sequence were durable once.
pub(super) fn floor_name(sequence: u64) -> String {
    format!("{sequence:016x}.floor")
}

/// The sequence in the floor's file name.
pub(super) fn floor_sequence(name: &str) -> Option<u64> {
    let digits = name
        .strip_suffix(".floor")
        .filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// Makes and unmakes segments.
pub(super) struct Maker {
    disk: Arc<dyn Disk>,
    segment_bytes: u64,
    min_free_bytes: u64,
    /// `RECYCLED` exists and has the length of a segment.
    recycled: bool,
    /// What the name of the floor's file says; None when there is none yet.
    floor: Option<u64>,
    /// A failure to put away a segment, told at the next `make`.
    failed: Option<JournalError>,
}

impl Maker {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        config: &JournalConfig,
        recycled: bool,
        floor: Option<u64>,
    ) -> Self {
        Self {
            disk,
            segment_bytes: config.segment_bytes,
            min_free_bytes: config.min_free_bytes,
            recycled,
            floor,
            failed: None,
        }
    }

    /// The first segment after open: what was kept back is used, and on a full disk a small one does, so that
    /// the journal can at least be purged.
    pub(super) fn make_first(&mut self, number: u64) -> Result<Segment, JournalError> {
        let smallest = (self.segment_bytes / SMALLER).max(1024);
        let mut len = self.segment_bytes;
        loop {
            match self.make_sized(number, len, 0) {
                Err(JournalError::Full { .. }) if len / 2 >= smallest => len /= 2,
                other => return other,
            }
        }
    }

    fn make(&mut self, number: u64) -> Result<Segment, JournalError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.make_sized(number, self.segment_bytes, self.min_free_bytes)
    }

    fn make_sized(&mut self, number: u64, len: u64, kept: u64) -> Result<Segment, JournalError> {
        let recycled = std::mem::take(&mut self.recycled);
        let (temporary, file) = if recycled {
            let file = self.disk.open(RECYCLED);
            (
                RECYCLED,
                file.map_err(|error| JournalError::dead("open a segment to recycle", &error))?,
            )
        } else {
            (FRESH, self.allocate(len, kept)?)
        };
        let header = SegmentHeader {
            segment: number,
            salt: rand::random(),
            zeroed: !recycled,
        };
        self.publish(temporary, &*file, &header)
            .map_err(|error| JournalError::dead("prepare a segment", &error))?;
        Ok(Segment {
            number,
            seed: header.seed(),
            len: if recycled { self.segment_bytes } else { len },
            file,
        })
    }

    fn publish(
        &self,
        temporary: &str,
        file: &dyn DiskFile,
        header: &SegmentHeader,
    ) -> std::io::Result<()> {
        write_all_at(file, &header.encode(), 0).map_err(|(_, error)| error)?;
        file.sync_data()?;
        self.disk.rename(temporary, &segment_name(header.segment))?;
        self.disk.sync_dir()
    }

    fn allocate(&self, len: u64, kept: u64) -> Result<Arc<dyn DiskFile>, JournalError> {
        let dead = |error| JournalError::dead("allocate a segment", &error);
        let free = self.disk.free_bytes().map_err(dead)?;
        let full = JournalError::Full {
            needed: len,
            free,
            kept,
        };
        if free < len.saturating_add(kept) {
            return Err(full);
        }
        let file = match self.disk.create(FRESH) {
            Err(error) if is_full(&error) => return Err(full),
            other => other.map_err(dead)?,
        };
        match file.allocate(len) {
            Ok(()) => Ok(file),
            Err(error) if is_full(&error) => {
                drop(file);
                self.disk.remove(FRESH).map_err(dead)?;
                Err(full)
            }
            Err(error) => Err(dead(error)),
        }
    }

    /// Notes that all records up to this sequence are durable. Without the note, records missing at the end
    /// after older segments went would look like records that never were.
    pub(super) fn raise_floor(&mut self, sequence: u64) -> std::io::Result<()> {
        match self.floor {
            Some(floor) if floor >= sequence => return Ok(()),
            Some(floor) => self
                .disk
                .rename(&floor_name(floor), &floor_name(sequence))?,
            None => drop(self.disk.create(&floor_name(sequence))?),
        }
        self.floor = Some(sequence);
        self.disk.sync_dir()
    }

    /// Puts away segments of which nothing is needed any more, now that all up to `floor` is durable.
    fn discard_all(&mut self, segments: Vec<Arc<Segment>>, floor: u64) {
        if let Err(error) = self.raise_floor(floor) {
            self.failed = Some(JournalError::dead("raise the floor", &error));
        }
        for segment in segments {
            self.discard(segment);
        }
    }

    /// Puts away a segment that nothing needs any more: its file serves again, unless one waits for that
    /// already, it has another length, or a reader still holds it.
    pub(super) fn discard(&mut self, segment: Arc<Segment>) {
        if self.failed.is_some() {
            return;
        }
        let name = segment_name(segment.number);
        let alone = Arc::try_unwrap(segment).ok();
        let recycle =
            !self.recycled && alone.is_some_and(|segment| segment.len == self.segment_bytes);
        let put_away = if recycle {
            self.disk.rename(&name, RECYCLED)
        } else {
            self.disk.remove(&name)
        };
        self.recycled |= recycle;
        // Synced one by one: segments may only ever be missing from the front.
        if let Err(error) = put_away.and_then(|()| self.disk.sync_dir()) {
            self.failed = Some(JournalError::dead("put away a segment", &error));
        }
    }
}

enum Task {
    Make(u64),
    Discard {
        segments: Vec<Arc<Segment>>,
        floor: u64,
    },
}

/// Where the work is done.
enum Workshop {
    /// On the writer's own thread, until another is started.
    Here(Maker),
    Thread {
        tasks: SyncSender<Task>,
        made: Receiver<Result<Segment, JournalError>>,
        handle: JoinHandle<()>,
    },
    /// No longer anywhere.
    Closed,
}

/// The writer's end: one segment ahead.
pub(super) struct Spares {
    workshop: Workshop,
    /// A segment was asked for and not fetched yet.
    asked: bool,
    ready: Option<Segment>,
}

impl Spares {
    pub(super) fn new(maker: Maker) -> Self {
        Self {
            workshop: Workshop::Here(maker),
            asked: false,
            ready: None,
        }
    }

    /// Moves the work to a thread of its own.
    pub(super) fn spawn(&mut self) -> std::io::Result<()> {
        let Workshop::Here(mut maker) = std::mem::replace(&mut self.workshop, Workshop::Closed)
        else {
            return Ok(());
        };
        let (tasks, inbox) = sync_channel(TASKS);
        let (outbox, made) = sync_channel(1);
        let work = move || {
            while let Ok(task) = inbox.recv() {
                match task {
                    Task::Discard { segments, floor } => maker.discard_all(segments, floor),
                    Task::Make(number) => {
                        if outbox.send(maker.make(number)).is_err() {
                            return;
                        }
                    }
                }
            }
        };
        let handle = std::thread::Builder::new()
            .name("journal-spare".to_owned())
            .spawn(work)?;
        self.workshop = Workshop::Thread {
            tasks,
            made,
            handle,
        };
        Ok(())
    }

    /// Asks for a segment ahead of its use.
    pub(super) fn prepare(&mut self, number: u64) {
        if self.ready.is_none()
            && !self.asked
            && let Workshop::Thread { tasks, .. } = &self.workshop
        {
            self.asked = tasks.send(Task::Make(number)).is_ok();
        }
    }

    /// Waits until the segment with this number is ready to be taken.
    pub(super) fn ensure(&mut self, number: u64) -> Result<(), JournalError> {
        if self.ready.is_some() {
            return Ok(());
        }
        let earlier = self.asked;
        let mut made = self.fetch(number);
        if earlier && matches!(made, Err(JournalError::Full { .. })) {
            // That was the state of the disk some time ago.
            made = self.fetch(number);
        }
        self.ready = Some(made?);
        Ok(())
    }

    fn fetch(&mut self, number: u64) -> Result<Segment, JournalError> {
        self.prepare(number);
        self.asked = false;
        match &mut self.workshop {
            Workshop::Here(maker) => maker.make(number),
            Workshop::Thread { made, .. } => made.recv().unwrap_or_else(|_| Err(closed())),
            Workshop::Closed => Err(closed()),
        }
    }

    /// The segment that is ready.
    pub(super) fn take(&mut self) -> Option<Segment> {
        self.ready.take()
    }

    /// Puts away segments of which nothing is needed any more, now that all up to `floor` is durable.
    pub(super) fn discard(&mut self, segments: Vec<Arc<Segment>>, floor: u64) {
        match &mut self.workshop {
            Workshop::Here(maker) => maker.discard_all(segments, floor),
            // When the thread is gone the next `ensure` says so.
            Workshop::Thread { tasks, .. } => drop(tasks.send(Task::Discard { segments, floor })),
            Workshop::Closed => {}
        }
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        if let Workshop::Thread {
            tasks,
            made,
            handle,
        } = std::mem::replace(&mut self.workshop, Workshop::Closed)
        {
            drop(tasks);
            drop(made);
            if handle.join().is_err() {
                tracing::error!("the thread that prepares segments panicked");
            }
        }
    }
}

fn closed() -> JournalError {
    JournalError::Dead {
        cause: "the thread that prepares segments is gone".to_owned(),
    }
}
