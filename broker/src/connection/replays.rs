//! Retained messages that subscriptions of one connection still have to get, in the order in which they were asked for. A
//! client may ask for thousands in one packet, so nothing here looks at all of them for each.

use std::collections::BTreeMap;

use flotte_mqtt::topic::TopicFilter;
use foldhash::fast::RandomState;
use hashbrown::HashMap;

use crate::router::Replay;

/// Up to this many, those that nobody wants any more are not looked for.
const KEPT_MIN: usize = 64;

/// Replays that have not begun, one for each filter: so they are bounded by the subscriptions of the session, twice over.
#[derive(Default)]
pub(super) struct Replays {
    waiting: BTreeMap<u64, Replay>,
    numbers: HashMap<TopicFilter, u64, RandomState>,
    /// Of the next one.
    number: u64,
    /// How many there may be before those are dropped that nobody wants.
    sweep_at: usize,
}

impl Replays {
    /// Adds one. One of the same filter that has not begun serves for both.
    pub(super) fn push(&mut self, replay: Replay) {
        if let Some(number) = self.numbers.get(&replay.filter) {
            self.waiting.insert(*number, replay);
            return;
        }
        if self.waiting.len() >= self.sweep_at.max(KEPT_MIN) {
            self.waiting.retain(|_, replay| replay.is_current());
            let waiting = &self.waiting;
            self.numbers
                .retain(|_, number| waiting.contains_key(number));
            self.sweep_at = 2 * self.waiting.len();
        }
        self.numbers.insert(replay.filter.clone(), self.number);
        self.waiting.insert(self.number, replay);
        self.number += 1;
    }

    /// Takes out the first.
    pub(super) fn pop(&mut self) -> Option<Replay> {
        let (_, replay) = self.waiting.pop_first()?;
        self.numbers.remove(&replay.filter);
        Some(replay)
    }
}
