//! Sends the cases, many connections at once, each case on a connection of its own with a PINGREQ
//! behind it, and compares what comes back with the row of the table.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use flotte_tests::received::split_packet;
use flotte_tests::run::patience;
use flotte_tests::wire::hexdump;
use flotte_tests::{Client, Received, Version, connect, fresh, publish};
use futures::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::model::{Case, Phase};
use super::table::Allow;
use super::templates::{connect_with, flag};

/// Connections at once.
const LANES: usize = 48;
/// How often a client asks to be let in.
const ATTEMPTS_MAX: usize = 8;
/// Failures that are printed.
const SHOWN_MAX: usize = 40;

const CONNACK: u8 = 2;
const PINGRESP: u8 = 13;
const DISCONNECT: u8 = 14;

/// How a connection stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// The other end closed in order.
    Closed,
    /// The other end threw away what it had not read, or what we had not.
    Reset,
}

/// What came back for a case.
#[derive(Debug, Default)]
struct Observed {
    /// CONNACK with code 0, where the case is a CONNECT.
    accepted: bool,
    /// PINGRESP: it goes on.
    alive: bool,
    /// All other packets.
    packets: Vec<Received>,
    state: State,
}

/// Runs them all; panics with those that fail.
pub async fn run(address: SocketAddr, cases: Vec<Case>) {
    let mut bystanders = Bystanders::at(address).await;
    let count = cases.len();
    let cases = Arc::new(cases);
    let next = Arc::new(AtomicUsize::new(0));
    let lanes = (0..LANES).map(|_| tokio::spawn(lane(address, cases.clone(), next.clone())));
    let failures: Vec<String> = join_all(lanes)
        .await
        .into_iter()
        .flat_map(|lane| lane.expect("a lane does not panic"))
        .collect();
    bystanders.check().await;
    for failure in failures.iter().take(SHOWN_MAX) {
        eprintln!("{failure}");
    }
    assert!(
        failures.is_empty(),
        "{} of {count} cases were answered otherwise than the standard says",
        failures.len()
    );
}

async fn lane(address: SocketAddr, cases: Arc<Vec<Case>>, next: Arc<AtomicUsize>) -> Vec<String> {
    let mut failures = Vec::new();
    while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
        // A packet that the kit cannot read panics: that is a failure of this case.
        let observing = tokio::spawn(observe(address, case.clone()));
        let outcome = match observing.await {
            Ok(Ok(observed)) => judge(case, &observed),
            Ok(Err(e)) => Err(format!("{e}")),
            Err(panic) => Err(format!("{panic}")),
        };
        if let Err(got) = outcome {
            failures.push(report(case, &got));
        }
    }
    failures
}

fn report(case: &Case, got: &str) -> String {
    let bytes = hexdump(&case.bytes);
    let (row, source) = (case.row.name, case.row.source);
    let allowed = case.row.allowed(case.version);
    let name = &case.name;
    format!("{name}\n{bytes}  expected {allowed:02x?} ({row}: {source})\n  got {got}\n")
}

/// A connection on which the case can be sent. A machine with much other work can keep a node from letting clients in for a
/// while: that says nothing of the case, so it is tried again.
async fn open(address: SocketAddr, case: &Case) -> io::Result<(TcpStream, Line)> {
    let mut refused = None;
    for _ in 0..ATTEMPTS_MAX {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut line = Line {
            version: case.version,
            buffer: Vec::new(),
            observed: Observed::default(),
        };
        if case.phase == Phase::First {
            return Ok((stream, line));
        }
        let hello = connect_with(case.version, flag::CLEAN);
        let hello = hello.case("", &super::table::VALID).bytes;
        stream.write_all(&hello).await?;
        line.read_until(&mut stream, |observed| observed.accepted)
            .await?;
        if line.observed.accepted {
            return Ok((stream, line));
        }
        // To be seen where it happens often.
        eprintln!("not let in: {:?}", line.observed);
        refused = Some(line.observed);
    }
    Err(io::Error::other(format!("not let in: {refused:?}")))
}

/// Sends the case and reads until it is settled.
async fn observe(address: SocketAddr, case: Case) -> io::Result<Observed> {
    let (mut stream, mut line) = open(address, &case).await?;
    // In one write: what is left unread at the end would turn it into a reset.
    let sent = stream
        .write_all(&[&case.bytes[..], &[0xc0, 0]].concat())
        .await;
    if let Err(e) = sent {
        // It may have hung up in the middle of a large packet.
        if !is_reset(&e) {
            return Err(e);
        }
    }
    line.read_until(&mut stream, |observed| judge(&case, observed).is_ok())
        .await?;
    Ok(line.observed)
}

fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

struct Line {
    version: Version,
    buffer: Vec<u8>,
    observed: Observed,
}

impl Line {
    /// Reads until `done`, the end, or the patience is over.
    async fn read_until(
        &mut self,
        stream: &mut TcpStream,
        done: impl Fn(&Observed) -> bool,
    ) -> io::Result<()> {
        let deadline = tokio::time::Instant::now() + patience();
        while !done(&self.observed) && self.observed.state == State::Open {
            let read = stream.read_buf(&mut self.buffer);
            match tokio::time::timeout_at(deadline, read).await {
                Ok(Ok(0)) => self.observed.state = State::Closed,
                Ok(Ok(_)) => {}
                Ok(Err(e)) if is_reset(&e) => self.observed.state = State::Reset,
                Ok(Err(e)) => return Err(e),
                Err(_) => return Ok(()),
            }
            while let Some(packet) = split_packet(&mut self.buffer, self.version) {
                self.take(packet);
            }
        }
        Ok(())
    }

    fn take(&mut self, packet: Received) {
        match packet.kind() {
            CONNACK if packet.reason() == 0 && !self.observed.accepted => {
                self.observed.accepted = true;
            }
            PINGRESP => self.observed.alive = true,
            _ => self.observed.packets.push(packet),
        }
    }
}

/// Whether what came is allowed; what it was, if not.
fn judge(case: &Case, observed: &Observed) -> Result<(), String> {
    let allowed = case.row.allowed(case.version);
    assert!(!allowed.is_empty(), "{} has no row", case.name);
    if allowed
        .iter()
        .any(|allow| fits(case.phase, observed, *allow))
    {
        return Ok(());
    }
    let Observed {
        accepted,
        alive,
        packets,
        state,
    } = observed;
    Err(format!(
        "accepted {accepted}, answered PINGREQ {alive}, {state:?}, {packets:?}"
    ))
}

fn fits(phase: Phase, observed: &Observed, allow: Allow) -> bool {
    let packets = &observed.packets[..];
    let last_words = match (phase, observed.accepted) {
        (Phase::First, false) => CONNACK,
        _ => DISCONNECT,
    };
    match allow {
        Allow::On => {
            let refused = packets.iter().any(|packet| packet.kind() == last_words);
            observed.accepted && observed.alive && !refused && observed.state == State::Open
        }
        Allow::Answer(kind, code) => {
            let is_it = |packet: &Received| packet.kind() == kind && code_of(packet) == code;
            observed.alive
                && observed.state == State::Open
                && matches!(packets, [packet] if is_it(packet))
        }
        // The end must be an orderly one: the client is to read what came before it.
        Allow::Silent => {
            is_over(observed)
                && packets.is_empty()
                && (phase == Phase::Connected) == observed.accepted
        }
        Allow::Code(code) => {
            let says = |packet: &Received| packet.kind() == last_words && code_of(packet) == code;
            is_over(observed) && matches!(packets, [packet] if says(packet))
        }
    }
}

fn is_over(observed: &Observed) -> bool {
    observed.state == State::Closed && !observed.alive
}

fn code_of(packet: &Received) -> u8 {
    match packet.kind() {
        9 | 11 => packet.codes()[0],
        _ => packet.reason(),
    }
}

/// Clients that have nothing to do with it, and go on.
struct Bystanders {
    publisher: Client,
    subscriber: Client,
    topic: String,
}

impl Bystanders {
    async fn at(address: SocketAddr) -> Self {
        let topic = fresh("bystander");
        let mut subscriber = Client::connect(address, Version::V311, connect(fresh("b"))).await;
        subscriber.subscribe(&topic, 1).await;
        Self {
            publisher: Client::connect(address, Version::V5, connect(fresh("b"))).await,
            subscriber,
            topic,
        }
    }

    async fn check(&mut self) {
        self.publisher.patience = Duration::from_secs(10);
        self.publisher
            .publish(publish(&self.topic).qos1(1).payload("fine"))
            .await;
        self.subscriber.take("fine").await;
    }
}
