//! `[limits]`: what the node takes at most.

use super::section::section;
use super::types::{Nothing, Size};

section! {
    /// What this node takes at most.
    "limits" {
        /// How many clients at once, over all listeners; unset: as many as the process may open files for.
        max_connections: Option<u32> = None, in 1..=100_000_000;
    }
    later {
        /// How many clients a second may connect.
        "connect_rate": Option<u32> = None;
        /// How many messages a second a client may publish.
        "publish_rate": Option<u32> = None;
        /// How many bytes a second a client may publish.
        "publish_bytes_rate": Option<Size> = None;
        /// Clients that connect again and again are sent away for a while.
        "flapping": Option<Nothing> = None;
        /// Above this much memory the node takes nothing more.
        "memory_high_water": Option<Size> = None;
    }
}
