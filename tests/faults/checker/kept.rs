//! P6: after the faults all nodes give the same retained message for a topic, or none, and what they give is what was
//! published there last: not older than something that was acknowledged. A delete is such a last word, too: then there is
//! none. A brief message is gone once its time is over; until then each node may or may not have it.

use std::collections::{BTreeMap, BTreeSet};

use super::view::{Message, Micros};
use super::{MARGIN_MS, View, Violation};
use crate::history::{BRIEF_S, Body, What};

/// The state time by which messages expire may be slower than time itself, by a tenth.
const BRIEF_MAX: Micros = BRIEF_S as Micros * 1_000_000 * 10 / 9 + MARGIN_MS * 1_000;

/// What a node gave, and when.
struct Answer {
    at: Micros,
    node: u8,
    message: Option<u64>,
}

pub fn check(view: &View<'_>) -> Vec<Violation> {
    let mut read: BTreeMap<&str, Vec<Answer>> = BTreeMap::new();
    for event in view.events {
        if let What::Kept {
            node,
            topic,
            message,
        } = &event.what
        {
            read.entry(topic).or_default().push(Answer {
                at: event.at,
                node: *node,
                message: *message,
            });
        }
    }
    let judged = read
        .iter()
        .flat_map(|(topic, answers)| judge(view, topic, answers));
    judged.collect()
}

fn judge(view: &View<'_>, topic: &str, answers: &[Answer]) -> Vec<Violation> {
    let there = |message: &&Message| message.retain && message.topic == topic;
    let published: Vec<&Message> = view.messages.values().filter(there).collect();
    if published.iter().any(|message| message.body == Body::Brief) {
        let outlived = |answer: &Answer| outlived(view, topic, answer);
        return answers.iter().filter_map(outlived).collect();
    }
    let distinct: BTreeSet<_> = answers.iter().map(|answer| answer.message).collect();
    let mut found = Vec::new();
    // Where nothing was acknowledged, a message may be on its way.
    if distinct.len() > 1 && published.iter().any(|message| message.acked.is_some()) {
        let answers: Vec<_> = answers.iter().map(|one| (one.node, one.message)).collect();
        let what = format!("nodes differ on {topic}: {answers:?}");
        found.push(violation(what, None));
    }
    found.extend(distinct.into_iter().filter_map(|answer| match answer {
        Some(number) => wrong(&published, topic, number),
        None => missing(&published, topic),
    }));
    found
}

/// A message that was never published retained on this topic, or that an acknowledged one surely replaced.
fn wrong(published: &[&Message], topic: &str, number: u64) -> Option<Violation> {
    let given = published.iter().find(|message| message.number == number);
    let Some(given) = given.filter(|message| message.body == Body::Number) else {
        let what = format!("message {number} on {topic} was never published there");
        return Some(violation(what, None));
    };
    let newer = replaced(published, given)?;
    let what = format!(
        "message {number} on {topic} is older than {}, which was acknowledged",
        newer.number
    );
    Some(violation(what, Some(newer.number)))
}

/// No message, though one was acknowledged, and no delete may have come behind it.
fn missing(published: &[&Message], topic: &str) -> Option<Violation> {
    let acked = published.iter().find(|message| message.acked.is_some())?;
    let mut deletes = published
        .iter()
        .filter(|message| message.body == Body::Nothing);
    if deletes.any(|delete| replaced(published, delete).is_none()) {
        return None;
    }
    let what = format!("{topic} has no message, and one was acknowledged, and not deleted since");
    Some(violation(what, Some(acked.number)))
}

/// The acknowledged message that surely replaced this one: it was sent after this one was acknowledged. One without
/// acknowledgement is concurrent with all that follows it.
fn replaced<'a>(published: &[&'a Message], given: &Message) -> Option<&'a Message> {
    let acked = given.acked?;
    let replaces = |message: &&&Message| message.acked.is_some() && message.sent > acked;
    published.iter().find(replaces).copied()
}

/// A brief message that was never published, or that is there though its time is over.
fn outlived(view: &View<'_>, topic: &str, answer: &Answer) -> Option<Violation> {
    let number = answer.message?;
    let given = view.messages.get(&number);
    let Some(given) = given.filter(|given| given.retain && given.topic == topic) else {
        let what = format!("message {number} on {topic} was never published there");
        return Some(violation(what, None));
    };
    let over = given.acked? + BRIEF_MAX;
    let what = format!(
        "message {number} on {topic} is at n{} and should have expired",
        answer.node
    );
    (answer.at > over).then(|| violation(what, Some(number)))
}

fn violation(what: String, message: Option<u64>) -> Violation {
    Violation {
        promise: "P6",
        what,
        conns: Vec::new(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::super::script::{Script, count};
    use super::check;

    /// Messages 1, acknowledged, and then 2, acknowledged.
    fn two() -> Script {
        let script = Script::default()
            .connects(0, 1, 1)
            .sends_retained(10, 1, 1)
            .acked(11, 1, 1);
        script.sends_retained(12, 1, 2).acked(13, 1, 2)
    }

    #[test]
    fn newest_at_all_nodes_is_fine() {
        assert_eq!(
            count(&two().kept(50, 1, 2).kept(51, 2, 2).kept(52, 3, 2), check),
            0
        );
    }

    #[test]
    fn unacknowledged_or_concurrent_message_may_be_the_last() {
        let script = two().sends_retained(20, 1, 3).kept(50, 1, 3).kept(51, 2, 3);
        assert_eq!(count(&script, check), 0);
        let script = Script::default()
            .connects(0, 1, 1)
            .sends_retained(10, 1, 1)
            .sends_retained(11, 1, 2);
        assert_eq!(
            count(
                &script.acked(12, 1, 1).acked(13, 1, 2).kept(50, 1, 1),
                check
            ),
            0
        );
    }

    #[test]
    fn different_answers_are_a_violation() {
        let script = two().sends_retained(20, 1, 3).kept(50, 1, 3).kept(51, 2, 2);
        assert_eq!(count(&script, check), 1);
    }

    #[test]
    fn replaced_message_is_a_violation() {
        assert_eq!(count(&two().kept(50, 1, 1).kept(51, 2, 1), check), 1);
    }

    #[test]
    fn message_that_nobody_published_is_a_violation() {
        assert_eq!(count(&two().kept(50, 1, 9), check), 1);
        assert_eq!(count(&two().sends(20, 1, 3).kept(50, 1, 3), check), 1);
    }

    #[test]
    fn topic_without_a_message_is_fine_only_before_the_first_acknowledgement() {
        let script = Script::default().connects(0, 1, 1).sends_retained(10, 1, 1);
        assert_eq!(count(&script.kept(50, 1, None).kept(51, 2, 1), check), 0);
        assert_eq!(count(&two().kept(50, 1, None).kept(51, 2, None), check), 1);
    }

    /// The same as `two`, and a delete that is acknowledged.
    fn deleted() -> Script {
        two().deletes_retained(20, 1, 3).acked(21, 1, 3)
    }

    #[test]
    fn nothing_is_there_after_a_delete() {
        let script = deleted().kept(50, 1, None).kept(51, 2, None);
        assert_eq!(count(&script, check), 0);
    }

    #[test]
    fn delete_without_acknowledgement_may_have_come_or_not() {
        for answer in [None, Some(2)] {
            let script = two().deletes_retained(20, 1, 3);
            let script = script.kept(50, 1, answer).kept(51, 2, answer);
            assert_eq!(count(&script, check), 0, "{answer:?}");
        }
    }

    #[test]
    fn delete_at_the_same_time_as_a_message_may_be_the_last() {
        for answer in [None, Some(4)] {
            let script = two().deletes_retained(20, 1, 3).sends_retained(20, 1, 4);
            let script = script.acked(21, 1, 3).acked(22, 1, 4);
            let script = script.kept(50, 1, answer).kept(51, 2, answer);
            assert_eq!(count(&script, check), 0, "{answer:?}");
        }
    }

    #[test]
    fn deleted_message_that_is_there_is_a_violation() {
        assert_eq!(count(&deleted().kept(50, 1, 2).kept(51, 2, 2), check), 1);
        // And the nodes differ.
        let script = deleted().kept(50, 1, None).kept(51, 2, 2);
        assert_eq!(count(&script, check), 2);
    }

    #[test]
    fn message_behind_a_delete_that_is_missing_is_a_violation() {
        let script = deleted().sends_retained(30, 1, 4).acked(31, 1, 4);
        assert_eq!(count(&script.kept(50, 1, None), check), 1);
    }

    #[test]
    fn number_of_a_delete_is_no_answer() {
        assert_eq!(count(&deleted().kept(50, 1, 3), check), 1);
    }

    fn brief() -> Script {
        let script = Script::default().connects(0, 1, 1);
        script.retains_briefly(10, 1, 1).acked(20, 1, 1)
    }

    #[test]
    fn brief_message_may_be_there_or_not_while_its_time_runs() {
        let script = brief().kept(2_000, 1, 1).kept(2_100, 2, None);
        assert_eq!(count(&script.kept(3_700, 3, 1), check), 0);
    }

    #[test]
    fn brief_message_that_outlives_its_time_is_a_violation() {
        let script = brief().kept(3_800, 1, None).kept(3_800, 2, 1);
        assert_eq!(count(&script, check), 1);
        assert_eq!(count(&brief().kept(100, 1, 9), check), 1);
    }
}
