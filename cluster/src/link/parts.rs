//! Large messages at the receiving end of a link: the parts of each are put together, until the message that they belong
//! to takes them. What a peer may have held here is bounded, whatever it sends.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use flotte_proto::{Large, Part, Taken};

use super::large::{GOING_BYTES_MAX, GOING_MAX};

/// Parts of one message hold no more: an MQTT packet cannot.
const MESSAGE_BYTES_MAX: u64 = 256 << 20;
/// Room is made in steps of this size at least, and twice as much as there is at most: what is announced need not come.
const STEP_BYTES: usize = 1 << 20;

/// What is wrong with a part. The connection has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PartError {
    /// Something before it is missing.
    #[error("a part before this one is missing")]
    Gap,
    /// It is not as long as its message was said to be, or that is longer than any message.
    #[error("a part that does not fit into its message")]
    Length,
    /// Its sender has more messages under way than it may.
    #[error("too much is under way in parts")]
    TooMuch,
}

/// What came of one start of another node.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// By id; at most [`GOING_MAX`], as their messages are sent before others begin.
    open: BTreeMap<u64, Assembly>,
    /// All up to this id have begun: one that is not open is done.
    newest: u64,
}

#[derive(Debug)]
struct Assembly {
    total: usize,
    body: BytesMut,
}

impl Parts {
    /// Takes a part. One that is here already changes nothing.
    pub(super) fn handle(&mut self, part: &Part) -> Result<(), PartError> {
        if !self.open.contains_key(&part.id) {
            if part.id <= self.newest {
                return Ok(());
            }
            self.begin(part)?;
        }
        let Some(assembly) = self.open.get_mut(&part.id) else {
            return Ok(());
        };
        assembly.add(part)
    }

    /// How much of each there is.
    pub(super) fn taken(&self) -> impl Iterator<Item = Taken> {
        self.open.iter().map(|(id, assembly)| Taken {
            id: *id,
            bytes: assembly.body.len() as u64,
        })
    }

    /// How much there is of all of them.
    pub(super) fn held_bytes(&self) -> usize {
        self.open.values().map(|assembly| assembly.body.len()).sum()
    }

    /// How much of one there is.
    pub(super) fn taken_of(&self, id: u64) -> Option<Taken> {
        let bytes = self.open.get(&id)?.body.len() as u64;
        Some(Taken { id, bytes })
    }

    /// Whether all parts of a message are here.
    pub(super) fn has(&self, large: &Large) -> bool {
        self.open.get(&large.id).is_some_and(|assembly| {
            let bytes = assembly.body.len();
            bytes == assembly.total
                && bytes as u64 == large.bytes
                && large.properties_bytes <= large.bytes
        })
    }

    /// Takes out the properties and the payload of a message that is here.
    pub(super) fn take(&mut self, large: &Large) -> Option<(Bytes, Bytes)> {
        if !self.has(large) {
            return None;
        }
        let mut payload = self.open.remove(&large.id)?.body.freeze();
        let properties = payload.split_to(usize::try_from(large.properties_bytes).ok()?);
        // A slice would hold all of the payload for as long as any property lives.
        Some((Bytes::copy_from_slice(&properties), payload))
    }

    /// Forgets what is open: its sender is gone.
    pub(super) fn clear(&mut self) {
        self.open.clear();
    }

    fn begin(&mut self, part: &Part) -> Result<(), PartError> {
        if part.offset != 0 {
            return Err(PartError::Gap);
        }
        if part.total > MESSAGE_BYTES_MAX {
            return Err(PartError::Length);
        }
        let total = usize::try_from(part.total).map_err(|_| PartError::Length)?;
        let announced: usize = self.open.values().map(|assembly| assembly.total).sum();
        if self.open.len() >= GOING_MAX || announced + total > GOING_BYTES_MAX {
            return Err(PartError::TooMuch);
        }
        self.newest = part.id;
        let body = BytesMut::new();
        self.open.insert(part.id, Assembly { total, body });
        Ok(())
    }
}

impl Assembly {
    fn add(&mut self, part: &Part) -> Result<(), PartError> {
        let has = self.body.len() as u64;
        let end = part.offset.checked_add(part.data.len() as u64);
        if part.total != self.total as u64 || end.is_none_or(|end| end > part.total) {
            return Err(PartError::Length);
        }
        let Some(known) = has.checked_sub(part.offset) else {
            return Err(PartError::Gap);
        };
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        let Some(new) = part.data.get(known..) else {
            return Ok(());
        };
        if self.body.capacity() - self.body.len() < new.len() {
            let step = self.body.len().max(STEP_BYTES).max(new.len());
            self.body.reserve(step.min(self.total - self.body.len()));
        }
        self.body.extend_from_slice(new);
        Ok(())
    }
}
