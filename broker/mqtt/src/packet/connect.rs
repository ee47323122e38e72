//! CONNECT, the only packet that says its version.

use bytes::{BufMut, Bytes, BytesMut};

use super::version::Level;
use super::{Body, PacketType, QoS, Version};
use crate::error::{DecodeError, EncodeError, Malformed, Violation};
use crate::property::{Context, Properties, PropertyId};
use crate::text::ByteStr;
use crate::wire::{Reader, check_field, field_len, put_field};

const RESERVED: u8 = 0b0000_0001;
const CLEAN_START: u8 = 0b0000_0010;
const WILL: u8 = 0b0000_0100;
const WILL_QOS: u8 = 0b0001_1000;
const WILL_QOS_SHIFT: u8 = 3;
const WILL_RETAIN: u8 = 0b0010_0000;
const PASSWORD: u8 = 0b0100_0000;
const USER_NAME: u8 = 0b1000_0000;

/// The client introduces itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect {
    /// The version that the whole connection speaks.
    pub version: Version,
    /// May be empty; whether the server then assigns one is not the codec's matter.
    pub client_id: ByteStr,
    /// Clean Session in 3.x.
    pub clean_start: bool,
    /// In seconds; 0 switches it off.
    pub keep_alive_s: u16,
    /// What is published when the connection ends badly.
    pub will: Option<Will>,
    /// Who connects.
    pub username: Option<ByteStr>,
    /// Any bytes; in 3.x only together with a user name.
    pub password: Option<Bytes>,
    /// In 5.0.
    pub properties: Properties,
}

/// The message that the server publishes for a client that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Will {
    /// Not yet checked to be a topic name.
    pub topic: ByteStr,
    /// At most 65,535 bytes.
    pub payload: Bytes,
    /// The QoS to publish it with.
    pub qos: QoS,
    /// Whether it becomes a retained message.
    pub retain: bool,
    /// Will delay and what goes on to subscribers, in 5.0.
    pub properties: Properties,
}

impl Connect {
    /// Reads the level at the head of a CONNECT, so that the caller knows it even when the rest
    /// turns out to be malformed. The bytes stay where they are.
    pub(crate) fn peek_level(body: &Bytes) -> Result<Level, DecodeError> {
        read_level(&mut Reader::new(body.clone()))
    }

    pub(super) fn decode(body: &mut Reader) -> Result<Self, DecodeError> {
        let version = read_level(body)?.version;
        let flags = body.u8()?;
        check_flags(flags, version)?;
        let keep_alive_s = body.u16()?;
        let properties = match version {
            Version::V5 => Properties::read(body, Context::Connect)?,
            Version::V3 | Version::V4 => Properties::new(),
        };
        // [MQTT-3.1.3-1], [MQTT-3.1.3-3]
        let client_id = body.text()?;
        let will = match flags & WILL {
            0 => None,
            _ => Some(Will::decode(flags, version, body)?),
        };
        let username = match flags & USER_NAME == 0 || is_left_out(version, body) {
            true => None,
            false => Some(body.text()?),
        };
        let password = match flags & PASSWORD == 0 || is_left_out(version, body) {
            true => None,
            false => Some(body.binary()?),
        };
        let connect = Self {
            version,
            client_id,
            clean_start: flags & CLEAN_START != 0,
            keep_alive_s,
            will,
            username,
            password,
            properties,
        };
        connect.check_auth_data()?;
        Ok(connect)
    }

    /// Authentication data belongs to a method (5.0, section 3.1.2.11.10).
    fn check_auth_data(&self) -> Result<(), Violation> {
        if self.properties.auth_data().is_some() && self.properties.auth_method().is_none() {
            return Err(Violation::MissingProperty(PropertyId::AuthMethod));
        }
        Ok(())
    }

    fn connect_flags(&self) -> u8 {
        let flag = |flag, set| if set { flag } else { 0 };
        let will = self.will.as_ref().map_or(0, |will| {
            WILL | will.qos.value() << WILL_QOS_SHIFT | flag(WILL_RETAIN, will.retain)
        });
        flag(CLEAN_START, self.clean_start)
            | will
            | flag(USER_NAME, self.username.is_some())
            | flag(PASSWORD, self.password.is_some())
    }
}

/// [MQTT-3.1.2-1], [MQTT-3.1.2-2]: name and level must be those of one version.
fn read_level(body: &mut Reader) -> Result<Level, DecodeError> {
    let name = body.binary()?;
    let level = body.u8()?;
    Level::parse(level)
        .filter(|level| name == level.version.protocol_name().as_bytes())
        .ok_or(DecodeError::UnsupportedVersion { level })
}

/// 3.1 does not use the reserved bit nor, without a will, the other bits of the will.
fn check_flags(flags: u8, version: Version) -> Result<(), DecodeError> {
    let malformed = Err(Malformed::ConnectFlags(flags).into());
    // [MQTT-3.1.2-14] of 3.1.1, [MQTT-3.1.2-12]
    if flags & WILL_QOS == WILL_QOS {
        return malformed;
    }
    // [MQTT-3.1.2-3]
    if flags & RESERVED != 0 && version > Version::V3 {
        return malformed;
    }
    // [MQTT-3.1.2-11], [MQTT-3.1.2-13]; of 3.1.1 also [MQTT-3.1.2-15]
    if flags & WILL == 0 && flags & (WILL_QOS | WILL_RETAIN) != 0 && version > Version::V3 {
        return malformed;
    }
    // [MQTT-3.1.2-22] of 3.1.1; 5.0 takes a password alone [MQTT-3.1.2-19].
    if flags & PASSWORD != 0 && flags & USER_NAME == 0 && version < Version::V5 {
        return Err(Violation::PasswordWithoutUserName.into());
    }
    Ok(())
}

/// In 3.1 the length of the packet has precedence over the flags of user name and password, which
/// may be missing then.
fn is_left_out(version: Version, body: &Reader) -> bool {
    version == Version::V3 && body.is_empty()
}

impl Will {
    fn decode(flags: u8, version: Version, body: &mut Reader) -> Result<Self, DecodeError> {
        let qos = QoS::try_from((flags & WILL_QOS) >> WILL_QOS_SHIFT)
            .map_err(|_| Malformed::ConnectFlags(flags))?;
        // [MQTT-3.1.2-9]
        let properties = match version {
            Version::V5 => Properties::read(body, Context::Will)?,
            Version::V3 | Version::V4 => Properties::new(),
        };
        Ok(Self {
            qos,
            retain: flags & WILL_RETAIN != 0,
            properties,
            topic: body.text()?,
            payload: body.binary()?,
        })
    }

    fn check(&self, version: Version) -> Result<(), EncodeError> {
        check_field(&self.payload)?;
        match version {
            Version::V5 => self.properties.check(Context::Will),
            Version::V3 | Version::V4 => Ok(()),
        }
    }

    fn encoded_len(&self, version: Version) -> usize {
        let properties = match version {
            Version::V5 => self.properties.field_len(),
            Version::V3 | Version::V4 => 0,
        };
        properties + field_len(self.topic.as_bytes()) + field_len(&self.payload)
    }

    fn put(&self, version: Version, dst: &mut BytesMut) {
        if version == Version::V5 {
            self.properties.put(dst);
        }
        put_field(dst, self.topic.as_bytes());
        put_field(dst, &self.payload);
    }
}

/// A CONNECT is always written in its own version; the version given with it does not count.
impl Body for Connect {
    fn packet_type(&self) -> PacketType {
        PacketType::Connect
    }

    fn check(&self, _: Version) -> Result<(), EncodeError> {
        if let Some(password) = &self.password {
            check_field(password)?;
        }
        if let Some(will) = &self.will {
            will.check(self.version)?;
        }
        check_flags(self.connect_flags(), self.version)?;
        match self.version {
            Version::V5 => {
                self.check_auth_data()?;
                self.properties.check(Context::Connect)
            }
            Version::V3 | Version::V4 => Ok(()),
        }
    }

    fn body_len(&self, _: Version) -> usize {
        let optional = |field: Option<&Bytes>| field.map_or(0, |field| field_len(field));
        let properties = match self.version {
            Version::V5 => self.properties.field_len(),
            Version::V3 | Version::V4 => 0,
        };
        let will = self.will.as_ref();
        field_len(self.version.protocol_name().as_bytes())
            + 4
            + properties
            + field_len(self.client_id.as_bytes())
            + will.map_or(0, |will| will.encoded_len(self.version))
            + optional(self.username.as_ref().map(ByteStr::as_bytes))
            + optional(self.password.as_ref())
    }

    fn put_body(&self, _: Version, dst: &mut BytesMut) {
        put_field(dst, self.version.protocol_name().as_bytes());
        dst.put_u8(self.version.level());
        dst.put_u8(self.connect_flags());
        dst.put_u16(self.keep_alive_s);
        if self.version == Version::V5 {
            self.properties.put(dst);
        }
        put_field(dst, self.client_id.as_bytes());
        if let Some(will) = &self.will {
            will.put(self.version, dst);
        }
        if let Some(username) = &self.username {
            put_field(dst, username.as_bytes());
        }
        if let Some(password) = &self.password {
            put_field(dst, password);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::property::Property;

    fn connect(version: Version, client_id: &str) -> Connect {
        Connect {
            version,
            client_id: text(client_id),
            clean_start: true,
            keep_alive_s: 60,
            will: None,
            username: None,
            password: None,
            properties: Properties::new(),
        }
    }

    fn full(version: Version) -> Connect {
        Connect {
            will: Some(Will {
                topic: text("w"),
                payload: Bytes::from_static(b"gone"),
                qos: QoS::ExactlyOnce,
                retain: true,
                properties: Properties::new(),
            }),
            username: Some(text("u")),
            password: Some(Bytes::from_static(&[0xFF])),
            clean_start: false,
            ..connect(version, "c")
        }
    }

    /// A CONNECT of 3.1.1 with these flags and this payload.
    fn v4_bytes(flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x10, 10 + payload.len() as u8];
        bytes.extend_from_slice(b"\0\x04MQTT\x04");
        bytes.extend_from_slice(&[flags, 0, 60]);
        bytes.extend_from_slice(payload);
        bytes
    }

    fn v3_bytes(flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x10, 12 + payload.len() as u8];
        bytes.extend_from_slice(b"\0\x06MQIsdp\x03");
        bytes.extend_from_slice(&[flags, 0, 60]);
        bytes.extend_from_slice(payload);
        bytes
    }

    fn v5_bytes(flags: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x10, 10 + rest.len() as u8];
        bytes.extend_from_slice(b"\0\x04MQTT\x05");
        bytes.extend_from_slice(&[flags, 0, 60]);
        bytes.extend_from_slice(rest);
        bytes
    }

    #[test]
    fn the_shortest_one_in_each_version() {
        both_ways(connect(V3, "c"), V3, &v3_bytes(2, b"\0\x01c"));
        both_ways(connect(V4, ""), V4, &v4_bytes(2, b"\0\0"));
        both_ways(connect(V5, ""), V5, &v5_bytes(2, b"\0\0\0"));
    }

    #[test]
    fn will_user_name_and_password_in_each_version() {
        let payload = b"\0\x01c\0\x01w\0\x04gone\0\x01u\0\x01\xFF";
        both_ways(full(V3), V3, &v3_bytes(0b1111_0100, payload));
        both_ways(full(V4), V4, &v4_bytes(0b1111_0100, payload));
        let with_properties = b"\0\0\x01c\0\0\x01w\0\x04gone\0\x01u\0\x01\xFF";
        both_ways(full(V5), V5, &v5_bytes(0b1111_0100, with_properties));
    }

    #[test]
    fn all_properties_of_packet_and_will_are_carried() {
        let mut packet = full(V5);
        packet.properties = Properties::from(vec![
            Property::SessionExpiry(u32::MAX),
            Property::ReceiveMaximum(10),
            Property::MaximumPacketSize(1000),
            Property::TopicAliasMaximum(0),
            Property::RequestResponseInfo(true),
            Property::RequestProblemInfo(false),
            Property::user(text("k"), text("v")),
            Property::AuthMethod(text("m")),
            Property::AuthData(Bytes::from_static(b"d")),
        ]);
        packet.will.as_mut().unwrap().properties = Properties::from(vec![
            Property::WillDelay(5),
            Property::PayloadFormat(1),
            Property::MessageExpiry(6),
            Property::ContentType(text("t")),
            Property::ResponseTopic(text("r")),
            Property::CorrelationData(Bytes::from_static(b"x")),
            Property::user(text("k"), text("v")),
        ]);
        let mut rest = vec![
            39, 0x11, 0xFF, 0xFF, 0xFF, 0xFF, 0x21, 0, 10, 0x27, 0, 0, 3, 0xE8, 0x22, 0, 0, 0x19,
            1, 0x17, 0, 0x26, 0, 1, b'k', 0, 1, b'v', 0x15, 0, 1, b'm', 0x16, 0, 1, b'd',
        ];
        rest[0] = rest.len() as u8 - 1;
        rest.extend_from_slice(b"\0\x01c");
        let will = [
            31, 0x18, 0, 0, 0, 5, 0x01, 1, 0x02, 0, 0, 0, 6, 0x03, 0, 1, b't', 0x08, 0, 1, b'r',
            0x09, 0, 1, b'x', 0x26, 0, 1, b'k', 0, 1, b'v',
        ];
        rest.extend_from_slice(&will);
        rest.extend_from_slice(b"\0\x01w\0\x04gone\0\x01u\0\x01\xFF");
        both_ways(packet, V5, &v5_bytes(0b1111_0100, &rest));
    }

    #[test]
    fn unknown_levels_and_names_are_answered_in_a_form_the_client_may_know() {
        let ask = |name: &[u8], level| {
            let mut bytes = vec![0x10, name.len() as u8 + 8, 0, name.len() as u8];
            bytes.extend_from_slice(name);
            bytes.extend_from_slice(&[level, 2, 0, 0, 0, 0]);
            bytes[1] = bytes.len() as u8 - 2;
            first(&bytes).unwrap_err()
        };
        for (name, level, answer) in [
            (&b"MQTT"[..], 6, V5),
            (b"MQTT", 3, V4),
            (b"MQTT", 0, V4),
            (b"MQIsdp", 4, V4),
            (b"MQIsdp", 5, V5),
            (b"mqtt", 5, V5),
            (b"\xFF", 4, V4),
            (b"MQTT", 0x83, V4),
            (b"MQTT", 0x85, V5),
        ] {
            let error = ask(name, level);
            assert_eq!(error, DecodeError::UnsupportedVersion { level });
            assert_eq!(error.answer_version(), Some(answer), "{name:?} {level}");
        }
    }

    #[test]
    fn a_bridge_of_3x_marks_its_level() {
        for (mut bytes, version) in [(v3_bytes(2, b"\0\x01c"), V3), (v4_bytes(2, b"\0\x01c"), V4)] {
            let level = if version == V3 { 10 } else { 8 };
            for mark in [0, 0x80] {
                bytes[level] = version.level() | mark;
                let mut decoder = crate::codec::Decoder::new(1_000);
                let packet = decoder.decode(&mut BytesMut::from(&bytes[..]));
                assert_eq!(packet, Ok(Some(connect(version, "c").into())));
                assert_eq!(decoder.is_bridge(), mark != 0);
            }
        }
    }

    #[test]
    fn flags_that_contradict_each_other_are_malformed() {
        for (flags, payload) in [
            (0b0000_0011, &b"\0\x01c"[..]),          // reserved
            (0b0000_1010, b"\0\x01c"),               // will QoS without a will
            (0b0010_0010, b"\0\x01c"),               // will retain without a will
            (0b0001_1110, b"\0\x01c\0\x01w\0\x01p"), // will QoS 3
        ] {
            let refused = Err(Malformed::ConnectFlags(flags).into());
            assert_eq!(first(&v4_bytes(flags, payload)), refused);
            let rest = [b"\0", payload].concat();
            assert_eq!(first(&v5_bytes(flags, &rest)), refused);
        }
    }

    #[test]
    fn version_3_1_does_not_use_some_flags() {
        let expected = Ok(connect(V3, "c").into());
        assert_eq!(first(&v3_bytes(0b0010_1011, b"\0\x01c")), expected);
        assert!(first(&v3_bytes(0b0001_1110, b"\0\x01c\0\x01w\0\x01p")).is_err());
    }

    #[test]
    fn version_3_1_may_leave_out_user_name_and_password() {
        let expected = Ok(connect(V3, "c").into());
        assert_eq!(first(&v3_bytes(0b1100_0010, b"\0\x01c")), expected);
        let named = Connect {
            username: Some(text("u")),
            ..connect(V3, "c")
        };
        let decoded = first(&v3_bytes(0b1100_0010, b"\0\x01c\0\x01u"));
        assert_eq!(decoded, Ok(named.into()));
        let truncated = Err(Malformed::Truncated.into());
        assert_eq!(first(&v4_bytes(0b1100_0010, b"\0\x01c")), truncated);
    }

    #[test]
    fn long_and_empty_client_ids_are_taken() {
        for version in [V3, V4, V5] {
            for client_id in [String::new(), "x".repeat(24), "é".repeat(30_000)] {
                let packet = connect(version, &client_id);
                let bytes = encoded(packet.clone(), version).unwrap();
                assert_eq!(first(&bytes), Ok(packet.into()));
            }
        }
    }

    #[test]
    fn a_password_alone_needs_5() {
        let violation = Violation::PasswordWithoutUserName;
        let payload = b"\0\x01c\0\x01p";
        let alone = |version| Connect {
            password: Some(Bytes::from_static(b"p")),
            ..connect(version, "c")
        };
        assert_eq!(
            first(&v3_bytes(0b0100_0010, payload)),
            Err(violation.into())
        );
        assert_eq!(
            first(&v4_bytes(0b0100_0010, payload)),
            Err(violation.into())
        );
        assert_eq!(encoded(alone(V4), V4), Err(violation.into()));
        both_ways(alone(V5), V5, &v5_bytes(0b0100_0010, b"\0\0\x01c\0\x01p"));
    }

    #[test]
    fn authentication_data_needs_a_method() {
        let missing = Violation::MissingProperty(PropertyId::AuthMethod);
        let bytes = v5_bytes(2, b"\x04\x16\0\x01d\0\x01c");
        assert_eq!(first(&bytes), Err(missing.into()));
        let mut packet = connect(V5, "c");
        packet.properties.push(Property::AuthData(Bytes::new()));
        assert_eq!(encoded(packet, V5), Err(missing.into()));
    }

    #[test]
    fn properties_out_of_range_repeated_or_misplaced_are_refused() {
        let with = |list: &[u8]| {
            let rest = [&[list.len() as u8], list, b"\0\x01c"].concat();
            first(&v5_bytes(2, &rest))
        };
        for (id, list) in [
            (PropertyId::ReceiveMaximum, &[0x21, 0, 0][..]),
            (PropertyId::MaximumPacketSize, &[0x27, 0, 0, 0, 0]),
            (PropertyId::RequestProblemInfo, &[0x17, 2]),
            (PropertyId::RequestResponseInfo, &[0x19, 2]),
        ] {
            assert_eq!(with(list), Err(Violation::PropertyValue(id).into()));
        }
        let repeated = Violation::RepeatedProperty(PropertyId::TopicAliasMaximum);
        let list = [0x22, 0, 1, 0x22, 0, 1];
        assert_eq!(with(&list), Err(repeated.into()));
        let misplaced = Malformed::MisplacedProperty {
            property: PropertyId::WillDelay,
            context: Context::Connect,
        };
        assert_eq!(with(&[0x18, 0, 0, 0, 1]), Err(misplaced.into()));
        let unknown = |id| Err(Malformed::UnknownProperty(id).into());
        assert_eq!(with(&[0x04, 0]), unknown(4));
        assert_eq!(with(&[0x80, 0x01, 0]), unknown(128));
        assert_eq!(with(&[0x91, 0x00, 0]), Err(Malformed::VarInt.into()));
    }

    #[test]
    fn a_property_list_longer_than_the_packet_is_truncated() {
        let decoded = first(&v5_bytes(2, &[9, 0x22, 0, 1]));
        assert_eq!(decoded, Err(Malformed::Truncated.into()));
    }

    #[test]
    fn bytes_after_the_payload_are_malformed() {
        let decoded = first(&v4_bytes(2, b"\0\x01cx"));
        assert_eq!(decoded, Err(Malformed::TrailingBytes(1).into()));
    }

    #[test]
    fn fields_that_do_not_fit_their_length_are_not_written() {
        let long = || Bytes::from(vec![0; 65_536]);
        let mut packet = full(V4);
        packet.password = Some(long());
        let refused = Err(EncodeError::FieldTooLong(65_536));
        assert_eq!(encoded(packet, V4), refused);
        let mut packet = full(V5);
        packet.will.as_mut().unwrap().payload = long();
        assert_eq!(encoded(packet, V5), refused);
        let mut packet = full(V5);
        packet.properties.push(Property::AuthMethod(text("m")));
        packet.properties.push(Property::AuthData(long()));
        assert_eq!(encoded(packet, V5), refused);
    }
}
