//! A packet as a list of named fields, so that each can be cut, stretched or spoiled by itself. It
//! knows how fields stand on the wire and nothing else; what an answer must be stands in `table`.

use std::sync::atomic::{AtomicU32, Ordering};

use flotte_tests::Version;
use flotte_tests::wire::{frame, text, varint};

use super::table::Row;

/// When a case is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// As the first bytes of the connection.
    First,
    /// After a CONNECT that was accepted.
    Connected,
}

/// Bytes to send, and the row of the table that says what must come back.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub version: Version,
    pub phase: Phase,
    pub bytes: Vec<u8>,
    pub row: &'static Row,
}

/// How a field stands on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As it is.
    Raw,
    /// Two bytes of length, then UTF-8.
    Text,
    /// Two bytes of length, then anything.
    Binary,
    /// A variable byte integer as length, then properties.
    Props,
    /// As it is, whatever its length: a payload.
    Rest,
}

#[derive(Clone, Debug)]
pub struct Field {
    pub name: &'static str,
    pub kind: Kind,
    pub content: Vec<u8>,
    /// The packet may end before this field.
    pub may_miss: bool,
}

/// A packet that may be spoiled.
#[derive(Clone, Debug)]
pub struct Model {
    pub name: &'static str,
    pub version: Version,
    pub first: u8,
    pub fields: Vec<Field>,
    /// What must come back when it is sent as it is.
    pub row: &'static Row,
}

impl Field {
    pub fn encoded(&self) -> Vec<u8> {
        match self.kind {
            Kind::Raw | Kind::Rest => self.content.clone(),
            Kind::Text | Kind::Binary => text(&self.content),
            Kind::Props => [varint(self.content.len()), self.content.clone()].concat(),
        }
    }
}

impl Model {
    pub fn new(name: &'static str, version: Version, first: u8, row: &'static Row) -> Self {
        Self {
            name,
            version,
            first,
            fields: Vec::new(),
            row,
        }
    }

    pub fn field(mut self, name: &'static str, kind: Kind, content: impl AsRef<[u8]>) -> Self {
        self.fields.push(Field {
            name,
            kind,
            content: content.as_ref().to_vec(),
            may_miss: false,
        });
        self
    }

    /// Properties, where the version has them.
    pub fn props(self, name: &'static str, content: impl AsRef<[u8]>) -> Self {
        if self.version.is_v5() {
            self.field(name, Kind::Props, content)
        } else {
            self
        }
    }

    /// The packet may also end before the last field added.
    pub fn may_miss(mut self) -> Self {
        self.fields.last_mut().expect("a field").may_miss = true;
        self
    }

    pub fn phase(&self) -> Phase {
        if self.first >> 4 == 1 {
            Phase::First
        } else {
            Phase::Connected
        }
    }

    pub fn at(&self, name: &str) -> usize {
        let place = self.fields.iter().position(|field| field.name == name);
        place.unwrap_or_else(|| panic!("{} has no {name}", self.name))
    }

    /// Replaces the content of a field.
    pub fn with(mut self, name: &str, content: impl AsRef<[u8]>) -> Self {
        let at = self.at(name);
        self.fields[at].content = content.as_ref().to_vec();
        self
    }

    pub fn body(&self) -> Vec<u8> {
        self.fields.iter().flat_map(Field::encoded).collect()
    }

    /// The body with other bytes in the place of one whole field.
    pub fn body_with(&self, at: usize, encoded: &[u8]) -> Vec<u8> {
        let before = self.fields[..at].iter().flat_map(Field::encoded);
        let after = self.fields[at + 1..].iter().flat_map(Field::encoded);
        before.chain(encoded.iter().copied()).chain(after).collect()
    }

    /// The case of the packet as it is.
    pub fn case(&self, what: impl AsRef<str>, row: &'static Row) -> Case {
        self.case_of(what, &self.body(), row)
    }

    /// A case with this body and a remaining length that fits it.
    pub fn case_of(&self, what: impl AsRef<str>, body: &[u8], row: &'static Row) -> Case {
        self.case_raw(what, frame(self.first, body), row)
    }

    pub fn case_raw(&self, what: impl AsRef<str>, bytes: Vec<u8>, row: &'static Row) -> Case {
        Case {
            name: format!("{:?} {}: {}", self.version, self.name, what.as_ref()),
            version: self.version,
            phase: self.phase(),
            bytes,
            row,
        }
    }
}

/// A client id that no other case has, always of the same length.
pub fn fresh_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("mal{:08x}{number:08x}", std::process::id())
}
