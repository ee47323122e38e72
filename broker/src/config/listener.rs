//! `[[listener]]`: where clients connect.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use flotte_mqtt::{QoS, Version};

use super::section::section;
use super::types::ListenerName;
use super::value::choice;

choice! {
    /// What is spoken on a listener.
    Protocol {
        /// MQTT over TCP.
        Mqtt = "mqtt",
    }
    later { "mqtts", "ws", "wss", "unix" }
}

choice! {
    /// Whether a client has to show a certificate.
    ClientCert {
        None = "none",
    }
    later { "optional", "required" }
}

choice! {
    /// What of a client certificate is its identity.
    CertIdentity {
        CommonName = "cn",
    }
    later { "dn", "san" }
}

/// Where clients connect when nothing is configured.
pub const DEFAULT_BIND: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1883);

section! {
    /// Where clients connect; any number of them. Without any there is one, mqtt on 127.0.0.1:1883.
    /// On any other address than loopback one needs authentication, or `allow_anonymous = true` in so many words.
    "listener" {
        /// The name in metrics, in the ready line and in the environment (FLOTTE_LISTENER__NAME__KEY).
        name: ListenerName = ListenerName::mqtt();
        /// What is spoken here: "mqtt"; later "mqtts", "ws", "wss" and "unix".
        protocol: Protocol = Protocol::Mqtt;
        /// The address and port; port 0 takes a free one.
        bind: SocketAddr = DEFAULT_BIND;
        /// How many clients at once; unset: only `limits.max_connections` counts.
        max_connections: Option<u32> = None, in 1..=100_000_000;
        /// The versions of MQTT that are taken: 3 is 3.1, 4 is 3.1.1, 5 is 5.0.
        versions: Vec<Version> = vec![Version::V3, Version::V4, Version::V5];
        /// Whether clients without a user name are taken here; unset: as `auth.allow_anonymous` says.
        allow_anonymous: Option<bool> = None;
        /// The highest QoS here; unset: `mqtt.max_qos`.
        max_qos: Option<QoS> = None;
        /// How many topic aliases a client may use here; unset: `mqtt.topic_alias_maximum`.
        topic_alias_maximum: Option<u16> = None;
    }
    later {
        /// Whether a proxy in front sends the client's address (PROXY protocol).
        "proxy_protocol": bool = false;
        /// Put before every topic of the clients of this listener.
        "mountpoint": Option<String> = None;
        /// The origins that a browser may come from; empty: any.
        "ws_origins": Vec<String> = Vec::new();
        /// The certificate of this listener, PEM.
        "tls.cert": Option<PathBuf> = None;
        /// Its key, PEM.
        "tls.key": Option<PathBuf> = None;
        /// Who signs the certificates of clients, PEM.
        "tls.client_ca": Option<PathBuf> = None;
        /// Whether a client has to show a certificate: "none", "optional" or "required".
        "tls.client_cert": ClientCert = ClientCert::None;
        /// Certificates that are taken back.
        "tls.crl": Option<PathBuf> = None;
        /// What of a client's certificate is its user name: "cn", "dn" or "san".
        "tls.identity": CertIdentity = CertIdentity::CommonName;
    }
}
