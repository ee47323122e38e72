//! Large messages at the sending end of a link. What such a message holds goes ahead of it in parts, a few at a time and
//! those of several messages in turn, with the messages of other publishers between them. Once the other node has it all,
//! the message itself, empty by then, takes its place in the queue as any other, and gets its sequence there. So nothing
//! that depends on sequences knows of parts; and what a publisher sends behind a large message waits here for it.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use flotte_proto::{Forward, Large, Part, Taken};

use super::core::size;

/// A message that holds more than this goes in parts.
pub(super) const LARGE_BYTES: usize = 256 << 10;
/// One part.
const PART_BYTES: usize = 64 << 10;
/// Parts on their way, of all messages together: so much a small message may find before it.
const WINDOW_BYTES: usize = 1 << 20;
/// Large messages that go at once, at most: what the other node has to hold for this one is bounded.
pub(super) const GOING_MAX: usize = 64;
/// The same in bytes; one of any size goes alone.
pub(super) const GOING_BYTES_MAX: usize = 512 << 20;

/// A message, and who waits for it.
pub(super) type Item<T> = (Forward, Option<T>);

/// The large messages of a link, and what waits for them.
///
/// - Getters: [`claims`](Self::claims), [`len`](Self::len), [`bytes`](Self::bytes), [`has_moved`](Self::has_moved),
///   [`waiting`](Self::waiting).
/// - Input: `handle_*`.
/// - Commands: [`push`](Self::push), [`drain`](Self::drain).
/// - Output: [`poll_part`](Self::poll_part), [`poll_ready`](Self::poll_ready).
#[derive(Debug)]
pub(super) struct LargeLane<T> {
    /// By publisher. Bounded as the lane is, by pushing back.
    lines: BTreeMap<Bytes, Line<T>>,
    /// Publishers whose large message has not begun, in order.
    waiting: VecDeque<Bytes>,
    /// Publishers of those whose parts go, by id.
    going: BTreeMap<u64, Bytes>,
    /// Of those that have parts to send, in turn.
    turns: VecDeque<u64>,
    /// Large messages that the other node holds parts of, until it has placed them.
    there: usize,
    there_bytes: usize,
    /// Bytes of parts that were sent and that the other node has not said to have.
    on_their_way: usize,
    last_id: u64,
    /// Messages that may go to the queue now, in order.
    ready: VecDeque<Item<T>>,
    messages: usize,
    bytes: usize,
    /// The other node has more of some than when those who wait were last told.
    moved: bool,
}

/// A large message, and what its publisher sent behind it.
#[derive(Debug)]
struct Line<T> {
    large: Item<T>,
    total: usize,
    sent: usize,
    taken: usize,
    behind: VecDeque<Item<T>>,
}

impl<T> LargeLane<T> {
    pub(super) fn new() -> Self {
        LargeLane {
            lines: BTreeMap::new(),
            waiting: VecDeque::new(),
            going: BTreeMap::new(),
            turns: VecDeque::new(),
            there: 0,
            there_bytes: 0,
            on_their_way: 0,
            last_id: 0,
            ready: VecDeque::new(),
            messages: 0,
            bytes: 0,
            moved: false,
        }
    }

    /// Whether a message has to go this way: it is large, or its publisher has sent one that still goes.
    pub(super) fn claims(&self, message: &Forward) -> bool {
        is_large(message) || (!self.lines.is_empty() && self.lines.contains_key(&message.publisher))
    }

    /// Messages in it.
    pub(super) fn len(&self) -> usize {
        self.messages
    }

    /// What they hold.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the other node has more of some since the last [`handle_told`](Self::handle_told).
    pub(super) fn has_moved(&self) -> bool {
        self.moved
    }

    /// One for each publisher that waits: its messages are here one behind the other.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &T> {
        self.lines.values().filter_map(|line| {
            let mut items = std::iter::once(&line.large).chain(&line.behind);
            items.find_map(|(_, ticket)| ticket.as_ref())
        })
    }

    /// All who wait were told that it goes on.
    pub(super) fn handle_told(&mut self) {
        self.moved = false;
    }

    /// Takes a message that it [`claims`](Self::claims).
    pub(super) fn push(&mut self, item: Item<T>) {
        self.messages += 1;
        self.bytes += size(&item.0);
        match self.lines.get_mut(&item.0.publisher) {
            Some(line) => line.behind.push_back(item),
            None => self.begin_line(item, VecDeque::new()),
        }
        self.begin_waiting();
    }

    /// The next part to be sent, if the other node can take one more.
    pub(super) fn poll_part(&mut self) -> Option<Part> {
        if self.on_their_way >= WINDOW_BYTES {
            return None;
        }
        let id = self.turns.pop_front()?;
        let line = self.lines.get_mut(self.going.get(&id)?)?;
        let part = Part {
            id,
            offset: line.sent as u64,
            total: line.total as u64,
            data: line.next_piece(),
        };
        line.sent += part.data.len();
        self.on_their_way += part.data.len();
        if line.sent < line.total {
            self.turns.push_back(id);
        }
        Some(part)
    }

    /// A message that may go to the queue now.
    pub(super) fn poll_ready(&mut self) -> Option<Item<T>> {
        self.ready.pop_front()
    }

    /// The other node has more of some. Calls `progressed` with who waits for each.
    pub(super) fn handle_taken(&mut self, taken: &[Taken], mut progressed: impl FnMut(&T)) {
        for news in taken {
            let Some(line) = line_of(&mut self.lines, &self.going, news.id) else {
                continue;
            };
            let has = usize::try_from(news.bytes).unwrap_or(usize::MAX);
            let has = has.min(line.sent);
            if has <= line.taken {
                continue;
            }
            self.on_their_way -= has - line.taken;
            line.taken = has;
            self.moved = true;
            if let Some(ticket) = &line.large.1 {
                progressed(ticket);
            }
            if has == line.total {
                self.finish(news.id);
            }
        }
        self.begin_waiting();
    }

    /// The other node has placed a large message, or not, and holds no part of it any more.
    pub(super) fn handle_placed(&mut self, large: &Large) {
        self.there = self.there.saturating_sub(1);
        let bytes = usize::try_from(large.bytes).unwrap_or(usize::MAX);
        self.there_bytes = self.there_bytes.saturating_sub(bytes);
        self.begin_waiting();
    }

    /// A connection begins: all goes on from where the other node says that it is.
    pub(super) fn handle_resumed(&mut self, taken: &[Taken], progressed: impl FnMut(&T)) {
        self.on_their_way = 0;
        self.turns.clear();
        let known: BTreeMap<u64, u64> = taken.iter().map(|news| (news.id, news.bytes)).collect();
        for (id, publisher) in &self.going {
            let Some(line) = self.lines.get_mut(publisher) else {
                continue;
            };
            let has = known.get(id).copied().unwrap_or(0);
            let has = usize::try_from(has).unwrap_or(usize::MAX).min(line.total);
            // What is taken is told below, as if it came just now.
            (line.taken, line.sent) = (0, has);
            self.on_their_way += has;
            if has < line.total {
                self.turns.push_back(*id);
            }
        }
        self.handle_taken(taken, progressed);
    }

    /// Takes out who waits, in no special order.
    pub(super) fn drain(&mut self) -> Vec<T> {
        let this = std::mem::replace(self, Self::new());
        let lines = this.lines.into_values();
        let items = lines.flat_map(|line| std::iter::once(line.large).chain(line.behind));
        let items = items.chain(this.ready);
        items.filter_map(|(_, ticket)| ticket).collect()
    }

    fn begin_line(&mut self, large: Item<T>, behind: VecDeque<Item<T>>) {
        let publisher = large.0.publisher.clone();
        let line = Line {
            total: held(&large.0),
            large,
            sent: 0,
            taken: 0,
            behind,
        };
        self.waiting.push_back(publisher.clone());
        self.lines.insert(publisher, line);
    }

    /// Lets those begin for which there is room.
    fn begin_waiting(&mut self) {
        while let Some(publisher) = self.waiting.front() {
            let bytes = self.lines.get(publisher).map_or(0, |line| line.total);
            let is_full = self.there >= GOING_MAX || self.there_bytes + bytes > GOING_BYTES_MAX;
            if is_full && self.there > 0 {
                return;
            }
            let Some(publisher) = self.waiting.pop_front() else {
                return;
            };
            self.last_id += 1;
            (self.there, self.there_bytes) = (self.there + 1, self.there_bytes + bytes);
            self.going.insert(self.last_id, publisher);
            self.turns.push_back(self.last_id);
        }
    }

    /// The other node has all of a message: it goes on, and what was behind it, up to the next large one.
    fn finish(&mut self, id: u64) {
        let Some(publisher) = self.going.remove(&id) else {
            return;
        };
        let Some(mut line) = self.lines.remove(&publisher) else {
            return;
        };
        let large = Large {
            id,
            properties_bytes: line.large.0.properties.len() as u64,
            bytes: line.total as u64,
        };
        self.make_ready(line.large, Some(large));
        while let Some(next) = line.behind.pop_front() {
            if is_large(&next.0) {
                return self.begin_line(next, line.behind);
            }
            self.make_ready(next, None);
        }
    }

    fn make_ready(&mut self, (mut message, ticket): Item<T>, large: Option<Large>) {
        self.messages -= 1;
        self.bytes -= size(&message);
        if large.is_some() {
            (message.properties, message.payload) = (Bytes::new(), Bytes::new());
            message.large = large;
        }
        self.ready.push_back((message, ticket));
    }
}

impl<T> Line<T> {
    /// What is to be sent next: no more than one part, of the properties first.
    fn next_piece(&self) -> Bytes {
        let Forward {
            properties,
            payload,
            ..
        } = &self.large.0;
        let (of, begin) = match self.sent.checked_sub(properties.len()) {
            Some(begin) => (payload, begin),
            None => (properties, self.sent),
        };
        of.slice(begin..of.len().min(begin + PART_BYTES))
    }
}

fn line_of<'a, T>(
    lines: &'a mut BTreeMap<Bytes, Line<T>>,
    going: &BTreeMap<u64, Bytes>,
    id: u64,
) -> Option<&'a mut Line<T>> {
    lines.get_mut(going.get(&id)?)
}

fn is_large(message: &Forward) -> bool {
    held(message) > LARGE_BYTES
}

fn held(message: &Forward) -> usize {
    message.properties.len() + message.payload.len()
}

#[cfg(test)]
mod tests;
