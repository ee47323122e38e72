//! ReadIndex of the meta group for whoever asks on this node: one under way at a time, for all that asked before it began.

use std::sync::Arc;
use std::time::Duration;

use flotte_proto::{ReadIndexRequest, envelope, read_index_response};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::node::Node;
use crate::handle::Refused;
use crate::net::Haste;
use crate::raft::Group;

const QUEUE: usize = 4_096;
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(20);

/// Where to ask. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reads {
    asks: mpsc::Sender<oneshot::Sender<u64>>,
}

impl Reads {
    /// Starts the task; it ends with `shutdown`.
    pub(super) fn start(node: Arc<Node>, shutdown: CancellationToken) -> Reads {
        let (asks, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(async move { shutdown.run_until_cancelled(run(node, waiting)).await });
        Reads { asks }
    }

    /// A meta index that the leader confirmed by a quorum round begun after this call.
    pub async fn read_index(&self) -> Result<u64, Refused> {
        let (ask, answer) = oneshot::channel();
        self.asks.send(ask).await.map_err(|_| Refused::NotServing)?;
        answer.await.map_err(|_| Refused::NotServing)
    }
}

async fn run(node: Arc<Node>, mut waiting: mpsc::Receiver<oneshot::Sender<u64>>) {
    while let Some(first) = waiting.recv().await {
        let mut asked = vec![first];
        while let Ok(next) = waiting.try_recv() {
            asked.push(next);
        }
        let index = loop {
            match read_index(&node, node.meta_group()).await {
                Some(index) => break index,
                None => tokio::time::sleep(RETRY).await,
            }
        };
        for ask in asked {
            let _ = ask.send(index);
        }
    }
}

/// An index of a group that its leader confirmed by a quorum round begun after this call; none where that cannot be had now.
pub(super) async fn read_index(node: &Node, group: &Group) -> Option<u64> {
    let leader = group.status().leader?;
    if leader == node.id() {
        return group.read_index(Haste::Now).await.ok();
    }
    let request = envelope::Body::ReadIndexRequest(ReadIndexRequest {
        group: group.id().0,
    });
    match node.network().call(leader, request, CALL_TIMEOUT).await {
        Ok(envelope::Body::ReadIndexResponse(response)) => match response.result? {
            read_index_response::Result::Index(index) => Some(index),
            read_index_response::Result::NotLeader(_) => None,
        },
        _ => None,
    }
}
