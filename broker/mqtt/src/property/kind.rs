//! How the value of a property stands on the wire, one type per kind of value.

use bytes::{BufMut, Bytes, BytesMut};

use super::{PropertyId, UserProperty};
use crate::error::{DecodeError, Violation};
use crate::packet::QoS;
use crate::text::ByteStr;
use crate::wire::{Reader, field_len, put_field, put_varint, varint_len};

pub(super) trait Kind {
    type Value;

    fn read(id: PropertyId, reader: &mut Reader) -> Result<Self::Value, DecodeError>;
    fn encoded_len(value: &Self::Value) -> usize;
    fn put(value: &Self::Value, dst: &mut BytesMut);

    /// The value in a buffer of its own.
    fn compact(value: &Self::Value) -> Self::Value;
}

pub(super) enum Byte {}

impl Kind for Byte {
    type Value = u8;

    fn read(_: PropertyId, reader: &mut Reader) -> Result<u8, DecodeError> {
        Ok(reader.u8()?)
    }

    fn encoded_len(_: &u8) -> usize {
        1
    }

    fn put(value: &u8, dst: &mut BytesMut) {
        dst.put_u8(*value);
    }

    fn compact(value: &u8) -> u8 {
        *value
    }
}

/// A byte that is 0 or 1; anything else is a protocol error.
pub(super) enum Flag {}

impl Kind for Flag {
    type Value = bool;

    fn read(id: PropertyId, reader: &mut Reader) -> Result<bool, DecodeError> {
        match reader.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Violation::PropertyValue(id).into()),
        }
    }

    fn encoded_len(_: &bool) -> usize {
        1
    }

    fn put(value: &bool, dst: &mut BytesMut) {
        dst.put_u8(u8::from(*value));
    }

    fn compact(value: &bool) -> bool {
        *value
    }
}

/// A byte that is a QoS.
pub(super) enum Level {}

impl Kind for Level {
    type Value = QoS;

    fn read(id: PropertyId, reader: &mut Reader) -> Result<QoS, DecodeError> {
        let qos = QoS::try_from(reader.u8()?);
        Ok(qos.map_err(|_| Violation::PropertyValue(id))?)
    }

    fn encoded_len(_: &QoS) -> usize {
        1
    }

    fn put(value: &QoS, dst: &mut BytesMut) {
        dst.put_u8(value.value());
    }

    fn compact(value: &QoS) -> QoS {
        *value
    }
}

pub(super) enum TwoBytes {}

impl Kind for TwoBytes {
    type Value = u16;

    fn read(_: PropertyId, reader: &mut Reader) -> Result<u16, DecodeError> {
        Ok(reader.u16()?)
    }

    fn encoded_len(_: &u16) -> usize {
        2
    }

    fn put(value: &u16, dst: &mut BytesMut) {
        dst.put_u16(*value);
    }

    fn compact(value: &u16) -> u16 {
        *value
    }
}

pub(super) enum FourBytes {}

impl Kind for FourBytes {
    type Value = u32;

    fn read(_: PropertyId, reader: &mut Reader) -> Result<u32, DecodeError> {
        Ok(reader.u32()?)
    }

    fn encoded_len(_: &u32) -> usize {
        4
    }

    fn put(value: &u32, dst: &mut BytesMut) {
        dst.put_u32(*value);
    }

    fn compact(value: &u32) -> u32 {
        *value
    }
}

pub(super) enum VarInt {}

impl Kind for VarInt {
    type Value = u32;

    fn read(_: PropertyId, reader: &mut Reader) -> Result<u32, DecodeError> {
        Ok(reader.varint()?)
    }

    fn encoded_len(value: &u32) -> usize {
        varint_len(*value as usize)
    }

    fn put(value: &u32, dst: &mut BytesMut) {
        put_varint(dst, *value as usize);
    }

    fn compact(value: &u32) -> u32 {
        *value
    }
}

pub(super) enum Text {}

impl Kind for Text {
    type Value = ByteStr;

    fn read(_: PropertyId, reader: &mut Reader) -> Result<ByteStr, DecodeError> {
        Ok(reader.text()?)
    }

    fn encoded_len(value: &ByteStr) -> usize {
        field_len(value.as_bytes())
    }

    fn put(value: &ByteStr, dst: &mut BytesMut) {
        put_field(dst, value.as_bytes());
    }

    fn compact(value: &ByteStr) -> ByteStr {
        value.compact()
    }
}

pub(super) enum Binary {}

impl Kind for Binary {
    type Value = Bytes;

    fn read(_: PropertyId, reader: &mut Reader) -> Result<Bytes, DecodeError> {
        Ok(reader.binary()?)
    }

    fn encoded_len(value: &Bytes) -> usize {
        field_len(value)
    }

    fn put(value: &Bytes, dst: &mut BytesMut) {
        put_field(dst, value);
    }

    fn compact(value: &Bytes) -> Bytes {
        Bytes::copy_from_slice(value)
    }
}

/// Two strings, each by all rules of strings [MQTT-1.5.7-1].
pub(super) enum Pair {}

impl Kind for Pair {
    type Value = UserProperty;

    fn read(_: PropertyId, reader: &mut Reader) -> Result<UserProperty, DecodeError> {
        let name = reader.text()?;
        let value = reader.text()?;
        Ok(UserProperty { name, value })
    }

    fn encoded_len(pair: &UserProperty) -> usize {
        field_len(pair.name.as_bytes()) + field_len(pair.value.as_bytes())
    }

    fn put(pair: &UserProperty, dst: &mut BytesMut) {
        put_field(dst, pair.name.as_bytes());
        put_field(dst, pair.value.as_bytes());
    }

    fn compact(value: &UserProperty) -> UserProperty {
        UserProperty {
            name: value.name.compact(),
            value: value.value.compact(),
        }
    }
}
