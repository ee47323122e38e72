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
    /// All of the body but the payload, which is its end.
    pub(crate) fn put_head(&self, version: Version, dst: &mut BytesMut) {
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
    }

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
        self.put_head(version, dst);
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::codec::{encode_publish, publish_len};

    fn publish(qos: QoS, packet_id: Option<u16>) -> Publish {
        Publish {
            dup: false,
            qos,
            retain: false,
            topic: text("a/b"),
            packet_id: packet_id.map(id),
            properties: Properties::new(),
            payload: Bytes::from_static(b"hi"),
        }
    }

    fn parts<'a>(properties: &'a Properties) -> PublishParts<'a> {
        PublishParts {
            dup: false,
            qos: QoS::AtLeastOnce,
            retain: true,
            topic: "t",
            packet_id: Some(id(5)),
            properties,
            subscription_ids: &[],
            topic_alias: None,
            message_expiry_s: None,
            payload: b"p",
        }
    }

    fn written(parts: &PublishParts<'_>, version: Version) -> Result<BytesMut, EncodeError> {
        let mut dst = BytesMut::new();
        let result = encode_publish(parts, version, &mut dst);
        match result {
            Ok(()) => assert_eq!(dst.len(), publish_len(parts, version)),
            Err(_) => assert!(dst.is_empty()),
        }
        result.map(|()| dst)
    }

    #[test]
    fn qos_0_has_no_packet_id() {
        let packet = publish(QoS::AtMostOnce, None);
        let bytes = b"\x30\x07\0\x03a/bhi";
        both_ways(packet.clone(), V3, bytes);
        both_ways(packet.clone(), V4, bytes);
        both_ways(packet, V5, b"\x30\x08\0\x03a/b\0hi");
    }

    #[test]
    fn flags_and_id_stand_in_every_version() {
        let packet = Publish {
            dup: true,
            retain: true,
            ..publish(QoS::ExactlyOnce, Some(0x1234))
        };
        let bytes = b"\x3D\x09\0\x03a/b\x12\x34hi";
        both_ways(packet.clone(), V3, bytes);
        both_ways(packet.clone(), V4, bytes);
        both_ways(packet, V5, b"\x3D\x0A\0\x03a/b\x12\x34\0hi");
        let packet = publish(QoS::AtLeastOnce, Some(1));
        both_ways(packet, V4, b"\x32\x09\0\x03a/b\0\x01hi");
    }

    #[test]
    fn an_empty_payload_is_a_payload() {
        let packet = Publish {
            payload: Bytes::new(),
            ..publish(QoS::AtMostOnce, None)
        };
        both_ways(packet, V4, b"\x30\x05\0\x03a/b");
    }

    #[test]
    fn all_its_properties_are_carried() {
        let packet = Publish {
            properties: Properties::from(vec![
                Property::PayloadFormat(1),
                Property::MessageExpiry(9),
                Property::TopicAlias(2),
                Property::ResponseTopic(text("r")),
                Property::CorrelationData(Bytes::from_static(b"c")),
                Property::user(text("k"), text("1")),
                Property::user(text("k"), text("1")),
                Property::SubscriptionId(1),
                Property::SubscriptionId(268_435_455),
                Property::ContentType(text("t")),
            ]),
            ..publish(QoS::AtMostOnce, None)
        };
        let mut bytes = b"\x30\x00\0\x03a/b\x00".to_vec();
        bytes.extend_from_slice(&[0x01, 1, 0x02, 0, 0, 0, 9, 0x23, 0, 2, 0x08, 0, 1, b'r']);
        bytes.extend_from_slice(&[0x09, 0, 1, b'c', 0x26, 0, 1, b'k', 0, 1, b'1']);
        bytes.extend_from_slice(&[0x26, 0, 1, b'k', 0, 1, b'1', 0x0B, 1]);
        bytes.extend_from_slice(&[0x0B, 0xFF, 0xFF, 0xFF, 0x7F, 0x03, 0, 1, b't']);
        bytes[7] = bytes.len() as u8 - 8;
        bytes.extend_from_slice(b"hi");
        bytes[1] = bytes.len() as u8 - 2;
        both_ways(packet, V5, &bytes);
    }

    #[test]
    fn qos_3_is_malformed_before_the_length_arrives() {
        for version in [V3, V4, V5] {
            for flags in [0b0110, 0b0111, 0b1110, 0b1111] {
                let packet = PacketType::Publish;
                let refused = Malformed::Flags { packet, flags };
                let decoded = from_client(version, &[0x30 | flags]);
                assert_eq!(decoded, Err(refused.into()));
            }
        }
    }

    #[test]
    fn dup_with_qos_0_is_malformed_except_in_3_1() {
        let refused = Malformed::Flags {
            packet: PacketType::Publish,
            flags: 0b1000,
        };
        assert_eq!(from_client(V4, &[0x38]), Err(refused.into()));
        assert_eq!(from_client(V5, &[0x38]), Err(refused.into()));
        let packet = Publish {
            dup: true,
            ..publish(QoS::AtMostOnce, None)
        };
        both_ways(packet.clone(), V3, b"\x38\x07\0\x03a/bhi");
        assert_eq!(encoded(packet, V4), Err(refused.into()));
    }

    #[test]
    fn a_missing_or_zero_packet_id_is_refused() {
        let zero = Violation::ZeroPacketId;
        for version in [V3, V4, V5] {
            let decoded = from_client(version, b"\x32\x06\0\x01a\0\0\0");
            assert_eq!(decoded, Err(zero.into()));
            let packet = publish(QoS::AtLeastOnce, None);
            assert_eq!(encoded(packet, version), Err(zero.into()));
        }
        let decoded = from_client(V4, b"\x32\x03\0\x01a");
        assert_eq!(decoded, Err(Malformed::Truncated.into()));
    }

    #[test]
    fn an_empty_topic_needs_an_alias() {
        let empty = Violation::EmptyTopic;
        assert_eq!(from_client(V4, b"\x30\x03\0\0x"), Err(empty.into()));
        assert_eq!(from_client(V5, b"\x30\x03\0\0\0"), Err(empty.into()));
        let packet = Publish {
            topic: ByteStr::new(),
            properties: Properties::from(vec![Property::TopicAlias(1)]),
            ..publish(QoS::AtMostOnce, None)
        };
        both_ways(packet.clone(), V5, b"\x30\x08\0\0\x03\x23\0\x01hi");
        assert_eq!(encoded(packet, V4), Err(empty.into()));
    }

    #[test]
    fn alias_0_has_its_own_reason() {
        let decoded = from_client(V5, b"\x30\x07\0\x01a\x03\x23\0\0");
        assert_eq!(decoded, Err(DecodeError::TopicAliasInvalid));
    }

    #[test]
    fn bad_property_values_are_protocol_errors() {
        let with = |list: &[u8]| {
            let len = list.len() as u8;
            let bytes = [&[0x30, len + 4, 0, 1, b'a', len], list].concat();
            from_client(V5, &bytes)
        };
        for (id, list) in [
            (PropertyId::PayloadFormat, &[0x01, 2][..]),
            (PropertyId::ResponseTopic, &[0x08, 0, 1, b'#']),
            (PropertyId::ResponseTopic, &[0x08, 0, 1, b'+']),
            (PropertyId::ResponseTopic, &[0x08, 0, 0]),
        ] {
            assert_eq!(with(list), Err(Violation::PropertyValue(id).into()));
        }
        let repeated = Violation::RepeatedProperty(PropertyId::MessageExpiry);
        let list = [0x02, 0, 0, 0, 1, 0x02, 0, 0, 0, 1];
        assert_eq!(with(&list), Err(repeated.into()));
        let from_client = Violation::SubscriptionIdFromClient;
        assert_eq!(with(&[0x0B, 1]), Err(from_client.into()));
    }

    #[test]
    fn payload_and_topic_share_the_read_buffer_until_compacted() {
        let mut decoder = crate::codec::Decoder::after_connect(V5, 1 << 20);
        let mut src = BytesMut::from(&b"\x30\x0D\0\x01t\x07\x26\0\x01k\0\x01vhi"[..]);
        let start = src.as_ptr() as usize;
        let end = start + src.len();
        let Some(super::super::Packet::Publish(packet)) = decoder.decode(&mut src).unwrap() else {
            panic!("a PUBLISH");
        };
        let shares = |bytes: &[u8]| (start..end).contains(&(bytes.as_ptr() as usize));
        assert!(shares(packet.topic.as_bytes()));
        assert!(shares(&packet.payload));
        let own = packet.clone().compact();
        assert_eq!(own, packet);
        assert!(!shares(own.topic.as_bytes()));
        assert!(!shares(&own.payload));
        let pair = own.properties.user().next().unwrap();
        assert!(!shares(pair.name.as_bytes()) && !shares(pair.value.as_bytes()));
    }

    #[test]
    fn a_delivery_of_3x_has_nothing_of_5() {
        let properties = Properties::from(vec![Property::PayloadFormat(1)]);
        let delivery = PublishParts {
            subscription_ids: &[1],
            topic_alias: Some(1),
            message_expiry_s: Some(1),
            ..parts(&properties)
        };
        for version in [V3, V4] {
            let bytes = written(&delivery, version).unwrap();
            assert_eq!(&bytes[..], b"\x33\x06\0\x01t\0\x05p");
        }
    }

    #[test]
    fn a_delivery_adds_alias_identifiers_and_the_lifetime_left() {
        let properties = Properties::from(vec![
            Property::MessageExpiry(100),
            Property::ContentType(text("c")),
        ]);
        let delivery = PublishParts {
            subscription_ids: &[1, 200],
            topic_alias: Some(3),
            message_expiry_s: Some(7),
            ..parts(&properties)
        };
        let bytes = written(&delivery, V5).unwrap();
        let expected = [
            0x33, 24, 0, 1, b't', 0, 5, 17, 0x02, 0, 0, 0, 7, 0x23, 0, 3, 0x0B, 1, 0x0B, 0xC8, 1,
            0x03, 0, 1, b'c', b'p',
        ];
        assert_eq!(&bytes[..], expected);
    }

    #[test]
    fn a_delivery_keeps_the_lifetime_of_the_message_otherwise() {
        let properties = Properties::from(vec![Property::MessageExpiry(100)]);
        let bytes = written(&parts(&properties), V5).unwrap();
        assert_eq!(&bytes[7..], [5, 0x02, 0, 0, 0, 100, b'p']);
    }

    #[test]
    fn a_delivery_by_alias_needs_no_topic() {
        let none = Properties::new();
        let delivery = PublishParts {
            topic: "",
            topic_alias: Some(9),
            ..parts(&none)
        };
        let bytes = written(&delivery, V5).unwrap();
        assert_eq!(&bytes[..], b"\x33\x09\0\0\0\x05\x03\x23\0\x09p");
        assert_eq!(written(&delivery, V4), Err(Violation::EmptyTopic.into()));
    }

    #[test]
    fn a_delivery_that_breaks_a_rule_is_not_written() {
        let none = Properties::new();
        let long = "x".repeat(65_536);
        let zero_alias = EncodeError::Invalid(DecodeError::TopicAliasInvalid);
        let bad_id = Violation::PropertyValue(PropertyId::SubscriptionId);
        for (delivery, error) in [
            (
                PublishParts {
                    packet_id: None,
                    ..parts(&none)
                },
                Violation::ZeroPacketId.into(),
            ),
            (
                PublishParts {
                    topic: &long,
                    ..parts(&none)
                },
                EncodeError::FieldTooLong(65_536),
            ),
            (
                PublishParts {
                    topic_alias: Some(0),
                    ..parts(&none)
                },
                zero_alias,
            ),
            (
                PublishParts {
                    subscription_ids: &[0],
                    ..parts(&none)
                },
                bad_id.into(),
            ),
            (
                PublishParts {
                    subscription_ids: &[268_435_456],
                    ..parts(&none)
                },
                bad_id.into(),
            ),
        ] {
            assert_eq!(written(&delivery, V5), Err(error));
        }
    }
}
