//! Bytes to packets and packets to bytes. The decoder keeps the version of its connection and
//! nothing else: what has not arrived yet stays in the caller's buffer.

use bytes::{Buf, BufMut, BytesMut};

pub use crate::error::{DecodeError, EncodeError, Malformed, Violation};
pub use crate::packet::PublishParts;
use crate::packet::{Body, Connect, FixedHeader, FrameSize, Packet, PacketType, Version};
use crate::property::Context;
use crate::wire::{Reader, VARINT_MAX, put_varint, varint_len};

/// Reads the packets of one connection. After an error it is of no more use, as the connection
/// has to end.
#[derive(Debug, Clone)]
pub struct Decoder {
    /// Unknown until CONNECT says it.
    version: Option<Version>,
    /// Of a whole packet with its header, in bytes.
    max_packet_size: usize,
    sender: Sender,
}

/// Who sends what is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sender {
    Client,
    /// A client that passes messages on between brokers, and says so.
    Bridge,
    Server,
}

impl Decoder {
    /// A decoder for a server: it reads what a client sends, CONNECT first, and takes the version
    /// from there. A packet larger than `max_packet_size` bytes is refused.
    pub const fn new(max_packet_size: usize) -> Self {
        Self {
            version: None,
            max_packet_size,
            sender: Sender::Client,
        }
    }

    /// From now on, a packet larger than this many bytes is refused.
    pub const fn set_max_packet_size(&mut self, max_packet_size: usize) {
        self.max_packet_size = max_packet_size;
    }

    /// Makes it a decoder for a client, which knows the version that it asked for and reads what
    /// a server sends.
    pub fn set_version(&mut self, version: Version) {
        self.version = Some(version);
        self.sender = Sender::Server;
    }

    /// The version; known as soon as a CONNECT has named it, even one that is refused for what
    /// comes after.
    pub const fn version(&self) -> Option<Version> {
        self.version
    }

    /// Whether the client said in CONNECT that it is a bridge; in 3.x only.
    pub fn is_bridge(&self) -> bool {
        self.sender == Sender::Bridge
    }

    /// Takes one packet from the head of `src`; `None` when it is not all there yet. Payload and
    /// strings are not copied: they share the buffer of `src`.
    ///
    /// A packet that must be refused for its type, flags or length is so as soon as that much has
    /// arrived.
    pub fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Packet>, DecodeError> {
        let Some((header, size)) = self.peek_frame(src)? else {
            return Ok(None);
        };
        if src.len() < size.total() {
            return Ok(None);
        }
        src.advance(size.header);
        if let Some(packet) = Packet::decode_bare(header.packet_type, &src[..size.body]) {
            src.advance(size.body);
            return packet.map(Some);
        }
        let body = src.split_to(size.body).freeze();
        let version = match self.version {
            Some(version) => version,
            None => {
                let level = Connect::peek_level(&body)?;
                self.version = Some(level.version);
                if level.is_bridge {
                    self.sender = Sender::Bridge;
                }
                check_length(size, level.version)?;
                level.version
            }
        };
        let publish = match self.sender {
            Sender::Client | Sender::Bridge => Context::ClientPublish,
            Sender::Server => Context::Publish,
        };
        let mut body = Reader::new(body);
        let packet = Packet::decode(header, version, publish, &mut body)?;
        body.finish()?;
        Ok(Some(packet))
    }

    /// How many bytes the packet at the head of `src` still misses, to make room for them. `None`
    /// when its length is not known yet, when it is all there, or when it will be refused; hence
    /// never more than the largest packet.
    pub fn missing(&self, src: &BytesMut) -> Option<usize> {
        let (_, size) = self.peek_frame(src).ok()??;
        let missing = size.total().checked_sub(src.len())?;
        (missing > 0).then_some(missing)
    }

    /// Reads and checks the fixed header; `None` when it is not all there.
    fn peek_frame(&self, src: &[u8]) -> Result<Option<(FixedHeader, FrameSize)>, DecodeError> {
        let Some((first, after_first)) = src.split_first() else {
            return Ok(None);
        };
        let header = FixedHeader::read(*first, self.version)?;
        self.check_sender(header.packet_type)?;
        let Some(size) = FrameSize::peek(after_first)? else {
            return Ok(None);
        };
        if size.total() > self.max_packet_size {
            return Err(DecodeError::PacketTooLarge {
                size: size.total(),
                max: self.max_packet_size,
            });
        }
        if let Some(version) = self.version {
            check_length(size, version)?;
        }
        Ok(Some((header, size)))
    }

    fn check_sender(&self, packet_type: PacketType) -> Result<(), Violation> {
        if self.sender == Sender::Server {
            return Ok(());
        }
        match (packet_type, self.version) {
            // [MQTT-3.1.0-2]
            (PacketType::Connect, Some(_)) => Err(Violation::SecondConnect),
            (PacketType::Connect, None) => Ok(()),
            // [MQTT-3.1.0-1]
            (_, None) => Err(Violation::ConnectExpected(packet_type)),
            (_, Some(_)) if packet_type.is_server_only() => {
                Err(Violation::NotFromClient(packet_type))
            }
            (_, Some(_)) => Ok(()),
        }
    }
}

/// [MQTT-1.5.5-1]; 3.x does not ask for the shortest form.
fn check_length(size: FrameSize, version: Version) -> Result<(), Malformed> {
    if version == Version::V5 && !size.is_minimal() {
        return Err(Malformed::VarInt);
    }
    Ok(())
}

/// Appends a packet to `dst`. On an error nothing is written.
///
/// 3.x has no properties, and fewer reason codes: what a version cannot say is left out, and a
/// CONNACK that it cannot say at all is an error. A CONNECT is written in its own version.
pub fn encode(packet: &Packet, version: Version, dst: &mut BytesMut) -> Result<(), EncodeError> {
    encode_body(packet.body(), version, dst)
}

/// Bytes that [`encode`] writes, for the check against the receiver's Maximum Packet Size.
pub fn encoded_len(packet: &Packet, version: Version) -> usize {
    frame_len(packet.body().body_len(version))
}

/// Appends a PUBLISH to `dst`, the hot path of delivery. On an error nothing is written.
pub fn encode_publish(
    parts: &PublishParts<'_>,
    version: Version,
    dst: &mut BytesMut,
) -> Result<(), EncodeError> {
    encode_body(parts, version, dst)
}

/// As [`encode_publish`], without the payload: that is to follow, from where it is.
pub fn encode_publish_head(
    parts: &PublishParts<'_>,
    version: Version,
    dst: &mut BytesMut,
) -> Result<(), EncodeError> {
    begin_frame(parts, version, parts.payload.len(), dst)?;
    parts.put_head(version, dst);
    Ok(())
}

/// Bytes that [`encode_publish`] writes.
pub fn publish_len(parts: &PublishParts<'_>, version: Version) -> usize {
    frame_len(parts.body_len(version))
}

fn frame_len(body_len: usize) -> usize {
    1 + varint_len(body_len) + body_len
}

fn encode_body<B: Body + ?Sized>(
    body: &B,
    version: Version,
    dst: &mut BytesMut,
) -> Result<(), EncodeError> {
    let end = begin_frame(body, version, 0, dst)?;
    body.put_body(version, dst);
    debug_assert_eq!(dst.len(), end, "the body is as long as it was measured");
    Ok(())
}

/// Checks a packet and writes its fixed header; makes room for the body, but for the last `left_out` bytes. Says where the
/// whole packet will end.
fn begin_frame<B: Body + ?Sized>(
    body: &B,
    version: Version,
    left_out: usize,
    dst: &mut BytesMut,
) -> Result<usize, EncodeError> {
    body.check(version)?;
    let len = body.body_len(version);
    if len > VARINT_MAX as usize {
        return Err(EncodeError::PacketTooLarge(frame_len(len)));
    }
    let end = dst.len() + frame_len(len);
    dst.reserve(frame_len(len) - left_out);
    dst.put_u8((body.packet_type() as u8) << 4 | body.flags());
    put_varint(dst, len);
    Ok(end)
}

#[cfg(test)]
impl Decoder {
    /// A decoder for a server that has already read a CONNECT of this version.
    pub(crate) fn after_connect(version: Version, max_packet_size: usize) -> Self {
        Self {
            version: Some(version),
            ..Self::new(max_packet_size)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
