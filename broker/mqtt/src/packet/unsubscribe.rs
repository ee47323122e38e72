//! UNSUBSCRIBE.

use bytes::{BufMut, BytesMut};

use super::{Body, PacketId, PacketType, Version};
use crate::error::{DecodeError, EncodeError, Violation};
use crate::property::{Context, Properties};
use crate::text::ByteStr;
use crate::wire::{Reader, field_len, put_field};

/// The client gives up some of its subscriptions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsubscribe {
    /// Comes back in UNSUBACK.
    pub packet_id: PacketId,
    /// At least one; not yet checked to be topic filters.
    pub filters: Vec<ByteStr>,
    /// User properties, in 5.0.
    pub properties: Properties,
}

impl Unsubscribe {
    pub(super) fn decode(version: Version, body: &mut Reader) -> Result<Self, DecodeError> {
        let packet_id = body.packet_id()?;
        let properties = match version {
            Version::V5 => Properties::read(body, Context::Unsubscribe)?,
            Version::V3 | Version::V4 => Properties::new(),
        };
        let mut filters = Vec::with_capacity(usize::from(!body.is_empty()));
        while !body.is_empty() {
            filters.push(body.text()?);
        }
        let unsubscribe = Self {
            packet_id,
            filters,
            properties,
        };
        unsubscribe.check_any()?;
        Ok(unsubscribe)
    }

    /// [MQTT-3.10.3-2]
    fn check_any(&self) -> Result<(), Violation> {
        if self.filters.is_empty() {
            return Err(Violation::Empty(PacketType::Unsubscribe));
        }
        Ok(())
    }
}

impl Body for Unsubscribe {
    fn packet_type(&self) -> PacketType {
        PacketType::Unsubscribe
    }

    fn check(&self, version: Version) -> Result<(), EncodeError> {
        self.check_any()?;
        match version {
            Version::V5 => self.properties.check(Context::Unsubscribe),
            Version::V3 | Version::V4 => Ok(()),
        }
    }

    fn body_len(&self, version: Version) -> usize {
        let properties = match version {
            Version::V5 => self.properties.field_len(),
            Version::V3 | Version::V4 => 0,
        };
        let filters = self.filters.iter();
        let filters = filters.map(|filter| field_len(filter.as_bytes()));
        2 + properties + filters.sum::<usize>()
    }

    fn put_body(&self, version: Version, dst: &mut BytesMut) {
        dst.put_u16(self.packet_id.value());
        if version == Version::V5 {
            self.properties.put(dst);
        }
        for filter in &self.filters {
            put_field(dst, filter.as_bytes());
        }
    }
}
