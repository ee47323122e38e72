//! AUTH, which only 5.0 has.

use bytes::BytesMut;

use super::ack::{check_reason, put_reason, read_reason, reason_len};
use super::{Body, PacketType, Version};
use crate::error::{DecodeError, EncodeError, Violation};
use crate::property::{Context, Properties, PropertyId};
use crate::reason::ReasonCode;
use crate::wire::Reader;

/// A step of enhanced authentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// Success, continue authentication or re-authenticate.
    pub reason: ReasonCode,
    /// Authentication method and data, reason string and user properties.
    pub properties: Properties,
}

impl Auth {
    pub(super) fn decode(body: &mut Reader) -> Result<Self, DecodeError> {
        let (reason, properties) = read_reason(Context::Auth, Version::V5, body)?;
        let auth = Self { reason, properties };
        auth.check_method()?;
        Ok(auth)
    }

    /// The method must be named (5.0, section 3.15.2.2.2), except in the form that leaves all out.
    fn check_method(&self) -> Result<(), Violation> {
        let is_bare = self.reason == ReasonCode::Success && self.properties.is_empty();
        if is_bare || self.properties.auth_method().is_some() {
            return Ok(());
        }
        Err(Violation::MissingProperty(PropertyId::AuthMethod))
    }
}

impl Body for Auth {
    fn packet_type(&self) -> PacketType {
        PacketType::Auth
    }

    fn check(&self, version: Version) -> Result<(), EncodeError> {
        if version < Version::V5 {
            return Err(EncodeError::NotInVersion {
                packet: PacketType::Auth,
                version,
            });
        }
        check_reason(self.reason, &self.properties, Context::Auth, version)?;
        Ok(self.check_method()?)
    }

    fn body_len(&self, version: Version) -> usize {
        reason_len(self.reason, &self.properties, version)
    }

    fn put_body(&self, version: Version, dst: &mut BytesMut) {
        put_reason(self.reason, &self.properties, version, dst);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;

    use super::super::testing::*;
    use super::*;
    use crate::error::Malformed;
    use crate::property::Property;

    fn challenge() -> Auth {
        Auth {
            reason: ReasonCode::ContinueAuthentication,
            properties: Properties::from(vec![
                Property::AuthMethod(text("m")),
                Property::AuthData(Bytes::from_static(&[1, 0])),
            ]),
        }
    }

    #[test]
    fn method_and_data_are_carried() {
        let bytes = [0xF0, 11, 0x18, 9, 0x15, 0, 1, b'm', 0x16, 0, 2, 1, 0];
        both_ways(challenge(), V5, &bytes);
    }

    #[test]
    fn bare_success_is_two_bytes() {
        let auth = Auth {
            reason: ReasonCode::Success,
            properties: Properties::new(),
        };
        both_ways(auth, V5, &[0xF0, 0]);
    }

    #[test]
    fn a_missing_method_is_a_protocol_error() {
        let missing = Violation::MissingProperty(PropertyId::AuthMethod);
        assert_eq!(from_client(V5, &[0xF0, 2, 0x18, 0]), Err(missing.into()));
        assert_eq!(from_client(V5, &[0xF0, 1, 0x19]), Err(missing.into()));
        let mut auth = challenge();
        auth.properties.remove(PropertyId::AuthMethod);
        assert_eq!(encoded(auth, V5), Err(missing.into()));
    }

    #[test]
    fn it_does_not_exist_in_3x() {
        for version in [V3, V4] {
            let refused = Err(Malformed::PacketType(15).into());
            assert_eq!(from_client(version, &[0xF0]), refused);
            let packet = PacketType::Auth;
            let written = encoded(challenge(), version);
            assert_eq!(written, Err(EncodeError::NotInVersion { packet, version }));
        }
    }

    #[test]
    fn only_its_three_reasons_are_taken() {
        let (context, code) = (Context::Auth, 0x87);
        let refused = Violation::ReasonCode { context, code };
        assert_eq!(from_client(V5, &[0xF0, 1, code]), Err(refused.into()));
        let flags = Malformed::Flags {
            packet: PacketType::Auth,
            flags: 8,
        };
        assert_eq!(from_client(V5, &[0xF8]), Err(flags.into()));
    }
}
