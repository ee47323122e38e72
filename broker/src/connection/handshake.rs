//! CONNECT: checked, authenticated, committed, answered. Nothing else is taken before.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use flotte_cluster::handle::Opened;
use flotte_mqtt::codec::{self, Decoder};
use flotte_mqtt::packet::{ConnAck, Connect, Packet};
use flotte_mqtt::property::{Properties, Property};
use flotte_mqtt::reason::ReasonCode;
use flotte_mqtt::session::Peer;
use flotte_mqtt::{PacketType, Version};
use metrics::counter;
use tracing::{Span, debug};

use super::admit::Admitted;
use super::counted::Counted;
use super::pending::PendingConnect;
use super::timers::Since;
use super::worker::ListenerInfo;
use super::{Connection, Deadline, Worker, access, read_some};
use crate::admission::{Refusal, TurnedAway};
use crate::config::listener::Protocol;
use crate::drain;
use crate::metrics::Count;
use crate::session::{Claim, ClientInfo, OutputLink, Session, Signal, Wake, now_ms, wall_ms};
use crate::transport::Socket;

/// How long a client that is refused may take to say so much that it can be told why.
const TURNED_AWAY_MS: u64 = 2_000;

/// Lets the client of an accepted socket in, or not.
pub(super) async fn run(
    worker: Rc<Worker>,
    socket: Arc<Socket>,
    (peer, turned_away): (SocketAddr, Option<TurnedAway>),
    listener: Arc<ListenerInfo>,
) {
    let shared = Arc::clone(&worker.shared);
    let counted = turned_away
        .is_none()
        .then(|| Counted::new(&shared, &listener));
    let (here, theirs) = (Rc::clone(&worker), Arc::clone(&socket));
    let signal = Arc::new(Signal::default());
    let timeout = u64::from(shared.config.mqtt.connect_timeout_s) * 1_000;
    let least = turned_away.as_ref().map_or(timeout, |_| TURNED_AWAY_MS);
    let timeout = timeout.min(least);
    let deadline = worker
        .wheel
        .insert(Arc::clone(&signal), worker.wheel.now_ms() + timeout);
    let arrival = Arrival {
        worker,
        socket,
        signal,
        counted,
        turned_away,
        deadline,
        peer,
        listener,
        packet_bytes_max: usize::MAX,
    };
    // A task of its own: what a handshake takes is not kept for the life of the connection.
    match arrival.shake_hands().await {
        Some(connection) => connection.start(),
        None => {
            theirs.close(&[]);
            here.linger(theirs);
        }
    }
}

/// A socket whose client has not been let in yet.
pub(super) struct Arrival {
    pub(super) worker: Rc<Worker>,
    pub(super) socket: Arc<Socket>,
    pub(super) signal: Arc<Signal>,
    /// One that is turned away does not count.
    pub(super) counted: Option<Counted>,
    pub(super) turned_away: Option<TurnedAway>,
    pub(super) deadline: Deadline,
    pub(super) peer: SocketAddr,
    pub(super) listener: Arc<ListenerInfo>,
    /// Bytes of the greatest packet that the client takes, once it said so.
    pub(super) packet_bytes_max: usize,
}

impl Arrival {
    async fn shake_hands(mut self) -> Option<Connection> {
        let config = &self.worker.shared.config.mqtt;
        let max = config.max_packet_size.as_usize();
        let mut decoder = Decoder::new(config.max_connect_size.as_usize().min(max));
        let mut buffer = BytesMut::new();
        // Held until the client is let in, or is not.
        let mut pending = self.worker.shared.pending.begin();
        let connect = self
            .read_connect(&mut decoder, &mut buffer, &mut pending)
            .await?;
        decoder.set_max_packet_size(max);
        let version = connect.version;
        if let Some(bytes_max) = connect.properties.maximum_packet_size() {
            self.packet_bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        }
        if let Some(turned_away) = &self.turned_away {
            self.refuse_for(version, turned_away.refusal);
            return None;
        }
        let admitted = match self.admit(connect).await {
            Ok(admitted) => admitted,
            Err(reason) => {
                self.refuse(version, reason);
                return None;
            }
        };
        Span::current().record("client", admitted.client.as_str());
        let opened = self.commit(&admitted, &mut buffer, &mut pending).await?;
        self.open(admitted, opened, decoder, buffer)
    }

    /// None = nothing more is to be said.
    async fn read_connect(
        &mut self,
        decoder: &mut Decoder,
        buffer: &mut BytesMut,
        pending: &mut PendingConnect,
    ) -> Option<Connect> {
        loop {
            match decoder.decode(buffer) {
                Ok(Some(Packet::Connect(connect))) => {
                    Count::packets_in(PacketType::Connect).add(1);
                    return Some(*connect);
                }
                Ok(Some(_)) => return None,
                Ok(None) => {}
                Err(e) => {
                    debug!(error = %e, "CONNECT refused");
                    counter!("flotte_connects_total", "result" => "malformed").increment(1);
                    if let Some(version) = e.answer_version().or_else(|| decoder.version()) {
                        // [MQTT-3.1.4-1] of 3.1.1: no CONNACK for what is malformed, except for an unknown version.
                        if version == Version::V5
                            || e.reason() == ReasonCode::UnsupportedProtocolVersion
                        {
                            self.say(version, e.reason());
                        }
                    }
                    return None;
                }
            }
            tokio::select! {
                biased;
                wake = self.signal.wait() => if wake.has(Wake::TIMER) {
                    debug!("no CONNECT in time");
                    counter!("flotte_connects_total", "result" => "timeout").increment(1);
                    return None;
                },
                read = read_some(&self.socket, &self.worker) => match read {
                    Ok(0) | Err(_) => return None,
                    Ok(bytes) => {
                        Count::BYTES_IN.add(bytes as u64);
                        let chunk = self.worker.take_read();
                        if !pending.grow(bytes) {
                            debug!("too much is held for CONNECTs");
                            counter!("flotte_connects_total", "result" => "pending_full").increment(1);
                            return None;
                        }
                        buffer.extend_from_slice(&chunk);
                    }
                },
            }
        }
    }

    /// The CONNECT is committed: takes the session.
    fn open(
        self,
        admitted: Admitted,
        opened: Opened,
        decoder: Decoder,
        rest: BytesMut,
    ) -> Option<Connection> {
        let shared = Arc::clone(&self.worker.shared);
        let version = admitted.connect.version;
        let claim = shared.registry.opened(
            &admitted.client,
            (opened.epoch, opened.session_present),
            &shared.limits,
            (self.describe(&admitted), Arc::clone(&self.signal)),
        );
        let Claim::Mine {
            session,
            present,
            replaced,
        } = claim
        else {
            counter!("flotte_connects_total", "result" => "taken_over").increment(1);
            shared.close_unopened(admitted.client.as_bytes().clone(), opened.epoch);
            return None;
        };
        if let Some(replaced) = replaced {
            // Its connection, if it is still there, has outlasted the time that the cluster gave it.
            let _ = replaced.close(Wake::TAKEN_OVER, Box::new(|| ()));
            shared.end_session(&replaced);
        }
        session.set_durable(admitted.expiry_s > 0);
        let who = (&admitted.subject, admitted.proof);
        access::attach(&shared, &session, who, &self.signal);
        if shared
            .cluster()
            .me()
            .is_none_or(|me| me.incarnation != opened.incarnation)
        {
            shared.end_session(&session);
            session.detach(&self.signal);
            self.refuse(version, ReasonCode::ServerUnavailable);
            return None;
        }
        counter!("flotte_connects_total", "result" => "accepted").increment(1);
        Some(self.connected(admitted, session, opened.epoch, present, decoder, rest))
    }

    /// Where the client came from; there is no address behind a unix socket.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        let is_unix = self.listener.config.protocol == Protocol::Unix;
        (!is_unix).then_some(self.peer)
    }

    fn describe(&self, admitted: &Admitted) -> ClientInfo {
        ClientInfo {
            username: admitted.subject.username.clone(),
            proof: admitted.proof,
            address: self.address(),
            version: admitted.connect.version,
            connected_at_ms: wall_ms(),
            keep_alive_s: admitted.keep_alive_s,
            clean_start: admitted.connect.clean_start,
        }
    }

    /// What the client takes.
    fn peer_of(&self, connect: &Connect) -> Peer {
        let said = &connect.properties;
        Peer {
            version: connect.version,
            receive_maximum: said.receive_maximum().map_or(u16::MAX, Into::into),
            max_packet_size: said.maximum_packet_size(),
            topic_alias_maximum: said.topic_alias_maximum().unwrap_or(0),
            mountpoint: self.listener.config.mountpoint.clone(),
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn connected(
        self,
        admitted: Admitted,
        session: Arc<Session>,
        epoch: u64,
        present: bool,
        decoder: Decoder,
        rest: BytesMut,
    ) -> Connection {
        let shared = Arc::clone(&self.worker.shared);
        let version = admitted.connect.version;
        let listener = &self.listener.config;
        let connack = ConnAck {
            session_present: present,
            reason: ReasonCode::Success,
            properties: if version == Version::V5 {
                admitted.capabilities(&shared, listener)
            } else {
                Properties::new()
            },
        };
        let link = OutputLink {
            socket: Arc::clone(&self.socket),
            signal: Arc::clone(&self.signal),
            version,
        };
        let peer = self.peer_of(&admitted.connect);
        let mut inbound = session.inbound().lock();
        inbound.connect(version);
        inbound.set_topic_alias_maximum(shared.config.topic_alias_maximum(listener));
        drop(inbound);
        session
            .output()
            .lock()
            .connect(link, peer, &connack.into(), now_ms());
        shared.router.refresh_shares(&session);
        let (now, span) = (self.worker.wheel.now_ms(), Span::current());
        Connection {
            last_read_ms: now,
            worker: self.worker,
            socket: self.socket,
            session,
            signal: self.signal,
            counted: self.counted,
            deadline: self.deadline,
            decoder,
            version,
            epoch,
            max_qos: shared.config.max_qos(listener),
            // [MQTT-3.1.2-22]
            keep_alive_ms: u32::from(admitted.keep_alive_s) * 1_500,
            unleased_since: Since::NEVER,
            partial: rest,
            partial_is_own: true,
            matches: Default::default(),
            mountpoint: listener.mountpoint.clone(),
            rights: None,
            waiting: Default::default(),
            unplaced_since: Since::NEVER,
            requests: Default::default(),
            throttle: None,
            full: None,
            span: (!span.is_disabled()).then(|| Box::new(span)),
            blocked: false,
        }
    }

    pub(super) fn refuse(&self, version: Version, reason: ReasonCode) {
        if reason == Refusal::Flapping.reason() {
            return self.refuse_for(version, Refusal::Flapping);
        }
        debug!(%reason, "refused");
        counter!("flotte_connects_total", "result" => "refused").increment(1);
        self.say(version, reason);
    }

    fn refuse_for(&self, version: Version, refusal: Refusal) {
        debug!(?refusal, "refused");
        counter!("flotte_connects_total", "result" => refusal.label()).increment(1);
        self.say(version, refusal.reason());
    }

    /// A last CONNACK; a client that does not take it does not get it.
    fn say(&self, version: Version, reason: ReasonCode) {
        let listener = &self.listener.config;
        let referred = drain::reference(&self.worker.shared, listener, reason);
        // Where all of it is too much for the client, the reason alone may not be.
        for reference in [referred, None] {
            let mut bytes = BytesMut::new();
            let connack = ConnAck {
                properties: reference
                    .map(Property::ServerReference)
                    .into_iter()
                    .collect(),
                ..ConnAck::refused(reason)
            };
            // [MQTT-3.2.2-6] of 3.1.1: without a fitting return code nothing is said.
            let encoded = codec::encode(&connack.into(), version, &mut bytes);
            // [MQTT-3.1.2-24]
            if encoded.is_ok() && bytes.len() <= self.packet_bytes_max {
                Count::packets_out(PacketType::ConnAck).add(1);
                return self.socket.close(&bytes);
            }
        }
    }
}
