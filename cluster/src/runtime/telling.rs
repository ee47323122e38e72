//! The leader of a session group tells former homes what is over: from the state, so that a new leader does, too. A home whose
//! connection ended thereby commits that itself; for those that had none the leader commits that they were told.

use std::collections::BTreeSet;

use flotte_proto::session_command::Command;
use flotte_proto::{HomeGone, Told};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;

use super::kicks::Kicks;
use crate::group::{Ended, GroupState};
use crate::id::{GroupId, NodeRef};

/// Orders to one home that are under way at once.
const AT_ONCE: usize = 256;

/// What one leader has under way.
#[derive(Default)]
pub(super) struct Telling {
    /// Homes that have not answered; at most [`AT_ONCE`] of each.
    under_way: BTreeSet<Ended>,
    orders: FuturesUnordered<BoxFuture<'static, Ended>>,
    /// Homes that have, and what they ended.
    told: Vec<Ended>,
}

impl Telling {
    /// Tells those that are due.
    pub fn begin(&mut self, group: GroupId, due: Vec<Ended>, kicks: &Kicks) {
        for ended in due {
            let Ended {
                home,
                client,
                epoch,
            } = &ended;
            let order = kicks.end_session(group, client, *home, *epoch);
            self.under_way.insert(ended.clone());
            self.orders.push(Box::pin(async move {
                // Else this start of the node is over.
                let _ = order.await;
                ended
            }));
        }
    }

    /// Those that are due at a state time.
    pub fn due(&self, state: &GroupState, now_ms: u64) -> Vec<Ended> {
        state.untold().due(now_ms, &self.under_way, AT_ONCE)
    }

    /// Resolves when a home has answered, or is no more.
    pub async fn answered(&mut self) {
        match self.orders.next().await {
            Some(ended) => {
                self.under_way.remove(&ended);
                self.told.push(ended);
            }
            None => futures::future::pending().await,
        }
    }

    /// What there is to commit for homes that said nothing themselves.
    pub fn take_told(&mut self, state: &GroupState) -> Vec<Command> {
        let told = std::mem::take(&mut self.told).into_iter();
        let silent = told.filter(|ended| state.untold().contains(ended));
        silent.map(told_command).collect()
    }
}

fn told_command(ended: Ended) -> Command {
    Command::Told(Told {
        node_id: ended.home.node.0,
        client: ended.client,
        epoch: ended.epoch,
    })
}

/// What there is to commit for homes that are no more: nobody tells them anything.
pub(super) fn homes_gone(state: &GroupState, is_up: impl Fn(NodeRef) -> bool) -> Vec<Command> {
    let gone = state.untold().homes().into_iter();
    let gone = gone.filter(|home| !is_up(*home));
    gone.map(|home| {
        Command::HomeGone(HomeGone {
            node_id: home.node.0,
            incarnation: home.incarnation,
        })
    })
    .collect()
}
