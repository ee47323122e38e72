//! P6: after the faults all nodes give the same retained message for a topic, one that was published there, and not older
//! than one that was acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use super::view::Message;
use super::{View, Violation};
use crate::history::What;

pub fn check(view: &View<'_>) -> Vec<Violation> {
    let mut read: BTreeMap<&str, Vec<(u8, Option<u64>)>> = BTreeMap::new();
    for event in view.events {
        if let What::Kept {
            node,
            topic,
            message,
        } = &event.what
        {
            read.entry(topic).or_default().push((*node, *message));
        }
    }
    let mut found = Vec::new();
    for (topic, answers) in &read {
        let distinct: BTreeSet<_> = answers.iter().map(|(_, message)| *message).collect();
        let acked = |message: &Message| {
            message.retain && message.topic == *topic && message.acked.is_some()
        };
        // Where nothing was acknowledged, a message may be on its way.
        if view.messages.values().any(acked) {
            if distinct.len() > 1 {
                found.push(violation(
                    format!("nodes differ on {topic}: {answers:?}"),
                    None,
                ));
            }
            if distinct.contains(&None) {
                found.push(violation(
                    format!("{topic} has no message, and one was acknowledged: {answers:?}"),
                    None,
                ));
            }
        }
        found.extend(
            distinct
                .into_iter()
                .flatten()
                .filter_map(|number| wrong(view, topic, number)),
        );
    }
    found
}

/// A message that was never published retained on this topic, or that an acknowledged one surely replaced: it was
/// acknowledged itself before the other was sent.
fn wrong(view: &View<'_>, topic: &str, number: u64) -> Option<Violation> {
    let published = view.messages.get(&number);
    let Some(given) = published.filter(|message| message.retain && message.topic == topic) else {
        return Some(violation(
            format!("message {number} on {topic} was never published there"),
            None,
        ));
    };
    // One without acknowledgement is concurrent with all that follows it.
    let acked = given.acked?;
    let replaces = |message: &&Message| {
        message.retain && message.topic == topic && message.acked.is_some() && message.sent > acked
    };
    let newer = view.messages.values().find(replaces)?;
    let what = format!(
        "message {number} on {topic} is older than {}, which was acknowledged",
        newer.number
    );
    Some(violation(what, Some(newer.number)))
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
}
