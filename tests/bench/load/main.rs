//! `flotte-load`: puts one load on one broker, or on two in turns, and says what came of it as one line of JSON.
//!
//! Every message carries the moment at which it was *due*; latency counts from there, so a stall of the broker or of
//! this program is not hidden (no coordinated omission). Every message is looked for at every subscriber. This program
//! never starts a broker and never judges one: `tests/bench/run` does.

mod bits;
mod certificates;
mod client;
mod connects;
mod crowd;
mod engine;
mod link;
mod plan;
mod process;
mod report;
mod subscribes;
mod tally;
mod wire;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use crate::connects::Rate;
use crate::crowd::Listeners;
use crate::engine::{Course, Engine, Pace, Rhythm, Settings};
use crate::link::{Transport, Versions};
use crate::plan::Plan;
use crate::report::Report;
use crate::wire::QoS;

/// One load on one MQTT 3.1.1 broker, or on two in turns; prints a JSON array with a report for each and exits 1 when
/// a message was lost or damaged.
#[derive(Parser)]
#[command(name = "flotte-load", version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
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

/// What may be asked for.
#[derive(Subcommand)]
enum Task {
    #[command(flatten)]
    Load(Shape),
    /// Connections one after the other, each up to its CONNACK, in parallel lanes: how many a second, at what cost.
    Connect(Connecting),
    /// Filters that nobody else has, subscribed to at a rate: how long until SUBACK.
    Subscribe(Subscribing),
    /// Writes an authority and a certificate for localhost: ca.pem, server.pem, server.key.
    Certificates { dir: PathBuf },
}

#[derive(Args)]
struct Connecting {
    /// Address of the broker.
    #[arg(long)]
    addr: SocketAddr,
    /// Process whose CPU time is read; without it that is null.
    #[arg(long)]
    pid: Option<u32>,
    #[command(flatten)]
    over: Over,
    /// Resume TLS sessions.
    #[arg(long, requires = "tls")]
    resume: bool,
    /// Offer TLS 1.2 only.
    #[arg(long, requires = "tls")]
    tls12: bool,
    /// Connections at once.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    lanes: u8,
    /// Seconds before anything is counted.
    #[arg(long, default_value_t = 0.5)]
    warmup_s: f64,
    /// Seconds that are counted.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
}

#[derive(Args)]
struct Subscribing {
    /// Address of the broker, or of several nodes of a cluster.
    #[arg(long, value_delimiter = ',', required = true)]
    addr: Vec<SocketAddr>,
    /// SUBSCRIBEs a second.
    #[arg(long, default_value_t = 500.0)]
    rate: f64,
    /// Clients, each of which waits for its SUBACK before it sends the next one.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u8).range(1..=128))]
    lanes: u8,
    /// Seconds before anything is counted.
    #[arg(long, default_value_t = 1.0)]
    warmup_s: f64,
    /// Seconds that are counted.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

#[derive(Args)]
struct Over {
    /// Connect with TLS; the file holds the authority to trust. The broker has to be "localhost" in its certificate.
    #[arg(long, value_name = "CA_FILE")]
    tls: Option<PathBuf>,
    /// Connect with WebSocket, path /mqtt.
    #[arg(long)]
    ws: bool,
}

#[derive(Args)]
struct Target {
    /// Address of the broker; several, parted by commas, of the nodes of a cluster: clients are spread over them.
    #[arg(long, value_delimiter = ',', required = true)]
    addr: Vec<SocketAddr>,
    /// The same for publishers (default: --addr).
    #[arg(long, value_delimiter = ',')]
    publish_addr: Vec<SocketAddr>,
    /// Processes whose CPU time and memory are read and added up; without them these are null.
    #[arg(long, value_delimiter = ',')]
    pid: Vec<u32>,
    #[command(flatten)]
    over: Over,
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
    let shape = match Cli::parse().task {
        Task::Load(shape) => shape,
        Task::Connect(connecting) => return print(&[connecting.run()?]),
        Task::Subscribe(subscribing) => return print(&[subscribing.run()?]),
        Task::Certificates { dir } => return certificates::write(&dir),
    };
    let reports = run(shape)?;
    print(&reports)?;
    if !reports.iter().all(Report::is_whole) {
        std::process::exit(1);
    }
    Ok(())
}

fn print<T: Serialize>(reports: &[T]) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(reports)?);
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
            let engine = Engine::connect(Plan::idle(connections)?, broker.own()?)?;
            return Ok(vec![engine.run_idle(rhythm)?]);
        }
    };
    let pace = match common.window {
        Some(window) => Pace::Window(window.max(1)),
        None => Pace::Open(Rhythm::per_second(common.rate / f64::from(plan.copies()))?),
    };
    let broker = &common.broker;
    let mut engines = vec![Engine::connect(plan, broker.own()?)?];
    if let Some(addr) = common.versus {
        engines.push(Engine::connect(
            versus_plan,
            broker.settings(
                Listeners::one(addr),
                common.versus_pid.into_iter().collect(),
            )?,
        )?);
    }
    engine::alternate(engines, pace, common.course()?)
}

impl Connecting {
    fn run(&self) -> anyhow::Result<Rate> {
        let Over { tls, ws } = &self.over;
        let versions = if self.tls12 {
            Versions::Tls12
        } else {
            Versions::All
        };
        let lane = |_| Transport::new(tls.as_deref(), *ws, versions, self.resume);
        let lanes = (0..self.lanes).map(lane);
        let course = connects::Course {
            addr: self.addr,
            pid: self.pid,
            warmup: seconds("--warmup-s", self.warmup_s)?,
            length: seconds("--seconds", self.seconds)?,
        };
        course.run(&lanes.collect::<anyhow::Result<Vec<_>>>()?)
    }
}

impl Subscribing {
    fn run(&self) -> anyhow::Result<subscribes::Waits> {
        let lanes = subscribes::Lanes {
            addrs: self.addr.clone(),
            count: self.lanes,
            rhythm: Rhythm::per_second(self.rate)?,
            warmup: seconds("--warmup-s", self.warmup_s)?,
            length: seconds("--seconds", self.seconds)?,
        };
        lanes.run()
    }
}

impl Target {
    fn own(&self) -> anyhow::Result<Settings> {
        let publishers = match self.publish_addr.as_slice() {
            [] => &self.addr,
            _ => &self.publish_addr,
        };
        let listeners = Listeners {
            subscribers: self.addr.clone(),
            publishers: publishers.clone(),
        };
        self.settings(listeners, self.pid.clone())
    }

    fn settings(&self, listeners: Listeners, pids: Vec<u32>) -> anyhow::Result<Settings> {
        let least = wire::PAYLOAD_BYTES_MIN;
        ensure!(self.payload >= least, "--payload: at least {least}");
        let drain = seconds("--drain-s", self.drain_s)?;
        let Over { tls, ws } = &self.over;
        Ok(Settings {
            listeners,
            transport: Transport::new(tls.as_deref(), *ws, Versions::All, false)?,
            pids,
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
