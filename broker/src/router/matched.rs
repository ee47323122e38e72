//! What a topic matches, and the publisher's memory of it: publishers repeat topics.

use std::sync::Arc;

use flotte_cluster::id::NodeRef;
use flotte_cluster::meta::{ShareMembers, ShareTarget};
use flotte_mqtt::ClientId;
use flotte_mqtt::topic::{SubscriptionFilter, TopicName};
use foldhash::quality::RandomState;
use hashbrown::HashMap;
use smallvec::SmallVec;

use super::Router;
use super::share::Share;
use super::subscriptions::Target;

/// Topics that a connection remembers, and sessions that get them; past it the memory is emptied.
const TOPICS_MAX: usize = 64;
const TARGETS_MAX: usize = 8_192;

/// Who gets a topic.
#[derive(Debug)]
pub struct Matched {
    /// Sessions of this node.
    pub targets: Vec<Target>,
    /// Other nodes with ordinary subscriptions.
    pub nodes: SmallVec<[NodeRef; 2]>,
    /// Shared subscriptions.
    pub shares: Vec<MatchedShare>,
    /// Where nobody else gets it: whether No Local keeps it from its publisher, which has subscribed.
    pub is_own: bool,
}

/// A shared subscription that matches. Who gets a message is chosen for each anew.
#[derive(Debug)]
pub struct MatchedShare {
    /// Which, and whose turn it is.
    pub share: Arc<Share>,
    /// Its members, by node.
    pub members: SmallVec<[(NodeRef, ShareMembers); 2]>,
}

impl Matched {
    /// Whether other nodes have, or may have, to place it.
    pub fn is_remote(&self) -> bool {
        !self.nodes.is_empty() || !self.shares.is_empty()
    }

    /// Whether nobody gets it.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty() && self.nodes.is_empty() && self.shares.is_empty()
    }
}

/// Matches of one publisher, each good while the epochs of its branch stand.
#[derive(Debug, Default)]
pub struct MatchCache {
    /// None before the first publish: most clients of a fleet wait more than they say.
    topics: Option<Box<Topics>>,
}

#[derive(Debug, Default)]
struct Topics {
    /// With the epochs of each topic's branch when it was matched, here and in the cluster.
    matches: HashMap<TopicName, (u64, u64, Arc<Matched>), RandomState>,
    /// Of all matches, and of those that they took the place of.
    targets: usize,
}

impl Topics {
    fn insert(&mut self, topic: &TopicName, epochs: (u64, u64), matched: &Arc<Matched>) {
        let targets = matched.targets.len();
        if targets > TARGETS_MAX {
            // To match it again costs less than to deliver it.
            self.matches.remove(topic);
            return;
        }
        if self.matches.len() >= TOPICS_MAX || self.targets + targets > TARGETS_MAX {
            self.matches.clear();
            self.targets = 0;
        }
        self.targets += targets;
        let kept = (epochs.0, epochs.1, Arc::clone(matched));
        self.matches.insert(topic.compact(), kept);
    }
}

impl Router {
    /// Who gets a topic that this client publishes.
    pub fn matched(&self, topic: &TopicName, publisher: &ClientId) -> Matched {
        let subscriptions = self.subscriptions.read();
        let mut targets = subscriptions.targets(topic.as_str(), publisher);
        let is_own = targets.is_empty() && subscriptions.is_own(topic.as_str(), publisher);
        drop(subscriptions);
        self.keep_allowed(topic, &mut targets);
        let me = self.cluster.node_id();
        let mut destinations = self.cluster.destinations(topic.as_str());
        destinations.nodes.retain(|node| node.node != me);
        Matched {
            targets,
            nodes: destinations.nodes,
            shares: destinations
                .shares
                .into_iter()
                .map(|target| self.matched_share(target))
                .collect(),
            is_own,
        }
    }

    fn matched_share(&self, target: ShareTarget) -> MatchedShare {
        let filter = SubscriptionFilter {
            share: Some(target.group),
            filter: target.filter,
        };
        MatchedShare {
            share: self.share(&filter),
            members: target.members,
        }
    }

    /// As [`Router::matched`], from memory where that is still good.
    pub fn matched_cached(
        &self,
        cache: &mut MatchCache,
        topic: &TopicName,
        publisher: &ClientId,
    ) -> Arc<Matched> {
        // Read before what they guard.
        let epochs = (
            self.epochs.of_topic(topic.as_str()),
            self.cluster.route_epoch(topic.as_str()),
        );
        let topics = cache.topics.get_or_insert_default();
        if let Some((local, routes, matched)) = topics.matches.get(topic)
            && (*local, *routes) == epochs
        {
            return Arc::clone(matched);
        }
        let matched = Arc::new(self.matched(topic, publisher));
        topics.insert(topic, epochs, &matched);
        matched
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use flotte_mqtt::QoS;

    use super::*;
    use crate::router::subscriptions::testing::session;

    fn matched(targets: usize) -> Arc<Matched> {
        let target = Target {
            session: session("c"),
            qos: QoS::AtMostOnce,
            retain_as_published: false,
            ids: SmallVec::new(),
        };
        Arc::new(Matched {
            targets: vec![target; targets],
            nodes: SmallVec::new(),
            shares: Vec::new(),
            is_own: false,
        })
    }

    #[test]
    fn a_memory_is_bounded_by_topics_and_by_those_who_get_them() {
        let topic = |number: usize| TopicName::try_from(format!("t/{number}").as_str()).unwrap();
        let mut topics = Topics::default();
        for number in 0..=TOPICS_MAX {
            topics.insert(&topic(number), (0, 0), &matched(1));
        }
        assert_eq!((topics.matches.len(), topics.targets), (1, 1));
        topics.insert(&topic(1), (0, 0), &matched(TARGETS_MAX));
        assert_eq!((topics.matches.len(), topics.targets), (1, TARGETS_MAX));
        topics.insert(&topic(1), (1, 0), &matched(TARGETS_MAX + 1));
        assert!(topics.matches.is_empty(), "too many to be remembered");
    }
}
