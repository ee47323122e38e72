//! Skeleton.
use std::io::{self, Read, Write};
use bytes::Bytes;
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ApplyError(pub String);
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RestoreError(pub String);
pub trait Machine: Send + Sync + 'static {
    fn apply(&self, index: u64, term: u64, entry: Bytes) -> Result<Bytes, ApplyError>;
    fn freeze(&self) -> Box<dyn FrozenState>;
    fn restore(&self, index: u64, data: &mut dyn Read) -> Result<(), RestoreError>;
}
pub trait FrozenState: Send {
    fn write(self: Box<Self>, out: &mut dyn Write) -> io::Result<()>;
}
