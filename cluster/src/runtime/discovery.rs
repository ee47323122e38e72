//! Whom to ask for a cluster: nodes of the configuration, those that DNS names, those that were known before, and, while this
//! node is in no cluster, those that others have heard of.

use std::collections::BTreeSet;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::config::{Config, Discover};
use crate::net::{NameError, Names};

/// How long an answer of DNS holds at least: probes go out several times a second.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// And at most, whatever its records say: nodes that come with a new address are waited for.
const HOLDS_MAX: Duration = Duration::from_secs(30);
/// How long DNS may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// Addresses that others named.
const HEARD_MAX: usize = 64;
/// Complaints that are remembered so that each is logged once.
const COMPLAINTS_MAX: usize = 64;

/// Knows whom to ask.
pub(super) struct Discovery {
    listed: BTreeSet<String>,
    what: Option<Discover>,
    names: Names,
    /// Held while DNS is asked, so that one asks at a time.
    resolved: tokio::sync::Mutex<Resolved>,
    /// What is wrong with the last answer.
    trouble: Mutex<Option<String>>,
    heard: Mutex<BTreeSet<String>>,
    complaints: Mutex<BTreeSet<String>>,
}

#[derive(Default)]
struct Resolved {
    /// Stays when DNS fails: nodes do not go away with it.
    addresses: BTreeSet<String>,
    until: Option<Instant>,
}

impl Discovery {
    pub fn new(config: &Config, names: Names) -> Self {
        Discovery {
            listed: config.join.iter().cloned().collect(),
            what: config.discover.clone(),
            names,
            resolved: tokio::sync::Mutex::default(),
            trouble: Mutex::default(),
            heard: Mutex::default(),
            complaints: Mutex::default(),
        }
    }

    /// The nodes to ask by configuration, as host:port.
    pub async fn addresses(&self) -> BTreeSet<String> {
        let mut all = self.listed.clone();
        if let Some(what) = &self.what {
            all.extend(self.resolve(what).await);
        }
        all
    }

    /// Takes note of where other nodes without a cluster are.
    pub fn hear<'a>(&self, addresses: impl Iterator<Item = &'a String>) {
        let mut heard = self.heard.lock();
        for address in addresses.filter(|address| !address.is_empty()) {
            if heard.len() < HEARD_MAX && !heard.contains(address) {
                heard.insert(address.clone());
            }
        }
    }

    /// Where others without a cluster are said to be.
    pub fn heard(&self) -> BTreeSet<String> {
        self.heard.lock().clone()
    }

    /// Logs once what is wrong with a node that was found, or that found this one.
    pub fn complain(&self, what: String) {
        let mut complaints = self.complaints.lock();
        if complaints.len() < COMPLAINTS_MAX && !complaints.contains(&what) {
            warn!("{what}");
            complaints.insert(what);
        }
    }

    /// What is wrong with discovery, in words.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    async fn resolve(&self, what: &Discover) -> BTreeSet<String> {
        let mut resolved = self.resolved.lock().await;
        if resolved.until.is_some_and(|until| Instant::now() < until) {
            return resolved.addresses.clone();
        }
        let answer = timeout(ANSWER_LIMIT, self.ask(what)).await;
        let answer = answer.unwrap_or_else(|_| Err(NameError::Failed("no answer".into())));
        let (holds, trouble) = match answer {
            Ok((addresses, ttl)) => {
                if resolved.addresses != addresses {
                    info!(discover_dns = %what, ?addresses, "nodes to ask");
                }
                resolved.addresses = addresses;
                (ttl.unwrap_or_default().clamp(ASK_EVERY, HOLDS_MAX), None)
            }
            Err(error) => {
                // What is known to be no more is not asked; what is not known to be is.
                if !matches!(error, NameError::Failed(_)) {
                    resolved.addresses.clear();
                }
                (ASK_EVERY, Some(format!("discover_dns `{what}`: {error}")))
            }
        };
        resolved.until = Some(Instant::now() + holds);
        let before = std::mem::replace(&mut *self.trouble.lock(), trouble.clone());
        if let Some(trouble) = trouble.filter(|trouble| before.as_ref() != Some(trouble)) {
            warn!("{trouble}");
        }
        resolved.addresses.clone()
    }

    async fn ask(
        &self,
        what: &Discover,
    ) -> Result<(BTreeSet<String>, Option<Duration>), NameError> {
        match what {
            Discover::Hosts { name, port } => {
                let records = self.names.hosts(name).await?;
                let addresses = records.found.into_iter();
                let addresses =
                    addresses.map(|ip| std::net::SocketAddr::new(ip, *port).to_string());
                Ok((addresses.collect(), records.ttl))
            }
            Discover::Services { name } => {
                let records = self.names.services(name).await?;
                let addresses = records.found.into_iter();
                let addresses = addresses.map(|(host, port)| format!("{host}:{port}"));
                Ok((addresses.collect(), records.ttl))
            }
        }
    }
}
