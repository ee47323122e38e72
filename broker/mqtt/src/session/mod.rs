//! The session state machine: what a client and the broker owe each other at QoS 1 and 2, in both
//! directions. Pure: `now_ms` is an argument, output is bytes appended to a buffer of the caller's or
//! small structs. It never routes, authorises, stores or touches a socket. Live and durable
//! sessions share this code.
//!
//! A copy of a message on its way to the client ([`Outbound`]); QoS 0 ends with its first sending:
//!
//! ```text
//!                                 enqueue
//!                                    |  expired, too large, queue full ------------> counted, gone
//!                                    v
//!          expired, dropped <---- waiting                     takes its sequence number, and with
//!                                    |                        it the packet id, when it is queued
//!                window open, socket |
//!                         writable   v        reconnect: PUBLISH again, DUP 1
//!                                published <----------------.
//!                 QoS 1: PUBACK  /   | QoS 2: PUBREC        |
//!                 QoS 2: PUBREC  |   v                      |
//!                 with an error  | released <--- reconnect: PUBREL again
//!                                |   | PUBCOMP
//!                                v   v
//!                                 done ---> the window moves once nothing before it is undone
//! ```
//!
//! A QoS 1 or 2 PUBLISH of the client's ([`Inbound`]):
//!
//! ```text
//!      start ---> routing ---> complete ---> settled ---> poll_ack, in the order of the starts
//!                    |                          |           PUBACK: done
//!        connection lost                        |           PUBREC with an error: done, id free
//!                    v                          |           PUBREC: the id stays begun until
//!            QoS 2: unsettled,                  |                   PUBREL, so that a repeated
//!            routed again under the same id     |                   PUBLISH is not routed again
//!            when the client repeats it         v
//!                                          kept over connections (QoS 2)
//! ```

mod alias;
mod config;
mod flight;
mod inbound;
mod link;
mod message;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod model;
mod outbound;
mod outcome;
mod parting;
mod queue;
mod rare;
mod room;
mod shared;
mod tail;
mod tally;
mod window;
mod withdraw;

pub use config::{InboundConfig, OutboundConfig, Overflow};
pub use inbound::{AckKind, AckOut, Begin, Inbound, Ticket};
pub use link::Peer;
pub use message::{Delivery, Keeper, Message, Readiness, SharedCopy};
pub use outbound::Outbound;
pub use outcome::{AckOutcome, Acked, Enqueued, Outcome};
pub use tail::{TAIL_BYTES, Tail};
pub use tally::{DropReason, Tally};

use crate::packet::PacketId;
use crate::reason::ReasonCode;

/// What ends the connection: in each case the client broke the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// An acknowledgement that does not belong to the state of the message, such as a PUBACK for
    /// QoS 2.
    #[error("packet {0} is not waiting for this acknowledgement")]
    UnexpectedAck(PacketId),
    /// More unacknowledged PUBLISHes than the server's Receive Maximum. [MQTT-3.3.4-7]
    #[error("more than {0} publishes are unacknowledged")]
    ReceiveMaximumExceeded(u16),
    /// Topic alias 0, or beyond the server's Topic Alias Maximum. [MQTT-3.2.2-17], [MQTT-3.3.2-8]
    #[error("topic alias {0} is out of range")]
    AliasOutOfRange(u16),
    /// A topic alias that stands for nothing on this connection.
    #[error("topic alias {0} is not set")]
    UnknownAlias(u16),
}

impl SessionError {
    /// The reason code of the DISCONNECT to send.
    pub fn reason(self) -> ReasonCode {
        match self {
            Self::UnexpectedAck(_) | Self::UnknownAlias(_) => ReasonCode::ProtocolError,
            Self::ReceiveMaximumExceeded(_) => ReasonCode::ReceiveMaximumExceeded,
            Self::AliasOutOfRange(_) => ReasonCode::TopicAliasInvalid,
        }
    }
}
