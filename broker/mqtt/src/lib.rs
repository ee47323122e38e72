//! MQTT 3.1, 3.1.1 and 5.0 as pure code: packets, codec, topics and the session state machine.
//! It does no IO, reads no clock and draws no randomness.

pub mod codec;
pub mod error;
pub mod packet;
pub mod property;
pub mod reason;
pub mod session;
pub mod text;
pub mod topic;
mod wire;

pub use packet::{PacketId, PacketType, QoS, Version};
pub use text::{ByteStr, ClientId};
