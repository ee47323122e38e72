//! `flotte dev`: a cluster on this machine. It starts `serve` processes of its own executable, shows their logs on one console, and
//! stops all of them when it is told to. It does not restart a node that ends: whoever kills one wants to see the rest go on.

mod console;
mod nodes;
mod plan;
mod ready;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;

use super::output::{print, tell};
use super::{Exit, Failure};
use nodes::{Ended, Nodes};
use plan::{NODES_MAX, Plan};

/// After this time without being ready it is said what is missing.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long nodes have to drain before they are killed: more than `cluster.drain_timeout_s` is by default.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
pub struct Arguments {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(NODES_MAX)))]
    nodes: u8,
    /// Where the nodes keep their data, each in a directory of its own; none: a temporary directory.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The MQTT port of the first node; 10,000 more for each further node.
    #[arg(long, value_name = "PORT", default_value_t = 1883, value_parser = clap::value_parser!(u16).range(1..))]
    mqtt_port: u16,
    /// The cluster port of the first node; 10,000 more for each further node.
    #[arg(long, value_name = "PORT", default_value_t = 7883, value_parser = clap::value_parser!(u16).range(1..))]
    cluster_port: u16,
    /// The admin port of the first node; 10,000 more for each further node.
    #[arg(long, value_name = "PORT", default_value_t = 8080, value_parser = clap::value_parser!(u16).range(1..))]
    admin_port: u16,
    /// The WebSocket port of the first node, for browsers (path /mqtt); 10,000 more for each further node. None: no WebSocket.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    ws_port: Option<u16>,
    /// How much the nodes log: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
}

/// Why there is no cluster.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    #[error(
        "{flag} {port} leaves no room for {nodes} nodes: each has 10000 more, and 65535 is the last port"
    )]
    PortsTooHigh {
        flag: &'static str,
        port: u16,
        nodes: u8,
    },
    #[error("{flag} and {other} give the port {port} twice")]
    PortsClash {
        flag: &'static str,
        other: &'static str,
        port: u16,
    },
    #[error("the address {address} of {node} is not free: {source}; choose another with {flag}")]
    PortBusy {
        address: SocketAddr,
        node: String,
        flag: &'static str,
        source: io::Error,
    },
    #[error("{}: {source}", path.display())]
    DataDirectory { path: PathBuf, source: io::Error },
    #[error("{node} cannot be started: {source}")]
    Start { node: String, source: io::Error },
    #[error("cannot be set up: {0}")]
    Setup(#[source] io::Error),
}

impl Failure for DevError {
    fn exit(&self) -> Exit {
        match self {
            Self::PortsTooHigh { .. } | Self::PortsClash { .. } => Exit::Usage,
            Self::PortBusy { .. } => Exit::CannotBind,
            Self::DataDirectory { .. } => Exit::DataDirectory,
            Self::Start { .. } | Self::Setup(_) => Exit::Refused,
        }
    }
}

impl Arguments {
    /// Runs a cluster until it is told to end, or all its nodes have ended.
    pub fn run(self) -> Result<Exit, DevError> {
        let plan = Plan::make(&self)?;
        plan.check_ports()?;
        // One thread that lives as long as this process: the kernel tells the nodes of the death of the thread that
        // started them, not of that of its process.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(DevError::Setup)?;
        runtime.block_on(supervise(&plan))
    }
}

/// What ends `dev`.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

async fn supervise(plan: &Plan) -> Result<Exit, DevError> {
    // Before the first node runs: nothing may end this process without ending the nodes.
    let mut signals = Signals::listen().map_err(DevError::Setup)?;
    let mut nodes = Nodes::start(plan)?;
    let mut readiness = std::pin::pin!(ready::all(plan));
    let mut patience = std::pin::pin!(sleep(PATIENCE));
    let (mut is_ready, mut is_late) = (false, false);
    loop {
        tokio::select! {
            () = signals.recv() => break,
            Some(ended) = nodes.next_end() => {
                if nodes.is_empty() {
                    tell(format_args!("flotte dev: {ended}; no node is left"));
                    let exit = nodes.exit_of_ended();
                    nodes.finish_logs().await;
                    return Ok(exit);
                }
                report(plan, &ended);
            }
            () = &mut readiness, if !is_ready => {
                is_ready = true;
                announce(plan, &nodes);
            }
            () = &mut patience, if !is_ready && !is_late => {
                is_late = true;
                for missing in ready::missing(plan).await {
                    tell(format_args!("flotte dev: still waiting for {missing}"));
                }
            }
        }
    }
    stop(nodes, &mut signals).await;
    Ok(Exit::Done)
}

/// Ends all nodes: politely, and when that takes too long or is asked for again, at once.
async fn stop(mut nodes: Nodes, signals: &mut Signals) {
    tell("flotte dev: stopping all nodes; again to kill them");
    nodes.terminate();
    let mut limit = std::pin::pin!(sleep(STOP_TIMEOUT));
    loop {
        tokio::select! {
            ended = nodes.next_end() => match ended {
                Some(ended) if !ended.is_success() => tell(format_args!("flotte dev: {ended}")),
                Some(_) => {}
                None => break,
            },
            () = signals.recv() => nodes.kill(),
            () = &mut limit => nodes.kill(),
        }
    }
    nodes.finish_logs().await;
}

fn report(plan: &Plan, ended: &Ended) {
    tell(format_args!("flotte dev: {ended}; the others go on"));
    if let Some(node) = plan.nodes.iter().find(|node| node.name == ended.name) {
        tell(format_args!(
            "flotte dev: to start it again: {}",
            plan.command_line(node)
        ));
    }
}

/// Says how to try it. Nobody listening is no reason to end.
fn announce(plan: &Plan, nodes: &Nodes) {
    let mut text = format!("\n{} nodes are ready:\n", plan.nodes.len());
    for node in &plan.nodes {
        let pid = nodes
            .pid_of(&node.name)
            .map_or_else(|| "ended".to_owned(), |pid| format!("pid {pid}"));
        let ws = node.ws.map(|ws| format!("  ws://{ws}/mqtt"));
        text.push_str(&format!(
            "  {}  mqtt {}{}  admin http://{}  {pid}\n",
            node.name,
            node.mqtt,
            ws.unwrap_or_default(),
            node.admin
        ));
    }
    if let (Some(first), Some(last)) = (plan.nodes.first(), plan.nodes.last()) {
        let (from, to) = (last.mqtt.port(), first.mqtt.port());
        text.push_str(&format!(
            "\nTry it:\n\
             \x20 mosquitto_sub -p {from} -t 'try/#' -v\n\
             \x20 mosquitto_pub -p {to} -t try/it -m hello\n\
             or\n\
             \x20 flotte sub -p {from} -t 'try/#' -v\n\
             \x20 flotte pub -p {to} -t try/it -m hello\n\
             \x20 flotte ctl --url http://{} status\n\
             Kill a node (kill -9 PID) and the rest goes on. Ctrl-C stops all.\n\n",
            first.admin
        ));
    }
    let _ = print(&text);
}
