//! Real `flotte` processes: started on free ports with a data directory of their own, their log kept,
//! killed, paused and started again at will. Blocking on purpose: a broker may be shared by tests of
//! different runtimes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::log::Log;
use crate::reaper;
use crate::run::until_blocking;

/// How long a node may take from its start to the ready line; debug builds on busy machines are slow.
pub const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a node may take to end after SIGTERM.
pub const STOP_LIMIT: Duration = Duration::from_secs(30);

/// The `flotte` binary: `FLOTTE_BIN`, or the one built beside this test executable.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("FLOTTE_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("the test knows its own path");
    let profile = test.ancestors().nth(2).expect("target/PROFILE/deps/TEST");
    let beside = profile.join("flotte");
    assert!(
        beside.exists(),
        "build it first, or set FLOTTE_BIN: {}",
        beside.display()
    );
    beside
}

/// How a node is to be started.
#[derive(Clone, Debug)]
pub struct Launch {
    name: String,
    /// Another program than the binary under test: another version, or a stand-in.
    program: Option<PathBuf>,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    data_dir: Option<PathBuf>,
    namespace: Option<String>,
    /// Addresses by listener name: mqtt, cluster, admin. Port 0 until the first start told it.
    binds: BTreeMap<String, SocketAddr>,
}

impl Launch {
    /// A single node on free loopback ports.
    pub fn new(name: &str) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            name: name.to_owned(),
            program: None,
            args: Vec::new(),
            env: BTreeMap::new(),
            data_dir: None,
            namespace: None,
            binds: ["mqtt", "cluster", "admin"]
                .map(|listener| (listener.to_owned(), any))
                .into(),
        }
    }

    pub fn program(mut self, path: &Path) -> Self {
        self.program = Some(path.to_owned());
        self
    }

    pub fn arg(mut self, text: impl Into<String>) -> Self {
        self.args.push(text.into());
        self
    }

    pub fn env(mut self, key: &str, value: impl ToString) -> Self {
        self.env.insert(key.to_owned(), value.to_string());
        self
    }

    pub fn bind(mut self, listener: &str, address: SocketAddr) -> Self {
        self.binds.insert(listener.to_owned(), address);
        self
    }

    /// The address that a listener is given: mqtt, cluster or admin.
    pub fn address(&self, listener: &str) -> SocketAddr {
        self.binds[listener]
    }

    /// Uses this data directory, which the test keeps, instead of a fresh one.
    pub fn data_dir(mut self, path: &Path) -> Self {
        self.data_dir = Some(path.to_owned());
        self
    }

    /// Runs the node inside a network namespace.
    pub fn namespace(mut self, name: &str) -> Self {
        self.namespace = Some(name.to_owned());
        self
    }

    /// Starts the node and waits for its ready line.
    pub fn start(self) -> Broker {
        let mut broker = self.spawn();
        broker.wait_ready();
        broker
    }

    /// Starts the node and returns at once.
    pub fn spawn(mut self) -> Broker {
        let data_dir = self
            .data_dir
            .get_or_insert_with(|| fresh_dir(&self.name))
            .clone();
        let log = Arc::new(Log::default());
        let child = self.spawn_process(&log);
        Broker {
            launch: self,
            learned: BTreeMap::new(),
            child: Some(child),
            log,
            data_dir,
        }
    }

    /// Starts a node that is expected to end by itself, and returns its exit code and log.
    pub fn run_to_end(self, limit: Duration) -> (Option<i32>, String) {
        let mut broker = self.spawn();
        let status = broker.wait_end(limit);
        (status.code(), broker.log())
    }

    fn command(&self) -> Command {
        let program = self.program.clone().unwrap_or_else(binary);
        let Some(namespace) = &self.namespace else {
            return Command::new(program);
        };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(program);
        command
    }

    fn spawn_process(&self, log: &Arc<Log>) -> Child {
        let mut command = self.command();
        command
            .arg("serve")
            .args(["--node-name", &self.name])
            .arg("--data-dir");
        command.arg(self.data_dir.as_ref().expect("set by `spawn`"));
        for (listener, address) in &self.binds {
            command
                .arg(format!("--{listener}-bind"))
                .arg(address.to_string());
        }
        command.args(&self.args);
        // The kit's own variables would be unknown keys to the node.
        for (key, _) in
            std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("FLOTTE_"))
        {
            command.env_remove(key);
        }
        command.envs(&self.env);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        reaper::watch(child.id());
        log.mark(&format!("{} starts as process {}", self.name, child.id()));
        log.follow(child.stdout.take().expect("piped"));
        log.follow(child.stderr.take().expect("piped"));
        child
    }
}

/// A directory that goes away with this test process.
pub fn fresh_dir(name: &str) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let path = reaper::root().join(format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    std::fs::create_dir_all(&path).expect("a directory can be made");
    path
}

/// A node that was started.
pub struct Broker {
    launch: Launch,
    /// Listeners beyond those of flags, as the ready line named them.
    learned: BTreeMap<String, SocketAddr>,
    child: Option<Child>,
    log: Arc<Log>,
    data_dir: PathBuf,
}

impl Broker {
    pub fn name(&self) -> &str {
        &self.launch.name
    }

    pub fn mqtt(&self) -> SocketAddr {
        self.launch.binds["mqtt"]
    }

    pub fn cluster(&self) -> SocketAddr {
        self.launch.binds["cluster"]
    }

    pub fn admin(&self) -> SocketAddr {
        self.launch.binds["admin"]
    }

    /// The real address of a listener that the ready line named.
    pub fn listener(&self, name: &str) -> SocketAddr {
        let found = self
            .launch
            .binds
            .get(name)
            .or_else(|| self.learned.get(name));
        *found.unwrap_or_else(|| panic!("no listener {name} in the ready line"))
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub fn is_started(&self) -> bool {
        self.child.is_some()
    }

    pub fn pid(&self) -> u32 {
        self.child
            .as_ref()
            .expect("the node was started and not waited for")
            .id()
    }

    /// Waits for the ready line of the newest start and learns the real addresses from it.
    pub fn wait_ready(&mut self) {
        self.wait_ready_within(START_LIMIT);
    }

    /// As [`Broker::wait_ready`], for one that has much to get first.
    pub fn wait_ready_within(&mut self, limit: Duration) {
        let begin = Instant::now();
        loop {
            let found = self.log.find(Duration::from_millis(50), parse_ready);
            if let Some(addresses) = found {
                for (name, address) in addresses {
                    // The next start takes the same ports; listeners of the file have no flag.
                    if let Some(bind) = self.launch.binds.get_mut(&name) {
                        *bind = address;
                    } else {
                        self.learned.insert(name, address);
                    }
                }
                return;
            }
            let ended = self
                .child
                .as_mut()
                .and_then(|child| child.try_wait().ok().flatten());
            assert!(
                ended.is_none(),
                "{} ended with {ended:?} before it was ready\n{}",
                self.name(),
                self.log()
            );
            assert!(
                begin.elapsed() < limit,
                "{} is not ready\n{}",
                self.name(),
                self.log()
            );
        }
    }

    /// Ends the process on the spot, as a power cut would, and waits until it is gone.
    pub fn kill9(&mut self) {
        self.signal(Signal::KILL);
        self.wait_end(STOP_LIMIT);
    }

    /// Asks the process to end and returns its exit code.
    pub fn sigterm(&mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.wait_end(STOP_LIMIT).code()
    }

    /// Asks the process to end, and does not wait for that.
    pub fn ask_to_end(&self) {
        self.signal(Signal::TERM);
    }

    pub fn sighup(&self) {
        self.signal(Signal::HUP);
    }

    /// Stops the process where it is; its sockets stay open.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// `ip netns exec` becomes the node itself, so its process is the node's in every case.
    fn signal(&self, signal: Signal) {
        let number = i32::try_from(self.pid()).expect("a process number");
        let pid = Pid::from_raw(number).expect("not zero");
        kill_process(pid, signal).unwrap_or_else(|e| panic!("cannot signal {}: {e}", self.name()));
    }

    /// Waits for the end of the process; panics when it still runs after `limit`.
    pub fn wait_end(&mut self, limit: Duration) -> ExitStatus {
        let pid = self.pid();
        let child = self.child.as_mut().expect("checked by `pid`");
        let what = format!("the end of {}", self.launch.name);
        let status = until_blocking(limit, &what, || child.try_wait().expect("own child"));
        reaper::forget(pid);
        self.child = None;
        self.log.wait_complete(STOP_LIMIT);
        status
    }

    /// Starts it again with the same data directory and the same ports, and returns at once.
    pub fn respawn(&mut self) {
        assert!(self.child.is_none(), "{} still runs", self.name());
        self.child = Some(self.launch.spawn_process(&self.log));
    }

    /// Starts it again and waits for the ready line.
    pub fn restart(&mut self) {
        self.respawn();
        self.wait_ready();
    }

    /// Starts it again under its name and on its ports, with nothing on its disk, and waits for the ready line.
    pub fn restart_empty(&mut self) {
        let path = &self.data_dir;
        std::fs::remove_dir_all(path).expect("the directory is there");
        std::fs::create_dir_all(path).expect("a directory can be made");
        self.restart();
    }

    /// Adds a variable for the next start.
    pub fn set_env(&mut self, key: &str, value: impl ToString) {
        self.launch.env.insert(key.to_owned(), value.to_string());
    }

    /// The last lines of the log.
    pub fn log(&self) -> String {
        self.log.tail(self.name())
    }

    /// The log of all starts.
    pub fn whole_log(&self) -> String {
        self.log.whole()
    }

    /// Whether any line of any start holds `needle`.
    pub fn logged(&self, needle: &str) -> bool {
        self.log.contains(needle)
    }

    /// Resident memory of the process.
    pub fn resident_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid());
        let status = std::fs::read_to_string(path).expect("the process runs");
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .expect("a resident size");
        let number = line
            .split_whitespace()
            .nth(1)
            .and_then(|text| text.parse().ok());
        number.expect("a number of KiB")
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        if let Some(mut child) = self.child.take() {
            let pid = child.id();
            let _ = child.kill();
            let _ = child.wait();
            reaper::forget(pid);
        }
        if self.data_dir.starts_with(reaper::root()) && !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.data_dir);
        }
    }
}

/// The addresses of `ready mqtt=127.0.0.1:41883 cluster=... admin=...`.
fn parse_ready(line: &str) -> Option<BTreeMap<String, SocketAddr>> {
    let mut words = line.split_whitespace();
    if words.next() != Some("ready") {
        return None;
    }
    let pair = |word: &str| {
        let (name, address) = word.split_once('=')?;
        Some((name.to_owned(), address.parse().ok()?))
    };
    // A unix socket has a path that the test knows.
    let is_path = |word: &&str| word.contains("=unix:");
    // A cluster port that is advertised by a name stays where it was bound.
    let is_name = |word: &&str| {
        let port = word.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        word.starts_with("cluster=") && pair(word).is_none() && matches!(port, Some(Ok(_)))
    };
    let words = words.filter(|word| !is_path(word) && !is_name(word));
    words.map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_line_names_every_listener() {
        let found =
            parse_ready("ready mqtt=127.0.0.1:41883 admin=127.0.0.1:48080 unix=unix:/run/f.sock")
                .expect("a ready line");
        assert_eq!(found["mqtt"], SocketAddr::from(([127, 0, 0, 1], 41883)));
        assert_eq!(found.len(), 2);
        let named = parse_ready("ready mqtt=127.0.0.1:4 cluster=node.example:7").expect("a name");
        assert_eq!(named.len(), 1);
        assert!(parse_ready("ready mqtt=127.0.0.1:4 cluster=node").is_none());
        assert!(parse_ready("INFO not ready yet").is_none());
    }

    /// A node that says it is ready on the ports it was given, and ends on SIGTERM with code 0.
    fn stand_in() -> Launch {
        use std::os::unix::fs::PermissionsExt as _;
        let script = fresh_dir("stand-in").join("flotte");
        let text = "#!/bin/sh\necho starting >&2\nfor a; do case $p in --mqtt-bind) m=$a;; esac; p=$a; done\n\
                    trap 'exit 0' TERM\necho \"ready mqtt=$m admin=127.0.0.1:9\" >&2\n\
                    while :; do read -r _ <&3; done 3<>\"$5/fifo\"\n";
        std::fs::write(&script, text).expect("the script can be written");
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))
            .expect("it is ours");
        let dir = fresh_dir("stand-in-data");
        let made = Command::new("mkfifo").arg(dir.join("fifo")).status();
        assert!(made.is_ok_and(|status| status.success()));
        Launch::new("standin")
            .program(&script)
            .data_dir(&dir)
            .bind("mqtt", ([127, 0, 0, 1], 4321).into())
    }

    #[test]
    fn node_is_started_stopped_killed_and_started_again() {
        let mut node = stand_in().start();
        assert_eq!((node.mqtt().port(), node.admin().port()), (4321, 9));
        assert_eq!(node.sigterm(), Some(0), "{}", node.log());
        node.restart();
        node.pause();
        node.resume();
        assert!(node.resident_kib() > 0);
        node.kill9();
        assert!(!node.is_started());
        assert!(node.logged("starting"));
    }

    #[test]
    fn node_that_ends_by_itself_gives_its_code() {
        let (code, log) = Launch::new("gone")
            .program(Path::new("/bin/false"))
            .run_to_end(STOP_LIMIT);
        assert_eq!(code, Some(1), "{log}");
    }
}
