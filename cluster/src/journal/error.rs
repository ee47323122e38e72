//! What can go wrong in the journal, told apart by what the caller can do about it.
//! It never holds an entry's content.

use std::io;

use super::GroupId;

/// Why a call to the journal failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// The configuration is unusable; nothing was opened.
    #[error("journal: {key} = {value} is not allowed: {allowed}")]
    Config {
        key: &'static str,
        value: u64,
        allowed: &'static str,
    },
    /// The disk failed. Final: whether what was under way is durable is unknown, and every later call fails
    /// the same way. Also when a full disk has used up what each segment keeps for votes, truncations and purges.
    /// The process must end.
    #[error("journal: the disk failed: {cause}")]
    Dead { cause: String },
    /// No room for this request. It was refused whole; purge frees room, and later requests may succeed.
    #[error(
        "journal: no room on the disk: {needed} bytes wanted, {free} free, {kept} of them kept back"
    )]
    Full { needed: u64, free: u64, kept: u64 },
    /// Too many requests wait. Nothing was done; ask again when there is room.
    #[error("journal: {waiting} requests wait already")]
    Busy { waiting: usize },
    /// The caller's bug: the log of a group has no holes. Nothing was done.
    #[error("journal: group {group} expects index {expected}, not {index}", group = group.0)]
    Gap {
        group: GroupId,
        expected: u64,
        index: u64,
    },
    /// One record can not be longer than what a segment holds. Nothing was done.
    #[error("journal: a record of {len} bytes is longer than {max}")]
    TooLarge { len: usize, max: usize },
    /// Something that was durable is no longer what was written. Group and index are named where the record
    /// still says them.
    #[error("journal: segment {segment:016x}.seg is corrupt at byte {offset} ({}): {reason}", named(*.group, *.index))]
    Corrupt {
        segment: u64,
        offset: u64,
        group: Option<GroupId>,
        index: Option<u64>,
        reason: &'static str,
    },
    /// Written by a program with another format.
    #[error(
        "journal: segment {segment:016x}.seg has format {found}, this program reads format {known}"
    )]
    Version {
        segment: u64,
        found: u32,
        known: u32,
    },
    /// The directory could not be read or prepared at open.
    #[error("journal: can not open: {cause}")]
    Open { cause: String },
    /// An entry could not be read from the disk. Nothing else is wrong with the journal.
    #[error("journal: can not read segment {segment:016x}.seg: {cause}")]
    Read { segment: u64, cause: String },
    /// The journal was shut down.
    #[error("journal: shut down")]
    Closed,
}

impl JournalError {
    /// The final error for a failure of the disk.
    pub(super) fn dead(doing: &str, error: &io::Error) -> Self {
        Self::Dead {
            cause: format!("{doing}: {error}"),
        }
    }

    /// A failure of the disk while opening.
    pub(super) fn open(doing: &str, error: &io::Error) -> Self {
        Self::Open {
            cause: format!("{doing}: {error}"),
        }
    }
}

/// Whether the disk says that it has no room, as opposed to being broken.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

fn named(group: Option<GroupId>, index: Option<u64>) -> String {
    match (group, index) {
        (Some(group), Some(index)) => format!("group {}, index {index}", group.0),
        (Some(group), None) => format!("group {}", group.0),
        _ => "record unreadable".to_owned(),
    }
}
