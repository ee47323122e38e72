//! `$SYS`: what this node says of itself and of its cluster, under Mosquitto's names. It goes to the clients of this node
//! only: a value to a new subscriber at once, as if it were retained, and to all when it has changed, at QoS 0. Nothing of it
//! passes through the log or to other nodes, and without a subscriber nothing is gathered. Shared subscriptions get none.

mod census;
mod load;
mod reading;

pub use census::Census;

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotte_mqtt::property::Properties;
use flotte_mqtt::session::Message;
use flotte_mqtt::topic::{TopicFilter, TopicName};
use flotte_mqtt::{ClientId, QoS};
use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;

use crate::config::sys::Config;
use crate::connection::Shared;
use crate::router::Outgoing;
use crate::session::flush_dirty;
use load::Loads;
use reading::Reading;

/// Subscribers that come within this time get the same reading: to gather one walks over all sessions.
const FRESH: Duration = Duration::from_secs(1);

/// Whether a filter asks for topics of `$SYS`: no wildcard in the first level does [MQTT-4.7.2-1].
pub fn concerns(filter: &TopicFilter) -> bool {
    filter.levels().next() == Some("$SYS")
}

/// The `$SYS` topics of this node.
pub struct Sys {
    shared: Weak<Shared>,
    interval: Duration,
    state: Mutex<State>,
}

struct State {
    loads: Loads,
    /// What the subscribers were told last; none while there are none.
    told: Option<Arc<Reading>>,
    /// The last reading, and when it was taken.
    last: Option<(Instant, Arc<Reading>)>,
}

impl Sys {
    /// None if it is turned off.
    pub fn new(config: &Config, shared: &Arc<Shared>) -> Option<Arc<Sys>> {
        if config.interval_s == 0 {
            return None;
        }
        let interval = Duration::from_secs(u64::from(config.interval_s));
        Some(Arc::new(Sys {
            shared: Arc::downgrade(shared),
            interval,
            state: Mutex::new(State {
                loads: Loads::new(interval),
                told: None,
                last: None,
            }),
        }))
    }

    /// Tells subscribers of every change, once in each interval.
    pub async fn run(self: Arc<Self>) {
        let mut tick = tokio::time::interval(self.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let Some(shared) = self.shared.upgrade() else {
                return;
            };
            self.turn(&shared);
        }
    }

    fn turn(&self, shared: &Arc<Shared>) {
        let mut state = self.state.lock();
        state.loads.turn(&load::Totals::now());
        if !shared.router.has_sys_subscribers() {
            (state.told, state.last) = (None, None);
            return;
        }
        let reading = Arc::new(Reading::gather(shared, &state.loads));
        state.last = Some((Instant::now(), Arc::clone(&reading)));
        // Whoever subscribed had its values then.
        let told = state.told.replace(Arc::clone(&reading));
        drop(state);
        let Some(told) = told else { return };
        for (topic, value) in reading.changes_since(&told) {
            if let Ok(topic) = TopicName::try_from(topic) {
                shared.router.deliver_all(&outgoing(topic, value.clone()));
            }
        }
        flush_dirty(shared.cluster().lease());
    }

    /// What a new subscriber gets at once.
    pub fn matching(&self, filter: &TopicFilter) -> Vec<Message> {
        let Some(shared) = self.shared.upgrade() else {
            return Vec::new();
        };
        let reading = self.fresh(&shared);
        reading
            .values()
            .filter_map(|(topic, value)| Some((TopicName::try_from(topic).ok()?, value.clone())))
            .filter(|(topic, _)| filter.matches(topic))
            .map(|(topic, value)| message(topic, value))
            .collect()
    }

    fn fresh(&self, shared: &Arc<Shared>) -> Arc<Reading> {
        let mut state = self.state.lock();
        let reading = match &state.last {
            Some((at, reading)) if at.elapsed() < FRESH => Arc::clone(reading),
            _ => {
                let reading = Arc::new(Reading::gather(shared, &state.loads));
                state.last = Some((Instant::now(), Arc::clone(&reading)));
                reading
            }
        };
        state.told.get_or_insert_with(|| Arc::clone(&reading));
        reading
    }
}

fn message(topic: TopicName, payload: Bytes) -> Message {
    Message {
        topic,
        payload,
        properties: Properties::new(),
        qos: QoS::AtMostOnce,
        retain: true,
        publisher: ClientId::default(),
        expires_at_ms: None,
    }
}

fn outgoing(topic: TopicName, payload: Bytes) -> Outgoing {
    Outgoing {
        topic,
        payload,
        properties: Properties::new(),
        qos: QoS::AtMostOnce,
        retain: true,
        publisher: ClientId::default(),
        expires_at_ms: None,
        retain_index: 0,
        will: None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn no_wildcard_in_the_first_level_asks_for_it() {
        for (filter, wanted) in [
            ("$SYS/#", true),
            ("$SYS/broker/+", true),
            ("$SYS", true),
            ("#", false),
            ("+/broker/uptime", false),
            ("$SYSTEM/x", false),
            ("a/$SYS/x", false),
        ] {
            let parsed = TopicFilter::try_from(filter).unwrap();
            assert_eq!(concerns(&parsed), wanted, "{filter}");
        }
    }
}
