//! Group 0: members, routes, retained messages and placement, as a replicated state machine.

mod machine;
mod records;
mod routes;
mod state;
#[cfg(test)]
mod tests;

pub use machine::{BranchEpochs, MetaMachine};
pub use routes::{Destinations, Routes, ShareTarget};
pub use state::{Effects, MetaState, Retained, UnknownEntry};
