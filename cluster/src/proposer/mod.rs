//! What one node wants of one group, on its way to the group's leader.

mod core;
mod service;

pub use self::core::{Core, Outcome, Refusal, Waiting};
pub use service::{Proposer, Reply, Route};
