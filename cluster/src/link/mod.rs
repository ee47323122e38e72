//! Publishes from node to node.

mod core;
mod keeps;
mod large;
mod meter;
mod parts;

pub use self::core::{Arrival, Lane, LinkLimits, Placed, Pushed, Receiver, Sender, bytes_of};
pub use self::keeps::Kept;
pub(crate) use self::keeps::{Connection, Keeps, Resumed};
pub use self::meter::{Meter, received_bytes};
pub use self::parts::PartError;
