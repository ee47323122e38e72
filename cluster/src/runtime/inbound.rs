//! What other nodes ask of this one.

use std::sync::{Arc, OnceLock};

use flotte_proto::{
    AppliedRequest, AppliedResponse, KickRequest, KickResponse, LoadResponse, Member, ProbeRequest,
    ProbeResponse, ProposeRequest, ProposeResponse, RaftRequest, ReadIndexRequest,
    ReadIndexResponse, RenewRequest, RenewResponse, envelope, probe_request, propose_response,
    read_index_response, renew_response,
};
use futures::future::BoxFuture;
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::node::Node;
use super::receiving::receive;
use crate::handle::{Kick, Shed};
use crate::id::{GroupId, NodeId};
use crate::membership::Grant;
use crate::net::{Handler, Haste, InboundLink, PeerIdentity, check};
use crate::raft::Death;

/// Answers for a node, once that is made.
#[derive(Default)]
pub(super) struct Inbound {
    node: OnceLock<Arc<Node>>,
}

impl Inbound {
    pub fn set(&self, node: Arc<Node>) {
        let _ = self.node.set(node);
    }
}

fn error(what: impl Into<String>) -> envelope::Body {
    envelope::Body::Error(what.into())
}

impl Handler for Inbound {
    fn accept(&self, hello: &flotte_proto::Hello) -> Result<(), String> {
        let Some(node) = self.node.get() else {
            return Err("starting".into());
        };
        node.accept(hello)
    }

    fn judge_start(&self, hello: &flotte_proto::Hello) -> Result<(), String> {
        match self.node.get() {
            Some(node) => node.judge_start(hello),
            None => Ok(()),
        }
    }

    fn handle(
        &self,
        from: &PeerIdentity,
        request: envelope::Body,
    ) -> BoxFuture<'static, envelope::Body> {
        use envelope::Body as B;
        let Some(node) = self.node.get().cloned() else {
            return Box::pin(async { error("starting") });
        };
        match request {
            // These do in order what they do before they return.
            B::RaftRequest(request) => raft(&node, from.node_id, request),
            B::ProposeRequest(request) => propose(&node, request),
            B::RenewRequest(request) => Box::pin(renew(node, request)),
            B::AppliedRequest(request) => Box::pin(applied(node, request)),
            B::KickRequest(request) => Box::pin(kick(node, request)),
            B::ReadIndexRequest(request) => Box::pin(read_index(node, request)),
            B::TimeRequest(request) => {
                let answer = node.tell_time(GroupId(request.group));
                Box::pin(async { answer })
            }
            B::LoadRequest(request) => Box::pin(async move {
                let load = node.local.load(request.shed.map(Shed::from));
                B::LoadResponse(LoadResponse {
                    clients: load.clients,
                    sheds: load.sheds,
                })
            }),
            other => {
                warn!(peer = %from.node_id, ?other, "a request of a kind that this version does not know");
                Box::pin(async { error("unknown kind of request") })
            }
        }
    }

    fn link(&self, from: PeerIdentity, link: InboundLink) -> BoxFuture<'static, ()> {
        let Some(node) = self.node.get().cloned() else {
            return Box::pin(async {});
        };
        Box::pin(receive(node, from, link))
    }

    fn probe(&self, request: ProbeRequest) -> BoxFuture<'static, ProbeResponse> {
        let Some(node) = self.node.get().cloned() else {
            return Box::pin(async { ProbeResponse::default() });
        };
        Box::pin(async move { node.answer_probe(request).await })
    }
}

fn raft(node: &Node, from: NodeId, request: RaftRequest) -> BoxFuture<'static, envelope::Body> {
    let id = GroupId(request.group);
    if id == GroupId::META {
        let response = node.meta_group.handle(from, request);
        return Box::pin(async move { envelope::Body::RaftResponse(response.await) });
    }
    let replica = node
        .groups
        .read()
        .get(&id)
        .map(|replica| replica.group.clone());
    match replica {
        Some(group) => {
            let response = group.handle(from, request);
            Box::pin(async move { envelope::Body::RaftResponse(response.await) })
        }
        None => Box::pin(async move { error(format!("no replica of {id} here")) }),
    }
}

fn propose(node: &Node, request: ProposeRequest) -> BoxFuture<'static, envelope::Body> {
    let Some(batch) = request.batch else {
        return Box::pin(async { error("a proposal without a batch") });
    };
    let group = GroupId(request.group);
    let (leader, here) = node.leader_of(group);
    let response = match here {
        Some(here) => node.take_batch(group, &here, batch),
        None => {
            let result = propose_response::Result::NotLeader(leader.map_or(0, |leader| leader.0));
            Box::pin(async move {
                Some(ProposeResponse {
                    result: Some(result),
                })
            })
        }
    };
    Box::pin(async move {
        response.await.map_or_else(
            || error("no answer can come"),
            envelope::Body::ProposeResponse,
        )
    })
}

async fn renew(node: Arc<Node>, request: RenewRequest) -> envelope::Body {
    let not_leader = RenewResponse {
        result: Some(renew_response::Result::NotLeader(0)),
    };
    envelope::Body::RenewResponse(node.leases.renew(request).await.unwrap_or(not_leader))
}

async fn applied(node: Arc<Node>, request: AppliedRequest) -> envelope::Body {
    node.meta_applied(request.index).await;
    envelope::Body::AppliedResponse(AppliedResponse {
        index: node.meta_group.applied(),
    })
}

async fn kick(node: Arc<Node>, request: KickRequest) -> envelope::Body {
    let Some(kick) = request.kick else {
        return error("a kick without its order");
    };
    let current = node
        .life()
        .is_some_and(|life| life.me.incarnation == kick.incarnation);
    if current {
        let (done, closed) = oneshot::channel();
        let order = Kick {
            client: kick.client,
            epoch: kick.epoch,
            session: kick.session,
        };
        node.local.kick(
            order,
            Box::new(move || {
                let _ = done.send(());
            }),
        );
        let _ = closed.await;
    }
    envelope::Body::KickResponse(KickResponse {})
}

async fn read_index(node: Arc<Node>, request: ReadIndexRequest) -> envelope::Body {
    let group = match GroupId(request.group) {
        GroupId::META => node.meta_group.clone(),
        id => match node.groups.read().get(&id) {
            Some(replica) => replica.group.clone(),
            None => return error("the group is not here"),
        },
    };
    let leader = group.status().leader;
    let result = match group.read_index(Haste::Now).await {
        Ok(index) => read_index_response::Result::Index(index),
        Err(_) => read_index_response::Result::NotLeader(
            leader.filter(|l| *l != node.id).map_or(0, |l| l.0),
        ),
    };
    envelope::Body::ReadIndexResponse(ReadIndexResponse {
        result: Some(result),
    })
}

impl Node {
    /// Whether a peer may talk to this node. Cluster ids were compared already, where both are known.
    fn accept(&self, hello: &flotte_proto::Hello) -> Result<(), String> {
        let ours = self.identity.cluster_id();
        if ours != 0 || hello.cluster_id == 0 {
            return Ok(());
        }
        let grant = self.bootstrap.lock().grant();
        if grant.is_some_and(|grant| grant.holder.0 == hello.cluster_id) {
            return self.adopt(hello.cluster_id).map_err(|e| e.to_string());
        }
        Err(format!(
            "node {} belongs to no cluster yet and granted nothing to cluster {:016x}",
            self.id, hello.cluster_id
        ))
    }

    /// This node belongs to a cluster from now on.
    pub(super) fn adopt(&self, cluster_id: u64) -> Result<(), crate::store::StoreError> {
        info!(
            cluster = format_args!("{cluster_id:016x}"),
            "belongs to a cluster now"
        );
        self.store.set_cluster_id(cluster_id)?;
        self.identity.set_cluster_id(cluster_id);
        Ok(())
    }

    async fn answer_probe(&self, request: ProbeRequest) -> ProbeResponse {
        let Some(hello) = &request.hello else {
            return ProbeResponse::default();
        };
        if hello.node_id != self.id.0
            && let Err(why) = check(&self.identity.hello(), hello)
        {
            self.discovery.complain(why.clone());
            return ProbeResponse {
                hello: Some(self.identity.hello()),
                refused: why,
                ..ProbeResponse::default()
            };
        }
        if self.identity.cluster_id() == 0 && hello.cluster_id == 0 && hello.node_id != self.id.0 {
            self.discovery.hear(std::iter::once(&hello.advertise));
        }
        let grant = Grant {
            holder: NodeId(hello.node_id),
            attempt: request.attempt,
        };
        let refused = match request.ask() {
            probe_request::Ask::Nothing => String::new(),
            probe_request::Ask::Grant => self
                .grant(grant, request.bootstrap_expect)
                .err()
                .unwrap_or_default(),
            probe_request::Ask::Release => self.release(grant).err().unwrap_or_default(),
            probe_request::Ask::Join => self.let_join(hello).await.err().unwrap_or_default(),
        };
        let members: Vec<Member> = self.meta.read().members().values().cloned().collect();
        let given = self.bootstrap.lock().grant();
        let is_empty = self.identity.cluster_id() == 0;
        ProbeResponse {
            hello: Some(self.identity.hello()),
            members,
            grant_holder: given.map_or(0, |grant| grant.holder.0),
            grant_attempt: given.map_or(0, |grant| grant.attempt),
            refused,
            meta_leader: self.meta_group.status().leader.map_or(0, |id| id.0),
            bootstrap_expect: self.config.expect(),
            banned: self.is_gone(hello),
            heard: if is_empty {
                self.discovery.heard().into_iter().collect()
            } else {
                Vec::new()
            },
        }
    }

    /// Grants this node's bootstrap; on disk before it is answered.
    pub(super) fn grant(&self, asked: Grant, expect: u32) -> Result<(), String> {
        if self.identity.cluster_id() != 0 {
            return Err("this node belongs to a cluster".into());
        }
        let mut bootstrap = self.bootstrap.lock();
        let given = bootstrap.handle_ask(asked, expect)?;
        self.store.set_grant(Some(given)).map_err(|e| {
            self.die(Death::Disk(e.to_string()));
            e.to_string()
        })
    }

    fn release(&self, grant: Grant) -> Result<(), String> {
        let mut bootstrap = self.bootstrap.lock();
        bootstrap.handle_release(grant);
        self.store.set_grant(bootstrap.grant()).map_err(|e| {
            self.die(Death::Disk(e.to_string()));
            e.to_string()
        })
    }
}
