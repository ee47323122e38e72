//! A full disk refuses appends whole and can be purged; a broken one ends everything.

use super::sim::{Fate, Fault, SimDisk};
use super::*;

fn is_full(result: &Result<(), JournalError>) -> bool {
    matches!(result, Err(JournalError::Full { .. }))
}

fn reopened(rig: &Rig) -> World {
    Rig::open(&rig.disk.reboot(Fate::AllLost), small())
        .unwrap()
        .world()
        .clone()
}

/// A disk with room for `segments`, filled until an append is refused; the state of the journal then.
fn filled(segments: u64) -> (Rig, World) {
    let disk = SimDisk::new();
    disk.limit(segments * 4096);
    let mut rig = Rig::open(&disk, small()).unwrap();
    for index in 1.. {
        let before = rig.world().clone();
        rig.submit(1, Step::Append(records(index, 1, 500)));
        rig.turn().unwrap();
        if rig.results().last().is_some_and(is_full) {
            assert!(index > 5 * (segments - 1));
            return (rig, before);
        }
    }
    unreachable!("the disk never ran full")
}

#[test]
fn full_disk_refuses_appends_and_nothing_of_them_is_visible() {
    let (rig, before) = filled(3);
    assert_eq!(World::of(&rig.shared).unwrap(), before);
    assert_eq!(reopened(&rig), before);
    assert_eq!(rig.shared.stats().refused_full, 1);
}

#[test]
fn full_disk_takes_votes_and_purges_and_goes_on_after_them() {
    let (mut rig, mut world) = filled(3);
    let last = world.log(1).next() - 1;
    for step in [
        Step::Vote(Bytes::from_static(b"v")),
        Step::Purge(Mark {
            index: last - 1,
            term: 1,
        }),
    ] {
        world.apply(1, &step);
        rig.submit(1, step);
        rig.turn().unwrap();
        assert_eq!(rig.results().last(), Some(&Ok(())));
    }
    assert_eq!(World::of(&rig.shared).unwrap(), world);
    for index in last + 1..last + 8 {
        let step = Step::Append(records(index, 1, 500));
        world.apply(1, &step);
        rig.submit(1, step);
        rig.turn().unwrap();
        assert_eq!(rig.results().last(), Some(&Ok(())), "index {index}");
    }
    assert_eq!(World::of(&rig.shared).unwrap(), world);
    assert_eq!(reopened(&rig), world);
}

#[test]
fn full_disk_still_opens_and_can_be_purged() {
    let (rig, world) = filled(3);
    let mut rig = Rig::open(&rig.disk.reboot(Fate::AllLost), small()).unwrap();
    assert_eq!(*rig.world(), world);
    let last = world.log(1).next() - 1;
    rig.submit(
        1,
        Step::Purge(Mark {
            index: last,
            term: 1,
        }),
    );
    rig.turn().unwrap();
    rig.submit(1, Step::Append(records(last + 1, 1, 500)));
    rig.turn().unwrap();
    assert_eq!(rig.results(), [Ok(()), Ok(())]);
}

#[test]
fn refused_append_takes_those_behind_it_along_but_no_other_group() {
    let (mut rig, mut world) = filled(3);
    let next = world.log(1).next();
    let before = rig.results().len();
    rig.submit(1, Step::Append(records(next + 1, 2, 500)));
    assert!(
        matches!(rig.results().last(), Some(Err(JournalError::Gap { .. }))),
        "the refused one left a hole"
    );
    rig.submit(1, Step::Append(records(next, 2, 500)));
    rig.submit(1, Step::Append(records(next + 2, 1, 1)));
    rig.submit(2, Step::Append(records(1, 1, 8)));
    rig.submit(1, Step::Truncate { from: next - 1 });
    rig.turn().unwrap();
    let results = &rig.results()[before..];
    assert!(is_full(&results[1]) && is_full(&results[2]), "{results:?}");
    assert_eq!(results[3..], [Ok(()), Ok(())]);
    world.apply(2, &Step::Append(records(1, 1, 8)));
    world.apply(1, &Step::Truncate { from: next - 1 });
    assert_eq!(World::of(&rig.shared).unwrap(), world);
    assert_eq!(reopened(&rig), world);
}

#[test]
fn append_longer_than_the_room_left_is_taken_out_of_the_segments_it_reached() {
    for segments in 1..5 {
        let disk = SimDisk::new();
        disk.limit(segments * 4096);
        let mut rig = Rig::open(&disk, small()).unwrap();
        rig.submit(2, Step::Append(records(1, 1, 20)));
        rig.submit(1, Step::Append(records(1, 2, 20)));
        let world = rig.world().clone();
        rig.submit(1, Step::Append(records(3, 40, 500)));
        rig.submit(1, Step::Append(records(43, 1, 1)));
        rig.turn().unwrap();
        let results = rig.results();
        assert_eq!(results[..2], [Ok(()), Ok(())]);
        assert!(is_full(&results[2]) && is_full(&results[3]));
        assert_eq!(World::of(&rig.shared).unwrap(), world);
        assert_eq!(reopened(&rig), world);
        let mut after = Rig::open(&rig.disk.reboot(Fate::AllLost), small()).unwrap();
        after.submit(1, Step::Append(records(3, 1, 20)));
        after.turn().unwrap();
        assert_eq!(after.results(), [Ok(())], "{segments} segments");
    }
}

#[test]
fn write_without_room_refuses_the_appends_of_the_batch_and_keeps_the_rest() {
    for after in (0..700).step_by(7) {
        let disk = SimDisk::new();
        let mut rig = Rig::open(&disk, small()).unwrap();
        rig.submit(1, Step::Append(records(1, 2, 20)));
        rig.turn().unwrap();
        let mut world = rig.world().clone();
        disk.fail(Fault::NoRoom(after));
        rig.submit(1, Step::Append(records(3, 1, 200)));
        rig.submit(1, Step::Vote(Bytes::from_static(b"kept")));
        rig.submit(1, Step::Append(records(4, 1, 200)));
        rig.submit(2, Step::Append(records(1, 1, 200)));
        rig.submit(1, Step::Truncate { from: 2 });
        rig.turn().unwrap();
        world.apply(1, &Step::Vote(Bytes::from_static(b"kept")));
        world.apply(1, &Step::Truncate { from: 2 });
        let results = rig.results();
        assert!(
            is_full(&results[1]) && is_full(&results[3]) && is_full(&results[4]),
            "{after}: {results:?}"
        );
        assert_eq!((&results[2], &results[5]), (&Ok(()), &Ok(())));
        assert_eq!(World::of(&rig.shared).unwrap(), world, "{after}");
        assert_eq!(reopened(&rig), world, "{after}");
        let step = Step::Append(records(2, 3, 30));
        world.apply(1, &step);
        rig.submit(1, step);
        rig.turn().unwrap();
        assert_eq!(World::of(&rig.shared).unwrap(), world, "{after}");
        assert_eq!(reopened(&rig), world, "{after}");
    }
}

#[test]
fn append_refused_by_a_write_without_room_never_comes_back() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk, small()).unwrap();
    rig.submit(1, Step::Append(records(1, 1, 20)));
    rig.turn().unwrap();
    // Another request waits each time, so the writer does not seal what might come back.
    for (step, fault) in [
        (records(2, 2, 104), Some(Fault::NoRoom(304))),
        (records(2, 1, 104), None),
    ] {
        let before = World::of(&rig.shared).unwrap();
        let refused = fault.is_some();
        if let Some(fault) = fault {
            disk.fail(fault);
        }
        rig.submit(
            1,
            Step::Append([step, records(4, u64::from(refused), 100)].concat()),
        );
        let batch = rig.shared.take();
        let world = World::of(&rig.shared).unwrap();
        rig.submit(2, Step::Append(Vec::new()));
        rig.writer.turn(batch).unwrap();
        let after = Rig::open(&disk.reboot(Fate::AllKept), small()).unwrap();
        assert_eq!(*after.world(), if refused { before } else { world });
    }
}

#[test]
fn room_kept_back_refuses_appends_before_the_disk_is_full() {
    let disk = SimDisk::new();
    disk.limit(10 * 4096);
    let config = JournalConfig {
        min_free_bytes: 6 * 4096,
        ..small()
    };
    let mut rig = Rig::open(&disk, config).unwrap();
    while !rig.results().last().is_some_and(is_full) {
        let next = World::of(&rig.shared).unwrap().log(1).next();
        rig.submit(1, Step::Append(records(next, 1, 500)));
        rig.turn().unwrap();
    }
    assert!(disk.used() <= 4 * 4096);
}

#[test]
fn failed_sync_is_final() {
    for fault in [Fault::Sync, Fault::Write] {
        let disk = SimDisk::new();
        let mut rig = Rig::open(&disk, small()).unwrap();
        rig.submit(1, Step::Append(records(1, 1, 20)));
        rig.turn().unwrap();
        disk.fail(fault);
        rig.submit(1, Step::Append(records(2, 1, 20)));
        rig.submit(2, Step::Vote(Bytes::from_static(b"v")));
        let error = rig.turn().unwrap_err();
        assert!(matches!(error, JournalError::Dead { .. }));
        rig.submit(1, Step::Append(records(3, 1, 20)));
        let dead = Err(error.clone());
        assert_eq!(rig.results(), [Ok(()), dead.clone(), dead.clone(), dead]);
        assert_eq!(World::of(&rig.shared), Err(error.clone()));
        assert_eq!(rig.shared.dead(), Some(error));
    }
}
