//! The gRPC service: checks who calls, then hands requests to the [`Handler`](super::Handler).

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use flotte_proto::envelope::Body;
use flotte_proto::node_server::Node;
use flotte_proto::{
    ControlFrame, Envelope, Hello, LinkFrame, LinkReply, ProbeRequest, ProbeResponse,
};
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::link::{FRAMES_MAX, InboundFrames, Queue};
use super::network::{Shared, chain};
use super::outbox::{self, Outbox, PushError};
use super::{Haste, InboundLink, NodeId, PeerIdentity, identity};

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Refusals that are remembered so that each is logged once.
const COMPLAINTS_MAX: usize = 256;

/// The callee's side of all streams.
pub(super) struct Service {
    shared: Arc<Shared>,
    /// What was logged last about a node, by node id.
    complaints: Mutex<HashMap<u64, String>>,
}

impl Service {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            complaints: Mutex::new(HashMap::new()),
        }
    }

    /// Whether a node may open a stream; the error is for it to read.
    fn admit(&self, theirs: &Hello) -> Result<(), String> {
        let admitted = admit(&self.shared, theirs);
        let mut complaints = self.complaints.lock();
        match &admitted {
            Ok(()) => {
                complaints.remove(&theirs.node_id);
            }
            Err(why) => {
                if complaints.len() >= COMPLAINTS_MAX {
                    complaints.clear();
                }
                let known = complaints.insert(theirs.node_id, why.clone());
                if known.as_ref() != Some(why) {
                    tracing::warn!(peer = %NodeId(theirs.node_id), reason = why, "refused a peer");
                }
            }
        }
        admitted
    }

    /// Gives a peer its one stream: an older one of it ends.
    fn register(&self, peer: NodeId) -> Result<Registration, String> {
        let token = self.shared.shutdown.child_token();
        {
            let mut streams = self.shared.callers.lock();
            if !streams.contains_key(&peer) && streams.len() >= self.shared.config.peers_max {
                return Err("too many peers are connected".to_owned());
            }
            if let Some(older) = streams.insert(peer, token.clone()) {
                older.cancel();
            }
        }
        self.shared.callers_changed();
        Ok(Registration {
            shared: Arc::clone(&self.shared),
            peer,
            token,
        })
    }

    async fn open_control(&self, mut requests: Streaming<ControlFrame>) -> Replies<ControlFrame> {
        let limit = self.shared.config.connect_timeout;
        let first = timeout(limit, requests.message()).await;
        let mut envelopes = match first {
            Ok(Ok(Some(frame))) => frame.envelopes,
            Ok(Ok(None)) => Vec::new(),
            Ok(Err(status)) => return refuse_control(chain(&status)),
            Err(_) => return refuse_control(format!("no handshake in {limit:?}")),
        };
        if envelopes.is_empty() {
            return refuse_control("the stream does not begin with a handshake".to_owned());
        }
        let Some(Body::Hello(theirs)) = envelopes.remove(0).body else {
            return refuse_control("the stream does not begin with a handshake".to_owned());
        };
        let peer = NodeId(theirs.node_id);
        let (incarnation, advertise) = (theirs.incarnation, theirs.advertise.clone());
        let registration = match self.admit(&theirs).and_then(|()| self.register(peer)) {
            Ok(registration) => registration,
            Err(why) => return refuse_control(why),
        };
        let (queue, frames) = outbox::channel(self.shared.config.outbox_limits());
        let inbound = Inbound {
            shared: Arc::clone(&self.shared),
            peer: PeerIdentity::from(theirs.clone()),
            theirs,
            queue,
            raft_room: Arc::new(Semaphore::new(self.shared.config.raft_requests_max)),
            renewal_room: Arc::new(Semaphore::new(self.shared.config.renewals_max)),
            room: Arc::new(Semaphore::new(self.shared.config.requests_max)),
            tasks: JoinSet::new(),
        };
        self.shared
            .spawn(inbound.run(envelopes, requests, registration));
        // A peer that has just come up is called back at once.
        if let Some(peer) = self.shared.peers.read().get(&peer) {
            peer.seen(incarnation, &advertise);
        }
        frames.map(Ok).boxed()
    }

    async fn open_link(&self, mut frames: Streaming<LinkFrame>) -> Replies<LinkReply> {
        let limit = self.shared.config.connect_timeout;
        let first = match timeout(limit, frames.message()).await {
            Ok(Ok(Some(frame))) => frame,
            Ok(Ok(None)) => return refuse_link("the link ended before its handshake".to_owned()),
            Ok(Err(status)) => return refuse_link(chain(&status)),
            Err(_) => return refuse_link(format!("no handshake in {limit:?}")),
        };
        let Some(theirs) = first.hello.clone() else {
            return refuse_link("the link does not begin with a handshake".to_owned());
        };
        if let Err(why) = self.admit(&theirs) {
            return refuse_link(why);
        }
        let hello = LinkReply {
            hello: Some(self.shared.identity.hello()),
            ..LinkReply::default()
        };
        let (replies, queue) = mpsc::channel(FRAMES_MAX);
        if replies.send(hello).await.is_err() {
            return refuse_link("the link ended".to_owned());
        }
        let first = (!first.messages.is_empty()).then_some(first);
        let link = InboundLink {
            frames: InboundFrames::new(first, frames),
            replies,
        };
        let serving = self.shared.handler.link(PeerIdentity::from(theirs), link);
        let shutdown = self.shared.shutdown.clone();
        self.shared.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = serving => {}
            }
        });
        Queue(queue).map(Ok).boxed()
    }
}

#[tonic::async_trait]
impl Node for Service {
    type ControlStream = Replies<ControlFrame>;
    type LinkStream = Replies<LinkReply>;

    async fn control(
        &self,
        request: Request<Streaming<ControlFrame>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        Ok(Response::new(self.open_control(request.into_inner()).await))
    }

    async fn link(
        &self,
        request: Request<Streaming<LinkFrame>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        Ok(Response::new(self.open_link(request.into_inner()).await))
    }

    async fn probe(
        &self,
        request: Request<ProbeRequest>,
    ) -> Result<Response<ProbeResponse>, Status> {
        let answer = self.shared.handler.probe(request.into_inner());
        Ok(Response::new(answer.await))
    }
}

fn admit(shared: &Shared, theirs: &Hello) -> Result<(), String> {
    identity::check_caller(&shared.identity.hello(), theirs)?;
    let known = shared.peers.read().get(&NodeId(theirs.node_id)).cloned();
    known.map_or(Ok(()), |peer| peer.judge_start(theirs))?;
    shared.handler.judge_start(theirs)?;
    shared.handler.accept(theirs)
}

fn refuse_control(why: String) -> Replies<ControlFrame> {
    let refusal = Envelope {
        call: 0,
        body: Some(Body::Refused(why)),
        ..Envelope::default()
    };
    let frame = ControlFrame {
        envelopes: vec![refusal],
    };
    futures::stream::iter([Ok(frame)]).boxed()
}

fn refuse_link(why: String) -> Replies<LinkReply> {
    let refusal = LinkReply {
        refused: why,
        ..LinkReply::default()
    };
    futures::stream::iter([Ok(refusal)]).boxed()
}

/// A peer's place among the control streams, given up with the stream.
struct Registration {
    shared: Arc<Shared>,
    peer: NodeId,
    token: CancellationToken,
}

impl Drop for Registration {
    fn drop(&mut self) {
        {
            let mut streams = self.shared.callers.lock();
            // A newer stream of the same peer has cancelled this one, under the lock, and keeps the place.
            if !self.token.is_cancelled() {
                streams.remove(&self.peer);
            }
        }
        self.shared.callers_changed();
    }
}

/// One control stream from a peer.
struct Inbound {
    shared: Arc<Shared>,
    peer: PeerIdentity,
    theirs: Hello,
    queue: Outbox,
    /// Places for consensus requests. They are apart from the others, which may wait for consensus.
    raft_room: Arc<Semaphore>,
    /// Places for renewals: no storm of other requests may cost the peer its lease.
    renewal_room: Arc<Semaphore>,
    room: Arc<Semaphore>,
    /// Requests under way, ended with the stream.
    tasks: JoinSet<()>,
}

impl Inbound {
    async fn run(
        mut self,
        first: Vec<Envelope>,
        mut requests: Streaming<ControlFrame>,
        registration: Registration,
    ) {
        let mut claims = self.shared.identity.watch();
        self.answer(0, Body::Hello(self.shared.identity.hello()))
            .await;
        for envelope in first {
            self.dispatch(envelope).await;
        }
        loop {
            let frame = tokio::select! {
                frame = requests.message() => frame,
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "a request of a peer panicked");
                    }
                    continue;
                }
                _ = claims.changed() => {
                    if let Err(why) = admit(&self.shared, &self.theirs) {
                        tracing::warn!(peer = %self.peer.node_id, reason = why, "refused a peer");
                        self.answer(0, Body::Refused(why)).await;
                        break;
                    }
                    continue;
                }
                () = self.queue.closed() => break,
                () = registration.token.cancelled() => break,
            };
            match frame {
                Ok(Some(frame)) => {
                    for envelope in frame.envelopes {
                        self.dispatch(envelope).await;
                    }
                }
                Ok(None) => break,
                Err(status) => {
                    tracing::debug!(peer = %self.peer.node_id, error = chain(&status), "stream of a peer broke");
                    break;
                }
            }
        }
    }

    /// Starts a request. It waits only for room in the queue of answers.
    async fn dispatch(&mut self, envelope: Envelope) {
        let call = envelope.call;
        let haste = match envelope.may_wait {
            true => Haste::MayWait,
            false => Haste::Now,
        };
        let request = match envelope.body {
            Some(body) if is_request(&body) => body,
            _ => {
                let text = "this is no request that the node knows";
                return self.answer(call, Body::Error(text.to_owned())).await;
            }
        };
        let room = match request {
            Body::RaftRequest(_) => &self.raft_room,
            Body::RenewRequest(_) => &self.renewal_room,
            _ => &self.room,
        };
        let Ok(permit) = Arc::clone(room).try_acquire_owned() else {
            let text = "busy: too many requests of this node are under way";
            return self.answer(call, Body::Error(text.to_owned())).await;
        };
        // The handler does here, in order, what has to be done in order.
        let answering = self.shared.handler.handle(&self.peer, request);
        let queue = self.queue.clone();
        self.tasks.spawn(async move {
            let body = answering.await;
            answer(&queue, call, body, haste).await;
            drop(permit);
        });
    }

    async fn answer(&self, call: u64, body: Body) {
        answer(&self.queue, call, body, Haste::Now).await;
    }
}

async fn answer(queue: &Outbox, call: u64, body: Body, haste: Haste) {
    let envelope = Envelope {
        call,
        body: Some(body),
        may_wait: haste == Haste::MayWait,
    };
    if let Err(error @ PushError::TooLarge { .. }) = queue.push(envelope).await {
        let body = Some(Body::Error(error.to_string()));
        // The stream may have ended meanwhile; then nobody waits for the answer.
        let error = Envelope {
            call,
            body,
            ..Envelope::default()
        };
        let _ = queue.push(error).await;
    }
}

/// Whether a body asks for something.
fn is_request(body: &Body) -> bool {
    match body {
        Body::RaftRequest(_)
        | Body::ProposeRequest(_)
        | Body::RenewRequest(_)
        | Body::AppliedRequest(_)
        | Body::KickRequest(_)
        | Body::ReadIndexRequest(_)
        | Body::TimeRequest(_)
        | Body::LoadRequest(_) => true,
        Body::Hello(_)
        | Body::Refused(_)
        | Body::Error(_)
        | Body::RaftResponse(_)
        | Body::ProposeResponse(_)
        | Body::RenewResponse(_)
        | Body::AppliedResponse(_)
        | Body::KickResponse(_)
        | Body::ReadIndexResponse(_)
        | Body::TimeResponse(_)
        | Body::LoadResponse(_) => false,
    }
}
