//! Session groups: the replicated state of clients and its machine.

mod machine;
mod outbox;
mod records;
mod state;
#[cfg(test)]
mod tests;

pub use machine::GroupMachine;
pub use outbox::{FiredWill, Held, Outbox};
pub use state::{Client, Effects, Ended, GroupState, NEVER_S, node_ref};
