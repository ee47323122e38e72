//! PUBLISH: the packet, and the hot path that writes one from its parts.

use bytes::{BufMut, Bytes, BytesMut};

use super::{Body, PacketId, PacketType, QoS, Version};
use crate::error::{DecodeError, EncodeError, Malformed, Violation};
use crate::property::{Context, Properties, Property, PropertyId};
use crate::text::ByteStr;
use crate::wire::{Reader, VARINT_MAX, check_field, field_len, put_field, put_varint, varint_len};

const RETAIN: u8 = 0b0001;
const QOS: u8 = 0b0110;
const QOS_SHIFT: u8 = 1;
const DUP: u8 = 0b1000;

/// A message on its way to the other side. Its strings and payload share the read buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Whether the packet may have been sent before.
    pub dup: bool,
    /// How hard the sender tries.
    pub qos: QoS,
    /// From a client: to be kept for later subscribers.
    pub retain: bool,
    /// Not yet checked to be a topic name; empty when an alias stands for it.
    pub topic: ByteStr,
    /// There with QoS 1 and 2 only.
    pub packet_id: Option<PacketId>,
    /// In 5.0.
    pub properties: Properties,
    /// Any bytes.
    pub payload: Bytes,
}

/// The parts of a PUBLISH, borrowed from the message and from the session that delivers it.
#[derive(Debug, Clone, Copy)]
pub struct PublishParts<'a> {
    /// Whether this delivery may have been sent before [MQTT-3.3.1-3].
    pub dup: bool,
    /// The QoS of this delivery.
    pub qos: QoS,
    /// The RETAIN flag of this delivery.
    pub retain: bool,
    /// May be empty when `topic_alias` stands for it.
    pub topic: &'a str,
    /// Needed with QoS 1 and 2; not written with QoS 0 [MQTT-2.2.1-2].
    pub packet_id: Option<PacketId>,
    /// The properties of the message. Not written, as all that follows, in 3.x.
    pub properties: &'a Properties,
    /// The identifiers of the subscriptions that this delivery serves, besides those in
    /// `properties`.
    pub subscription_ids: &'a [u32],
    /// The alias of the topic, besides one in `properties`.
    pub topic_alias: Option<u16>,
    /// What is left of the lifetime in seconds, instead of the one in `properties`.
    pub message_expiry_s: Option<u32>,
    /// Any bytes.
    pub payload: &'a [u8],
}

impl Publish {
    pub(super) fn decode(
        flags: u8,
        version: Version,
        context: Context,
        body: &mut Reader,
    ) -> Result<Self, DecodeError> {
        let qos = check_flags(flags, version)?;
        // [MQTT-3.3.2-1]
        let topic = body.text()?;
        // [MQTT-2.2.1-2]
        let packet_id = match qos {
            QoS::AtMostOnce => None,
            QoS::AtLeastOnce | QoS::ExactlyOnce => Some(body.packet_id()?),
        };
        let properties = match version {
            Version::V5 => Properties::read(body, context)?,
            Version::V3 | Version::V4 => Properties::new(),
        };
        check_topic(&topic, properties.topic_alias().is_some())?;
        Ok(Self {
            dup: flags & DUP != 0,
            qos,
            retain: flags & RETAIN != 0,
            topic,
            packet_id,
            properties,
            payload: body.take(body.len())?,
        })
    }

    /// The same packet in a buffer of its own, one for topic and payload, so that it does not hold
    /// a read buffer. For a message that is kept.
    #[must_use]
    pub fn compact(self) -> Self {
        let mut own = BytesMut::with_capacity(self.topic.len() + self.payload.len());
        own.put_slice(self.topic.as_bytes());
        own.put_slice(&self.payload);
        let mut payload = own.freeze();
        let topic = payload.split_to(self.topic.len());
        Self {
            // The bytes are those of a string, so this never falls back.
            topic: ByteStr::try_from(topic).unwrap_or(self.topic),
            payload,
            properties: self.properties.compact(),
            ..self
        }
    }

    fn parts(&self) -> PublishParts<'_> {
        PublishParts {
            dup: self.dup,
            qos: self.qos,
            retain: self.retain,
            topic: &self.topic,
            packet_id: self.packet_id,
            properties: &self.properties,
            subscription_ids: &[],
            topic_alias: None,
            message_expiry_s: None,
            payload: &self.payload,
        }
    }
}

/// Checks the flags of the first byte and reads the QoS in them.
pub(super) fn check_flags(flags: u8, version: Version) -> Result<QoS, Malformed> {
    let malformed = Malformed::Flags {
        packet: PacketType::Publish,
        flags,
    };
    // [MQTT-3.3.1-4]
    let qos = QoS::try_from((flags & QOS) >> QOS_SHIFT).map_err(|_| malformed)?;
    // [MQTT-3.3.1-2], [MQTT-4.3.1-1]; 3.1 says nothing of the kind.
    if flags & DUP != 0 && qos == QoS::AtMostOnce && version > Version::V3 {
        return Err(malformed);
    }
    Ok(qos)
}

/// A topic has at least one character [MQTT-4.7.3-1], unless an alias stands for it (5.0, section
/// 3.3.2.1).
fn check_topic(topic: &str, has_alias: bool) -> Result<(), Violation> {
    if topic.is_empty() && !has_alias {
        return Err(Violation::EmptyTopic);
    }
    Ok(())
}

impl PublishParts<'_> {
    /// Properties of the message that are written: all, but for a lifetime that is overridden.
    fn own_properties(&self) -> impl Iterator<Item = &Property> {
        let overridden = self.message_expiry_s.is_some();
        let is_written =
            move |property: &&Property| !overridden || property.id() != PropertyId::MessageExpiry;
        self.properties.iter().filter(is_written)
    }

    /// Properties of the delivery that are written before those of the message.
    fn added_properties(&self) -> impl Iterator<Item = Property> {
        let expiry = self.message_expiry_s.map(Property::MessageExpiry);
        let alias = self.topic_alias.map(Property::TopicAlias);
        let ids = self.subscription_ids.iter();
        expiry
            .into_iter()
            .chain(alias)
            .chain(ids.map(|id| Property::SubscriptionId(*id)))
    }

    fn properties_len(&self) -> usize {
        let own: usize = self.own_properties().map(Property::encoded_len).sum();
        let added = self.added_properties().map(|added| added.encoded_len());
        own + added.sum::<usize>()
    }

    fn check_added(&self) -> Result<(), EncodeError> {
        // [MQTT-3.3.2-8]
        if self.topic_alias == Some(0) {
            return Err(DecodeError::TopicAliasInvalid.into());
        }
        let is_id = |id: &u32| (1..=VARINT_MAX).contains(id);
        if !self.subscription_ids.iter().all(is_id) {
            return Err(Violation::PropertyValue(PropertyId::SubscriptionId).into());
        }
        Ok(())
    }
}

impl Body for PublishParts<'_> {
    fn packet_type(&self) -> PacketType {
        PacketType::Publish
    }

    fn flags(&self) -> u8 {
        let flag = |flag, set| if set { flag } else { 0 };
        flag(DUP, self.dup) | self.qos.value() << QOS_SHIFT | flag(RETAIN, self.retain)
    }

    /// The properties of the message itself are trusted: they were read as those of a PUBLISH.
    fn check(&self, version: Version) -> Result<(), EncodeError> {
        check_flags(self.flags(), version)?;
        check_field(self.topic.as_bytes())?;
        // [MQTT-2.3.1-1] of 3.1.1, [MQTT-2.2.1-4]
        if self.qos > QoS::AtMostOnce && self.packet_id.is_none() {
            return Err(Violation::ZeroPacketId.into());
        }
        if version < Version::V5 {
            return Ok(check_topic(self.topic, false)?);
        }
        let has_alias = self.topic_alias.is_some() || self.properties.topic_alias().is_some();
        check_topic(self.topic, has_alias)?;
        self.check_added()?;
        self.properties.check_fields()
    }

    fn body_len(&self, version: Version) -> usize {
        let packet_id = match self.qos {
            QoS::AtMostOnce => 0,
            QoS::AtLeastOnce | QoS::ExactlyOnce => 2,
        };
        let properties = match version {
            Version::V5 => {
                let len = self.properties_len();
                varint_len(len) + len
            }
            Version::V3 | Version::V4 => 0,
        };
        field_len(self.topic.as_bytes()) + packet_id + properties + self.payload.len()
    }

    fn put_body(&self, version: Version, dst: &mut BytesMut) {
        put_field(dst, self.topic.as_bytes());
        if let (Some(packet_id), true) = (self.packet_id, self.qos > QoS::AtMostOnce) {
            dst.put_u16(packet_id.value());
        }
        if version == Version::V5 {
            put_varint(dst, self.properties_len());
            for property in self.added_properties() {
                property.put(dst);
            }
            for property in self.own_properties() {
                property.put(dst);
            }
        }
        dst.put_slice(self.payload);
    }
}

impl Body for Publish {
    fn packet_type(&self) -> PacketType {
        PacketType::Publish
    }

    fn flags(&self) -> u8 {
        self.parts().flags()
    }

    fn check(&self, version: Version) -> Result<(), EncodeError> {
        self.parts().check(version)?;
        match version {
            Version::V5 => self.properties.check(Context::Publish),
            Version::V3 | Version::V4 => Ok(()),
        }
    }

    fn body_len(&self, version: Version) -> usize {
        self.parts().body_len(version)
    }

    fn put_body(&self, version: Version, dst: &mut BytesMut) {
        self.parts().put_body(version, dst);
    }
}
