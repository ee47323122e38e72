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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::error::{Malformed, Violation};
    use crate::property::{Property, PropertyId};

    #[test]
    fn a_normal_disconnection_is_two_bytes_in_every_version() {
        for version in [V3, V4, V5] {
            let normal = Disconnect::new(ReasonCode::NORMAL_DISCONNECTION);
            both_ways(normal, version, &[0xE0, 0]);
        }
    }

    #[test]
    fn the_reason_is_told_in_5_alone() {
        let taken_over = Disconnect::new(ReasonCode::SessionTakenOver);
        both_ways(taken_over.clone(), V5, &[0xE0, 1, 0x8E]);
        assert_eq!(&encoded(taken_over, V4).unwrap()[..], [0xE0, 0]);
    }

    #[test]
    fn all_its_properties_are_carried() {
        let disconnect = Disconnect {
            reason: ReasonCode::DisconnectWithWill,
            properties: Properties::from(vec![
                Property::SessionExpiry(258),
                Property::ReasonString(text("r")),
                Property::user(text("k"), text("v")),
                Property::ServerReference(text("s")),
            ]),
        };
        let bytes = [
            0xE0, 22, 0x04, 20, 0x11, 0, 0, 1, 2, 0x1F, 0, 1, b'r', 0x26, 0, 1, b'k', 0, 1, b'v',
            0x1C, 0, 1, b's',
        ];
        both_ways(disconnect, V5, &bytes);
    }

    #[test]
    fn bad_bodies_are_refused() {
        let trailing = Err(Malformed::TrailingBytes(1).into());
        assert_eq!(from_client(V4, &[0xE0, 1, 0]), trailing);
        let misplaced = Malformed::MisplacedProperty {
            property: PropertyId::WillDelay,
            context: Context::Disconnect,
        };
        let decoded = from_client(V5, &[0xE0, 7, 0, 5, 0x18, 0, 0, 0, 1]);
        assert_eq!(decoded, Err(misplaced.into()));
        let (context, code) = (Context::Disconnect, 0x18);
        let refused = Violation::ReasonCode { context, code };
        assert_eq!(from_client(V5, &[0xE0, 1, code]), Err(refused.into()));
        let flags = Malformed::Flags {
            packet: PacketType::Disconnect,
            flags: 1,
        };
        assert_eq!(from_client(V5, &[0xE1]), Err(flags.into()));
        assert_eq!(from_client(V4, &[0xE1]), Err(flags.into()));
    }
}
