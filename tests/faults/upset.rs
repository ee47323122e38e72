//! What a machine does to a node: a wall clock that is set, a disk that takes its time. `upset.c` does it inside the process.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use flotte_tests::Launch;
use tempfile::TempDir;

/// What a node is told; the layout is that of `UPSET_FILE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upset {
    clock_off_ns: i64,
    sync_takes_us: i64,
}

impl Upset {
    pub const NONE: Self = Self {
        clock_off_ns: 0,
        sync_takes_us: 0,
    };

    /// The wall clock is off by so many seconds.
    pub fn clock(seconds: i64) -> Self {
        Self {
            clock_off_ns: seconds * 1_000_000_000,
            ..Self::NONE
        }
    }

    /// Each sync takes so much longer.
    pub fn slow_disk(takes: Duration) -> Self {
        Self {
            sync_takes_us: i64::try_from(takes.as_micros()).expect("not that slow"),
            ..Self::NONE
        }
    }

    fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.clock_off_ns.to_ne_bytes());
        bytes[8..].copy_from_slice(&self.sync_takes_us.to_ne_bytes());
        bytes
    }
}

/// The library, and what each node is told.
pub struct Upsets {
    dir: TempDir,
    library: PathBuf,
}

impl Upsets {
    /// Builds the library with the compiler that links Rust programs.
    pub fn new() -> Self {
        let dir = TempDir::new().expect("a directory");
        let library = dir.path().join("upset.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/faults/upset.c");
        let built = Command::new("cc")
            .args([
                "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o",
            ])
            .arg(&library)
            .arg(source)
            .status();
        assert!(
            built.as_ref().is_ok_and(|status| status.success()),
            "cc {source}: {built:?}"
        );
        Self { dir, library }
    }

    /// Has a node listen to what it is told.
    pub fn load(&self, node: u8, launch: Launch) -> Launch {
        let mut file = File::create(self.file(node)).expect("a file");
        file.write_all(&Upset::NONE.bytes()).expect("written");
        launch
            .env("LD_PRELOAD", self.library.display())
            .env("UPSET_FILE", self.file(node).display())
    }

    /// Tells a node, at once.
    pub fn set(&self, node: u8, upset: Upset) {
        let file = File::options().write(true).open(self.file(node));
        let written = file.and_then(|file| file.write_all_at(&upset.bytes(), 0));
        written.expect("written");
    }

    fn file(&self, node: u8) -> PathBuf {
        self.dir.path().join(format!("n{node}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `date` says, in seconds since the epoch.
    fn date(upsets: &Upsets) -> i64 {
        let output = Command::new("date")
            .arg("+%s")
            .env("LD_PRELOAD", &upsets.library)
            .env("UPSET_FILE", upsets.file(1))
            .output()
            .expect("date runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.trim().parse().expect("a number")
    }

    #[test]
    fn a_process_is_told_the_wrong_time() {
        let upsets = Upsets::new();
        let _ = upsets.load(1, Launch::new("n1"));
        let right = date(&upsets);
        upsets.set(1, Upset::clock(3_600));
        assert!((3_600..3_630).contains(&(date(&upsets) - right)));
    }

    #[test]
    fn a_sync_takes_its_time() {
        let upsets = Upsets::new();
        let _ = upsets.load(1, Launch::new("n1"));
        upsets.set(1, Upset::slow_disk(Duration::from_millis(300)));
        let begin = std::time::Instant::now();
        let status = Command::new("sync")
            .arg(upsets.file(1))
            .env("LD_PRELOAD", &upsets.library)
            .env("UPSET_FILE", upsets.file(1))
            .status();
        assert!(status.is_ok_and(|status| status.success()));
        assert!(begin.elapsed() >= Duration::from_millis(300));
    }
}
