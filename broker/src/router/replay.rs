//! Retained messages for a new subscription, page by page, as fast as the session takes them.

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
use crate::session::{Session, now_ms};

/// Messages read under one lock.
const PAGE: usize = 128;
/// Into how many pages a second of a limited rate is cut.
const PAGES_A_SECOND: u32 = 10;
/// Copies in the session's queue above which the next page waits.
const BACKLOG_MAX: usize = 1_000;
/// After which it looks again, at first and at most: twice as long each time that the client has not read.
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
            if !self.deliver(&replay, values) {
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
            let page: Vec<(u64, Message)> = page
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
            if !self.deliver(&replay, page) || cursor.is_none() {
                return Ok(());
            }
            if let (Some(rate), 1..) = (self.retained_rate, count) {
                tokio::time::sleep(Duration::from_secs(count as u64) / rate.get()).await;
            }
            let mut pause = BACKLOG_PAUSE;
            while replay.session.output().lock().counts().0 > BACKLOG_MAX {
                if !replay.is_current() {
                    return Ok(());
                }
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(BACKLOG_PAUSE_MAX);
            }
        }
    }
}

impl Replay {
    /// Whether it is still wanted: by the same connection, and not unsubscribed meanwhile [MQTT-3.10.4-2].
    pub fn is_current(&self) -> bool {
        let session = &self.session;
        let filter = self.filter.clone().into();
        let is_subscribed = session.subscriptions().lock().contains(&filter);
        is_subscribed && session.epoch() == self.epoch && !session.is_ended()
    }
}

impl Router {
    /// False = the session is not the same any more.
    fn deliver(&self, replay: &Replay, page: Vec<(u64, Message)>) -> bool {
        if !replay.is_current() {
            return false;
        }
        let rules = self.acl().rules();
        let now = now_ms();
        let mut output = replay.session.output().lock();
        for (index, message) in page {
            let allowed = match &rules {
                None => Some(replay.qos),
                Some(rules) => allowed_qos(rules, &message.topic, &replay.session, replay.qos),
            };
            let Some(allowed) = allowed else { continue };
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
            output.enqueue_replayed((index, replay.upto), delivery, now);
        }
        output.flush(now);
        true
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
