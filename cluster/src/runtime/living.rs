//! The lives of a node: comes Up with a new incarnation, serves until it is declared Down, and begins again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flotte_proto::{Up, meta_command};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::barriers::Barriers;
use super::kicks::Kicks;
use super::leases::{Condemned, RenewerTask};
use super::life::{Life, ToLeader};
use super::links::Links;
use super::node::Node;
use super::reads::Reads;
use super::retaining::Retaining;
use super::sessions::Duties;
use crate::handle::Refused;
use crate::id::{GroupId, NodeId, NodeRef};
use crate::link::Receiver;
use crate::proposer::Proposer;
use crate::raft::Death;

/// Pause before a node that could not come Up tries again.
const AGAIN: Duration = Duration::from_millis(200);

impl Node {
    /// Lives until the process ends, or says that it leaves: a start behind its last word would be Up and never serve.
    pub(super) async fn live(self: Arc<Self>, downs: mpsc::Receiver<Condemned>) {
        let time = Arc::clone(self.meta.time());
        self.keep_time(self.meta_group.clone(), time, self.shutdown.clone());
        tokio::spawn(Arc::clone(&self).run_groups());
        tokio::spawn(Arc::clone(&self).run_downs(downs));
        tokio::spawn(Arc::clone(&self).run_care());
        if let Err(e) = self.enter().await {
            return self.die(Death::Disk(e.to_string()));
        }
        // Whoever is where this node was told to look may belong to another cluster, or have moved.
        let looking = Arc::clone(&self);
        tokio::spawn(async move { looking.find_again().await });
        self.progress("waiting for the cluster to take this node in");
        if !self.meta_group.is_initialized().await.unwrap_or(true) {
            self.ask_to_join().await;
        }
        // A leader may be there before the cluster is founded: an Up before that would be one of a stranger.
        if self.founded_without_it().await {
            let why = "it was removed, another node took its name, or its disk is an older copy";
            return self.die(Death::Refused(why.into()));
        }
        // The first was drawn at the start of the process: those who hear it know the newest address by it.
        let mut incarnation = self.identity.incarnation();
        loop {
            let me = NodeRef {
                node: self.id,
                incarnation,
            };
            let shutdown = self.shutdown.child_token();
            self.reach_all().await;
            self.progress("coming up: waiting for a quorum of the meta group");
            match self.begin(me, shutdown.clone()).await {
                Ok((life, lowest)) => self.serve(life, lowest).await,
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
            shutdown.cancel();
            if self.leaving.is_cancelled() {
                return;
            }
            incarnation = match self.store.next_incarnation() {
                Ok(incarnation) => incarnation,
                Err(e) => return self.die(Death::Disk(e.to_string())),
            };
            self.identity.set_incarnation(incarnation);
        }
    }

    /// Waits until this node's replica knows of the cluster. True = the others say that it is no member any more: nobody would
    /// ever tell it by the log.
    async fn founded_without_it(&self) -> bool {
        loop {
            tokio::select! {
                () = self.meta.founded() => return false,
                () = tokio::time::sleep(AGAIN) => if self.is_banned().await {
                    return true;
                },
            }
        }
    }

    /// After a Down for a cut link: waits until every node that is Up is reached and reaches this one, which another Down of one of
    /// them ends, too. One way is not enough: it would be taken down again T later.
    async fn reach_all(&self) {
        let mut connections = self.network.changes();
        let mut callers = self.network.caller_changes();
        let mut membership = self.meta.membership();
        loop {
            connections.borrow_and_update();
            callers.borrow_and_update();
            membership.borrow_and_update();
            let missing = {
                let meta = self.meta.read();
                if !meta.members().get(&self.id).is_some_and(|me| me.cut) {
                    return;
                }
                let is_whole =
                    |id: NodeId| self.network.connected(id) && self.network.is_called_by(id);
                let up = meta.up_nodes().map(|up| up.node);
                let mut missing = up.filter(|id| *id != self.id && !is_whole(*id));
                missing.next()
            };
            let Some(missing) = missing else { return };
            self.progress(format!(
                "this node was taken down as it and another one did not reach each other: it waits until it and node {missing} do"
            ));
            tokio::select! {
                changed = connections.changed() => if changed.is_err() { return },
                changed = callers.changed() => if changed.is_err() { return },
                changed = membership.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Commits Up, applies it here, and makes all that names the incarnation.
    async fn begin(
        self: &Arc<Self>,
        me: NodeRef,
        shutdown: CancellationToken,
    ) -> Result<(Arc<Life>, watch::Sender<u64>), Refused> {
        let meta_proposer = self.proposer(GroupId::META, me, &shutdown);
        let up = Up {
            name: self.config.node_name.clone(),
            advertise: self.identity.hello().advertise,
            draining: self.is_draining(),
            endpoints: self.config.endpoints.clone(),
            feature_level: self.config.feature_level.number(),
        };
        let up = flotte_proto::MetaCommand {
            command: Some(meta_command::Command::Up(up)),
        };
        let (up_index, _) = meta_proposer
            .propose(prost::Message::encode_to_vec(&up).into())
            .await?;
        self.meta_applied(up_index).await;
        let session_groups = self.meta.read().settings().session_groups;
        let mut proposers: BTreeMap<GroupId, Proposer> = (1..=session_groups)
            .map(|group| (GroupId(group), self.proposer(GroupId(group), me, &shutdown)))
            .collect();
        proposers.insert(GroupId::META, meta_proposer);
        let (lowest, lowest_seen) = watch::channel(0);
        let (meta, network) = (Arc::clone(&self.meta), self.network.clone());
        let life = Life {
            me,
            up_index,
            links: Links::new(network.clone(), Arc::clone(&meta), shutdown.clone()),
            barrier: Barriers::start(
                me,
                Arc::clone(&meta),
                network.clone(),
                lowest_seen,
                shutdown.clone(),
            ),
            reads: Reads::start(Arc::clone(self), shutdown.clone()),
            kicks: Kicks::new(me, network, meta, Arc::clone(&self.local), shutdown.clone()),
            retaining: Retaining::new(),
            receiver: Mutex::new(Receiver::default()),
            keeps: Mutex::default(),
            proposers,
            session_groups,
            caught_up: watch::channel(BTreeSet::new()).0,
            shutdown,
        };
        Ok((Arc::new(life), lowest))
    }

    fn proposer(
        self: &Arc<Self>,
        group: GroupId,
        me: NodeRef,
        shutdown: &CancellationToken,
    ) -> Proposer {
        let route = ToLeader {
            node: Arc::clone(self),
            group,
            hint: Arc::default(),
            life: shutdown.clone(),
        };
        Proposer::start(me, Arc::new(route), shutdown.clone())
    }

    /// Serves until this start is over, then ends everything that belonged to it.
    async fn serve(self: &Arc<Self>, life: Arc<Life>, lowest: watch::Sender<u64>) {
        info!(node = %life.me, "up");
        self.progress("up");
        *self.life.write() = Some(Arc::clone(&life));
        self.lives.send_modify(|lives| *lives += 1);
        let duties = self.spawn_session_duties(&life);
        tokio::spawn(Arc::clone(self).catch_up(Arc::clone(&life)));
        let renewer = RenewerTask {
            node: Arc::clone(self),
            me: life.me,
            lease: Arc::clone(&self.lease),
            lowest,
            kicks: life.kicks.clone(),
        };
        tokio::select! {
            () = renewer.run() => {}
            () = life.shutdown.cancelled() => {}
            () = self.superseded(&life) => {}
        }
        self.lease.give_up();
        *self.life.write() = None;
        life.shutdown.cancel();
        life.links.end();
        duties.abort();
        self.lives.send_modify(|lives| *lives += 1);
        if !self.leaving.is_cancelled() {
            warn!(node = %life.me, "this start of the node is over: all clients are closed");
            self.local.reset().await;
        }
    }

    /// Resolves when this node's own replica says that this start is not Up; ends links to others that are not, too.
    async fn superseded(&self, life: &Life) {
        let mut membership = self.meta.membership();
        loop {
            membership.borrow_and_update();
            if !self.meta.read().is_up(life.me) {
                return;
            }
            life.handle_members(&self.meta);
            if membership.changed().await.is_err() {
                return;
            }
        }
    }

    /// Runs the duties of leaders for every session group that this node holds, now or later.
    fn spawn_session_duties(self: &Arc<Self>, life: &Arc<Life>) -> tokio::task::JoinHandle<()> {
        let (node, life) = (Arc::clone(self), Arc::clone(life));
        tokio::spawn(async move {
            let mut membership = node.meta.membership();
            let mut running = std::collections::BTreeSet::new();
            loop {
                membership.borrow_and_update();
                let held = node.groups.read().clone();
                running.retain(|group| held.contains_key(group));
                for (group, replica) in held {
                    if running.insert(group) {
                        let (node, life) = (Arc::clone(&node), Arc::clone(&life));
                        let shutdown = life.shutdown.clone();
                        tokio::spawn(
                            Duties {
                                node,
                                life,
                                group,
                                replica,
                                shutdown,
                            }
                            .run(),
                        );
                    }
                }
                if membership.changed().await.is_err() {
                    return;
                }
            }
        })
    }
}
