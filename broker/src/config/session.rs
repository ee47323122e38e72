//! `[session]`: the limits of each session's queue.

use super::section::section;
use super::types::Size;
use super::value::choice;

choice! {
    /// What a full queue does.
    Overflow {
        /// The oldest message goes.
        DropOld = "drop-old",
        /// The new message goes.
        DropNew = "drop-new",
    }
}

section! {
    /// The limits of each session's queue.
    "session" {
        /// How many messages wait at most.
        queue_max_messages: u32 = 10_000, in 1..=100_000_000;
        /// How many bytes wait at most.
        queue_max_bytes: Size = Size::mib(64), in 1_024..=1_099_511_627_776;
        /// Whether QoS 0 messages wait for a client that is away.
        queue_qos0: bool = false;
        /// What a full queue does: "drop-old" or "drop-new"; both are counted.
        overflow: Overflow = Overflow::DropOld;
        /// How many subscriptions a session may have; more are refused (0x97, in 3.x 0x80) and counted.
        subscriptions_max: u32 = 200_000, in 1..=100_000_000;
        /// How many QoS 1 and 2 messages are under way to a client at most, also where it would take more.
        inflight_max: u16 = 1024, in 1..=65_535;
    }
}
