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
