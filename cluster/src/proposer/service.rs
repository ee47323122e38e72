//! The task that moves one proposer's batches to the group's leader and its replies back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotte_proto::{Batch, BatchReply};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::core::{Core, Outcome, Refusal, Waiting};
use super::queue::{Pending, Queue, Ticket};
use crate::handle::Refused;
use crate::id::NodeRef;

/// Pause before a batch without an answer is sent again.
const RETRY: Duration = Duration::from_millis(20);

/// Index of the entry and the command's reply.
pub type Reply = (u64, Bytes);

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
    queue: Arc<Queue>,
    /// Ends the task with the last of its proposers.
    _end: Arc<DropGuard>,
}

impl Proposer {
    /// Starts the task; it ends with `shutdown`, and whoever still waits is told [`Refused::NotServing`].
    pub fn start(node: NodeRef, route: Arc<dyn Route>, shutdown: CancellationToken) -> Proposer {
        let queue = Arc::new(Queue::default());
        let service = Service {
            core: Core::new(node),
            queue: Arc::clone(&queue),
            route,
            calls: FuturesUnordered::new(),
        };
        let end = shutdown.child_token();
        let ended = end.clone();
        tokio::spawn(async move { ended.run_until_cancelled(service.run()).await });
        Proposer {
            queue,
            _end: Arc::new(end.drop_guard()),
        }
    }

    /// Proposes a command, in order of the calls: it is proposed when this returns, whether the future is polled or not.
    /// Resolves to its reply.
    pub fn propose(&self, command: Bytes) -> BoxFuture<'static, Result<Reply, Refused>> {
        let (ticket, reply) = oneshot::channel();
        self.queue.push(Waiting { command, ticket });
        Box::pin(async move { reply.await.map_err(|_| Refused::NotServing) })
    }

    /// What is proposed and not answered.
    pub fn pending(&self) -> Pending {
        self.queue.pending()
    }
}

struct Service {
    core: Core<Ticket>,
    queue: Arc<Queue>,
    route: Arc<dyn Route>,
    calls: FuturesUnordered<BoxFuture<'static, (u64, Option<BatchReply>)>>,
}

impl Service {
    async fn run(mut self) {
        let mut retry_at: Option<tokio::time::Instant> = None;
        loop {
            self.queue.drain_into(&mut self.core);
            if retry_at.is_none() {
                self.send_all();
            }
            tokio::select! {
                () = self.queue.news() => {}
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

impl Drop for Service {
    /// Whatever ended it: nobody waits for what cannot come.
    fn drop(&mut self) {
        self.queue.close();
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

    #[tokio::test(start_paused = true)]
    async fn any_number_is_in_order_of_the_calls_though_futures_are_polled_late_or_never() {
        struct Steady(Arc<Mutex<Vec<Bytes>>>);
        impl Route for Steady {
            fn send(&self, batch: Batch) -> BoxFuture<'static, Option<BatchReply>> {
                self.0.lock().extend(batch.commands.iter().cloned());
                let replies = batch.commands;
                let reply = BatchReply {
                    index: 1,
                    result: Some(batch_reply::Result::Replies(Replies { replies })),
                };
                Box::pin(async { Some(reply) })
            }
            fn ended(&self, _: Option<Refusal>) {}
        }
        let log = Arc::new(Mutex::new(Vec::new()));
        let node = NodeRef {
            node: NodeId(1),
            incarnation: 1,
        };
        let route = Arc::new(Steady(Arc::clone(&log)));
        let proposer = Proposer::start(node, route, CancellationToken::new());
        let numbers = 0..10_000_u32;
        let commands: Vec<Bytes> = numbers.map(|n| Bytes::from(n.to_string())).collect();
        let (early, late) = commands.split_at(9_000);
        let mut kept = Vec::new();
        // The task has no turn meanwhile.
        for (number, command) in early.iter().enumerate() {
            let reply = proposer.propose(command.clone());
            if number % 2 == 0 {
                kept.push(reply);
            }
        }
        while log.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        let last = late.iter().map(|command| proposer.propose(command.clone()));
        for reply in last.collect::<Vec<_>>() {
            assert!(reply.await.is_ok());
        }
        assert_eq!(*log.lock(), commands);
        assert_eq!(proposer.pending(), Pending::default());
    }

    struct Silent;

    impl Route for Silent {
        fn send(&self, _: Batch) -> BoxFuture<'static, Option<BatchReply>> {
            Box::pin(futures::future::pending())
        }
        fn ended(&self, _: Option<Refusal>) {}
    }

    #[tokio::test]
    async fn the_task_ends_with_the_last_that_can_propose() {
        let node = NodeRef {
            node: NodeId(1),
            incarnation: 1,
        };
        let proposer = Proposer::start(node, Arc::new(Silent), CancellationToken::new());
        let another = proposer.clone();
        drop(proposer);
        let reply = another.propose(Bytes::from_static(b"x"));
        drop(another);
        assert_eq!(reply.await, Err(Refused::NotServing));
    }

    #[tokio::test]
    async fn who_waits_at_the_end_is_told() {
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
