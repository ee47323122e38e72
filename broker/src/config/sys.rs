//! `[sys]`: the `$SYS` topics.

use super::section::section;

section! {
    /// The `$SYS` topics.
    "sys" {
        /// How often they are published; 0: never.
        interval_s: u32 = 10, in 0..=86_400;
    }
}
