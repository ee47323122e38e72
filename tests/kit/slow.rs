//! A link like that of a device far away: every byte takes its time, and now and then one is lost, which TCP shows as a
//! stall of all behind it. It forwards to one address and never changes what is sent.

use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// What is under way in one direction at most, in pieces.
const PIECES_MAX: usize = 128;
/// Bytes of a piece: about what one window of segments holds.
const PIECE_BYTES_MAX: usize = 16 << 10;

/// How bad a link is.
#[derive(Clone, Debug)]
pub struct Quality {
    /// How long a byte takes, one way.
    pub delay: Duration,
    /// How many of a hundred pieces are held up.
    pub stalls_per_cent: u32,
    /// For how many milliseconds.
    pub stall_ms: RangeInclusive<u64>,
}

impl Quality {
    /// A round trip of 600 ms with 2 % loss.
    pub fn poor() -> Self {
        Self {
            delay: Duration::from_millis(300),
            stalls_per_cent: 2,
            stall_ms: 200..=1_000,
        }
    }
}

/// A proxy that is such a link; it ends when it is dropped, and all its connections with it.
pub struct SlowLink {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl SlowLink {
    /// A link to `to`. The same seed draws the same stalls.
    pub async fn start(to: SocketAddr, quality: Quality, seed: u64) -> Self {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await;
        let listener = listener.expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        let accepting = tokio::spawn(accept(listener, to, quality, StdRng::seed_from_u64(seed)));
        Self { address, accepting }
    }

    /// Where to connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, to: SocketAddr, quality: Quality, mut random: StdRng) {
    // Aborts its tasks when it goes with this future.
    let mut connections = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        let Ok(far) = TcpStream::connect(to).await else {
            continue;
        };
        for stream in [&near, &far] {
            stream.set_nodelay(true).expect("a TCP socket");
        }
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        for (from, to) in [(near_in, far_out), (far_in, near_out)] {
            let direction = Direction {
                quality: quality.clone(),
                random: StdRng::seed_from_u64(random.random()),
                due: Instant::now(),
            };
            connections.spawn(direction.run(from, to));
        }
    }
}

/// One direction of one connection.
struct Direction {
    quality: Quality,
    random: StdRng,
    /// When the last piece arrives: none behind it comes earlier.
    due: Instant,
}

impl Direction {
    async fn run(mut self, from: OwnedReadHalf, to: OwnedWriteHalf) {
        let (pieces, arriving) = mpsc::channel(PIECES_MAX);
        // Together, so that both end when the link does.
        let (_, _) = tokio::join!(self.read(from, pieces), write(arriving, to));
    }

    async fn read(&mut self, mut from: OwnedReadHalf, pieces: mpsc::Sender<(Instant, Vec<u8>)>) {
        loop {
            let mut piece = Vec::with_capacity(PIECE_BYTES_MAX);
            let read = from.read_buf(&mut piece).await;
            // The end takes as long as everything else.
            let is_end = !matches!(read, Ok(bytes) if bytes > 0);
            let due = self.arrival();
            if pieces.send((due, piece)).await.is_err() || is_end {
                return;
            }
        }
    }

    fn arrival(&mut self) -> Instant {
        let mut at = Instant::now() + self.quality.delay;
        if self.random.random_range(0..100) < self.quality.stalls_per_cent {
            let stall = self.random.random_range(self.quality.stall_ms.clone());
            at = at.max(self.due) + Duration::from_millis(stall);
        }
        self.due = self.due.max(at);
        self.due
    }
}

/// Writes each piece when it is due; at the end the other side reads an end, too.
async fn write(
    mut arriving: mpsc::Receiver<(Instant, Vec<u8>)>,
    mut to: OwnedWriteHalf,
) -> io::Result<()> {
    while let Some((due, piece)) = arriving.recv().await {
        tokio::time::sleep_until(due).await;
        to.write_all(&piece).await?;
    }
    to.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::block_on;

    /// An address that sends back whatever comes.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        address
    }

    #[test]
    fn bytes_come_late_and_in_order_and_so_does_the_end() {
        block_on(async {
            let quality = Quality {
                delay: Duration::from_millis(40),
                stalls_per_cent: 50,
                stall_ms: 10..=30,
            };
            let link = SlowLink::start(echo().await, quality, 7).await;
            let mut stream = TcpStream::connect(link.address())
                .await
                .expect("it accepts");
            let sent: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
            let begin = Instant::now();
            stream.write_all(&sent).await.expect("it takes all");
            stream.shutdown().await.expect("it is open");
            let mut first = [0];
            stream.read_exact(&mut first).await.expect("an echo");
            assert!(begin.elapsed() >= Duration::from_millis(80));
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.expect("an end");
            assert_eq!([&first[..], &rest].concat(), sent);
        });
    }
}
