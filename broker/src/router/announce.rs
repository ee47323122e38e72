//! Tells the cluster which filters this node wants. One proposal of a filter is under way at a time, so that the last
//! one is always what is wanted last.

use std::sync::Arc;

use flotte_cluster::handle::Refused;
use flotte_mqtt::topic::SubscriptionFilter;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::oneshot;

use super::Router;
use super::subscriptions::Change;

/// What the cluster was told of one filter or share.
#[derive(Debug, Default)]
pub struct Announced {
    /// Live subscribers (0 or 1) or members, as last seen here.
    wanted: u32,
    /// As committed, and at which meta index; none before the first answer.
    committed: Option<(u32, u64)>,
    /// A proposal is under way.
    proposing: bool,
    /// Who waits until what is wanted is committed.
    waiters: Vec<oneshot::Sender<Result<u64, Refused>>>,
}

impl Router {
    /// Notes a change and proposes it. Resolves to the meta index of the route that serves the filter.
    pub(super) fn announce(
        self: &Arc<Self>,
        filter: &SubscriptionFilter,
        change: Change,
    ) -> BoxFuture<'static, Result<u64, Refused>> {
        let mut announced = self.announced.lock();
        let entry = announced.entry(filter.clone()).or_default();
        note(entry, change);
        if let (false, Some((value, index))) = (entry.proposing, entry.committed)
            && value == entry.wanted
        {
            return futures::future::ready(Ok(index)).boxed();
        }
        let (waiter, answer) = oneshot::channel();
        entry.waiters.push(waiter);
        if !entry.proposing {
            entry.proposing = true;
            let value = entry.wanted;
            drop(announced);
            self.propose(filter.clone(), value);
        }
        async move { answer.await.unwrap_or(Err(Refused::NotServing)) }.boxed()
    }

    /// Notes a change that nobody waits for.
    pub(super) fn withdraw(self: &Arc<Self>, filter: &SubscriptionFilter, change: Change) {
        let mut announced = self.announced.lock();
        let Some(entry) = announced.get_mut(filter) else {
            return;
        };
        note(entry, change);
        let due = !entry.proposing
            && entry
                .committed
                .is_some_and(|(value, _)| value != entry.wanted);
        if due {
            entry.proposing = true;
            let value = entry.wanted;
            drop(announced);
            self.propose(filter.clone(), value);
        }
    }

    fn propose(self: &Arc<Self>, filter: SubscriptionFilter, value: u32) {
        let proposal = match &filter.share {
            None => self.cluster().set_route(&filter.filter, value > 0),
            Some(group) => self
                .cluster()
                .set_share(group.as_str(), &filter.filter, value),
        };
        let router = Arc::clone(self);
        tokio::spawn(async move {
            let result = proposal.await;
            router.proposed(filter, value, result);
        });
    }

    fn proposed(
        self: &Arc<Self>,
        filter: SubscriptionFilter,
        value: u32,
        result: Result<u64, Refused>,
    ) {
        let mut announced = self.announced.lock();
        let Some(entry) = announced.get_mut(&filter) else {
            return;
        };
        entry.proposing = false;
        let settled = match result {
            // This start of the node is over; the next one announces anew.
            Err(refused) => Err(refused),
            Ok(index) => {
                entry.committed = Some((value, index));
                if value != entry.wanted {
                    entry.proposing = true;
                    let wanted = entry.wanted;
                    drop(announced);
                    return self.propose(filter, wanted);
                }
                Ok(index)
            }
        };
        let waiters = std::mem::take(&mut entry.waiters);
        if entry.wanted == 0 && !entry.proposing {
            announced.remove(&filter);
        }
        drop(announced);
        for waiter in waiters {
            let _ = waiter.send(settled);
        }
    }
}

fn note(entry: &mut Announced, change: Change) {
    match change {
        Change::None => {}
        Change::Present(present) => entry.wanted = u32::from(present),
        Change::Members(members) => entry.wanted = members,
    }
}
