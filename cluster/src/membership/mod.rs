//! How nodes find each other and become one cluster.

mod bootstrap;
mod placement;

pub use bootstrap::{Bootstrap, Probed, Step};
pub use placement::place;
