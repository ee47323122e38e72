//! All copies under way: the ordinary window, and one of its own for shared deliveries, whose
//! packet ids are another range. Together they keep within the client's window.

use super::message::Delivery;
use super::queue::{Waiting, held_bytes};
use super::window::{IdRange, Window};
use crate::packet::{PacketId, QoS};

#[derive(Debug)]
pub(super) struct Flight {
    ordinary: Window,
    /// Made when the first shared delivery is sent.
    shared: Option<Box<Window>>,
    /// Of the copies whose message is still held.
    bytes: usize,
}

impl Flight {
    pub(super) fn new() -> Self {
        Self {
            ordinary: Window::new(IdRange::Ordinary),
            shared: None,
            bytes: 0,
        }
    }

    /// Copies sent and not done.
    pub(super) fn len(&self) -> usize {
        let shared = self.shared.as_ref().map_or(0, |window| window.undone());
        usize::from(self.ordinary.undone()) + usize::from(shared)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How much of the client's window is used on this connection.
    pub(super) fn span(&self) -> u64 {
        self.ordinary.span() + self.shared_span()
    }

    /// What `span` would be just before this copy is sent for the first time.
    pub(super) fn span_before(&self, waiting: &Waiting) -> u64 {
        if waiting.delivery.share.is_some() {
            return self.span();
        }
        self.ordinary.span_before(waiting.sequence) + self.shared_span()
    }

    pub(super) fn has_resends(&self) -> bool {
        let shared = self.shared.as_ref();
        self.ordinary.has_resends() || shared.is_some_and(|window| window.has_resends())
    }

    /// A connection begins: everything has to be sent again.
    pub(super) fn rewind(&mut self) {
        self.ordinary.rewind();
        if let Some(shared) = &mut self.shared {
            shared.rewind();
        }
    }

    /// The window that has something to send again.
    pub(super) fn resending(&mut self) -> Option<&mut Window> {
        if self.ordinary.has_resends() {
            return Some(&mut self.ordinary);
        }
        self.shared
            .as_deref_mut()
            .filter(|window| window.has_resends())
    }

    /// The packet id with which a copy will be sent for the first time, and the sequence it has or
    /// gets now.
    pub(super) fn place(&mut self, waiting: &Waiting) -> (u64, PacketId) {
        if waiting.delivery.share.is_some() {
            let shared = self.shared();
            return (shared.end(), shared.packet_id(shared.end()));
        }
        (waiting.sequence, self.ordinary.packet_id(waiting.sequence))
    }

    /// Takes in what was sent for the first time.
    pub(super) fn push(&mut self, sequence: u64, delivery: Delivery) {
        self.bytes += delivery.message.held_bytes();
        match delivery.share {
            Some(_) => self.shared().push(sequence, delivery),
            None => self.ordinary.push(sequence, delivery),
        }
    }

    /// The window and sequence of a packet id that is under way.
    pub(super) fn locate(&mut self, id: PacketId) -> Option<(&mut Window, u64)> {
        if let Some(sequence) = self.ordinary.sequence_of(id) {
            return Some((&mut self.ordinary, sequence));
        }
        let shared = self.shared.as_deref_mut()?;
        let sequence = shared.sequence_of(id)?;
        Some((shared, sequence))
    }

    /// The message of a copy that a window returned is no longer held.
    pub(super) fn release_bytes(&mut self, delivery: Option<&Delivery>) {
        self.bytes -= held_bytes(delivery);
    }

    /// Takes out the shared copies that were not acknowledged and may go to another member, where
    /// `is_wanted` says so: QoS 1, in order.
    pub(super) fn take_shared_qos1(
        &mut self,
        is_wanted: impl Fn(&Delivery) -> bool,
    ) -> Vec<Delivery> {
        let Some(window) = &mut self.shared else {
            return Vec::new();
        };
        let qos1 = window
            .published()
            .filter(|(_, copy)| copy.qos == QoS::AtLeastOnce && is_wanted(copy));
        let sequences: Vec<u64> = qos1.map(|(sequence, _)| sequence).collect();
        let copies = sequences
            .into_iter()
            .filter_map(|sequence| window.complete(sequence));
        let taken: Vec<Delivery> = copies.collect();
        self.bytes -= held_bytes(&taken);
        taken
    }

    /// Takes out the copies for which `is_unwanted` says so and whose message is still held: they are done. For a time
    /// without a connection.
    pub(super) fn extract(&mut self, is_unwanted: impl Fn(&Delivery) -> bool) -> Vec<Delivery> {
        let mut taken = Vec::new();
        let shared = self.shared.as_deref_mut();
        for window in [Some(&mut self.ordinary), shared].into_iter().flatten() {
            let unwanted = window.published().filter(|(_, copy)| is_unwanted(copy));
            let sequences: Vec<u64> = unwanted.map(|(sequence, _)| sequence).collect();
            let copies = sequences
                .into_iter()
                .filter_map(|sequence| window.complete(sequence));
            taken.extend(copies);
        }
        self.bytes -= held_bytes(&taken);
        taken
    }

    /// The first ordinary sequence that was sent and is not done.
    pub(super) fn first_undone(&self) -> Option<u64> {
        self.ordinary.first_undone()
    }

    /// One past the last ordinary sequence sent.
    pub(super) fn sent_end(&self) -> u64 {
        self.ordinary.end()
    }

    /// Asserts what must hold between calls. Linear; for tests.
    pub(super) fn check_invariants(&self) {
        let mut bytes = 0;
        for window in [Some(&self.ordinary), self.shared.as_deref()]
            .into_iter()
            .flatten()
        {
            window.check_invariants();
            bytes += held_bytes(window.published().map(|(_, copy)| copy));
        }
        assert_eq!(self.bytes, bytes);
    }

    fn shared(&mut self) -> &mut Window {
        self.shared
            .get_or_insert_with(|| Box::new(Window::new(IdRange::Shared)))
    }

    fn shared_span(&self) -> u64 {
        self.shared.as_ref().map_or(0, |window| window.span())
    }
}
