//! All values at one moment, by topic.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotte_cluster::handle::{NodeStatus, Status};
use flotte_mqtt::PacketType;

use super::census::Census;
use super::load::{Loads, all_in, all_out, dropped};
use crate::connection::Shared;
use crate::metrics::{Count, packets_in, packets_out};

/// All values at one moment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reading(BTreeMap<String, Bytes>);

impl Reading {
    /// Gathers everything; walks over all sessions.
    pub fn gather(shared: &Shared, loads: &Loads) -> Reading {
        let census = Census::take(shared);
        let status = shared.cluster().status();
        let mut reading = Reading::default();
        reading.node(&status);
        reading.clients(shared, &census);
        reading.messages();
        reading.stored(&census, status.retained);
        for (name, value) in loads.values() {
            reading.broker(&format!("load/{name}"), format!("{value:.2}"));
        }
        reading.cluster(&status);
        reading
    }

    /// Topics and values, by topic.
    pub fn values(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.0.iter().map(|(topic, value)| (topic.as_str(), value))
    }

    /// What is new or has another value.
    pub fn changes_since<'a>(
        &'a self,
        former: &'a Reading,
    ) -> impl Iterator<Item = (&'a str, &'a Bytes)> {
        self.values()
            .filter(|(topic, value)| former.0.get(*topic) != Some(*value))
    }

    fn broker(&mut self, name: &str, value: impl ToString) {
        self.set(format!("$SYS/broker/{name}"), value);
    }

    fn set(&mut self, topic: String, value: impl ToString) {
        self.0.insert(topic, value.to_string().into());
    }

    fn node(&mut self, status: &Status) {
        let version = env!("CARGO_PKG_VERSION");
        self.broker("version", format_args!("flotte version {version}"));
        let uptime_s = status.uptime.as_secs();
        self.broker("uptime", format_args!("{uptime_s} seconds"));
    }

    fn clients(&mut self, shared: &Shared, census: &Census) {
        let (connected, offline) = (census.connected(), census.offline());
        self.broker("clients/total", connected + offline);
        // The older name stands beside the newer one, as Mosquitto has it.
        for name in ["connected", "active"] {
            self.broker(&format!("clients/{name}"), connected);
        }
        for name in ["disconnected", "inactive"] {
            self.broker(&format!("clients/{name}"), offline);
        }
        let most = shared.most_connections();
        self.broker("clients/maximum", most.max(connected));
        self.broker("clients/expired", Count::SESSIONS_EXPIRED.total());
        self.broker("subscriptions/count", census.subscriptions);
        self.broker("shared_subscriptions/count", census.shared_subscriptions);
    }

    fn messages(&mut self) {
        self.broker("messages/received", all_in());
        self.broker("messages/sent", all_out());
        self.broker("bytes/received", Count::BYTES_IN.total());
        self.broker("bytes/sent", Count::BYTES_OUT.total());
        self.broker("publish/messages/received", packets_in(PacketType::Publish));
        self.broker("publish/messages/sent", packets_out(PacketType::Publish));
        self.broker("publish/messages/dropped", dropped());
        self.broker("publish/bytes/received", Count::PAYLOAD_IN.total());
        self.broker("publish/bytes/sent", Count::PAYLOAD_OUT.total());
    }

    /// Copies that wait for their clients here, and the retained messages of the cluster.
    fn stored(&mut self, census: &Census, (retained, retained_bytes): (usize, u64)) {
        let retained = retained as u64;
        self.broker("retained messages/count", retained);
        self.broker("messages/inflight", census.inflight);
        for name in ["messages/stored", "store/messages/count"] {
            self.broker(name, census.copies + retained);
        }
        self.broker("store/messages/bytes", census.copy_bytes + retained_bytes);
    }

    fn cluster(&mut self, status: &Status) {
        self.set("$SYS/cluster/nodes".into(), status.nodes.len());
        let up = status.nodes.iter().filter(|node| node.up).count();
        self.set("$SYS/cluster/nodes/up".into(), up);
        for node in &status.nodes {
            self.member(node);
        }
    }

    fn member(&mut self, node: &NodeStatus) {
        let mut set = |what: &str, value: String| {
            self.set(format!("$SYS/cluster/node/{}/{what}", node.name), value);
        };
        set("state", if node.up { "up" } else { "down" }.into());
        set("id", node.id.to_string());
        set("incarnation", node.incarnation.to_string());
        set("address", node.address.clone());
        set("leader", node.leader.to_string());
        set("voter", node.voter.to_string());
        set("since", (node.since_ms / 1_000).to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_or_differs_has_changed() {
        let (mut old, mut new) = (Reading::default(), Reading::default());
        old.broker("same", 1);
        old.broker("other", 1);
        old.broker("gone", 1);
        new.broker("same", 1);
        new.broker("other", 2);
        new.broker("new", 3);
        let changes: Vec<_> = new.changes_since(&old).collect();
        assert_eq!(
            changes,
            [
                ("$SYS/broker/new", &Bytes::from("3")),
                ("$SYS/broker/other", &Bytes::from("2")),
            ]
        );
    }
}
