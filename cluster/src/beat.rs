//! The beat of a node: its periodic timers fall on one grid, so that an idle node wakes once for all of them, and what they
//! send goes out together.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// Between two beats. Periods of timers should be multiples of it.
pub const BEAT: Duration = Duration::from_millis(50);

/// The beat at or after an instant.
pub fn at_or_after(instant: Instant) -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    // When the first timer of the process was set: the beats of several nodes are apart, as their elections should be.
    let origin = *ORIGIN.get_or_init(Instant::now);
    let beat = BEAT.as_nanos();
    let since = instant.saturating_duration_since(origin).as_nanos();
    let beats = u32::try_from(since.div_ceil(beat)).unwrap_or(u32::MAX);
    (origin + BEAT * beats).max(instant)
}

/// A timer that fires on the beat, for the first time after up to one beat. What it misses it skips.
pub fn interval(period: Duration) -> Interval {
    let mut interval = interval_at(at_or_after(Instant::now()), period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    interval
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn timers_set_at_different_times_fire_together() {
        let mut first = interval(BEAT * 2);
        tokio::time::advance(BEAT / 3).await;
        let mut second = interval(BEAT * 2);
        let (a, b) = tokio::join!(first.tick(), second.tick());
        let apart = b.saturating_duration_since(a);
        assert_eq!(apart.as_nanos() % BEAT.as_nanos(), 0);
    }
}
