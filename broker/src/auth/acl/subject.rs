//! Who asks, and the patterns that say whom a rule means.

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use flotte_mqtt::ClientId;
use parking_lot::Mutex;
use smallvec::SmallVec;

/// A client, as rules see it.
#[derive(Debug)]
pub struct Subject {
    /// Proven; an anonymous client has none, whatever it says.
    pub username: Option<Arc<str>>,
    pub client: ClientId,
    /// Where it comes from; none over a unix socket.
    pub ip: Option<IpAddr>,
    user_traits: Traits,
    client_traits: Traits,
    /// Which rules mean it; the first few are worth remembering, as a client may make its name long and ask often.
    meant: Mutex<Meant>,
}

/// What of a name matters where it stands for `%u` or `%c`; looked at once.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Traits {
    /// It has a `/`.
    pub slash: bool,
    /// It has a `+` or a `#`: no name of a topic has.
    pub wildcard: bool,
}

/// The places of the rules that mean a client.
#[derive(Debug, Default)]
struct Meant {
    /// Of the rules; 0 = none are remembered.
    generation: u32,
    places: Option<Arc<[u32]>>,
}

/// Rules that mean one client and are remembered for it; where there are more, they are looked for each time.
const MEANT_MAX: usize = 64;

/// Whom a rule means: all that is given has to fit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Who {
    pub user: Option<User>,
    pub client: Option<Glob>,
    /// User names of a group.
    pub group: Option<Arc<[Glob]>>,
    pub ip: Option<Network>,
}

/// A user name as a rule gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum User {
    /// Clients without one.
    Nobody,
    /// Clients with one that fits.
    Named(Glob),
}

/// A text, or one with `*` for any characters and `?` for any one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Glob {
    Exact(Box<str>),
    /// What stands between its stars; without a star one piece, that has a `?`.
    Wild(Box<[Piece]>),
}

/// A text in which `?` fits any one character.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    text: Box<str>,
    /// Whether there is a `?` in it.
    is_wild: bool,
}

/// An address, or all that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// Neither an address nor a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("allowed is an IP address, or a network as 10.0.0.0/8 or fd00::/8")]
pub struct NoNetwork;

impl Subject {
    pub fn new(username: Option<Arc<str>>, client: ClientId, ip: Option<IpAddr>) -> Self {
        let user_traits = username.as_deref().map(Traits::of).unwrap_or_default();
        Self {
            user_traits,
            client_traits: Traits::of(client.as_str()),
            username,
            client,
            ip,
            meant: Mutex::default(),
        }
    }

    /// The user name, if there is one, for a topic.
    pub(super) fn user_value(&self) -> Option<(&str, Traits)> {
        Some((self.username.as_deref()?, self.user_traits))
    }

    /// The client identifier, for a topic.
    pub(super) fn client_value(&self) -> (&str, Traits) {
        (self.client.as_str(), self.client_traits)
    }

    /// The places of the rules that mean it, from memory where those are the rules of this generation.
    pub(super) fn meant_by(
        &self,
        generation: u32,
        find: impl FnOnce() -> SmallVec<[u32; 16]>,
    ) -> SmallVec<[u32; 16]> {
        let meant = self.meant.lock();
        if let Some(places) = &meant.places
            && meant.generation == generation
        {
            return SmallVec::from_slice(places);
        }
        drop(meant);
        let places = find();
        if generation != 0 && places.len() <= MEANT_MAX {
            *self.meant.lock() = Meant {
                generation,
                places: Some(places.as_slice().into()),
            };
        }
        places
    }
}

impl PartialEq for Subject {
    fn eq(&self, other: &Self) -> bool {
        self.username == other.username && self.client == other.client && self.ip == other.ip
    }
}

impl Traits {
    fn of(name: &str) -> Self {
        Self {
            slash: name.contains('/'),
            wildcard: name.contains(['+', '#']),
        }
    }
}

impl Who {
    /// Whether a client is meant.
    pub fn includes(&self, subject: &Subject) -> bool {
        let name = subject.username.as_deref();
        let user = match &self.user {
            None => true,
            Some(User::Nobody) => name.is_none(),
            Some(User::Named(glob)) => name.is_some_and(|name| glob.matches(name)),
        };
        user && self
            .client
            .as_ref()
            .is_none_or(|glob| glob.matches(subject.client.as_str()))
            && self.group.as_ref().is_none_or(|group| {
                name.is_some_and(|name| group.iter().any(|glob| glob.matches(name)))
            })
            && self
                .ip
                .is_none_or(|network| subject.ip.is_some_and(|ip| network.contains(ip)))
    }
}

impl Glob {
    pub fn new(text: &str) -> Self {
        if text.contains(['*', '?']) {
            Self::Wild(text.split('*').map(Piece::new).collect())
        } else {
            Self::Exact(text.into())
        }
    }

    /// The one text that fits, if there is only one.
    pub fn exact(&self) -> Option<&str> {
        match self {
            Self::Exact(text) => Some(text),
            Self::Wild(_) => None,
        }
    }

    /// Whether the whole of `text` fits. Linear in it, as clients choose their names, but where a `?` stands behind a star.
    pub fn matches(&self, text: &str) -> bool {
        let pieces = match self {
            Self::Exact(exact) => return **exact == *text,
            Self::Wild(pieces) => pieces,
        };
        match &**pieces {
            [] => text.is_empty(),
            [only] => only.strip(text) == Some(""),
            [first, between @ .., last] => {
                let rest = first.strip(text);
                // The first place will do: what is left for the others is longest then.
                let rest = between.iter().fold(rest, |rest, piece| piece.find(rest?));
                rest.is_some_and(|rest| last.ends(rest))
            }
        }
    }
}

impl Piece {
    fn new(text: &str) -> Self {
        Self {
            text: text.into(),
            is_wild: text.contains('?'),
        }
    }

    /// What follows it at the begin of `text`.
    fn strip<'a>(&self, text: &'a str) -> Option<&'a str> {
        if !self.is_wild {
            return text.strip_prefix(&*self.text);
        }
        let mut rest = text.chars();
        for wanted in self.text.chars() {
            let found = rest.next()?;
            if wanted != '?' && wanted != found {
                return None;
            }
        }
        Some(rest.as_str())
    }

    /// What follows the first place where it stands.
    fn find<'a>(&self, text: &'a str) -> Option<&'a str> {
        if !self.is_wild {
            let at = text.find(&*self.text)?;
            return Some(&text[at + self.text.len()..]);
        }
        let mut places = text.char_indices();
        places.find_map(|(at, _)| self.strip(&text[at..]))
    }

    /// Whether `text` ends with it.
    fn ends(&self, text: &str) -> bool {
        if !self.is_wild {
            return text.ends_with(&*self.text);
        }
        let chars = self.text.chars().count();
        let mut places = text.char_indices().rev();
        let at = places.nth(chars.saturating_sub(1)).map(|(at, _)| at);
        at.is_some_and(|at| self.strip(&text[at..]) == Some(""))
    }
}

impl Network {
    /// Whether an address belongs to it. An IPv4 address in IPv6 clothes is the IPv4 one.
    pub fn contains(self, ip: IpAddr) -> bool {
        let differ = match (self.address, ip.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                u128::from(ours.to_bits() ^ theirs.to_bits()) << 96
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => ours.to_bits() ^ theirs.to_bits(),
            _ => return false,
        };
        // Of the 128 bits the first ones count; a shift by all of them is none.
        differ
            .checked_shr(128 - u32::from(self.prefix))
            .is_none_or(|differ| differ == 0)
    }
}

impl FromStr for Network {
    type Err = NoNetwork;

    fn from_str(text: &str) -> Result<Self, NoNetwork> {
        let (address, prefix) = match text.split_once('/') {
            None => (text, None),
            Some((address, prefix)) => (address, Some(prefix)),
        };
        let address: IpAddr = address.parse().map_err(|_| NoNetwork)?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let digits = |prefix: &&str| prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix = match prefix {
            None => bits,
            Some(prefix) => Some(prefix)
                .filter(digits)
                .and_then(|prefix| prefix.parse().ok())
                .filter(|prefix| *prefix <= bits)
                .ok_or(NoNetwork)?,
        };
        Ok(Self { address, prefix })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn globs_fit_whole_texts() {
        for (glob, fits, fails) in [
            (
                "sensor-*",
                &["sensor-", "sensor-1", "sensor-a/b"][..],
                &["sensor", "xsensor-1"][..],
            ),
            ("?", &["a", "é", "#"], &["", "ab"]),
            ("*", &["", "anything"], &[]),
            (
                "a*b*c",
                &["abc", "a-b-b-c", "abbcc"],
                &["ab", "acb", "abcd"],
            ),
            ("*-?", &["x-1", "--1"], &["x-", "x1"]),
            ("plain", &["plain"], &["plain1", "Plain", ""]),
        ] {
            let glob = Glob::new(glob);
            assert!(fits.iter().all(|text| glob.matches(text)), "{glob:?}");
            assert!(!fails.iter().any(|text| glob.matches(text)), "{glob:?}");
        }
        assert_eq!(Glob::new("plain").exact(), Some("plain"));
        assert_eq!(Glob::new("pl?in").exact(), None);
    }

    fn naive(glob: &[char], text: &[char]) -> bool {
        match glob.split_first() {
            None => text.is_empty(),
            Some(('*', rest)) => (0..=text.len()).any(|taken| naive(rest, &text[taken..])),
            Some((wanted, rest)) => text.split_first().is_some_and(|(found, text)| {
                (*wanted == '?' || wanted == found) && naive(rest, text)
            }),
        }
    }

    proptest! {
        #[test]
        fn globs_are_those_of_the_naive_matcher(glob in "[ab*?é]{0,8}", text in "[abé]{0,10}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(Glob::new(&glob).matches(&text), naive(&chars(&glob), &chars(&text)));
        }
    }

    #[test]
    fn networks_hold_what_begins_like_them() {
        let holds = |network: &str, ip: &str| {
            network
                .parse::<Network>()
                .unwrap()
                .contains(ip.parse().unwrap())
        };
        assert!(holds("10.0.0.0/8", "10.255.1.2") && !holds("10.0.0.0/8", "11.0.0.1"));
        assert!(holds("10.1.2.3", "10.1.2.3") && !holds("10.1.2.3", "10.1.2.4"));
        assert!(holds("10.1.2.2/31", "10.1.2.3") && !holds("10.1.2.2/31", "10.1.2.4"));
        assert!(holds("0.0.0.0/0", "192.0.2.1") && !holds("0.0.0.0/0", "::1"));
        assert!(holds("fd00::/8", "fdff::1") && !holds("fd00::/8", "fe00::1"));
        assert!(holds("::/0", "2001:db8::1") && holds("127.0.0.1", "::ffff:127.0.0.1"));
        for wrong in [
            "",
            "10.0.0.0/33",
            "10.0.0/8",
            "::/129",
            "10.0.0.0/+8",
            "1.2.3.4/",
            "host",
        ] {
            assert_eq!(wrong.parse::<Network>(), Err(NoNetwork), "{wrong}");
        }
    }

    #[test]
    fn all_that_is_given_has_to_fit() {
        let subject = |username: Option<&str>, client: &str, ip: Option<&str>| {
            let ip = ip.map(|ip| ip.parse().unwrap());
            Subject::new(username.map(Into::into), client.try_into().unwrap(), ip)
        };
        let who = Who {
            user: Some(User::Named(Glob::new("ann*"))),
            client: Some(Glob::new("c-?")),
            group: Some([Glob::new("bob"), Glob::new("ann")].into()),
            ip: Some("10.0.0.0/8".parse().unwrap()),
        };
        assert!(who.includes(&subject(Some("ann"), "c-1", Some("10.1.1.1"))));
        for other in [
            subject(None, "c-1", Some("10.1.1.1")),
            subject(Some("annie"), "c-1", Some("10.1.1.1")),
            subject(Some("bob"), "c-1", Some("10.1.1.1")),
            subject(Some("ann"), "c-12", Some("10.1.1.1")),
            subject(Some("ann"), "c-1", Some("11.1.1.1")),
            subject(Some("ann"), "c-1", None),
        ] {
            assert!(!who.includes(&other), "{other:?}");
        }
        assert!(Who::default().includes(&subject(None, "x", None)));
        let nobody = Who {
            user: Some(User::Nobody),
            ..Who::default()
        };
        assert!(nobody.includes(&subject(None, "x", None)));
        assert!(!nobody.includes(&subject(Some("ann"), "x", None)));
    }
}
