//! The leader's side of proposals: merges the batches of all nodes that wait into one log entry, and takes the replies
//! apart again.

use std::time::{SystemTime, UNIX_EPOCH};

use flotte_proto::{Batch, BatchReply, EntryReply, GroupEntry, ProposeResponse, propose_response};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::id::NodeId;
use crate::raft::{Group, ProposeError, SubmitError};

/// Batches that wait for the task; a proposer has at most a window under way, so this bounds nodes, not commands.
const QUEUE: usize = 1_024;
/// Bytes of commands that one entry gathers; one batch may exceed it.
const ENTRY_BYTES_MAX: usize = 2 << 20;
/// Entries under way at once.
const ENTRIES_MAX: usize = 16;

type Answer = oneshot::Sender<ProposeResponse>;

/// Where batches for a group that this node has a replica of are handed in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Leader {
    queue: mpsc::Sender<(Batch, Answer)>,
}

impl Leader {
    /// Starts the task for one group; it ends with `shutdown`.
    pub fn start(group: Group, shutdown: CancellationToken) -> Leader {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let service = Service {
            group,
            waiting,
            entries: FuturesUnordered::new(),
        };
        tokio::spawn(async move { shutdown.run_until_cancelled(service.run()).await });
        Leader { queue }
    }

    /// Hands a batch in, in order of the calls. None = no answer can come: the node is shutting down or overloaded.
    pub fn propose(&self, batch: Batch) -> BoxFuture<'static, Option<ProposeResponse>> {
        let (answer, response) = oneshot::channel();
        match self.queue.try_send((batch, answer)) {
            Ok(()) => Box::pin(async move { response.await.ok() }),
            Err(_) => Box::pin(async { None }),
        }
    }
}

/// State time as a leader proposes it: its wall clock. Apply never lets it run backwards.
pub fn wall_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

struct Service {
    group: Group,
    waiting: mpsc::Receiver<(Batch, Answer)>,
    entries: FuturesUnordered<BoxFuture<'static, ()>>,
}

impl Service {
    async fn run(mut self) {
        loop {
            tokio::select! {
                next = self.waiting.recv(), if self.entries.len() < ENTRIES_MAX => {
                    let Some(first) = next else { return };
                    let (batches, answers) = self.gather(first);
                    self.submit(batches, answers).await;
                }
                Some(()) = self.entries.next() => {}
            }
        }
    }

    fn gather(&mut self, first: (Batch, Answer)) -> (Vec<Batch>, Vec<Answer>) {
        let mut bytes = size(&first.0);
        let (mut batches, mut answers) = (vec![first.0], vec![first.1]);
        while bytes < ENTRY_BYTES_MAX {
            let Ok((batch, answer)) = self.waiting.try_recv() else {
                break;
            };
            bytes += size(&batch);
            batches.push(batch);
            answers.push(answer);
        }
        (batches, answers)
    }

    async fn submit(&mut self, batches: Vec<Batch>, answers: Vec<Answer>) {
        let entry = GroupEntry {
            time_ms: wall_ms(),
            batches,
        }
        .encode_to_vec();
        match self.group.submit(entry.into()).await {
            Ok(pending) => self
                .entries
                .push(Box::pin(async move { settle(pending.await, answers) })),
            Err(SubmitError::NotLeader(leader)) => not_leader(leader, answers),
            // Nobody is answered: the proposers try again. Too large never happens: commands are bounded where they are made.
            Err(e @ (SubmitError::Stopped | SubmitError::TooLarge { .. })) => {
                warn!(error = %e, "entry not taken")
            }
        }
    }
}

fn settle(reply: Result<bytes::Bytes, ProposeError>, answers: Vec<Answer>) {
    match reply {
        Ok(reply) => {
            let Ok(reply) = EntryReply::decode(reply) else {
                return;
            };
            debug_assert_eq!(
                reply.batches.len(),
                answers.len(),
                "one reply for each batch"
            );
            for (reply, answer) in reply.batches.into_iter().zip(answers) {
                let _ = answer.send(reply_response(reply));
            }
        }
        Err(ProposeError::NotLeader(leader)) => not_leader(leader, answers),
        // It may or may not be committed; a repeat gets the stored reply.
        Err(ProposeError::Lost | ProposeError::Fatal) => {}
    }
}

fn not_leader(leader: Option<NodeId>, answers: Vec<Answer>) {
    for answer in answers {
        let result = propose_response::Result::NotLeader(leader.map_or(0, |id| id.0));
        let _ = answer.send(ProposeResponse {
            result: Some(result),
        });
    }
}

fn reply_response(reply: BatchReply) -> ProposeResponse {
    ProposeResponse {
        result: Some(propose_response::Result::Reply(reply)),
    }
}

fn size(batch: &Batch) -> usize {
    batch.commands.iter().map(|command| command.len() + 8).sum()
}
