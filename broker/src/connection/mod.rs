//! One client: from the accepted socket to its last byte. Its task lives on one worker; it waits for the socket, for
//! signals of others, and for what it has asked of the cluster. Packets are handled in `packets`, CONNECT in
//! `handshake`, SUBSCRIBE in `subscribe`; what goes out is written by whoever has it (see `session`).
//!
//! The task is polled by hand: what an idle client costs is the fields of [`Connection`] and nothing else.

mod access;
mod admit;
mod close;
mod connack;
mod counted;
mod handshake;
mod leaving;
mod opening;
mod packets;
mod pending;
mod publish;
mod replays;
mod samples;
mod subscribe;
mod throttle;
mod timers;
mod worker;

pub use pending::PendingConnects;
pub(crate) use publish::{RetainRefusal, retain_command};
pub use timers::{Deadline, Wheel};
pub use worker::{Accepted, ListenerInfo, Shared, Worker, Workers};

use std::future::poll_fn;
use std::io;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use flotte_mqtt::codec::Decoder;
use flotte_mqtt::reason::ReasonCode;
use flotte_mqtt::topic::Mountpoint;
use flotte_mqtt::{PacketType, QoS, Version};
use futures::future::{FutureExt, LocalBoxFuture};
use tracing::{Span, debug};

use crate::auth::acl::Rights;
use crate::metrics::Count;
use crate::router::MatchCache;
use crate::session::{Session, Signal, Wake, flush_dirty, mark_dirty, now_ms};
use crate::transport::Socket;
use counted::Counted;
use publish::WaitingLine;
use throttle::Throttle;
use timers::Since;

/// Why a connection ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// DISCONNECT 0x00: the will goes with it.
    Disconnected {
        /// A new session expiry, if it named one.
        expiry_s: Option<u32>,
    },
    /// DISCONNECT 0x04: the will is to be published.
    DisconnectedWithWill {
        /// A new session expiry, if it named one.
        expiry_s: Option<u32>,
    },
    /// The socket closed or failed.
    Lost,
    /// The client broke the protocol, or a limit; it is told this.
    Refused(ReasonCode),
    /// Another connection has its session.
    TakenOver,
    /// This node sends it away; it is told this.
    SentAway(ReasonCode),
    /// The node drains, and the cluster knows that this client goes: it is told to use another node.
    Moved,
    /// This start of the node is over: the cluster knows.
    Reset,
}

impl End {
    /// The label of the metric.
    fn label(&self) -> &'static str {
        match self {
            End::Disconnected { .. } => "client",
            End::DisconnectedWithWill { .. } => "client_with_will",
            End::Lost => "lost",
            End::Refused(ReasonCode::KeepAliveTimeout) => "keep_alive",
            End::Refused(_) => "protocol",
            End::TakenOver => "taken_over",
            End::SentAway(_) => "sent_away",
            End::Moved => "moved",
            End::Reset => "reset",
        }
    }
}

/// What the loop goes on with.
enum Event {
    Read(io::Result<usize>),
    Woken(Wake),
    Writable,
    /// The first of the publishes that wait can be routed.
    Placeable,
    /// A request was answered, or its retained messages were sent.
    Requested(Result<(), ReasonCode>),
    Room,
}

/// A client after its CONNECT was accepted: the future of its task.
///
/// Thousands of these wait for most of their lives: what is rare is boxed, and gone when it is over.
pub struct Connection {
    worker: Rc<Worker>,
    socket: Arc<Socket>,
    session: Arc<Session>,
    signal: Arc<Signal>,
    counted: Option<Counted>,
    deadline: Deadline,
    decoder: Decoder,
    /// Of this connection's Open; the session's own is higher once another connection has it.
    epoch: u64,
    /// When the last packet came, or a piece of a large one, on the worker's clock.
    last_read_ms: u64,
    /// Since when this node has had no lease.
    unleased_since: Since,
    /// When the oldest publish came that is not placed.
    unplaced_since: Since,
    /// Read and not decoded: the begin of a packet, or what came while nothing may be taken.
    partial: BytesMut,
    matches: MatchCache,
    /// What all its topics lie below.
    mountpoint: Option<Mountpoint>,
    /// What it may publish; none while there are no rules, or before its first publish.
    rights: Option<Box<Rights>>,
    /// Publishes that wait behind a retained one; bounded, as nothing is read while they are many.
    waiting: WaitingLine,
    /// SUBSCRIBEs and UNSUBSCRIBEs that are under way; none is kept while there are none.
    requests: Option<Box<subscribe::Requests>>,
    /// Resolves when the link that was full when this client last published to it has room.
    full: Option<LocalBoxFuture<'static, ()>>,
    /// How far it has used what it may publish; none without limits.
    throttle: Option<Box<Throttle>>,
    /// What its log lines are marked with; none where nobody wants them.
    span: Option<Box<Span>>,
    /// 0 = none.
    keep_alive_ms: u32,
    version: Version,
    max_qos: QoS,
    /// `partial` is no slice of the worker's read buffer.
    partial_is_own: bool,
    /// The socket took no more when last written to.
    blocked: bool,
}

/// So much of a packet that is not complete shows that the client goes on.
const ALIVE_BYTES: usize = 1 << 10;
/// A packet of this size has a buffer that nothing else is kept in.
const LARGE_BYTES: usize = 64 << 10;
/// A read that brought this much has probably left more.
const MUCH_BYTES: usize = 16 << 10;

impl Future for Connection {
    type Output = ();

    /// Serves until the end.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let connection = self.get_mut();
        let span = connection.span.as_deref().cloned();
        let _entered = span.as_ref().map(Span::enter);
        loop {
            let Poll::Ready(event) = connection.poll_event(cx) else {
                return Poll::Pending;
            };
            let read_much = matches!(event, Event::Read(Ok(bytes)) if bytes >= MUCH_BYTES);
            let wrote = matches!(event, Event::Writable);
            let step = connection.handle(event);
            if connection.finish_wake_up(step).is_break() {
                return Poll::Ready(());
            }
            if read_much || wrote && connection.blocked {
                // Others of this worker have their turn before the rest.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }
}

impl Connection {
    /// Takes what came right behind CONNECT, sends CONNACK, and goes on as a task of its own.
    fn start(mut self) {
        let step = self.process();
        if self.finish_wake_up(step).is_continue() {
            tokio::task::spawn_local(self);
        }
    }

    /// The socket last: a client that sends without a pause must not hold up what it waits for.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if let Poll::Ready(wake) = self.signal.poll_wait(cx) {
            return Poll::Ready(Event::Woken(wake));
        }
        if self.waiting.poll_placeable(cx).is_ready() {
            return Poll::Ready(Event::Placeable);
        }
        if let Some(requests) = &mut self.requests
            && let Poll::Ready(done) = requests.poll_progress(&self.worker.shared.router, cx)
        {
            return Poll::Ready(Event::Requested(done));
        }
        if let Some(full) = &mut self.full
            && full.poll_unpin(cx).is_ready()
        {
            return Poll::Ready(Event::Room);
        }
        self.poll_socket(cx)
    }

    /// Reads into the worker's buffer, and waits for room in the socket where that was full.
    fn poll_socket(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let may_write = self.blocked && !self.unleased_since.is_set();
        if may_write && self.socket.poll_write_ready(cx).is_ready() {
            return Poll::Ready(Event::Writable);
        }
        if !self.may_read() {
            return Poll::Pending;
        }
        let buffer = &mut *self.worker.read_buffer();
        self.socket.poll_read(cx, buffer).map(Event::Read)
    }

    fn may_read(&self) -> bool {
        !(self.full.is_some()
            || self.is_held()
            || self.waiting.is_long()
            || self.is_behind_publishes()
            || self.requests.as_ref().is_some_and(|all| all.is_full())
            || self.unleased_since.is_set()
            || self.blocked && self.session.output().lock().is_overfull()
            || self.session.inbound().lock().is_full())
    }

    /// Whether the next packet has to wait for publishes before it: a subscription is not for them, and the answer to a
    /// PINGREQ says that they are done.
    fn is_behind_publishes(&self) -> bool {
        const WAIT: [PacketType; 3] = [
            PacketType::Subscribe,
            PacketType::Unsubscribe,
            PacketType::PingReq,
        ];
        let waits = |first: &u8| WAIT.iter().any(|kind| first >> 4 == *kind as u8);
        !self.waiting.is_empty() && self.partial.first().is_some_and(waits)
    }

    fn handle(&mut self, event: Event) -> Result<(), End> {
        match event {
            Event::Read(Ok(0)) => Err(End::Lost),
            Event::Read(Ok(bytes)) => {
                Count::BYTES_IN.add(bytes as u64);
                let (now, had) = (self.worker.wheel.now_ms(), self.partial.len());
                let chunk = self.worker.take_read();
                if self.partial.is_empty() {
                    self.partial = chunk;
                    self.partial_is_own = false;
                } else {
                    self.partial.extend_from_slice(&chunk);
                }
                let has = self.partial.len();
                self.process()?;
                // [MQTT-3.1.2-22]: what keeps it alive is a packet, or a piece of a large one; a byte is not enough.
                if self.partial.len() < has || had / ALIVE_BYTES < has / ALIVE_BYTES {
                    self.last_read_ms = now;
                }
                Ok(())
            }
            Event::Read(Err(e)) => {
                debug!(error = %e, "read failed");
                Err(End::Lost)
            }
            Event::Woken(wake) => self.woken(wake),
            Event::Writable => {
                let leased = self.is_leased();
                let mut output = self.session.output().lock();
                let had = output.tail_left();
                self.blocked = !output.writable(now_ms(), leased);
                if had.is_some() && had != output.tail_left() {
                    // It takes a piece of a large packet.
                    self.last_read_ms = self.worker.wheel.now_ms();
                }
                drop(output);
                self.process()
            }
            Event::Placeable => {
                self.place_waiting()?;
                self.process()
            }
            Event::Requested(done) => {
                done.map_err(End::Refused)?;
                self.drop_requests();
                self.process()
            }
            Event::Room => {
                self.full = None;
                self.process()
            }
        }
    }

    /// Nothing is kept once no request is under way.
    fn drop_requests(&mut self) {
        if let Some(requests) = &mut self.requests
            && requests.is_idle()
        {
            let mut output = self.session.output().lock();
            if requests.is_over(&mut output) {
                output.forget_replays();
                drop(output);
                self.requests = None;
            }
        }
    }

    fn woken(&mut self, wake: Wake) -> Result<(), End> {
        if wake.has(Wake::RESET) {
            return Err(End::Reset);
        }
        if wake.has(Wake::TAKEN_OVER) {
            return Err(End::TakenOver);
        }
        if wake.has(Wake::CLOSE) {
            return Err(End::SentAway(ReasonCode::AdministrativeAction));
        }
        if wake.has(Wake::UNAUTHORIZED) {
            return Err(End::SentAway(ReasonCode::NotAuthorized));
        }
        if wake.has(Wake::GO) || wake.has(Wake::DRAIN) && self.may_go() {
            return Err(End::Moved);
        }
        if wake.has(Wake::BROKEN) {
            return Err(End::Lost);
        }
        self.blocked |= wake.has(Wake::BLOCKED);
        if wake.has(Wake::PROGRESS) && self.unplaced_since.is_set() {
            self.unplaced_since = Since::at(self.worker.wheel.now_ms());
        }
        if wake.has(Wake::TIMER) {
            self.check_deadlines()?;
        }
        self.process()
    }

    /// Whether nothing is under way that this client waits for, or is to get. Asked again soon, where there is.
    fn may_go(&self) -> bool {
        self.requests.as_ref().is_none_or(|all| all.is_idle())
            && self.waiting.is_empty()
            && self.session.inbound().lock().is_settled()
            && !self.session.output().lock().has_unsent()
    }

    /// Whether this node has a lease. What waits for one goes on once it is back: it is looked for from now on.
    fn is_leased(&mut self) -> bool {
        let leased = self.worker.shared.cluster().lease().held();
        if !leased {
            let now = self.worker.wheel.now_ms();
            self.unleased_since.set_first(now);
        }
        leased
    }

    /// Decodes and handles what was read, as long as it may be taken.
    fn process(&mut self) -> Result<(), End> {
        if self.partial.is_empty() {
            return Ok(());
        }
        if self.session.epoch() != self.epoch {
            return Err(End::TakenOver);
        }
        // After each read, and never a flag: a pause may fall anywhere.
        self.is_leased();
        while !self.partial.is_empty() && self.may_read() {
            let before = self.partial.len();
            match self.decoder.decode(&mut self.partial) {
                Ok(Some(packet)) => {
                    // What is behind a large packet shall not hold the buffer of that.
                    self.partial_is_own &= before - self.partial.len() < LARGE_BYTES;
                    self.handle_packet(packet)?;
                }
                Ok(None) => break,
                Err(e) => {
                    debug!(error = %e, "malformed packet");
                    return Err(End::Refused(e.reason()));
                }
            }
        }
        self.keep_partial();
        Ok(())
    }

    /// What is left of a read goes into a buffer of its own: it would pin the worker's.
    fn keep_partial(&mut self) {
        if self.partial.is_empty() {
            self.partial = BytesMut::new();
            return;
        }
        // Announced sizes are believed only a piece at a time.
        let missing = self
            .decoder
            .missing(&self.partial)
            .unwrap_or(0)
            .min(64 << 10);
        if self.partial_is_own {
            self.partial.reserve(missing);
        } else {
            let mut own = BytesMut::with_capacity(self.partial.len() + missing);
            own.extend_from_slice(&self.partial);
            self.partial = own;
            self.partial_is_own = true;
        }
    }

    /// Acknowledgements go out, everything that this wake-up put into sessions is written, the deadline is set. Before the
    /// end, too: CONNACK may still wait. Breaks when that has come, and the connection is closed.
    fn finish_wake_up(&mut self, step: Result<(), End>) -> ControlFlow<()> {
        self.send_acks();
        if self.session.output().lock().needs_flush() {
            mark_dirty(&self.session);
        }
        flush_dirty(self.worker.shared.cluster().lease());
        self.worker.samples.flushed();
        match step {
            Ok(()) => {
                self.set_deadline();
                ControlFlow::Continue(())
            }
            Err(end) => {
                self.close(end);
                ControlFlow::Break(())
            }
        }
    }

    fn send_acks(&mut self) {
        let leased = self.is_leased();
        let mut inbound = self.session.inbound().lock();
        let mut acks = Vec::new();
        // Nothing is acknowledged without it: another node may have taken over what this one promises.
        if leased {
            acks.extend(std::iter::from_fn(|| inbound.poll_ack()));
        }
        let settled = inbound.is_settled();
        drop(inbound);
        if settled && self.waiting.is_empty() {
            self.unplaced_since = Since::NEVER;
        } else if !acks.is_empty() {
            self.unplaced_since = Since::at(self.worker.wheel.now_ms());
        }
        if !acks.is_empty() {
            let mut output = self.session.output().lock();
            let sent = acks.into_iter().try_for_each(|ack| {
                self.worker.samples.acknowledged(&self.session, ack.id);
                output.send(&publish::ack_packet(ack))
            });
            if sent.is_err() {
                // It cannot be told what became of its publishes: it comes back and sends them again.
                self.signal.raise(Wake::BROKEN);
            }
        }
    }
}

/// Reads what there is into the worker's buffer. Whoever gets a count takes it with [`Worker::take_read`] at once.
async fn read_some(socket: &Socket, worker: &Worker) -> io::Result<usize> {
    poll_fn(|cx| socket.poll_read(cx, &mut worker.read_buffer())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_is_small() {
        // With what tokio keeps of a task this makes 384 bytes; past it the next size is 512.
        let bytes = size_of::<Connection>();
        assert!(bytes <= 280, "{bytes} bytes");
    }
}
