//! The properties of MQTT 5.0. One table says of each its number, its type, the packets that may
//! carry it and whether it may stand there twice; reading, writing and all checks follow it.

mod kind;
mod list;

use std::fmt;

use bytes::{Bytes, BytesMut};

use crate::error::{DecodeError, Malformed, Violation};
use crate::packet::{PacketType, QoS};
use crate::text::ByteStr;
use crate::wire::Reader;
use kind::Kind;
pub use list::Properties;

/// Where properties and reason codes stand: a packet, or the will inside CONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Context {
    /// CONNECT itself.
    Connect,
    /// The will in CONNECT.
    Will,
    /// CONNACK.
    ConnAck,
    /// PUBLISH, as a server sends it.
    Publish,
    /// PUBLISH, as a client sends it: without subscription identifiers.
    ClientPublish,
    /// PUBACK.
    PubAck,
    /// PUBREC.
    PubRec,
    /// PUBREL.
    PubRel,
    /// PUBCOMP.
    PubComp,
    /// SUBSCRIBE.
    Subscribe,
    /// SUBACK.
    SubAck,
    /// UNSUBSCRIBE.
    Unsubscribe,
    /// UNSUBACK.
    UnsubAck,
    /// DISCONNECT.
    Disconnect,
    /// AUTH.
    Auth,
}

impl Context {
    /// A set of just this one.
    pub(crate) const fn bit(self) -> u16 {
        1 << self as u16
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let packet = match self {
            Self::Connect => PacketType::Connect,
            Self::Will => return f.write_str("will"),
            Self::ConnAck => PacketType::ConnAck,
            Self::Publish | Self::ClientPublish => PacketType::Publish,
            Self::PubAck => PacketType::PubAck,
            Self::PubRec => PacketType::PubRec,
            Self::PubRel => PacketType::PubRel,
            Self::PubComp => PacketType::PubComp,
            Self::Subscribe => PacketType::Subscribe,
            Self::SubAck => PacketType::SubAck,
            Self::Unsubscribe => PacketType::Unsubscribe,
            Self::UnsubAck => PacketType::UnsubAck,
            Self::Disconnect => PacketType::Disconnect,
            Self::Auth => PacketType::Auth,
        };
        packet.fmt(f)
    }
}

/// A pair of strings whose meaning is the application's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UserProperty {
    /// The name; need not be unique.
    pub name: ByteStr,
    /// The value.
    pub value: ByteStr,
}

macro_rules! properties {
    ($($id:literal $variant:ident($value:ty) $kind:ident $name:literal
        in $($context:ident)|+ $(, again in $($again:ident)|+)?;)*) => {
        /// The number of a property (5.0, section 2.2.2.2).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum PropertyId {
            $(#[doc = concat!("`", stringify!($id), "`: ", $name, ".")] $variant = $id,)*
        }

        /// A property with its value.
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub enum Property {
            $(#[doc = concat!("`", stringify!($id), "`: ", $name, ".")] $variant($value),)*
        }

        impl PropertyId {
            /// Every property.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// What the standard calls it, in lower case.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// The property with this number.
            pub const fn from_value(id: u32) -> Option<Self> {
                match id {
                    $($id => Some(Self::$variant),)*
                    _ => None,
                }
            }

            const fn contexts(self) -> u16 {
                match self {
                    $(Self::$variant => $(Context::$context.bit())|+,)*
                }
            }

            const fn contexts_of_repeats(self) -> u16 {
                match self {
                    $(Self::$variant => 0 $($(| Context::$again.bit())+)?,)*
                }
            }
        }

        impl Property {
            /// The number of the property.
            pub const fn id(&self) -> PropertyId {
                match self {
                    $(Self::$variant(_) => PropertyId::$variant,)*
                }
            }

            /// Bytes that the property takes, with its number.
            pub fn encoded_len(&self) -> usize {
                1 + match self {
                    $(Self::$variant(value) => kind::$kind::encoded_len(value),)*
                }
            }

            /// Writes the property with its number. Binary values must not be longer than 65,535
            /// bytes.
            pub(crate) fn put(&self, dst: &mut BytesMut) {
                dst.extend_from_slice(&[self.id() as u8]);
                match self {
                    $(Self::$variant(value) => kind::$kind::put(value, dst),)*
                }
            }

            pub(crate) fn compact(&self) -> Self {
                match self {
                    $(Self::$variant(value) => Self::$variant(kind::$kind::compact(value)),)*
                }
            }

            fn read_value(id: PropertyId, reader: &mut Reader) -> Result<Self, DecodeError> {
                Ok(match id {
                    $(PropertyId::$variant => Self::$variant(kind::$kind::read(id, reader)?),)*
                })
            }
        }
    };
}

properties! {
    0x01 PayloadFormat(u8) Byte "payload format indicator" in Will | Publish | ClientPublish;
    0x02 MessageExpiry(u32) FourBytes "message expiry interval" in Will | Publish | ClientPublish;
    0x03 ContentType(ByteStr) Text "content type" in Will | Publish | ClientPublish;
    0x08 ResponseTopic(ByteStr) Text "response topic" in Will | Publish | ClientPublish;
    0x09 CorrelationData(Bytes) Binary "correlation data" in Will | Publish | ClientPublish;
    0x0B SubscriptionId(u32) VarInt "subscription identifier" in Publish | Subscribe, again in Publish;
    0x11 SessionExpiry(u32) FourBytes "session expiry interval" in Connect | ConnAck | Disconnect;
    0x12 AssignedClientId(ByteStr) Text "assigned client identifier" in ConnAck;
    0x13 ServerKeepAlive(u16) TwoBytes "server keep alive" in ConnAck;
    0x15 AuthMethod(ByteStr) Text "authentication method" in Connect | ConnAck | Auth;
    0x16 AuthData(Bytes) Binary "authentication data" in Connect | ConnAck | Auth;
    0x17 RequestProblemInfo(bool) Flag "request problem information" in Connect;
    0x18 WillDelay(u32) FourBytes "will delay interval" in Will;
    0x19 RequestResponseInfo(bool) Flag "request response information" in Connect;
    0x1A ResponseInfo(ByteStr) Text "response information" in ConnAck;
    0x1C ServerReference(ByteStr) Text "server reference" in ConnAck | Disconnect;
    0x1F ReasonString(ByteStr) Text "reason string" in ConnAck | PubAck | PubRec | PubRel | PubComp | SubAck | UnsubAck | Disconnect | Auth;
    0x21 ReceiveMaximum(u16) TwoBytes "receive maximum" in Connect | ConnAck;
    0x22 TopicAliasMaximum(u16) TwoBytes "topic alias maximum" in Connect | ConnAck;
    0x23 TopicAlias(u16) TwoBytes "topic alias" in Publish | ClientPublish;
    0x24 MaximumQoS(QoS) Level "maximum QoS" in ConnAck;
    0x25 RetainAvailable(bool) Flag "retain available" in ConnAck;
    0x26 User(UserProperty) Pair "user property"
        in Connect | Will | ConnAck | Publish | ClientPublish | PubAck | PubRec | PubRel | PubComp | Subscribe | SubAck | Unsubscribe | UnsubAck | Disconnect | Auth,
        again in Connect | Will | ConnAck | Publish | ClientPublish | PubAck | PubRec | PubRel | PubComp | Subscribe | SubAck | Unsubscribe | UnsubAck | Disconnect | Auth;
    0x27 MaximumPacketSize(u32) FourBytes "maximum packet size" in Connect | ConnAck;
    0x28 WildcardAvailable(bool) Flag "wildcard subscription available" in ConnAck;
    0x29 SubscriptionIdsAvailable(bool) Flag "subscription identifiers available" in ConnAck;
    0x2A SharedAvailable(bool) Flag "shared subscription available" in ConnAck;
}

impl PropertyId {
    /// The number itself.
    pub const fn value(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for PropertyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Property {
    /// A user property.
    pub fn user(name: ByteStr, value: ByteStr) -> Self {
        Self::User(UserProperty { name, value })
    }

    fn read(reader: &mut Reader, context: Context, seen: &mut Seen) -> Result<Self, DecodeError> {
        let number = reader.varint()?;
        let id = PropertyId::from_value(number).ok_or(Malformed::UnknownProperty(number))?;
        seen.admit(id, context)?;
        let property = Self::read_value(id, reader)?;
        property.check_value()?;
        Ok(property)
    }

    /// The ranges that the types leave open.
    fn check_value(&self) -> Result<(), DecodeError> {
        let valid = match self {
            Self::PayloadFormat(format) => *format <= 1,
            Self::SubscriptionId(id) => (1..=crate::wire::VARINT_MAX).contains(id),
            Self::ReceiveMaximum(maximum) => *maximum > 0,
            Self::MaximumPacketSize(maximum) => *maximum > 0,
            Self::MaximumQoS(qos) => *qos < QoS::ExactlyOnce,
            // [MQTT-3.3.2-14], [MQTT-4.7.3-1]
            Self::ResponseTopic(topic) => !topic.is_empty() && !topic.contains(['+', '#']),
            // [MQTT-3.3.2-8]
            Self::TopicAlias(0) => return Err(DecodeError::TopicAliasInvalid),
            _ => true,
        };
        if valid {
            return Ok(());
        }
        Err(Violation::PropertyValue(self.id()).into())
    }
}

/// Which properties a list has had so far.
#[derive(Default)]
struct Seen(u64);

impl Seen {
    /// Checks that the property may stand here (5.0, section 2.2.2.2), and there again.
    fn admit(&mut self, id: PropertyId, context: Context) -> Result<(), DecodeError> {
        if id.contexts() & context.bit() == 0 {
            // [MQTT-3.3.4-6]
            if matches!(
                (id, context),
                (PropertyId::SubscriptionId, Context::ClientPublish)
            ) {
                return Err(Violation::SubscriptionIdFromClient.into());
            }
            return Err(Malformed::MisplacedProperty {
                property: id,
                context,
            }
            .into());
        }
        let bit = 1 << id.value();
        if self.0 & bit != 0 && id.contexts_of_repeats() & context.bit() == 0 {
            return Err(Violation::RepeatedProperty(id).into());
        }
        self.0 |= bit;
        Ok(())
    }
}
