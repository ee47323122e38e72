//! Damage to what was durable: named and refused, never skipped.

use super::super::format::{
    self, Kind, RECORD_HEADER, RecordHeader, SEGMENT_HEADER, SegmentHeader,
};
use super::super::spare::segment_number;
use super::sim::{Fate, SimDisk};
use super::*;

/// A disk with some segments, all of it durable and sealed.
fn prepared() -> (SimDisk, World) {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk, small()).unwrap();
    rig.work(&mut Dice(7), 20).unwrap();
    rig.submit(9, Step::Append(records(1, 6, 600)));
    rig.submit(9, Step::Vote(Bytes::from_static(b"me")));
    rig.turn().unwrap();
    (disk, rig.world().clone())
}

/// The records of a segment, with where they begin.
fn records_of(bytes: &[u8]) -> Vec<(usize, RecordHeader)> {
    let seed = SegmentHeader::decode(bytes).unwrap().seed();
    let mut found = Vec::new();
    let mut at = SEGMENT_HEADER;
    while let Some(header) = bytes
        .get(at..)
        .and_then(|rest| format::decode_header(rest, seed))
    {
        found.push((at, header));
        at += header.size();
    }
    found
}

#[test]
fn any_flipped_bit_is_refused_by_name_or_changes_nothing() {
    let (disk, world) = prepared();
    for name in disk.names() {
        let Some(segment) = segment_number(&name) else {
            continue;
        };
        let bytes = disk.bytes(&name);
        let records = records_of(&bytes);
        for byte in (0..bytes.len()).step_by(5) {
            let bad = disk.reboot(Fate::AllKept);
            bad.flip(&name, byte, (byte % 8) as u32);
            let hit = records.iter().rfind(|(at, _)| *at <= byte);
            let hit = hit.filter(|(at, header)| byte < at + RECORD_HEADER + header.len as usize);
            let what = format!("{name}, byte {byte}, record {hit:?}");
            match (Rig::open(&bad, small()), hit) {
                (Ok(rig), None) => assert_eq!(*rig.world(), world, "{what}"),
                // The seal is not needed, only useful.
                (Ok(rig), Some((_, header))) if header.kind == Kind::Seal => {
                    assert_eq!(*rig.world(), world, "{what}")
                }
                (Ok(_), _) => panic!("{what}: not noticed"),
                (Err(error), None) => {
                    assert!(byte < SEGMENT_HEADER, "{what}: {error}");
                    assert!(
                        matches!(error, JournalError::Corrupt { segment: s, offset: 0, .. } if s == segment)
                    );
                }
                (Err(error), Some((at, header))) => {
                    // A damaged header can not name its group.
                    let named = byte >= at + RECORD_HEADER;
                    let entry = named && header.kind == Kind::Entry;
                    let JournalError::Corrupt {
                        segment: s,
                        offset,
                        group,
                        index,
                        ..
                    } = error
                    else {
                        panic!("{what}: {error}");
                    };
                    assert_eq!((s, offset), (segment, *at as u64), "{what}");
                    assert_eq!(group, named.then_some(header.group), "{what}");
                    assert_eq!(index, entry.then_some(header.index), "{what}");
                }
            }
        }
    }
}

#[test]
fn damage_to_the_last_batch_is_refused_after_kill_and_reopen() {
    let (disk, _) = prepared();
    // Opened and left alone: what was there is known to be durable, though nothing was written since.
    drop(Rig::open(&disk, small()).unwrap());
    let segments = disk
        .names()
        .into_iter()
        .filter(|name| segment_number(name).is_some());
    let name = segments
        .rev()
        .find(|name| records_of(&disk.bytes(name)).len() > 1)
        .unwrap();
    let (at, last) = records_of(&disk.bytes(&name))
        .into_iter()
        .rfind(|(_, header)| header.kind != Kind::Seal)
        .unwrap();
    disk.flip(&name, at + RECORD_HEADER, 0);
    let error = Rig::open(&disk, small()).map(|_| ()).unwrap_err();
    assert!(
        matches!(error, JournalError::Corrupt { group, .. } if group == Some(last.group)),
        "{error}"
    );
}

#[test]
fn missing_segment_is_refused() {
    let (disk, _) = prepared();
    let segments: Vec<_> = disk
        .names()
        .into_iter()
        .filter(|name| segment_number(name).is_some())
        .collect();
    assert!(segments.len() >= 3);
    for name in &segments[1..segments.len() - 1] {
        let bad = disk.reboot(Fate::AllKept);
        bad.lose(name);
        let error = Rig::open(&bad, small()).map(|_| ()).unwrap_err();
        assert!(
            matches!(error, JournalError::Corrupt { .. }),
            "{name}: {error}"
        );
    }
    let bad = disk.reboot(Fate::AllKept);
    segments.iter().for_each(|name| bad.lose(name));
    let error = Rig::open(&bad, small()).map(|_| ()).unwrap_err();
    assert!(matches!(error, JournalError::Corrupt { .. }), "{error}");
}

#[test]
fn other_format_is_refused_by_its_number() {
    let disk = SimDisk::new();
    drop(Rig::open(&disk, small()).unwrap());
    let name = disk
        .names()
        .into_iter()
        .find(|name| segment_number(name).is_some())
        .unwrap();
    let mut header = disk.bytes(&name)[..SEGMENT_HEADER].to_vec();
    header[8] = 2;
    let crc = crc32fast::hash(&header[..SEGMENT_HEADER - 4]);
    header[SEGMENT_HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
    disk.open(&name).unwrap().write_at(&header, 0).unwrap();
    let error = Rig::open(&disk, small()).map(|_| ()).unwrap_err();
    assert!(
        matches!(
            error,
            JournalError::Version {
                found: 2,
                known: 1,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn read_of_a_damaged_entry_names_it_and_the_journal_goes_on() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk, small()).unwrap();
    rig.submit(1, Step::Append(records(1, 4, 100)));
    rig.turn().unwrap();
    let name = disk
        .names()
        .into_iter()
        .find(|name| segment_number(name) == Some(1))
        .unwrap();
    let (at, _) = records_of(&disk.bytes(&name))
        .into_iter()
        .find(|(_, header)| header.index == 3)
        .unwrap();
    disk.flip(&name, at + RECORD_HEADER + 50, 4);
    let error = World::of(&rig.shared).unwrap_err();
    let expected = (Some(GroupId(1)), Some(3), at as u64);
    assert!(
        matches!(error, JournalError::Corrupt { group, index, offset, .. } if (group, index, offset) == expected)
    );
    rig.submit(1, Step::Append(records(5, 1, 10)));
    rig.turn().unwrap();
    assert_eq!(rig.results(), [Ok(()), Ok(())]);
}
