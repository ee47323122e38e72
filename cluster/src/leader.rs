//! The leader's side of proposals: merges the batches of all nodes that wait into one log entry, and takes the replies
//! apart again.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use flotte_proto::{
    Batch, BatchReply, EntryReply, GroupEntry, ProposeResponse, batch_reply, propose_response,
};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use metrics::{Counter, Histogram, counter, histogram};
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::id::{GroupId, NodeId, NodeRef};
use crate::meta::MetaState;
use crate::raft::{Group, ProposeError, Role, SubmitError};
use crate::state_time::{LeaderClock, StateTime};

/// Batches that wait for the task; a proposer has at most a window under way, so this bounds nodes, not commands.
const QUEUE: usize = 1_024;
/// Bytes of commands that one entry gathers; one batch may exceed it.
const ENTRY_BYTES_MAX: usize = 2 << 20;
/// Entries under way at once.
const ENTRIES_MAX: usize = 16;

type Answer = oneshot::Sender<ProposeResponse>;

/// What the leader is asked for.
#[derive(Debug)]
enum Wanted {
    Batch(Batch, Answer),
    /// That state time moves on.
    Time,
}

/// Where batches for a group that this node has a replica of are handed in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Leader {
    queue: mpsc::Sender<Wanted>,
}

impl Leader {
    /// Starts the task for one group, whose replica here keeps `time`; it ends with `shutdown`.
    pub fn start(group: Group, time: Arc<StateTime>, shutdown: CancellationToken) -> Leader {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let service = Service {
            counters: Arc::new(Counters::new(&group.id().to_string())),
            group,
            time,
            clock: LeaderClock::default(),
            waiting,
            entries: FuturesUnordered::new(),
        };
        tokio::spawn(async move { shutdown.run_until_cancelled(service.run()).await });
        Leader { queue }
    }

    /// Hands a batch in, in order of the calls. None = no answer can come: the node is shutting down or overloaded.
    pub fn propose(&self, batch: Batch) -> BoxFuture<'static, Option<ProposeResponse>> {
        let (answer, response) = oneshot::channel();
        match self.queue.try_send(Wanted::Batch(batch, answer)) {
            Ok(()) => Box::pin(async move { response.await.ok() }),
            Err(_) => Box::pin(async { None }),
        }
    }

    /// Moves state time on though nobody proposes anything: something is due. Where much is proposed it moves anyway.
    pub fn advance(&self) {
        let _ = self.queue.try_send(Wanted::Time);
    }
}

/// What a batch is answered without being taken. A session group knows the ledger only, not who is Up: what a node that was away sends
/// again could take over clients that have been elsewhere since. Who is gone stays so, so this is right at whichever replica.
pub fn refusal(group: GroupId, batch: &Batch, meta: &MetaState) -> Option<ProposeResponse> {
    let from = NodeRef {
        node: NodeId(batch.node_id),
        incarnation: batch.incarnation,
    };
    // Meta judges for itself, at the index of the batch.
    let is_stale = group != GroupId::META && meta.is_gone(from);
    let stale = BatchReply {
        index: 0,
        result: Some(batch_reply::Result::Stale(true)),
    };
    is_stale.then(|| reply_response(stale))
}

/// This node's wall clock in ms since the epoch.
pub fn wall_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

struct Service {
    group: Group,
    time: Arc<StateTime>,
    clock: LeaderClock,
    waiting: mpsc::Receiver<Wanted>,
    entries: FuturesUnordered<BoxFuture<'static, ()>>,
    counters: Arc<Counters>,
}

/// What is measured of one group's entries.
struct Counters {
    committed: Counter,
    not_leader: Counter,
    lost: Counter,
    /// From the hand-over to the log until it is applied here.
    commit_seconds: Histogram,
    /// Commands in one entry.
    batch_commands: Histogram,
}

impl Counters {
    fn new(group: &str) -> Counters {
        let proposals = |result: &'static str| counter!("flotte_raft_proposals_total", "group" => group.to_owned(), "result" => result);
        Counters {
            committed: proposals("committed"),
            not_leader: proposals("not_leader"),
            lost: proposals("lost"),
            commit_seconds: histogram!("flotte_commit_seconds", "group" => group.to_owned()),
            batch_commands: histogram!("flotte_raft_batch_commands"),
        }
    }
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

    fn gather(&mut self, first: Wanted) -> (Vec<Batch>, Vec<Answer>) {
        let mut bytes = 0;
        let (mut batches, mut answers) = (Vec::new(), Vec::new());
        let mut next = Some(first);
        while let Some(wanted) = next {
            if let Wanted::Batch(batch, answer) = wanted {
                bytes += size(&batch);
                batches.push(batch);
                answers.push(answer);
            }
            next = (bytes < ENTRY_BYTES_MAX)
                .then(|| self.waiting.try_recv().ok())
                .flatten();
        }
        (batches, answers)
    }

    async fn submit(&mut self, batches: Vec<Batch>, answers: Vec<Answer>) {
        let began = Instant::now();
        let commands: usize = batches.iter().map(|batch| batch.commands.len()).sum();
        let time_ms = self.stamp().await;
        let entry = GroupEntry { time_ms, batches }.encode_to_vec();
        match self.group.submit(entry.into()).await {
            Ok(pending) => {
                let counters = Arc::clone(&self.counters);
                counters.batch_commands.record(commands as f64);
                self.entries.push(Box::pin(async move {
                    let reply = pending.await;
                    counters.commit_seconds.record(began.elapsed());
                    settle(reply, answers, &counters);
                }));
            }
            Err(SubmitError::NotLeader(leader)) => not_leader(leader, answers, &self.counters),
            // Nobody is answered: the proposers try again. Too large never happens: commands are bounded where they are made.
            Err(e @ (SubmitError::Stopped | SubmitError::TooLarge { .. })) => {
                self.counters.lost.increment(answers.len() as u64);
                warn!(error = %e, "entry not taken")
            }
        }
    }

    /// State time of the next entry; waits until this process carries it. Out of office the clock is forgotten: others stamp then,
    /// and no entry is taken.
    async fn stamp(&mut self) -> u64 {
        let mut status = self.group.watch();
        loop {
            let Some(term) = self.group.term_led() else {
                self.clock = LeaderClock::default();
                return 0;
            };
            if let Some(carried) = self.time.carried() {
                self.clock.lead(term);
                return self.clock.stamp(wall_ms(), Instant::now(), carried);
            }
            tokio::select! {
                () = self.time.wait_carried() => {}
                _ = status.wait_for(|status| status.role != Role::Leader) => {}
            }
        }
    }
}

fn settle(reply: Result<bytes::Bytes, ProposeError>, answers: Vec<Answer>, counters: &Counters) {
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
            counters.committed.increment(answers.len() as u64);
            for (reply, answer) in reply.batches.into_iter().zip(answers) {
                let _ = answer.send(reply_response(reply));
            }
        }
        Err(ProposeError::NotLeader(leader)) => not_leader(leader, answers, counters),
        // It may or may not be committed; a repeat gets the stored reply.
        Err(ProposeError::Lost | ProposeError::Fatal) => {
            counters.lost.increment(answers.len() as u64);
        }
    }
}

fn not_leader(leader: Option<NodeId>, answers: Vec<Answer>, counters: &Counters) {
    counters.not_leader.increment(answers.len() as u64);
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
