//! Link streams: opened and checked here, then handed raw to the link module.

use std::pin::Pin;
use std::task::{Context, Poll};

use flotte_proto::node_client::NodeClient;
use flotte_proto::{LinkFrame, LinkReply};
use futures::Stream;
use tokio::sync::mpsc;
use tonic::Streaming;

use super::network::{Shared, chain};
use super::{CallError, NodeId, PeerIdentity, identity};

/// Frames that may wait on a link stream: the link module has a bounded queue of its own before it.
pub(super) const FRAMES_MAX: usize = 4;

/// A link to a peer, after the handshake.
#[derive(Debug)]
pub struct OutboundLink {
    pub peer: PeerIdentity,
    /// Frames to the peer. The link ends when this is dropped.
    pub frames: mpsc::Sender<LinkFrame>,
    /// Acknowledgements of the peer.
    pub replies: Streaming<LinkReply>,
}

/// A link from a peer, after the handshake.
#[derive(Debug)]
pub struct InboundLink {
    /// Frames of the peer, beginning with what came beside its handshake.
    pub frames: InboundFrames,
    /// Acknowledgements to the peer. The link ends when this is dropped.
    pub replies: mpsc::Sender<LinkReply>,
}

/// The frames of an inbound link.
#[derive(Debug)]
pub struct InboundFrames {
    first: Option<LinkFrame>,
    rest: Streaming<LinkFrame>,
}

impl InboundFrames {
    pub(super) fn new(first: Option<LinkFrame>, rest: Streaming<LinkFrame>) -> Self {
        Self { first, rest }
    }

    /// The next frame; `None` once the peer has ended the link, an error text when it broke.
    /// Cancel safe.
    pub async fn next(&mut self) -> Result<Option<LinkFrame>, String> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        self.rest.message().await.map_err(|status| chain(&status))
    }
}

/// A bounded queue as a stream.
#[derive(Debug)]
pub(super) struct Queue<T>(pub(super) mpsc::Receiver<T>);

impl<T> Stream for Queue<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        self.0.poll_recv(cx)
    }
}

/// Connects and shakes hands. The caller limits the time.
pub(super) async fn open(
    shared: &Shared,
    to: NodeId,
    address: &str,
) -> Result<OutboundLink, CallError> {
    let unreachable = |text: String| {
        tracing::debug!(peer = %to, address, error = text, "cannot open link");
        CallError::Unreachable
    };
    let channel = shared.connect(address).await.map_err(unreachable)?;
    let ours = shared.identity.hello_to(to);
    let (frames, queue) = mpsc::channel(FRAMES_MAX);
    let hello = LinkFrame {
        hello: Some(ours.clone()),
        ..LinkFrame::default()
    };
    frames
        .send(hello)
        .await
        .map_err(|_| CallError::Unreachable)?;
    let mut replies = NodeClient::new(channel)
        .max_decoding_message_size(shared.config.frame_bytes_max())
        .link(Queue(queue))
        .await
        .map_err(|status| unreachable(chain(&status)))?
        .into_inner();
    let first = replies
        .message()
        .await
        .map_err(|status| unreachable(chain(&status)))?
        .ok_or(CallError::Unreachable)?;
    match first.hello {
        Some(theirs) => {
            identity::check_callee(&ours, &theirs, to).map_err(CallError::Refused)?;
            let peer = PeerIdentity::from(theirs);
            Ok(OutboundLink {
                peer,
                frames,
                replies,
            })
        }
        None => Err(CallError::Refused(first.refused)),
    }
}
