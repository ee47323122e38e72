//! P1 of shared subscriptions: a message that was acknowledged to its publisher comes to a member of the group at least
//! once, as long as one stays; and to one only, as long as nothing happens.
//!
//! The node of the publisher, its *keeper*, chooses a member and keeps the message until that one has acknowledged it; when
//! the member or its node goes, another gets it. So a message is *under way* until a member that was well has had the time
//! to take it: faults, and members that go, prolong that. What is demanded, and excused by name:
//! - *a member stays*: one was subscribed before the message was sent and is connected until it is under way no more;
//! - *the keeper stays*: its node suffers nothing and closes no clients while the message is under way. A keeper that is
//!   gone leaves the message with the one member that it chose, whose own end then excuses the loss.

use std::collections::{BTreeMap, BTreeSet};

use super::view::{Connection, Fault, Message, Micros, matches};
use super::{MARGIN_MS, View, Violation};
use crate::history::Kind;
use crate::schedule::NODE_DOWN_AFTER_MS;

const MARGIN: Micros = MARGIN_MS * 1_000;
/// How long it may take until a keeper knows that a member is gone.
const TOLD_MAX: Micros = NODE_DOWN_AFTER_MS * 1_000 + MARGIN;

pub fn check(view: &View<'_>) -> Vec<Violation> {
    let members = members(view);
    let came = came(view);
    let mut found = Vec::new();
    for message in shared(view, &members) {
        let times = came.get(&message.number).map_or(&[][..], Vec::as_slice);
        match times {
            [] if must_come(view, message, &members) => {
                let what = "was acknowledged and never came to a member";
                found.push(violation(what, message, Vec::new()));
            }
            [one, other, ..] if one_was_enough(view, message, *one, *other) => {
                let what = "came to two members that both stayed";
                found.push(violation(what, message, vec![one.1.number, other.1.number]));
            }
            _ => {}
        }
    }
    found
}

/// How many messages had to come.
pub fn judged(view: &View<'_>) -> usize {
    let members = members(view);
    let must = |message: &&Message| must_come(view, message, &members);
    shared(view, &members).filter(must).count()
}

/// Whether a message that was sent at `from` may have been with a member before it came to another at `to`.
pub fn may_be_handed_over(view: &View<'_>, from: Micros, to: Micros) -> bool {
    let from = from.saturating_sub(TOLD_MAX);
    let goes = |member: &Member<'_>| {
        let ended = member.connection.ended;
        ended.is_some_and(|(at, _)| (from..=to).contains(&at))
    };
    let overlaps = |fault: &Fault| fault.begins <= to && fault.over.is_none_or(|at| at >= from);
    view.faults.iter().any(overlaps) || members(view).iter().any(goes)
}

/// The filter of a shared subscription without its group.
pub fn shared_filter(filter: &str) -> Option<&str> {
    Some(filter.strip_prefix("$share/")?.split_once('/')?.1)
}

/// A connection that shares a subscription, or asked to.
struct Member<'a> {
    connection: &'a Connection,
    filter: &'a str,
    /// When it was granted.
    since: Option<Micros>,
}

/// There is one group: all members of a topic are in it.
fn members<'a>(view: &'a View<'_>) -> Vec<Member<'a>> {
    let shares = |connection: &'a Connection| {
        let asked = connection.asked.iter();
        asked.filter_map(move |(_, asked)| {
            let mut granted = connection.subscriptions.iter();
            let granted = granted.find(|(_, filter, _)| filter == asked);
            Some(Member {
                connection,
                filter: shared_filter(asked)?,
                since: granted.map(|(since, ..)| *since),
            })
        })
    };
    view.connections.values().flat_map(shares).collect()
}

/// The messages of QoS 1 and 2 to members.
fn shared<'a>(view: &'a View<'_>, members: &'a [Member<'_>]) -> impl Iterator<Item = &'a Message> {
    let filters: BTreeSet<&str> = members.iter().map(|member| member.filter).collect();
    let is_shared = move |message: &&Message| {
        let mut filters = filters.iter();
        message.qos > 0 && filters.any(|filter| matches(filter, &message.topic))
    };
    view.messages.values().filter(is_shared)
}

/// When a message came first to a connection.
type Came<'a> = (Micros, &'a Connection);

/// Each connection to which a message came, by the number of the message, in order of time.
fn came<'a>(view: &'a View<'_>) -> BTreeMap<u64, Vec<Came<'a>>> {
    let mut all: BTreeMap<u64, Vec<Came<'a>>> = BTreeMap::new();
    for connection in view.connections.values() {
        for delivery in &connection.deliveries {
            let times = all.entry(delivery.message).or_default();
            if times
                .last()
                .is_none_or(|(_, last)| last.number != connection.number)
            {
                times.push((delivery.at, connection));
            }
        }
    }
    all.values_mut()
        .for_each(|times| times.sort_by_key(|(at, _)| *at));
    all
}

fn must_come(view: &View<'_>, message: &Message, members: &[Member<'_>]) -> bool {
    let (Some(acked), Some(settled)) = (message.acked, view.settled) else {
        return false;
    };
    let Some(keeper) = view.connections.get(&message.conn) else {
        return false;
    };
    let until = under_way(view, message.sent, acked, members).min(settled);
    let stays = |member: &Member<'_>| {
        member.since.is_some_and(|since| since < message.sent)
            && matches(member.filter, &message.topic)
            && member.connection.lives_until(until)
    };
    members.iter().any(stays) && is_well(view, keeper.node, message.sent, until)
}

/// Until when a message may be on its way to a member.
fn under_way(view: &View<'_>, sent: Micros, acked: Micros, members: &[Member<'_>]) -> Micros {
    let mut until = acked + MARGIN;
    loop {
        let ends = members.iter().filter_map(|member| {
            let (ended, _) = member.connection.ended?;
            (sent..=until).contains(&ended).then_some(ended + TOLD_MAX)
        });
        let faults = view.faults.iter().filter_map(|fault| {
            let over = fault.over.unwrap_or(Micros::MAX - MARGIN);
            (fault.begins <= until && over >= sent).then_some(over + MARGIN)
        });
        let later = ends.chain(faults).max().unwrap_or(0);
        if later <= until {
            return until;
        }
        until = later;
    }
}

/// Whether a node suffers nothing, and closes nobody.
fn is_well(view: &View<'_>, node: u8, from: Micros, to: Micros) -> bool {
    let split = |fault: &Fault| {
        let overlaps = fault.begins <= to && fault.over.is_none_or(|over| over >= from);
        fault.kind == Kind::Split && overlaps
    };
    !view.faulty(node, from, to)
        && !view.faults.iter().any(split)
        && !view.lost_clients(node, from, to)
}

/// Whether there was no reason to give the message to both of two members: both stay, on nodes that are well, and so does
/// the keeper. Their order does not count: their clients note what comes when they are at it.
fn one_was_enough(
    view: &View<'_>,
    message: &Message,
    (_, one): Came<'_>,
    (again, other): Came<'_>,
) -> bool {
    let Some(keeper) = view.connections.get(&message.conn) else {
        return false;
    };
    let (from, to) = (message.sent, again + MARGIN);
    let stays =
        |member: &Connection| member.lives_until(to) && is_well(view, member.node, from, to);
    stays(one) && stays(other) && is_well(view, keeper.node, from, to)
}

fn violation(what: &str, message: &Message, mut conns: Vec<u32>) -> Violation {
    conns.push(message.conn);
    Violation {
        promise: "P1",
        what: format!(
            "shared message {} on {} of #{} {what}",
            message.number, message.topic, message.conn
        ),
        conns,
        message: Some(message.number),
    }
}

#[cfg(test)]
mod tests {
    use super::super::script::{Script, count};
    use super::{check, judged};
    use crate::checker::View;
    use crate::history::{Kind, Phase, Side};

    const SHARE: &str = "$share/crew/+";

    /// Members #1 at n1 and #2 at n2, and message 7 of #3 at n3.
    fn sent() -> Script {
        let script = Script::default()
            .connects(0, 1, 1)
            .connects(0, 2, 2)
            .connects(0, 3, 3);
        let script = script.subscribed(10, 1, SHARE).subscribed(10, 2, SHARE);
        script.sends_shared(1_000, 3, 7)
    }

    fn acked() -> Script {
        sent().acked(1_010, 3, 7)
    }

    #[test]
    fn message_that_comes_to_one_member_is_fine() {
        for member in [1, 2] {
            let script = sent().gets(1_005, member, 7).acked(1_010, 3, 7);
            assert_eq!(count(&script.settled(20_000), check), 0, "{member}");
        }
    }

    #[test]
    fn acknowledged_message_that_comes_to_no_member_is_a_violation() {
        let script = acked().settled(20_000);
        assert_eq!(count(&script, check), 1);
        assert_eq!(judged(&View::new(&script.events)), 1);
    }

    #[test]
    fn member_may_get_a_message_before_it_hears_that_it_is_one() {
        let script = acked().connects(1_020, 4, 2).asks(1_030, 4, SHARE);
        let script = script.gets(1_040, 4, 7).ended(1_050, 4, Side::Broker);
        assert_eq!(count(&script.settled(20_000), check), 0);
    }

    #[test]
    fn end_of_one_that_only_asked_while_another_stays_is_no_excuse() {
        let script = acked().connects(1_020, 4, 2).asks(1_030, 4, SHARE);
        let script = script.ended(1_050, 4, Side::Client);
        assert_eq!(count(&script.settled(20_000), check), 1);
    }

    #[test]
    fn message_without_acknowledgement_may_be_lost() {
        assert_eq!(count(&sent().settled(20_000), check), 0);
    }

    #[test]
    fn message_is_lost_with_the_last_member() {
        let script = acked().ended(1_020, 1, Side::Client);
        let script = script.ended(1_030, 2, Side::Client);
        assert_eq!(count(&script.settled(20_000), check), 0);
    }

    #[test]
    fn member_that_came_later_is_no_member_that_stays() {
        let script = Script::default().connects(0, 1, 1).connects(0, 3, 3);
        let script = script.sends_shared(1_000, 3, 7).subscribed(1_005, 1, SHARE);
        let script = script.acked(1_010, 3, 7);
        assert_eq!(count(&script.settled(20_000), check), 0);
    }

    #[test]
    fn end_of_one_member_while_another_stays_is_no_excuse() {
        for by in [Side::Client, Side::Broker] {
            let script = acked().ended(1_020, 1, by).settled(20_000);
            assert_eq!(count(&script, check), 1, "{by:?}");
        }
    }

    #[test]
    fn death_of_a_members_node_while_another_stays_is_no_excuse() {
        let script = acked()
            .fault(1_020, 1, Kind::Kill, Phase::Begins)
            .ended(1_021, 1, Side::Broker)
            .fault(9_000, 1, Kind::Kill, Phase::Over);
        assert_eq!(count(&script.settled(20_000), check), 1);
    }

    #[test]
    fn end_of_all_members_long_after_is_no_excuse() {
        let script = acked().ended(9_000, 1, Side::Client);
        let script = script.ended(9_000, 2, Side::Client);
        assert_eq!(count(&script.settled(20_000), check), 1);
    }

    #[test]
    fn death_of_the_keeper_while_it_is_under_way_is_an_excuse() {
        let script = acked()
            .fault(1_020, 3, Kind::Kill, Phase::Begins)
            .ended(1_021, 3, Side::Broker)
            .fault(9_000, 3, Kind::Kill, Phase::Over);
        assert_eq!(count(&script.settled(20_000), check), 0);
    }

    #[test]
    fn keeper_that_closes_its_clients_while_it_is_under_way_is_an_excuse() {
        let script = acked().ended(1_020, 3, Side::Broker);
        assert_eq!(count(&script.settled(20_000), check), 0);
    }

    #[test]
    fn death_of_the_keeper_long_after_is_no_excuse() {
        let script = acked()
            .fault(9_000, 3, Kind::Kill, Phase::Begins)
            .ended(9_001, 3, Side::Broker)
            .fault(12_000, 3, Kind::Kill, Phase::Over);
        assert_eq!(count(&script.settled(20_000), check), 1);
    }

    #[test]
    fn message_that_comes_to_a_second_member_once_the_first_is_gone_is_fine() {
        let script = acked().gets(1_011, 1, 7).ended(1_020, 1, Side::Client);
        assert_eq!(count(&script.gets(1_030, 2, 7).settled(20_000), check), 0);
        let script = acked().gets(1_011, 1, 7);
        let script = script.fault(1_020, 1, Kind::PauseLong, Phase::Begins);
        assert_eq!(count(&script.gets(4_000, 2, 7).settled(20_000), check), 0);
    }

    #[test]
    fn message_of_a_member_that_goes_may_be_noted_by_another_first() {
        let script = acked().gets(1_011, 2, 7).gets(1_012, 1, 7);
        let script = script.ended(1_013, 1, Side::Broker);
        assert_eq!(count(&script.settled(20_000), check), 0);
    }

    #[test]
    fn message_that_comes_to_two_members_that_stay_is_a_violation() {
        let script = acked().gets(1_011, 1, 7).gets(1_030, 2, 7);
        assert_eq!(count(&script.settled(20_000), check), 1);
    }
}
