//! What the cluster side of a node is told at its start.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use flotte_proto::Endpoint;

use crate::level::FeatureLevel;
pub use crate::meta::RetainedLimits;

/// Longest election timeout of the meta group, in ms.
pub const META_ELECTION_MS_MAX: u64 = 600;

/// Configuration of one node's part in the cluster. The broker fills it from the `[node]`, `[cluster]` and `[retained]`
/// sections; ranges were checked there.
#[derive(Debug, Clone)]
pub struct Config {
    /// Unique in the cluster.
    pub node_name: String,
    /// Where everything durable is.
    pub data_dir: PathBuf,
    /// Where other nodes are listened for.
    pub bind: SocketAddr,
    /// host:port under which others reach this node; none = the bound address.
    pub advertise: Option<String>,
    /// Where clients reach this node; other nodes refer theirs to it.
    pub endpoints: Vec<Endpoint>,
    /// host:port of nodes to find the cluster by.
    pub join: Vec<String>,
    /// A name that leads to nodes to find the cluster by.
    pub discover: Option<Discover>,
    /// A DNS server that is asked for it, and for the names of nodes before the system is; none = only the system.
    pub dns_server: Option<SocketAddr>,
    /// Nodes that found the cluster together; none with nodes to join or to discover = never found, else 1.
    pub bootstrap_expect: Option<u32>,
    /// Voters of the meta group at most.
    pub voters: u32,
    /// Session groups of a cluster that this node founds.
    pub session_groups: u32,
    /// Replicas of a session group.
    pub replication_factor: u32,
    /// T: after this long without a sign a node is Down.
    pub node_down_after: Duration,
    /// Members that are Down for so long are members no more; none = they stay.
    pub forget_after: Option<Duration>,
    /// What clients of this node may add to.
    pub retained: RetainedLimits,
    /// The largest payload that they may have retained, in bytes.
    pub retained_payload_max: usize,
    /// The highest that this node knows: [`FeatureLevel::KNOWN`], but in tests.
    pub feature_level: FeatureLevel,
}

/// How DNS names nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discover {
    /// The A and AAAA records of a name, all with this port.
    Hosts { name: String, port: u16 },
    /// The hosts and ports of the SRV records of a name.
    Services { name: String },
}

impl fmt::Display for Discover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Discover::Hosts { name, port } => write!(f, "{name}:{port}"),
            Discover::Services { name } => f.write_str(name),
        }
    }
}

impl Config {
    /// How many nodes this one founds a cluster with; 0 = it only joins.
    pub fn expect(&self) -> u32 {
        let is_alone = self.join.is_empty() && self.discover.is_none();
        self.bootstrap_expect.unwrap_or(u32::from(is_alone))
    }

    /// An operator had this node join where these are: it looks for its cluster there, too, and founds none.
    pub fn joins(&mut self, addresses: Vec<String>) {
        if !addresses.is_empty() {
            self.join.extend(addresses);
            self.bootstrap_expect = None;
        }
    }

    /// T in ms.
    pub fn down_after_ms(&self) -> u32 {
        u32::try_from(self.node_down_after.as_millis()).unwrap_or(u32::MAX)
    }

    /// Longest that a barrier takes where nothing is broken: an election and 2 T.
    pub fn barrier_max(&self) -> Duration {
        barrier_max(self.node_down_after)
    }
}

/// The same with this T.
pub fn barrier_max(node_down_after: Duration) -> Duration {
    node_down_after * 2 + Duration::from_millis(META_ELECTION_MS_MAX * 2)
}
