//! Consensus groups, storage, replicated state, membership and links between nodes.
//! It never names the broker; the broker sees nothing of it but [`handle`].

pub mod barrier;
mod beat;
pub mod config;
pub mod group;
pub mod handle;
pub mod id;
pub mod journal;
pub mod leader;
pub mod lease;
pub mod ledger;
pub mod level;
pub mod link;
pub mod membership;
pub mod meta;
pub mod net;
pub mod proposer;
pub mod raft;
pub mod runtime;
#[cfg(test)]
mod sim;
pub mod snapshot;
pub mod state_time;
pub mod store;
pub mod will_keys;

/// The messages between nodes that the broker fills in or reads.
pub mod wire {
    pub use flotte_proto::retain_reply::Result as RetainResult;
    pub use flotte_proto::{
        Close, Endpoint, Forward, Open, Retain, RetainedMessage, SharePick, Will, WillKey,
    };

    pub use crate::will_keys::WillKeys;
}
