//! The topic filter of a rule: wildcards, and `%u` and `%c` for what a client is called. It decides which names belong to it
//! and how it lies to the filter of a subscription; who a client is, it is told.
//!
//! What a client is called is never read as a wildcard or a separator. In a grant, a name with `/`, `+` or `#` in it, or one
//! that would make a topic of the broker's own (`$...`), leaves the filter without effect, so that nobody widens a rule by
//! what he calls himself. In a denial such a name stands for itself, slashes included, so that nobody escapes a rule either.

use std::borrow::Cow;

use flotte_mqtt::topic::{TopicError, TopicFilter, TopicName};

use super::subject::{Subject, Traits};
use crate::config::acl::Effect;

/// A filter as it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    levels: Box<[Level]>,
    /// Some level has a value to be filled in.
    is_template: bool,
}

/// A filter for one client.
#[derive(Debug)]
pub struct Filled<'a> {
    levels: Cow<'a, [Level]>,
    subject: &'a Subject,
}

/// How a filter lies to the filter of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// Every name of the subscription belongs to it.
    Covers,
    /// Some do.
    Overlaps,
    /// None does.
    Apart,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Level {
    /// `+`
    One,
    /// `#`
    Rest,
    Text(Box<str>),
    /// With `%u` or `%c` in it.
    Template(Box<[Piece]>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(Box<str>),
    User,
    Client,
}

/// Why a text is no filter of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("{0}")]
    Filter(#[from] TopicError),
    #[error("a shared subscription is judged by its filter alone: leave `$share/NAME/` out")]
    Share,
}

impl Pattern {
    /// Reads a filter. `%u` and `%c` stand for the client's user name and client identifier; any other `%` is itself.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        Self::of_levels(text, Level::parse)
    }

    /// Reads a filter in which every `%` is itself.
    pub fn literal(text: &str) -> Result<Self, PatternError> {
        Self::of_levels(text, Level::literal)
    }

    fn of_levels(text: &str, level: impl Fn(&str) -> Level) -> Result<Self, PatternError> {
        let filter = TopicFilter::try_from(text)?;
        if text.starts_with("$share/") {
            return Err(PatternError::Share);
        }
        let levels: Box<[Level]> = filter.levels().map(level).collect();
        let is_template = levels
            .iter()
            .any(|level| matches!(level, Level::Template(_)));
        Ok(Self {
            levels,
            is_template,
        })
    }

    /// The filter for one client; none where it has no effect.
    pub fn filled<'a>(&'a self, subject: &'a Subject, effect: Effect) -> Option<Filled<'a>> {
        let mut levels = Cow::Borrowed(&*self.levels);
        if self.is_template {
            let mut spans_levels = false;
            for (at, level) in self.levels.iter().enumerate() {
                if let Level::Template(pieces) = level {
                    spans_levels |= check(pieces, subject, effect, at == 0)?;
                }
            }
            if spans_levels {
                levels = Cow::Owned(self.spelled_out(subject));
            }
        }
        Some(Filled { levels, subject })
    }

    /// Its levels where values have slashes in them.
    fn spelled_out(&self, subject: &Subject) -> Vec<Level> {
        let mut levels = Vec::with_capacity(self.levels.len());
        for level in &self.levels {
            let Level::Template(pieces) = level else {
                levels.push(level.clone());
                continue;
            };
            let values = pieces.iter().filter_map(|piece| piece.value(subject));
            let text: String = values.map(|(text, _)| text).collect();
            levels.extend(text.split('/').map(|level| Level::Text(level.into())));
        }
        levels
    }
}

/// Whether the values of a level span several levels; none where they leave the filter without effect. Takes no look at the
/// values themselves, as a client may make them long.
fn check(pieces: &[Piece], subject: &Subject, effect: Effect, is_first: bool) -> Option<bool> {
    let mut slash = false;
    for piece in pieces {
        // A client without a user name lacks one.
        let (_, traits) = piece.value(subject)?;
        if traits.wildcard {
            return None;
        }
        slash |= traits.slash;
    }
    let takes_dollar = is_first
        && match pieces.first() {
            Some(Piece::Text(_)) | None => false,
            Some(value) => value
                .value(subject)
                .is_some_and(|(text, _)| text.is_empty() || text.starts_with('$')),
        };
    if effect == Effect::Allow && (slash || takes_dollar) {
        return None;
    }
    Some(slash)
}

impl Piece {
    fn value<'a>(&'a self, subject: &'a Subject) -> Option<(&'a str, Traits)> {
        match self {
            Self::Text(text) => Some((text, Traits::default())),
            Self::User => subject.user_value(),
            Self::Client => Some(subject.client_value()),
        }
    }
}

impl Filled<'_> {
    /// Whether a name belongs to it, as with the filter of a subscription.
    pub fn matches(&self, name: &TopicName) -> bool {
        // [MQTT-4.7.2-1]
        if name.starts_with_dollar() && self.starts_with_wildcard() {
            return false;
        }
        let mut theirs = name.levels();
        for level in self.levels.iter() {
            match (level, theirs.next()) {
                (Level::Rest, _) => return true,
                (Level::One, Some(_)) => {}
                (level, Some(their)) if self.is_text(level, their) => {}
                _ => return false,
            }
        }
        theirs.next().is_none()
    }

    /// How it lies to the filter of a subscription.
    pub fn relation(&self, filter: &TopicFilter) -> Relation {
        if self.covers(filter) {
            Relation::Covers
        } else if self.overlaps(filter) {
            Relation::Overlaps
        } else {
            Relation::Apart
        }
    }

    fn covers(&self, filter: &TopicFilter) -> bool {
        // [MQTT-4.7.2-1]
        if filter.as_str().starts_with('$') && self.starts_with_wildcard() {
            return false;
        }
        // Every name has a first level.
        if filter.as_str() == "#" && matches!(*self.levels, [Level::One, Level::Rest]) {
            return true;
        }
        let mut theirs = filter.levels();
        for level in self.levels.iter() {
            match (level, theirs.next()) {
                // With its parent.
                (Level::Rest, _) => return true,
                (Level::One, Some(their)) if their != "#" => {}
                (level, Some(their)) if self.is_text(level, their) => {}
                _ => return false,
            }
        }
        theirs.next().is_none()
    }

    fn overlaps(&self, filter: &TopicFilter) -> bool {
        let their_wildcard = filter.as_str().starts_with(['+', '#']);
        let our_dollar = self.starts_with_dollar();
        // [MQTT-4.7.2-1]
        if our_dollar && their_wildcard
            || filter.as_str().starts_with('$') && self.starts_with_wildcard()
        {
            return false;
        }
        let (mut ours, mut theirs) = (self.levels.iter(), filter.levels());
        loop {
            match (ours.next(), theirs.next()) {
                (Some(Level::Rest), _) | (_, Some("#")) | (None, None) => return true,
                (Some(Level::One), Some(_)) | (Some(_), Some("+")) => {}
                (Some(level), Some(their)) if self.is_text(level, their) => {}
                _ => return false,
            }
        }
    }

    /// Whether a level is this text, which is no wildcard.
    fn is_text(&self, level: &Level, their: &str) -> bool {
        match level {
            Level::One | Level::Rest => false,
            Level::Text(text) => **text == *their,
            Level::Template(pieces) => {
                let rest = pieces.iter().try_fold(their, |rest, piece| {
                    rest.strip_prefix(piece.value(self.subject)?.0)
                });
                rest == Some("")
            }
        }
    }

    fn starts_with_dollar(&self) -> bool {
        match self.levels.first() {
            Some(Level::Text(text)) => text.starts_with('$'),
            Some(Level::Template(pieces)) => {
                let mut values = pieces.iter().filter_map(|piece| piece.value(self.subject));
                values
                    .find(|(text, _)| !text.is_empty())
                    .is_some_and(|(text, _)| text.starts_with('$'))
            }
            Some(Level::One | Level::Rest) | None => false,
        }
    }

    fn starts_with_wildcard(&self) -> bool {
        matches!(self.levels.first(), Some(Level::One | Level::Rest))
    }
}

impl Level {
    fn parse(text: &str) -> Self {
        if text.contains("%u") || text.contains("%c") {
            Self::Template(pieces(text))
        } else {
            Self::literal(text)
        }
    }

    fn literal(text: &str) -> Self {
        match text {
            "+" => Self::One,
            "#" => Self::Rest,
            text => Self::Text(text.into()),
        }
    }
}

fn pieces(text: &str) -> Box<[Piece]> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    let mut from = 0;
    while let Some(at) = rest[from..].find('%').map(|at| at + from) {
        let value = match rest.as_bytes().get(at + 1) {
            Some(b'u') => Piece::User,
            Some(b'c') => Piece::Client,
            _ => {
                from = at + 1;
                continue;
            }
        };
        if at > 0 {
            pieces.push(Piece::Text(rest[..at].into()));
        }
        pieces.push(value);
        (rest, from) = (&rest[at + 2..], 0);
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.into()));
    }
    pieces.into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
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

    /// Every name of up to five levels over an alphabet that has a word which no filter has.
    fn names() -> Vec<TopicName> {
        let mut names = Vec::new();
        let mut longest = vec![String::new()];
        for depth in 0..5 {
            let longer = |name: &String| {
                ["a", "b", "$s", "", "other"].map(|level| {
                    let separator = if depth == 0 { "" } else { "/" };
                    format!("{name}{separator}{level}")
                })
            };
            longest = longest.iter().flat_map(longer).collect();
            let valid = longest.iter().filter(|name| !name.is_empty());
            names.extend(valid.map(|name| TopicName::try_from(name.as_str()).unwrap()));
        }
        names
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
        let names = names();
        let config = ProptestConfig::with_cases(400);
        proptest!(config, |(ours in filter(), theirs in filter())| {
            let (pattern, subject) = (Pattern::parse(&ours).unwrap(), named(None, "c"));
            let filled = pattern.filled(&subject, Effect::Allow).unwrap();
            let (ours, theirs) = (
                TopicFilter::try_from(ours.as_str()).unwrap(),
                TopicFilter::try_from(theirs.as_str()).unwrap(),
            );
            let (mut some, mut all) = (false, true);
            for name in &names {
                prop_assert_eq!(filled.matches(name), ours.matches(name));
                if theirs.matches(name) {
                    some |= ours.matches(name);
                    all &= ours.matches(name);
                }
            }
            let expected = match (some, all) {
                (true, true) => Relation::Covers,
                (true, false) => Relation::Overlaps,
                (false, _) => Relation::Apart,
            };
            prop_assert_eq!(filled.relation(&theirs), expected, "{} {}", ours, theirs);
        });
    }
}
