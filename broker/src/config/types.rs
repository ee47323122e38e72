//! Settings with rules of their own: sizes, host names with a port, names of nodes and listeners, texts for clients.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use super::value::{Raw, Refusal, Setting, quoted};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// A number of bytes; written as bytes or with `B`, `KiB`, `MiB` or `GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

impl Size {
    /// So many bytes.
    pub const fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// So many KiB.
    pub const fn kib(kib: u32) -> Self {
        Self((kib as u64) << 10)
    }

    /// So many mebibytes.
    pub const fn mib(mib: u32) -> Self {
        Self(mib as u64 * MIB)
    }

    /// The size in bytes.
    pub const fn value(self) -> u64 {
        self.0
    }

    /// The size in bytes as a length in memory.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, name) in [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return write!(out, "{} {name}", self.0 / unit);
            }
        }
        write!(out, "{} B", self.0)
    }
}

/// Text that is no size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a size")]
pub struct NoSize;

impl FromStr for Size {
    type Err = NoSize;

    fn from_str(text: &str) -> Result<Self, NoSize> {
        let text = text.trim();
        let digits_len = text
            .find(|char: char| !char.is_ascii_digit() && char != '_')
            .unwrap_or(text.len());
        let (digits, unit) = text.split_at(digits_len);
        let number: u64 = digits.replace('_', "").parse().map_err(|_| NoSize)?;
        let factor = match unit.trim() {
            "" | "B" => 1,
            "KiB" => KIB,
            "MiB" => MIB,
            "GiB" => GIB,
            _ => return Err(NoSize),
        };
        number.checked_mul(factor).map(Self).ok_or(NoSize)
    }
}

impl Setting for Size {
    fn allowed() -> Cow<'static, str> {
        "bytes, or a size as \"64 KiB\", \"1 MiB\" or \"2 GiB\"".into()
    }
    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        match raw {
            Raw::Integer(bytes) => u64::try_from(*bytes).map(Self).map_err(|_| Refusal::Bad),
            other => other
                .text()
                .and_then(|text| text.parse().ok())
                .ok_or(Refusal::Bad),
        }
    }
    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }
    fn magnitude(&self) -> Option<u64> {
        Some(self.0)
    }
    fn show_magnitude(magnitude: u64) -> String {
        Self(magnitude).to_string()
    }
}

/// A host name or IP address with a port, resolved when it is used and not before.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    host: String,
    port: u16,
}

impl HostPort {
    /// The host, an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, never 0.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(out, "[{}]:{}", self.host, self.port)
        } else {
            write!(out, "{}:{}", self.host, self.port)
        }
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self {
            host: address.ip().to_string(),
            port: address.port(),
        }
    }
}

/// Text that is no host with a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a host and a port")]
pub struct NoHostPort;

impl FromStr for HostPort {
    type Err = NoHostPort;

    fn from_str(text: &str) -> Result<Self, NoHostPort> {
        let text = text.trim();
        if let Ok(address) = text.parse::<SocketAddr>() {
            return if address.port() == 0 {
                Err(NoHostPort)
            } else {
                Ok(address.into())
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or(NoHostPort)?;
        let port = port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or(NoHostPort)?;
        // RFC 1123 names, and the underscores that container networks use.
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        let labels = host.strip_suffix('.').unwrap_or(host);
        if host.len() > 253 || !labels.split('.').all(label) {
            return Err(NoHostPort);
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl Setting for HostPort {
    fn allowed() -> Cow<'static, str> {
        "a host name or IP address and a port, as node1.example:7883".into()
    }
    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        raw.text()
            .and_then(|text| text.parse().ok())
            .ok_or(Refusal::Bad)
    }
    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }
}

/// The name of a node: 1 to 64 letters, digits, `.`, `_` and `-`, as it stands in metrics and `$SYS` topics.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName(String);

impl NodeName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host name of this machine, with what a name cannot hold replaced.
    pub fn of_this_host() -> Self {
        let host = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        let allowed = |char: char| char.is_ascii_alphanumeric() || ".-_".contains(char);
        let name: String = host
            .chars()
            .map(|char| if allowed(char) { char } else { '-' })
            .take(64)
            .collect();
        Self(if name.is_empty() {
            "flotte".to_owned()
        } else {
            name
        })
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl Setting for NodeName {
    fn allowed() -> Cow<'static, str> {
        "1 to 64 letters, digits, `.`, `_` and `-`".into()
    }
    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        match raw.text() {
            Some(text)
                if (1..=64).contains(&text.len())
                    && text
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)) =>
            {
                Ok(Self(text.to_owned()))
            }
            _ => Err(Refusal::Bad),
        }
    }
    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.0))
    }
}

/// The name of a listener: 1 to 32 small letters, digits, `_` and `-`, as it stands in metrics.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerName(String);

impl ListenerName {
    /// The name of the listener that is there when none is configured.
    pub fn mqtt() -> Self {
        Self("mqtt".to_owned())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ListenerName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl Setting for ListenerName {
    fn allowed() -> Cow<'static, str> {
        "1 to 32 small letters, digits, `_` and `-`".into()
    }
    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        match raw.text() {
            Some(text)
                if (1..=32).contains(&text.len())
                    && text.bytes().all(|byte| {
                        byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte)
                    }) =>
            {
                Ok(Self(text.to_owned()))
            }
            _ => Err(Refusal::Bad),
        }
    }
    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.0))
    }
}

/// A text that clients are told: 1 to 1,024 bytes, without control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShortText(String);

impl ShortText {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Setting for ShortText {
    fn allowed() -> Cow<'static, str> {
        "a text of 1 to 1024 bytes without control characters".into()
    }
    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        match raw.text() {
            Some(text) if (1..=1_024).contains(&text.len()) && !text.contains(char::is_control) => {
                Ok(Self(text.to_owned()))
            }
            _ => Err(Refusal::Bad),
        }
    }
    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.0))
    }
}

/// The content of a key that is a table, or an array of tables, of a feature that is not there yet: only "nothing" is
/// understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nothing;

impl Setting for Nothing {
    fn allowed() -> Cow<'static, str> {
        "a table".into()
    }
    fn parse(_raw: &Raw) -> Result<Self, Refusal> {
        Err(Refusal::NotYet)
    }
    fn to_toml(&self) -> Option<String> {
        None
    }
}

/// The content of a key that is a table without keys: that it is there says everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Present;

impl Setting for Present {
    fn allowed() -> Cow<'static, str> {
        "a table without keys".into()
    }
    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        match raw {
            Raw::Table => Ok(Self),
            // The environment has no tables.
            Raw::Word(word) if word == "{}" => Ok(Self),
            _ => Err(Refusal::Bad),
        }
    }
    fn to_toml(&self) -> Option<String> {
        Some("{}".to_owned())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("17 B", 17),
            ("64 KiB", 65_536),
            ("1MiB", MIB),
            (" 2  GiB ", 2 * GIB),
            ("1_000", 1000),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "MiB",
            "1 MB",
            "1 mib",
            "-1",
            "1.5 MiB",
            "1 MiB x",
            "99999999999 GiB",
        ] {
            assert_eq!(text.parse::<Size>(), Err(NoSize), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_printed_size_reads_back_as_itself(bytes: u64) {
            prop_assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }

        #[test]
        fn a_printed_round_size_reads_back_as_itself(count in 0u64..1 << 30, unit in prop::sample::select(vec![KIB, MIB, GIB])) {
            prop_assert_eq!(Size(count * unit).to_string().parse(), Ok(Size(count * unit)));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".*") {
            let _ = text.parse::<Size>();
            let _ = text.parse::<HostPort>();
        }
    }

    #[test]
    fn hosts_are_names_or_addresses() {
        for text in [
            "node1:7883",
            "flotte-0.flotte-headless:7883",
            "10.0.0.1:1",
            "[::1]:7883",
            "my_node.example.:7883",
        ] {
            assert_eq!(text.parse::<HostPort>().unwrap().to_string(), text);
        }
        for text in [
            "node1",
            "node1:0",
            ":7883",
            "a..b:1",
            "::1:7883",
            "node 1:7883",
            "node1:70000",
            "http://node1:1",
        ] {
            assert_eq!(text.parse::<HostPort>(), Err(NoHostPort), "{text}");
        }
    }

    #[test]
    fn texts_for_clients_are_short_and_printable() {
        let read = |text: &str| ShortText::parse(&Raw::Text(text.to_owned()));
        for text in ["a", "one.example:1883 \u{e9}", &"x".repeat(1_024)] {
            assert_eq!(read(text).unwrap().as_str(), text);
        }
        for bad in ["", "a\nb", "a\0", &"x".repeat(1_025)] {
            assert_eq!(read(bad), Err(Refusal::Bad), "{bad:?}");
        }
    }

    #[test]
    fn names_hold_what_metrics_and_topics_can_hold() {
        let word = |text: &str| Raw::Word(text.to_owned());
        assert!(NodeName::parse(&word("flotte-0.eu_1")).is_ok());
        for bad in ["", "a/b", "a+b", "a b", &"x".repeat(65)] {
            assert_eq!(NodeName::parse(&word(bad)), Err(Refusal::Bad), "{bad}");
        }
        assert!(ListenerName::parse(&word("mqtt-2")).is_ok());
        assert_eq!(ListenerName::parse(&word("MQTT")), Err(Refusal::Bad));
        assert!(!NodeName::of_this_host().as_str().is_empty());
    }
}
