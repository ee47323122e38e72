//! A packet that came from the broker, with readers for its fields. Anything ill-formed panics with a
//! dump: the broker must not send it.

use std::fmt;

use crate::wire::{Version, hexdump};

/// One packet as received.
#[derive(Clone, PartialEq, Eq)]
pub struct Received {
    pub bytes: Vec<u8>,
    version: Version,
    body_at: usize,
}

/// The value of a property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Int(u32),
    Bytes(Vec<u8>),
    Pair(Vec<u8>, Vec<u8>),
}

/// Cuts the packet at the head of `buffer` off, or returns `None` while bytes are missing.
pub fn split_packet(buffer: &mut Vec<u8>, version: Version) -> Option<Received> {
    let mut cursor = Cursor {
        bytes: buffer,
        at: 1,
    };
    let length = cursor.varint_if_whole()?;
    let body_at = cursor.at;
    if buffer.len() < body_at + length {
        return None;
    }
    let bytes = buffer.drain(..body_at + length).collect();
    Some(Received {
        bytes,
        version,
        body_at,
    })
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({} bytes)\n{}",
            self.name(),
            self.bytes.len(),
            hexdump(&self.bytes)
        )
    }
}

impl Received {
    /// The packet type, 1 to 15.
    pub fn kind(&self) -> u8 {
        self.bytes[0] >> 4
    }

    pub fn flags(&self) -> u8 {
        self.bytes[0] & 0x0f
    }

    pub fn name(&self) -> &'static str {
        const NAMES: [&str; 16] = [
            "reserved 0",
            "CONNECT",
            "CONNACK",
            "PUBLISH",
            "PUBACK",
            "PUBREC",
            "PUBREL",
            "PUBCOMP",
            "SUBSCRIBE",
            "SUBACK",
            "UNSUBSCRIBE",
            "UNSUBACK",
            "PINGREQ",
            "PINGRESP",
            "DISCONNECT",
            "AUTH",
        ];
        NAMES[usize::from(self.kind())]
    }

    pub fn is_publish(&self) -> bool {
        self.kind() == 3
    }

    pub fn dup(&self) -> bool {
        self.flags() & 8 != 0
    }

    pub fn qos(&self) -> u8 {
        self.flags() >> 1 & 3
    }

    pub fn retain(&self) -> bool {
        self.flags() & 1 != 0
    }

    pub fn topic(&self) -> String {
        assert!(self.is_publish(), "only PUBLISH has a topic: {self:?}");
        String::from_utf8(self.cursor().text()).expect("a topic is UTF-8")
    }

    /// The packet id; panics where the packet has none.
    pub fn packet_id(&self) -> u16 {
        let mut cursor = self.cursor();
        match self.kind() {
            3 if self.qos() > 0 => drop(cursor.text()),
            4..=11 => {}
            _ => panic!("no packet id in {self:?}"),
        }
        cursor.u16()
    }

    pub fn payload(&self) -> Vec<u8> {
        let mut cursor = self.at_props();
        if self.version.is_v5() {
            cursor.props();
        }
        cursor.rest()
    }

    pub fn session_present(&self) -> bool {
        assert_eq!(self.kind(), 2, "only CONNACK has a session flag: {self:?}");
        self.bytes[self.body_at] & 1 != 0
    }

    /// The reason or return code of a packet that has one; 0 where it is left out.
    pub fn reason(&self) -> u8 {
        let body = &self.bytes[self.body_at..];
        let at = match self.kind() {
            2 => 1,
            4..=7 => 2,
            14 | 15 => 0,
            _ => panic!("no reason in {self:?}"),
        };
        body.get(at).copied().unwrap_or(0)
    }

    /// The codes of SUBACK or UNSUBACK.
    pub fn codes(&self) -> Vec<u8> {
        assert!(matches!(self.kind(), 9 | 11), "no codes in {self:?}");
        let mut cursor = self.cursor();
        cursor.u16();
        if self.version.is_v5() {
            cursor.props();
        }
        cursor.rest()
    }

    /// All properties in order; none where they are left out.
    pub fn props(&self) -> Vec<(u8, Value)> {
        if !self.version.is_v5() {
            return Vec::new();
        }
        let mut cursor = self.at_props();
        if cursor.at >= self.bytes.len() {
            Vec::new()
        } else {
            cursor.props()
        }
    }

    /// Every value of one property.
    pub fn prop(&self, id: u8) -> Vec<Value> {
        self.props()
            .into_iter()
            .filter(|(found, _)| *found == id)
            .map(|(_, value)| value)
            .collect()
    }

    /// The number in a property that stands at most once.
    pub fn int_prop(&self, id: u8) -> Option<u32> {
        match self.prop(id).as_slice() {
            [] => None,
            [Value::Int(value)] => Some(*value),
            _ => panic!("property {id:#04x} is not one number in {self:?}"),
        }
    }

    /// The bytes in a property that stands at most once.
    pub fn bytes_prop(&self, id: u8) -> Option<Vec<u8>> {
        match self.prop(id).as_slice() {
            [] => None,
            [Value::Bytes(value)] => Some(value.clone()),
            _ => panic!("property {id:#04x} is not one string in {self:?}"),
        }
    }

    /// The name and value of each user property, in order.
    pub fn user_props(&self) -> Vec<(String, String)> {
        let plain =
            |bytes: &Vec<u8>| String::from_utf8(bytes.clone()).expect("user properties are UTF-8");
        let pair = |value: &Value| match value {
            Value::Pair(name, value) => (plain(name), plain(value)),
            _ => panic!("not a pair in {self:?}"),
        };
        self.prop(crate::wire::prop::USER)
            .iter()
            .map(pair)
            .collect()
    }

    fn cursor(&self) -> Cursor<'_> {
        Cursor {
            bytes: &self.bytes,
            at: self.body_at,
        }
    }

    fn at_props(&self) -> Cursor<'_> {
        let mut cursor = self.cursor();
        match self.kind() {
            2 => cursor.at += 2,
            3 => {
                cursor.text();
                cursor.at += if self.qos() > 0 { 2 } else { 0 };
            }
            4..=7 => cursor.at += 3,
            9 | 11 => cursor.at += 2,
            14 | 15 => cursor.at += 1,
            _ => panic!("no properties in {self:?}"),
        }
        cursor
    }
}

/// Reads fields one behind the other.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn take(&mut self, length: usize) -> &[u8] {
        let end = self.at + length;
        assert!(
            end <= self.bytes.len(),
            "packet ends within a field:\n{}",
            hexdump(self.bytes)
        );
        let taken = &self.bytes[self.at..end];
        self.at = end;
        taken
    }

    fn u8(&mut self) -> u8 {
        self.take(1)[0]
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take(2).try_into().expect("two bytes"))
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().expect("four bytes"))
    }

    fn text(&mut self) -> Vec<u8> {
        let length = usize::from(self.u16());
        self.take(length).to_vec()
    }

    fn varint(&mut self) -> usize {
        self.varint_if_whole()
            .unwrap_or_else(|| panic!("cut varint:\n{}", hexdump(self.bytes)))
    }

    /// Panics when the integer is longer than needed [MQTT-1.5.5-1] or than four bytes.
    fn varint_if_whole(&mut self) -> Option<usize> {
        let mut value = 0;
        for place in 0..4 {
            let byte = *self.bytes.get(self.at)?;
            self.at += 1;
            value |= usize::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                assert!(
                    byte != 0 || place == 0,
                    "a padded varint:\n{}",
                    hexdump(self.bytes)
                );
                return Some(value);
            }
        }
        panic!("a varint of more than four bytes:\n{}", hexdump(self.bytes));
    }

    fn props(&mut self) -> Vec<(u8, Value)> {
        let length = self.varint();
        let end = self.at + length;
        let mut found = Vec::new();
        while self.at < end {
            let id = self.u8();
            let value = self.value(id);
            found.push((id, value));
        }
        assert_eq!(
            self.at,
            end,
            "properties overrun their length:\n{}",
            hexdump(self.bytes)
        );
        found
    }

    fn value(&mut self, id: u8) -> Value {
        match id {
            0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28 | 0x29 | 0x2a => Value::Int(self.u8().into()),
            0x13 | 0x21 | 0x22 | 0x23 => Value::Int(self.u16().into()),
            0x02 | 0x11 | 0x18 | 0x27 => Value::Int(self.u32()),
            0x0b => Value::Int(u32::try_from(self.varint()).expect("below 2^28")),
            0x03 | 0x08 | 0x09 | 0x12 | 0x15 | 0x16 | 0x1a | 0x1c | 0x1f => {
                Value::Bytes(self.text())
            }
            0x26 => Value::Pair(self.text(), self.text()),
            _ => panic!("unknown property {id:#04x}:\n{}", hexdump(self.bytes)),
        }
    }

    fn rest(&mut self) -> Vec<u8> {
        let length = self.bytes.len() - self.at;
        self.take(length).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packets::{Packet, publish};
    use crate::wire::{prop, props};

    #[test]
    fn fields_of_a_publish_are_read_back() {
        let properties = props().varint(prop::SUBSCRIPTION_ID, 300).user("k", "v");
        let packet = publish("a/b").qos1(9).props(properties).payload("hi");
        let mut buffer = packet.encode(Version::V5);
        buffer.push(0xd0);
        let read = split_packet(&mut buffer, Version::V5).expect("a whole packet");
        assert_eq!(
            (read.topic().as_str(), read.packet_id(), read.qos()),
            ("a/b", 9, 1)
        );
        assert_eq!(read.int_prop(prop::SUBSCRIPTION_ID), Some(300));
        assert_eq!(read.user_props(), [("k".to_owned(), "v".to_owned())]);
        assert_eq!((read.payload(), buffer), (b"hi".to_vec(), vec![0xd0]));
    }

    #[test]
    fn half_a_packet_stays_in_the_buffer() {
        let mut buffer = vec![0x30, 5, 0, 1];
        assert!(split_packet(&mut buffer, Version::V311).is_none());
        assert_eq!(buffer.len(), 4);
    }
}
