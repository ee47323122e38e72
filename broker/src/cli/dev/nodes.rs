//! The processes of a `dev` cluster: starts them, waits for their ends, and ends them.

use std::fmt;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::plan::{NodePlan, Plan};
use super::{DevError, console};
use crate::cli::Exit;
use crate::cli::serve::DEV_PARENT_VARIABLE;

/// The colours of names on a terminal, one for each node.
const COLORS: [u8; 5] = [36, 33, 35, 32, 34];
/// How long the last lines of ended nodes may take.
const LOGS_TIMEOUT: Duration = Duration::from_secs(1);

/// The nodes that run.
#[derive(Debug)]
pub struct Nodes {
    running: Vec<Running>,
    /// A task for each node, which owns its process and ends with it.
    ends: JoinSet<Ended>,
    /// Tasks that copy logs; they end with the pipes of their node.
    logs: JoinSet<()>,
    /// How the first node that failed ended.
    first_failure: Option<ExitStatus>,
}

/// A node that runs, or whose end was not taken notice of yet.
#[derive(Debug)]
struct Running {
    name: String,
    pid: u32,
    /// Names this process for ever, other than its id.
    process: OwnedFd,
}

/// A node that has ended.
#[derive(Debug)]
pub struct Ended {
    pub name: String,
    status: Option<ExitStatus>,
}

impl Ended {
    /// Whether it ended as it should.
    pub fn is_success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match self.status.map(|status| (status.code(), status.signal())) {
            Some((Some(code), _)) => write!(out, "{name} has ended with {code}"),
            Some((None, Some(signal))) => write!(out, "{name} was killed by signal {signal}"),
            _ => write!(out, "{name} has ended"),
        }
    }
}

impl Nodes {
    /// Starts every node of the plan, with this very executable.
    pub fn start(plan: &Plan) -> Result<Self, DevError> {
        let executable = std::env::current_exe().map_err(DevError::Setup)?;
        let mut nodes = Self {
            running: Vec::new(),
            ends: JoinSet::new(),
            logs: JoinSet::new(),
            first_failure: None,
        };
        for (node, color) in plan.nodes.iter().zip(COLORS) {
            // Nodes started before one that fails are killed with their tasks.
            nodes.start_one(plan, node, color, &executable)?;
        }
        Ok(nodes)
    }

    fn start_one(
        &mut self,
        plan: &Plan,
        node: &NodePlan,
        color: u8,
        executable: &Path,
    ) -> Result<(), DevError> {
        let failed = |source| DevError::Start {
            node: node.name.clone(),
            source,
        };
        let mut child = Command::new(executable)
            .args(plan.arguments_of(node))
            .env(DEV_PARENT_VARIABLE, std::process::id().to_string())
            // A file of this shell's `serve` is not meant for these nodes.
            .env_remove("FLOTTE_CONFIG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C goes to this process alone, which ends the nodes in its own time.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let pid = child.id().unwrap_or_default();
        let raw = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
        let process = pidfd_open(raw, PidfdFlags::empty()).map_err(|error| failed(error.into()))?;
        self.running.push(Running {
            name: node.name.clone(),
            pid,
            process,
        });
        if let Some(output) = child.stdout.take() {
            self.logs
                .spawn(console::copy(node.name.clone(), color, output));
        }
        if let Some(output) = child.stderr.take() {
            self.logs
                .spawn(console::copy(node.name.clone(), color, output));
        }
        self.ends.spawn(end_of(node.name.clone(), child));
        Ok(())
    }

    /// The process of a node that runs.
    pub fn pid_of(&self, name: &str) -> Option<u32> {
        self.running
            .iter()
            .find(|node| node.name == name)
            .map(|node| node.pid)
    }

    /// Whether no node runs any more.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// The next node that ends; `None` when none is left. Nothing is lost when it is given up half-way.
    pub async fn next_end(&mut self) -> Option<Ended> {
        // A task that was aborted or panicked has killed its node.
        let ended = self.ends.join_next().await?.unwrap_or(Ended {
            name: String::new(),
            status: None,
        });
        self.running.retain(|node| node.name != ended.name);
        if !ended.is_success() && self.first_failure.is_none() {
            self.first_failure = ended.status;
        }
        Some(ended)
    }

    /// With what to end when all nodes have ended by themselves: as the first that failed.
    pub fn exit_of_ended(&self) -> Exit {
        match self.first_failure {
            None => Exit::Done,
            Some(status) => status
                .code()
                .and_then(Exit::from_code)
                .unwrap_or(Exit::Refused),
        }
    }

    /// Asks all nodes to end.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends all nodes at once.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        for node in &self.running {
            // It may have ended just now; its end is on its way.
            let _ = pidfd_send_signal(&node.process, signal);
        }
    }

    /// Waits a little for the last lines of nodes that have ended.
    pub async fn finish_logs(mut self) {
        let last_lines = async { while self.logs.join_next().await.is_some() {} };
        // A process that a node left behind may hold its pipe open.
        let _ = timeout(LOGS_TIMEOUT, last_lines).await;
    }
}

async fn end_of(name: String, mut child: Child) -> Ended {
    Ended {
        name,
        status: child.wait().await.ok(),
    }
}
