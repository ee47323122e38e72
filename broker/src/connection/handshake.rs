//! CONNECT: checked, authenticated, committed, answered. Nothing else is taken before.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use flotte_cluster::wire::{Open, Will};
use flotte_mqtt::codec::{self, Decoder};
use flotte_mqtt::packet::{ConnAck, Connect, Packet};
use flotte_mqtt::property::Properties;
use flotte_mqtt::reason::ReasonCode;
use flotte_mqtt::session::Peer;
use flotte_mqtt::topic::TopicName;
use flotte_mqtt::{ByteStr, ClientId, PacketType, Version};
use metrics::counter;
use tracing::{Span, debug};

use super::counted::Counted;
use super::pending::PendingConnect;
use super::timers::Since;
use super::worker::ListenerInfo;
use super::{Connection, Deadline, Worker, access, publish, read_some};
use crate::admission::{Refusal, TurnedAway};
use crate::auth::acl::Subject;
use crate::auth::{Attempt, AuthError, Proof};
use crate::config::listener::Protocol;
use crate::metrics::Count;
use crate::session::{Claim, ClientInfo, OutputLink, Session, Signal, Wake, now_ms};
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
struct Arrival {
    worker: Rc<Worker>,
    socket: Arc<Socket>,
    signal: Arc<Signal>,
    /// One that is turned away does not count.
    counted: Option<Counted>,
    turned_away: Option<TurnedAway>,
    deadline: Deadline,
    peer: SocketAddr,
    listener: Arc<ListenerInfo>,
    /// Bytes of the greatest packet that the client takes, once it said so.
    packet_bytes_max: usize,
}

/// A CONNECT that may be tried, with what this broker makes of it.
pub(super) struct Admitted {
    pub(super) connect: Connect,
    pub(super) client: ClientId,
    /// It was given its id by this broker.
    pub(super) assigned: bool,
    subject: Arc<Subject>,
    proof: Proof,
    pub(super) keep_alive_s: u16,
    pub(super) expiry_s: u32,
    will: Option<Will>,
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
        self.open(admitted, decoder, buffer).await
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

    /// Checks a CONNECT by the standard and the configuration, and who it is.
    async fn admit(&self, connect: Connect) -> Result<Admitted, ReasonCode> {
        let shared = &self.worker.shared;
        let config = &shared.config.mqtt;
        if !self.listener.config.versions.contains(&connect.version) {
            return Err(ReasonCode::UnsupportedProtocolVersion);
        }
        let (client, assigned) = self.client_id(&connect)?;
        if connect.properties.auth_method().is_some() {
            // [MQTT-4.12.0-1]
            return Err(ReasonCode::BadAuthenticationMethod);
        }
        let will = self.will(&connect)?;
        if !shared.cluster().lease().held() {
            return Err(ReasonCode::ServerUnavailable);
        }
        let certificate = self.socket.peer();
        let attempt = Attempt {
            listener: &self.listener.config,
            username: connect.username.as_ref().map(ByteStr::as_str),
            password: connect.password.as_deref(),
            certificate: certificate.as_deref(),
            peer: self.peer,
        };
        let identity = shared
            .auth
            .authenticate(attempt)
            .await
            .map_err(|e| match e {
                AuthError::BadCredentials => ReasonCode::BadUserNameOrPassword,
                AuthError::NotAuthorized => ReasonCode::NotAuthorized,
                AuthError::Unavailable => ReasonCode::ServerUnavailable,
            })?;
        let subject = Arc::new(Subject::new(
            identity.username,
            client.clone(),
            // Behind a unix socket there is none.
            Some(self.peer.ip()).filter(|_| self.listener.config.protocol != Protocol::Unix),
        ));
        access::check_will(shared, &subject, &connect)?;
        if shared.admission.flaps(&client) {
            return Err(Refusal::Flapping.reason());
        }
        let expiry_s = match connect.version {
            Version::V5 => {
                let asked = connect.properties.session_expiry().unwrap_or(0);
                config
                    .session_expiry_max_s
                    .map_or(asked, |max| asked.min(max))
            }
            Version::V3 | Version::V4 if connect.clean_start => 0,
            Version::V3 | Version::V4 => config.session_expiry_3x_s,
        };
        let admitted = Admitted {
            client,
            assigned,
            subject,
            proof: identity.proof,
            keep_alive_s: self.keep_alive_s(&connect),
            expiry_s,
            will,
            connect,
        };
        let max_qos = shared.config.max_qos(&self.listener.config);
        if !admitted.takes_its_connack(shared, max_qos) {
            return Err(ReasonCode::PacketTooLarge);
        }
        Ok(admitted)
    }

    fn client_id(&self, connect: &Connect) -> Result<(ClientId, bool), ReasonCode> {
        let config = &self.worker.shared.config.mqtt;
        if connect.client_id.len() > usize::from(config.max_client_id_bytes) {
            return Err(ReasonCode::ClientIdentifierNotValid);
        }
        if !connect.client_id.is_empty() {
            return Ok((ClientId::from(connect.client_id.compact()), false));
        }
        // [MQTT-3.1.3-8] of 3.1.1; 3.1 knows no empty ones at all.
        let allowed = match connect.version {
            Version::V3 => false,
            Version::V4 => connect.clean_start,
            Version::V5 => true,
        };
        if !allowed || !config.allow_empty_client_id {
            return Err(ReasonCode::ClientIdentifierNotValid);
        }
        let id = format!(
            "flotte-{:016x}{:08x}",
            rand::random::<u64>(),
            rand::random::<u32>()
        );
        let id = ClientId::try_from(id).map_err(|_| ReasonCode::UnspecifiedError)?;
        Ok((id, true))
    }

    fn keep_alive_s(&self, connect: &Connect) -> u16 {
        let config = &self.worker.shared.config.mqtt;
        if connect.version != Version::V5 {
            return connect.keep_alive_s;
        }
        if let Some(ours) = config.server_keep_alive_s {
            return ours;
        }
        match config.max_keep_alive_s {
            Some(max) if connect.keep_alive_s == 0 || connect.keep_alive_s > max => max,
            _ => connect.keep_alive_s,
        }
    }

    fn will(&self, connect: &Connect) -> Result<Option<Will>, ReasonCode> {
        let Some(will) = &connect.will else {
            return Ok(None);
        };
        let shared = &self.worker.shared;
        // [MQTT-4.7.0-1], [MQTT-4.7.3-1]: of a name, whatever is wrong with it.
        let topic =
            TopicName::parse(will.topic.clone()).map_err(|_| ReasonCode::TopicNameInvalid)?;
        if will.qos > shared.config.max_qos(&self.listener.config) {
            // [MQTT-3.2.2-12]
            return Err(ReasonCode::QoSNotSupported);
        }
        if will.retain && !shared.config.mqtt.retain_available {
            // [MQTT-3.2.2-13]
            return Err(ReasonCode::RetainNotSupported);
        }
        if topic.level_count() > usize::from(shared.config.mqtt.max_topic_levels) {
            return Err(ReasonCode::TopicNameInvalid);
        }
        if shared.config.mqtt.strict
            && publish::is_no_text(will.properties.payload_format(), &will.payload)
        {
            return Err(ReasonCode::PayloadFormatInvalid);
        }
        if shared.config.mqtt.refuses_topic(&topic) {
            counter!("flotte_acl_denied_total", "action" => "will").increment(1);
            return Err(ReasonCode::NotAuthorized);
        }
        let mut properties = BytesMut::new();
        will.properties
            .forwardable()
            .encode(&mut properties)
            .map_err(|_| ReasonCode::MalformedPacket)?;
        Ok(Some(Will {
            topic: topic.compact().text().as_bytes().clone(),
            qos: u32::from(will.qos as u8),
            retain: will.retain,
            properties: properties.freeze(),
            payload: Bytes::copy_from_slice(&will.payload),
            delay_s: will.properties.will_delay().unwrap_or(0),
        }))
    }

    /// Commits the CONNECT and takes the session.
    async fn open(
        self,
        admitted: Admitted,
        decoder: Decoder,
        rest: BytesMut,
    ) -> Option<Connection> {
        let shared = Arc::clone(&self.worker.shared);
        let version = admitted.connect.version;
        shared.registry.opening(&admitted.client);
        let open = Open {
            client: admitted.client.as_bytes().clone(),
            clean: admitted.connect.clean_start,
            expiry_s: admitted.expiry_s,
            will: admitted.will.clone(),
            up_index: 0,
        };
        let limit = shared.barrier_max();
        let (cluster, client) = (shared.cluster().clone(), open.client.clone());
        let mut opening = Box::pin(async move { cluster.open(open).await });
        let opened = match tokio::time::timeout(limit, &mut opening).await {
            Ok(Ok(opened)) => opened,
            failed => {
                if failed.is_err() {
                    shared.take_back(client, opening);
                }
                shared.registry.open_failed(&admitted.client);
                self.refuse(version, ReasonCode::ServerUnavailable);
                return None;
            }
        };
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

    fn describe(&self, admitted: &Admitted) -> ClientInfo {
        ClientInfo {
            username: admitted.subject.username.clone(),
            proof: admitted.proof,
            address: self.peer,
            version: admitted.connect.version,
            connected_at_ms: now_ms(),
            keep_alive_s: admitted.keep_alive_s,
            clean_start: admitted.connect.clean_start,
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
        let (connect, version) = (&admitted.connect, admitted.connect.version);
        let max_qos = shared.config.max_qos(&self.listener.config);
        let connack = ConnAck {
            session_present: present,
            reason: ReasonCode::Success,
            properties: if version == Version::V5 {
                admitted.capabilities(&shared, max_qos)
            } else {
                Properties::new()
            },
        };
        let link = OutputLink {
            socket: Arc::clone(&self.socket),
            signal: Arc::clone(&self.signal),
            version,
        };
        let peer = Peer {
            version,
            receive_maximum: connect
                .properties
                .receive_maximum()
                .map_or(u16::MAX, Into::into),
            max_packet_size: connect.properties.maximum_packet_size(),
            topic_alias_maximum: connect.properties.topic_alias_maximum().unwrap_or(0),
        };
        session.inbound().lock().connect(version);
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
            _counted: self.counted,
            deadline: self.deadline,
            decoder,
            version,
            epoch,
            max_qos,
            // [MQTT-3.1.2-22]
            keep_alive_ms: u32::from(admitted.keep_alive_s) * 1_500,
            unleased_since: Since::NEVER,
            partial: rest,
            partial_is_own: true,
            matches: Default::default(),
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

    fn refuse(&self, version: Version, reason: ReasonCode) {
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
        let mut bytes = BytesMut::new();
        // [MQTT-3.2.2-6] of 3.1.1: without a fitting return code nothing is said.
        let encoded = codec::encode(&ConnAck::refused(reason).into(), version, &mut bytes);
        // [MQTT-3.1.2-24]
        if encoded.is_ok() && bytes.len() <= self.packet_bytes_max {
            Count::packets_out(PacketType::ConnAck).add(1);
            self.socket.close(&bytes);
        }
    }
}
