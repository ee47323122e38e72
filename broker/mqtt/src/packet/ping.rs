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
