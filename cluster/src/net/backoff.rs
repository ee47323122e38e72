//! Delays between attempts to connect: doubling from 50 ms to 2 s, each with jitter.

use std::time::Duration;

use rand::RngExt;

const FIRST: Duration = Duration::from_millis(50);
const LAST: Duration = Duration::from_secs(2);

/// The delays of one peer.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Backoff {
    /// Starts at the shortest delay.
    pub fn new() -> Self {
        Self { next: FIRST }
    }

    /// After a connection that worked.
    pub fn reset(&mut self) {
        self.next = FIRST;
    }

    /// The next delay: between half and all of the current step, so that nodes which lost each
    /// other at one moment do not return at one moment.
    pub fn delay(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(LAST);
        step.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_limit_and_start_over() {
        let mut backoff = Backoff::new();
        let delays: Vec<Duration> = (0..10).map(|_| backoff.delay()).collect();
        assert!(delays[0] >= FIRST / 2 && delays[0] <= FIRST);
        assert!(delays[9] >= LAST / 2 && delays[9] <= LAST);
        backoff.reset();
        assert!(backoff.delay() <= FIRST);
    }
}
