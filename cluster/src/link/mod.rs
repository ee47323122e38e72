//! Publishes from node to node.

mod core;

pub use self::core::{Arrival, LinkLimits, Placed, Pushed, Receiver, Sender};
