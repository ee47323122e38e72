//! A consensus group as a model: one line of entries of which a prefix is committed, the leader that may add to it, and what each
//! node believes of that. What consensus promises holds by construction; all it leaves open is up to chance: which of the entries that
//! were not committed survive an election, who learns of it how late, and how far each replica is.

use std::collections::BTreeMap;

use bytes::Bytes;

/// What a node takes for the state of a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Belief {
    pub term: u64,
    pub leader: Option<usize>,
}

#[derive(Debug, Clone)]
pub struct Entry {
    pub term: u64,
    /// None: the first entry of a term.
    pub data: Option<Bytes>,
    /// When it was stamped.
    pub stamped: u64,
}

#[derive(Debug)]
pub struct Log {
    /// Nodes with a replica; all of them vote.
    pub replicas: Vec<usize>,
    pub truth: Belief,
    entries: Vec<Entry>,
    pub committed: u64,
    /// First index of the term.
    pub first_of_term: u64,
    pub beliefs: BTreeMap<usize, Belief>,
    /// How far each replica is.
    pub applied: BTreeMap<usize, u64>,
    /// Since when the leader has had no quorum, and how long that is borne.
    pub leaderless: Option<(u64, u64)>,
}

impl Log {
    pub fn new(replicas: Vec<usize>) -> Log {
        let beliefs = replicas
            .iter()
            .map(|node| (*node, Belief::default()))
            .collect();
        let applied = replicas.iter().map(|node| (*node, 0)).collect();
        Log {
            replicas,
            truth: Belief::default(),
            entries: Vec::new(),
            committed: 0,
            first_of_term: 1,
            beliefs,
            applied,
            leaderless: None,
        }
    }

    pub fn last(&self) -> u64 {
        self.entries.len() as u64
    }

    pub fn entry(&self, index: u64) -> &Entry {
        &self.entries[index as usize - 1]
    }

    pub fn belief(&self, node: usize) -> Belief {
        self.beliefs.get(&node).copied().unwrap_or_default()
    }

    /// Whether a node leads, and not only believes so.
    pub fn is_led_by(&self, node: usize, term: u64) -> bool {
        self.truth.leader == Some(node) && self.truth.term == term
    }

    /// Takes an entry of the leader. Returns its index.
    pub fn append(&mut self, data: Option<Bytes>, stamped: u64) -> u64 {
        self.entries.push(Entry {
            term: self.truth.term,
            data,
            stamped,
        });
        self.last()
    }

    /// The process of a node is gone. Started again it leads no more without an election, as `enable_leader_restore: false` has it.
    pub fn ended(&mut self, node: usize) {
        if self.truth.leader == Some(node) {
            self.truth.leader = None;
        }
    }

    /// A node is elected, with `kept` of the entries that were not committed.
    pub fn elect(&mut self, node: usize, kept: u64, now: u64) {
        self.entries.truncate((self.committed + kept) as usize);
        self.truth = Belief {
            term: self.truth.term + 1,
            leader: Some(node),
        };
        self.first_of_term = self.append(None, now);
        self.leaderless = None;
    }
}
