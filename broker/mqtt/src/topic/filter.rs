//! Topic filters: what a subscription asks for. [`TopicFilter::matches`] is the plain reading of
//! section 4.7; the trees are tested against it.

use std::fmt;

use super::{TopicError, TopicName};
use crate::text::ByteStr;

/// A topic filter: 1 to 65,535 bytes of MQTT text with wildcards only where they may stand.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicFilter(ByteStr);

impl TopicFilter {
    /// The same filter in a buffer of its own; see [`ByteStr::compact`].
    #[must_use]
    pub fn compact(&self) -> Self {
        Self(self.0.compact())
    }

    /// Takes a text that is valid MQTT text already. A `$share/...` text is parsed by
    /// [`super::SubscriptionFilter`]; here it would be an ordinary filter.
    pub fn parse(text: ByteStr) -> Result<Self, TopicError> {
        // [MQTT-4.7.3-1]
        if text.is_empty() {
            return Err(TopicError::Empty);
        }
        let mut levels = text.split('/').peekable();
        while let Some(level) = levels.next() {
            // [MQTT-4.7.1-2]
            if level.contains('#') && (level != "#" || levels.peek().is_some()) {
                return Err(TopicError::MisplacedHash);
            }
            // [MQTT-4.7.1-3]
            if level.contains('+') && level != "+" {
                return Err(TopicError::MisplacedPlus);
            }
        }
        Ok(Self(text))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn text(&self) -> &ByteStr {
        &self.0
    }

    /// The parts between slashes; empty ones count.
    pub fn levels(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    pub fn level_count(&self) -> usize {
        self.0.bytes().filter(|byte| *byte == b'/').count() + 1
    }

    pub fn is_wildcard(&self) -> bool {
        // A valid filter has these characters as wildcards only.
        self.0.bytes().any(|byte| byte == b'+' || byte == b'#')
    }

    /// Whether a message to `name` belongs to this filter. Linear in both; allocates nothing.
    pub fn matches(&self, name: &TopicName) -> bool {
        // [MQTT-4.7.2-1]
        if name.starts_with_dollar() && self.0.starts_with(['+', '#']) {
            return false;
        }
        let mut levels = name.levels();
        for wanted in self.levels() {
            if wanted == "#" {
                return true;
            }
            match levels.next() {
                Some(level) if wanted == "+" || wanted == level => {}
                _ => return false,
            }
        }
        levels.next().is_none()
    }
}

impl TryFrom<&str> for TopicFilter {
    type Error = TopicError;

    fn try_from(text: &str) -> Result<Self, TopicError> {
        Self::parse(ByteStr::try_from(text).map_err(|_| TopicError::NotText)?)
    }
}

impl fmt::Display for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn matches(filter: &str, name: &str) -> bool {
        let filter = TopicFilter::try_from(filter).unwrap();
        filter.matches(&TopicName::try_from(name).unwrap())
    }

    #[test]
    fn wildcards_stand_only_where_they_may() {
        for text in [
            "#", "+", "/", "a/#", "+/+", "/+", "+/", "a//#", "$SYS/#", "$share/x",
        ] {
            assert!(TopicFilter::try_from(text).is_ok(), "{text}");
        }
        for text in ["a#", "#/a", "a/#/b", "##", "a/b#", "+#"] {
            assert_eq!(
                TopicFilter::try_from(text),
                Err(TopicError::MisplacedHash),
                "{text}"
            );
        }
        for text in ["a+", "+a", "a/+b/c", "++"] {
            assert_eq!(
                TopicFilter::try_from(text),
                Err(TopicError::MisplacedPlus),
                "{text}"
            );
        }
        assert_eq!(TopicFilter::try_from(""), Err(TopicError::Empty));
    }

    #[test]
    fn hash_matches_its_parent_and_everything_below() {
        for name in [
            "sport/tennis",
            "sport/tennis/",
            "sport/tennis/a",
            "sport/tennis/a/b",
        ] {
            assert!(matches("sport/tennis/#", name), "{name}");
        }
        assert!(!matches("sport/tennis/#", "sport"));
        assert!(!matches("sport/tennis/#", "sport/tennis2"));
        assert!(matches("#", "a/b") && matches("#", "/"));
    }

    #[test]
    fn plus_matches_one_level_even_an_empty_one() {
        assert!(matches("sport/+", "sport/a") && matches("sport/+", "sport/"));
        assert!(!matches("sport/+", "sport") && !matches("sport/+", "sport/a/b"));
        assert!(matches("+/+", "/finance") && matches("/+", "/finance"));
        assert!(!matches("+", "/finance"));
    }

    #[test]
    fn first_level_wildcards_never_match_dollar_topics() {
        assert!(!matches("#", "$SYS/a") && !matches("+/a", "$SYS/a") && !matches("+", "$SYS"));
        assert!(matches("$SYS/#", "$SYS/a") && matches("$SYS/+", "$SYS/a"));
        assert!(matches("$SYS/#", "$SYS"));
        assert!(matches("a/#", "a/$SYS") && matches("+/+", "a/$b"));
    }

    #[test]
    fn case_and_slashes_are_taken_as_given() {
        assert!(!matches("ACCOUNTS", "Accounts"));
        assert!(!matches("/finance", "finance") && !matches("a/", "a") && !matches("a", "a/"));
    }

    #[test]
    fn counts_levels_and_knows_wildcards() {
        assert_eq!(TopicFilter::try_from("a/+/").unwrap().level_count(), 3);
        assert!(TopicFilter::try_from("a/+/").unwrap().is_wildcard());
        assert!(!TopicFilter::try_from("a/b").unwrap().is_wildcard());
    }
}
