//! Payloads of retained messages that come in parts, one command each, so that those of others go between them. A pure
//! function of commands: what a node has begun belongs to its present start, and goes with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use flotte_proto::AssemblyRecord;
use parking_lot::Mutex;

use crate::id::NodeId;

/// Bytes of a part at most; also the largest payload that one command holds.
pub const PART_BYTES: usize = 512 << 10;
/// The largest payload: that of the greatest MQTT packet.
pub(super) const PAYLOAD_BYTES_MAX: u64 = 256 << 20;
/// Payloads under way of one node at once. Nodes begin fewer.
const UNDER_WAY_MAX: usize = 16;

/// All payloads under way, by the node that proposes them and its number.
#[derive(Debug, Default)]
pub struct Assemblies {
    open: BTreeMap<(NodeId, u64), Assembly>,
    /// What their messages will count against the limits.
    bytes: u64,
}

/// A payload that has not come whole yet.
#[derive(Debug)]
struct Assembly {
    payload_bytes: u64,
    /// What its message will count.
    bytes: u64,
    held_bytes: u64,
    data: Arc<Mutex<Data>>,
}

/// What has come of a payload.
#[derive(Debug)]
enum Data {
    /// Has its full capacity from the beginning: it becomes the message's payload without a copy.
    Growing(Vec<u8>),
    Whole(Bytes),
}

impl Data {
    fn bytes(&self) -> &[u8] {
        match self {
            Data::Growing(data) => data,
            Data::Whole(data) => data,
        }
    }
}

/// What had come of a payload at some time, read while more comes behind it.
#[derive(Debug)]
pub struct Held {
    data: Arc<Mutex<Data>>,
    bytes: usize,
}

impl Held {
    /// In parts, each copied when it is its turn: `append` waits for no more than that.
    pub fn into_parts(self) -> impl Iterator<Item = Bytes> {
        let starts = (0..self.bytes).step_by(PART_BYTES);
        let ranges = starts.map(move |start| start..self.bytes.min(start + PART_BYTES));
        ranges.map(move |range| Bytes::copy_from_slice(&self.data.lock().bytes()[range]))
    }
}

impl Assembly {
    /// A snapshot that is under way goes on reading the same memory.
    fn into_payload(self) -> Bytes {
        let mut data = self.data.lock();
        let payload = match &mut *data {
            Data::Growing(data) => Bytes::from(std::mem::take(data)),
            Data::Whole(payload) => payload.clone(),
        };
        *data = Data::Whole(payload.clone());
        payload
    }

    fn held(&self) -> Held {
        Held {
            data: Arc::clone(&self.data),
            bytes: usize::try_from(self.held_bytes).unwrap_or(usize::MAX),
        }
    }
}

impl Assemblies {
    /// Begins a payload of this size, whose message counts `bytes`. False = there is no room for it.
    pub fn begin(&mut self, node: NodeId, number: u64, payload_bytes: u64, bytes: u64) -> bool {
        let under_way = self.open.range((node, 0)..=(node, u64::MAX)).count();
        let key = (node, number);
        let fits = (1..=PAYLOAD_BYTES_MAX).contains(&payload_bytes) && bytes >= payload_bytes;
        if !fits || under_way >= UNDER_WAY_MAX || self.open.contains_key(&key) {
            return false;
        }
        let data = Vec::with_capacity(usize::try_from(payload_bytes).unwrap_or(0));
        let assembly = Assembly {
            payload_bytes,
            bytes,
            held_bytes: 0,
            data: Arc::new(Mutex::new(Data::Growing(data))),
        };
        self.bytes += bytes;
        self.open.insert(key, assembly);
        true
    }

    /// Takes the next part. False = it is not that, and what has come so far is dropped.
    pub fn append(&mut self, node: NodeId, number: u64, offset: u64, part: &[u8]) -> bool {
        let Some(assembly) = self.open.get_mut(&(node, number)) else {
            return false;
        };
        let (here, more) = (assembly.held_bytes, part.len() as u64);
        if offset == here && more <= assembly.payload_bytes - here {
            if let Data::Growing(data) = &mut *assembly.data.lock() {
                data.extend_from_slice(part);
            }
            assembly.held_bytes += more;
            return true;
        }
        self.drop_one(node, number);
        false
    }

    /// Takes a payload out. None = it has not come whole, or is not known; then nothing is left of it.
    pub fn take(&mut self, node: NodeId, number: u64) -> Option<Bytes> {
        let assembly = self.drop_one(node, number)?;
        (assembly.held_bytes == assembly.payload_bytes).then(|| assembly.into_payload())
    }

    /// The present start of a node is over.
    pub fn drop_of(&mut self, node: NodeId) {
        let of_node = self.open.range((node, 0)..=(node, u64::MAX));
        let numbers: Vec<u64> = of_node.map(|((_, number), _)| *number).collect();
        for number in numbers {
            self.drop_one(node, number);
        }
    }

    fn drop_one(&mut self, node: NodeId, number: u64) -> Option<Assembly> {
        let assembly = self.open.remove(&(node, number))?;
        self.bytes -= assembly.bytes;
        Some(assembly)
    }

    /// What the messages of all will count against the limits.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Each as a record and what it holds now.
    pub fn records(&self) -> impl Iterator<Item = (AssemblyRecord, Held)> {
        self.open.iter().map(|((node, number), assembly)| {
            let record = AssemblyRecord {
                node_id: node.0,
                number: *number,
                payload_bytes: assembly.payload_bytes,
                bytes: assembly.bytes,
                held_bytes: assembly.held_bytes,
            };
            (record, assembly.held())
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const N: NodeId = NodeId(7);

    #[test]
    fn parts_in_order_make_a_payload_without_a_copy() {
        let mut all = Assemblies::default();
        assert!(all.begin(N, 1, 5, 6));
        assert_eq!((all.bytes(), all.len()), (6, 1));
        let place = all.open[&(N, 1)].data.lock().bytes().as_ptr();
        assert!(all.append(N, 1, 0, b"abc"));
        assert!(all.append(N, 1, 3, b"de"));
        let payload = all.take(N, 1).unwrap();
        assert_eq!((&payload[..], payload.as_ptr()), (&b"abcde"[..], place));
        assert_eq!((all.bytes(), all.len()), (0, 0));
        assert_eq!(all.take(N, 1), None);
    }

    #[test]
    fn what_had_come_is_read_while_more_comes_and_after_it_went() {
        let early: Vec<u8> = (0..=255).cycle().take(PART_BYTES + 10).collect();
        for whole in [false, true] {
            let mut all = Assemblies::default();
            let bytes = early.len() as u64 + 4;
            assert!(all.begin(N, 1, bytes, bytes) && all.append(N, 1, 0, &early));
            let (record, held) = all.records().next().unwrap();
            let mut parts = held.into_parts();
            assert_eq!(parts.next().unwrap(), early[..PART_BYTES]);
            assert!(all.append(N, 1, early.len() as u64, b"late"));
            if whole {
                assert_eq!(all.take(N, 1).unwrap().len() as u64, bytes);
            } else {
                all.drop_of(N);
            }
            assert_eq!(parts.next().unwrap(), early[PART_BYTES..]);
            assert_eq!((parts.next(), record.held_bytes), (None, bytes - 4));
        }
    }

    #[test]
    fn a_part_out_of_place_ends_it() {
        for (offset, part) in [(0, &b"again"[..]), (4, b"hole"), (3, b"too long")] {
            let mut all = Assemblies::default();
            assert!(all.begin(N, 1, 7, 7) && all.append(N, 1, 0, b"abc"));
            assert!(!all.append(N, 1, offset, part));
            assert_eq!((all.bytes(), all.len()), (0, 0));
            assert!(!all.append(N, 1, 3, b"late"));
        }
    }

    #[test]
    fn what_is_not_whole_is_not_taken_and_goes() {
        let mut all = Assemblies::default();
        assert!(all.begin(N, 1, 2, 2) && all.append(N, 1, 0, b"a"));
        assert_eq!(all.take(N, 1), None);
        assert_eq!((all.bytes(), all.len()), (0, 0));
    }

    #[test]
    fn sizes_and_numbers_are_bounded() {
        let mut all = Assemblies::default();
        for payload_bytes in [0, PAYLOAD_BYTES_MAX + 1, u64::MAX] {
            assert!(!all.begin(N, 1, payload_bytes, u64::MAX));
        }
        assert!(!all.begin(N, 1, 5, 4), "it counts less than it holds");
        for number in 0..UNDER_WAY_MAX as u64 {
            assert!(all.begin(N, number, 1, 1));
        }
        assert!(!all.begin(N, 99, 1, 1));
        assert!(all.begin(NodeId(8), 99, 1, 1), "each node has its own");
        all.drop_of(N);
        assert_eq!((all.bytes(), all.len()), (1, 1));
        assert!(all.begin(N, 99, 1, 1) && !all.begin(N, 99, 1, 1));
    }
}
