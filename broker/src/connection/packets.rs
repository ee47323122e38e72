//! What each packet of a connected client does.

use flotte_mqtt::packet::{Disconnect, Packet, PubComp};
use flotte_mqtt::reason::ReasonCode;
use flotte_mqtt::session::{Outbound, SessionError};
use tracing::debug;

use super::timers::{self, Since};
use super::{Connection, End};
use crate::metrics::Count;
use crate::session::now_ms;

/// The next look at a connection that waits for nothing.
const IDLE_MS: u64 = 3_600_000;

impl Connection {
    pub(super) fn handle_packet(&mut self, packet: Packet) -> Result<(), End> {
        if let Packet::Publish(publish) = packet {
            return self.handle_publish(publish);
        }
        Count::packets_in(packet.packet_type()).add(1);
        match packet {
            Packet::PubAck(ack) => self.acknowledge(|out, now, buf| {
                out.handle_puback(ack.packet_id, ack.reason, now, buf)
            }),
            Packet::PubRec(ack) => self.acknowledge(|out, now, buf| {
                out.handle_pubrec(ack.packet_id, ack.reason, now, buf)
            }),
            Packet::PubComp(ack) => {
                self.acknowledge(|out, now, buf| out.handle_pubcomp(ack.packet_id, now, buf))
            }
            Packet::PubRel(release) => {
                let reason = self
                    .session
                    .inbound()
                    .lock()
                    .handle_pubrel(release.packet_id);
                self.answer(
                    &PubComp {
                        packet_id: release.packet_id,
                        reason,
                        properties: Default::default(),
                    }
                    .into(),
                )
            }
            Packet::Subscribe(subscribe) => self.handle_subscribe(&subscribe),
            Packet::Unsubscribe(unsubscribe) => self.handle_unsubscribe(&unsubscribe),
            // [MQTT-3.12.4-1]
            Packet::PingReq => self.answer(&Packet::PingResp),
            Packet::Disconnect(disconnect) => Err(self.disconnected(&disconnect)),
            // No method was agreed on at CONNECT [MQTT-4.12.0-7]; the rest the decoder refuses from a client.
            _ => Err(End::Refused(ReasonCode::ProtocolError)),
        }
    }

    /// Puts a packet that is no publish into the output.
    pub(super) fn answer(&self, packet: &Packet) -> Result<(), End> {
        let sent = self.session.output().lock().send(packet);
        sent.map_err(End::Refused)
    }

    fn acknowledge(
        &self,
        handle: impl FnOnce(
            &mut Outbound,
            u64,
            &mut bytes::BytesMut,
        ) -> Result<flotte_mqtt::session::Acked, SessionError>,
    ) -> Result<(), End> {
        let now = now_ms();
        let result = self
            .session
            .output()
            .lock()
            .acknowledge(|outbound, buffer| match handle(outbound, now, buffer) {
                Ok(acked) => (Ok(()), acked.tally),
                Err(e) => (Err(e), Default::default()),
            });
        result.map_err(|e| End::Refused(e.reason()))
    }

    fn disconnected(&self, disconnect: &Disconnect) -> End {
        let expiry_s = disconnect.properties.session_expiry();
        // [MQTT-3.14.2-2]: a session that was to end with its connection cannot be kept now.
        if expiry_s.is_some_and(|expiry| expiry > 0) && !self.session.is_durable() {
            return End::Refused(ReasonCode::ProtocolError);
        }
        let max = self.worker.shared.config.mqtt.session_expiry_max_s;
        let expiry_s = expiry_s.map(|expiry| max.map_or(expiry, |max| expiry.min(max)));
        // [MQTT-3.14.4-3]
        if disconnect.reason == ReasonCode::Success {
            End::Disconnected { expiry_s }
        } else {
            End::DisconnectedWithWill { expiry_s }
        }
    }

    /// Checks what may be due: keep alive, publishes that are not placed, the lease.
    pub(super) fn check_deadlines(&mut self) -> Result<(), End> {
        let now = self.worker.wheel.now_ms();
        self.release(now);
        let shared = &self.worker.shared;
        if shared.cluster().lease().held() {
            if std::mem::replace(&mut self.unleased_since, Since::NEVER).is_set() {
                // The client is not to blame for what was not read meanwhile.
                self.last_read_ms = now;
            }
        } else {
            self.unleased_since.set_first(now);
            let since = self.unleased_since.ms().unwrap_or(now);
            if now - since >= u64::from(shared.config.cluster.minority_grace_ms) {
                return Err(End::SentAway(ReasonCode::UseAnotherServer));
            }
            return Ok(());
        }
        if self.keep_alive_ms > 0
            && self.may_read()
            && now - self.last_read_ms >= u64::from(self.keep_alive_ms)
        {
            // [MQTT-3.1.2-22]
            return Err(End::Refused(ReasonCode::KeepAliveTimeout));
        }
        if self.stalled_at(now).is_some_and(|at| at <= now) {
            debug!("the client takes nothing of a large message");
            return Err(End::Refused(ReasonCode::KeepAliveTimeout));
        }
        let timeout = u64::from(shared.config.mqtt.publish_timeout_ms);
        if self
            .unplaced_since
            .ms()
            .is_some_and(|since| now - since >= timeout)
        {
            return Err(End::Refused(ReasonCode::ImplementationSpecificError));
        }
        Ok(())
    }

    /// When a client that does not read what is written to it has to go.
    fn stalled_at(&self, now_ms: u64) -> Option<u64> {
        let blocked = self.blocked.then(|| self.session.output().lock());
        blocked.and_then(|mut output| output.stalled_at(now_ms))
    }

    /// The next moment at which something may be due.
    pub(super) fn set_deadline(&mut self) {
        let now = self.worker.wheel.now_ms();
        let soon = now + timers::TICK_MS;
        // That the lease is gone the worker tells all its connections.
        let mut next = now + IDLE_MS;
        if self.keep_alive_ms > 0 {
            if !self.may_read() {
                // What is not read for our own sake is not held against the client.
                self.last_read_ms = now;
            }
            let due = self.last_read_ms + u64::from(self.keep_alive_ms);
            next = next.min(if due > now { due } else { soon });
        }
        if self.unleased_since.is_set() {
            next = soon;
        }
        // A moment that stands: whatever else the client does must not put it off.
        next = next.min(self.stalled_at(now).unwrap_or(next));
        next = next.min(self.held_until_ms().unwrap_or(next));
        if let Some(since) = self.unplaced_since.ms() {
            next = next
                .min(since + u64::from(self.worker.shared.config.mqtt.publish_timeout_ms))
                .min(now + 1_000);
        }
        self.deadline.pull(next.max(soon));
    }
}
