//! Decides who gets what: local sessions, other nodes, shared subscriptions, the retained store. It knows no packet flow
//! and no socket; acknowledgements come back as one event to the publisher's session.

mod access;
mod announce;
mod choosing;
mod handing;
mod matched;
mod members;
mod placing;
mod publish;
mod replay;
mod share;
mod subscriptions;
mod wills;

use announce::Announcements;
pub use choosing::Round;
pub use matched::{MatchCache, Matched, MatchedShare};
pub use members::Members;
pub use placing::{Notify, Placing};
pub use publish::{Outgoing, PublishOutcome};
pub use replay::Replay;
pub use share::Share;
pub use subscriptions::{Change, Subscriber, Subscriptions, Target};
use wills::SharedWills;

use std::num::NonZeroU32;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use flotte_cluster::handle::{Cluster, Refused};
use flotte_cluster::meta::BranchEpochs;
use flotte_mqtt::packet::SubscribeOptions;
use flotte_mqtt::topic::SubscriptionFilter;
use foldhash::quality::RandomState;
use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};

use crate::auth::acl::Acl;
use crate::config::shared::Strategy;
use crate::session::Session;
use crate::sys::Sys;

/// The router of this node; shared by all workers.
pub struct Router {
    cluster: Cluster,
    /// Who may get what.
    acl: Acl,
    /// Changes with every SUBSCRIBE; read for every match that no cache holds.
    subscriptions: RwLock<Subscriptions>,
    /// Counters for caches of local matches.
    epochs: BranchEpochs,
    /// What the cluster is being told.
    announcements: Mutex<Announcements>,
    /// How a message finds its member of a shared subscription.
    strategy: Strategy,
    /// The shared subscriptions that this node publishes to; those that are in no publisher's memory are forgotten when it
    /// would have to grow.
    shares: Mutex<HashMap<SubscriptionFilter, Arc<Share>, RandomState>>,
    /// Of wills that come again.
    shared_wills: Mutex<SharedWills>,
    /// The node leaves.
    leaving: AtomicBool,
    /// Where the values of `$SYS` come from; unset = there are none.
    sys: OnceLock<Arc<Sys>>,
    /// Retained messages a second that one replay gets; none = as fast as its client takes them.
    retained_rate: Option<NonZeroU32>,
}

impl Router {
    /// A router without subscriptions.
    pub fn new(
        cluster: Cluster,
        acl: Acl,
        strategy: Strategy,
        retained_rate: Option<NonZeroU32>,
    ) -> Arc<Router> {
        Arc::new(Router {
            cluster,
            acl,
            subscriptions: RwLock::default(),
            epochs: BranchEpochs::default(),
            announcements: Mutex::default(),
            strategy,
            shares: Mutex::default(),
            shared_wills: Mutex::default(),
            leaving: AtomicBool::new(false),
            sys: OnceLock::new(),
            retained_rate,
        })
    }

    /// From now on there are values of `$SYS`.
    pub fn set_sys(&self, sys: Arc<Sys>) {
        let _ = self.sys.set(sys);
    }

    /// Whether a session here subscribes to a topic of `$SYS`.
    pub fn has_sys_subscribers(&self) -> bool {
        self.subscriptions.read().has_sys()
    }

    /// The cluster this node is part of.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Adds a subscription, from now on served by this node. The future resolves once its route is set, to the meta
    /// index to pass the barrier with.
    pub fn subscribe(
        self: &Arc<Self>,
        session: &Arc<Session>,
        filter: &SubscriptionFilter,
        options: SubscribeOptions,
        id: u32,
    ) -> impl Future<Output = Result<u64, Refused>> + Send + 'static {
        let mut subscriptions = self.subscriptions.write();
        let change = subscriptions.insert(session, filter, options, id);
        self.epochs.touch(&filter.filter);
        // Under the lock, so that changes of one filter are announced in the order in which they were made.
        self.announce(filter, change)
    }

    /// Removes a subscription. Says whether there was one.
    pub fn unsubscribe(
        self: &Arc<Self>,
        session: &Arc<Session>,
        filter: &SubscriptionFilter,
    ) -> bool {
        let mut subscriptions = self.subscriptions.write();
        let Some(change) = subscriptions.remove(session, filter) else {
            return false;
        };
        self.epochs.touch(&filter.filter);
        self.withdraw(filter, change);
        true
    }

    /// Removes all subscriptions of a session that ended.
    pub fn forget(self: &Arc<Self>, session: &Arc<Session>) {
        let subscriptions = std::mem::take(&mut *session.subscriptions().lock());
        for filter in subscriptions.into_filters() {
            self.unsubscribe(session, &filter);
        }
    }

    /// This start of the node is over: its routes are gone with it.
    pub fn reset(&self) {
        *self.subscriptions.write() = Subscriptions::default();
        self.announcements.lock().reset();
        self.shares.lock().clear();
        self.epochs.touch_all();
    }

    /// Number of subscriptions of this node's sessions.
    pub fn subscription_count(&self) -> usize {
        self.subscriptions.read().len()
    }
}
