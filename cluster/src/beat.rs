//! The beat of a node: its periodic timers fall on one grid, those of one period at the same time, so that an idle node wakes
//! once for all of them, and what they send goes out together.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// Between two beats. Periods of timers should be multiples of it.
pub const BEAT: Duration = Duration::from_millis(50);

/// The beat at or after an instant.
pub fn at_or_after(instant: Instant) -> Instant {
    aligned(instant, BEAT)
}

/// The first multiple of a period at or after an instant, counted from when the first timer of the process was set: the beats of
/// several nodes are apart, as their elections should be.
fn aligned(instant: Instant, period: Duration) -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    let origin = *ORIGIN.get_or_init(Instant::now);
    let since = instant.saturating_duration_since(origin).as_nanos();
    let periods = since.div_ceil(period.as_nanos().max(1));
    let periods = u32::try_from(periods).unwrap_or(u32::MAX);
    (origin + period * periods).max(instant)
}

/// A timer that fires at each multiple of its period, for the first time after up to one. What it misses it skips.
pub fn interval(period: Duration) -> Interval {
    let mut interval = interval_at(aligned(Instant::now(), period), period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    interval
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn timers_set_at_different_times_fire_together() {
        let mut first = interval(BEAT * 2);
        tokio::time::advance(BEAT + BEAT / 3).await;
        let mut second = interval(BEAT * 2);
        tokio::time::advance(BEAT).await;
        let mut seldom = interval(BEAT * 4);
        let begin = first.tick().await;
        for timer in [&mut second, &mut seldom] {
            let since = timer.tick().await - begin;
            assert_eq!(since.as_nanos() % (2 * BEAT).as_nanos(), 0, "{since:?}");
        }
    }
}
