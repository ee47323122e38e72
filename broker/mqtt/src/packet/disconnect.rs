//! DISCONNECT.

use bytes::BytesMut;

use super::ack::{check_reason, put_reason, read_reason, reason_len};
use super::{Body, PacketType, Version};
use crate::error::{DecodeError, EncodeError};
use crate::property::{Context, Properties};
use crate::reason::ReasonCode;
use crate::wire::Reader;

/// The sender closes the connection. In 3.x only a client sends it, and it says no more than that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disconnect {
    /// Why; in 3.x always [`ReasonCode::NORMAL_DISCONNECTION`].
    pub reason: ReasonCode,
    /// Session expiry, reason string, user properties and server reference, in 5.0.
    pub properties: Properties,
}

impl Disconnect {
    /// One with this reason and without properties.
    pub const fn new(reason: ReasonCode) -> Self {
        Self {
            reason,
            properties: Properties::new(),
        }
    }

    pub(super) fn decode(version: Version, body: &mut Reader) -> Result<Self, DecodeError> {
        let (reason, properties) = read_reason(Context::Disconnect, version, body)?;
        Ok(Self { reason, properties })
    }
}

impl Body for Disconnect {
    fn packet_type(&self) -> PacketType {
        PacketType::Disconnect
    }

    fn check(&self, version: Version) -> Result<(), EncodeError> {
        check_reason(self.reason, &self.properties, Context::Disconnect, version)
    }

    fn body_len(&self, version: Version) -> usize {
        reason_len(self.reason, &self.properties, version)
    }

    fn put_body(&self, version: Version, dst: &mut BytesMut) {
        put_reason(self.reason, &self.properties, version, dst);
    }
}
