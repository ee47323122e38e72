//! The suite that the journal must pass: crash at every write, torn tail at every byte, full disk, corrupt
//! record, lying sync, and random work against a model. Every failure says its seed and step.
#![allow(clippy::unwrap_used)]

mod behaviour;
mod corrupt;
mod crash;
mod full;
mod model;
mod property;
mod sim;

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::disk::Disk;
use super::queue::{Op, Request, Shared};
use super::recover::{self, Opened};
use super::writer::Writer;
use super::{Done, GroupId, JournalConfig, JournalError, Mark, Record};
use model::{Step, World};
use sim::SimDisk;

/// Small segments, so that a short run rolls, reclaims and recycles; no cache, so that reads reach the disk.
fn small() -> JournalConfig {
    JournalConfig {
        segment_bytes: 4096,
        cache_bytes: 0,
        queue_max: 64,
        queue_bytes_max: 1 << 20,
        min_free_bytes: 0,
    }
}

/// Seeded, so that a failure can be repeated.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// What became of the requests, in the order in which they were reported.
type Reports = Arc<Mutex<Vec<(usize, Result<(), JournalError>)>>>;

/// A journal whose writer runs when the test says so, beside a model of what it must hold.
struct Rig {
    disk: SimDisk,
    shared: Arc<Shared>,
    writer: Writer,
    /// The model after every record that was submitted; the first is the state at open.
    history: Vec<World>,
    /// For each request, the place in `history` when all of it is done.
    ends: Vec<usize>,
    reports: Reports,
}

impl Rig {
    fn open(disk: &SimDisk, config: JournalConfig) -> Result<Self, JournalError> {
        let Opened { shared, writer } =
            recover::open(Arc::new(disk.clone()) as Arc<dyn Disk>, config)?;
        let world = World::of(&shared)?;
        Ok(Self {
            disk: disk.clone(),
            shared,
            writer,
            history: vec![world],
            ends: Vec::new(),
            reports: Reports::default(),
        })
    }

    fn world(&self) -> &World {
        self.history.last().unwrap()
    }

    /// Hands a request to the journal and the model.
    fn submit(&mut self, group: u32, step: Step) {
        let number = self.ends.len();
        let reports = Arc::clone(&self.reports);
        let done: Done = Box::new(move |result| reports.lock().push((number, result)));
        let op = step.op();
        let mut world = self.world().clone();
        step.each(|part| {
            world.apply(group, part);
            self.history.push(world.clone());
        });
        self.ends.push(self.history.len() - 1);
        let request = Request {
            group: GroupId(group),
            op,
            done,
        };
        if let Err((request, error)) = self.shared.admit(request) {
            (request.done)(Err(error));
        }
    }

    /// Lets the writer take what waits.
    fn turn(&mut self) -> Result<(), JournalError> {
        self.writer.turn(self.shared.take())
    }

    /// The place in `history` up to which everything was reported durable.
    fn acked(&self) -> usize {
        let reports = self.reports.lock();
        let good = reports.iter().filter(|(_, result)| result.is_ok());
        good.map(|(number, _)| self.ends[*number])
            .max()
            .unwrap_or(0)
    }

    /// Results of the requests so far, in their order.
    fn results(&self) -> Vec<Result<(), JournalError>> {
        let mut reports = self.reports.lock().clone();
        reports.sort_by_key(|(number, _)| *number);
        reports.into_iter().map(|(_, result)| result).collect()
    }

    /// Random work in batches; ends early when the disk fails.
    fn work(&mut self, dice: &mut Dice, batches: usize) -> Result<(), JournalError> {
        for _ in 0..batches {
            for _ in 0..=dice.below(4) {
                let group = dice.below(3) as u32;
                let step = self.world().random_step(group, dice);
                self.submit(group, step);
            }
            self.turn()?;
        }
        Ok(())
    }
}

fn record(index: u64, term: u64, data: &[u8]) -> Record {
    Record {
        index,
        term,
        data: Bytes::copy_from_slice(data),
    }
}

/// `count` records of `len` bytes from `first` on, of term 1.
fn records(first: u64, count: u64, len: usize) -> Vec<Record> {
    (first..first + count)
        .map(|index| record(index, 1, &vec![index as u8; len]))
        .collect()
}
