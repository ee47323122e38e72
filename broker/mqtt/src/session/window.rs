//! The copies that were sent and are not done, by sequence number. A packet id is its sequence in
//! another form, and a window is a distance between sequences, not a count: that is why a new
//! owner of a session resends with the same ids though none was stored.

use std::collections::VecDeque;

use super::message::Delivery;
use crate::packet::PacketId;

/// How many packet ids a range has: the ordinary one 1..=32,767, the shared one 32,768..=65,534.
const PACKET_IDS: u64 = 32_767;
/// The greatest window: below the number of ids, so that an id says which sequence is meant.
pub(super) const WINDOW_MAX: u16 = PACKET_IDS as u16 - 1;
/// Slots kept allocated while nothing is under way.
const IDLE_SLOTS: usize = 8;

/// Which packet ids a window uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IdRange {
    Ordinary,
    /// Deliveries of shared subscriptions, which another member may get instead.
    Shared,
}

/// What became of a sequence within the window.
#[derive(Debug)]
pub(super) enum Slot {
    /// PUBLISH was sent.
    Published(Delivery),
    /// QoS 2: PUBREC came and PUBREL was sent; the message itself is no longer needed.
    Released,
    /// Done, or never sent; waits for those before it.
    Done,
}

#[derive(Debug)]
pub(super) struct Window {
    range: IdRange,
    /// Copies that are not done; counts the slots other than Done.
    undone: u16,
    /// The sequence of the first slot, which is never Done. Without slots: where it was last.
    first: u64,
    /// The next sequence to send again on this connection; the end once all were.
    cursor: u64,
    slots: VecDeque<Slot>,
}

impl Window {
    pub(super) fn new(range: IdRange) -> Self {
        Self {
            range,
            undone: 0,
            first: 0,
            cursor: 0,
            slots: VecDeque::new(),
        }
    }

    /// How many are sent and not done.
    pub(super) fn undone(&self) -> u16 {
        self.undone
    }

    /// The first sequence that was sent and is not done.
    pub(super) fn first_undone(&self) -> Option<u64> {
        (!self.slots.is_empty()).then_some(self.first)
    }

    /// One past the last sequence sent.
    pub(super) fn end(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    /// How much of a client's window is used on this connection: the distance from the first that
    /// is not done to the next to send.
    pub(super) fn span(&self) -> u64 {
        self.cursor - self.first
    }

    /// What `span` would be just before `sequence` is sent for the first time.
    pub(super) fn span_before(&self, sequence: u64) -> u64 {
        if self.slots.is_empty() {
            0
        } else {
            sequence - self.first
        }
    }

    /// Everything has to be sent again: a connection begins.
    pub(super) fn rewind(&mut self) {
        self.cursor = self.first;
    }

    /// The next sequence to send again, its packet id and its state, if any is left. One that is
    /// done by now is to be passed over like the others, as it too takes its part of the window.
    pub(super) fn next_resend(&self) -> Option<(u64, PacketId, &Slot)> {
        let slot = self.slots.get((self.cursor - self.first) as usize)?;
        Some((self.cursor, self.packet_id(self.cursor), slot))
    }

    pub(super) fn has_resends(&self) -> bool {
        self.cursor < self.end()
    }

    /// The one that `next_resend` returned was sent, or passed over.
    pub(super) fn advance(&mut self) {
        self.cursor += 1;
    }

    /// Takes in what was sent for the first time. Sequences only grow; those left out are done.
    pub(super) fn push(&mut self, sequence: u64, delivery: Delivery) {
        assert!(
            sequence >= self.end() && !self.has_resends(),
            "sent in order of sequence"
        );
        if self.slots.is_empty() {
            self.first = sequence;
        }
        while self.end() < sequence {
            self.slots.push_back(Slot::Done);
        }
        self.slots.push_back(Slot::Published(delivery));
        self.undone += 1;
        self.cursor = self.end();
    }

    pub(super) fn packet_id(&self, sequence: u64) -> PacketId {
        let value = self.range.base() + (sequence % PACKET_IDS) as u16;
        PacketId::new(value).expect("ranges start above 0")
    }

    /// The sequence of a packet id that is under way.
    pub(super) fn sequence_of(&self, id: PacketId) -> Option<u64> {
        let place = u64::from(id.value().checked_sub(self.range.base())?);
        if place >= PACKET_IDS {
            return None;
        }
        let distance = (place + PACKET_IDS - self.first % PACKET_IDS) % PACKET_IDS;
        match self.slots.get(distance as usize) {
            None | Some(Slot::Done) => None,
            Some(_) => Some(self.first + distance),
        }
    }

    /// The state of a sequence that `sequence_of` returned.
    pub(super) fn slot(&self, sequence: u64) -> &Slot {
        &self.slots[(sequence - self.first) as usize]
    }

    /// Forgets the message of a QoS 2 copy, whose PUBREL is now what counts. Returns the copy if it
    /// had not been released before.
    pub(super) fn release(&mut self, sequence: u64) -> Option<Delivery> {
        match self.replace(sequence, Slot::Released) {
            Slot::Published(delivery) => Some(delivery),
            Slot::Released | Slot::Done => None,
        }
    }

    /// Ends a sequence and moves the window on if it was the first. Returns the copy if its message
    /// was still held.
    pub(super) fn complete(&mut self, sequence: u64) -> Option<Delivery> {
        let former = self.replace(sequence, Slot::Done);
        self.undone -= 1;
        while matches!(self.slots.front(), Some(Slot::Done)) {
            self.slots.pop_front();
            self.first += 1;
        }
        self.cursor = self.cursor.max(self.first);
        if self.slots.is_empty() && self.slots.capacity() > IDLE_SLOTS {
            self.slots = VecDeque::new();
        }
        match former {
            Slot::Published(delivery) => Some(delivery),
            Slot::Released | Slot::Done => None,
        }
    }

    /// The sequences and copies whose message is still held, in order.
    pub(super) fn published(&self) -> impl Iterator<Item = (u64, &Delivery)> {
        (self.first..)
            .zip(&self.slots)
            .filter_map(|(sequence, slot)| match slot {
                Slot::Published(delivery) => Some((sequence, delivery)),
                Slot::Released | Slot::Done => None,
            })
    }

    pub(super) fn check_invariants(&self) {
        let undone = self
            .slots
            .iter()
            .filter(|slot| !matches!(slot, Slot::Done))
            .count();
        assert_eq!(usize::from(self.undone), undone);
        assert!(!matches!(self.slots.front(), Some(Slot::Done)));
        assert!(self.first <= self.cursor && self.cursor <= self.end());
        assert!(self.slots.len() <= usize::from(WINDOW_MAX));
    }

    fn replace(&mut self, sequence: u64, slot: Slot) -> Slot {
        std::mem::replace(&mut self.slots[(sequence - self.first) as usize], slot)
    }
}

impl IdRange {
    const fn base(self) -> u16 {
        match self {
            Self::Ordinary => 1,
            Self::Shared => 1 + PACKET_IDS as u16,
        }
    }
}
