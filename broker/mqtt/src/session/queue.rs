//! The copies that were never sent: first in, first out for QoS 1/2 and for QoS 0, with what they
//! count against the session's limits. Which copy goes when, and why, is decided elsewhere.

use std::collections::VecDeque;

use super::message::Delivery;
use super::rare::Rare;
use crate::packet::QoS;

/// Between two looks for what expired.
const EXPIRY_PAUSE_MS: u64 = 1_000;
/// Capacity that an empty queue keeps.
const IDLE_CAPACITY: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Queue {
    lines: Rare<Lines>,
    /// The next ordinary QoS 1 or 2 copy gets it.
    next_sequence: u64,
}

#[derive(Debug, Default)]
struct Lines {
    reliable: VecDeque<Waiting>,
    qos0: VecDeque<Delivery>,
    bytes: usize,
    /// Nothing in it expires before this, on the clock of `now_ms`; 0 until it was looked through.
    expires_from_ms: u64,
}

/// A QoS 1 or 2 copy that was never sent.
#[derive(Debug)]
pub(super) struct Waiting {
    /// Meaningless for shared deliveries, which get theirs when they are sent.
    pub(super) sequence: u64,
    pub(super) delivery: Delivery,
}

impl Lines {
    /// Counts a copy that is put in.
    fn add(&mut self, copy: &Delivery) {
        self.bytes += copy.message.held_bytes();
        if let Some(at) = copy.message.expires_at_ms {
            self.expires_from_ms = self.expires_from_ms.min(at);
        }
    }

    fn copies(&self) -> impl Iterator<Item = &Delivery> {
        let reliable = self.reliable.iter().map(|waiting| &waiting.delivery);
        reliable.chain(&self.qos0)
    }
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        let lines = self.lines.get();
        lines.map_or(0, |lines| lines.reliable.len() + lines.qos0.len())
    }

    pub(super) fn bytes(&self) -> usize {
        self.lines.get().map_or(0, |lines| lines.bytes)
    }

    /// The next QoS 1 or 2 copy to send.
    pub(super) fn front(&self) -> Option<&Waiting> {
        self.lines.get()?.reliable.front()
    }

    pub(super) fn has_qos0(&self) -> bool {
        self.lines.get().is_some_and(|lines| !lines.qos0.is_empty())
    }

    /// What the next ordinary copy gets.
    pub(super) fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// The sequence of the first ordinary copy.
    pub(super) fn first_ordinary(&self) -> Option<u64> {
        let mut reliable = self.lines.get()?.reliable.iter();
        let first = reliable.find(|waiting| waiting.delivery.share.is_none());
        Some(first?.sequence)
    }

    /// Gives an ordinary copy its sequence number.
    pub(super) fn number(&mut self, delivery: Delivery) -> Waiting {
        let sequence = self.next_sequence;
        if delivery.share.is_none() {
            self.next_sequence += 1;
        }
        Waiting { sequence, delivery }
    }

    pub(super) fn push(&mut self, waiting: Waiting) {
        let lines = self.lines.made();
        lines.add(&waiting.delivery);
        lines.reliable.push_back(waiting);
    }

    pub(super) fn push_qos0(&mut self, delivery: Delivery) {
        let lines = self.lines.made();
        lines.add(&delivery);
        lines.qos0.push_back(delivery);
    }

    pub(super) fn pop(&mut self) -> Option<Waiting> {
        let lines = self.lines.get_mut()?;
        let waiting = lines.reliable.pop_front()?;
        lines.bytes -= waiting.delivery.message.held_bytes();
        give_back(&mut lines.reliable);
        Some(waiting)
    }

    pub(super) fn pop_qos0(&mut self) -> Option<Delivery> {
        let lines = self.lines.get_mut()?;
        let delivery = lines.qos0.pop_front()?;
        lines.bytes -= delivery.message.held_bytes();
        give_back(&mut lines.qos0);
        Some(delivery)
    }

    /// Takes out the copy that a new one of this QoS may push out.
    pub(super) fn pop_oldest(&mut self, qos: QoS) -> Option<Delivery> {
        match self.pop_qos0() {
            None if qos > QoS::AtMostOnce => self.pop().map(|waiting| waiting.delivery),
            oldest => oldest,
        }
    }

    /// Removes all QoS 0 copies and says how many there were.
    pub(super) fn clear_qos0(&mut self) -> usize {
        let Some(lines) = self.lines.get_mut() else {
            return 0;
        };
        let removed = std::mem::take(&mut lines.qos0);
        lines.bytes -= held_bytes(&removed);
        removed.len()
    }

    /// Removes the copies for which `is_unwanted` says so and returns them: QoS 1/2 in order, then
    /// QoS 0 in order.
    pub(super) fn extract(&mut self, is_unwanted: impl Fn(&Delivery) -> bool) -> Vec<Delivery> {
        let mut removed = Vec::new();
        let Some(lines) = self.lines.get_mut() else {
            return removed;
        };
        let mut keep = |delivery: &Delivery| {
            let is_unwanted = is_unwanted(delivery);
            if is_unwanted {
                removed.push(delivery.clone());
            }
            !is_unwanted
        };
        lines.reliable.retain(|waiting| keep(&waiting.delivery));
        lines.qos0.retain(keep);
        lines.bytes -= held_bytes(&removed);
        removed
    }

    /// Removes what expired and says how many there were. Linear, but only when something may have expired and the last look
    /// was a while ago, so that it can be called for every copy that finds the queue full.
    pub(super) fn drop_expired(&mut self, now_ms: u64) -> usize {
        let due = self.lines.get().map(|lines| lines.expires_from_ms);
        if due.is_none_or(|due| now_ms < due) {
            return 0;
        }
        let expired = self.extract(|copy| copy.message.is_expired(now_ms));
        if let Some(lines) = self.lines.get_mut() {
            let next = lines.copies().filter_map(|copy| copy.message.expires_at_ms);
            let next = next.min().unwrap_or(u64::MAX);
            lines.expires_from_ms = next.max(now_ms + EXPIRY_PAUSE_MS);
        }
        expired.len()
    }

    /// Asserts what must hold between calls; `sent_end` is one past the last sequence sent.
    pub(super) fn check_invariants(&self, sent_end: u64) {
        let Some(lines) = self.lines.get() else {
            return;
        };
        let reliable = lines.reliable.iter().map(|waiting| &waiting.delivery);
        assert_eq!(lines.bytes, held_bytes(reliable) + held_bytes(&lines.qos0));
        let ordinary = lines
            .reliable
            .iter()
            .filter(|waiting| waiting.delivery.share.is_none());
        let sequences: Vec<u64> = ordinary.map(|waiting| waiting.sequence).collect();
        assert!(sequences.windows(2).all(|pair| pair[0] < pair[1]));
        let possible = sent_end..self.next_sequence;
        assert!(sequences.iter().all(|sequence| possible.contains(sequence)));
    }
}

pub(super) fn held_bytes<'a>(copies: impl IntoIterator<Item = &'a Delivery>) -> usize {
    copies
        .into_iter()
        .map(|copy| copy.message.held_bytes())
        .sum()
}

/// Gives an empty queue's memory back, but for what a trickle needs again and again.
fn give_back<T>(queue: &mut VecDeque<T>) {
    if queue.is_empty() && queue.capacity() > IDLE_CAPACITY {
        *queue = VecDeque::new();
    }
}
