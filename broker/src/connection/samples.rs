//! Times one publish in many for the latency histograms: each worker has at most one on its way to its acknowledgement and
//! one on its way to its subscribers. Nothing is kept for each connection.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotte_mqtt::{PacketId, QoS};

use crate::metrics;
use crate::session::Session;

/// A sample whose connection ended never comes back: another one takes its place after this long.
const LOST_AFTER: Duration = Duration::from_secs(10);

/// The publishes that one worker times.
#[derive(Debug, Default)]
pub struct Samples {
    /// Publishes until the next one is timed.
    left: Cell<u32>,
    acknowledgement: Cell<Option<Awaited>>,
    delivery: Cell<Option<(QoS, Instant)>>,
}

/// A publish that waits for its PUBACK or PUBREC.
#[derive(Debug, Clone, Copy)]
struct Awaited {
    /// Address of the publisher's session: an identity, never followed.
    session: usize,
    id: PacketId,
    qos: QoS,
    since: Instant,
}

impl Samples {
    /// A publish arrived. Returns when that was, if it is one of those that are timed.
    pub fn arrived(
        &self,
        session: &Arc<Session>,
        qos: QoS,
        id: Option<PacketId>,
    ) -> Option<Instant> {
        let left = self.left.get();
        if left > 0 {
            self.left.set(left - 1);
            return None;
        }
        self.left.set(metrics::SAMPLE - 1);
        let now = Instant::now();
        let free = self
            .acknowledgement
            .get()
            .is_none_or(|awaited| now - awaited.since >= LOST_AFTER);
        if let (Some(id), true) = (id, free) {
            self.acknowledgement.set(Some(Awaited {
                session: address(session),
                id,
                qos,
                since: now,
            }));
        }
        Some(now)
    }

    /// A publish that is timed was put into the sessions of its subscribers.
    pub fn routed(&self, qos: QoS, since: Instant) {
        self.delivery.set(Some((qos, since)));
    }

    /// All that was put into sessions in this wake-up has been written.
    pub fn flushed(&self) {
        if let Some((qos, since)) = self.delivery.take() {
            metrics::delivered(qos, since.elapsed());
        }
    }

    /// An acknowledgement goes out.
    pub fn acknowledged(&self, session: &Arc<Session>, id: PacketId) {
        let Some(awaited) = self.acknowledgement.get() else {
            return;
        };
        if awaited.id == id && awaited.session == address(session) {
            self.acknowledgement.set(None);
            metrics::acknowledged(awaited.qos, awaited.since.elapsed());
        }
    }
}

fn address(session: &Arc<Session>) -> usize {
    Arc::as_ptr(session).addr()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use flotte_mqtt::ClientId;

    use super::*;
    use crate::session::Limits;

    fn session() -> Arc<Session> {
        let limits = Limits {
            outbound: Arc::default(),
            inbound: Default::default(),
        };
        Arc::new(Session::new(ClientId::try_from("c").unwrap(), &limits))
    }

    #[test]
    fn one_publish_in_many_is_timed() {
        let (samples, session) = (Samples::default(), session());
        let timed = (0..metrics::SAMPLE * 3)
            .filter_map(|_| samples.arrived(&session, QoS::AtMostOnce, None))
            .count();
        assert_eq!(timed, 3);
    }

    #[test]
    fn only_the_acknowledgement_of_the_timed_publish_ends_its_sample() {
        let (samples, a, b) = (Samples::default(), session(), session());
        let (one, two) = (PacketId::new(1).unwrap(), PacketId::new(2).unwrap());
        samples.arrived(&a, QoS::AtLeastOnce, Some(one));
        samples.acknowledged(&b, one);
        samples.acknowledged(&a, two);
        assert!(samples.acknowledgement.get().is_some());
        samples.acknowledged(&a, one);
        assert!(samples.acknowledgement.get().is_none());
    }

    #[test]
    fn a_delivery_is_timed_once() {
        let samples = Samples::default();
        samples.routed(QoS::AtMostOnce, Instant::now());
        samples.flushed();
        assert!(samples.delivery.get().is_none());
    }
}
