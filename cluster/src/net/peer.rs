//! One task for each peer keeps the control stream to it open.
//!
//! ```text
//!            connect, resolve, hello                 hello is right
//!   Down ------------------------------> shaking ------------------> Up(session)
//!    ^  \________ backoff with jitter _____/ | wrong or refused          | stream ends, own claims
//!    |                                       v                           | or address change
//!    +----------- backoff ---------- Refused(why)                        |
//!    +-------------------------------------------------------------------+
//! ```

use std::sync::Arc;
use std::time::Instant;

use flotte_proto::envelope::Body;
use flotte_proto::node_client::NodeClient;
use flotte_proto::{ControlFrame, Envelope, Hello};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::backoff::Backoff;
use super::calls::Session;
use super::network::{Shared, chain};
use super::{CallError, Claims, NodeId, PeerIdentity, identity, outbox};

/// A node that this one calls.
pub(super) struct Peer {
    id: NodeId,
    /// Where it is, and which start of it was there.
    address: watch::Sender<(u64, String)>,
    /// Written by the task alone, read by all callers.
    standing: RwLock<Standing>,
    /// Ends the wait before the next attempt.
    wake: Notify,
    cancel: CancellationToken,
    /// What was logged last, so that a lasting trouble is logged once.
    complaint: Mutex<Option<String>>,
}

#[derive(Clone)]
enum Standing {
    Down,
    Up(Arc<Session>),
    Refused(String),
}

/// Why there is no stream.
enum Failure {
    Unreachable(String),
    Refused(String),
}

/// When to connect again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    Now,
    AfterBackoff,
}

/// A stream whose handshake is done.
struct Established {
    session: Arc<Session>,
    answers: Streaming<ControlFrame>,
    /// Answers that came in one frame with the handshake.
    first: Vec<Envelope>,
}

impl Peer {
    pub(super) fn new(
        id: NodeId,
        address: &str,
        incarnation: u64,
        cancel: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            address: watch::Sender::new((incarnation, address.to_owned())),
            standing: RwLock::new(Standing::Down),
            wake: Notify::new(),
            cancel,
            complaint: Mutex::new(None),
        })
    }

    /// See [`Network::set_peer`](super::Network::set_peer).
    pub(super) fn set_address(&self, address: &str, incarnation: u64) {
        let is_up = matches!(&*self.standing.read(), Standing::Up(_));
        self.address.send_if_modified(|(start, current)| {
            let is_newer = incarnation > *start;
            *start = (*start).max(incarnation);
            let differs = current != address && (is_newer || incarnation == *start && !is_up);
            if differs {
                address.clone_into(current);
            }
            differs
        });
    }

    /// What a start older than the newest one known lacks, it once acknowledged: consensus must not speak to it.
    pub(super) fn judge_start(&self, theirs: &Hello) -> Result<(), String> {
        let newest = self.address.borrow().0;
        if theirs.incarnation >= newest {
            return Ok(());
        }
        Err(format!(
            "node {} ({:?}) comes as its start {}, and start {newest} of it is known: its disk is an older copy",
            self.id, theirs.name, theirs.incarnation
        ))
    }

    pub(super) fn address(&self) -> String {
        self.address.borrow().1.clone()
    }

    /// The stream, or why there is none.
    pub(super) fn session(&self) -> Result<Arc<Session>, CallError> {
        match &*self.standing.read() {
            Standing::Up(session) => Ok(Arc::clone(session)),
            Standing::Down => Err(CallError::Unreachable),
            Standing::Refused(why) => Err(CallError::Refused(why.clone())),
        }
    }

    /// The peer has shown itself, in this incarnation and with this address: there is no need to wait before the next
    /// attempt, and a stream to an older incarnation leads nowhere.
    pub(super) fn seen(&self, incarnation: u64, advertise: &str) {
        if !advertise.is_empty() {
            self.set_address(advertise, incarnation);
        }
        match &*self.standing.read() {
            Standing::Up(session) if session.peer.incarnation >= incarnation => {}
            Standing::Up(session) => session.expire(),
            Standing::Down | Standing::Refused(_) => self.wake.notify_one(),
        }
    }

    pub(super) fn stop(&self) {
        self.cancel.cancel();
    }

    /// Connects, serves and reconnects until the peer is stopped.
    pub(super) async fn run(self: Arc<Self>, shared: Arc<Shared>) {
        let cancel = self.cancel.clone();
        let work = self.keep_connected(&shared);
        tokio::select! {
            () = cancel.cancelled() => {}
            () = work => {}
        }
        self.set_standing(&shared, Standing::Down);
    }

    async fn keep_connected(&self, shared: &Shared) {
        let mut backoff = Backoff::new();
        let mut address = self.address.subscribe();
        loop {
            // Before the handshake is made, so that no change is missed.
            let mut claims = shared.identity.watch();
            let target = address.borrow_and_update().1.clone();
            let limit = shared.config.connect_timeout;
            let outcome = match timeout(limit, self.establish(shared, &target)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(Failure::Unreachable(format!("no handshake in {limit:?}"))),
            };
            let again = match outcome {
                Ok(established) => {
                    let since = Instant::now();
                    let again = self
                        .serve(shared, established, &mut claims, &mut address)
                        .await;
                    // A stream that falls at once keeps the delays growing.
                    if since.elapsed() > limit {
                        backoff.reset();
                    }
                    again
                }
                Err(failure) => {
                    self.fail(shared, &target, failure);
                    Again::AfterBackoff
                }
            };
            if again == Again::AfterBackoff {
                tokio::select! {
                    () = tokio::time::sleep(backoff.delay()) => {}
                    () = self.wake.notified() => {}
                    _ = address.changed() => {}
                    _ = claims.changed() => {}
                }
            }
        }
    }

    /// Connects and shakes hands.
    async fn establish(&self, shared: &Shared, address: &str) -> Result<Established, Failure> {
        let channel = shared
            .connect(address)
            .await
            .map_err(Failure::Unreachable)?;
        let ours = shared.identity.hello_to(self.id);
        let (queue, frames) = outbox::channel(shared.config.outbox_limits());
        let hello = Envelope {
            call: 0,
            body: Some(Body::Hello(ours.clone())),
            ..Envelope::default()
        };
        queue
            .push(hello)
            .await
            .map_err(|error| Failure::Unreachable(error.to_string()))?;
        let mut answers = NodeClient::new(channel)
            .max_decoding_message_size(shared.config.frame_bytes_max())
            .control(frames)
            .await
            .map_err(|status| Failure::Unreachable(chain(&status)))?
            .into_inner();
        let (theirs, first) = first_answer(&mut answers).await?;
        identity::check_callee(&ours, &theirs, self.id).map_err(Failure::Refused)?;
        let judged = self.judge_start(&theirs);
        let judged = judged.and_then(|()| shared.handler.judge_start(&theirs));
        judged.map_err(Failure::Refused)?;
        let peer = PeerIdentity::from(theirs);
        let session = Arc::new(Session::new(peer, queue, shared.config.calls_max));
        Ok(Established {
            session,
            answers,
            first,
        })
    }

    /// Hands answers to their callers until the stream ends or has to be made anew.
    async fn serve(
        &self,
        shared: &Shared,
        established: Established,
        claims: &mut watch::Receiver<Claims>,
        address: &mut watch::Receiver<(u64, String)>,
    ) -> Again {
        let Established {
            session,
            mut answers,
            first,
        } = established;
        // Also when this future is dropped, no call may be left waiting.
        let _closer = CloseOnDrop(&session);
        let peer = &session.peer;
        tracing::info!(
            peer = %self.id,
            name = peer.name,
            incarnation = peer.incarnation,
            "connected to peer"
        );
        self.complaint.lock().take();
        self.set_standing(shared, Standing::Up(Arc::clone(&session)));
        first
            .into_iter()
            .for_each(|answer| session.answered(answer));
        let (again, why) = loop {
            let frame = tokio::select! {
                frame = answers.message() => frame,
                () = session.closed() => break (Again::AfterBackoff, "the stream ended".to_owned()),
                () = session.expired() => break (Again::Now, "the peer has a newer incarnation".to_owned()),
                _ = claims.changed() => break (Again::Now, "this node's identity changed".to_owned()),
                _ = address.changed() => break (Again::Now, "the address changed".to_owned()),
            };
            match frame {
                Ok(Some(frame)) => {
                    for answer in frame.envelopes {
                        session.answered(answer);
                    }
                }
                Ok(None) => break (Again::AfterBackoff, "the peer ended the stream".to_owned()),
                Err(status) => break (Again::AfterBackoff, chain(&status)),
            }
        };
        self.set_standing(shared, Standing::Down);
        tracing::info!(peer = %self.id, reason = why, "connection to peer ended");
        again
    }

    fn fail(&self, shared: &Shared, address: &str, failure: Failure) {
        let (text, standing) = match failure {
            Failure::Unreachable(text) => (text, Standing::Down),
            Failure::Refused(text) => (text.clone(), Standing::Refused(text)),
        };
        self.set_standing(shared, standing);
        let known = self.complaint.lock().replace(text.clone());
        if known.as_ref() == Some(&text) {
            tracing::debug!(peer = %self.id, address, error = text, "still no connection to peer");
        } else {
            tracing::warn!(peer = %self.id, address, error = text, "no connection to peer");
        }
    }

    fn set_standing(&self, shared: &Shared, standing: Standing) {
        let was_up = {
            let mut current = self.standing.write();
            let was_up = matches!(&*current, Standing::Up(_));
            *current = standing.clone();
            was_up
        };
        if was_up != matches!(standing, Standing::Up(_)) {
            shared.changed();
        }
    }
}

/// The callee's handshake, and the answers that came with it.
async fn first_answer(
    answers: &mut Streaming<ControlFrame>,
) -> Result<(Hello, Vec<Envelope>), Failure> {
    let frame = answers
        .message()
        .await
        .map_err(|status| Failure::Unreachable(chain(&status)))?;
    let mut envelopes = frame.map(|frame| frame.envelopes).unwrap_or_default();
    if envelopes.is_empty() {
        let text = "the peer ended the stream before its handshake";
        return Err(Failure::Unreachable(text.to_owned()));
    }
    match envelopes.remove(0).body {
        Some(Body::Hello(hello)) => Ok((hello, envelopes)),
        Some(Body::Refused(why)) => Err(Failure::Refused(why)),
        _ => {
            let text = "the peer does not begin with a handshake";
            Err(Failure::Refused(text.to_owned()))
        }
    }
}

/// Ends the calls of a session with the task that served it.
struct CloseOnDrop<'a>(&'a Session);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}
