//! Connections one after the other, each up to its CONNACK: how many a second, and what one costs the broker.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use serde::Serialize;

use crate::client::Client;
use crate::link::Transport;
use crate::process;
use crate::wire::{self, Packet};

/// More answers nothing that a client of this load asks.
const READ_BYTES: usize = 256 << 10;
/// A broker that is silent for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(10);

pub struct Course {
    pub addr: SocketAddr,
    /// The broker's process, where it is known.
    pub pid: Option<u32>,
    pub length: Duration,
    /// Handshakes that are not counted: the first has no ticket to resume with.
    pub warmup: Duration,
}

#[derive(Serialize, Debug)]
pub struct Rate {
    pub connects: u64,
    /// How many of them resumed a TLS session.
    pub resumed: u64,
    pub connects_per_s: f64,
    /// CPU time of the broker, the end of the connection included.
    pub cpu_ms_per_connect: Option<f64>,
}

#[derive(Clone, Copy, Default)]
struct Count {
    connects: u64,
    resumed: u64,
}

impl Course {
    /// One lane for each transport; a lane has one connection at a time, and tickets of its own.
    pub fn run(&self, lanes: &[Transport]) -> anyhow::Result<Rate> {
        self.phase(lanes, 0, self.warmup)?;
        let before = process::cpu_time_of(self.pid.as_slice())?;
        let begin = Instant::now();
        let count = self.phase(lanes, 1, self.length)?;
        let seconds = begin.elapsed().as_secs_f64();
        let after = process::cpu_time_of(self.pid.as_slice())?;
        ensure!(count.connects > 0, "nobody was connected");
        let connects = count.connects as f64;
        let cpu_ms = |(before, after): (Duration, Duration)| (after - before).as_secs_f64() * 1e3;
        Ok(Rate {
            connects: count.connects,
            resumed: count.resumed,
            connects_per_s: (connects / seconds).round(),
            cpu_ms_per_connect: before
                .zip(after)
                .map(|times| (cpu_ms(times) / connects * 1e4).round() / 1e4),
        })
    }

    fn phase(&self, lanes: &[Transport], phase: u32, length: Duration) -> anyhow::Result<Count> {
        let end = Instant::now() + length;
        thread::scope(|scope| {
            let lanes: Vec<_> = (0u32..)
                .zip(lanes)
                .map(|(lane, transport)| {
                    scope.spawn(move || self.lane(transport, (phase, lane), end))
                })
                .collect();
            let mut all = Count::default();
            for lane in lanes {
                let count = lane.join().map_err(|_| anyhow!("a lane panicked"))??;
                all.connects += count.connects;
                all.resumed += count.resumed;
            }
            Ok(all)
        })
    }

    fn lane(
        &self,
        transport: &Transport,
        (phase, lane): (u32, u32),
        end: Instant,
    ) -> anyhow::Result<Count> {
        let mut count = Count::default();
        let mut buffer = vec![0; READ_BYTES];
        while Instant::now() < end {
            let name = format!("connect-{phase}-{lane}-{}", count.connects);
            // A source address for each lane.
            let mut client = Client::connect(self.addr, lane * 10_000, transport)?;
            client.stream.set_nonblocking(false)?;
            client.stream.set_read_timeout(Some(SILENCE_MAX))?;
            wire::write_connect(&mut client.output, &name);
            client.flush()?;
            self.take_connack(&mut client, &mut buffer)
                .with_context(|| name)?;
            count.connects += 1;
            count.resumed += u64::from(client.link.is_resumed());
        }
        Ok(count)
    }

    fn take_connack(&self, client: &mut Client, buffer: &mut [u8]) -> anyhow::Result<()> {
        let mut received = Vec::new();
        loop {
            let begin = Instant::now();
            let bytes = client.read(buffer)?;
            ensure!(begin.elapsed() < SILENCE_MAX, "no CONNACK");
            received.extend_from_slice(&buffer[..bytes]);
            client.flush()?;
            if let Some((packet, _)) = wire::decode(&received)? {
                ensure!(packet == Packet::ConnAck { code: 0 }, "got {packet:?}");
                return Ok(());
            }
        }
    }
}
