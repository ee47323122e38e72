//! A client that publishes too fast is not read from for a while: nothing is dropped, TCP tells it. No timer of its own: the
//! connection's deadline wakes it.

use std::time::Duration;

use super::Connection;
use crate::admission::Pace;
use crate::metrics::Count;

/// Where memory is short, a client publishes once in this time at most. Not never: what frees memory may come from the same
/// clients.
const MEMORY_HOLD: Duration = Duration::from_secs(1);

/// How far a client has used what it may publish. Made with its first publish while there are limits.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    messages: Pace,
    bytes: Pace,
    /// Nothing is read before, on the worker's clock in ms.
    held_until_ms: Option<u64>,
}

impl Connection {
    /// A publish came: decides whether more may be read at once.
    pub(super) fn pace(&mut self, bytes: usize) {
        let admission = &self.worker.shared.admission;
        if !admission.paces() {
            self.throttle = None;
            return;
        }
        let (messages_rate, bytes_rate) = admission.publish_rates();
        let short_of_memory = admission.is_short_of_memory();
        let now_ms = self.worker.wheel.now_ms();
        let throttle = self.throttle.get_or_insert_default();
        let now_us = now_ms * 1_000;
        let over_us = throttle
            .messages
            .add(now_us, 1, messages_rate)
            .max(throttle.bytes.add(now_us, bytes as u64, bytes_rate));
        let mut hold_ms = over_us.div_ceil(1_000);
        if hold_ms > 0 {
            Count::HELD_BY_RATE.add(1);
        }
        if short_of_memory {
            Count::HELD_BY_MEMORY.add(1);
            hold_ms = hold_ms.max(MEMORY_HOLD.as_millis() as u64);
        }
        throttle.held_until_ms = (hold_ms > 0).then(|| now_ms.saturating_add(hold_ms));
    }

    /// Whether nothing may be read for now.
    pub(super) fn is_held(&self) -> bool {
        self.held_until_ms().is_some()
    }

    /// When reading goes on.
    pub(super) fn held_until_ms(&self) -> Option<u64> {
        self.throttle.as_ref()?.held_until_ms
    }

    /// Goes on if it is time.
    pub(super) fn release(&mut self, now_ms: u64) {
        if let Some(throttle) = &mut self.throttle {
            throttle.held_until_ms.take_if(|until| *until <= now_ms);
        }
    }
}
