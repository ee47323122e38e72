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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::error::Malformed;
    use crate::property::{Property, PropertyId};
    use crate::text::TextError;

    fn unsubscribe(filters: &[&str]) -> Unsubscribe {
        Unsubscribe {
            packet_id: id(9),
            filters: filters.iter().map(|filter| text(filter)).collect(),
            properties: Properties::new(),
        }
    }

    #[test]
    fn filters_stand_one_after_the_other() {
        let body = [0, 3, b'a', b'/', b'+', 0, 1, b'#'];
        for version in [V3, V4] {
            let bytes = [&[0xA2, 10, 0, 9][..], &body].concat();
            both_ways(unsubscribe(&["a/+", "#"]), version, &bytes);
        }
        let bytes = [&[0xA2, 11, 0, 9, 0][..], &body].concat();
        both_ways(unsubscribe(&["a/+", "#"]), V5, &bytes);
    }

    #[test]
    fn user_properties_stand_before_the_filters() {
        let mut packet = unsubscribe(&["a"]);
        packet.properties.push(Property::user(text("k"), text("v")));
        let bytes = [0xA2, 13, 0, 9, 7, 0x26, 0, 1, b'k', 0, 1, b'v', 0, 1, b'a'];
        both_ways(packet, V5, &bytes);
    }

    #[test]
    fn no_filter_is_a_protocol_error() {
        let empty = Violation::Empty(PacketType::Unsubscribe);
        assert_eq!(from_client(V4, &[0xA2, 2, 0, 9]), Err(empty.into()));
        assert_eq!(from_client(V5, &[0xA2, 3, 0, 9, 0]), Err(empty.into()));
        assert_eq!(encoded(unsubscribe(&[]), V5), Err(empty.into()));
    }

    #[test]
    fn bad_fields_are_refused() {
        let zero = Err(Violation::ZeroPacketId.into());
        assert_eq!(from_client(V4, &[0xA2, 5, 0, 0, 0, 1, b'a']), zero);
        let not_utf8 = Err(Malformed::Text(TextError::NotUtf8).into());
        assert_eq!(from_client(V4, &[0xA2, 5, 0, 9, 0, 1, 0xFF]), not_utf8);
        let truncated = Err(Malformed::Truncated.into());
        assert_eq!(from_client(V4, &[0xA2, 5, 0, 9, 0, 2, b'a']), truncated);
        let misplaced = Malformed::MisplacedProperty {
            property: PropertyId::ReasonString,
            context: Context::Unsubscribe,
        };
        let bytes = [0xA2, 10, 0, 9, 4, 0x1F, 0, 1, b'r', 0, 1, b'a'];
        assert_eq!(from_client(V5, &bytes), Err(misplaced.into()));
        let flags = Malformed::Flags {
            packet: PacketType::Unsubscribe,
            flags: 0,
        };
        assert_eq!(from_client(V4, &[0xA0]), Err(flags.into()));
    }
}
