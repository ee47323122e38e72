//! Replicated record of what each node has proposed to a group: makes a retried batch neither lost, doubled nor
//! reordered. Pure state; part of every group's state machine.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use flotte_proto::ProposerRecord;

use crate::id::NodeId;

/// Most batches that a proposer may have under way, and so the number of replies kept for repeats.
pub const WINDOW: usize = 8;

/// What is to be done with a batch.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is the next one: apply it, then [`Ledger::record`] its reply.
    Take,
    /// It was applied before; this was its reply.
    Repeat(Bytes),
    /// Something before it is missing: the last sequence that was taken.
    Gap(u64),
    /// A newer incarnation of the node is current, or this one is Down.
    Stale,
}

/// Sequences and replies of all nodes that propose to one group.
#[derive(Debug, Default, Clone)]
pub struct Ledger {
    nodes: BTreeMap<NodeId, Slot>,
}

#[derive(Debug, Default, Clone)]
struct Slot {
    incarnation: u64,
    last: u64,
    /// Replies of the sequences up to `last`, oldest first; at most [`WINDOW`].
    replies: VecDeque<Bytes>,
}

impl Ledger {
    /// Judges a batch. Sequence 1 of a higher incarnation is always the next one; taking it makes that incarnation current.
    pub fn admit(&self, node: NodeId, incarnation: u64, sequence: u64) -> Admission {
        let Some(slot) = self.nodes.get(&node) else {
            return if sequence == 1 {
                Admission::Take
            } else {
                Admission::Gap(0)
            };
        };
        if incarnation < slot.incarnation {
            return Admission::Stale;
        }
        let last = if incarnation > slot.incarnation {
            0
        } else {
            slot.last
        };
        if sequence == last + 1 {
            return Admission::Take;
        }
        if sequence > last + 1 {
            return Admission::Gap(last);
        }
        let behind = usize::try_from(last - sequence).unwrap_or(usize::MAX);
        match slot
            .replies
            .len()
            .checked_sub(behind + 1)
            .and_then(|at| slot.replies.get(at))
        {
            Some(reply) => Admission::Repeat(reply.clone()),
            // The proposer has had this reply: it never has more than a window under way.
            None => Admission::Gap(last),
        }
    }

    /// Stores the reply of a batch that was admitted with [`Admission::Take`].
    pub fn record(&mut self, node: NodeId, incarnation: u64, sequence: u64, reply: Bytes) {
        let slot = self.nodes.entry(node).or_default();
        if incarnation > slot.incarnation {
            *slot = Slot {
                incarnation,
                ..Slot::default()
            };
        }
        assert_eq!(slot.last + 1, sequence, "only the next batch is recorded");
        slot.last = sequence;
        slot.replies.push_back(reply);
        if slot.replies.len() > WINDOW {
            slot.replies.pop_front();
        }
    }

    /// Takes nothing more from a node that left for good.
    pub fn forget(&mut self, node: NodeId) {
        self.nodes.remove(&node);
    }

    /// One record per node, for a snapshot.
    pub fn records(&self) -> impl Iterator<Item = ProposerRecord> + '_ {
        self.nodes.iter().map(|(node, slot)| ProposerRecord {
            node_id: node.0,
            incarnation: slot.incarnation,
            last: slot.last,
            replies: slot.replies.iter().cloned().collect(),
        })
    }

    /// Takes a record back from a snapshot.
    pub fn restore(&mut self, record: ProposerRecord) {
        let slot = Slot {
            incarnation: record.incarnation,
            last: record.last,
            replies: record.replies.into(),
        };
        self.nodes.insert(NodeId(record.node_id), slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: NodeId = NodeId(7);

    fn taken(ledger: &mut Ledger, incarnation: u64, sequence: u64) {
        assert_eq!(ledger.admit(N, incarnation, sequence), Admission::Take);
        ledger.record(N, incarnation, sequence, Bytes::from(sequence.to_string()));
    }

    #[test]
    fn a_repeat_gets_the_stored_reply() {
        let mut ledger = Ledger::default();
        for sequence in 1..=3 {
            taken(&mut ledger, 1, sequence);
        }
        assert_eq!(ledger.admit(N, 1, 2), Admission::Repeat(Bytes::from("2")));
        assert_eq!(ledger.admit(N, 1, 3), Admission::Repeat(Bytes::from("3")));
    }

    #[test]
    fn a_batch_after_a_lost_one_is_a_gap() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.admit(N, 1, 2), Admission::Gap(0));
        taken(&mut ledger, 1, 1);
        assert_eq!(ledger.admit(N, 1, 3), Admission::Gap(1));
    }

    #[test]
    fn a_newer_incarnation_starts_over_and_fences_the_older() {
        let mut ledger = Ledger::default();
        taken(&mut ledger, 1, 1);
        taken(&mut ledger, 1, 2);
        assert_eq!(
            ledger.admit(N, 2, 2),
            Admission::Gap(0),
            "the new one has to begin with 1"
        );
        taken(&mut ledger, 2, 1);
        assert_eq!(ledger.admit(N, 1, 3), Admission::Stale);
        assert_eq!(ledger.admit(N, 2, 2), Admission::Take);
    }

    #[test]
    fn only_a_window_of_replies_is_kept_and_survives_a_snapshot() {
        let mut ledger = Ledger::default();
        for sequence in 1..=20 {
            taken(&mut ledger, 1, sequence);
        }
        let mut restored = Ledger::default();
        for record in ledger.records() {
            assert_eq!(record.replies.len(), WINDOW);
            restored.restore(record);
        }
        assert_eq!(
            restored.admit(N, 1, 13),
            Admission::Repeat(Bytes::from("13"))
        );
        assert_eq!(restored.admit(N, 1, 12), Admission::Gap(20));
        assert_eq!(restored.admit(N, 1, 21), Admission::Take);
    }
}
