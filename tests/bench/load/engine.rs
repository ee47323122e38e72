//! When to send, when to measure, when to stop: the course of a run. Sockets are the crowd's.

use std::num::NonZeroU64;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::crowd::{Crowd, Listeners, nanos};
use crate::link::Transport;
use crate::plan::Plan;
use crate::process;
use crate::report::{Report, Snapshot};
use crate::wire::QoS;

/// Silence before memory is read: brokers free what the handshakes needed.
const SETTLE: Duration = Duration::from_secs(3);

pub struct Settings {
    pub listeners: Listeners,
    pub transport: Transport,
    /// The broker's processes, where they are known: several where it is a cluster.
    pub pids: Vec<u32>,
    pub qos: QoS,
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
    pub fn offset(self, number: u64) -> Duration {
        Duration::from_nanos((number as f64 * self.interval_ns) as u64)
    }
}

/// Whether a slice of a run counts for CPU time and latency. Losses count in both.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    WarmUp,
    Counted,
}

/// One broker under one load.
pub struct Engine {
    crowd: Crowd,
    settings: Settings,
    /// Messages sent under a rhythm: the next one's stream follows from it.
    turns: u64,
    /// Copies and acknowledgements that were waited for in vain.
    given_up: (u64, u64),
    report: Report,
}

impl Engine {
    pub fn connect(plan: Plan, settings: Settings) -> anyhow::Result<Self> {
        // A timer of this thread may otherwise fire 50 us late.
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1))
            .context("setting the timer slack")?;
        let mut report = Report::new(settings.qos);
        report.connections = plan.connections();
        report.resident_kib_before = settings.resident_kib()?;
        let (qos, bytes) = (settings.qos, settings.payload_bytes);
        let target = (&settings.listeners, &settings.transport);
        let crowd = Crowd::connect(plan, target, qos, bytes)?;
        report.setup_s = crowd.now().as_secs_f64();
        report.resident_kib_connected = settings.resident_kib()?;
        Ok(Self {
            crowd,
            settings,
            turns: 0,
            given_up: (0, 0),
            report,
        })
    }

    /// Reads memory while all are silent; then every connection must still get a message.
    pub fn run_idle(mut self, rhythm: Rhythm) -> anyhow::Result<Report> {
        let settled = self.crowd.now() + SETTLE;
        while self.crowd.now() < settled {
            self.crowd.turn(settled)?;
        }
        self.report.resident_kib_connected = self.settings.resident_kib()?;
        let once_each = rhythm.offset(u64::from(self.crowd.plan.streams()));
        self.slice(Pace::Open(rhythm), once_each, Phase::Counted)?;
        self.finish()
    }

    /// Sends for a while, then waits until everything came, so that the broker's CPU time of this slice is all of
    /// what its messages cost and nothing else.
    fn slice(&mut self, pace: Pace, length: Duration, phase: Phase) -> anyhow::Result<()> {
        let begin = self.crowd.now();
        let before = self.snapshot()?;
        self.crowd.tally.measure_from(match phase {
            Phase::WarmUp => u64::MAX,
            Phase::Counted => nanos(begin),
        });
        self.send_until(pace, begin, begin + length)?;
        self.settle()?;
        if phase == Phase::Counted {
            self.report.add(before, self.snapshot()?);
        }
        Ok(())
    }

    /// Sends all that is due before `end`, also when this program comes late.
    fn send_until(&mut self, pace: Pace, begin: Duration, end: Duration) -> anyhow::Result<()> {
        let mut number = 0;
        loop {
            let now = self.crowd.now();
            let next = match pace {
                Pace::Open(rhythm) => loop {
                    let due = begin + rhythm.offset(number);
                    if due >= now.min(end) {
                        break due;
                    }
                    let stream = self.turns % u64::from(self.crowd.plan.streams());
                    self.crowd.send(stream as u32, due)?;
                    self.turns += 1;
                    number += 1;
                },
                Pace::Window(window) => self.refill(window, now).map(|()| end)?,
            };
            if now >= end {
                return Ok(());
            }
            self.crowd.turn(next.min(end))?;
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

    /// Waits until all arrived and was acknowledged, or nothing moved for the drain time.
    fn settle(&mut self) -> anyhow::Result<()> {
        let mut last = self.open();
        let mut moved_at = self.crowd.now();
        loop {
            let open = self.open();
            if open.0 <= self.given_up.0 && open.1 <= self.given_up.1 {
                return Ok(());
            }
            let now = self.crowd.now();
            if open != last {
                (last, moved_at) = (open, now);
            }
            if now >= moved_at + self.settings.drain {
                self.given_up = open;
                return Ok(());
            }
            self.crowd.turn(moved_at + self.settings.drain)?;
        }
    }

    /// Copies and acknowledgements under way.
    fn open(&self) -> (u64, u64) {
        let tally = &self.crowd.tally;
        let copies = tally.expected() - tally.delivered();
        (copies, self.crowd.unacknowledged())
    }

    fn finish(self) -> anyhow::Result<Report> {
        let mut report = self.report;
        report.resident_kib_after = self.settings.resident_kib()?;
        report.lost = self.crowd.missing();
        report.unacknowledged = self.crowd.unacknowledged();
        self.crowd.tally.write(&mut report);
        Ok(report)
    }

    fn snapshot(&self) -> anyhow::Result<Snapshot> {
        Ok(Snapshot {
            at: self.crowd.now(),
            cpu: process::cpu_time_of(&self.settings.pids)?,
            delivered: self.crowd.tally.delivered(),
        })
    }
}

impl Settings {
    fn resident_kib(&self) -> anyhow::Result<Option<u64>> {
        process::resident_kib_of(&self.pids)
    }
}

/// How long a load lasts, for each broker.
#[derive(Clone, Copy)]
pub struct Course {
    pub warmup: Duration,
    pub measured: Duration,
    /// Brokers take turns in slices of this length: a shared machine changes its mood within seconds, and what both
    /// meet in the same second falls out of their ratio.
    pub slice: Duration,
}

/// Loads all brokers in turn: first A B, then B A, and so on.
pub fn alternate(
    mut engines: Vec<Engine>,
    pace: Pace,
    course: Course,
) -> anyhow::Result<Vec<Report>> {
    let mut reverse = false;
    for (phase, total) in [
        (Phase::WarmUp, course.warmup),
        (Phase::Counted, course.measured),
    ] {
        let mut left = total;
        while !left.is_zero() {
            let length = left.min(course.slice);
            left -= length;
            for engine in &mut engines {
                engine.slice(pace, length, phase)?;
            }
            engines.reverse();
            reverse = !reverse;
        }
    }
    if reverse {
        engines.reverse();
    }
    engines.into_iter().map(Engine::finish).collect()
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
