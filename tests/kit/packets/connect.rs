//! CONNECT, its will, and CONNACK.

use super::{Packet, props_of};
use crate::wire::{Props, Version, frame, props, text};

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
}
