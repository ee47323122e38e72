//! What this node takes: how many clients at once and in a second, which of them come too often, how fast each may publish,
//! and how much memory may be in use. Limits can be changed while the node runs.

mod flapping;
mod pace;

pub use pace::Pace;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use flotte_mqtt::ClientId;
use flotte_mqtt::reason::ReasonCode;
use metrics::gauge;
use parking_lot::{Mutex, RwLock};
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use crate::config::limits::Config;
use crate::metrics::resident_bytes;
use flapping::Flapping;

/// Clients that are being refused in words at once; any more are closed without.
const TURNED_AWAY_MAX: usize = 256;
/// How often the memory is looked at.
const MEMORY_LOOK: Duration = Duration::from_secs(1);

/// Why a client is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There are as many connections as there may be.
    TooMany,
    /// Too many came in this second.
    Rate,
    /// There is not enough memory.
    Memory,
    /// This client connects again and again.
    Flapping,
}

impl Refusal {
    /// The label of the metric.
    pub fn label(self) -> &'static str {
        match self {
            Refusal::TooMany => "too_many",
            Refusal::Rate => "rate",
            Refusal::Memory => "memory",
            Refusal::Flapping => "flapping",
        }
    }

    /// What the client is told.
    pub fn reason(self) -> ReasonCode {
        match self {
            Refusal::TooMany => ReasonCode::QuotaExceeded,
            Refusal::Rate => ReasonCode::ConnectionRateExceeded,
            Refusal::Memory => ReasonCode::ServerBusy,
            Refusal::Flapping => ReasonCode::Banned,
        }
    }
}

/// A client that is refused, and may hear why: it holds one of few places until it has.
#[derive(Debug)]
pub struct TurnedAway {
    /// Why.
    pub refusal: Refusal,
    admission: Arc<Admission>,
}

impl Drop for TurnedAway {
    fn drop(&mut self) {
        self.admission.turned_away.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The limits of this node, and how far they are used.
#[derive(Debug)]
pub struct Admission {
    config: RwLock<Config>,
    began: Instant,
    connects: Mutex<Pace>,
    flapping: Mutex<Flapping>,
    turned_away: AtomicUsize,
    /// Publishes are paced: there are rates, or there is not enough memory.
    paces: AtomicBool,
    /// More memory is in use than there should be.
    short_of_memory: AtomicBool,
}

impl Admission {
    /// Nothing is used yet.
    pub fn new(config: &Config) -> Arc<Admission> {
        let admission = Admission {
            config: RwLock::new(config.clone()),
            began: Instant::now(),
            connects: Mutex::default(),
            flapping: Mutex::default(),
            turned_away: AtomicUsize::new(0),
            paces: AtomicBool::new(false),
            short_of_memory: AtomicBool::new(false),
        };
        admission.set(config);
        Arc::new(admission)
    }

    /// Puts other limits in force.
    pub fn set(&self, config: &Config) {
        *self.config.write() = config.clone();
        self.decide_paces();
    }

    /// Judges a new connection, the number of those that there are being known.
    pub fn judge(&self, connections: usize) -> Option<Refusal> {
        let config = self.config.read();
        let max = config.max_connections.map(|max| max as usize);
        if max.is_some_and(|max| connections >= max) {
            return Some(Refusal::TooMany);
        }
        if self.is_short_of_memory() {
            return Some(Refusal::Memory);
        }
        let rate = config.connect_rate?;
        let within = self.connects.lock().take(self.now_us(), 1, rate.into());
        (!within).then_some(Refusal::Rate)
    }

    /// Takes one of the places of clients that hear why they are refused. None = all are taken.
    pub fn turn_away(self: &Arc<Self>, refusal: Refusal) -> Option<TurnedAway> {
        let taken = self.turned_away.fetch_add(1, Ordering::AcqRel);
        let turned_away = TurnedAway {
            refusal,
            admission: Arc::clone(self),
        };
        (taken < TURNED_AWAY_MAX).then_some(turned_away)
    }

    /// A client proved who it is. Whether it comes too often.
    pub fn flaps(&self, client: &ClientId) -> bool {
        let config = self.config.read();
        let Some(max) = config.flapping_max_connects else {
            return false;
        };
        let limits = flapping::Limits {
            connects_max: max,
            window_us: u64::from(config.flapping_window_s) * 1_000_000,
            ban_us: u64::from(config.flapping_ban_s) * 1_000_000,
        };
        self.flapping.lock().connects(client, limits, self.now_us())
    }

    /// Whether publishes have to be paced at all.
    pub fn paces(&self) -> bool {
        self.paces.load(Ordering::Relaxed)
    }

    /// Messages and bytes that a client may publish in a second; 0 = no limit.
    pub fn publish_rates(&self) -> (u64, u64) {
        let config = self.config.read();
        let messages = config.publish_rate.map_or(0, u64::from);
        let bytes = config.publish_bytes_rate.map_or(0, |size| size.value());
        (messages, bytes)
    }

    /// Whether more memory is in use than there should be.
    pub fn is_short_of_memory(&self) -> bool {
        self.short_of_memory.load(Ordering::Relaxed)
    }

    /// Looks at the memory, for ever.
    pub async fn watch_memory(self: Arc<Self>) {
        let mut tick = tokio::time::interval(MEMORY_LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let mark = self.config.read().memory_high_water;
            let used = mark.and_then(|_| resident_bytes());
            self.note_memory(used, mark.map(|mark| mark.value()));
        }
    }

    fn note_memory(&self, used: Option<u64>, mark: Option<u64>) {
        let short = used.zip(mark).is_some_and(|(used, mark)| used >= mark);
        gauge!("flotte_memory_above_high_water").set(f64::from(u8::from(short)));
        if self.short_of_memory.swap(short, Ordering::Relaxed) == short {
            return;
        }
        self.decide_paces();
        if short {
            warn!(
                used,
                mark, "memory is short: no new clients, and publishers are held back"
            );
        } else {
            info!(used, "memory is not short any more");
        }
    }

    fn decide_paces(&self) {
        let rates = self.publish_rates() != (0, 0);
        self.paces
            .store(rates || self.is_short_of_memory(), Ordering::Relaxed);
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn admission(config: Config) -> Arc<Admission> {
        Admission::new(&config)
    }

    #[test]
    fn connections_are_limited_by_number_and_by_rate() {
        let limits = Config {
            max_connections: Some(10),
            connect_rate: Some(3),
            ..Config::default()
        };
        let admission = admission(limits);
        assert_eq!(admission.judge(10), Some(Refusal::TooMany));
        for _ in 0..3 {
            assert_eq!(admission.judge(9), None);
        }
        assert_eq!(admission.judge(9), Some(Refusal::Rate));
        admission.set(&Config::default());
        assert_eq!(admission.judge(1_000_000), None);
    }

    #[test]
    fn few_hear_at_once_why_they_are_refused() {
        let admission = admission(Config::default());
        let mut all: Vec<_> = (0..TURNED_AWAY_MAX)
            .map(|_| admission.turn_away(Refusal::Rate).unwrap())
            .collect();
        assert!(admission.turn_away(Refusal::Rate).is_none());
        all.pop();
        assert!(admission.turn_away(Refusal::Rate).is_some());
    }

    #[test]
    fn want_of_memory_holds_back_until_it_is_over() {
        let admission = admission(Config::default());
        assert!(!admission.paces());
        admission.note_memory(Some(11), Some(10));
        assert!(admission.paces());
        assert_eq!(admission.judge(0), Some(Refusal::Memory));
        admission.note_memory(Some(9), Some(10));
        assert!(!admission.paces() && admission.judge(0).is_none());
        admission.note_memory(Some(11), None);
        assert!(!admission.is_short_of_memory());
    }

    #[test]
    fn rates_pace_publishes_until_they_are_taken_back() {
        let limits = Config {
            publish_rate: Some(7),
            ..Config::default()
        };
        let admission = admission(limits);
        assert!(admission.paces());
        assert_eq!(admission.publish_rates(), (7, 0));
        admission.set(&Config::default());
        assert!(!admission.paces());
    }
}
