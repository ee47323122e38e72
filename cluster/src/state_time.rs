//! State time: what a group's entries say the time is. Its leader gives each entry a time; replicas see it pass between
//! entries by their own monotonic clocks. Wall clocks that are wrong, or are set, move it by a tenth at most.

use std::time::Instant;

use parking_lot::Mutex;

/// State time may run this much slower or faster than the leader's monotonic clock, to come nearer to its wall clock.
const SPEED_TENTHS: u64 = 1;

/// State time as one replica sees it pass: that of its last entry, and what its own clock has measured since.
#[derive(Debug, Default)]
pub struct StateTime {
    last: Mutex<Option<Stamp>>,
}

/// A state time, and when this process came to know it.
#[derive(Debug, Clone, Copy)]
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
        let us = time_ms.saturating_mul(1_000);
        *self.last.lock() = Some(Stamp { us, at });
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
        self.last().map_or(0, |stamp| stamp.passed(now) / 1_000)
    }
}

impl Stamp {
    /// This state time, so much later on a clock that runs at the right speed.
    fn passed(self, now: Instant) -> u64 {
        self.us.saturating_add(self.since_us(now))
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

/// What the leader knows of the group's time besides its own stamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The group has run without a pause: its time goes on from where it is.
    Runs,
    /// Nobody has led it since this node started, so all of its replicas may have been down for long.
    Restarted,
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
    /// clock since the latest of the own last stamp and what the replica has `seen`. A group without a time, and one that
    /// was restarted, takes the wall clock.
    pub fn stamp(
        &mut self,
        wall_ms: u64,
        now: Instant,
        seen: Option<Stamp>,
        standing: Standing,
    ) -> u64 {
        let wall_us = wall_ms.saturating_mul(1_000);
        let base = match (self.last, seen) {
            (Some(own), Some(seen)) if seen.passed(now) > own.passed(now) => Some(seen),
            (own, seen) => own.or(seen),
        };
        let us = match base {
            None => wall_us,
            Some(base) if self.last.is_none() && standing == Standing::Restarted => {
                wall_us.max(base.us)
            }
            Some(base) => {
                let since = base.since_us(now);
                let slack = since / 10 * SPEED_TENTHS;
                let right = base.us.saturating_add(since);
                wall_us.clamp(right - slack, right.saturating_add(slack))
            }
        };
        self.last = Some(Stamp { us, at: now });
        us / 1_000
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    const WALL: u64 = 1_000_000;

    fn after(begin: Instant, ms: u64) -> Instant {
        begin + Duration::from_millis(ms)
    }

    fn seen(ms: u64, at: Instant) -> Option<Stamp> {
        let us = ms * 1_000;
        Some(Stamp { us, at })
    }

    #[test]
    fn a_group_without_a_time_takes_the_wall_clock_and_follows_it() {
        let (mut clock, t) = (LeaderClock::default(), Instant::now());
        assert_eq!(clock.stamp(WALL, t, None, Standing::Runs), WALL);
        let next = clock.stamp(WALL + 500, after(t, 500), None, Standing::Runs);
        assert_eq!(next, WALL + 500);
    }

    #[test]
    fn a_wall_clock_that_jumps_moves_it_by_a_tenth_at_most_and_never_back() {
        let (mut clock, t) = (LeaderClock::default(), Instant::now());
        clock.stamp(WALL, t, None, Standing::Runs);
        let ahead = clock.stamp(WALL * 9, after(t, 1_000), None, Standing::Runs);
        assert_eq!(ahead, WALL + 1_100);
        let back = clock.stamp(0, after(t, 2_000), None, Standing::Runs);
        assert_eq!(back, WALL + 1_100 + 900);
        let same = clock.stamp(0, after(t, 2_000), None, Standing::Runs);
        assert_eq!(same, back);
    }

    #[test]
    fn many_small_steps_run_no_faster_than_one_large() {
        let (mut clock, t) = (LeaderClock::default(), Instant::now());
        clock.stamp(WALL, t, None, Standing::Runs);
        let mut last = 0;
        for ms in 1..=1_000 {
            last = clock.stamp(WALL * 9, after(t, ms), None, Standing::Runs);
        }
        assert_eq!(last, WALL + 1_100);
    }

    #[test]
    fn a_new_leader_goes_on_from_what_it_has_seen_though_its_clock_is_wrong() {
        let (mut clock, t) = (LeaderClock::default(), Instant::now());
        let now = after(t, 60_000);
        let first = clock.stamp(WALL * 50, now, seen(WALL, t), Standing::Runs);
        assert_eq!(first, WALL + 66_000);
    }

    #[test]
    fn a_leader_that_comes_back_goes_on_from_what_others_have_stamped_since() {
        let (mut clock, t) = (LeaderClock::default(), Instant::now());
        clock.stamp(WALL, t, None, Standing::Runs);
        let others = seen(WALL + 20_000, after(t, 10_000));
        let again = clock.stamp(WALL + 10_000, after(t, 10_000), others, Standing::Runs);
        assert_eq!(again, WALL + 20_000, "never backwards");
    }

    #[test]
    fn a_stamp_of_an_earlier_term_counts_no_more() {
        let (mut clock, t) = (LeaderClock::default(), Instant::now());
        clock.lead(1);
        clock.stamp(WALL * 9, t, None, Standing::Runs);
        let others = seen(WALL, after(t, 10_000));
        clock.lead(3);
        let again = clock.stamp(WALL * 9, after(t, 11_000), others, Standing::Runs);
        assert_eq!(
            again,
            WALL + 1_100,
            "a tenth faster than what others stamped"
        );
        clock.lead(3);
        let next = clock.stamp(WALL * 9, after(t, 12_000), others, Standing::Runs);
        assert_eq!(next, WALL + 2_200);
    }

    #[test]
    fn only_the_first_stamp_after_a_restart_of_all_jumps_and_only_forwards() {
        let t = Instant::now();
        for (wall, stamped) in [(WALL + 3_600_000, WALL + 3_600_000), (5, WALL)] {
            let mut clock = LeaderClock::default();
            let first = clock.stamp(wall, after(t, 10), seen(WALL, t), Standing::Restarted);
            assert_eq!(first, stamped);
            let next = clock.stamp(u64::MAX / 1_000, after(t, 110), None, Standing::Restarted);
            assert_eq!(next, stamped + 110);
        }
    }
}
