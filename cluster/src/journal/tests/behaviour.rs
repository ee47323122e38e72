//! What callers may rely on, on a real disk and through the public handle.

use std::sync::mpsc;

use super::super::spare::segment_name;
use super::super::{Journal, JournalStats, format};
use super::sim::LIMIT;
use super::*;

const ONE: GroupId = GroupId(1);

fn open(dir: &tempfile::TempDir, config: JournalConfig) -> Journal {
    Journal::open(dir.path(), config).unwrap()
}

/// A `done` and where it reports.
fn report() -> (Done, mpsc::Receiver<Result<(), JournalError>>) {
    let (tx, rx) = mpsc::channel();
    (Box::new(move |result| tx.send(result).unwrap()), rx)
}

fn append(journal: &Journal, group: GroupId, records: Vec<Record>) -> Result<(), JournalError> {
    let (done, reported) = report();
    journal.append(group, records, done);
    reported.recv().unwrap()
}

fn purge(journal: &Journal, group: GroupId, index: u64) -> Result<(), JournalError> {
    let (done, reported) = report();
    journal.purge(group, Mark { index, term: 1 }, done);
    reported.recv().unwrap()
}

fn vote(journal: &Journal, group: GroupId, vote: &'static [u8]) -> Result<(), JournalError> {
    let (done, reported) = report();
    journal.save_vote(group, Bytes::from_static(vote), done);
    reported.recv().unwrap()
}

fn truncate(journal: &Journal, group: GroupId, last_kept: Option<u64>) -> Result<(), JournalError> {
    let (done, reported) = report();
    journal.truncate_after(group, last_kept, done);
    reported.recv().unwrap()
}

#[test]
fn everything_survives_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir, JournalConfig::default());
    append(&journal, ONE, records(0, 10, 50)).unwrap();
    append(&journal, GroupId(7), records(5, 3, 5)).unwrap();
    truncate(&journal, ONE, Some(7)).unwrap();
    purge(&journal, ONE, 2).unwrap();
    vote(&journal, ONE, b"vote").unwrap();
    for journal in [journal.clone(), {
        drop(journal);
        open(&dir, JournalConfig::default())
    }] {
        assert_eq!(journal.groups(), [ONE, GroupId(7)]);
        assert_eq!(journal.first_index(ONE), Some(3));
        assert_eq!(journal.last(ONE), Some((7, 1)));
        assert_eq!(journal.term(ONE, 4), Some(1));
        assert_eq!(journal.term(ONE, 8), None);
        assert_eq!(journal.purged(ONE), Some(Mark { index: 2, term: 1 }));
        assert_eq!(journal.vote(ONE), Some(Bytes::from_static(b"vote")));
        assert_eq!(
            journal.read(ONE, 0..100, usize::MAX).unwrap(),
            records(3, 5, 50)
        );
        assert_eq!(
            journal.read(GroupId(7), 6..7, usize::MAX).unwrap(),
            records(6, 1, 5)
        );
        assert_eq!(journal.vote(GroupId(7)), None);
    }
}

#[test]
fn append_is_readable_before_it_is_durable() {
    let mut rig = Rig::open(&SimDisk::new(), small()).unwrap();
    rig.submit(1, Step::Append(records(1, 3, 10)));
    rig.submit(1, Step::Truncate { from: 3 });
    rig.submit(1, Step::Append(vec![record(3, 2, b"other")]));
    assert_eq!(World::of(&rig.shared).unwrap(), *rig.world());
    assert!(rig.results().is_empty());
    rig.turn().unwrap();
    assert_eq!(World::of(&rig.shared).unwrap(), *rig.world());
    assert_eq!(rig.results(), [Ok(()), Ok(()), Ok(())]);
}

#[test]
fn entry_replaced_while_it_is_written_keeps_its_new_content() {
    let mut rig = Rig::open(&SimDisk::new(), small()).unwrap();
    rig.submit(1, Step::Append(records(1, 3, 10)));
    let batch = rig.shared.take();
    rig.submit(1, Step::Truncate { from: 2 });
    rig.submit(
        1,
        Step::Append(vec![record(2, 1, b"other"), record(3, 1, b"another")]),
    );
    rig.writer.turn(batch).unwrap();
    assert_eq!(World::of(&rig.shared).unwrap(), *rig.world());
    rig.turn().unwrap();
    assert_eq!(World::of(&rig.shared).unwrap(), *rig.world());
}

#[test]
fn one_batch_is_one_sync() {
    let mut rig = Rig::open(&SimDisk::new(), small()).unwrap();
    for group in 0..10 {
        rig.submit(group, Step::Append(records(1, 1, 50)));
    }
    rig.turn().unwrap();
    assert_eq!(rig.shared.stats().fsyncs, 1);
    assert_eq!(rig.shared.stats().appended, 10);
}

/// Group commit over all groups: what comes while a flush is under way is in the next one, however many groups it is of.
#[test]
fn groups_that_wait_for_a_flush_share_the_next_one() {
    let disk = SimDisk::new();
    let journal = Journal::start(Arc::new(disk.clone()), small()).unwrap();
    let (tell, told) = mpsc::channel();
    let submit = |group| {
        let tell = tell.clone();
        let done: Done = Box::new(move |result| tell.send((group, result)).unwrap());
        journal.append(GroupId(group), records(1, 1, 50), done);
    };
    let first = disk.hold_sync();
    submit(0);
    first.wait();
    (1..=8).for_each(submit);
    assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Empty));
    let second = disk.hold_sync();
    first.go_on();
    second.wait();
    // All are written, at once, and only the one of the first flush has an answer.
    let written = disk.last_write(&segment_name(1));
    assert_eq!(written, 8 * format::record_size(50));
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [(0, Ok(()))]);
    second.go_on();
    for group in 1..=8 {
        assert_eq!(told.recv_timeout(LIMIT), Ok((group, Ok(()))));
    }
    journal.shutdown();
    assert_eq!(journal.stats().fsyncs, 2);
}

#[test]
fn hole_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir, JournalConfig::default());
    append(&journal, ONE, records(5, 2, 1)).unwrap();
    let gap = |expected, index| {
        Err(JournalError::Gap {
            group: ONE,
            expected,
            index,
        })
    };
    assert_eq!(append(&journal, ONE, records(8, 1, 1)), gap(7, 8));
    assert_eq!(append(&journal, ONE, records(6, 1, 1)), gap(7, 6));
    let jump = vec![record(7, 1, b""), record(9, 1, b"")];
    assert_eq!(append(&journal, ONE, jump), gap(8, 9));
    purge(&journal, ONE, 5).unwrap();
    assert_eq!(truncate(&journal, ONE, Some(4)), gap(6, 5));
    assert_eq!(
        purge(&journal, GroupId(2), u64::MAX).map_err(|_| ()),
        Err(())
    );
    assert_eq!(journal.last(ONE), Some((6, 1)));
    append(&journal, ONE, records(7, 1, 1)).unwrap();
}

#[test]
fn purge_beyond_the_end_empties_the_log_and_it_goes_on_there() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir, JournalConfig::default());
    append(&journal, ONE, records(1, 3, 1)).unwrap();
    purge(&journal, ONE, 10).unwrap();
    purge(&journal, ONE, 4).unwrap();
    assert_eq!((journal.first_index(ONE), journal.last(ONE)), (None, None));
    assert!(append(&journal, ONE, records(4, 1, 1)).is_err());
    append(&journal, ONE, records(11, 1, 1)).unwrap();
    drop(journal);
    let journal = open(&dir, JournalConfig::default());
    assert_eq!(journal.purged(ONE), Some(Mark { index: 10, term: 1 }));
    assert_eq!(journal.first_index(ONE), Some(11));
}

#[test]
fn the_last_bytes_of_a_log_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir, JournalConfig::default());
    assert_eq!(journal.index_before_last(ONE, 0), None);
    append(&journal, ONE, records(4, 10, 50)).unwrap();
    assert_eq!(journal.index_before_last(ONE, 0), Some(13));
    assert_eq!(journal.index_before_last(ONE, 99), Some(12));
    assert_eq!(journal.index_before_last(ONE, 100), Some(11));
    assert_eq!(journal.index_before_last(ONE, 499), Some(4));
    assert_eq!(journal.index_before_last(ONE, 500), None);
    purge(&journal, ONE, 11).unwrap();
    assert_eq!(journal.index_before_last(ONE, 100), None);
    assert_eq!(journal.index_before_last(ONE, 50), Some(12));
}

#[test]
fn truncation_of_everything_lets_the_log_begin_anew() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir, JournalConfig::default());
    append(&journal, ONE, records(3, 3, 1)).unwrap();
    truncate(&journal, ONE, None).unwrap();
    assert_eq!(journal.last(ONE), None);
    append(&journal, ONE, records(0, 2, 1)).unwrap();
    drop(journal);
    assert_eq!(open(&dir, JournalConfig::default()).last(ONE), Some((1, 1)));
}

#[test]
fn too_long_a_record_is_refused_and_the_longest_fits() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir, small());
    let Err(JournalError::TooLarge { max, .. }) = append(&journal, ONE, records(1, 1, 5000)) else {
        panic!("it was taken");
    };
    assert!(append(&journal, ONE, records(1, 1, max + 1)).is_err());
    append(&journal, ONE, records(1, 3, max)).unwrap();
    let (done, reported) = report();
    journal.save_vote(ONE, Bytes::from(vec![0; 5000]), done);
    assert!(matches!(
        reported.recv().unwrap(),
        Err(JournalError::TooLarge { .. })
    ));
    assert_eq!(
        journal.read(ONE, 0..9, usize::MAX).unwrap(),
        records(1, 3, max)
    );
}

#[test]
fn read_stops_at_its_limit_but_gives_one() {
    let dir = tempfile::tempdir().unwrap();
    for cache_bytes in [0, 1 << 20] {
        let journal = open(
            &dir,
            JournalConfig {
                cache_bytes,
                ..small()
            },
        );
        let first = journal.last(ONE).map_or(1, |(index, _)| index + 1);
        append(&journal, ONE, records(first, 9, 100)).unwrap();
        let count = |max| journal.read(ONE, first..first + 20, max).unwrap().len();
        assert_eq!(
            (count(0), count(99), count(100), count(350), count(10_000)),
            (1, 1, 1, 3, 9)
        );
    }
}

#[test]
fn cache_keeps_its_limit_and_recent_entries_need_no_disk() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(
        &dir,
        JournalConfig {
            cache_bytes: 20_000,
            ..JournalConfig::default()
        },
    );
    for index in 1..=200 {
        append(&journal, ONE, records(index, 1, 936)).unwrap();
        append(&journal, GroupId(2), records(index, 1, 10)).unwrap();
    }
    let stats = journal.stats();
    assert!((10_000..=20_000).contains(&stats.cached_bytes), "{stats:?}");
    assert_eq!(
        journal.read(ONE, 195..201, usize::MAX).unwrap(),
        records(195, 6, 936)
    );
    assert_eq!(
        journal.read(GroupId(2), 195..201, usize::MAX).unwrap(),
        records(195, 6, 10)
    );
    assert_eq!(journal.stats().disk_reads, 0);
    assert_eq!(
        journal.read(ONE, 1..201, usize::MAX).unwrap(),
        records(1, 200, 936)
    );
    assert!(journal.stats().disk_reads > 150);
}

#[test]
fn old_segments_go_and_votes_and_purge_marks_stay() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir, small());
    vote(&journal, GroupId(3), b"older vote").unwrap();
    purge(&journal, GroupId(4), 7).unwrap();
    vote(&journal, GroupId(3), b"old vote").unwrap();
    purge(&journal, GroupId(4), 77).unwrap();
    for index in 1..=100 {
        append(&journal, ONE, records(index, 1, 500)).unwrap();
        purge(&journal, ONE, index - 1).unwrap();
    }
    let stats: JournalStats = journal.stats();
    assert!(stats.segments <= 2, "{stats:?}");
    drop(journal);
    let files = std::fs::read_dir(dir.path()).unwrap().count();
    assert!(files <= 5, "{files} files");
    let journal = open(&dir, small());
    assert_eq!(
        journal.vote(GroupId(3)),
        Some(Bytes::from_static(b"old vote"))
    );
    assert_eq!(
        journal.purged(GroupId(4)),
        Some(Mark { index: 77, term: 1 })
    );
    assert_eq!(
        journal.read(ONE, 0..200, usize::MAX).unwrap(),
        records(100, 1, 500)
    );
}

#[test]
fn idle_group_that_pins_a_segment_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir, small());
    append(&journal, GroupId(5), records(1, 1, 10)).unwrap();
    for index in 1..=40 {
        append(&journal, ONE, records(index, 1, 500)).unwrap();
    }
    let pinning = journal.pinning();
    assert_eq!(pinning[0].0, ONE);
    assert_eq!(pinning[0].1, pinning[1].1);
    purge(&journal, ONE, 40).unwrap();
    let [(GroupId(5), behind)] = journal.pinning()[..] else {
        panic!("{:?}", journal.pinning());
    };
    assert!(behind >= 7);
    purge(&journal, GroupId(5), 1).unwrap();
    assert_eq!(journal.pinning(), []);
}

#[test]
fn purged_segment_is_read_to_the_end_by_who_holds_it() {
    // The entries are found, then purged and their segment dropped and used again, then read.
    let mut rig = Rig::open(&SimDisk::new(), small()).unwrap();
    rig.submit(1, Step::Append(records(1, 5, 400)));
    rig.turn().unwrap();
    let held = rig
        .shared
        .lookup(|_, segments| segments.values().next().cloned())
        .unwrap()
        .unwrap();
    let before = {
        let mut bytes = vec![0; 4096];
        held.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    for index in 6..60 {
        rig.submit(1, Step::Append(records(index, 1, 400)));
        rig.submit(
            1,
            Step::Purge(Mark {
                index: index - 1,
                term: 1,
            }),
        );
        rig.turn().unwrap();
    }
    let mut after = vec![0; 4096];
    held.file.read_exact_at(&mut after, 0).unwrap();
    assert_eq!(before[..2000], after[..2000]);
}

#[test]
fn full_queue_refuses_and_there_is_room_after_the_writer_took_it() {
    let config = JournalConfig {
        queue_max: 3,
        ..small()
    };
    let mut rig = Rig::open(&SimDisk::new(), config).unwrap();
    for index in 1..=4 {
        rig.submit(1, Step::Append(records(index, 1, 1)));
    }
    assert_eq!(rig.results(), [Err(JournalError::Busy { waiting: 3 })]);
    assert_eq!(rig.shared.stats().refused_busy, 1);
    rig.turn().unwrap();
    rig.submit(1, Step::Append(records(4, 1, 1)));
    rig.turn().unwrap();
    assert_eq!(rig.reports.lock().last().unwrap().1, Ok(()));
}

#[test]
fn waiting_callers_all_get_through_a_small_queue() {
    let dir = tempfile::tempdir().unwrap();
    let config = JournalConfig {
        queue_max: 2,
        queue_bytes_max: 300,
        ..small()
    };
    let journal = open(&dir, config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut tasks = Vec::new();
        for group in 0..8 {
            let journal = journal.clone();
            tasks.push(tokio::spawn(async move {
                let group = GroupId(group);
                for index in 1..=30 {
                    journal
                        .append_durably(group, records(index, 1, 100))
                        .await
                        .unwrap();
                    if index % 10 == 0 {
                        journal
                            .save_vote_durably(group, Bytes::from_static(b"v"))
                            .await
                            .unwrap();
                        journal.truncate_after_durably(group, index).await.unwrap();
                        journal
                            .purge_durably(
                                group,
                                Mark {
                                    index: index - 5,
                                    term: 1,
                                },
                            )
                            .await
                            .unwrap();
                    }
                }
                let (tx, rx) = tokio::sync::oneshot::channel();
                journal
                    .append_when_room(
                        group,
                        records(31, 1, 1),
                        Box::new(|result| tx.send(result).unwrap()),
                    )
                    .await;
                rx.await.unwrap().unwrap();
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    });
    for group in 0..8 {
        assert_eq!(journal.first_index(GroupId(group)), Some(26));
        assert_eq!(journal.last(GroupId(group)), Some((31, 1)));
    }
}

#[test]
fn shutdown_writes_what_waits_and_refuses_what_comes() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir, JournalConfig::default());
    let mut reported = Vec::new();
    for index in 1..=500 {
        let (done, rx) = report();
        journal.append(ONE, records(index, 1, 10), done);
        reported.push(rx);
    }
    journal.shutdown();
    assert!(reported.iter().all(|rx| rx.recv() == Ok(Ok(()))));
    assert_eq!(
        append(&journal, ONE, records(501, 1, 10)),
        Err(JournalError::Closed)
    );
    assert_eq!(journal.last(ONE), Some((500, 1)));
    journal.shutdown();
}

#[test]
fn last_handle_may_go_on_the_writer_thread() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir, JournalConfig::default());
    let (tx, rx) = mpsc::channel();
    let (held, released) = (journal.clone(), mpsc::channel::<()>());
    let (release, wait) = released;
    journal.append(
        ONE,
        records(1, 1, 1),
        Box::new(move |result| {
            let _ = wait.recv();
            drop(held);
            tx.send(result).unwrap();
        }),
    );
    drop(journal);
    release.send(()).unwrap();
    assert_eq!(rx.recv(), Ok(Ok(())));
}

#[test]
fn bad_configuration_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for (config, name) in [
        (
            JournalConfig {
                segment_bytes: 5000,
                ..small()
            },
            "segment_bytes",
        ),
        (
            JournalConfig {
                segment_bytes: 1 << 40,
                ..small()
            },
            "segment_bytes",
        ),
        (
            JournalConfig {
                queue_max: 0,
                ..small()
            },
            "queue_max",
        ),
        (
            JournalConfig {
                queue_bytes_max: 0,
                ..small()
            },
            "queue_bytes_max",
        ),
    ] {
        let error = Journal::open(dir.path(), config).map(|_| ()).unwrap_err();
        assert!(
            matches!(error, JournalError::Config { key, .. } if key == name),
            "{error}"
        );
    }
}

#[test]
fn foreign_files_in_the_directory_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("notes.txt"), b"mine").unwrap();
    append(&open(&dir, small()), ONE, records(1, 1, 1)).unwrap();
    drop(open(&dir, small()));
    assert_eq!(
        std::fs::read(dir.path().join("notes.txt")).unwrap(),
        b"mine"
    );
}
