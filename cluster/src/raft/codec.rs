//! Between the consensus library's types and the messages of `raft.proto`.
//!
//! What comes from the network or the disk may be anything: it decodes, or fails with [`Malformed`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use flotte_proto as proto;
use flotte_proto::log_payload::Payload as PayloadKind;
use openraft::EntryPayload;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderRequest,
    VoteRequest, VoteResponse,
};
use prost::Message;

use super::types::{
    Command, CommittedLeaderId, Entry, LogId, Membership, NodeInfo, Payload, SnapshotMeta,
    StoredMembership, Types, Vote,
};
use crate::net::NodeId;

/// A message that this node cannot make sense of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed consensus message: {0}")]
pub struct Malformed(pub &'static str);

impl From<Malformed> for io::Error {
    fn from(malformed: Malformed) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, malformed)
    }
}

pub fn vote_out(vote: &Vote) -> proto::RaftVote {
    proto::RaftVote {
        term: vote.leader_id.term,
        node_id: vote.leader_id.voted_for.0,
        committed: vote.committed,
    }
}

pub fn vote_in(vote: Option<proto::RaftVote>) -> Result<Vote, Malformed> {
    let vote = vote.ok_or(Malformed("no vote"))?;
    let node_id = NodeId(vote.node_id);
    Ok(if vote.committed {
        Vote::new_committed(vote.term, node_id)
    } else {
        Vote::new(vote.term, node_id)
    })
}

/// A vote as the journal keeps it.
pub fn encode_vote(vote: &Vote) -> Bytes {
    vote_out(vote).encode_to_vec().into()
}

pub fn decode_vote(data: Bytes) -> Result<Vote, Malformed> {
    vote_in(proto::RaftVote::decode(data).ok())
}

pub fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term), index)
}

pub fn log_id_out(id: &LogId) -> proto::LogId {
    proto::LogId {
        term: *id.leader_id,
        index: id.index,
    }
}

pub fn log_id_in(id: proto::LogId) -> LogId {
    log_id(id.term, id.index)
}

pub fn membership_out(membership: &Membership) -> proto::RaftMembership {
    let voters = membership.get_joint_config().iter().map(|set| {
        let node_ids = set.iter().map(|id| id.0).collect();
        proto::VoterSet { node_ids }
    });
    let nodes = membership.nodes().map(|(id, info)| proto::RaftNode {
        node_id: id.0,
        name: info.name.clone(),
        advertise: info.advertise.clone(),
    });
    proto::RaftMembership {
        voters: voters.collect(),
        nodes: nodes.collect(),
    }
}

pub fn membership_in(membership: proto::RaftMembership) -> Result<Membership, Malformed> {
    let voters: Vec<BTreeSet<NodeId>> = membership
        .voters
        .into_iter()
        .map(|set| set.node_ids.into_iter().map(NodeId).collect())
        .collect();
    let nodes: BTreeMap<NodeId, NodeInfo> = membership
        .nodes
        .into_iter()
        .map(|node| {
            let info = NodeInfo {
                name: node.name,
                advertise: node.advertise,
            };
            (NodeId(node.node_id), info)
        })
        .collect();
    if voters.is_empty() && nodes.is_empty() {
        // Of a group that has no members yet; the checked way refuses it.
        return Ok(Membership::default());
    }
    Membership::new(voters, nodes).map_err(|_| Malformed("impossible membership"))
}

fn payload_out(payload: Payload) -> proto::LogPayload {
    let kind = match payload {
        EntryPayload::Blank => PayloadKind::Blank(proto::Blank {}),
        EntryPayload::Normal(command) => PayloadKind::Normal(command.0),
        EntryPayload::Membership(membership) => {
            PayloadKind::Membership(membership_out(&membership))
        }
    };
    proto::LogPayload {
        payload: Some(kind),
    }
}

fn payload_in(payload: proto::LogPayload) -> Result<Payload, Malformed> {
    match payload.payload.ok_or(Malformed("no payload"))? {
        PayloadKind::Blank(_) => Ok(EntryPayload::Blank),
        PayloadKind::Normal(data) => Ok(EntryPayload::Normal(Command(data))),
        PayloadKind::Membership(membership) => {
            Ok(EntryPayload::Membership(membership_in(membership)?))
        }
    }
}

/// A payload as a journal record holds it.
pub fn encode_payload(payload: Payload) -> Bytes {
    payload_out(payload).encode_to_vec().into()
}

/// Reads a journal record; a normal payload shares its memory.
pub fn decode_payload(data: Bytes) -> Result<Payload, Malformed> {
    let payload = proto::LogPayload::decode(data).map_err(|_| Malformed("undecodable payload"))?;
    payload_in(payload)
}

pub fn append_out(request: AppendEntriesRequest<Types>) -> proto::AppendRequest {
    let entries = request.entries.into_iter().map(|entry| proto::LogEntry {
        id: Some(log_id_out(&entry.log_id)),
        payload: Some(payload_out(entry.payload)),
    });
    proto::AppendRequest {
        vote: Some(vote_out(&request.vote)),
        previous: request.prev_log_id.as_ref().map(log_id_out),
        entries: entries.collect(),
        commit: request.leader_commit.as_ref().map(log_id_out),
    }
}

pub fn append_in(request: proto::AppendRequest) -> Result<AppendEntriesRequest<Types>, Malformed> {
    let prev_log_id = request.previous.map(log_id_in);
    let mut next = prev_log_id.map_or(0, |previous| previous.index.saturating_add(1));
    let mut entries = Vec::with_capacity(request.entries.len());
    for entry in request.entries {
        let id = log_id_in(entry.id.ok_or(Malformed("an entry without its index"))?);
        if id.index != next {
            return Err(Malformed("entries that do not follow each other"));
        }
        next = next.saturating_add(1);
        let payload = payload_in(entry.payload.ok_or(Malformed("an entry without payload"))?)?;
        entries.push(Entry {
            log_id: id,
            payload,
        });
    }
    Ok(AppendEntriesRequest {
        vote: vote_in(request.vote)?,
        prev_log_id,
        entries,
        leader_commit: request.commit.map(log_id_in),
    })
}

pub fn appended_out(result: StreamAppendResult<Types>) -> proto::AppendResponse {
    use proto::append_response::Result as Kind;
    let kind = match result {
        Ok(last) => Kind::Matching(proto::Matching {
            last: last.as_ref().map(log_id_out),
        }),
        Err(StreamAppendError::Conflict(at)) => Kind::Conflict(log_id_out(&at)),
        Err(StreamAppendError::HigherVote(vote)) => Kind::HigherVote(vote_out(&vote)),
    };
    proto::AppendResponse { result: Some(kind) }
}

pub fn appended_in(
    response: proto::AppendResponse,
) -> Result<StreamAppendResult<Types>, Malformed> {
    use proto::append_response::Result as Kind;
    Ok(match response.result.ok_or(Malformed("no result"))? {
        Kind::Matching(matching) => Ok(matching.last.map(log_id_in)),
        Kind::Conflict(at) => Err(StreamAppendError::Conflict(log_id_in(at))),
        Kind::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote_in(Some(vote))?)),
    })
}

pub fn ask_vote_out(request: &VoteRequest<Types>) -> proto::VoteRequest {
    proto::VoteRequest {
        vote: Some(vote_out(&request.vote)),
        last: request.last_log_id.as_ref().map(log_id_out),
        leadership_transfer: request.leadership_transfer,
    }
}

pub fn ask_vote_in(request: proto::VoteRequest) -> Result<VoteRequest<Types>, Malformed> {
    let mut decoded = VoteRequest::new(vote_in(request.vote)?, request.last.map(log_id_in));
    decoded.leadership_transfer = request.leadership_transfer;
    Ok(decoded)
}

pub fn voted_out(response: &VoteResponse<Types>) -> proto::VoteResponse {
    proto::VoteResponse {
        vote: Some(vote_out(&response.vote)),
        granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(log_id_out),
    }
}

pub fn voted_in(response: proto::VoteResponse) -> Result<VoteResponse<Types>, Malformed> {
    let vote = vote_in(response.vote)?;
    let last = response.last.map(log_id_in);
    Ok(VoteResponse::new(vote, last, response.granted))
}

pub fn transfer_out(request: &TransferLeaderRequest<Types>) -> proto::TransferRequest {
    proto::TransferRequest {
        leader: Some(vote_out(request.from_leader())),
        to: request.to_node_id().0,
        last: request.last_log_id().map(log_id_out),
    }
}

pub fn transfer_in(
    request: proto::TransferRequest,
) -> Result<TransferLeaderRequest<Types>, Malformed> {
    let leader = vote_in(request.leader)?;
    let last = request.last.map(log_id_in);
    Ok(TransferLeaderRequest::new(leader, NodeId(request.to), last))
}

pub fn meta_out(group: u32, meta: &SnapshotMeta) -> proto::SnapshotMeta {
    proto::SnapshotMeta {
        group,
        last: meta.last_log_id.as_ref().map(log_id_out),
        membership_id: meta.last_membership.log_id().as_ref().map(log_id_out),
        membership: Some(membership_out(meta.last_membership.membership())),
    }
}

pub fn meta_in(meta: proto::SnapshotMeta) -> Result<SnapshotMeta, Malformed> {
    let membership = membership_in(meta.membership.ok_or(Malformed("no membership"))?)?;
    Ok(SnapshotMeta {
        last_log_id: meta.last.map(log_id_in),
        last_membership: StoredMembership::new(meta.membership_id.map(log_id_in), membership),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn membership() -> Membership {
        let info = |name: &str| NodeInfo {
            name: name.to_owned(),
            advertise: format!("{name}:7000"),
        };
        let nodes = BTreeMap::from([
            (NodeId(1), info("a")),
            (NodeId(2), info("b")),
            (NodeId(3), info("c")),
        ]);
        let voters = vec![
            BTreeSet::from([NodeId(1), NodeId(2)]),
            BTreeSet::from([NodeId(2)]),
        ];
        Membership::new(voters, nodes).unwrap()
    }

    #[test]
    fn payloads_come_back_as_they_were() {
        let payloads = [
            EntryPayload::Blank,
            EntryPayload::Normal(Command(Bytes::from_static(b"x"))),
            EntryPayload::Normal(Command(Bytes::new())),
            EntryPayload::Membership(membership()),
        ];
        for payload in payloads {
            let data = encode_payload(payload.clone());
            assert!(decode_payload(data).unwrap() == payload);
        }
    }

    #[test]
    fn votes_come_back_as_they_were() {
        for vote in [
            Vote::new(3, NodeId(9)),
            Vote::new_committed(4, NodeId(1)),
            Vote::new(0, NodeId(0)),
        ] {
            assert_eq!(decode_vote(encode_vote(&vote)).unwrap(), vote);
        }
    }

    #[test]
    fn an_empty_membership_comes_back() {
        let meta = SnapshotMeta::default();
        assert_eq!(meta_in(meta_out(1, &meta)).unwrap(), meta);
        let meta = SnapshotMeta {
            last_log_id: Some(log_id(2, 5)),
            last_membership: StoredMembership::new(Some(log_id(1, 1)), membership()),
        };
        assert_eq!(meta_in(meta_out(1, &meta)).unwrap(), meta);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(decode_payload(Bytes::from_static(&[0xff, 1, 2])).is_err());
        assert!(decode_payload(Bytes::new()).is_err());
        assert!(vote_in(None).is_err());
        let entry = |index| proto::LogEntry {
            id: Some(proto::LogId { term: 1, index }),
            payload: Some(payload_out(EntryPayload::Blank)),
        };
        let request = proto::AppendRequest {
            vote: Some(proto::RaftVote::default()),
            previous: Some(proto::LogId { term: 1, index: 3 }),
            entries: vec![entry(4), entry(6)],
            commit: None,
        };
        assert!(append_in(request.clone()).is_err());
        let request = proto::AppendRequest {
            entries: vec![entry(4), entry(5)],
            ..request
        };
        assert_eq!(append_in(request).unwrap().entries.len(), 2);
    }
}
