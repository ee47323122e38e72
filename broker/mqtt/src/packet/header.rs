//! The fixed header: packet type, flags and remaining length.

use std::fmt;

use crate::error::Malformed;
use crate::packet::{Version, publish};
use crate::wire::{VarInt, varint_len};

/// The type of a packet, with its number on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum PacketType {
    /// CONNECT.
    Connect = 1,
    /// CONNACK.
    ConnAck = 2,
    /// PUBLISH.
    Publish = 3,
    /// PUBACK.
    PubAck = 4,
    /// PUBREC.
    PubRec = 5,
    /// PUBREL.
    PubRel = 6,
    /// PUBCOMP.
    PubComp = 7,
    /// SUBSCRIBE.
    Subscribe = 8,
    /// SUBACK.
    SubAck = 9,
    /// UNSUBSCRIBE.
    Unsubscribe = 10,
    /// UNSUBACK.
    UnsubAck = 11,
    /// PINGREQ.
    PingReq = 12,
    /// PINGRESP.
    PingResp = 13,
    /// DISCONNECT.
    Disconnect = 14,
    /// AUTH.
    Auth = 15,
}

impl PacketType {
    /// Every type, in the order of their numbers.
    pub const ALL: &[Self] = &[
        Self::Connect,
        Self::ConnAck,
        Self::Publish,
        Self::PubAck,
        Self::PubRec,
        Self::PubRel,
        Self::PubComp,
        Self::Subscribe,
        Self::SubAck,
        Self::Unsubscribe,
        Self::UnsubAck,
        Self::PingReq,
        Self::PingResp,
        Self::Disconnect,
        Self::Auth,
    ];

    /// The name as the standard writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "CONNECT",
            Self::ConnAck => "CONNACK",
            Self::Publish => "PUBLISH",
            Self::PubAck => "PUBACK",
            Self::PubRec => "PUBREC",
            Self::PubRel => "PUBREL",
            Self::PubComp => "PUBCOMP",
            Self::Subscribe => "SUBSCRIBE",
            Self::SubAck => "SUBACK",
            Self::Unsubscribe => "UNSUBSCRIBE",
            Self::UnsubAck => "UNSUBACK",
            Self::PingReq => "PINGREQ",
            Self::PingResp => "PINGRESP",
            Self::Disconnect => "DISCONNECT",
            Self::Auth => "AUTH",
        }
    }

    /// The type with this number; 0 is none.
    pub fn from_value(value: u8) -> Option<Self> {
        Self::ALL.get(usize::from(value).checked_sub(1)?).copied()
    }

    /// Whether only a server sends it.
    pub const fn is_server_only(self) -> bool {
        matches!(
            self,
            Self::ConnAck | Self::SubAck | Self::UnsubAck | Self::PingResp
        )
    }

    /// The tabulated flags [MQTT-2.1.3-1], [MQTT-2.2.2-1] of 3.1.1; those of PUBLISH are its own.
    pub(crate) const fn flags(self) -> u8 {
        match self {
            Self::PubRel | Self::Subscribe | Self::Unsubscribe => 0b0010,
            _ => 0,
        }
    }

    /// Whether the type may come with these flags. 3.1 has DUP in the packets that 3.1 sends with
    /// QoS 1, and does not use their RETAIN.
    fn takes_flags(self, flags: u8, version: Option<Version>) -> bool {
        match (self, version) {
            (Self::Publish, _) => true,
            (Self::PubRel | Self::Subscribe | Self::Unsubscribe, Some(Version::V3)) => {
                flags & 0b0110 == self.flags()
            }
            _ => flags == self.flags(),
        }
    }
}

impl fmt::Display for PacketType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The first byte of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FixedHeader {
    pub(crate) packet_type: PacketType,
    pub(crate) flags: u8,
}

impl FixedHeader {
    /// Reads and checks type and flags, before the length has arrived.
    pub(crate) fn read(first: u8, version: Option<Version>) -> Result<Self, Malformed> {
        let (number, flags) = (first >> 4, first & 0x0F);
        let packet_type = match PacketType::from_value(number) {
            None => return Err(Malformed::PacketType(number)),
            Some(PacketType::Auth) if matches!(version, Some(Version::V3 | Version::V4)) => {
                return Err(Malformed::PacketType(number));
            }
            Some(packet_type) => packet_type,
        };
        if packet_type == PacketType::Publish {
            publish::check_flags(flags, version.unwrap_or(Version::V5))?;
        }
        // [MQTT-2.2.2-2] of 3.1.1, [MQTT-3.6.1-1], [MQTT-3.8.1-1], [MQTT-3.10.1-1],
        // [MQTT-3.14.1-1], [MQTT-3.15.1-1]
        if !packet_type.takes_flags(flags, version) {
            return Err(Malformed::Flags {
                packet: packet_type,
                flags,
            });
        }
        Ok(Self { packet_type, flags })
    }
}

/// How long a packet is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameSize {
    /// The first byte and the remaining length.
    pub(crate) header: usize,
    /// What the remaining length says.
    pub(crate) body: usize,
}

impl FrameSize {
    /// Reads the length that follows the first byte; `None` when it is not all there.
    pub(crate) fn peek(after_first: &[u8]) -> Result<Option<Self>, Malformed> {
        Ok(match VarInt::peek(after_first)? {
            VarInt::Incomplete => None,
            VarInt::Complete { value, len } => Some(Self {
                header: 1 + len,
                body: value as usize,
            }),
        })
    }

    pub(crate) fn total(self) -> usize {
        self.header + self.body
    }

    /// Whether the remaining length takes no byte more than it must.
    pub(crate) fn is_minimal(self) -> bool {
        self.header == 1 + varint_len(self.body)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn types_are_read_back_from_their_numbers() {
        for packet_type in PacketType::ALL {
            let value = *packet_type as u8;
            assert_eq!(PacketType::from_value(value), Some(*packet_type));
        }
        assert_eq!(PacketType::from_value(0), None);
        assert_eq!(PacketType::from_value(16), None);
    }

    #[test]
    fn type_0_is_reserved() {
        for version in [V3, V4, V5] {
            let refused = Err(Malformed::PacketType(0).into());
            assert_eq!(from_client(version, &[0x00]), refused);
        }
    }

    #[test]
    fn a_length_of_five_bytes_is_malformed_after_four() {
        let decoded = from_client(V4, &[0x30, 0xFF, 0xFF, 0xFF, 0xFF]);
        assert_eq!(decoded, Err(Malformed::VarInt.into()));
    }
}
