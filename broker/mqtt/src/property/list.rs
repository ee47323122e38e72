//! The list of properties of one packet.

use bytes::{Bytes, BytesMut};

use super::{Context, Property, PropertyId, Seen, UserProperty};
use crate::error::{DecodeError, EncodeError};
use crate::packet::QoS;
use crate::text::ByteStr;
use crate::wire::{Reader, check_field, put_varint, varint_len};

/// Up to here a list is left as it has grown.
const USUAL_LEN_MAX: usize = 4;

/// Properties in the order in which they stand in the packet. Empty, it takes 8 bytes and no
/// allocation, which is what most packets have. Bounded by the size of the packet it came from.
// A `Vec` alone would put 24 bytes into every packet and message.
#[allow(clippy::box_collection)]
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Properties(Option<Box<Vec<Property>>>);

/// Getters of values that are copied: the first property of that kind.
macro_rules! copied {
    ($($getter:ident $variant:ident $value:ty, $doc:literal;)*) => {
        $(#[doc = $doc]
        pub fn $getter(&self) -> Option<$value> {
            self.iter().find_map(|property| match property {
                Property::$variant(value) => Some(*value),
                _ => None,
            })
        })*
    };
}

/// Getters of values that are borrowed: the first property of that kind.
macro_rules! borrowed {
    ($($getter:ident $variant:ident $value:ty, $doc:literal;)*) => {
        $(#[doc = $doc]
        pub fn $getter(&self) -> Option<&$value> {
            self.iter().find_map(|property| match property {
                Property::$variant(value) => Some(value),
                _ => None,
            })
        })*
    };
}

impl Properties {
    /// No properties.
    pub const fn new() -> Self {
        Self(None)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// All of them, in order.
    pub fn as_slice(&self) -> &[Property] {
        self.0.as_deref().map_or(&[], Vec::as_slice)
    }

    /// All of them, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Property> {
        self.as_slice().iter()
    }

    /// Appends one. Whether it may stand there is checked when the packet is encoded.
    pub fn push(&mut self, property: Property) {
        self.0.get_or_insert_default().push(property);
    }

    /// Takes out every property with this number; says whether there was one.
    pub fn remove(&mut self, id: PropertyId) -> bool {
        let Some(list) = &mut self.0 else {
            return false;
        };
        let before = list.len();
        list.retain(|property| property.id() != id);
        let removed = list.len() < before;
        if list.is_empty() {
            self.0 = None;
        }
        removed
    }

    copied! {
        payload_format PayloadFormat u8, "0: bytes, 1: UTF-8 text.";
        message_expiry MessageExpiry u32, "The lifetime of the message in seconds.";
        session_expiry SessionExpiry u32, "How long the session outlives its connection, in seconds; `u32::MAX` is for ever.";
        server_keep_alive ServerKeepAlive u16, "The keep alive that the server imposes, in seconds.";
        request_problem_info RequestProblemInfo bool, "Whether the client wants reason strings and user properties; absent means yes.";
        will_delay WillDelay u32, "How long the will waits, in seconds.";
        request_response_info RequestResponseInfo bool, "Whether the client wants response information; absent means no.";
        receive_maximum ReceiveMaximum u16, "How many QoS 1 and 2 messages may be under way at once; absent means 65,535.";
        topic_alias_maximum TopicAliasMaximum u16, "The greatest topic alias; absent means none.";
        topic_alias TopicAlias u16, "The topic alias.";
        maximum_qos MaximumQoS QoS, "The greatest QoS of a PUBLISH; absent means QoS 2.";
        retain_available RetainAvailable bool, "Whether messages can be retained; absent means yes.";
        maximum_packet_size MaximumPacketSize u32, "The largest packet, in bytes; absent means no limit.";
        wildcard_available WildcardAvailable bool, "Whether filters may have wildcards; absent means yes.";
        subscription_ids_available SubscriptionIdsAvailable bool, "Whether subscriptions may have identifiers; absent means yes.";
        shared_available SharedAvailable bool, "Whether subscriptions may be shared; absent means yes.";
    }

    borrowed! {
        content_type ContentType ByteStr, "What the payload is.";
        response_topic ResponseTopic ByteStr, "Where an answer goes.";
        correlation_data CorrelationData Bytes, "What ties an answer to its request.";
        assigned_client_id AssignedClientId ByteStr, "The client id that the server chose.";
        auth_method AuthMethod ByteStr, "The authentication method.";
        auth_data AuthData Bytes, "The authentication data.";
        response_info ResponseInfo ByteStr, "The basis of response topics.";
        server_reference ServerReference ByteStr, "The other server.";
        reason_string ReasonString ByteStr, "What a human should read.";
    }

    /// The subscription identifiers; SUBSCRIBE has at most one.
    pub fn subscription_ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.iter().filter_map(|property| match property {
            Property::SubscriptionId(id) => Some(*id),
            _ => None,
        })
    }

    /// The user properties, in order.
    pub fn user(&self) -> impl Iterator<Item = &UserProperty> + '_ {
        self.iter().filter_map(|property| match property {
            Property::User(pair) => Some(pair),
            _ => None,
        })
    }

    /// Those of a PUBLISH or a will that go on to the subscribers: payload format, message expiry,
    /// content type, response topic, correlation data and user properties, in their order.
    // [MQTT-3.3.2-4], [MQTT-3.3.2-15], [MQTT-3.3.2-16], [MQTT-3.3.2-17], [MQTT-3.3.2-18],
    // [MQTT-3.3.2-20]
    #[must_use]
    pub fn forwardable(&self) -> Self {
        let goes_on = |property: &&Property| {
            matches!(
                property,
                Property::PayloadFormat(_)
                    | Property::MessageExpiry(_)
                    | Property::ContentType(_)
                    | Property::ResponseTopic(_)
                    | Property::CorrelationData(_)
                    | Property::User(_)
            )
        };
        let mut list = Vec::with_capacity(self.iter().filter(goes_on).count());
        list.extend(self.iter().filter(goes_on).cloned());
        list.into()
    }

    /// The same properties in buffers of their own, so that they do not hold a read buffer.
    #[must_use]
    pub fn compact(&self) -> Self {
        self.iter().map(Property::compact).collect()
    }

    /// What holding them costs in memory, roughly: a list of tiny properties is some times larger there than on the wire.
    pub fn held_bytes(&self) -> usize {
        self.len() * size_of::<Property>() + self.encoded_len()
    }

    /// Bytes that [`encode`](Self::encode) writes.
    pub fn encoded_len(&self) -> usize {
        self.iter().map(Property::encoded_len).sum()
    }

    /// Writes the properties one after the other, without the length that stands before them in a
    /// packet. Fails, and writes nothing, when a binary value is longer than 65,535 bytes.
    pub fn encode(&self, dst: &mut BytesMut) -> Result<(), EncodeError> {
        self.check_fields()?;
        dst.reserve(self.encoded_len());
        for property in self {
            property.put(dst);
        }
        Ok(())
    }

    /// Reads all of `src` as properties, as [`encode`](Self::encode) wrote them. Strings and binary
    /// values share its buffer.
    pub fn decode(src: &mut Bytes, context: Context) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(std::mem::take(src));
        let mut seen = Seen::default();
        let mut list = Self::new();
        while !reader.is_empty() {
            list.push(Property::read(&mut reader, context, &mut seen)?);
        }
        list.give_back_spare();
        Ok(list)
    }

    /// A long list of tiny properties must not keep what it took to grow: in memory they are some
    /// times larger than on the wire as it is.
    fn give_back_spare(&mut self) {
        match &mut self.0 {
            Some(list) if list.len() > USUAL_LEN_MAX => list.shrink_to_fit(),
            _ => {}
        }
    }

    /// Reads the length and that many bytes of properties.
    pub(crate) fn read(reader: &mut Reader, context: Context) -> Result<Self, DecodeError> {
        let len = reader.varint()?;
        if len == 0 {
            return Ok(Self::new());
        }
        let mut list = reader.take(len as usize)?;
        Self::decode(&mut list, context)
    }

    /// Bytes that [`put`](Self::put) writes: the length and the properties.
    pub(crate) fn field_len(&self) -> usize {
        let len = self.encoded_len();
        varint_len(len) + len
    }

    /// Writes the length [MQTT-2.2.2-1] and the properties, which have been checked.
    pub(crate) fn put(&self, dst: &mut BytesMut) {
        put_varint(dst, self.encoded_len());
        for property in self {
            property.put(dst);
        }
    }

    /// Checks what [`read`](Self::read) would refuse.
    pub(crate) fn check(&self, context: Context) -> Result<(), EncodeError> {
        let mut seen = Seen::default();
        for property in self {
            seen.admit(property.id(), context)?;
            property.check_value()?;
        }
        self.check_fields()
    }

    /// Checks that each value fits its length.
    pub(crate) fn check_fields(&self) -> Result<(), EncodeError> {
        for property in self {
            if let Property::CorrelationData(bytes) | Property::AuthData(bytes) = property {
                check_field(bytes)?;
            }
        }
        Ok(())
    }
}

impl<'a> IntoIterator for &'a Properties {
    type Item = &'a Property;
    type IntoIter = std::slice::Iter<'a, Property>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl FromIterator<Property> for Properties {
    fn from_iter<I: IntoIterator<Item = Property>>(properties: I) -> Self {
        properties.into_iter().collect::<Vec<_>>().into()
    }
}

impl From<Vec<Property>> for Properties {
    fn from(list: Vec<Property>) -> Self {
        if list.is_empty() {
            return Self::new();
        }
        Self(Some(Box::new(list)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::packet::testing::text;

    #[test]
    fn empty_ones_take_a_pointer_and_no_allocation() {
        assert_eq!(size_of::<Properties>(), 8);
        let mut properties = Properties::from(vec![Property::TopicAlias(1)]);
        assert!(properties.remove(PropertyId::TopicAlias));
        assert!(!properties.remove(PropertyId::TopicAlias));
        assert_eq!(properties, Properties::new());
        assert_eq!(Properties::from(vec![]), Properties::new());
    }

    #[test]
    fn getters_find_values_and_keep_their_order() {
        let properties = Properties::from(vec![
            Property::user(text("b"), text("1")),
            Property::SubscriptionId(7),
            Property::user(text("a"), text("2")),
            Property::SubscriptionId(3),
            Property::ContentType(text("t")),
            Property::MessageExpiry(4),
        ]);
        let names: Vec<_> = properties.user().map(|pair| pair.name.as_str()).collect();
        assert_eq!(names, ["b", "a"]);
        assert_eq!(properties.subscription_ids().collect::<Vec<_>>(), [7, 3]);
        assert_eq!(properties.content_type(), Some(&text("t")));
        assert_eq!(properties.message_expiry(), Some(4));
        assert_eq!(properties.topic_alias(), None);
    }

    #[test]
    fn only_what_belongs_to_the_message_is_forwarded() {
        let message = [
            Property::user(text("b"), text("1")),
            Property::PayloadFormat(1),
            Property::user(text("a"), text("2")),
            Property::MessageExpiry(4),
            Property::ContentType(text("t")),
            Property::ResponseTopic(text("r")),
            Property::CorrelationData(Bytes::from_static(b"c")),
        ];
        let mut all = message.to_vec();
        all.insert(2, Property::TopicAlias(1));
        all.insert(4, Property::SubscriptionId(1));
        all.push(Property::WillDelay(1));
        let forwarded = Properties::from(all).forwardable();
        assert_eq!(forwarded.as_slice(), message);
        let none = Properties::from(vec![Property::TopicAlias(1)]).forwardable();
        assert_eq!(none, Properties::new());
    }

    #[test]
    fn a_binary_value_that_does_not_fit_is_not_written() {
        let long = Bytes::from(vec![0; 65_536]);
        let properties = Properties::from(vec![
            Property::PayloadFormat(0),
            Property::CorrelationData(long),
        ]);
        let mut dst = BytesMut::new();
        let written = properties.encode(&mut dst);
        assert_eq!(written, Err(EncodeError::FieldTooLong(65_536)));
        assert!(dst.is_empty());
    }

    #[test]
    fn a_long_list_keeps_no_spare_room() {
        let mut src = Bytes::from([0x26, 0, 0, 0, 0].repeat(1025));
        let list = Properties::decode(&mut src, Context::Will).unwrap();
        assert_eq!(list.len(), 1025);
        assert_eq!(list.0.unwrap().capacity(), 1025);
    }

    #[test]
    fn every_property_has_a_place() {
        assert_eq!(PropertyId::ALL.len(), 27);
        for id in PropertyId::ALL {
            assert_eq!(PropertyId::from_value(id.value().into()), Some(*id));
            assert_ne!(id.contexts(), 0, "{id}");
            assert_eq!(id.contexts_of_repeats() & !id.contexts(), 0, "{id}");
        }
    }
}
