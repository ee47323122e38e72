//! Snapshots of state machines as a sequence of length-delimited records, so that neither side needs the whole in one
//! buffer.

use std::io::{self, Read, Write};

use prost::Message;

/// Longest record that is believed: a retained message of the greatest MQTT size and its frame.
const RECORD_BYTES_MAX: usize = 272 << 20;

/// Why a snapshot could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file or stream failed or ended within a record.
    #[error("snapshot: {0}")]
    Io(#[from] io::Error),
    /// A record is not what this version understands.
    #[error("snapshot record {number}: {what}")]
    Record {
        /// Counted from 0.
        number: u64,
        /// What is wrong.
        what: String,
    },
}

/// Writes records one after the other.
pub fn write_records<M: Message>(
    records: impl IntoIterator<Item = M>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(64 << 10);
    for record in records {
        record
            .encode_length_delimited(&mut buffer)
            .map_err(io::Error::other)?;
        if buffer.len() >= 64 << 10 {
            out.write_all(&buffer)?;
            buffer.clear();
        }
    }
    out.write_all(&buffer)
}

/// Reads records until the end and hands each to `take`.
pub fn read_records<M: Message + Default>(
    data: &mut dyn Read,
    mut take: impl FnMut(M) -> Result<(), String>,
) -> Result<(), ReadError> {
    let mut number = 0;
    let mut buffer = Vec::new();
    while let Some(length) = read_length(data, number)? {
        buffer.resize(length, 0);
        data.read_exact(&mut buffer)?;
        let record = M::decode(buffer.as_slice()).map_err(|e| ReadError::Record {
            number,
            what: e.to_string(),
        })?;
        take(record).map_err(|what| ReadError::Record { number, what })?;
        number += 1;
    }
    Ok(())
}

/// The next record's length, or none at the end.
fn read_length(data: &mut dyn Read, number: u64) -> Result<Option<usize>, ReadError> {
    let mut value = 0_usize;
    for shift in (0..35).step_by(7) {
        let mut byte = [0];
        if data.read(&mut byte)? == 0 {
            return if shift == 0 {
                Ok(None)
            } else {
                Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
            };
        }
        value |= usize::from(byte[0] & 0x7F) << shift;
        if byte[0] & 0x80 == 0 {
            if value > RECORD_BYTES_MAX {
                break;
            }
            return Ok(Some(value));
        }
    }
    Err(ReadError::Record {
        number,
        what: "its length is out of range".into(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use flotte_proto::Member;

    use super::*;

    fn members(count: u64) -> Vec<Member> {
        (0..count)
            .map(|node_id| Member {
                node_id,
                name: "x".repeat(300),
                ..Member::default()
            })
            .collect()
    }

    #[test]
    fn records_come_back_in_order() {
        let mut bytes = Vec::new();
        write_records(members(1_000), &mut bytes).unwrap();
        let mut back = Vec::new();
        read_records::<Member>(&mut bytes.as_slice(), |m| {
            back.push(m);
            Ok(())
        })
        .unwrap();
        assert_eq!(back, members(1_000));
    }

    #[test]
    fn a_cut_snapshot_is_an_error() {
        let mut bytes = Vec::new();
        write_records(members(2), &mut bytes).unwrap();
        bytes.pop();
        assert!(read_records::<Member>(&mut bytes.as_slice(), |_| Ok(())).is_err());
        assert!(read_records::<Member>(&mut [0xFF, 0xFF].as_slice(), |_| Ok(())).is_err());
        assert!(read_records::<Member>(&mut [0xFF; 6].as_slice(), |_| Ok(())).is_err());
    }
}
