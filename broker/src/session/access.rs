//! Whose a session is, as rules see it, and whether its deliveries have to be judged. Both are used only while there are
//! rules.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Session, SubscriptionSet};
use crate::auth::acl::{Granted, Rules, Subject};

impl Session {
    /// Whose it is from now on; stays when the connection is gone. Returns whose it was.
    pub fn set_subject(&self, subject: Arc<Subject>) -> Option<Arc<Subject>> {
        let mut attachment = self.attachment.lock();
        let rare = attachment.rare.get_or_insert_default();
        rare.subject.replace(subject)
    }

    /// Whose it is.
    pub fn subject(&self) -> Option<Arc<Subject>> {
        let attachment = self.attachment.lock();
        attachment.rare.as_ref()?.subject.clone()
    }

    /// Whether all its subscriptions are granted wholly under these rules.
    pub fn is_granted_under(&self, rules: &Rules) -> bool {
        self.granted.load(Ordering::Acquire) == rules.generation()
    }

    /// A subscription is about to be added to these. `under` is the generation of the rules that grant it wholly; 0 = it is
    /// granted in part.
    pub fn note_grant(&self, subscriptions: &SubscriptionSet, under: u32) {
        if subscriptions.is_empty() {
            self.granted.store(under, Ordering::Release);
        } else if self.granted.load(Ordering::Acquire) != under {
            // Some are of other rules, or granted in part.
            self.granted.store(0, Ordering::Release);
        }
    }

    /// Judges all its subscriptions by these rules.
    pub fn judge_again(&self, rules: &Rules) {
        let subject = self.subject();
        // Held, so that no subscription is added that was judged by other rules.
        let subscriptions = self.subscriptions.lock();
        let all = subscriptions.iter().all(|(filter, options)| {
            let granted = subject
                .as_ref()
                .and_then(|subject| rules.granted(subject, &filter.filter, options.qos));
            granted == Some(Granted::Whole)
        });
        let under = if all { rules.generation() } else { 0 };
        self.granted.store(under, Ordering::Release);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use flotte_mqtt::QoS;
    use flotte_mqtt::packet::SubscribeOptions;

    use super::*;
    use crate::auth::acl::Acl;
    use crate::config::acl::Config;
    use crate::session::{Limits, Subscription};

    fn session() -> Session {
        let limits = Limits {
            outbound: Arc::default(),
            inbound: Default::default(),
        };
        let session = Session::new("c".try_into().unwrap(), &limits);
        session.set_subject(Arc::new(Subject::new(None, "c".try_into().unwrap(), None)));
        session
    }

    fn subscribe(session: &Session, filter: &str, under: u32) {
        let mut subscriptions = session.subscriptions().lock();
        session.note_grant(&subscriptions, under);
        subscriptions.insert(Subscription {
            filter: filter.try_into().unwrap(),
            options: SubscribeOptions::with_qos(QoS::AtMostOnce),
            id: 0,
        });
    }

    #[test]
    fn deliveries_are_judged_unless_every_subscription_is_whole_under_the_rules_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acl.toml");
        let write = |denied: &str| {
            let text = format!(
                "[[rule]]\neffect = \"deny\"\ntopics = [\"{denied}\"]\n[[rule]]\neffect = \"allow\"\n"
            );
            std::fs::write(&path, text).unwrap();
        };
        write("x");
        let config = Config {
            file: Some(path.clone()),
            ..Default::default()
        };
        let acl = Acl::new(&config).unwrap();
        let first = acl.rules().unwrap();
        let session = session();
        assert!(!session.is_granted_under(&first), "not before it is known");
        subscribe(&session, "a/#", first.generation());
        subscribe(&session, "b/#", first.generation());
        assert!(session.is_granted_under(&first));

        acl.replace(acl.read_again().unwrap().unwrap());
        let second = acl.rules().unwrap();
        assert!(!session.is_granted_under(&second), "other rules");
        session.judge_again(&second);
        assert!(session.is_granted_under(&second));
        subscribe(&session, "c/#", first.generation());
        assert!(
            !session.is_granted_under(&second),
            "judged by rules that are gone"
        );
        session.judge_again(&second);
        subscribe(&session, "+", 0);
        assert!(!session.is_granted_under(&second), "in part");
        session.judge_again(&second);
        assert!(!session.is_granted_under(&second), "still in part");

        write("y");
        acl.replace(acl.read_again().unwrap().unwrap());
        session.judge_again(&acl.rules().unwrap());
        assert!(!session.is_granted_under(&acl.rules().unwrap()));
    }
}
