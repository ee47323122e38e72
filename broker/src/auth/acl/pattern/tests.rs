//! Filters of rules against text and against sets of names.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn named(username: Option<&str>, client: &str) -> Subject {
    Subject::new(username.map(Into::into), client.try_into().unwrap(), None)
}

fn matches(pattern: &str, subject: &Subject, effect: Effect, name: &str) -> bool {
    let pattern = Pattern::parse(pattern).unwrap();
    let filled = pattern.filled(subject, effect);
    filled.is_some_and(|filled| filled.matches(&name.try_into().unwrap()))
}

fn relation(pattern: &str, filter: &str) -> Relation {
    let (pattern, subject) = (Pattern::parse(pattern).unwrap(), named(None, "c"));
    let filled = pattern.filled(&subject, Effect::Allow).unwrap();
    filled.relation(&filter.try_into().unwrap())
}

#[test]
fn values_are_filled_in_wherever_they_stand() {
    let ann = named(Some("ann"), "c-1");
    for (pattern, name) in [
        ("dev/%c/+", "dev/c-1/x"),
        ("%u/%c/#", "ann/c-1"),
        ("a/%u-%c!", "a/ann-c-1!"),
        ("%%u/%x/%", "%ann/%x/%"),
    ] {
        assert!(matches(pattern, &ann, Effect::Allow, name), "{pattern}");
    }
    assert!(!matches("dev/%c/+", &ann, Effect::Allow, "dev/c-2/x"));
}

#[test]
fn a_client_without_a_user_name_has_no_part_in_a_filter_with_one() {
    for effect in [Effect::Allow, Effect::Deny] {
        assert!(!matches("a/%u", &named(None, "c"), effect, "a/"));
    }
}

#[test]
fn nobody_widens_a_grant_by_what_he_calls_himself() {
    for client in ["#", "+", "a/b", "/", "+/#", "a#", "$SYS"] {
        let subject = named(Some(client), client);
        for (pattern, name) in [
            ("%c/#", "x"),
            ("%c/#", "x/y"),
            ("%u/#", "a/b/c"),
            ("%c/#", "a/b/c"),
            ("%c/#", "$SYS/broker/uptime"),
            ("dev/%c/+", "dev/x/y"),
            ("dev/%c/+", "dev/a/b/y"),
            ("dev/x%c", "dev/xa/b"),
        ] {
            let allowed = matches(pattern, &subject, Effect::Allow, name);
            assert!(!allowed, "{client} by {pattern} to {name}");
        }
    }
    assert!(matches("$%c/x", &named(None, "a"), Effect::Allow, "$a/x"));
}

#[test]
fn nobody_escapes_a_denial_by_what_he_calls_himself() {
    assert!(matches(
        "own/%c",
        &named(None, "a/b"),
        Effect::Deny,
        "own/a/b"
    ));
    assert!(matches("%c/x", &named(None, "$a"), Effect::Deny, "$a/x"));
    assert!(!matches("own/%c", &named(None, "#"), Effect::Deny, "own/a"));
    let own = Pattern::parse("own/%c").unwrap();
    let slash = named(None, "a/b");
    let filled = own.filled(&slash, Effect::Deny).unwrap();
    assert_eq!(
        filled.relation(&"own/#".try_into().unwrap()),
        Relation::Overlaps
    );
    assert!(own.filled(&named(None, "#"), Effect::Deny).is_none());
}

#[test]
fn what_is_no_filter_of_a_rule_is_refused() {
    assert_eq!(Pattern::parse("$share/g/a"), Err(PatternError::Share));
    for text in ["", "a/#/b", "a+", "%c#"] {
        assert!(
            matches!(Pattern::parse(text), Err(PatternError::Filter(_))),
            "{text}"
        );
    }
}

#[test]
fn the_brokers_own_topics_are_named_or_not_meant() {
    assert_eq!(relation("#", "$SYS/#"), Relation::Apart);
    assert_eq!(relation("+/x", "$SYS/x"), Relation::Apart);
    assert_eq!(relation("$SYS/#", "#"), Relation::Apart);
    assert_eq!(relation("$SYS/#", "$SYS/broker/+"), Relation::Covers);
}

#[test]
fn a_parent_belongs_to_what_is_below_it() {
    assert_eq!(relation("a/#", "a"), Relation::Covers);
    assert_eq!(relation("a/+", "a/#"), Relation::Overlaps);
    assert_eq!(relation("a/+/#", "a/#"), Relation::Overlaps);
    assert_eq!(relation("+/#", "#"), Relation::Covers);
    assert_eq!(relation("a", "a/#"), Relation::Overlaps);
}

fn level() -> impl Strategy<Value = &'static str> {
    prop_oneof![3 => Just("a"), 3 => Just("b"), 1 => Just("$s"), 1 => Just(""), 3 => Just("+")]
}

fn filter() -> impl Strategy<Value = String> {
    let levels = prop::collection::vec(level(), 1..4);
    (levels, 0..3).prop_map(|(levels, rest)| {
        let filter = levels.join("/");
        match rest {
            0 => format!("{filter}/#"),
            1 if levels.len() == 1 => "#".to_owned(),
            _ if filter.is_empty() => "/".to_owned(),
            _ => filter,
        }
    })
}

/// Every text of up to so many levels out of these, but for the empty one.
fn texts(levels: &[&str], depth: usize) -> Vec<String> {
    let mut longest: Vec<String> = levels.iter().map(|&level| level.into()).collect();
    let mut all = longest.clone();
    for _ in 1..depth {
        let pairs = longest
            .iter()
            .flat_map(|text| levels.iter().map(move |level| (text, level)));
        longest = pairs
            .map(|(text, level)| format!("{text}/{level}"))
            .collect();
        all.extend_from_slice(&longest);
    }
    all.retain(|text| !text.is_empty());
    all
}

/// What the head of this module says, by text: the filter with the name put in, where it may be put in.
fn naive(pattern: &str, client: &str, effect: Effect) -> Option<Pattern> {
    let odd = client.contains(['+', '#'])
        || effect == Effect::Allow
            && (client.contains('/') || pattern.starts_with("%c") && client.starts_with('$'));
    (!odd).then(|| Pattern::literal(&pattern.replace("%c", client)).unwrap())
}

proptest! {
    #[test]
    fn filled_filters_are_those_with_the_name_put_in(
        pattern in prop_oneof![
            Just("%c"), Just("%c/#"), Just("a/%c/+"), Just("+/x%c"), Just("a%ca/%c"), Just("$%c")
        ],
        client in "[ab/+#$]{1,4}",
        name in "[ab$x]{1,3}(/[ab$]{0,3}){0,3}",
        other in filter(),
        deny in any::<bool>(),
    ) {
        let effect = if deny { Effect::Deny } else { Effect::Allow };
        let (parsed, subject) = (Pattern::parse(pattern).unwrap(), named(None, &client));
        let nobody = named(None, "x");
        let filled = parsed.filled(&subject, effect);
        let plain = naive(pattern, &client, effect);
        prop_assert_eq!(filled.is_some(), plain.is_some());
        let (Some(filled), Some(plain)) = (filled, plain) else { return Ok(()) };
        let plain = plain.filled(&nobody, effect).unwrap();
        let name = TopicName::try_from(name.as_str()).unwrap();
        prop_assert_eq!(filled.matches(&name), plain.matches(&name));
        let other = TopicFilter::try_from(other.as_str()).unwrap();
        prop_assert_eq!(filled.relation(&other), plain.relation(&other), "{}", other);
    }
}

#[test]
fn relations_are_those_of_the_sets_of_names() {
    // With a word that no filter has.
    let names = texts(&["a", "$s", "", "other"], 5);
    let names: Vec<_> = names
        .iter()
        .map(|name| TopicName::try_from(name.as_str()).unwrap())
        .collect();
    let mut filters = texts(&["a", "$s", "", "+"], 3);
    filters.extend(
        texts(&["a", "$s", "", "+"], 3)
            .iter()
            .map(|above| format!("{above}/#")),
    );
    filters.extend(["#".into(), "/#".into()]);
    let subject = named(None, "c");
    let belong = |filter: &String| -> Vec<bool> {
        let (pattern, filter) = (
            Pattern::parse(filter).unwrap(),
            TopicFilter::try_from(filter.as_str()).unwrap(),
        );
        let filled = pattern.filled(&subject, Effect::Allow).unwrap();
        names
            .iter()
            .for_each(|name| assert_eq!(filled.matches(name), filter.matches(name)));
        names.iter().map(|name| filter.matches(name)).collect()
    };
    let sets: Vec<_> = filters.iter().map(belong).collect();
    for (ours, our_names) in filters.iter().zip(&sets) {
        for (theirs, their_names) in filters.iter().zip(&sets) {
            let (mut some, mut all) = (false, true);
            for (our, _) in our_names
                .iter()
                .zip(their_names)
                .filter(|(_, their)| **their)
            {
                some |= our;
                all &= our;
            }
            let expected = match (some, all) {
                (true, true) => Relation::Covers,
                (true, false) => Relation::Overlaps,
                (false, _) => Relation::Apart,
            };
            assert_eq!(relation(ours, theirs), expected, "{ours} {theirs}");
        }
    }
}
