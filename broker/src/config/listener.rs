//! `[[listener]]`: where clients connect.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use flotte_mqtt::topic::Mountpoint;
use flotte_mqtt::{QoS, Version};

use super::section::section;
use super::types::{HostPort, ListenerName, ShortText};
use super::value::{Raw, Refusal, Setting, choice, quoted};

choice! {
    /// What is spoken on a listener.
    Protocol {
        /// MQTT over TCP.
        Mqtt = "mqtt",
        /// MQTT over TLS.
        Mqtts = "mqtts",
        /// MQTT over WebSocket.
        Ws = "ws",
        /// MQTT over WebSocket over TLS.
        Wss = "wss",
        /// MQTT over a unix socket.
        Unix = "unix",
    }
}

choice! {
    /// Whether a client has to show a certificate.
    ClientCert {
        /// It is not asked for any.
        None = "none",
        /// One that it shows is checked.
        Optional = "optional",
        /// Without one it does not come in.
        Required = "required",
    }
}

choice! {
    /// What of a client certificate is its identity.
    CertIdentity {
        /// The common name of the subject.
        CommonName = "cn",
        /// The whole subject, as RFC 4514 writes it.
        DistinguishedName = "dn",
        /// The first of the alternative names that is a DNS name, an e-mail address, a URI or an IP address.
        AlternativeName = "san",
    }
}

impl Protocol {
    /// The port where clients look for it.
    fn default_port(self) -> u16 {
        match self {
            Protocol::Mqtt | Protocol::Unix => 1883,
            Protocol::Mqtts => 8883,
            Protocol::Ws => 8083,
            Protocol::Wss => 8084,
        }
    }

    /// Whether it needs a certificate.
    pub fn is_tls(self) -> bool {
        matches!(self, Protocol::Mqtts | Protocol::Wss)
    }

    /// Whether it is WebSocket.
    pub fn is_ws(self) -> bool {
        matches!(self, Protocol::Ws | Protocol::Wss)
    }
}

/// Where a listener listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bind {
    /// An address and a port.
    Tcp(SocketAddr),
    /// The file of a unix socket.
    Unix(PathBuf),
}

impl Bind {
    /// The address, where it is one.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Bind::Tcp(address) => Some(*address),
            Bind::Unix(_) => None,
        }
    }

    /// The port, where it has one.
    pub fn port(&self) -> Option<u16> {
        self.address().map(|address| address.port())
    }

    /// Whether only this machine reaches it.
    pub fn is_local(&self) -> bool {
        self.address().is_none_or(super::is_loopback)
    }
}

impl From<SocketAddr> for Bind {
    fn from(address: SocketAddr) -> Bind {
        Bind::Tcp(address)
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bind::Tcp(address) => address.fmt(out),
            Bind::Unix(path) => write!(out, "unix:{}", path.display()),
        }
    }
}

/// Text that is no bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no address with a port, and no path of a socket")]
pub struct NoBind;

impl FromStr for Bind {
    type Err = NoBind;

    fn from_str(text: &str) -> Result<Bind, NoBind> {
        if let Ok(address) = text.trim().parse() {
            return Ok(Bind::Tcp(address));
        }
        let path = text.strip_prefix("unix:").unwrap_or(text);
        // A word without a slash was meant to be an address.
        let is_path = path.len() < text.len() || path.contains('/');
        if !is_path || path.is_empty() || path.contains('\0') {
            return Err(NoBind);
        }
        Ok(Bind::Unix(path.into()))
    }
}

impl Setting for Bind {
    fn allowed() -> Cow<'static, str> {
        "an IP address and a port, as 127.0.0.1:1883 or [::1]:1883, or the path of a unix socket, as unix:/run/flotte.sock".into()
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

impl Setting for Mountpoint {
    fn allowed() -> Cow<'static, str> {
        "the name of a topic, without wildcards and other than one of `$`".into()
    }
    fn parse(raw: &Raw) -> Result<Self, Refusal> {
        raw.text()
            .and_then(|text| Mountpoint::parse(text).ok())
            .ok_or(Refusal::Bad)
    }
    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.to_string()))
    }
}

/// Where clients connect when nothing is configured.
pub const DEFAULT_BIND: Bind = Bind::Tcp(loopback(1883));

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

impl Config {
    /// The bind that the protocol has where none is given.
    pub fn default_bind(&self) -> Bind {
        loopback(self.protocol.default_port()).into()
    }
}

section! {
    /// Where clients connect; any number of them. Without any there is one, mqtt on 127.0.0.1:1883.
    /// On any other address than loopback one needs authentication, or `allow_anonymous = true` in so many words.
    "listener" {
        /// The name in metrics, in the ready line and in the environment (FLOTTE_LISTENER__NAME__KEY).
        name: ListenerName = ListenerName::mqtt();
        /// What is spoken here: "mqtt", "mqtts" (over TLS), "ws" (over WebSocket, path /mqtt), "wss" (both) or "unix".
        protocol: Protocol = Protocol::Mqtt;
        /// The address and port; port 0 takes a free one. Unset: 127.0.0.1 and the port of the protocol, 1883, 8883, 8083
        /// or 8084. With "unix" it is the path of the socket.
        bind: Bind = DEFAULT_BIND;
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
        /// The topic that all topics of this listener's clients lie below, as `site/a`: put before what they name, taken off
        /// what they are sent. Rules see the whole name.
        mountpoint: Option<Mountpoint> = None;
        /// Where clients reach this listener, as other nodes tell it to theirs when they send them here; unset: the host of
        /// `cluster.advertise`, or of `bind` where that is an address of the network, with the port of `bind`.
        advertise: Option<HostPort> = None;
        /// The other servers that a 5.0 client of this listener is told of when it is sent away (0x9C, 0x9D), as the standard
        /// writes them: "host" or "host:port", separated by spaces; unset: `mqtt.server_reference`, and where that is unset, too,
        /// a listener of another node that is there.
        server_reference: Option<ShortText> = None;
        /// The origins that a browser may come from, as `https://app.example`; empty: any.
        ws_origins: Vec<String> = Vec::new();
        /// The certificate of this listener with those of its issuers behind it, PEM.
        tls_cert ["tls.cert"]: Option<PathBuf> = None;
        /// Its key, PEM.
        tls_key ["tls.key"]: Option<PathBuf> = None;
        /// Who signs the certificates of clients, PEM.
        tls_client_ca ["tls.client_ca"]: Option<PathBuf> = None;
        /// Whether a client has to show a certificate: "none", "optional" or "required".
        tls_client_cert ["tls.client_cert"]: ClientCert = ClientCert::None;
        /// Certificates that are taken back, PEM. With it, there has to be a list of every authority in `tls.client_ca`.
        tls_crl ["tls.crl"]: Option<PathBuf> = None;
        /// What of a client's certificate is its user name where `auth.chain` has "certificate": "cn" (common name), "dn"
        /// (the whole subject, as RFC 4514 writes it) or "san" (the first alternative name).
        tls_identity ["tls.identity"]: CertIdentity = CertIdentity::CommonName;
    }
    later {
        /// Whether a proxy in front sends the client's address (PROXY protocol).
        "proxy_protocol": bool = false;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{Config as Whole, Sources};
    use super::*;

    fn load(toml: &str) -> Result<Vec<Config>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flotte.toml");
        std::fs::write(&path, toml).unwrap();
        let sources = Sources {
            file: Some(path),
            ..Sources::default()
        };
        match Whole::load(&sources) {
            Ok(loaded) => Ok(loaded.config.listeners),
            Err(errors) => Err(errors[0].to_string()),
        }
    }

    #[test]
    fn every_protocol_has_its_name_and_port() {
        let listeners = load(
            "[[listener]]\n[[listener]]\nprotocol = \"ws\"\n\
             [[listener]]\nprotocol = \"mqtts\"\ntls = { cert = \"c\", key = \"k\" }\n\
             [[listener]]\nprotocol = \"wss\"\ntls = { cert = \"c\", key = \"k\" }\n\
             [[listener]]\nprotocol = \"unix\"\nbind = \"/run/flotte.sock\"\n",
        )
        .unwrap();
        let found: Vec<(String, String)> = listeners
            .iter()
            .map(|one| (one.name.to_string(), one.bind.to_string()))
            .collect();
        let expected = [
            ("mqtt", "127.0.0.1:1883"),
            ("ws", "127.0.0.1:8083"),
            ("mqtts", "127.0.0.1:8883"),
            ("wss", "127.0.0.1:8084"),
            ("unix", "unix:/run/flotte.sock"),
        ];
        assert_eq!(
            found,
            expected.map(|(name, bind)| (name.to_owned(), bind.to_owned()))
        );
    }

    #[test]
    fn what_does_not_belong_together_is_refused_by_key() {
        let tls = "tls = { cert = \"c\", key = \"k\", client_ca = \"a\" }\n";
        for (toml, key) in [
            ("protocol = \"mqtts\"\n".to_owned(), "tls.cert"),
            ("protocol = \"wss\"\ntls.cert = \"c\"\n".to_owned(), "tls.key"),
            (format!("protocol = \"ws\"\n{tls}"), "tls.cert"),
            ("tls.client_cert = \"required\"\n".to_owned(), "tls.client_cert"),
            (
                "protocol = \"mqtts\"\ntls = { cert = \"c\", key = \"k\", client_cert = \"optional\" }\n"
                    .to_owned(),
                "tls.client_ca",
            ),
            (
                "protocol = \"mqtts\"\ntls = { cert = \"c\", key = \"k\", crl = \"l\" }\n".to_owned(),
                "tls.crl",
            ),
            ("ws_origins = [\"https://a\"]\n".to_owned(), "ws_origins"),
            ("protocol = \"unix\"\n".to_owned(), "bind"),
            ("bind = \"/run/flotte.sock\"\n".to_owned(), "bind"),
        ] {
            let error = load(&format!("[[listener]]\nname = \"x\"\n{toml}")).unwrap_err();
            assert!(
                error.contains(&format!("`listener.x.{key}")) && error.contains("is refused"),
                "{toml}: {error}"
            );
        }
    }

    #[test]
    fn two_listeners_cannot_have_one_socket() {
        let one = "[[listener]]\nprotocol = \"unix\"\nbind = \"unix:/run/flotte.sock\"\n";
        let two = format!(
            "{one}{}",
            one.replace("[[listener]]", "[[listener]]\nname = \"b\"")
        );
        assert!(
            load(&two)
                .unwrap_err()
                .contains("takes this address already")
        );
    }

    #[test]
    fn a_path_is_told_from_an_address() {
        let unix = |path: &str| Ok(Bind::Unix(path.into()));
        assert_eq!("unix:/run/a.sock".parse(), unix("/run/a.sock"));
        assert_eq!("./a.sock".parse(), unix("./a.sock"));
        assert_eq!("unix:a.sock".parse(), unix("a.sock"));
        assert!("[::1]:0".parse::<Bind>().unwrap().is_local());
        assert!(!"0.0.0.0:1".parse::<Bind>().unwrap().is_local());
        for bad in ["", "unix:", "here", "localhost:1883", "127.0.0.1", "/a\0b"] {
            assert_eq!(bad.parse::<Bind>(), Err(NoBind), "{bad}");
        }
    }
}
