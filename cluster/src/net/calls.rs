//! Calls under way on one outbound control stream: each waits for the answer that repeats its number.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flotte_proto::Envelope;
use flotte_proto::envelope::Body;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use super::outbox::{Outbox, PushError};
use super::{CallError, Haste, PeerIdentity};

/// One established outbound stream, shared by its reader and all callers.
#[derive(Debug)]
pub struct Session {
    /// Who answers.
    pub peer: PeerIdentity,
    outbox: Outbox,
    /// Number of the last call.
    last: AtomicU64,
    /// Calls without an answer; `None` once the stream has ended. Bounded by `permits`.
    waiting: Mutex<Option<HashMap<u64, oneshot::Sender<Body>>>>,
    permits: Arc<Semaphore>,
    /// Cancelled when the peer is known to be another process by now.
    expired: CancellationToken,
}

impl Session {
    /// A stream with nothing under way, that takes up to `calls_max` calls at a time.
    pub fn new(peer: PeerIdentity, outbox: Outbox, calls_max: usize) -> Self {
        Self {
            peer,
            outbox,
            last: AtomicU64::new(0),
            waiting: Mutex::new(Some(HashMap::new())),
            permits: Arc::new(Semaphore::new(calls_max)),
            expired: CancellationToken::new(),
        }
    }

    /// Queues a request. Requests of one task go out in the order of these calls.
    pub async fn send(self: &Arc<Self>, body: Body, haste: Haste) -> Result<Answer, CallError> {
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|_| CallError::Unreachable)?;
        let call = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, receiver) = oneshot::channel();
        match self.waiting.lock().as_mut() {
            Some(waiting) => waiting.insert(call, sender),
            None => return Err(CallError::Unreachable),
        };
        // From here on the answer's drop takes the call off the list, whatever happens.
        let answer = Answer {
            session: Arc::clone(self),
            call,
            receiver,
            _permit: permit,
        };
        let envelope = Envelope {
            call,
            body: Some(body),
            may_wait: haste == Haste::MayWait,
        };
        match self.outbox.push(envelope).await {
            Ok(()) => Ok(answer),
            Err(PushError::Closed) => Err(CallError::Unreachable),
            Err(error @ PushError::TooLarge { .. }) => Err(CallError::Remote(error.to_string())),
        }
    }

    /// Hands an answer to its caller. Late answers, and those nobody asked for, are dropped.
    pub fn answered(&self, envelope: Envelope) {
        let caller = match self.waiting.lock().as_mut() {
            Some(waiting) => waiting.remove(&envelope.call),
            None => None,
        };
        if let (Some(caller), Some(body)) = (caller, envelope.body) {
            // A caller that gave up in this moment does not mind.
            let _ = caller.send(body);
        }
    }

    /// Ends all calls as unreachable, and refuses new ones.
    pub fn close(&self) {
        self.waiting.lock().take();
        self.permits.close();
    }

    /// Asks for the stream to be made anew.
    pub fn expire(&self) {
        self.expired.cancel();
    }

    /// Resolves once the stream has to be made anew.
    pub async fn expired(&self) {
        self.expired.cancelled().await;
    }

    /// Resolves once the stream no longer takes requests.
    pub async fn closed(&self) {
        self.outbox.closed().await;
    }
}

/// A request that was sent; resolves with its answer. Dropped, it forgets the call.
#[derive(Debug)]
pub struct Answer {
    session: Arc<Session>,
    call: u64,
    receiver: oneshot::Receiver<Body>,
    _permit: OwnedSemaphorePermit,
}

impl Answer {
    /// The answer, or why there will be none. The caller sets the time limit.
    pub async fn wait(mut self) -> Result<Body, CallError> {
        match (&mut self.receiver).await {
            Ok(Body::Error(text)) => Err(CallError::Remote(text)),
            Ok(body) => Ok(body),
            Err(_) => Err(CallError::Unreachable),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(waiting) = self.session.waiting.lock().as_mut() {
            waiting.remove(&self.call);
        }
    }
}
