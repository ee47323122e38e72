//! The consensus library's way to the other members: its messages as calls on the control streams.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use flotte_proto as proto;
use flotte_proto::envelope::Body;
use flotte_proto::raft_request::Request;
use flotte_proto::raft_response::Response;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, FuturesOrdered};
use futures::{FutureExt, Stream, StreamExt};
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2, Snapshot, StorageError};

use super::apply::blocking;
use super::codec::{self, Malformed};
use super::snapshot::SnapshotFile;
use super::types::{CommittedLeaderId, NodeInfo, Types, Vote};
use crate::journal::GroupId;
use crate::net::{CallError, Haste, Network, NodeId};

/// Append requests under way to one member.
const PIPELINE: usize = 32;
/// Bytes of a snapshot in one request: few enough that heartbeats pass in between on a slow wire.
const CHUNK_BYTES: usize = 512 << 10;
/// A piece that is not the last one is only written down.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(10);
/// A receiver that does not move on for this many pieces will not.
const CHUNK_STALLS_MAX: u32 = 8;

type LibrarySnapshot = Snapshot<CommittedLeaderId, NodeId, NodeInfo, SnapshotFile>;
type AppendResult = Result<StreamAppendResult<Types>, RPCError<Types>>;

/// Makes a client for each member of a group.
#[derive(Clone)]
pub struct Peers {
    pub group: GroupId,
    pub network: Network,
    /// How long an append request may go without an answer. The library's own limit, a part of the
    /// heartbeat interval, is meant for a round trip, not for a slow disk.
    pub append_timeout: Duration,
    /// Reads that wait for a round of heartbeats which may not wait for others.
    pub urgent: Arc<AtomicUsize>,
}

impl RaftNetworkFactory<Types> for Peers {
    type Network = Client;

    async fn new_client(&mut self, target: NodeId, _: &NodeInfo) -> Client {
        Client {
            peers: self.clone(),
            target,
            kind: Kind::Log,
        }
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, _: &NodeInfo) -> Client {
        Client {
            peers: self.clone(),
            target,
            kind: Kind::Heartbeats,
        }
    }
}

/// One member, as seen by one task of the library.
#[derive(Clone)]
pub struct Client {
    peers: Peers,
    target: NodeId,
    kind: Kind,
}

/// What a client carries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Log,
    /// They may wait for those of other groups, if nobody waits for them.
    Heartbeats,
}

impl Client {
    async fn call(&self, request: Request, limit: Duration) -> Result<Response, CallError> {
        let body = self.envelope(request);
        let answer = self.peers.network.call(self.target, body, limit).await?;
        response(answer)
    }

    fn envelope(&self, request: Request) -> Body {
        Body::RaftRequest(proto::RaftRequest {
            group: self.peers.group.0,
            request: Some(request),
        })
    }

    /// Queues an append request, and returns what waits for its answer.
    async fn begin_append(
        &self,
        request: AppendEntriesRequest<Types>,
    ) -> Result<BoxFuture<'static, AppendResult>, RPCError<Types>> {
        let client = self.clone();
        let limit = self.peers.append_timeout;
        let body = self.envelope(Request::Append(codec::append_out(request)));
        let haste = match self.kind {
            Kind::Heartbeats if self.peers.urgent.load(Ordering::Acquire) == 0 => Haste::MayWait,
            Kind::Heartbeats | Kind::Log => Haste::Now,
        };
        let network = &self.peers.network;
        let sent = network.send(self.target, body, limit, haste).await;
        let answer = sent.map_err(|error| self.error(error, RPCTypes::AppendEntries, limit))?;
        let waiting = async move {
            let answered = tokio::time::timeout(limit, answer.wait()).await;
            let answered = answered
                .unwrap_or(Err(CallError::Timeout))
                .and_then(response);
            match answered {
                Ok(Response::Append(appended)) => codec::appended_in(appended).map_err(malformed),
                Ok(_) => Err(malformed(Malformed("not an answer to an append request"))),
                Err(error) => Err(client.error(error, RPCTypes::AppendEntries, limit)),
            }
        };
        Ok(waiting.boxed())
    }

    fn error(&self, error: CallError, action: RPCTypes, timeout: Duration) -> RPCError<Types> {
        match error {
            CallError::Timeout => RPCError::Timeout(Timeout {
                action,
                id: self.peers.network.identity().node_id(),
                target: self.target,
                timeout,
            }),
            CallError::Unreachable | CallError::Refused(_) => {
                RPCError::Unreachable(Unreachable::new(&error))
            }
            CallError::Remote(_) => RPCError::Network(NetworkError::new(&error)),
        }
    }

    async fn ask_vote(
        &self,
        request: Request,
        option: &RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let limit = option.soft_ttl();
        match self.call(request, limit).await {
            Ok(Response::Vote(voted)) => codec::voted_in(voted).map_err(malformed),
            Ok(_) => Err(malformed(Malformed("not an answer to a vote request"))),
            Err(error) => Err(self.error(error, RPCTypes::Vote, limit)),
        }
    }

    /// Sends a snapshot piece by piece. A receiver that has a part of it already says so.
    async fn send_snapshot(
        &self,
        vote: &Vote,
        snapshot: LibrarySnapshot,
        install_timeout: Duration,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let last = snapshot.meta.last_log_id.as_ref().map(codec::log_id_out);
        let file = snapshot.snapshot;
        let (mut offset, mut stalls) = (0, 0);
        loop {
            let source = file.clone();
            let data = blocking(move || source.piece(offset, CHUNK_BYTES))
                .await
                .map_err(|error| StorageError::read_snapshot(None, source_of(&error)))?;
            let after = offset + data.len() as u64;
            let limit = if after < file.size {
                CHUNK_TIMEOUT
            } else {
                install_timeout
            };
            let chunk = proto::SnapshotChunk {
                vote: Some(codec::vote_out(vote)),
                last,
                size: file.size,
                offset,
                data,
            };
            let received = match self.call(Request::Snapshot(chunk), limit).await {
                Ok(Response::Snapshot(received)) => received,
                Ok(_) => return Err(malformed(Malformed("not an answer to a snapshot")).into()),
                Err(error) => {
                    return Err(self.error(error, RPCTypes::InstallSnapshot, limit).into());
                }
            };
            let theirs = codec::vote_in(received.vote).map_err(malformed)?;
            if received.offset >= file.size || theirs > *vote {
                return Ok(SnapshotResponse::new(theirs));
            }
            if received.offset <= offset {
                stalls += 1;
                if stalls > CHUNK_STALLS_MAX {
                    let error = NetworkError::from_string("the receiver does not move on");
                    return Err(StreamingError::Network(error));
                }
            }
            offset = received.offset;
        }
    }
}

fn response(answer: Body) -> Result<Response, CallError> {
    let answered = match answer {
        Body::RaftResponse(answered) => answered.response,
        _ => None,
    };
    match answered {
        Some(Response::Failed(text)) => Err(CallError::Remote(text)),
        Some(response) => Ok(response),
        None => Err(CallError::Remote("not a consensus message".to_owned())),
    }
}

fn malformed(error: Malformed) -> RPCError<Types> {
    RPCError::Network(NetworkError::new(&error))
}

fn source_of(error: &std::io::Error) -> <Types as openraft::RaftTypeConfig>::ErrorSource {
    use openraft::errors::ErrorSource;
    ErrorSource::from_error(error)
}

impl RaftNetworkV2<Types> for Client {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let result = self.begin_append(request).await?.await?;
        Ok(AppendEntriesResponse::from(result))
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, AppendResult>, RPCError<Types>>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        let pipeline = Pipeline {
            client: self.clone(),
            input: Some(input),
            waiting: FuturesOrdered::new(),
        };
        let answers = stream::unfold(pipeline, |mut pipeline| async move {
            let answer = pipeline.next().await?;
            Some((answer, pipeline))
        });
        futures::future::ready(Ok(answers.boxed())).boxed()
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let request = Request::Vote(codec::ask_vote_out(&request));
        self.ask_vote(request, &option).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let request = Request::PreVote(codec::ask_vote_out(&request));
        self.ask_vote(request, &option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: LibrarySnapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = self.send_snapshot(&vote, snapshot, option.hard_ttl()) => sent,
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let limit = option.soft_ttl();
        let request = Request::Transfer(codec::transfer_out(&request));
        match self.call(request, limit).await {
            Ok(Response::Transfer(answer)) if answer.rejected.is_empty() => Ok(Ok(())),
            Ok(Response::Transfer(answer)) => {
                let error = NetworkError::from_string(answer.rejected);
                Err(RPCError::Network(error))
            }
            Ok(_) => Err(malformed(Malformed("not an answer to a transfer"))),
            Err(error) => Err(self.error(error, RPCTypes::TransferLeader, limit)),
        }
    }
}

/// Append requests of one stream of the library: sent without waiting for the ones before, their
/// answers given in order. Ends at the first answer that is no success, as the library wants it.
struct Pipeline<S> {
    client: Client,
    /// `None` once it has ended.
    input: Option<S>,
    /// At most [`PIPELINE`].
    waiting: FuturesOrdered<BoxFuture<'static, AppendResult>>,
}

impl<S> Pipeline<S>
where
    S: Stream<Item = AppendEntriesRequest<Types>> + Unpin,
{
    async fn next(&mut self) -> Option<AppendResult> {
        loop {
            let (room, waits) = (self.waiting.len() < PIPELINE, !self.waiting.is_empty());
            let Some(input) = self.input.as_mut() else {
                let answer = self.waiting.next().await?;
                return Some(self.judge(answer));
            };
            let request = tokio::select! {
                biased;
                Some(answer) = self.waiting.next(), if waits => return Some(self.judge(answer)),
                request = input.next(), if room => request,
            };
            match request {
                None => self.input = None,
                Some(request) => match self.client.begin_append(request).await {
                    Ok(waiting) => self.waiting.push_back(waiting),
                    Err(error) => return Some(self.judge(Err(error))),
                },
            }
        }
    }

    fn judge(&mut self, answer: AppendResult) -> AppendResult {
        if !matches!(answer, Ok(Ok(_))) {
            self.input = None;
            self.waiting.clear();
        }
        answer
    }
}
