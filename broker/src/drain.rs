//! A node that sends its clients away: when each is told to go, and where to. A client is told at a set rate, so that thousands
//! do not arrive at the other nodes at once, and goes once it has what waited for it, as far as the time for all of them
//! allows. No will is published for that.
//!
//! ```text
//!  served -- its turn comes --> going -- it has all --> silent -- the cluster knows --> told, closed
//! ```
//! From `silent` on nothing is read from it and nothing more sent to it: as soon as the cluster knows that its connection is over another
//! node may serve it. It is told only then: it may be there at once, and that would be a takeover, with its will.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use flotte_mqtt::ByteStr;
use flotte_mqtt::reason::ReasonCode;
use metrics::gauge;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::listener::Config as Listener;
use crate::connection::Shared;
use crate::session::{Session, Wake};

/// How often it is looked who is next, and who has what waited for him.
const LOOK: Duration = Duration::from_millis(20);
/// So many clients are told in a second at least.
const RATE_MIN: f64 = 100.0;
/// The last client is told when this part of the time is over; the rest is for what waits for it.
const TELLING: f64 = 0.7;
/// A client with messages always under way is not waited for any longer than for those that stood in its line, once it
/// had this long for a moment without any.
const QUIET: Duration = Duration::from_secs(1);
/// How long a client that has all may be in the middle of something that came since.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// How much longer than the time for all of them the cluster may take to know. Then they are told nevertheless.
const COMMIT_MAX: Duration = Duration::from_secs(2);
/// For the ends of the connections to be committed, and for the last words to be read, when the time is over.
const CLOSE_GRACE: Duration = Duration::from_secs(5);

/// Why clients are not taken any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// For now: the node drains.
    ForNow,
    /// For good: the node leaves the cluster.
    ForGood,
}

/// Whether clients are sent away, and to whom.
#[derive(Debug, Default)]
pub struct Departures {
    departure: Mutex<Option<Departure>>,
    /// Raised by every reference, so that they are spread over the other nodes.
    turn: AtomicUsize,
    /// Clients that are to be told once the cluster knows of the ends of their connections.
    silent: AtomicUsize,
    /// Those that were told before.
    too_early: AtomicUsize,
    /// It is not waited for that any longer.
    over: CancellationToken,
}

impl Departures {
    /// From now on clients are sent away. One for good stays for good.
    pub fn begin(&self, departure: Departure) {
        let mut begun = self.departure.lock();
        if *begun != Some(Departure::ForGood) {
            *begun = Some(departure);
        }
    }

    /// A client is served no more, and will be told.
    pub fn falls_silent(&self) {
        self.silent.fetch_add(1, Ordering::AcqRel);
    }

    /// Resolves when one of those may be told: the cluster knows, or there is no time to wait for that.
    pub async fn may_be_told(&self, commit: JoinHandle<()>) {
        tokio::select! {
            biased;
            _ = commit => {}
            () = self.over.cancelled() => {
                self.too_early.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// It is told.
    pub fn told(&self) {
        self.silent.fetch_sub(1, Ordering::AcqRel);
    }

    fn silent(&self) -> usize {
        self.silent.load(Ordering::Acquire)
    }

    /// What clients are told that come, or have to go; none while they are taken.
    pub fn reason(&self) -> Option<ReasonCode> {
        let departure = *self.departure.lock();
        departure.map(|departure| match departure {
            Departure::ForNow => ReasonCode::UseAnotherServer,
            Departure::ForGood => ReasonCode::ServerMoved,
        })
    }
}

/// Where a client of this listener is told to go with this reason, if it is told at all (5.0).
pub fn reference(shared: &Shared, listener: &Listener, reason: ReasonCode) -> Option<ByteStr> {
    // Of all reasons only these two speak of another server.
    if !matches!(
        reason,
        ReasonCode::UseAnotherServer | ReasonCode::ServerMoved
    ) {
        return None;
    }
    let configured = listener.server_reference.as_ref();
    let configured = configured.or(shared.config.mqtt.server_reference.as_ref());
    if let Some(configured) = configured {
        return ByteStr::try_from(configured.as_str()).ok();
    }
    let others = shared.cluster().elsewhere(
        listener.name.as_str(),
        listener.protocol.as_str(),
        &shared.rebalancing.targets(),
    );
    let turn = shared.departures.turn.fetch_add(1, Ordering::Relaxed);
    let next = others.get(turn % others.len().max(1))?;
    ByteStr::try_from(next.as_str()).ok()
}

/// Sends all clients away and waits until they are gone. Whoever is left then, or when `hurry` comes, is closed at once.
pub async fn send_away(shared: &Arc<Shared>, until: Instant, hurry: &CancellationToken) {
    let time = until.saturating_duration_since(Instant::now());
    let mut round = Round::new(time, connected(shared));
    info!(clients = round.untold.len(), ?time, "clients are sent away");
    let in_time = tokio::select! {
        () = round.run(shared) => true,
        () = tokio::time::sleep_until(until) => false,
        () = hurry.cancelled() => false,
    };
    let end = async {
        if !in_time {
            round.say_what_is_left(shared);
            round.hurries = true;
            let mut told = std::pin::pin!(round.run(shared));
            if tokio::time::timeout(COMMIT_MAX, &mut told).await.is_err() {
                shared.departures.over.cancel();
                told.await;
            }
        }
        // The last words are on their way, and what clients published before.
        while shared.closing.load(Ordering::Acquire) > 0 {
            tokio::time::sleep(LOOK).await;
        }
    };
    if tokio::time::timeout(CLOSE_GRACE, end).await.is_err() {
        warn!("some connections did not close in time");
    }
    let clients = shared.departures.too_early.load(Ordering::Relaxed);
    if clients > 0 {
        warn!(
            clients,
            "told to go before the cluster knew that they went: their groups have no quorum, and their wills may be published"
        );
    }
    gauge!("flotte_drain_clients_left").set(0.0);
}

/// Sends these clients away, each once it has what waits for it, and waits until they are gone. Whoever is left when the time is over
/// goes at once.
pub async fn send_some_away(sessions: Vec<Arc<Session>>, time: Duration) {
    let until = Instant::now() + time;
    let mut round = Round::new(time, sessions);
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while round.left() > 0 {
        looks.tick().await;
        round.hurries |= Instant::now() >= until;
        round.advance();
    }
}

fn connected(shared: &Shared) -> Vec<Arc<Session>> {
    let mut all = shared.registry.all();
    all.retain(|session| session.is_connected());
    all
}

/// One round through the clients of the node.
struct Round {
    began: Instant,
    /// Clients per second.
    rate: f64,
    told: usize,
    untold: Vec<Arc<Session>>,
    /// Their turn has come, and they have not gone.
    going: Vec<Going>,
    /// There is no time to wait for what they are to get.
    hurries: bool,
}

/// A client that is to go once it has what waited for it.
struct Going {
    session: Arc<Session>,
    /// Of its connection: a later one of a session is not meant.
    epoch: u64,
    since: Instant,
    /// The end of its line when its turn came.
    line_end: u64,
    /// Since when it has all.
    ready: Option<Instant>,
}

impl Going {
    fn is_here(&self) -> bool {
        self.session.is_connected() && self.session.epoch() == self.epoch
    }

    /// Whether the client has all that it is to get, and was told of all that it sent.
    fn has_all(&self) -> bool {
        let output = self.session.output().lock();
        if self.since.elapsed() >= QUIET {
            return output.is_done_before(self.line_end);
        }
        let has_all = output.counts() == (0, 0);
        drop(output);
        has_all && self.session.inbound().lock().is_settled()
    }

    /// Has its connection end where it can: between two messages, if that comes soon.
    fn advance(&mut self, hurries: bool) {
        if self.ready.is_none() && !hurries && !self.has_all() {
            return;
        }
        let ready = self.ready.get_or_insert_with(Instant::now);
        let is_patient = ready.elapsed() < LAST_WORDS && !hurries;
        self.session
            .wake(if is_patient { Wake::DRAIN } else { Wake::GO });
    }
}

impl Round {
    fn new(time: Duration, untold: Vec<Arc<Session>>) -> Round {
        Round {
            began: Instant::now(),
            rate: rate(untold.len(), time),
            told: 0,
            untold,
            going: Vec::new(),
            hurries: false,
        }
    }

    fn left(&self) -> usize {
        self.untold.len() + self.going.len()
    }

    /// The time is over.
    fn say_what_is_left(&self, shared: &Shared) {
        let (served, silent) = (self.left(), shared.departures.silent());
        if served > 0 {
            warn!(
                clients = served,
                "closed before they had all that waited for them"
            );
        }
        if silent > 0 {
            warn!(
                clients = silent,
                "the ends of their connections are not committed yet"
            );
        }
    }

    /// Resolves when all are told, those included that were being let in meanwhile.
    async fn run(&mut self, shared: &Arc<Shared>) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            self.advance();
            let left = self.left() + shared.departures.silent();
            gauge!("flotte_drain_clients_left").set(left as f64);
            if left > 0 || shared.registry.is_opening() {
                continue;
            }
            self.untold = connected(shared);
            if self.untold.is_empty() {
                return;
            }
        }
    }

    fn advance(&mut self) {
        self.tell();
        self.going.retain(|going| going.is_here());
        for going in &mut self.going {
            going.advance(self.hurries);
        }
    }

    /// The turn of some has come.
    fn tell(&mut self) {
        // One more: the first goes at once.
        let due = (self.began.elapsed().as_secs_f64() * self.rate) as usize + 1;
        let now = match self.hurries {
            true => self.untold.len(),
            false => due.saturating_sub(self.told).min(self.untold.len()),
        };
        self.told += now;
        for session in self.untold.split_off(self.untold.len() - now) {
            let line_end = session.output().lock().line_end();
            self.going.push(Going {
                epoch: session.epoch(),
                session,
                since: Instant::now(),
                line_end,
                ready: None,
            });
        }
    }
}

/// Clients per second.
fn rate(clients: usize, time: Duration) -> f64 {
    let even = clients as f64 / (time.as_secs_f64() * TELLING).max(f64::EPSILON);
    even.max(RATE_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_told_at_an_even_rate_with_a_floor() {
        let time = Duration::from_secs(10);
        assert_eq!(rate(7_000, time).round(), 1_000.0);
        assert_eq!(rate(0, time), RATE_MIN);
        assert!(rate(3, Duration::ZERO).is_finite());
    }

    #[test]
    fn who_left_for_good_does_not_come_back() {
        let departures = Departures::default();
        assert_eq!(departures.reason(), None);
        departures.begin(Departure::ForNow);
        assert_eq!(departures.reason(), Some(ReasonCode::UseAnotherServer));
        departures.begin(Departure::ForGood);
        departures.begin(Departure::ForNow);
        assert_eq!(departures.reason(), Some(ReasonCode::ServerMoved));
    }
}
