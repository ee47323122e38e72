//! The subscriptions of the sessions of this node, by filter. Pure: it decides who gets a topic here, and when a filter
//! has its first or has lost its last subscriber.

use std::collections::BTreeMap;
use std::sync::Arc;

use flotte_mqtt::packet::SubscribeOptions;
use flotte_mqtt::topic::{ShareName, SubscriptionFilter, TopicFilter, TopicTree};
use flotte_mqtt::{ClientId, QoS};
use smallvec::SmallVec;

use crate::session::Session;

/// A session that gets a copy, and how.
#[derive(Debug, Clone)]
pub struct Target {
    /// To whose queue.
    pub session: Arc<Session>,
    /// Highest granted among the subscriptions that match.
    pub qos: QoS,
    /// Keep the publisher's RETAIN flag.
    pub retain_as_published: bool,
    /// Identifiers of all subscriptions that match.
    pub ids: SmallVec<[u32; 1]>,
}

/// Most filters have one subscriber, who stands where a pointer to more would.
type Subscribers = SmallVec<[Subscriber; 1]>;

/// What a change means for the routes to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// The number of live members of a share is this now.
    Members(u32),
    /// Whether there are ordinary subscribers, now.
    Present(bool),
}

#[derive(Debug)]
struct Subscriber {
    session: Arc<Session>,
    options: SubscribeOptions,
    /// 0 = none.
    id: u32,
}

#[derive(Debug, Default)]
struct FilterSubscribers {
    subscribers: Subscribers,
    /// Boxed, and so 16 bytes smaller: most filters have none.
    #[expect(
        clippy::box_collection,
        reason = "one pointer for each of many filters"
    )]
    shares: Option<Box<BTreeMap<ShareName, Share>>>,
}

#[derive(Debug, Default)]
struct Share {
    members: Subscribers,
    /// Whose turn it is.
    next: usize,
}

/// All subscriptions of this node.
#[derive(Debug, Default)]
pub struct Subscriptions {
    tree: TopicTree<FilterSubscribers>,
    count: usize,
    /// Of them those of `$SYS`.
    sys: usize,
}

impl Change {
    /// Subscribers (0 or 1) or members that routes should lead to; none where it is what it was.
    pub(super) fn wanted(self) -> Option<u32> {
        match self {
            Change::None => None,
            Change::Present(present) => Some(u32::from(present)),
            Change::Members(members) => Some(members),
        }
    }
}

impl Subscriptions {
    /// Adds a subscription, or replaces that of the same session and filter [MQTT-3.8.4-3]. Says what it means for
    /// routes.
    pub fn insert(
        &mut self,
        session: &Arc<Session>,
        filter: &SubscriptionFilter,
        options: SubscribeOptions,
        id: u32,
    ) -> Change {
        let subscriber = Subscriber {
            session: Arc::clone(session),
            options,
            id,
        };
        let entry = self
            .tree
            .entry_or_insert_with(&filter.filter, FilterSubscribers::default);
        let Some(name) = &filter.share else {
            let first = entry.subscribers.is_empty();
            let new = usize::from(put(&mut entry.subscribers, subscriber));
            self.count += new;
            if new > 0 && crate::sys::concerns(&filter.filter) {
                self.sys += 1;
            }
            return if first {
                Change::Present(true)
            } else {
                Change::None
            };
        };
        let share = entry
            .shares
            .get_or_insert_default()
            .entry(name.clone())
            .or_default();
        if !put(&mut share.members, subscriber) {
            return Change::None;
        }
        self.count += 1;
        Change::Members(count_of(&share.members))
    }

    /// Removes a subscription. None = there was none.
    pub fn remove(
        &mut self,
        session: &Arc<Session>,
        filter: &SubscriptionFilter,
    ) -> Option<Change> {
        let entry = self.tree.get_mut(&filter.filter)?;
        let change = match &filter.share {
            None => {
                take(&mut entry.subscribers, session)?;
                if entry.subscribers.is_empty() {
                    Change::Present(false)
                } else {
                    Change::None
                }
            }
            Some(name) => {
                let shares = entry.shares.as_mut()?;
                let share = shares.get_mut(name)?;
                take(&mut share.members, session)?;
                let left = count_of(&share.members);
                if left == 0 {
                    shares.remove(name);
                }
                if shares.is_empty() {
                    entry.shares = None;
                }
                Change::Members(left)
            }
        };
        if entry.subscribers.is_empty() && entry.shares.is_none() {
            self.tree.remove(&filter.filter);
        }
        self.count -= 1;
        if filter.share.is_none() && crate::sys::concerns(&filter.filter) {
            self.sys -= 1;
        }
        Some(change)
    }

    /// The sessions that get a topic by their ordinary subscriptions: each once, at the highest QoS, with all identifiers
    /// [MQTT-3.3.4-2], [MQTT-3.3.4-3]; none to the publisher through a No Local subscription [MQTT-3.8.3-3].
    pub fn targets(&self, topic: &str, publisher: &ClientId) -> Vec<Target> {
        let mut targets: Vec<Target> = Vec::new();
        let mut filters = 0;
        self.tree.for_each_match(topic, |entry| {
            filters += usize::from(!entry.subscribers.is_empty());
            targets.extend(
                entry
                    .subscribers
                    .iter()
                    .filter(|s| !is_own(s, publisher))
                    .map(Subscriber::target),
            );
        });
        // Within one filter no session stands twice.
        if filters > 1 {
            merge(&mut targets);
        }
        targets
    }

    /// The next member of a share, in turn.
    pub fn pick(&mut self, group: &ShareName, filter: &TopicFilter) -> Option<Target> {
        let share = self.tree.get_mut(filter)?.shares.as_mut()?.get_mut(group)?;
        share.next = (share.next + 1) % share.members.len().max(1);
        share.members.get(share.next).map(Subscriber::target)
    }

    /// Members of a share.
    pub fn member_count(&self, group: &ShareName, filter: &TopicFilter) -> usize {
        let entry = self.tree.get(filter);
        let share = entry.and_then(|entry| entry.shares.as_ref()?.get(group));
        share.map_or(0, |share| share.members.len())
    }

    /// Number of subscriptions.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether one of them is an ordinary one of `$SYS`.
    pub fn has_sys(&self) -> bool {
        self.sys > 0
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl Subscriber {
    fn target(&self) -> Target {
        Target {
            session: Arc::clone(&self.session),
            qos: self.options.qos,
            retain_as_published: self.options.retain_as_published,
            ids: if self.id == 0 {
                SmallVec::new()
            } else {
                SmallVec::from_elem(self.id, 1)
            },
        }
    }
}

fn is_own(subscriber: &Subscriber, publisher: &ClientId) -> bool {
    subscriber.options.no_local && subscriber.session.client == *publisher
}

/// Says whether it is new.
fn put(list: &mut Subscribers, subscriber: Subscriber) -> bool {
    match list
        .iter_mut()
        .find(|s| Arc::ptr_eq(&s.session, &subscriber.session))
    {
        Some(old) => {
            *old = subscriber;
            false
        }
        None => {
            list.push(subscriber);
            true
        }
    }
}

fn take(list: &mut Subscribers, session: &Arc<Session>) -> Option<Subscriber> {
    let at = list.iter().position(|s| Arc::ptr_eq(&s.session, session))?;
    Some(list.swap_remove(at))
}

fn count_of(members: &[Subscriber]) -> u32 {
    u32::try_from(members.len()).unwrap_or(u32::MAX)
}

fn merge(targets: &mut Vec<Target>) {
    targets.sort_by_key(|target| Arc::as_ptr(&target.session) as usize);
    targets.dedup_by(|next, first| {
        let same = Arc::ptr_eq(&next.session, &first.session);
        if same {
            first.qos = first.qos.max(next.qos);
            first.retain_as_published |= next.retain_as_published;
            first.ids.extend(next.ids.drain(..));
        }
        same
    });
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::session::Limits;

    fn session(name: &str) -> Arc<Session> {
        let limits = Limits {
            outbound: Arc::default(),
            inbound: Default::default(),
        };
        Arc::new(Session::new(ClientId::try_from(name).unwrap(), &limits))
    }

    fn filter(text: &str) -> SubscriptionFilter {
        SubscriptionFilter::try_from(text).unwrap()
    }

    fn options(qos: QoS) -> SubscribeOptions {
        SubscribeOptions::with_qos(qos)
    }

    fn names(subscriptions: &Subscriptions, topic: &str) -> Vec<String> {
        let publisher = ClientId::try_from("publisher").unwrap();
        let mut names: Vec<String> = subscriptions
            .targets(topic, &publisher)
            .iter()
            .map(|t| t.session.client.as_str().to_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_first_and_the_last_subscriber_change_the_route() {
        let (mut subscriptions, a, b) = (Subscriptions::default(), session("a"), session("b"));
        let f = filter("x/+");
        assert_eq!(
            subscriptions.insert(&a, &f, options(QoS::AtMostOnce), 0),
            Change::Present(true)
        );
        assert_eq!(
            subscriptions.insert(&b, &f, options(QoS::AtMostOnce), 0),
            Change::None
        );
        assert_eq!(
            subscriptions.insert(&b, &f, options(QoS::AtLeastOnce), 0),
            Change::None
        );
        assert_eq!(
            (subscriptions.len(), names(&subscriptions, "x/1")),
            (2, vec!["a".into(), "b".into()])
        );
        assert_eq!(subscriptions.remove(&a, &f), Some(Change::None));
        assert_eq!(subscriptions.remove(&a, &f), None);
        assert_eq!(subscriptions.remove(&b, &f), Some(Change::Present(false)));
        assert!(subscriptions.is_empty() && names(&subscriptions, "x/1").is_empty());
    }

    #[test]
    fn overlapping_subscriptions_give_one_copy_at_the_highest_qos_with_all_ids() {
        let (mut subscriptions, a) = (Subscriptions::default(), session("a"));
        subscriptions.insert(&a, &filter("x/#"), options(QoS::AtMostOnce), 7);
        subscriptions.insert(&a, &filter("x/1"), options(QoS::ExactlyOnce), 9);
        subscriptions.insert(&a, &filter("+/1"), options(QoS::AtLeastOnce), 0);
        let targets = subscriptions.targets("x/1", &ClientId::try_from("p").unwrap());
        assert_eq!(targets.len(), 1);
        assert_eq!(targets[0].qos, QoS::ExactlyOnce);
        let mut ids = targets[0].ids.to_vec();
        ids.sort_unstable();
        assert_eq!(ids, [7, 9]);
    }

    #[test]
    fn no_local_holds_back_only_what_it_covers() {
        let (mut subscriptions, a) = (Subscriptions::default(), session("a"));
        let no_local = SubscribeOptions {
            no_local: true,
            ..options(QoS::ExactlyOnce)
        };
        subscriptions.insert(&a, &filter("x/1"), no_local, 1);
        assert!(subscriptions.targets("x/1", &a.client).is_empty());
        assert_eq!(names(&subscriptions, "x/1"), ["a"]);
        subscriptions.insert(&a, &filter("x/+"), options(QoS::AtMostOnce), 2);
        let own = subscriptions.targets("x/1", &a.client);
        assert_eq!(
            (own[0].qos, own[0].ids.as_slice()),
            (QoS::AtMostOnce, [2].as_slice())
        );
    }

    #[test]
    fn subscribers_of_sys_are_known() {
        let (mut subscriptions, a) = (Subscriptions::default(), session("a"));
        for other in ["#", "+/broker", "$share/g/$SYS/#"] {
            subscriptions.insert(&a, &filter(other), options(QoS::AtMostOnce), 0);
        }
        assert!(!subscriptions.has_sys());
        let f = filter("$SYS/broker/#");
        subscriptions.insert(&a, &f, options(QoS::AtMostOnce), 0);
        subscriptions.insert(&a, &f, options(QoS::AtLeastOnce), 0);
        assert!(subscriptions.has_sys());
        subscriptions.remove(&a, &filter("$share/g/$SYS/#"));
        assert!(subscriptions.has_sys());
        subscriptions.remove(&a, &f);
        assert!(!subscriptions.has_sys());
    }

    #[test]
    fn shares_take_turns_and_count_their_members() {
        let (mut subscriptions, a, b) = (Subscriptions::default(), session("a"), session("b"));
        let f = filter("$share/g/x");
        assert_eq!(
            subscriptions.insert(&a, &f, options(QoS::AtLeastOnce), 0),
            Change::Members(1)
        );
        assert_eq!(
            subscriptions.insert(&b, &f, options(QoS::AtLeastOnce), 0),
            Change::Members(2)
        );
        assert!(
            names(&subscriptions, "x").is_empty(),
            "no ordinary subscription"
        );
        let (group, plain) = (f.share.clone().unwrap(), f.filter.clone());
        let mut picked: Vec<String> = (0..4)
            .map(|_| {
                subscriptions
                    .pick(&group, &plain)
                    .unwrap()
                    .session
                    .client
                    .as_str()
                    .to_owned()
            })
            .collect();
        picked.sort();
        assert_eq!(picked, ["a", "a", "b", "b"]);
        assert_eq!(subscriptions.remove(&a, &f), Some(Change::Members(1)));
        assert_eq!(subscriptions.remove(&b, &f), Some(Change::Members(0)));
        assert!(subscriptions.pick(&group, &plain).is_none());
    }
}
