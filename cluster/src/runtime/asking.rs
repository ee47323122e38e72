//! What a node asks of those that it is to be found by, to be let in, whether it is a member still, and where they are; and what
//! it answers to those that ask to be let in.

use std::collections::BTreeSet;

use flotte_proto::{Hello, Join, ProbeResponse, RefusedReply, meta_command, probe_request};
use tracing::{info, warn};

use super::node::Node;
use super::start::{PROBE_EVERY, other};
use crate::id::NodeId;
use crate::net::check;

/// All that a node knows of why others do not take it for a member any more.
pub(super) const BANNED: &str =
    "it was removed, another node took its name, or its disk is an older copy";

impl Node {
    /// Asks until this node's own replica says that it is a member.
    pub(super) async fn ask_to_join(&self) {
        let mut refusals = BTreeSet::new();
        while !self.meta.read().members().contains_key(&self.id) {
            for (address, response) in self.probe_all(probe_request::Ask::Join).await {
                self.take_addresses(response.members.iter());
                if let Some(hello) = other(&response.hello, self.id) {
                    self.network
                        .set_peer(NodeId(hello.node_id), &address, hello.incarnation);
                }
                if self.bans(&response) {
                    return self.die_banned(BANNED);
                }
                self.take_refusal(&address, &response, &mut refusals);
            }
            tokio::time::sleep(PROBE_EVERY).await;
        }
    }

    /// Whether a node of this one's cluster says that it is no member any more.
    pub(super) async fn is_banned(&self) -> bool {
        let answers = self.probe_all(probe_request::Ask::Nothing).await;
        answers.iter().any(|(_, response)| self.bans(response))
    }

    fn bans(&self, response: &ProbeResponse) -> bool {
        let hello = other(&response.hello, self.id);
        let is_ours = hello.is_some_and(|hello| hello.cluster_id == self.identity.cluster_id());
        response.banned && is_ours
    }

    /// The leader's word is the one that counts; the others only do not lead.
    fn take_refusal(&self, address: &str, response: &ProbeResponse, said: &mut BTreeSet<String>) {
        let why = &response.refused;
        if why.is_empty() {
            return;
        }
        let hello = other(&response.hello, self.id);
        let leads = hello.is_some_and(|hello| hello.node_id == response.meta_leader);
        if leads {
            self.progress(format!("asking to join the cluster: {why}"));
        }
        if !said.insert(why.clone()) {
            return;
        }
        match leads {
            true => warn!(%address, %why, "not joined"),
            false => info!(%address, %why, "not joined there"),
        }
    }

    /// Where the addresses of all nodes changed, those to be found by still answer. Nodes of other clusters among them are named.
    pub(super) async fn find_again(&self) {
        for (address, response) in self.probe_all(probe_request::Ask::Nothing).await {
            let Some(hello) = other(&response.hello, self.id) else {
                continue;
            };
            if let Err(why) = check(&self.identity.hello(), hello) {
                self.discovery.complain(format!("at {address}: {why}"));
            } else if hello.cluster_id != 0 {
                self.network
                    .set_peer(NodeId(hello.node_id), &address, hello.incarnation);
            }
        }
    }

    /// Whether this node's replica knows that a node is no member any more, or of a later start of it: an older copy of its disk.
    pub(super) fn is_gone(&self, hello: &Hello) -> bool {
        self.meta.read().is_banned(NodeId(hello.node_id)) || self.judge_start(hello).is_err()
    }

    pub(super) fn judge_start(&self, hello: &Hello) -> Result<(), String> {
        let is_ours = hello.cluster_id == self.identity.cluster_id();
        if !is_ours || !self.meta.read().is_older_copy(hello) {
            return Ok(());
        }
        Err(format!(
            "node {} ({:?}) comes as its start {}, and a later one of it, or another process with this number, is known: its disk is an older copy",
            NodeId(hello.node_id),
            hello.name,
            hello.incarnation
        ))
    }

    /// A node asks to be let in.
    pub(super) async fn let_join(&self, hello: &Hello) -> Result<(), String> {
        let id = NodeId(hello.node_id);
        if self.meta.read().members().contains_key(&id) {
            return Ok(());
        }
        if self.meta_group.status().leader != Some(self.id) {
            return Err("this node does not lead".into());
        }
        let join = Join {
            node_id: id.0,
            name: hello.name.clone(),
            advertise: hello.advertise.clone(),
            feature_level: hello.feature_level,
        };
        // Whoever is refused asks on: nothing of that belongs into the log.
        if let Some(why) = self.meta.read().refuses_join(&join) {
            return Err(why);
        }
        let life = self.life().ok_or("this node is not up")?;
        let (_, reply) = life
            .propose_meta(meta_command::Command::Join(join))
            .await
            .map_err(|e| e.to_string())?;
        if reply.is_empty() {
            return Ok(());
        }
        let refused: RefusedReply = prost::Message::decode(reply).map_err(|e| e.to_string())?;
        Err(refused.reason)
    }
}
