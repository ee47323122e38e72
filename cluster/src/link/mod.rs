//! Publishes from node to node.

mod core;
mod keeps;
mod meter;

pub use self::core::{Arrival, LinkLimits, Placed, Pushed, Receiver, Sender, bytes_of};
pub use self::keeps::Kept;
pub(crate) use self::keeps::{Keeps, Resumed};
pub use self::meter::{Meter, received_bytes};
