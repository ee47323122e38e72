//! Members that go: on their own (their replicas move first), because somebody wants them gone, or because they were away for
//! too long.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flotte_proto::{Forget, Leaving, Member, RefusedReply, meta_command};
use prost::Message;
use tracing::{info, warn};

use super::node::Node;
use crate::config::barrier_max;
use crate::id::NodeId;
use crate::membership::{holds_nothing, needed_by};

/// So many T a member is down that is leaving and holds nothing, until it is taken for one that has left.
const SILENT_TS: u32 = 5;

/// Why a member does not leave.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaveError {
    /// There is no member of this name.
    #[error("`{0}` is no member of the cluster")]
    Unknown(String),
    /// It would leave nobody behind.
    #[error("`{0}` is the last member: there is nobody to leave its sessions to")]
    Last(String),
    /// It would not see its own end.
    #[error(
        "`{0}` is the node that was asked, and cannot say when it is gone: ask another node to remove it"
    )]
    Itself(String),
    /// It cannot do its part.
    #[error(
        "`{0}` is down and cannot hand over what it holds: start it, or remove it with --force"
    )]
    Down(String),
    /// A group would lose its majority.
    #[error("`{name}` cannot be removed now: {why}")]
    Needed {
        /// The member.
        name: String,
        /// Which group, in words.
        why: String,
    },
    /// The cluster, which knows more than the node that was asked, refuses it.
    #[error("`{name}` cannot be asked to leave now: {why}")]
    Refused {
        /// The member.
        name: String,
        /// Why, in words.
        why: String,
    },
    /// No quorum, or it took too long. It may have been asked to leave nevertheless.
    #[error("the cluster did not answer in time; ask again")]
    NoAnswer,
}

impl Node {
    /// Has a member leave, this one or another. Resolves once the cluster knows; the rest takes as long as its replicas take to
    /// move. With `force` it goes at once, up or down, and this resolves when it is gone.
    pub(crate) async fn leave(&self, name: &str, force: bool) -> Result<(), LeaveError> {
        let id = self.judge_leave(name, force)?;
        let leaving = Leaving {
            node_id: id.0,
            stays: false,
            expel: force,
        };
        self.mark(name, leaving).await?;
        if !force {
            return Ok(());
        }
        let gone = async {
            let mut membership = self.meta.membership();
            while self.meta.read().members().contains_key(&id) {
                if membership.changed().await.is_err() {
                    return;
                }
            }
        };
        // It is declared down after T, and forgotten then.
        let longest = self.meta.read().longest_down_after_ms();
        let longest = Duration::from_millis(longest.into());
        let t = self.config.node_down_after.max(longest);
        let limit = barrier_max(t) + t;
        let gone = tokio::time::timeout(limit, gone).await;
        gone.map_err(|_| LeaveError::NoAnswer)
    }

    /// Has a member that is leaving stay after all.
    pub(crate) async fn stay(&self, name: &str) -> Result<(), LeaveError> {
        let (id, _) = self.member(name)?;
        let stays = Leaving {
            node_id: id.0,
            stays: true,
            expel: false,
        };
        self.mark(name, stays).await
    }

    fn member(&self, name: &str) -> Result<(NodeId, Member), LeaveError> {
        let meta = self.meta.read();
        let mut members = meta.members().iter();
        let found = members.find(|(_, member)| member.name == name);
        let found = found.map(|(id, member)| (*id, member.clone()));
        found.ok_or_else(|| LeaveError::Unknown(name.to_owned()))
    }

    fn judge_leave(&self, name: &str, force: bool) -> Result<NodeId, LeaveError> {
        let (id, member) = self.member(name)?;
        let meta = self.meta.read();
        let others = meta.members().iter().filter(|(other, _)| **other != id);
        if others.filter(|(_, other)| !other.leaving).count() == 0 {
            return Err(LeaveError::Last(name.to_owned()));
        }
        if !force {
            let is_there = member.up.then_some(id);
            return is_there.ok_or_else(|| LeaveError::Down(name.to_owned()));
        }
        if id == self.id {
            return Err(LeaveError::Itself(name.to_owned()));
        }
        let voters = self.meta_group.status().voters.iter().copied().collect();
        match needed_by(id, meta.members(), &voters, meta.placement()) {
            None => Ok(id),
            Some(why) => Err(LeaveError::Needed {
                name: name.to_owned(),
                why,
            }),
        }
    }

    async fn mark(&self, name: &str, leaving: Leaving) -> Result<(), LeaveError> {
        let life = self.life().ok_or(LeaveError::NoAnswer)?;
        let asked = life.propose_meta(meta_command::Command::Leaving(leaving));
        let asked = tokio::time::timeout(self.config.barrier_max(), asked).await;
        let Ok(Ok((_, reply))) = asked else {
            return Err(LeaveError::NoAnswer);
        };
        // This node's replica may not know yet what others were asked for a moment ago.
        match RefusedReply::decode(reply) {
            Ok(refused) if !refused.reason.is_empty() => Err(LeaveError::Refused {
                name: name.to_owned(),
                why: refused.reason,
            }),
            _ => Ok(()),
        }
    }

    /// Resolves when this node is to leave and the cluster needs nothing of it any more: it holds no replica and has no vote.
    pub(crate) async fn may_go(&self) {
        let mut membership = self.meta.membership();
        let mut status = self.meta_group.watch();
        loop {
            membership.borrow_and_update();
            let votes = status.borrow_and_update().voters.contains(&self.id);
            if !votes && self.holds_nothing() {
                return;
            }
            tokio::select! {
                changed = membership.changed() => if changed.is_err() { break },
                changed = status.changed() => if changed.is_err() { break },
            }
        }
        std::future::pending().await
    }

    fn holds_nothing(&self) -> bool {
        let meta = self.meta.read();
        let leaves = meta.members().get(&self.id).is_some_and(|me| me.leaving);
        leaves && holds_nothing(self.id, meta.placement())
    }

    /// The last act of a member that leaves: its id is refused from then on, and its data directory starts no node any more.
    /// False = it does not leave, or the cluster does not know yet.
    pub(super) async fn has_left(&self) -> bool {
        let Some(life) = self.life().filter(|_| self.holds_nothing()) else {
            return false;
        };
        let forget = Forget { node_id: self.id.0 };
        let forgotten = life.propose_meta(meta_command::Command::Forget(forget));
        let forgotten = tokio::time::timeout(self.config.barrier_max(), forgotten).await;
        // Where the answer was lost, this node's own replica may know.
        let is_member = self.meta.read().members().contains_key(&self.id);
        let has_left = matches!(forgotten, Ok(Ok(_))) || !is_member;
        if has_left {
            info!("has left the cluster");
            if let Err(error) = self.store.set_left() {
                warn!(%error, "it is not written down here that this node has left");
            }
        }
        has_left
    }

    /// As the leader of the meta group: removes members that were expelled, such that were down for too long, and such that
    /// had handed over all they held and could not say any more that they have left.
    pub(super) fn forget_the_gone(self: &Arc<Self>) {
        let Some(life) = self.life() else { return };
        let now = self.meta.time().now_ms();
        let after = self.config.forget_after;
        let gone = {
            let meta = self.meta.read();
            let voters: BTreeSet<NodeId> =
                self.meta_group.status().voters.iter().copied().collect();
            let silent = self.config.node_down_after * SILENT_TS;
            let is_due = |id: &NodeId, member: &Member| {
                let away = Duration::from_millis(now.saturating_sub(member.since_ms));
                let has_handed_over =
                    || !voters.contains(id) && holds_nothing(*id, meta.placement());
                member.expelled
                    || after.is_some_and(|after| away >= after)
                    || member.leaving && away >= silent && has_handed_over()
            };
            let mut down = meta.members().iter().filter(|(_, member)| !member.up);
            let due = down.find(|(id, member)| {
                is_due(id, member)
                    && needed_by(**id, meta.members(), &voters, meta.placement()).is_none()
            });
            due.map(|(id, member)| (*id, member.name.clone()))
        };
        let Some((id, name)) = gone else { return };
        warn!(node = %id, %name, "is forgotten: it is no member any more");
        let forget = life.propose_meta(meta_command::Command::Forget(Forget { node_id: id.0 }));
        tokio::spawn(async move {
            if let Ok((_, reply)) = forget.await
                && let Ok(refused) = RefusedReply::decode(reply)
                && !refused.reason.is_empty()
            {
                info!(node = %id, why = %refused.reason, "not forgotten");
            }
        });
    }
}
