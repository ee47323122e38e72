//! Mosquitto's `acl_file`, with its meaning: lines `topic [read|write|readwrite|deny] FILTER` before the first `user NAME` are
//! for clients without a user name, those behind it for that user, and `pattern [...] FILTER` lines, wherever they stand, for
//! everyone, with `%u` and `%c`. A client's own lines come before the patterns, and in each of both `deny` before what grants.
//!
//! As with Mosquitto a subscription to more than what may be read is granted and gives what may be read; one of which nothing
//! may be read is refused.

use std::collections::HashMap;

use super::file::{Problem, Problems};
use super::pattern::Pattern;
use super::rules::{Action, QosSet, Rule};
use super::subject::{Glob, User, Who};
use crate::config::acl::Effect;

/// Whom a line is for; the order is that in which lines are looked at.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Section<'a> {
    Anonymous,
    User(&'a str),
    Patterns,
}

/// Reads the text of a file into rules of which the first that fits decides.
pub(super) fn parse(text: &str) -> Result<Vec<Rule>, Vec<Problem>> {
    let mut problems = Problems::default();
    let mut current = Section::Anonymous;
    let mut lines: Vec<(Section<'_>, Effect, Rule)> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if problems.is_full() {
            break;
        }
        let (word, rest) = split(line);
        match word {
            "user" if rest.is_empty() => problems.add(number, "`user` names no user"),
            "user" => current = Section::User(rest),
            "topic" | "pattern" => {
                let section = match word {
                    "topic" => current.clone(),
                    _ => Section::Patterns,
                };
                match rule(rest, &section) {
                    Ok(rule) => lines.push((section, rule.effect, rule)),
                    Err(why) => problems.add(number, format!("`{line}`: {why}")),
                }
            }
            _ => problems.add(
                number,
                format!("`{word}` is not known: allowed are `user`, `topic` and `pattern`"),
            ),
        }
    }
    problems.into_result(in_order(lines))
}

/// Own lines before patterns, denials before grants, and else as they stand.
fn in_order(mut lines: Vec<(Section<'_>, Effect, Rule)>) -> Vec<Rule> {
    let mut places: HashMap<Section<'_>, usize> = HashMap::new();
    for (section, ..) in &lines {
        let place = match section {
            Section::Patterns => usize::MAX,
            _ => places.len(),
        };
        places.entry(section.clone()).or_insert(place);
    }
    lines.sort_by_key(|(section, effect, _)| {
        (places.get(section).copied(), *effect == Effect::Allow)
    });
    lines.into_iter().map(|(_, _, rule)| rule).collect()
}

fn rule(text: &str, section: &Section<'_>) -> Result<Rule, String> {
    let (access, filter) = match split(text) {
        (filter, "") => ("readwrite", filter),
        both => both,
    };
    let (effect, action) = match access {
        "read" => (Effect::Allow, Action::Subscribe),
        "write" => (Effect::Allow, Action::Publish),
        "readwrite" => (Effect::Allow, Action::All),
        "deny" => (Effect::Deny, Action::All),
        _ => {
            return Err(format!(
                "`{access}` is no access: allowed are `read`, `write`, `readwrite` and `deny`"
            ));
        }
    };
    // Only patterns have values.
    let pattern = match section {
        Section::Patterns => Pattern::parse(filter),
        _ => Pattern::literal(filter),
    };
    let pattern = pattern.map_err(|error| error.to_string())?;
    let user = match section {
        Section::Anonymous => Some(User::Nobody),
        Section::User(name) => Some(User::Named(Glob::Exact((*name).into()))),
        Section::Patterns => None,
    };
    Ok(Rule {
        effect,
        who: Who {
            user,
            ..Who::default()
        },
        action,
        topics: Some([pattern].into()),
        qos: QosSet::ALL,
        retain: None,
    })
}

/// The first word, and what follows it.
fn split(line: &str) -> (&str, &str) {
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    (word, rest.trim())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use flotte_mqtt::QoS;

    use super::super::rules::{Granted, Rules, Wide};
    use super::super::subject::Subject;
    use super::*;

    fn rules(text: &str) -> Rules {
        Rules::new(parse(text).unwrap(), Effect::Deny, Wide::Narrowed)
    }

    fn who(username: Option<&str>, client: &str) -> Subject {
        Subject::new(username.map(Into::into), client.try_into().unwrap(), None)
    }

    fn reads(rules: &Rules, who: &Subject, topic: &str) -> bool {
        rules.may_receive(who, &topic.try_into().unwrap(), QoS::AtMostOnce)
    }

    fn writes(rules: &Rules, who: &Subject, topic: &str) -> bool {
        rules.may_publish(who, &topic.try_into().unwrap(), QoS::AtMostOnce, false)
    }

    const FILE: &str = "# who may what\r\n\
        topic read public/#\r\n\
        topic $SYS/broker/uptime\r\n\
        \r\n\
        user ann lee\r\n\
        topic plain/x\r\n\
        topic readwrite a/#\r\n\
        topic deny a/secret\r\n\
        pattern write up/%u/%c\r\n\
        user bob\r\n\
        topic write b/+\r\n\
        pattern read down/%c/#\r\n\
        pattern deny down/+/secret\r\n\
        user ann lee\r\n\
        topic read late\r\n";

    #[test]
    fn lines_before_the_first_user_are_for_clients_without_a_name() {
        let rules = rules(FILE);
        let (nobody, bob) = (who(None, "c"), who(Some("bob"), "c"));
        assert!(reads(&rules, &nobody, "public/x") && !writes(&rules, &nobody, "public/x"));
        assert!(!reads(&rules, &bob, "public/x"));
        assert!(reads(&rules, &nobody, "$SYS/broker/uptime"));
    }

    #[test]
    fn lines_of_a_user_are_for_that_user_and_deny_wins() {
        let rules = rules(FILE);
        let (ann, bob) = (who(Some("ann lee"), "c"), who(Some("bob"), "c"));
        assert!(reads(&rules, &ann, "a/x") && writes(&rules, &ann, "a/x"));
        assert!(reads(&rules, &ann, "plain/x") && writes(&rules, &ann, "plain/x"));
        assert!(!reads(&rules, &ann, "a/secret") && !writes(&rules, &ann, "a/secret"));
        assert!(reads(&rules, &ann, "late"), "a section may be continued");
        assert!(!reads(&rules, &bob, "a/x"));
        assert!(writes(&rules, &bob, "b/x") && !reads(&rules, &bob, "b/x"));
    }

    #[test]
    fn patterns_are_for_everyone_wherever_they_stand() {
        let rules = rules(FILE);
        let (ann, bob) = (who(Some("ann lee"), "c1"), who(Some("bob"), "c2"));
        assert!(writes(&rules, &ann, "up/ann lee/c1") && !writes(&rules, &bob, "up/ann lee/c1"));
        assert!(reads(&rules, &bob, "down/c2/x") && !reads(&rules, &bob, "down/c1/x"));
        assert!(reads(&rules, &who(None, "c3"), "down/c3/x"));
        assert!(!reads(&rules, &bob, "down/c2/secret"), "deny before read");
        for client in ["#", "+", "c2/x"] {
            assert!(!reads(&rules, &who(None, client), "down/c2/x"), "{client}");
        }
    }

    #[test]
    fn a_name_is_no_pattern_and_a_topic_no_template() {
        let rules = rules("user *\ntopic x\nuser ann\ntopic %u/%c\n");
        assert!(!reads(&rules, &who(Some("ann"), "c"), "x"));
        assert!(reads(&rules, &who(Some("*"), "c"), "x"));
        assert!(!reads(&rules, &who(Some("ann"), "c"), "ann/c"));
        assert!(reads(&rules, &who(Some("ann"), "c"), "%u/%c"));
    }

    #[test]
    fn a_wide_subscription_gives_what_may_be_read() {
        let (rules, ann) = (rules(FILE), who(Some("ann lee"), "c"));
        let granted =
            |filter: &str| rules.granted(&ann, &filter.try_into().unwrap(), QoS::AtMostOnce);
        assert_eq!(granted("#"), Some(Granted::Partly));
        assert_eq!(granted("a/b/#"), Some(Granted::Whole));
        assert_eq!(granted("a/#"), Some(Granted::Partly));
        assert_eq!(granted("b/#"), None);
        assert_eq!(granted("a/secret"), None);
    }

    #[test]
    fn every_wrong_line_is_named_with_why() {
        let problems =
            parse("user ann\ntopic\ntopic rw a\npattern a/#/b\nread a\nuser\n").unwrap_err();
        let shown: Vec<String> = problems.iter().map(Problem::to_string).collect();
        assert_eq!(
            shown,
            [
                "line 2: `topic`: a topic name or filter has at least one character",
                "line 3: `topic rw a`: `rw` is no access: allowed are `read`, `write`, `readwrite` and `deny`",
                "line 4: `pattern a/#/b`: `#` stands alone in the last level",
                "line 5: `read` is not known: allowed are `user`, `topic` and `pattern`",
                "line 6: `user` names no user",
            ]
        );
    }
}
