//! What a leader that does not carry its group's time asks the other replicas, and what follows from their answers. Pure: it sends nothing
//! and reads no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::Stamp;
use crate::id::NodeId;

/// What a replica says of the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// The group's time, where the replica carries it.
    pub carried_ms: Option<u64>,
    /// The wall clock of its node.
    pub wall_ms: u64,
}

/// Where the group's time goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A replica has carried it since before.
    Carried(Stamp),
    /// Nobody has: all replicas were down. This is the median of the voters' wall clocks; never backwards is left to whoever goes by it.
    Jump(Stamp),
}

/// The questions of one leader in one term.
///
/// All replicas are asked, learners too, as any of them may carry the time. As soon as a quorum of the voters has answered and one
/// of all carries it, the latest of these counts. Where none does, a silent one might: it is given as long as it takes to count as
/// down, and only then the clocks of a quorum are enough. Of an even number the lower one of the two in the middle counts: of two clocks one that is
/// ahead moves nothing.
#[derive(Debug)]
pub struct Survey {
    voters: BTreeSet<NodeId>,
    /// Asked and without an answer.
    silent: BTreeSet<NodeId>,
    /// Clocks of voters that answered; that of the leader itself among them.
    clocks: BTreeMap<NodeId, Stamp>,
    /// The latest that was said.
    carried: Option<Stamp>,
    /// No longer is waited for the silent ones.
    until: Instant,
}

impl Survey {
    /// Of a leader with a clock, in a group of these voters and learners; it may be one of either.
    pub fn new(
        (me, wall): (NodeId, Stamp),
        voters: impl IntoIterator<Item = NodeId>,
        learners: impl IntoIterator<Item = NodeId>,
        until: Instant,
    ) -> Survey {
        let voters: BTreeSet<NodeId> = voters.into_iter().collect();
        let everyone = voters.iter().copied().chain(learners);
        Survey {
            silent: everyone.filter(|node| *node != me).collect(),
            clocks: BTreeMap::from([(me, wall)]),
            carried: None,
            voters,
            until,
        }
    }

    /// Whom to ask, and to ask again.
    pub fn silent(&self) -> impl Iterator<Item = NodeId> {
        self.silent.iter().copied()
    }

    /// How long it is waited for those who say nothing, from `now`; none = no longer.
    pub fn patience(&self, now: Instant) -> Option<Duration> {
        let left = self.until.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// An answer came, at `at`.
    pub fn handle_told(&mut self, from: NodeId, told: Told, at: Instant) {
        if !self.silent.remove(&from) {
            return;
        }
        if self.voters.contains(&from) {
            self.clocks.insert(from, Stamp::of_ms(told.wall_ms, at));
        }
        if let Some(ms) = told.carried_ms {
            let stamp = Stamp::of_ms(ms, at);
            let is_later = |known: Stamp| known.us_at(at) >= stamp.us;
            if !self.carried.is_some_and(is_later) {
                self.carried = Some(stamp);
            }
        }
    }

    /// None = more answers are needed.
    pub fn verdict(&self, now: Instant) -> Option<Verdict> {
        let has_quorum = self.clocks.len() * 2 > self.voters.len();
        let is_over = self.silent.is_empty() || self.patience(now).is_none();
        match self.carried {
            Some(carried) if has_quorum || is_over => Some(Verdict::Carried(carried)),
            None if has_quorum && is_over => Some(Verdict::Jump(self.median(now))),
            _ => None,
        }
    }

    fn median(&self, now: Instant) -> Stamp {
        let mut clocks: Vec<u64> = self.clocks.values().map(|clock| clock.us_at(now)).collect();
        clocks.sort_unstable();
        // The leader's own is there.
        let us = clocks[(clocks.len() - 1) / 2];
        Stamp { us, at: now }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: u64 = 1_000_000;
    const HOUR: u64 = 3_600_000;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// Node 1 leads; it is waited for two seconds.
    fn survey(voters: u64, learners: &[u64], begin: Instant) -> Survey {
        let voters = (1..=voters).map(NodeId);
        let learners = learners.iter().map(|id| NodeId(*id));
        let me = (NodeId(1), Stamp::of_ms(WALL, begin));
        Survey::new(me, voters, learners, begin + ms(2_000))
    }

    fn wall(wall_ms: u64) -> Told {
        Told {
            carried_ms: None,
            wall_ms,
        }
    }

    fn carries(ms: u64) -> Told {
        Told {
            carried_ms: Some(ms),
            wall_ms: 5,
        }
    }

    fn jump(ms: u64, at: Instant) -> Option<Verdict> {
        Some(Verdict::Jump(Stamp::of_ms(ms, at)))
    }

    fn goes_on(ms: u64, at: Instant) -> Option<Verdict> {
        Some(Verdict::Carried(Stamp::of_ms(ms, at)))
    }

    #[test]
    fn a_single_voter_takes_its_own_clock() {
        let t = Instant::now();
        assert_eq!(survey(1, &[], t).verdict(t), jump(WALL, t));
    }

    #[test]
    fn nothing_jumps_while_one_is_silent_that_may_carry_the_time() {
        let t = Instant::now();
        let mut survey = survey(3, &[], t);
        survey.handle_told(NodeId(2), wall(WALL), t);
        assert_eq!(survey.verdict(t + ms(1_999)), None);
        survey.handle_told(NodeId(3), carries(77), t + ms(1_999));
        let verdict = survey.verdict(t + ms(1_999));
        assert_eq!(verdict, goes_on(77, t + ms(1_999)));
    }

    #[test]
    fn whoever_carries_the_time_is_enough_with_a_quorum() {
        let t = Instant::now();
        let mut survey = survey(5, &[], t);
        survey.handle_told(NodeId(4), carries(77), t);
        assert_eq!(survey.verdict(t), None, "others may carry a later one");
        survey.handle_told(NodeId(2), carries(76), t + ms(1));
        assert_eq!(survey.verdict(t + ms(1)), goes_on(77, t));
    }

    #[test]
    fn the_latest_counts_as_it_has_passed_since() {
        let t = Instant::now();
        let mut survey = survey(3, &[], t);
        survey.handle_told(NodeId(2), carries(1_000), t);
        survey.handle_told(NodeId(3), carries(1_200), t + ms(300));
        assert_eq!(survey.verdict(t + ms(300)), goes_on(1_000, t));
    }

    #[test]
    fn a_learner_may_be_the_one_that_carries_the_time() {
        let t = Instant::now();
        let mut survey = survey(3, &[7], t);
        survey.handle_told(NodeId(2), wall(WALL), t);
        survey.handle_told(NodeId(3), wall(WALL), t);
        assert_eq!(survey.verdict(t), None);
        survey.handle_told(NodeId(7), carries(50), t);
        assert_eq!(survey.verdict(t), goes_on(50, t));
    }

    #[test]
    fn after_all_were_down_the_median_of_the_voters_clocks_counts() {
        let t = Instant::now();
        for (second, third, median) in [
            (WALL + HOUR, WALL + 9, WALL + 9),
            (WALL + HOUR, WALL + HOUR, WALL + HOUR),
            (5, WALL + HOUR, WALL),
            (5, 6, 6),
        ] {
            let mut survey = survey(3, &[7], t);
            survey.handle_told(NodeId(2), wall(second), t);
            survey.handle_told(NodeId(7), wall(WALL * 50), t);
            survey.handle_told(NodeId(3), wall(third), t);
            assert_eq!(survey.verdict(t), jump(median, t), "{second} {third}");
        }
    }

    #[test]
    fn of_two_clocks_the_one_that_is_ahead_moves_nothing() {
        let t = Instant::now();
        let end = t + ms(2_000);
        let mut survey = survey(3, &[], t);
        survey.handle_told(NodeId(2), wall(WALL + HOUR), t);
        assert_eq!(survey.verdict(end), jump(WALL + 2_000, end));
    }

    #[test]
    fn less_than_a_quorum_decides_nothing_however_long_it_takes() {
        let t = Instant::now();
        let mut survey = survey(5, &[7], t);
        survey.handle_told(NodeId(2), wall(WALL), t);
        survey.handle_told(NodeId(7), wall(WALL), t);
        assert_eq!(survey.verdict(t + ms(60_000)), None);
        survey.handle_told(NodeId(3), wall(WALL), t + ms(60_000));
        assert!(survey.verdict(t + ms(60_000)).is_some());
    }

    #[test]
    fn an_answer_counts_once_and_from_those_who_were_asked() {
        let t = Instant::now();
        let mut survey = survey(3, &[], t);
        survey.handle_told(NodeId(9), carries(77), t);
        survey.handle_told(NodeId(2), wall(WALL), t);
        survey.handle_told(NodeId(2), carries(77), t);
        assert_eq!(survey.verdict(t), None);
        assert!(survey.silent().eq([NodeId(3)]));
    }
}
