//! The subscriptions of one session. Most sessions have one or a few, and an idle client must cost little: they stand in a
//! plain list. A client that asks for thousands gets a tree, so that no request costs more with each that was before it.

use std::collections::BTreeMap;

use flotte_mqtt::packet::SubscribeOptions;
use flotte_mqtt::topic::SubscriptionFilter;

use super::Subscription;

/// So many stand in the list at most.
const FEW: usize = 32;

/// The subscriptions of a session, one for each filter [MQTT-3.8.4-3]. Bounded by `session.subscriptions_max`, which
/// whoever inserts has to check.
#[derive(Debug)]
pub enum SubscriptionSet {
    /// In no order.
    Few(Vec<Subscription>),
    /// By filter, with options and identifier. It is a list again once it is empty.
    Many(Box<BTreeMap<SubscriptionFilter, (SubscribeOptions, u32)>>),
}

impl SubscriptionSet {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            SubscriptionSet::Few(list) => list.len(),
            SubscriptionSet::Many(tree) => tree.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Each filter, with what was granted.
    pub fn iter(&self) -> impl Iterator<Item = (&SubscriptionFilter, SubscribeOptions)> {
        let (list, tree) = match self {
            SubscriptionSet::Few(list) => (&list[..], None),
            SubscriptionSet::Many(tree) => (&[][..], Some(tree)),
        };
        let tree = tree.into_iter().flat_map(|tree| tree.iter());
        let list = list.iter().map(|one| (&one.filter, one.options));
        list.chain(tree.map(|(filter, (options, _))| (filter, *options)))
    }

    /// Whether there is one with this filter.
    pub fn contains(&self, filter: &SubscriptionFilter) -> bool {
        match self {
            SubscriptionSet::Few(list) => list.iter().any(|known| known.filter == *filter),
            SubscriptionSet::Many(tree) => tree.contains_key(filter),
        }
    }

    /// Adds one, or replaces that with the same filter. Says whether there was one.
    pub fn insert(&mut self, subscription: Subscription) -> bool {
        match self {
            SubscriptionSet::Few(list) => {
                let known = list
                    .iter_mut()
                    .find(|known| known.filter == subscription.filter);
                if let Some(known) = known {
                    *known = subscription;
                    return true;
                }
                list.reserve_exact(usize::from(list.len() < FEW));
                list.push(subscription);
                if list.len() > FEW {
                    let tree = std::mem::take(list).into_iter().map(entry).collect();
                    *self = SubscriptionSet::Many(Box::new(tree));
                }
                false
            }
            SubscriptionSet::Many(tree) => {
                let (filter, granted) = entry(subscription);
                tree.insert(filter, granted).is_some()
            }
        }
    }

    /// Removes that with this filter. Says whether there was one.
    pub fn remove(&mut self, filter: &SubscriptionFilter) -> bool {
        match self {
            SubscriptionSet::Few(list) => {
                let before = list.len();
                list.retain(|known| known.filter != *filter);
                list.len() < before
            }
            SubscriptionSet::Many(tree) => {
                let removed = tree.remove(filter).is_some();
                if tree.is_empty() {
                    *self = SubscriptionSet::default();
                }
                removed
            }
        }
    }

    /// The filters of all.
    pub fn into_filters(self) -> Vec<SubscriptionFilter> {
        match self {
            SubscriptionSet::Few(list) => list.into_iter().map(|one| one.filter).collect(),
            SubscriptionSet::Many(tree) => tree.into_keys().collect(),
        }
    }
}

impl Default for SubscriptionSet {
    fn default() -> Self {
        SubscriptionSet::Few(Vec::new())
    }
}

fn entry(subscription: Subscription) -> (SubscriptionFilter, (SubscribeOptions, u32)) {
    let Subscription {
        filter,
        options,
        id,
    } = subscription;
    (filter, (options, id))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn subscription(number: usize, id: u32) -> Subscription {
        Subscription {
            filter: format!("a/{number}").as_str().try_into().unwrap(),
            options: SubscribeOptions::default(),
            id,
        }
    }

    #[test]
    fn few_and_many_behave_alike() {
        for count in [1, FEW, FEW + 1, 10 * FEW] {
            let mut all = SubscriptionSet::default();
            for number in 0..count {
                assert!(!all.insert(subscription(number, 0)));
                assert!(all.insert(subscription(number, 1)), "replaced");
            }
            assert_eq!((all.len(), all.iter().count()), (count, count));
            assert!(all.contains(&subscription(0, 0).filter));
            assert!(!all.contains(&subscription(count, 0).filter));
            assert!(all.remove(&subscription(0, 0).filter));
            assert!(!all.remove(&subscription(0, 0).filter));
            let mut left = all.into_filters();
            left.sort();
            let mut wanted: Vec<_> = (1..count).map(|n| subscription(n, 0).filter).collect();
            wanted.sort();
            assert_eq!(left, wanted);
        }
    }

    #[test]
    fn one_that_had_many_and_has_none_costs_as_little_as_before() {
        let mut all = SubscriptionSet::default();
        (0..10 * FEW).for_each(|number| assert!(!all.insert(subscription(number, 0))));
        (0..10 * FEW).for_each(|number| assert!(all.remove(&subscription(number, 0).filter)));
        assert!(matches!(&all, SubscriptionSet::Few(list) if list.capacity() == 0));
    }

    #[test]
    fn it_takes_no_more_room_than_a_list() {
        assert_eq!(size_of::<SubscriptionSet>(), size_of::<Vec<Subscription>>());
    }
}
