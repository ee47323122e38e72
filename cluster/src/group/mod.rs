//! Session groups: the replicated state of clients and its machine.

mod machine;
mod outbox;
mod records;
mod state;
#[cfg(test)]
mod tests;
mod untold;

pub use machine::GroupMachine;
pub use outbox::{FiredWill, Held, Outbox};
pub use state::{Client, Effects, GroupState, NEVER_S, node_ref};
pub use untold::{Ended, Untold};
