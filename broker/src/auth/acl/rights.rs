//! What a publisher may, and its memory of it: publishers repeat topics.

use std::sync::Arc;

use flotte_mqtt::QoS;
use flotte_mqtt::topic::TopicName;
use foldhash::quality::RandomState;
use hashbrown::HashMap;

use super::{Acl, Subject};

/// Topics that a connection remembers; past it the memory is emptied.
const TOPICS_MAX: usize = 64;

/// The rights of one connection.
#[derive(Debug)]
pub struct Rights {
    subject: Arc<Subject>,
    /// The rules that made the decisions.
    generation: u32,
    publishes: HashMap<TopicName, Decisions, RandomState>,
}

/// A bit for each QoS with and without RETAIN.
#[derive(Debug, Clone, Copy, Default)]
struct Decisions {
    known: u8,
    allowed: u8,
}

impl Rights {
    pub fn new(subject: Arc<Subject>) -> Self {
        Self {
            subject,
            generation: 0,
            publishes: HashMap::default(),
        }
    }

    /// Whose they are.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// Whether the client may publish this, from memory where the rules are still the same.
    pub fn may_publish(&mut self, acl: &Acl, topic: &TopicName, qos: QoS, retain: bool) -> bool {
        let bit = 1 << (2 * (qos as u8) + u8::from(retain));
        if self.generation == acl.generation()
            && let Some(decisions) = self.publishes.get(topic)
            && decisions.known & bit != 0
        {
            return decisions.allowed & bit != 0;
        }
        let Some(rules) = acl.rules() else {
            return true;
        };
        if self.generation != rules.generation() || self.publishes.len() >= TOPICS_MAX {
            self.publishes.clear();
            self.generation = rules.generation();
        }
        let allowed = rules.may_publish(&self.subject, topic, qos, retain);
        let decisions = self.publishes.entry(topic.compact()).or_default();
        decisions.known |= bit;
        decisions.allowed |= if allowed { bit } else { 0 };
        allowed
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn decisions_are_remembered_until_the_rules_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acl.toml");
        let write = |qos: &str| {
            let text = format!("[[rule]]\neffect = \"allow\"\ntopics = [\"a\"]\nqos = {qos}\n");
            std::fs::write(&path, text).unwrap();
        };
        write("[0]");
        let config = config::acl::Config {
            file: Some(path.clone()),
            ..Default::default()
        };
        let acl = Acl::new(&config).unwrap();
        let mut rights = Rights::new(Arc::new(Subject::new(None, "c".try_into().unwrap(), None)));
        let (a, b) = ("a".try_into().unwrap(), "b".try_into().unwrap());
        for _ in 0..2 {
            assert!(rights.may_publish(&acl, &a, QoS::AtMostOnce, true));
            assert!(!rights.may_publish(&acl, &a, QoS::AtLeastOnce, true));
            assert!(!rights.may_publish(&acl, &b, QoS::AtMostOnce, true));
        }
        write("[1]");
        acl.replace(acl.read_again().unwrap().unwrap());
        assert!(!rights.may_publish(&acl, &a, QoS::AtMostOnce, true));
        assert!(rights.may_publish(&acl, &a, QoS::AtLeastOnce, true));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let config = config::acl::Config {
            default: Some(config::acl::Effect::Deny),
            ..Default::default()
        };
        let acl = Acl::new(&config).unwrap();
        let mut rights = Rights::new(Arc::new(Subject::new(None, "c".try_into().unwrap(), None)));
        for number in 0..1_000 {
            let topic = format!("a/{number}").as_str().try_into().unwrap();
            assert!(!rights.may_publish(&acl, &topic, QoS::AtMostOnce, false));
            assert!(rights.publishes.len() <= TOPICS_MAX);
        }
    }
}
