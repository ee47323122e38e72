//! SUBSCRIBE.

use bytes::{BufMut, BytesMut};

use super::{Body, PacketId, PacketType, QoS, Version};
use crate::error::{DecodeError, EncodeError, Malformed, Violation};
use crate::property::{Context, Properties};
use crate::text::ByteStr;
use crate::wire::{Reader, field_len, put_field};

const QOS: u8 = 0b0000_0011;
const NO_LOCAL: u8 = 0b0000_0100;
const RETAIN_AS_PUBLISHED: u8 = 0b0000_1000;
const RETAIN_HANDLING: u8 = 0b0011_0000;
const RETAIN_HANDLING_SHIFT: u8 = 4;
const RESERVED: u8 = 0b1100_0000;

/// The client asks for the messages of some topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    /// Comes back in SUBACK.
    pub packet_id: PacketId,
    /// Subscription identifier and user properties, in 5.0.
    pub properties: Properties,
    /// At least one; not yet checked to be topic filters.
    pub filters: Vec<(ByteStr, SubscribeOptions)>,
}

/// How a subscription wants its messages. 3.x has the QoS alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SubscribeOptions {
    /// The greatest QoS to deliver with.
    pub qos: QoS,
    /// Whether the client's own messages stay away.
    pub no_local: bool,
    /// Whether forwarded messages keep the RETAIN flag of their publisher.
    pub retain_as_published: bool,
    /// When the retained messages come.
    pub retain_handling: RetainHandling,
}

/// When a subscription gets the retained messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RetainHandling {
    /// At every SUBSCRIBE [MQTT-3.3.1-9].
    #[default]
    SendAlways = 0,
    /// When there was no such subscription before [MQTT-3.3.1-10].
    SendIfNew = 1,
    /// Not at all [MQTT-3.3.1-11].
    Never = 2,
}

impl SubscribeOptions {
    /// The options of a 3.x subscription.
    pub const fn with_qos(qos: QoS) -> Self {
        Self {
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::SendAlways,
        }
    }

    /// The options byte of 5.0.
    pub const fn to_byte(self) -> u8 {
        let mut byte = self.qos.value() | (self.retain_handling as u8) << RETAIN_HANDLING_SHIFT;
        if self.no_local {
            byte |= NO_LOCAL;
        }
        if self.retain_as_published {
            byte |= RETAIN_AS_PUBLISHED;
        }
        byte
    }

    /// Reads the options byte of 5.0.
    pub fn from_byte(byte: u8) -> Result<Self, DecodeError> {
        // [MQTT-3.8.3-5]
        if byte & RESERVED != 0 {
            return Err(Malformed::SubscribeOptions(byte).into());
        }
        let retain_handling = match (byte & RETAIN_HANDLING) >> RETAIN_HANDLING_SHIFT {
            0 => RetainHandling::SendAlways,
            1 => RetainHandling::SendIfNew,
            2 => RetainHandling::Never,
            _ => return Err(Violation::RetainHandling.into()),
        };
        Ok(Self {
            qos: QoS::try_from(byte & QOS).map_err(|_| Violation::SubscribeQoS)?,
            no_local: byte & NO_LOCAL != 0,
            retain_as_published: byte & RETAIN_AS_PUBLISHED != 0,
            retain_handling,
        })
    }

    /// [MQTT-3.8.3-4] of 3.1.1
    fn from_qos_byte(byte: u8) -> Result<Self, Malformed> {
        let qos = QoS::try_from(byte).map_err(|_| Malformed::SubscribeOptions(byte))?;
        Ok(Self::with_qos(qos))
    }
}

impl Subscribe {
    pub(super) fn decode(version: Version, body: &mut Reader) -> Result<Self, DecodeError> {
        let packet_id = body.packet_id()?;
        let properties = match version {
            Version::V5 => Properties::read(body, Context::Subscribe)?,
            Version::V3 | Version::V4 => Properties::new(),
        };
        let mut filters = Vec::with_capacity(usize::from(!body.is_empty()));
        while !body.is_empty() {
            let filter = body.text()?;
            let options = match version {
                Version::V5 => SubscribeOptions::from_byte(body.u8()?)?,
                Version::V3 | Version::V4 => SubscribeOptions::from_qos_byte(body.u8()?)?,
            };
            filters.push((filter, options));
        }
        let subscribe = Self {
            packet_id,
            properties,
            filters,
        };
        subscribe.check_filters(version)?;
        Ok(subscribe)
    }

    fn check_filters(&self, version: Version) -> Result<(), Violation> {
        // [MQTT-3.8.3-2], [MQTT-3.8.3-3] of 3.1.1
        if self.filters.is_empty() {
            return Err(Violation::Empty(PacketType::Subscribe));
        }
        // [MQTT-3.8.3-4]
        let is_refused = |(filter, options): &(ByteStr, SubscribeOptions)| {
            options.no_local && filter.starts_with("$share/")
        };
        if version == Version::V5 && self.filters.iter().any(is_refused) {
            return Err(Violation::NoLocalOnShared);
        }
        Ok(())
    }
}

impl Body for Subscribe {
    fn packet_type(&self) -> PacketType {
        PacketType::Subscribe
    }

    fn check(&self, version: Version) -> Result<(), EncodeError> {
        self.check_filters(version)?;
        match version {
            Version::V5 => self.properties.check(Context::Subscribe),
            Version::V3 | Version::V4 => Ok(()),
        }
    }

    fn body_len(&self, version: Version) -> usize {
        let properties = match version {
            Version::V5 => self.properties.field_len(),
            Version::V3 | Version::V4 => 0,
        };
        let filters = self.filters.iter();
        let filters = filters.map(|(filter, _)| field_len(filter.as_bytes()) + 1);
        2 + properties + filters.sum::<usize>()
    }

    fn put_body(&self, version: Version, dst: &mut BytesMut) {
        dst.put_u16(self.packet_id.value());
        if version == Version::V5 {
            self.properties.put(dst);
        }
        for (filter, options) in &self.filters {
            put_field(dst, filter.as_bytes());
            dst.put_u8(match version {
                Version::V5 => options.to_byte(),
                Version::V3 | Version::V4 => options.qos.value(),
            });
        }
    }
}
