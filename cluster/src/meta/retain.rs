//! The commands that retain messages.

use bytes::Bytes;
use flotte_mqtt::topic::TopicName;
use flotte_proto::{Retain, RetainBegin, RetainPart, RetainReply, RetainedMessage, retain_reply};
use prost::Message;

use super::retained::{Retained, RetainedLimits};
use super::state::{MetaState, parse_topic};
use crate::id::NodeRef;

impl MetaState {
    /// A part of a payload that is to come. What there is no room for is refused with the first of them.
    pub(super) fn retain_part(
        &mut self,
        from: NodeRef,
        mut part: RetainPart,
    ) -> Result<Bytes, String> {
        let begun = match part.begin.take() {
            Some(begin) => {
                let (node, number) = (from.node, part.number);
                self.has_room_for(&begin)?
                    && self
                        .assemblies
                        .begin(node, number, begin.payload_bytes, begin.bytes)
            }
            None => true,
        };
        let assemblies = &mut self.assemblies;
        let taken = begun && assemblies.append(from.node, part.number, part.offset, &part.data);
        Ok(reply(match taken {
            true => retain_reply::Result::Stored,
            false => retain_reply::Result::Quota,
        }))
    }

    /// Retained messages of which parts have come: how many, and what they will count against the limits.
    pub fn assembling(&self) -> (usize, u64) {
        (self.assemblies.len(), self.assemblies.bytes())
    }

    /// Whether a message may begin to come in parts.
    pub fn has_room_for(&self, begin: &RetainBegin) -> Result<bool, String> {
        let topic = parse_topic(begin.topic.clone())?;
        let limits = RetainedLimits {
            messages_max: begin.messages_max,
            bytes_max: begin.bytes_max,
        };
        let limits = limits.besides(self.assemblies.bytes());
        Ok(self.retained.has_room(&topic, begin.bytes, limits))
    }

    pub(super) fn retain(&mut self, from: NodeRef, mut retain: Retain) -> Result<Bytes, String> {
        let mut message = retain.message.take().ok_or("Retain without message")?;
        let topic = parse_topic(message.topic.clone())?;
        let assembled = match retain.assembly {
            0 => true,
            number => {
                let payload = self.assemblies.take(from.node, number);
                payload.map(|payload| message.payload = payload).is_some()
            }
        };
        let repeated = retain
            .will
            .take()
            .is_some_and(|key| !self.will_keys.insert(&key));
        Ok(reply(if repeated {
            retain_reply::Result::Stored
        } else if assembled {
            self.store_retained(&topic, message, &retain)
        } else {
            self.refuse_retained(&topic, &retain)
        }))
    }

    fn store_retained(
        &mut self,
        topic: &TopicName,
        mut message: RetainedMessage,
        retain: &Retain,
    ) -> retain_reply::Result {
        if message.payload.is_empty() {
            // [MQTT-3.3.1-6], [MQTT-3.3.1-10] of 3.1.1: an empty payload removes and is never stored.
            self.retained.remove(topic);
            return retain_reply::Result::Deleted;
        }
        // 0 would be never.
        let end = |left_ms| self.time_ms.saturating_add(left_ms).max(1);
        message.expires_at_ms = retain.expiry_ms.map_or(0, end);
        let limits = RetainedLimits {
            messages_max: retain.messages_max,
            bytes_max: retain.bytes_max,
        };
        let limits = limits.besides(self.assemblies.bytes());
        let retained = Retained::new(&message, self.index, self.time_ms);
        if retained.is_some_and(|retained| self.retained.store(retained, limits)) {
            return retain_reply::Result::Stored;
        }
        self.refuse_retained(topic, retain)
    }

    fn refuse_retained(&mut self, topic: &TopicName, retain: &Retain) -> retain_reply::Result {
        if retain.evict {
            // [MQTT-3.3.1-7] of 3.1.1
            self.retained.remove(topic);
        }
        retain_reply::Result::Quota
    }
}

fn reply(result: retain_reply::Result) -> Bytes {
    let result = result.into();
    RetainReply { result }.encode_to_vec().into()
}
