//! Cleans up behind a test process however it ends: a small shell waits for the end of its input and
//! then kills the brokers that still run and removes the process's temporary directory, namespaces and
//! bridges. Statics are never dropped in Rust, so a broker shared by all tests of a binary needs this.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Reads `+ PID`, `- PID`, `namespace NAME` and `bridge NAME` lines; at the end of its input kills the
/// processes left and removes the rest and directory `$1`.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
alive=' '
namespaces=' '
bridges=' '
while read -r sign what; do
    case "$sign" in
        namespace) namespaces="$namespaces $what" ;;
        bridge) bridges="$bridges $what" ;;
        +) alive="$alive$what " ;;
        -) case "$alive" in *" $what "*) alive="${alive%%" $what "*} ${alive#*" $what "}" ;; esac ;;
    esac
done
for pid in $alive; do kill -9 "$pid" 2>/dev/null; done
for name in $namespaces; do ip netns del "$name" 2>/dev/null; done
for name in $bridges; do ip link del "$name" 2>/dev/null; done
rm -rf -- "$1"
"#;

struct Reaper {
    shell: Mutex<Child>,
    root: PathBuf,
}

fn reaper() -> &'static Reaper {
    static REAPER: OnceLock<Reaper> = OnceLock::new();
    REAPER.get_or_init(|| {
        let root = tempfile::Builder::new().prefix("flotte-tests-").tempdir();
        let root = root.expect("a temporary directory can be made").keep();
        let mut shell = Command::new("sh");
        shell.args(["-c", SCRIPT, "reaper"]).arg(&root);
        shell
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let shell = Mutex::new(shell.spawn().expect("sh starts"));
        Reaper { shell, root }
    })
}

/// The directory that goes away with this process.
pub fn root() -> &'static Path {
    &reaper().root
}

/// The process is killed when this test process ends.
pub fn watch(pid: u32) {
    tell("+", &pid.to_string());
}

/// The process has ended and was waited for; its number may be someone else's from now on.
pub fn forget(pid: u32) {
    tell("-", &pid.to_string());
}

/// The network namespace is removed when this test process ends, if it still exists.
pub fn watch_namespace(name: &str) {
    tell("namespace", name);
}

/// The bridge is removed when this test process ends, if it still exists.
pub fn watch_bridge(name: &str) {
    tell("bridge", name);
}

fn tell(word: &str, what: &str) {
    let mut shell = reaper()
        .shell
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let input = shell.stdin.as_mut().expect("the shell has a pipe");
    let told = writeln!(input, "{word} {what}");
    assert!(told.is_ok(), "the reaper is gone: {told:?}");
}
