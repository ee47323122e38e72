//! Bytes of MQTT: integers, strings, properties and hex dumps. Written independently of the broker's
//! codec, and able to write what the standard forbids.

use std::fmt::Write as _;

/// The protocol a client of the kit speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V31,
    V311,
    V5,
}

impl Version {
    /// The protocol name of CONNECT.
    pub fn protocol(self) -> &'static str {
        match self {
            Self::V31 => "MQIsdp",
            Self::V311 | Self::V5 => "MQTT",
        }
    }

    /// The protocol level of CONNECT.
    pub fn level(self) -> u8 {
        match self {
            Self::V31 => 3,
            Self::V311 => 4,
            Self::V5 => 5,
        }
    }

    pub fn is_v5(self) -> bool {
        self == Self::V5
    }
}

/// A Variable Byte Integer in its shortest form.
pub fn varint(mut value: usize) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let low = u8::try_from(value % 128).expect("below 128");
        value /= 128;
        if value == 0 {
            out.push(low);
            return out;
        }
        out.push(low | 0x80);
    }
}

/// A two-byte length and the bytes: a string or binary data.
pub fn text(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    let length = u16::try_from(bytes.len()).expect("a string has at most 65,535 bytes");
    let mut out = length.to_be_bytes().to_vec();
    out.extend_from_slice(bytes);
    out
}

/// A whole packet: first byte, remaining length, body.
pub fn frame(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    out.extend(varint(body.len()));
    out.extend_from_slice(body);
    out
}

/// The identifiers of the properties of 5.0.
pub mod prop {
    pub const PAYLOAD_FORMAT: u8 = 0x01;
    pub const MESSAGE_EXPIRY: u8 = 0x02;
    pub const CONTENT_TYPE: u8 = 0x03;
    pub const RESPONSE_TOPIC: u8 = 0x08;
    pub const CORRELATION_DATA: u8 = 0x09;
    pub const SUBSCRIPTION_ID: u8 = 0x0b;
    pub const SESSION_EXPIRY: u8 = 0x11;
    pub const ASSIGNED_CLIENT_ID: u8 = 0x12;
    pub const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub const AUTH_METHOD: u8 = 0x15;
    pub const AUTH_DATA: u8 = 0x16;
    pub const REQUEST_PROBLEM_INFO: u8 = 0x17;
    pub const WILL_DELAY: u8 = 0x18;
    pub const REQUEST_RESPONSE_INFO: u8 = 0x19;
    pub const RESPONSE_INFO: u8 = 0x1a;
    pub const SERVER_REFERENCE: u8 = 0x1c;
    pub const REASON_STRING: u8 = 0x1f;
    pub const RECEIVE_MAXIMUM: u8 = 0x21;
    pub const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub const TOPIC_ALIAS: u8 = 0x23;
    pub const MAXIMUM_QOS: u8 = 0x24;
    pub const RETAIN_AVAILABLE: u8 = 0x25;
    pub const USER: u8 = 0x26;
    pub const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub const WILDCARD_AVAILABLE: u8 = 0x28;
    pub const SUBSCRIPTION_IDS_AVAILABLE: u8 = 0x29;
    pub const SHARED_AVAILABLE: u8 = 0x2a;
}

/// The properties of a packet, in the order they were added; nothing is checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Props(Vec<u8>);

/// No properties yet.
pub fn props() -> Props {
    Props::default()
}

impl Props {
    pub fn byte(self, id: u8, value: u8) -> Self {
        self.raw(&[id, value])
    }

    pub fn u16(self, id: u8, value: u16) -> Self {
        self.raw(&[id]).raw(&value.to_be_bytes())
    }

    pub fn u32(self, id: u8, value: u32) -> Self {
        self.raw(&[id]).raw(&value.to_be_bytes())
    }

    pub fn varint(self, id: u8, value: usize) -> Self {
        self.raw(&[id]).raw(&varint(value))
    }

    pub fn text(self, id: u8, value: impl AsRef<[u8]>) -> Self {
        self.raw(&[id]).raw(&text(value))
    }

    pub fn user(self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.raw(&[prop::USER]).raw(&text(name)).raw(&text(value))
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Property length and properties, as they stand in a packet.
    pub fn encoded(&self) -> Vec<u8> {
        let mut out = varint(self.0.len());
        out.extend_from_slice(&self.0);
        out
    }
}

/// Sixteen bytes a line, with the characters beside them; long packets are cut.
pub fn hexdump(bytes: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 512;
    let mut out = String::new();
    for (line, chunk) in bytes.chunks(16).take(SHOWN_BYTES_MAX / 16).enumerate() {
        let hex: String = chunk.iter().map(|b| format!("{b:02x} ")).collect();
        let plain: String = chunk.iter().map(|b| printable(*b)).collect();
        let _ = writeln!(out, "  {:04x}  {hex:<48} {plain}", line * 16);
    }
    if bytes.len() > SHOWN_BYTES_MAX {
        let _ = writeln!(out, "  ... {} bytes in all", bytes.len());
    }
    out
}

fn printable(byte: u8) -> char {
    if (0x20..0x7f).contains(&byte) {
        char::from(byte)
    } else {
        '.'
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varint_takes_the_fewest_bytes() {
        assert_eq!(varint(0), [0]);
        assert_eq!(varint(127), [127]);
        assert_eq!(varint(128), [0x80, 1]);
        assert_eq!(varint(16_384), [0x80, 0x80, 1]);
    }

    #[test]
    fn properties_keep_their_order() {
        let bytes = props().byte(1, 1).user("a", "b").encoded();
        assert_eq!(bytes, [9, 1, 1, 0x26, 0, 1, b'a', 0, 1, b'b']);
    }
}
