//! Judges a history: one module for each promise, each a pure function from a [`View`] to violations. An excuse stands
//! only where the design gives one.

pub mod accounts;
pub mod acked;
pub mod kept;
pub mod minority;
pub mod one_connection;
pub mod order;
#[cfg(test)]
mod script;
pub mod shared;
pub mod view;
pub mod wills;

use std::fmt;

pub use view::View;

use crate::history::{Event, What};

/// Longest delay allowed between what happened at a socket and its note in the history: the machine may be busy.
pub const MARGIN_MS: u64 = 1_500;

/// A promise that was not kept.
#[derive(Clone, Debug)]
pub struct Violation {
    /// P1 to P9.
    pub promise: &'static str,
    pub what: String,
    /// Whose events explain it.
    pub conns: Vec<u32>,
    pub message: Option<u64>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.promise, self.what)
    }
}

/// All violations in a history.
pub fn check(events: &[Event]) -> Vec<Violation> {
    let view = View::new(events);
    let mut found = acked::check(&view);
    found.extend(shared::check(&view));
    found.extend(one_connection::check(&view));
    found.extend(wills::check(&view));
    found.extend(kept::check(&view));
    found.extend(minority::check(&view));
    found.extend(order::check(&view));
    found.extend(accounts::check(&view));
    found
}

/// What is still to arrive once faults are healed: not yet a violation while time is given to it.
pub fn outstanding(events: &[Event]) -> Vec<Violation> {
    let mut settled = events.to_vec();
    let at = events.last().map_or(0, |event| event.at);
    settled.push(Event {
        at,
        conn: crate::history::NOBODY,
        what: What::Settled,
    });
    let view = View::new(&settled);
    let mut found = acked::check(&view);
    found.extend(shared::check(&view));
    found.extend(wills::check(&view));
    found
}

/// The events that explain a violation: faults, the message, and all but the other messages of its connections.
pub fn around(violation: &Violation, events: &[Event]) -> Vec<String> {
    const LINES_MAX: usize = 120;
    let tells = |event: &&Event| {
        let of_message = match &event.what {
            What::Published { message, .. }
            | What::Acked { message, .. }
            | What::Delivered { message, .. } => Some(Some(*message) == violation.message),
            What::Kept { .. } => Some(violation.promise == "P6"),
            What::Accounted { .. } => Some(violation.promise == "P8"),
            What::Fault { .. } | What::Healed | What::Settled => Some(true),
            _ => None,
        };
        of_message.unwrap_or_else(|| violation.conns.contains(&event.conn))
    };
    let lines = events.iter().filter(tells);
    let line = |event: &Event| {
        format!(
            "{:10.3} ms  #{} {:?}",
            event.at as f64 / 1e3,
            event.conn,
            event.what
        )
    };
    lines.map(line).take(LINES_MAX).collect()
}
