//! Consensus groups: replicated logs that run state machines.
//!
//! Only this module knows the consensus library, openraft. It lends it the journal as log store,
//! snapshot files, and the control streams to the other members; what it gives to the rest is a
//! [`Group`] that takes entries and a [`Machine`] that applies them. It never looks into an entry.
//!
//! ```text
//!  Group::submit --> openraft --> log (journal) --> peers (net) --> inbound of the others
//!                       |  committed
//!                       v
//!                    apply --> Machine::apply --> reply of submit
//! ```

mod apply;
mod codec;
mod config;
mod group;
mod inbound;
mod log;
mod machine;
mod pace;
mod peers;
mod snapshot;
mod status;
mod types;
mod watcher;
mod writing;

#[cfg(test)]
mod tests;

pub use config::GroupConfig;
pub use group::{Group, Host, Pending};
pub use machine::{Fatal, FrozenState, Machine, RestoreError};
pub use snapshot::{SnapshotError, SnapshotStore};
pub use status::{
    Death, FatalSignal, GroupStatus, InitializeError, MembershipError, ProposeError, ReadError,
    Role, StartError, Stopped, SubmitError, TransferError,
};
pub use types::NodeInfo;
