//! SUBACK.

use bytes::{BufMut, BytesMut};

use super::ack::{check_reason_code, read_reason_code};
use super::{Body, PacketId, PacketType, Version};
use crate::error::{DecodeError, EncodeError, Violation};
use crate::property::{Context, Properties};
use crate::reason::ReasonCode;
use crate::wire::Reader;

/// The server answers each filter of a SUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubAck {
    /// The id of the SUBSCRIBE [MQTT-3.8.4-2].
    pub packet_id: PacketId,
    /// One for each filter, in their order [MQTT-3.9.3-1]. 3.x knows one failure, 0x80.
    pub reasons: Vec<ReasonCode>,
    /// Reason string and user properties, in 5.0.
    pub properties: Properties,
}

impl SubAck {
    pub(super) fn decode(version: Version, body: &mut Reader) -> Result<Self, DecodeError> {
        let packet_id = body.packet_id()?;
        let properties = match version {
            Version::V5 => Properties::read(body, Context::SubAck)?,
            Version::V3 | Version::V4 => Properties::new(),
        };
        let mut reasons = Vec::with_capacity(body.len());
        while !body.is_empty() {
            let reason = read_reason_code(Context::SubAck, body)?;
            check_version(reason, version)?;
            reasons.push(reason);
        }
        let suback = Self {
            packet_id,
            reasons,
            properties,
        };
        suback.check_any()?;
        Ok(suback)
    }

    fn check_any(&self) -> Result<(), Violation> {
        if self.reasons.is_empty() {
            return Err(Violation::Empty(PacketType::SubAck));
        }
        Ok(())
    }
}

/// [MQTT-3.9.3-2] of 3.1.1
fn check_version(reason: ReasonCode, version: Version) -> Result<(), Violation> {
    if version < Version::V5 && reason > ReasonCode::UnspecifiedError {
        return Err(Violation::ReasonCode {
            context: Context::SubAck,
            code: reason.value(),
        });
    }
    Ok(())
}

impl Body for SubAck {
    fn packet_type(&self) -> PacketType {
        PacketType::SubAck
    }

    fn check(&self, version: Version) -> Result<(), EncodeError> {
        self.check_any()?;
        for reason in &self.reasons {
            check_reason_code(*reason, Context::SubAck)?;
        }
        match version {
            Version::V5 => self.properties.check(Context::SubAck),
            Version::V3 | Version::V4 => Ok(()),
        }
    }

    fn body_len(&self, version: Version) -> usize {
        let properties = match version {
            Version::V5 => self.properties.field_len(),
            Version::V3 | Version::V4 => 0,
        };
        2 + properties + self.reasons.len()
    }

    fn put_body(&self, version: Version, dst: &mut BytesMut) {
        dst.put_u16(self.packet_id.value());
        if version == Version::V5 {
            self.properties.put(dst);
        }
        for reason in &self.reasons {
            dst.put_u8(match version {
                Version::V5 => reason.value(),
                // [MQTT-3.8.4-5] of 3.1.1
                Version::V3 | Version::V4 => reason.value().min(0x80),
            });
        }
    }
}
