//! The consensus log of one group, in the journal.
//!
//! An entry is a journal record with the same index and term; what the record holds is its encoded
//! payload. The commit index is not stored: after a restart a group learns it from its leader or by
//! an election, and a node serves no one before its replica has caught up (design, section 4).

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};

use futures::Stream;
use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};

use super::codec;
use super::types::{Entry, LogId, Types, Vote};
use crate::journal::{GroupId, Journal, JournalError, Mark, Record};

/// Bytes read from the journal at a time, so also about what one append request carries. At least
/// one entry is read whatever its size.
const READ_BYTES: usize = 1 << 20;

/// A group's log. Clones share it; the library reads through several.
#[derive(Clone, Debug)]
pub struct LogStore {
    group: GroupId,
    journal: Journal,
}

impl LogStore {
    pub fn new(group: GroupId, journal: Journal) -> Self {
        Self { group, journal }
    }

    /// The entries of a range that exist, up to about `max_bytes` of them.
    ///
    /// May read the disk, on the thread that asks: what replication and apply read is recent and
    /// comes from the journal's cache; a replica that is far behind costs page cache reads of at
    /// most [`READ_BYTES`] at a time.
    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let records = self
            .journal
            .read(self.group, range, max_bytes)
            .map_err(broken)?;
        records.into_iter().map(entry).collect()
    }
}

fn entry(record: Record) -> io::Result<Entry> {
    Ok(Entry {
        log_id: codec::log_id(record.term, record.index),
        payload: codec::decode_payload(record.data)?,
    })
}

fn record(entry: Entry) -> Record {
    Record {
        index: entry.log_id.index,
        term: *entry.log_id.leader_id,
        data: codec::encode_payload(entry.payload),
    }
}

fn broken(error: JournalError) -> io::Error {
    io::Error::other(error)
}

fn bounds(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<R>(&mut self, range: R) -> io::Result<Vec<Entry>>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.read(bounds(&range), usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start..end, READ_BYTES)
    }

    async fn entries_stream<R>(
        &mut self,
        range: R,
    ) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        // Piece by piece: a replica may have a very long way to go in one step.
        let state = (self.clone(), bounds(&range), VecDeque::new());
        futures::stream::unfold(state, |(log, mut rest, mut piece)| async move {
            if piece.is_empty() && !rest.is_empty() {
                match log.read(rest.clone(), READ_BYTES) {
                    Ok(entries) => piece.extend(entries),
                    Err(error) => {
                        let end = rest.end;
                        return Some((Err(error), (log, end..end, piece)));
                    }
                }
            }
            let next: Entry = piece.pop_front()?;
            rest.start = next.log_id.index.saturating_add(1);
            Some((Ok(next), (log, rest, piece)))
        })
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        let vote = self.journal.vote(self.group);
        Ok(vote.map(codec::decode_vote).transpose()?)
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let purged = self
            .journal
            .purged(self.group)
            .map(|mark| codec::log_id(mark.term, mark.index));
        let last = self
            .journal
            .last(self.group)
            .map(|(index, term)| codec::log_id(term, index));
        Ok(LogState {
            last_purged_log_id: purged,
            last_log_id: last.or(purged),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.journal
            .save_vote_durably(self.group, codec::encode_vote(vote))
            .await
            .map_err(broken)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let records = entries.into_iter().map(record).collect();
        let done = Box::new(move |result: Result<(), JournalError>| {
            callback.io_completed(result.map_err(broken));
        });
        self.journal
            .append_when_room(self.group, records, done)
            .await;
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.journal
            .truncate_after_durably(self.group, last.map(|id| id.index))
            .await
            .map_err(broken)
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let mark = Mark {
            index: upto.index,
            term: *upto.leader_id,
        };
        self.journal
            .purge_durably(self.group, mark)
            .await
            .map_err(broken)
    }
}
