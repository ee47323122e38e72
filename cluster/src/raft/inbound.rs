//! Consensus requests of the other members, for one group.

use std::future::Future;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use flotte_proto as proto;
use flotte_proto::raft_request::Request;
use flotte_proto::raft_response::Response;
use futures::FutureExt;
use futures::future::BoxFuture;
use openraft::Snapshot;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::Mutex;
use tokio::task::coop::unconstrained;

use super::apply::blocking;
use super::codec::{self, Malformed};
use super::snapshot::{GroupSnapshots, Staged};
use super::types::{LogId, Raft, Vote};
use super::writing::passes_sync;
use crate::journal::GroupId;
use crate::net::NodeId;

/// Larger snapshots are refused before any of it is written.
const SNAPSHOT_BYTES_MAX: u64 = 1 << 40;

/// The callee's side of a group.
pub struct Inbound {
    group: GroupId,
    raft: Raft,
    snapshots: Arc<GroupSnapshots>,
    /// The snapshot that comes in, one at a time: a newer transfer replaces an older one.
    transfer: Mutex<Option<Transfer>>,
}

/// A snapshot of which a part has come.
struct Transfer {
    from: NodeId,
    last: Option<LogId>,
    size: u64,
    /// Bytes that are in the file.
    offset: u64,
    staged: Arc<Staged>,
}

impl Inbound {
    pub fn new(group: GroupId, raft: Raft, snapshots: Arc<GroupSnapshots>) -> Self {
        Self {
            group,
            raft,
            snapshots,
            transfer: Mutex::new(None),
        }
    }

    /// Answers a request. Append requests have their place in the group's queue when this returns.
    pub fn handle(
        self: &Arc<Self>,
        from: NodeId,
        request: proto::RaftRequest,
    ) -> BoxFuture<'static, proto::RaftResponse> {
        let this = Arc::clone(self);
        let group = self.group.0;
        let answering: BoxFuture<'static, Result<Response, String>> = match request.request {
            Some(Request::Append(request)) => started(async move { this.append(request).await }),
            Some(Request::Vote(request)) => async move { this.vote(request).await }.boxed(),
            Some(Request::PreVote(request)) => async move { this.pre_vote(request).await }.boxed(),
            Some(Request::Snapshot(chunk)) => async move { this.chunk(from, chunk).await }.boxed(),
            Some(Request::Transfer(request)) => {
                async move { this.take_over(request).await }.boxed()
            }
            None => futures::future::ready(Err("an unknown consensus request".to_owned())).boxed(),
        };
        async move {
            let response = answering.await.unwrap_or_else(Response::Failed);
            proto::RaftResponse {
                group,
                response: Some(response),
            }
        }
        .boxed()
    }

    async fn append(&self, request: proto::AppendRequest) -> Result<Response, String> {
        let request = codec::append_in(request).map_err(text)?;
        let prev = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.log_id).or(prev);
        let response = self.raft.append_entries(request).await.map_err(text)?;
        if prev.is_none() && response.is_conflict() {
            return Err("a conflict before the first entry".to_owned());
        }
        let result = response.into_stream_result(prev, last);
        Ok(Response::Append(codec::appended_out(result)))
    }

    async fn vote(&self, request: proto::VoteRequest) -> Result<Response, String> {
        let request = codec::ask_vote_in(request).map_err(text)?;
        let voted = self.raft.vote(request).await.map_err(text)?;
        Ok(Response::Vote(codec::voted_out(&voted)))
    }

    async fn pre_vote(&self, request: proto::VoteRequest) -> Result<Response, String> {
        let request = codec::ask_vote_in(request).map_err(text)?;
        let voted = self.raft.pre_vote(request).await.map_err(text)?;
        Ok(Response::Vote(codec::voted_out(&voted)))
    }

    async fn take_over(&self, request: proto::TransferRequest) -> Result<Response, String> {
        let request = codec::transfer_in(request).map_err(text)?;
        let outcome = self.raft.handle_transfer_leader(request).await;
        let rejected = match outcome.map_err(text)? {
            Ok(()) => String::new(),
            Err(rejected) => rejected.to_string(),
        };
        Ok(Response::Transfer(proto::TransferResponse { rejected }))
    }

    /// Takes a piece of a snapshot; installs the snapshot with the last one.
    async fn chunk(&self, from: NodeId, chunk: proto::SnapshotChunk) -> Result<Response, String> {
        let vote = codec::vote_in(chunk.vote).map_err(text)?;
        let ours = self.raft.metrics().borrow_watched().vote;
        if ours > vote {
            return Ok(received(&ours, 0));
        }
        let last = chunk.last.map(codec::log_id_in);
        let (size, data) = (chunk.size, chunk.data);
        if size > SNAPSHOT_BYTES_MAX || data.is_empty() {
            return Err(text(Malformed("an impossible snapshot")));
        }
        let mut slot = self.transfer.lock().await;
        let same = |t: &Transfer| t.from == from && t.last == last && t.size == size;
        let transfer = match slot.take() {
            Some(transfer) if same(&transfer) => transfer,
            _ => self.begin(from, last, size).await?,
        };
        if chunk.offset != transfer.offset {
            // Repeated or from an earlier attempt: the sender goes on from where this side is.
            let offset = transfer.offset;
            *slot = Some(transfer);
            return Ok(received(&ours, offset));
        }
        let after = transfer.offset.saturating_add(data.len() as u64);
        if after > size {
            return Err(text(Malformed("a snapshot longer than it says")));
        }
        let staged = Arc::clone(&transfer.staged);
        let at = transfer.offset;
        let write = move || {
            staged.file.write_all_at(&data, at)?;
            match passes_sync(at, after) {
                true => staged.file.sync_data(),
                false => Ok(()),
            }
        };
        blocking(write).await.map_err(text)?;
        if after < size {
            *slot = Some(Transfer {
                offset: after,
                ..transfer
            });
            return Ok(received(&ours, after));
        }
        drop(slot);
        let vote = self.install(vote, transfer).await?;
        Ok(received(&vote, size))
    }

    async fn begin(
        &self,
        from: NodeId,
        last: Option<LogId>,
        size: u64,
    ) -> Result<Transfer, String> {
        tracing::info!(group = %self.group, peer = %from, size, "receiving a snapshot");
        let snapshots = Arc::clone(&self.snapshots);
        let staged = blocking(move || Ok(snapshots.stage()?))
            .await
            .map_err(text)?;
        Ok(Transfer {
            from,
            last,
            size,
            offset: 0,
            staged: Arc::new(staged),
        })
    }

    async fn install(&self, vote: Vote, transfer: Transfer) -> Result<Vote, String> {
        let snapshots = Arc::clone(&self.snapshots);
        let staged = Arc::try_unwrap(transfer.staged)
            .map_err(|_| "the snapshot is still being written".to_owned())?;
        let stored = blocking(move || Ok(snapshots.check(staged)?))
            .await
            .map_err(text)?;
        let snapshot = Snapshot {
            meta: stored.meta,
            snapshot: stored.file,
        };
        let installed = self.raft.install_full_snapshot(vote, snapshot).await;
        Ok(installed.map_err(text)?.vote)
    }
}

fn received(vote: &Vote, offset: u64) -> Response {
    Response::Snapshot(proto::SnapshotResponse {
        vote: Some(codec::vote_out(vote)),
        offset,
    })
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Polls a future once, so that what it does first is done in the order of these calls, whatever
/// order the rest is polled in. Outside the cooperative budget, which would put off the first step.
fn started<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> BoxFuture<'static, T> {
    let mut future: Pin<Box<dyn Future<Output = T> + Send>> = Box::pin(unconstrained(future));
    let mut context = Context::from_waker(Waker::noop());
    match future.as_mut().poll(&mut context) {
        Poll::Ready(output) => futures::future::ready(output).boxed(),
        Poll::Pending => future,
    }
}
