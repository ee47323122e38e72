//! Mountpoints: a place in the tree of topics that is the whole tree to the clients of a listener. What they name gets the
//! mountpoint put before it, what they are sent loses it.

use std::fmt;
use std::sync::Arc;

use super::{SubscriptionFilter, TopicError, TopicFilter, TopicName};
use crate::text::ByteStr;

/// The begin of every topic of some clients: whole levels, the last `/` included.
#[derive(Clone, PartialEq, Eq)]
pub struct Mountpoint(Arc<ByteStr>);

impl Mountpoint {
    /// Takes the name of the topic that everything is to lie below, with or without the last `/`.
    pub fn parse(text: &str) -> Result<Self, TopicError> {
        let name = TopicName::try_from(text)?;
        let text = text.strip_suffix('/').unwrap_or(text);
        if name.starts_with_dollar() || text.is_empty() {
            return Err(TopicError::NoMountpoint);
        }
        Ok(Self(Arc::new(joined(text, "/")?)))
    }

    /// The topic with this name to the clients here.
    pub fn name(&self, name: &TopicName) -> Result<TopicName, TopicError> {
        TopicName::parse(joined(&self.0, name.as_str())?)
    }

    /// The subscription that these clients mean. A share keeps its name.
    pub fn filter(&self, theirs: &SubscriptionFilter) -> Result<SubscriptionFilter, TopicError> {
        Ok(SubscriptionFilter {
            share: theirs.share.clone(),
            filter: TopicFilter::parse(joined(&self.0, theirs.filter.as_str())?)?,
        })
    }

    /// What a topic is called here; none for one that does not lie below.
    pub fn inside<'a>(&self, topic: &'a str) -> Option<&'a str> {
        topic
            .strip_prefix(self.0.as_str())
            .filter(|rest| !rest.is_empty())
    }
}

fn joined(first: &str, second: &str) -> Result<ByteStr, TopicError> {
    // [MQTT-4.7.3-3]
    ByteStr::try_from([first, second].concat()).map_err(|_| TopicError::TooLong)
}

impl fmt::Display for Mountpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Mountpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0.as_str(), f)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_last_slash_may_be_left_out() {
        for text in ["site/a", "site/a/"] {
            assert_eq!(Mountpoint::parse(text).unwrap().to_string(), "site/a/");
        }
        assert_eq!(Mountpoint::parse("a//").unwrap().to_string(), "a//");
    }

    #[test]
    fn what_hides_everything_or_is_no_place_is_refused() {
        for text in ["", "/", "$SYS", "$SYS/x/", "a/+", "#"] {
            assert!(Mountpoint::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_get_it_and_lose_it() {
        let mountpoint = Mountpoint::parse("m").unwrap();
        for (theirs, whole) in [("t", "m/t"), ("/t", "m//t"), ("$x/y", "m/$x/y")] {
            let name = mountpoint.name(&theirs.try_into().unwrap()).unwrap();
            assert_eq!(name.as_str(), whole);
            assert_eq!(mountpoint.inside(whole), Some(theirs));
        }
        for outside in ["m", "m/", "mt", "n/t"] {
            assert_eq!(mountpoint.inside(outside), None, "{outside}");
        }
    }

    #[test]
    fn filters_get_it_behind_the_name_of_a_share() {
        let mountpoint = Mountpoint::parse("m/").unwrap();
        for (theirs, whole) in [
            ("#", "m/#"),
            ("+/t", "m/+/t"),
            ("$share/g/+", "$share/g/m/+"),
        ] {
            let filter = mountpoint.filter(&theirs.try_into().unwrap()).unwrap();
            assert_eq!(filter.to_string(), whole);
        }
    }

    #[test]
    fn a_topic_that_becomes_too_long_is_refused() {
        let mountpoint = Mountpoint::parse("m/").unwrap();
        let long = "t".repeat(65_534);
        let name = TopicName::try_from(long.as_str()).unwrap();
        assert_eq!(mountpoint.name(&name), Err(TopicError::TooLong));
        let filter = SubscriptionFilter::try_from(long.as_str()).unwrap();
        assert_eq!(mountpoint.filter(&filter), Err(TopicError::TooLong));
        let fits = TopicName::try_from(&long[1..]).unwrap();
        assert_eq!(mountpoint.name(&fits).unwrap().as_str().len(), 65_535);
    }
}
