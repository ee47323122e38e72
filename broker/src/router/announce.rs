//! Tells the cluster which filters this node wants. One proposal of a filter is under way at a time, so that the last
//! one is always what is wanted last. What is settled stands in this node's replica of the routes, and nowhere else.

use std::sync::Arc;

use flotte_cluster::handle::Refused;
use flotte_cluster::meta::ShareMembers;
use flotte_mqtt::topic::SubscriptionFilter;
use foldhash::quality::RandomState;
use futures::FutureExt;
use futures::future::BoxFuture;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use tokio::sync::oneshot;

use super::Router;
use super::subscriptions::Change;

/// What this node has proposed of its routes and not seen applied.
#[derive(Debug, Default)]
pub struct Announcements {
    /// Filters and shares with a proposal under way.
    unsettled: HashMap<SubscriptionFilter, Unsettled, RandomState>,
    /// Starts of the node, so that an answer to an earlier one is told from others.
    resets: u64,
}

#[derive(Debug)]
struct Unsettled {
    /// Live subscribers (0 or 1), or members as bits, as last seen here.
    wanted: u32,
    /// Who waits until what is wanted is committed.
    waiters: Vec<oneshot::Sender<Result<u64, Refused>>>,
}

impl Announcements {
    /// This start of the node is over, and its routes with it.
    pub fn reset(&mut self) {
        self.unsettled.clear();
        self.resets += 1;
    }
}

impl Router {
    /// Notes a change and proposes it. Resolves to the meta index of the route that serves the filter, once it is applied
    /// here.
    pub(super) fn announce(
        self: &Arc<Self>,
        filter: &SubscriptionFilter,
        change: Change,
    ) -> BoxFuture<'static, Result<u64, Refused>> {
        let (waiter, answer) = oneshot::channel();
        let mut announcements = self.announcements.lock();
        match announcements.unsettled.entry(filter.clone()) {
            Entry::Occupied(mut entry) => {
                let entry = entry.get_mut();
                entry.wanted = change.wanted().unwrap_or(entry.wanted);
                entry.waiters.push(waiter);
            }
            Entry::Vacant(entry) => {
                let settled = self.cluster().own_route(filter);
                let known = settled.filter(|(value, _)| *value > 0);
                let wanted = change.wanted().or(known.map(|(value, _)| value));
                match (wanted, settled) {
                    // It was there, and went with the start of the node that this subscription was made in.
                    (None, _) => {
                        return futures::future::ready(Err(Refused::NotServing)).boxed();
                    }
                    (Some(wanted), Some((value, index))) if wanted == value => {
                        return futures::future::ready(Ok(index)).boxed();
                    }
                    (Some(wanted), _) => {
                        let waiters = vec![waiter];
                        entry.insert(Unsettled { wanted, waiters });
                        self.propose(filter.clone(), wanted, announcements.resets);
                    }
                }
            }
        }
        async move { answer.await.unwrap_or(Err(Refused::NotServing)) }.boxed()
    }

    /// Notes a change that nobody waits for.
    pub(super) fn withdraw(self: &Arc<Self>, filter: &SubscriptionFilter, change: Change) {
        let Some(wanted) = change.wanted() else {
            return;
        };
        let mut announcements = self.announcements.lock();
        match announcements.unsettled.entry(filter.clone()) {
            Entry::Occupied(mut entry) => entry.get_mut().wanted = wanted,
            Entry::Vacant(entry) => {
                let settled = self.cluster().own_route(filter);
                if settled.is_some_and(|(value, _)| value != wanted) {
                    let waiters = Vec::new();
                    entry.insert(Unsettled { wanted, waiters });
                    self.propose(filter.clone(), wanted, announcements.resets);
                }
            }
        }
    }

    fn propose(self: &Arc<Self>, filter: SubscriptionFilter, value: u32, resets: u64) {
        let proposal = match &filter.share {
            None => self.cluster().set_route(&filter.filter, value > 0),
            Some(group) => {
                let members = ShareMembers::from_bits(value);
                self.cluster()
                    .set_share(group.as_str(), &filter.filter, members)
            }
        };
        let router = Arc::clone(self);
        tokio::spawn(async move {
            let result = proposal.await;
            router.proposed(filter, (value, resets), result);
        });
    }

    fn proposed(
        self: &Arc<Self>,
        filter: SubscriptionFilter,
        (value, resets): (u32, u64),
        result: Result<u64, Refused>,
    ) {
        let mut announcements = self.announcements.lock();
        if announcements.resets != resets {
            return;
        }
        let Some(entry) = announcements.unsettled.get(&filter) else {
            return;
        };
        let wanted = entry.wanted;
        // Refused: this start of the node is over; the next one announces anew.
        if result.is_ok() && value != wanted {
            return self.propose(filter, wanted, resets);
        }
        let settled = announcements.unsettled.remove(&filter);
        drop(announcements);
        for waiter in settled.into_iter().flat_map(|entry| entry.waiters) {
            let _ = waiter.send(result);
        }
    }
}
