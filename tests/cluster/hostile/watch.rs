//! What an attack does to everyone else: a pair of clients that exchange messages all the while, and the memory of the node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flotte_tests::{Broker, until};
use tokio::task::JoinHandle;

use super::Bystanders;

/// The most that the node may work while one message of others is under way, on one core: a debug build in which a client
/// holds up everyone takes longer. Not the time that passes: this machine may have other work.
pub const STALL_MAX: Duration = Duration::from_secs(3);
/// When bystanders give up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Clock ticks of /proc in a second.
const TICKS: u64 = 100;
/// A pause between two messages.
const PAUSE: Duration = Duration::from_millis(50);

/// The message of others that took longest.
#[derive(Debug, Default)]
struct Slowest {
    count: u64,
    took: Duration,
    /// What the node worked meanwhile.
    worked: Duration,
}

/// What the node has worked since it was started, on all cores.
fn worked(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the node runs");
    let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
    let ticks = fields.split(' ').skip(11).take(2);
    let ticks: u64 = ticks
        .map(|field| field.parse::<u64>().expect("ticks"))
        .sum();
    Duration::from_millis(ticks * 1_000 / TICKS)
}

/// An attack under way.
pub struct Watch<'a> {
    node: &'a Broker,
    before_kib: u64,
    over: Arc<AtomicBool>,
    prober: JoinHandle<Slowest>,
    worked: Duration,
}

impl<'a> Watch<'a> {
    /// Begins to measure.
    pub async fn begin(node: &'a Broker) -> Self {
        let mut bystanders = Bystanders::at(node).await;
        bystanders.check().await;
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        bystanders.publisher.patience = PATIENCE;
        bystanders.subscriber.patience = PATIENCE;
        let pid = node.pid();
        let prober = tokio::spawn(async move {
            let mut slowest = Slowest::default();
            while !seen.load(Ordering::Acquire) {
                let (begin, before) = (Instant::now(), worked(pid));
                bystanders.check().await;
                slowest.took = slowest.took.max(begin.elapsed());
                slowest.worked = slowest.worked.max(worked(pid).saturating_sub(before));
                slowest.count += 1;
                tokio::time::sleep(PAUSE).await;
            }
            slowest
        });
        Self {
            node,
            before_kib: node.resident_kib(),
            worked: worked(pid),
            over,
            prober,
        }
    }

    /// What the node has grown by.
    pub fn grown_kib(&self) -> u64 {
        self.node.resident_kib().saturating_sub(self.before_kib)
    }

    /// The node has not grown by more than this.
    pub fn check_memory(&self, what: &str, kib_max: u64) {
        let grown = self.grown_kib();
        eprintln!("{what}: {grown} KiB");
        assert!(
            grown <= kib_max,
            "{what}: {grown} KiB, {kib_max} are allowed"
        );
    }

    /// The node has given back all but this.
    pub async fn wait_released(&self, what: &str, kib_max: u64) {
        let limit = Duration::from_secs(60);
        until(limit, what, || async {
            (self.grown_kib() <= kib_max).then_some(())
        })
        .await;
        eprintln!("{what}: {} KiB left", self.grown_kib());
    }

    /// The attack is over: nobody else had to wait for long.
    pub async fn end(self) {
        self.over.store(true, Ordering::Release);
        let worked = worked(self.node.pid()).saturating_sub(self.worked);
        let slowest = self.prober.await.expect("the bystanders were served");
        eprintln!("the node worked {worked:?}; messages of others: {slowest:?}");
        assert!(
            slowest.count > 0 && slowest.worked < STALL_MAX,
            "others waited: {slowest:?}"
        );
    }
}
