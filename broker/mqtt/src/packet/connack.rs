//! CONNACK.

use bytes::{BufMut, BytesMut};

use super::ack::{check_reason_code, read_reason_code};
use super::{Body, PacketType, Version};
use crate::error::{DecodeError, EncodeError, Malformed, Violation};
use crate::property::{Context, Properties};
use crate::reason::ReasonCode;
use crate::wire::Reader;

const SESSION_PRESENT: u8 = 0b0000_0001;

/// The return code of 3.x that promises least.
const SERVER_UNAVAILABLE: u8 = 3;

/// The server accepts the connection or says why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnAck {
    /// Whether the server resumes a session. Not told in 3.1.
    pub session_present: bool,
    /// In 3.x written as the return code that comes nearest, where there is one.
    pub reason: ReasonCode,
    /// What the server grants and assigns, in 5.0.
    pub properties: Properties,
}

impl ConnAck {
    /// One that refuses.
    pub const fn refused(reason: ReasonCode) -> Self {
        Self {
            session_present: false,
            reason,
            properties: Properties::new(),
        }
    }

    pub(super) fn decode(version: Version, body: &mut Reader) -> Result<Self, DecodeError> {
        let flags = body.u8()?;
        // [MQTT-3.2.2-1]; 3.1 does not use this byte.
        if version > Version::V3 && flags & !SESSION_PRESENT != 0 {
            return Err(Malformed::ConnAckFlags(flags).into());
        }
        let reason = match version {
            Version::V5 => read_reason_code(Context::ConnAck, body)?,
            Version::V3 | Version::V4 => {
                let code = body.u8()?;
                let context = Context::ConnAck;
                ReasonCode::from_connack_return_code(code)
                    .ok_or(Violation::ReasonCode { context, code })?
            }
        };
        let properties = match version {
            Version::V5 => Properties::read(body, Context::ConnAck)?,
            Version::V3 | Version::V4 => Properties::new(),
        };
        let connack = Self {
            session_present: version > Version::V3 && flags & SESSION_PRESENT != 0,
            reason,
            properties,
        };
        connack.check_session_present()?;
        Ok(connack)
    }

    /// [MQTT-3.2.2-6], [MQTT-3.2.2-4] of 3.1.1
    fn check_session_present(&self) -> Result<(), Violation> {
        if self.session_present && self.reason != ReasonCode::Success {
            return Err(Violation::SessionPresent);
        }
        Ok(())
    }
}

impl Body for ConnAck {
    fn packet_type(&self) -> PacketType {
        PacketType::ConnAck
    }

    fn check(&self, version: Version) -> Result<(), EncodeError> {
        self.check_session_present()?;
        match version {
            Version::V5 => {
                check_reason_code(self.reason, Context::ConnAck)?;
                self.properties.check(Context::ConnAck)
            }
            // [MQTT-3.2.2-6] of 3.1.1
            Version::V3 | Version::V4 if self.reason.connack_return_code().is_none() => {
                Err(EncodeError::NoReturnCode(self.reason))
            }
            Version::V3 | Version::V4 => Ok(()),
        }
    }

    fn body_len(&self, version: Version) -> usize {
        match version {
            Version::V5 => 2 + self.properties.field_len(),
            Version::V3 | Version::V4 => 2,
        }
    }

    fn put_body(&self, version: Version, dst: &mut BytesMut) {
        dst.put_u8(u8::from(version > Version::V3 && self.session_present));
        match version {
            Version::V5 => {
                dst.put_u8(self.reason.value());
                self.properties.put(dst);
            }
            Version::V3 | Version::V4 => {
                let code = self.reason.connack_return_code();
                debug_assert!(code.is_some(), "checked before");
                dst.put_u8(code.unwrap_or(SERVER_UNAVAILABLE));
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;

    use super::super::testing::*;
    use super::*;
    use crate::packet::QoS;
    use crate::property::{Property, PropertyId};

    fn accepted(session_present: bool) -> ConnAck {
        ConnAck {
            session_present,
            ..ConnAck::refused(ReasonCode::Success)
        }
    }

    #[test]
    fn session_present_is_told_except_in_3_1() {
        both_ways(accepted(true), V4, &[0x20, 2, 1, 0]);
        both_ways(accepted(true), V5, &[0x20, 3, 1, 0, 0]);
        both_ways(accepted(false), V3, &[0x20, 2, 0, 0]);
        assert_eq!(&encoded(accepted(true), V3).unwrap()[..], [0x20, 2, 0, 0]);
        let ignored = from_server(V3, &[0x20, 2, 0xFF, 0]);
        assert_eq!(ignored, Ok(accepted(false).into()));
    }

    #[test]
    fn reasons_become_return_codes_in_3x() {
        for (reason, code) in [
            (ReasonCode::UnsupportedProtocolVersion, 1),
            (ReasonCode::ClientIdentifierNotValid, 2),
            (ReasonCode::ServerUnavailable, 3),
            (ReasonCode::BadUserNameOrPassword, 4),
            (ReasonCode::NotAuthorized, 5),
        ] {
            let refused = ConnAck::refused(reason);
            both_ways(refused.clone(), V3, &[0x20, 2, 0, code]);
            both_ways(refused.clone(), V4, &[0x20, 2, 0, code]);
            both_ways(refused, V5, &[0x20, 3, 0, reason.value(), 0]);
        }
    }

    #[test]
    fn a_refusal_that_3x_cannot_tell_is_not_written() {
        let reason = ReasonCode::MalformedPacket;
        for version in [V3, V4] {
            let written = encoded(ConnAck::refused(reason), version);
            assert_eq!(written, Err(EncodeError::NoReturnCode(reason)));
        }
    }

    #[test]
    fn all_its_properties_are_carried() {
        let connack = ConnAck {
            properties: Properties::from(vec![
                Property::SessionExpiry(1),
                Property::ReceiveMaximum(2),
                Property::MaximumQoS(QoS::AtLeastOnce),
                Property::RetainAvailable(true),
                Property::MaximumPacketSize(0x0102_0304),
                Property::AssignedClientId(text("c")),
                Property::TopicAliasMaximum(3),
                Property::ReasonString(text("r")),
                Property::user(text("u"), text("")),
                Property::WildcardAvailable(false),
                Property::SubscriptionIdsAvailable(true),
                Property::SharedAvailable(true),
                Property::ServerKeepAlive(60),
                Property::ResponseInfo(text("i")),
                Property::ServerReference(text("s")),
                Property::AuthMethod(text("m")),
                Property::AuthData(Bytes::from_static(b"d")),
            ]),
            ..accepted(false)
        };
        let bytes = [
            0x20, 62, 0, 0, 59, 0x11, 0, 0, 0, 1, 0x21, 0, 2, 0x24, 1, 0x25, 1, 0x27, 1, 2, 3, 4,
            0x12, 0, 1, b'c', 0x22, 0, 3, 0x1F, 0, 1, b'r', 0x26, 0, 1, b'u', 0, 0, 0x28, 0, 0x29,
            1, 0x2A, 1, 0x13, 0, 60, 0x1A, 0, 1, b'i', 0x1C, 0, 1, b's', 0x15, 0, 1, b'm', 0x16, 0,
            1, b'd',
        ];
        both_ways(connack, V5, &bytes[..]);
    }

    #[test]
    fn reserved_flags_are_malformed() {
        let refused = Err(Malformed::ConnAckFlags(2).into());
        assert_eq!(from_server(V4, &[0x20, 2, 2, 0]), refused);
        assert_eq!(from_server(V5, &[0x20, 3, 2, 0, 0]), refused);
    }

    #[test]
    fn a_refusal_announces_no_session() {
        let refused = Err(Violation::SessionPresent.into());
        assert_eq!(from_server(V4, &[0x20, 2, 1, 5]), refused);
        assert_eq!(from_server(V5, &[0x20, 3, 1, 0x87, 0]), refused);
    }

    #[test]
    fn unknown_codes_are_protocol_errors() {
        let context = Context::ConnAck;
        let refused = |code| Err(Violation::ReasonCode { context, code }.into());
        assert_eq!(from_server(V4, &[0x20, 2, 0, 6]), refused(6));
        assert_eq!(from_server(V5, &[0x20, 3, 0, 1, 0]), refused(1));
    }

    #[test]
    fn property_values_out_of_range_are_protocol_errors() {
        for (id, value) in [
            (PropertyId::MaximumQoS, &[0x24, 2][..]),
            (PropertyId::MaximumQoS, &[0x24, 3]),
            (PropertyId::RetainAvailable, &[0x25, 2]),
            (PropertyId::SharedAvailable, &[0x2A, 0xFF]),
            (PropertyId::ReceiveMaximum, &[0x21, 0, 0]),
            (PropertyId::MaximumPacketSize, &[0x27, 0, 0, 0, 0]),
        ] {
            let len = value.len() as u8;
            let mut bytes = vec![0x20, len + 3, 0, 0, len];
            bytes.extend_from_slice(value);
            let refused = Err(Violation::PropertyValue(id).into());
            assert_eq!(from_server(V5, &bytes), refused);
        }
    }
}
