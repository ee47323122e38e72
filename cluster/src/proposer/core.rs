//! What one node wants of one group: gathers commands into numbered batches and keeps them until they are answered.
//! Pure: `push`, `handle_*` are inputs, `poll_send` is the output. It reads no clock and does no IO.

use std::collections::VecDeque;

use bytes::Bytes;
use flotte_proto::{Batch, BatchReply, batch_reply};

use super::queue::Pending;
use crate::id::NodeRef;
use crate::ledger::WINDOW;

/// Bounds of one batch.
const BATCH_COMMANDS_MAX: usize = 1_024;
const BATCH_BYTES_MAX: usize = 1 << 20;

/// A command and who waits for its reply.
#[derive(Debug)]
pub struct Waiting<T> {
    /// Encoded command.
    pub command: Bytes,
    /// Gets the reply.
    pub ticket: T,
}

/// What became of a batch.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// It was applied at this log index: the tickets with their replies.
    Applied(u64, Vec<(T, Bytes)>),
    /// Nothing to tell anyone: it will be sent again, or was answered already.
    Nothing,
    /// This incarnation may propose no more: it is Down or superseded.
    Stale,
    /// The group refuses this node.
    Refused(Refusal),
}

/// Why a group takes nothing of a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// As it is now.
    #[error("{0}")]
    Now(String),
    /// Its identity is void.
    #[error("{0}")]
    ForEver(String),
}

/// The proposer of one node for one group.
#[derive(Debug)]
pub struct Core<T> {
    node: NodeRef,
    /// Not yet in a batch; the owner bounds it.
    queue: VecDeque<Waiting<T>>,
    /// Sent or to be sent, in order of sequence; at most [`WINDOW`].
    under_way: VecDeque<Flight<T>>,
    next_sequence: u64,
    /// Of `queue` and `under_way`.
    pending: Pending,
}

#[derive(Debug)]
struct Flight<T> {
    sequence: u64,
    /// What its commands hold.
    bytes: usize,
    commands: Vec<Bytes>,
    tickets: Vec<T>,
    sent: bool,
}

impl<T> Core<T> {
    /// A proposer that has proposed nothing yet.
    pub fn new(node: NodeRef) -> Self {
        Core {
            node,
            queue: VecDeque::new(),
            under_way: VecDeque::new(),
            next_sequence: 1,
            pending: Pending::default(),
        }
    }

    /// Takes a command; order is kept.
    pub fn push(&mut self, waiting: Waiting<T>) {
        self.pending.commands += 1;
        self.pending.bytes += waiting.command.len();
        self.queue.push_back(waiting);
    }

    /// Takes the answer to a batch.
    pub fn handle_reply(&mut self, sequence: u64, reply: BatchReply) -> Outcome<T> {
        match reply.result {
            Some(batch_reply::Result::Replies(replies)) => {
                self.applied(sequence, reply.index, replies.replies)
            }
            Some(batch_reply::Result::Gap(last)) => {
                self.resend_after(last);
                Outcome::Nothing
            }
            Some(batch_reply::Result::Stale(_)) => Outcome::Stale,
            Some(batch_reply::Result::Refused(why)) => Outcome::Refused(Refusal::Now(why)),
            Some(batch_reply::Result::Banned(why)) => Outcome::Refused(Refusal::ForEver(why)),
            None => {
                self.handle_lost(sequence);
                Outcome::Nothing
            }
        }
    }

    /// A batch got no answer: it, and all after it, is sent again. The stored replies make that harmless.
    pub fn handle_lost(&mut self, sequence: u64) {
        self.resend_after(sequence.saturating_sub(1));
    }

    /// The next batch to be sent, if there is one.
    pub fn poll_send(&mut self) -> Option<Batch> {
        if let Some(flight) = self.under_way.iter_mut().find(|flight| !flight.sent) {
            flight.sent = true;
            return Some(batch(self.node, flight));
        }
        if self.queue.is_empty() || self.is_window_full() {
            return None;
        }
        let flight = self.gather();
        let batch = batch(self.node, &flight);
        self.under_way.push_back(flight);
        Some(batch)
    }

    /// Commands that are not answered yet.
    pub fn pending(&self) -> Pending {
        self.pending
    }

    /// The window is a distance between sequences: the reply of the oldest that is under way must still be stored.
    fn is_window_full(&self) -> bool {
        let oldest = self
            .under_way
            .front()
            .map_or(self.next_sequence, |flight| flight.sequence);
        self.next_sequence - oldest >= WINDOW as u64
    }

    fn gather(&mut self) -> Flight<T> {
        let mut flight = Flight {
            sequence: self.next_sequence,
            bytes: 0,
            commands: Vec::new(),
            tickets: Vec::new(),
            sent: true,
        };
        while let Some(next) = self.queue.front() {
            let full = flight.commands.len() >= BATCH_COMMANDS_MAX
                || flight.bytes + next.command.len() > BATCH_BYTES_MAX;
            if full && !flight.commands.is_empty() {
                break;
            }
            flight.bytes += next.command.len();
            if let Some(Waiting { command, ticket }) = self.queue.pop_front() {
                flight.commands.push(command);
                flight.tickets.push(ticket);
            }
        }
        self.next_sequence += 1;
        flight
    }

    fn applied(&mut self, sequence: u64, index: u64, replies: Vec<Bytes>) -> Outcome<T> {
        let Some(at) = self
            .under_way
            .iter()
            .position(|flight| flight.sequence == sequence)
        else {
            return Outcome::Nothing;
        };
        let Some(flight) = self.under_way.remove(at) else {
            return Outcome::Nothing;
        };
        self.pending.commands -= flight.tickets.len();
        self.pending.bytes -= flight.bytes;
        debug_assert_eq!(
            flight.tickets.len(),
            replies.len(),
            "one reply for each command"
        );
        Outcome::Applied(index, flight.tickets.into_iter().zip(replies).collect())
    }

    fn resend_after(&mut self, last: u64) {
        for flight in self
            .under_way
            .iter_mut()
            .filter(|flight| flight.sequence > last)
        {
            flight.sent = false;
        }
    }
}

fn batch<T>(node: NodeRef, flight: &Flight<T>) -> Batch {
    let commands = flight.commands.clone();
    Batch {
        node_id: node.node.0,
        incarnation: node.incarnation,
        sequence: flight.sequence,
        commands,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use flotte_proto::Replies;

    use super::*;
    use crate::id::NodeId;
    use crate::ledger::{Admission, Ledger};

    fn core() -> Core<u32> {
        Core::new(NodeRef {
            node: NodeId(1),
            incarnation: 1,
        })
    }

    fn push(core: &mut Core<u32>, ticket: u32) {
        core.push(Waiting {
            command: Bytes::from(ticket.to_string()),
            ticket,
        });
    }

    fn applied(batch: &Batch) -> BatchReply {
        let replies = Replies {
            replies: batch.commands.clone(),
        };
        BatchReply {
            index: 9,
            result: Some(batch_reply::Result::Replies(replies)),
        }
    }

    #[test]
    fn commands_that_wait_share_a_batch() {
        let mut core = core();
        push(&mut core, 1);
        let first = core.poll_send().unwrap();
        push(&mut core, 2);
        push(&mut core, 3);
        let second = core.poll_send().unwrap();
        assert_eq!(
            (first.sequence, second.sequence, second.commands.len()),
            (1, 2, 2)
        );
        let outcome = core.handle_reply(2, applied(&second));
        assert_eq!(
            outcome,
            Outcome::Applied(9, vec![(2, Bytes::from("2")), (3, Bytes::from("3"))])
        );
    }

    #[test]
    fn a_gap_resends_all_after_it_in_order() {
        let mut core = core();
        for ticket in 1..=3 {
            push(&mut core, ticket);
            core.poll_send().unwrap();
        }
        core.handle_reply(
            3,
            BatchReply {
                index: 0,
                result: Some(batch_reply::Result::Gap(1)),
            },
        );
        let again: Vec<u64> = std::iter::from_fn(|| core.poll_send())
            .map(|b| b.sequence)
            .collect();
        assert_eq!(again, [2, 3]);
    }

    #[test]
    fn no_more_than_a_window_is_under_way() {
        let mut core = core();
        for ticket in 0..20 {
            push(&mut core, ticket);
            core.poll_send();
        }
        assert_eq!(core.under_way.len(), WINDOW);
        let (commands, bytes) = (20, 10 + 10 * 2);
        assert_eq!(core.pending(), Pending { commands, bytes });
    }

    #[test]
    fn a_batch_is_bounded_by_count_and_size() {
        let mut core = core();
        for ticket in 0..3_000 {
            push(&mut core, ticket);
        }
        assert_eq!(core.poll_send().unwrap().commands.len(), BATCH_COMMANDS_MAX);
        let mut core = super::tests::core();
        for ticket in 0..3 {
            core.push(Waiting {
                command: Bytes::from(vec![0; BATCH_BYTES_MAX - 1]),
                ticket,
            });
        }
        assert_eq!(core.poll_send().unwrap().commands.len(), 1);
    }

    proptest::proptest! {
        /// Whatever is lost, repeated or overtaken on the way: every command is applied once, in order.
        #[test]
        fn each_command_is_applied_once_in_order(fates in proptest::collection::vec(0_u8..5, 1..200)) {
            let (mut core, mut ledger, mut log, mut answered) = (core(), Ledger::default(), Vec::new(), Vec::new());
            let (mut network, mut fates) = (VecDeque::new(), fates.into_iter());
            for ticket in 0..40 {
                push(&mut core, ticket);
                network.extend(core.poll_send());
            }
            for round in 0..10_000 {
                while let Some(batch) = core.poll_send() {
                    network.push_back(batch);
                }
                let fate = fates.next().unwrap_or(0);
                let Some(batch) = (if fate == 3 { network.pop_back() } else { network.pop_front() }) else { break };
                if fate == 1 {
                    core.handle_lost(batch.sequence);
                    continue;
                }
                let reply = match ledger.admit(NodeId(1), 1, batch.sequence) {
                    Admission::Take => {
                        log.extend(batch.commands.iter().cloned());
                        let reply = applied(&batch);
                        ledger.record(NodeId(1), 1, batch.sequence, prost::Message::encode_to_vec(&reply).into());
                        reply
                    }
                    Admission::Repeat(reply) => prost::Message::decode(reply).unwrap(),
                    Admission::Gap(last) => BatchReply { index: 0, result: Some(batch_reply::Result::Gap(last)) },
                    Admission::Stale => unreachable!(),
                };
                if fate == 2 {
                    core.handle_lost(batch.sequence);
                } else if let Outcome::Applied(_, tickets) = core.handle_reply(batch.sequence, reply) {
                    answered.extend(tickets.into_iter().map(|(ticket, _)| ticket));
                }
                assert!(round < 9_999, "it never ends");
            }
            assert_eq!(core.pending(), Pending::default());
            let expected: Vec<Bytes> = (0..40).map(|t: u32| Bytes::from(t.to_string())).collect();
            assert_eq!(log, expected);
            answered.sort_unstable();
            assert_eq!(answered, (0..40).collect::<Vec<_>>());
        }
    }
}
