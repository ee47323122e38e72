//! Retained messages reach a client that subscribes on two ways: replayed, and live from publishers that are at it just then.
//! Here is kept which came on which way, so that none comes on both.

use std::collections::HashSet;
use std::hash::BuildHasher as _;

use flotte_mqtt::QoS;
use foldhash::quality::RandomState;

/// So many are kept in mind of each way. A client that is that slow may get one twice.
const KEPT_MAX: usize = 10_000;

/// A message whose index is that far below the one at which its replay began has long been placed: it comes live no more.
const RECENT_INDEXES: u64 = 10_000;

/// What came to one session since it began to subscribe. What is committed together has one meta index, so topics count too.
#[derive(Debug, Default)]
pub(super) struct Meeting {
    /// None = no replay is to come: one that is asked for later shows what came live before it, too.
    live: Option<HashSet<u64, RandomState>>,
    replayed: HashSet<u64, RandomState>,
    hasher: RandomState,
}

/// A copy for the client: two of the same form differ in their RETAIN flag at most.
#[derive(Debug, Clone, Copy, Hash)]
pub struct Form {
    /// Its QoS.
    pub qos: QoS,
    /// Its subscription identifier; 0 = none.
    pub id: u32,
}

impl Form {
    /// None = the copy of several subscriptions, which no replay makes.
    pub fn new(qos: QoS, ids: &[u32]) -> Option<Form> {
        match ids {
            [] => Some(Form { qos, id: 0 }),
            [id] => Some(Form { qos, id: *id }),
            _ => None,
        }
    }
}

impl Meeting {
    /// From now on messages come on both ways.
    pub fn begin(&mut self) {
        self.live.get_or_insert_default();
    }

    /// All replays are over.
    pub fn end(&mut self) {
        self.live = None;
    }

    /// A message retained at this meta index comes live. False = the client has the same copy by replay.
    pub fn comes_live(&mut self, index: u64, topic: &str, form: Option<Form>) -> bool {
        let is_new = form.is_none_or(|form| {
            self.replayed.is_empty() || !self.replayed.contains(&self.of_replay(index, topic, form))
        });
        if let Some(live) = &mut self.live
            && is_new
            && live.len() < KEPT_MAX
        {
            live.insert(self.hasher.hash_one((index, topic)));
        }
        is_new
    }

    /// Whether such a message came live already.
    pub fn came_live(&self, index: u64, topic: &str) -> bool {
        let live = self.live.as_ref();
        live.is_some_and(|live| live.contains(&self.hasher.hash_one((index, topic))))
    }

    /// Such a message is replayed in this form, by a replay of what there was at `upto`.
    pub fn is_replayed(&mut self, index: u64, upto: u64, topic: &str, form: Option<Form>) {
        let is_recent = index > upto.saturating_sub(RECENT_INDEXES);
        if let Some(form) = form
            && is_recent
            && self.replayed.len() < KEPT_MAX
        {
            let key = self.of_replay(index, topic, form);
            self.replayed.insert(key);
        }
    }

    /// Whether something was replayed that may still come live.
    pub fn has_replayed(&self) -> bool {
        !self.replayed.is_empty()
    }

    fn of_replay(&self, index: u64, topic: &str, form: Form) -> u64 {
        self.hasher.hash_one((index, topic, form))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: Form = Form {
        qos: QoS::AtLeastOnce,
        id: 0,
    };

    #[test]
    fn message_that_came_live_is_known_by_index_and_topic_until_the_replays_are_over() {
        let mut meeting = Meeting::default();
        meeting.begin();
        assert!(meeting.comes_live(7, "a", Some(FORM)));
        assert!(meeting.came_live(7, "a"));
        assert!(!meeting.came_live(7, "b"));
        assert!(!meeting.came_live(8, "a"));
        meeting.end();
        meeting.comes_live(9, "a", Some(FORM));
        meeting.begin();
        assert!(!meeting.came_live(7, "a") && !meeting.came_live(9, "a"));
    }

    #[test]
    fn message_that_was_replayed_does_not_come_live_in_the_same_form() {
        let mut meeting = Meeting::default();
        meeting.is_replayed(7, 9, "a", Some(FORM));
        assert!(meeting.has_replayed());
        assert!(!meeting.comes_live(7, "a", Some(FORM)));
        assert!(meeting.comes_live(8, "a", Some(FORM)), "a later one");
        let other = Form { id: 1, ..FORM };
        assert!(
            meeting.comes_live(7, "a", Some(other)),
            "another subscription's"
        );
        assert!(
            meeting.comes_live(7, "a", None),
            "that of several subscriptions"
        );
    }

    #[test]
    fn what_was_retained_long_ago_is_not_kept_in_mind() {
        let mut meeting = Meeting::default();
        meeting.is_replayed(1, RECENT_INDEXES + 1, "a", Some(FORM));
        assert!(!meeting.has_replayed());
    }

    #[test]
    fn both_ways_are_bounded() {
        let mut meeting = Meeting::default();
        meeting.begin();
        for index in 1..=2 * KEPT_MAX as u64 {
            meeting.comes_live(index, "a", None);
            meeting.is_replayed(index, index, "a", Some(FORM));
        }
        assert_eq!(
            (meeting.live.map(|live| live.len()), meeting.replayed.len()),
            (Some(KEPT_MAX), KEPT_MAX)
        );
    }
}
