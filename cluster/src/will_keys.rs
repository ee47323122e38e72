//! Keys of wills that were taken already. A will comes again, under the same key, where the leader that published it was
//! lost before it could say so. Pure.

use std::collections::{BTreeMap, BTreeSet};

use flotte_proto::{WillKey, WillKeysRecord};

/// Which wills were taken, by session group. Bounded: keys below the floor, which every key carries, are done for good
/// and forgotten; those above it are at most the wills of a group that wait.
#[derive(Debug, Default)]
pub struct WillKeys {
    groups: BTreeMap<u32, Keys>,
}

#[derive(Debug, Default)]
struct Keys {
    floor: u64,
    taken: BTreeSet<u64>,
}

impl WillKeys {
    /// Takes a key. False = it was taken before.
    pub fn insert(&mut self, key: &WillKey) -> bool {
        let keys = self.groups.entry(key.group).or_default();
        keys.floor = keys.floor.max(key.floor);
        keys.taken = keys.taken.split_off(&keys.floor);
        key.key >= keys.floor && keys.taken.insert(key.key)
    }

    /// Records for a snapshot.
    pub(crate) fn records(&self) -> impl Iterator<Item = WillKeysRecord> {
        self.groups.iter().map(|(group, keys)| WillKeysRecord {
            group: *group,
            floor: keys.floor,
            taken: keys.taken.iter().copied().collect(),
        })
    }

    /// Takes a record back from a snapshot.
    pub(crate) fn restore(&mut self, record: WillKeysRecord) {
        let keys = Keys {
            floor: record.floor,
            taken: record.taken.into_iter().collect(),
        };
        self.groups.insert(record.group, keys);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_taken_once_and_forgotten_below_the_floor() {
        let mut keys = WillKeys::default();
        let key = |key, floor| WillKey {
            group: 1,
            key,
            floor,
        };
        assert!(keys.insert(&key(3, 1)));
        assert!(!keys.insert(&key(3, 1)));
        assert!(keys.insert(&WillKey {
            group: 2,
            key: 3,
            floor: 1
        }));
        assert!(keys.insert(&key(5, 4)));
        assert!(!keys.insert(&key(3, 1)), "below the floor it was done");
        assert_eq!(keys.groups[&1].taken.len(), 1);
    }
}
