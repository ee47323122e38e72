//! A node's side of its lease: what was sent when, and from when an answer counts. Pure: times are arguments.

use std::collections::VecDeque;

/// Most renewals that wait for their answer or for their index to be applied.
const PENDING_MAX: usize = 64;

/// Turns answers to renewals into the deadline until which the node may serve.
///
/// The lease counts from when the renewal was *sent*, only once the node has applied the index of the answer, and only where its
/// replica says by then (`is_up`, asked where something is to be extended) that this start is Up: it may have applied its Down since.
#[derive(Debug)]
pub struct Renewer {
    lease_ns: u64,
    /// Answered, not yet applied: (read index, deadline), oldest first.
    waiting: VecDeque<(u64, u64)>,
    applied: u64,
}

impl Renewer {
    /// `down_after_ns` is T; the lease is 0.75 T.
    pub fn new(down_after_ns: u64) -> Self {
        Renewer {
            lease_ns: down_after_ns / 4 * 3,
            waiting: VecDeque::new(),
            applied: 0,
        }
    }

    /// An answer to the renewal sent at `sent_ns` came. Returns the deadline it gives, if it counts already.
    pub fn handle_answer(
        &mut self,
        sent_ns: u64,
        read_index: u64,
        is_up: impl FnOnce() -> bool,
    ) -> Option<u64> {
        let deadline = sent_ns + self.lease_ns;
        if read_index <= self.applied {
            return is_up().then_some(deadline);
        }
        if self.waiting.len() >= PENDING_MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back((read_index, deadline));
        None
    }

    /// This node has applied up to `index`. Returns the latest deadline that counts from now on.
    pub fn handle_applied(&mut self, index: u64, is_up: impl FnOnce() -> bool) -> Option<u64> {
        self.applied = self.applied.max(index);
        let applied = self.applied;
        let ready = self
            .waiting
            .iter()
            .filter(|(read, _)| *read <= applied)
            .map(|(_, deadline)| *deadline)
            .max();
        self.waiting.retain(|(read, _)| *read > applied);
        ready.filter(|_| is_up())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lease_counts_from_the_sending() {
        let mut renewer = Renewer::new(2_000);
        renewer.handle_applied(10, || true);
        assert_eq!(renewer.handle_answer(100, 10, || true), Some(1_600));
    }

    #[test]
    fn an_answer_counts_once_its_index_is_applied() {
        let mut renewer = Renewer::new(2_000);
        assert_eq!(renewer.handle_answer(100, 10, || true), None);
        assert_eq!(renewer.handle_answer(200, 12, || true), None);
        assert_eq!(renewer.handle_applied(9, || true), None);
        assert_eq!(renewer.handle_applied(11, || true), Some(1_600));
        assert_eq!(renewer.handle_applied(12, || true), Some(1_700));
        assert_eq!(renewer.handle_applied(13, || true), None);
    }

    #[test]
    fn nothing_counts_for_a_start_that_is_down_here() {
        let mut renewer = Renewer::new(2_000);
        assert_eq!(renewer.handle_answer(100, 10, || true), None);
        assert_eq!(renewer.handle_applied(11, || false), None);
        assert_eq!(renewer.handle_answer(200, 11, || false), None);
    }
}
