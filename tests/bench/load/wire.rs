//! The bytes of MQTT 3.1.1, as far as a load needs them, written by hand: a broker must not be measured with its own
//! codec. It keeps no state.

use std::ops::Range;
use std::str::FromStr;

use anyhow::{bail, ensure};

pub const PUBACK: u8 = 0x40;
pub const PUBREC: u8 = 0x50;
pub const PUBREL: u8 = 0x62;
pub const PUBCOMP: u8 = 0x70;

/// Stream, number, due time and check of a payload: 4 + 8 + 8 + 4 bytes.
pub const PAYLOAD_BYTES_MIN: usize = 24;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QoS {
    Zero = 0,
    One = 1,
    Two = 2,
}

impl FromStr for QoS {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "0" => Ok(Self::Zero),
            "1" => Ok(Self::One),
            "2" => Ok(Self::Two),
            _ => Err("0, 1 or 2".to_owned()),
        }
    }
}

/// What a broker may send to a client of this program.
#[derive(PartialEq, Eq, Debug)]
pub enum Packet {
    ConnAck {
        code: u8,
    },
    Publish {
        qos: QoS,
        id: u16,
        payload: Range<usize>,
    },
    PubAck {
        id: u16,
    },
    PubRec {
        id: u16,
    },
    PubRel {
        id: u16,
    },
    PubComp {
        id: u16,
    },
    SubAck {
        codes: Range<usize>,
    },
}

/// Takes the first packet of `input`; None if it is not all there. Ranges point into `input`.
pub fn decode(input: &[u8]) -> anyhow::Result<Option<(Packet, usize)>> {
    let Some((body, end)) = frame(input)? else {
        return Ok(None);
    };
    let start = body.start;
    let bytes = &input[body];
    let packet = match input[0] {
        0x20 if bytes.len() == 2 => Packet::ConnAck { code: bytes[1] },
        PUBACK if bytes.len() == 2 => Packet::PubAck { id: be16(bytes) },
        PUBREC if bytes.len() == 2 => Packet::PubRec { id: be16(bytes) },
        PUBREL if bytes.len() == 2 => Packet::PubRel { id: be16(bytes) },
        PUBCOMP if bytes.len() == 2 => Packet::PubComp { id: be16(bytes) },
        0x90 if bytes.len() > 2 => Packet::SubAck {
            codes: start + 2..end,
        },
        first @ 0x30..0x40 => publish(first, bytes, start)?,
        first => bail!("the broker sent {} bytes with first byte {first:#04x}", end),
    };
    Ok(Some((packet, end)))
}

/// The body of the first packet and where it ends.
fn frame(input: &[u8]) -> anyhow::Result<Option<(Range<usize>, usize)>> {
    let mut length = 0usize;
    for index in 0..4 {
        let Some(&byte) = input.get(1 + index) else {
            return Ok(None);
        };
        length |= usize::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            let start = index + 2;
            let whole = input.len() >= start + length;
            return Ok(whole.then_some((start..start + length, start + length)));
        }
    }
    bail!("the broker sent a remaining length of more than four bytes")
}

fn publish(first: u8, bytes: &[u8], start: usize) -> anyhow::Result<Packet> {
    let qos = match first >> 1 & 3 {
        0 => QoS::Zero,
        1 => QoS::One,
        2 => QoS::Two,
        _ => bail!("the broker sent QoS 3"),
    };
    ensure!(
        bytes.len() >= 2,
        "the broker sent a PUBLISH without a topic"
    );
    let topic_end = 2 + usize::from(be16(bytes));
    let payload = topic_end + if qos == QoS::Zero { 0 } else { 2 };
    ensure!(
        bytes.len() >= payload,
        "the broker sent a PUBLISH that ends early"
    );
    let id = if qos == QoS::Zero {
        0
    } else {
        be16(&bytes[topic_end..])
    };
    Ok(Packet::Publish {
        qos,
        id,
        payload: start + payload..start + bytes.len(),
    })
}

fn be16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

pub fn write_connect(into: &mut Vec<u8>, client_id: &str) {
    const KEEP_ALIVE_S: u16 = 600;
    into.push(0x10);
    write_length(into, 12 + client_id.len());
    into.extend_from_slice(b"\x00\x04MQTT\x04\x02");
    into.extend_from_slice(&KEEP_ALIVE_S.to_be_bytes());
    write_text(into, client_id.as_bytes());
}

pub fn write_subscribe(into: &mut Vec<u8>, id: u16, filters: &[Vec<u8>], qos: QoS) {
    into.push(0x82);
    write_length(
        into,
        2 + filters.iter().map(|filter| filter.len() + 3).sum::<usize>(),
    );
    into.extend_from_slice(&id.to_be_bytes());
    for filter in filters {
        write_text(into, filter);
        into.push(qos as u8);
    }
}

/// `id` is left out at QoS 0.
pub fn write_publish(into: &mut Vec<u8>, topic: &[u8], qos: QoS, id: u16, payload: &[u8]) {
    into.push(0x30 | (qos as u8) << 1);
    let id_bytes = if qos == QoS::Zero { 0 } else { 2 };
    write_length(into, 2 + topic.len() + id_bytes + payload.len());
    write_text(into, topic);
    if id_bytes > 0 {
        into.extend_from_slice(&id.to_be_bytes());
    }
    into.extend_from_slice(payload);
}

/// One of the four acknowledgements, named by its first byte.
pub fn write_ack(into: &mut Vec<u8>, first: u8, id: u16) {
    let [high, low] = id.to_be_bytes();
    into.extend_from_slice(&[first, 2, high, low]);
}

fn write_length(into: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        into.push(length as u8 | 0x80);
        length >>= 7;
    }
    into.push(length as u8);
}

fn write_text(into: &mut Vec<u8>, text: &[u8]) {
    into.extend_from_slice(&(text.len() as u16).to_be_bytes());
    into.extend_from_slice(text);
}

/// What a payload says about its message.
#[derive(PartialEq, Eq, Debug)]
pub struct Stamp {
    pub stream: u32,
    pub number: u64,
    /// When the message was due, in nanoseconds since the start of this program.
    pub due_ns: u64,
}

impl Stamp {
    /// Fills a payload of `bytes` bytes, every one of which depends on the stamp.
    pub fn write(&self, into: &mut Vec<u8>, bytes: usize) {
        into.clear();
        into.extend_from_slice(&self.stream.to_be_bytes());
        into.extend_from_slice(&self.number.to_be_bytes());
        into.extend_from_slice(&self.due_ns.to_be_bytes());
        let filler = self.filler();
        while into.len() < bytes {
            let left = (bytes - into.len()).min(4);
            into.extend_from_slice(&filler[..left]);
        }
    }

    /// Reads a payload back; None if a byte of it changed.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let stream = u32::from_be_bytes(payload.get(..4)?.try_into().ok()?);
        let number = u64::from_be_bytes(payload.get(4..12)?.try_into().ok()?);
        let due_ns = u64::from_be_bytes(payload.get(12..20)?.try_into().ok()?);
        let stamp = Self {
            stream,
            number,
            due_ns,
        };
        let filler = stamp.filler();
        payload[20..]
            .chunks(4)
            .all(|chunk| *chunk == filler[..chunk.len()])
            .then_some(stamp)
    }

    fn filler(&self) -> [u8; 4] {
        let mixed = (u64::from(self.stream) << 32 ^ self.number ^ self.due_ns.rotate_left(17))
            .wrapping_mul(0x9E37_79B9_7F4A_7C15);
        ((mixed >> 32) as u32).to_be_bytes()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_publish_is_the_bytes_of_the_standard() {
        let mut bytes = Vec::new();
        write_publish(&mut bytes, b"a/b", QoS::One, 10, b"xy");
        assert_eq!(bytes, b"\x32\x09\x00\x03a/b\x00\x0Axy");
        let (packet, used) = decode(&bytes).unwrap().unwrap();
        assert_eq!(
            packet,
            Packet::Publish {
                qos: QoS::One,
                id: 10,
                payload: 9..11
            }
        );
        assert_eq!(used, 11);
    }

    #[test]
    fn connect_and_subscribe_are_the_bytes_of_the_standard() {
        let mut bytes = Vec::new();
        write_connect(&mut bytes, "c");
        assert_eq!(bytes, b"\x10\x0D\x00\x04MQTT\x04\x02\x02\x58\x00\x01c");
        bytes.clear();
        write_subscribe(&mut bytes, 1, &[b"a".to_vec(), b"bc".to_vec()], QoS::Two);
        assert_eq!(bytes, b"\x82\x0B\x00\x01\x00\x01a\x02\x00\x02bc\x02");
    }

    #[test]
    fn a_split_packet_waits_for_its_rest() {
        let mut bytes = Vec::new();
        write_publish(&mut bytes, b"t", QoS::Zero, 0, &[7; 200]);
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut]).unwrap(), None);
        }
        assert!(decode(&bytes).unwrap().is_some());
    }

    #[test]
    fn nonsense_from_the_broker_is_an_error() {
        assert!(decode(b"\x00\x00").is_err());
        assert!(decode(b"\x36\x02\x00\x00").is_err());
        assert!(decode(b"\x32\x02\x00\x05").is_err());
        assert!(decode(b"\x30\xFF\xFF\xFF\xFF\x01").is_err());
    }

    #[test]
    fn a_changed_payload_is_noticed() {
        let mut payload = Vec::new();
        let stamp = Stamp {
            stream: 3,
            number: 77,
            due_ns: 123_456_789,
        };
        stamp.write(&mut payload, 64);
        assert_eq!(payload.len(), 64);
        assert_eq!(Stamp::read(&payload), Some(stamp));
        payload[50] ^= 1;
        assert_eq!(Stamp::read(&payload), None);
        assert_eq!(Stamp::read(&payload[..10]), None);
    }
}
