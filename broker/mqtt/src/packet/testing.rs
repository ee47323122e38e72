//! What the tests of the packets share: literal bytes both ways.

use bytes::BytesMut;

use super::{Packet, PacketId, Version};
use crate::codec::{DecodeError, Decoder, EncodeError, encode, encoded_len};
use crate::text::ByteStr;

pub(crate) const V3: Version = Version::V3;
pub(crate) const V4: Version = Version::V4;
pub(crate) const V5: Version = Version::V5;

pub(crate) fn text(text: &str) -> ByteStr {
    ByteStr::try_from(text).unwrap()
}

pub(crate) fn id(value: u16) -> PacketId {
    PacketId::new(value).unwrap()
}

/// Decodes one packet as a server that has seen a CONNECT of this version.
pub(crate) fn from_client(version: Version, bytes: &[u8]) -> Result<Packet, DecodeError> {
    decode(Decoder::after_connect(version, 1 << 20), bytes)
}

/// Decodes one packet as a client of this version.
pub(crate) fn from_server(version: Version, bytes: &[u8]) -> Result<Packet, DecodeError> {
    let mut decoder = Decoder::new(1 << 20);
    decoder.set_version(version);
    decode(decoder, bytes)
}

/// Decodes the first packet of a connection.
pub(crate) fn first(bytes: &[u8]) -> Result<Packet, DecodeError> {
    decode(Decoder::new(1 << 20), bytes)
}

fn decode(mut decoder: Decoder, bytes: &[u8]) -> Result<Packet, DecodeError> {
    let mut src = BytesMut::from(bytes);
    let packet = decoder.decode(&mut src)?.expect("a whole packet");
    assert!(src.is_empty(), "left over: {src:02X?}");
    Ok(packet)
}

pub(crate) fn encoded(
    packet: impl Into<Packet>,
    version: Version,
) -> Result<BytesMut, EncodeError> {
    let packet = packet.into();
    let mut dst = BytesMut::from(&b"before"[..]);
    let result = encode(&packet, version, &mut dst);
    let written = dst.split_off(6);
    assert_eq!(&dst[..], b"before");
    match result {
        Ok(()) => assert_eq!(written.len(), encoded_len(&packet, version)),
        Err(_) => assert!(written.is_empty(), "an error after writing"),
    }
    result.map(|()| written)
}

/// The packet is written as these bytes, and read from them.
pub(crate) fn both_ways(packet: impl Into<Packet>, version: Version, bytes: &[u8]) {
    let packet = packet.into();
    let written = encoded(packet.clone(), version).unwrap();
    assert_eq!(&written[..], bytes, "written in {version}: {packet:?}");
    assert_eq!(from_server(version, bytes), Ok(packet), "read in {version}");
}
