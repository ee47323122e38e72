//! Power cuts: at every operation on the disk, with every kind of loss; torn tails at every byte; a disk that
//! lies about its syncs.

use super::super::format::{self, SEGMENT_HEADER};
use super::super::spare::segment_name;
use super::sim::{Fate, SimDisk};
use super::*;

const FATES: [Fate; 5] = [
    Fate::AllLost,
    Fate::AllKept,
    Fate::Random(1),
    Fate::Random(2),
    Fate::Random(3),
];

/// What `rig` came up with must be a state between the last that was acknowledged and the last submitted.
fn kept(before: &Rig, after: &Rig, what: &str) {
    let allowed = &before.history[before.acked()..];
    assert!(
        allowed.contains(after.world()),
        "{what}: lost or made up records\n{:?}",
        after.world()
    );
}

/// Works on, closes, and opens again: nothing of the crash may come back.
fn goes_on(mut rig: Rig, seed: u64, what: &str) {
    rig.work(&mut Dice(seed), 3).unwrap();
    for disk in [rig.disk.clone(), rig.disk.reboot(Fate::AllLost)] {
        let again = Rig::open(&disk, small()).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(again.world(), rig.world(), "{what}: after going on");
    }
}

#[test]
fn crash_at_every_operation_keeps_what_was_acknowledged() {
    let mut reclaimed = false;
    for seed in 1..=3 {
        let disk = SimDisk::new();
        let mut rig = Rig::open(&disk, small()).unwrap();
        rig.work(&mut Dice(seed), 36).unwrap();
        reclaimed |= rig.shared.oldest_segment() > Some(1);
        for at in 1..=disk.ops() {
            let disk = SimDisk::new();
            disk.crash_at(at);
            let before = Rig::open(&disk, small()).map(|mut rig| {
                rig.work(&mut Dice(seed), 36).unwrap_err();
                rig
            });
            for fate in FATES {
                let what = format!("seed {seed}, crash at {at}, {fate:?}");
                let disk = disk.reboot(fate);
                let after =
                    Rig::open(&disk, small()).unwrap_or_else(|error| panic!("{what}: {error}"));
                match &before {
                    Ok(before) => kept(before, &after, &what),
                    Err(_) => assert_eq!(*after.world(), World::default(), "{what}"),
                }
                goes_on(after, at, &what);
            }
            disk.revive();
            let what = format!("seed {seed}, killed at {at}");
            let after = Rig::open(&disk, small()).unwrap_or_else(|error| panic!("{what}: {error}"));
            if let Ok(before) = &before {
                kept(before, &after, &what);
            }
            goes_on(after, at, &what);
        }
    }
    assert!(reclaimed, "no seed let a segment go");
}

#[test]
fn crash_while_opening_after_a_crash_keeps_what_was_acknowledged() {
    let disk = SimDisk::new();
    let mut before = Rig::open(&disk, small()).unwrap();
    before.work(&mut Dice(5), 20).unwrap();
    disk.crash_at(disk.ops() + 1);
    before.submit(0, Step::Vote(Bytes::from_static(b"last")));
    before.turn().unwrap_err();
    for first in FATES {
        let whole = disk.reboot(first);
        Rig::open(&whole, small()).unwrap();
        for at in 1..=whole.ops() {
            for second in FATES {
                let what = format!("{first:?}, crash at {at} while opening, {second:?}");
                let disk = disk.reboot(first);
                disk.crash_at(at);
                // The last operation may be one whose failure open need not notice.
                drop(Rig::open(&disk, small()));
                let disk = disk.reboot(second);
                let after =
                    Rig::open(&disk, small()).unwrap_or_else(|error| panic!("{what}: {error}"));
                kept(&before, &after, &what);
                goes_on(after, at, &what);
            }
        }
    }
}

#[test]
fn torn_tail_at_every_byte_is_cut_and_measured() {
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk, small()).unwrap();
    rig.submit(1, Step::Append(records(1, 3, 100)));
    rig.turn().unwrap();
    // The write is done and the sync is not.
    disk.crash_at(disk.ops() + 2);
    rig.submit(1, Step::Append(records(4, 2, 90)));
    rig.submit(2, Step::Append(records(7, 1, 33)));
    rig.turn().unwrap_err();
    let file = segment_name(1);
    let len = disk.last_write(&file);
    let sizes = [
        format::record_size(90),
        format::record_size(90),
        format::record_size(33),
    ];
    assert_eq!(len, sizes.iter().sum::<usize>());
    let written = disk.bytes(&file);
    let begin = SEGMENT_HEADER + format::RECORD_HEADER + 3 * format::record_size(100);
    for cut in 0..=len {
        let what = format!("cut at {cut}");
        let after = Rig::open(&disk.reboot(Fate::LastCut(cut)), small()).unwrap();
        // A record is whole without the zeroes that fill it up.
        let (mut whole, mut count) = (0, 0);
        for (size, data) in sizes.iter().zip([90, 90, 33]) {
            if cut < whole + format::RECORD_HEADER + data {
                break;
            }
            whole += size;
            count += 1;
        }
        let state = &rig.history[rig.acked() + count];
        assert_eq!(after.world(), state, "{what}");
        let torn = written[begin + whole.min(cut)..begin + cut]
            .iter()
            .rposition(|byte| *byte != 0);
        let torn = torn.map_or(0, |at| at as u64 + 1);
        let reported = after.shared.stats().torn_bytes;
        let sizes_sum = sizes.get(count).map_or(0, |size| *size as u64);
        assert!(
            (torn..=torn.max(sizes_sum)).contains(&reported),
            "{what}: {torn} torn, {reported} reported"
        );
        goes_on(after, cut as u64, &what);
    }
}

#[test]
fn record_that_outlives_a_torn_one_never_comes_back() {
    // First of the batch is lost, second is kept: the same first record written again must not revive it.
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk, small()).unwrap();
    rig.submit(1, Step::Append(records(1, 1, 464)));
    rig.turn().unwrap();
    disk.crash_at(disk.ops() + 2);
    rig.submit(1, Step::Append(records(2, 1, 464)));
    rig.submit(1, Step::Vote(Bytes::from_static(b"revived")));
    rig.turn().unwrap_err();
    for seed in 0..64 {
        let disk = disk.reboot(Fate::Random(seed));
        let mut rig = Rig::open(&disk, small()).unwrap();
        if rig.world().log(1).next() == 2 {
            assert_eq!(rig.world().log(1).vote, None);
            rig.submit(1, Step::Append(records(2, 1, 464)));
            let batch = rig.shared.take();
            let world = rig.world().clone();
            rig.submit(2, Step::Vote(Bytes::new()));
            rig.writer.turn(batch).unwrap();
            let again = Rig::open(&disk.reboot(Fate::AllKept), small()).unwrap();
            assert_eq!(*again.world(), world, "seed {seed}");
        }
    }
}

#[test]
fn record_behind_a_lost_start_never_comes_back() {
    // As above, in a segment whose file is then used again under the same number.
    let disk = SimDisk::new();
    let mut rig = Rig::open(&disk, small()).unwrap();
    disk.crash_at(disk.ops() + 2);
    rig.submit(1, Step::Append(records(1, 1, 464)));
    rig.submit(1, Step::Vote(Bytes::from_static(b"revived")));
    rig.turn().unwrap_err();
    let mut empty = 0;
    for seed in 0..64 {
        let disk = disk.reboot(Fate::Random(seed));
        let mut rig = Rig::open(&disk, small()).unwrap();
        if *rig.world() == World::default() {
            empty += 1;
            // Another request waits, so the writer does not seal what might be revived.
            rig.submit(1, Step::Append(records(1, 1, 464)));
            let batch = rig.shared.take();
            let world = rig.world().clone();
            rig.submit(2, Step::Vote(Bytes::new()));
            rig.writer.turn(batch).unwrap();
            let again = Rig::open(&disk.reboot(Fate::AllKept), small()).unwrap();
            assert_eq!(*again.world(), world, "seed {seed}");
        }
    }
    assert!(empty > 10);
}

#[test]
fn segment_stays_until_the_purge_of_its_entries_is_durable() {
    // A purge of group 2 lets segments go while one of group 1 took effect in memory only.
    for (queued, purges) in [(false, 1), (true, 1), (false, 2), (true, 2)] {
        let disk = SimDisk::new();
        let mut rig = Rig::open(&disk, small()).unwrap();
        rig.submit(1, Step::Append(records(1, 2, 100)));
        if !queued {
            rig.turn().unwrap();
        }
        rig.submit(2, Step::Append(records(1, 20, 500)));
        rig.submit(2, Step::Purge(Mark { index: 20, term: 1 }));
        if purges == 2 {
            rig.submit(1, Step::Purge(Mark { index: 1, term: 1 }));
        }
        let batch = rig.shared.take();
        let world = rig.world().clone();
        rig.submit(1, Step::Purge(Mark { index: 2, term: 1 }));
        rig.writer.turn(batch).unwrap();
        let after = Rig::open(&disk.reboot(Fate::AllLost), small()).unwrap();
        assert_eq!(
            *after.world(),
            world,
            "entries still queued: {queued}, {purges} purges"
        );
        rig.turn().unwrap();
        assert!(rig.shared.oldest_segment() > Some(1));
    }
}

#[test]
fn lying_sync_gives_a_former_state_or_is_detected() {
    let (mut former, mut detected) = (0, 0);
    for seed in 1..=150 {
        let disk = SimDisk::new();
        disk.lie();
        let mut before = Rig::open(&disk, small()).unwrap();
        before
            .work(&mut Dice(seed), 4 + seed as usize % 24)
            .unwrap();
        disk.crash_now();
        for fate in [
            Fate::AllLost,
            Fate::Random(seed),
            Fate::Random(seed + 1000),
            Fate::Random(seed + 2000),
        ] {
            match Rig::open(&disk.reboot(fate), small()) {
                Ok(after) => {
                    former += 1;
                    let known = before.history.contains(after.world());
                    assert!(known, "seed {seed}, {fate:?}: made up\n{:?}", after.world());
                    goes_on(after, seed, &format!("seed {seed}, {fate:?}"));
                }
                Err(JournalError::Corrupt { .. }) => detected += 1,
                Err(error) => panic!("seed {seed}, {fate:?}: {error}"),
            }
        }
    }
    assert!(
        former > 50 && detected > 50,
        "{former} former states, {detected} detected"
    );
}
