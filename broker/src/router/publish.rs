//! The way of one publish: to the sessions here, to other nodes, and on to shared subscriptions.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use flotte_cluster::handle::Placement;
use flotte_cluster::id::NodeRef;
use flotte_cluster::link::{Lane, Pushed};
use flotte_cluster::wire::{Forward, WillKey};
use flotte_mqtt::codec;
use flotte_mqtt::packet::PublishParts;
use flotte_mqtt::property::Properties;
use flotte_mqtt::session::{Delivery, Message, TAIL_BYTES};
use flotte_mqtt::topic::TopicName;
use flotte_mqtt::{ClientId, QoS, Version};

use super::Router;
use super::matched::Matched;
use super::placing::Placing;
use super::subscriptions::Target;
use crate::metrics::Count;
use crate::session::{Form, mark_dirty, now_ms};

/// Payloads below this are copied into a buffer of their own when a message is kept: a slice would pin the whole read
/// buffer.
const COPY_BYTES_MAX: usize = 16 << 10;

/// A message to be published, wherever it comes from.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Where to.
    pub topic: TopicName,
    /// What.
    pub payload: Bytes,
    /// Those that go on to subscribers, without expiry.
    pub properties: Properties,
    /// How hard.
    pub qos: QoS,
    /// RETAIN as published.
    pub retain: bool,
    /// Whose it is, for No Local.
    pub publisher: ClientId,
    /// By [`now_ms`].
    pub expires_at_ms: Option<u64>,
    /// Meta index of its Retain; 0 = it is not retained.
    pub retain_index: u64,
    /// The key of a will.
    pub will: Option<WillKey>,
}

/// What became of a publish at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PublishOutcome {
    /// It matched somebody.
    pub matched: bool,
    /// A lane of a link is full: read no more from this publisher before it has room.
    pub full: Option<(NodeRef, Lane)>,
}

impl Outgoing {
    /// A copy that pins no read buffer.
    pub fn compact(mut self) -> Outgoing {
        self.topic = self.topic.compact();
        if self.payload.len() < COPY_BYTES_MAX {
            self.payload = Bytes::copy_from_slice(&self.payload);
        }
        self.properties = self.properties.compact();
        self
    }

    pub(super) fn message(&self) -> Arc<Message> {
        let kept = self.clone().compact();
        Arc::new(Message {
            topic: kept.topic,
            payload: kept.payload,
            properties: kept.properties,
            qos: kept.qos,
            retain: kept.retain,
            publisher: kept.publisher,
            expires_at_ms: kept.expires_at_ms,
        })
    }

    /// What it will count against the limits of a queue.
    pub(super) fn held_bytes(&self) -> usize {
        Message::held_bytes_of(&self.topic, &self.payload, &self.properties)
    }

    /// As it goes to another node now.
    pub(super) fn forward(&self, now_ms: u64) -> Forward {
        let mut properties = BytesMut::new();
        // Properties that came in by a decoder are within the limits of an encoder.
        let encoded = self.properties.encode(&mut properties);
        debug_assert!(
            encoded.is_ok(),
            "properties that were decoded can be encoded"
        );
        Forward {
            sequence: 0,
            topic: self.topic.text().as_bytes().clone(),
            qos: u32::from(self.qos as u8),
            retain: self.retain,
            properties: properties.freeze(),
            payload: self.payload.clone(),
            publisher: self.publisher.as_bytes().clone(),
            shares: Vec::new(),
            all: true,
            will: self.will,
            expires_in_ms: self
                .expires_at_ms
                .map_or(0, |at| at.saturating_sub(now_ms).max(1)),
            retain_index: self.retain_index,
            large: None,
        }
    }
}

impl From<&Message> for Outgoing {
    /// One that was queued goes elsewhere.
    fn from(message: &Message) -> Outgoing {
        Outgoing {
            topic: message.topic.clone(),
            payload: message.payload.clone(),
            properties: message.properties.clone(),
            qos: message.qos,
            retain: message.retain,
            publisher: message.publisher.clone(),
            expires_at_ms: message.expires_at_ms,
            retain_index: 0,
            will: None,
        }
    }
}

impl Router {
    /// Publishes a message that comes from no connection here.
    pub fn publish_once(
        self: &Arc<Self>,
        message: &Outgoing,
        placing: Option<&Arc<Placing>>,
    ) -> PublishOutcome {
        let matched = self.matched(&message.topic, &message.publisher);
        self.route(message, &matched, placing)
    }

    /// Puts a message on all its ways. With `placing` it is QoS 1/2: that is told when other nodes have placed it.
    pub fn route(
        self: &Arc<Self>,
        message: &Outgoing,
        matched: &Matched,
        placing: Option<&Arc<Placing>>,
    ) -> PublishOutcome {
        let mut outcome = PublishOutcome {
            matched: !matched.is_empty(),
            full: None,
        };
        if !outcome.matched {
            Count::UNMATCHED.add(1);
            return outcome;
        }
        self.deliver_here(message, &matched.targets);
        if !matched.nodes.is_empty() {
            let forward = message.clone().compact().forward(now_ms());
            for node in &matched.nodes {
                let waiter = placing.map(|placing| waiting(placing) as Arc<dyn Placement>);
                outcome.note(self.push(*node, forward.clone(), waiter), *node);
            }
        }
        for share in &matched.shares {
            if let Some((pushed, node)) = self.publish_to_share(message, share, placing) {
                outcome.note(pushed, node);
            }
        }
        outcome
    }

    /// Puts a message of another node into the queues of all ordinary subscribers here.
    pub fn deliver_all(&self, message: &Outgoing) {
        let mut targets = self
            .subscriptions
            .read()
            .targets(message.topic.as_str(), &message.publisher);
        self.keep_allowed(&message.topic, &mut targets);
        self.deliver_here(message, &targets);
    }

    /// Puts a message into the queues of sessions here.
    pub(super) fn deliver_here(&self, message: &Outgoing, targets: &[Target]) {
        let now = now_ms();
        let (mut frames, mut framed) = (Frames::default(), 0);
        let mut shared: Option<Arc<Message>> = None;
        for target in targets {
            let qos = message.qos.min(target.qos);
            // [MQTT-3.3.1-12], [MQTT-3.3.1-13]
            let retain = message.retain && target.retain_as_published;
            let mut output = target.session.output().lock();
            let form = Form::new(qos, &target.ids);
            if message.retain_index != 0
                && !output.comes_live(message.retain_index, message.topic.as_str(), form)
            {
                continue;
            }
            if qos == QoS::AtMostOnce
                && target.ids.is_empty()
                && Frames::suit(message)
                && let Some(version) = output.version()
                && let Some(dirty) = output.enqueue_frame(frames.of(message, version, retain))
            {
                drop(output);
                framed += 1;
                if dirty {
                    mark_dirty(&target.session);
                }
                continue;
            }
            let kept = shared.get_or_insert_with(|| message.message());
            let delivery = Delivery {
                message: Arc::clone(kept),
                qos,
                retain,
                subscription_ids: target.ids.clone(),
                share: None,
            };
            if target.session.is_ended() {
                continue;
            }
            let dirty = output.enqueue(delivery, now);
            drop(output);
            if dirty {
                mark_dirty(&target.session);
            }
        }
        if framed > 0 {
            Count::PAYLOAD_OUT.add(framed * message.payload.len() as u64);
        }
    }

    pub(super) fn push(
        &self,
        to: NodeRef,
        forward: Forward,
        waiter: Option<Arc<dyn Placement>>,
    ) -> Pushed {
        let pushed = self.cluster().forward(to, forward, waiter);
        if pushed == Pushed::Dropped {
            Count::LINK_DROPPED.add(1);
        }
        pushed
    }
}

impl PublishOutcome {
    fn note(&mut self, pushed: Pushed, node: NodeRef) {
        if let Pushed::Full(lane) = pushed {
            self.full = Some((node, lane));
        }
    }
}

fn waiting(placing: &Arc<Placing>) -> Arc<Placing> {
    placing.add();
    Arc::clone(placing)
}

/// A QoS 0 PUBLISH as bytes, encoded once for each form that a fan-out needs.
#[derive(Default)]
pub(super) struct Frames {
    forms: [Option<BytesMut>; 4],
}

impl Frames {
    /// Whether such frames are any good for a message. A large one is not copied, as a frame would be.
    pub(super) fn suit(message: &Outgoing) -> bool {
        message.expires_at_ms.is_none() && message.payload.len() < TAIL_BYTES
    }

    pub(super) fn of(&mut self, message: &Outgoing, version: Version, retain: bool) -> &[u8] {
        // 3.1 and 3.1.1 have the same PUBLISH.
        let form = usize::from(version == Version::V5) * 2 + usize::from(retain);
        self.forms[form].get_or_insert_with(|| {
            let parts = PublishParts {
                dup: false,
                qos: QoS::AtMostOnce,
                retain,
                topic: message.topic.as_str(),
                packet_id: None,
                properties: &message.properties,
                subscription_ids: &[],
                topic_alias: None,
                message_expiry_s: None,
                payload: &message.payload,
            };
            let mut frame = BytesMut::with_capacity(codec::publish_len(&parts, version));
            if codec::encode_publish(&parts, version, &mut frame).is_err() {
                frame.clear();
            }
            frame
        })
    }
}
