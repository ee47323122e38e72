//! PUBACK, PUBREC, PUBREL and PUBCOMP: four packets of one shape, hence one file and one body.

use bytes::{BufMut, BytesMut};

use super::{Body, PacketId, PacketType, Version};
use crate::error::{DecodeError, EncodeError, Violation};
use crate::property::{Context, Properties};
use crate::reason::ReasonCode;
use crate::wire::Reader;

macro_rules! acknowledgements {
    ($($(#[$doc:meta])* $packet:ident;)*) => {
        $($(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $packet {
            /// The id of the PUBLISH.
            pub packet_id: PacketId,
            /// Always success in 3.x.
            pub reason: ReasonCode,
            /// Reason string and user properties, in 5.0.
            pub properties: Properties,
        }

        impl $packet {
            /// One with this reason and without properties.
            pub const fn new(packet_id: PacketId, reason: ReasonCode) -> Self {
                Self { packet_id, reason, properties: Properties::new() }
            }

            pub(super) fn decode(version: Version, body: &mut Reader) -> Result<Self, DecodeError> {
                let (packet_id, reason, properties) = decode(Context::$packet, version, body)?;
                Ok(Self { packet_id, reason, properties })
            }
        }

        impl Body for $packet {
            fn packet_type(&self) -> PacketType {
                PacketType::$packet
            }

            fn check(&self, version: Version) -> Result<(), EncodeError> {
                check_reason(self.reason, &self.properties, Context::$packet, version)
            }

            fn body_len(&self, version: Version) -> usize {
                2 + reason_len(self.reason, &self.properties, version)
            }

            fn put_body(&self, version: Version, dst: &mut BytesMut) {
                dst.put_u16(self.packet_id.value());
                put_reason(self.reason, &self.properties, version, dst);
            }
        })*
    };
}

acknowledgements! {
    /// The receiver has taken over a QoS 1 message, or refused it.
    PubAck;
    /// The receiver has taken over a QoS 2 message, or refused it.
    PubRec;
    /// The sender of a QoS 2 message forgets it.
    PubRel;
    /// The receiver of a QoS 2 message has forgotten its id.
    PubComp;
}

fn decode(
    context: Context,
    version: Version,
    body: &mut Reader,
) -> Result<(PacketId, ReasonCode, Properties), DecodeError> {
    let packet_id = body.packet_id()?;
    let (reason, properties) = read_reason(context, version, body)?;
    Ok((packet_id, reason, properties))
}

/// Reads a reason code and properties at the end of a packet: in 5.0 both may be missing, or the
/// properties alone; 3.x has neither.
pub(super) fn read_reason(
    context: Context,
    version: Version,
    body: &mut Reader,
) -> Result<(ReasonCode, Properties), DecodeError> {
    if version < Version::V5 || body.is_empty() {
        return Ok((ReasonCode::Success, Properties::new()));
    }
    let reason = read_reason_code(context, body)?;
    if body.is_empty() {
        return Ok((reason, Properties::new()));
    }
    Ok((reason, Properties::read(body, context)?))
}

/// Reads a reason code that this packet may carry.
// [MQTT-3.2.2-8], [MQTT-3.4.2-1], [MQTT-3.5.2-1], [MQTT-3.6.2-1], [MQTT-3.7.2-1], [MQTT-3.9.3-2],
// [MQTT-3.11.3-2], [MQTT-3.14.2-1], [MQTT-3.15.2-1]
pub(super) fn read_reason_code(
    context: Context,
    body: &mut Reader,
) -> Result<ReasonCode, DecodeError> {
    let code = body.u8()?;
    match ReasonCode::try_from(code) {
        Ok(reason) if reason.is_allowed_in(context) => Ok(reason),
        _ => Err(Violation::ReasonCode { context, code }.into()),
    }
}

/// Checks that this packet may carry this reason code.
pub(super) fn check_reason_code(reason: ReasonCode, context: Context) -> Result<(), Violation> {
    if reason.is_allowed_in(context) {
        return Ok(());
    }
    let code = reason.value();
    Err(Violation::ReasonCode { context, code })
}

/// Checks what [`read_reason`] would refuse.
pub(super) fn check_reason(
    reason: ReasonCode,
    properties: &Properties,
    context: Context,
    version: Version,
) -> Result<(), EncodeError> {
    if version < Version::V5 {
        return Ok(());
    }
    check_reason_code(reason, context)?;
    properties.check(context)
}

/// Bytes that [`put_reason`] writes.
pub(super) fn reason_len(reason: ReasonCode, properties: &Properties, version: Version) -> usize {
    if version < Version::V5 {
        return 0;
    }
    match (reason, properties.is_empty()) {
        (ReasonCode::Success, true) => 0,
        (_, true) => 1,
        (_, false) => 1 + properties.field_len(),
    }
}

/// Writes reason code and properties in the shortest form that says them.
pub(super) fn put_reason(
    reason: ReasonCode,
    properties: &Properties,
    version: Version,
    dst: &mut BytesMut,
) {
    let len = reason_len(reason, properties, version);
    if len > 0 {
        dst.put_u8(reason.value());
    }
    if len > 1 {
        properties.put(dst);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::error::Malformed;
    use crate::property::Property;

    #[test]
    fn without_reason_only_the_id_is_written() {
        for version in [V3, V4, V5] {
            let ok = ReasonCode::Success;
            both_ways(PubAck::new(id(0x1234), ok), version, &[0x40, 2, 0x12, 0x34]);
            both_ways(PubRec::new(id(1), ok), version, &[0x50, 2, 0, 1]);
            both_ways(PubRel::new(id(1), ok), version, &[0x62, 2, 0, 1]);
            both_ways(PubComp::new(id(1), ok), version, &[0x70, 2, 0, 1]);
        }
    }

    #[test]
    fn a_reason_without_properties_takes_three_bytes_in_5() {
        let ack = PubAck::new(id(1), ReasonCode::NoMatchingSubscribers);
        both_ways(ack, V5, &[0x40, 3, 0, 1, 0x10]);
        let rec = PubRec::new(id(1), ReasonCode::QuotaExceeded);
        both_ways(rec, V5, &[0x50, 3, 0, 1, 0x97]);
        let rel = PubRel::new(id(1), ReasonCode::PacketIdentifierNotFound);
        both_ways(rel, V5, &[0x62, 3, 0, 1, 0x92]);
        let comp = PubComp::new(id(1), ReasonCode::PacketIdentifierNotFound);
        both_ways(comp, V5, &[0x70, 3, 0, 1, 0x92]);
    }

    #[test]
    fn properties_follow_the_reason_in_5() {
        let mut ack = PubAck::new(id(1), ReasonCode::Success);
        ack.properties.push(Property::ReasonString(text("no")));
        ack.properties.push(Property::user(text("a"), text("b")));
        let bytes = [
            0x40, 16, 0, 1, 0, 12, 0x1F, 0, 2, b'n', b'o', 0x26, 0, 1, b'a', 0, 1, b'b',
        ];
        both_ways(ack, V5, &bytes);
    }

    #[test]
    fn reason_and_properties_are_left_out_in_3x() {
        let mut rec = PubRec::new(id(1), ReasonCode::NotAuthorized);
        rec.properties.push(Property::ReasonString(text("no")));
        for version in [V3, V4] {
            let written = encoded(rec.clone(), version).unwrap();
            assert_eq!(&written[..], [0x50, 2, 0, 1]);
        }
    }

    #[test]
    fn longer_forms_of_success_are_read() {
        let expected = Ok(PubAck::new(id(1), ReasonCode::Success).into());
        assert_eq!(from_client(V5, &[0x40, 3, 0, 1, 0]), expected);
        assert_eq!(from_client(V5, &[0x40, 4, 0, 1, 0, 0]), expected);
    }

    #[test]
    fn packet_id_0_is_a_protocol_error() {
        for version in [V3, V4, V5] {
            for first in [0x40, 0x50, 0x62, 0x70] {
                let decoded = from_client(version, &[first, 2, 0, 0]);
                assert_eq!(decoded, Err(Violation::ZeroPacketId.into()));
            }
        }
        let decoded = from_client(V5, &[0x40, 3, 0, 0, 0x10]);
        assert_eq!(decoded, Err(Violation::ZeroPacketId.into()));
    }

    #[test]
    fn too_short_and_too_long_bodies_are_malformed() {
        let truncated = Err(Malformed::Truncated.into());
        for version in [V3, V4, V5] {
            assert_eq!(from_client(version, &[0x40, 0]), truncated);
            assert_eq!(from_client(version, &[0x40, 1, 0]), truncated);
        }
        let trailing = |n| Err(Malformed::TrailingBytes(n).into());
        assert_eq!(from_client(V4, &[0x40, 3, 0, 1, 0]), trailing(1));
        assert_eq!(from_client(V5, &[0x40, 5, 0, 1, 0, 0, 9]), trailing(1));
        assert_eq!(from_client(V5, &[0x40, 4, 0, 1, 0, 1]), truncated);
    }

    #[test]
    fn reason_codes_of_other_packets_are_protocol_errors() {
        let (context, code) = (Context::PubAck, 0x92);
        let refused = Violation::ReasonCode { context, code };
        assert_eq!(from_client(V5, &[0x40, 3, 0, 1, code]), Err(refused.into()));
        let ack = PubAck::new(id(1), ReasonCode::PacketIdentifierNotFound);
        assert_eq!(encoded(ack, V5), Err(refused.into()));
        assert!(from_client(V5, &[0x40, 3, 0, 1, 0x03]).is_err());
        assert!(from_client(V5, &[0x62, 3, 0, 1, 0x10]).is_err());
    }

    #[test]
    fn flags_are_checked_before_the_length_arrives() {
        for (packet, number, good) in [
            (PacketType::PubAck, 4, 0),
            (PacketType::PubRec, 5, 0),
            (PacketType::PubRel, 6, 0b0010),
            (PacketType::PubComp, 7, 0),
        ] {
            for flags in (0..16).filter(|flags| *flags != good) {
                let refused = Malformed::Flags { packet, flags }.into();
                for version in [V4, V5] {
                    let decoded = from_client(version, &[number << 4 | flags]);
                    assert_eq!(decoded, Err(refused));
                }
            }
        }
    }

    #[test]
    fn pubrel_of_3_1_may_be_a_duplicate() {
        let expected = Ok(PubRel::new(id(1), ReasonCode::Success).into());
        assert_eq!(from_client(V3, &[0x6A, 2, 0, 1]), expected);
        assert!(from_client(V4, &[0x6A, 2, 0, 1]).is_err());
        assert!(from_client(V3, &[0x60, 2, 0, 1]).is_err());
    }
}
