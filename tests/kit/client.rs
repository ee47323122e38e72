//! A client that sends and compares packets: `client.send(publish("a").qos1(7))`,
//! `client.recv(puback(7))`. When a test fails, each of its clients prints what it sent and received.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use crate::packets::{
    Connect, Packet, Publish, connack, disconnect, pingreq, pingresp, puback, pubcomp, pubrec,
    pubrel, subscribe,
};
use crate::received::{Received, split_packet};
use crate::run::patience;
use crate::wire::{Version, hexdump, prop};

/// How many packets the transcript of a failed test shows.
const TRANSCRIPT_PACKETS_MAX: usize = 40;
/// A client never waits for more than this to be read: the broker sends no such packet to it.
const BUFFER_BYTES_MAX: usize = 300 * 1024 * 1024;

/// What a client may speak through: a socket, TLS, a WebSocket.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One connection to a broker.
pub struct Client {
    pub name: String,
    pub version: Version,
    /// The CONNACK of a client made by [`Client::connect`].
    pub connack: Option<Received>,
    pub patience: Duration,
    /// Whether a 5.0 broker has to say by DISCONNECT why it ends an accepted connection, where the standard leaves it free to.
    pub wants_reasons: bool,
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    /// Messages that came while something else was awaited; they are received next.
    early: VecDeque<Received>,
    next_packet_id: u16,
    transcript: VecDeque<String>,
}

impl Client {
    /// Opens the connection and sends nothing.
    pub async fn dial(address: SocketAddr, version: Version) -> Self {
        Self::try_dial(address, version)
            .await
            .unwrap_or_else(|e| panic!("cannot reach {address}: {e}"))
    }

    pub async fn try_dial(address: SocketAddr, version: Version) -> io::Result<Self> {
        let stream = tokio::time::timeout(patience(), TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        Ok(Self::over(stream, version))
    }

    /// Opens a connection to a unix socket and sends nothing.
    pub async fn dial_unix(path: &Path, version: Version) -> Self {
        let stream = UnixStream::connect(path).await;
        let stream = stream.unwrap_or_else(|e| panic!("cannot reach {}: {e}", path.display()));
        Self::over(stream, version)
    }

    /// A client that speaks through what is open already, and has sent nothing.
    pub fn over(stream: impl Stream + 'static, version: Version) -> Self {
        Self {
            name: "unnamed".to_owned(),
            version,
            connack: None,
            patience: patience(),
            wants_reasons: false,
            stream: Box::new(stream),
            buffer: Vec::new(),
            early: VecDeque::new(),
            next_packet_id: 1,
            transcript: VecDeque::new(),
        }
    }

    /// Connects and demands to be accepted.
    pub async fn connect(address: SocketAddr, version: Version, packet: Connect) -> Self {
        Self::dial(address, version).await.accepted(packet).await
    }

    /// Connects on an open connection and demands to be accepted.
    pub async fn accepted(mut self, packet: Connect) -> Self {
        self.name = packet.id();
        self.send(packet).await;
        let connack = self.next().await;
        assert_eq!(
            (connack.kind(), connack.reason()),
            (2, 0),
            "not accepted: {connack:?}"
        );
        self.connack = Some(connack);
        self
    }

    /// The session flag of the CONNACK.
    pub fn session_present(&self) -> bool {
        self.connack().session_present()
    }

    pub fn connack(&self) -> &Received {
        self.connack
            .as_ref()
            .expect("this client was made by `connect`")
    }

    /// What the broker takes from this client at once; 65,535 where CONNACK does not say.
    pub fn server_receive_maximum(&self) -> u16 {
        let announced = self
            .connack()
            .int_prop(prop::RECEIVE_MAXIMUM)
            .unwrap_or(65_535);
        u16::try_from(announced).expect("a two-byte property")
    }

    /// A packet id this client has not used yet.
    pub fn fresh_id(&mut self) -> u16 {
        let id = self.next_packet_id;
        self.next_packet_id = id.checked_add(1).unwrap_or(1);
        id
    }

    pub async fn send(&mut self, packet: impl Packet) {
        let bytes = packet.encode(self.version);
        self.send_raw(&bytes).await;
    }

    pub async fn send_raw(&mut self, bytes: &[u8]) {
        let sent = self.try_send_raw(bytes).await;
        sent.unwrap_or_else(|e| panic!("{}: cannot send: {e}", self.name));
    }

    /// As [`Client::send`], where the broker may have hung up already.
    pub async fn try_send(&mut self, packet: impl Packet) -> io::Result<()> {
        let bytes = packet.encode(self.version);
        self.try_send_raw(&bytes).await
    }

    /// As [`Client::send_raw`], where the broker may have hung up already.
    pub async fn try_send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.note("->", bytes);
        let sent = async {
            self.stream.write_all(bytes).await?;
            // TLS may hold back what the socket did not take at once.
            self.stream.flush().await
        };
        tokio::time::timeout(self.patience, sent).await?
    }

    /// Receives the next packet and compares it byte by byte.
    pub async fn recv(&mut self, expected: impl Packet) {
        let wanted = expected.encode(self.version);
        match self.next_or_end().await {
            Ok(Some(packet)) if packet.bytes == wanted => {}
            Ok(Some(packet)) => panic!("{}: wanted\n{}got {packet:?}", self.name, hexdump(&wanted)),
            Ok(None) => panic!("{}: closed, wanted\n{}", self.name, hexdump(&wanted)),
            Err(late) => panic!("{}: {late}, wanted\n{}", self.name, hexdump(&wanted)),
        }
    }

    /// The next packet, whatever it is.
    pub async fn next(&mut self) -> Received {
        match self.next_or_end().await {
            Ok(Some(packet)) => packet,
            Ok(None) => panic!("{}: closed, wanted a packet", self.name),
            Err(late) => panic!("{}: {late}, wanted a packet", self.name),
        }
    }

    /// The next packet, or `None` when the connection ended; an error when neither comes in time.
    pub async fn next_or_end(&mut self) -> Result<Option<Received>, String> {
        if let Some(packet) = self.early.pop_front() {
            return Ok(Some(packet));
        }
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some(packet) = split_packet(&mut self.buffer, self.version) {
                self.note("<-", &packet.bytes);
                return Ok(Some(packet));
            }
            if !self.read_more(deadline).await? {
                self.note("<- end", &[]);
                return Ok(None);
            }
        }
    }

    /// Reads what is there; false at the end of the connection, by FIN or RST.
    async fn read_more(&mut self, deadline: Instant) -> Result<bool, String> {
        assert!(
            self.buffer.len() < BUFFER_BYTES_MAX,
            "{}: a packet without end",
            self.name
        );
        let read = self.stream.read_buf(&mut self.buffer);
        match tokio::time::timeout_at(deadline.into(), read).await {
            Ok(Ok(0)) => Ok(false),
            Ok(Ok(_)) => Ok(true),
            // The second: TLS without its last word, as of a process that was killed.
            Ok(Err(e))
                if [io::ErrorKind::ConnectionReset, io::ErrorKind::UnexpectedEof]
                    .contains(&e.kind()) =>
            {
                Ok(false)
            }
            Ok(Err(e)) => Err(format!("reading failed: {e}")),
            Err(_) => Err(format!("nothing within {:?}", self.patience)),
        }
    }

    /// The next packet, which must be a PUBLISH.
    pub async fn recv_publish(&mut self) -> Received {
        let packet = self.next().await;
        assert!(
            packet.is_publish(),
            "{}: wanted a PUBLISH, got {packet:?}",
            self.name
        );
        packet
    }

    /// The next packet, which must be of this type.
    pub async fn recv_kind(&mut self, kind: u8) -> Received {
        let packet = self.next().await;
        assert_eq!(
            packet.kind(),
            kind,
            "{}: wanted type {kind}, got {packet:?}",
            self.name
        );
        packet
    }

    /// The connection ends, and nothing comes before.
    pub async fn expect_closed(&mut self) {
        match self.next_or_end().await {
            Ok(None) => {}
            Ok(Some(packet)) => panic!("{}: wanted the end, got {packet:?}", self.name),
            Err(late) => panic!("{}: {late}, wanted the end", self.name),
        }
    }

    /// The connection ends for a fault of the client: a 5.0 broker may first say why, with one of
    /// `reasons`, by DISCONNECT (or CONNACK where none came yet), and has to once this client
    /// [`wants_reasons`](Self::wants_reasons); 3.x has no way to say it.
    pub async fn expect_refused(&mut self, reasons: &[u8]) {
        let wanted = format!("the end, or a reason of {reasons:02x?}");
        match self.next_or_end().await {
            Ok(None) => {
                let silent =
                    !(self.wants_reasons && self.version.is_v5() && self.connack.is_some());
                assert!(silent, "{}: closed in silence, wanted {wanted}", self.name);
                return;
            }
            Ok(Some(packet)) => {
                let kind = if self.connack.is_some() { 14 } else { 2 };
                let says_why = self.version.is_v5() && packet.kind() == kind;
                let fits = says_why && reasons.contains(&packet.reason());
                assert!(fits, "{}: wanted {wanted}, got {packet:?}", self.name);
            }
            Err(late) => panic!("{}: {late}, wanted {wanted}", self.name),
        }
        self.expect_closed().await;
    }

    /// Nothing comes for a while. A fence is better wherever one can be had.
    pub async fn expect_silence(&mut self, time: Duration) {
        let usual = std::mem::replace(&mut self.patience, time);
        match self.next_or_end().await {
            Err(_) => {}
            Ok(Some(packet)) => panic!("{}: wanted silence, got {packet:?}", self.name),
            Ok(None) => panic!("{}: wanted silence, got the end", self.name),
        }
        self.patience = usual;
    }

    /// Shows that the broker has sent nothing up to now: PINGREQ, and PINGRESP comes next.
    pub async fn fence(&mut self) {
        self.send(pingreq()).await;
        self.recv(pingresp()).await;
    }

    /// As [`Client::fence`], where messages may come before: they stay unread and unacknowledged.
    pub async fn fence_past_messages(&mut self) {
        self.send(pingreq()).await;
        let answer = self.next_but_messages().await;
        assert_eq!(
            answer.kind(),
            13,
            "{}: wanted PINGRESP, got {answer:?}",
            self.name
        );
    }

    /// All packets that came before the answer to a PINGREQ sent now.
    pub async fn collect_to_fence(&mut self) -> Vec<Received> {
        self.send(pingreq()).await;
        let mut before = Vec::new();
        loop {
            let packet = self.next().await;
            if packet.kind() == 13 {
                return before;
            }
            before.push(packet);
        }
    }

    /// Subscribes to one filter and demands the QoS asked for; `options` is the options byte. The
    /// standard lets messages come before SUBACK: they are kept and received next.
    pub async fn subscribe(&mut self, filter: impl AsRef<[u8]>, options: u8) {
        let id = self.fresh_id();
        self.send(subscribe(id).to(filter, options)).await;
        let answer = self.next_but_messages().await;
        assert_eq!(
            answer.kind(),
            9,
            "{}: wanted SUBACK, got {answer:?}",
            self.name
        );
        assert_eq!(
            (answer.packet_id(), answer.codes()),
            (id, vec![options & 3]),
            "{answer:?}"
        );
    }

    /// Publishes and completes the handshake of the message's QoS; nothing else may come meanwhile.
    pub async fn publish(&mut self, packet: Publish) {
        let qos = packet.qos();
        self.send(packet.clone()).await;
        if qos == 1 {
            self.recv_ack(4, packet.packet_id()).await;
        } else if qos == 2 {
            self.recv_ack(5, packet.packet_id()).await;
            self.send(pubrel(packet.packet_id())).await;
            self.recv_ack(7, packet.packet_id()).await;
        }
    }

    /// An acknowledgement of success of this type for this id.
    pub async fn recv_ack(&mut self, kind: u8, packet_id: u16) {
        let answer = self.recv_kind(kind).await;
        assert_eq!(
            answer.packet_id(),
            packet_id,
            "{}: the id of another: {answer:?}",
            self.name
        );
        assert!(answer.reason() < 0x80, "{}: refused: {answer:?}", self.name);
    }

    /// Completes the handshake of a PUBLISH that came. Messages between PUBREC and PUBREL are kept and
    /// received next.
    pub async fn acknowledge(&mut self, packet: &Received) {
        let qos = packet.qos();
        if qos == 1 {
            self.send(puback(packet.packet_id())).await;
        } else if qos == 2 {
            let id = packet.packet_id();
            self.send(pubrec(id)).await;
            let answer = self.next_but_messages().await;
            assert_eq!(
                answer.bytes,
                pubrel(id).encode(self.version),
                "{}: {answer:?}",
                self.name
            );
            self.send(pubcomp(id)).await;
        }
    }

    /// The next packet that is no PUBLISH; those before it are received next.
    async fn next_but_messages(&mut self) -> Received {
        let mut early = VecDeque::new();
        let mut packet = self.next().await;
        while packet.is_publish() {
            early.push_back(packet);
            packet = self.next().await;
        }
        self.early = early;
        packet
    }

    /// Receives a PUBLISH, completes its handshake, and demands this payload.
    pub async fn take(&mut self, payload: impl AsRef<[u8]>) -> Received {
        let packet = self.recv_publish().await;
        let wanted = payload.as_ref();
        assert_eq!(
            packet.payload(),
            wanted,
            "{}: another payload: {packet:?}",
            self.name
        );
        self.acknowledge(&packet).await;
        packet
    }

    /// Says goodbye and waits until the broker has closed.
    pub async fn leave(mut self) {
        self.send(disconnect()).await;
        self.expect_closed().await;
    }

    /// Ends the connection without goodbye.
    pub fn cut(self) {
        drop(self);
    }

    /// An accepted answer without any property, for clients of 3.x.
    pub async fn recv_plain_connack(&mut self, session_present: bool) {
        self.recv(connack(session_present, 0)).await;
    }

    fn note(&mut self, arrow: &str, bytes: &[u8]) {
        if self.transcript.len() == TRANSCRIPT_PACKETS_MAX {
            self.transcript.pop_front();
        }
        let dump = hexdump(&bytes[..bytes.len().min(96)]);
        self.transcript
            .push_back(format!("{arrow} {} bytes\n{dump}", bytes.len()));
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- client {} ({:?}), its last packets",
                self.name, self.version
            );
            for line in &self.transcript {
                eprint!("{line}");
            }
        }
    }
}
