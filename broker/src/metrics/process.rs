//! What the system says of this process, under the names that Prometheus has for it.

use std::fmt::Write;

/// What `/proc` says of this process at one moment; what cannot be read is none.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Process {
    /// CPU time in user and system mode.
    pub cpu_s: Option<f64>,
    /// Resident memory.
    pub resident_bytes: Option<u64>,
    /// Address space.
    pub virtual_bytes: Option<u64>,
    /// Threads.
    pub threads: Option<u64>,
    /// Since the epoch.
    pub start_s: Option<f64>,
}

/// Resident memory of this process.
pub fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    resident_of(&statm, rustix::param::page_size() as u64)
}

fn resident_of(statm: &str, page_bytes: u64) -> Option<u64> {
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * page_bytes)
}

impl Process {
    /// As it is now.
    pub fn now() -> Process {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let system = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let ticks = rustix::param::clock_ticks_per_second();
        parse(&stat, &system, ticks, rustix::param::page_size() as u64)
    }
}

/// Fields of `/proc/PID/stat` behind the name, which may hold anything, counted from the state.
fn parse(stat: &str, system: &str, ticks: u64, page_bytes: u64) -> Process {
    let Some((_, rest)) = stat.rsplit_once(')') else {
        return Process::default();
    };
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    let seconds = |ticked: u64| ticked as f64 / ticks as f64;
    let boot: Option<f64> = system
        .lines()
        .find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
    Process {
        cpu_s: number(11).zip(number(12)).map(|(u, s)| seconds(u + s)),
        threads: number(17),
        start_s: number(19)
            .zip(boot)
            .map(|(since, boot)| boot + seconds(since)),
        virtual_bytes: number(20),
        resident_bytes: number(21).map(|pages| pages * page_bytes),
    }
}

/// Appends all of it as Prometheus reads it: the recorder knows whole numbers only for counters.
pub(super) fn render(text: &mut String) {
    let process = Process::now();
    // One of them is the directory itself.
    let open = std::fs::read_dir("/proc/self/fd").map(|all| all.count().saturating_sub(1) as f64);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let number = |value: Option<u64>| value.map(|value| value as f64);
    let names = [
        (
            "cpu_seconds_total",
            "CPU time in user and system mode in seconds",
            process.cpu_s,
        ),
        ("open_fds", "Open file descriptors", open.ok()),
        ("max_fds", "Most open file descriptors", number(limit)),
        (
            "virtual_memory_bytes",
            "Address space in bytes",
            number(process.virtual_bytes),
        ),
        (
            "resident_memory_bytes",
            "Resident memory in bytes",
            number(process.resident_bytes),
        ),
        (
            "start_time_seconds",
            "Start in seconds since 1970",
            process.start_s,
        ),
        ("threads", "Threads", number(process.threads)),
    ];
    for (name, help, value) in names {
        let kind = if name.ends_with("_total") {
            "counter"
        } else {
            "gauge"
        };
        if let Some(value) = value {
            // Writing to a text does not fail.
            let _ = writeln!(
                text,
                "# HELP process_{name} {help}\n# TYPE process_{name} {kind}\nprocess_{name} {value}\n"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_any_name() {
        let stat = "4242 (a ) (b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 7 0 1000 8192 3 18446744073709551615";
        let process = parse(stat, "cpu 1 2\nbtime 1700000000\n", 100, 4096);
        assert_eq!(process.cpu_s, Some(2.0));
        assert_eq!(process.threads, Some(7));
        assert_eq!(process.start_s, Some(1_700_000_010.0));
        assert_eq!(process.virtual_bytes, Some(8192));
        assert_eq!(process.resident_bytes, Some(3 * 4096));
        assert_eq!(resident_of("10 3 2 1 0 5 0", 4096), Some(12_288));
    }

    #[test]
    fn what_cannot_be_read_is_none() {
        assert_eq!(parse("", "", 100, 4096), Process::default());
        assert_eq!(parse("1 (x) S 1", "", 100, 4096), Process::default());
        assert_eq!(resident_of("", 4096), None);
    }

    #[test]
    fn every_name_is_rendered_with_its_help_and_type() {
        let mut text = String::new();
        render(&mut text);
        for name in ["cpu_seconds_total", "open_fds", "max_fds", "threads"] {
            for begin in ["# HELP ", "# TYPE ", ""] {
                let line = format!("{begin}process_{name} ");
                assert!(text.lines().any(|one| one.starts_with(&line)), "{line}");
            }
        }
    }

    #[test]
    fn this_process_has_memory_and_threads() {
        let process = Process::now();
        assert!(process.resident_bytes > Some(0) && process.threads > Some(0));
        assert!(process.start_s.is_some() && process.cpu_s.is_some());
        assert!(resident_bytes() > Some(0));
    }
}
