//! SUBSCRIBE and UNSUBSCRIBE: one under way at a time, in their order. SUBACK goes out only when every node that may take
//! a publish knows of the subscription.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use flotte_mqtt::packet::{
    Packet, RetainHandling, SubAck, Subscribe, SubscribeOptions, UnsubAck, Unsubscribe,
};
use flotte_mqtt::reason::ReasonCode;
use flotte_mqtt::topic::SubscriptionFilter;
use flotte_mqtt::{ByteStr, QoS, Version};
use futures::future::LocalBoxFuture;
use tracing::debug;

use super::{Connection, Worker};
use crate::router::Replay;
use crate::session::{Session, Subscription, flush_dirty, mark_dirty};

/// Pause between looks at the lease, before an acknowledgement.
const LEASE_PAUSE: Duration = Duration::from_millis(20);

/// What waits for its turn.
pub enum Request {
    /// To be answered by SUBACK.
    Subscribe(Subscribe),
    /// To be answered by UNSUBACK.
    Unsubscribe(Unsubscribe),
}

/// Resolves when the request under way is answered; an error ends the connection. Cancel safe.
pub(super) async fn run(
    subscribing: &mut Option<LocalBoxFuture<'static, Result<(), ReasonCode>>>,
) -> Result<(), ReasonCode> {
    match subscribing {
        Some(request) => request.await,
        None => futures::future::pending().await,
    }
}

impl Connection {
    /// Begins the next request, if none is under way.
    pub(super) fn next_request(&mut self) {
        if self.subscribing.is_some() {
            return;
        }
        let Some(request) = self.requests.pop_front() else {
            return;
        };
        if self.requests.is_empty() {
            // An idle connection keeps no room for them.
            self.requests = VecDeque::new();
        }
        let serving = Serving {
            worker: Rc::clone(&self.worker),
            session: Arc::clone(&self.session),
            epoch: self.epoch,
            version: self.version,
            max_qos: self.max_qos,
        };
        self.subscribing = Some(match request {
            Request::Subscribe(subscribe) => Box::pin(serving.subscribe(subscribe)),
            Request::Unsubscribe(unsubscribe) => Box::pin(serving.unsubscribe(unsubscribe)),
        });
    }
}

/// What a request needs of its connection.
struct Serving {
    worker: Rc<Worker>,
    session: Arc<Session>,
    epoch: u64,
    version: Version,
    max_qos: QoS,
}

impl Serving {
    async fn subscribe(self, subscribe: Subscribe) -> Result<(), ReasonCode> {
        let id = subscribe.properties.subscription_ids().next().unwrap_or(0);
        if id != 0 && !self.worker.shared.config.mqtt.subscription_ids_available {
            return Err(ReasonCode::SubscriptionIdentifiersNotSupported);
        }
        let (mut reasons, mut routes, mut replays) = (Vec::new(), Vec::new(), Vec::new());
        let router = &self.worker.shared.router;
        for (text, options) in &subscribe.filters {
            let filter = self.parse(text)?;
            if filter.share.is_some() && options.no_local {
                // [MQTT-3.8.3-4]
                return Err(ReasonCode::ProtocolError);
            }
            if let Some(refusal) = self.refusal(&filter) {
                reasons.push(refusal);
                continue;
            }
            let options = SubscribeOptions {
                qos: options.qos.min(self.max_qos),
                ..*options
            };
            let known = self.remember(&filter, options, id);
            routes.push(router.subscribe(&self.session, &filter, options, id));
            reasons.push(ReasonCode::granted(options.qos));
            let wanted = match options.retain_handling {
                RetainHandling::SendAlways => true,
                RetainHandling::SendIfNew => !known,
                RetainHandling::Never => false,
            };
            // Retained messages are not sent to shared subscriptions.
            if wanted && filter.share.is_none() {
                let (session, epoch) = (Arc::clone(&self.session), self.epoch);
                replays.push(Replay {
                    session,
                    epoch,
                    filter: filter.filter,
                    qos: options.qos,
                    id,
                });
            }
        }
        self.wait_for_routes(routes).await?;
        let suback = SubAck {
            packet_id: subscribe.packet_id,
            reasons,
            properties: Default::default(),
        };
        self.acknowledge(suback.into()).await;
        for replay in replays {
            router
                .replay(replay)
                .await
                .map_err(|_| ReasonCode::UseAnotherServer)?;
        }
        Ok(())
    }

    async fn wait_for_routes(
        &self,
        routes: Vec<impl Future<Output = Result<u64, flotte_cluster::handle::Refused>>>,
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

    async fn unsubscribe(self, unsubscribe: Unsubscribe) -> Result<(), ReasonCode> {
        let mut reasons = Vec::new();
        for text in &unsubscribe.filters {
            let filter = self.parse(text)?;
            let mut subscriptions = self.session.subscriptions().lock();
            let at = subscriptions
                .iter()
                .position(|subscription| subscription.filter == filter);
            if let Some(at) = at {
                subscriptions.remove(at);
            }
            drop(subscriptions);
            let removed = self
                .worker
                .shared
                .router
                .unsubscribe(&self.session, &filter);
            reasons.push(if removed {
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
        self.acknowledge(unsuback.into()).await;
        Ok(())
    }

    fn parse(&self, text: &ByteStr) -> Result<SubscriptionFilter, ReasonCode> {
        SubscriptionFilter::parse(text.clone().compact()).map_err(|e| {
            debug!(error = %e, "topic filter");
            e.reason()
        })
    }

    /// Why a filter that is well formed is not granted.
    fn refusal(&self, filter: &SubscriptionFilter) -> Option<ReasonCode> {
        let config = &self.worker.shared.config.mqtt;
        if filter.filter.level_count() > usize::from(config.max_topic_levels) {
            Some(ReasonCode::TopicFilterInvalid)
        } else if filter.filter.is_wildcard() && !config.wildcard_available {
            Some(ReasonCode::WildcardSubscriptionsNotSupported)
        } else if filter.share.is_some() && !config.shared_available {
            Some(ReasonCode::SharedSubscriptionsNotSupported)
        } else {
            None
        }
    }

    /// Notes the subscription in the session. Says whether it was there before.
    fn remember(&self, filter: &SubscriptionFilter, options: SubscribeOptions, id: u32) -> bool {
        let mut subscriptions = self.session.subscriptions().lock();
        let subscription = Subscription {
            filter: filter.clone(),
            options,
            id,
        };
        match subscriptions
            .iter_mut()
            .find(|known| known.filter == *filter)
        {
            Some(known) => {
                *known = subscription;
                true
            }
            None => {
                subscriptions.reserve_exact(1);
                subscriptions.push(subscription);
                false
            }
        }
    }

    /// Sends an acknowledgement, under the lease.
    async fn acknowledge(&self, packet: Packet) {
        debug_assert!(matches!(
            self.version,
            Version::V3 | Version::V4 | Version::V5
        ));
        while !self.worker.shared.cluster().lease().held() {
            tokio::time::sleep(LEASE_PAUSE).await;
        }
        let mut output = self.session.output().lock();
        if self.session.epoch() != self.epoch {
            return;
        }
        output.send(&packet);
        let dirty = output.needs_flush();
        drop(output);
        if dirty {
            mark_dirty(&self.session);
        }
        flush_dirty();
    }
}
