//! From the names of nodes to their addresses. Nothing is remembered here: each connection and each question asks anew.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;
use hickory_resolver::{ResolverBuilder, TokioResolver};
use hyper_util::client::legacy::connect::dns::Name;

/// One question to one server; it is repeated once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Records of one name that are looked at: more nodes than a cluster has.
const RECORDS_MAX: usize = 256;

/// Why a name leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nobody knows it.
    #[error("no such name")]
    NoSuchName,
    /// It is known, and has no records of the kind that was asked for.
    #[error("no records")]
    NoRecords,
    /// Nobody could be asked.
    #[error("{0}")]
    Failed(String),
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Records<T> {
    pub found: BTreeSet<T>,
    /// How long that holds, where it was said.
    pub ttl: Option<Duration>,
}

/// Who is asked for names: the system, or a DNS server of the configuration first.
#[derive(Clone)]
pub struct Names {
    server: Option<TokioResolver>,
}

impl Names {
    /// What the system knows.
    pub fn system() -> Self {
        Self { server: None }
    }

    /// This DNS server; where it does not know a node, the system.
    pub fn of_server(server: SocketAddr) -> Result<Self, NameError> {
        let mut config = NameServerConfig::udp_and_tcp(server.ip());
        for connection in &mut config.connections {
            connection.port = server.port();
        }
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![config]);
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        Ok(Self {
            server: Some(build(builder)?),
        })
    }

    /// The A and AAAA records of a name.
    pub async fn hosts(&self, name: &str) -> Result<Records<IpAddr>, NameError> {
        let Some(server) = &self.server else {
            let found = tokio::net::lookup_host((name, 0)).await;
            let found = found.map_err(|error| NameError::Failed(error.to_string()))?;
            let found: BTreeSet<IpAddr> = found.take(RECORDS_MAX).map(|to| to.ip()).collect();
            return some(found, None);
        };
        let found = server.lookup_ip(name).await.map_err(failed)?;
        let ttl = time_left(found.valid_until());
        some(found.iter().take(RECORDS_MAX).collect(), Some(ttl))
    }

    /// The hosts and ports of the SRV records of a name.
    pub async fn services(&self, name: &str) -> Result<Records<(String, u16)>, NameError> {
        let found = match &self.server {
            Some(server) => server.srv_lookup(name).await,
            // The system's configuration may have changed since.
            None => {
                let builder = TokioResolver::builder_tokio().map_err(failed)?;
                build(builder)?.srv_lookup(name).await
            }
        };
        let found: Lookup = found.map_err(failed)?;
        let target = |data: &RData| match data {
            // RFC 2782: the root says that there is no such service.
            RData::SRV(srv) if !srv.target.is_root() && srv.port != 0 => {
                let host = srv.target.to_utf8();
                Some((host.trim_end_matches('.').to_owned(), srv.port))
            }
            _ => None,
        };
        let targets = found.answers().iter().take(RECORDS_MAX);
        let targets = targets.filter_map(|record| target(&record.data)).collect();
        some(targets, Some(time_left(found.valid_until())))
    }

    /// Where a node may be connected to.
    async fn node(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        if self.server.is_some()
            && let Ok(records) = self.hosts(name).await
        {
            let found = records.found.into_iter();
            return Ok(found.map(|ip| SocketAddr::new(ip, 0)).collect());
        }
        Ok(tokio::net::lookup_host((name, 0)).await?.collect())
    }
}

fn build(mut builder: ResolverBuilder<TokioRuntimeProvider>) -> Result<TokioResolver, NameError> {
    let options: &mut ResolverOpts = builder.options_mut();
    options.cache_size = 0;
    options.timeout = ANSWER_TIMEOUT;
    options.attempts = 1;
    options.use_hosts_file = ResolveHosts::Never;
    builder.build().map_err(failed)
}

fn some<T: Ord>(found: BTreeSet<T>, ttl: Option<Duration>) -> Result<Records<T>, NameError> {
    if found.is_empty() {
        return Err(NameError::NoRecords);
    }
    Ok(Records { found, ttl })
}

fn time_left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

fn failed(error: NetError) -> NameError {
    if error.is_nx_domain() {
        NameError::NoSuchName
    } else if error.is_no_records_found() {
        NameError::NoRecords
    } else {
        NameError::Failed(error.to_string())
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.server.is_some() {
            "Names(server)"
        } else {
            "Names(system)"
        })
    }
}

/// As the connector asks it.
impl tower_service::Service<Name> for Names {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let names = self.clone();
        Box::pin(async move { Ok(names.node(name.as_str()).await?.into_iter()) })
    }
}
