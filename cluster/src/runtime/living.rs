//! The lives of a node: comes Up with a new incarnation, serves until it is declared Down, and begins again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flotte_proto::{Up, meta_command};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::asking::BANNED;
use super::barriers::Barriers;
use super::kicks::Kicks;
use super::leases::{Condemned, RenewerTask};
use super::life::{Life, ToLeader};
use super::links::Links;
use super::node::Node;
use super::reads::Reads;
use super::retaining::Retaining;
use super::sessions::Duties;
use crate::beat;
use crate::handle::Refused;
use crate::id::{GroupId, NodeId, NodeRef};
use crate::link::Receiver;
use crate::proposer::Proposer;
use crate::raft::Death;

/// How often a node looks whether it has a lease, and asks others whether it is a member where it has had none for as long.
const LOOK_EVERY: Duration = Duration::from_secs(1);
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
            return self.die_banned(BANNED);
        }
        // The first was drawn at the start of the process: those who hear it know the newest address by it.
        let mut incarnation = self.identity.incarnation();
        loop {
            let me = NodeRef {
                node: self.id,
                incarnation,
            };
            let shutdown = self.shutdown.child_token();
            let begun = async {
                self.reach_all().await;
                self.progress("coming up: waiting for a quorum of the meta group");
                self.begin(me, shutdown.clone()).await
            };
            let begun = tokio::select! {
                begun = begun => begun,
                () = self.outcast() => return self.die_banned(BANNED),
            };
            match begun {
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

    /// Resolves once others say that this node is no member any more, which nobody would tell it by the log: they are asked
    /// while it has no lease.
    async fn outcast(&self) {
        let mut look = beat::interval(LOOK_EVERY);
        let mut unleased = 0;
        loop {
            look.tick().await;
            unleased = if self.lease.held() { 0 } else { unleased + 1 };
            if unleased > 1 && self.is_banned().await {
                return;
            }
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
            process: self.identity.process(),
            down_after_ms: self.config.down_after_ms(),
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
            () = self.outcast() => self.die_banned(BANNED),
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
            let mut running = BTreeMap::new();
            loop {
                membership.borrow_and_update();
                let held = node.groups.read().clone();
                let tokens = held.iter().map(|(group, replica)| (*group, replica.token));
                let came = newcomers(&mut running, tokens.collect());
                for (group, replica) in held {
                    if came.contains(&group) {
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

/// The groups whose replica is not the one that was there at the last look: it came, or it went and came back meanwhile.
fn newcomers(
    running: &mut BTreeMap<GroupId, u64>,
    held: BTreeMap<GroupId, u64>,
) -> BTreeSet<GroupId> {
    let is_new = |(group, token): &(&GroupId, &u64)| running.get(group) != Some(*token);
    let came = held.iter().filter(is_new).map(|(group, _)| *group);
    let came = came.collect();
    *running = held;
    came
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_goes_and_comes_back_between_two_looks_is_a_new_one() {
        let mut running = BTreeMap::new();
        let mut look = |held: &[(u32, u64)]| {
            let held = held.iter().map(|(group, token)| (GroupId(*group), *token));
            let came = newcomers(&mut running, held.collect());
            came.into_iter().map(|group| group.0).collect::<Vec<_>>()
        };
        assert_eq!(look(&[(1, 10), (2, 11)]), [1, 2]);
        assert_eq!(look(&[(1, 10), (2, 11)]), Vec::<u32>::new());
        assert_eq!(look(&[(1, 12), (2, 11)]), [1], "it was away");
        assert_eq!(look(&[(2, 11)]), Vec::<u32>::new());
        assert_eq!(look(&[(1, 13), (2, 11)]), [1]);
    }
}
