//! A message of a shared subscription as it is handed to a member of this node.

use std::sync::Arc;

use flotte_mqtt::QoS;
use flotte_mqtt::session::{Delivery, Keeper, Message, Readiness, SharedCopy};

use super::access::allowed_qos;
use super::members::{Member, Members, Offered};
use super::publish::{Frames, Outgoing};
use crate::auth::acl::Rules;
use crate::session::{Session, mark_dirty};

/// What is handed to a member here.
pub(super) struct Handing<'a> {
    pub(super) message: &'a Outgoing,
    pub(super) keeper: Option<Keeper>,
    pub(super) rules: Option<Arc<Rules>>,
    pub(super) frames: Frames,
    /// The message as it is queued; made for the first member that needs it.
    pub(super) kept: Option<Arc<Message>>,
}

impl Handing<'_> {
    fn granted(&self, session: &Session, qos: QoS) -> Option<QoS> {
        match &self.rules {
            None => Some(qos),
            Some(rules) => allowed_qos(rules, &self.message.topic, session, qos),
        }
    }

    /// Offers it to a member, which takes it if it is no less ready than `worst`.
    pub(super) fn offer(
        &mut self,
        members: &Members,
        member: &Member,
        worst: Readiness,
        now: u64,
    ) -> Offered {
        let subscriber = &member.subscriber;
        let (session, options) = (&subscriber.session, &subscriber.options);
        // Whoever may not get this topic is passed over.
        let Some(granted) = self.granted(session, options.qos) else {
            return Offered::Gone;
        };
        let mut output = session.output().lock();
        if session.is_ended() {
            return Offered::Gone;
        }
        let readiness = output.readiness(self.message.held_bytes());
        if readiness > worst {
            return Offered::Not(readiness);
        }
        let message = self.message;
        // [MQTT-4.8.2-3]
        let qos = message.qos.min(granted);
        // [MQTT-3.3.1-12], [MQTT-3.3.1-13]
        let retain = message.retain && options.retain_as_published;
        let framed = qos == QoS::AtMostOnce && subscriber.id == 0 && Frames::suit(message);
        let written = match output.version().filter(|_| framed) {
            Some(version) => output.enqueue_frame(self.frames.of(message, version, retain)),
            None => None,
        };
        let dirty = written.unwrap_or_else(|| {
            // QoS 2 goes to nobody else if this node goes: whether it was sent would not be known.
            let keeper = self.keeper.take().filter(|_| qos == QoS::AtLeastOnce);
            let copy: Arc<dyn SharedCopy> = members.copy(member, keeper);
            let delivery = Delivery {
                message: Arc::clone(self.kept.get_or_insert_with(|| message.message())),
                qos,
                retain,
                subscription_ids: subscriber.ids(),
                share: Some(copy),
            };
            output.enqueue(delivery, now)
        });
        drop(output);
        if dirty {
            mark_dirty(session);
        }
        Offered::Taken
    }
}
