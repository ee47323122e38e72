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
        let mut theirs = spread(filter);
        for level in self.spread() {
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
        let (mut ours, mut theirs) = (self.spread(), spread(filter));
        loop {
            match (ours.next(), theirs.next()) {
                (Some(Level::Rest), _) | (_, Some("#")) | (None, None) => return true,
                (Some(Level::One), Some(_)) | (Some(_), Some("+")) => {}
                (Some(level), Some(their)) if self.is_text(level, their) => {}
                _ => return false,
            }
        }
    }

    /// Its levels, spread as those of [`spread`].
    fn spread(&self) -> impl Iterator<Item = &Level> {
        let is_parentless = match &*self.levels {
            [Level::Rest] => true,
            [first, Level::Rest] => self.is_text(first, ""),
            _ => false,
        };
        let (head, tail) = match is_parentless {
            true => self.levels.split_at(self.levels.len() - 1),
            false => (&*self.levels, &[] as _),
        };
        let one = is_parentless.then_some(&Level::One);
        head.iter().chain(one).chain(tail)
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

/// The levels of a filter, `#` and `/#` as `+/#` and `/+/#`: their parent would be the name without a character, which is
/// none, so the same names belong to them.
fn spread(filter: &TopicFilter) -> impl Iterator<Item = &str> {
    let spread = match filter.as_str() {
        "#" => "+/#",
        "/#" => "/+/#",
        other => other,
    };
    spread.split('/')
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
mod tests;
