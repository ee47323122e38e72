//! The receiving ends of links, as a pure machine: each numbered message is taken once, in order, from the newest start of
//! its node and as long as that is there.

use std::collections::BTreeMap;

use flotte_proto::{Forward, Part, Taken};

use super::parts::{PartError, Parts};
use crate::id::{NodeId, NodeRef};

/// What to do with a numbered message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// It is the next one.
    New,
    /// It was placed before.
    Repeat,
    /// Something before it is missing: the connection has to be made anew.
    Gap,
    /// Its sender is no more, or was started anew: nothing of it is taken.
    Gone,
}

/// The receiving ends of all nodes that send to this one.
#[derive(Debug, Default)]
pub struct Receiver {
    senders: BTreeMap<NodeId, Incoming>,
}

/// Of the newest incarnation of a node.
#[derive(Debug, Default)]
struct Incoming {
    incarnation: u64,
    /// Last sequence placed.
    last: u64,
    parts: Parts,
    /// That incarnation is no more.
    is_gone: bool,
}

impl Receiver {
    /// Judges a message by its sequence and takes note of a new one. One whose parts came ahead gets them back.
    pub fn handle(&mut self, from: NodeRef, message: &mut Forward) -> Arrival {
        let Some(incoming) = self.incoming(from) else {
            return Arrival::Gone;
        };
        if message.sequence <= incoming.last {
            return Arrival::Repeat;
        }
        if message.sequence != incoming.last + 1 {
            return Arrival::Gap;
        }
        if let Some(large) = message.large.take() {
            let Some((properties, payload)) = incoming.parts.take(&large) else {
                return Arrival::Gap;
            };
            (message.properties, message.payload) = (properties, payload);
        }
        incoming.last = message.sequence;
        Arrival::New
    }

    /// Whether anything is taken of a node: it is its newest start, and that is not known to be no more.
    pub fn takes_from(&mut self, from: NodeRef) -> bool {
        self.incoming(from).is_some()
    }

    /// Takes a part of a large message. Returns what is here of that.
    pub fn handle_part(&mut self, from: NodeRef, part: &Part) -> Result<Option<Taken>, PartError> {
        let Some(incoming) = self.incoming(from) else {
            return Ok(None);
        };
        incoming.parts.handle(part)?;
        Ok(incoming.parts.taken_of(part.id))
    }

    /// Last sequence placed of a node.
    pub fn last(&self, from: NodeRef) -> u64 {
        self.known(from).map_or(0, |incoming| incoming.last)
    }

    /// What is here in parts, for their sender to go on from there.
    pub fn taken(&self, from: NodeRef) -> Vec<Taken> {
        let incoming = self.known(from);
        incoming.map_or_else(Vec::new, |incoming| incoming.parts.taken().collect())
    }

    /// Bytes that are held for other nodes, of large messages that are not whole.
    pub fn held_in_parts(&self) -> Vec<(NodeId, usize)> {
        let senders = self.senders.iter();
        let held = senders.map(|(node, incoming)| (*node, incoming.parts.held_bytes()));
        held.collect()
    }

    /// All who sent something.
    pub fn senders(&self) -> Vec<NodeRef> {
        let of = |(node, incoming): (&NodeId, &Incoming)| NodeRef {
            node: *node,
            incarnation: incoming.incarnation,
        };
        self.senders.iter().map(of).collect()
    }

    /// A node is no more: nobody is going to send the rest of what came in parts.
    pub fn handle_gone(&mut self, from: NodeRef) {
        if let Some(incoming) = self.incoming(from) {
            incoming.is_gone = true;
            incoming.parts.clear();
        }
    }

    fn known(&self, from: NodeRef) -> Option<&Incoming> {
        let incoming = self.senders.get(&from.node);
        incoming.filter(|incoming| incoming.incarnation == from.incarnation)
    }

    /// None = it is no more, or there was a newer incarnation.
    fn incoming(&mut self, from: NodeRef) -> Option<&mut Incoming> {
        let incoming = self.senders.entry(from.node).or_default();
        if from.incarnation > incoming.incarnation {
            *incoming = Incoming {
                incarnation: from.incarnation,
                ..Incoming::default()
            };
        }
        let is_current = from.incarnation == incoming.incarnation && !incoming.is_gone;
        is_current.then_some(incoming)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: NodeRef = NodeRef {
        node: NodeId(1),
        incarnation: 1,
    };

    fn numbered(sequence: u64) -> Forward {
        Forward {
            sequence,
            ..Forward::default()
        }
    }

    #[test]
    fn the_receiver_takes_each_once_in_order() {
        let mut receiver = Receiver::default();
        assert_eq!(receiver.handle(FROM, &mut numbered(1)), Arrival::New);
        assert_eq!(receiver.handle(FROM, &mut numbered(1)), Arrival::Repeat);
        assert_eq!(receiver.handle(FROM, &mut numbered(3)), Arrival::Gap);
        assert_eq!(receiver.handle(FROM, &mut numbered(2)), Arrival::New);
        assert_eq!(receiver.last(FROM), 2);
    }

    #[test]
    fn a_new_incarnation_counts_from_one_and_ends_the_older() {
        let mut receiver = Receiver::default();
        receiver.handle(FROM, &mut numbered(1));
        let newer = NodeRef {
            incarnation: 2,
            ..FROM
        };
        assert_eq!(receiver.handle(newer, &mut numbered(1)), Arrival::New);
        assert_eq!(receiver.handle(FROM, &mut numbered(2)), Arrival::Gone);
        assert!(receiver.takes_from(newer) && !receiver.takes_from(FROM));
        assert_eq!(receiver.last(FROM), 0);
    }

    #[test]
    fn of_a_node_that_is_gone_nothing_is_taken_until_it_starts_anew() {
        let mut receiver = Receiver::default();
        assert!(receiver.takes_from(FROM), "not known yet");
        receiver.handle(FROM, &mut numbered(1));
        receiver.handle_gone(FROM);
        assert_eq!(receiver.handle(FROM, &mut numbered(2)), Arrival::Gone);
        assert!(!receiver.takes_from(FROM));
        let newer = NodeRef {
            incarnation: 2,
            ..FROM
        };
        assert_eq!(receiver.handle(newer, &mut numbered(1)), Arrival::New);
        receiver.handle_gone(FROM);
        assert!(receiver.takes_from(newer), "it was not this one that went");
    }
}
