//! The sending end of a link, as a pure machine: it numbers QoS 1/2 messages and keeps them until they are acknowledged,
//! through any number of connections. Who waits for a shared delivery is kept longer, until its member has done it: it has
//! to go elsewhere if the other node goes before.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use flotte_proto::{Forward, LinkFrame, Part, Taken};

use super::large::{Item, LargeLane};

/// Bytes that a frame may hold before it is sent; one message may exceed it.
const FRAME_BYTES_MAX: usize = 64 << 10;
/// Messages that a frame may hold.
const FRAME_MESSAGES_MAX: usize = 512;

/// Bounds of a link's queue.
#[derive(Debug, Clone, Copy)]
pub struct LinkLimits {
    /// Publishers of QoS 1/2 are held back from this many messages on; QoS 0 is dropped a little before that.
    pub messages: usize,
    /// The same in bytes.
    pub bytes: usize,
    /// The same in bytes, for large messages and what their publishers send behind them.
    pub large_bytes: usize,
    /// Shared deliveries that are with their members and kept, at most; beyond, one is as good as done once it is placed.
    pub kept_messages: usize,
    /// The same in bytes.
    pub kept_bytes: usize,
}

/// What became of a QoS 1/2 message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// It is in the outbound queues of the node.
    Queued,
    /// No member of the shared subscription was there to take it: another node should.
    NoMember,
    /// The node is no more, and the message was never sent there.
    NodeGone,
    /// The node is no more, and did not say what it had done with the message.
    Unknown,
    /// The node is no more; it was queued there for a member that had not acknowledged it.
    Lost,
}

/// Whether a message was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// There is room for more.
    Room,
    /// QoS 1/2: it was taken, but no more should come before there is room in this lane.
    Full(Lane),
    /// QoS 0, and the queue was almost full.
    Dropped,
}

/// What a sender holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Queued {
    /// Messages that wait or are not acknowledged.
    pub messages: usize,
    /// What they hold.
    pub bytes: usize,
    /// Shared deliveries that are with their members.
    pub kept: usize,
    /// What they hold.
    pub kept_bytes: usize,
}

/// The ways of a link: each holds back its own publishers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Of all messages that are not large.
    Main,
    /// Of large ones, and of what their publishers send behind them.
    Large,
}

/// The sending end, for one incarnation of the other node. `T` is who waits for a QoS 1/2 message.
#[derive(Debug)]
pub struct Sender<T> {
    limits: LinkLimits,
    /// Not sent yet.
    queue: VecDeque<Item<T>>,
    /// Sent and not acknowledged, by sequence. Nobody waits for large ones of QoS 0: they are numbered as the other node
    /// has to let go of their parts.
    unacked: VecDeque<Item<T>>,
    /// How many of `unacked`, from the front, were sent on this connection.
    resent: usize,
    /// Placed shared deliveries that are not settled, with their bytes, by sequence.
    kept: BTreeMap<u64, (usize, T)>,
    kept_bytes: usize,
    /// Shared deliveries that there was no room to keep.
    unkept: u64,
    /// Placed, or not, up to here.
    acked: u64,
    next_sequence: u64,
    /// Of `queue` and `unacked`.
    bytes: usize,
    large: LargeLane<T>,
    /// By lane: somebody found it full and waits.
    awaited: [bool; 2],
}

impl<T: Clone> Sender<T> {
    /// An empty link.
    pub fn new(limits: LinkLimits) -> Self {
        Sender {
            limits,
            queue: VecDeque::new(),
            unacked: VecDeque::new(),
            resent: 0,
            kept: BTreeMap::new(),
            kept_bytes: 0,
            unkept: 0,
            acked: 0,
            next_sequence: 1,
            bytes: 0,
            large: LargeLane::new(),
            awaited: [false; 2],
        }
    }

    /// Takes a message; one with a ticket is kept until it is acknowledged. One without holds back nobody: it goes, or is
    /// dropped while there still is room for those of others.
    pub fn push(&mut self, message: Forward, ticket: Option<T>) -> Pushed {
        let lane = if self.large.claims(&message) {
            Lane::Large
        } else {
            Lane::Main
        };
        let waits = ticket.is_some();
        if !waits && !self.has_room_without_ticket(lane, size(&message)) {
            return Pushed::Dropped;
        }
        match lane {
            Lane::Main => self.enqueue((message, ticket)),
            Lane::Large => self.large.push((message, ticket)),
        }
        if waits && self.is_full(lane) {
            Pushed::Full(lane)
        } else {
            Pushed::Room
        }
    }

    fn enqueue(&mut self, item: Item<T>) {
        self.bytes += size(&item.0);
        self.queue.push_back(item);
    }

    /// Whether publishers are to be held back.
    pub fn is_full(&self, lane: Lane) -> bool {
        let (messages, bytes, bytes_max) = self.fill(lane);
        messages >= self.limits.messages || bytes >= bytes_max
    }

    /// As [`Sender::is_full`], for one who waits if it is: [`Sender::poll_room`] says when it no longer is.
    pub fn handle_waiting(&mut self, lane: Lane) -> bool {
        let is_full = self.is_full(lane);
        self.awaited[lane as usize] |= is_full;
        is_full
    }

    /// Whether a lane that somebody waits for has room again; said once. To be asked after whatever makes room.
    pub fn poll_room(&mut self) -> bool {
        let mut has_room = false;
        for lane in [Lane::Main, Lane::Large] {
            if self.awaited[lane as usize] && !self.is_full(lane) {
                self.awaited[lane as usize] = false;
                has_room = true;
            }
        }
        has_room
    }

    /// A flood of QoS 0 leaves room for messages that their publishers wait for. One of any size goes alone.
    fn has_room_without_ticket(&self, lane: Lane, more: usize) -> bool {
        let (messages, bytes, bytes_max) = self.fill(lane);
        let almost = |limit: usize| limit - limit / 8;
        messages == 0 || messages < almost(self.limits.messages) && bytes + more < almost(bytes_max)
    }

    /// Messages and bytes in a lane, and how many bytes may be there.
    fn fill(&self, lane: Lane) -> (usize, usize, usize) {
        match lane {
            Lane::Main => {
                let messages = self.queue.len() + self.unacked.len();
                (messages, self.bytes, self.limits.bytes)
            }
            Lane::Large => {
                let large = &self.large;
                (large.len(), large.bytes(), self.limits.large_bytes)
            }
        }
    }

    /// Messages that wait or are not acknowledged.
    pub fn len(&self) -> usize {
        self.queue.len() + self.unacked.len() + self.large.len()
    }

    /// What it holds, for metrics.
    pub fn queued(&self) -> Queued {
        Queued {
            messages: self.len(),
            bytes: self.bytes + self.large.bytes(),
            kept: self.kept.len(),
            kept_bytes: self.kept_bytes,
        }
    }

    /// Whether the other node has more of a large message since the last [`Sender::poll_waiting`].
    pub fn has_moved(&self) -> bool {
        self.large.has_moved()
    }

    /// Who waits in the lane of large messages, for its own parts or behind those of others: the lane goes on.
    pub fn poll_waiting(&mut self) -> Vec<T> {
        self.large.handle_told();
        self.large.waiting().cloned().collect()
    }

    /// Whether nothing waits and all is acknowledged.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next messages to be sent on this connection, in order; empty when there are none.
    pub fn poll_frame(&mut self) -> Vec<Forward> {
        let (mut frame, mut bytes) = (Vec::new(), 0);
        while frame.len() < FRAME_MESSAGES_MAX && bytes < FRAME_BYTES_MAX {
            let message = if let Some((message, _)) = self.unacked.get(self.resent) {
                self.resent += 1;
                message.clone()
            } else if let Some(item) = self.queue.pop_front() {
                self.sent(item)
            } else {
                break;
            };
            bytes += size(&message);
            frame.push(message);
        }
        frame
    }

    /// The next part of a large message, to go beside the next frame.
    pub fn poll_part(&mut self) -> Option<Part> {
        self.large.poll_part()
    }

    /// Numbers a message that has to be acknowledged, and keeps it until then.
    fn sent(&mut self, (mut message, ticket): Item<T>) -> Forward {
        if ticket.is_none() && message.large.is_none() {
            self.bytes -= size(&message);
            return message;
        }
        message.sequence = self.next_sequence;
        self.next_sequence += 1;
        self.unacked.push_back((message.clone(), ticket));
        self.resent += 1;
        message
    }

    /// The other node has more of the parts of some large messages. Returns who waits for these.
    pub fn handle_taken(&mut self, taken: &[Taken]) -> Vec<T> {
        let mut progressed = Vec::new();
        if !taken.is_empty() {
            let note = |ticket: &T| progressed.push(ticket.clone());
            self.large.handle_taken(taken, note);
            self.enqueue_ready();
        }
        progressed
    }

    fn enqueue_ready(&mut self) {
        while let Some(item) = self.large.poll_ready() {
            self.enqueue(item);
        }
    }

    /// All up to a sequence is placed, but for some; and some need not be kept any longer. Returns who waited, in order.
    pub fn handle_ack(
        &mut self,
        acked: u64,
        not_placed: &[u64],
        settled: &[u64],
    ) -> Vec<(T, Placed)> {
        let mut done = Vec::new();
        self.acked = self.acked.max(acked);
        while self
            .unacked
            .front()
            .is_some_and(|(message, _)| message.sequence <= acked)
        {
            let Some((message, ticket)) = self.unacked.pop_front() else {
                break;
            };
            self.resent = self.resent.saturating_sub(1);
            self.bytes -= size(&message);
            if let Some(large) = &message.large {
                self.large.handle_placed(large);
            }
            let Some(ticket) = ticket else { continue };
            let placed = if not_placed.contains(&message.sequence) {
                Placed::NoMember
            } else {
                if !message.shares.is_empty() {
                    self.keep(&message, &ticket);
                }
                Placed::Queued
            };
            done.push((ticket, placed));
        }
        for sequence in settled {
            self.release(*sequence);
        }
        done
    }

    /// A connection begins: the other node says how far it is, and which shared deliveries are not settled.
    /// [`Sender::handle_taken_before`] goes with it.
    pub fn handle_resumed(
        &mut self,
        acked: u64,
        not_placed: &[u64],
        open: &[u64],
    ) -> Vec<(T, Placed)> {
        let done = self.handle_ack(acked, not_placed, &[]);
        let open: BTreeSet<u64> = open.iter().copied().collect();
        let known = self.kept.keys().copied();
        let settled: Vec<u64> = known.filter(|sequence| !open.contains(sequence)).collect();
        settled
            .into_iter()
            .for_each(|sequence| self.release(sequence));
        done
    }

    /// A connection begins: the other node says how much it has of all large messages. Returns who waits for these.
    pub fn handle_taken_before(&mut self, taken: &[Taken]) -> Vec<T> {
        let mut progressed = Vec::new();
        let note = |ticket: &T| progressed.push(ticket.clone());
        self.large.handle_resumed(taken, note);
        self.enqueue_ready();
        progressed
    }

    /// Placed, or not, up to here: what the other node need not tell again.
    pub fn confirmed(&self) -> u64 {
        self.acked
    }

    /// Shared deliveries that are with their members.
    pub fn kept(&self) -> usize {
        self.kept.len()
    }

    /// Shared deliveries that could not be kept since the last call.
    pub fn poll_unkept(&mut self) -> u64 {
        std::mem::take(&mut self.unkept)
    }

    fn keep(&mut self, message: &Forward, ticket: &T) {
        let bytes = whole_size(message);
        // One of any size is kept, if it is the only one.
        let is_full = self.kept.len() >= self.limits.kept_messages
            || !self.kept.is_empty() && self.kept_bytes + bytes > self.limits.kept_bytes;
        if is_full {
            self.unkept += 1;
            return;
        }
        self.kept_bytes += bytes;
        self.kept.insert(message.sequence, (bytes, ticket.clone()));
    }

    fn release(&mut self, sequence: u64) {
        if let Some((bytes, _)) = self.kept.remove(&sequence) {
            self.kept_bytes -= bytes;
        }
    }

    /// The connection is gone: what was not acknowledged is sent again on the next one, first.
    pub fn handle_disconnected(&mut self) {
        self.resent = 0;
    }

    /// The other node's incarnation is no more. Returns all who wait.
    pub fn end(&mut self) -> Vec<(T, Placed)> {
        (self.bytes, self.kept_bytes, self.resent) = (0, 0, 0);
        let kept = std::mem::take(&mut self.kept).into_values();
        let lost = kept.map(|(_, ticket)| (ticket, Placed::Lost));
        let unacked = self.unacked.drain(..);
        let unknown = unacked.filter_map(|(_, ticket)| Some((ticket?, Placed::Unknown)));
        let queued = self.queue.drain(..).filter_map(|(_, ticket)| ticket);
        let queued = queued.chain(self.large.drain());
        let gone = queued.map(|ticket| (ticket, Placed::NodeGone));
        lost.chain(unknown).chain(gone).collect()
    }
}

/// What a frame holds in bytes, about.
pub fn bytes_of(frame: &LinkFrame) -> u64 {
    let messages = frame.messages.iter().map(size);
    let parts = frame.parts.iter().map(|part| part.data.len());
    messages.chain(parts).map(|bytes| bytes as u64).sum()
}

/// With what went ahead of it in parts.
fn whole_size(message: &Forward) -> usize {
    let ahead = message.large.as_ref().map_or(0, |large| large.bytes);
    size(message).saturating_add(usize::try_from(ahead).unwrap_or(usize::MAX))
}

pub(super) fn size(message: &Forward) -> usize {
    message.topic.len()
        + message.payload.len()
        + message.properties.len()
        + message.publisher.len()
        + 48
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: LinkLimits = LinkLimits {
        messages: 4,
        bytes: 1 << 20,
        large_bytes: 1 << 20,
        kept_messages: 3,
        kept_bytes: 1 << 20,
    };

    fn message(payload: &'static str) -> Forward {
        Forward {
            payload: payload.into(),
            ..Forward::default()
        }
    }

    fn payloads(frame: &[Forward]) -> Vec<&str> {
        frame
            .iter()
            .map(|m| std::str::from_utf8(&m.payload).unwrap_or(""))
            .collect()
    }

    #[test]
    fn unacknowledged_messages_go_again_first_and_in_order() {
        let mut sender = Sender::new(LIMITS);
        sender.push(message("a"), Some(1));
        sender.push(message("zero"), None);
        sender.push(message("b"), Some(2));
        assert_eq!(payloads(&sender.poll_frame()), ["a", "zero", "b"]);
        assert_eq!(sender.handle_ack(1, &[], &[]), [(1, Placed::Queued)]);
        sender.push(message("c"), Some(3));
        sender.handle_disconnected();
        assert_eq!(
            payloads(&sender.poll_frame()),
            ["b", "c"],
            "QoS 0 is not repeated"
        );
        assert!(sender.poll_frame().is_empty());
        assert_eq!(
            sender.handle_ack(3, &[3], &[]),
            [(2, Placed::Queued), (3, Placed::NoMember)]
        );
        assert!(sender.is_empty());
        assert_eq!(sender.bytes, 0);
    }

    #[test]
    fn a_full_queue_drops_qos_0_and_holds_back_the_rest() {
        let mut sender = Sender::new(LIMITS);
        for ticket in 0..3 {
            assert_eq!(sender.push(message("x"), Some(ticket)), Pushed::Room);
        }
        assert_eq!(sender.push(message("x"), Some(3)), Pushed::Full(Lane::Main));
        assert_eq!(sender.push(message("x"), None), Pushed::Dropped);
        assert_eq!(
            sender.push(message("x"), Some(4)),
            Pushed::Full(Lane::Main),
            "what was matched is taken"
        );
    }

    #[test]
    fn a_flood_of_qos_0_holds_back_nobody_and_leaves_room_for_the_rest() {
        let limits = LinkLimits {
            messages: 16,
            ..LIMITS
        };
        let mut sender = Sender::new(limits);
        let taken = (0..100).filter(|_| sender.push(message("zero"), None) == Pushed::Room);
        assert_eq!(taken.count(), 14);
        assert_eq!(sender.push(message("a"), Some(1)), Pushed::Room);
        assert_eq!(sender.push(message("b"), Some(2)), Pushed::Full(Lane::Main));
        let mut sender = Sender::new(LIMITS);
        let large = || Forward {
            payload: vec![0; LIMITS.large_bytes].into(),
            publisher: "p".into(),
            ..Forward::default()
        };
        assert_eq!(sender.push(large(), None), Pushed::Room, "any size alone");
        assert_eq!(sender.push(large(), None), Pushed::Dropped);
        assert_eq!(sender.push(large(), Some(1)), Pushed::Full(Lane::Large));
    }

    #[test]
    fn who_waits_for_room_is_told_when_qos_0_alone_makes_it() {
        let mut sender = Sender::new(LIMITS);
        for _ in 0..3 {
            sender.push(message("zero"), None);
        }
        sender.push(message("a"), Some(1));
        assert!(!sender.handle_waiting(Lane::Large));
        assert!(sender.handle_waiting(Lane::Main));
        assert!(!sender.poll_room(), "it is full");
        sender.poll_frame();
        assert!(sender.poll_room(), "nothing is acknowledged yet");
        assert!(!sender.poll_room(), "said once");
        assert!(!sender.handle_waiting(Lane::Main));
    }

    #[test]
    fn who_waits_for_room_is_told_when_an_acknowledgement_makes_it() {
        let mut sender = Sender::new(LIMITS);
        for ticket in 1..=4 {
            sender.push(message("x"), Some(ticket));
        }
        assert!(sender.handle_waiting(Lane::Main));
        sender.poll_frame();
        assert!(!sender.poll_room(), "they wait for their acknowledgements");
        sender.handle_ack(1, &[], &[]);
        assert!(sender.poll_room());
    }

    #[test]
    fn one_shared_delivery_of_any_size_is_kept() {
        let mut sender = Sender::new(LinkLimits {
            kept_bytes: 10,
            ..LIMITS
        });
        for ticket in 1..=2 {
            sender.push(shared("more than ten bytes"), Some(ticket));
        }
        sender.poll_frame();
        sender.handle_ack(2, &[], &[]);
        assert_eq!((sender.kept(), sender.poll_unkept()), (1, 1));
        assert_eq!(sender.end(), [(1, Placed::Lost)]);
    }

    #[test]
    fn the_end_of_a_node_releases_all_who_wait() {
        let mut sender = Sender::new(LIMITS);
        sender.push(message("a"), Some(1));
        sender.poll_frame();
        sender.push(message("b"), Some(2));
        assert_eq!(sender.end(), [(1, Placed::Unknown), (2, Placed::NodeGone)]);
        assert!(sender.is_empty());
    }

    fn shared(payload: &'static str) -> Forward {
        Forward {
            shares: vec![Default::default()],
            ..message(payload)
        }
    }

    #[test]
    fn a_shared_delivery_is_kept_until_its_member_has_done_it() {
        let mut sender = Sender::new(LIMITS);
        for ticket in 1..=3 {
            sender.push(shared("x"), Some(ticket));
        }
        sender.poll_frame();
        let placed = sender.handle_ack(3, &[2], &[1]);
        assert_eq!(
            placed,
            [
                (1, Placed::Queued),
                (2, Placed::NoMember),
                (3, Placed::Queued)
            ]
        );
        assert_eq!((sender.kept(), sender.confirmed()), (1, 3));
        sender.push(message("plain"), Some(4));
        sender.poll_frame();
        sender.push(shared("x"), Some(5));
        assert_eq!(
            sender.end(),
            [
                (3, Placed::Lost),
                (4, Placed::Unknown),
                (5, Placed::NodeGone)
            ]
        );
        assert_eq!((sender.kept(), sender.bytes, sender.kept_bytes), (0, 0, 0));
    }

    #[test]
    fn a_new_connection_tells_what_is_still_open() {
        let mut sender = Sender::new(LIMITS);
        for ticket in 1..=3 {
            sender.push(shared("x"), Some(ticket));
        }
        sender.poll_frame();
        sender.handle_ack(2, &[], &[]);
        sender.handle_disconnected();
        assert_eq!(sender.handle_resumed(3, &[], &[2]), [(3, Placed::Queued)]);
        assert_eq!(sender.end(), [(2, Placed::Lost)]);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut sender = Sender::new(LIMITS);
        for ticket in 1..=5 {
            sender.push(shared("x"), Some(ticket));
        }
        sender.poll_frame();
        sender.handle_ack(5, &[], &[]);
        assert_eq!((sender.kept(), sender.poll_unkept()), (3, 2));
        assert_eq!(sender.poll_unkept(), 0);
    }

    #[test]
    fn a_frame_is_bounded() {
        let mut sender = Sender::new(LinkLimits {
            messages: 10_000,
            bytes: usize::MAX,
            ..LIMITS
        });
        for ticket in 0..1_000 {
            sender.push(message("x"), Some(ticket));
        }
        assert_eq!(sender.poll_frame().len(), FRAME_MESSAGES_MAX);
        let mut sender = Sender::new(LIMITS);
        for ticket in 0..2 {
            sender.push(
                Forward {
                    payload: vec![0; FRAME_BYTES_MAX].into(),
                    ..Forward::default()
                },
                Some(ticket),
            );
        }
        assert_eq!(sender.poll_frame().len(), 1);
    }
}
