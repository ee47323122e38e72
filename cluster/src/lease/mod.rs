//! Who may serve: the lease of a node, how it is renewed, and how the meta leader decides that a node is Down.

mod clock;
mod cuts;
mod keeper;
mod renewer;

pub use clock::{Lease, boot_ns};
pub use keeper::{Answer, Keeper, Renewal, Served, Timing};
pub use renewer::Renewer;
