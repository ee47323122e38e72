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

/// Topics that a connection remembers; past it the memory is emptied.
const TOPICS_MAX: usize = 64;

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

/// The epochs of each topic's branch when it was matched, here and in the cluster.
type Topics = HashMap<TopicName, (u64, u64, Arc<Matched>), RandomState>;

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
        if let Some((local, routes, matched)) = topics.get(topic)
            && (*local, *routes) == epochs
        {
            return Arc::clone(matched);
        }
        let matched = Arc::new(self.matched(topic, publisher));
        if topics.len() >= TOPICS_MAX {
            topics.clear();
        }
        topics.insert(topic.compact(), (epochs.0, epochs.1, Arc::clone(&matched)));
        matched
    }
}
