//! What can be wrong with a packet. Each error knows the reason code with which a 5.0 server
//! answers it; a 3.x server closes the connection without a word.

use crate::packet::{PacketType, Version};
use crate::property::{Context, PropertyId};
use crate::reason::ReasonCode;
use crate::text::TextError;

/// Why what the peer sent is no packet. The peer erred, and the connection must end
/// [MQTT-4.13.1-1], [MQTT-4.8.0-1] of 3.1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The CONNECT asks for a protocol name or level that is not served. Answer in the form of
    /// [`answer_version`](DecodeError::answer_version).
    #[error("protocol level {level} under this protocol name is not served")]
    UnsupportedVersion {
        /// The protocol level asked for.
        level: u8,
    },
    /// The packet is larger than the limit of the decoder.
    #[error("a packet of {size} bytes, {max} are allowed")]
    PacketTooLarge {
        /// Size of the whole packet in bytes, known from its header.
        size: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// A PUBLISH has topic alias 0.
    #[error("topic alias 0")]
    TopicAliasInvalid,
    /// The bytes cannot be read as a packet.
    #[error("malformed packet: {0}")]
    Malformed(#[from] Malformed),
    /// The packet can be read, but its content is not allowed.
    #[error("protocol error: {0}")]
    Protocol(#[from] Violation),
}

/// What makes a packet malformed (5.0, section 1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The packet type does not exist in this version.
    #[error("packet type {0} is reserved")]
    PacketType(u8),
    /// The flags of the fixed header are not those of the packet type.
    #[error("{packet} with flags {flags:#06b}")]
    Flags {
        /// The packet type.
        packet: PacketType,
        /// The four low bits of the first byte.
        flags: u8,
    },
    /// A variable byte integer is longer than four bytes, or in 5.0 longer than it has to be.
    #[error("a variable byte integer is too long")]
    VarInt,
    /// A field ends beyond the end of the packet or of the property list.
    #[error("the packet ends within a field")]
    Truncated,
    /// Bytes are left over after the last field.
    #[error("{0} bytes too many at the end of the packet")]
    TrailingBytes(usize),
    /// A string breaks the rules of strings.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The flags of CONNECT contradict each other or use reserved bits.
    #[error("connect flags {0:#010b}")]
    ConnectFlags(u8),
    /// The acknowledge flags of CONNACK use reserved bits.
    #[error("acknowledge flags {0:#010b}")]
    ConnAckFlags(u8),
    /// The options of a subscription use reserved bits.
    #[error("subscription options {0:#010b}")]
    SubscribeOptions(u8),
    /// There is no such property.
    #[error("{0:#04x} is no property")]
    UnknownProperty(u32),
    /// The property does not belong into this packet.
    #[error("{property} in {context}")]
    MisplacedProperty {
        /// The property.
        property: PropertyId,
        /// Where it stood.
        context: Context,
    },
}

/// What makes a well-formed packet a protocol error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The first packet of a client is not CONNECT.
    #[error("{0} before CONNECT")]
    ConnectExpected(PacketType),
    /// A client sends CONNECT again.
    #[error("a second CONNECT")]
    SecondConnect,
    /// A client sends what only a server may send.
    #[error("{0} from a client")]
    NotFromClient(PacketType),
    /// A packet id is 0, or is missing where one must be.
    #[error("packet id 0")]
    ZeroPacketId,
    /// SUBSCRIBE, UNSUBSCRIBE or their answers hold no entry.
    #[error("{0} without an entry")]
    Empty(PacketType),
    /// A property stands twice where it may stand once.
    #[error("{0} more than once")]
    RepeatedProperty(PropertyId),
    /// A property has a value outside its range.
    #[error("{0} out of range")]
    PropertyValue(PropertyId),
    /// A property without which the packet has no meaning is missing.
    #[error("{0} is missing")]
    MissingProperty(PropertyId),
    /// A client sends a subscription identifier in PUBLISH.
    #[error("a subscription identifier in PUBLISH from a client")]
    SubscriptionIdFromClient,
    /// The reason code is none of those of the packet.
    #[error("reason code {code:#04x} in {context}")]
    ReasonCode {
        /// The packet.
        context: Context,
        /// The code.
        code: u8,
    },
    /// CONNACK refuses and announces a session.
    #[error("session present in a refusing CONNACK")]
    SessionPresent,
    /// A subscription asks for QoS 3.
    #[error("subscription with QoS 3")]
    SubscribeQoS,
    /// A subscription asks for retain handling 3.
    #[error("subscription with retain handling 3")]
    RetainHandling,
    /// A shared subscription with No Local.
    #[error("no local on a shared subscription")]
    NoLocalOnShared,
    /// PUBLISH names no topic, neither by name nor by alias.
    #[error("PUBLISH without a topic")]
    EmptyTopic,
    /// CONNECT of 3.x has a password and no user name.
    #[error("password without user name")]
    PasswordWithoutUserName,
}

/// Why a packet cannot be written. Our side erred; nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A field does not fit its two-byte length.
    #[error("a field of {0} bytes is longer than 65535")]
    FieldTooLong(usize),
    /// The packet does not fit the four-byte remaining length.
    #[error("a packet of {0} bytes is longer than the protocol allows")]
    PacketTooLarge(usize),
    /// The version has no such packet.
    #[error("MQTT {version} has no {packet}")]
    NotInVersion {
        /// The packet type.
        packet: PacketType,
        /// The version.
        version: Version,
    },
    /// 3.x has no CONNACK return code for the reason: the connection is closed without CONNACK.
    #[error("no return code says {0}")]
    NoReturnCode(ReasonCode),
    /// The receiver would have to refuse the packet.
    #[error("the packet breaks a rule: {0}")]
    Invalid(#[from] DecodeError),
}

impl DecodeError {
    /// The reason code for CONNACK (when the packet was CONNECT) or DISCONNECT.
    pub const fn reason(&self) -> ReasonCode {
        match self {
            Self::UnsupportedVersion { .. } => ReasonCode::UnsupportedProtocolVersion,
            Self::PacketTooLarge { .. } => ReasonCode::PacketTooLarge,
            Self::TopicAliasInvalid => ReasonCode::TopicAliasInvalid,
            Self::Malformed(_) => ReasonCode::MalformedPacket,
            Self::Protocol(_) => ReasonCode::ProtocolError,
        }
    }

    /// In whose form a CONNACK answers an unsupported version, `None` for any other error: 5.0
    /// when the client asked for level 5 or a later one [MQTT-3.1.2-2], 3.1.1 (return code 1) below
    /// that. Bridges mark their level with the bit 0x80, which does not count.
    pub const fn answer_version(&self) -> Option<Version> {
        match self {
            Self::UnsupportedVersion { level } if *level & 0x7F >= 5 => Some(Version::V5),
            Self::UnsupportedVersion { .. } => Some(Version::V4),
            _ => None,
        }
    }
}

impl From<TextError> for DecodeError {
    fn from(error: TextError) -> Self {
        Self::Malformed(Malformed::Text(error))
    }
}

impl From<Malformed> for EncodeError {
    fn from(error: Malformed) -> Self {
        Self::Invalid(error.into())
    }
}

impl From<Violation> for EncodeError {
    fn from(error: Violation) -> Self {
        Self::Invalid(error.into())
    }
}
