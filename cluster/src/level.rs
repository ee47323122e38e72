//! Feature levels: what the nodes of a cluster understand, so that two versions run together while one replaces the other. A node says
//! the highest level that it knows; the cluster's level is the lowest of all its members, and never falls. What came with a level is used
//! only once the cluster has it.

use std::fmt;

use bytes::Bytes;

/// One level; the first is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FeatureLevel(u32);

impl FeatureLevel {
    /// What every node understands.
    pub const FIRST: FeatureLevel = FeatureLevel(1);

    /// The highest that this version knows. Raised by whoever adds a command, a field that changes what a command does, or a kind
    /// of snapshot record.
    pub const KNOWN: FeatureLevel = FeatureLevel(1);

    /// As it stands in a message; nodes that say nothing know the first.
    pub fn said(number: u32) -> FeatureLevel {
        FeatureLevel(number.max(Self::FIRST.0))
    }

    /// For a message, or for people.
    pub fn number(self) -> u32 {
        self.0
    }
}

impl Default for FeatureLevel {
    fn default() -> Self {
        Self::FIRST
    }
}

impl fmt::Display for FeatureLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a command, encoded as the one field that is set of its message, cannot be applied here.
pub(crate) fn unknown_command(command: &Bytes) -> String {
    let field = prost::encoding::decode_key(&mut command.clone());
    let name = field.map_or_else(|_| "a command".into(), |(tag, _)| format!("command {tag}"));
    format!(
        "{name} is of a later version: this one knows feature level {}; start the version that was here before, or a newer one",
        FeatureLevel::KNOWN
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_nothing_knows_the_first_level() {
        assert_eq!(FeatureLevel::said(0), FeatureLevel::FIRST);
        assert_eq!(FeatureLevel::said(7).number(), 7);
    }

    #[test]
    fn a_command_of_a_later_version_is_named() {
        // Field 99, of length 0.
        let why = unknown_command(&Bytes::from_static(&[0x9a, 0x06, 0x00]));
        assert!(why.starts_with("command 99 is of a later version"), "{why}");
        assert!(why.contains("feature level 1"), "{why}");
        assert!(unknown_command(&Bytes::new()).starts_with("a command is"));
    }
}
