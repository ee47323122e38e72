//! A client's connection: packets in and out, and keep alive. What is queued is written and what has come is read by the same
//! call, so that a broker that waits to be read is never waited for.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use flotte_mqtt::codec::{Decoder, encode, encoded_len};
use flotte_mqtt::packet::{ConnAck, Connect, Disconnect, Packet};
use flotte_mqtt::property::Properties;
use flotte_mqtt::reason::ReasonCode;
use flotte_mqtt::{QoS, Version};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep_until, timeout};

use super::options::ConnectOptions;
use super::{ClientError, Said, tls};
use crate::transport::{Socket, Stream};

/// How long the broker has for the connection and its CONNACK, and for an answer to a ping.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the end of a connection may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The largest packet of MQTT.
const PACKET_BYTES_MAX: usize = 268_435_460;
/// Room that is made before a read.
const READ_BYTES: usize = 16 * 1024;
/// Where nothing is due.
const FAR_AWAY: Duration = Duration::from_secs(365 * 24 * 3600);

/// An open connection, whose CONNECT the broker has taken.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    version: Version,
    decoder: Decoder,
    /// Read and not decoded yet; at most one packet and a read.
    input: BytesMut,
    /// Encoded and not written yet; bounded by those who queue, see [`Connection::is_congested`].
    output: BytesMut,
    keep_alive: Option<Duration>,
    last_write: Instant,
    /// When the ping was sent that is not answered yet.
    ping: Option<Instant>,
    /// What the broker said it takes.
    limits: Limits,
}

/// What the broker takes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How many QoS 1 and 2 messages may be under way to it.
    pub receive_maximum: u16,
    /// The largest packet.
    pub packet_bytes: usize,
    pub qos: QoS,
    pub retain: bool,
}

impl Connection {
    /// Connects and introduces itself.
    pub async fn open(options: &ConnectOptions, kind: &str) -> Result<Self, ClientError> {
        let connect = options.connect(kind)?;
        let address = options.address();
        let tls = tls::session(options)?;
        let opened = timeout(ANSWER_TIMEOUT, async {
            let connected = async {
                let host = options.ws.then_some(address.as_str());
                Socket::connect(dial(options).await?, tls, host).await
            };
            let socket = connected.await.map_err(|source| ClientError::Connect {
                address: address.clone(),
                source,
            })?;
            Self::introduce(socket, connect).await
        });
        let no_answer = || ClientError::NoAnswer {
            address: address.clone(),
            seconds: ANSWER_TIMEOUT.as_secs(),
        };
        opened.await.map_err(|_| no_answer())?
    }

    async fn introduce(socket: Socket, connect: Connect) -> Result<Self, ClientError> {
        let version = connect.version;
        let mut decoder = Decoder::new(PACKET_BYTES_MAX);
        decoder.set_version(version);
        let limits = Limits {
            receive_maximum: u16::MAX,
            packet_bytes: PACKET_BYTES_MAX,
            qos: QoS::ExactlyOnce,
            retain: true,
        };
        let mut connection = Self {
            socket,
            version,
            decoder,
            input: BytesMut::new(),
            output: BytesMut::new(),
            // No ping before the CONNACK.
            keep_alive: None,
            last_write: Instant::now(),
            ping: None,
            limits,
        };
        let keep_alive_s = connect.keep_alive_s;
        connection.queue(&Packet::Connect(Box::new(connect)))?;
        match connection.receive().await? {
            Packet::ConnAck(answer) if answer.reason == ReasonCode::Success => {
                connection.accepted(&answer, keep_alive_s)
            }
            Packet::ConnAck(answer) => {
                return Err(ClientError::ConnectionRefused(said(
                    answer.reason,
                    &answer.properties,
                )));
            }
            _ => return Err(ClientError::Protocol("its first packet is no CONNACK")),
        }
        Ok(connection)
    }

    fn accepted(&mut self, answer: &ConnAck, keep_alive_s: u16) {
        let properties = &answer.properties;
        let limits = &mut self.limits;
        limits.receive_maximum = properties.receive_maximum().unwrap_or(u16::MAX);
        limits.qos = properties.maximum_qos().unwrap_or(QoS::ExactlyOnce);
        limits.retain = properties.retain_available().unwrap_or(true);
        if let Some(bytes) = properties.maximum_packet_size() {
            limits.packet_bytes = usize::try_from(bytes)
                .unwrap_or(usize::MAX)
                .min(PACKET_BYTES_MAX);
        }
        let keep_alive_s = properties.server_keep_alive().unwrap_or(keep_alive_s);
        self.keep_alive = (keep_alive_s > 0).then(|| Duration::from_secs(u64::from(keep_alive_s)));
    }

    /// What the broker takes.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The version that is spoken.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Takes a packet to be written by [`exchange`](Self::exchange).
    pub fn queue(&mut self, packet: &Packet) -> Result<(), ClientError> {
        if encoded_len(packet, self.version) > self.limits.packet_bytes {
            return Err(ClientError::NotTaken(
                "it is larger than the broker's largest packet",
            ));
        }
        Ok(encode(packet, self.version, &mut self.output)?)
    }

    /// Whether so much waits to be written that nothing more should be queued.
    pub fn is_congested(&self) -> bool {
        self.output.len() >= 64 * 1024
    }

    /// Whether everything queued is written.
    pub fn is_flushed(&self) -> bool {
        self.output.is_empty()
    }

    /// The next packet that has come already.
    pub fn next_packet(&mut self) -> Result<Option<Packet>, ClientError> {
        loop {
            match self.decoder.decode(&mut self.input)? {
                Some(Packet::PingResp) => self.ping = None,
                Some(Packet::Disconnect(end)) => {
                    return Err(ClientError::Disconnected(said(end.reason, &end.properties)));
                }
                packet => return Ok(packet),
            }
        }
    }

    /// The next packet, waited for.
    async fn receive(&mut self) -> Result<Packet, ClientError> {
        loop {
            match self.next_packet()? {
                Some(packet) => return Ok(packet),
                None => self.exchange().await?,
            }
        }
    }

    /// Moves bytes once, in or out, whatever is possible first; pings when that is due. Nothing is lost when it is given up
    /// half-way.
    pub async fn exchange(&mut self) -> Result<(), ClientError> {
        let due = self.due();
        self.input.reserve(
            self.decoder
                .missing(&self.input)
                .unwrap_or_default()
                .clamp(READ_BYTES, 1024 * 1024),
        );
        tokio::select! {
            moved = poll_fn(|cx| self.poll_move(cx)) => moved,
            () = sleep_until(due) => self.keep_alive(),
        }
    }

    /// Reads, or else writes.
    fn poll_move(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        if let Poll::Ready(read) = self.socket.poll_read(cx, &mut self.input) {
            return Poll::Ready(match read.map_err(ClientError::Lost)? {
                0 => Err(ClientError::Closed),
                _ => Ok(()),
            });
        }
        let before = self.output.len();
        if before == 0 {
            return Poll::Pending;
        }
        let written = self.socket.poll_write(cx, &mut self.output);
        if self.output.len() < before {
            self.last_write = Instant::now();
            return Poll::Ready(Ok(()));
        }
        written.map_err(ClientError::Lost)
    }

    async fn flush(&mut self) -> Result<(), ClientError> {
        poll_fn(|cx| self.socket.poll_write(cx, &mut self.output))
            .await
            .map_err(ClientError::Lost)?;
        self.last_write = Instant::now();
        Ok(())
    }

    /// Says good-bye, and waits a little until the broker has read it.
    pub async fn close(mut self) -> Result<(), ClientError> {
        self.queue(&Packet::Disconnect(Disconnect::new(
            ReasonCode::NORMAL_DISCONNECTION,
        )))?;
        let closed = timeout(CLOSE_TIMEOUT, async {
            self.flush().await?;
            // What has come meanwhile is read: closing over it would reset the connection, and what the broker has not
            // read yet would be lost.
            self.socket.close(&[]);
            self.socket.linger().await;
            Ok(())
        });
        match closed.await {
            Err(_) => Ok(()),
            // A broker that is faster to end has the right to.
            Ok(Err(ClientError::Lost(_))) => Ok(()),
            Ok(result) => result,
        }
    }

    /// When keep alive has something to do next.
    fn due(&self) -> Instant {
        match (self.ping, self.keep_alive) {
            (Some(sent), _) => sent + ANSWER_TIMEOUT,
            (None, Some(keep_alive)) => self.last_write + keep_alive,
            (None, None) => Instant::now() + FAR_AWAY,
        }
    }

    fn keep_alive(&mut self) -> Result<(), ClientError> {
        if self.ping.is_some() {
            return Err(ClientError::Silent);
        }
        self.ping = Some(Instant::now());
        self.queue(&Packet::PingReq)
    }
}

async fn dial(options: &ConnectOptions) -> io::Result<Stream> {
    if let Some(path) = &options.unix {
        return UnixStream::connect(path).await.map(Stream::Unix);
    }
    let stream = TcpStream::connect((options.host.as_str(), options.port)).await?;
    // Small packets shall not wait for each other; where that cannot be had the client works all the same.
    let _ = stream.set_nodelay(true);
    Ok(Stream::Tcp(stream))
}

fn said(reason: ReasonCode, properties: &Properties) -> Said {
    Said {
        reason,
        text: properties.reason_string().map(ToString::to_string),
        server: properties.server_reference().map(ToString::to_string),
    }
}
