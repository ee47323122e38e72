//! P1 (live part) and P3: what was acknowledged reaches every live subscriber whose SUBACK came before it was sent.
//!
//! PUBACK says that the message is in the outbound queue of each matched live session, and that queue is in order. So a
//! subscriber whose connection lives to the end gets it; and one whose connection ends earlier, which excuses what was
//! still queued, got it before anything that was sent after the acknowledgement. Of messages without a number (deletes of
//! retained ones) nobody can tell which came, and brief ones may expire on their way: neither is demanded.

use std::collections::BTreeSet;

use super::view::{Connection, Message, Micros};
use super::{View, Violation};
use crate::history::Body;

pub fn check(view: &View<'_>) -> Vec<Violation> {
    let demanded = view
        .connections
        .values()
        .flat_map(|subscriber| demands(view, subscriber));
    demanded.filter_map(Demand::violation).collect()
}

/// How many pairs of a message and a subscriber were judged by P1, and by P3.
pub fn judged(view: &View<'_>) -> [usize; 2] {
    let demanded: Vec<_> = view
        .connections
        .values()
        .flat_map(|one| demands(view, one))
        .collect();
    ["P1", "P3"].map(|promise| {
        demanded
            .iter()
            .filter(|demand| demand.promise == promise)
            .count()
    })
}

/// A message that has to come to a subscriber.
struct Demand<'a> {
    promise: &'static str,
    message: &'a Message,
    subscriber: &'a Connection,
    came: bool,
}

fn demands<'a>(view: &'a View<'_>, subscriber: &'a Connection) -> Vec<Demand<'a>> {
    if subscriber.subscriptions.is_empty() {
        return Vec::new();
    }
    let deliveries = subscriber.deliveries.iter();
    let got: BTreeSet<u64> = deliveries.map(|delivery| delivery.message).collect();
    let vouched = newest_sent(view, subscriber);
    let lives = view
        .settled
        .is_some_and(|settled| subscriber.lives_until(settled));
    let demand = |message: &'a Message| {
        let acked = message.acked?;
        let (subscribed, qos) = subscriber.subscribed(&message.topic)?;
        if qos == 0 || message.sent <= subscribed || message.body != Body::Number {
            return None;
        }
        let promise = if lives {
            "P1"
        } else if acked < vouched {
            "P3"
        } else {
            return None;
        };
        Some(Demand {
            promise,
            message,
            subscriber,
            came: got.contains(&message.number),
        })
    };
    view.messages.values().filter_map(demand).collect()
}

impl Demand<'_> {
    fn violation(self) -> Option<Violation> {
        let Self {
            promise,
            message,
            subscriber,
            came,
        } = self;
        let how = match promise {
            "P1" => "whose connection lives",
            _ => "which got what was sent after the acknowledgement",
        };
        let what = format!(
            "message {} on {} of #{} was acknowledged and never came to #{} of {} at n{}, {how}",
            message.number,
            message.topic,
            message.conn,
            subscriber.number,
            subscriber.client,
            subscriber.node
        );
        let conns = vec![message.conn, subscriber.number];
        (!came).then_some(Violation {
            promise,
            what,
            conns,
            message: Some(message.number),
        })
    }
}

/// When the newest message was sent that came to this connection live, in a queue with others of QoS 1 and 2.
fn newest_sent(view: &View<'_>, subscriber: &Connection) -> Micros {
    let live = subscriber
        .deliveries
        .iter()
        .filter(|delivery| delivery.qos > 0 && !delivery.retain);
    let sent = live.filter_map(|delivery| view.messages.get(&delivery.message));
    sent.map(|message| message.sent).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::script::{Script, count};
    use super::check;
    use crate::history::Side;

    /// A subscriber #1 of everything at n1 and a publisher #2 at n2.
    fn pair() -> Script {
        Script::default()
            .connects(0, 1, 1)
            .connects(0, 2, 2)
            .subscribed(10, 1, "#")
    }

    #[test]
    fn what_was_acknowledged_and_came_is_fine() {
        let script = pair()
            .sends(20, 2, 1)
            .gets(30, 1, 1)
            .acked(31, 2, 1)
            .settled(99);
        assert_eq!(count(&script, check), 0);
    }

    #[test]
    fn what_was_not_acknowledged_or_was_refused_may_be_lost() {
        let script = pair()
            .sends(20, 2, 1)
            .sends(21, 2, 2)
            .acked_with(22, 2, 2, 0x97)
            .settled(99);
        assert_eq!(count(&script, check), 0);
    }

    #[test]
    fn what_was_sent_before_suback_or_matches_no_filter_may_be_missed() {
        let script = Script::default()
            .connects(0, 1, 1)
            .connects(0, 2, 2)
            .sends(5, 2, 1);
        let script = script
            .subscribed(10, 1, "#")
            .subscribed(11, 2, "other")
            .acked(12, 2, 1)
            .settled(99);
        assert_eq!(count(&script, check), 0);
    }

    #[test]
    fn what_was_still_queued_when_the_connection_ended_is_excused() {
        let script = pair()
            .sends(20, 2, 1)
            .acked(30, 2, 1)
            .ended(31, 1, Side::Broker)
            .settled(99);
        assert_eq!(count(&script, check), 0);
    }

    #[test]
    fn acknowledged_message_that_never_came_to_a_living_connection_is_a_violation() {
        let script = pair().sends(20, 2, 1).acked(30, 2, 1).settled(99);
        assert_eq!(count(&script, check), 1);
    }

    #[test]
    fn each_subscriber_counts_for_itself() {
        let script = pair()
            .connects(10, 3, 3)
            .subscribed(11, 3, "+")
            .sends(20, 2, 1)
            .gets(22, 1, 1);
        assert_eq!(count(&script.acked(30, 2, 1).settled(99), check), 1);
    }

    #[test]
    fn end_after_the_settled_time_is_no_excuse() {
        let script = pair()
            .sends(20, 2, 1)
            .acked(30, 2, 1)
            .settled(99)
            .ended(100, 1, Side::Client);
        assert_eq!(count(&script, check), 1);
    }

    #[test]
    fn gap_before_a_later_message_is_a_violation_though_the_connection_ended() {
        let script = pair()
            .sends(20, 2, 1)
            .acked(30, 2, 1)
            .sends(31, 2, 2)
            .gets(32, 1, 2);
        assert_eq!(
            count(&script.ended(33, 1, Side::Broker).settled(99), check),
            1
        );
    }

    #[test]
    fn gap_before_a_message_that_was_sent_earlier_is_excused() {
        let script = pair()
            .sends(20, 2, 1)
            .sends(29, 2, 2)
            .acked(30, 2, 1)
            .gets(32, 1, 2);
        assert_eq!(
            count(&script.ended(33, 1, Side::Broker).settled(99), check),
            0
        );
    }
}
