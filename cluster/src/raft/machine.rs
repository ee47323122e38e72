//! What a replicated state machine is to the rest.

use std::io::{self, Read, Write};

use bytes::Bytes;

/// A replicated state machine. Its methods take `&self`: it has its own short lock, as others read
/// it while entries are applied. Calls come one at a time, from one task.
pub trait Machine: Send + Sync + 'static {
    /// Applies a committed entry, and says what the proposer gets to know. A pure function of the
    /// state and the entry: no clock, no configuration, no randomly ordered map.
    fn apply(&self, index: u64, term: u64, entry: Bytes) -> Result<Bytes, Fatal>;

    /// The state as it is now, to be written while later entries are applied. Cheap.
    fn freeze(&self) -> Box<dyn FrozenState>;

    /// Replaces the whole state by one that was written by a [`FrozenState`] after `index`. The
    /// data has been checked against its checksum. May take long: not called on an async thread.
    fn restore(&self, index: u64, data: &mut dyn Read) -> Result<(), RestoreError>;
}

/// A state that no longer changes.
pub trait FrozenState: Send {
    /// Writes it for [`Machine::restore`]. May take long: not called on an async thread.
    fn write(self: Box<Self>, out: &mut dyn Write) -> io::Result<()>;
}

/// The node cannot go on with its replica, such as after a command that it does not know. It stops.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fatal(pub String);

/// Why a state was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Written by a newer version, or not by this machine.
    #[error("unknown snapshot format: {0}")]
    Format(String),
    #[error("cannot read the snapshot: {0}")]
    Io(#[from] io::Error),
}
