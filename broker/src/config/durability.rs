//! `[durability]`: what an acknowledgement promises.

use super::section::section;
use super::types::Nothing;
use super::value::choice;

choice! {
    /// What has happened before a publisher gets its acknowledgement.
    Ack {
        /// A quorum of replicas has the message on stable storage.
        QuorumFsync = "quorum-fsync",
    }
    later { "local" }
}

section! {
    /// What an acknowledgement promises.
    "durability" {
        /// "quorum-fsync": a quorum has it on stable storage; later "local": this node has taken it.
        ack: Ack = Ack::QuorumFsync;
    }
    later {
        /// Another promise for some topics: [[durability.topic]] with `filter` and `ack`.
        "topic": Option<Nothing> = None;
    }
}
