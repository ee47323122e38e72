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

/// The first bytes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FixedHeader {
    pub(crate) packet_type: PacketType,
    pub(crate) flags: u8,
    /// Bytes of the header itself, and the remaining length; `None` as long as it is not all there.
    pub(crate) size: Option<FrameSize>,
}

/// How long a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameSize {
    pub(crate) header: usize,
    pub(crate) body: usize,
}

impl FixedHeader {
    /// Reads the header at the head of `src`; `None` when there is not a single byte. Type and
    /// flags are checked before the length has arrived.
    pub(crate) fn peek(src: &[u8], version: Option<Version>) -> Result<Option<Self>, Malformed> {
        let Some((first, rest)) = src.split_first() else {
            return Ok(None);
        };
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
        let size = match VarInt::peek(rest)? {
            VarInt::Incomplete => None,
            VarInt::Complete { value, len } => Some(FrameSize {
                header: 1 + len,
                body: value as usize,
            }),
        };
        Ok(Some(Self {
            packet_type,
            flags,
            size,
        }))
    }
}

impl FrameSize {
    pub(crate) fn total(self) -> usize {
        self.header + self.body
    }

    /// Whether the remaining length takes no byte more than it must.
    pub(crate) fn is_minimal(self) -> bool {
        self.header == 1 + varint_len(self.body)
    }
}
