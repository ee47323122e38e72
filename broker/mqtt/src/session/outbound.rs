//! The outbound half of a session: queue, window, packet ids and the packets towards the client.
//! It appends to a buffer of the caller's and never writes to a socket itself.

use std::sync::Arc;

use bytes::BytesMut;

use super::SessionError;
use super::config::OutboundConfig;
use super::flight::Flight;
use super::link::{Dup, Link, Peer};
use super::message::Delivery;
use super::outcome::{AckOutcome, Acked, Enqueued, Outcome};
use super::queue::{Queue, Waiting};
use super::tally::{DropReason, Tally};
use super::window::Slot;
use crate::packet::{PacketId, QoS, Version};
use crate::reason::ReasonCode;

/// What a session owes its client.
///
/// - Getters: [`queued`](Self::queued), [`inflight`](Self::inflight), [`bytes`](Self::bytes),
///   [`is_empty`](Self::is_empty), [`version`](Self::version), [`wants_write`](Self::wants_write),
///   [`packet_bytes_max`](Self::packet_bytes_max), [`readiness`](Self::readiness),
///   [`has_room_to_replay`](Self::has_room_to_replay).
/// - Input: `handle_*`, [`connect`](Self::connect), [`disconnect`](Self::disconnect).
/// - Commands: [`enqueue`](Self::enqueue), [`enqueue_frame`](Self::enqueue_frame),
///   [`expire`](Self::expire), [`end`](Self::end),
///   [`take_undelivered_shared`](Self::take_undelivered_shared),
///   [`take_unsent_shared`](Self::take_unsent_shared).
/// - Output: bytes in `dst`, with the payload that [`tail_mut`](Self::tail_mut) tells of, and
///   [`poll_send`](Self::poll_send) once there is room in it again.
///
/// Order: QoS 1/2 and QoS 0 are each first in, first out, so that the order per topic and QoS holds
/// [MQTT-4.6.0-6]; QoS 0 passes QoS 1/2 that waits for the window. Replies to PUBREC are written at
/// once whatever the room: a caller that reads no more while its buffer is full bounds them.
#[derive(Debug)]
pub struct Outbound {
    pub(super) config: Arc<OutboundConfig>,
    /// None while the client is away.
    pub(super) link: Option<Link>,
    /// What was sent and is not done.
    pub(super) flight: Flight,
    /// What was never sent.
    pub(super) queue: Queue,
}

impl Outbound {
    /// An outbound half without a connection.
    pub fn new(config: Arc<OutboundConfig>) -> Self {
        Self {
            config,
            link: None,
            flight: Flight::new(),
            queue: Queue::default(),
        }
    }

    /// Copies held: waiting or under way.
    pub fn queued(&self) -> usize {
        self.queue.len() + self.flight.len()
    }

    /// Copies sent at least once and not done.
    pub fn inflight(&self) -> usize {
        self.flight.len()
    }

    /// Bytes of the copies held, by [`super::Message::held_bytes`].
    pub fn bytes(&self) -> usize {
        self.queue.bytes() + self.flight.bytes()
    }

    pub fn is_empty(&self) -> bool {
        self.queued() == 0
    }

    /// The client's version while it is connected.
    pub fn version(&self) -> Option<Version> {
        self.link.as_ref().map(|link| link.version)
    }

    /// Bytes of the greatest packet that the client takes, of whatever type [MQTT-3.1.2-24].
    pub fn packet_bytes_max(&self) -> usize {
        let link = self.link.as_ref();
        link.map_or(usize::MAX, |link| link.packet_bytes_max as usize)
    }

    /// Whether [`poll_send`](Self::poll_send) would write something into an empty buffer.
    pub fn wants_write(&self) -> bool {
        let Some(link) = self.link.as_ref().filter(|link| link.is_open()) else {
            return false;
        };
        let resends = self.flight.has_resends() && self.flight.span() < link.window();
        let first = self
            .queue
            .front()
            .is_some_and(|first| self.window_allows(first));
        resends || first || self.queue.has_qos0()
    }

    /// The client is there (again): everything under way is sent again in order, PUBLISH with DUP
    /// or PUBREL [MQTT-4.4.0-1], then what waits, as far as window and buffer allow. A connection
    /// that was there before is replaced.
    pub fn connect(&mut self, peer: Peer, now_ms: u64, dst: &mut BytesMut) -> Tally {
        self.link = Some(Link::new(peer, &self.config));
        self.flight.rewind();
        self.poll_send(now_ms, dst)
    }

    /// The client went; the session stays. Queued QoS 0 is dropped unless configured otherwise.
    pub fn disconnect(&mut self) -> Tally {
        self.link = None;
        let mut tally = Tally::default();
        if !self.config.queue_qos0_offline {
            tally.drop_many(DropReason::QoS0Offline, self.queue.clear_qos0());
        }
        tally
    }

    /// The session ends: everything still held is dropped. Shared copies that go to other members
    /// are taken out before, by [`take_undelivered_shared`](Self::take_undelivered_shared).
    pub fn end(&mut self) -> Tally {
        let mut tally = Tally::default();
        tally.drop_many(DropReason::SessionEnd, self.queued());
        *self = Self::new(Arc::clone(&self.config));
        tally
    }

    /// Takes one copy: writes it if it can go now, else queues or drops it.
    pub fn enqueue(&mut self, delivery: Delivery, now_ms: u64, dst: &mut BytesMut) -> Enqueued {
        let mut tally = Tally::accepted_one();
        let outcome = if delivery.message.is_expired(now_ms) {
            // [MQTT-3.3.2-5]
            tally.expired += 1;
            Outcome::Expired
        } else if delivery.qos == QoS::AtMostOnce {
            self.enqueue_qos0(delivery, now_ms, dst, &mut tally)
        } else {
            self.enqueue_reliable(delivery, now_ms, dst, &mut tally)
        };
        if let Outcome::Dropped(reason) = outcome {
            tally.drop_one(reason);
        }
        Enqueued { outcome, tally }
    }

    /// Takes one QoS 0 copy that the caller encoded for [`version`](Self::version), whole topic and
    /// no alias: so a fan-out encodes once. Returns None, and does nothing, if it cannot go out as
    /// it is; then [`enqueue`](Self::enqueue) decides.
    pub fn enqueue_frame(&mut self, frame: &[u8], dst: &mut BytesMut) -> Option<Tally> {
        let link = self.link.as_ref()?;
        if !link.takes_frame(frame) || self.queue.has_qos0() || !self.has_room(dst) {
            return None;
        }
        dst.extend_from_slice(frame);
        let mut tally = Tally::accepted_one();
        tally.delivered += 1;
        tally.published[0] += 1;
        Some(tally)
    }

    /// PUBACK: a QoS 1 copy is done, or refused.
    pub fn handle_puback(
        &mut self,
        id: PacketId,
        reason: ReasonCode,
        now_ms: u64,
        dst: &mut BytesMut,
    ) -> Result<Acked, SessionError> {
        let Some((window, sequence)) = self.flight.locate(id) else {
            return Ok(Acked::unknown());
        };
        if !matches!(window.slot(sequence), Slot::Published(copy) if copy.qos == QoS::AtLeastOnce) {
            return Err(SessionError::UnexpectedAck(id));
        }
        let delivery = window.complete(sequence);
        Ok(self.finish(delivery, reason, now_ms, dst))
    }

    /// PUBREC: a QoS 2 copy is with the client, and PUBREL goes out; or it is refused.
    pub fn handle_pubrec(
        &mut self,
        id: PacketId,
        reason: ReasonCode,
        now_ms: u64,
        dst: &mut BytesMut,
    ) -> Result<Acked, SessionError> {
        let Some((window, sequence)) = self.flight.locate(id) else {
            let mut unknown = Acked::unknown();
            if !reason.is_error() {
                unknown.tally = self.write_pubrel(id, ReasonCode::PacketIdentifierNotFound, dst);
            }
            return Ok(unknown);
        };
        if matches!(window.slot(sequence), Slot::Published(copy) if copy.qos != QoS::ExactlyOnce) {
            return Err(SessionError::UnexpectedAck(id));
        }
        if reason.is_error() {
            // [MQTT-4.4.0-2]
            let delivery = window.complete(sequence);
            return Ok(self.finish(delivery, reason, now_ms, dst));
        }
        // [MQTT-4.3.3-4], [MQTT-4.3.3-6]
        let delivery = window.release(sequence);
        self.flight.release_bytes(delivery.as_ref());
        let tally = self.write_pubrel(id, ReasonCode::Success, dst);
        Ok(Acked {
            outcome: AckOutcome::Released,
            delivery,
            tally,
        })
    }

    /// PUBCOMP: a released QoS 2 copy is done, whatever the reason.
    pub fn handle_pubcomp(
        &mut self,
        id: PacketId,
        now_ms: u64,
        dst: &mut BytesMut,
    ) -> Result<Acked, SessionError> {
        let Some((window, sequence)) = self.flight.locate(id) else {
            return Ok(Acked::unknown());
        };
        if !matches!(window.slot(sequence), Slot::Released) {
            return Err(SessionError::UnexpectedAck(id));
        }
        window.complete(sequence);
        Ok(self.finish(None, ReasonCode::Success, now_ms, dst))
    }

    /// The socket takes no more: publishes are queued until it does.
    pub fn handle_congested(&mut self) {
        if let Some(link) = &mut self.link {
            link.congested = true;
        }
    }

    /// The socket takes bytes again.
    pub fn handle_writable(&mut self, now_ms: u64, dst: &mut BytesMut) -> Tally {
        if let Some(link) = &mut self.link {
            link.congested = false;
        }
        self.poll_send(now_ms, dst)
    }

    /// Writes what can go: resends, then what waits, QoS 1/2 and QoS 0 in turn. To be called when
    /// bytes have left the buffer and [`wants_write`](Self::wants_write) says so.
    pub fn poll_send(&mut self, now_ms: u64, dst: &mut BytesMut) -> Tally {
        let mut tally = Tally::default();
        while self.has_room(dst) {
            let reliable = self.resend_next(now_ms, dst, &mut tally)
                || self.send_next_reliable(now_ms, dst, &mut tally);
            let qos0 = self.has_room(dst) && self.send_next_qos0(now_ms, dst, &mut tally);
            if !reliable && !qos0 {
                break;
            }
        }
        tally
    }

    /// Drops what expired while it waited. Linear; for a timer, as sending checks expiry anyway.
    pub fn expire(&mut self, now_ms: u64) -> Tally {
        let expired = self.queue.extract(|copy| copy.message.is_expired(now_ms));
        Tally::expired(expired.len())
    }

    /// Asserts what must hold between calls. Linear; for tests.
    pub fn check_invariants(&self) {
        self.flight.check_invariants();
        self.queue.check_invariants(self.flight.sent_end());
        assert!(self.queued() <= self.config.queue_max_messages.max(1));
        if let Some(link) = &self.link {
            assert!(self.flight.span() <= link.window());
        }
    }

    fn enqueue_qos0(
        &mut self,
        delivery: Delivery,
        now_ms: u64,
        dst: &mut BytesMut,
        tally: &mut Tally,
    ) -> Outcome {
        let can_go = !self.queue.has_qos0() && self.has_room(dst);
        match &mut self.link {
            Some(link) if can_go => return send_qos0(link, &delivery, now_ms, dst, tally),
            None if !self.config.queue_qos0_offline => {
                return Outcome::Dropped(DropReason::QoS0Offline);
            }
            _ => {}
        }
        if !self.make_room(&delivery, now_ms, tally) {
            return Outcome::Dropped(DropReason::QueueFull);
        }
        self.queue.push_qos0(delivery);
        Outcome::Queued
    }

    fn enqueue_reliable(
        &mut self,
        delivery: Delivery,
        now_ms: u64,
        dst: &mut BytesMut,
        tally: &mut Tally,
    ) -> Outcome {
        if !self.make_room(&delivery, now_ms, tally) {
            return Outcome::Dropped(DropReason::QueueFull);
        }
        let waiting = self.queue.number(delivery);
        let is_next = self.queue.front().is_none() && self.window_allows(&waiting);
        if is_next && self.has_room(dst) {
            return self.send_first(waiting, now_ms, dst, tally);
        }
        self.queue.push(waiting);
        Outcome::Queued
    }

    fn resend_next(&mut self, now_ms: u64, dst: &mut BytesMut, tally: &mut Tally) -> bool {
        let span = self.flight.span();
        let Some(link) = self.link.as_mut().filter(|link| span < link.window()) else {
            return false;
        };
        let Some(window) = self.flight.resending() else {
            return false;
        };
        let Some((sequence, id, slot)) = window.next_resend() else {
            return false;
        };
        let written = match slot {
            Slot::Published(copy) => {
                let written = link.write(copy, Some(id), Dup::Repeated, now_ms, dst);
                if written.is_ok() {
                    tally.publish_one(copy);
                }
                written
            }
            Slot::Released => {
                link.write_pubrel(id, ReasonCode::Success, dst);
                tally.released += 1;
                Ok(())
            }
            Slot::Done => Ok(()),
        };
        let Err(reason) = written else {
            window.advance();
            return true;
        };
        // This connection's limit is lower than the one it was first sent under.
        let delivery = window.complete(sequence);
        self.flight.release_bytes(delivery.as_ref());
        tally.drop_one(reason);
        true
    }

    fn send_next_reliable(&mut self, now_ms: u64, dst: &mut BytesMut, tally: &mut Tally) -> bool {
        if !self
            .queue
            .front()
            .is_some_and(|first| self.window_allows(first))
        {
            return false;
        }
        let Some(waiting) = self.queue.pop() else {
            return false;
        };
        if waiting.delivery.message.is_expired(now_ms) {
            tally.expired += 1;
        } else if let Outcome::Dropped(reason) = self.send_first(waiting, now_ms, dst, tally) {
            tally.drop_one(reason);
        }
        true
    }

    fn send_next_qos0(&mut self, now_ms: u64, dst: &mut BytesMut, tally: &mut Tally) -> bool {
        let Some(link) = &mut self.link else {
            return false;
        };
        let Some(delivery) = self.queue.pop_qos0() else {
            return false;
        };
        if delivery.message.is_expired(now_ms) {
            tally.expired += 1;
        } else if let Outcome::Dropped(reason) = send_qos0(link, &delivery, now_ms, dst, tally) {
            tally.drop_one(reason);
        }
        true
    }

    /// Sends a QoS 1 or 2 copy for the first time; the window allows it.
    fn send_first(
        &mut self,
        waiting: Waiting,
        now_ms: u64,
        dst: &mut BytesMut,
        tally: &mut Tally,
    ) -> Outcome {
        let link = self
            .link
            .as_mut()
            .expect("a window allows only while connected");
        let (sequence, id) = self.flight.place(&waiting);
        let delivery = waiting.delivery;
        // [MQTT-4.3.2-2], [MQTT-4.3.3-2]
        if let Err(reason) = link.write(&delivery, Some(id), Dup::First, now_ms, dst) {
            return Outcome::Dropped(reason);
        }
        tally.publish_one(&delivery);
        self.flight.push(sequence, delivery);
        Outcome::Sent
    }

    /// Whether a copy may be sent for the first time [MQTT-4.9.0-2]. None may while resends are
    /// left.
    fn window_allows(&self, waiting: &Waiting) -> bool {
        let window = self.link.as_ref().map_or(0, Link::window);
        self.flight.span_before(waiting) < window && !self.flight.has_resends()
    }

    fn has_room(&self, dst: &BytesMut) -> bool {
        self.link.as_ref().is_some_and(Link::is_open) && dst.len() < self.config.dst_bytes_max
    }

    /// A copy is done: counts it and sends what the window now allows.
    fn finish(
        &mut self,
        delivery: Option<Delivery>,
        reason: ReasonCode,
        now_ms: u64,
        dst: &mut BytesMut,
    ) -> Acked {
        self.flight.release_bytes(delivery.as_ref());
        let outcome = match reason.is_error() {
            true => AckOutcome::Refused(reason),
            false => AckOutcome::Completed,
        };
        let mut tally = self.poll_send(now_ms, dst);
        tally.delivered += 1;
        Acked {
            outcome,
            delivery,
            tally,
        }
    }

    fn write_pubrel(&self, id: PacketId, reason: ReasonCode, dst: &mut BytesMut) -> Tally {
        let Some(link) = &self.link else {
            return Tally::default();
        };
        link.write_pubrel(id, reason, dst);
        Tally::released_one()
    }
}

/// QoS 0 ends with its first sending.
fn send_qos0(
    link: &mut Link,
    delivery: &Delivery,
    now_ms: u64,
    dst: &mut BytesMut,
    tally: &mut Tally,
) -> Outcome {
    if let Err(reason) = link.write(delivery, None, Dup::First, now_ms, dst) {
        return Outcome::Dropped(reason);
    }
    tally.delivered += 1;
    tally.publish_one(delivery);
    Outcome::Sent
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;
    use smallvec::smallvec;

    use super::super::Overflow;
    use super::*;
    use crate::codec::Decoder;
    use crate::packet::{Packet, Publish};
    use crate::session::message::testing::Tag;
    use crate::session::{Message, Readiness, TAIL_BYTES};
    use crate::topic::SubscriptionFilter;
    use crate::topic::{Mountpoint, TopicName};

    const NOW: u64 = 1_000_000;

    struct Bench {
        outbound: Outbound,
        dst: BytesMut,
        /// What the last `connect` returned.
        connected: Tally,
    }

    impl Bench {
        fn new(config: OutboundConfig) -> Self {
            Self {
                outbound: Outbound::new(Arc::new(config)),
                dst: BytesMut::new(),
                connected: Tally::default(),
            }
        }

        fn connected(config: OutboundConfig, peer: Peer) -> Self {
            let mut bench = Self::new(config);
            bench.connect(peer);
            bench
        }

        fn connect(&mut self, peer: Peer) {
            self.connected = self.outbound.connect(peer, NOW, &mut self.dst);
            self.outbound.check_invariants();
        }

        fn enqueue(&mut self, delivery: Delivery) -> Enqueued {
            let enqueued = self.outbound.enqueue(delivery, NOW, &mut self.dst);
            self.outbound.check_invariants();
            enqueued
        }

        fn puback(&mut self, id: u16) -> Acked {
            let id = PacketId::new(id).unwrap();
            let acked = self
                .outbound
                .handle_puback(id, ReasonCode::Success, NOW, &mut self.dst);
            self.outbound.check_invariants();
            acked.unwrap()
        }

        fn pubrec(&mut self, id: u16, reason: ReasonCode) -> Acked {
            let id = PacketId::new(id).unwrap();
            let acked = self
                .outbound
                .handle_pubrec(id, reason, NOW, &mut self.dst)
                .unwrap();
            self.outbound.check_invariants();
            acked
        }

        fn pubcomp(&mut self, id: u16) -> Acked {
            let id = PacketId::new(id).unwrap();
            let acked = self
                .outbound
                .handle_pubcomp(id, NOW, &mut self.dst)
                .unwrap();
            self.outbound.check_invariants();
            acked
        }

        fn bytes(&mut self) -> Vec<u8> {
            self.dst.split().to_vec()
        }

        /// What was written, as `payload/id`, a star for DUP, and `rel id` for PUBREL.
        fn written(&mut self) -> Vec<String> {
            let mut decoder = Decoder::new(usize::MAX);
            decoder.set_version(self.outbound.version().unwrap());
            let mut written = Vec::new();
            while let Some(packet) = decoder.decode(&mut self.dst).unwrap() {
                written.push(match packet {
                    Packet::Publish(publish) => describe(&publish),
                    Packet::PubRel(pubrel) => format!("rel {}", pubrel.packet_id),
                    other => panic!("{other:?} is not for a subscriber"),
                });
            }
            written
        }
    }

    fn describe(publish: &Publish) -> String {
        let payload = str::from_utf8(&publish.payload).unwrap();
        let id = publish.packet_id.map_or(0, PacketId::value);
        format!("{payload}/{id}{}", if publish.dup { "*" } else { "" })
    }

    fn message(payload: &str) -> Message {
        Message {
            topic: TopicName::try_from("t").unwrap(),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            properties: Default::default(),
            qos: QoS::ExactlyOnce,
            retain: false,
            publisher: "p".try_into().unwrap(),
            expires_at_ms: None,
        }
    }

    fn of(message: Message, qos: u8) -> Delivery {
        Delivery {
            message: Arc::new(message),
            qos: QoS::try_from(qos).unwrap(),
            retain: false,
            subscription_ids: smallvec![],
            share: None,
        }
    }

    fn copy(payload: &str, qos: u8) -> Delivery {
        of(message(payload), qos)
    }

    fn shared(payload: &str, qos: u8) -> Delivery {
        Delivery {
            share: Some(Tag::of("$share/g/t")),
            ..copy(payload, qos)
        }
    }

    fn small_window(receive_maximum: u16) -> Peer {
        Peer {
            receive_maximum,
            ..Peer::unlimited(Version::V5)
        }
    }

    const V4: Peer = Peer::unlimited(Version::V4);
    const V5: Peer = Peer::unlimited(Version::V5);

    #[test]
    fn a_large_payload_stays_where_it_is_and_holds_back_what_follows() {
        let config = OutboundConfig::default();
        let mut bench = Bench::connected(config, Peer::unlimited(Version::V5));
        let text = "x".repeat(TAIL_BYTES);
        let large = copy(&text, 1);
        let payload = large.message.payload.clone();
        bench.enqueue(large);
        bench.enqueue(copy("next", 1));
        bench.enqueue(copy("zero", 0));
        let tail = bench.outbound.tail_mut().unwrap();
        assert_eq!(tail.at, bench.dst.len());
        assert_eq!(tail.payload.as_ptr(), payload.as_ptr(), "it is not copied");
        bench.dst.extend_from_slice(&payload);
        assert_eq!(bench.written(), [format!("{text}/1")]);
        assert!(
            !bench.outbound.wants_write(),
            "something has to be written first"
        );
        bench.outbound.handle_tail_written();
        assert!(bench.outbound.wants_write());
        let _ = bench.outbound.poll_send(NOW, &mut bench.dst);
        assert_eq!(bench.written(), ["next/2", "zero/0"]);
    }

    #[test]
    fn what_is_left_of_a_large_payload_goes_with_its_connection() {
        let config = OutboundConfig::default();
        let mut bench = Bench::connected(config, Peer::unlimited(Version::V5));
        bench.enqueue(copy(&"x".repeat(TAIL_BYTES), 1));
        bench.outbound.tail_mut().unwrap().payload.truncate(7);
        let _ = bench.outbound.disconnect();
        assert!(bench.outbound.tail_mut().is_none());
        bench.dst.clear();
        bench.connect(Peer::unlimited(Version::V5));
        let tail = bench.outbound.tail_mut().unwrap();
        assert_eq!(tail.payload.len(), TAIL_BYTES, "all of it is sent again");
    }

    #[test]
    fn an_idle_session_is_small() {
        assert!(size_of::<Outbound>() <= 200, "{}", size_of::<Outbound>());
    }

    #[test]
    fn qos0_goes_straight_out_and_is_delivered() {
        let mut bench = Bench::connected(OutboundConfig::default(), V4);
        let enqueued = bench.enqueue(copy("x", 0));
        assert_eq!(enqueued.outcome, Outcome::Sent);
        assert_eq!((enqueued.tally.accepted, enqueued.tally.delivered), (1, 1));
        assert_eq!(bench.bytes(), [0x30, 4, 0, 1, b't', b'x']);
        assert!(bench.outbound.is_empty() && bench.outbound.bytes() == 0);
    }

    #[test]
    fn qos1_is_held_until_puback() {
        let mut bench = Bench::connected(OutboundConfig::default(), V4);
        assert_eq!(bench.enqueue(copy("x", 1)).tally.delivered, 0);
        assert_eq!(bench.bytes(), [0x32, 6, 0, 1, b't', 0, 1, b'x']);
        assert_eq!((bench.outbound.queued(), bench.outbound.inflight()), (1, 1));
        let acked = bench.puback(1);
        assert_eq!(
            (acked.outcome, acked.tally.delivered),
            (AckOutcome::Completed, 1)
        );
        assert_eq!(acked.delivery.unwrap().message.payload, "x");
        assert!(bench.outbound.is_empty());
        assert_eq!(bench.puback(1).outcome, AckOutcome::Unknown);
    }

    #[test]
    fn qos2_runs_through_release_to_completion() {
        let mut bench = Bench::connected(OutboundConfig::default(), V5);
        bench.enqueue(copy("x", 2));
        assert_eq!(bench.bytes(), [0x34, 7, 0, 1, b't', 0, 1, 0, b'x']);
        let acked = bench.pubrec(1, ReasonCode::Success);
        assert_eq!(
            (acked.outcome, acked.tally.delivered),
            (AckOutcome::Released, 0)
        );
        assert_eq!(bench.bytes(), [0x62, 2, 0, 1]);
        assert_eq!((bench.outbound.inflight(), bench.outbound.bytes()), (1, 0));
        let repeated = bench.pubrec(1, ReasonCode::Success);
        assert!(repeated.delivery.is_none());
        assert_eq!(bench.bytes(), [0x62, 2, 0, 1], "PUBREL is repeated");
        assert_eq!(bench.pubcomp(1).tally.delivered, 1);
        assert!(bench.outbound.is_empty());
    }

    #[test]
    fn an_unknown_pubrec_is_answered_so_that_the_client_gets_on() {
        let mut bench = Bench::connected(OutboundConfig::default(), V5);
        assert_eq!(
            bench.pubrec(7, ReasonCode::Success).outcome,
            AckOutcome::Unknown
        );
        assert_eq!(bench.bytes(), [0x62, 3, 0, 7, 0x92]);
        let mut bench = Bench::connected(OutboundConfig::default(), V4);
        bench.pubrec(7, ReasonCode::Success);
        assert_eq!(bench.bytes(), [0x62, 2, 0, 7]);
    }

    #[test]
    fn a_refused_message_is_done_and_never_resent() {
        let mut bench = Bench::connected(OutboundConfig::default(), V5);
        bench.enqueue(copy("x", 2));
        let acked = bench.pubrec(1, ReasonCode::NotAuthorized);
        assert_eq!(
            acked.outcome,
            AckOutcome::Refused(ReasonCode::NotAuthorized)
        );
        assert_eq!(acked.tally.delivered, 1);
        assert_eq!(bench.written(), ["x/1"]);
        bench.connect(V5);
        assert!(bench.written().is_empty());
    }

    #[test]
    fn acknowledgements_of_the_wrong_kind_are_protocol_errors() {
        let mut bench = Bench::connected(OutboundConfig::default(), V5);
        bench.enqueue(copy("x", 1));
        bench.enqueue(copy("y", 2));
        let [one, two] = [1, 2].map(|id| PacketId::new(id).unwrap());
        let (outbound, dst) = (&mut bench.outbound, &mut bench.dst);
        let ok = ReasonCode::Success;
        assert!(outbound.handle_pubrec(one, ok, NOW, dst).is_err());
        assert!(outbound.handle_pubcomp(one, NOW, dst).is_err());
        assert!(outbound.handle_puback(two, ok, NOW, dst).is_err());
        let error = outbound.handle_pubcomp(two, NOW, dst).unwrap_err();
        assert_eq!(error.reason(), ReasonCode::ProtocolError);
    }

    #[test]
    fn resend_after_reconnect_keeps_order_and_ids() {
        let mut bench = Bench::connected(OutboundConfig::default(), V5);
        for (payload, qos) in [("a", 1), ("b", 2), ("c", 2), ("d", 1)] {
            bench.enqueue(copy(payload, qos));
        }
        bench.pubrec(2, ReasonCode::Success);
        bench.puback(4);
        bench.written();
        let _ = bench.outbound.disconnect();
        bench.enqueue(copy("e", 1));
        bench.connect(V5);
        assert_eq!(bench.written(), ["a/1*", "rel 2", "c/3*", "e/5"]);
    }

    #[test]
    fn the_window_is_a_distance_and_ends_at_the_receive_maximum() {
        let mut bench = Bench::connected(OutboundConfig::default(), small_window(2));
        for payload in ["a", "b", "c", "d"] {
            bench.enqueue(copy(payload, 1));
        }
        assert_eq!(bench.written(), ["a/1", "b/2"]);
        bench.puback(2);
        assert!(bench.written().is_empty(), "the first is not done");
        bench.puback(1);
        assert_eq!(bench.written(), ["c/3", "d/4"]);
    }

    #[test]
    fn a_smaller_window_after_reconnect_holds_for_resends_too() {
        let mut bench = Bench::connected(OutboundConfig::default(), small_window(10));
        for payload in ["a", "b", "c"] {
            bench.enqueue(copy(payload, 1));
        }
        bench.written();
        bench.connect(small_window(1));
        assert_eq!(bench.written(), ["a/1*"]);
        bench.enqueue(copy("d", 1));
        bench.puback(1);
        assert_eq!(bench.written(), ["b/2*"]);
        bench.puback(2);
        bench.puback(3);
        assert_eq!(bench.written(), ["c/3*", "d/4"]);
    }

    #[test]
    fn qos0_passes_what_waits_for_the_window() {
        let mut bench = Bench::connected(OutboundConfig::default(), small_window(1));
        bench.enqueue(copy("a", 1));
        bench.enqueue(copy("b", 1));
        bench.enqueue(copy("c", 0));
        assert_eq!(bench.written(), ["a/1", "c/0"]);
    }

    #[test]
    fn packet_ids_follow_the_sequence_around_their_range() {
        let mut bench = Bench::connected(OutboundConfig::default(), V4);
        for sequence in 0..70_000_u32 {
            bench.enqueue(copy("x", 1));
            let id = (sequence % 32_767 + 1) as u16;
            assert_eq!(bench.outbound.queued(), 1);
            assert_eq!(bench.puback(id).outcome, AckOutcome::Completed);
            bench.dst.clear();
        }
    }

    #[test]
    fn a_congested_socket_queues_everything_in_order() {
        let mut bench = Bench::connected(OutboundConfig::default(), V5);
        bench.outbound.handle_congested();
        for (payload, qos) in [("a", 0), ("b", 1), ("c", 0)] {
            assert_eq!(bench.enqueue(copy(payload, qos)).outcome, Outcome::Queued);
        }
        assert!(!bench.outbound.wants_write() && bench.dst.is_empty());
        let tally = bench.outbound.handle_writable(NOW, &mut bench.dst);
        assert_eq!(tally.delivered, 2);
        assert_eq!(bench.written(), ["b/1", "a/0", "c/0"]);
    }

    #[test]
    fn a_full_buffer_stops_sending_until_it_is_polled() {
        let config = OutboundConfig {
            dst_bytes_max: 10,
            ..Default::default()
        };
        let mut bench = Bench::connected(config, V4);
        for payload in ["a", "b", "c", "d"] {
            bench.enqueue(copy(payload, 0));
        }
        assert_eq!(bench.written(), ["a/0", "b/0"]);
        assert!(bench.outbound.wants_write());
        let tally = bench.outbound.poll_send(NOW, &mut bench.dst);
        assert_eq!(tally.delivered, 2);
        assert_eq!(bench.written(), ["c/0", "d/0"]);
        assert!(!bench.outbound.wants_write());
    }

    #[test]
    fn a_full_queue_drops_the_oldest_and_spares_what_was_sent() {
        let config = OutboundConfig {
            queue_max_messages: 3,
            ..Default::default()
        };
        let mut bench = Bench::connected(config, small_window(1));
        for payload in ["a", "b", "c"] {
            bench.enqueue(copy(payload, 1));
        }
        let enqueued = bench.enqueue(copy("d", 1));
        assert_eq!(enqueued.outcome, Outcome::Queued);
        assert_eq!(enqueued.tally.dropped(DropReason::QueueFull), 1);
        bench.outbound.handle_congested();
        let enqueued = bench.enqueue(copy("e", 0));
        assert_eq!(enqueued.outcome, Outcome::Dropped(DropReason::QueueFull));
        let _ = bench.outbound.handle_writable(NOW, &mut bench.dst);
        bench.puback(1);
        bench.puback(3);
        assert_eq!(
            bench.written(),
            ["a/1", "c/3", "d/4"],
            "b had sequence 1, and so id 2"
        );
    }

    #[test]
    fn drop_new_refuses_the_newcomer() {
        let config = OutboundConfig {
            queue_max_bytes: 300,
            overflow: Overflow::DropNew,
            ..Default::default()
        };
        let mut bench = Bench::new(config);
        bench.enqueue(copy("a", 1));
        bench.enqueue(copy("b", 1));
        let enqueued = bench.enqueue(copy("c", 1));
        assert_eq!(enqueued.outcome, Outcome::Dropped(DropReason::QueueFull));
        bench.connect(V5);
        assert_eq!(bench.written(), ["a/1", "b/2"]);
    }

    #[test]
    fn what_expired_makes_room_whatever_the_policy() {
        for overflow in [Overflow::DropNew, Overflow::DropOld] {
            let config = OutboundConfig {
                queue_max_messages: 3,
                overflow,
                ..Default::default()
            };
            let mut bench = Bench::new(config);
            bench.enqueue(copy("a", 1));
            let short = Message {
                expires_at_ms: Some(NOW + 1),
                ..message("b")
            };
            bench.enqueue(of(short, 1));
            bench.enqueue(copy("c", 1));
            let mut enqueue = |payload, now| {
                let enqueued = bench
                    .outbound
                    .enqueue(copy(payload, 1), now, &mut bench.dst);
                bench.outbound.check_invariants();
                enqueued.tally
            };
            let tally = enqueue("d", NOW + 1);
            assert_eq!((tally.expired, tally.dropped_total()), (1, 0));
            let tally = enqueue("e", NOW + 1);
            assert_eq!((tally.expired, tally.dropped_total()), (0, 1));
            bench.connect(V5);
            let expected = match overflow {
                Overflow::DropNew => ["a/1", "c/3", "d/4"],
                Overflow::DropOld => ["c/3", "d/4", "e/5"],
            };
            assert_eq!(bench.written(), expected);
        }
    }

    #[test]
    fn what_is_denied_is_taken_out_of_the_queue_and_of_what_would_be_sent_again() {
        let denied = |copy: &Delivery| copy.message.payload.starts_with(b"no");
        let mut bench = Bench::connected(OutboundConfig::default(), small_window(2));
        for payload in ["no 1", "a", "no 2", "b"] {
            bench.enqueue(copy(payload, 2));
        }
        assert_eq!(bench.written(), ["no 1/1", "a/2"]);
        let (shared, tally) = bench.outbound.withdraw(denied);
        bench.outbound.check_invariants();
        assert!(shared.is_empty());
        let denials = tally.dropped(DropReason::Denied);
        assert_eq!(denials, 1, "what was sent is with the client");
        let _ = bench.outbound.disconnect();
        let (_, tally) = bench.outbound.withdraw(denied);
        bench.outbound.check_invariants();
        assert_eq!(tally.dropped(DropReason::Denied), 1);
        bench.connect(V5);
        assert_eq!(bench.written(), ["a/2*", "b/4"]);
        // A late PUBREC is for nobody.
        assert_eq!(
            bench.pubrec(1, ReasonCode::Success).outcome,
            AckOutcome::Unknown
        );
    }

    #[test]
    fn a_message_beyond_the_byte_limit_is_taken_beside_half_of_it() {
        for (others, outcome) in [
            (2, Outcome::Queued),
            (3, Outcome::Dropped(DropReason::QueueFull)),
        ] {
            let config = OutboundConfig {
                queue_max_bytes: 4 * copy("a", 1).message.held_bytes(),
                ..OutboundConfig::default()
            };
            let mut bench = Bench::new(config);
            for _ in 0..others {
                bench.enqueue(copy("a", 1));
            }
            let enqueued = bench.enqueue(copy(&"x".repeat(10_000), 1));
            assert_eq!(enqueued.outcome, outcome);
            let lost = usize::from(outcome != Outcome::Queued);
            assert_eq!(enqueued.tally.dropped_total() as usize, lost);
        }
    }

    #[test]
    fn a_replay_leaves_room_for_what_comes_live() {
        let config = OutboundConfig {
            queue_max_messages: 8,
            ..OutboundConfig::default()
        };
        let mut bench = Bench::new(config);
        let has_room = |bench: &Bench, bytes| bench.outbound.has_room_to_replay(bytes);
        assert!(has_room(&bench, usize::MAX / 2), "one that would be alone");
        bench.enqueue(copy("a", 1));
        assert!(has_room(&bench, 100) && !has_room(&bench, 20 << 20));
        bench.enqueue(copy("b", 1));
        assert!(!has_room(&bench, 100));
    }

    #[test]
    fn two_messages_beyond_the_byte_limit_are_not_taken() {
        let config = OutboundConfig {
            queue_max_bytes: 200,
            ..Default::default()
        };
        let mut bench = Bench::new(config);
        let big = "x".repeat(300);
        assert_eq!(bench.enqueue(copy(&big, 1)).outcome, Outcome::Queued);
        let refused = bench.enqueue(copy(&big, 1));
        assert_eq!(refused.outcome, Outcome::Dropped(DropReason::QueueFull));
        assert_eq!(
            refused.tally.dropped_total(),
            1,
            "nothing is evicted in vain"
        );
    }

    #[test]
    fn qos0_for_the_absent_is_dropped_unless_configured() {
        let mut bench = Bench::new(OutboundConfig::default());
        let enqueued = bench.enqueue(copy("a", 0));
        assert_eq!(enqueued.outcome, Outcome::Dropped(DropReason::QoS0Offline));
        let config = OutboundConfig {
            queue_qos0_offline: true,
            ..Default::default()
        };
        let mut bench = Bench::new(config);
        assert_eq!(bench.enqueue(copy("a", 0)).outcome, Outcome::Queued);
        bench.connect(V5);
        assert_eq!(bench.connected.delivered, 1);
        assert_eq!(bench.written(), ["a/0"]);
    }

    #[test]
    fn expiry_counts_before_the_first_sending_only() {
        let expiring = |payload: &str, at| {
            let expires_at_ms = Some(at);
            of(
                Message {
                    expires_at_ms,
                    ..message(payload)
                },
                2,
            )
        };
        let mut bench = Bench::connected(OutboundConfig::default(), small_window(1));
        assert_eq!(
            bench.enqueue(expiring("gone", NOW)).outcome,
            Outcome::Expired
        );
        bench.enqueue(expiring("a", NOW + 2_500));
        assert_eq!(
            bench.bytes(),
            [0x34, 12, 0, 1, b't', 0, 1, 5, 2, 0, 0, 0, 3, b'a'],
            "what is left is rewritten"
        );
        bench.enqueue(expiring("b", NOW + 2_500));
        bench.enqueue(copy("c", 1));
        let later = NOW + 3_000;
        let _ = bench
            .outbound
            .connect(small_window(1), later, &mut bench.dst);
        assert_eq!(
            bench.written(),
            ["a/1*"],
            "once sent, it is no longer subject to expiry"
        );
        let id = PacketId::new(1).unwrap();
        let error = ReasonCode::UnspecifiedError;
        let acked = bench
            .outbound
            .handle_pubrec(id, error, later, &mut bench.dst)
            .unwrap();
        assert_eq!((acked.tally.expired, acked.tally.delivered), (1, 1));
        assert_eq!(bench.written(), ["c/3"]);
    }

    #[test]
    fn expire_sweeps_what_waits() {
        let mut bench = Bench::new(OutboundConfig::default());
        for at in [NOW + 1, NOW + 1_000] {
            let expires_at_ms = Some(at);
            bench.enqueue(of(
                Message {
                    expires_at_ms,
                    ..message("x")
                },
                1,
            ));
        }
        assert_eq!(bench.outbound.expire(NOW + 1).expired, 1);
        bench.outbound.check_invariants();
        assert_eq!(bench.outbound.queued(), 1);
    }

    #[test]
    fn what_the_client_cannot_take_is_dropped_as_if_done() {
        let peer = Peer {
            max_packet_size: Some(9),
            ..V5
        };
        let mut bench = Bench::connected(OutboundConfig::default(), V5);
        bench.enqueue(copy("xyz", 1));
        bench.written();
        bench.connect(peer);
        assert_eq!(
            bench.connected.dropped(DropReason::TooLarge),
            1,
            "sent before under another limit"
        );
        for qos in [0, 1] {
            let outcome = bench.enqueue(copy("abcdefgh", qos)).outcome;
            assert_eq!(outcome, Outcome::Dropped(DropReason::TooLarge));
        }
        bench.enqueue(copy("x", 1));
        assert_eq!(bench.written(), ["x/3"]);
    }

    #[test]
    fn topics_are_sent_once_where_the_client_takes_aliases() {
        let peer = Peer {
            topic_alias_maximum: 1,
            ..V5
        };
        let mut bench = Bench::connected(OutboundConfig::default(), peer.clone());
        bench.enqueue(copy("a", 0));
        assert_eq!(bench.bytes(), [0x30, 8, 0, 1, b't', 3, 0x23, 0, 1, b'a']);
        bench.enqueue(copy("b", 0));
        assert_eq!(bench.bytes(), [0x30, 7, 0, 0, 3, 0x23, 0, 1, b'b']);
        let topic = TopicName::try_from("u").unwrap();
        bench.enqueue(of(
            Message {
                topic,
                ..message("c")
            },
            0,
        ));
        assert_eq!(
            bench.bytes(),
            [0x30, 5, 0, 1, b'u', 0, b'c'],
            "one alias is all it takes"
        );
        assert!(
            bench
                .outbound
                .enqueue_frame(&[0x30, 0], &mut bench.dst)
                .is_none()
        );
        bench.connect(peer);
        bench.enqueue(copy("a", 0));
        assert_eq!(bench.bytes()[3], 1, "aliases end with the connection");
    }

    #[test]
    fn topics_lose_their_mountpoint() {
        let peer = Peer {
            topic_alias_maximum: 1,
            mountpoint: Some(Mountpoint::parse("m").unwrap()),
            ..V5
        };
        let to = |topic: &str, qos| {
            let topic = TopicName::try_from(topic).unwrap();
            let message = Message {
                topic,
                ..message("x")
            };
            of(message, qos)
        };
        let mut bench = Bench::connected(OutboundConfig::default(), peer);
        bench.enqueue(to("m/a", 0));
        assert_eq!(bench.bytes(), [0x30, 8, 0, 1, b'a', 3, 0x23, 0, 1, b'x']);
        bench.enqueue(to("m/a", 0));
        assert_eq!(bench.bytes(), [0x30, 7, 0, 0, 3, 0x23, 0, 1, b'x']);
        for qos in [0, 1] {
            let outcome = bench.enqueue(to("m", qos)).outcome;
            assert_eq!(outcome, Outcome::Dropped(DropReason::Unmounted));
        }
        let frame = [0x30, 4, 0, 1, b'm', b'x'];
        assert!(
            bench
                .outbound
                .enqueue_frame(&frame, &mut bench.dst)
                .is_none()
        );
    }

    #[test]
    fn subscription_identifiers_and_retain_are_written() {
        let mut bench = Bench::connected(OutboundConfig::default(), V5);
        let mut delivery = copy("x", 0);
        delivery.subscription_ids = smallvec![1, 200];
        delivery.retain = true;
        bench.enqueue(delivery);
        let expected = [0x31, 10, 0, 1, b't', 5, 0x0B, 1, 0x0B, 0xC8, 1, b'x'];
        assert_eq!(bench.bytes(), expected);
    }

    #[test]
    fn an_encoded_frame_is_sent_as_it_is_or_not_at_all() {
        let mut bench = Bench::new(OutboundConfig::default());
        let frame = [0x30, 4, 0, 1, b't', b'x'];
        assert!(
            bench
                .outbound
                .enqueue_frame(&frame, &mut bench.dst)
                .is_none()
        );
        bench.connect(V4);
        let tally = bench
            .outbound
            .enqueue_frame(&frame, &mut bench.dst)
            .unwrap();
        assert_eq!((tally.accepted, tally.delivered), (1, 1));
        assert_eq!(bench.bytes(), frame);
        bench.outbound.handle_congested();
        assert!(
            bench
                .outbound
                .enqueue_frame(&frame, &mut bench.dst)
                .is_none()
        );
    }

    #[test]
    fn a_leaving_member_gives_up_what_another_may_get() {
        let mut bench = Bench::connected(OutboundConfig::default(), small_window(3));
        bench.enqueue(shared("a", 1));
        bench.enqueue(shared("b", 2));
        bench.enqueue(copy("c", 1));
        bench.enqueue(shared("d", 2));
        bench.enqueue(copy("e", 1));
        assert_eq!(bench.written(), ["a/32768", "b/32769", "c/1"]);
        let taken = bench.outbound.take_undelivered_shared(|_| true);
        bench.outbound.check_invariants();
        let payloads: Vec<_> = taken.iter().map(|copy| &copy.message.payload[..]).collect();
        assert_eq!(payloads, [b"a", b"d"]);
        let _ = bench.outbound.disconnect();
        bench.connect(V5);
        assert_eq!(bench.written(), ["c/1*", "b/32769*", "e/2"]);
    }

    #[test]
    fn who_unsubscribes_gives_up_only_what_was_never_sent() {
        let mut bench = Bench::connected(OutboundConfig::default(), small_window(1));
        bench.enqueue(shared("a", 1));
        bench.enqueue(shared("b", 1));
        bench.enqueue(copy("c", 1));
        bench.enqueue(shared("d", 2));
        assert_eq!(bench.written(), ["a/32768"]);
        let other = SubscriptionFilter::try_from("$share/other/t").unwrap();
        assert!(bench.outbound.take_unsent_shared(&other).is_empty());
        let filter = SubscriptionFilter::try_from("$share/g/t").unwrap();
        let taken = bench.outbound.take_unsent_shared(&filter);
        bench.outbound.check_invariants();
        let payloads: Vec<_> = taken.iter().map(|copy| &copy.message.payload[..]).collect();
        assert_eq!(payloads, [b"b", b"d"]);
        bench.puback(32_768);
        assert_eq!(bench.written(), ["c/1"]);
    }

    #[test]
    fn readiness_says_what_would_become_of_one_more() {
        let config = OutboundConfig {
            queue_max_messages: 3,
            ..OutboundConfig::default()
        };
        let mut bench = Bench::new(config);
        assert_eq!(bench.outbound.readiness(1), Readiness::Away);
        bench.connect(small_window(1));
        assert_eq!(bench.outbound.readiness(1), Readiness::Ready);
        assert_eq!(
            bench.outbound.readiness(usize::MAX / 2),
            Readiness::Ready,
            "a copy that would be alone is always taken"
        );
        bench.enqueue(shared("a", 1));
        assert_eq!(bench.outbound.readiness(1), Readiness::Waiting);
        bench.outbound.handle_congested();
        assert_eq!(bench.outbound.readiness(1), Readiness::Blocked);
        bench.enqueue(shared("b", 1));
        bench.enqueue(shared("c", 1));
        assert_eq!(bench.outbound.readiness(1), Readiness::Full);
    }

    #[test]
    fn the_end_of_a_session_counts_what_it_held() {
        let mut bench = Bench::connected(OutboundConfig::default(), small_window(1));
        for qos in [1, 1, 2] {
            bench.enqueue(copy("x", qos));
        }
        assert_eq!(bench.outbound.end().dropped(DropReason::SessionEnd), 3);
        assert!(bench.outbound.is_empty() && bench.outbound.bytes() == 0);
    }

    /// A client that is to go takes what stood in its line when that was decided, and not all that comes meanwhile.
    #[test]
    fn what_stood_in_the_line_is_done_though_more_comes() {
        let mut bench = Bench::connected(OutboundConfig::default(), small_window(2));
        assert!(bench.outbound.is_done_before(bench.outbound.line_end()));
        for payload in ["a", "b", "c"] {
            bench.enqueue(copy(payload, 1));
        }
        bench.enqueue(shared("s", 1));
        let end = bench.outbound.line_end();
        assert!(bench.outbound.has_unsent() && !bench.outbound.is_done_before(end));
        for id in [1, 2] {
            bench.puback(id);
            bench.enqueue(copy("later", 1));
            assert!(!bench.outbound.is_done_before(end), "{id}");
        }
        bench.puback(3);
        assert!(bench.outbound.is_done_before(end) && bench.outbound.has_unsent());
        assert!(!bench.outbound.is_done_before(bench.outbound.line_end()));
    }
}
