//! The retained messages of the cluster: their number, bytes and ends. A pure function of commands and state time.

use std::collections::BTreeSet;

use bytes::Bytes;
use flotte_mqtt::topic::{NameTree, TopicName};
use flotte_proto::RetainedMessage;

/// A retained message.
#[derive(Debug, Clone)]
pub struct Retained {
    /// What was published.
    pub message: RetainedMessage,
    /// Meta index that stored it.
    pub index: u64,
    /// State time of that.
    pub time_ms: u64,
}

impl Retained {
    /// What is left of its life at a state time: none = it stays; 0 = it is over.
    pub fn left_ms(&self, now_ms: u64) -> Option<u64> {
        match self.message.expires_at_ms {
            0 => None,
            at => Some(at.saturating_sub(now_ms)),
        }
    }

    fn bytes(&self) -> u64 {
        let message = &self.message;
        (message.topic.len() + message.properties.len() + message.payload.len()) as u64
    }
}

/// How much may be retained; 0 = no limit.
#[derive(Debug, Clone, Copy)]
pub struct RetainedLimits {
    /// Messages.
    pub messages_max: u64,
    /// Bytes of topics, properties and payloads.
    pub bytes_max: u64,
}

/// All retained messages, in the order of their topics.
#[derive(Debug, Default)]
pub struct RetainedSet {
    tree: NameTree<Retained>,
    /// Topics, properties and payloads.
    bytes: u64,
    /// The ends of those that have one, with their topics.
    ends: BTreeSet<(u64, Bytes)>,
}

impl RetainedSet {
    /// Stores a message in place of the former one of its topic. False = it does not fit, and nothing changed.
    pub fn store(&mut self, topic: &TopicName, retained: Retained, limits: RetainedLimits) -> bool {
        let former = self.tree.get(topic).map(Retained::bytes);
        let bytes = self.bytes - former.unwrap_or(0) + retained.bytes();
        let messages = self.tree.len() as u64 + u64::from(former.is_none());
        let fits = |value, max| max == 0 || value <= max;
        if !fits(bytes, limits.bytes_max) || !fits(messages, limits.messages_max) {
            return false;
        }
        self.remove(topic);
        self.restore(topic, retained);
        true
    }

    /// Takes a message of a topic that has none, whatever the limits.
    pub fn restore(&mut self, topic: &TopicName, retained: Retained) {
        self.bytes += retained.bytes();
        if retained.message.expires_at_ms != 0 {
            self.ends.insert(end_of(&retained));
        }
        let former = self.tree.insert(topic, retained);
        debug_assert!(former.is_none(), "removed before");
    }

    /// Removes the message of a topic, if there is one.
    pub fn remove(&mut self, topic: &TopicName) {
        let Some(former) = self.tree.remove(topic) else {
            return;
        };
        self.bytes -= former.bytes();
        if former.message.expires_at_ms != 0 {
            self.ends.remove(&end_of(&former));
        }
    }

    /// Removes those whose end has come, the oldest first, at most `limit`.
    pub fn expire(&mut self, now_ms: u64, limit: usize) {
        for _ in 0..limit {
            let due = self.ends.first().filter(|(end, _)| *end <= now_ms);
            let Some((_, topic)) = due.cloned() else {
                return;
            };
            match super::state::parse_topic(topic) {
                Ok(topic) => self.remove(&topic),
                Err(_) => drop(self.ends.pop_first()),
            }
        }
    }

    /// When the next one expires, in state time.
    pub fn next_end_ms(&self) -> Option<u64> {
        self.ends.first().map(|(end, _)| *end)
    }

    /// All of them, by topic.
    pub fn tree(&self) -> &NameTree<Retained> {
        &self.tree
    }

    /// How many there are; expired ones count until an entry has removed them.
    pub fn len(&self) -> usize {
        self.tree.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tree.is_empty()
    }

    /// Their topics, properties and payloads in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

fn end_of(retained: &Retained) -> (u64, Bytes) {
    let message = &retained.message;
    (message.expires_at_ms, message.topic.clone())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NO_LIMITS: RetainedLimits = RetainedLimits {
        messages_max: 0,
        bytes_max: 0,
    };

    fn topic(text: &str) -> TopicName {
        TopicName::try_from(text).unwrap()
    }

    fn ending(text: &str, expires_at_ms: u64) -> Retained {
        let message = RetainedMessage {
            topic: Bytes::copy_from_slice(text.as_bytes()),
            payload: Bytes::from_static(b"p"),
            expires_at_ms,
            ..Default::default()
        };
        Retained {
            message,
            index: 1,
            time_ms: 1,
        }
    }

    #[test]
    fn those_whose_end_has_come_go_first_and_no_others() {
        let mut set = RetainedSet::default();
        for (name, end) in [("late", 30), ("never", 0), ("soon", 10), ("then", 20)] {
            assert!(set.store(&topic(name), ending(name, end), NO_LIMITS));
        }
        assert_eq!(set.next_end_ms(), Some(10));
        set.expire(9, 10);
        assert_eq!(set.len(), 4);
        set.expire(100, 2);
        let left: Vec<&str> = set.tree().iter().map(|(name, _)| name).collect();
        assert_eq!(left, ["late", "never"], "two at most, the oldest first");
        set.expire(100, 10);
        assert_eq!((set.len(), set.next_end_ms()), (1, None));
        assert_eq!(set.bytes(), "never".len() as u64 + 1);
    }

    #[test]
    fn a_replaced_or_deleted_message_takes_its_end_with_it() {
        let mut set = RetainedSet::default();
        set.store(&topic("a"), ending("a", 10), NO_LIMITS);
        set.store(&topic("a"), ending("a", 0), NO_LIMITS);
        set.store(&topic("b"), ending("b", 10), NO_LIMITS);
        set.remove(&topic("b"));
        assert_eq!(set.next_end_ms(), None);
        set.expire(u64::MAX, 10);
        assert_eq!((set.len(), set.bytes()), (1, 2));
    }
}
