//! When to send, when to measure, when to stop: the course of a run. Sockets are the crowd's.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::crowd::{Crowd, nanos};
use crate::plan::Plan;
use crate::process;
use crate::report::{Report, Snapshot};
use crate::wire::QoS;

/// Silence before memory is read: brokers free what the handshakes needed.
const SETTLE: Duration = Duration::from_secs(3);

pub struct Settings {
    pub addr: SocketAddr,
    /// The broker's process, where it is known.
    pub pid: Option<u32>,
    pub qos: QoS,
    pub warmup: Duration,
    pub measured: Duration,
    pub payload_bytes: usize,
    /// So long without any progress means that what is missing is lost.
    pub drain: Duration,
}

/// When messages are due.
#[derive(Clone, Copy)]
pub enum Pace {
    Open(Rhythm),
    /// Closed loop: so many messages under way in each stream.
    Window(u64),
}

/// Open loop: one message at a time, streams in turn, whatever the broker does.
#[derive(Clone, Copy)]
pub struct Rhythm {
    interval_ns: f64,
}

impl Rhythm {
    pub fn per_second(rate: f64) -> anyhow::Result<Self> {
        ensure!(rate.is_finite() && rate > 0.0, "--rate must be above 0");
        Ok(Self {
            interval_ns: 1e9 / rate,
        })
    }

    /// When message `number` is due after the first.
    fn offset(self, number: u64) -> Duration {
        Duration::from_nanos((number as f64 * self.interval_ns) as u64)
    }
}

pub struct Engine {
    crowd: Crowd,
    settings: Settings,
    /// Messages that came due under a rhythm so far.
    due: u64,
    report: Report,
}

impl Engine {
    pub fn connect(plan: Plan, settings: Settings) -> anyhow::Result<Self> {
        // A timer of this thread may otherwise fire 50 us late.
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1))
            .context("setting the timer slack")?;
        let mut report = Report::new(settings.qos);
        report.connections = plan.connections();
        report.resident_kib_before = resident_kib(&settings)?;
        let Settings {
            addr,
            qos,
            payload_bytes,
            ..
        } = settings;
        let crowd = Crowd::connect(plan, addr, qos, payload_bytes)?;
        report.setup_s = crowd.now().as_secs_f64();
        report.resident_kib_connected = resident_kib(&settings)?;
        Ok(Self {
            crowd,
            settings,
            due: 0,
            report,
        })
    }

    /// Warms up, sends at the pace for the measured time, then waits for what is still under way.
    pub fn run_load(mut self, pace: Pace) -> anyhow::Result<Report> {
        let begin = self.crowd.now();
        let measure = begin + self.settings.warmup;
        self.send_until(pace, begin, measure)?;
        let from = self.snapshot()?;
        self.crowd.tally.measure_from(nanos(measure));
        self.send_until(pace, begin, measure + self.settings.measured)?;
        let to = self.snapshot()?;
        self.finish(from, to)
    }

    /// Reads memory while all are silent; then every connection must still get a message.
    pub fn run_idle(mut self, rhythm: Rhythm) -> anyhow::Result<Report> {
        let settled = self.crowd.now() + SETTLE;
        while self.crowd.now() < settled {
            self.crowd.turn(settled)?;
        }
        self.report.resident_kib_connected = resident_kib(&self.settings)?;
        let from = self.snapshot()?;
        self.crowd.tally.measure_from(nanos(from.at));
        let end = from.at + rhythm.offset(u64::from(self.crowd.plan.streams()));
        self.send_until(Pace::Open(rhythm), from.at, end)?;
        let to = self.snapshot()?;
        self.finish(from, to)
    }

    /// Sends all that is due before `end`, also when this program comes late.
    fn send_until(&mut self, pace: Pace, begin: Duration, end: Duration) -> anyhow::Result<()> {
        loop {
            let now = self.crowd.now();
            let next = match pace {
                Pace::Open(rhythm) => self.send_due(rhythm, begin, now.min(end))?,
                Pace::Window(window) => {
                    self.refill(window, now)?;
                    end
                }
            };
            if now >= end {
                return Ok(());
            }
            self.crowd.turn(next.min(end))?;
        }
    }

    /// Sends all that is due before or at `now`; says when the next one is.
    fn send_due(
        &mut self,
        rhythm: Rhythm,
        begin: Duration,
        now: Duration,
    ) -> anyhow::Result<Duration> {
        loop {
            let due = begin + rhythm.offset(self.due);
            if due >= now {
                return Ok(due);
            }
            let stream = self.due % u64::from(self.crowd.plan.streams());
            self.crowd.send(stream as u32, due)?;
            self.due += 1;
        }
    }

    fn refill(&mut self, window: u64, now: Duration) -> anyhow::Result<()> {
        for stream in 0..self.crowd.plan.streams() {
            while self.crowd.tally.under_way(stream) < window {
                self.crowd.send(stream, now)?;
            }
        }
        Ok(())
    }

    /// Waits until all arrived and was acknowledged, or nothing moved for the drain time; sums up.
    fn finish(mut self, from: Snapshot, to: Snapshot) -> anyhow::Result<Report> {
        let mut before = None;
        let mut moved_at = self.crowd.now();
        loop {
            let (delivered, open) = (self.crowd.tally.delivered(), self.crowd.unacknowledged());
            if delivered == self.crowd.tally.expected() && open == 0 {
                break;
            }
            let now = self.crowd.now();
            if before != Some((delivered, open)) {
                (before, moved_at) = (Some((delivered, open)), now);
            }
            if now >= moved_at + self.settings.drain {
                break;
            }
            self.crowd.turn(moved_at + self.settings.drain)?;
        }
        let mut report = self.report;
        report.window(from, to);
        report.resident_kib_after = resident_kib(&self.settings)?;
        report.lost = self.crowd.missing();
        report.unacknowledged = self.crowd.unacknowledged();
        self.crowd.tally.write(&mut report);
        Ok(report)
    }

    fn snapshot(&self) -> anyhow::Result<Snapshot> {
        Ok(Snapshot {
            at: self.crowd.now(),
            cpu: self.settings.pid.map(process::cpu_time).transpose()?,
            delivered: self.crowd.tally.delivered(),
        })
    }
}

fn resident_kib(settings: &Settings) -> anyhow::Result<Option<u64>> {
    settings.pid.map(process::resident_kib).transpose()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_rhythm_does_not_drift() {
        let rhythm = Rhythm::per_second(30_000.0).unwrap();
        assert_eq!(rhythm.offset(300_000), Duration::from_secs(10));
    }

    #[test]
    fn a_rate_that_is_no_rate_is_refused() {
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(Rhythm::per_second(rate).is_err());
        }
    }
}
