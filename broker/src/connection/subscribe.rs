//! SUBSCRIBE and UNSUBSCRIBE: they take effect on this node as they come, and are answered in their order. SUBACK goes out
//! only when every node that may take a publish knows of the subscription; retained messages follow it, and hold up no
//! later request.

use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use flotte_cluster::handle::Refused;
use flotte_mqtt::packet::{
    Packet, RetainHandling, SubAck, Subscribe, SubscribeOptions, UnsubAck, Unsubscribe,
};
use flotte_mqtt::reason::ReasonCode;
use flotte_mqtt::topic::SubscriptionFilter;
use flotte_mqtt::{ByteStr, Version};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use metrics::counter;
use tokio::time::Sleep;
use tracing::debug;

use super::replays::Replays;
use super::{Connection, End, Worker};
use crate::router::{Replay, Router};
use crate::session::{Output, Session, Subscription, flush_dirty, mark_dirty};

/// Pause between looks at the lease, before an acknowledgement.
const LEASE_PAUSE: Duration = Duration::from_millis(20);
/// Requests that are not answered before nothing more is read.
const REQUESTS_MAX: usize = 64;
/// For how long after a replay its messages may come live: publishers place theirs in far less, unless links are full.
const LINGER: Duration = Duration::from_secs(10);

/// What is left of a request: its answer, and what is to be replayed behind that.
type Answer = LocalBoxFuture<'static, Result<Vec<Replay>, ReasonCode>>;
type Replaying = LocalBoxFuture<'static, Result<(), Refused>>;

/// The requests of a connection that are under way.
#[derive(Default)]
pub(super) struct Requests {
    /// Not answered, in their order; only the first is waited for. Bounded by [`REQUESTS_MAX`].
    answers: VecDeque<Answer>,
    /// Retained messages to be sent.
    replays: Replays,
    /// Waits for the client to take what was sent, so nothing else may wait for it.
    replaying: Option<Replaying>,
    /// Once all is done: until what was replayed may come live no more.
    lingering: Option<Pin<Box<Sleep>>>,
}

impl Requests {
    /// Whether none is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.answers.is_empty() && self.replaying.is_none()
    }

    /// Whether so many are under way that nothing more should be read.
    pub(super) fn is_full(&self) -> bool {
        self.answers.len() >= REQUESTS_MAX
    }

    /// All is done. Says whether nothing is left to wait for: what was replayed may still come live.
    pub(super) fn is_over(&mut self, output: &mut Output) -> bool {
        if !output.replays_done() {
            return true;
        }
        let lingering = self
            .lingering
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        lingering.is_elapsed()
    }

    /// Ready when something was answered or replayed; an error ends the connection.
    pub(super) fn poll_progress(
        &mut self,
        router: &Arc<Router>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), ReasonCode>> {
        if let Some(first) = self.answers.front_mut()
            && let Poll::Ready(answered) = first.poll_unpin(cx)
        {
            self.answers.pop_front();
            return Poll::Ready(answered.map(|replays| self.replay(replays, router)));
        }
        if let Some(replaying) = &mut self.replaying
            && let Poll::Ready(replayed) = replaying.poll_unpin(cx)
        {
            self.replaying = None;
            self.next_replay(router);
            return Poll::Ready(replayed.map_err(|_| ReasonCode::UseAnotherServer));
        }
        if let Some(lingering) = &mut self.lingering
            && !lingering.is_elapsed()
        {
            return lingering.poll_unpin(cx).map(Ok);
        }
        Poll::Pending
    }

    fn replay(&mut self, replays: Vec<Replay>, router: &Arc<Router>) {
        replays
            .into_iter()
            .for_each(|replay| self.replays.push(replay));
        if self.replaying.is_none() {
            self.next_replay(router);
        }
    }

    fn next_replay(&mut self, router: &Arc<Router>) {
        let Some(replay) = self.replays.pop() else {
            return;
        };
        self.lingering = None;
        let router = Arc::clone(router);
        self.replaying = Some(async move { router.replay(replay).await }.boxed_local());
    }
}

impl Connection {
    pub(super) fn handle_subscribe(&mut self, subscribe: &Subscribe) -> Result<(), End> {
        let id = subscribe.properties.subscription_ids().next().unwrap_or(0);
        let available = self.worker.shared.config.mqtt.subscription_ids_available;
        if id != 0 && !available {
            return Err(End::Refused(
                ReasonCode::SubscriptionIdentifiersNotSupported,
            ));
        }
        // All are read before the first takes effect.
        let mut filters = Vec::with_capacity(subscribe.filters.len());
        for (text, options) in &subscribe.filters {
            let filter = self.parse(text)?;
            if filter.share.is_some() && options.no_local {
                // [MQTT-3.8.3-4]
                return Err(End::Refused(ReasonCode::ProtocolError));
            }
            if let (Some(missing), Version::V5) = (self.unavailable(&filter), self.version) {
                // CONNACK said so: sections 3.2.2.3.11 and 3.2.2.3.13 call it a protocol error.
                return Err(End::Refused(missing));
            }
            filters.push((filter, *options));
        }
        let (mut reasons, mut routes, mut replays) = (Vec::new(), Vec::new(), Vec::new());
        for (filter, options) in filters {
            if let Some(refusal) = self.refusal(&filter) {
                reasons.push(refusal);
                continue;
            }
            let options = self.options(&filter, options);
            let Some(grant) = self.grant(&filter, options.qos) else {
                // [MQTT-3.9.3-1] of 5.0, 0x80 in 3.1.1
                reasons.push(ReasonCode::NotAuthorized);
                continue;
            };
            reasons.push(ReasonCode::granted(options.qos));
            let known = self.remember(&filter, options, id, grant);
            let mut replay = self.replay_of(&filter, options, known, id);
            if let Some(replay) = &mut replay {
                replay.since = self.session.output().lock().expect_replay();
            }
            let router = &self.worker.shared.router;
            routes.push(router.subscribe(&self.session, &filter, options, id));
            if self.session.is_ended() {
                // Whoever ended it meanwhile may not have seen this one.
                router.unsubscribe(&self.session, &filter);
                return Err(End::TakenOver);
            }
            replays.extend(replay);
        }
        let suback = SubAck {
            packet_id: subscribe.packet_id,
            reasons,
            properties: Default::default(),
        };
        let serving = self.serving();
        let answer = async move {
            serving.wait_for_routes(routes).await?;
            serving.read_index(&mut replays).await?;
            serving.acknowledge(suback.into()).await?;
            Ok(replays)
        };
        self.await_answer(answer.boxed_local());
        Ok(())
    }

    /// The options with which a filter is subscribed to. A bridge of 3.x gets messages as they were published and none of its
    /// own, so that what it passes on stays retained and does not come back.
    fn options(&self, filter: &SubscriptionFilter, asked: SubscribeOptions) -> SubscribeOptions {
        let is_bridge = self.decoder.is_bridge();
        SubscribeOptions {
            qos: asked.qos.min(self.max_qos),
            // [MQTT-3.8.3-4]: not for shares.
            no_local: asked.no_local || is_bridge && filter.share.is_none(),
            retain_as_published: asked.retain_as_published || is_bridge,
            ..asked
        }
    }

    pub(super) fn handle_unsubscribe(&mut self, unsubscribe: &Unsubscribe) -> Result<(), End> {
        let filters = unsubscribe.filters.iter().map(|text| self.parse(text));
        let filters: Vec<SubscriptionFilter> = filters.collect::<Result<_, _>>()?;
        let mut reasons = Vec::with_capacity(filters.len());
        for filter in filters {
            self.session.subscriptions().lock().remove(&filter);
            let router = &self.worker.shared.router;
            reasons.push(if router.unsubscribe(&self.session, &filter) {
                router.leave_share(&self.session, &filter);
                ReasonCode::Success
            } else {
                ReasonCode::NoSubscriptionExisted
            });
        }
        let unsuback = UnsubAck {
            packet_id: unsubscribe.packet_id,
            reasons,
            properties: Default::default(),
        };
        let serving = self.serving();
        let answer = async move {
            serving.acknowledge(unsuback.into()).await?;
            Ok(Vec::new())
        };
        self.await_answer(answer.boxed_local());
        Ok(())
    }

    /// What the client names, as all others know it.
    fn parse(&self, text: &ByteStr) -> Result<SubscriptionFilter, End> {
        let theirs = SubscriptionFilter::parse(text.clone().compact());
        let whole = theirs.and_then(|filter| match &self.mountpoint {
            None => Ok(filter),
            Some(mountpoint) => mountpoint.filter(&filter),
        });
        whole.map_err(|e| {
            debug!(error = %e, "topic filter");
            End::Refused(e.reason())
        })
    }

    fn await_answer(&mut self, answer: Answer) {
        let requests = self.requests.get_or_insert_default();
        requests.answers.push_back(answer);
    }

    fn serving(&self) -> Serving {
        Serving {
            worker: Rc::clone(&self.worker),
            session: Arc::clone(&self.session),
            epoch: self.epoch,
        }
    }

    /// The retained messages that a subscription asks for.
    fn replay_of(
        &self,
        filter: &SubscriptionFilter,
        options: SubscribeOptions,
        known: bool,
        id: u32,
    ) -> Option<Replay> {
        let wanted = match options.retain_handling {
            RetainHandling::SendAlways => true,
            RetainHandling::SendIfNew => !known,
            RetainHandling::Never => false,
        };
        // None to shared subscriptions.
        (wanted && filter.share.is_none()).then(|| Replay {
            session: Arc::clone(&self.session),
            epoch: self.epoch,
            filter: filter.filter.clone(),
            qos: options.qos,
            id,
            since: 0,
            upto: 0,
        })
    }

    /// Why a filter that is well formed is not granted.
    fn refusal(&self, filter: &SubscriptionFilter) -> Option<ReasonCode> {
        let levels_max = self.worker.shared.config.mqtt.max_topic_levels;
        if filter.filter.level_count() > usize::from(levels_max) {
            return Some(ReasonCode::TopicFilterInvalid);
        }
        if !self.has_room_for(filter) {
            counter!("flotte_subscriptions_refused_total", "reason" => "quota").increment(1);
            return Some(ReasonCode::QuotaExceeded);
        }
        // [MQTT-3.8.3-2] of 3.1.1
        self.unavailable(filter)
    }

    /// Why nobody is granted such a filter.
    fn unavailable(&self, filter: &SubscriptionFilter) -> Option<ReasonCode> {
        let config = &self.worker.shared.config.mqtt;
        if filter.filter.is_wildcard() && !config.wildcard_available {
            Some(ReasonCode::WildcardSubscriptionsNotSupported)
        } else if filter.share.is_some() && !config.shared_available {
            Some(ReasonCode::SharedSubscriptionsNotSupported)
        } else {
            None
        }
    }

    /// Whether the session may have this subscription, too. One that it has already is always replaced.
    fn has_room_for(&self, filter: &SubscriptionFilter) -> bool {
        let max = self.worker.shared.config.session.subscriptions_max;
        let subscriptions = self.session.subscriptions().lock();
        subscriptions.len() < max as usize || subscriptions.contains(filter)
    }

    /// Notes the subscription in the session. Says whether it was there before.
    fn remember(
        &self,
        filter: &SubscriptionFilter,
        options: SubscribeOptions,
        id: u32,
        grant: u32,
    ) -> bool {
        let mut subscriptions = self.session.subscriptions().lock();
        self.session.note_grant(&subscriptions, grant);
        let subscription = Subscription {
            // Its own: what is shared costs more than it saves.
            filter: filter.compact(),
            options,
            id,
        };
        subscriptions.insert(subscription)
    }
}

/// What an answer needs of its connection.
struct Serving {
    worker: Rc<Worker>,
    session: Arc<Session>,
    epoch: u64,
}

impl Serving {
    async fn wait_for_routes(
        &self,
        routes: Vec<impl Future<Output = Result<u64, Refused>>>,
    ) -> Result<(), ReasonCode> {
        let limit = self.worker.shared.barrier_max();
        let cluster = self.worker.shared.cluster();
        let set = async {
            let mut last = None;
            for route in routes {
                last = last.max(Some(route.await?));
            }
            match last {
                Some(index) => cluster.barrier(index).await,
                None => Ok(()),
            }
        };
        let result = tokio::time::timeout(limit, set).await;
        if !matches!(result, Ok(Ok(()))) {
            debug!("a subscription could not be made known to all nodes in time");
            // Never a false SUBACK.
            return Err(ReasonCode::UseAnotherServer);
        }
        Ok(())
    }

    /// What is retained from here on is delivered as it comes.
    async fn read_index(&self, replays: &mut [Replay]) -> Result<(), ReasonCode> {
        if replays.is_empty() {
            return Ok(());
        }
        let upto = self.worker.shared.cluster().read_index().await;
        let upto = upto.map_err(|_| ReasonCode::UseAnotherServer)?;
        replays.iter_mut().for_each(|replay| replay.upto = upto);
        Ok(())
    }

    /// Sends an acknowledgement, under the lease.
    async fn acknowledge(&self, packet: Packet) -> Result<(), ReasonCode> {
        while !self.worker.shared.cluster().lease().held() {
            tokio::time::sleep(LEASE_PAUSE).await;
        }
        let mut output = self.session.output().lock();
        if self.session.epoch() != self.epoch {
            return Ok(());
        }
        output.send(&packet)?;
        let dirty = output.needs_flush();
        drop(output);
        if dirty {
            mark_dirty(&self.session);
        }
        flush_dirty(self.worker.shared.cluster().lease());
        Ok(())
    }
}
