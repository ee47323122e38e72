//! What rules say to a client: its publishes, its subscriptions, its will. Without rules each check is one branch.

use std::sync::Arc;

use flotte_mqtt::packet::{Publish, Will};
use flotte_mqtt::reason::ReasonCode;
use flotte_mqtt::session::Ticket;
use flotte_mqtt::topic::{SubscriptionFilter, TopicName};
use flotte_mqtt::{QoS, Version};
use metrics::counter;
use tracing::debug;

use super::worker::Shared;
use super::{Connection, End};
use crate::auth::Proof;
use crate::auth::acl::{Granted, Rights, Subject};
use crate::config::mqtt::AclRefused;
use crate::session::{Session, Signal, Wake};

impl Connection {
    /// Whether the client may publish this.
    pub(super) fn may_publish(&mut self, publish: &Publish, topic: &TopicName) -> bool {
        let acl = self.worker.shared.router.acl();
        if !acl.is_on() {
            return true;
        }
        let rights = match &mut self.rights {
            Some(rights) => rights,
            None => {
                // It is there while there are rules.
                let Some(subject) = self.session.subject() else {
                    return false;
                };
                self.rights.insert(Box::new(Rights::new(subject)))
            }
        };
        rights.may_publish(acl, topic, publish.qos, publish.retain)
    }

    /// Refuses a publish that the client may not make.
    pub(super) fn refuse_publish(&self, ticket: Option<Ticket>) -> Result<(), End> {
        counter!("flotte_acl_denied_total", "action" => "publish").increment(1);
        let reason = match (self.version, self.worker.shared.config.mqtt.acl_refused) {
            (Version::V5, _) => ReasonCode::NotAuthorized,
            // [MQTT-3.3.5-2] of 3.1.1: an ordinary acknowledgement, as there is no other word for it; or the end.
            (_, AclRefused::Drop) => ReasonCode::Success,
            (_, AclRefused::Disconnect) => return Err(End::Refused(ReasonCode::NotAuthorized)),
        };
        if let Some(ticket) = ticket {
            self.session.inbound().lock().complete(ticket, reason);
        }
        Ok(())
    }

    /// Under which rules the client may subscribe to all of this, 0 = to a part of it, or where there are no rules. None = it
    /// may not.
    pub(super) fn grant(&self, filter: &SubscriptionFilter, qos: QoS) -> Option<u32> {
        let Some(rules) = self.worker.shared.router.acl().rules() else {
            return Some(0);
        };
        let subject = self.session.subject();
        let granted = subject.and_then(|subject| rules.granted(&subject, &filter.filter, qos));
        match granted {
            Some(Granted::Whole) => Some(rules.generation()),
            Some(Granted::Partly) => Some(0),
            None => {
                debug!(%filter, "subscription refused");
                counter!("flotte_acl_denied_total", "action" => "subscribe").increment(1);
                None
            }
        }
    }
}

/// A client has taken a session: rules see that as its own from now on.
pub(super) fn attach(
    shared: &Shared,
    session: &Session,
    (subject, proof): (&Arc<Subject>, Proof),
    signal: &Signal,
) {
    shared.router.set_subject(session, Arc::clone(subject));
    if !shared.auth.still_takes(subject.username.as_deref(), proof) {
        // Its user was removed since it was let in: the reload may not have seen this connection.
        signal.raise(Wake::UNAUTHORIZED);
    }
}

/// Whether the client may have the will of its CONNECT, which goes to this topic.
pub(super) fn check_will(
    shared: &Shared,
    subject: &Subject,
    topic: &TopicName,
    will: &Will,
) -> Result<(), ReasonCode> {
    let rules = shared.router.acl().rules();
    if rules.is_none_or(|rules| rules.may_publish(subject, topic, will.qos, will.retain)) {
        return Ok(());
    }
    counter!("flotte_acl_denied_total", "action" => "will").increment(1);
    Err(ReasonCode::NotAuthorized)
}
