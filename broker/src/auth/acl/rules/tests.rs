//! The rules against the text of the documentation, and against a naive model that knows neither index nor relation.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::auth::acl::subject::Glob;

fn subject(username: Option<&str>, client: &str) -> Subject {
    Subject::new(
        username.map(Into::into),
        client.try_into().unwrap(),
        Some("127.0.0.1".parse().unwrap()),
    )
}

fn rule(effect: Effect, action: Action, topics: &[&str]) -> Rule {
    let patterns = topics.iter().map(|text| Pattern::parse(text).unwrap());
    Rule {
        effect,
        who: Who::default(),
        action,
        topics: Some(patterns.collect()),
        qos: QosSet::ALL,
        retain: None,
    }
}

fn of_user(user: &str, rule: Rule) -> Rule {
    let user = Some(User::Named(Glob::new(user)));
    Rule {
        who: Who { user, ..rule.who },
        ..rule
    }
}

fn publishes(rules: &Rules, who: &Subject, topic: &str) -> bool {
    rules.may_publish(who, &topic.try_into().unwrap(), QoS::AtLeastOnce, false)
}

fn receives(rules: &Rules, who: &Subject, topic: &str) -> bool {
    rules.may_receive(who, &topic.try_into().unwrap(), QoS::AtLeastOnce)
}

fn granted(rules: &Rules, who: &Subject, filter: &str) -> Option<Granted> {
    rules.granted(who, &filter.try_into().unwrap(), QoS::AtLeastOnce)
}

use Action::{All, Publish, Subscribe};
use Effect::{Allow, Deny};

#[test]
fn the_first_rule_that_fits_decides_and_the_default_where_none_does() {
    let rules = vec![
        rule(Deny, Publish, &["a/secret"]),
        of_user("ann", rule(Allow, All, &["a/#"])),
        rule(Deny, All, &["a/#", "b/#"]),
        of_user("ann", rule(Allow, All, &["b/#"])),
    ];
    for default in [Allow, Deny] {
        let rules = Rules::new(rules.clone(), default, Wide::Refused);
        let (ann, bob) = (subject(Some("ann"), "c"), subject(Some("bob"), "c"));
        assert!(!publishes(&rules, &ann, "a/secret"));
        assert!(
            receives(&rules, &ann, "a/secret"),
            "only publishing is denied"
        );
        assert!(publishes(&rules, &ann, "a/x") && !publishes(&rules, &bob, "a/x"));
        assert!(
            !publishes(&rules, &ann, "b/x"),
            "the later rule comes too late"
        );
        assert_eq!(publishes(&rules, &ann, "c"), default == Allow);
        assert_eq!(receives(&rules, &bob, "c"), default == Allow);
    }
}

#[test]
fn a_subscription_is_judged_by_the_first_rule_that_covers_it_wholly() {
    let rules = vec![
        rule(Deny, Subscribe, &["a/secret/#"]),
        rule(Allow, Subscribe, &["a/#"]),
        rule(Deny, Subscribe, &["#"]),
        rule(Allow, Subscribe, &["b"]),
    ];
    let rules = Rules::new(rules, Allow, Wide::Refused);
    let who = subject(None, "c");
    assert_eq!(granted(&rules, &who, "a/secret/x"), None);
    assert_eq!(granted(&rules, &who, "a/x/+"), Some(Granted::Whole));
    assert_eq!(granted(&rules, &who, "a/+/x"), Some(Granted::Partly));
    assert_eq!(granted(&rules, &who, "a/#"), Some(Granted::Partly));
    assert_eq!(granted(&rules, &who, "+/x"), None);
    assert_eq!(granted(&rules, &who, "b"), None);
    assert!(receives(&rules, &who, "a/x") && !receives(&rules, &who, "a/secret"));
    assert!(!receives(&rules, &who, "b"));
}

#[test]
fn a_wide_subscription_is_narrowed_where_that_is_the_way() {
    let rules = vec![
        rule(Deny, Subscribe, &["a/secret"]),
        rule(Allow, Subscribe, &["a/+"]),
    ];
    let narrowed = Rules::new(rules.clone(), Deny, Wide::Narrowed);
    let refused = Rules::new(rules, Deny, Wide::Refused);
    let who = subject(None, "c");
    assert_eq!(granted(&narrowed, &who, "#"), Some(Granted::Partly));
    assert_eq!(granted(&refused, &who, "#"), None);
    for rules in [narrowed, refused] {
        assert_eq!(
            granted(&rules, &who, "b/#"),
            None,
            "nothing of it is allowed"
        );
        assert_eq!(granted(&rules, &who, "a/secret"), None);
        assert_eq!(granted(&rules, &who, "a/x"), Some(Granted::Whole));
    }
}

#[test]
fn what_a_client_remembers_of_rules_is_of_those_rules_only() {
    let every = |user: &str| of_user(user, rule(Allow, All, &["#"]));
    let many = (0..200).map(|_| every("ann")).collect();
    let who = subject(Some("ann"), "c");
    for (generation, rules, allowed) in [
        (1, vec![every("ann")], true),
        (2, vec![every("bob")], false),
        (3, many, true),
        (4, vec![every("a*")], true),
        (5, vec![], false),
    ] {
        let rules = Rules::new(rules, Deny, Wide::Refused).numbered(generation);
        for _ in 0..2 {
            assert_eq!(publishes(&rules, &who, "x"), allowed, "{generation}");
        }
    }
}

#[test]
fn qos_and_retain_narrow_a_rule() {
    let low = Rule {
        qos: [QoS::AtMostOnce].into_iter().collect(),
        ..rule(Allow, All, &["a"])
    };
    let retained = Rule {
        retain: Some(true),
        ..rule(Deny, All, &["r"])
    };
    let rules = Rules::new(
        vec![low, retained, rule(Allow, All, &["r"])],
        Deny,
        Wide::Refused,
    );
    let (who, a, r) = (
        subject(None, "c"),
        "a".try_into().unwrap(),
        "r".try_into().unwrap(),
    );
    assert!(rules.may_publish(&who, &a, QoS::AtMostOnce, true));
    assert!(!rules.may_publish(&who, &a, QoS::AtLeastOnce, true));
    assert_eq!(
        rules.received_qos(&who, &a, QoS::ExactlyOnce),
        Some(QoS::AtMostOnce)
    );
    let granted = |qos| rules.granted(&who, &"a".try_into().unwrap(), qos);
    assert_eq!(granted(QoS::AtMostOnce), Some(Granted::Whole));
    assert_eq!(granted(QoS::ExactlyOnce), None);
    assert!(rules.may_publish(&who, &r, QoS::AtLeastOnce, false));
    assert!(!rules.may_publish(&who, &r, QoS::AtLeastOnce, true));
    assert!(receives(&rules, &who, "r"), "retain is about publishes");
}

#[test]
fn a_rule_without_topics_means_every_topic() {
    let every = Rule {
        topics: None,
        ..rule(Deny, All, &[])
    };
    let rules = Rules::new(vec![of_user("ann", every)], Allow, Wide::Refused);
    let ann = subject(Some("ann"), "c");
    assert!(!publishes(&rules, &ann, "$SYS/x") && !publishes(&rules, &ann, "x"));
    assert_eq!(granted(&rules, &ann, "$SYS/#"), None);
    assert_eq!(
        granted(&rules, &subject(None, "c"), "#"),
        Some(Granted::Whole)
    );
}

/// What the documentation says, without index: by user and client, in order.
fn naive<'a>(rules: &'a [Rule], who: &Subject, action: Action) -> Vec<&'a Rule> {
    let mine =
        |rule: &&Rule| rule.who.includes(who) && (rule.action == action || rule.action == All);
    rules.iter().filter(mine).collect()
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let effect = prop_oneof![Just(Allow), Just(Deny)];
    let action = prop_oneof![Just(Publish), Just(Subscribe), Just(All)];
    let topic = prop_oneof![
        Just("a"),
        Just("a/#"),
        Just("+/b"),
        Just("#"),
        Just("a/b"),
        Just("%c/#"),
        Just("a/%u"),
        Just("$s/#")
    ];
    let user = prop_oneof![
        Just(None),
        Just(Some("ann")),
        Just(Some("a*")),
        Just(Some("bob"))
    ];
    let client = prop_oneof![4 => Just(None), 1 => Just(Some("a")), 1 => Just(Some("?"))];
    let topics = prop::collection::vec(topic, 1..3);
    (effect, action, topics, user, client).prop_map(|(effect, action, topics, user, client)| Rule {
        who: Who {
            user: user.map(|user| User::Named(Glob::new(user))),
            client: client.map(Glob::new),
            ..Who::default()
        },
        ..rule(effect, action, &topics)
    })
}

proptest! {
    #[test]
    fn decisions_are_those_of_the_naive_model(
        list in prop::collection::vec(any_rule(), 0..7),
        username in prop_oneof![Just(None), Just(Some("ann")), Just(Some("bob"))],
        client in prop_oneof![Just("a"), Just("c"), Just("a/b"), Just("#"), Just("$s")],
        default in prop_oneof![Just(Allow), Just(Deny)],
    ) {
        let who = subject(username, client);
        let rules = Rules::new(list.clone(), default, Wide::Refused);
        let topics = ["a", "a/b", "b/b", "c", "a/b/c", "a/ann", "$s", "$s/b"];
        let decided = |action, topic: &str| {
            let name: TopicName = topic.try_into().unwrap();
            let all = naive(&list, &who, action);
            let first = all.into_iter().find(|rule| rule.matches(&name, &who));
            first.map_or(default, |rule| rule.effect) == Allow
        };
        for topic in topics {
            prop_assert_eq!(publishes(&rules, &who, topic), decided(Publish, topic));
            prop_assert_eq!(receives(&rules, &who, topic), decided(Subscribe, topic));
        }
        for filter in ["#", "a/#", "a/+", "+/b", "a", "+", "$s/#", "a/b"] {
            let parsed: TopicFilter = filter.try_into().unwrap();
            let inside = |topic: &&&str| parsed.matches(&(**topic).try_into().unwrap());
            let covering = naive(&list, &who, Subscribe).into_iter().find(|rule| {
                rule.relation(&parsed, &who) == Relation::Covers
            });
            let allowed = covering.map_or(default, |rule| rule.effect) == Allow;
            let answer = granted(&rules, &who, filter);
            prop_assert_eq!(answer.is_some(), allowed);
            // What is granted wholly needs no look at deliveries.
            if answer == Some(Granted::Whole) {
                for topic in topics.iter().filter(inside) {
                    prop_assert!(receives(&rules, &who, topic), "{} {}", filter, topic);
                }
            }
            // With wide subscriptions narrowed, what is refused would have given nothing.
            let narrowed = Rules::new(list.clone(), default, Wide::Narrowed);
            if granted(&narrowed, &who, filter).is_none() {
                for topic in topics.iter().filter(inside) {
                    prop_assert!(!receives(&narrowed, &who, topic), "{} {}", filter, topic);
                }
            }
        }
    }
}
