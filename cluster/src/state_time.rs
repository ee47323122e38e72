//! State time: what a group's entries say the time is. Its leader gives each entry a time; replicas see it pass between
//! entries by their own monotonic clocks. Wall clocks that are wrong, or are set, move it by a tenth at most.
//!
//! A replica *carries* the time once it has it from a process that does, and from then on as long as its own process runs. A leader stamps
//! nothing before it carries it: one that does not asks the others ([`Survey`]). Only where nobody carries it, as all replicas were down, the
//! time jumps.

mod survey;

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

pub use survey::{Survey, Told, Verdict};

/// State time may run this much slower or faster than the leader's monotonic clock, to come nearer to its wall clock.
const SPEED_TENTHS: u64 = 1;

/// So long the time of entries may be behind what a replica carries until the replica follows them: one that lags applies old entries,
/// but not for ever; one that was cut off may have run ahead of its group.
const BEHIND_MAX: Duration = Duration::from_secs(10);

/// What an entry may take from its stamp until it is applied without counting as old.
const UNDER_WAY_US: u64 = 100_000;

/// State time as one replica sees it pass: that of its last entry, and what its own clock has measured since.
#[derive(Debug)]
pub struct StateTime {
    last: Mutex<Option<Stamp>>,
    /// Since when entries have been behind what is carried; none while they are not.
    behind: Mutex<Option<Instant>>,
    /// Whether this process carries it; never false again.
    carried: watch::Sender<bool>,
}

impl Default for StateTime {
    fn default() -> Self {
        StateTime {
            last: Mutex::default(),
            behind: Mutex::default(),
            carried: watch::Sender::new(false),
        }
    }
}

/// A state time, and when this process came to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    us: u64,
    at: Instant,
}

impl StateTime {
    /// An entry was applied, or a snapshot installed, that moved the state to this time.
    pub fn moved_to(&self, time_ms: u64) {
        self.moved_at(time_ms, Instant::now());
    }

    pub(crate) fn moved_at(&self, time_ms: u64, at: Instant) {
        let said = Stamp::of_ms(time_ms, at);
        let mut last = self.last.lock();
        let mut behind = self.behind.lock();
        let is_old = *self.carried.borrow() && last.is_some_and(|last| said.is_older_than(last));
        let is_believed = !is_old || at.duration_since(*behind.get_or_insert(at)) >= BEHIND_MAX;
        if is_believed {
            (*last, *behind) = (Some(said), None);
        }
    }

    /// Another process carries it and said so, or nobody does and this is where it goes on: from now on this one carries it. What the
    /// entries applied meanwhile said counts where it is later.
    pub fn carry(&self, told: Stamp) {
        {
            let mut last = self.last.lock();
            let is_later = |last: Stamp| last.us_at(told.at) >= told.us;
            if !last.is_some_and(is_later) {
                *last = Some(told);
            }
        }
        self.carried.send_replace(true);
    }

    /// Where it is by a clock that has run since it was stamped; none where this process cannot know.
    pub fn carried(&self) -> Option<Stamp> {
        self.carried.borrow().then(|| self.last()).flatten()
    }

    /// Resolves once this process carries it.
    pub async fn wait_carried(&self) {
        // The sender lives as long as `self`.
        let _ = self.carried.subscribe().wait_for(|carried| *carried).await;
    }

    /// The last one; none before the first.
    pub fn last(&self) -> Option<Stamp> {
        self.last.lock().filter(|stamp| stamp.us > 0)
    }

    /// About now, in ms since the epoch; 0 while the group has no time yet.
    pub fn now_ms(&self) -> u64 {
        self.at_ms(Instant::now())
    }

    pub(crate) fn at_ms(&self, now: Instant) -> u64 {
        self.last().map_or(0, |stamp| stamp.ms_at(now))
    }
}

impl Stamp {
    /// A time in ms since the epoch, as it is at an instant.
    pub fn of_ms(ms: u64, at: Instant) -> Stamp {
        let us = ms.saturating_mul(1_000);
        Stamp { us, at }
    }

    /// This time, so much later on a clock that runs at the right speed, in ms.
    pub fn ms_at(self, now: Instant) -> u64 {
        self.us_at(now) / 1_000
    }

    /// Before the instant at which it was known it stands.
    fn us_at(self, now: Instant) -> u64 {
        self.us.saturating_add(self.since_us(now))
    }

    /// Whether no clock that went on from the other one can just have said this: it runs a tenth slow at most.
    fn is_older_than(self, other: Stamp) -> bool {
        let since = other.since_us(self.at);
        let slowest = other.us.saturating_add(since - since / 10 * SPEED_TENTHS);
        self.us.saturating_add(UNDER_WAY_US) < slowest
    }

    fn since_us(self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.at).as_micros()).unwrap_or(u64::MAX)
    }
}

/// The clock by which a leader stamps entries. Pure: both clocks are arguments.
#[derive(Debug, Default)]
pub struct LeaderClock {
    term: u64,
    last: Option<Stamp>,
}

impl LeaderClock {
    /// This node leads in a term. What it stamped in an earlier one counts no more: others have led since, and it may never have
    /// been committed.
    pub fn lead(&mut self, term: u64) {
        if self.term != term {
            *self = LeaderClock { term, last: None };
        }
    }

    /// The time of the next entry in ms: the wall clock, never backwards, and within a tenth of the speed of the monotonic
    /// clock since the latest of the own last stamp and what the replica carries.
    pub fn stamp(&mut self, wall_ms: u64, now: Instant, carried: Stamp) -> u64 {
        let wall_us = wall_ms.saturating_mul(1_000);
        let base = match self.last {
            Some(own) if carried.us_at(now) <= own.us_at(now) => own,
            _ => carried,
        };
        let since = base.since_us(now);
        let slack = since / 10 * SPEED_TENTHS;
        let right = base.us.saturating_add(since);
        let us = wall_us.clamp(right - slack, right.saturating_add(slack));
        self.last = Some(Stamp { us, at: now });
        us / 1_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: u64 = 1_000_000;

    fn after(begin: Instant, ms: u64) -> Instant {
        begin + Duration::from_millis(ms)
    }

    #[test]
    fn a_right_wall_clock_is_followed() {
        let (mut clock, t) = (LeaderClock::default(), Instant::now());
        let begin = Stamp::of_ms(WALL, t);
        assert_eq!(clock.stamp(WALL, t, begin), WALL);
        assert_eq!(clock.stamp(WALL + 500, after(t, 500), begin), WALL + 500);
    }

    #[test]
    fn a_wall_clock_that_jumps_moves_it_by_a_tenth_at_most_and_never_back() {
        let (mut clock, t) = (LeaderClock::default(), Instant::now());
        let begin = Stamp::of_ms(WALL, t);
        clock.stamp(WALL, t, begin);
        let ahead = clock.stamp(WALL * 9, after(t, 1_000), begin);
        assert_eq!(ahead, WALL + 1_100);
        let back = clock.stamp(0, after(t, 2_000), begin);
        assert_eq!(back, WALL + 1_100 + 900);
        let same = clock.stamp(0, after(t, 2_000), begin);
        assert_eq!(same, back);
    }

    #[test]
    fn many_small_steps_run_no_faster_than_one_large() {
        let (mut clock, t) = (LeaderClock::default(), Instant::now());
        let begin = Stamp::of_ms(WALL, t);
        let steps = (0..=1_000).map(|ms| clock.stamp(WALL * 9, after(t, ms), begin));
        assert_eq!(steps.last(), Some(WALL + 1_100));
    }

    #[test]
    fn a_new_leader_goes_on_from_what_it_carries_though_its_clock_is_wrong() {
        let (mut clock, t) = (LeaderClock::default(), Instant::now());
        let now = after(t, 60_000);
        let first = clock.stamp(WALL * 50, now, Stamp::of_ms(WALL, t));
        assert_eq!(first, WALL + 66_000);
    }

    #[test]
    fn a_leader_that_comes_back_goes_on_from_what_others_have_stamped_since() {
        let (mut clock, t) = (LeaderClock::default(), Instant::now());
        clock.stamp(WALL, t, Stamp::of_ms(WALL, t));
        let others = Stamp::of_ms(WALL + 20_000, after(t, 10_000));
        let again = clock.stamp(WALL + 10_000, after(t, 10_000), others);
        assert_eq!(again, WALL + 20_000, "never backwards");
    }

    #[test]
    fn a_stamp_of_an_earlier_term_counts_no_more() {
        let (mut clock, t) = (LeaderClock::default(), Instant::now());
        clock.lead(1);
        clock.stamp(WALL * 9, t, Stamp::of_ms(WALL * 9, t));
        let others = Stamp::of_ms(WALL, after(t, 10_000));
        clock.lead(3);
        let again = clock.stamp(WALL * 9, after(t, 11_000), others);
        let what = "a tenth faster than what others stamped";
        assert_eq!(again, WALL + 1_100, "{what}");
        clock.lead(3);
        let next = clock.stamp(WALL * 9, after(t, 12_000), others);
        assert_eq!(next, WALL + 2_200);
    }

    #[test]
    fn entries_alone_do_not_make_a_replica_carry_the_time() {
        let (time, t) = (StateTime::default(), Instant::now());
        time.moved_at(WALL, t);
        assert_eq!(time.carried(), None, "they may be as old as the log");
        time.carry(Stamp::of_ms(WALL + 5_000, after(t, 10)));
        let carried = time.carried().map(|stamp| stamp.ms_at(after(t, 110)));
        assert_eq!(carried, Some(WALL + 5_100));
        time.moved_at(WALL + 5_200, after(t, 200));
        let carried = time.carried().map(|stamp| stamp.ms_at(after(t, 300)));
        assert_eq!(carried, Some(WALL + 5_300), "the entries say where it is");
    }

    #[test]
    fn a_replica_that_lags_keeps_what_it_carries() {
        let (time, t) = (StateTime::default(), Instant::now());
        time.carry(Stamp::of_ms(WALL, t));
        let at = |ms| time.carried().map(|stamp| stamp.ms_at(after(t, ms)));
        time.moved_at(WALL + 1_000, after(t, 6_000));
        time.moved_at(WALL + 2_000, after(t, 6_001));
        assert_eq!(
            at(6_001),
            Some(WALL + 6_001),
            "these were under way for long"
        );
        time.moved_at(WALL + 9_500, after(t, 10_000));
        assert_eq!(at(10_000), Some(WALL + 9_500), "the leader's clock is slow");
        time.moved_at(WALL + 12_000, after(t, 11_000));
        assert_eq!(at(11_000), Some(WALL + 12_000), "or fast");
    }

    #[test]
    fn a_replica_that_ran_ahead_follows_its_group_in_the_end() {
        let (time, t) = (StateTime::default(), Instant::now());
        time.carry(Stamp::of_ms(WALL * 9, t));
        for ms in (0..=10_000).step_by(100) {
            time.moved_at(WALL + ms, after(t, ms));
        }
        let carried = time.carried().map(|stamp| stamp.ms_at(after(t, 10_000)));
        assert_eq!(carried, Some(WALL + 10_000));
    }

    #[test]
    fn what_a_replica_is_told_late_does_not_set_it_back() {
        let (time, t) = (StateTime::default(), Instant::now());
        time.moved_at(WALL + 9_000, after(t, 50));
        time.carry(Stamp::of_ms(WALL, t));
        let carried = time.carried().map(|stamp| stamp.ms_at(after(t, 50)));
        assert_eq!(carried, Some(WALL + 9_000));
    }

    #[tokio::test]
    async fn a_leader_can_wait_until_the_time_is_carried() {
        let time = StateTime::default();
        let told = Stamp::of_ms(WALL, Instant::now());
        tokio::join!(time.wait_carried(), async { time.carry(told) });
        assert!(time.carried().is_some());
    }
}
