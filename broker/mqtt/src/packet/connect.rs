//! CONNECT, the only packet that says its version.

use bytes::{BufMut, Bytes, BytesMut};

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
    /// Reads the version at the head of a CONNECT, so that the caller knows it even when the rest
    /// turns out to be malformed. The bytes stay where they are.
    pub(crate) fn peek_version(body: &Bytes) -> Result<Version, DecodeError> {
        read_version(&mut Reader::new(body.clone()))
    }

    /// `version` is what [`peek_version`](Self::peek_version) has found.
    pub(super) fn decode(version: Version, body: &mut Reader) -> Result<Self, DecodeError> {
        let found = read_version(body)?;
        debug_assert_eq!(found, version);
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
fn read_version(body: &mut Reader) -> Result<Version, DecodeError> {
    let name = body.binary()?;
    let level = body.u8()?;
    Version::from_level(level)
        .filter(|version| name == version.protocol_name().as_bytes())
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
