//! An application message, and one copy of it on its way to one session. Messages are shared by all
//! queues and never change.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::packet::QoS;
use crate::property::Properties;
use crate::text::ClientId;
use crate::topic::{SubscriptionFilter, TopicName};

/// What a held copy costs beside its contents, roughly: its place in a queue and its share of the
/// message's own fields.
const COPY_BYTES: usize = 128;

/// One application message on its way to subscribers.
#[derive(Debug, Clone)]
pub struct Message {
    pub topic: TopicName,
    pub payload: Bytes,
    /// Those that go on to subscribers, without the expiry.
    pub properties: Properties,
    /// What the publisher chose; deliveries have their own.
    pub qos: QoS,
    pub retain: bool,
    pub publisher: ClientId,
    /// When it is not worth delivering any more, on the clock of `now_ms`.
    pub expires_at_ms: Option<u64>,
}

impl Message {
    pub fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_at_ms.is_some_and(|at| at <= now_ms)
    }

    /// What is left of the lifetime, in seconds, a begun second being a whole one: the value
    /// received less the whole seconds spent waiting. [MQTT-3.3.2-6]
    pub fn expiry_left_s(&self, now_ms: u64) -> Option<u32> {
        let left_ms = self.expires_at_ms?.saturating_sub(now_ms);
        Some(u32::try_from(left_ms.div_ceil(1_000)).unwrap_or(u32::MAX))
    }

    /// What one queue's hold on this message counts against its limit in bytes. A message shared
    /// by many queues counts in each.
    pub fn held_bytes(&self) -> usize {
        Self::held_bytes_of(&self.topic, &self.payload, &self.properties)
    }

    /// What [`held_bytes`](Self::held_bytes) will be of a message that is still to be made.
    pub fn held_bytes_of(topic: &TopicName, payload: &Bytes, properties: &Properties) -> usize {
        COPY_BYTES + topic.as_str().len() + payload.len() + properties.held_bytes()
    }
}

/// One copy: a message and how one session gets it.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub message: Arc<Message>,
    /// The lower of the publisher's and the subscription's.
    pub qos: QoS,
    /// The RETAIN flag to send.
    pub retain: bool,
    /// Of the matching subscriptions, those that have one. [MQTT-3.3.4-3]
    pub subscription_ids: SmallVec<[u32; 1]>,
    /// Of a copy from a shared subscription, which may go to another member instead.
    pub share: Option<Arc<dyn SharedCopy>>,
}

/// What a router hangs on a copy from a shared subscription. It is dropped with the copy, whatever became of that: so the
/// router sees what a member has not done yet.
pub trait SharedCopy: Debug + Send + Sync {
    /// Group and filter.
    fn filter(&self) -> &SubscriptionFilter;

    /// What stands for the duty of whoever keeps the message for the case that this member goes: it moves on with the
    /// message, and is dropped when all is done.
    fn keeper(&self) -> Option<Keeper>;
}

/// Dropped when a message needs no longer be kept.
pub type Keeper = Arc<dyn Any + Send + Sync>;

/// How well a client can take one more copy, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Readiness {
    /// It is sent at once.
    Ready,
    /// It waits until the client has acknowledged something.
    Waiting,
    /// The socket takes nothing for now.
    Blocked,
    /// The overflow policy has to decide.
    Full,
    /// The client is not connected.
    Away,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod testing {
    use super::*;

    /// The subscription of a copy, and nothing that keeps the message.
    #[derive(Debug)]
    pub(in crate::session) struct Tag(SubscriptionFilter);

    impl Tag {
        pub(in crate::session) fn of(filter: &str) -> Arc<dyn SharedCopy> {
            Arc::new(Tag(SubscriptionFilter::try_from(filter).unwrap()))
        }
    }

    impl SharedCopy for Tag {
        fn filter(&self) -> &SubscriptionFilter {
            &self.0
        }

        fn keeper(&self) -> Option<Keeper> {
            None
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::property::Property;
    use crate::text::ByteStr;

    #[test]
    fn tiny_properties_count_as_what_they_take_in_memory() {
        const COUNT: usize = 1_000;
        let tiny = Property::user(ByteStr::new(), ByteStr::new());
        let message = Message {
            topic: "t".try_into().unwrap(),
            payload: Bytes::new(),
            properties: Properties::from(vec![tiny; COUNT]),
            qos: QoS::AtMostOnce,
            retain: false,
            publisher: "p".try_into().unwrap(),
            expires_at_ms: None,
        };
        assert!(message.held_bytes() >= COUNT * size_of::<Property>());
    }
}
