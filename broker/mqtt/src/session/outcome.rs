//! What the outbound half answers: small structs that say what became of a copy or what an
//! acknowledgement meant.

use super::message::Delivery;
use super::tally::{DropReason, Tally};
use crate::reason::ReasonCode;

/// What became of a copy when it was enqueued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the caller's buffer.
    Sent,
    Queued,
    Expired,
    Dropped(DropReason),
}

/// The result of [`enqueue`](super::Outbound::enqueue).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enqueued {
    pub outcome: Outcome,
    /// Also counts the older copies that made room.
    pub tally: Tally,
}

/// What an acknowledgement meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckOutcome {
    /// PUBACK or PUBCOMP: the copy is done.
    Completed,
    /// PUBACK or PUBREC with an error: done too, and not to be sent again to anyone. [MQTT-4.8.2-6]
    Refused(ReasonCode),
    /// PUBREC: the client has the message; PUBREL was written.
    Released,
    /// No copy has this id.
    Unknown,
}

/// The result of an acknowledgement.
#[derive(Debug)]
pub struct Acked {
    pub outcome: AckOutcome,
    /// The copy whose message is no longer held; none at PUBCOMP and at repeated packets.
    pub delivery: Option<Delivery>,
    pub tally: Tally,
}

impl Acked {
    pub(super) fn unknown() -> Self {
        Self {
            outcome: AckOutcome::Unknown,
            delivery: None,
            tally: Tally::default(),
        }
    }
}
