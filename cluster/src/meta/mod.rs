//! Group 0: members, routes, retained messages and placement, as a replicated state machine.

mod admission;
mod assemblies;
mod machine;
mod membership;
mod records;
mod retain;
mod retained;
mod routes;
mod state;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use tests::{a_founded_machine, a_founding_entry};

pub use assemblies::PART_BYTES;
pub use machine::{BranchEpochs, MetaMachine};
pub use membership::Placed;
pub use retained::{Retained, RetainedLimits, RetainedSet};
pub use routes::{Destinations, Routes, ShareMembers, ShareTarget};
pub use state::{Effects, MetaState, UnknownEntry};
