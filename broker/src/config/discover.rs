//! `cluster.discover_dns`: a name by which nodes are found. It is resolved when it is used and not before.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use super::types::{HostPort, NoHostPort};
use super::value::{Raw, Refusal, Setting, quoted};

/// A name that leads to nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiscoverDns {
    /// Its A and AAAA records are the nodes, all with this port.
    Hosts(HostPort),
    /// Its SRV records are the hosts and ports of the nodes. Begins with `_`, as RFC 2782 has it.
    Services(String),
}

impl FromStr for DiscoverDns {
    type Err = NoHostPort;

    fn from_str(text: &str) -> Result<Self, NoHostPort> {
        let text = text.trim();
        if !text.starts_with('_') {
            return text.parse().map(DiscoverDns::Hosts);
        }
        // The rules for labels are those of hosts; a port would be a part of the name that no name may have.
        let name: HostPort = format!("{text}:1").parse()?;
        Ok(DiscoverDns::Services(name.host().to_owned()))
    }
}

impl fmt::Display for DiscoverDns {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DiscoverDns::Hosts(host) => host.fmt(out),
            DiscoverDns::Services(name) => out.write_str(name),
        }
    }
}

impl Setting for DiscoverDns {
    fn allowed() -> Cow<'static, str> {
        "a name and a port, as nodes.example:7883, or the name of SRV records, as _flotte._tcp.example"
            .into()
    }
    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        raw.text()
            .and_then(|text| text.parse().ok())
            .ok_or(Refusal::Bad)
    }
    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_port_has_addresses_and_one_with_an_underscore_has_services() {
        let parsed = |text: &str| text.parse::<DiscoverDns>();
        assert!(matches!(
            parsed("nodes.example:7883"),
            Ok(DiscoverDns::Hosts(_))
        ));
        let services = DiscoverDns::Services("_flotte._tcp.example".into());
        assert_eq!(parsed(" _flotte._tcp.example"), Ok(services));
        for bad in [
            "nodes.example",
            "_flotte._tcp.example:7883",
            "_flotte..example",
            "",
        ] {
            let shown = parsed(bad).map(|name| name.to_string());
            assert!(shown.is_err(), "{bad}: {shown:?}");
        }
    }
}
