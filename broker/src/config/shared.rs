//! `[shared]`: how a message finds its member of a shared subscription.

use super::section::section;
use super::value::choice;

choice! {
    /// How a message finds its member.
    Strategy {
        /// One after the other, over all nodes.
        RoundRobin = "round-robin",
    }
    later { "random", "least-inflight", "local-first", "hash-client", "hash-topic", "sticky" }
}

section! {
    /// How a message finds its member of a shared subscription.
    "shared" {
        /// "round-robin"; later "random", "least-inflight", "local-first", "hash-client", "hash-topic" and "sticky".
        strategy: Strategy = Strategy::RoundRobin;
    }
}
