//! Topic names: what a message is published to. A `TopicName` is valid by construction and is
//! never normalised or altered. [MQTT-4.7.3-4]

use std::fmt;

use super::TopicError;
use crate::text::ByteStr;

/// A topic name: 1 to 65,535 bytes of MQTT text without wildcards.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicName(ByteStr);

impl TopicName {
    /// Takes a text that is valid MQTT text already.
    pub fn parse(text: ByteStr) -> Result<Self, TopicError> {
        // [MQTT-4.7.3-1]
        if text.is_empty() {
            return Err(TopicError::Empty);
        }
        // [MQTT-3.3.2-2], [MQTT-4.7.1-1]
        if text.bytes().any(|byte| byte == b'+' || byte == b'#') {
            return Err(TopicError::WildcardInName);
        }
        Ok(Self(text))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn text(&self) -> &ByteStr {
        &self.0
    }

    /// The same name in a buffer of its own; see [`ByteStr::compact`].
    #[must_use]
    pub fn compact(&self) -> Self {
        Self(self.0.compact())
    }

    /// The parts between slashes; empty ones count.
    pub fn levels(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    pub fn level_count(&self) -> usize {
        self.0.bytes().filter(|byte| *byte == b'/').count() + 1
    }

    /// True for the broker's own topics, which wildcards in the first level never match.
    pub fn starts_with_dollar(&self) -> bool {
        super::is_hidden(&self.0)
    }
}

impl TryFrom<&str> for TopicName {
    type Error = TopicError;

    fn try_from(text: &str) -> Result<Self, TopicError> {
        Self::parse(ByteStr::try_from(text).map_err(|_| TopicError::NotText)?)
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn empty_levels_count_and_are_kept() {
        let name = TopicName::try_from("/a//b/").unwrap();
        assert_eq!(name.levels().collect::<Vec<_>>(), ["", "a", "", "b", ""]);
        assert_eq!(name.level_count(), 5);
        assert_eq!(name.to_string(), "/a//b/");
    }

    #[test]
    fn names_with_wildcards_or_nothing_are_refused() {
        assert_eq!(TopicName::try_from(""), Err(TopicError::Empty));
        for text in ["+", "#", "a/+", "a+", "a#b", "a/#"] {
            assert_eq!(
                TopicName::try_from(text),
                Err(TopicError::WildcardInName),
                "{text}"
            );
        }
    }

    #[test]
    fn only_a_leading_dollar_hides_a_name() {
        assert!(TopicName::try_from("$SYS/x").unwrap().starts_with_dollar());
        assert!(!TopicName::try_from("/$SYS/x").unwrap().starts_with_dollar());
        assert!(!TopicName::try_from("a$").unwrap().starts_with_dollar());
    }
}
