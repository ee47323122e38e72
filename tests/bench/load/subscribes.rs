//! Filters that nobody else has, subscribed to at a rate: in a cluster each of them is committed, and each SUBACK waits until
//! every node knows of it. The wait counts from the moment at which the SUBSCRIBE was due.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use serde::Serialize;

use crate::client::Client;
use crate::engine::Rhythm;
use crate::link::{Transport, Versions};
use crate::report::Latencies;
use crate::wire::{self, Packet, QoS};

const READ_BYTES: usize = 4 << 10;
/// A broker that is silent for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Clients that subscribe in turns, each at its own node.
pub struct Lanes {
    pub addrs: Vec<SocketAddr>,
    pub count: u8,
    /// Of all of them together.
    pub rhythm: Rhythm,
    /// Subscriptions that are not counted.
    pub warmup: Duration,
    pub length: Duration,
}

#[derive(Serialize, Debug)]
pub struct Waits {
    pub subscribes: u64,
    pub subscribes_per_s: f64,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub max_us: Option<f64>,
}

impl Lanes {
    pub fn run(&self) -> anyhow::Result<Waits> {
        ensure!(!self.addrs.is_empty(), "--addr: at least one");
        let transport = Transport::new(None, false, Versions::All, false)?;
        let clients = (0..self.count).map(|lane| self.client(lane, &transport));
        let clients: Vec<Lane> = clients.collect::<anyhow::Result<_>>()?;
        let begin = Instant::now();
        let waits = thread::scope(|scope| {
            let work = |lane: Lane| scope.spawn(move || self.subscribe(lane, begin));
            let running: Vec<_> = clients.into_iter().map(work).collect();
            let join = |lane: thread::ScopedJoinHandle<'_, anyhow::Result<Vec<u64>>>| {
                lane.join().map_err(|_| anyhow!("a lane panicked"))?
            };
            let waits: Vec<Vec<u64>> = running.into_iter().map(join).collect::<Result<_, _>>()?;
            anyhow::Ok(waits.concat())
        })?;
        let mut latencies = Latencies::default();
        waits.iter().for_each(|wait_ns| latencies.record(*wait_ns));
        Ok(Waits {
            subscribes: waits.len() as u64,
            subscribes_per_s: (waits.len() as f64 / self.length.as_secs_f64()).round(),
            p50_us: latencies.quantile_us(0.5),
            p99_us: latencies.quantile_us(0.99),
            max_us: latencies.quantile_us(1.0),
        })
    }

    fn client(&self, number: u8, transport: &Transport) -> anyhow::Result<Lane> {
        let addr = self.addrs[usize::from(number) % self.addrs.len()];
        let mut client = Client::connect(addr, u32::from(number), transport)?;
        client.stream.set_nonblocking(false)?;
        client.stream.set_read_timeout(Some(SILENCE_MAX))?;
        wire::write_connect(&mut client.output, &format!("subscribe-{number}"));
        let mut lane = Lane {
            client,
            number,
            buffer: vec![0; READ_BYTES],
        };
        let answer = lane.answer()?;
        ensure!(answer == Packet::ConnAck { code: 0 }, "got {answer:?}");
        Ok(lane)
    }

    /// How long each counted SUBACK was waited for, in ns.
    fn subscribe(&self, mut lane: Lane, begin: Instant) -> anyhow::Result<Vec<u64>> {
        let mut waits = Vec::new();
        for turn in 0u64.. {
            let number = turn * u64::from(self.count) + u64::from(lane.number);
            let due = self.rhythm.offset(number);
            if due >= self.warmup + self.length {
                break;
            }
            thread::sleep((begin + due).saturating_duration_since(Instant::now()));
            let filter = format!("bench/subscribe/{number}/state").into_bytes();
            let id = (turn % u64::from(u16::MAX)) as u16 + 1;
            wire::write_subscribe(&mut lane.client.output, id, &[filter], QoS::One);
            match lane.answer()? {
                Packet::SubAck { codes } if codes.len() == 1 => {}
                other => anyhow::bail!("got {other:?}"),
            }
            if due >= self.warmup {
                let wait = (begin + due).elapsed();
                waits.push(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX));
            }
        }
        Ok(waits)
    }
}

struct Lane {
    client: Client,
    number: u8,
    buffer: Vec<u8>,
}

impl Lane {
    /// Sends what there is and takes the one packet that answers it.
    fn answer(&mut self) -> anyhow::Result<Packet> {
        self.client.flush()?;
        let begin = Instant::now();
        let mut received = Vec::new();
        loop {
            let bytes = self.client.read(&mut self.buffer)?;
            ensure!(begin.elapsed() < SILENCE_MAX, "no answer");
            received.extend_from_slice(&self.buffer[..bytes]);
            if let Some((packet, _)) = wire::decode(&received).context("an answer")? {
                return Ok(packet);
            }
        }
    }
}
