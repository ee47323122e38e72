//! The task that moves one proposer's batches to the group's leader and its replies back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotte_proto::{Batch, BatchReply};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::core::{Core, Outcome, Refusal, Waiting};
use crate::handle::Refused;
use crate::id::NodeRef;

/// Commands that wait for the task; the callers wait beyond.
const QUEUE: usize = 4_096;
/// Commands that the core holds before the task takes no more from the queue.
const PENDING_MAX: usize = 65_536;
/// Pause before a batch without an answer is sent again.
const RETRY: Duration = Duration::from_millis(20);

/// Index of the entry and the command's reply.
pub type Reply = (u64, Bytes);
type Ticket = oneshot::Sender<Reply>;

/// Gets a batch to the leader of its group, wherever that is.
pub trait Route: Send + Sync + 'static {
    /// None = no answer: no leader known, not reachable, or it lost its office under way.
    fn send(&self, batch: Batch) -> BoxFuture<'static, Option<BatchReply>>;
    /// The group takes nothing more from this incarnation.
    fn ended(&self, refusal: Option<Refusal>);
}

/// Proposes for one node to one group. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Proposer {
    queue: mpsc::Sender<Waiting<Ticket>>,
}

impl Proposer {
    /// Starts the task; it ends with `shutdown`, and whoever still waits is told [`Refused::NotServing`].
    pub fn start(node: NodeRef, route: Arc<dyn Route>, shutdown: CancellationToken) -> Proposer {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let service = Service {
            core: Core::new(node),
            waiting,
            route,
            calls: FuturesUnordered::new(),
        };
        tokio::spawn(async move { shutdown.run_until_cancelled(service.run()).await });
        Proposer { queue }
    }

    /// Proposes a command, in order of the calls. Resolves to its reply.
    pub fn propose(&self, command: Bytes) -> BoxFuture<'static, Result<Reply, Refused>> {
        let (ticket, reply) = oneshot::channel();
        match self.queue.try_send(Waiting { command, ticket }) {
            Ok(()) => Box::pin(async move { reply.await.map_err(|_| Refused::NotServing) }),
            Err(mpsc::error::TrySendError::Closed(_)) => {
                Box::pin(async { Err(Refused::NotServing) })
            }
            Err(mpsc::error::TrySendError::Full(waiting)) => {
                let queue = self.queue.clone();
                Box::pin(async move {
                    queue.send(waiting).await.map_err(|_| Refused::NotServing)?;
                    reply.await.map_err(|_| Refused::NotServing)
                })
            }
        }
    }
}

struct Service {
    core: Core<Ticket>,
    waiting: mpsc::Receiver<Waiting<Ticket>>,
    route: Arc<dyn Route>,
    calls: FuturesUnordered<BoxFuture<'static, (u64, Option<BatchReply>)>>,
}

impl Service {
    async fn run(mut self) {
        let mut retry_at: Option<tokio::time::Instant> = None;
        loop {
            if retry_at.is_none() {
                self.send_all();
            }
            tokio::select! {
                command = self.waiting.recv(), if self.core.pending() < PENDING_MAX => {
                    let Some(command) = command else { return };
                    self.core.push(command);
                    while let Ok(command) = self.waiting.try_recv() {
                        self.core.push(command);
                    }
                }
                Some((sequence, reply)) = self.calls.next() => match reply {
                    Some(reply) => {
                        let outcome = self.core.handle_reply(sequence, reply);
                        if !self.settle(outcome) {
                            return;
                        }
                    }
                    None => {
                        self.core.handle_lost(sequence);
                        retry_at = Some(tokio::time::Instant::now() + RETRY);
                    }
                },
                () = sleep_until(retry_at), if retry_at.is_some() => retry_at = None,
            }
        }
    }

    fn send_all(&mut self) {
        while let Some(batch) = self.core.poll_send() {
            let sequence = batch.sequence;
            let call = self.route.send(batch);
            self.calls
                .push(Box::pin(async move { (sequence, call.await) }));
        }
    }

    /// Says whether to go on.
    fn settle(&self, outcome: Outcome<Ticket>) -> bool {
        match outcome {
            Outcome::Applied(index, replies) => {
                for (ticket, reply) in replies {
                    // Whoever stopped waiting does not want to know.
                    let _ = ticket.send((index, reply));
                }
                true
            }
            Outcome::Nothing => true,
            Outcome::Stale => {
                self.route.ended(None);
                false
            }
            Outcome::Refused(why) => {
                self.route.ended(Some(why));
                false
            }
        }
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use flotte_proto::{Replies, batch_reply};
    use parking_lot::Mutex;

    use super::*;
    use crate::id::NodeId;
    use crate::ledger::{Admission, Ledger};

    /// A leader that loses every third request and every fifth answer.
    #[derive(Default)]
    struct Flaky {
        ledger: Mutex<Ledger>,
        log: Arc<Mutex<Vec<Bytes>>>,
        calls: AtomicU64,
    }

    impl Route for Flaky {
        fn send(&self, batch: Batch) -> BoxFuture<'static, Option<BatchReply>> {
            let call = self.calls.fetch_add(1, Ordering::Relaxed);
            if call % 3 == 2 {
                return Box::pin(async { None });
            }
            let mut ledger = self.ledger.lock();
            let reply = match ledger.admit(NodeId(1), 1, batch.sequence) {
                Admission::Take => {
                    self.log.lock().extend(batch.commands.iter().cloned());
                    let result = batch_reply::Result::Replies(Replies {
                        replies: batch.commands,
                    });
                    let reply = BatchReply {
                        index: call,
                        result: Some(result),
                    };
                    ledger.record(
                        NodeId(1),
                        1,
                        batch.sequence,
                        prost::Message::encode_to_vec(&reply).into(),
                    );
                    reply
                }
                Admission::Repeat(reply) => prost::Message::decode(reply).unwrap(),
                Admission::Gap(last) => BatchReply {
                    index: 0,
                    result: Some(batch_reply::Result::Gap(last)),
                },
                Admission::Stale => BatchReply {
                    index: 0,
                    result: Some(batch_reply::Result::Stale(true)),
                },
            };
            Box::pin(async move { (call % 5 != 4).then_some(reply) })
        }

        fn ended(&self, _refusal: Option<Refusal>) {}
    }

    #[tokio::test(start_paused = true)]
    async fn commands_survive_a_flaky_leader_once_and_in_order() {
        let log = Arc::new(Mutex::new(Vec::new()));
        let route = Flaky {
            log: Arc::clone(&log),
            ..Flaky::default()
        };
        let node = NodeRef {
            node: NodeId(1),
            incarnation: 1,
        };
        let proposer = Proposer::start(node, Arc::new(route), CancellationToken::new());
        let commands: Vec<Bytes> = (0..500_u32).map(|n| Bytes::from(n.to_string())).collect();
        let mut replies = Vec::new();
        for command in &commands {
            replies.push(proposer.propose(command.clone()));
            tokio::task::yield_now().await;
        }
        for (reply, command) in futures::future::join_all(replies)
            .await
            .into_iter()
            .zip(&commands)
        {
            assert_eq!(&reply.unwrap().1, command);
        }
        assert_eq!(*log.lock(), commands);
    }

    #[tokio::test]
    async fn who_waits_at_the_end_is_told() {
        struct Silent;
        impl Route for Silent {
            fn send(&self, _: Batch) -> BoxFuture<'static, Option<BatchReply>> {
                Box::pin(futures::future::pending())
            }
            fn ended(&self, _: Option<Refusal>) {}
        }
        let shutdown = CancellationToken::new();
        let node = NodeRef {
            node: NodeId(1),
            incarnation: 1,
        };
        let proposer = Proposer::start(node, Arc::new(Silent), shutdown.clone());
        let reply = proposer.propose(Bytes::from_static(b"x"));
        shutdown.cancel();
        assert_eq!(reply.await, Err(Refused::NotServing));
        assert_eq!(
            proposer.propose(Bytes::new()).await,
            Err(Refused::NotServing)
        );
    }
}
