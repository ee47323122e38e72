//! SUBSCRIBE, UNSUBSCRIBE and their answers.

use super::{Packet, props_of};
use crate::wire::{Props, Version, frame, props, text};

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
