//! Builders of every packet of 3.1, 3.1.1 and 5.0. They know no rules: whatever a test asks for is
//! written. A packet takes its version from the connection that sends or expects it.

use crate::wire::{Props, Version, frame, props, text};

/// Something a connection can send, or compare with what it received.
pub trait Packet {
    fn encode(&self, version: Version) -> Vec<u8>;
}

impl Packet for Vec<u8> {
    fn encode(&self, _: Version) -> Vec<u8> {
        self.clone()
    }
}

impl<const N: usize> Packet for [u8; N] {
    fn encode(&self, _: Version) -> Vec<u8> {
        self.to_vec()
    }
}

/// Subscription option bits of 5.0.
pub mod option {
    pub const NO_LOCAL: u8 = 0x04;
    pub const RETAIN_AS_PUBLISHED: u8 = 0x08;
    pub const RETAIN_IF_NEW: u8 = 0x10;
    pub const RETAIN_NEVER: u8 = 0x20;
}

fn props_of(version: Version, wanted: &Props) -> Vec<u8> {
    if version.is_v5() {
        return wanted.encoded();
    }
    assert!(wanted.is_empty(), "only 5.0 has properties");
    Vec::new()
}

/// CONNECT; see [`connect`].
#[derive(Clone, Debug)]
pub struct Connect {
    first: u8,
    protocol: Option<Vec<u8>>,
    level: Option<u8>,
    flipped_flags: u8,
    clean: bool,
    keep_alive_s: u16,
    props: Props,
    client_id: Option<Vec<u8>>,
    will: Option<Will>,
    username: Option<Vec<u8>>,
    password: Option<Vec<u8>>,
    tail: Vec<u8>,
}

/// The will of a CONNECT; see [`will`].
#[derive(Clone, Debug)]
pub struct Will {
    topic: Vec<u8>,
    payload: Vec<u8>,
    qos: u8,
    retain: bool,
    props: Props,
}

/// A CONNECT with a clean start and no keep alive.
pub fn connect(client_id: impl AsRef<[u8]>) -> Connect {
    Connect {
        first: 0x10,
        protocol: None,
        level: None,
        flipped_flags: 0,
        clean: true,
        keep_alive_s: 0,
        props: props(),
        client_id: Some(client_id.as_ref().to_vec()),
        will: None,
        username: None,
        password: None,
        tail: Vec::new(),
    }
}

/// A will at QoS 0, not retained.
pub fn will(topic: impl AsRef<[u8]>, payload: impl AsRef<[u8]>) -> Will {
    Will {
        topic: topic.as_ref().to_vec(),
        payload: payload.as_ref().to_vec(),
        qos: 0,
        retain: false,
        props: props(),
    }
}

impl Will {
    pub fn qos(mut self, qos: u8) -> Self {
        self.qos = qos;
        self
    }

    pub fn retain(mut self) -> Self {
        self.retain = true;
        self
    }

    pub fn props(mut self, props: Props) -> Self {
        self.props = props;
        self
    }
}

impl Connect {
    /// Clean session 0 of 3.x, clean start 0 of 5.0.
    pub fn resume(mut self) -> Self {
        self.clean = false;
        self
    }

    pub fn keep_alive(mut self, seconds: u16) -> Self {
        self.keep_alive_s = seconds;
        self
    }

    pub fn will(mut self, will: Will) -> Self {
        self.will = Some(will);
        self
    }

    pub fn username(mut self, name: impl AsRef<[u8]>) -> Self {
        self.username = Some(name.as_ref().to_vec());
        self
    }

    pub fn password(mut self, password: impl AsRef<[u8]>) -> Self {
        self.password = Some(password.as_ref().to_vec());
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

    pub fn protocol(mut self, name: impl AsRef<[u8]>) -> Self {
        self.protocol = Some(name.as_ref().to_vec());
        self
    }

    pub fn level(mut self, level: u8) -> Self {
        self.level = Some(level);
        self
    }

    /// Inverts bits of the connect flags and leaves the payload as it is.
    pub fn flip_flags(mut self, bits: u8) -> Self {
        self.flipped_flags = bits;
        self
    }

    /// Leaves the client id out of the payload.
    pub fn no_client_id(mut self) -> Self {
        self.client_id = None;
        self
    }

    /// Bytes behind the last field, within the packet.
    pub fn tail(mut self, bytes: &[u8]) -> Self {
        self.tail = bytes.to_vec();
        self
    }

    pub fn id(&self) -> String {
        let id = self.client_id.clone().unwrap_or_default();
        String::from_utf8_lossy(&id).into_owned()
    }

    fn flags(&self) -> u8 {
        let mut flags = u8::from(self.clean) << 1;
        if let Some(will) = &self.will {
            flags |= 0x04 | will.qos << 3 | u8::from(will.retain) << 5;
        }
        flags |= u8::from(self.password.is_some()) << 6 | u8::from(self.username.is_some()) << 7;
        flags ^ self.flipped_flags
    }
}

impl Packet for Connect {
    fn encode(&self, version: Version) -> Vec<u8> {
        let protocol = self
            .protocol
            .clone()
            .unwrap_or_else(|| version.protocol().into());
        let mut body = text(protocol);
        body.extend([self.level.unwrap_or(version.level()), self.flags()]);
        body.extend(self.keep_alive_s.to_be_bytes());
        body.extend(props_of(version, &self.props));
        body.extend(self.client_id.iter().flat_map(text));
        if let Some(will) = &self.will {
            body.extend(props_of(version, &will.props));
            body.extend(text(&will.topic));
            body.extend(text(&will.payload));
        }
        body.extend(self.username.iter().flat_map(text));
        body.extend(self.password.iter().flat_map(text));
        body.extend_from_slice(&self.tail);
        frame(self.first, &body)
    }
}

/// CONNACK; see [`connack`].
#[derive(Clone, Debug)]
pub struct ConnAck {
    session_present: bool,
    code: u8,
    props: Props,
}

pub fn connack(session_present: bool, code: u8) -> ConnAck {
    ConnAck {
        session_present,
        code,
        props: props(),
    }
}

impl Packet for ConnAck {
    fn encode(&self, version: Version) -> Vec<u8> {
        let mut body = vec![u8::from(self.session_present), self.code];
        body.extend(props_of(version, &self.props));
        frame(0x20, &body)
    }
}

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

/// SUBSCRIBE or UNSUBSCRIBE; see [`subscribe`] and [`unsubscribe`].
#[derive(Clone, Debug)]
pub struct Filters {
    first: u8,
    packet_id: u16,
    props: Props,
    payload: Vec<u8>,
}

/// A SUBSCRIBE without filters yet.
pub fn subscribe(packet_id: u16) -> Filters {
    Filters {
        first: 0x82,
        packet_id,
        props: props(),
        payload: Vec::new(),
    }
}

/// An UNSUBSCRIBE without filters yet.
pub fn unsubscribe(packet_id: u16) -> Filters {
    Filters {
        first: 0xa2,
        packet_id,
        props: props(),
        payload: Vec::new(),
    }
}

impl Filters {
    /// Adds a filter to a SUBSCRIBE, with its QoS or options byte.
    pub fn to(mut self, filter: impl AsRef<[u8]>, options: u8) -> Self {
        self.payload.extend(text(filter));
        self.payload.push(options);
        self
    }

    /// Adds a filter to an UNSUBSCRIBE.
    pub fn from(mut self, filter: impl AsRef<[u8]>) -> Self {
        self.payload.extend(text(filter));
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

impl Packet for Filters {
    fn encode(&self, version: Version) -> Vec<u8> {
        let mut body = self.packet_id.to_be_bytes().to_vec();
        body.extend(props_of(version, &self.props));
        body.extend_from_slice(&self.payload);
        frame(self.first, &body)
    }
}

/// SUBACK or UNSUBACK.
#[derive(Clone, Debug)]
pub struct Codes {
    first: u8,
    packet_id: u16,
    codes: Vec<u8>,
}

pub fn suback(packet_id: u16, codes: &[u8]) -> Codes {
    Codes {
        first: 0x90,
        packet_id,
        codes: codes.to_vec(),
    }
}

/// An UNSUBACK; 3.x leaves the codes out.
pub fn unsuback(packet_id: u16, codes: &[u8]) -> Codes {
    Codes {
        first: 0xb0,
        packet_id,
        codes: codes.to_vec(),
    }
}

impl Packet for Codes {
    fn encode(&self, version: Version) -> Vec<u8> {
        let mut body = self.packet_id.to_be_bytes().to_vec();
        body.extend(props_of(version, &props()));
        if version.is_v5() || self.first == 0x90 {
            body.extend_from_slice(&self.codes);
        }
        frame(self.first, &body)
    }
}

pub fn pingreq() -> [u8; 2] {
    [0xc0, 0]
}

pub fn pingresp() -> [u8; 2] {
    [0xd0, 0]
}

/// DISCONNECT or AUTH: a reason and properties, both left out where they say nothing.
#[derive(Clone, Debug)]
pub struct Bare {
    first: u8,
    reason: u8,
    props: Props,
}

pub fn disconnect() -> Bare {
    Bare {
        first: 0xe0,
        reason: 0,
        props: props(),
    }
}

pub fn auth() -> Bare {
    Bare {
        first: 0xf0,
        reason: 0,
        props: props(),
    }
}

impl Bare {
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

impl Packet for Bare {
    fn encode(&self, version: Version) -> Vec<u8> {
        let mut body = Vec::new();
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
    fn connect_of_each_version_is_written_as_the_standard_says() {
        let v311 = [
            0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 5, 0, 1, b'a',
        ];
        assert_eq!(connect("a").keep_alive(5).encode(Version::V311), v311);
        let v5 = [
            0x10, 14, 0, 4, b'M', b'Q', b'T', b'T', 5, 0, 0, 0, 0, 0, 1, b'a',
        ];
        assert_eq!(connect("a").resume().encode(Version::V5), v5);
    }

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
