//! The test kit: starts real `flotte` processes and speaks MQTT to them byte by byte.
//!
//! It never uses `flotte-mqtt`: what a test expects is built by the kit's own small encoder, so that
//! a fault of the codec cannot hide in the expectation.

pub mod admin;
pub mod broker;
pub mod client;
pub mod cluster;
pub mod dns;
pub mod log;
pub mod netns;
pub mod packets;
pub mod ports;
pub mod reaper;
pub mod received;
pub mod run;
pub mod skip;
pub mod slow;
pub mod tls;
pub mod websocket;
pub mod wire;

pub use broker::{Broker, Launch};
pub use client::Client;
pub use cluster::Cluster;
pub use packets::*;
pub use received::{Received, Value};
pub use run::{block_on, fresh, until};
pub use tls::Authority;
pub use websocket::WebSocket;
pub use wire::{Props, Version, props};
