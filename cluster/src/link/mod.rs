//! Publishes from node to node.

mod core;
mod meter;

pub use self::core::{Arrival, LinkLimits, Placed, Pushed, Receiver, Sender, bytes_of};
pub use self::meter::{Meter, received_bytes};
