//! What Linux says about the broker's process. It never changes anything there.

use std::time::Duration;

use anyhow::Context;

/// The sum over processes; none where none is known.
pub fn cpu_time_of(pids: &[u32]) -> anyhow::Result<Option<Duration>> {
    let times: Vec<Duration> = pids
        .iter()
        .copied()
        .map(cpu_time)
        .collect::<Result<_, _>>()?;
    Ok((!times.is_empty()).then(|| times.iter().sum()))
}

/// The same of resident memory, in KiB.
pub fn resident_kib_of(pids: &[u32]) -> anyhow::Result<Option<u64>> {
    let sizes: Vec<u64> = pids
        .iter()
        .copied()
        .map(resident_kib)
        .collect::<Result<_, _>>()?;
    Ok((!sizes.is_empty()).then(|| sizes.iter().sum()))
}

/// User and system time of all threads, those that ended included.
fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .context("the broker's process is gone")?;
    let ticks = ticks(&stat).with_context(|| format!("not a line of /proc/PID/stat: {stat}"))?;
    Ok(Duration::from_secs(ticks) / rustix::param::clock_ticks_per_second() as u32)
}

/// Fields 14 and 15; the name in field 2 may hold blanks and parentheses.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Resident memory in KiB.
fn resident_kib(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .context("the broker's process is gone")?;
    resident(&status).context("no VmRSS in /proc/PID/status")
}

fn resident(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_behind_a_strange_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 9 9 20 0 1 0 5 6 7";
        assert_eq!(ticks(stat), Some(200));
        assert_eq!(ticks("7 (a"), None);
    }

    #[test]
    fn resident_memory_is_read_from_its_line() {
        assert_eq!(resident("VmPeak:\t 9 kB\nVmRSS:\t  5120 kB\n"), Some(5120));
    }
}
