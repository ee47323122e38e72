//! Random work on a real disk against the model, with reopening at random points.

use proptest::prelude::*;

use super::super::Journal;
use super::*;

fn world(journal: &Journal) -> World {
    World::of(&journal.inner.shared).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn journal_holds_what_the_model_holds(
        seed in any::<u64>(),
        cache_bytes in prop_oneof![Just(0), Just(1000), Just(1 << 20)],
        reopenings in prop::collection::vec(1_usize..60, 1..4),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let config = JournalConfig { segment_bytes: 8192, cache_bytes, ..small() };
        let mut dice = Dice(seed);
        let mut model = World::default();
        for steps in reopenings {
            let journal = Journal::open(dir.path(), config.clone()).unwrap();
            prop_assert_eq!(&world(&journal), &model, "after opening");
            let (tx, rx) = std::sync::mpsc::channel();
            for step in 0..steps {
                let group = dice.below(3) as u32;
                let random = model.random_step(group, &mut dice);
                random.each(|part| model.apply(group, part));
                let tx = tx.clone();
                let done: Done = Box::new(move |result| tx.send(result).unwrap());
                journal.request(GroupId(group), random.op(), done);
                // Not always: most of the time several wait.
                if dice.below(8) == 0 {
                    prop_assert_eq!(&world(&journal), &model, "step {}", step);
                }
                if step % 32 == 31 {
                    for _ in 0..32 {
                        prop_assert_eq!(rx.recv(), Ok(Ok(())));
                    }
                }
            }
            for _ in 0..steps % 32 {
                prop_assert_eq!(rx.recv(), Ok(Ok(())));
            }
            prop_assert_eq!(&world(&journal), &model, "before closing");
        }
        let journal = Journal::open(dir.path(), config).unwrap();
        prop_assert_eq!(&world(&journal), &model, "at the end");
    }
}
