//! The plan of faults: from one seed, the same steps every time. Steps follow each other and each is over before the next,
//! so never more than one node is broken.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::history::Kind;

/// T of the clusters under test, in milliseconds.
pub const NODE_DOWN_AFTER_MS: u64 = 2_000;
/// How long a node without a quorum keeps its clients, in milliseconds.
pub const MINORITY_GRACE_MS: u64 = 3_000;

const PROCESS_FAULTS: [Kind; 6] = [
    Kind::Kill,
    Kind::QuickRestart,
    Kind::PauseShort,
    Kind::PauseLong,
    Kind::Term,
    Kind::Drain,
];
const MACHINE_FAULTS: [Kind; 3] = [Kind::ClockAhead, Kind::ClockBehind, Kind::SlowDisk];
const LINK_FAULTS: [Kind; 4] = [Kind::Cut, Kind::Deaf, Kind::Mute, Kind::Split];
/// They take long: each moves the replicas of all groups.
const MEMBER_FAULTS: [Kind; 4] = [Kind::Guest, Kind::Leave, Kind::Expel, Kind::Wipe];

/// The node that is a member only as a guest.
pub const GUEST: u8 = 4;

/// What a run has time for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    Short,
    /// Members come and go, too.
    Long,
}

/// One fault of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub kind: Kind,
    /// From 1.
    pub node: u8,
    /// How long it is in force.
    pub hold: Duration,
    /// How long all is well after it.
    pub rest: Duration,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            node,
            hold,
            rest,
        } = self;
        write!(f, "{kind:?} of n{node} for {hold:?}, then rest {rest:?}")
    }
}

/// Steps without end.
pub struct Schedule {
    rng: StdRng,
    kinds: Vec<Kind>,
    /// Kinds still to come before any comes again: short runs see as many as they can.
    deck: Vec<Kind>,
}

impl Schedule {
    pub fn new(seed: u64, length: Length, links_can_be_cut: bool) -> Self {
        let mut kinds = [&PROCESS_FAULTS[..], &MACHINE_FAULTS].concat();
        if length == Length::Long {
            kinds.extend(MEMBER_FAULTS);
        }
        if links_can_be_cut {
            kinds.extend(LINK_FAULTS);
        }
        Self {
            rng: StdRng::seed_from_u64(seed),
            kinds,
            deck: Vec::new(),
        }
    }
}

impl Iterator for Schedule {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.deck.is_empty() {
            self.deck.clone_from(&self.kinds);
            self.deck.shuffle(&mut self.rng);
        }
        let kind = self.deck.pop()?;
        let node = self.rng.random_range(1..=3);
        Some(Step {
            kind,
            node: if kind == Kind::Guest { GUEST } else { node },
            hold: Duration::from_millis(self.rng.random_range(hold_ms(kind))),
            rest: Duration::from_millis(self.rng.random_range(300..=2_500)),
        })
    }
}

fn hold_ms(kind: Kind) -> RangeInclusive<u64> {
    const T: u64 = NODE_DOWN_AFTER_MS;
    match kind {
        Kind::Kill | Kind::Expel | Kind::Wipe => 200..=3 * T,
        Kind::QuickRestart | Kind::Term => 0..=0,
        Kind::Drain | Kind::Leave => 0..=T,
        Kind::Guest => T..=3 * T,
        Kind::PauseShort => 100..=T * 3 / 4,
        Kind::PauseLong | Kind::ClockAhead | Kind::ClockBehind | Kind::SlowDisk => T + 500..=3 * T,
        // Up to beyond the grace after which the node sends its clients away.
        Kind::Cut | Kind::Deaf | Kind::Mute | Kind::Split => {
            T + 500..=T + MINORITY_GRACE_MS + 3_000
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long(seed: u64) -> Schedule {
        Schedule::new(seed, Length::Long, true)
    }

    #[test]
    fn same_seed_gives_the_same_steps() {
        let steps = |seed| long(seed).take(50).collect::<Vec<_>>();
        assert_eq!(steps(7), steps(7));
        assert_ne!(steps(7), steps(8));
    }

    #[test]
    fn every_kind_comes_before_any_comes_again() {
        let all = [
            &PROCESS_FAULTS[..],
            &MACHINE_FAULTS,
            &LINK_FAULTS,
            &MEMBER_FAULTS,
        ]
        .concat();
        let kinds: Vec<_> = long(1).take(all.len()).map(|step| step.kind).collect();
        for kind in all {
            assert!(kinds.contains(&kind), "{kind:?} is missing");
        }
    }

    #[test]
    fn links_are_cut_where_they_can_be_and_members_go_in_long_runs_only() {
        let never = |schedule: Schedule, kinds: &[Kind]| {
            schedule.take(50).all(|step| !kinds.contains(&step.kind))
        };
        assert!(never(Schedule::new(1, Length::Long, false), &LINK_FAULTS));
        assert!(never(Schedule::new(1, Length::Short, true), &MEMBER_FAULTS));
    }

    #[test]
    fn pauses_are_shorter_or_longer_than_t() {
        for step in long(3).take(200) {
            let is_long = step.hold > Duration::from_millis(NODE_DOWN_AFTER_MS);
            match step.kind {
                Kind::PauseShort => assert!(!is_long, "{step}"),
                Kind::PauseLong => assert!(is_long, "{step}"),
                _ => {}
            }
        }
    }

    #[test]
    fn only_the_fourth_node_is_a_guest() {
        for step in long(4).take(200) {
            assert_eq!(step.kind == Kind::Guest, step.node == GUEST, "{step}");
        }
    }
}
