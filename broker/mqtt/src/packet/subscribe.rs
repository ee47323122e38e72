//! SUBSCRIBE.

use bytes::{BufMut, BytesMut};

use super::{Body, PacketId, PacketType, QoS, Version};
use crate::error::{DecodeError, EncodeError, Malformed, Violation};
use crate::property::{Context, Properties};
use crate::text::ByteStr;
use crate::wire::{Reader, field_len, put_field};

const QOS: u8 = 0b0000_0011;
const NO_LOCAL: u8 = 0b0000_0100;
const RETAIN_AS_PUBLISHED: u8 = 0b0000_1000;
const RETAIN_HANDLING: u8 = 0b0011_0000;
const RETAIN_HANDLING_SHIFT: u8 = 4;
const RESERVED: u8 = 0b1100_0000;

/// The client asks for the messages of some topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    /// Comes back in SUBACK.
    pub packet_id: PacketId,
    /// Subscription identifier and user properties, in 5.0.
    pub properties: Properties,
    /// At least one; not yet checked to be topic filters.
    pub filters: Vec<(ByteStr, SubscribeOptions)>,
}

/// How a subscription wants its messages. 3.x has the QoS alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SubscribeOptions {
    /// The greatest QoS to deliver with.
    pub qos: QoS,
    /// Whether the client's own messages stay away.
    pub no_local: bool,
    /// Whether forwarded messages keep the RETAIN flag of their publisher.
    pub retain_as_published: bool,
    /// When the retained messages come.
    pub retain_handling: RetainHandling,
}

/// When a subscription gets the retained messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RetainHandling {
    /// At every SUBSCRIBE [MQTT-3.3.1-9].
    #[default]
    SendAlways = 0,
    /// When there was no such subscription before [MQTT-3.3.1-10].
    SendIfNew = 1,
    /// Not at all [MQTT-3.3.1-11].
    Never = 2,
}

impl SubscribeOptions {
    /// The options of a 3.x subscription.
    pub const fn with_qos(qos: QoS) -> Self {
        Self {
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::SendAlways,
        }
    }

    /// The options byte of 5.0.
    pub const fn to_byte(self) -> u8 {
        let mut byte = self.qos.value() | (self.retain_handling as u8) << RETAIN_HANDLING_SHIFT;
        if self.no_local {
            byte |= NO_LOCAL;
        }
        if self.retain_as_published {
            byte |= RETAIN_AS_PUBLISHED;
        }
        byte
    }

    /// Reads the options byte of 5.0.
    pub fn from_byte(byte: u8) -> Result<Self, DecodeError> {
        // [MQTT-3.8.3-5]
        if byte & RESERVED != 0 {
            return Err(Malformed::SubscribeOptions(byte).into());
        }
        let retain_handling = match (byte & RETAIN_HANDLING) >> RETAIN_HANDLING_SHIFT {
            0 => RetainHandling::SendAlways,
            1 => RetainHandling::SendIfNew,
            2 => RetainHandling::Never,
            _ => return Err(Violation::RetainHandling.into()),
        };
        Ok(Self {
            qos: QoS::try_from(byte & QOS).map_err(|_| Violation::SubscribeQoS)?,
            no_local: byte & NO_LOCAL != 0,
            retain_as_published: byte & RETAIN_AS_PUBLISHED != 0,
            retain_handling,
        })
    }

    /// [MQTT-3.8.3-4] of 3.1.1
    fn from_qos_byte(byte: u8) -> Result<Self, Malformed> {
        let qos = QoS::try_from(byte).map_err(|_| Malformed::SubscribeOptions(byte))?;
        Ok(Self::with_qos(qos))
    }
}

impl Subscribe {
    pub(super) fn decode(version: Version, body: &mut Reader) -> Result<Self, DecodeError> {
        let packet_id = body.packet_id()?;
        let properties = match version {
            Version::V5 => Properties::read(body, Context::Subscribe)?,
            Version::V3 | Version::V4 => Properties::new(),
        };
        let mut filters = Vec::with_capacity(usize::from(!body.is_empty()));
        while !body.is_empty() {
            let filter = body.text()?;
            let options = match version {
                Version::V5 => SubscribeOptions::from_byte(body.u8()?)?,
                Version::V3 | Version::V4 => SubscribeOptions::from_qos_byte(body.u8()?)?,
            };
            filters.push((filter, options));
        }
        let subscribe = Self {
            packet_id,
            properties,
            filters,
        };
        subscribe.check_filters(version)?;
        Ok(subscribe)
    }

    fn check_filters(&self, version: Version) -> Result<(), Violation> {
        // [MQTT-3.8.3-2], [MQTT-3.8.3-3] of 3.1.1
        if self.filters.is_empty() {
            return Err(Violation::Empty(PacketType::Subscribe));
        }
        // [MQTT-3.8.3-4]
        let is_refused = |(filter, options): &(ByteStr, SubscribeOptions)| {
            options.no_local && filter.starts_with("$share/")
        };
        if version == Version::V5 && self.filters.iter().any(is_refused) {
            return Err(Violation::NoLocalOnShared);
        }
        Ok(())
    }
}

impl Body for Subscribe {
    fn packet_type(&self) -> PacketType {
        PacketType::Subscribe
    }

    fn check(&self, version: Version) -> Result<(), EncodeError> {
        self.check_filters(version)?;
        match version {
            Version::V5 => self.properties.check(Context::Subscribe),
            Version::V3 | Version::V4 => Ok(()),
        }
    }

    fn body_len(&self, version: Version) -> usize {
        let properties = match version {
            Version::V5 => self.properties.field_len(),
            Version::V3 | Version::V4 => 0,
        };
        let filters = self.filters.iter();
        let filters = filters.map(|(filter, _)| field_len(filter.as_bytes()) + 1);
        2 + properties + filters.sum::<usize>()
    }

    fn put_body(&self, version: Version, dst: &mut BytesMut) {
        dst.put_u16(self.packet_id.value());
        if version == Version::V5 {
            self.properties.put(dst);
        }
        for (filter, options) in &self.filters {
            put_field(dst, filter.as_bytes());
            dst.put_u8(match version {
                Version::V5 => options.to_byte(),
                Version::V3 | Version::V4 => options.qos.value(),
            });
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::property::{Property, PropertyId};

    fn subscribe(filters: &[(&str, SubscribeOptions)]) -> Subscribe {
        let filters = filters.iter();
        Subscribe {
            packet_id: id(0x0A0B),
            properties: Properties::new(),
            filters: filters.map(|(f, options)| (text(f), *options)).collect(),
        }
    }

    #[test]
    fn each_filter_comes_with_its_qos() {
        let packet = subscribe(&[
            ("a/b", SubscribeOptions::with_qos(QoS::AtLeastOnce)),
            ("#", SubscribeOptions::with_qos(QoS::ExactlyOnce)),
        ]);
        let body = [0, 3, b'a', b'/', b'b', 1, 0, 1, b'#', 2];
        for version in [V3, V4] {
            let bytes = [&[0x82, 12, 0x0A, 0x0B][..], &body].concat();
            both_ways(packet.clone(), version, &bytes);
        }
        let bytes = [&[0x82, 13, 0x0A, 0x0B, 0][..], &body].concat();
        both_ways(packet, V5, &bytes);
    }

    #[test]
    fn options_and_identifier_are_carried_in_5() {
        let options = SubscribeOptions {
            qos: QoS::ExactlyOnce,
            no_local: true,
            retain_as_published: true,
            retain_handling: RetainHandling::Never,
        };
        let mut packet = subscribe(&[("a", options)]);
        packet.properties.push(Property::SubscriptionId(300));
        let bytes = [
            0x82,
            10,
            0x0A,
            0x0B,
            3,
            0x0B,
            0xAC,
            2,
            0,
            1,
            b'a',
            0b0010_1110,
        ];
        both_ways(packet.clone(), V5, &bytes);
        let written = encoded(packet, V4).unwrap();
        assert_eq!(&written[..], [0x82, 6, 0x0A, 0x0B, 0, 1, b'a', 2]);
    }

    #[test]
    fn reserved_bits_are_malformed_and_values_3_are_protocol_errors() {
        let v5 = |options| from_client(V5, &[0x82, 7, 0, 1, 0, 0, 1, b'a', options]);
        let malformed = |byte| Err(Malformed::SubscribeOptions(byte).into());
        assert_eq!(v5(0x40), malformed(0x40));
        assert_eq!(v5(0x80), malformed(0x80));
        assert_eq!(v5(0x03), Err(Violation::SubscribeQoS.into()));
        assert_eq!(v5(0x30), Err(Violation::RetainHandling.into()));
        for version in [V3, V4] {
            for byte in [3, 4, 0x80] {
                let bytes = [0x82, 6, 0, 1, 0, 1, b'a', byte];
                assert_eq!(from_client(version, &bytes), malformed(byte));
            }
        }
    }

    #[test]
    fn no_local_on_a_shared_subscription_is_a_protocol_error() {
        let options = SubscribeOptions {
            no_local: true,
            ..SubscribeOptions::default()
        };
        let shared = subscribe(&[("$share/g/a", options)]);
        let refused = Violation::NoLocalOnShared;
        assert_eq!(encoded(shared.clone(), V5), Err(refused.into()));
        let mut bytes = vec![0x82, 16, 0, 1, 0, 0, 10];
        bytes.extend_from_slice(b"$share/g/a\x04");
        assert_eq!(from_client(V5, &bytes), Err(refused.into()));
        assert!(encoded(shared, V4).is_ok());
    }

    #[test]
    fn no_filter_is_a_protocol_error() {
        let empty = Violation::Empty(PacketType::Subscribe);
        assert_eq!(from_client(V4, &[0x82, 2, 0, 1]), Err(empty.into()));
        assert_eq!(from_client(V5, &[0x82, 3, 0, 1, 0]), Err(empty.into()));
        assert_eq!(encoded(subscribe(&[]), V4), Err(empty.into()));
    }

    #[test]
    fn a_filter_without_options_is_truncated() {
        let decoded = from_client(V4, &[0x82, 5, 0, 1, 0, 1, b'a']);
        assert_eq!(decoded, Err(Malformed::Truncated.into()));
    }

    #[test]
    fn one_identifier_of_at_least_1_is_taken() {
        let properties = |list: &[u8]| {
            let len = list.len() as u8;
            let mut bytes = vec![0x82, len + 7, 0, 1, len];
            bytes.extend_from_slice(list);
            bytes.extend_from_slice(&[0, 1, b'a', 0]);
            from_client(V5, &bytes)
        };
        assert!(properties(&[0x0B, 1]).is_ok());
        let id = PropertyId::SubscriptionId;
        assert_eq!(
            properties(&[0x0B, 0]),
            Err(Violation::PropertyValue(id).into())
        );
        assert_eq!(
            properties(&[0x0B, 1, 0x0B, 2]),
            Err(Violation::RepeatedProperty(id).into())
        );
    }

    #[test]
    fn flags_are_0010_and_may_say_dup_in_3_1() {
        let bytes = |first| [first, 6, 0, 1, 0, 1, b'a', 0];
        assert!(from_client(V3, &bytes(0x8A)).is_ok());
        for first in [0x80, 0x81, 0x83, 0x86, 0x8A] {
            for version in [V4, V5] {
                let flags = first & 0x0F;
                let packet = PacketType::Subscribe;
                let refused = Malformed::Flags { packet, flags };
                assert_eq!(from_client(version, &[first]), Err(refused.into()));
            }
        }
    }
}
