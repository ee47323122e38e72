//! The task that runs the barrier of one start of this node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flotte_proto::{AppliedRequest, envelope};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use metrics::histogram;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::barrier::Barrier;
use crate::handle::Refused;
use crate::id::NodeRef;
use crate::meta::MetaMachine;
use crate::net::Network;

const QUEUE: usize = 4_096;
/// How long a node may take to apply before it is asked again.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a node could not be asked.
const RETRY: Duration = Duration::from_millis(50);

/// A meta index, and who waits for it.
type Wait = (u64, oneshot::Sender<()>);

/// Where to wait. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Barriers {
    waits: mpsc::Sender<Wait>,
}

impl Barriers {
    /// Starts the task; it ends with `shutdown`.
    pub(super) fn start(
        me: NodeRef,
        meta: Arc<MetaMachine>,
        network: Network,
        lowest: watch::Receiver<u64>,
        shutdown: CancellationToken,
    ) -> Barriers {
        let (waits, waiting) = mpsc::channel(QUEUE);
        let membership = meta.membership();
        let core = Barrier::new(me);
        let service = Service {
            core,
            meta,
            network,
            lowest,
            membership,
            waiting,
            asks: FuturesUnordered::new(),
        };
        tokio::spawn(async move { shutdown.run_until_cancelled(service.run()).await });
        Barriers { waits }
    }

    /// Resolves when all Up nodes have applied an index that this node has applied.
    pub async fn wait(&self, index: u64) -> Result<(), Refused> {
        let began = Instant::now();
        let (ticket, passed) = oneshot::channel();
        self.waits
            .send((index, ticket))
            .await
            .map_err(|_| Refused::NotServing)?;
        passed.await.map_err(|_| Refused::NotServing)?;
        histogram!("flotte_barrier_seconds").record(began.elapsed());
        Ok(())
    }
}

struct Service {
    core: Barrier<oneshot::Sender<()>>,
    meta: Arc<MetaMachine>,
    network: Network,
    lowest: watch::Receiver<u64>,
    membership: watch::Receiver<u64>,
    waiting: mpsc::Receiver<Wait>,
    asks: FuturesUnordered<BoxFuture<'static, (NodeRef, Option<u64>)>>,
}

impl Service {
    async fn run(mut self) {
        self.take_members();
        loop {
            for (node, index) in self.core.poll_asks() {
                self.asks
                    .push(Box::pin(ask(self.network.clone(), node, index)));
            }
            for ticket in self.core.poll_passed() {
                let _ = ticket.send(());
            }
            tokio::select! {
                wait = self.waiting.recv() => {
                    let Some(wait) = wait else { return };
                    self.take_waits(wait);
                }
                Some((node, applied)) = self.asks.next() => match applied {
                    Some(index) => self.core.handle_applied(node, index),
                    None => self.core.handle_unanswered(node),
                },
                Ok(()) = self.membership.changed() => self.take_members(),
                Ok(()) = self.lowest.changed() => {
                    let lowest = *self.lowest.borrow_and_update();
                    self.core.handle_lowest(lowest);
                }
            }
        }
    }

    /// The members are read once all waits are here: each of them then knows of every node that came Up below its index.
    fn take_waits(&mut self, first: Wait) {
        let mut waits = vec![first];
        while let Ok(wait) = self.waiting.try_recv() {
            waits.push(wait);
        }
        self.take_members();
        for (index, ticket) in waits {
            self.core.handle_wait(index, ticket);
        }
    }

    fn take_members(&mut self) {
        let meta = self.meta.read();
        let index = meta.index();
        let up = meta.members().iter().filter(|(_, member)| member.up);
        let up: Vec<_> = up
            .map(|(id, m)| {
                (
                    NodeRef {
                        node: *id,
                        incarnation: m.incarnation,
                    },
                    m.since_index,
                )
            })
            .collect();
        drop(meta);
        self.core.handle_members(&up, index);
    }
}

async fn ask(network: Network, node: NodeRef, index: u64) -> (NodeRef, Option<u64>) {
    let request = envelope::Body::AppliedRequest(AppliedRequest { index });
    match network.call(node.node, request, ASK_TIMEOUT).await {
        Ok(envelope::Body::AppliedResponse(response)) if response.index >= index => {
            (node, Some(response.index))
        }
        _ => {
            tokio::time::sleep(RETRY).await;
            (node, None)
        }
    }
}
