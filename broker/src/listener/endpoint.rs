//! Where clients reach the listeners of this node, as it tells the other nodes: they send theirs here when they drain.

use std::net::{IpAddr, SocketAddr};

use flotte_cluster::wire::Endpoint;

use super::Listener;
use crate::config::listener::{self, Bind, Protocol};
use crate::config::{Config, HostPort};

/// Of all listeners that others reach.
pub fn endpoints(config: &Config, listeners: &[Listener]) -> Vec<Endpoint> {
    let node = config.cluster.advertised(config.cluster.bind);
    let all = listeners.iter().filter_map(|listener| {
        let config = &listener.info().config;
        let address = reached_at(config, listener.address(), &node)?;
        Some(Endpoint {
            listener: config.name.to_string(),
            protocol: config.protocol.as_str().into(),
            address,
        })
    });
    all.collect()
}

/// host:port of a listener that is bound to an address, on a node that others reach as `node`.
fn reached_at(config: &listener::Config, bound: &Bind, node: &HostPort) -> Option<String> {
    if config.protocol == Protocol::Unix {
        return None;
    }
    if let Some(advertised) = &config.advertise {
        return Some(advertised.to_string());
    }
    let bound = bound.address()?;
    if bound.ip().is_unspecified() {
        let host: Option<IpAddr> = node.host().parse().ok();
        return match host {
            Some(ip) if ip.is_unspecified() => None,
            Some(ip) => Some(SocketAddr::new(ip, bound.port()).to_string()),
            None => Some(format!("{}:{}", node.host(), bound.port())),
        };
    }
    // Only clients of one machine reach it: they are referred to it where all nodes are on that.
    let is_here = |host: &str| {
        let ip = host.parse::<IpAddr>();
        ip.map_or(host == "localhost", |ip| ip.is_loopback())
    };
    (!bound.ip().is_loopback() || is_here(node.host())).then(|| bound.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn reached(bound: &str, node: &str) -> Option<String> {
        let config = listener::Config::default();
        reached_at(&config, &bound.parse().unwrap(), &node.parse().unwrap())
    }

    #[test]
    fn a_listener_is_reached_where_its_node_is() {
        let name = "flotte-0.flotte:7883";
        let at = |text: &str| Some(text.to_owned());
        assert_eq!(reached("0.0.0.0:1883", name), at("flotte-0.flotte:1883"));
        assert_eq!(reached("[::]:1883", "10.0.0.1:7883"), at("10.0.0.1:1883"));
        assert_eq!(
            reached("0.0.0.0:1883", "[fd00::1]:7883"),
            at("[fd00::1]:1883")
        );
        assert_eq!(reached("10.1.1.1:1883", name), at("10.1.1.1:1883"));
        assert_eq!(
            reached("127.0.0.1:21883", "127.0.0.1:7883"),
            at("127.0.0.1:21883")
        );
    }

    #[test]
    fn what_others_cannot_reach_is_not_told() {
        assert_eq!(reached("127.0.0.1:1883", "flotte-0.flotte:7883"), None);
        assert_eq!(reached("0.0.0.0:1883", "0.0.0.0:7883"), None);
        assert_eq!(reached("unix:/run/a.sock", "10.0.0.1:7883"), None);
    }

    #[test]
    fn what_is_advertised_goes_before_all() {
        let config = listener::Config {
            advertise: Some("mqtt.example:8883".parse().unwrap()),
            ..listener::Config::default()
        };
        let bound = "127.0.0.1:1883".parse().unwrap();
        let found = reached_at(&config, &bound, &"10.0.0.1:7883".parse().unwrap());
        assert_eq!(found.as_deref(), Some("mqtt.example:8883"));
    }
}
