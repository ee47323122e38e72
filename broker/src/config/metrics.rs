//! `[metrics]`: has no keys yet; /metrics is served on the admin port.

use super::section::section;

section! {
    /// Nothing to set yet: /metrics is served on the admin port.
    "metrics" {}
}
