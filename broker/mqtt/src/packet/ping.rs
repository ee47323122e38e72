//! PINGREQ and PINGRESP, which have neither fields nor properties.

use bytes::BytesMut;

use super::{Body, PacketType, Version};
use crate::error::EncodeError;

pub(super) struct Ping(PacketType);

pub(super) static PING_REQ: Ping = Ping(PacketType::PingReq);
pub(super) static PING_RESP: Ping = Ping(PacketType::PingResp);

impl Body for Ping {
    fn packet_type(&self) -> PacketType {
        self.0
    }

    fn check(&self, _: Version) -> Result<(), EncodeError> {
        Ok(())
    }

    fn body_len(&self, _: Version) -> usize {
        0
    }

    fn put_body(&self, _: Version, _: &mut BytesMut) {}
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::Packet;
    use super::super::testing::*;
    use crate::error::Malformed;

    #[test]
    fn they_are_two_bytes_in_every_version() {
        for version in [V3, V4, V5] {
            both_ways(Packet::PingReq, version, &[0xC0, 0]);
            both_ways(Packet::PingResp, version, &[0xD0, 0]);
        }
    }

    #[test]
    fn a_body_is_malformed() {
        let trailing = Err(Malformed::TrailingBytes(2).into());
        assert_eq!(from_client(V4, &[0xC0, 2, 0, 1]), trailing);
        assert!(from_client(V5, &[0xC1]).is_err());
    }
}
