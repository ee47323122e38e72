//! `[retained]`: the limits of retained messages.

use super::section::section;
use super::types::Size;

section! {
    /// The limits of retained messages, which every node holds; give all nodes the same. What is beyond is refused with
    /// 0x97 where a 5.0 client waits for an acknowledgement. Any other such message still goes to its subscribers, and its
    /// topic retains nothing then.
    "retained" {
        /// How many there may be for a client of this node to add one.
        max_messages: u64 = 1_000_000, in 1..=1_000_000_000;
        /// The largest payload that is retained; unset: as large as `mqtt.max_packet_size` lets it be.
        max_payload: Option<Size> = None, in 1..=268_435_455;
        /// How many bytes of topics, properties and payloads they may hold for a client of this node to add to them; unset: no limit.
        max_bytes: Option<Size> = None, in 1..=1_099_511_627_776;
        /// How many retained messages a second a new subscription gets; 0: as fast as its client reads.
        delivery_rate: u32 = 0, in 0..=1_000_000;
    }
}
