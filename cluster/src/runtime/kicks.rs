//! Orders to other nodes to end what they hold for a client: sent by the control stream and, where that is cut, through
//! lease answers; repeated until answered or the node is no more.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotte_proto::{Kick as WireKick, KickRequest, OpenReply, Owner, envelope};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::group::node_ref;
use crate::handle::{Kick, Local};
use crate::id::{GroupId, NodeRef};
use crate::meta::MetaMachine;
use crate::net::Network;

/// CONNACK waits this long for the former connection; after that the epoch fences.
const FORMER_WAIT: Duration = Duration::from_millis(500);
const RETRY: Duration = Duration::from_millis(100);
/// A call without an answer goes through lease answers from then on, too.
const CALL_TIMEOUT: Duration = Duration::from_millis(500);
/// Kicks that wait for a lease answer to carry them.
const RELAYED_MAX: usize = 256;

/// Sends and carries out kicks for one start of this node. Cheap to clone.
#[derive(Clone)]
pub struct Kicks {
    inner: Arc<Inner>,
}

struct Inner {
    me: NodeRef,
    network: Network,
    meta: Arc<MetaMachine>,
    local: Arc<dyn Local>,
    relay: Mutex<Relayed>,
    /// Wakes all that wait for a relayed kick.
    relayed: Notify,
    /// Opens come from the workers; their kicks outlive them.
    runtime: tokio::runtime::Handle,
    shutdown: CancellationToken,
}

#[derive(Default)]
struct Relayed {
    /// Wanted from nodes that cannot be reached.
    wanted: Vec<WireKick>,
    /// Carried out here for nodes that cannot reach us; told in the next renewals.
    done: Vec<WireKick>,
}

impl Kicks {
    pub(super) fn new(
        me: NodeRef,
        network: Network,
        meta: Arc<MetaMachine>,
        local: Arc<dyn Local>,
        shutdown: CancellationToken,
    ) -> Kicks {
        let (relay, relayed) = (Mutex::default(), Notify::new());
        let runtime = tokio::runtime::Handle::current();
        Kicks {
            inner: Arc::new(Inner {
                me,
                network,
                meta,
                local,
                relay,
                relayed,
                runtime,
                shutdown,
            }),
        }
    }

    /// Ends what a committed Open found: waits a while for the former connection, and for nothing else.
    pub async fn former(&self, group: GroupId, client: &Bytes, reply: &OpenReply) {
        if let Some(home) = reply.former_home {
            let elsewhere = reply
                .former
                .is_none_or(|former| former.node_id != home.node_id);
            if elsewhere {
                self.spawn(group, client, home, true);
            }
        }
        if let Some(former) = reply.former {
            let session = !reply.session_present;
            let closed = self.spawn(group, client, former, session);
            let _ = tokio::time::timeout(FORMER_WAIT, closed).await;
        }
    }

    /// Ends the session that a home still holds. The task is done when that is so, or this start of the node is over.
    pub fn end_session(
        &self,
        group: GroupId,
        client: &Bytes,
        home: NodeRef,
        epoch: u64,
    ) -> tokio::task::JoinHandle<()> {
        let home = Owner {
            node_id: home.node.0,
            incarnation: home.incarnation,
            epoch,
        };
        self.spawn(group, client, home, true)
    }

    fn spawn(
        &self,
        group: GroupId,
        client: &Bytes,
        owner: Owner,
        session: bool,
    ) -> tokio::task::JoinHandle<()> {
        let inner = Arc::clone(&self.inner);
        let client = client.clone();
        self.inner.runtime.spawn(async move {
            let shutdown = inner.shutdown.clone();
            shutdown
                .run_until_cancelled(inner.kick(group, client, owner, session))
                .await;
        })
    }

    /// What goes with the next renewal: kicks wanted and kicks carried out.
    pub(super) fn for_renewal(&self) -> (Vec<WireKick>, Vec<WireKick>) {
        let mut relay = self.inner.relay.lock();
        (relay.wanted.clone(), std::mem::take(&mut relay.done))
    }

    /// What came with a lease answer: kicks to be carried out, and those carried out elsewhere.
    pub(super) fn handle_lease(&self, kicks: Vec<WireKick>, kicked: Vec<WireKick>) {
        for kick in kicks {
            let inner = Arc::clone(&self.inner);
            let order = Kick {
                client: kick.client.clone(),
                epoch: kick.epoch,
                session: kick.session,
            };
            let done = move || {
                let mut relay = inner.relay.lock();
                if relay.done.len() < RELAYED_MAX {
                    relay.done.push(kick);
                }
            };
            self.inner.local.kick(order, Box::new(done));
        }
        if !kicked.is_empty() {
            self.inner
                .relay
                .lock()
                .wanted
                .retain(|wanted| !kicked.contains(wanted));
            self.inner.relayed.notify_waiters();
        }
    }
}

impl Inner {
    /// Resolves when the owner has ended it, or is no more.
    async fn kick(&self, group: GroupId, client: Bytes, owner: Owner, session: bool) {
        let node = node_ref(owner);
        if node == self.me {
            let (done, closed) = tokio::sync::oneshot::channel();
            let order = Kick {
                client,
                epoch: owner.epoch,
                session,
            };
            self.local.kick(
                order,
                Box::new(move || {
                    let _ = done.send(());
                }),
            );
            let _ = closed.await;
            return;
        }
        let kick = WireKick {
            group: group.0,
            client,
            epoch: owner.epoch,
            node_id: owner.node_id,
            incarnation: owner.incarnation,
            session,
        };
        // One that this replica has not heard of yet is a newer start: it is there.
        while !self.meta.read().is_gone(node) {
            let request = envelope::Body::KickRequest(KickRequest {
                kick: Some(kick.clone()),
            });
            if let Ok(envelope::Body::KickResponse(_)) =
                self.network.call(node.node, request, CALL_TIMEOUT).await
            {
                break;
            }
            if self.relayed(&kick).await {
                break;
            }
        }
        self.relay.lock().wanted.retain(|wanted| *wanted != kick);
    }

    /// Waits a while for a lease answer that says it was carried out.
    async fn relayed(&self, kick: &WireKick) -> bool {
        let answered = self.relayed.notified();
        let first = {
            let mut relay = self.relay.lock();
            let first = !relay.wanted.contains(kick);
            if first && relay.wanted.len() < RELAYED_MAX {
                relay.wanted.push(kick.clone());
            }
            first
        };
        let _ = tokio::time::timeout(RETRY, answered).await;
        !first && !self.relay.lock().wanted.contains(kick)
    }
}
