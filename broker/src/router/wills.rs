//! Wills that members of shared subscriptions here were given: the leader of a session group publishes a will again, under
//! the same key, where the one before was lost before it could say that it had.

use std::collections::BTreeMap;

use flotte_cluster::wire::WillKey;
use flotte_mqtt::topic::SubscriptionFilter;
use smallvec::SmallVec;

/// Which shares were given which wills. Bounded as [`flotte_cluster::wire::WillKeys`] is, once for each share.
#[derive(Debug, Default)]
pub(super) struct SharedWills {
    groups: BTreeMap<u32, Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    floor: u64,
    shares: BTreeMap<u64, SmallVec<[SubscriptionFilter; 1]>>,
}

impl SharedWills {
    /// A member of this share is to get a will. False = one had it before.
    pub fn insert(&mut self, key: &WillKey, share: &SubscriptionFilter) -> bool {
        let taken = self.groups.entry(key.group).or_default();
        taken.floor = taken.floor.max(key.floor);
        taken.shares = taken.shares.split_off(&taken.floor);
        if key.key < taken.floor {
            return false;
        }
        let shares = taken.shares.entry(key.key).or_default();
        let is_new = !shares.contains(share);
        if is_new {
            shares.push(share.clone());
        }
        is_new
    }

    /// There was no member to take it.
    pub fn remove(&mut self, key: &WillKey, share: &SubscriptionFilter) {
        let taken = self.groups.get_mut(&key.group);
        if let Some(shares) = taken.and_then(|taken| taken.shares.get_mut(&key.key)) {
            shares.retain(|one| one != share);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn share(text: &str) -> SubscriptionFilter {
        SubscriptionFilter::try_from(text).unwrap()
    }

    #[test]
    fn each_share_is_given_a_will_once() {
        let mut wills = SharedWills::default();
        let key = |key, floor| WillKey {
            group: 1,
            key,
            floor,
        };
        let (a, b) = (share("$share/a/t"), share("$share/b/t"));
        assert!(wills.insert(&key(3, 1), &a) && wills.insert(&key(3, 1), &b));
        assert!(!wills.insert(&key(3, 1), &a));
        wills.remove(&key(3, 1), &a);
        assert!(wills.insert(&key(3, 1), &a), "nobody had it");
        assert!(wills.insert(&key(5, 4), &a));
        assert!(!wills.insert(&key(3, 1), &b), "below the floor it was done");
        assert_eq!(wills.groups[&1].shares.len(), 1);
    }
}
