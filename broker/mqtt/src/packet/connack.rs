//! CONNACK.

use bytes::{BufMut, BytesMut};

use super::ack::{check_reason_code, read_reason_code};
use super::{Body, PacketType, Version};
use crate::error::{DecodeError, EncodeError, Malformed, Violation};
use crate::property::{Context, Properties};
use crate::reason::ReasonCode;
use crate::wire::Reader;

const SESSION_PRESENT: u8 = 0b0000_0001;

/// The return code of 3.x that promises least.
const SERVER_UNAVAILABLE: u8 = 3;

/// The server accepts the connection or says why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnAck {
    /// Whether the server resumes a session. Not told in 3.1.
    pub session_present: bool,
    /// In 3.x written as the return code that comes nearest, where there is one.
    pub reason: ReasonCode,
    /// What the server grants and assigns, in 5.0.
    pub properties: Properties,
}

impl ConnAck {
    /// One that refuses.
    pub const fn refused(reason: ReasonCode) -> Self {
        Self {
            session_present: false,
            reason,
            properties: Properties::new(),
        }
    }

    pub(super) fn decode(version: Version, body: &mut Reader) -> Result<Self, DecodeError> {
        let flags = body.u8()?;
        // [MQTT-3.2.2-1]; 3.1 does not use this byte.
        if version > Version::V3 && flags & !SESSION_PRESENT != 0 {
            return Err(Malformed::ConnAckFlags(flags).into());
        }
        let reason = match version {
            Version::V5 => read_reason_code(Context::ConnAck, body)?,
            Version::V3 | Version::V4 => {
                let code = body.u8()?;
                let context = Context::ConnAck;
                ReasonCode::from_connack_return_code(code)
                    .ok_or(Violation::ReasonCode { context, code })?
            }
        };
        let properties = match version {
            Version::V5 => Properties::read(body, Context::ConnAck)?,
            Version::V3 | Version::V4 => Properties::new(),
        };
        let connack = Self {
            session_present: version > Version::V3 && flags & SESSION_PRESENT != 0,
            reason,
            properties,
        };
        connack.check_session_present()?;
        Ok(connack)
    }

    /// [MQTT-3.2.2-6], [MQTT-3.2.2-4] of 3.1.1
    fn check_session_present(&self) -> Result<(), Violation> {
        if self.session_present && self.reason != ReasonCode::Success {
            return Err(Violation::SessionPresent);
        }
        Ok(())
    }
}

impl Body for ConnAck {
    fn packet_type(&self) -> PacketType {
        PacketType::ConnAck
    }

    fn check(&self, version: Version) -> Result<(), EncodeError> {
        self.check_session_present()?;
        match version {
            Version::V5 => {
                check_reason_code(self.reason, Context::ConnAck)?;
                self.properties.check(Context::ConnAck)
            }
            // [MQTT-3.2.2-6] of 3.1.1
            Version::V3 | Version::V4 if self.reason.connack_return_code().is_none() => {
                Err(EncodeError::NoReturnCode(self.reason))
            }
            Version::V3 | Version::V4 => Ok(()),
        }
    }

    fn body_len(&self, version: Version) -> usize {
        match version {
            Version::V5 => 2 + self.properties.field_len(),
            Version::V3 | Version::V4 => 2,
        }
    }

    fn put_body(&self, version: Version, dst: &mut BytesMut) {
        dst.put_u8(u8::from(version > Version::V3 && self.session_present));
        match version {
            Version::V5 => {
                dst.put_u8(self.reason.value());
                self.properties.put(dst);
            }
            Version::V3 | Version::V4 => {
                let code = self.reason.connack_return_code();
                debug_assert!(code.is_some(), "checked before");
                dst.put_u8(code.unwrap_or(SERVER_UNAVAILABLE));
            }
        }
    }
}
