//! What one node wants of one group, on its way to the group's leader.

mod core;
mod queue;
mod service;

pub use self::core::{Core, Outcome, Refusal, Waiting};
pub use self::queue::Pending;
pub use self::service::{Proposer, Reply, Route};
