//! The outbound half of a session together with the socket it is written to.

use std::io;
use std::sync::Arc;

use bytes::{Buf as _, BytesMut};
use flotte_mqtt::codec;
use flotte_mqtt::packet::Packet;
use flotte_mqtt::reason::ReasonCode;
use flotte_mqtt::session::{Delivery, Outbound, Peer, Readiness, Tail, Tally};
use flotte_mqtt::topic::SubscriptionFilter;
use flotte_mqtt::{PacketType, Version};

use super::meeting::{Form, Meeting, Replayed};
use super::signal::{Signal, Wake};
use crate::metrics::{self, Count};
use crate::transport::Socket;

/// A packet for the client is dropped without a word where this much waits for its socket: it sends requests and never
/// reads the answers.
const UNREAD_BYTES_MAX: usize = 4 << 20;

/// So much of a payload that stands apart is written before others have their turn.
const TURN_BYTES: usize = 256 << 10;

/// A client that takes nothing of such a payload for this long is given up: it would hold it for ever.
const STALL_MS: u64 = 60_000;

/// The connection that a session's output goes to.
#[derive(Debug)]
pub struct OutputLink {
    /// Written by whichever thread has something for the client.
    pub socket: Arc<Socket>,
    /// Wakes the connection's task.
    pub signal: Arc<Signal>,
    /// Protocol version of the client.
    pub version: Version,
}

/// Outbound half, encoded bytes, and the socket they go to.
#[derive(Debug)]
pub struct Output {
    outbound: Outbound,
    link: Option<OutputLink>,
    /// Encoded and not yet taken by the socket; without capacity while there is nothing.
    buffer: BytesMut,
    /// It stands in a thread's list of those to be flushed.
    dirty: bool,
    /// The socket took no more, or may be given no more: the connection's task waits for it.
    blocked: bool,
    /// It is blocked for want of a lease, and of what is encoded nothing is written.
    withheld: bool,
    /// While retained messages are replayed and shortly after: which came on which way.
    meeting: Option<Box<Meeting>>,
}

impl Output {
    /// An output without a connection.
    pub fn new(outbound: Outbound) -> Output {
        Output {
            outbound,
            link: None,
            buffer: BytesMut::new(),
            dirty: false,
            blocked: false,
            withheld: false,
            meeting: None,
        }
    }

    /// Takes a connection; what was under way is sent again behind what `first` says (CONNACK).
    pub fn connect(&mut self, link: OutputLink, peer: Peer, first: &Packet, now_ms: u64) {
        self.buffer = BytesMut::new();
        (self.blocked, self.withheld) = (false, false);
        let version = link.version;
        self.link = Some(link);
        if codec::encode(first, version, &mut self.buffer).is_ok() {
            Count::packets_out(first.packet_type()).add(1);
            let tally = self.outbound.connect(peer, now_ms, &mut self.buffer);
            metrics::count(&tally);
        }
    }

    /// The connection is gone.
    pub fn disconnect(&mut self) {
        metrics::count(&self.outbound.disconnect());
        self.buffer = BytesMut::new();
        (self.blocked, self.withheld) = (false, false);
        self.meeting = None;
        self.link = None;
    }

    /// The session is no more.
    pub fn end(&mut self) {
        metrics::count(&self.outbound.end());
    }

    /// How well the client can take one more shared copy of this size.
    pub fn readiness(&self, bytes: usize) -> Readiness {
        let readiness = self.outbound.readiness(bytes);
        if self.blocked {
            readiness.max(Readiness::Blocked)
        } else {
            readiness
        }
    }

    /// Takes out the shared copies that others should get; see [`Outbound::take_undelivered_shared`].
    pub fn take_undelivered_shared(
        &mut self,
        is_wanted: impl Fn(&SubscriptionFilter) -> bool,
    ) -> Vec<Delivery> {
        self.outbound.take_undelivered_shared(is_wanted)
    }

    /// Takes out the copies of a shared subscription that were never sent.
    pub fn take_unsent_shared(&mut self, filter: &SubscriptionFilter) -> Vec<Delivery> {
        self.outbound.take_unsent_shared(filter)
    }

    /// Drops the copies that the client may no longer have; see [`Outbound::withdraw`].
    pub fn withdraw(&mut self, is_denied: impl Fn(&Delivery) -> bool) -> Vec<Delivery> {
        let (shared, tally) = self.outbound.withdraw(is_denied);
        metrics::count(&tally);
        shared
    }

    /// The connection's signal, while there is a connection.
    pub fn signal(&self) -> Option<&Arc<Signal>> {
        self.link.as_ref().map(|link| &link.signal)
    }

    /// The version of the connected client.
    pub fn version(&self) -> Option<Version> {
        self.link.as_ref().map(|link| link.version)
    }

    /// Copies held, and of them those under way.
    pub fn counts(&self) -> (usize, usize) {
        (self.outbound.queued(), self.outbound.inflight())
    }

    /// Whether a copy of this size leaves most of the queue to what comes live.
    pub fn has_room_to_replay(&self, bytes: usize) -> bool {
        self.outbound.has_room_to_replay(bytes)
    }

    /// Where the line of what the client is to get ends now.
    pub fn line_end(&self) -> u64 {
        self.outbound.line_end()
    }

    /// Whether the client has all that stood in its line before that end, or it was dropped.
    pub fn is_done_before(&self, end: u64) -> bool {
        self.outbound.is_done_before(end)
    }

    /// Whether something was not written yet.
    pub fn has_unsent(&self) -> bool {
        self.blocked || !self.buffer.is_empty() || self.outbound.has_unsent()
    }

    /// Bytes of the copies held.
    pub fn held_bytes(&self) -> usize {
        self.outbound.bytes()
    }

    /// A subscription is about to be made whose retained messages are to be replayed. Returns since when, for that replay.
    pub fn expect_replay(&mut self) -> u64 {
        self.meeting.get_or_insert_default().begin()
    }

    /// All replays are over. Says whether something was replayed that may still come live.
    pub fn replays_done(&mut self) -> bool {
        self.meeting.as_mut().is_some_and(|meeting| {
            meeting.end();
            meeting.has_replayed()
        })
    }

    /// And nothing of them comes live any more.
    pub fn forget_replays(&mut self) {
        self.meeting = None;
    }

    /// A message retained at this meta index comes live. False = the client has it, or a later one, by replay.
    pub fn comes_live(&mut self, retain_index: u64, topic: &str, form: Option<Form>) -> bool {
        let meeting = self.meeting.as_mut();
        meeting.is_none_or(|meeting| meeting.comes_live(retain_index, topic, form))
    }

    /// Puts in one message of a replay, unless it, or a later one of its topic, came live since that was asked for.
    pub fn enqueue_replayed(
        &mut self,
        replayed: &Replayed,
        since: u64,
        delivery: Delivery,
        now_ms: u64,
    ) {
        if let Some(meeting) = &mut self.meeting {
            let topic = delivery.message.topic.as_str();
            if meeting.came_live(replayed.index, topic, since) {
                return;
            }
            let form = Form::new(delivery.qos, &delivery.subscription_ids);
            meeting.is_replayed(replayed, topic, form);
        }
        self.enqueue(delivery, now_ms);
    }

    /// Puts one copy in. Says whether the session is to be flushed by the caller's thread.
    pub fn enqueue(&mut self, delivery: Delivery, now_ms: u64) -> bool {
        let enqueued = self.outbound.enqueue(delivery, now_ms, &mut self.buffer);
        metrics::count(&enqueued.tally);
        self.needs_flush()
    }

    /// Puts one encoded QoS 0 copy in, if it can go as it is. None = use [`Output::enqueue`].
    pub fn enqueue_frame(&mut self, frame: &[u8]) -> Option<bool> {
        let tally = self.outbound.enqueue_frame(frame, &mut self.buffer)?;
        metrics::count(&tally);
        Some(self.needs_flush())
    }

    /// Writes a packet that is no publish. An error ends the connection: the client does not read what it asked for, or
    /// takes no packet of that size.
    pub fn send(&mut self, packet: &Packet) -> Result<(), ReasonCode> {
        let Some(link) = &self.link else {
            return Ok(());
        };
        if self.buffer.len() > UNREAD_BYTES_MAX {
            return Err(ReasonCode::QuotaExceeded);
        }
        let before = self.buffer.len();
        codec::encode(packet, link.version, &mut self.buffer)
            .map_err(|_| ReasonCode::UnspecifiedError)?;
        // [MQTT-3.1.2-24]
        if self.buffer.len() - before > self.outbound.packet_bytes_max() {
            self.buffer.truncate(before);
            return Err(ReasonCode::PacketTooLarge);
        }
        Count::packets_out(packet.packet_type()).add(1);
        Ok(())
    }

    /// Bytes of the greatest packet that the client takes.
    pub fn packet_bytes_max(&self) -> usize {
        self.outbound.packet_bytes_max()
    }

    /// Lets the outbound half handle an acknowledgement; what the window allows then goes into the buffer.
    pub fn acknowledge<T>(
        &mut self,
        handle: impl FnOnce(&mut Outbound, &mut BytesMut) -> (T, Tally),
    ) -> T {
        let (result, tally) = handle(&mut self.outbound, &mut self.buffer);
        metrics::count(&tally);
        result
    }

    /// Whether the caller's thread has to flush this session: only the first who put something in.
    pub fn needs_flush(&mut self) -> bool {
        let first = !self.dirty && !self.blocked && !self.buffer.is_empty() && self.link.is_some();
        self.dirty |= first;
        first
    }

    /// Writes what there is, and what the outbound half has beyond, until the socket takes no more. Not `leased`, nothing is
    /// written: the client may be served by another node by now.
    pub fn flush(&mut self, now_ms: u64, leased: bool) {
        self.dirty = false;
        if self.blocked {
            return;
        }
        if !leased {
            return self.withhold();
        }
        while self.link.is_some() {
            if self.is_flushed() {
                self.buffer = BytesMut::new();
                if !self.outbound.wants_write() {
                    return;
                }
                metrics::count(&self.outbound.poll_send(now_ms, &mut self.buffer));
                if self.buffer.is_empty() {
                    return;
                }
            }
            if !self.write_out() {
                return;
            }
        }
    }

    fn withhold(&mut self) {
        let has_some = !self.is_flushed() || self.outbound.wants_write();
        let Some(link) = self.link.as_ref().filter(|_| has_some) else {
            return;
        };
        self.outbound.handle_congested();
        link.signal.raise(Wake::BLOCKED);
        (self.blocked, self.withheld) = (true, true);
    }

    /// Writes what is encoded. False = the socket takes no more, or it is the turn of others.
    fn write_out(&mut self) -> bool {
        let Some(link) = &self.link else { return true };
        let before = self.buffer.len();
        let written = match self.outbound.tail_mut() {
            None => link.socket.write(&mut self.buffer),
            Some(tail) => {
                let written = write_turn(&link.socket, &mut self.buffer, tail);
                if tail.payload.is_empty() {
                    self.outbound.handle_tail_written();
                }
                written
            }
        };
        Count::BYTES_OUT.add((before - self.buffer.len()) as u64);
        match written {
            Ok(()) => return true,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.outbound.handle_congested();
                link.signal.raise(Wake::BLOCKED);
            }
            Err(_) => {
                self.buffer = BytesMut::new();
                link.signal.raise(Wake::BROKEN);
            }
        }
        self.blocked = true;
        false
    }

    /// The socket takes bytes again, or may. Says whether it still does when all was tried; not where it is not `leased`.
    pub fn writable(&mut self, now_ms: u64, leased: bool) -> bool {
        if !leased {
            return false;
        }
        (self.blocked, self.withheld) = (false, false);
        // Also where nothing is left here: a layer may hold what it has sealed.
        if !self.write_out() {
            return false;
        }
        self.flush(now_ms, leased);
        if !self.blocked {
            metrics::count(&self.outbound.handle_writable(now_ms, &mut self.buffer));
            self.flush(now_ms, leased);
        }
        !self.blocked
    }

    /// Whether so much waits for the socket that nothing more should be read from the client: what it asks for is
    /// answered into the same buffer.
    pub fn is_overfull(&self) -> bool {
        self.buffer.len() > UNREAD_BYTES_MAX / 4
    }

    /// Whether a DISCONNECT may be the next that the client reads: what was withheld is left out for it, but for CONNACK, which
    /// has to come before.
    pub fn takes_last_words(&mut self) -> bool {
        let is_connack = |first: &u8| first >> 4 == PacketType::ConnAck as u8;
        self.is_flushed() || self.withheld && !self.buffer.first().is_some_and(is_connack)
    }

    /// Whether nothing is left to be written.
    pub fn is_flushed(&mut self) -> bool {
        self.buffer.is_empty() && self.outbound.tail_mut().is_none()
    }

    /// Bytes of a payload that stands apart and of what goes with it, while there is one.
    pub fn tail_left(&mut self) -> Option<usize> {
        let buffered = self.buffer.len();
        let tail = self.outbound.tail_mut()?;
        Some(buffered + tail.payload.len())
    }

    /// When the client has to go, should it take nothing of such a payload until then; on the clock of `now_ms`, which
    /// nobody sets. None = there is no such payload.
    pub fn stalled_at(&mut self, now_ms: u64) -> Option<u64> {
        let tail = self.outbound.tail_mut()?;
        let since = tail.stuck_since_ms.get_or_insert(now_ms);
        Some(*since + STALL_MS)
    }
}

/// Writes what stands before a payload, then a piece of that, and last what stands behind it. As [`Socket::write`]; whether
/// it was the socket or the turn that ended is not told: the task that waits for the socket sees at once.
fn write_turn(socket: &Socket, buffer: &mut BytesMut, tail: &mut Tail) -> io::Result<()> {
    let before = buffer.len() + tail.payload.len();
    let written = write_parts(socket, buffer, tail);
    if buffer.len() + tail.payload.len() < before {
        tail.stuck_since_ms = None;
    }
    written
}

fn write_parts(socket: &Socket, buffer: &mut BytesMut, tail: &mut Tail) -> io::Result<()> {
    if tail.at > 0 {
        let before = buffer.len();
        let written = socket.write(&mut (&mut *buffer).take(tail.at));
        tail.at -= before - buffer.len();
        written?;
    }
    let before = tail.payload.len();
    let written = socket.write(&mut (&mut tail.payload).take(TURN_BYTES));
    Count::BYTES_OUT.add((before - tail.payload.len()) as u64);
    written?;
    if tail.payload.is_empty() {
        socket.write(buffer)
    } else {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

#[cfg(test)]
mod tests;
