//! Workers: one thread and one current-thread runtime for each core. A connection lives and dies on one.

use std::cell::{Cell, RefCell, RefMut};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flotte_cluster::handle::{Cluster, Opened, Refused};
use flotte_cluster::wire::Close;
use flotte_mqtt::session::Delivery;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, debug_span};

use super::handshake;
use super::leaving::Leaving;
use super::pending::PendingConnects;
use super::samples::Samples;
use super::timers::{TICK_MS, Wheel};
use crate::admission::{Admission, TurnedAway};
use crate::auth::Authenticator;
use crate::config::Config;
use crate::drain::Departures;
use crate::listener::Listeners;
use crate::rebalance::Rebalancing;
use crate::router::{Notify, Placing, Router};
use crate::session::{Limits, Registry, Session};
use crate::transport::{self, Layering, Socket};

/// One read takes at most this much.
const READ_BYTES: usize = 64 << 10;
/// Accepted sockets that wait for a worker.
const QUEUE: usize = 1_024;
/// Connections of a worker that are over and wait for the peer to close its side; further ones are closed at once.
const LINGERING_MAX: usize = 1_024;

/// What all workers share.
pub struct Shared {
    /// The whole configuration.
    pub config: Config,
    /// Who gets what.
    pub router: Arc<Router>,
    /// Which sessions there are.
    pub registry: Registry,
    /// The limits of each.
    pub limits: Limits,
    /// How much is taken.
    pub admission: Arc<Admission>,
    /// Who may connect.
    pub auth: Authenticator,
    /// Where they come in.
    pub listeners: Listeners,
    /// Whether they are sent away.
    pub departures: Departures,
    /// Whether clients are being spread over the nodes.
    pub rebalancing: Rebalancing,
    /// Connections of all listeners.
    pub connections: AtomicUsize,
    /// The most that there were at once.
    pub connections_most: AtomicUsize,
    /// What CONNECTs that are not complete hold.
    pub pending: Arc<PendingConnects>,
    /// Ends of connections that the cluster has not committed yet, and such that linger.
    pub closing: AtomicUsize,
}

impl Shared {
    /// Commits the end of a connection, in the background: it is done when the task is. It outlives whoever asks; an older epoch
    /// changes nothing.
    pub fn commit_close(self: &Arc<Self>, close: Close) -> tokio::task::JoinHandle<()> {
        self.closing.fetch_add(1, Ordering::AcqRel);
        let shared = Arc::clone(self);
        // Proposed before this returns, so that it stands before what the client asks for next.
        let closing = self.cluster().close(close);
        tokio::spawn(async move {
            // Refused: this start of the node is over, which ends all its connections.
            let _ = closing.await;
            shared.closing.fetch_sub(1, Ordering::AcqRel);
        })
    }

    /// Commits the end of a connection that was never let in: no will of it is published.
    pub(super) fn close_unopened(self: &Arc<Self>, client: Bytes, epoch: u64) {
        drop(self.commit_close(Close {
            client,
            epoch,
            discard_will: true,
            expiry_s: None,
        }));
    }

    /// Ends a connection that was refused before its Open came back, should it come back after all. On a worker.
    pub(super) fn take_back(
        self: &Arc<Self>,
        client: Bytes,
        opening: impl Future<Output = Result<Opened, Refused>> + 'static,
    ) {
        let shared = Arc::clone(self);
        tokio::task::spawn_local(async move {
            if let Ok(opened) = opening.await {
                shared.close_unopened(client, opened.epoch);
            }
        });
    }

    /// The most connections that there were at once.
    pub fn most_connections(&self) -> u64 {
        self.connections_most.load(Ordering::Relaxed) as u64
    }

    /// The cluster this node is part of.
    pub fn cluster(&self) -> &Cluster {
        self.router.cluster()
    }

    /// Longest that the cluster takes to answer where nothing is broken.
    pub fn barrier_max(&self) -> std::time::Duration {
        self.cluster().barrier_max()
    }

    /// Ends a session for good: its subscriptions go, what it held is dropped and counted, but for what other members of
    /// its shared subscriptions get.
    pub fn end_session(self: &Arc<Self>, session: &Arc<Session>) {
        if self.registry.remove(session) {
            self.router.forget(session);
            let mut output = session.output().lock();
            let shared = output.take_undelivered_shared(|_| true);
            output.end();
            drop(output);
            if !shared.is_empty() {
                self.redeliver(shared);
            }
        }
    }

    /// Gives what a member left behind to others. The node does not leave before that is done.
    fn redeliver(self: &Arc<Self>, taken: Vec<Delivery>) {
        self.closing.fetch_add(1, Ordering::AcqRel);
        let (task, placed) = oneshot::channel();
        let placing = Placing::new(Notify::Task(Mutex::new(Some(task))));
        self.router.redeliver(taken, Some(&placing));
        placing.done();
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let _ = placed.await;
            shared.closing.fetch_sub(1, Ordering::AcqRel);
        });
    }
}

/// A listener, as its connections need it.
#[derive(Debug)]
pub struct ListenerInfo {
    /// Its section of the configuration.
    pub config: crate::config::listener::Config,
    /// Its connections.
    pub connections: AtomicUsize,
    /// What stands between its sockets and MQTT.
    pub layering: Layering,
}

/// A socket that a listener accepted.
#[derive(Debug)]
pub struct Accepted {
    /// Non-blocking.
    pub stream: transport::Accepted,
    /// Where it came from.
    pub peer: SocketAddr,
    /// Where it came in.
    pub listener: Arc<ListenerInfo>,
    /// Its client is refused, and hears why.
    pub turned_away: Option<TurnedAway>,
}

/// One worker, as its connections see it.
pub struct Worker {
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// Deadlines of this worker's connections.
    pub wheel: Rc<Wheel>,
    /// Publishes that are timed.
    pub samples: Samples,
    /// Whatever is read goes through it; borrowed for one poll only.
    buffer: RefCell<BytesMut>,
    /// How many connections linger, at most [`LINGERING_MAX`].
    lingering: Cell<usize>,
    /// Clients that are gone and whose publishes wait.
    pub(super) leaving: Cell<Leaving>,
}

impl Worker {
    /// The buffer to read into, with room.
    pub fn read_buffer(&self) -> RefMut<'_, BytesMut> {
        let mut buffer = self.buffer.borrow_mut();
        if buffer.capacity() - buffer.len() < READ_BYTES / 4 {
            buffer.reserve(READ_BYTES);
        }
        buffer
    }

    /// Lets a connection end in order: its peer has a moment to read the last words.
    pub fn linger(self: &Rc<Self>, socket: Arc<Socket>) {
        if self.lingering.get() >= LINGERING_MAX {
            return;
        }
        self.lingering.update(|count| count + 1);
        self.shared.closing.fetch_add(1, Ordering::AcqRel);
        let worker = Rc::clone(self);
        tokio::task::spawn_local(async move {
            socket.linger().await;
            worker.lingering.update(|count| count - 1);
            worker.shared.closing.fetch_sub(1, Ordering::AcqRel);
        });
    }

    /// A client of a node that drains is served no more; its last words wait until the cluster knows.
    pub fn tell_when_known(
        self: &Rc<Self>,
        socket: Arc<Socket>,
        words: BytesMut,
        commit: tokio::task::JoinHandle<()>,
    ) {
        // At once, so that it is waited for.
        self.shared.departures.falls_silent();
        let worker = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let departures = &worker.shared.departures;
            departures.may_be_told(commit).await;
            socket.close(&words);
            worker.linger(socket);
            departures.told();
        });
    }

    /// Takes what was read.
    pub fn take_read(&self) -> BytesMut {
        self.buffer.borrow_mut().split()
    }
}

/// All workers.
pub struct Workers {
    queues: Vec<mpsc::Sender<Accepted>>,
    next: AtomicUsize,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` threads. They end with `shutdown`, once their connections have.
    pub fn start(
        shared: &Arc<Shared>,
        count: usize,
        shutdown: &CancellationToken,
    ) -> std::io::Result<Workers> {
        let mut workers = Workers {
            queues: Vec::new(),
            next: AtomicUsize::new(0),
            threads: Vec::new(),
        };
        for number in 0..count {
            let (queue, accepted) = mpsc::channel(QUEUE);
            let (shared, shutdown) = (Arc::clone(shared), shutdown.clone());
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let thread = std::thread::Builder::new().name(format!("worker-{number}"));
            workers.threads.push(thread.spawn(move || {
                let local = LocalSet::new();
                local.block_on(&runtime, run(shared, accepted, shutdown));
            })?);
            workers.queues.push(queue);
        }
        Ok(workers)
    }

    /// Hands a socket to the next worker in turn. Waits while that one is busy.
    pub async fn hand_over(&self, accepted: Accepted) {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.queues.len();
        // A worker ends only when the node does.
        let _ = self.queues[turn].send(accepted).await;
    }

    /// Waits until all threads have ended.
    pub fn join(self) {
        drop(self.queues);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }
}

/// Turns the wheel, and wakes all connections when the lease is gone: those that only wait have to be sent away in time.
async fn tick(worker: Rc<Worker>) {
    let mut interval = tokio::time::interval(Duration::from_millis(TICK_MS));
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut held = true;
    loop {
        let due = interval.tick().await;
        crate::metrics::loop_lag(due.elapsed());
        worker.wheel.turn();
        let now = worker.shared.cluster().lease().held();
        if held && !now {
            worker.wheel.wake_all();
        }
        held = now;
    }
}

async fn run(
    shared: Arc<Shared>,
    mut accepted: mpsc::Receiver<Accepted>,
    shutdown: CancellationToken,
) {
    let worker = Rc::new(Worker {
        shared,
        wheel: Wheel::new(),
        samples: Samples::default(),
        buffer: RefCell::new(BytesMut::new()),
        lingering: Cell::new(0),
        leaving: Cell::default(),
    });
    tokio::task::spawn_local(tick(Rc::clone(&worker)));
    loop {
        let next = tokio::select! {
            next = accepted.recv() => next,
            () = shutdown.cancelled() => None,
        };
        let Some(accepted) = next else { return };
        let span = debug_span!("client", peer = %accepted.peer, client = tracing::field::Empty);
        let socket = match accepted.listener.layering.accept(accepted.stream) {
            Ok(socket) => socket,
            Err(e) => {
                debug!(error = %e, "socket not usable");
                continue;
            }
        };
        let task = handshake::run(
            Rc::clone(&worker),
            socket,
            (accepted.peer, accepted.turned_away),
            accepted.listener,
        );
        tokio::task::spawn_local(task.instrument(span));
    }
}
