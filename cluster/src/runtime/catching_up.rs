//! Whether the replicas on this node have what the others have: a rolling restart waits for that before the next node goes.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tracing::info;

use super::life::Life;
use super::node::Node;
use super::reads::read_index;
use crate::id::GroupId;

/// Pause before a replica that has not caught up is looked at again.
const AGAIN: Duration = Duration::from_millis(50);
/// How long its leader may take to say how far the group is, and the replica to get there, before it is asked again.
const ROUND_MAX: Duration = Duration::from_secs(2);

impl Node {
    /// For one start of this node: brings each replica that is placed here to where its group was when it was first asked.
    pub(super) async fn catch_up(self: Arc<Self>, life: Arc<Life>) {
        let mut membership = self.meta.membership();
        loop {
            membership.borrow_and_update();
            let behind = self.behind(&life);
            let rounds = behind.iter().map(|group| async {
                let round = tokio::time::timeout(ROUND_MAX, self.reaches_its_group(*group));
                if matches!(round.await, Ok(Some(()))) {
                    life.caught_up.send_if_modified(|all| all.insert(*group));
                }
            });
            join_all(rounds).await;
            let is_done = self.behind(&life).is_empty();
            if is_done && !behind.is_empty() {
                let replicas = life.caught_up.borrow().len();
                info!(replicas, "all replicas on this node have caught up");
            }
            let changed = async {
                tokio::select! {
                    changed = membership.changed() => changed.is_ok(),
                    () = tokio::time::sleep(AGAIN), if !is_done => true,
                }
            };
            if life.shutdown.run_until_cancelled(changed).await != Some(true) {
                return;
            }
        }
    }

    /// Resolves when this node is Up and its replicas have caught up.
    pub(crate) async fn caught_up(&self) {
        let (mut lives, mut membership) = (self.lives.subscribe(), self.meta.membership());
        loop {
            lives.borrow_and_update();
            membership.borrow_and_update();
            let life = self.life();
            let mut caught_up = life.as_ref().map(|life| life.caught_up.subscribe());
            if life.is_some_and(|life| self.behind(&life).is_empty()) {
                return;
            }
            let more = async {
                match &mut caught_up {
                    Some(caught_up) => drop(caught_up.changed().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = more => {}
                _ = lives.changed() => {}
                _ = membership.changed() => {}
            }
        }
    }

    /// The groups that have a place on this node and whose replica here has not caught up since this start.
    pub(super) fn behind(&self, life: &Life) -> Vec<GroupId> {
        let meta = self.meta.read();
        let placed = meta.placement().iter();
        // Whoever is coming does not vote yet, and is not counted on.
        let settled = placed
            .filter(|(_, placed)| placed.members.contains(&self.id) && !placed.moving)
            .map(|(id, _)| *id);
        let caught_up = life.caught_up.borrow();
        settled.filter(|id| !caught_up.contains(id)).collect()
    }

    /// Resolves once this node's replica has applied what the group had committed when its leader was asked.
    async fn reaches_its_group(&self, id: GroupId) -> Option<()> {
        let replica = self.groups.read().get(&id).cloned()?;
        let index = read_index(self, &replica.group).await?;
        replica.group.wait_applied(index).await.ok()
    }
}
