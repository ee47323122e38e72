//! How nodes find each other and become one cluster.

mod bootstrap;

pub use bootstrap::{Bootstrap, Probed, Step};
