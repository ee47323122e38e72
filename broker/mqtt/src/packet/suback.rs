//! SUBACK.

use bytes::{BufMut, BytesMut};

use super::ack::{check_reason_code, read_reason_code};
use super::{Body, PacketId, PacketType, Version};
use crate::error::{DecodeError, EncodeError, Violation};
use crate::property::{Context, Properties};
use crate::reason::ReasonCode;
use crate::wire::Reader;

/// The server answers each filter of a SUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubAck {
    /// The id of the SUBSCRIBE [MQTT-3.8.4-2].
    pub packet_id: PacketId,
    /// One for each filter, in their order [MQTT-3.9.3-1]. 3.x knows one failure, 0x80.
    pub reasons: Vec<ReasonCode>,
    /// Reason string and user properties, in 5.0.
    pub properties: Properties,
}

impl SubAck {
    pub(super) fn decode(version: Version, body: &mut Reader) -> Result<Self, DecodeError> {
        let packet_id = body.packet_id()?;
        let properties = match version {
            Version::V5 => Properties::read(body, Context::SubAck)?,
            Version::V3 | Version::V4 => Properties::new(),
        };
        let mut reasons = Vec::with_capacity(body.len());
        while !body.is_empty() {
            let reason = read_reason_code(Context::SubAck, body)?;
            check_version(reason, version)?;
            reasons.push(reason);
        }
        let suback = Self {
            packet_id,
            reasons,
            properties,
        };
        suback.check_any()?;
        Ok(suback)
    }

    fn check_any(&self) -> Result<(), Violation> {
        if self.reasons.is_empty() {
            return Err(Violation::Empty(PacketType::SubAck));
        }
        Ok(())
    }
}

/// [MQTT-3.9.3-2] of 3.1.1
fn check_version(reason: ReasonCode, version: Version) -> Result<(), Violation> {
    if version < Version::V5 && reason > ReasonCode::UnspecifiedError {
        return Err(Violation::ReasonCode {
            context: Context::SubAck,
            code: reason.value(),
        });
    }
    Ok(())
}

impl Body for SubAck {
    fn packet_type(&self) -> PacketType {
        PacketType::SubAck
    }

    fn check(&self, version: Version) -> Result<(), EncodeError> {
        self.check_any()?;
        for reason in &self.reasons {
            check_reason_code(*reason, Context::SubAck)?;
        }
        match version {
            Version::V5 => self.properties.check(Context::SubAck),
            Version::V3 | Version::V4 => Ok(()),
        }
    }

    fn body_len(&self, version: Version) -> usize {
        let properties = match version {
            Version::V5 => self.properties.field_len(),
            Version::V3 | Version::V4 => 0,
        };
        2 + properties + self.reasons.len()
    }

    fn put_body(&self, version: Version, dst: &mut BytesMut) {
        dst.put_u16(self.packet_id.value());
        if version == Version::V5 {
            self.properties.put(dst);
        }
        for reason in &self.reasons {
            dst.put_u8(match version {
                Version::V5 => reason.value(),
                // [MQTT-3.8.4-5] of 3.1.1
                Version::V3 | Version::V4 => reason.value().min(0x80),
            });
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::property::Property;

    fn suback(reasons: &[ReasonCode]) -> SubAck {
        SubAck {
            packet_id: id(0x0102),
            reasons: reasons.to_vec(),
            properties: Properties::new(),
        }
    }

    #[test]
    fn codes_stand_in_the_order_of_the_filters() {
        let reasons = [
            ReasonCode::GrantedQoS2,
            ReasonCode::UnspecifiedError,
            ReasonCode::GRANTED_QOS_0,
            ReasonCode::GrantedQoS1,
        ];
        for version in [V3, V4] {
            both_ways(suback(&reasons), version, &[0x90, 6, 1, 2, 2, 0x80, 0, 1]);
        }
        both_ways(suback(&reasons), V5, &[0x90, 7, 1, 2, 0, 2, 0x80, 0, 1]);
    }

    #[test]
    fn every_failure_is_0x80_in_3x() {
        let refused = suback(&[ReasonCode::NotAuthorized, ReasonCode::TopicFilterInvalid]);
        let written = encoded(refused.clone(), V4).unwrap();
        assert_eq!(&written[..], [0x90, 4, 1, 2, 0x80, 0x80]);
        both_ways(refused, V5, &[0x90, 5, 1, 2, 0, 0x87, 0x8F]);
    }

    #[test]
    fn properties_stand_before_the_codes() {
        let mut granted = suback(&[ReasonCode::GrantedQoS1]);
        granted.properties.push(Property::ReasonString(text("r")));
        both_ways(granted, V5, &[0x90, 8, 1, 2, 4, 0x1F, 0, 1, b'r', 1]);
    }

    #[test]
    fn codes_that_a_version_does_not_have_are_refused() {
        let context = Context::SubAck;
        let refused = |code| Err(Violation::ReasonCode { context, code }.into());
        assert_eq!(from_server(V4, &[0x90, 3, 0, 1, 0x87]), refused(0x87));
        assert_eq!(from_server(V4, &[0x90, 3, 0, 1, 3]), refused(3));
        assert_eq!(from_server(V5, &[0x90, 4, 0, 1, 0, 0x11]), refused(0x11));
        let empty = Err(Violation::Empty(PacketType::SubAck).into());
        assert_eq!(from_server(V4, &[0x90, 2, 0, 1]), empty);
        assert!(encoded(suback(&[]), V4).is_err());
    }
}
