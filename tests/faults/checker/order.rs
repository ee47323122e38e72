//! P9: at each subscriber's connection, the messages of one publishing connection, topic and QoS come in the order in which
//! they were sent; and QoS 2 comes once. Replays of retained messages stand outside of that order.

use std::collections::{BTreeMap, BTreeSet};

use super::view::Connection;
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
        if *before > message.number {
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

#[cfg(test)]
mod tests {
    use super::super::script::{Script, count};
    use super::check;
    use crate::history::What;

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

    #[test]
    fn qos_2_twice_is_a_violation() {
        assert_eq!(count(&three_sent().gets(30, 1, 1).gets(31, 1, 1), check), 1);
    }
}
