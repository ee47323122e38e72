//! `flotte-load`: puts one load on one broker, or on two in turns, and says what came of it as one line of JSON.
//!
//! Every message carries the moment at which it was *due*; latency counts from there, so a stall of the broker or of
//! this program is not hidden (no coordinated omission). Every message is looked for at every subscriber. This program
//! never starts a broker and never judges one: `tests/bench/run` does.

mod bits;
mod client;
mod crowd;
mod engine;
mod plan;
mod process;
mod report;
mod tally;
mod wire;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, Parser, Subcommand};

use crate::engine::{Course, Engine, Pace, Rhythm, Settings};
use crate::plan::Plan;
use crate::report::Report;
use crate::wire::QoS;

/// One load on one MQTT 3.1.1 broker, or on two in turns; prints a JSON array with a report for each and exits 1 when
/// a message was lost or damaged.
#[derive(Parser)]
#[command(name = "flotte-load", version)]
struct Cli {
    #[command(subcommand)]
    shape: Shape,
}

#[derive(Subcommand)]
enum Shape {
    /// N publishers, each with a subscriber of its own.
    Pairs {
        #[arg(long, default_value_t = 100)]
        pairs: u32,
        #[command(flatten)]
        common: Common,
    },
    /// One publisher, N subscribers of its one topic; the rate counts deliveries.
    Fanout {
        #[arg(long, default_value_t = 500)]
        subscribers: u32,
        #[command(flatten)]
        common: Common,
    },
    /// N distinct exact filters spread over pairs of a subscriber and a publisher; every topic is used in turn.
    Filters {
        #[arg(long, default_value_t = 200_000)]
        filters: u32,
        /// Filters at the second broker (default: as many).
        #[arg(long, requires = "versus")]
        versus_filters: Option<u32>,
        #[arg(long, default_value_t = 50)]
        pairs: u32,
        #[command(flatten)]
        common: Common,
    },
    /// N silent connections with one subscription each; resident memory is read, then each gets one message.
    Idle {
        #[arg(long, default_value_t = 15_000)]
        connections: u32,
        /// Messages per second at the end.
        #[arg(long, default_value_t = 5_000.0)]
        rate: f64,
        #[command(flatten)]
        broker: Target,
    },
}

#[derive(Args)]
struct Target {
    /// Address of the broker.
    #[arg(long)]
    addr: SocketAddr,
    /// Process whose CPU time and memory are read; without it these are null.
    #[arg(long)]
    pid: Option<u32>,
    #[arg(long, default_value = "0")]
    qos: QoS,
    /// Bytes of payload, at least 24.
    #[arg(long, default_value_t = 64)]
    payload: usize,
    /// Seconds without any progress after which what is missing counts as lost.
    #[arg(long, default_value_t = 5.0)]
    drain_s: f64,
}

#[derive(Args)]
struct Common {
    #[command(flatten)]
    broker: Target,
    /// A second broker under the same load, in turns with the first.
    #[arg(long)]
    versus: Option<SocketAddr>,
    /// Its process.
    #[arg(long, requires = "versus")]
    versus_pid: Option<u32>,
    /// Seconds of one turn where there are two brokers.
    #[arg(long, default_value_t = 0.25)]
    slice_s: f64,
    /// Messages per second (deliveries for fanout).
    #[arg(long, default_value_t = 5_000.0)]
    rate: f64,
    /// Closed loop instead of a rate: messages under way for each publisher.
    #[arg(long)]
    window: Option<u64>,
    /// Seconds of load before anything is counted for CPU time and latency.
    #[arg(long, default_value_t = 1.0)]
    warmup_s: f64,
    /// Seconds that are counted.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

fn main() -> anyhow::Result<()> {
    let reports = run(Cli::parse().shape)?;
    println!("{}", serde_json::to_string(&reports)?);
    if !reports.iter().all(Report::is_whole) {
        std::process::exit(1);
    }
    Ok(())
}

fn run(shape: Shape) -> anyhow::Result<Vec<Report>> {
    let (plan, versus_plan, common) = match shape {
        Shape::Pairs { pairs, common } => (Plan::pairs(pairs)?, Plan::pairs(pairs)?, common),
        Shape::Fanout {
            subscribers,
            common,
        } => (
            Plan::fanout(subscribers)?,
            Plan::fanout(subscribers)?,
            common,
        ),
        Shape::Filters {
            filters,
            versus_filters,
            pairs,
            common,
        } => {
            let versus = versus_filters.unwrap_or(filters);
            (
                Plan::filters(filters, pairs)?,
                Plan::filters(versus, pairs)?,
                common,
            )
        }
        Shape::Idle {
            connections,
            broker,
            rate,
        } => {
            let rhythm = Rhythm::per_second(rate)?;
            let engine = Engine::connect(
                Plan::idle(connections)?,
                broker.settings(broker.addr, broker.pid)?,
            )?;
            return Ok(vec![engine.run_idle(rhythm)?]);
        }
    };
    let pace = match common.window {
        Some(window) => Pace::Window(window.max(1)),
        None => Pace::Open(Rhythm::per_second(common.rate / f64::from(plan.copies()))?),
    };
    let broker = &common.broker;
    let mut engines = vec![Engine::connect(
        plan,
        broker.settings(broker.addr, broker.pid)?,
    )?];
    if let Some(addr) = common.versus {
        engines.push(Engine::connect(
            versus_plan,
            broker.settings(addr, common.versus_pid)?,
        )?);
    }
    engine::alternate(engines, pace, common.course()?)
}

impl Target {
    fn settings(&self, addr: SocketAddr, pid: Option<u32>) -> anyhow::Result<Settings> {
        let least = wire::PAYLOAD_BYTES_MIN;
        ensure!(self.payload >= least, "--payload: at least {least}");
        let drain = seconds("--drain-s", self.drain_s)?;
        Ok(Settings {
            addr,
            pid,
            qos: self.qos,
            payload_bytes: self.payload,
            drain,
        })
    }
}

impl Common {
    fn course(&self) -> anyhow::Result<Course> {
        let measured = seconds("--seconds", self.seconds)?;
        let slice = if self.versus.is_some() {
            seconds("--slice-s", self.slice_s)?
        } else {
            measured
        };
        ensure!(!slice.is_zero(), "--slice-s and --seconds must be above 0");
        Ok(Course {
            warmup: seconds("--warmup-s", self.warmup_s)?,
            measured,
            slice,
        })
    }
}

fn seconds(name: &str, value: f64) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(value).with_context(|| format!("{name}: {value} is no time"))
}
