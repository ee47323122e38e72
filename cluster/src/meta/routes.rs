//! Who wants what, in the whole cluster: the routes that every node holds a replica of. The replicated route state is
//! the matching tree; there is no second copy. Pure state.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotte_mqtt::ByteStr;
use flotte_mqtt::topic::{ShareName, SubscriptionFilter, TopicFilter, TopicTree};
use flotte_proto::{NodeRouteRecord, RouteRecord, ShareRecord};
use smallvec::SmallVec;

use crate::id::{NodeId, NodeRef};

/// All routes of one filter.
#[derive(Debug, Default, Clone)]
pub struct FilterRoutes {
    /// Nodes with live subscriptions.
    nodes: SmallVec<[NodeRoute; 1]>,
    /// Boxed: most filters have none.
    shares: Option<Box<Shares>>,
}

/// Live members of the shared subscriptions of one filter, per group and node; never empty.
#[derive(Debug, Clone)]
struct Shares {
    filter: TopicFilter,
    groups: BTreeMap<ShareName, BTreeMap<NodeId, ShareRoute>>,
}

#[derive(Debug, Clone, Copy)]
struct NodeRoute {
    node: NodeRef,
    /// Meta index that set it.
    index: u64,
}

#[derive(Debug, Clone, Copy)]
struct ShareRoute {
    incarnation: u64,
    members: ShareMembers,
    index: u64,
}

/// The members of a shared subscription that a node has.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ShareMembers {
    /// Those that are connected; where there are none, durable sessions that wait for their clients. 0 = none at all.
    pub count: u32,
    /// None of them is connected.
    pub away: bool,
}

impl ShareMembers {
    const AWAY: u32 = 1 << 31;

    /// In one number, 0 for none; more than can be counted so are as good as that many.
    pub fn to_bits(self) -> u32 {
        let away = if self.away { Self::AWAY } else { 0 };
        match self.count {
            0 => 0,
            count => count.min(Self::AWAY - 1) | away,
        }
    }

    /// The opposite of [`ShareMembers::to_bits`].
    pub fn from_bits(bits: u32) -> ShareMembers {
        ShareMembers {
            count: bits & !Self::AWAY,
            away: bits & Self::AWAY != 0,
        }
    }
}

/// Where a topic goes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Destinations {
    /// Nodes with ordinary subscriptions, sorted, each once.
    pub nodes: SmallVec<[NodeRef; 2]>,
    /// Shared subscriptions, each of which hands the message to one member.
    pub shares: Vec<ShareTarget>,
}

/// One shared subscription that matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareTarget {
    /// Its group name.
    pub group: ShareName,
    /// Its filter.
    pub filter: TopicFilter,
    /// Nodes with members and how many each has, sorted by node.
    pub members: SmallVec<[(NodeRef, ShareMembers); 2]>,
}

/// The routes of all filters.
#[derive(Debug, Default)]
pub struct Routes {
    tree: TopicTree<FilterRoutes>,
    /// Routes of nodes, and of shared subscriptions, in all.
    count_node: usize,
    count_share: usize,
    /// Routes of each node.
    per_node: BTreeMap<NodeId, usize>,
}

impl Routes {
    /// Sets or withdraws the route of a node to its live subscriptions of a filter.
    pub fn set_node(&mut self, filter: &TopicFilter, node: NodeRef, index: u64, present: bool) {
        if present {
            let routes = self
                .tree
                .entry_or_insert_with(filter, FilterRoutes::default);
            let before = routes.nodes.len();
            routes.nodes.retain(|route| route.node.node != node.node);
            routes.nodes.push(NodeRoute { node, index });
            let added = routes.nodes.len() - before;
            self.count_node += added;
            *self.per_node.entry(node.node).or_default() += added;
        } else if let Some(routes) = self.tree.get_mut(filter) {
            let before = routes.nodes.len();
            routes.nodes.retain(|route| route.node != node);
            let removed = before - routes.nodes.len();
            self.count_node -= removed;
            if let Some(count) = self.per_node.get_mut(&node.node) {
                *count -= removed;
            }
            self.prune(filter);
        }
    }

    /// Sets which members a node has of a shared subscription; none withdraws.
    pub fn set_share(
        &mut self,
        group: &ShareName,
        filter: &TopicFilter,
        node: NodeRef,
        members: ShareMembers,
        index: u64,
    ) {
        let route = ShareRoute {
            incarnation: node.incarnation,
            members,
            index,
        };
        if members.count > 0 {
            let routes = self
                .tree
                .entry_or_insert_with(filter, FilterRoutes::default);
            let empty = || {
                Box::new(Shares {
                    filter: filter.clone(),
                    groups: BTreeMap::new(),
                })
            };
            let nodes = routes
                .shares
                .get_or_insert_with(empty)
                .groups
                .entry(group.clone())
                .or_default();
            self.count_share += usize::from(nodes.insert(node.node, route).is_none());
        } else if let Some(routes) = self.tree.get_mut(filter) {
            self.count_share -= usize::from(routes.remove_share(group, node.node));
            self.prune(filter);
        }
    }

    /// Removes every route of a node up to and including an incarnation.
    pub fn remove_node(&mut self, node: NodeRef) {
        let (mut nodes, mut shares) = (0, 0);
        self.tree.retain(|_, routes| {
            let before = routes.nodes.len();
            routes.nodes.retain(|route| {
                route.node.node != node.node || route.node.incarnation > node.incarnation
            });
            nodes += before - routes.nodes.len();
            shares += routes.remove_shares_of(node);
            !routes.is_empty()
        });
        self.count_node -= nodes;
        if let Some(count) = self.per_node.get_mut(&node.node) {
            *count -= nodes;
        }
        self.count_share -= shares;
    }

    /// What a node has of a filter or share - 1, or its members as bits; 0 is nothing - and the meta index that set it.
    pub fn route_of(&self, filter: &SubscriptionFilter, node: NodeRef) -> (u32, u64) {
        let route = || {
            let routes = self.tree.get(&filter.filter)?;
            match &filter.share {
                None => {
                    let route = routes.nodes.iter().find(|route| route.node == node)?;
                    Some((1, route.index))
                }
                Some(group) => {
                    let nodes = routes.shares.as_ref()?.groups.get(group)?;
                    let route = nodes.get(&node.node)?;
                    (route.incarnation == node.incarnation)
                        .then_some((route.members.to_bits(), route.index))
                }
            }
        };
        route().unwrap_or_default()
    }

    /// Whether anything leads to another node than this one, or to a share: else a walk finds nothing new.
    pub fn lead_beyond(&self, me: NodeId) -> bool {
        let mine = self.per_node.get(&me).copied().unwrap_or(0);
        self.count_share > 0 || self.count_node > mine
    }

    /// All destinations of a topic, in one walk.
    pub fn destinations(&self, topic: &str) -> Destinations {
        let mut found = Destinations::default();
        self.tree
            .for_each_match(topic, |routes| routes.add_to(&mut found));
        found.nodes.sort_unstable();
        found.nodes.dedup();
        found
    }

    /// The nodes with members of one shared subscription, sorted.
    pub fn share_members(
        &self,
        group: &ShareName,
        filter: &TopicFilter,
    ) -> SmallVec<[(NodeRef, ShareMembers); 2]> {
        let shares = self
            .tree
            .get(filter)
            .and_then(|routes| routes.shares.as_ref());
        let nodes = shares.and_then(|shares| shares.groups.get(group));
        nodes.map(members_of).unwrap_or_default()
    }

    /// Number of (filter, node) routes and of (group, filter, node) routes.
    pub fn counts(&self) -> (usize, usize) {
        (self.count_node, self.count_share)
    }

    /// One record per filter, for a snapshot.
    pub fn records(&self) -> Vec<RouteRecord> {
        let mut records = Vec::with_capacity(self.tree.len());
        self.tree
            .for_each(|filter, routes| records.push(routes.record(filter)));
        records
    }

    /// Takes a record back from a snapshot.
    pub fn restore(&mut self, record: RouteRecord) -> Result<(), String> {
        let filter = parse_filter(record.filter)?;
        for route in record.nodes {
            let node = NodeRef {
                node: NodeId(route.node_id),
                incarnation: route.incarnation,
            };
            self.set_node(&filter, node, route.index, true);
        }
        for share in record.shares {
            let group = parse_share_name(share.group)?;
            let node = NodeRef {
                node: NodeId(share.node_id),
                incarnation: share.incarnation,
            };
            let members = ShareMembers {
                count: share.members,
                away: share.away,
            };
            self.set_share(&group, &filter, node, members, share.index);
        }
        Ok(())
    }

    fn prune(&mut self, filter: &TopicFilter) {
        if self.tree.get(filter).is_some_and(FilterRoutes::is_empty) {
            self.tree.remove(filter);
        }
    }
}

impl FilterRoutes {
    fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.shares.is_none()
    }

    /// Says whether there was one.
    fn remove_share(&mut self, group: &ShareName, node: NodeId) -> bool {
        let Some(shares) = &mut self.shares else {
            return false;
        };
        let Some(nodes) = shares.groups.get_mut(group) else {
            return false;
        };
        let removed = nodes.remove(&node).is_some();
        if nodes.is_empty() {
            shares.groups.remove(group);
        }
        if shares.groups.is_empty() {
            self.shares = None;
        }
        removed
    }

    /// Says how many there were.
    fn remove_shares_of(&mut self, gone: NodeRef) -> usize {
        let Some(shares) = &mut self.shares else {
            return 0;
        };
        let mut removed = 0;
        shares.groups.retain(|_, nodes| {
            let before = nodes.len();
            nodes.retain(|node, route| *node != gone.node || route.incarnation > gone.incarnation);
            removed += before - nodes.len();
            !nodes.is_empty()
        });
        if shares.groups.is_empty() {
            self.shares = None;
        }
        removed
    }

    fn add_to(&self, found: &mut Destinations) {
        found
            .nodes
            .extend(self.nodes.iter().map(|route| route.node));
        let Some(shares) = &self.shares else { return };
        for (group, nodes) in &shares.groups {
            found.shares.push(ShareTarget {
                group: group.clone(),
                filter: shares.filter.clone(),
                members: members_of(nodes),
            });
        }
    }

    fn record(&self, filter: &str) -> RouteRecord {
        let nodes = self.nodes.iter().map(|route| NodeRouteRecord {
            node_id: route.node.node.0,
            incarnation: route.node.incarnation,
            index: route.index,
        });
        let shares = self
            .shares
            .iter()
            .flat_map(|shares| &shares.groups)
            .flat_map(|(group, nodes)| {
                nodes.iter().map(move |(node, route)| ShareRecord {
                    group: Bytes::copy_from_slice(group.as_str().as_bytes()),
                    node_id: node.0,
                    incarnation: route.incarnation,
                    members: route.members.count,
                    index: route.index,
                    away: route.members.away,
                })
            });
        RouteRecord {
            filter: Bytes::copy_from_slice(filter.as_bytes()),
            nodes: nodes.collect(),
            shares: shares.collect(),
        }
    }
}

fn members_of(nodes: &BTreeMap<NodeId, ShareRoute>) -> SmallVec<[(NodeRef, ShareMembers); 2]> {
    let member = |(node, route): (&NodeId, &ShareRoute)| {
        let node = NodeRef {
            node: *node,
            incarnation: route.incarnation,
        };
        (node, route.members)
    };
    nodes.iter().map(member).collect()
}

/// A filter as a command or record carries it.
pub(super) fn parse_filter(bytes: Bytes) -> Result<TopicFilter, String> {
    let text = ByteStr::try_from(bytes).map_err(|e| format!("topic filter: {e}"))?;
    TopicFilter::parse(text).map_err(|e| format!("topic filter: {e}"))
}

/// The name of a shared subscription as a command or record carries it.
pub(super) fn parse_share_name(bytes: Bytes) -> Result<ShareName, String> {
    let text = ByteStr::try_from(bytes).map_err(|e| format!("share name: {e}"))?;
    ShareName::parse(text).map_err(|e| format!("share name: {e}"))
}
