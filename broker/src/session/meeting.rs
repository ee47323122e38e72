//! Retained messages reach a client that subscribes on two ways: replayed, and live from publishers that are at it just then.
//! Here is kept which came on which way, so that none comes on both, and none behind a later one of its topic.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::hash::BuildHasher as _;

use flotte_mqtt::QoS;
use foldhash::quality::RandomState;

/// So many are kept in mind of each way. A client that is that slow may get one twice.
const KEPT_MAX: usize = 10_000;

/// A message whose index is that far below the one at which its replay began has long been placed: it comes live no more.
const RECENT_INDEXES: u64 = 10_000;

/// What came to one session since it began to subscribe, by a hash of the topic.
#[derive(Debug, Default)]
pub(super) struct Meeting {
    /// None = no replay is to come: one that is asked for later shows what came live before it, too.
    live: Option<HashMap<u64, Live, RandomState>>,
    replayed: HashMap<u64, Shown, RandomState>,
    /// Of live messages.
    arrivals: u64,
    hasher: RandomState,
}

/// The latest message of a topic that came live.
#[derive(Debug, Clone, Copy)]
struct Live {
    index: u64,
    arrival: u64,
}

/// What was replayed of a topic.
#[derive(Debug, Clone, Copy)]
struct Shown {
    index: u64,
    /// Of its copies, one bit for each QoS; 0 = in forms that do not come live.
    qos: u8,
    id: u32,
    is_alone: bool,
    /// An older one came live behind it.
    is_overtaken: bool,
}

/// A retained message that is being replayed.
#[derive(Debug, Clone, Copy)]
pub struct Replayed {
    /// The meta index at which it was retained.
    pub index: u64,
    /// That of the replay.
    pub upto: u64,
    /// No other subscription of the session matches its topic: what is older was sent before this one was acknowledged.
    pub is_alone: bool,
}

impl Replayed {
    /// Whether it may still come live.
    pub fn is_recent(index: u64, upto: u64) -> bool {
        index > upto.saturating_sub(RECENT_INDEXES)
    }
}

/// A copy for the client: two of the same form differ in their RETAIN flag at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

    fn qos_bit(self) -> u8 {
        1 << u8::from(self.qos)
    }
}

impl Shown {
    fn new(message: &Replayed, form: Form) -> Shown {
        Shown {
            index: message.index,
            qos: form.qos_bit(),
            id: form.id,
            is_alone: message.is_alone,
            is_overtaken: false,
        }
    }

    fn add(&mut self, form: Form) {
        self.qos = if self.id == form.id {
            self.qos | form.qos_bit()
        } else {
            0
        };
        self.is_alone = false;
    }

    fn has(&self, form: Option<Form>) -> bool {
        form.is_some_and(|form| form.id == self.id && self.qos & form.qos_bit() != 0)
    }

    /// Whether a message of its topic comes live behind it.
    fn lets_live(&mut self, index: u64, form: Option<Form>) -> bool {
        match index.cmp(&self.index) {
            Ordering::Greater => true,
            Ordering::Equal => self.is_overtaken || !self.has(form),
            Ordering::Less => {
                self.is_overtaken |= !self.is_alone;
                !self.is_alone
            }
        }
    }
}

impl Meeting {
    /// From now on messages come on both ways. Returns since when, for the replay.
    pub fn begin(&mut self) -> u64 {
        self.live.get_or_insert_default();
        self.arrivals
    }

    /// All replays are over.
    pub fn end(&mut self) {
        self.live = None;
    }

    /// A message retained at this meta index comes live. False = the client has the same copy, or a later one, by replay.
    pub fn comes_live(&mut self, index: u64, topic: &str, form: Option<Form>) -> bool {
        if self.live.is_none() && self.replayed.is_empty() {
            return true;
        }
        let topic = self.hasher.hash_one(topic);
        let shown = self.replayed.get_mut(&topic);
        let is_new = shown.is_none_or(|shown| shown.lets_live(index, form));
        if let Some(live) = &mut self.live
            && is_new
        {
            self.arrivals += 1;
            let arrival = self.arrivals;
            let has_room = live.len() < KEPT_MAX;
            match live.get_mut(&topic) {
                Some(latest) if latest.index <= index => *latest = Live { index, arrival },
                None if has_room => drop(live.insert(topic, Live { index, arrival })),
                _ => {}
            }
        }
        is_new
    }

    /// Whether such a message, or a later one of its topic, came live since.
    pub fn came_live(&self, index: u64, topic: &str, since: u64) -> bool {
        let live = self.live.as_ref();
        let latest = live.and_then(|live| live.get(&self.hasher.hash_one(topic)));
        latest.is_some_and(|latest| latest.index >= index && latest.arrival > since)
    }

    /// Such a message is replayed in this form.
    pub fn is_replayed(&mut self, message: &Replayed, topic: &str, form: Option<Form>) {
        let Some(form) = form.filter(|_| Replayed::is_recent(message.index, message.upto)) else {
            return;
        };
        let topic = self.hasher.hash_one(topic);
        let has_room = self.replayed.len() < KEPT_MAX;
        match self.replayed.get_mut(&topic) {
            Some(shown) if shown.index == message.index => shown.add(form),
            Some(shown) => *shown = Shown::new(message, form),
            None if has_room => drop(self.replayed.insert(topic, Shown::new(message, form))),
            None => {}
        }
    }

    /// Whether something was replayed that may still come live.
    pub fn has_replayed(&self) -> bool {
        !self.replayed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: Form = Form {
        qos: QoS::AtLeastOnce,
        id: 0,
    };

    fn replayed(index: u64) -> Replayed {
        Replayed {
            index,
            upto: 9,
            is_alone: true,
        }
    }

    #[test]
    fn message_that_came_live_is_known_by_index_and_topic_until_the_replays_are_over() {
        let mut meeting = Meeting::default();
        let since = meeting.begin();
        assert!(meeting.comes_live(7, "a", Some(FORM)));
        assert!(meeting.came_live(7, "a", since));
        assert!(!meeting.came_live(7, "b", since));
        assert!(!meeting.came_live(8, "a", since));
        meeting.end();
        meeting.comes_live(9, "a", Some(FORM));
        let since = meeting.begin();
        assert!(!meeting.came_live(7, "a", since) && !meeting.came_live(9, "a", since));
    }

    #[test]
    fn older_message_is_not_replayed_behind_a_live_one_of_its_topic() {
        let mut meeting = Meeting::default();
        let since = meeting.begin();
        meeting.comes_live(20, "a", Some(FORM));
        meeting.comes_live(15, "a", Some(FORM));
        assert!(meeting.came_live(5, "a", since) && meeting.came_live(20, "a", since));
        assert!(!meeting.came_live(21, "a", since));
    }

    #[test]
    fn what_came_live_before_a_subscription_is_replayed_to_it() {
        let mut meeting = Meeting::default();
        let first = meeting.begin();
        meeting.comes_live(7, "a", Some(FORM));
        let second = meeting.begin();
        assert!(meeting.came_live(7, "a", first));
        assert!(!meeting.came_live(7, "a", second));
    }

    #[test]
    fn message_that_was_replayed_does_not_come_live_in_the_same_form() {
        let mut meeting = Meeting::default();
        meeting.is_replayed(&replayed(7), "a", Some(FORM));
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
    fn message_that_two_subscriptions_had_replayed_comes_live_in_neither_form() {
        let mut meeting = Meeting::default();
        let other = Form {
            qos: QoS::ExactlyOnce,
            ..FORM
        };
        meeting.is_replayed(&replayed(7), "a", Some(FORM));
        meeting.is_replayed(&replayed(7), "a", Some(other));
        assert!(!meeting.comes_live(7, "a", Some(FORM)));
        assert!(!meeting.comes_live(7, "a", Some(other)));
    }

    #[test]
    fn older_message_does_not_come_live_behind_a_replayed_one() {
        let mut meeting = Meeting::default();
        meeting.is_replayed(&replayed(7), "a", Some(FORM));
        assert!(!meeting.comes_live(6, "a", Some(FORM)));
        assert!(!meeting.comes_live(7, "a", Some(FORM)));
    }

    #[test]
    fn older_message_that_another_subscription_wants_comes_and_the_later_one_again_behind_it() {
        let mut meeting = Meeting::default();
        let shared = Replayed {
            is_alone: false,
            ..replayed(7)
        };
        meeting.is_replayed(&shared, "a", Some(FORM));
        assert!(meeting.comes_live(6, "a", Some(FORM)));
        assert!(meeting.comes_live(7, "a", Some(FORM)));
    }

    #[test]
    fn what_was_retained_long_ago_is_not_kept_in_mind() {
        let mut meeting = Meeting::default();
        let old = Replayed {
            upto: RECENT_INDEXES + 1,
            ..replayed(1)
        };
        meeting.is_replayed(&old, "a", Some(FORM));
        assert!(!meeting.has_replayed());
    }

    #[test]
    fn both_ways_are_bounded() {
        let mut meeting = Meeting::default();
        meeting.begin();
        for index in 1..=2 * KEPT_MAX as u64 {
            let topic = index.to_string();
            meeting.comes_live(index, &topic, None);
            meeting.is_replayed(&replayed(index), &topic, Some(FORM));
        }
        assert_eq!(
            (meeting.live.map(|live| live.len()), meeting.replayed.len()),
            (Some(KEPT_MAX), KEPT_MAX)
        );
    }
}
