//! `flotte-load`: puts one load on one broker, open loop, and says what came of it as one line of JSON.
//!
//! Every message carries the moment at which it was *due*; latency counts from there, so a stall of the broker or of
//! this program is not hidden (no coordinated omission). Every message is looked for at every subscriber. This program
//! never starts a broker and never compares two: `tests/bench/run` does.

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

use crate::engine::{Engine, Pace, Rhythm, Settings};
use crate::plan::Plan;
use crate::report::Report;
use crate::wire::QoS;

/// One load on one MQTT 3.1.1 broker; prints one line of JSON and exits 1 when a message was lost or damaged.
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
        #[arg(long, default_value_t = 50)]
        pairs: u32,
        #[command(flatten)]
        common: Common,
    },
    /// N silent connections with one subscription each; resident memory is read, then each gets one message.
    Idle {
        #[arg(long, default_value_t = 15_000)]
        connections: u32,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Args)]
struct Common {
    /// Address of the broker.
    #[arg(long)]
    addr: SocketAddr,
    /// Process whose CPU time and memory are read; without it these are null.
    #[arg(long)]
    pid: Option<u32>,
    #[arg(long, default_value = "0")]
    qos: QoS,
    /// Messages per second (deliveries for fanout).
    #[arg(long, default_value_t = 5_000.0)]
    rate: f64,
    /// Closed loop instead of a rate: messages under way for each publisher (not for idle).
    #[arg(long)]
    window: Option<u64>,
    /// Seconds of load before anything is counted for CPU time and latency.
    #[arg(long, default_value_t = 1.0)]
    warmup_s: f64,
    /// Seconds that are counted.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Bytes of payload, at least 24.
    #[arg(long, default_value_t = 64)]
    payload: usize,
    /// Seconds without any progress after which what is missing counts as lost.
    #[arg(long, default_value_t = 5.0)]
    drain_s: f64,
}

fn main() -> anyhow::Result<()> {
    let report = run(Cli::parse().shape)?;
    println!("{}", serde_json::to_string(&report)?);
    if !report.is_whole() {
        std::process::exit(1);
    }
    Ok(())
}

fn run(shape: Shape) -> anyhow::Result<Report> {
    let (plan, common) = match shape {
        Shape::Pairs { pairs, common } => (Plan::pairs(pairs)?, common),
        Shape::Fanout {
            subscribers,
            common,
        } => (Plan::fanout(subscribers)?, common),
        Shape::Filters {
            filters,
            pairs,
            common,
        } => (Plan::filters(filters, pairs)?, common),
        Shape::Idle {
            connections,
            common,
        } => {
            let rhythm = Rhythm::per_second(common.rate)?;
            return Engine::connect(Plan::idle(connections)?, common.settings()?)?.run_idle(rhythm);
        }
    };
    let pace = match common.window {
        Some(window) => Pace::Window(window.max(1)),
        None => Pace::Open(Rhythm::per_second(common.rate / f64::from(plan.copies()))?),
    };
    Engine::connect(plan, common.settings()?)?.run_load(pace)
}

impl Common {
    fn settings(&self) -> anyhow::Result<Settings> {
        ensure!(
            self.payload >= wire::PAYLOAD_BYTES_MIN,
            "--payload: at least {}",
            wire::PAYLOAD_BYTES_MIN
        );
        Ok(Settings {
            addr: self.addr,
            pid: self.pid,
            qos: self.qos,
            warmup: seconds("--warmup-s", self.warmup_s)?,
            measured: seconds("--seconds", self.seconds)?,
            payload_bytes: self.payload,
            drain: seconds("--drain-s", self.drain_s)?,
        })
    }
}

fn seconds(name: &str, value: f64) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(value).with_context(|| format!("{name}: {value} is no time"))
}
