//! An entry as a read of the index finds it: in memory, or where on disk.

use super::Record;

/// An entry as a read finds it.
#[derive(Debug)]
pub(super) enum Found {
    Cached(Record),
    OnDisk(OnDisk),
}

/// An entry that must be read from its segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct OnDisk {
    pub(super) index: u64,
    pub(super) term: u64,
    pub(super) len: u32,
    pub(super) segment: u64,
    pub(super) offset: u32,
}
