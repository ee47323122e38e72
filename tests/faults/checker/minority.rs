//! P7: a node that is parted from the others acknowledges nothing that was sent after its lease: that ends at the latest
//! 0.75 T after the cut, as it counts from when its renewal was sent. After the grace its clients are sent away.

use super::view::{Connection, Fault, Micros};
use super::{MARGIN_MS, View, Violation};
use crate::history::What;
use crate::schedule::{MINORITY_GRACE_MS, NODE_DOWN_AFTER_MS};

const LEASE: Micros = NODE_DOWN_AFTER_MS * 750;
const GRACE: Micros = (MINORITY_GRACE_MS + MARGIN_MS) * 1_000;

pub fn check(view: &View<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for fault in view.faults.iter().filter(|fault| fault.kind.parts()) {
        let Some(holds) = fault.holds else { continue };
        let lease_over = holds + LEASE;
        let ends = fault.ends.unwrap_or(Micros::MAX);
        found.extend(lies(view, fault, lease_over, ends));
        if lease_over + GRACE < ends {
            found.extend(stays(view, fault, holds, lease_over + GRACE));
        }
    }
    found
}

/// Acknowledgements between the end of the lease and the end of the cut, of what was sent in that time.
fn lies(view: &View<'_>, fault: &Fault, lease_over: Micros, ends: Micros) -> Vec<Violation> {
    let mut found = Vec::new();
    let within = view
        .events
        .iter()
        .filter(|event| event.at > lease_over && event.at < ends);
    for event in within {
        let Some(connection) = view
            .connections
            .get(&event.conn)
            .filter(|one| one.node == fault.node)
        else {
            continue;
        };
        let (asked, what, message) = match &event.what {
            What::Acked {
                message, reason, ..
            } if *reason < 0x80 => {
                let sent = view.messages.get(message).map_or(0, |message| message.sent);
                (
                    sent,
                    format!("acknowledged message {message}"),
                    Some(*message),
                )
            }
            What::Connected { .. } => (connection.connecting, "accepted CONNECT".to_owned(), None),
            What::Subscribed { filter, code } if *code < 0x80 => (
                asked_at(view, event.conn, filter),
                format!("granted {filter}"),
                None,
            ),
            _ => continue,
        };
        if asked > lease_over {
            let after = (asked - lease_over) / 1_000;
            let what = format!(
                "n{} without a quorum {what} sent {after} ms after its lease",
                fault.node
            );
            found.push(violation(what, connection, message));
        }
    }
    found
}

/// When the newest SUBSCRIBE of this filter was sent.
fn asked_at(view: &View<'_>, conn: u32, filter: &str) -> Micros {
    let asks =
        |what: &What| matches!(what, What::Subscribing { filter: asked, .. } if asked == filter);
    let mut asked = view
        .events
        .iter()
        .filter(|event| event.conn == conn && asks(&event.what));
    asked.next_back().map_or(0, |event| event.at)
}

/// Clients that were connected before the cut and still are when the grace is over.
fn stays(view: &View<'_>, fault: &Fault, holds: Micros, limit: Micros) -> Vec<Violation> {
    let mut found = Vec::new();
    for connection in view
        .connections
        .values()
        .filter(|one| one.node == fault.node)
    {
        let connected = connection.connected.is_some_and(|at| at < holds);
        if connected && connection.lives_until(limit) {
            let what = format!(
                "n{} without a quorum never sent #{} away",
                fault.node, connection.number
            );
            found.push(violation(what, connection, None));
        }
    }
    found
}

fn violation(what: String, connection: &Connection, message: Option<u64>) -> Violation {
    Violation {
        promise: "P7",
        what,
        conns: vec![connection.number],
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::super::script::{Script, count};
    use super::check;
    use crate::history::{Kind, Phase, Side};

    /// #1 at n1, which is cut off at 1,000: its lease is over at 2,500 at the latest.
    fn cut() -> Script {
        let script = Script::default().connects(0, 1, 1).connects(0, 2, 2);
        script
            .fault(990, 1, Kind::Cut, Phase::Begins)
            .fault(1_000, 1, Kind::Cut, Phase::Holds)
    }

    #[test]
    fn acknowledgement_under_the_lease_is_fine() {
        let script = cut()
            .sends(2_300, 1, 1)
            .acked(2_400, 1, 1)
            .ended(4_000, 1, Side::Broker);
        assert_eq!(
            count(&script.fault(9_000, 1, Kind::Cut, Phase::Ends), check),
            0
        );
    }

    #[test]
    fn majority_goes_on() {
        let script = cut()
            .sends(4_000, 2, 1)
            .acked(4_010, 2, 1)
            .ended(4_100, 1, Side::Broker);
        assert_eq!(
            count(&script.fault(9_000, 1, Kind::Cut, Phase::Ends), check),
            0
        );
    }

    #[test]
    fn acknowledgement_after_the_cut_is_healed_is_fine() {
        let script = cut()
            .sends(3_000, 1, 1)
            .fault(4_000, 1, Kind::Cut, Phase::Ends)
            .acked(4_500, 1, 1);
        assert_eq!(count(&script, check), 0);
    }

    #[test]
    fn refusal_is_fine() {
        let script = cut().sends(3_000, 1, 1).acked_with(3_010, 1, 1, 0x97);
        assert_eq!(
            count(&script.fault(4_000, 1, Kind::Cut, Phase::Ends), check),
            0
        );
    }

    #[test]
    fn acknowledgement_without_a_lease_is_a_violation() {
        for kind in [Kind::Cut, Kind::Deaf, Kind::Mute] {
            let script = Script::default()
                .connects(0, 1, 1)
                .fault(990, 1, kind, Phase::Begins);
            let script = script
                .fault(1_000, 1, kind, Phase::Holds)
                .sends(2_600, 1, 1)
                .acked(2_700, 1, 1);
            assert_eq!(count(&script.fault(4_000, 1, kind, Phase::Ends), check), 1);
        }
    }

    #[test]
    fn connect_accepted_without_a_lease_is_a_violation() {
        let script = cut()
            .connects(3_000, 3, 1)
            .fault(4_000, 1, Kind::Cut, Phase::Ends);
        assert_eq!(count(&script, check), 1);
    }

    #[test]
    fn client_that_stays_beyond_the_grace_is_a_violation() {
        let script = cut()
            .fault(9_000, 1, Kind::Cut, Phase::Ends)
            .ended(9_100, 1, Side::Broker);
        assert_eq!(count(&script, check), 1);
    }
}
