//! Retained messages for a new subscription, page by page, as fast as the session takes them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotte_cluster::handle::Refused;
use flotte_cluster::meta::Retained;
use flotte_mqtt::property::{Context, Properties};
use flotte_mqtt::session::{Delivery, Message};
use flotte_mqtt::topic::{TopicFilter, TopicName};
use flotte_mqtt::{ByteStr, ClientId, QoS};
use smallvec::SmallVec;

use super::Router;
use crate::session::{Session, now_ms};

/// Messages read under one lock.
const PAGE: usize = 128;
/// Copies in the session's queue above which the next page waits.
const BACKLOG_MAX: usize = 1_000;
const BACKLOG_PAUSE: Duration = Duration::from_millis(5);

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
}

impl Router {
    /// Sends all retained messages that match. To be called after the subscription's barrier.
    pub async fn replay(&self, replay: Replay) -> Result<(), Refused> {
        // Begun after the barrier: what is retained later comes live.
        let upto = self.cluster().read_index().await?;
        let mut cursor: Option<String> = None;
        loop {
            let mut page = Vec::new();
            cursor = self.cluster().retained_page(
                &replay.filter,
                cursor.as_deref(),
                PAGE,
                &mut |_, retained| {
                    if retained.index <= upto {
                        page.push(retained.clone());
                    }
                },
            );
            if !deliver(&replay, page) || cursor.is_none() {
                return Ok(());
            }
            while replay.session.output().lock().counts().0 > BACKLOG_MAX {
                if !is_current(&replay) {
                    return Ok(());
                }
                tokio::time::sleep(BACKLOG_PAUSE).await;
            }
        }
    }
}

fn is_current(replay: &Replay) -> bool {
    replay.session.epoch() == replay.epoch && !replay.session.is_ended()
}

/// False = the session is not the same any more.
fn deliver(replay: &Replay, page: Vec<Retained>) -> bool {
    let now = now_ms();
    let mut output = replay.session.output().lock();
    if !is_current(replay) {
        return false;
    }
    for retained in page {
        let Some(message) = message_of(retained) else {
            continue;
        };
        let qos = message.qos.min(replay.qos);
        let subscription_ids = if replay.id == 0 {
            SmallVec::new()
        } else {
            SmallVec::from_elem(replay.id, 1)
        };
        output.enqueue(
            Delivery {
                message: Arc::new(message),
                qos,
                retain: true,
                subscription_ids,
                share: false,
            },
            now,
        );
    }
    output.flush(now);
    true
}

/// None = it cannot be read; it was checked before it was committed.
fn message_of(retained: Retained) -> Option<Message> {
    let retain = retained.retain;
    Some(Message {
        topic: TopicName::parse(ByteStr::try_from(retain.topic).ok()?).ok()?,
        payload: retain.payload,
        properties: properties_from(retain.properties)?,
        qos: QoS::try_from(u8::try_from(retain.qos).ok()?).ok()?,
        retain: true,
        publisher: ClientId::try_from(retain.publisher).ok()?,
        expires_at_ms: Some(retain.expires_at_ms).filter(|at| *at != 0),
    })
}

/// Properties as nodes send them to each other.
pub(super) fn properties_from(mut bytes: Bytes) -> Option<Properties> {
    Properties::decode(&mut bytes, Context::Publish).ok()
}
