//! The data types of the wire (5.0, section 1.5): reading them from the body of one packet, and
//! writing them.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::error::{DecodeError, EncodeError, Malformed, Violation};
use crate::packet::PacketId;
use crate::text::ByteStr;

/// The greatest variable byte integer.
pub(crate) const VARINT_MAX: u32 = 268_435_455;

const VARINT_BYTES_MAX: usize = 4;

/// What stands at the head of some bytes where a variable byte integer is expected.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum VarInt {
    /// The bytes end before the integer does.
    Incomplete,
    /// The integer and the number of bytes it takes.
    Complete { value: u32, len: usize },
}

impl VarInt {
    /// Reads the integer at the head of `src`. Padding is left for the caller to judge.
    pub(crate) fn peek(src: &[u8]) -> Result<Self, Malformed> {
        let mut value = 0;
        for (at, byte) in src.iter().take(VARINT_BYTES_MAX).enumerate() {
            value |= u32::from(byte & 0x7F) << (7 * at);
            if byte & 0x80 == 0 {
                return Ok(Self::Complete { value, len: at + 1 });
            }
        }
        if src.len() < VARINT_BYTES_MAX {
            return Ok(Self::Incomplete);
        }
        Err(Malformed::VarInt)
    }
}

/// Bytes that a variable byte integer takes.
pub(crate) const fn varint_len(value: usize) -> usize {
    match value {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x1F_FFFF => 3,
        _ => 4,
    }
}

/// Writes a variable byte integer, which the caller knows to be in range.
pub(crate) fn put_varint(dst: &mut BytesMut, value: usize) {
    debug_assert!(value <= VARINT_MAX as usize);
    let mut rest = value;
    while rest > 0x7F {
        dst.put_u8((rest & 0x7F) as u8 | 0x80);
        rest >>= 7;
    }
    dst.put_u8(rest as u8);
}

/// Writes a string or binary field, which the caller knows to fit.
pub(crate) fn put_field(dst: &mut BytesMut, field: &[u8]) {
    debug_assert!(field.len() <= usize::from(u16::MAX));
    dst.put_u16(field.len() as u16);
    dst.put_slice(field);
}

/// Bytes that a string or binary field takes.
pub(crate) const fn field_len(field: &[u8]) -> usize {
    2 + field.len()
}

/// Checks that a binary field fits its two-byte length.
pub(crate) const fn check_field(field: &[u8]) -> Result<(), EncodeError> {
    if field.len() > u16::MAX as usize {
        return Err(EncodeError::FieldTooLong(field.len()));
    }
    Ok(())
}

/// Reads the body of one packet, or of one property list, from front to end. What it hands out
/// shares the buffer.
pub(crate) struct Reader {
    rest: Bytes,
}

impl Reader {
    pub(crate) fn new(body: Bytes) -> Self {
        Self { rest: body }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        self.rest.try_get_u8().map_err(|_| Malformed::Truncated)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.rest.try_get_u16().map_err(|_| Malformed::Truncated)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.rest.try_get_u32().map_err(|_| Malformed::Truncated)
    }

    /// [MQTT-1.5.5-1] only the shortest form counts. Inside packets only 5.0 has these.
    pub(crate) fn varint(&mut self) -> Result<u32, Malformed> {
        match VarInt::peek(&self.rest)? {
            VarInt::Incomplete => Err(Malformed::Truncated),
            VarInt::Complete { value, len } if len > varint_len(value as usize) => {
                Err(Malformed::VarInt)
            }
            VarInt::Complete { value, len } => {
                self.rest.advance(len);
                Ok(value)
            }
        }
    }

    /// [MQTT-2.3.1-1] of 3.1.1, [MQTT-2.2.1-3]: 0 is no packet id.
    pub(crate) fn packet_id(&mut self) -> Result<PacketId, DecodeError> {
        let value = self.u16()?;
        Ok(PacketId::new(value).ok_or(Violation::ZeroPacketId)?)
    }

    pub(crate) fn text(&mut self) -> Result<ByteStr, Malformed> {
        Ok(ByteStr::try_from(self.binary()?)?)
    }

    pub(crate) fn binary(&mut self) -> Result<Bytes, Malformed> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<Bytes, Malformed> {
        if len > self.rest.len() {
            return Err(Malformed::Truncated);
        }
        Ok(self.rest.split_to(len))
    }

    /// Checks that nothing is left.
    pub(crate) fn finish(self) -> Result<(), Malformed> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(Malformed::TrailingBytes(left)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn encoded(value: usize) -> Vec<u8> {
        let mut dst = BytesMut::new();
        put_varint(&mut dst, value);
        dst.to_vec()
    }

    #[test]
    fn variable_byte_integers_have_the_lengths_of_the_standard() {
        for (value, bytes) in [
            (0, &[0x00][..]),
            (127, &[0x7F]),
            (128, &[0x80, 0x01]),
            (16_383, &[0xFF, 0x7F]),
            (16_384, &[0x80, 0x80, 0x01]),
            (2_097_151, &[0xFF, 0xFF, 0x7F]),
            (2_097_152, &[0x80, 0x80, 0x80, 0x01]),
            (268_435_455, &[0xFF, 0xFF, 0xFF, 0x7F]),
        ] {
            assert_eq!(encoded(value), bytes);
            assert_eq!(varint_len(value), bytes.len());
            let mut reader = Reader::new(Bytes::copy_from_slice(bytes));
            assert_eq!(reader.varint(), Ok(value as u32));
            assert!(reader.is_empty());
        }
    }

    #[test]
    fn a_fifth_byte_is_malformed_and_a_missing_one_is_waited_for() {
        assert_eq!(VarInt::peek(&[]), Ok(VarInt::Incomplete));
        assert_eq!(VarInt::peek(&[0x80; 3]), Ok(VarInt::Incomplete));
        assert_eq!(VarInt::peek(&[0x80; 4]), Err(Malformed::VarInt));
        assert_eq!(
            VarInt::peek(&[0x80, 0x80, 0x80, 0x80, 0x01]),
            Err(Malformed::VarInt)
        );
    }

    #[test]
    fn padding_is_malformed_inside_a_packet() {
        let mut reader = Reader::new(Bytes::from_static(&[0x81, 0x00]));
        assert_eq!(reader.varint(), Err(Malformed::VarInt));
    }

    #[test]
    fn fields_beyond_the_end_are_truncated() {
        let mut reader = Reader::new(Bytes::from_static(&[0, 3, b'a', b'b']));
        assert_eq!(reader.text(), Err(Malformed::Truncated));
        let mut reader = Reader::new(Bytes::from_static(&[0]));
        assert_eq!(reader.u16(), Err(Malformed::Truncated));
    }
}
