//! A rate as a moment: until when what has come so far is paid for. Pure, 8 bytes, no timer.

/// What may come at once: that of a second.
const BURST_US: u64 = 1_000_000;

/// How far a rate is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pace {
    paid_until_us: u64,
}

impl Pace {
    /// Takes so much if it is within the rate of so much a second.
    pub fn take(&mut self, now_us: u64, amount: u64, rate: u64) -> bool {
        let mut next = *self;
        let within = next.add(now_us, amount, rate) == 0;
        if within {
            *self = next;
        }
        within
    }

    /// Adds what has come. Returns for how many microseconds nothing more should come; no rate (0) means no limit.
    pub fn add(&mut self, now_us: u64, amount: u64, rate: u64) -> u64 {
        if rate == 0 {
            return 0;
        }
        let cost_us = amount.saturating_mul(1_000_000).div_ceil(rate);
        self.paid_until_us = self.paid_until_us.max(now_us).saturating_add(cost_us);
        (self.paid_until_us - now_us).saturating_sub(BURST_US)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn a_second_may_come_at_once_and_then_the_rate() {
        let mut pace = Pace::default();
        let mut taken = 0;
        for ms in 0..10_000 {
            while pace.take(ms * 1_000, 1, 20) {
                taken += 1;
            }
        }
        assert_eq!(taken, 20 + 199);
    }

    #[test]
    fn what_is_over_the_rate_is_waited_for() {
        let mut pace = Pace::default();
        assert_eq!(pace.add(5, 100, 100), 0);
        assert_eq!(pace.add(5, 50, 100), SECOND / 2);
        // Waited for as long as that, and no longer.
        assert_eq!(pace.add(5 + SECOND / 2, 0, 100), 0);
        assert!(pace.add(5 + SECOND / 2, 1, 100) > 0);
    }

    #[test]
    fn one_that_is_larger_than_the_rate_is_paid_off() {
        let mut pace = Pace::default();
        assert_eq!(pace.add(0, 10_000, 1_000), 9 * SECOND);
        assert_eq!(pace.add(9 * SECOND, 0, 1_000), 0);
    }

    #[test]
    fn no_rate_is_no_limit_and_nothing_overflows() {
        let mut pace = Pace::default();
        assert_eq!(pace.add(0, u64::MAX, 0), 0);
        assert!(pace.add(u64::MAX - 1, u64::MAX, 1) > 0 || pace.paid_until_us == u64::MAX);
    }
}
