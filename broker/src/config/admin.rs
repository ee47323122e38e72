//! `[admin]`: the port of people and of monitoring.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::section::section;
use super::types::Nothing;

/// Where the admin port is when nothing is configured.
pub const DEFAULT_BIND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

/// What the admin port answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposure {
    /// Everything: only this machine reaches it.
    Full,
    /// Only /healthz, /readyz and /metrics: the network reaches it, and there are no tokens yet.
    MonitoringOnly,
}

section! {
    /// The port of people and of monitoring, HTTP.
    /// On any other address than loopback it serves only /healthz, /readyz and /metrics until there are tokens.
    "admin" {
        /// The address and port.
        bind: SocketAddr = DEFAULT_BIND;
    }
    later {
        /// Who may use the API from the network.
        "tokens_file": Option<PathBuf> = None;
        /// The certificate and key of this port.
        "tls": Option<Nothing> = None;
        /// Whether the dashboard is served.
        "dashboard": bool = true;
    }
}

impl Config {
    /// What the admin port answers.
    pub fn exposure(&self) -> Exposure {
        if super::is_loopback(self.bind) {
            Exposure::Full
        } else {
            Exposure::MonitoringOnly
        }
    }
}
