//! The end of a connection: its last words, its session, and what the cluster has to know.

use std::sync::Arc;

use bytes::BytesMut;
use flotte_cluster::wire::Close;
use flotte_mqtt::codec;
use flotte_mqtt::packet::Disconnect;
use flotte_mqtt::property::Property;
use flotte_mqtt::reason::ReasonCode;
use flotte_mqtt::{PacketType, Version};
use metrics::counter;
use tokio::task::JoinHandle;
use tracing::debug;

use super::counted::Counted;
use super::{Connection, End};
use crate::drain;
use crate::metrics::Count;
use crate::session::now_ms;

impl Connection {
    /// Ends everything that hung on this connection.
    pub(super) fn close(&mut self, end: End) {
        debug!(client = %self.session.client, ?end, "closed");
        counter!("flotte_disconnects_total", "reason" => end.label()).increment(1);
        let shared = Arc::clone(&self.worker.shared);
        if let End::Disconnected {
            expiry_s: Some(expiry),
        }
        | End::DisconnectedWithWill {
            expiry_s: Some(expiry),
        } = end
        {
            self.session.set_durable(expiry > 0);
        }
        self.leave_waiting(&end);
        // Before the client can know: it may be back at once, and its new connection must find what it said.
        let commit = self.commit_end(&end);
        self.last_words(&end, commit);
        if self.session.epoch() == self.epoch {
            self.session.inbound().lock().disconnect();
            if self.session.ends_with_connection() {
                shared.end_session(&self.session);
            } else {
                shared.router.refresh_shares(&self.session);
            }
            self.session.detach(&self.signal);
        }
    }

    fn commit_end(&self, end: &End) -> Option<JoinHandle<()>> {
        let (discard_will, expiry_s) = match *end {
            End::Disconnected { expiry_s } => (true, expiry_s),
            // The node drains, and that fires no will.
            End::Moved => (true, None),
            End::DisconnectedWithWill { expiry_s } => (false, expiry_s),
            End::Lost | End::Refused(_) | End::SentAway(_) => (false, None),
            // The cluster has ended it already, but for the will: that waits for our word.
            End::TakenOver => (false, None),
            // It knows.
            End::Reset => return None,
        };
        let close = Close {
            client: self.session.client.as_bytes().clone(),
            epoch: self.epoch,
            discard_will,
            expiry_s,
        };
        Some(self.worker.shared.commit_close(close))
    }

    /// The bytes of a DISCONNECT that the client takes; none, where it takes none at all.
    fn goodbye(&self, reason: ReasonCode, bytes_max: usize) -> BytesMut {
        let listener = self.counted.as_ref().map(Counted::listener);
        let referred =
            listener.and_then(|listener| drain::reference(&self.worker.shared, listener, reason));
        let mut words = BytesMut::new();
        for reference in [referred, None] {
            let goodbye = Disconnect {
                reason,
                properties: reference
                    .map(Property::ServerReference)
                    .into_iter()
                    .collect(),
            };
            words.clear();
            if codec::encode(&goodbye.into(), self.version, &mut words).is_ok()
                && words.len() <= bytes_max
            {
                return words;
            }
        }
        // [MQTT-3.1.2-24]
        BytesMut::new()
    }

    /// [MQTT-3.14.0-1], [MQTT-4.13.1-1]: in 5.0 the client is told why, where its socket still takes it.
    fn last_words(&self, end: &End, commit: Option<JoinHandle<()>>) {
        let reason = match end {
            End::Refused(reason) | End::SentAway(reason) => Some(*reason),
            End::TakenOver => Some(ReasonCode::SessionTakenOver),
            // [MQTT-4.11.0-1]
            End::Moved => {
                let reason = self.worker.shared.departures.reason();
                Some(reason.unwrap_or(ReasonCode::UseAnotherServer))
            }
            End::Disconnected { .. }
            | End::DisconnectedWithWill { .. }
            | End::Lost
            | End::Reset => None,
        };
        let mut output = self.session.output().lock();
        let ours = output
            .signal()
            .is_some_and(|signal| Arc::ptr_eq(signal, &self.signal));
        if !ours {
            return;
        }
        if *end == End::Moved {
            // What was put in since it was looked is still for this client.
            output.flush(now_ms(), self.worker.shared.cluster().lease().held());
        }
        let (clean, bytes_max) = (output.takes_last_words(), output.packet_bytes_max());
        output.disconnect();
        drop(output);
        let words = match (reason, clean, self.version) {
            (Some(reason), true, Version::V5) => self.goodbye(reason, bytes_max),
            _ => BytesMut::new(),
        };
        if !words.is_empty() {
            Count::packets_out(PacketType::Disconnect).add(1);
        }
        if let (End::Moved, Some(commit)) = (end, commit) {
            let socket = Arc::clone(&self.socket);
            return self.worker.tell_when_known(socket, words, commit);
        }
        self.socket.close(&words);
        let is_over = match end {
            End::Lost => !self.socket.has_last_word(),
            End::Disconnected { .. } | End::DisconnectedWithWill { .. } => self.socket.is_plain(),
            _ => false,
        };
        if !is_over {
            self.worker.linger(Arc::clone(&self.socket));
        }
    }
}
