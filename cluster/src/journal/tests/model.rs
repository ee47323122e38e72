//! What a journal must hold, kept in plain vectors.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::super::read;
use super::*;

/// A request, as the model sees it.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Append(Vec<Record>),
    Truncate { from: u64 },
    Purge(Mark),
    Vote(Bytes),
}

#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Log {
    pub(super) entries: Vec<Record>,
    pub(super) purged: Option<Mark>,
    pub(super) vote: Option<Bytes>,
}

/// All groups of which anything is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct World(pub(super) BTreeMap<u32, Log>);

impl Step {
    pub(super) fn op(&self) -> Op {
        match self.clone() {
            Self::Append(records) => Op::Append { records, ticket: 0 },
            Self::Truncate { from } => Op::Truncate { from },
            Self::Purge(mark) => Op::Purge(mark),
            Self::Vote(vote) => Op::Vote(vote),
        }
    }

    /// The parts that a crash can tear apart.
    pub(super) fn each(&self, mut take: impl FnMut(&Self)) {
        match self {
            Self::Append(records) => records
                .iter()
                .for_each(|record| take(&Self::Append(vec![record.clone()]))),
            other => take(other),
        }
    }
}

/// Entries as `index/term:length#checksum`, so that a failure can be read.
impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for Record { index, term, data } in &self.entries {
            write!(
                f,
                "{index}/{term}:{}#{:x} ",
                data.len(),
                crc32fast::hash(data) & 0xffff
            )?;
        }
        write!(f, "purged {:?} vote {:?}", self.purged, self.vote)
    }
}

impl Log {
    pub(super) fn next(&self) -> u64 {
        match (self.entries.last(), self.purged) {
            (Some(last), _) => last.index + 1,
            (None, Some(mark)) => mark.index + 1,
            (None, None) => 0,
        }
    }
}

impl World {
    /// What the journal says.
    pub(super) fn of(shared: &Shared) -> Result<Self, JournalError> {
        let mut world = Self::default();
        for group in shared.with_index(|index| index.groups()) {
            let log = Log {
                entries: read::read(shared, group, &(0..u64::MAX), usize::MAX)?,
                purged: shared.with_index(|index| index.purged(group)),
                vote: shared.with_index(|index| index.vote(group)),
            };
            world.0.insert(group.0, log);
        }
        Ok(world)
    }

    pub(super) fn log(&self, group: u32) -> Log {
        self.0.get(&group).cloned().unwrap_or_default()
    }

    pub(super) fn apply(&mut self, group: u32, step: &Step) {
        let log = self.0.entry(group).or_default();
        match step {
            Step::Append(records) => log.entries.extend_from_slice(records),
            Step::Truncate { from } => log.entries.retain(|entry| entry.index < *from),
            Step::Purge(mark) => {
                log.entries.retain(|entry| entry.index > mark.index);
                if log.purged.is_none_or(|known| known.index < mark.index) {
                    log.purged = Some(*mark);
                }
            }
            Step::Vote(vote) => log.vote = Some(vote.clone()),
        }
        if *log == Log::default() {
            self.0.remove(&group);
        }
    }

    /// Something that the journal must accept now: mostly appends, and purges enough to let segments go.
    pub(super) fn random_step(&self, group: u32, dice: &mut Dice) -> Step {
        let log = self.log(group);
        let next = log.next();
        let first = log.entries.first().map_or(next, |entry| entry.index);
        match dice.below(12) {
            0 => Step::Vote(Bytes::from(dice.next().to_string())),
            1 => Step::Truncate {
                from: first.max(next.saturating_sub(dice.below(4))),
            },
            // Up to everything, and now and then beyond.
            2 | 3 if next > 0 => {
                let index =
                    (first + dice.below(next - first + 1)).saturating_sub(1) + dice.below(8) / 7;
                Step::Purge(Mark {
                    index,
                    term: dice.below(9),
                })
            }
            _ => {
                let count = 1 + dice.below(4);
                let term = dice.below(9);
                let mut append = Vec::new();
                for index in next..next + count {
                    let data = vec![dice.next() as u8; dice.below(400) as usize];
                    append.push(record(index, term, &data));
                }
                Step::Append(append)
            }
        }
    }
}
