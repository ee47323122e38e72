//! The inbound half of a session: what the client has published and we have not settled. It orders
//! acknowledgements, tells repeated QoS 2 publishes, enforces the receive maximum and resolves
//! topic aliases. It does not see topics' meaning or payloads.

use std::collections::VecDeque;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::SessionError;
use super::config::InboundConfig;
use super::rare::Rare;
use crate::packet::{PacketId, QoS, Version};
use crate::reason::ReasonCode;
use crate::topic::TopicName;

/// Capacity that empty collections keep.
const IDLE_CAPACITY: usize = 16;

/// What a QoS 1 or 2 PUBLISH is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// Route it.
    New,
    /// QoS 2, routed before: complete its ticket with Success at once and do not route it again.
    Duplicate,
    /// QoS 2, begun on an earlier connection, and how its routing ended was never heard. Route it
    /// again, under the same key where there is one.
    Unsettled,
}

/// The place of one PUBLISH among the acknowledgements. Valid for the session, not only for the
/// connection: completing it late settles the packet id all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    sequence: u64,
    id: PacketId,
    qos: QoS,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckKind {
    PubAck,
    PubRec,
}

/// An acknowledgement to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AckOut {
    pub id: PacketId,
    pub kind: AckKind,
    pub reason: ReasonCode,
}

/// What a session has received.
///
/// - Getters: [`outstanding`](Self::outstanding), [`is_full`](Self::is_full), [`begun`](Self::begun).
/// - Input: [`connect`](Self::connect), [`disconnect`](Self::disconnect), [`start`](Self::start),
///   [`complete`](Self::complete), [`handle_pubrel`](Self::handle_pubrel),
///   [`resolve_alias`](Self::resolve_alias).
/// - Output: [`poll_ack`](Self::poll_ack).
#[derive(Debug)]
pub struct Inbound {
    config: InboundConfig,
    version: Version,
    /// Publishes of this connection not acknowledged yet, in order: acknowledgements leave in the
    /// order in which their publishes came.
    acks: Rare<VecDeque<Ack>>,
    /// The sequence of the first of `acks`.
    first: u64,
    /// The sequence with which this connection began.
    connection_first: u64,
    /// QoS 2 ids between PUBLISH and PUBREL; kept over connections. At most twice the receive
    /// maximum in 5.0, at most all ids in 3.x.
    begun: Rare<HashMap<PacketId, Begun, RandomState>>,
    /// What counts against the receive maximum on this connection.
    outstanding: u32,
    /// Topics by alias, from 1; grown as the client sets them.
    aliases: Rare<Vec<Option<TopicName>>>,
}

#[derive(Debug)]
struct Ack {
    id: PacketId,
    qos: QoS,
    /// Whether it is still to be taken off `outstanding`: not for QoS 2 repeated within a connection,
    /// nor once the begun id counts instead.
    counted: Counted,
    /// Known once routing is complete.
    reason: Option<ReasonCode>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counted {
    Yes,
    No,
}

#[derive(Debug, Clone, Copy)]
struct Begun {
    /// The first PUBLISH of this id on the latest connection that had one.
    sequence: u64,
    /// Routed: whoever repeats the PUBLISH gets PUBREC only.
    is_settled: bool,
}

impl Inbound {
    /// An inbound half whose client is not connected yet.
    pub fn new(config: InboundConfig) -> Self {
        Self {
            config,
            version: Version::V5,
            acks: Rare::new(),
            first: 0,
            connection_first: 0,
            begun: Rare::new(),
            outstanding: 0,
            aliases: Rare::new(),
        }
    }

    /// Publishes of this connection that count against the receive maximum: QoS 1 before PUBACK,
    /// QoS 2 before PUBCOMP or a refusal.
    pub fn outstanding(&self) -> usize {
        self.outstanding as usize
    }

    /// Whether the caller should read no more until acknowledgements have left. It bounds what is
    /// kept for clients that know no receive maximum, or repeat themselves.
    pub fn is_full(&self) -> bool {
        self.waiting() > usize::from(self.config.receive_maximum)
    }

    /// Whether every publish of this connection was acknowledged.
    pub fn is_settled(&self) -> bool {
        self.waiting() == 0
    }

    /// QoS 2 ids between PUBLISH and PUBREL.
    pub fn begun(&self) -> usize {
        self.begun.get().map_or(0, HashMap::len)
    }

    /// A connection begins; the last one is over.
    pub fn connect(&mut self, version: Version) {
        self.disconnect();
        self.version = version;
    }

    /// How many topic aliases the client may use, from now on.
    pub fn set_topic_alias_maximum(&mut self, maximum: u16) {
        self.config.topic_alias_maximum = maximum;
    }

    /// The connection is over: what it had not acknowledged is not acknowledged any more, and its
    /// aliases are forgotten [MQTT-3.3.2-7]. Begun QoS 2 ids stay.
    pub fn disconnect(&mut self) {
        self.first += self.waiting() as u64;
        self.connection_first = self.first;
        self.acks.clear();
        self.aliases.clear();
        self.outstanding = 0;
    }

    /// A QoS 1 or 2 PUBLISH arrived. Whatever it is, its ticket must be completed.
    pub fn start(&mut self, id: PacketId, qos: QoS) -> Result<(Ticket, Begin), SessionError> {
        debug_assert!(qos > QoS::AtMostOnce, "QoS 0 is not acknowledged");
        let former = match qos {
            QoS::ExactlyOnce => self.begun.get().and_then(|begun| begun.get(&id)).copied(),
            QoS::AtMostOnce | QoS::AtLeastOnce => None,
        };
        let begin = match former {
            None => Begin::New,
            // [MQTT-4.3.3-10]
            Some(begun) if begun.is_settled => Begin::Duplicate,
            Some(begun) if begun.sequence >= self.connection_first => Begin::Duplicate,
            Some(_) => Begin::Unsettled,
        };
        let counted = match former {
            Some(begun) if begun.sequence >= self.connection_first => Counted::No,
            _ => Counted::Yes,
        };
        if counted == Counted::Yes {
            self.check_receive_maximum(begin)?;
            self.outstanding += 1;
        }
        let sequence = self.first + self.waiting() as u64;
        if qos == QoS::ExactlyOnce && counted == Counted::Yes {
            let is_settled = begin == Begin::Duplicate;
            self.begun.made().insert(
                id,
                Begun {
                    sequence,
                    is_settled,
                },
            );
        }
        self.acks.made().push_back(Ack {
            id,
            qos,
            counted,
            reason: None,
        });
        Ok((Ticket { sequence, id, qos }, begin))
    }

    /// The PUBLISH of this ticket was placed, or refused with an error. Acknowledgements that may
    /// go out now come from [`poll_ack`](Self::poll_ack).
    pub fn complete(&mut self, ticket: Ticket, reason: ReasonCode) {
        let is_freed = self.settle(ticket, reason);
        let place = ticket.sequence.checked_sub(self.first);
        let Some(ack) = place.and_then(|place| self.acks.get_mut()?.get_mut(place as usize)) else {
            return;
        };
        debug_assert!(
            ack.id == ticket.id && ack.reason.is_none(),
            "completed once"
        );
        ack.reason = Some(reason);
        if ticket.qos == QoS::ExactlyOnce && !is_freed {
            // From here on the begun id counts, if any.
            ack.counted = Counted::No;
        }
    }

    /// The next acknowledgement to send, in the order of the publishes.
    pub fn poll_ack(&mut self) -> Option<AckOut> {
        let acks = self.acks.get_mut()?;
        let reason = acks.front()?.reason?;
        let ack = acks.pop_front()?;
        if acks.is_empty() && acks.capacity() > IDLE_CAPACITY {
            self.acks.clear();
        }
        self.first += 1;
        let kind = match ack.qos {
            QoS::ExactlyOnce => AckKind::PubRec,
            QoS::AtMostOnce | QoS::AtLeastOnce => AckKind::PubAck,
        };
        if ack.counted == Counted::Yes {
            self.outstanding -= 1;
        }
        Some(AckOut {
            id: ack.id,
            kind,
            reason,
        })
    }

    /// PUBREL: the id is free again [MQTT-4.3.3-12]. Returns the reason for the PUBCOMP, which is
    /// sent in any case [MQTT-4.3.3-11].
    pub fn handle_pubrel(&mut self, id: PacketId) -> ReasonCode {
        let unknown = self.unknown_release();
        let Some(all) = self.begun.get_mut() else {
            return unknown;
        };
        let begun = match all.get(&id).copied() {
            None => return unknown,
            Some(begun) if !begun.is_settled => return ReasonCode::PacketIdentifierNotFound,
            Some(begun) => begun,
        };
        all.remove(&id);
        if all.is_empty() && all.capacity() > IDLE_CAPACITY {
            self.begun.clear();
        }
        if begun.sequence >= self.connection_first {
            self.outstanding -= 1;
        }
        ReasonCode::Success
    }

    /// What PUBREL of an id that is not begun is answered with. A client that has published on an earlier connection may
    /// not have had our PUBCOMP: "not an error during recovery" (section 3.7.2.1 of 5.0), so it is told of none.
    fn unknown_release(&self) -> ReasonCode {
        if self.connection_first > 0 {
            ReasonCode::Success
        } else {
            ReasonCode::PacketIdentifierNotFound
        }
    }

    /// The topic of a PUBLISH that carries an alias: sets the alias where there is a topic, and
    /// looks it up where there is none.
    pub fn resolve_alias(
        &mut self,
        alias: u16,
        topic: Option<TopicName>,
    ) -> Result<TopicName, SessionError> {
        // [MQTT-3.3.2-8], [MQTT-3.3.2-9], [MQTT-3.3.2-12]
        if alias == 0 || alias > self.config.topic_alias_maximum {
            return Err(SessionError::AliasOutOfRange(alias));
        }
        let index = usize::from(alias) - 1;
        let Some(topic) = topic else {
            let known = self.aliases.get().and_then(|all| all.get(index)?.as_ref());
            return known.cloned().ok_or(SessionError::UnknownAlias(alias));
        };
        let aliases = self.aliases.made();
        if index >= aliases.len() {
            aliases.resize(index + 1, None);
        }
        // A copy of its own: the name may pin a whole read buffer.
        let topic = topic.compact();
        aliases[index] = Some(topic.clone());
        Ok(topic)
    }

    /// Asserts what must hold between calls. Linear; for tests.
    pub fn check_invariants(&self) {
        let refused = |ack: &Ack| ack.reason.is_some_and(ReasonCode::is_error);
        let acks = self.acks.get().into_iter().flatten();
        let unacknowledged = acks.filter(|ack| {
            ack.counted == Counted::Yes && (ack.qos == QoS::AtLeastOnce || refused(ack))
        });
        let begun = self
            .begun
            .get()
            .into_iter()
            .flat_map(HashMap::values)
            .filter(|begun| begun.sequence >= self.connection_first);
        assert_eq!(self.outstanding(), unacknowledged.count() + begun.count());
        assert!(self.connection_first <= self.first);
        let aliases = self.aliases.get().map_or(0, Vec::len);
        assert!(aliases <= usize::from(self.config.topic_alias_maximum));
        if self.version == Version::V5 {
            assert!(self.outstanding() <= usize::from(self.config.receive_maximum));
        }
    }

    /// Publishes of this connection that are not acknowledged.
    fn waiting(&self) -> usize {
        self.acks.get().map_or(0, VecDeque::len)
    }

    /// Records how the routing of a QoS 2 PUBLISH ended, and says whether that freed its id.
    fn settle(&mut self, ticket: Ticket, reason: ReasonCode) -> bool {
        if ticket.qos != QoS::ExactlyOnce {
            return false;
        }
        // A repeated PUBLISH within a connection has a ticket of its own, which settles nothing.
        let Some(all) = self.begun.get_mut() else {
            return false;
        };
        let begun = all.get_mut(&ticket.id);
        let Some(begun) = begun.filter(|begun| begun.sequence == ticket.sequence) else {
            return false;
        };
        if reason.is_error() {
            // [MQTT-4.3.3-9]
            all.remove(&ticket.id);
            return true;
        }
        begun.is_settled = true;
        false
    }

    fn check_receive_maximum(&self, begin: Begin) -> Result<(), SessionError> {
        let max = self.config.receive_maximum;
        // 3.x knows no such limit; its packet ids bound what is kept.
        if self.version < Version::V5 {
            return Ok(());
        }
        // [MQTT-3.3.4-7]. The quota begins anew with each connection, so as many ids again can
        // wait for a PUBREL from before; a client sends those first [MQTT-4.4.0-1].
        let is_over = self.outstanding() >= usize::from(max)
            || (begin == Begin::New && self.begun() >= 2 * usize::from(max));
        if is_over {
            Err(SessionError::ReceiveMaximumExceeded(max))
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const OK: ReasonCode = ReasonCode::Success;
    const CONFIG: InboundConfig = InboundConfig {
        receive_maximum: 3,
        topic_alias_maximum: 2,
    };

    fn connected(version: Version) -> Inbound {
        let mut inbound = Inbound::new(CONFIG);
        inbound.connect(version);
        inbound
    }

    fn id(value: u16) -> PacketId {
        PacketId::new(value).unwrap()
    }

    fn start(inbound: &mut Inbound, value: u16, qos: QoS) -> (Ticket, Begin) {
        let started = inbound.start(id(value), qos).unwrap();
        inbound.check_invariants();
        started
    }

    fn acks(inbound: &mut Inbound) -> Vec<(u16, AckKind, ReasonCode)> {
        let mut acks = Vec::new();
        while let Some(ack) = inbound.poll_ack() {
            acks.push((ack.id.value(), ack.kind, ack.reason));
            inbound.check_invariants();
        }
        acks
    }

    #[test]
    fn an_idle_session_is_small() {
        assert!(size_of::<Inbound>() <= 200, "{}", size_of::<Inbound>());
    }

    #[test]
    fn acknowledgements_leave_in_the_order_of_the_publishes() {
        let mut inbound = connected(Version::V5);
        let (first, _) = start(&mut inbound, 1, QoS::AtLeastOnce);
        let (second, _) = start(&mut inbound, 2, QoS::ExactlyOnce);
        let (third, _) = start(&mut inbound, 3, QoS::AtLeastOnce);
        inbound.complete(third, OK);
        inbound.complete(second, OK);
        assert!(acks(&mut inbound).is_empty(), "the first is not placed yet");
        inbound.complete(first, ReasonCode::NoMatchingSubscribers);
        let expected = [
            (1, AckKind::PubAck, ReasonCode::NoMatchingSubscribers),
            (2, AckKind::PubRec, OK),
            (3, AckKind::PubAck, OK),
        ];
        assert_eq!(acks(&mut inbound), expected);
        assert_eq!(inbound.outstanding(), 1, "QoS 2 counts until PUBCOMP");
        assert_eq!(inbound.handle_pubrel(id(2)), OK);
        assert_eq!(inbound.outstanding(), 0);
    }

    #[test]
    fn a_repeated_qos2_publish_is_acknowledged_and_not_routed_again() {
        let mut inbound = connected(Version::V4);
        let (first, _) = start(&mut inbound, 1, QoS::ExactlyOnce);
        let (again, begin) = start(&mut inbound, 1, QoS::ExactlyOnce);
        assert_eq!(begin, Begin::Duplicate);
        inbound.complete(again, OK);
        assert!(
            acks(&mut inbound).is_empty(),
            "not before the message is placed"
        );
        inbound.complete(first, OK);
        assert_eq!(acks(&mut inbound).len(), 2);
        assert_eq!(inbound.handle_pubrel(id(1)), OK);
        assert_eq!(start(&mut inbound, 1, QoS::ExactlyOnce).1, Begin::New);
    }

    #[test]
    fn a_qos1_id_is_new_every_time() {
        let mut inbound = connected(Version::V4);
        assert_eq!(start(&mut inbound, 1, QoS::AtLeastOnce).1, Begin::New);
        assert_eq!(start(&mut inbound, 1, QoS::AtLeastOnce).1, Begin::New);
    }

    #[test]
    fn a_refused_qos2_publish_frees_its_id() {
        let mut inbound = connected(Version::V5);
        let (ticket, _) = start(&mut inbound, 1, QoS::ExactlyOnce);
        inbound.complete(ticket, ReasonCode::NotAuthorized);
        assert_eq!(acks(&mut inbound)[0].2, ReasonCode::NotAuthorized);
        assert_eq!((inbound.outstanding(), inbound.begun()), (0, 0));
        assert_eq!(
            inbound.handle_pubrel(id(1)),
            ReasonCode::PacketIdentifierNotFound
        );
        assert_eq!(start(&mut inbound, 1, QoS::ExactlyOnce).1, Begin::New);
    }

    #[test]
    fn a_routed_qos2_publish_is_known_on_the_next_connection() {
        let mut inbound = connected(Version::V5);
        let (ticket, _) = start(&mut inbound, 1, QoS::ExactlyOnce);
        inbound.complete(ticket, OK);
        inbound.connect(Version::V5);
        assert_eq!((inbound.outstanding(), inbound.begun()), (0, 1));
        let (again, begin) = start(&mut inbound, 1, QoS::ExactlyOnce);
        assert_eq!(begin, Begin::Duplicate);
        inbound.complete(again, OK);
        assert_eq!(acks(&mut inbound), [(1, AckKind::PubRec, OK)]);
        assert_eq!(inbound.handle_pubrel(id(1)), OK);
        inbound.check_invariants();
    }

    #[test]
    fn an_unheard_outcome_is_settled_late_or_routed_again() {
        let mut inbound = connected(Version::V5);
        let (late, _) = start(&mut inbound, 1, QoS::ExactlyOnce);
        let (_, _) = start(&mut inbound, 2, QoS::ExactlyOnce);
        inbound.disconnect();
        inbound.connect(Version::V5);
        inbound.complete(late, OK);
        inbound.check_invariants();
        assert!(
            acks(&mut inbound).is_empty(),
            "nothing is acknowledged on another connection"
        );
        assert_eq!(start(&mut inbound, 1, QoS::ExactlyOnce).1, Begin::Duplicate);
        assert_eq!(start(&mut inbound, 2, QoS::ExactlyOnce).1, Begin::Unsettled);
    }

    #[test]
    fn a_pubrel_before_its_pubrec_changes_nothing() {
        let mut inbound = connected(Version::V5);
        let (ticket, _) = start(&mut inbound, 1, QoS::ExactlyOnce);
        assert_eq!(
            inbound.handle_pubrel(id(1)),
            ReasonCode::PacketIdentifierNotFound
        );
        inbound.complete(ticket, OK);
        assert_eq!(inbound.handle_pubrel(id(1)), OK);
        inbound.check_invariants();
    }

    #[test]
    fn a_pubrel_after_a_lost_pubcomp_is_no_error() {
        let mut inbound = connected(Version::V5);
        let (ticket, _) = start(&mut inbound, 1, QoS::ExactlyOnce);
        inbound.complete(ticket, OK);
        assert_eq!(acks(&mut inbound), [(1, AckKind::PubRec, OK)]);
        assert_eq!(inbound.handle_pubrel(id(1)), OK);
        assert_eq!(
            inbound.handle_pubrel(id(1)),
            ReasonCode::PacketIdentifierNotFound
        );
        inbound.disconnect();
        inbound.connect(Version::V5);
        assert_eq!(inbound.handle_pubrel(id(1)), OK);
        inbound.check_invariants();
    }

    #[test]
    fn exceeding_the_receive_maximum_ends_a_v5_connection() {
        let mut inbound = connected(Version::V5);
        for value in 1..=3 {
            let (ticket, _) = start(&mut inbound, value, QoS::ExactlyOnce);
            inbound.complete(ticket, OK);
        }
        assert_eq!(acks(&mut inbound).len(), 3);
        start(&mut inbound, 3, QoS::ExactlyOnce);
        let error = inbound.start(id(4), QoS::AtLeastOnce).unwrap_err();
        assert_eq!(error.reason(), ReasonCode::ReceiveMaximumExceeded);
        inbound.check_invariants();
        inbound.handle_pubrel(id(2));
        start(&mut inbound, 4, QoS::AtLeastOnce);
    }

    #[test]
    fn begun_ids_of_old_connections_stay_bounded() {
        let mut inbound = connected(Version::V5);
        let mut values = 1..;
        for _ in 0..2 {
            inbound.connect(Version::V5);
            for value in values.by_ref().take(3) {
                let (ticket, _) = start(&mut inbound, value, QoS::ExactlyOnce);
                inbound.complete(ticket, OK);
            }
        }
        inbound.connect(Version::V5);
        assert!(inbound.start(id(100), QoS::ExactlyOnce).is_err());
        start(&mut inbound, 1, QoS::ExactlyOnce);
    }

    #[test]
    fn a_3x_client_is_held_back_by_not_reading() {
        let mut inbound = connected(Version::V4);
        let tickets: Vec<_> = (1..=4)
            .map(|value| start(&mut inbound, value, QoS::AtLeastOnce).0)
            .collect();
        assert!(inbound.is_full());
        inbound.complete(tickets[0], OK);
        assert_eq!(acks(&mut inbound).len(), 1);
        assert!(!inbound.is_full());
    }

    #[test]
    fn aliases_stand_for_topics_within_a_connection() {
        let mut inbound = connected(Version::V5);
        let topic = TopicName::try_from("a/b").unwrap();
        assert_eq!(
            inbound.resolve_alias(2, None),
            Err(SessionError::UnknownAlias(2))
        );
        assert_eq!(
            inbound.resolve_alias(2, Some(topic.clone())).unwrap(),
            topic
        );
        assert_eq!(inbound.resolve_alias(2, None).unwrap(), topic);
        assert_eq!(
            inbound.resolve_alias(1, None),
            Err(SessionError::UnknownAlias(1))
        );
        let other = TopicName::try_from("c").unwrap();
        inbound.resolve_alias(2, Some(other.clone())).unwrap();
        assert_eq!(inbound.resolve_alias(2, None).unwrap(), other);
        inbound.connect(Version::V5);
        let error = inbound.resolve_alias(2, None).unwrap_err();
        assert_eq!(error.reason(), ReasonCode::ProtocolError);
    }

    #[test]
    fn aliases_out_of_range_are_refused() {
        let mut inbound = connected(Version::V5);
        for alias in [0, 3, u16::MAX] {
            let topic = TopicName::try_from("a").unwrap();
            let error = inbound.resolve_alias(alias, Some(topic)).unwrap_err();
            assert_eq!(error.reason(), ReasonCode::TopicAliasInvalid);
        }
    }
}
