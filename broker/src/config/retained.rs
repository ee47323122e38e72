//! `[retained]`: the limits of retained messages.

use super::section::section;
use super::types::Size;

section! {
    /// The limits of retained messages, which every node holds.
    "retained" {
        /// How many there are at most; what is beyond is refused.
        max_messages: u64 = 1_000_000, in 1..=1_000_000_000;
    }
    later {
        /// The largest payload that is retained; unset: `mqtt.max_packet_size` is the only limit.
        "max_payload": Option<Size> = None;
        /// How many bytes they hold at most; unset: no limit.
        "max_bytes": Option<Size> = None;
        /// How many retained messages a second a new subscription gets; 0: as fast as it reads.
        "delivery_rate": u32 = 0;
    }
}
