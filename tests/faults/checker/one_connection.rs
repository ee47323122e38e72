//! P4: of two connections of one client id the older is closed. A former owner that cannot be reached may serve it until
//! its lease ends, which is before T; later the older connection must get nothing, and it ends. Of two whose CONNECTs were
//! under way together nobody can tell which is the older: one of them is closed.

use std::collections::BTreeMap;

use super::view::{Connection, Micros};
use super::{MARGIN_MS, View, Violation};
use crate::schedule::NODE_DOWN_AFTER_MS;

const OVERLAP_MAX: Micros = (NODE_DOWN_AFTER_MS + MARGIN_MS) * 1_000;

pub fn check(view: &View<'_>) -> Vec<Violation> {
    let mut clients: BTreeMap<&str, Vec<(Micros, &Connection)>> = BTreeMap::new();
    for connection in view.connections.values() {
        if let Some(connected) = connection.connected {
            clients
                .entry(&connection.client)
                .or_default()
                .push((connected, connection));
        }
    }
    let mut found = Vec::new();
    for mut connections in clients.into_values() {
        connections.sort_by_key(|(connected, _)| *connected);
        for pair in connections.windows(2) {
            let (first, second) = (pair[0], pair[1]);
            let violation = overlap(view, first.1, second);
            let is_either = second.1.connecting < first.0;
            let is_closed = || overlap(view, second.1, first).is_none();
            found.extend(violation.filter(|_| !is_either || !is_closed()));
        }
    }
    found
}

fn overlap(
    view: &View<'_>,
    older: &Connection,
    (since, newer): (Micros, &Connection),
) -> Option<Violation> {
    let limit = since + OVERLAP_MAX;
    let report = |what: String| {
        Some(Violation {
            promise: "P4",
            what: format!(
                "#{} of {} at n{}, taken over by #{} at n{}, {what}",
                older.number, older.client, older.node, newer.number, newer.node
            ),
            conns: vec![older.number, newer.number],
            message: None,
        })
    };
    let deliveries = older.deliveries.iter().map(|delivery| delivery.at);
    let last = deliveries
        .chain(older.acks.iter().copied())
        .max()
        .unwrap_or(0);
    if last > limit {
        return report(format!(
            "was served {} ms after the newer CONNACK",
            (last - since) / 1_000
        ));
    }
    let settled = view.settled.filter(|settled| *settled > limit)?;
    if older.lives_until(settled) {
        return report("was never closed".to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::script::{Script, count};
    use super::check;
    use crate::history::{Side, What};

    /// #1 and, from 1,000 on, #2 of the same client.
    fn taken_over() -> Script {
        Script::default()
            .connects_as(0, 1, 1, "twin")
            .connects_as(1_000, 2, 2, "twin")
    }

    #[test]
    fn older_connection_that_is_closed_is_fine() {
        assert_eq!(
            count(
                &taken_over().ended(1_010, 1, Side::Broker).settled(9_000),
                check
            ),
            0
        );
    }

    #[test]
    fn older_connection_may_be_served_until_the_lease_ends() {
        let script = taken_over().gets(2_900, 1, 7).ended(8_000, 1, Side::Broker);
        assert_eq!(count(&script.settled(9_000), check), 0);
    }

    /// #1 and #2 of the same client, of which #1 heard first that it is accepted.
    fn at_the_same_time() -> Script {
        let connecting = || What::Connecting {
            client: "twin".to_owned(),
            node: 1,
            will: None,
        };
        let connected = || What::Connected {
            session_present: false,
        };
        let script = Script::default().add(0, 1, connecting());
        let script = script.add(500, 2, connecting()).add(1_000, 1, connected());
        script.add(1_001, 2, connected())
    }

    #[test]
    fn either_of_two_that_connect_at_the_same_time_may_be_the_older() {
        for (closed, served) in [(1, 2), (2, 1)] {
            let script = at_the_same_time().ended(1_002, closed, Side::Broker);
            let script = script.gets(6_000, served, 7);
            assert_eq!(count(&script.settled(9_000), check), 0, "{served}");
        }
    }

    #[test]
    fn both_of_two_that_connect_at_the_same_time_being_served_is_a_violation() {
        let script = at_the_same_time().gets(6_000, 1, 7).gets(6_000, 2, 8);
        let script = script
            .ended(6_001, 1, Side::Broker)
            .ended(6_001, 2, Side::Broker);
        assert_eq!(count(&script.settled(9_000), check), 1);
        assert_eq!(count(&at_the_same_time().settled(9_000), check), 1);
    }

    #[test]
    fn connections_of_different_clients_live_side_by_side() {
        let script = Script::default()
            .connects(0, 1, 1)
            .connects(10, 2, 2)
            .gets(8_000, 1, 7);
        assert_eq!(count(&script.settled(9_000), check), 0);
    }

    #[test]
    fn delivery_on_the_older_connection_after_the_lease_is_a_violation() {
        let script = taken_over().gets(4_600, 1, 7).ended(4_601, 1, Side::Broker);
        assert_eq!(count(&script.settled(9_000), check), 1);
    }

    #[test]
    fn acknowledgement_on_the_older_connection_after_the_lease_is_a_violation() {
        let script = taken_over().sends(1_100, 1, 7).acked(4_700, 1, 7);
        assert_eq!(
            count(&script.ended(4_800, 1, Side::Broker).settled(9_000), check),
            1
        );
    }

    #[test]
    fn older_connection_that_is_never_closed_is_a_violation() {
        assert_eq!(count(&taken_over().settled(9_000), check), 1);
    }
}
