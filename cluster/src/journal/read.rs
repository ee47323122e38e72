//! Reads entries: from the cache, or from their segments without the lock. It never returns data whose
//! checksum does not fit.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::format::{self, Kind};
use super::found::{Found, OnDisk};
use super::queue::{Segment, Shared};
use super::{GroupId, JournalError, Record};

/// Entries that are close to each other are read together, up to this many bytes.
const READ_BYTES: usize = 1 << 20;
/// What may lie between two entries that are read together.
const GAP_BYTES: usize = 32 * 1024;

/// Entries of one segment that are read together.
struct Run {
    segment: Arc<Segment>,
    start: usize,
    end: usize,
    entries: Vec<OnDisk>,
}

enum Part {
    Cached(Record),
    Run(Run),
}

/// The entries of the group in `range` that exist.
pub(super) fn read(
    shared: &Shared,
    group: GroupId,
    range: &Range<u64>,
    max_bytes: usize,
) -> Result<Vec<Record>, JournalError> {
    let parts = shared.lookup(|index, segments| {
        let mut parts: Vec<Part> = Vec::new();
        for found in index.find(group, range, max_bytes) {
            match found {
                Found::Cached(record) => parts.push(Part::Cached(record)),
                Found::OnDisk(entry) => {
                    if let Some(Part::Run(run)) = parts.last_mut()
                        && run.take(&entry)
                    {
                        continue;
                    }
                    let segment = segments
                        .get(&entry.segment)
                        .ok_or_else(|| lost(group, &entry, "segment missing"))?;
                    parts.push(Part::Run(Run::new(Arc::clone(segment), entry)));
                }
            }
        }
        Ok(parts)
    })??;
    let mut records = Vec::new();
    for part in parts {
        match part {
            Part::Cached(record) => records.push(record),
            Part::Run(run) => {
                shared
                    .counters
                    .disk_reads
                    .fetch_add(run.entries.len() as u64, Ordering::Relaxed);
                run.read(group, &mut records)?;
            }
        }
    }
    Ok(records)
}

impl Run {
    fn new(segment: Arc<Segment>, entry: OnDisk) -> Self {
        Self {
            segment,
            start: entry.offset as usize,
            end: end_of(&entry),
            entries: vec![entry],
        }
    }

    /// Takes one more entry in, if it is close behind.
    fn take(&mut self, entry: &OnDisk) -> bool {
        let near = entry.segment == self.segment.number
            && (self.end..=self.end + GAP_BYTES).contains(&(entry.offset as usize))
            && end_of(entry) - self.start <= READ_BYTES;
        if near {
            self.end = end_of(entry);
            self.entries.push(*entry);
        }
        near
    }

    fn read(&self, group: GroupId, records: &mut Vec<Record>) -> Result<(), JournalError> {
        let mut buffer = vec![0; self.end - self.start];
        let read = self
            .segment
            .file
            .read_exact_at(&mut buffer, self.start as u64);
        read.map_err(|error| JournalError::Read {
            segment: self.segment.number,
            cause: error.to_string(),
        })?;
        let buffer = Bytes::from(buffer);
        for entry in &self.entries {
            let bytes = buffer.slice(entry.offset as usize - self.start..);
            let header = format::decode_header(&bytes, self.segment.seed).filter(|header| {
                header.kind == Kind::Entry
                    && header.group == group
                    && (header.index, header.term) == (entry.index, entry.term)
            });
            let data = header.and_then(|header| header.data(&bytes));
            let data = data.ok_or_else(|| lost(group, entry, "the checksum does not fit"))?;
            records.push(Record {
                index: entry.index,
                term: entry.term,
                data: bytes.slice_ref(data),
            });
        }
        Ok(())
    }
}

fn end_of(entry: &OnDisk) -> usize {
    entry.offset as usize + format::record_size(entry.len as usize)
}

fn lost(group: GroupId, entry: &OnDisk, reason: &'static str) -> JournalError {
    JournalError::Corrupt {
        segment: entry.segment,
        offset: u64::from(entry.offset),
        group: Some(group),
        index: Some(entry.index),
        reason,
    }
}
