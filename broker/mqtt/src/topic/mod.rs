//! Topics: names, filters, shared filters, and the two indexes over them. [`TopicTree`] finds the
//! filters that match a name (routing); [`NameTree`] finds the names that a filter matches
//! (retained messages). Nothing here knows sessions, connections or packets.

mod filter;
mod mountpoint;
mod name;
mod names;
mod segment;
mod share;
#[cfg(test)]
mod strategies;
mod tree;
mod values;

pub use filter::TopicFilter;
pub use mountpoint::Mountpoint;
pub use name::TopicName;
pub use names::{NameTree, Named};
pub use share::{ShareName, SubscriptionFilter};
pub use tree::TopicTree;

use crate::reason::ReasonCode;

/// Why a text is no topic name or no topic filter. The client erred; [`TopicError::reason`] is
/// what it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    #[error("a topic name or filter has at least one character")]
    Empty,
    #[error("not a string by MQTT's rules")]
    NotText,
    #[error("a topic name has no wildcards")]
    WildcardInName,
    #[error("`#` stands alone in the last level")]
    MisplacedHash,
    #[error("`+` fills its whole level")]
    MisplacedPlus,
    #[error("a shared subscription has the form $share/NAME/FILTER, with no wildcard in NAME")]
    MalformedShare,
    #[error("a mountpoint is the name of a topic, other than one of `$`")]
    NoMountpoint,
    #[error("with the mountpoint before it, it is longer than 65,535 bytes")]
    TooLong,
}

impl TopicError {
    /// The reason code for a refusal: 0x90 for names, 0x8F for filters.
    pub fn reason(self) -> ReasonCode {
        match self {
            Self::WildcardInName => ReasonCode::TopicNameInvalid,
            Self::Empty
            | Self::NoMountpoint
            | Self::TooLong
            | Self::NotText
            | Self::MisplacedHash
            | Self::MisplacedPlus
            | Self::MalformedShare => ReasonCode::TopicFilterInvalid,
        }
    }
}

/// True where the standard keeps wildcards of the first level away from a topic. [MQTT-4.7.2-1]
fn is_hidden(topic: &str) -> bool {
    topic.starts_with('$')
}
