//! PUBLISH and its acknowledgements.

use super::{Packet, props_of};
use crate::wire::{Props, Version, frame, props, text};

/// PUBLISH; see [`publish`].
#[derive(Clone, Debug)]
pub struct Publish {
    flags: u8,
    topic: Vec<u8>,
    packet_id: Option<u16>,
    props: Props,
    payload: Vec<u8>,
}

/// A PUBLISH at QoS 0 with an empty payload.
pub fn publish(topic: impl AsRef<[u8]>) -> Publish {
    let topic = topic.as_ref().to_vec();
    Publish {
        flags: 0,
        topic,
        packet_id: None,
        props: props(),
        payload: Vec::new(),
    }
}

impl Publish {
    pub fn qos1(self, packet_id: u16) -> Self {
        self.qos_bits(1, packet_id)
    }

    pub fn qos2(self, packet_id: u16) -> Self {
        self.qos_bits(2, packet_id)
    }

    /// Any QoS: 0 takes no packet id; 3 is forbidden and possible.
    pub fn qos_bits(mut self, qos: u8, packet_id: u16) -> Self {
        self.flags = self.flags & !0x06 | qos << 1;
        self.packet_id = (qos > 0).then_some(packet_id);
        self
    }

    pub fn dup(mut self) -> Self {
        self.flags |= 0x08;
        self
    }

    pub fn retain(mut self) -> Self {
        self.flags |= 0x01;
        self
    }

    pub fn payload(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.payload = bytes.as_ref().to_vec();
        self
    }

    pub fn props(mut self, props: Props) -> Self {
        self.props = props;
        self
    }

    pub fn qos(&self) -> u8 {
        self.flags >> 1 & 3
    }

    pub fn is_retained(&self) -> bool {
        self.flags & 0x01 != 0
    }

    pub fn topic(&self) -> String {
        String::from_utf8_lossy(&self.topic).into_owned()
    }

    pub fn packet_id(&self) -> u16 {
        self.packet_id.expect("QoS 0 has no packet id")
    }
}

impl Packet for Publish {
    fn encode(&self, version: Version) -> Vec<u8> {
        let mut body = text(&self.topic);
        body.extend(self.packet_id.iter().flat_map(|id| id.to_be_bytes()));
        body.extend(props_of(version, &self.props));
        body.extend_from_slice(&self.payload);
        frame(0x30 | self.flags, &body)
    }
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
#[derive(Clone, Debug)]
pub struct Ack {
    first: u8,
    packet_id: u16,
    reason: u8,
    props: Props,
}

pub fn puback(packet_id: u16) -> Ack {
    Ack {
        first: 0x40,
        packet_id,
        reason: 0,
        props: props(),
    }
}

pub fn pubrec(packet_id: u16) -> Ack {
    Ack {
        first: 0x50,
        packet_id,
        reason: 0,
        props: props(),
    }
}

pub fn pubrel(packet_id: u16) -> Ack {
    Ack {
        first: 0x62,
        packet_id,
        reason: 0,
        props: props(),
    }
}

pub fn pubcomp(packet_id: u16) -> Ack {
    Ack {
        first: 0x70,
        packet_id,
        reason: 0,
        props: props(),
    }
}

impl Ack {
    pub fn reason(mut self, reason: u8) -> Self {
        self.reason = reason;
        self
    }

    pub fn props(mut self, props: Props) -> Self {
        self.props = props;
        self
    }

    pub fn first(mut self, byte: u8) -> Self {
        self.first = byte;
        self
    }
}

impl Packet for Ack {
    fn encode(&self, version: Version) -> Vec<u8> {
        let mut body = self.packet_id.to_be_bytes().to_vec();
        // 5.0 may leave out reason 0 and, from it on, empty properties: the short form is sent.
        if version.is_v5() && (self.reason != 0 || !self.props.is_empty()) {
            body.push(self.reason);
            if !self.props.is_empty() {
                body.extend(self.props.encoded());
            }
        }
        frame(self.first, &body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publish_carries_flags_id_and_payload() {
        let bytes = publish("a")
            .qos2(258)
            .dup()
            .retain()
            .payload("xy")
            .encode(Version::V311);
        assert_eq!(bytes, [0x3d, 7, 0, 1, b'a', 1, 2, b'x', b'y']);
    }

    #[test]
    fn acks_of_success_are_short_in_every_version() {
        assert_eq!(puback(7).encode(Version::V5), [0x40, 2, 0, 7]);
        assert_eq!(
            pubrel(7).reason(0x92).encode(Version::V5),
            [0x62, 3, 0, 7, 0x92]
        );
    }
}
