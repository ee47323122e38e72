//! The inbound half against publishers, one that keeps to the protocol and one that does not.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use crate::packet::{PacketId, QoS, Version};
use crate::reason::ReasonCode;
use crate::session::{AckKind, AckOut, Begin, Inbound, InboundConfig, Ticket};

#[derive(Debug, Clone)]
enum InboundOp {
    Publish {
        id: u16,
        qos: u8,
    },
    /// Routing of one of the open tickets ends.
    Complete {
        which: usize,
        refuse: bool,
    },
    PollAck,
    PubRel(u16),
    Reconnect,
}

fn inbound_op() -> impl Strategy<Value = InboundOp> {
    prop_oneof![
        6 => (1u16..8, 1u8..3).prop_map(|(id, qos)| InboundOp::Publish { id, qos }),
        6 => (0usize..8, prop::bool::weighted(0.2))
            .prop_map(|(which, refuse)| InboundOp::Complete { which, refuse }),
        6 => Just(InboundOp::PollAck),
        4 => (1u16..8).prop_map(InboundOp::PubRel),
        1 => Just(InboundOp::Reconnect),
    ]
}

/// A publisher that keeps to the protocol, and the tasks that route for it.
#[derive(Debug, Default)]
struct Publisher {
    /// The message of each QoS 2 id until PUBCOMP or a refusal, over connections.
    messages: BTreeMap<u16, usize>,
    /// Of these, the ones whose PUBREC came: PUBREL is what comes next.
    received: BTreeSet<u16>,
    /// Ids in use on this connection, which are not used again before they are free.
    in_use: BTreeSet<u16>,
    /// Acknowledgements to come on this connection.
    expected: VecDeque<(u16, AckKind)>,
    routing: Vec<(Ticket, Option<usize>)>,
    /// How often each QoS 2 message was placed.
    placed: BTreeMap<usize, usize>,
    /// Messages that the session asked to route again.
    unsettled: BTreeSet<usize>,
}

impl Publisher {
    fn publish(&mut self, inbound: &mut Inbound, number: usize, id: u16, qos: QoS) {
        if self.received.contains(&id) || !self.in_use.insert(id) {
            return;
        }
        let Ok((ticket, begin)) = inbound.start(PacketId::new(id).unwrap(), qos) else {
            assert!(inbound.outstanding() >= 5 || inbound.begun() >= 10);
            self.in_use.remove(&id);
            return;
        };
        if qos == QoS::AtLeastOnce {
            assert_eq!(begin, Begin::New);
            self.expected.push_back((id, AckKind::PubAck));
            return self.routing.push((ticket, None));
        }
        self.expected.push_back((id, AckKind::PubRec));
        let message = *self.messages.entry(id).or_insert(number);
        match begin {
            Begin::Duplicate => {
                assert!(self.placed.contains_key(&message));
                return inbound.complete(ticket, ReasonCode::Success);
            }
            Begin::Unsettled => {
                self.unsettled.insert(message);
            }
            Begin::New => {}
        }
        self.routing.push((ticket, Some(message)));
    }

    fn complete(&mut self, inbound: &mut Inbound, which: usize, reason: ReasonCode) {
        if self.routing.is_empty() {
            return;
        }
        let (ticket, message) = self.routing.remove(which % self.routing.len());
        inbound.complete(ticket, reason);
        if let (Some(message), false) = (message, reason.is_error()) {
            let times = self.placed.entry(message).or_default();
            *times += 1;
            assert!(
                *times == 1 || self.unsettled.contains(&message),
                "exactly once"
            );
        }
    }

    fn poll_ack(&mut self, inbound: &mut Inbound) {
        let Some(AckOut { id, kind, reason }) = inbound.poll_ack() else {
            return;
        };
        let id = id.value();
        assert_eq!(self.expected.pop_front(), Some((id, kind)));
        if kind == AckKind::PubAck || reason.is_error() {
            self.in_use.remove(&id);
        }
        if kind == AckKind::PubRec && reason.is_error() {
            self.messages.remove(&id);
        }
        if kind == AckKind::PubRec && !reason.is_error() {
            assert!(
                self.placed.contains_key(&self.messages[&id]),
                "acknowledged means placed"
            );
            self.received.insert(id);
        }
    }

    fn pubrel(&mut self, inbound: &mut Inbound, id: u16) {
        if self.received.remove(&id) {
            let reason = inbound.handle_pubrel(PacketId::new(id).unwrap());
            assert_eq!(reason, ReasonCode::Success);
            self.messages.remove(&id);
            self.in_use.remove(&id);
        }
    }

    /// The connection is lost, and with it some of the tasks that routed for it.
    fn reconnect(&mut self, inbound: &mut Inbound, version: Version, number: usize) {
        inbound.connect(version);
        self.expected.clear();
        self.in_use.clear();
        let survives = |message: usize| (message + number).is_multiple_of(2);
        self.routing
            .retain(|(_, message)| message.is_some_and(survives));
    }
}

const INBOUND: InboundConfig = InboundConfig {
    receive_maximum: 5,
    topic_alias_maximum: 0,
};

fn apply(
    inbound: &mut Inbound,
    publisher: &mut Publisher,
    version: Version,
    number: usize,
    op: InboundOp,
) {
    match op {
        InboundOp::Publish { id, qos } => {
            publisher.publish(inbound, number, id, QoS::try_from(qos).unwrap());
        }
        InboundOp::Complete { which, refuse } => {
            let refuse = refuse && version == Version::V5;
            let reason = if refuse {
                ReasonCode::QuotaExceeded
            } else {
                ReasonCode::Success
            };
            publisher.complete(inbound, which, reason);
        }
        InboundOp::PollAck => publisher.poll_ack(inbound),
        InboundOp::PubRel(id) => publisher.pubrel(inbound, id),
        InboundOp::Reconnect => publisher.reconnect(inbound, version, number),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn inbound_orders_acknowledgements_and_routes_qos2_once(
        ops in prop::collection::vec(inbound_op(), 1..150),
        version in prop::sample::select(vec![Version::V4, Version::V5]),
    ) {
        let mut inbound = Inbound::new(INBOUND);
        inbound.connect(version);
        let mut publisher = Publisher::default();
        for (number, op) in ops.into_iter().enumerate() {
            apply(&mut inbound, &mut publisher, version, number, op);
            inbound.check_invariants();
        }
    }

    #[test]
    fn a_client_that_breaks_the_protocol_breaks_nothing_else(
        ops in prop::collection::vec(inbound_op(), 1..150),
        version in prop::sample::select(vec![Version::V4, Version::V5]),
    ) {
        let mut inbound = Inbound::new(INBOUND);
        inbound.connect(version);
        let mut tickets = Vec::new();
        for op in ops {
            match op {
                InboundOp::Publish { id, qos } => {
                    let qos = QoS::try_from(qos).unwrap();
                    let started = inbound.start(PacketId::new(id).unwrap(), qos);
                    tickets.extend(started.map(|(ticket, _)| ticket));
                }
                InboundOp::Complete { which, refuse } if !tickets.is_empty() => {
                    let ticket = tickets.remove(which % tickets.len());
                    let reason = if refuse { ReasonCode::QuotaExceeded } else { ReasonCode::Success };
                    inbound.complete(ticket, reason);
                }
                InboundOp::Complete { .. } => {}
                InboundOp::PollAck => drop(inbound.poll_ack()),
                InboundOp::PubRel(id) => drop(inbound.handle_pubrel(PacketId::new(id).unwrap())),
                InboundOp::Reconnect => inbound.connect(version),
            }
            inbound.check_invariants();
        }
    }
}
