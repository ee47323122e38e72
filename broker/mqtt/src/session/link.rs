//! The connection as the outbound half of a session sees it: what the client allows, its topic
//! aliases, and the writing of packets by those rules. It keeps no message.

use bytes::BytesMut;

use super::alias::{Alias, AliasTable};
use super::config::OutboundConfig;
use super::message::Delivery;
use super::tail::{TAIL_BYTES, Tail};
use super::tally::DropReason;
use super::window::WINDOW_MAX;
use crate::codec;
use crate::packet::{Packet, PacketId, PubRel, PublishParts, QoS, Version};
use crate::reason::ReasonCode;
use crate::topic::{Mountpoint, TopicName};

/// The greatest packet there can be: four bytes of remaining length, and what precedes them.
const PACKET_BYTES_MAX: u32 = 268_435_455 + 5;

/// What the client's CONNECT said about what it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub version: Version,
    /// QoS 1 and 2 publishes it takes at once; 65,535 where the client did not say.
    pub receive_maximum: u16,
    /// Bytes of the greatest packet it takes.
    pub max_packet_size: Option<u32>,
    /// The greatest topic alias it takes; 0 for none.
    pub topic_alias_maximum: u16,
    /// What all its topics lie below, unknown to it.
    pub mountpoint: Option<Mountpoint>,
}

impl Peer {
    /// A client that stated no limits.
    pub const fn unlimited(version: Version) -> Self {
        Self {
            version,
            receive_maximum: u16::MAX,
            max_packet_size: None,
            topic_alias_maximum: 0,
            mountpoint: None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Link {
    pub(super) version: Version,
    /// The socket takes nothing for now: no PUBLISH is written.
    pub(super) congested: bool,
    /// How far the sequences under way may reach.
    window: u16,
    pub(super) packet_bytes_max: u32,
    /// Of clients that do not get every topic as it is.
    topics: Option<Box<Topics>>,
    /// While it is there no PUBLISH is written.
    pub(super) tail: Option<Box<Tail>>,
}

/// How topics are called towards a client.
#[derive(Debug)]
struct Topics {
    /// Where the client takes aliases.
    aliases: Option<AliasTable>,
    mountpoint: Option<Mountpoint>,
}

impl Link {
    pub(super) fn new(peer: Peer, config: &OutboundConfig) -> Self {
        let alias_max = peer.topic_alias_maximum.min(config.topic_alias_max);
        let has_aliases = peer.version == Version::V5 && alias_max > 0;
        let topics = Topics {
            aliases: has_aliases.then(|| AliasTable::new(alias_max)),
            mountpoint: peer.mountpoint,
        };
        let is_plain = topics.aliases.is_none() && topics.mountpoint.is_none();
        Self {
            version: peer.version,
            congested: false,
            // [MQTT-3.3.4-9], [MQTT-4.9.0-1]
            window: peer
                .receive_maximum
                .min(config.inflight_max)
                .clamp(1, WINDOW_MAX),
            packet_bytes_max: peer
                .max_packet_size
                .unwrap_or(PACKET_BYTES_MAX)
                .min(PACKET_BYTES_MAX),
            topics: (!is_plain).then(|| Box::new(topics)),
            tail: None,
        }
    }

    pub(super) fn window(&self) -> u64 {
        u64::from(self.window)
    }

    /// Whether a PUBLISH may be written.
    pub(super) fn is_open(&self) -> bool {
        !self.congested && self.tail.is_none()
    }

    /// Whether a PUBLISH that others encoded, with its topic and without aliases, can be sent as is.
    pub(super) fn takes_frame(&self, frame: &[u8]) -> bool {
        self.topics.is_none() && frame.len() <= self.packet_bytes_max as usize
    }

    /// Writes a PUBLISH, or nothing and why the copy cannot be sent to this client at all.
    pub(super) fn write(
        &mut self,
        delivery: &Delivery,
        packet_id: Option<PacketId>,
        dup: Dup,
        now_ms: u64,
        dst: &mut BytesMut,
    ) -> Result<(), DropReason> {
        let message = &delivery.message;
        let (topic, mut alias) = self.called(&message.topic)?;
        let mut parts = PublishParts {
            // [MQTT-3.3.1-2], [MQTT-3.3.1-3]
            dup: dup == Dup::Repeated && delivery.qos > QoS::AtMostOnce,
            qos: delivery.qos,
            retain: delivery.retain,
            topic,
            packet_id,
            properties: &message.properties,
            subscription_ids: &delivery.subscription_ids,
            topic_alias: None,
            message_expiry_s: message.expiry_left_s(now_ms),
            payload: &message.payload,
        };
        match alias {
            Alias::Known(known) => (parts.topic, parts.topic_alias) = ("", Some(known)),
            Alias::Free(free) => parts.topic_alias = Some(free),
            Alias::None => {}
        }
        if matches!(alias, Alias::Free(_)) && !self.fits(&parts) {
            (alias, parts.topic_alias) = (Alias::None, None);
        }
        if !self.fits(&parts) {
            return Err(DropReason::TooLarge);
        }
        if message.payload.len() < TAIL_BYTES {
            codec::encode_publish(&parts, self.version, dst).map_err(|_| DropReason::Invalid)?;
        } else {
            codec::encode_publish_head(&parts, self.version, dst)
                .map_err(|_| DropReason::Invalid)?;
            self.tail = Some(Box::new(Tail {
                at: dst.len(),
                payload: message.payload.clone(),
                stuck_since_ms: None,
            }));
        }
        if let (Alias::Free(free), Some(topics)) = (alias, &mut self.topics)
            && let Some(table) = &mut topics.aliases
        {
            table.assign(&message.topic, free);
        }
        Ok(())
    }

    /// What a topic is called towards the client.
    fn called<'a>(&self, topic: &'a TopicName) -> Result<(&'a str, Alias), DropReason> {
        let Some(topics) = &self.topics else {
            return Ok((topic.as_str(), Alias::None));
        };
        let called = match &topics.mountpoint {
            // The filter `m/#` matches `m` itself, for which there is no name below `m/`.
            Some(mountpoint) => mountpoint
                .inside(topic.as_str())
                .ok_or(DropReason::Unmounted)?,
            None => topic.as_str(),
        };
        let table = topics.aliases.as_ref();
        Ok((
            called,
            table.map_or(Alias::None, |table| table.look_up(topic)),
        ))
    }

    pub(super) fn write_pubrel(&self, id: PacketId, reason: ReasonCode, dst: &mut BytesMut) {
        let packet = Packet::PubRel(PubRel::new(id, reason));
        codec::encode(&packet, self.version, dst).expect("a PUBREL without properties is valid");
    }

    fn fits(&self, parts: &PublishParts<'_>) -> bool {
        codec::publish_len(parts, self.version) <= self.packet_bytes_max as usize
    }
}

/// Whether a PUBLISH was sent before this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dup {
    First,
    Repeated,
}
