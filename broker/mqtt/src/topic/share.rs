//! What a SUBSCRIBE names: a topic filter, or a share of one. Parses and prints `$share/NAME/FILTER`
//! and knows nothing of who gets which message.

use std::fmt;

use super::{TopicError, TopicFilter};
use crate::text::ByteStr;

const PREFIX: &str = "$share/";

/// The name of a group of subscribers that share the messages of a filter.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShareName(ByteStr);

impl ShareName {
    /// Takes a text that is valid MQTT text already.
    pub fn parse(text: ByteStr) -> Result<Self, TopicError> {
        // [MQTT-4.8.2-1], [MQTT-4.8.2-2]
        if text.is_empty() || text.contains(['/', '+', '#']) {
            return Err(TopicError::MalformedShare);
        }
        Ok(Self(text))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ShareName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ShareName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// The filter of one subscription. Two subscriptions of a session are the same one exactly when
/// these are equal, so `a` and `$share/g/a` are two.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubscriptionFilter {
    pub share: Option<ShareName>,
    pub filter: TopicFilter,
}

impl SubscriptionFilter {
    /// Parses the text of a SUBSCRIBE or UNSUBSCRIBE. The parts share the text's memory.
    pub fn parse(text: ByteStr) -> Result<Self, TopicError> {
        let Some(rest) = text.strip_prefix(PREFIX) else {
            let filter = TopicFilter::parse(text)?;
            return Ok(Self {
                share: None,
                filter,
            });
        };
        // [MQTT-4.8.2-2]
        let slash = rest.find('/').ok_or(TopicError::MalformedShare)?;
        if slash + 1 == rest.len() {
            return Err(TopicError::MalformedShare);
        }
        let share = ShareName::parse(text.slice_ref(&rest[..slash]))?;
        let filter = TopicFilter::parse(text.slice_ref(&rest[slash + 1..]))?;
        Ok(Self {
            share: Some(share),
            filter,
        })
    }

    /// The same filter in buffers of its own; see [`ByteStr::compact`].
    #[must_use]
    pub fn compact(&self) -> Self {
        Self {
            share: self.share.as_ref().map(|name| ShareName(name.0.compact())),
            filter: self.filter.compact(),
        }
    }
}

impl From<TopicFilter> for SubscriptionFilter {
    fn from(filter: TopicFilter) -> Self {
        Self {
            share: None,
            filter,
        }
    }
}

impl TryFrom<&str> for SubscriptionFilter {
    type Error = TopicError;

    fn try_from(text: &str) -> Result<Self, TopicError> {
        Self::parse(ByteStr::try_from(text).map_err(|_| TopicError::NotText)?)
    }
}

impl fmt::Display for SubscriptionFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.share {
            Some(share) => write!(f, "{PREFIX}{share}/{}", self.filter),
            None => write!(f, "{}", self.filter),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn splits_share_name_and_filter_and_gives_them_back() {
        let parsed = SubscriptionFilter::try_from("$share/consumer1//finance/+").unwrap();
        assert_eq!(parsed.share.as_ref().unwrap().as_str(), "consumer1");
        assert_eq!(parsed.filter.as_str(), "/finance/+");
        assert_eq!(parsed.to_string(), "$share/consumer1//finance/+");
    }

    #[test]
    fn plain_filters_have_no_share_even_when_they_look_alike() {
        for text in ["a/b", "$share", "$shareX/x/y", "a/$share/x/y", "$SYS/#"] {
            let parsed = SubscriptionFilter::try_from(text).unwrap();
            assert_eq!(parsed.share, None, "{text}");
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn malformed_shares_are_refused() {
        for text in [
            "$share/",
            "$share//a",
            "$share/g",
            "$share/g/",
            "$share/+/a",
            "$share/g#/a",
        ] {
            let error = SubscriptionFilter::try_from(text).unwrap_err();
            assert_eq!(error, TopicError::MalformedShare, "{text}");
        }
        let error = SubscriptionFilter::try_from("$share/g/a#").unwrap_err();
        assert_eq!(error, TopicError::MisplacedHash);
    }
}
