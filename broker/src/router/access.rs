//! What rules mean for deliveries. A session whose subscriptions are all granted wholly, under the rules in force, needs no
//! look; for the others each topic is judged when its targets are found, and publishers remember those.

use std::sync::Arc;

use flotte_mqtt::QoS;
use flotte_mqtt::session::Delivery;
use flotte_mqtt::topic::TopicName;
use metrics::counter;

use super::Router;
use super::subscriptions::Target;
use crate::auth::acl::{Acl, Rules, Subject};
use crate::session::Session;

impl Router {
    /// The rules.
    pub fn acl(&self) -> &Acl {
        &self.acl
    }

    /// Other rules are in force: what was matched under the former ones is forgotten, and every session is judged again, with
    /// what waits in it. Until that is done its deliveries are judged one by one.
    pub fn rules_changed(self: &Arc<Self>, sessions: &[Arc<Session>]) {
        self.epochs.touch_all();
        if let Some(rules) = self.acl.rules() {
            for session in sessions {
                session.judge_again(&rules);
                self.withdraw_denied(session, &rules);
            }
        }
    }

    /// A session goes on, for someone that rules may see otherwise than whoever had it before. Before it has its connection:
    /// what was sent to the one before is judged, too.
    pub fn set_subject(self: &Arc<Self>, session: &Session, subject: Arc<Subject>) {
        let Some(rules) = self.acl.rules() else {
            return;
        };
        let former = session.set_subject(Arc::clone(&subject));
        if former.is_some_and(|former| former != subject) {
            session.judge_again(&rules);
            for (filter, _) in session.subscriptions().lock().iter() {
                self.epochs.touch(&filter.filter);
            }
        }
        self.withdraw_denied(session, &rules);
    }

    /// Drops what is held for a client that may not have it.
    fn withdraw_denied(self: &Arc<Self>, session: &Session, rules: &Rules) {
        if session.is_granted_under(rules) {
            return;
        }
        let subject = session.subject();
        let is_denied = |copy: &Delivery| {
            let received = |subject| rules.received_qos(subject, &copy.message.topic, copy.qos);
            subject.as_deref().and_then(received).is_none()
        };
        let mut output = session.output().lock();
        if output.counts() == (0, 0) {
            return;
        }
        let shared = output.withdraw(is_denied);
        drop(output);
        self.redeliver(shared, None);
    }

    /// Takes out whoever may not get this topic.
    pub(super) fn keep_allowed(&self, topic: &TopicName, targets: &mut Vec<Target>) {
        if let Some(rules) = self.acl.rules() {
            targets.retain_mut(|target| keeps(&rules, topic, target));
        }
    }
}

/// Lowers the QoS of a target to what is allowed. False = nothing is.
fn keeps(rules: &Rules, topic: &TopicName, target: &mut Target) -> bool {
    match allowed_qos(rules, topic, &target.session, target.qos) {
        Some(qos) => {
            target.qos = qos;
            true
        }
        None => false,
    }
}

/// The highest QoS at which a session may get a topic; none where it may not.
pub(super) fn allowed_qos(
    rules: &Rules,
    topic: &TopicName,
    session: &Session,
    max: QoS,
) -> Option<QoS> {
    if session.is_granted_under(rules) {
        return Some(max);
    }
    let subject = session.subject();
    let allowed = subject.and_then(|subject| rules.received_qos(&subject, topic, max));
    if allowed.is_none() {
        // Of those that a publisher remembers, the first.
        counter!("flotte_acl_denied_total", "action" => "deliver").increment(1);
    }
    allowed
}
