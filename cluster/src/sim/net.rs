//! The ways between the nodes: delayed, in order within a stream, cut in one or both directions. A cut may end the streams, and what was
//! on its way is lost; or it may hold up all that is sent until it is healed.

use std::collections::BTreeMap;

use super::message::Message;
use super::rng::Rng;

pub const MS: u64 = 1_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    Control,
    Link,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Streams end, and cannot be made.
    Dropping,
    /// Nothing arrives before it is healed.
    Stalling,
}

#[derive(Debug)]
pub struct Packet {
    pub generation: u64,
    pub message: Message,
}

#[derive(Debug, Default)]
struct Way {
    cut: Option<(Cut, u64)>,
    /// When the last packet of each stream arrives.
    last: [u64; 2],
    /// Rises when the streams end.
    generation: u64,
    stalled: Vec<Packet>,
}

#[derive(Debug, Default)]
pub struct Net {
    ways: BTreeMap<(usize, usize), Way>,
    /// Packets take up to this much longer.
    pub slowness: u64,
}

/// A cut is noticed by keep-alives after so long.
const NOTICED_AFTER: u64 = 500 * MS;

impl Net {
    fn way(&mut self, from: usize, to: usize) -> &mut Way {
        self.ways.entry((from, to)).or_default()
    }

    pub fn is_cut(&self, from: usize, to: usize) -> bool {
        self.ways
            .get(&(from, to))
            .is_some_and(|way| way.cut.is_some())
    }

    /// Whether nothing is cut between two nodes.
    pub fn is_whole(&self, a: usize, b: usize) -> bool {
        a == b || !self.is_cut(a, b) && !self.is_cut(b, a)
    }

    /// Whether a node still takes another one for reached.
    pub fn seems_reached(&self, from: usize, to: usize, now: u64) -> bool {
        [(from, to), (to, from)].iter().all(|way| {
            let cut = self.ways.get(way).and_then(|way| way.cut);
            cut.is_none_or(|(_, since)| now - since < NOTICED_AFTER)
        })
    }

    /// When a packet arrives that is sent now; none = it never does.
    pub fn send(
        &mut self,
        from: usize,
        to: usize,
        stream: Stream,
        (now, rng): (u64, &mut Rng),
    ) -> Option<(u64, u64)> {
        let slowness = self.slowness;
        let way = self.way(from, to);
        if matches!(way.cut, Some((Cut::Dropping, _))) {
            return None;
        }
        let mut delay = rng.range(MS / 5, 3 * MS);
        if rng.percent(3) {
            delay += rng.below(80 * MS);
        }
        delay += rng.below(slowness + 1);
        let last = &mut way.last[stream as usize];
        *last = (*last + 1).max(now + delay);
        Some((*last, way.generation))
    }

    /// A packet arrives. It may be lost with its stream, or held up.
    pub fn arrive(&mut self, from: usize, to: usize, packet: Packet) -> Option<Packet> {
        let way = self.way(from, to);
        match way.cut {
            _ if packet.generation != way.generation => None,
            Some((Cut::Dropping, _)) => None,
            Some((Cut::Stalling, _)) => {
                way.stalled.push(packet);
                None
            }
            None => Some(packet),
        }
    }

    pub fn cut(&mut self, from: usize, to: usize, cut: Cut, now: u64) {
        self.way(from, to).cut.get_or_insert((cut, now));
        if cut == Cut::Dropping {
            self.end_streams(from, to);
        }
    }

    /// All streams between two nodes end, and with them what is on its way.
    pub fn end_streams(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            let way = self.way(from, to);
            way.generation += 1;
            way.stalled.clear();
        }
    }

    /// Heals a way. Returns what it held up.
    pub fn heal(&mut self, from: usize, to: usize) -> Vec<Packet> {
        let way = self.way(from, to);
        way.cut = None;
        std::mem::take(&mut way.stalled)
    }
}
