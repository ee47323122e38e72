//! What MQTT is spoken over: TCP or a unix socket, with TLS, WebSocket or both above it. A socket is shared: its
//! connection's task reads, and whoever routes a message to the client writes. It knows no packet.

mod client;
mod layered;
mod linger;
mod stream;
mod tls;
mod ws;

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};

use crate::config;
use crate::config::listener::Protocol;
use layered::Layered;
pub use stream::{Accepted, Stream};
pub use tls::{Loaded, Session, Tls, TlsError};
pub use ws::{Rules, WebSocket};

/// A connected socket.
#[derive(Debug)]
pub enum Socket {
    /// Without any layer.
    Plain(Stream),
    /// Boxed: most are plain, and shall not pay for it.
    Layered(Box<Layered>),
}

/// What a listener puts above its sockets.
#[derive(Debug, Default)]
pub struct Layering {
    tls: Option<Tls>,
    ws: Option<Rules>,
}

impl Layering {
    /// What the configuration of a listener asks for; reads the files of TLS, so it blocks.
    pub fn new(
        config: &config::listener::Config,
        packet_bytes_max: u64,
    ) -> Result<Layering, TlsError> {
        let tls = match config.protocol {
            Protocol::Mqtts | Protocol::Wss => Some(Tls::new(config)?),
            Protocol::Mqtt | Protocol::Ws | Protocol::Unix => None,
        };
        let ws = match config.protocol {
            Protocol::Ws | Protocol::Wss => Some(Rules {
                origins: config.ws_origins.clone().into(),
                packet_bytes_max,
            }),
            Protocol::Mqtt | Protocol::Mqtts | Protocol::Unix => None,
        };
        Ok(Layering { tls, ws })
    }

    /// TLS, where there is any.
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// Makes a socket of one that was accepted, on the runtime of this thread.
    pub fn accept(&self, accepted: Accepted) -> io::Result<Arc<Socket>> {
        let stream = Stream::register(accepted)?;
        let tls = match &self.tls {
            Some(tls) => Some(tls.accept().map_err(io::Error::other)?),
            None => None,
        };
        let ws = self.ws.clone().map(WebSocket::server);
        Ok(Arc::new(Socket::new(stream, tls, ws)))
    }
}

impl Socket {
    /// Puts layers above a socket, where there are any.
    pub fn new(stream: Stream, tls: Option<Session>, ws: Option<WebSocket>) -> Socket {
        if tls.is_none() && ws.is_none() {
            Socket::Plain(stream)
        } else {
            Socket::Layered(Box::new(Layered::new(stream, tls, ws)))
        }
    }

    /// Reads data behind the end of `buffer`, which has room. `Ok(0)` is the end.
    pub fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        match self {
            Socket::Plain(stream) => stream.poll_read(cx, buffer),
            Socket::Layered(layered) => layered.poll_read(cx, buffer),
        }
    }

    /// Takes data from `buffer` as long as the socket takes it. [`io::ErrorKind::WouldBlock`]: it takes no more, whether
    /// or not something is left in `buffer`.
    pub fn write(&self, buffer: &mut impl Buf) -> io::Result<()> {
        match self {
            Socket::Plain(stream) => {
                while buffer.has_remaining() {
                    let written = stream.try_write(buffer.chunk())?;
                    buffer.advance(written);
                }
                Ok(())
            }
            Socket::Layered(layered) => layered.write(buffer),
        }
    }

    /// Takes data from `buffer`. Ready when the socket has taken all of it.
    pub fn poll_write(&self, cx: &mut Context<'_>, buffer: &mut BytesMut) -> Poll<io::Result<()>> {
        loop {
            match self.write(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    std::task::ready!(self.poll_write_ready(cx))?
                }
                written => return Poll::Ready(written),
            }
        }
    }

    /// Waits until the socket takes bytes again.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_write_ready(cx)
    }

    /// Who the certificate of the peer names, once its first bytes were read.
    pub fn peer(&self) -> Option<Box<str>> {
        match self {
            Socket::Plain(_) => None,
            Socket::Layered(layered) => layered.peer(),
        }
    }

    /// Whether there is no layer.
    pub fn is_plain(&self) -> bool {
        matches!(self, Socket::Plain(_))
    }

    fn stream(&self) -> &Stream {
        match self {
            Socket::Plain(stream) => stream,
            Socket::Layered(layered) => layered.stream(),
        }
    }
}
