//! PUBLISH of a client: checked, retained first where it is to be, placed in order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ::metrics::counter;
use flotte_cluster::handle::{PART_BYTES, Progress, Refused};
use flotte_cluster::wire::{Retain, RetainResult, RetainedMessage};
use flotte_mqtt::packet::{Packet, PubAck, PubRec, Publish};
use flotte_mqtt::reason::ReasonCode;
use flotte_mqtt::session::{AckKind, AckOut, Begin, Ticket};
use flotte_mqtt::topic::TopicName;
use flotte_mqtt::{PacketId, QoS, Version};
use futures::future::{BoxFuture, FutureExt};
use tracing::debug;

use super::{Connection, End};
use crate::metrics::Count;
use crate::router::{Notify, Outgoing, Placing};
use crate::session::now_ms;

/// Publishes that wait before nothing more is read.
const WAITING_MAX: usize = 64;
/// The same for what their payloads and properties hold.
const WAITING_BYTES_MAX: usize = 4 << 20;

/// A publish behind a retained one of the same connection.
pub struct Waiting {
    pub(super) message: Outgoing,
    ticket: Option<Ticket>,
    /// Of a retained one: when it is applied on this node. Matched only then: a publish matched earlier could miss both a
    /// new subscription and its replay.
    retain: Option<BoxFuture<'static, Result<(u64, RetainResult), Refused>>>,
    retained: Option<Result<(u64, RetainResult), Refused>>,
}

/// What becomes of a publish that waited.
pub(super) enum Settled {
    Goes,
    /// Its publisher is told.
    Refused,
    /// Whether it is retained is not known.
    Failed,
}

impl Waiting {
    /// Whether it is retained in parts. That begins when all before it are retained; one behind it could overtake it.
    fn goes_in_parts(&self) -> bool {
        self.message.retain && self.message.payload.len() > PART_BYTES
    }

    /// What the end of the wait makes of the message.
    pub(super) fn settle(&mut self, version: Version) -> Settled {
        match self.retained.take() {
            None => {}
            Some(Ok((index, RetainResult::Stored | RetainResult::Deleted))) => {
                self.message.retain_index = index;
            }
            Some(Ok((_, RetainResult::Quota))) => {
                counter!("flotte_retained_refused_total", "reason" => "quota").increment(1);
                if refusal_of_retain(version, self.ticket) == RetainRefusal::Told {
                    return Settled::Refused;
                }
            }
            Some(Err(_)) => return Settled::Failed,
        }
        Settled::Goes
    }
}

/// The publishes of a connection that wait behind a retained one; nothing is kept while there are none.
#[derive(Default)]
#[expect(clippy::box_collection, reason = "one pointer in each connection")]
pub(super) struct WaitingLine(Option<Box<VecDeque<Waiting>>>);

impl WaitingLine {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(super) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |line| line.len())
    }

    /// What its messages hold.
    pub(super) fn bytes(&self) -> usize {
        let held = |one: &Waiting| one.message.payload.len() + one.message.properties.held_bytes();
        self.0
            .as_ref()
            .map_or(0, |line| line.iter().map(held).sum())
    }

    /// Whether nothing more should be read before some of these are placed.
    pub(super) fn is_long(&self) -> bool {
        let Some(line) = &self.0 else { return false };
        line.len() >= WAITING_MAX
            || self.bytes() >= WAITING_BYTES_MAX
            || line.iter().any(Waiting::goes_in_parts)
    }

    fn push(&mut self, waiting: Waiting) {
        self.0.get_or_insert_default().push_back(waiting);
    }

    /// Ready when the first can be placed.
    pub(super) fn poll_placeable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(first) = self.0.as_mut().and_then(|line| line.front_mut()) else {
            return Poll::Pending;
        };
        if let Some(retain) = &mut first.retain {
            first.retained = Some(ready!(retain.poll_unpin(cx)));
            first.retain = None;
        }
        Poll::Ready(())
    }

    fn retain(&mut self, keep: impl Fn(&Waiting) -> bool) {
        if let Some(line) = &mut self.0 {
            line.retain(keep);
            if line.is_empty() {
                self.0 = None;
            }
        }
    }

    /// The first, if it can be placed.
    pub(super) fn pop_placeable(&mut self) -> Option<Waiting> {
        let line = self.0.as_mut()?;
        let first = line.pop_front_if(|first| first.retain.is_none());
        if line.is_empty() {
            self.0 = None;
        }
        first
    }
}

/// The packet of an acknowledgement.
pub(super) fn ack_packet(ack: AckOut) -> Packet {
    match ack.kind {
        AckKind::PubAck => PubAck {
            packet_id: ack.id,
            reason: ack.reason,
            properties: Default::default(),
        }
        .into(),
        AckKind::PubRec => PubRec {
            packet_id: ack.id,
            reason: ack.reason,
            properties: Default::default(),
        }
        .into(),
    }
}

impl Connection {
    pub(super) fn handle_publish(&mut self, publish: Publish) -> Result<(), End> {
        Count::received(publish.qos).add(1);
        Count::PAYLOAD_IN.add(publish.payload.len() as u64);
        self.pace(publish.payload.len());
        let topic = self.topic_of(&publish)?;
        self.check_capabilities(&publish, &topic)?;
        let samples = &self.worker.samples;
        let timed = samples.arrived(&self.session, publish.qos, publish.packet_id);
        let ticket = match publish.packet_id {
            None => None,
            Some(id) => match self.begin(id, publish.qos)? {
                Some(ticket) => Some(ticket),
                None => return Ok(()),
            },
        };
        if self.worker.shared.config.mqtt.refuses_topic(&topic) {
            return self.refuse_publish(ticket);
        }
        let topic = self.whole_name(topic)?;
        if !self.may_publish(&publish, &topic) {
            return self.refuse_publish(ticket);
        }
        if self.is_misdeclared(&publish) {
            if ticket.is_none() {
                return Err(End::Refused(ReasonCode::PayloadFormatInvalid));
            }
            self.complete(ticket, ReasonCode::PayloadFormatInvalid);
            return Ok(());
        }
        let message = self.outgoing(&publish, topic);
        if publish.retain {
            self.retain(message, ticket);
        } else if self.waiting.is_empty() {
            let matched = self.place(message, ticket);
            if let (Some(arrived), true) = (timed, matched) {
                self.worker.samples.routed(publish.qos, arrived);
            }
        } else {
            self.waiting.push(Waiting {
                message: message.compact(),
                ticket,
                retain: None,
                retained: None,
            });
        }
        Ok(())
    }

    /// None = it was routed before: it is only acknowledged again.
    fn begin(&mut self, id: PacketId, qos: QoS) -> Result<Option<Ticket>, End> {
        let mut inbound = self.session.inbound().lock();
        let (ticket, begin) = inbound
            .start(id, qos)
            .map_err(|e| End::Refused(e.reason()))?;
        if begin == Begin::Duplicate {
            inbound.complete(ticket, ReasonCode::Success);
            return Ok(None);
        }
        drop(inbound);
        let now = self.worker.wheel.now_ms();
        self.unplaced_since.set_first(now);
        Ok(Some(ticket))
    }

    fn topic_of(&self, publish: &Publish) -> Result<TopicName, End> {
        let named = if publish.topic.is_empty() {
            None
        } else {
            Some(&publish.topic)
        };
        let parsed = named.map(|text| TopicName::parse(text.clone())).transpose();
        let parsed = parsed.map_err(|e| {
            debug!(error = %e, "topic of a PUBLISH");
            End::Refused(e.reason())
        })?;
        match (publish.properties.topic_alias(), parsed) {
            (None, Some(topic)) => Ok(topic),
            (None, None) => Err(End::Refused(ReasonCode::ProtocolError)),
            (Some(alias), topic) => {
                let resolved = self.session.inbound().lock().resolve_alias(alias, topic);
                resolved.map_err(|e| End::Refused(e.reason()))
            }
        }
    }

    /// The topic as all others know it.
    fn whole_name(&self, topic: TopicName) -> Result<TopicName, End> {
        match &self.mountpoint {
            None => Ok(topic),
            Some(mountpoint) => mountpoint.name(&topic).map_err(|error| {
                debug!(%error, "topic of a PUBLISH");
                End::Refused(ReasonCode::TopicNameInvalid)
            }),
        }
    }

    fn check_capabilities(&self, publish: &Publish, topic: &TopicName) -> Result<(), End> {
        let config = &self.worker.shared.config.mqtt;
        if publish.qos > self.max_qos {
            // [MQTT-3.2.2-11]
            return Err(End::Refused(ReasonCode::QoSNotSupported));
        }
        if publish.retain && !config.retain_available {
            // [MQTT-3.2.2-14]
            return Err(End::Refused(ReasonCode::RetainNotSupported));
        }
        if topic.level_count() > usize::from(config.max_topic_levels) {
            return Err(End::Refused(ReasonCode::TopicNameInvalid));
        }
        Ok(())
    }

    /// Whether the payload is announced as text and is none (section 3.3.2.3.2).
    fn is_misdeclared(&self, publish: &Publish) -> bool {
        self.worker.shared.config.mqtt.strict
            && is_no_text(publish.properties.payload_format(), &publish.payload)
    }

    fn outgoing(&self, publish: &Publish, topic: TopicName) -> Outgoing {
        let expiry = publish.properties.message_expiry();
        Outgoing {
            topic,
            payload: publish.payload.clone(),
            properties: without_expiry(publish),
            qos: publish.qos,
            retain: publish.retain,
            publisher: self.session.client.clone(),
            expires_at_ms: expiry.map(|seconds| now_ms() + u64::from(seconds) * 1_000),
            retain_index: 0,
            will: None,
        }
    }

    fn retain(&mut self, message: Outgoing, ticket: Option<Ticket>) {
        let message = message.compact();
        let refusal = refusal_of_retain(self.version, ticket);
        let cluster = self.worker.shared.cluster();
        let progress = Arc::clone(&self.session) as Arc<dyn Progress>;
        let retain = cluster.retain(retain_command(&message, refusal), Some(progress));
        self.waiting.push(Waiting {
            message,
            ticket,
            retain: Some(retain),
            retained: None,
        });
    }

    /// Ends the wait of the publishes whose client is gone: they go on without it.
    pub(super) fn leave_waiting(&mut self, end: &End) {
        let mut line = std::mem::take(&mut self.waiting);
        let resumed = matches!(end, End::TakenOver) || !self.session.ends_with_connection();
        if resumed {
            // What its client sends again must not be there twice.
            line.retain(|waiting| waiting.message.qos < QoS::ExactlyOnce);
        }
        self.worker.place_later(line, self.version);
    }

    /// Places those that wait, as far as the first that still has to be retained.
    pub(super) fn place_waiting(&mut self) -> Result<(), End> {
        while let Some(mut waiting) = self.waiting.pop_placeable() {
            match waiting.settle(self.version) {
                Settled::Goes => drop(self.place(waiting.message, waiting.ticket)),
                Settled::Refused => self.complete(waiting.ticket, ReasonCode::QuotaExceeded),
                // Not acknowledged: the client sends it again, elsewhere perhaps.
                Settled::Failed => return Err(End::SentAway(ReasonCode::UseAnotherServer)),
            }
        }
        Ok(())
    }

    /// Says whether it matched anybody.
    fn place(&mut self, message: Outgoing, ticket: Option<Ticket>) -> bool {
        let router = Arc::clone(&self.worker.shared.router);
        let matched = router.matched_cached(&mut self.matches, &message.topic, &message.publisher);
        // Only other nodes take time.
        let placing = ticket
            .filter(|_| matched.is_remote())
            .map(|ticket| Placing::new(Notify::Session(Arc::clone(&self.session), ticket)));
        let outcome = router.route(&message, &matched, placing.as_ref());
        if let Some((link, lane)) = outcome.full {
            let cluster = self.worker.shared.cluster().clone();
            self.full = Some(Box::pin(async move { cluster.link_room(link, lane).await }));
        }
        match placing {
            Some(placing) => {
                placing.done();
            }
            None => {
                let nobody = self.version == Version::V5 && !outcome.matched && !matched.is_own;
                self.complete(
                    ticket,
                    if nobody {
                        ReasonCode::NoMatchingSubscribers
                    } else {
                        ReasonCode::Success
                    },
                );
            }
        }
        outcome.matched
    }

    fn complete(&self, ticket: Option<Ticket>, reason: ReasonCode) {
        if let Some(ticket) = ticket {
            self.session.inbound().lock().complete(ticket, reason);
        }
    }
}

/// What a client hears when its message cannot be retained: only the acknowledgements of 5.0 can say so. Any other such
/// message goes to its subscribers as one that is not retained does.
fn refusal_of_retain(version: Version, ticket: Option<Ticket>) -> RetainRefusal {
    if version == Version::V5 && ticket.is_some() {
        RetainRefusal::Told
    } else {
        RetainRefusal::Untold
    }
}

/// Whether a payload of this format is not what the format says.
pub(super) fn is_no_text(format: Option<u8>, payload: &[u8]) -> bool {
    format == Some(1) && std::str::from_utf8(payload).is_err()
}

fn without_expiry(publish: &Publish) -> flotte_mqtt::property::Properties {
    if publish.properties.is_empty() {
        return Default::default();
    }
    let mut properties = publish.properties.forwardable();
    properties.remove(flotte_mqtt::property::PropertyId::MessageExpiry);
    properties
}

/// What becomes of a message that the limits of retained messages refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetainRefusal {
    /// Its publisher is told, and nothing happens.
    Told,
    /// It goes to its subscribers; what its topic retained is no longer the last word, and goes.
    Untold,
}

/// The command that stores a message as the retained one of its topic.
pub(crate) fn retain_command(message: &Outgoing, refusal: RetainRefusal) -> Retain {
    let mut properties = bytes::BytesMut::new();
    let encoded = message.properties.encode(&mut properties);
    debug_assert!(
        encoded.is_ok(),
        "properties that were decoded can be encoded"
    );
    let left = |at: u64| at.saturating_sub(now_ms());
    Retain {
        message: Some(RetainedMessage {
            topic: message.topic.text().as_bytes().clone(),
            qos: u32::from(message.qos as u8),
            properties: properties.freeze(),
            payload: message.payload.clone(),
            publisher: message.publisher.as_bytes().clone(),
            expires_at_ms: 0,
        }),
        expiry_ms: message.expires_at_ms.map(left),
        will: message.will,
        evict: refusal == RetainRefusal::Untold,
        ..Retain::default()
    }
}
