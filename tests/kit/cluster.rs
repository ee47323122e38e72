//! Three nodes that form one cluster.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use crate::admin;
use crate::broker::{Broker, Launch, START_LIMIT};
use crate::packets::connect;
use crate::ports::free_address;
use crate::run::{fresh, until_blocking};
use crate::{Client, Version};

/// `cluster.node_down_after_ms` of the clusters of the kit: the default.
pub const NODE_DOWN_AFTER: Duration = Duration::from_millis(2_000);

/// A cluster of three on loopback.
pub struct Cluster {
    pub nodes: Vec<Broker>,
}

impl Cluster {
    /// Starts three nodes and waits until all are ready.
    pub fn start() -> Self {
        Self::start_with(|launch| launch)
    }

    /// As [`Cluster::start`], each node changed by `adjust` first.
    pub fn start_with(adjust: impl Fn(Launch) -> Launch) -> Self {
        let nodes = launches(3)
            .into_iter()
            .map(|launch| adjust(launch).spawn())
            .collect();
        let mut cluster = Self { nodes };
        cluster.wait_ready();
        cluster
    }

    /// Waits for the ready line and /readyz of every started node.
    pub fn wait_ready(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| node.is_started()) {
            node.wait_ready();
        }
        for node in self.nodes.iter().filter(|node| node.is_started()) {
            wait_node_ready(node);
        }
    }

    pub fn mqtt(&self, node: usize) -> SocketAddr {
        self.nodes[node].mqtt()
    }

    /// A client of this node with a fresh id.
    pub async fn client(&self, node: usize, version: Version) -> Client {
        Client::connect(self.mqtt(node), version, connect(fresh("c"))).await
    }

    /// The position of the meta group's leader, once every started node names the same.
    pub fn leader(&self) -> usize {
        until_blocking(START_LIMIT, "one leader known to all nodes", || {
            self.leader_now()
        })
    }

    /// The leader that all nodes in `observers` agree on now.
    fn leader_now(&self) -> Option<usize> {
        let mut agreed = None;
        for node in self.nodes.iter().filter(|node| node.is_started()) {
            let name = leader_name(&admin::json(node.admin(), "/api/v1/status")?)?;
            if agreed.get_or_insert_with(|| name.clone()) != &name {
                return None;
            }
        }
        let name = agreed?;
        self.nodes
            .iter()
            .position(|node| node.name() == name && node.is_started())
    }

    /// The position of a node that does not lead the meta group.
    pub fn follower(&self) -> usize {
        (self.leader() + 1) % self.nodes.len()
    }

    /// Waits until `observer` sees `node` in this state: up or down.
    pub fn wait_state(&self, observer: usize, node: usize, state: &str) {
        let name = self.nodes[node].name();
        let what = format!("{} sees {name} {state}", self.nodes[observer].name());
        until_blocking(START_LIMIT, &what, || {
            let status = admin::json(self.nodes[observer].admin(), "/api/v1/status")?;
            let found = status["nodes"]
                .as_array()?
                .iter()
                .find(|entry| entry["name"] == name)?;
            (found["state"] == state).then_some(())
        });
    }
}

/// Waits until the node's /readyz says 200.
pub fn wait_node_ready(node: &Broker) {
    let what = format!("/readyz of {}\n{}", node.name(), node.log());
    until_blocking(START_LIMIT, &what, || {
        admin::is_ready(node.admin()).then_some(())
    });
}

/// Launches of `count` nodes n1, n2, ... that know each other's addresses and expect one another.
pub fn launches(count: usize) -> Vec<Launch> {
    let cluster_addresses: Vec<_> = (0..count).map(|_| free_address()).collect();
    (0..count)
        .map(|place| launch(place, &cluster_addresses))
        .collect()
}

fn launch(place: usize, cluster_addresses: &[SocketAddr]) -> Launch {
    let mut launch = Launch::new(&format!("n{}", place + 1))
        .bind("mqtt", free_address())
        .bind("admin", free_address())
        .bind("cluster", cluster_addresses[place])
        .arg("--bootstrap-expect")
        .arg(cluster_addresses.len().to_string());
    for address in cluster_addresses {
        launch = launch.arg("--join").arg(address.to_string());
    }
    launch
}

/// The name of the meta group's leader in a status document.
pub fn leader_name(status: &Value) -> Option<String> {
    let nodes = status["nodes"].as_array()?;
    let leader = nodes.iter().find(|node| node["leader"] == true)?;
    leader["name"].as_str().map(str::to_owned)
}
