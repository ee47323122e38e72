//! Retained messages on their way into the log. A payload that is too large for one command goes there in parts, one at a
//! time for each message, so that what others propose goes between them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flotte_proto::meta_command::Command;
use flotte_proto::{Retain, RetainBegin, RetainPart, RetainReply, retain_reply};
use futures::future::BoxFuture;
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::life::Life;
use super::node::Node;
use crate::handle::{Progress, Refused};
use crate::meta::PART_BYTES;

/// Messages of this node that go in parts at once; the next ones wait. So at most that many parts of the proposer's window
/// are theirs.
const AT_ONCE: usize = 3;
/// How often the publisher of a message that waits for its turn is told that all is well.
const WAITING: Duration = Duration::from_secs(1);

/// What became of a message, at its meta index.
pub(crate) type Outcome = Result<(u64, retain_reply::Result), Refused>;

/// What one start of this node knows of those that go in parts.
pub(crate) struct Retaining {
    /// They go on when nobody waits for them any more: what has begun is in the state of all nodes.
    runtime: tokio::runtime::Handle,
    turns: Arc<Semaphore>,
    /// Number of the last one.
    last: AtomicU64,
}

impl Retaining {
    /// Has none. Within the cluster's runtime.
    pub(super) fn new() -> Retaining {
        Retaining {
            runtime: tokio::runtime::Handle::current(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            last: AtomicU64::new(0),
        }
    }
}

/// Proposes a message as one command, in order of the calls. Resolves once it is applied on this node.
pub(crate) fn propose(
    node: &Arc<Node>,
    life: &Life,
    retain: Retain,
) -> BoxFuture<'static, Outcome> {
    let reply = life.propose_meta(Command::Retain(retain));
    let node = Arc::clone(node);
    Box::pin(async move {
        let (index, reply) = reply.await?;
        node.meta_applied(index).await;
        Ok((index, result(reply)?))
    })
}

/// Proposes a message with its payload in parts, beginning when this is polled first. Resolves as [`propose`].
pub(crate) fn propose_in_parts(
    node: Arc<Node>,
    life: Arc<Life>,
    retain: Retain,
    progress: Option<Arc<dyn Progress>>,
) -> BoxFuture<'static, Outcome> {
    Box::pin(async move {
        let (runtime, shutdown) = (life.retaining.runtime.clone(), life.shutdown.clone());
        let going = Going {
            node,
            life,
            progress,
        };
        let task = async move { shutdown.run_until_cancelled(going.run(retain)).await };
        let ended = runtime.spawn(task).await;
        ended.ok().flatten().unwrap_or(Err(Refused::NotServing))
    })
}

/// One message that goes in parts.
struct Going {
    node: Arc<Node>,
    life: Arc<Life>,
    progress: Option<Arc<dyn Progress>>,
}

impl Going {
    async fn run(self, mut retain: Retain) -> Outcome {
        let _turn = self.turn().await?;
        let message = retain.message.get_or_insert_default();
        let payload = std::mem::take(&mut message.payload);
        let bytes = message.topic.len() + message.properties.len() + payload.len();
        let begin = RetainBegin {
            topic: message.topic.clone(),
            payload_bytes: payload.len() as u64,
            bytes: bytes as u64,
            messages_max: retain.messages_max,
            bytes_max: retain.bytes_max,
        };
        // Of what this replica knows has no room nothing is sent. The state has the last word.
        let has_room = self.node.meta().read().has_room_for(&begin);
        let number = self.life.retaining.last.fetch_add(1, Ordering::Relaxed) + 1;
        if has_room.unwrap_or(false) && self.send(number, begin, payload).await? {
            retain.assembly = number;
            return propose(&self.node, &self.life, retain).await;
        }
        refuse(&self.node, &self.life, retain).await
    }

    async fn turn(&self) -> Result<OwnedSemaphorePermit, Refused> {
        let turns = Arc::clone(&self.life.retaining.turns);
        let mut turn = std::pin::pin!(turns.acquire_owned());
        loop {
            match tokio::time::timeout(WAITING, &mut turn).await {
                Ok(turn) => return turn.map_err(|_| Refused::NotServing),
                // Those before it go on, or this start of the node ends.
                Err(_) => self.progressed(),
            }
        }
    }

    /// False = there is no room for it.
    async fn send(
        &self,
        number: u64,
        begin: RetainBegin,
        mut payload: Bytes,
    ) -> Result<bool, Refused> {
        let (mut begin, mut offset) = (Some(begin), 0);
        while !payload.is_empty() {
            let data = payload.split_to(payload.len().min(PART_BYTES));
            let bytes = data.len() as u64;
            let part = RetainPart {
                number,
                offset,
                data,
                begin: begin.take(),
            };
            let (_, reply) = self.life.propose_meta(Command::RetainPart(part)).await?;
            if result(reply)? != retain_reply::Result::Stored {
                return Ok(false);
            }
            offset += bytes;
            self.progressed();
        }
        Ok(true)
    }

    fn progressed(&self) {
        if let Some(progress) = &self.progress {
            progress.progressed();
        }
    }
}

/// What the limits refuse: where its publisher does not hear of it, what was retained before goes, and nothing takes its
/// place.
pub(crate) fn refuse(
    node: &Arc<Node>,
    life: &Life,
    mut retain: Retain,
) -> BoxFuture<'static, Outcome> {
    if !retain.evict {
        return Box::pin(async { Ok((0, retain_reply::Result::Quota)) });
    }
    if let Some(message) = &mut retain.message {
        message.payload.clear();
    }
    let deleted = propose(node, life, retain);
    Box::pin(async move { Ok((deleted.await?.0, retain_reply::Result::Quota)) })
}

fn result(reply: Bytes) -> Result<retain_reply::Result, Refused> {
    let reply = RetainReply::decode(reply).map_err(|_| Refused::NotServing)?;
    Ok(reply.result())
}
