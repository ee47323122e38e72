//! The transport between nodes: one control stream and one link stream for each ordered pair.
//!
//! A *control stream* (caller -> callee) carries the requests of the caller and the answers of the
//! callee, of all groups and kinds, multiplexed by call number; it is kept open by one task for
//! each peer, which reconnects with backoff. A *link stream* is handed raw to the link module and
//! has a connection of its own, so that a full link never holds up consensus.
//! Both begin with a handshake in which each side checks who the other one is.
//!
//! It knows nothing of what the requests mean: a [`Handler`] answers them.

mod backoff;
mod calls;
mod identity;
mod link;
mod listener;
mod names;
mod network;
mod outbox;
mod peer;
mod service;

#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use flotte_proto::envelope::Body;
use flotte_proto::{Hello, ProbeRequest, ProbeResponse};
use futures::future::BoxFuture;

pub use crate::id::NodeId;
pub use calls::Answer;
pub use identity::{Claims, Identity, PROTOCOL, PeerIdentity, check};
pub use link::{InboundLink, OutboundLink};
pub use names::{NameError, Names, Records};
pub use network::{Bound, Network};
use outbox::OutboxLimits;

/// Bounds and times of the transport.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// Where the cluster port listens.
    pub bind: SocketAddr,
    /// Who is asked for the names of nodes.
    pub names: Names,
    /// To resolve a name, connect and shake hands.
    pub connect_timeout: Duration,
    /// An idle connection is probed this often...
    pub keep_alive_interval: Duration,
    /// ...and given up when the probe is not answered for this long.
    pub keep_alive_timeout: Duration,
    /// Envelopes that may wait on one stream.
    pub queue_envelopes_max: usize,
    /// Bytes that may wait on one stream.
    pub queue_bytes_max: usize,
    /// Size at which a frame is full.
    pub frame_bytes: usize,
    /// Largest single request or answer.
    pub message_bytes_max: usize,
    /// Calls under way to one peer.
    pub calls_max: usize,
    /// Consensus requests of one peer under way here.
    pub raft_requests_max: usize,
    /// Renewals of leases of one peer under way here.
    pub renewals_max: usize,
    /// All other requests of one peer under way here.
    pub requests_max: usize,
    /// Connections that the cluster port holds.
    pub connections_max: usize,
    /// Peers that may have a control stream to this node.
    pub peers_max: usize,
}

impl NetConfig {
    /// The defaults, with a place to listen.
    pub fn new(bind: SocketAddr) -> Self {
        Self {
            bind,
            names: Names::system(),
            connect_timeout: Duration::from_secs(2),
            keep_alive_interval: Duration::from_secs(1),
            keep_alive_timeout: Duration::from_secs(2),
            queue_envelopes_max: 4_096,
            queue_bytes_max: 16 << 20,
            frame_bytes: 256 << 10,
            message_bytes_max: 64 << 20,
            calls_max: 4_096,
            raft_requests_max: 1_024,
            renewals_max: 64,
            requests_max: 256,
            connections_max: 1_024,
            peers_max: 256,
        }
    }

    fn outbox_limits(&self) -> OutboxLimits {
        OutboxLimits {
            envelopes_max: self.queue_envelopes_max,
            bytes_max: self.queue_bytes_max,
            frame_bytes: self.frame_bytes,
            envelope_bytes_max: self.message_bytes_max,
        }
    }

    /// The largest frame a peer can send: a nearly full one, and one large message after it.
    fn frame_bytes_max(&self) -> usize {
        self.message_bytes_max + self.frame_bytes + 1_024
    }
}

/// Whether a request may wait for others, with which it makes one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Haste {
    /// It goes at once, and so does its answer.
    Now,
    /// Both may wait for a moment.
    MayWait,
}

/// What answers the requests of peers.
pub trait Handler: Send + Sync + 'static {
    /// Answers a request. These calls come in the order of arrival on a stream and must not block;
    /// the futures they return run concurrently. So what a request is to do in order, it does
    /// before it returns.
    fn handle(&self, from: &PeerIdentity, request: Body) -> BoxFuture<'static, Body>;

    /// Whether a node may talk to this one, after protocol, id and cluster have been checked. The
    /// error is sent to it. Asked again for open streams whenever this node's own claims change.
    fn accept(&self, hello: &Hello) -> Result<(), String>;

    /// Whether this start of a node may talk to this one, whoever called: one with an older copy of its disk may not, as it lacks
    /// what it once acknowledged.
    fn judge_start(&self, _hello: &Hello) -> Result<(), String> {
        Ok(())
    }

    /// Takes the messages of a link. The stream ends with the future.
    fn link(&self, from: PeerIdentity, link: InboundLink) -> BoxFuture<'static, ()>;

    /// Answers a node that looks for a cluster. It need not be a member of anything.
    fn probe(&self, request: ProbeRequest) -> BoxFuture<'static, ProbeResponse>;
}

/// Why the transport did not start.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("cannot listen on {bind}: {source}")]
    Bind { bind: SocketAddr, source: io::Error },
}

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// There is no stream to the peer, or it ended: the request may or may not have been handled.
    #[error("the peer cannot be reached")]
    Unreachable,
    /// No answer in time: the request may or may not have been handled.
    #[error("no answer in time")]
    Timeout,
    /// One side does not accept the other one.
    #[error("refused: {0}")]
    Refused(String),
    /// The peer could not handle the request.
    #[error("the peer answers: {0}")]
    Remote(String),
}
