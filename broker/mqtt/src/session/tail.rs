//! Large payloads towards the client: they are written from where they are, and not copied into the buffer of their packet.

use bytes::Bytes;

use super::outbound::Outbound;

/// A payload of this size is not copied into the buffer behind the begin of its packet.
pub const TAIL_BYTES: usize = 64 << 10;

/// A payload on its way to the client from where it is: it belongs into the caller's buffer, and is not copied there.
#[derive(Debug)]
pub struct Tail {
    /// Bytes of the buffer before it. The caller counts them down as they leave the buffer.
    pub at: usize,
    /// What is left of it. The caller takes away what it has written.
    pub payload: Bytes,
    /// Since when nothing of the packet was written, on the caller's clock; none = it has not looked since some was.
    pub stuck_since_ms: Option<u64>,
}

impl Outbound {
    /// The payload that belongs into the buffer and stays where it is.
    pub fn tail_mut(&mut self) -> Option<&mut Tail> {
        self.link.as_mut()?.tail.as_deref_mut()
    }

    /// The payload that stood apart is written.
    pub fn handle_tail_written(&mut self) {
        if let Some(link) = &mut self.link {
            link.tail = None;
        }
    }
}
