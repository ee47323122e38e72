//! The client's side of a socket: for `pub` and `sub`, and for tests of the layers.

use std::future::poll_fn;
use std::io;

use bytes::BytesMut;

use super::Socket;
use super::layered::Layered;
use super::stream::Stream;
use super::tls::Session;
use super::ws::WebSocket;

impl Socket {
    /// Shakes hands on a connected socket: TLS where there is a session, WebSocket where a host is named.
    pub async fn connect(
        stream: Stream,
        tls: Option<Session>,
        ws_host: Option<&str>,
    ) -> io::Result<Socket> {
        let (ws, request) = ws_host.map(WebSocket::client).unzip();
        let socket = Socket::new(stream, tls, ws);
        let Socket::Layered(layered) = &socket else {
            return Ok(socket);
        };
        layered.begin()?;
        while !layered.is_secured() {
            layered.advance().await?;
        }
        if let Some(request) = request {
            layered.say(&request)?;
        }
        while !layered.is_open() {
            layered.advance().await?;
        }
        Ok(socket)
    }
}

impl Layered {
    /// One read of a handshake.
    async fn advance(&self) -> io::Result<()> {
        let mut data = BytesMut::new();
        // No server says anything before CONNECT.
        match poll_fn(|cx| self.poll_step(cx, &mut data)).await? {
            None => Ok(()),
            Some(_) => Err(match self.ended() {
                Some(why) => io::Error::other(String::from(why)),
                None => io::ErrorKind::UnexpectedEof.into(),
            }),
        }
    }
}
