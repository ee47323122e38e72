//! `[limits]`: what the node takes at most.

use super::section::section;
use super::types::Size;

section! {
    /// What this node takes at most. A reload puts changes in force.
    "limits" {
        /// How many clients at once, over all listeners; unset: as many as the process may open files for. One more hears
        /// 0x97 (3.x: 3).
        max_connections: Option<u32> = None, in 1..=100_000_000;
        /// How many clients a second may connect; unset: any number. One more hears 0x9F (3.x: 3).
        connect_rate: Option<u32> = None, in 1..=1_000_000;
        /// How many messages a second a client may publish; unset: any number. Nothing is dropped: what is too fast is read later.
        publish_rate: Option<u32> = None, in 1..=10_000_000;
        /// How many bytes of payload a second a client may publish; unset: any number. As above.
        publish_bytes_rate: Option<Size> = None, in 1..=1_099_511_627_776;
        /// A client that connects more often than this within the window is sent away for a while (0x8A; 3.x: 5); unset: never.
        flapping_max_connects ["flapping.max_connects"]: Option<u32> = None, in 1..=1_000_000;
        /// The window over which its connects are counted.
        flapping_window_s ["flapping.window_s"]: u32 = 60, in 1..=86_400;
        /// How long it is sent away.
        flapping_ban_s ["flapping.ban_s"]: u32 = 300, in 1..=604_800;
        /// Above this much resident memory the node takes no new clients (0x89; 3.x: 3) and reads one publish a second from each; unset: never.
        memory_high_water: Option<Size> = None, in 1_048_576..=1_099_511_627_776;
    }
}
