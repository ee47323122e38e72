//! The packets: one model for all versions, one file per packet with its fields, its decoding and
//! its encoding. What a version does not have is left out when it is written and has its neutral
//! value when it was read.

mod header;
mod id;
mod qos;
mod version;

mod ack;
mod auth;
mod connack;
mod connect;
mod disconnect;
mod ping;
mod publish;
mod suback;
mod subscribe;
mod unsuback;
mod unsubscribe;

pub use ack::{PubAck, PubComp, PubRec, PubRel};
pub use auth::Auth;
pub use connack::ConnAck;
pub use connect::{Connect, Will};
pub use disconnect::Disconnect;
pub use header::PacketType;
pub use id::PacketId;
pub use publish::{Publish, PublishParts};
pub use qos::{InvalidQoS, QoS};
pub use suback::SubAck;
pub use subscribe::{RetainHandling, Subscribe, SubscribeOptions};
pub use unsuback::UnsubAck;
pub use unsubscribe::Unsubscribe;
pub use version::Version;

pub(crate) use header::{FixedHeader, FrameSize};

use bytes::BytesMut;

use crate::error::{DecodeError, EncodeError, Violation};
use crate::property::Context;
use crate::reason::ReasonCode;
use crate::wire::Reader;

/// A packet of any version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// The client introduces itself. Boxed, as it is large and comes once.
    Connect(Box<Connect>),
    /// The server accepts or refuses.
    ConnAck(ConnAck),
    /// A message.
    Publish(Publish),
    /// A QoS 1 message arrived.
    PubAck(PubAck),
    /// A QoS 2 message arrived.
    PubRec(PubRec),
    /// A QoS 2 message may be forgotten by the receiver.
    PubRel(PubRel),
    /// A QoS 2 message is done.
    PubComp(PubComp),
    /// The client asks for messages.
    Subscribe(Subscribe),
    /// The server grants or refuses each filter.
    SubAck(SubAck),
    /// The client asks for no more messages.
    Unsubscribe(Unsubscribe),
    /// The server confirms.
    UnsubAck(UnsubAck),
    /// The client asks for a sign of life.
    PingReq,
    /// The server gives one.
    PingResp,
    /// The connection ends on purpose.
    Disconnect(Disconnect),
    /// A step of enhanced authentication (5.0 only).
    Auth(Auth),
}

impl Packet {
    /// The type of the packet.
    pub fn packet_type(&self) -> PacketType {
        self.body().packet_type()
    }

    /// Reads the body of a packet, all of it.
    pub(crate) fn decode(
        header: FixedHeader,
        version: Version,
        publish: Context,
        body: &mut Reader,
    ) -> Result<Self, DecodeError> {
        Ok(match header.packet_type {
            PacketType::Connect => Self::Connect(Box::new(Connect::decode(body)?)),
            PacketType::ConnAck => Self::ConnAck(ConnAck::decode(version, body)?),
            PacketType::Publish => {
                Self::Publish(Publish::decode(header.flags, version, publish, body)?)
            }
            PacketType::PubAck => Self::PubAck(PubAck::decode(version, body)?),
            PacketType::PubRec => Self::PubRec(PubRec::decode(version, body)?),
            PacketType::PubRel => Self::PubRel(PubRel::decode(version, body)?),
            PacketType::PubComp => Self::PubComp(PubComp::decode(version, body)?),
            PacketType::Subscribe => Self::Subscribe(Subscribe::decode(version, body)?),
            PacketType::SubAck => Self::SubAck(SubAck::decode(version, body)?),
            PacketType::Unsubscribe => Self::Unsubscribe(Unsubscribe::decode(version, body)?),
            PacketType::UnsubAck => Self::UnsubAck(UnsubAck::decode(version, body)?),
            PacketType::PingReq => Self::PingReq,
            PacketType::PingResp => Self::PingResp,
            PacketType::Disconnect => Self::Disconnect(Disconnect::decode(version, body)?),
            PacketType::Auth => Self::Auth(Auth::decode(body)?),
        })
    }

    /// Reads a packet of the shortest form, which most are and which shares no bytes with the read
    /// buffer: a ping, or an acknowledgement of nothing but its id, the same in all versions.
    /// `None` when it is not one.
    pub(crate) fn decode_bare(
        packet_type: PacketType,
        body: &[u8],
    ) -> Option<Result<Self, DecodeError>> {
        match (packet_type, body) {
            (PacketType::PingReq, []) => return Some(Ok(Self::PingReq)),
            (PacketType::PingResp, []) => return Some(Ok(Self::PingResp)),
            _ => {}
        }
        let value = u16::from_be_bytes(body.try_into().ok()?);
        let acknowledgement: fn(PacketId) -> Self = match packet_type {
            PacketType::PubAck => |id| PubAck::new(id, ReasonCode::Success).into(),
            PacketType::PubRec => |id| PubRec::new(id, ReasonCode::Success).into(),
            PacketType::PubRel => |id| PubRel::new(id, ReasonCode::Success).into(),
            PacketType::PubComp => |id| PubComp::new(id, ReasonCode::Success).into(),
            _ => return None,
        };
        let id = PacketId::new(value).ok_or(Violation::ZeroPacketId.into());
        Some(id.map(acknowledgement))
    }

    /// What the packet is made of, to be encoded.
    pub(crate) fn body(&self) -> &dyn Body {
        match self {
            Self::Connect(packet) => &**packet,
            Self::ConnAck(packet) => packet,
            Self::Publish(packet) => packet,
            Self::PubAck(packet) => packet,
            Self::PubRec(packet) => packet,
            Self::PubRel(packet) => packet,
            Self::PubComp(packet) => packet,
            Self::Subscribe(packet) => packet,
            Self::SubAck(packet) => packet,
            Self::Unsubscribe(packet) => packet,
            Self::UnsubAck(packet) => packet,
            Self::PingReq => &ping::PING_REQ,
            Self::PingResp => &ping::PING_RESP,
            Self::Disconnect(packet) => packet,
            Self::Auth(packet) => packet,
        }
    }
}

/// The encoding of one packet, in three steps: it is checked, measured and written.
pub(crate) trait Body {
    fn packet_type(&self) -> PacketType;

    /// The four low bits of the first byte.
    fn flags(&self) -> u8 {
        self.packet_type().flags()
    }

    /// Checks all that could make the packet impossible to write or refused by its receiver.
    fn check(&self, version: Version) -> Result<(), EncodeError>;

    /// The remaining length.
    fn body_len(&self, version: Version) -> usize;

    /// Writes just `body_len` bytes of a packet that has been checked.
    fn put_body(&self, version: Version, dst: &mut BytesMut);
}

macro_rules! from_packets {
    ($($packet:ident)*) => {
        $(impl From<$packet> for Packet {
            fn from(packet: $packet) -> Self {
                Self::$packet(packet)
            }
        })*
    };
}

from_packets! {
    ConnAck Publish PubAck PubRec PubRel PubComp Subscribe SubAck Unsubscribe UnsubAck Disconnect Auth
}

impl From<Connect> for Packet {
    fn from(packet: Connect) -> Self {
        Self::Connect(Box::new(packet))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod testing;
