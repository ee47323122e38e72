//! The subscriptions of the sessions of this node, by filter. Pure: it decides who gets a topic here, and when a filter
//! has its first or has lost its last subscriber.

use std::collections::BTreeMap;
use std::sync::Arc;

use flotte_cluster::meta::ShareMembers;
use flotte_mqtt::packet::SubscribeOptions;
use flotte_mqtt::topic::{ShareName, SubscriptionFilter, TopicTree};
use flotte_mqtt::{ClientId, QoS};
use smallvec::SmallVec;

use super::members::Members;
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
    /// The members of a share are these now.
    Members(ShareMembers),
    /// Whether there are ordinary subscribers, now.
    Present(bool),
}

/// A session and how it subscribed.
#[derive(Debug)]
pub struct Subscriber {
    /// Who.
    pub session: Arc<Session>,
    /// As granted.
    pub options: SubscribeOptions,
    /// 0 = none.
    pub id: u32,
}

#[derive(Debug, Default)]
struct FilterSubscribers {
    subscribers: Subscribers,
    /// Boxed, and so 16 bytes smaller: most filters have none.
    #[expect(
        clippy::box_collection,
        reason = "one pointer for each of many filters"
    )]
    shares: Option<Box<BTreeMap<ShareName, Members>>>,
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
            Change::Members(members) => Some(members.to_bits()),
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
            .or_insert_with(|| Members::new(filter));
        self.count += usize::from(share.insert(subscriber));
        Change::Members(share.summary())
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
                share.remove(session).then_some(())?;
                let left = share.summary();
                if share.is_empty() {
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

    /// Whether the publisher of a topic has subscribed to it with No Local.
    pub fn is_own(&self, topic: &str, publisher: &ClientId) -> bool {
        let mut found = false;
        self.tree.for_each_match(topic, |entry| {
            found |= entry.subscribers.iter().any(|s| is_own(s, publisher));
        });
        found
    }

    /// The members of a share; none where it has none here, or the filter is no shared one.
    pub fn members(&self, filter: &SubscriptionFilter) -> Option<&Members> {
        let name = filter.share.as_ref()?;
        self.tree.get(&filter.filter)?.shares.as_ref()?.get(name)
    }

    /// The client of a member came or went.
    pub fn set_connected(
        &mut self,
        session: &Arc<Session>,
        filter: &SubscriptionFilter,
        connected: bool,
    ) -> Change {
        let members = filter.share.as_ref().and_then(|name| {
            let entry = self.tree.get_mut(&filter.filter)?;
            entry.shares.as_mut()?.get_mut(name)
        });
        let Some(members) = members else {
            return Change::None;
        };
        members.set_connected(session, connected);
        Change::Members(members.summary())
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
            ids: self.ids(),
        }
    }

    /// Its identifier, if it has one.
    pub(super) fn ids(&self) -> SmallVec<[u32; 1]> {
        (self.id != 0).then_some(self.id).into_iter().collect()
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
pub(super) mod testing {
    use super::*;
    use crate::session::Limits;

    pub fn session(name: &str) -> Arc<Session> {
        let limits = Limits {
            outbound: Arc::default(),
            inbound: Default::default(),
        };
        Arc::new(Session::new(ClientId::try_from(name).unwrap(), &limits))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::testing::session;
    use super::*;

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
        assert!(subscriptions.is_own("x/1", &a.client) && !subscriptions.is_own("x", &a.client));
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
    fn shares_count_their_members_and_who_of_them_is_connected() {
        let members = |count, away| Change::Members(ShareMembers { count, away });
        let (mut subscriptions, a, b) = (Subscriptions::default(), session("a"), session("b"));
        let f = filter("$share/g/x");
        let qos1 = options(QoS::AtLeastOnce);
        assert_eq!(subscriptions.insert(&a, &f, qos1, 0), members(1, false));
        assert_eq!(subscriptions.insert(&b, &f, qos1, 0), members(2, false));
        assert_eq!(subscriptions.insert(&b, &f, qos1, 7), members(2, false));
        assert_eq!(subscriptions.len(), 2);
        assert!(
            names(&subscriptions, "x").is_empty(),
            "no ordinary subscription"
        );
        assert_eq!(
            subscriptions.set_connected(&a, &f, false),
            members(1, false)
        );
        assert_eq!(subscriptions.set_connected(&b, &f, false), members(2, true));
        assert_eq!(subscriptions.set_connected(&b, &f, true), members(1, false));
        assert!(subscriptions.members(&f).is_some());
        assert!(subscriptions.members(&filter("x")).is_none());
        assert_eq!(subscriptions.remove(&a, &f), Some(members(1, false)));
        assert_eq!(subscriptions.remove(&a, &f), None);
        assert_eq!(subscriptions.remove(&b, &f), Some(members(0, false)));
        assert!(subscriptions.members(&f).is_none() && subscriptions.is_empty());
        assert_eq!(subscriptions.set_connected(&b, &f, true), Change::None);
    }
}
