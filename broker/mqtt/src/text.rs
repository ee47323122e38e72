//! Strings by the rules of MQTT: UTF-8 without U+0000, at most 65,535 bytes, shared and never
//! copied unless asked for. It knows nothing of topics; what a string means is checked elsewhere.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

use bytes::Bytes;
use bytestring::ByteString;

/// The longest string that the two-byte length in front of it can announce, in bytes.
pub const TEXT_BYTES_MAX: usize = u16::MAX as usize;

/// Why some bytes are no MQTT string (clauses 1.5.4-1 and 1.5.4-2 of 5.0, 1.5.3 of 3.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// More than [`TEXT_BYTES_MAX`] bytes.
    #[error("a string of {0} bytes is longer than 65535")]
    TooLong(usize),
    /// Not UTF-8, or it encodes a surrogate.
    #[error("the string is not well-formed UTF-8")]
    NotUtf8,
    /// It holds the character U+0000.
    #[error("the string contains U+0000")]
    Nul,
}

/// A string by the rules of MQTT. A clone shares the buffer, which may be a whole read buffer:
/// what is kept for long should be [`compact`](ByteStr::compact).
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteStr(ByteString);

impl ByteStr {
    /// The empty string.
    pub const fn new() -> Self {
        Self(ByteString::new())
    }

    /// A string that lives as long as the process, without a copy.
    pub fn from_static(text: &'static str) -> Result<Self, TextError> {
        check_text(text)?;
        Ok(Self(ByteString::from_static(text)))
    }

    /// The string itself; the same as dereferencing.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The buffer under the string.
    pub fn as_bytes(&self) -> &Bytes {
        self.0.as_bytes()
    }

    /// The buffer under the string.
    pub fn into_bytes(self) -> Bytes {
        self.0.into_bytes()
    }

    /// The part of this string that `part` points to, sharing the buffer.
    ///
    /// # Panics
    /// When `part` is not a slice of this very string.
    pub fn slice_ref(&self, part: &str) -> Self {
        Self(self.0.slice_ref(part))
    }

    /// The same string in a buffer of its own, just as big as it is. It always copies, because a
    /// buffer does not tell how much of it others still use.
    #[must_use]
    pub fn compact(&self) -> Self {
        Self(ByteString::from(self.as_str()))
    }
}

/// [MQTT-1.5.4-1] well-formed UTF-8 comes from the types; U+FEFF is kept as it is [MQTT-1.5.4-3].
fn check_text(text: &str) -> Result<(), TextError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(TextError::TooLong(text.len()));
    }
    // [MQTT-1.5.4-2]
    if text.as_bytes().contains(&0) {
        return Err(TextError::Nul);
    }
    Ok(())
}

impl TryFrom<Bytes> for ByteStr {
    type Error = TextError;

    fn try_from(bytes: Bytes) -> Result<Self, TextError> {
        let text = ByteString::try_from(bytes).map_err(|_| TextError::NotUtf8)?;
        check_text(&text)?;
        Ok(Self(text))
    }
}

impl TryFrom<&str> for ByteStr {
    type Error = TextError;

    fn try_from(text: &str) -> Result<Self, TextError> {
        check_text(text)?;
        Ok(Self(ByteString::from(text)))
    }
}

impl TryFrom<String> for ByteStr {
    type Error = TextError;

    fn try_from(text: String) -> Result<Self, TextError> {
        check_text(&text)?;
        Ok(Self(ByteString::from(text)))
    }
}

// By the rule of `Borrow`, this must be the hash of `str`.
impl Hash for ByteStr {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl Deref for ByteStr {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl Borrow<str> for ByteStr {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for ByteStr {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<[u8]> for ByteStr {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl PartialEq<str> for ByteStr {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for ByteStr {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl fmt::Debug for ByteStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for ByteStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.as_str(), f)
    }
}

/// The name under which a client's session is known [MQTT-3.1.3-2]. May be empty only until the
/// server has assigned one.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(ByteStr);

impl ClientId {
    /// The id itself; the same as dereferencing.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The id as a shared string.
    pub fn as_byte_str(&self) -> &ByteStr {
        &self.0
    }

    /// The buffer under the id.
    pub fn as_bytes(&self) -> &Bytes {
        self.0.as_bytes()
    }

    /// The same id in a buffer of its own; see [`ByteStr::compact`].
    #[must_use]
    pub fn compact(&self) -> Self {
        Self(self.0.compact())
    }
}

impl From<ByteStr> for ClientId {
    fn from(text: ByteStr) -> Self {
        Self(text)
    }
}

impl From<ClientId> for ByteStr {
    fn from(id: ClientId) -> Self {
        id.0
    }
}

impl TryFrom<Bytes> for ClientId {
    type Error = TextError;

    fn try_from(bytes: Bytes) -> Result<Self, TextError> {
        ByteStr::try_from(bytes).map(Self)
    }
}

impl TryFrom<&str> for ClientId {
    type Error = TextError;

    fn try_from(text: &str) -> Result<Self, TextError> {
        ByteStr::try_from(text).map(Self)
    }
}

impl TryFrom<String> for ClientId {
    type Error = TextError;

    fn try_from(text: String) -> Result<Self, TextError> {
        ByteStr::try_from(text).map(Self)
    }
}

impl Deref for ClientId {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl Borrow<str> for ClientId {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for ClientId {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq<str> for ClientId {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for ClientId {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn a_byte_order_mark_is_kept() {
        let text = ByteStr::try_from(Bytes::from_static(b"\xEF\xBB\xBFa")).unwrap();
        assert_eq!(text, "\u{FEFF}a");
        assert_eq!(&text.as_bytes()[..], b"\xEF\xBB\xBFa");
    }

    #[test]
    fn surrogates_overlong_forms_and_stray_bytes_are_refused() {
        for bytes in [
            &b"\xED\xA0\x80"[..],
            b"\xC0\x80",
            b"\x80",
            b"a\xFF",
            b"\xF4\x90\x80\x80",
        ] {
            let parsed = ByteStr::try_from(Bytes::from_static(bytes));
            assert_eq!(parsed, Err(TextError::NotUtf8), "{bytes:?}");
        }
    }

    #[test]
    fn a_null_character_is_refused() {
        assert_eq!(ByteStr::try_from("a\0b"), Err(TextError::Nul));
        assert_eq!(ByteStr::from_static("\0"), Err(TextError::Nul));
        assert_eq!(
            ByteStr::try_from(Bytes::from_static(b"\0")),
            Err(TextError::Nul)
        );
    }

    #[test]
    fn the_longest_string_has_65535_bytes() {
        assert!(ByteStr::try_from("x".repeat(65_535)).is_ok());
        assert_eq!(
            ByteStr::try_from("x".repeat(65_536)),
            Err(TextError::TooLong(65_536))
        );
    }

    #[test]
    fn a_map_keyed_by_it_is_read_with_a_plain_str() {
        let mut map = HashMap::new();
        map.insert(ByteStr::try_from("a/b").unwrap(), 1);
        assert_eq!(map.get("a/b"), Some(&1));
        let mut clients = HashMap::new();
        clients.insert(ClientId::try_from("c").unwrap(), 2);
        assert_eq!(clients.get("c"), Some(&2));
    }

    #[test]
    fn compact_leaves_the_shared_buffer() {
        let buffer = Bytes::from(vec![b'a'; 4096]);
        let text = ByteStr::try_from(buffer.slice(10..20)).unwrap();
        let own = text.compact();
        drop(text);
        assert!(buffer.is_unique());
        assert_eq!(own, "aaaaaaaaaa");
    }
}
