//! Builders of every packet of 3.1, 3.1.1 and 5.0. They know no rules: whatever a test asks for is
//! written. A packet takes its version from the connection that sends or expects it.

mod connect;
mod publish;
mod subscribe;

pub use connect::{ConnAck, Connect, Will, connack, connect, will};
pub use publish::{Ack, Publish, puback, pubcomp, publish, pubrec, pubrel};
pub use subscribe::{Codes, Filters, suback, subscribe, unsuback, unsubscribe};

use crate::wire::{Props, Version, frame, props};

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
