//! P9: at each subscriber's connection, the messages of one publishing connection, topic and QoS come in the order in which
//! they were sent; and QoS 2 comes once. Replays of retained messages stand outside of that order, and so does what came to a
//! member of a shared subscription when it may have been with another first: what that one held comes behind what came
//! meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use super::shared::{may_be_handed_over, shared_filter};
use super::view::{Connection, matches};
use super::{View, Violation};

pub fn check(view: &View<'_>) -> Vec<Violation> {
    view.connections
        .values()
        .flat_map(|subscriber| out_of_order(view, subscriber))
        .collect()
}

fn out_of_order(view: &View<'_>, subscriber: &Connection) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    let mut newest = BTreeMap::new();
    for delivery in subscriber
        .deliveries
        .iter()
        .filter(|delivery| !delivery.retain)
    {
        let Some(message) = view.messages.get(&delivery.message) else {
            continue;
        };
        let mut report = |what: String| {
            found.push(Violation {
                promise: "P9",
                what,
                conns: vec![message.conn, subscriber.number],
                message: Some(message.number),
            });
        };
        if !seen.insert(message.number) {
            if delivery.qos == 2 {
                report(format!(
                    "message {} of QoS 2 came to #{} twice",
                    message.number, subscriber.number
                ));
            }
            continue;
        }
        let stream = (message.conn, message.topic.as_str(), message.qos);
        // Numbers of one connection rise in the order of sending.
        let before = newest.entry(stream).or_insert(message.number);
        let is_late = *before > message.number;
        let excused = || {
            is_shared(subscriber, &message.topic)
                && may_be_handed_over(view, message.sent, delivery.at)
        };
        if is_late && !excused() {
            let Connection { number, node, .. } = subscriber;
            report(format!(
                "message {} came to #{number} at n{node} behind {before}, which was sent later",
                message.number
            ));
        }
        *before = message.number.max(*before);
    }
    found
}

/// Whether the topic comes to this connection as a member of a group.
fn is_shared(subscriber: &Connection, topic: &str) -> bool {
    let mut asked = subscriber.asked.iter();
    asked.any(|(_, asked)| shared_filter(asked).is_some_and(|filter| matches(filter, topic)))
}

#[cfg(test)]
mod tests {
    use super::super::script::{Script, count};
    use super::check;
    use crate::history::{Kind, Phase, Side, What};

    fn three_sent() -> Script {
        let script = Script::default()
            .connects(0, 1, 1)
            .connects(0, 2, 2)
            .subscribed(10, 1, "#");
        script.sends(20, 2, 1).sends(21, 2, 2).sends(22, 2, 3)
    }

    #[test]
    fn order_of_sending_is_fine_with_gaps_too() {
        assert_eq!(
            count(
                &three_sent().gets(30, 1, 1).gets(31, 1, 2).gets(32, 1, 3),
                check
            ),
            0
        );
        assert_eq!(count(&three_sent().gets(30, 1, 1).gets(31, 1, 3), check), 0);
    }

    #[test]
    fn publishers_are_independent() {
        let script = three_sent().connects(23, 3, 3).sends(24, 3, 4);
        assert_eq!(count(&script.gets(30, 1, 4).gets(31, 1, 1), check), 0);
    }

    #[test]
    fn qos_1_may_come_again() {
        let topic = || "t".to_owned();
        let got = |message| What::Delivered {
            message,
            topic: topic(),
            qos: 1,
            dup: false,
            retain: false,
        };
        let script = three_sent()
            .add(30, 1, got(1))
            .add(31, 1, got(2))
            .add(32, 1, got(1));
        assert_eq!(count(&script, check), 0);
    }

    #[test]
    fn later_message_first_is_a_violation() {
        assert_eq!(count(&three_sent().gets(30, 1, 2).gets(31, 1, 1), check), 1);
        assert_eq!(
            count(
                &three_sent().gets(30, 1, 3).gets(31, 1, 1).gets(32, 1, 2),
                check
            ),
            2
        );
    }

    /// Members #1 and #2, and messages 1 and 2 of #3.
    fn shared() -> Script {
        let script = Script::default().connects(0, 1, 1).connects(0, 2, 2);
        let script = script.subscribed(10, 1, "$share/g/+");
        let script = script.subscribed(10, 2, "$share/g/+").connects(20, 3, 3);
        script.sends_shared(9_000, 3, 1).sends_shared(9_001, 3, 2)
    }

    #[test]
    fn message_that_another_member_may_have_held_may_come_late() {
        let script = shared().gets(9_010, 1, 2).ended(9_020, 2, Side::Client);
        assert_eq!(count(&script.gets(9_030, 1, 1), check), 0);
        let script = shared().gets(9_010, 1, 2);
        let script = script.fault(9_020, 2, Kind::PauseLong, Phase::Begins);
        assert_eq!(count(&script.gets(12_000, 1, 1), check), 0);
    }

    #[test]
    fn later_message_first_is_a_violation_at_a_member_too() {
        let script = shared().gets(9_010, 1, 2).gets(9_030, 1, 1);
        assert_eq!(count(&script, check), 1);
        // Whatever happened long before.
        let script = Script::default().connects(0, 1, 1).connects(0, 2, 2);
        let script = script.subscribed(10, 1, "$share/g/+");
        let script = script.subscribed(10, 2, "$share/g/+").connects(20, 3, 3);
        let script = script.ended(1_000, 2, Side::Client);
        let script = script.sends_shared(9_000, 3, 1).sends_shared(9_001, 3, 2);
        let script = script.gets(9_010, 1, 2).gets(9_030, 1, 1);
        assert_eq!(count(&script, check), 1);
    }

    #[test]
    fn end_of_a_member_excuses_nobody_else() {
        let script = three_sent()
            .connects(23, 4, 4)
            .subscribed(24, 4, "$share/g/+");
        let script = script.ended(25, 4, Side::Client);
        assert_eq!(count(&script.gets(30, 1, 2).gets(31, 1, 1), check), 1);
    }

    #[test]
    fn qos_2_twice_is_a_violation() {
        assert_eq!(count(&three_sent().gets(30, 1, 1).gets(31, 1, 1), check), 1);
    }
}
