//! UNSUBACK.

use bytes::{BufMut, BytesMut};

use super::ack::{check_reason_code, read_reason_code};
use super::{Body, PacketId, PacketType, Version};
use crate::error::{DecodeError, EncodeError, Violation};
use crate::property::{Context, Properties};
use crate::reason::ReasonCode;
use crate::wire::Reader;

/// The server answers an UNSUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsubAck {
    /// The id of the UNSUBSCRIBE [MQTT-3.10.4-5].
    pub packet_id: PacketId,
    /// One for each filter, in their order [MQTT-3.11.3-1]; none in 3.x.
    pub reasons: Vec<ReasonCode>,
    /// Reason string and user properties, in 5.0.
    pub properties: Properties,
}

impl UnsubAck {
    pub(super) fn decode(version: Version, body: &mut Reader) -> Result<Self, DecodeError> {
        let packet_id = body.packet_id()?;
        let mut unsuback = Self {
            packet_id,
            reasons: Vec::new(),
            properties: Properties::new(),
        };
        if version < Version::V5 {
            return Ok(unsuback);
        }
        unsuback.properties = Properties::read(body, Context::UnsubAck)?;
        unsuback.reasons.reserve_exact(body.len());
        while !body.is_empty() {
            let reason = read_reason_code(Context::UnsubAck, body)?;
            unsuback.reasons.push(reason);
        }
        unsuback.check_any()?;
        Ok(unsuback)
    }

    fn check_any(&self) -> Result<(), Violation> {
        if self.reasons.is_empty() {
            return Err(Violation::Empty(PacketType::UnsubAck));
        }
        Ok(())
    }
}

impl Body for UnsubAck {
    fn packet_type(&self) -> PacketType {
        PacketType::UnsubAck
    }

    fn check(&self, version: Version) -> Result<(), EncodeError> {
        if version < Version::V5 {
            return Ok(());
        }
        self.check_any()?;
        for reason in &self.reasons {
            check_reason_code(*reason, Context::UnsubAck)?;
        }
        self.properties.check(Context::UnsubAck)
    }

    fn body_len(&self, version: Version) -> usize {
        match version {
            Version::V5 => 2 + self.properties.field_len() + self.reasons.len(),
            Version::V3 | Version::V4 => 2,
        }
    }

    fn put_body(&self, version: Version, dst: &mut BytesMut) {
        dst.put_u16(self.packet_id.value());
        if version == Version::V5 {
            self.properties.put(dst);
            for reason in &self.reasons {
                dst.put_u8(reason.value());
            }
        }
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
    fn in_3x_it_is_just_the_id() {
        let unsuback = UnsubAck {
            packet_id: id(7),
            reasons: vec![],
            properties: Properties::new(),
        };
        for version in [V3, V4] {
            both_ways(unsuback.clone(), version, &[0xB0, 2, 0, 7]);
        }
        let trailing = Err(Malformed::TrailingBytes(1).into());
        assert_eq!(from_server(V4, &[0xB0, 3, 0, 7, 0]), trailing);
        let empty = Violation::Empty(PacketType::UnsubAck);
        assert_eq!(encoded(unsuback, V5), Err(empty.into()));
        assert_eq!(from_server(V5, &[0xB0, 3, 0, 7, 0]), Err(empty.into()));
    }

    #[test]
    fn in_5_it_has_a_code_for_each_filter() {
        let unsuback = UnsubAck {
            packet_id: id(7),
            reasons: vec![ReasonCode::Success, ReasonCode::NoSubscriptionExisted],
            properties: Properties::from(vec![Property::user(text("a"), text("b"))]),
        };
        let bytes = [0xB0, 12, 0, 7, 7, 0x26, 0, 1, b'a', 0, 1, b'b', 0, 0x11];
        both_ways(unsuback.clone(), V5, &bytes);
        assert_eq!(&encoded(unsuback, V4).unwrap()[..], [0xB0, 2, 0, 7]);
    }

    #[test]
    fn codes_of_other_packets_are_refused() {
        let (context, code) = (Context::UnsubAck, 1);
        let refused = Violation::ReasonCode { context, code };
        let decoded = from_server(V5, &[0xB0, 4, 0, 7, 0, code]);
        assert_eq!(decoded, Err(refused.into()));
    }
}
