//! What one node wants of one group, on its way to the group's leader.

mod core;

pub use self::core::{Core, Outcome, Waiting};
