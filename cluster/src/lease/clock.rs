//! The serve lease as the workers see it: one atomic deadline against a clock that also runs while the machine sleeps.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::time::{ClockId, clock_gettime};

/// CLOCK_BOOTTIME in ns: monotonic, counts suspended time too.
pub fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Until when this node may serve. Never a flag: a pause may fall anywhere between a check and the next.
#[derive(Debug, Default)]
pub struct Lease {
    /// [`boot_ns`] at which it ends; 0 = none was ever held. Set by the renewer, read by all.
    deadline_ns: AtomicU64,
    /// The process leaves: whatever is still answered to it counts no more.
    retired: AtomicBool,
}

impl Lease {
    /// Whether it is held right now.
    pub fn held(&self) -> bool {
        self.left_ns() > 0
    }

    /// How long it is still held, in ns; 0 = not held.
    pub fn left_ns(&self) -> u64 {
        if self.retired.load(Ordering::Acquire) {
            return 0;
        }
        self.deadline_ns
            .load(Ordering::Acquire)
            .saturating_sub(boot_ns())
    }

    /// How long ago the one ended that was held last, in ns; none where it is held, or was given up.
    pub fn lost_for_ns(&self) -> Option<u64> {
        let deadline = self.deadline_ns.load(Ordering::Acquire);
        let lost = boot_ns().checked_sub(deadline)?;
        (deadline > 0).then_some(lost)
    }

    /// Moves the end; it never moves back but to be given up.
    pub fn extend(&self, deadline_ns: u64) {
        self.deadline_ns.fetch_max(deadline_ns, Ordering::AcqRel);
    }

    /// Serves no more from now on.
    pub fn give_up(&self) {
        self.deadline_ns.store(0, Ordering::Release);
    }

    /// Never serves again: before a node says of itself that it is Down, and once its storage failed.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_held_until_its_deadline() {
        let lease = Lease::default();
        assert!(!lease.held() && lease.lost_for_ns().is_none());
        lease.extend(boot_ns() - 5_000_000);
        assert!(lease.lost_for_ns().is_some_and(|lost| lost >= 5_000_000));
        lease.extend(boot_ns() + 60_000_000_000);
        assert!(lease.held() && lease.left_ns() > 0 && lease.lost_for_ns().is_none());
        lease.extend(1);
        assert!(lease.held(), "an older answer does not shorten it");
        lease.give_up();
        assert!(!lease.held());
    }

    #[test]
    fn an_answer_that_comes_after_the_end_counts_no_more() {
        let lease = Lease::default();
        lease.retire();
        lease.extend(boot_ns() + 60_000_000_000);
        assert!(!lease.held() && lease.left_ns() == 0);
    }
}
