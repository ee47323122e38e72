//! Opens the journal: reads all segments in order, cuts off a torn tail, refuses corruption by name, and says
//! where to go on. It never skips a record, and never goes on in a segment of an earlier life: what a crash
//! left behind the end of one can then never be taken for something new.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::disk::{Disk, DiskFile};
use super::format::{
    self, BadHeader, Kind, RECORD_HEADER, RecordHeader, SEGMENT_HEADER, SegmentHeader, VERSION,
};
use super::found::OnDisk;
use super::index::{Index, Place};
use super::queue::{Segment, Shared};
use super::spare::{FRESH, Maker, RECYCLED, Spares, floor_sequence, segment_name, segment_number};
use super::writer::{Kept, Position, Writer};
use super::{GroupId, JournalConfig, JournalError, Mark};

/// An open journal whose writer is not running yet.
pub(super) struct Opened {
    pub(super) shared: Arc<Shared>,
    pub(super) writer: Writer,
}

/// A segment as found on the disk.
struct Found {
    number: u64,
    header: SegmentHeader,
    file: Arc<dyn DiskFile>,
    len: u64,
    /// Sequence of its Start record; None when it holds nothing, or its first record is bad.
    start: Option<u64>,
}

/// What reading the records in order builds up.
struct Replay {
    index: Index,
    kept: BTreeMap<GroupId, Kept>,
    /// Sequence of the record that comes next.
    expected: u64,
    /// All records up to this sequence were durable once.
    floor: u64,
}

/// Files beside the segments.
struct Leftovers {
    /// There is a file to recycle.
    recycled: bool,
    /// What the floor's name says, if there is one.
    floor: Option<u64>,
}

/// Opens the journal on this disk.
pub(super) fn open(disk: Arc<dyn Disk>, config: JournalConfig) -> Result<Opened, JournalError> {
    let tidied = tidy(&*disk, config.segment_bytes);
    let leftovers = tidied.map_err(|error| JournalError::open("tidy", &error))?;
    let mut found = find(&*disk)?;
    let blanks = split_blanks(&mut found)?;
    let mut replay = Replay {
        index: Index::new(config.cache_bytes),
        kept: BTreeMap::new(),
        expected: found.first().and_then(|segment| segment.start).unwrap_or(1),
        floor: leftovers.floor.unwrap_or(0),
    };
    for (at, segment) in found.iter().enumerate() {
        if let Some(next) = found.get(at + 1) {
            replay.sealed(segment, next.start.unwrap_or(0))?;
        }
    }
    let (end, mut torn) = match found.last() {
        Some(last) => replay.last(last)?,
        None => (0, 0),
    };
    for blank in &blanks {
        torn += replay.blank(blank)?;
    }
    replay.check()?;
    if let Some(last) = found.last_mut() {
        last.cut(end)
            .map_err(|error| JournalError::open("cut off the tail", &error))?;
    }
    if torn > 0 {
        tracing::warn!(
            bytes = torn,
            "the journal had a torn tail, which was cut off"
        );
    }
    let mut maker = Maker::new(disk, &config, leftovers.recycled, leftovers.floor);
    maker
        .raise_floor(replay.expected - 1)
        .map_err(|error| JournalError::open("raise the floor", &error))?;
    for blank in blanks.into_iter().rev() {
        maker.discard(Arc::new(blank.into_segment()));
    }
    let active = Arc::new(maker.make_first(found.last().map_or(1, |last| last.number + 1))?);
    let mut segments: BTreeMap<_, _> = found
        .into_iter()
        .map(|segment| (segment.number, Arc::new(segment.into_segment())))
        .collect();
    segments.insert(active.number, Arc::clone(&active));
    let shared = Arc::new(Shared::new(replay.index, segments, config));
    shared.counters.torn_bytes.store(torn, Ordering::Relaxed);
    let position = Position {
        active,
        sequence: replay.expected,
        kept: replay.kept,
    };
    let writer = Writer::new(Arc::clone(&shared), Spares::new(maker), position);
    Ok(Opened { shared, writer })
}

/// Removes files that were being made; says what else there is.
fn tidy(disk: &dyn Disk, segment_bytes: u64) -> std::io::Result<Leftovers> {
    let mut leftovers = Leftovers {
        recycled: false,
        floor: None,
    };
    for name in disk.list()? {
        if name == RECYCLED && disk.open(RECYCLED)?.len()? == segment_bytes {
            leftovers.recycled = true;
        } else if name == FRESH || name == RECYCLED {
            disk.remove(&name)?;
        } else if let Some(floor) = floor_sequence(&name) {
            leftovers.floor = leftovers.floor.max(Some(floor));
        }
    }
    disk.sync_dir()?;
    Ok(leftovers)
}

/// All segments in order, with their headers and Start records.
fn find(disk: &dyn Disk) -> Result<Vec<Found>, JournalError> {
    let names = disk
        .list()
        .map_err(|error| JournalError::open("list", &error))?;
    let mut numbers: Vec<u64> = names
        .iter()
        .filter_map(|name| segment_number(name))
        .collect();
    numbers.sort_unstable();
    if let Some(pair) = numbers.windows(2).find(|pair| pair[1] != pair[0] + 1) {
        return Err(damaged(pair[0] + 1, 0, "the segment is missing"));
    }
    numbers
        .into_iter()
        .map(|number| find_one(disk, number))
        .collect()
}

fn find_one(disk: &dyn Disk, number: u64) -> Result<Found, JournalError> {
    let failed = |error| JournalError::open(&segment_name(number), &error);
    let file = disk.open(&segment_name(number)).map_err(failed)?;
    let len = file.len().map_err(failed)?;
    let mut head = vec![0; (SEGMENT_HEADER + RECORD_HEADER).min(len as usize)];
    file.read_exact_at(&mut head, 0).map_err(failed)?;
    let header = SegmentHeader::decode(&head).map_err(|bad| match bad {
        BadHeader::Unreadable => damaged(number, 0, "the segment's header does not fit"),
        BadHeader::Version(found) => JournalError::Version {
            segment: number,
            found,
            known: VERSION,
        },
    })?;
    if header.segment != number {
        return Err(damaged(number, 0, "the segment has another number"));
    }
    let first = format::decode_header(&head[SEGMENT_HEADER..], header.seed());
    Ok(Found {
        number,
        header,
        file,
        len,
        start: first
            .filter(|first| first.kind == Kind::Start)
            .map(|first| first.sequence),
    })
}

/// Splits off the segments at the end that hold nothing yet, and checks that all others begin properly.
fn split_blanks(found: &mut Vec<Found>) -> Result<Vec<Found>, JournalError> {
    let used = found
        .iter()
        .rposition(|segment| segment.start.is_some())
        .map_or(0, |at| at + 1);
    let blanks = found.split_off(used);
    let first = blanks.first().map(|segment| segment.number);
    let bad = found
        .iter()
        .find(|segment| segment.start.is_none())
        .map(|segment| segment.number);
    // Older segments go only after a later one has its Start record.
    let lost = first.filter(|number| found.is_empty() && *number != 1);
    match bad.or(lost) {
        Some(number) => Err(damaged(
            number,
            SEGMENT_HEADER as u64,
            "the segment's first record does not fit",
        )),
        None => Ok(blanks),
    }
}

impl Found {
    fn read(&self) -> Result<Vec<u8>, JournalError> {
        let mut bytes = vec![0; self.len as usize];
        let read = self.file.read_exact_at(&mut bytes, 0);
        read.map_err(|error| JournalError::open(&segment_name(self.number), &error))?;
        Ok(bytes)
    }

    /// Makes `end` the end of the segment, and all before it durable: what was read may still be in the page
    /// cache only.
    fn cut(&mut self, end: u64) -> std::io::Result<()> {
        self.file.set_len(end)?;
        self.file.sync_data()?;
        self.len = end;
        Ok(())
    }

    fn into_segment(self) -> Segment {
        Segment {
            number: self.number,
            seed: self.header.seed(),
            len: self.len,
            file: self.file,
        }
    }

    /// The error for the record that should be at `offset`; names what its header still says.
    fn corrupt(&self, bytes: &[u8], offset: usize, reason: &'static str) -> JournalError {
        let header = format::decode_header(bytes.get(offset..).unwrap_or(&[]), self.header.seed());
        JournalError::Corrupt {
            segment: self.number,
            offset: offset as u64,
            group: header.map(|header| header.group),
            index: header
                .filter(|header| header.kind == Kind::Entry)
                .map(|header| header.index),
            reason,
        }
    }
}

impl Replay {
    /// A segment that another one follows: it must be whole up to where that one begins.
    fn sealed(&mut self, segment: &Found, next: u64) -> Result<(), JournalError> {
        let bytes = segment.read()?;
        let end = self.records(segment, &bytes, next)?;
        if self.expected != next {
            return Err(segment.corrupt(&bytes, end, "the record does not fit"));
        }
        Ok(())
    }

    /// The last segment with records: they end at a torn tail or where nothing was written. Says where, and
    /// how many bytes were torn.
    fn last(&mut self, segment: &Found) -> Result<(u64, u64), JournalError> {
        let bytes = segment.read()?;
        let end = self.records(segment, &bytes, u64::MAX)?;
        if self.expected <= self.floor || self.outlived(&bytes, end, segment.header.seed()) {
            return Err(segment.corrupt(
                &bytes,
                end,
                "the record does not fit, though it was durable",
            ));
        }
        Ok((end as u64, torn_bytes(&bytes, end, &segment.header)))
    }

    /// A segment that holds no Start record: nothing in it may have been durable.
    fn blank(&self, segment: &Found) -> Result<u64, JournalError> {
        let bytes = segment.read()?;
        if self.outlived(&bytes, SEGMENT_HEADER, segment.header.seed()) {
            return Err(segment.corrupt(
                &bytes,
                SEGMENT_HEADER,
                "the record does not fit, though it was durable",
            ));
        }
        Ok(torn_bytes(&bytes, SEGMENT_HEADER, &segment.header))
    }

    /// Whether a record from `from` on says that the expected one had been durable.
    fn outlived(&self, bytes: &[u8], from: usize, seed: u32) -> bool {
        records_after(bytes, from, seed).any(|(_, header)| header.synced >= self.expected)
    }

    /// Replays the records of a segment up to the sequence `until`, or as long as they are good; says where
    /// they end.
    fn records(
        &mut self,
        segment: &Found,
        bytes: &[u8],
        until: u64,
    ) -> Result<usize, JournalError> {
        let mut offset = SEGMENT_HEADER;
        while self.expected < until {
            let rest = &bytes[offset..];
            let header = format::decode_header(rest, segment.header.seed());
            let good = header
                .filter(|header| header.sequence == self.expected && header.kind != Kind::Seal);
            let Some((header, data)) = good.and_then(|header| Some((header, header.data(rest)?)))
            else {
                break;
            };
            if rest.len() < header.size() {
                break;
            }
            if !self.record(&header, data, (segment.number, offset)) {
                return Err(segment.corrupt(
                    bytes,
                    offset,
                    "the entry does not follow the one before it",
                ));
            }
            self.expected += 1;
            offset += header.size();
        }
        Ok(offset)
    }

    fn record(
        &mut self,
        header: &RecordHeader,
        data: &[u8],
        (segment, offset): (u64, usize),
    ) -> bool {
        let group = header.group;
        match header.kind {
            Kind::Start => return offset == SEGMENT_HEADER,
            Kind::Entry => {
                let entry = OnDisk {
                    index: header.index,
                    term: header.term,
                    len: header.len,
                    segment,
                    offset: offset as u32,
                };
                return self.index.replay_entry(group, entry);
            }
            Kind::Vote => {
                let vote = bytes::Bytes::copy_from_slice(data);
                self.index.save_vote(group, vote.clone());
                self.kept.entry(group).or_default().vote = Some((vote, segment));
            }
            Kind::Truncate => self.index.replay_truncate(group, header.index),
            Kind::Purge => {
                let mark = Mark {
                    index: header.index,
                    term: header.term,
                };
                self.index.replay_purge(group, mark);
                let kept = self.kept.entry(group).or_default();
                if kept
                    .purged
                    .is_none_or(|(known, _)| known.index <= mark.index)
                {
                    kept.purged = Some((mark, segment));
                }
            }
            Kind::Seal => return false,
        }
        true
    }

    /// What was durable, and all entries after a purge mark, must be there.
    fn check(&self) -> Result<(), JournalError> {
        if self.expected <= self.floor {
            return Err(damaged(1, 0, "all segments are missing"));
        }
        let Some((group, index, Place::Written { segment, offset })) = self.index.hole() else {
            return Ok(());
        };
        Err(JournalError::Corrupt {
            segment,
            offset: u64::from(offset),
            group: Some(group),
            index: Some(index),
            reason: "entries before this one are missing",
        })
    }
}

/// Headers of this use of the segment from `from` on, wherever they are.
fn records_after(
    bytes: &[u8],
    from: usize,
    seed: u32,
) -> impl Iterator<Item = (usize, RecordHeader)> {
    let offsets = (from..bytes.len().saturating_sub(RECORD_HEADER - 1)).step_by(8);
    offsets.filter_map(move |at| Some((at, format::decode_header(&bytes[at..], seed)?)))
}

/// How far torn records reach beyond the end of the good ones. In a recycled file only their headers can be
/// told from what was there before.
fn torn_bytes(bytes: &[u8], end: usize, header: &SegmentHeader) -> u64 {
    let mut from = end;
    let mut torn = end;
    for (at, record) in records_after(bytes, end, header.seed()) {
        if record.kind == Kind::Seal && at == end {
            from = end + record.size();
            torn = from;
        } else {
            torn = torn.max((at + record.size()).min(bytes.len()));
        }
    }
    if header.zeroed {
        let garbage = bytes[from.min(bytes.len())..]
            .iter()
            .rposition(|byte| *byte != 0);
        torn = torn.max(garbage.map_or(0, |at| from + at + 1));
    }
    (torn - from) as u64
}

fn damaged(segment: u64, offset: u64, reason: &'static str) -> JournalError {
    JournalError::Corrupt {
        segment,
        offset,
        group: None,
        index: None,
        reason,
    }
}
