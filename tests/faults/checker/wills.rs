//! P5: a will comes to each live subscriber of its topic once when the connection was lost, never twice to one connection,
//! never after a clean DISCONNECT, and never while the connection is served.
//!
//! It must come where the client or the node went without a word. Where the broker ended the connection (a drain fires
//! none, a takeover or a node without a quorum does) it may. A DISCONNECT counts only where its node was well from T before
//! it to T after the end: a node that is declared Down meanwhile may not have told the others.

use super::view::{Connection, Micros};
use super::{MARGIN_MS, View, Violation};
use crate::history::Side;
use crate::schedule::NODE_DOWN_AFTER_MS;

const T: Micros = NODE_DOWN_AFTER_MS * 1_000;
const MARGIN: Micros = MARGIN_MS * 1_000;

pub fn check(view: &View<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for owner in view.connections.values() {
        let Some((message, topic)) = &owner.will else {
            continue;
        };
        let (must, never) = (must_come(view, owner), must_not_come(view, owner));
        for subscriber in view.connections.values() {
            let mut report = |what: &str| found.push(violation(what, *message, owner, subscriber));
            let times: Vec<_> = subscriber
                .got(*message)
                .filter(|got| !got.retain)
                .map(|got| got.at)
                .collect();
            match times.as_slice() {
                [] if must && waits_for(view, subscriber, owner, topic) => report("never came"),
                [] => {}
                [_, _, ..] => report("came twice"),
                [_] if never => report("came after a clean DISCONNECT"),
                [at] if owner.acks.iter().any(|ack| *ack > at + T + MARGIN) => {
                    report("came while its client was served");
                }
                [_] => {}
            }
        }
    }
    found
}

/// How many wills had to come, and how many must not.
pub fn judged(view: &View<'_>) -> [usize; 2] {
    let owners = || {
        view.connections
            .values()
            .filter(|owner| owner.will.is_some())
    };
    [
        owners().filter(|owner| must_come(view, owner)).count(),
        owners().filter(|owner| must_not_come(view, owner)).count(),
    ]
}

/// The connection stood, and client or node went without a word.
fn must_come(view: &View<'_>, owner: &Connection) -> bool {
    let (Some(connected), Some((ended, by))) = (owner.connected, owner.ended) else {
        return false;
    };
    if owner.leaving.is_some() {
        return false;
    }
    let died = |fault: &super::view::Fault| {
        let at_work = fault.begins > connected && fault.begins <= ended;
        fault.node == owner.node
            && fault.kind.kills()
            && at_work
            && fault.holds.is_some_and(|at| ended <= at + MARGIN)
    };
    let drained = |fault: &super::view::Fault| {
        fault.node == owner.node
            && fault.kind.drains()
            && fault.begins <= ended + T
            && fault.over.is_none_or(|over| over >= ended)
    };
    view.faults.iter().any(died) || (by == Side::Client && !view.faults.iter().any(drained))
}

/// The client said goodbye to a node that was well, and the node closed.
fn must_not_come(view: &View<'_>, owner: &Connection) -> bool {
    let (Some(leaving), Some((ended, Side::Broker))) = (owner.leaving, owner.ended) else {
        return false;
    };
    let (from, to) = (leaving.saturating_sub(T), ended + T + MARGIN);
    let excused = view.lost_clients(owner.node, from, to);
    owner.connected.is_some() && !excused && !view.faulty(owner.node, from, to)
}

/// A subscriber that heard of nothing but the end of the will's client.
fn waits_for(view: &View<'_>, subscriber: &Connection, owner: &Connection, topic: &str) -> bool {
    let before = subscriber
        .subscribed(topic)
        .is_some_and(|(at, _)| at < owner.connecting);
    before
        && view
            .settled
            .is_some_and(|settled| subscriber.lives_until(settled))
}

fn violation(what: &str, message: u64, owner: &Connection, subscriber: &Connection) -> Violation {
    let what = format!(
        "will {message} of #{} of {} at n{} {what} to #{} at n{}",
        owner.number, owner.client, owner.node, subscriber.number, subscriber.node
    );
    Violation {
        promise: "P5",
        what,
        conns: vec![owner.number, subscriber.number],
        message: Some(message),
    }
}

#[cfg(test)]
mod tests {
    use super::super::script::{Script, count};
    use super::check;
    use crate::history::{Kind, Phase, Side};

    /// A subscriber #1 at n1, and #2 at n2 with will 7.
    fn mortal() -> Script {
        let script = Script::default()
            .connects(0, 1, 1)
            .subscribed(10, 1, "wills/+");
        script.connects_with_will(1_000, 2, 2, 7)
    }

    /// The same, and n2 is killed.
    fn killed() -> Script {
        let script =
            mortal()
                .fault(5_000, 2, Kind::Kill, Phase::Begins)
                .ended(5_001, 2, Side::Broker);
        script.fault(5_002, 2, Kind::Kill, Phase::Holds)
    }

    #[test]
    fn will_of_a_killed_node_comes_once() {
        assert_eq!(count(&killed().gets(7_100, 1, 7).settled(20_000), check), 0);
    }

    #[test]
    fn will_of_a_clean_disconnect_does_not_come() {
        let script = mortal().leaves(5_000, 2).ended(5_010, 2, Side::Broker);
        assert_eq!(count(&script.settled(20_000), check), 0);
    }

    #[test]
    fn goodbye_that_the_node_did_not_live_to_tell_excuses_the_will() {
        let script = mortal().leaves(5_000, 2).ended(5_010, 2, Side::Broker);
        let script = script
            .fault(5_100, 2, Kind::Kill, Phase::Begins)
            .gets(8_000, 1, 7);
        assert_eq!(count(&script.settled(20_000), check), 0);
    }

    #[test]
    fn goodbye_to_a_node_that_drops_its_clients_excuses_the_will() {
        let script = mortal()
            .connects(2_000, 3, 2)
            .leaves(5_000, 2)
            .ended(5_010, 2, Side::Broker);
        let script = script.ended(6_000, 3, Side::Broker).gets(8_000, 1, 7);
        assert_eq!(count(&script.settled(20_000), check), 0);
    }

    #[test]
    fn takeover_of_another_client_excuses_no_will() {
        let script = mortal()
            .connects_as(2_000, 3, 2, "twin")
            .leaves(5_000, 2)
            .ended(5_010, 2, Side::Broker);
        let script = script
            .connects_as(5_900, 4, 1, "twin")
            .ended(6_000, 3, Side::Broker)
            .gets(8_000, 1, 7);
        assert_eq!(count(&script.settled(20_000), check), 1);
    }

    #[test]
    fn drain_fires_no_will() {
        let script =
            mortal()
                .fault(5_000, 2, Kind::Term, Phase::Begins)
                .ended(5_001, 2, Side::Broker);
        assert_eq!(count(&script.settled(20_000), check), 0);
    }

    #[test]
    fn will_of_a_killed_node_that_never_comes_is_a_violation() {
        assert_eq!(count(&killed().settled(20_000), check), 1);
    }

    #[test]
    fn will_of_a_client_that_vanished_and_never_comes_is_a_violation() {
        assert_eq!(
            count(
                &mortal().ended(5_000, 2, Side::Client).settled(20_000),
                check
            ),
            1
        );
    }

    #[test]
    fn will_that_comes_twice_is_a_violation() {
        assert_eq!(
            count(
                &killed().gets(7_100, 1, 7).gets(7_200, 1, 7).settled(20_000),
                check
            ),
            1
        );
    }

    #[test]
    fn will_after_a_clean_disconnect_is_a_violation() {
        let script = mortal()
            .leaves(5_000, 2)
            .ended(5_010, 2, Side::Broker)
            .gets(5_100, 1, 7);
        assert_eq!(count(&script.settled(20_000), check), 1);
    }

    #[test]
    fn return_right_after_the_goodbye_to_whichever_node_does_not_excuse_the_will() {
        for node in [2, 3] {
            let script = mortal().leaves(5_000, 2).ended(5_010, 2, Side::Broker);
            let client = "c2";
            let script = script.connects_as(5_020, 3, node, client).gets(5_100, 1, 7);
            assert_eq!(count(&script.settled(20_000), check), 1, "{node}");
        }
    }

    #[test]
    fn will_of_a_client_that_is_served_is_a_violation() {
        let script = mortal()
            .gets(2_000, 1, 7)
            .sends(9_000, 2, 8)
            .acked(9_010, 2, 8);
        assert_eq!(count(&script.settled(20_000), check), 1);
    }
}
