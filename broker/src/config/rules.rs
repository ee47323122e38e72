//! Rules that hold over several keys: what is unsafe, contradicts itself, or cannot work.

use std::collections::BTreeMap;

use super::cluster::ELECTION_TIMEOUT_MS_MAX;
use super::error::{ConfigError, Origin};
use super::section::Effective;
use super::{Config, auth, is_loopback, listener};

/// A configuration whose values are fine one by one, under examination.
pub struct Checked<'a> {
    pub config: &'a Config,
    pub effective: &'a [Effective],
    pub errors: Vec<ConfigError>,
    pub warnings: Vec<String>,
}

impl Checked<'_> {
    /// Applies every rule.
    pub fn run(&mut self) {
        self.authentication();
        self.acl();
        for listener in &self.config.listeners {
            self.listener(listener);
        }
        self.names_are_different();
        self.addresses_are_different();
        self.cluster();
    }

    fn authentication(&mut self) {
        let config = &self.config.auth;
        let methods = config.methods();
        if methods.contains(&auth::Method::PasswordFile) && config.password_file.is_none() {
            self.refuse(
                "auth.chain",
                "\"password-file\" needs the key `auth.password-file.file`",
            );
        }
        if config.password_file.is_some() && methods.is_empty() {
            self.warnings.push(
                "auth.password-file is set but not in auth.chain: nobody is asked for a password"
                    .into(),
            );
        }
        let asks =
            |listener: &listener::Config| listener.tls_client_cert != listener::ClientCert::None;
        if methods.contains(&auth::Method::Certificate) && !self.config.listeners.iter().any(asks) {
            self.warnings.push(
                "auth.chain has \"certificate\", and no listener asks for one (`tls.client_cert`)"
                    .into(),
            );
        }
        let counted: BTreeMap<&str, usize> =
            methods.iter().fold(BTreeMap::new(), |mut counted, method| {
                *counted.entry(method.as_str()).or_default() += 1;
                counted
            });
        if counted.values().any(|count| *count > 1) {
            self.refuse("auth.chain", "a method stands there twice");
        }
    }

    fn acl(&mut self) {
        let acl = &self.config.acl;
        if acl.file.is_none() && acl.format != super::acl::Format::Flotte {
            self.warnings
                .push("acl.format is set without acl.file: there are no rules".into());
        }
        if acl.file.is_none() && acl.effective_default() == super::acl::Effect::Deny {
            self.warnings.push(
                "acl.default is \"deny\" and there is no acl.file: no client may do anything"
                    .into(),
            );
        }
    }

    fn listener(&mut self, listener: &listener::Config) {
        let key = |key: &str| format!("listener.{}.{key}", listener.name);
        let auth = &self.config.auth;
        let explicit = listener.allow_anonymous.or(auth.allow_anonymous);
        if !listener.bind.is_local() && auth.methods().is_empty() && explicit != Some(true) {
            self.refuse(
                &key("bind"),
                "on any other address than loopback a listener needs authentication (`auth.password-file.file`), \
                 or `auth.allow_anonymous = true` in so many words",
            );
        } else if explicit == Some(false) && auth.methods().is_empty() {
            self.warnings.push(format!("nobody can connect to listener {}: anonymous clients are refused and there is no other way", listener.name));
        }
        if listener.versions.is_empty() {
            self.refuse(&key("versions"), "a listener speaks at least one version");
        }
        let mut versions = listener.versions.clone();
        versions.sort();
        versions.dedup();
        if versions.len() != listener.versions.len() {
            self.refuse(&key("versions"), "a version stands there twice");
        }
        self.transport(listener);
    }

    /// What belongs to the protocol of a listener and what does not.
    fn transport(&mut self, listener: &listener::Config) {
        let key = |key: &str| format!("listener.{}.{key}", listener.name);
        let protocol = listener.protocol;
        let is_path = matches!(listener.bind, listener::Bind::Unix(_));
        match (protocol == listener::Protocol::Unix, is_path) {
            (true, false) => self.refuse(
                &key("bind"),
                "with protocol \"unix\" it is the path of the socket, as unix:/run/flotte.sock",
            ),
            (false, true) => self.refuse(
                &key("bind"),
                "the path of a socket needs protocol \"unix\"; for others it is an address and a port",
            ),
            _ => {}
        }
        if !listener.ws_origins.is_empty() && !protocol.is_ws() {
            self.refuse(&key("ws_origins"), "only \"ws\" and \"wss\" have origins");
        }
        let files = [
            ("tls.cert", &listener.tls_cert),
            ("tls.key", &listener.tls_key),
            ("tls.client_ca", &listener.tls_client_ca),
            ("tls.crl", &listener.tls_crl),
        ];
        let asks = listener.tls_client_cert != listener::ClientCert::None;
        for (name, file) in files {
            let needed = match name {
                "tls.client_ca" => asks,
                "tls.crl" => false,
                _ => true,
            };
            if file.is_some() && !protocol.is_tls() {
                self.refuse(&key(name), "only \"mqtts\" and \"wss\" have TLS");
            } else if file.is_none() && protocol.is_tls() && needed {
                let why = match name {
                    "tls.client_ca" => {
                        "with `tls.client_cert` it has to be said who signs the certificates of clients"
                    }
                    _ => "\"mqtts\" and \"wss\" need a certificate and its key",
                };
                self.refuse(&key(name), why);
            }
        }
        if asks && !protocol.is_tls() {
            self.refuse(
                &key("tls.client_cert"),
                "only \"mqtts\" and \"wss\" have TLS",
            );
        } else if listener.tls_crl.is_some() && !asks {
            self.refuse(
                &key("tls.crl"),
                "without `tls.client_cert` no certificate of a client is looked at",
            );
        }
    }

    fn names_are_different(&mut self) {
        let names: Vec<&str> = self
            .config
            .listeners
            .iter()
            .map(|listener| listener.name.as_str())
            .collect();
        for (at, name) in names.iter().enumerate() {
            if names[..at].contains(name) {
                // The key of both reads the same: the later one is at fault.
                let key = format!("listener.{name}.name");
                let given = self.effective.iter().rfind(|value| value.key == key);
                let origin = given.map_or(Origin::Default, |value| value.origin.clone());
                let why =
                    "another listener has this name; every listener has its own `name`".to_owned();
                self.errors.push(ConfigError::Refused {
                    origin,
                    key,
                    value: super::value::quoted(name),
                    why,
                });
            }
        }
    }

    fn addresses_are_different(&mut self) {
        let config = self.config;
        let bind_of = |listener: &listener::Config| {
            (
                format!("listener.{}.bind", listener.name),
                listener.bind.clone(),
            )
        };
        let mut taken = vec![
            ("cluster.bind".to_owned(), config.cluster.bind.into()),
            ("admin.bind".to_owned(), config.admin.bind.into()),
        ];
        taken.extend(config.listeners.iter().map(bind_of));
        for (at, (key, bind)) in taken.iter().enumerate() {
            let clash = taken[..at]
                .iter()
                .find(|(other, taken)| overlap(taken, bind) && other != key);
            if let Some((other, _)) = clash {
                self.refuse(key, &format!("`{other}` takes this address already"));
            }
        }
    }

    fn cluster(&mut self) {
        let cluster = &self.config.cluster;
        if !is_loopback(cluster.bind) && !cluster.insecure {
            self.refuse(
                "cluster.bind",
                "whoever reaches the cluster port is a member, and there is no TLS between nodes in this version: \
                 on any other address than loopback it needs `cluster.insecure = true`",
            );
        }
        if cluster.bind.ip().is_unspecified() && cluster.advertise.is_none() {
            self.refuse(
                "cluster.bind",
                "other nodes cannot connect to this address: set `cluster.advertise` to the name or address under which they reach this one",
            );
        }
        // The lease is 0.75 T and renewed every T/8: what is left, 0.625 T, has to hold an election and one that fails.
        if u64::from(cluster.node_down_after_ms) * 5 < u64::from(ELECTION_TIMEOUT_MS_MAX) * 2 * 8 {
            let least = (ELECTION_TIMEOUT_MS_MAX * 2 * 8).div_ceil(5);
            self.refuse(
                "cluster.node_down_after_ms",
                &format!(
                    "an election would not fit into a node's lease; at least {least} is allowed"
                ),
            );
        }
        if cluster.voters.is_multiple_of(2) {
            self.refuse("cluster.voters", "allowed are 3 and 5");
        }
        let finds_none = cluster.join.is_empty() && cluster.discover_dns.is_none();
        if cluster.bootstrap_expect.is_some_and(|nodes| nodes > 1) && finds_none {
            self.warnings.push(
                "cluster.bootstrap_expect is more than 1, cluster.join is empty and cluster.discover_dns unset: this node can only wait to be asked by the others".into(),
            );
        }
    }

    fn refuse(&mut self, key: &str, why: &str) {
        let given = self.effective.iter().find(|value| value.key == key);
        self.errors.push(ConfigError::Refused {
            origin: given.map_or(Origin::Default, |value| value.origin.clone()),
            key: key.to_owned(),
            value: given
                .and_then(|value| value.value.clone())
                .unwrap_or_else(|| "(unset)".to_owned()),
            why: why.to_owned(),
        });
    }
}

/// Whether only one of two can be bound.
fn overlap(one: &listener::Bind, other: &listener::Bind) -> bool {
    match (one, other) {
        (listener::Bind::Tcp(one), listener::Bind::Tcp(other)) => {
            let same_ip = one.ip() == other.ip()
                || (one.is_ipv4() == other.is_ipv4()
                    && (one.ip().is_unspecified() || other.ip().is_unspecified()));
            one.port() != 0 && one.port() == other.port() && same_ip
        }
        (one, other) => one == other,
    }
}
