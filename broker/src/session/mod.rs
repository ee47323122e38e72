//! The sessions that this node holds, and the threads' way into them: whoever routes a message puts it into the outbound
//! half of the subscriber's session and writes it to the socket at the end of its own wake-up.

mod flush;
mod output;
mod registry;
mod signal;

pub use flush::{flush_dirty, mark_dirty};
pub use output::{Output, OutputLink};
pub use registry::{Claim, Registry};
pub use signal::{Signal, Wake};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use flotte_mqtt::ClientId;
use flotte_mqtt::packet::SubscribeOptions;
use flotte_mqtt::reason::ReasonCode;
use flotte_mqtt::session::{Inbound, InboundConfig, Outbound, OutboundConfig, Ticket};
use flotte_mqtt::topic::SubscriptionFilter;
use parking_lot::Mutex;

/// Wall clock in ms since the epoch.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The limits of sessions, from the configuration; shared by all.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Of the outbound half.
    pub outbound: Arc<OutboundConfig>,
    /// Of the inbound half.
    pub inbound: InboundConfig,
}

/// One subscription of a session.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// As the client named it.
    pub filter: SubscriptionFilter,
    /// As granted.
    pub options: SubscribeOptions,
    /// 0 = none.
    pub id: u32,
}

/// A session that this node holds in memory, with or without its client connected.
#[derive(Debug)]
pub struct Session {
    /// Its client.
    pub client: ClientId,
    /// Of the latest Open; fences everything older.
    epoch: AtomicU64,
    /// It outlives its connection.
    durable: AtomicBool,
    /// It is no more: nothing is delivered any longer.
    ended: AtomicBool,
    output: Mutex<Output>,
    inbound: Mutex<Inbound>,
    /// Sorted by nothing: most clients have few.
    subscriptions: Mutex<Vec<Subscription>>,
}

impl Session {
    /// A session without a connection.
    pub fn new(client: ClientId, limits: &Limits) -> Session {
        Session {
            client,
            epoch: AtomicU64::new(0),
            durable: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            output: Mutex::new(Output::new(Outbound::new(Arc::clone(&limits.outbound)))),
            inbound: Mutex::new(Inbound::new(limits.inbound)),
            subscriptions: Mutex::default(),
        }
    }

    /// The epoch of its latest Open.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Whether it outlives its connection.
    pub fn is_durable(&self) -> bool {
        self.durable.load(Ordering::Acquire)
    }

    /// Whether it is no more.
    pub fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Whether it outlives its connection, from now on.
    pub fn set_durable(&self, durable: bool) {
        self.durable.store(durable, Ordering::Release);
    }

    /// The outbound half and its socket. The lock is short: encode, write, go.
    pub fn output(&self) -> &Mutex<Output> {
        &self.output
    }

    /// The inbound half.
    pub fn inbound(&self) -> &Mutex<Inbound> {
        &self.inbound
    }

    /// Its subscriptions.
    pub fn subscriptions(&self) -> &Mutex<Vec<Subscription>> {
        &self.subscriptions
    }

    /// A publish of its client is placed, or refused: the acknowledgement may go out in its turn.
    pub fn complete(&self, ticket: Ticket, reason: ReasonCode) {
        self.inbound.lock().complete(ticket, reason);
        if let Some(signal) = self.output.lock().signal() {
            signal.raise(Wake::ACKS);
        }
    }
}
