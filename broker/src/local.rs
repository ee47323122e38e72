//! What the cluster asks of this node's clients.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use flotte_cluster::handle::{FiredWill, Kept, Kick, Load, Local, Shed};
use flotte_cluster::wire::{Forward, RetainResult, SharePick, WillKey, WillKeys};
use flotte_mqtt::property::{Context, Properties, PropertyId};
use flotte_mqtt::session::{DropReason, Keeper, Tally};
use flotte_mqtt::topic::{ShareName, SubscriptionFilter, TopicFilter, TopicName};
use flotte_mqtt::{ByteStr, ClientId, QoS};
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tracing::warn;

use crate::connection::{RetainRefusal, Shared, retain_command};
use crate::metrics::{self, Count};
use crate::rebalance;
use crate::router::{Notify, Outgoing, Placing, Round};
use crate::session::{Wake, flush_dirty, now_ms};

/// Acts on the clients of this node; the cluster has it before there are any.
#[derive(Default)]
pub struct LocalClients {
    shared: OnceLock<Arc<Shared>>,
    /// Of wills that were fanned out here.
    wills: Arc<Mutex<WillKeys>>,
}

impl LocalClients {
    /// From now on there may be clients.
    pub fn set(&self, shared: Arc<Shared>) {
        let _ = self.shared.set(shared);
    }

    fn is_repeated(&self, key: Option<&WillKey>) -> bool {
        key.is_some_and(|key| !self.wills.lock().insert(key))
    }
}

impl Local for LocalClients {
    fn deliver(&self, publish: Forward, kept: Option<Kept>) -> bool {
        let Some(shared) = self.shared.get() else {
            return true;
        };
        // A share looks itself: its copy may come behind the one for all others, or be refused and come again.
        let all = publish.all && !self.is_repeated(publish.will.as_ref());
        let shares = publish.shares.clone();
        let Some(message) = outgoing_from(publish) else {
            warn!("a publish of another node cannot be read");
            return true;
        };
        if all {
            shared.router.deliver_all(&message);
        }
        let keeper = kept.map(|kept| Arc::new(kept) as Keeper);
        shares.iter().all(|pick| {
            // One that cannot be read has no member either.
            share_of(pick).is_some_and(|filter| {
                let round = if pick.last { Round::Last } else { Round::First };
                let keeper = keeper.clone();
                let taken = shared
                    .router
                    .deliver_share(&message, &filter, round, keeper);
                if !taken && message.qos == QoS::AtMostOnce {
                    metrics::count(&Tally::unplaced(DropReason::NoMember));
                }
                taken
            })
        })
    }

    fn flush(&self) {
        if let Some(shared) = self.shared.get() {
            flush_dirty(shared.cluster().lease());
        }
    }

    fn kick(&self, kick: Kick, done: Box<dyn FnOnce() + Send>) {
        let client = ClientId::try_from(kick.client);
        let (Some(shared), Ok(client)) = (self.shared.get(), client) else {
            return done();
        };
        let Some(session) = shared.registry.kicked(&client, kick.epoch) else {
            return done();
        };
        if kick.session {
            session.doom();
        }
        if let Some(done) = session.close(Wake::TAKEN_OVER, done) {
            if kick.session {
                Count::SESSIONS_EXPIRED.add(1);
                shared.end_session(&session);
            }
            done();
        }
    }

    fn publish_will(&self, fired: FiredWill, key: WillKey) -> BoxFuture<'static, bool> {
        let Some(shared) = self.shared.get().cloned() else {
            return futures::future::ready(false).boxed();
        };
        let Some(message) = will_message(fired, key) else {
            warn!("a will cannot be read");
            return futures::future::ready(true).boxed();
        };
        let wills = Arc::clone(&self.wills);
        async move { publish_will(&shared, message, &key, &wills).await }.boxed()
    }

    fn load(&self, shed: Option<Shed>) -> Load {
        match self.shared.get() {
            Some(shared) => rebalance::handle_load(shared, shed),
            None => Load {
                clients: 0,
                sheds: false,
            },
        }
    }

    fn reset(&self) -> BoxFuture<'static, ()> {
        let Some(shared) = self.shared.get().cloned() else {
            return futures::future::ready(()).boxed();
        };
        async move { reset(&shared).await }.boxed()
    }
}

async fn publish_will(
    shared: &Arc<Shared>,
    mut message: Outgoing,
    key: &WillKey,
    wills: &Mutex<WillKeys>,
) -> bool {
    if message.retain {
        let retain = retain_command(&message, RetainRefusal::Untold);
        match shared.cluster().retain(retain, None).await {
            Ok((index, RetainResult::Stored | RetainResult::Deleted)) => {
                message.retain_index = index
            }
            Ok((_, RetainResult::Quota)) => {}
            Err(_) => return false,
        }
    }
    let start = shared.cluster().me();
    let (task, placed) = oneshot::channel();
    let placing =
        (message.qos > QoS::AtMostOnce).then(|| Placing::new(Notify::Task(Mutex::new(Some(task)))));
    let mut matched = shared.router.matched(&message.topic, &message.publisher);
    // Not before: one that could not be retained was fanned out to nobody, and comes again.
    if !wills.lock().insert(key) {
        matched.targets.clear();
    }
    shared.router.route(&message, &matched, placing.as_ref());
    flush_dirty(shared.cluster().lease());
    match placing {
        None => true,
        Some(placing) => {
            placing.done();
            // At the end of a start its links end, too, and nobody waits for them any more.
            placed.await.is_ok() && start.is_some() && shared.cluster().me() == start
        }
    }
}

/// Closes all connections, ends all sessions, and waits until that is so.
async fn reset(shared: &Arc<Shared>) {
    let sessions = shared.registry.all();
    let mut closing = Vec::new();
    for session in &sessions {
        let (done, closed) = oneshot::channel();
        session.doom();
        let told = session.close(
            Wake::RESET,
            Box::new(move || {
                let _ = done.send(());
            }),
        );
        if told.is_none() {
            closing.push(closed);
        }
    }
    futures::future::join_all(closing).await;
    for session in &sessions {
        shared.end_session(session);
    }
    shared.router.reset();
}

fn will_message(fired: FiredWill, key: WillKey) -> Option<Outgoing> {
    let will = fired.will;
    let mut properties = properties_from(will.properties)?;
    let expires_at_ms = properties
        .message_expiry()
        .map(|seconds| now_ms() + u64::from(seconds) * 1_000);
    properties.remove(PropertyId::MessageExpiry);
    Some(Outgoing {
        topic: topic_from(will.topic)?,
        payload: will.payload,
        properties,
        qos: qos_from(will.qos)?,
        retain: will.retain,
        publisher: ClientId::try_from(fired.client).ok()?,
        expires_at_ms,
        retain_index: 0,
        will: Some(key),
    })
}

fn outgoing_from(publish: Forward) -> Option<Outgoing> {
    let expires_in_ms = Some(publish.expires_in_ms).filter(|left| *left != 0);
    Some(Outgoing {
        topic: topic_from(publish.topic)?,
        payload: publish.payload,
        properties: properties_from(publish.properties)?,
        qos: qos_from(publish.qos)?,
        retain: publish.retain,
        publisher: ClientId::try_from(publish.publisher).ok()?,
        expires_at_ms: expires_in_ms.map(|left| now_ms().saturating_add(left)),
        retain_index: publish.retain_index,
        will: publish.will,
    })
}

fn topic_from(bytes: Bytes) -> Option<TopicName> {
    TopicName::parse(ByteStr::try_from(bytes).ok()?).ok()
}

fn qos_from(value: u32) -> Option<QoS> {
    QoS::try_from(u8::try_from(value).ok()?).ok()
}

fn properties_from(mut bytes: Bytes) -> Option<Properties> {
    Properties::decode(&mut bytes, Context::Publish).ok()
}

fn share_of(pick: &SharePick) -> Option<SubscriptionFilter> {
    let group = ShareName::parse(ByteStr::try_from(pick.group.clone()).ok()?).ok()?;
    let filter = TopicFilter::parse(ByteStr::try_from(pick.filter.clone()).ok()?).ok()?;
    Some(SubscriptionFilter {
        share: Some(group),
        filter,
    })
}
