//! Session groups: the replicated state of clients and its machine.

mod machine;
mod records;
mod state;
#[cfg(test)]
mod tests;

pub use machine::GroupMachine;
pub use state::{Client, Effects, Ended, FiredWill, GroupState, Held, NEVER_S, node_ref};
