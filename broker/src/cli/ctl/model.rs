//! What the admin API answers, as `ctl` reads it and the node writes it. Unknown fields are skipped, so that an older `ctl` can
//! ask a newer node.

use serde::{Deserialize, Serialize};

/// `GET /api/v1/status`: the cluster as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub cluster_id: String,
    /// The node that answers.
    pub node: ThisNode,
    /// "up", "joining", "no_quorum", ...
    pub state: String,
    /// How long the node may still serve without a renewal; `None` without a lease.
    pub lease_ms_left: Option<u64>,
    pub nodes: Vec<Node>,
    /// The consensus groups of which this node has a replica.
    pub groups: Vec<Group>,
    /// Connected to this node.
    pub clients: u64,
    /// What all members understand; 0 = the node is of a version before these levels.
    #[serde(default)]
    pub feature_level: u32,
    /// What is said of other nodes is what this one heard last: it has no lease, and they may have gone on without it.
    #[serde(default)]
    pub may_be_old: bool,
    /// What a person should look at.
    #[serde(default)]
    pub problems: Vec<String>,
}

/// The node that answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThisNode {
    pub name: String,
    pub id: String,
    pub incarnation: u64,
    pub version: String,
    pub uptime_s: u64,
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub name: String,
    pub id: String,
    /// "up" or "down".
    pub state: String,
    pub incarnation: u64,
    /// Where the other nodes reach it.
    pub address: String,
    /// Whether it leads the meta group.
    pub leader: bool,
    /// Whether it votes in the meta group.
    pub voter: bool,
    /// Whether it is to leave.
    #[serde(default)]
    pub leaving: bool,
    /// Whether it sends its clients to others.
    #[serde(default)]
    pub draining: bool,
    /// Whether the node that answers reaches it.
    #[serde(default = "yes")]
    pub reached: bool,
    /// The highest feature level that its version knows, as it said when it last came up.
    #[serde(default)]
    pub feature_level: u32,
    /// Its `cluster.node_down_after_ms`, as it said when it last came up; 0 = not yet.
    #[serde(default)]
    pub down_after_ms: u32,
    /// Since when it is up or down, RFC 3339, UTC.
    #[serde(default)]
    pub since: Option<String>,
}

/// `POST /api/v1/cluster/leave`: a member is to leave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leave {
    /// Its name; unset: the node that is asked.
    #[serde(default)]
    pub node: Option<String>,
    /// At once, up or down, whatever it holds.
    #[serde(default)]
    pub force: bool,
    /// It stays after all.
    #[serde(default)]
    pub stay: bool,
}

/// `POST /api/v1/cluster/join`: the node, alone so far, goes into another cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// host:port of a node of that cluster.
    pub address: String,
    /// Also where retained messages and sessions are given up.
    #[serde(default)]
    pub force: bool,
}

/// The answer: it drains, starts again, and joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joining {
    /// Of the cluster that it joins.
    pub cluster_id: String,
    /// Where its members are.
    pub addresses: Vec<String>,
    /// Given up: how many retained messages.
    pub retained: u64,
    /// Given up: how many sessions that outlive their connections.
    pub sessions: u64,
}

/// `POST /api/v1/drain`: the node sends its clients away and takes no new ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    /// Its process ends then.
    #[serde(default)]
    pub stop: bool,
}

/// `/api/v1/rebalance`: how clients are spread over the nodes that serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rebalance {
    /// Clients are still being moved.
    pub running: bool,
    /// No two nodes differ by a tenth.
    pub even: bool,
    /// Each node that serves.
    pub nodes: Vec<NodeLoad>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLoad {
    /// Its name.
    pub name: String,
    /// Connected; none where it does not answer.
    pub clients: Option<u64>,
}

/// A subscription of a session at the node that is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    pub client_id: String,
    /// With `$share/NAME/` where it is shared.
    pub filter: String,
    pub qos: u8,
    pub no_local: bool,
    pub retain_as_published: bool,
}

/// `GET /api/v1/routes?topic=T`: where a message to a topic goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routes {
    pub topic: String,
    /// Nodes with ordinary subscribers.
    pub nodes: Vec<String>,
    /// Shared subscriptions, of which one member each gets it.
    pub shares: Vec<ShareRoute>,
}

/// A shared subscription that a topic goes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareRoute {
    pub group: String,
    pub filter: String,
    pub members: Vec<ShareMember>,
}

/// The members that a shared subscription has on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareMember {
    pub node: String,
    pub members: u32,
    /// False: none of them is connected.
    pub connected: bool,
}

/// A retained message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retained {
    pub topic: String,
    pub qos: u32,
    /// Of the payload.
    pub bytes: u64,
    /// Client id of who published it.
    pub publisher: String,
    /// RFC 3339, UTC.
    pub stored_at: String,
    /// RFC 3339, UTC; none: it stays.
    pub expires_at: Option<String>,
    /// In the answer for one topic only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_base64: Option<String>,
}

/// A consensus group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    pub id: u64,
    /// "leader", "follower", "learner" or "candidate".
    pub role: String,
    pub term: u64,
    /// The name of the leading node, if one is known.
    pub leader: Option<String>,
    pub applied: u64,
    pub committed: u64,
    /// The names of those that vote in it.
    #[serde(default)]
    pub voters: Vec<String>,
    /// Those of them that the node that answers does not reach.
    #[serde(default)]
    pub missing: Vec<String>,
}

/// A client and its session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    pub client_id: String,
    pub username: Option<String>,
    /// Where it is connected, or its session is kept.
    pub node: String,
    /// "3.1", "3.1.1" or "5.0".
    pub version: Option<String>,
    /// Where it comes from: address and port, or "unix".
    pub address: Option<String>,
    /// RFC 3339, UTC.
    pub connected_at: Option<String>,
    pub keep_alive_s: Option<u16>,
    pub clean_start: Option<bool>,
    /// "live" or "durable".
    pub session: String,
    pub connected: bool,
    pub subscriptions: u64,
    pub queued: u64,
    pub inflight: u64,
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Asks for the next page; `None` on the last.
    #[serde(default = "Option::default")]
    pub next: Option<String>,
}

/// `POST /api/v1/reload`: what was read again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reload {
    pub parts: Vec<ReloadedPart>,
    /// Keys of the configuration that changed and need a restart.
    #[serde(default)]
    pub restart: Vec<String>,
}

/// Something that was to be read again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadedPart {
    pub name: String,
    /// Whether it is in force; else it stays as it was.
    pub ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// `POST /api/v1/log`: what is logged from now on; the answer repeats it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLevel {
    pub level: String,
}

/// A problem document (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    #[serde(rename = "type", default = "about_blank")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

fn yes() -> bool {
    true
}

fn about_blank() -> String {
    "about:blank".to_owned()
}
