//! Copies that a client may no longer have: rules have changed since they were put in, or the session is another user's.

use super::message::Delivery;
use super::outbound::Outbound;
use super::tally::{DropReason, Tally};

impl Outbound {
    /// Drops the copies that the client may not have: those that wait, and while it is away also those that it was sent and
    /// has not acknowledged, so that they are not sent again. Returns the shared ones that it was never sent: others may
    /// have them, and the caller counts them as dropped here.
    pub fn withdraw(&mut self, is_denied: impl Fn(&Delivery) -> bool) -> (Vec<Delivery>, Tally) {
        let mut sent = Vec::new();
        if self.link.is_none() {
            sent = self.flight.extract(&is_denied);
        }
        let waiting = self.queue.extract(&is_denied);
        let (shared, own): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|copy| copy.share.is_some());
        let tally = Tally::of_dropped(DropReason::Denied, sent.len() + own.len());
        (shared, tally)
    }
}
