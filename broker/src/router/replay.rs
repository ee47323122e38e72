//! Retained messages for a new subscription, page by page, as fast as the session takes them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotte_cluster::handle::Refused;
use flotte_cluster::wire::RetainedMessage;
use flotte_mqtt::property::{Context, Properties};
use flotte_mqtt::session::{Delivery, Message};
use flotte_mqtt::topic::{TopicFilter, TopicName};
use flotte_mqtt::{ByteStr, ClientId, QoS};
use smallvec::SmallVec;

use super::Router;
use super::access::allowed_qos;
use crate::session::{Replayed, Session, now_ms};

/// Messages read under one lock.
const PAGE: usize = 128;
/// Into how many pages a second of a limited rate is cut.
const PAGES_A_SECOND: u32 = 10;
/// Subscriptions of a session that are asked whether they match, too.
const OTHERS_MAX: usize = 16;
/// After which it looks again for room in the session's queue, at first and at most: twice as long each time that the client has not read.
const BACKLOG_PAUSE: Duration = Duration::from_millis(5);
const BACKLOG_PAUSE_MAX: Duration = Duration::from_millis(160);

/// One replay.
#[derive(Debug, Clone)]
pub struct Replay {
    /// For whom.
    pub session: Arc<Session>,
    /// Which epoch of it: a later connection gets its own.
    pub epoch: u64,
    /// What.
    pub filter: TopicFilter,
    /// At most this QoS.
    pub qos: QoS,
    /// Identifier of the subscription; 0 = none.
    pub id: u32,
    /// What came live until then came before the subscription; see `Output::expect_replay`.
    pub since: u64,
    /// A ReadIndex of meta, begun after the subscription's barrier and ended before its SUBACK.
    pub upto: u64,
}

impl Router {
    /// Sends all retained messages that match, as they were at its index; what was retained later comes live.
    pub async fn replay(&self, replay: Replay) -> Result<(), Refused> {
        if crate::sys::concerns(&replay.filter) {
            // The values of this node; what bridges say of themselves is retained like other messages.
            let values = self.sys.get().map(|sys| sys.matching(&replay.filter));
            let values = values.into_iter().flatten().map(|one| (0, one)).collect();
            if !self.deliver(&replay, values).await {
                return Ok(());
            }
        }
        let page_max = self.retained_rate.map_or(PAGE, |rate| {
            PAGE.min(rate.get().div_ceil(PAGES_A_SECOND) as usize)
        });
        let mut cursor: Option<String> = None;
        loop {
            let mut page = Vec::new();
            cursor = self.cluster().retained_page(
                &replay.filter,
                cursor.as_deref(),
                page_max,
                &mut |retained, left_ms| {
                    if retained.index() <= replay.upto {
                        page.push((retained.clone(), left_ms));
                    }
                },
            );
            let now = now_ms();
            let page: VecDeque<(u64, Message)> = page
                .into_iter()
                .filter_map(|(retained, left_ms)| {
                    // What is left in state time is left on this node's clock too.
                    let expires_at_ms = left_ms.map(|left| now.saturating_add(left));
                    Some((
                        retained.index(),
                        message_of(retained.message(), expires_at_ms)?,
                    ))
                })
                .collect();
            let count = page.len();
            if !self.deliver(&replay, page).await || cursor.is_none() {
                return Ok(());
            }
            if let (Some(rate), 1..) = (self.retained_rate, count) {
                tokio::time::sleep(Duration::from_secs(count as u64) / rate.get()).await;
            }
        }
    }

    /// Puts a page into the session's queue as there is room. False = the session is not the same any more.
    async fn deliver(&self, replay: &Replay, mut page: VecDeque<(u64, Message)>) -> bool {
        let mut pause = BACKLOG_PAUSE;
        loop {
            let before = page.len();
            if !self.deliver_some(replay, &mut page) {
                return false;
            }
            if page.is_empty() {
                return true;
            }
            if page.len() < before {
                pause = BACKLOG_PAUSE;
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(BACKLOG_PAUSE_MAX);
        }
    }

    /// Takes from the page what there is room for now. False = the session is not the same any more.
    fn deliver_some(&self, replay: &Replay, page: &mut VecDeque<(u64, Message)>) -> bool {
        if !replay.is_subscribed() {
            return false;
        }
        let (rules, others) = (self.acl().rules(), replay.others());
        let now = now_ms();
        let mut output = replay.session.output().lock();
        if !replay.is_same_session() {
            return false;
        }
        while let Some((index, message)) =
            page.pop_front_if(|(_, message)| output.has_room_to_replay(message.held_bytes()))
        {
            let allowed = match &rules {
                None => Some(replay.qos),
                Some(rules) => allowed_qos(rules, &message.topic, &replay.session, replay.qos),
            };
            let Some(allowed) = allowed else { continue };
            let replayed = Replayed {
                index,
                upto: replay.upto,
                is_alone: Replayed::is_recent(index, replay.upto)
                    && is_alone(others.as_deref(), &message.topic),
            };
            let qos = message.qos.min(allowed);
            let subscription_ids = if replay.id == 0 {
                SmallVec::new()
            } else {
                SmallVec::from_elem(replay.id, 1)
            };
            let delivery = Delivery {
                message: Arc::new(message),
                qos,
                retain: true,
                subscription_ids,
                share: None,
            };
            output.enqueue_replayed(&replayed, replay.since, delivery, now);
        }
        output.flush(now, self.cluster().lease().held());
        true
    }
}

/// Whether none of the other subscriptions matches; None = there are too many to look.
fn is_alone(others: Option<&[TopicFilter]>, topic: &TopicName) -> bool {
    others.is_some_and(|others| !others.iter().any(|filter| filter.matches(topic)))
}

impl Replay {
    /// Whether it is still wanted: by the same connection, and not unsubscribed meanwhile [MQTT-3.10.4-2].
    pub fn is_current(&self) -> bool {
        self.is_subscribed() && self.is_same_session()
    }

    fn is_subscribed(&self) -> bool {
        let filter = self.filter.clone().into();
        self.session.subscriptions().lock().contains(&filter)
    }

    fn is_same_session(&self) -> bool {
        self.session.epoch() == self.epoch && !self.session.is_ended()
    }

    /// The other subscriptions of the session that messages reach in the same copy; None = too many to look.
    fn others(&self) -> Option<Vec<TopicFilter>> {
        let subscriptions = self.session.subscriptions().lock();
        let plain = subscriptions
            .iter()
            .filter(|(filter, _)| filter.share.is_none());
        let others = plain.filter(|(filter, _)| filter.filter != self.filter);
        let others = others.map(|(filter, _)| filter.filter.clone());
        let others: Vec<TopicFilter> = others.take(OTHERS_MAX + 1).collect();
        (others.len() <= OTHERS_MAX).then_some(others)
    }
}

/// None = it cannot be read; it was checked before it was committed.
fn message_of(retained: RetainedMessage, expires_at_ms: Option<u64>) -> Option<Message> {
    Some(Message {
        topic: TopicName::parse(ByteStr::try_from(retained.topic).ok()?).ok()?,
        payload: retained.payload,
        properties: properties_from(retained.properties)?,
        qos: QoS::try_from(u8::try_from(retained.qos).ok()?).ok()?,
        retain: true,
        publisher: ClientId::try_from(retained.publisher).ok()?,
        expires_at_ms,
    })
}

/// Properties as nodes send them to each other.
pub(super) fn properties_from(mut bytes: Bytes) -> Option<Properties> {
    Properties::decode(&mut bytes, Context::Publish).ok()
}
