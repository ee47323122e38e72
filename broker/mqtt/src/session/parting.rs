//! What a session still owes a client that is to go: it goes with what it was to get.

use super::outbound::Outbound;

impl Outbound {
    /// Where the line of what the client is to get ends now: for [`is_done_before`](Self::is_done_before). Copies of shared
    /// subscriptions do not stand in it: other members get those that are not done.
    pub fn line_end(&self) -> u64 {
        self.queue.next_sequence()
    }

    /// Whether every copy that stood in the line before that end was acknowledged, dropped or has expired.
    pub fn is_done_before(&self, end: u64) -> bool {
        let waiting = self.queue.first_ordinary();
        self.flight.first_undone().is_none_or(|first| first >= end)
            && waiting.is_none_or(|first| first >= end)
    }

    /// Whether something has not been written once on this connection.
    pub fn has_unsent(&self) -> bool {
        self.queue.len() > 0 || self.flight.has_resends()
    }
}
