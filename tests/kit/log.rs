//! What a node wrote, over all its starts: bounded, searchable, and printed when a test fails.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Lines kept for each node; older ones go.
const LINES_MAX: usize = 20_000;
/// Begins the line that marks a start of the process.
const MARK: &str = "--- ";

#[derive(Default)]
pub struct Log {
    lines: Mutex<Lines>,
    grown: Condvar,
}

#[derive(Default)]
struct Lines {
    kept: VecDeque<String>,
    /// How many lines went before the first one kept.
    gone: usize,
    /// The number of the line that marks the newest start.
    newest_start: usize,
    /// Outputs that have not ended.
    followed: usize,
}

impl Log {
    /// Marks the start of a process.
    pub fn mark(&self, what: &str) {
        let mut lines = self.lock();
        lines.newest_start = lines.gone + lines.kept.len();
        drop(lines);
        self.add(format!("{MARK}{what}"));
    }

    pub fn add(&self, line: String) {
        let mut lines = self.lock();
        if lines.kept.len() == LINES_MAX {
            lines.kept.pop_front();
            lines.gone += 1;
        }
        lines.kept.push_back(line);
        self.grown.notify_all();
    }

    /// Adds every line of `output` until it ends, on a thread of its own.
    pub fn follow(self: &Arc<Self>, output: impl Read + Send + 'static) {
        let log = Arc::clone(self);
        log.lock().followed += 1;
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                log.add(String::from_utf8_lossy(&line).into_owned());
            }
            log.lock().followed -= 1;
            log.grown.notify_all();
        });
    }

    /// Waits until all outputs have ended and every line of them is here: a process may be gone before its last words
    /// were read. Not beyond `limit`: a child of it may hold them open.
    pub fn wait_complete(&self, limit: Duration) {
        let waited = self
            .grown
            .wait_timeout_while(self.lock(), limit, |lines| lines.followed > 0);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until `pick` finds something in what the newest start wrote, or time is up.
    pub fn find<T>(&self, limit: Duration, pick: impl Fn(&str) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + limit;
        let mut lines = self.lock();
        let mut seen = lines.newest_start;
        loop {
            let fresh = lines.kept.iter().skip(seen.saturating_sub(lines.gone));
            if let Some(found) = fresh.map(String::as_str).find_map(&pick) {
                return Some(found);
            }
            seen = lines.gone + lines.kept.len();
            let left = deadline.checked_duration_since(Instant::now())?;
            lines = self
                .grown
                .wait_timeout(lines, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Whether any line of any start holds `needle`.
    pub fn contains(&self, needle: &str) -> bool {
        self.lock().kept.iter().any(|line| line.contains(needle))
    }

    /// The last lines, `name` above them.
    pub fn tail(&self, name: &str) -> String {
        const SHOWN_LINES: usize = 120;
        let lines = self.lock();
        let from = lines.kept.len().saturating_sub(SHOWN_LINES);
        let shown: Vec<_> = lines.kept.iter().skip(from).map(String::as_str).collect();
        let total = lines.gone + lines.kept.len();
        format!("{MARK}log of {name}, {total} lines\n{}\n", shown.join("\n"))
    }

    /// All that is kept.
    pub fn whole(&self) -> String {
        self.lock()
            .kept
            .iter()
            .flat_map(|line| [line, "\n"])
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    #[test]
    fn lines_of_an_earlier_start_are_not_found() {
        let log = Log::default();
        log.mark("first");
        log.add("ready".to_owned());
        let ready = |line: &str| (line == "ready").then_some(());
        assert_eq!(log.find(NOW, ready), Some(()));
        log.mark("second");
        assert_eq!(log.find(NOW, ready), None);
        assert!(log.contains("ready"));
    }

    #[test]
    fn last_words_are_waited_for() {
        let log = Arc::new(Log::default());
        let (words, mut mouth) = std::io::pipe().expect("a pipe");
        log.follow(words);
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            std::io::Write::write_all(&mut mouth, b"last").expect("someone listens");
        });
        log.wait_complete(Duration::from_secs(10));
        assert!(log.contains("last"));
    }

    #[test]
    fn newest_lines_are_kept() {
        let log = Log::default();
        log.mark("start");
        for number in 0..LINES_MAX + 10 {
            log.add(number.to_string());
        }
        let last = (LINES_MAX + 9).to_string();
        assert_eq!(log.find(NOW, |line| (line == last).then_some(())), Some(()));
        assert_eq!(log.lock().kept.len(), LINES_MAX);
    }
}
