//! The sessions that this node holds, and the threads' way into them: whoever routes a message puts it into the outbound
//! half of the subscriber's session and writes it to the socket at the end of its own wake-up.

mod access;
mod flush;
mod meeting;
mod output;
mod registry;
mod signal;
mod subscriptions;

pub use flush::{flush_dirty, mark_dirty};
pub use meeting::{Form, Replayed};
pub use output::{Output, OutputLink};
pub use registry::{Claim, Registry};
pub use signal::{Signal, Wake};
pub use subscriptions::SubscriptionSet;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use flotte_cluster::handle::Progress;
use flotte_cluster::lease::boot_ns;
use flotte_mqtt::packet::SubscribeOptions;
use flotte_mqtt::reason::ReasonCode;
use flotte_mqtt::session::{Inbound, InboundConfig, Outbound, OutboundConfig, Ticket};
use flotte_mqtt::topic::SubscriptionFilter;
use flotte_mqtt::{ClientId, Version};
use parking_lot::Mutex;

use crate::auth::Proof;
use crate::auth::acl::Subject;

/// The time that sessions run on, in ms: steady, whatever the wall clock does, and through sleep of the machine.
pub fn now_ms() -> u64 {
    boot_ns() / 1_000_000
}

/// Wall clock in ms since the epoch, for people.
pub fn wall_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
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
    subscriptions: Mutex<SubscriptionSet>,
    /// It ends with its connection, whatever its expiry: the cluster gave it to another node, or ended it.
    doomed: AtomicBool,
    attachment: Mutex<Attachment>,
    /// Generation of the rules that grant all its subscriptions wholly; 0 = deliveries are to be judged, if there are rules.
    granted: AtomicU32,
}

/// A session's connection, for whoever wants it closed or described.
#[derive(Default)]
struct Attachment {
    client: Option<Box<Attached>>,
    rare: Option<Box<Rare>>,
}

/// What most sessions do without.
#[derive(Default)]
struct Rare {
    /// Called once the connection is closed; bounded by the kicks of the cluster, one for each later Open.
    closers: Vec<Closer>,
    /// Whose the session is, while there are rules.
    subject: Option<Arc<Subject>>,
}

impl Attachment {
    fn take_closers(&mut self) -> Vec<Closer> {
        let rare = self.rare.as_deref_mut();
        rare.map(|rare| std::mem::take(&mut rare.closers))
            .unwrap_or_default()
    }
}

/// Told once that a connection is closed. It takes no lock of the registry's.
pub type Closer = Box<dyn FnOnce() + Send>;

/// The connection that holds a session.
#[derive(Debug)]
struct Attached {
    info: ClientInfo,
    /// Wakes its task; it is here before the connection has its output, so that no order to close comes too early.
    signal: Arc<Signal>,
}

impl std::fmt::Debug for Attachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attachment")
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

/// A connected client, as operators see it.
#[derive(Debug, Clone)]
pub struct ClientInfo {
    /// Who it proved to be.
    pub username: Option<Arc<str>>,
    /// How it did.
    pub proof: Proof,
    /// Where it came from; none for a unix socket.
    pub address: Option<SocketAddr>,
    /// Its protocol version.
    pub version: Version,
    /// Wall clock, ms.
    pub connected_at_ms: u64,
    /// 0 = none.
    pub keep_alive_s: u16,
    /// It asked for a new session.
    pub clean_start: bool,
}

impl Progress for Session {
    /// Some more of a large publish of its client has arrived where it goes.
    fn progressed(&self) {
        if let Some(signal) = self.output.lock().signal() {
            signal.raise(Wake::PROGRESS);
        }
    }
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
            doomed: AtomicBool::new(false),
            attachment: Mutex::default(),
            granted: AtomicU32::new(0),
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
    pub fn subscriptions(&self) -> &Mutex<SubscriptionSet> {
        &self.subscriptions
    }

    /// A connection takes the session; one that still had it is closed. Returns who waited for that: the epoch fences
    /// the former one from now on.
    #[must_use]
    fn attach(&self, info: ClientInfo, signal: Arc<Signal>) -> Vec<Closer> {
        let mut attachment = self.attachment.lock();
        let attached = Box::new(Attached { info, signal });
        if let Some(former) = attachment.client.replace(attached) {
            former.signal.raise(Wake::TAKEN_OVER);
        }
        attachment.take_closers()
    }

    /// The connection with this signal is closed; whoever waited for that is told. Nothing, if a later one is attached.
    pub fn detach(&self, signal: &Arc<Signal>) {
        let mut attachment = self.attachment.lock();
        let attached = attachment.client.as_ref();
        if !attached.is_some_and(|attached| Arc::ptr_eq(&attached.signal, signal)) {
            return;
        }
        attachment.client = None;
        let closers = attachment.take_closers();
        drop(attachment);
        for done in closers {
            done();
        }
    }

    /// Has the connection closed; `done` is called when it is. Gives `done` back where there is no connection.
    pub fn close(&self, wake: Wake, done: Closer) -> Option<Closer> {
        let mut attachment = self.attachment.lock();
        let Some(attached) = &attachment.client else {
            return Some(done);
        };
        attached.signal.raise(wake);
        let rare = attachment.rare.get_or_insert_default();
        rare.closers.push(done);
        None
    }

    /// Wakes its connection, where there is one.
    pub fn wake(&self, wake: Wake) {
        if let Some(attached) = &self.attachment.lock().client {
            attached.signal.raise(wake);
        }
    }

    /// Whether its client is connected.
    pub fn is_connected(&self) -> bool {
        self.attachment.lock().client.is_some()
    }

    /// The connected client.
    pub fn client_info(&self) -> Option<ClientInfo> {
        let attachment = self.attachment.lock();
        Some(attachment.client.as_ref()?.info.clone())
    }

    /// It ends with its connection, from now on.
    pub fn doom(&self) {
        self.doomed.store(true, Ordering::Release);
    }

    /// Whether it ends with its connection.
    pub fn ends_with_connection(&self) -> bool {
        self.doomed.load(Ordering::Acquire) || !self.is_durable()
    }

    /// A publish of its client is placed, or refused: the acknowledgement may go out in its turn.
    pub fn complete(&self, ticket: Ticket, reason: ReasonCode) {
        self.inbound.lock().complete(ticket, reason);
        if let Some(signal) = self.output.lock().signal() {
            signal.raise(Wake::ACKS);
        }
    }
}
