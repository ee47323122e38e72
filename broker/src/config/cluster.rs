//! `[cluster]`: how nodes find each other and what they hold against each other. A single node is a cluster of one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::discover::DiscoverDns;
use super::section::section;
use super::types::HostPort;

/// The longest election timeout of the meta group.
pub const ELECTION_TIMEOUT_MS_MAX: u32 = 600;

/// Where other nodes connect when nothing is configured.
pub const DEFAULT_BIND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7883);

section! {
    /// How nodes find each other. A node alone is a cluster of one.
    /// On any other address than loopback the cluster port needs `insecure = true` until there is TLS between nodes:
    /// whoever reaches it is a member.
    "cluster" {
        /// Where other nodes connect.
        bind: SocketAddr = DEFAULT_BIND;
        /// The name or address under which other nodes reach this one; unset: the address of `bind`.
        advertise: Option<HostPort> = None;
        /// Nodes to ask at the start, in any order; this one may be among them. Nobody there to join: it goes on asking.
        join: Vec<HostPort> = Vec::new();
        /// A name that leads to nodes to ask, asked again for each round: `nodes.example:7883`, whose addresses (A, AAAA) are nodes
        /// with this port; or a name that begins with `_`, as `_flotte._tcp.example`, whose SRV records give host and port.
        discover_dns: Option<DiscoverDns> = None;
        /// The DNS server to ask for it, and for the names of nodes before the system is asked; unset: what the system uses.
        discover_dns_server: Option<SocketAddr> = None;
        /// How many nodes make the first cluster; never changed afterwards. Unset: 1 without `join` and `discover_dns`, else only join.
        bootstrap_expect: Option<u16> = None, in 1..=64;
        /// How many nodes vote on membership, routes and retained messages at most: 3 or 5.
        voters: u8 = 3, in 3..=5;
        /// How many groups share the sessions; fixed when the cluster is made. Unset: 8.
        session_groups: Option<u16> = None, in 1..=64;
        /// On how many nodes the sessions of a group are kept.
        replication_factor: u8 = 3, in 1..=7;
        /// A node that is not heard of for so long is Down. Its lease to serve is three quarters of it.
        node_down_after_ms: u32 = 2_000, in 1..=600_000;
        /// A node without a quorum sends its clients away after this time.
        minority_grace_ms: u32 = 10_000, in 0..=3_600_000;
        /// How long a node that drains or ends takes to send its clients away, each once it has what waited for it; what is left is
        /// closed then.
        drain_timeout_s: u32 = 10, in 0..=3_600;
        /// A node that is Down for so long is removed from the cluster, where that costs no group its majority; unset: never.
        forget_after_s: Option<u64> = None, in 1..=315_360_000;
        /// Says yes to a cluster port on the network without TLS.
        insecure: bool = false;
    }
    later {
        /// The certificate of this node, PEM.
        "tls.cert": Option<PathBuf> = None;
        /// Its key, PEM.
        "tls.key": Option<PathBuf> = None;
        /// Who signs the certificates of nodes, PEM.
        "tls.ca": Option<PathBuf> = None;
    }
}

impl Config {
    /// Under which address the other nodes reach this one, whose cluster port is bound to `bound`.
    pub fn advertised(&self, bound: SocketAddr) -> HostPort {
        self.advertise.clone().unwrap_or_else(|| bound.into())
    }

    /// How many nodes make the first cluster; `None` is a node that only joins one.
    pub fn first_cluster_nodes(&self) -> Option<u16> {
        match self.bootstrap_expect {
            Some(nodes) => Some(nodes),
            None if self.join.is_empty() && self.discover_dns.is_none() => Some(1),
            None => None,
        }
    }

    /// How many groups a new cluster shares its sessions over.
    pub fn session_groups_of_a_new_cluster(&self) -> u16 {
        self.session_groups.unwrap_or(8)
    }
}
