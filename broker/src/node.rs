//! One node, put together: storage and cluster, router, workers, listeners, admin port; and taken apart in order.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use flotte_cluster::config::{Discover, RetainedLimits};
use flotte_cluster::handle::{self, Cluster, Death, StartError};
use flotte_cluster::journal::JournalError;
use flotte_cluster::level::FeatureLevel;
use flotte_cluster::store::StoreError;
use flotte_mqtt::session::{InboundConfig, OutboundConfig, Overflow};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin::{Admin, Orders};
use crate::admission::Admission;
use crate::auth::Authenticator;
use crate::auth::acl::Acl;
use crate::cli::Exit;
use crate::config::{Config, DiscoverDns, Loaded, Sources};
use crate::connection::{PendingConnects, Shared, Workers};
use crate::drain::{self, Departure};
use crate::listener::{ListenError, Listener, Listeners, endpoints};
use crate::local::LocalClients;
use crate::reload::{Part, Reloader};
use crate::router::Router;
use crate::session::Limits;
use crate::sys::Sys;
use crate::{config, log, metrics};

/// Threads for consensus, links and the admin port where there are cores for more than one; each more costs wake-ups.
const CLUSTER_THREADS_MAX: usize = 2;
/// How long a node that is Up waits for its replicas before it takes clients.
const CATCH_UP_MAX: Duration = Duration::from_secs(3);
/// How long the threads of connections may take to end.
const CLOSE_GRACE: Duration = Duration::from_secs(5);

/// Runs a node until it is told to end, and says with what the process ends.
pub fn run(loaded: Loaded, sources: Sources, log: log::Handle) -> Exit {
    raise_file_limit();
    let recorder = match metrics::install() {
        Ok(recorder) => recorder,
        Err(e) => {
            error!(error = %e, "metrics");
            return Exit::BadConfiguration;
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores().div_ceil(2).min(CLUSTER_THREADS_MAX))
        .thread_name("cluster")
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(e) => {
            error!(error = %e, "no threads");
            return Exit::Unreachable;
        }
    };
    let orders = Orders::default();
    let exit = runtime.block_on(serve((loaded, sources), log, recorder, orders.clone()));
    runtime.shutdown_timeout(Duration::from_secs(1));
    match exit == Exit::Done && orders.again.is_cancelled() {
        true => start_again(),
        false => exit,
    }
}

/// The same process begins anew: its number, by which whoever supervises it knows it, stays.
fn start_again() -> Exit {
    use std::os::unix::process::CommandExt as _;
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_default();
    // The file may have been replaced, or be gone.
    let program = std::env::current_exe().ok().filter(|path| path.exists());
    let program = program.unwrap_or_else(|| "/proc/self/exe".into());
    info!("starts again");
    let failed = std::process::Command::new(program)
        .arg0(name)
        .args(words)
        .exec();
    error!(error = %failed, "cannot start again: start it by hand");
    Exit::Unreachable
}

/// Cores that this process may use.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// As many open files as the system allows: each client is one.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum {
        limit.current = limit.maximum;
        if let Err(e) = setrlimit(Resource::Nofile, limit) {
            warn!(error = %e, "the limit of open files stays as it is");
        }
    }
}

/// Reads the users and the rules.
fn who_may(config: &Config) -> Result<(Authenticator, Acl), Exit> {
    let patience = Duration::from_secs(u64::from(config.mqtt.connect_timeout_s));
    let auth = Authenticator::new(&config.auth, patience).map_err(|e| {
        error!(error = %e, "users");
        Exit::BadConfiguration
    })?;
    let acl = Acl::new(&config.acl).map_err(|e| {
        error!(error = %e, "rules");
        Exit::BadConfiguration
    })?;
    Ok((auth, acl))
}

async fn serve(
    (loaded, sources): (Loaded, Sources),
    log: log::Handle,
    recorder: PrometheusHandle,
    orders: Orders,
) -> Exit {
    let config = loaded.config;
    let (auth, acl) = match who_may(&config) {
        Ok(who_may) => who_may,
        Err(exit) => return exit,
    };
    let listeners = match bind(&config) {
        Ok(listeners) => listeners,
        Err(exit) => return exit,
    };
    tokio::spawn(metrics::keep_up(recorder.clone()));
    let shutdown = CancellationToken::new();
    let local = Arc::new(LocalClients::default());
    let to_start = cluster_config(&config, &listeners);
    let cluster = match handle::start(to_start, local.clone(), shutdown.clone()).await {
        Ok(cluster) => cluster,
        Err(e) => return refused_start(&e),
    };
    let shared = share(config, cluster.clone(), (auth, acl), &listeners);
    local.set(Arc::clone(&shared));
    tokio::spawn(Arc::clone(&shared.admission).watch_memory());
    if let Some(sys) = Sys::new(&shared.config.sys, &shared) {
        shared.router.set_sys(Arc::clone(&sys));
        let ended = shutdown.clone();
        tokio::spawn(async move { ended.run_until_cancelled(sys.run()).await });
    }
    let reloader = Reloader::new(
        &shared,
        (sources, loaded.effective),
        log,
        vec![certificates(&shared)],
    );
    let admin = match Admin::bind(&shared.config.admin).await {
        Ok(admin) => admin,
        Err(e) => {
            error!(bind = %shared.config.admin.bind, error = %e, "cannot bind the admin port");
            return Exit::CannotBind;
        }
    };
    let admin_address = admin.address();
    let (open, drain) = (CancellationToken::new(), CancellationToken::new());
    tokio::spawn(admin.run(
        Arc::clone(&shared),
        Arc::clone(&reloader),
        recorder,
        open.clone(),
        (drain.clone(), orders.clone()),
        shutdown.clone(),
    ));
    let node = Running {
        shared,
        cluster,
        listeners,
        admin_address,
        shutdown,
        open,
        drain,
        deaf: CancellationToken::new(),
        orders,
    };
    node.run(reloader).await
}

/// What all connections share.
fn share(
    config: Config,
    cluster: Cluster,
    (auth, acl): (Authenticator, Acl),
    listeners: &[Listener],
) -> Arc<Shared> {
    Arc::new(Shared {
        router: Router::new(
            cluster,
            acl,
            config.shared.strategy,
            NonZeroU32::new(config.retained.delivery_rate),
        ),
        registry: Default::default(),
        limits: limits(&config),
        admission: Admission::new(&config.limits),
        auth,
        listeners: Listeners::new(listeners),
        connections: Default::default(),
        connections_most: Default::default(),
        pending: PendingConnects::new(config.mqtt.pending_connect_bytes.as_usize()),
        closing: Default::default(),
        departures: Default::default(),
        rebalancing: Default::default(),
        config,
    })
}

fn certificates(shared: &Arc<Shared>) -> Part {
    let shared = Arc::clone(shared);
    Part::in_one_step("certificates", move || shared.listeners.reload())
}

fn bind(config: &Config) -> Result<Vec<Listener>, Exit> {
    let mut listeners = Vec::new();
    for (at, listener) in config.listeners.iter().enumerate() {
        listeners.push(Listener::bind(config, at).map_err(|e| {
            error!(listener = %listener.name, error = %e, "a listener does not start");
            match e {
                ListenError::Tls(_) => Exit::BadConfiguration,
                ListenError::Bind { .. } => Exit::CannotBind,
            }
        })?);
    }
    Ok(listeners)
}

/// A node whose ports are bound.
struct Running {
    shared: Arc<Shared>,
    cluster: Cluster,
    listeners: Vec<Listener>,
    admin_address: std::net::SocketAddr,
    shutdown: CancellationToken,
    /// Cancelled once all listeners take clients: it is ready from then on.
    open: CancellationToken,
    /// Cancelled when the node begins to leave: it is not ready any more.
    drain: CancellationToken,
    /// Cancelled when new clients do not even hear where to go.
    deaf: CancellationToken,
    orders: Orders,
}

impl Running {
    async fn run(mut self, reloader: Arc<Reloader>) -> Exit {
        let stop = self.orders.stop.clone();
        if let Err(e) = watch_signals(self.orders.clone(), reloader) {
            error!(error = %e, "no signals");
            return Exit::Unreachable;
        }
        // Clients are taken once this node is Up.
        let up = tokio::select! {
            () = self.up() => true,
            () = stop.cancelled() => false,
            why = self.cluster.fatal() => return died(&why),
        };
        let workers = match self.open(up) {
            Ok(workers) => workers,
            Err(exit) => return exit,
        };
        let exit = tokio::select! {
            () = self.ordered() => Exit::Done,
            why = self.cluster.fatal() => died(&why),
        };
        self.drain.cancel();
        self.deaf.cancel();
        if exit == Exit::Done {
            info!("leaving");
            self.cluster.shutdown().await;
        }
        self.shutdown.cancel();
        if let Some(workers) = workers
            && let Some(workers) = Arc::into_inner(workers)
        {
            let _ =
                tokio::time::timeout(CLOSE_GRACE, tokio::task::spawn_blocking(|| workers.join()))
                    .await;
        }
        exit
    }

    /// Resolves when clients can be taken: what they ask for needs the groups of their sessions. Should one of those have no
    /// quorum, clients of the others are not kept waiting for it.
    async fn up(&self) {
        self.cluster.up().await;
        if tokio::time::timeout(CATCH_UP_MAX, self.cluster.caught_up())
            .await
            .is_err()
        {
            warn!("some replicas on this node have not caught up yet");
        }
    }

    /// Resolves when the node is to end and its clients are gone: it is told to, or leaves its cluster. Only drained, it goes on
    /// without clients.
    async fn ordered(&self) {
        let Orders { drain, stop, .. } = &self.orders;
        let departure = tokio::select! {
            () = stop.cancelled() => Departure::ForNow,
            () = drain.cancelled() => Departure::ForNow,
            () = self.cluster.may_go() => Departure::ForGood,
        };
        self.send_clients_away(departure).await;
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.cluster.may_go() => self.shared.departures.begin(Departure::ForGood),
        }
    }

    async fn send_clients_away(&self, departure: Departure) {
        info!(?departure, "draining");
        let hurry = &self.orders.hurry;
        let time = u64::from(self.shared.config.cluster.drain_timeout_s);
        let until = Instant::now() + Duration::from_secs(time);
        self.shared.departures.begin(departure);
        self.drain.cancel();
        // Before the clients, so that what they ask for meanwhile and at the other nodes has a leader that stays.
        let _ = hurry.run_until_cancelled(self.cluster.drain()).await;
        self.shared.router.leave();
        drain::send_away(&self.shared, until, hurry).await;
        info!("drained");
    }

    fn open(&mut self, up: bool) -> Result<Option<Arc<Workers>>, Exit> {
        if !up {
            return Ok(None);
        }
        let count = cores();
        let workers = Workers::start(&self.shared, count, &self.shutdown).map_err(|e| {
            error!(error = %e, "no worker threads");
            Exit::Unreachable
        })?;
        let workers = Arc::new(workers);
        let mut ready = String::from("ready");
        for listener in std::mem::take(&mut self.listeners) {
            if let Err(e) = listener.listen() {
                error!(listener = %listener.name(), error = %e, "cannot listen");
                return Err(Exit::CannotBind);
            }
            ready.push_str(&format!(" {}={}", listener.name(), listener.address()));
            tokio::spawn(listener.run(
                Arc::clone(&self.shared),
                Arc::clone(&workers),
                self.deaf.clone(),
            ));
        }
        ready.push_str(&format!(
            " cluster={} admin={}",
            self.cluster.advertise(),
            self.admin_address
        ));
        self.open.cancel();
        crate::cli::tell(format_args!("{ready}"));
        Ok(Some(workers))
    }
}

fn watch_signals(orders: Orders, reloader: Arc<Reloader>) -> std::io::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        let mut told = false;
        loop {
            tokio::select! {
                _ = term.recv() => tell_to_stop(&orders, &mut told),
                _ = interrupt.recv() => tell_to_stop(&orders, &mut told),
                _ = hangup.recv() => {
                    let reloader = Arc::clone(&reloader);
                    if let Err(e) = tokio::task::spawn_blocking(move || reloader.reload()).await {
                        error!(error = %e, "reload failed");
                    }
                }
            }
        }
    });
    Ok(())
}

/// The second time it is not to wait for anything any more.
fn tell_to_stop(orders: &Orders, told: &mut bool) {
    match std::mem::replace(told, true) {
        false => orders.stop.cancel(),
        true => orders.hurry.cancel(),
    }
}

fn died(death: &Death) -> Exit {
    error!(why = %death, "this node ends");
    match death {
        Death::Disk(_) => Exit::DiskFailed,
        Death::State(_) => Exit::DataDirectory,
        Death::Refused(_) => Exit::Refused,
    }
}

fn refused_start(error: &StartError) -> Exit {
    error!(%error, "the node does not start");
    match error {
        StartError::Net(_) => Exit::CannotBind,
        StartError::Names(_) => Exit::BadConfiguration,
        StartError::Store(StoreError::Io(..)) | StartError::Journal(JournalError::Dead { .. }) => {
            Exit::DiskFailed
        }
        StartError::Store(_)
        | StartError::Journal(_)
        | StartError::Group(_)
        | StartError::Snapshots(_) => Exit::DataDirectory,
    }
}

fn limits(config: &Config) -> Limits {
    let (session, mqtt) = (&config.session, &config.mqtt);
    let outbound = OutboundConfig {
        queue_max_messages: usize::try_from(session.queue_max_messages).unwrap_or(usize::MAX),
        queue_max_bytes: session.queue_max_bytes.as_usize(),
        overflow: match session.overflow {
            config::session::Overflow::DropOld => Overflow::DropOld,
            config::session::Overflow::DropNew => Overflow::DropNew,
        },
        queue_qos0_offline: session.queue_qos0,
        inflight_max: session.inflight_max,
        topic_alias_max: mqtt.topic_alias_maximum,
        ..OutboundConfig::default()
    };
    let inbound = InboundConfig {
        receive_maximum: mqtt.receive_maximum,
        topic_alias_maximum: mqtt.topic_alias_maximum,
    };
    Limits {
        outbound: Arc::new(outbound),
        inbound,
    }
}

fn discover(name: &DiscoverDns) -> Discover {
    match name {
        DiscoverDns::Hosts(host) => Discover::Hosts {
            name: host.host().to_owned(),
            port: host.port(),
        },
        DiscoverDns::Services(name) => Discover::Services { name: name.clone() },
    }
}

fn cluster_config(config: &Config, listeners: &[Listener]) -> handle::Config {
    let cluster = &config.cluster;
    handle::Config {
        node_name: config.node.effective_name().to_string(),
        data_dir: config.node.data_dir.clone(),
        bind: cluster.bind,
        advertise: cluster.advertise.as_ref().map(ToString::to_string),
        endpoints: endpoints(config, listeners),
        join: cluster.join.iter().map(ToString::to_string).collect(),
        discover: cluster.discover_dns.as_ref().map(discover),
        dns_server: cluster.discover_dns_server,
        bootstrap_expect: cluster.first_cluster_nodes().map(u32::from),
        voters: u32::from(cluster.voters),
        session_groups: u32::from(cluster.session_groups_of_a_new_cluster()),
        replication_factor: u32::from(cluster.replication_factor),
        node_down_after: Duration::from_millis(u64::from(cluster.node_down_after_ms)),
        forget_after: cluster.forget_after_s.map(Duration::from_secs),
        retained: RetainedLimits {
            messages_max: config.retained.max_messages,
            bytes_max: config.retained.max_bytes.map_or(0, |size| size.value()),
        },
        retained_payload_max: config
            .retained
            .max_payload
            .map_or(usize::MAX, |size| size.as_usize()),
        feature_level: FeatureLevel::KNOWN,
    }
}
