//! Publishes from node to node.

mod core;
mod keeps;
mod large;
mod meter;
mod parts;
mod receiver;

pub use self::core::{Lane, LinkLimits, Placed, Pushed, Queued, Sender, bytes_of};
pub use self::keeps::Kept;
pub(crate) use self::keeps::{Connection, Keeps, Resumed};
pub use self::meter::{Meter, received_bytes};
pub use self::parts::PartError;
pub use self::receiver::{Arrival, Receiver};
