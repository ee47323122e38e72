//! PUBACK, PUBREC, PUBREL and PUBCOMP: four packets of one shape, hence one file and one body.

use bytes::{BufMut, BytesMut};

use super::{Body, PacketId, PacketType, Version};
use crate::error::{DecodeError, EncodeError, Violation};
use crate::property::{Context, Properties};
use crate::reason::ReasonCode;
use crate::wire::Reader;

macro_rules! acknowledgements {
    ($($(#[$doc:meta])* $packet:ident;)*) => {
        $($(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $packet {
            /// The id of the PUBLISH.
            pub packet_id: PacketId,
            /// Always success in 3.x.
            pub reason: ReasonCode,
            /// Reason string and user properties, in 5.0.
            pub properties: Properties,
        }

        impl $packet {
            /// One with this reason and without properties.
            pub const fn new(packet_id: PacketId, reason: ReasonCode) -> Self {
                Self { packet_id, reason, properties: Properties::new() }
            }

            pub(super) fn decode(version: Version, body: &mut Reader) -> Result<Self, DecodeError> {
                let (packet_id, reason, properties) = decode(Context::$packet, version, body)?;
                Ok(Self { packet_id, reason, properties })
            }
        }

        impl Body for $packet {
            fn packet_type(&self) -> PacketType {
                PacketType::$packet
            }

            fn check(&self, version: Version) -> Result<(), EncodeError> {
                check_reason(self.reason, &self.properties, Context::$packet, version)
            }

            fn body_len(&self, version: Version) -> usize {
                2 + reason_len(self.reason, &self.properties, version)
            }

            fn put_body(&self, version: Version, dst: &mut BytesMut) {
                dst.put_u16(self.packet_id.value());
                put_reason(self.reason, &self.properties, version, dst);
            }
        })*
    };
}

acknowledgements! {
    /// The receiver has taken over a QoS 1 message, or refused it.
    PubAck;
    /// The receiver has taken over a QoS 2 message, or refused it.
    PubRec;
    /// The sender of a QoS 2 message forgets it.
    PubRel;
    /// The receiver of a QoS 2 message has forgotten its id.
    PubComp;
}

fn decode(
    context: Context,
    version: Version,
    body: &mut Reader,
) -> Result<(PacketId, ReasonCode, Properties), DecodeError> {
    let packet_id = body.packet_id()?;
    let (reason, properties) = read_reason(context, version, body)?;
    Ok((packet_id, reason, properties))
}

/// Reads a reason code and properties at the end of a packet: in 5.0 both may be missing, or the
/// properties alone; 3.x has neither.
pub(super) fn read_reason(
    context: Context,
    version: Version,
    body: &mut Reader,
) -> Result<(ReasonCode, Properties), DecodeError> {
    if version < Version::V5 || body.is_empty() {
        return Ok((ReasonCode::Success, Properties::new()));
    }
    let reason = read_reason_code(context, body)?;
    if body.is_empty() {
        return Ok((reason, Properties::new()));
    }
    Ok((reason, Properties::read(body, context)?))
}

/// Reads a reason code that this packet may carry.
// [MQTT-3.2.2-8], [MQTT-3.4.2-1], [MQTT-3.5.2-1], [MQTT-3.6.2-1], [MQTT-3.7.2-1], [MQTT-3.9.3-2],
// [MQTT-3.11.3-2], [MQTT-3.14.2-1], [MQTT-3.15.2-1]
pub(super) fn read_reason_code(
    context: Context,
    body: &mut Reader,
) -> Result<ReasonCode, DecodeError> {
    let code = body.u8()?;
    match ReasonCode::try_from(code) {
        Ok(reason) if reason.is_allowed_in(context) => Ok(reason),
        _ => Err(Violation::ReasonCode { context, code }.into()),
    }
}

/// Checks that this packet may carry this reason code.
pub(super) fn check_reason_code(reason: ReasonCode, context: Context) -> Result<(), Violation> {
    if reason.is_allowed_in(context) {
        return Ok(());
    }
    let code = reason.value();
    Err(Violation::ReasonCode { context, code })
}

/// Checks what [`read_reason`] would refuse.
pub(super) fn check_reason(
    reason: ReasonCode,
    properties: &Properties,
    context: Context,
    version: Version,
) -> Result<(), EncodeError> {
    if version < Version::V5 {
        return Ok(());
    }
    check_reason_code(reason, context)?;
    properties.check(context)
}

/// Bytes that [`put_reason`] writes.
pub(super) fn reason_len(reason: ReasonCode, properties: &Properties, version: Version) -> usize {
    if version < Version::V5 {
        return 0;
    }
    match (reason, properties.is_empty()) {
        (ReasonCode::Success, true) => 0,
        (_, true) => 1,
        (_, false) => 1 + properties.field_len(),
    }
}

/// Writes reason code and properties in the shortest form that says them.
pub(super) fn put_reason(
    reason: ReasonCode,
    properties: &Properties,
    version: Version,
    dst: &mut BytesMut,
) {
    let len = reason_len(reason, properties, version);
    if len > 0 {
        dst.put_u8(reason.value());
    }
    if len > 1 {
        properties.put(dst);
    }
}
