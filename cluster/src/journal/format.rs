//! The bytes of a segment: its header and its records. Pure; it never touches a file.
//!
//! A segment is `header (64)` then records, each `header (48) | data | zeroes to a multiple of 8`, all
//! numbers little endian. The checksum of a record's header starts from the segment's seed, which is fresh
//! for each use of a file, so a record left over from an earlier use never passes; the header covers the
//! checksum of the data.
//!
//! Every record carries two numbers that make a torn tail and corruption different things:
//! `sequence` counts records over the life of the journal, without holes, and `synced` is the sequence up to
//! which everything was durable when the record was written. So when record n is bad, and any good record
//! with `synced >= n` exists, n had been durable: that is corruption. If none exists, n was part of the last
//! batch, whose fdatasync never returned: that is a torn tail.

use super::GroupId;

/// Length of a segment's header.
pub(super) const SEGMENT_HEADER: usize = 64;
/// Length of a record's header.
pub(super) const RECORD_HEADER: usize = 48;
/// The format this program reads and writes.
pub(super) const VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"FLOTTEJL";
const ALIGN: usize = 8;

/// What stands at the start of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// Place of the segment in the journal; also its file name.
    pub(super) segment: u64,
    /// Fresh for each use of the file.
    pub(super) salt: u64,
    /// The rest of the file was zeroes when this use began.
    pub(super) zeroed: bool,
}

/// Why a segment's header is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadHeader {
    Unreadable,
    Version(u32),
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let mut bytes = [0; SEGMENT_HEADER];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12] = u8::from(self.zeroed);
        bytes[16..24].copy_from_slice(&self.segment.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.salt.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..SEGMENT_HEADER - 4]);
        bytes[SEGMENT_HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, BadHeader> {
        if bytes.len() < SEGMENT_HEADER || bytes[..8] != MAGIC {
            return Err(BadHeader::Unreadable);
        }
        if crc32fast::hash(&bytes[..SEGMENT_HEADER - 4]) != u32_at(bytes, SEGMENT_HEADER - 4) {
            return Err(BadHeader::Unreadable);
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(BadHeader::Version(version));
        }
        Ok(Self {
            segment: u64_at(bytes, 16),
            salt: u64_at(bytes, 24),
            zeroed: bytes[12] != 0,
        })
    }

    /// Where the checksums of this segment's records start from.
    pub(super) fn seed(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.segment.to_le_bytes());
        hasher.update(&self.salt.to_le_bytes());
        hasher.finalize()
    }
}

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    /// First record of every segment that holds any: the segments before it end below its sequence.
    Start = 1,
    /// An entry of a group's log.
    Entry = 2,
    /// The latest vote of a group; its bytes are the data.
    Vote = 3,
    /// All entries of the group from `index` on are gone.
    Truncate = 4,
    /// All entries of the group up to `index` are gone; `term` is that of `index`.
    Purge = 5,
    /// Says that all before it is durable; the next batch overwrites it.
    Seal = 6,
}

impl Kind {
    fn from_u32(value: u32) -> Option<Self> {
        Some(match value {
            1 => Self::Start,
            2 => Self::Entry,
            3 => Self::Vote,
            4 => Self::Truncate,
            5 => Self::Purge,
            6 => Self::Seal,
            _ => return None,
        })
    }
}

/// A record without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) kind: Kind,
    pub(super) group: GroupId,
    pub(super) index: u64,
    pub(super) term: u64,
    pub(super) sequence: u64,
    /// Everything up to this sequence was durable when the record was written.
    pub(super) synced: u64,
    pub(super) len: u32,
    data_crc: u32,
}

/// What the writer decides about a record; the rest follows from the data.
#[derive(Debug, Clone, Copy)]
pub(super) struct Label {
    pub(super) kind: Kind,
    pub(super) group: GroupId,
    pub(super) index: u64,
    pub(super) term: u64,
}

/// Bytes that a record with `len` bytes of data takes in a segment.
pub(super) const fn record_size(len: usize) -> usize {
    RECORD_HEADER + len.next_multiple_of(ALIGN)
}

/// Appends a record to `out`. `synced` is below `sequence`, by less than 2^32.
pub(super) fn encode(
    out: &mut Vec<u8>,
    seed: u32,
    label: Label,
    (sequence, synced): (u64, u64),
    data: &[u8],
) {
    debug_assert!(synced < sequence && sequence - synced <= u64::from(u32::MAX));
    let mut header = [0; RECORD_HEADER];
    header[4..8].copy_from_slice(&crc32fast::hash(data).to_le_bytes());
    header[8..16].copy_from_slice(&sequence.to_le_bytes());
    header[16..20].copy_from_slice(&((sequence - synced) as u32).to_le_bytes());
    header[20..24].copy_from_slice(&(data.len() as u32).to_le_bytes());
    header[24..32].copy_from_slice(&label.index.to_le_bytes());
    header[32..40].copy_from_slice(&label.term.to_le_bytes());
    header[40..44].copy_from_slice(&label.group.0.to_le_bytes());
    header[44..48].copy_from_slice(&(label.kind as u32).to_le_bytes());
    let crc = header_crc(&header, seed);
    header[..4].copy_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(data);
    let padding = data.len().next_multiple_of(ALIGN) - data.len();
    out.extend_from_slice(&[0; ALIGN][..padding]);
}

/// The record header at the start of `bytes`, if it was written in this use of the segment and is intact.
pub(super) fn decode_header(bytes: &[u8], seed: u32) -> Option<RecordHeader> {
    let bytes = bytes.get(..RECORD_HEADER)?;
    let sequence = u64_at(bytes, 8);
    let behind = u64::from(u32_at(bytes, 16));
    if sequence == 0
        || behind == 0
        || behind > sequence
        || header_crc(bytes, seed) != u32_at(bytes, 0)
    {
        return None;
    }
    Some(RecordHeader {
        kind: Kind::from_u32(u32_at(bytes, 44))?,
        group: GroupId(u32_at(bytes, 40)),
        index: u64_at(bytes, 24),
        term: u64_at(bytes, 32),
        sequence,
        synced: sequence - behind,
        len: u32_at(bytes, 20),
        data_crc: u32_at(bytes, 4),
    })
}

impl RecordHeader {
    /// The record's data, which follows its header in `bytes`, if it is intact.
    pub(super) fn data<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let data = bytes.get(RECORD_HEADER..RECORD_HEADER + self.len as usize)?;
        (crc32fast::hash(data) == self.data_crc).then_some(data)
    }

    /// Bytes that the record takes in its segment.
    pub(super) fn size(&self) -> usize {
        record_size(self.len as usize)
    }
}

fn header_crc(header: &[u8], seed: u32) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(&header[4..RECORD_HEADER]);
    hasher.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: Label = Label {
        kind: Kind::Entry,
        group: GroupId(3),
        index: 9,
        term: 2,
    };

    #[test]
    fn record_comes_back_as_written() {
        let mut out = Vec::new();
        encode(&mut out, 77, LABEL, (5, 4), b"hello");
        assert_eq!(out.len(), record_size(5));
        let header = decode_header(&out, 77).expect("intact");
        assert_eq!(
            (header.group, header.index, header.term),
            (GroupId(3), 9, 2)
        );
        assert_eq!((header.sequence, header.synced), (5, 4));
        assert_eq!(header.data(&out), Some(&b"hello"[..]));
    }

    #[test]
    fn record_of_another_use_of_the_segment_is_none() {
        let mut out = Vec::new();
        encode(&mut out, 77, LABEL, (5, 4), b"hello");
        assert_eq!(decode_header(&out, 78), None);
    }

    #[test]
    fn any_flipped_bit_of_a_record_shows() {
        let mut out = Vec::new();
        encode(&mut out, 77, LABEL, (5, 4), b"hello world");
        for bit in 0..(RECORD_HEADER + 11) * 8 {
            let mut bad = out.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let intact = decode_header(&bad, 77).is_some_and(|header| header.data(&bad).is_some());
            assert!(!intact, "bit {bit}");
        }
    }

    #[test]
    fn segment_header_comes_back_and_any_flipped_bit_shows() {
        let header = SegmentHeader {
            segment: 8,
            salt: 99,
            zeroed: true,
        };
        let bytes = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
        for bit in 0..SEGMENT_HEADER * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                SegmentHeader::decode(&bad),
                Err(BadHeader::Unreadable),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn zeroes_and_short_bytes_are_no_record() {
        assert_eq!(decode_header(&[0; 64], 0), None);
        assert_eq!(decode_header(&[1; 10], 0), None);
    }
}
