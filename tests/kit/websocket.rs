//! WebSocket frame by frame: able to send what RFC 6455 forbids. Written independently of the broker's.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;

use crate::client::{Client, Stream};
use crate::run::patience;
use crate::wire::Version;

pub const CONTINUATION: u8 = 0x00;
pub const TEXT: u8 = 0x01;
pub const BINARY: u8 = 0x02;
pub const CLOSE: u8 = 0x08;
pub const PING: u8 = 0x09;
pub const PONG: u8 = 0x0A;
pub const FIN: u8 = 0x80;

/// What a tunnel holds of either direction.
const TUNNEL_BYTES: usize = 64 * 1024;
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// A request for a WebSocket, header by header.
#[derive(Clone, Debug)]
pub struct Request {
    pub line: String,
    pub headers: Vec<(String, String)>,
}

impl Default for Request {
    fn default() -> Self {
        let headers = [
            ("Host", "localhost"),
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Key", KEY),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Protocol", "mqtt"),
        ];
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Self {
            line: "GET /mqtt HTTP/1.1".to_owned(),
            headers: headers.into_iter().map(owned).collect(),
        }
    }
}

impl Request {
    pub fn line(mut self, line: &str) -> Self {
        self.line = line.to_owned();
        self
    }

    /// Sets a header; without a value it is left out.
    pub fn header(mut self, name: &str, value: Option<&str>) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self.headers
            .extend(value.map(|value| (name.to_owned(), value.to_owned())));
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut text = format!("{}\r\n", self.line);
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        text.into_bytes()
    }
}

/// The head of an answer in HTTP.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut named = self
            .headers
            .iter()
            .filter(|(known, _)| known.eq_ignore_ascii_case(name));
        named.next().map(|(_, value)| value.as_str())
    }
}

/// A connection that was asked to become a WebSocket.
pub struct WebSocket {
    stream: Box<dyn Stream>,
    /// Read and not taken.
    buffer: Vec<u8>,
    pub response: Response,
}

impl WebSocket {
    /// One that must be granted, as MQTT has it.
    pub async fn dial(address: SocketAddr) -> Self {
        let socket = Self::ask(address, &Request::default()).await;
        socket.assert_granted();
        socket
    }

    /// Asks, and takes the answer as it is.
    pub async fn ask(address: SocketAddr, request: &Request) -> Self {
        let stream = TcpStream::connect(address).await;
        let stream = stream.unwrap_or_else(|e| panic!("cannot reach {address}: {e}"));
        stream.set_nodelay(true).expect("a TCP socket");
        Self::ask_over(stream, request).await
    }

    /// Asks on an open connection.
    pub async fn ask_over(stream: impl Stream + 'static, request: &Request) -> Self {
        Self::ask_raw(stream, &request.bytes()).await
    }

    /// Asks with these bytes, which may be more than a request.
    pub async fn ask_raw(stream: impl Stream + 'static, request: &[u8]) -> Self {
        let mut stream: Box<dyn Stream> = Box::new(stream);
        stream.write_all(request).await.expect("it is open");
        let mut buffer = Vec::new();
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            let read = tokio::time::timeout(patience(), stream.read_buf(&mut buffer)).await;
            let read = read.expect("an answer in time").expect("an answer");
            let asked = String::from_utf8_lossy(request);
            assert!(read > 0, "closed without an answer to {asked}");
        };
        let head = String::from_utf8(buffer.drain(..end).collect()).expect("HTTP is text");
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        let header = |line: &str| {
            let (name, value) = line.split_once(": ")?;
            Some((name.to_owned(), value.to_owned()))
        };
        let response = Response {
            status: status.and_then(|code| code.parse().ok()).expect("a status"),
            headers: lines.filter_map(header).collect(),
        };
        Self {
            stream,
            buffer,
            response,
        }
    }

    /// The answer is the one that the standards ask for.
    pub fn assert_granted(&self) {
        let response = &self.response;
        assert_eq!(response.status, 101, "{response:?}");
        let accept = digest::digest(
            &digest::SHA1_FOR_LEGACY_USE_ONLY,
            format!("{KEY}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes(),
        );
        let accept = BASE64_STANDARD.encode(accept);
        assert_eq!(
            response.header("Sec-WebSocket-Accept"),
            Some(accept.as_str())
        );
    }

    /// Sends a frame with this first byte, masked and with a length of the shortest form.
    pub async fn send(&mut self, first: u8, payload: &[u8]) {
        self.send_raw(&frame(first, payload)).await;
    }

    pub async fn send_raw(&mut self, bytes: &[u8]) {
        self.try_send_raw(bytes).await.expect("it is open");
    }

    pub async fn try_send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        tokio::time::timeout(patience(), self.stream.write_all(bytes)).await?
    }

    /// The next frame, first byte and payload; `None` at the end. It must not be masked.
    pub async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some(frame) = split_frame(&mut self.buffer) {
                return Some(frame);
            }
            let read = self.stream.read_buf(&mut self.buffer);
            match tokio::time::timeout(patience(), read).await {
                Ok(Ok(0)) => return None,
                Ok(Ok(_)) => {}
                Ok(Err(e)) => panic!("no orderly end: {e}"),
                Err(_) => panic!("nothing within {:?}", patience()),
            }
        }
    }

    /// A close frame with this code comes next, and then the end.
    pub async fn expect_close(&mut self, code: u16) {
        let (first, payload) = self.next().await.expect("a close frame before the end");
        assert_eq!(
            first,
            FIN | CLOSE,
            "wanted a close frame, got {payload:02x?}"
        );
        assert_eq!(payload.get(..2), Some(&code.to_be_bytes()[..]));
        assert_eq!(self.next().await, None);
    }

    /// A client that speaks MQTT through it, each packet in a frame of its own.
    pub fn into_client(self, version: Version) -> Client {
        self.into_client_with(version, FramePlan::default())
    }

    /// A client whose packets are cut into frames as `plan` says.
    pub fn into_client_with(self, version: Version, plan: FramePlan) -> Client {
        let (ours, theirs) = tokio::io::duplex(TUNNEL_BYTES);
        tokio::spawn(tunnel(self, theirs, plan));
        Client::over(ours, version)
    }
}

/// How data is cut into frames.
#[derive(Clone, Copy, Debug)]
pub struct FramePlan {
    /// Payload of a frame at most.
    pub payload: usize,
    /// Bytes written to the socket at once.
    pub piece: usize,
    /// Frames are fragments of one message, with pings between them.
    pub fragments: bool,
}

impl Default for FramePlan {
    fn default() -> Self {
        Self {
            payload: usize::MAX,
            piece: usize::MAX,
            fragments: false,
        }
    }
}

impl FramePlan {
    fn frames(self, data: &[u8]) -> Vec<u8> {
        let chunks: VecDeque<&[u8]> = data.chunks(self.payload.min(data.len().max(1))).collect();
        let last = chunks.len().saturating_sub(1);
        let mut out = Vec::new();
        for (at, chunk) in chunks.into_iter().enumerate() {
            let first = match (self.fragments, at) {
                (false, _) => FIN | BINARY,
                (true, 0) if last == 0 => FIN | BINARY,
                (true, 0) => BINARY,
                (true, at) if at == last => FIN | CONTINUATION,
                (true, _) => CONTINUATION,
            };
            out.extend(frame(first, chunk));
            if self.fragments {
                out.extend(frame(FIN | PING, b"between"));
            }
        }
        out
    }
}

/// Carries data between a client and its WebSocket until one of them ends.
async fn tunnel(socket: WebSocket, mut client: DuplexStream, plan: FramePlan) -> io::Result<()> {
    let WebSocket {
        mut stream,
        mut buffer,
        ..
    } = socket;
    let mut outgoing = Vec::new();
    loop {
        while let Some((first, payload)) = split_frame(&mut buffer) {
            match first & 0x0F {
                BINARY | CONTINUATION => client.write_all(&payload).await?,
                PING => stream.write_all(&frame(FIN | PONG, &payload)).await?,
                PONG => assert_eq!(payload, b"between"),
                _ => return client.shutdown().await,
            }
        }
        tokio::select! {
            read = stream.read_buf(&mut buffer) => if read? == 0 {
                return client.shutdown().await;
            },
            read = client.read_buf(&mut outgoing) => {
                if read? == 0 {
                    return stream.shutdown().await;
                }
                let frames = plan.frames(&std::mem::take(&mut outgoing));
                for piece in frames.chunks(plan.piece) {
                    stream.write_all(piece).await?;
                    stream.flush().await?;
                }
            }
        }
    }
}

/// A masked frame.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
    let mut out = head(first, payload.len() as u64);
    out.extend(MASK);
    let masked = payload.iter().zip(MASK.iter().cycle());
    out.extend(masked.map(|(byte, mask)| byte ^ mask));
    out
}

/// The begin of a masked frame, up to the mask.
pub fn head(first: u8, length: u64) -> Vec<u8> {
    let mut out = vec![first];
    match length {
        0..=125 => out.push(0x80 | u8::try_from(length).expect("small")),
        126..=0xFFFF => {
            out.push(0x80 | 126);
            out.extend(u16::try_from(length).expect("small").to_be_bytes());
        }
        _ => {
            out.push(0x80 | 127);
            out.extend(length.to_be_bytes());
        }
    }
    out
}

/// Cuts a frame of the broker off, once it is all there.
fn split_frame(buffer: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let [first, second, rest @ ..] = &buffer[..] else {
        return None;
    };
    assert!(second & 0x80 == 0, "a server masks no frames");
    assert!(first & 0x70 == 0, "nothing was agreed on");
    let (head, length) = match (second, rest) {
        (126, [a, b, ..]) => (4, u64::from(u16::from_be_bytes([*a, *b]))),
        (127, [a, b, c, d, e, f, g, h, ..]) => {
            (10, u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]))
        }
        (126 | 127, _) => return None,
        (short, _) => (2, u64::from(*short)),
    };
    let end = head + usize::try_from(length).expect("a frame that fits");
    if buffer.len() < end {
        return None;
    }
    let first = *first;
    let frame: Vec<u8> = buffer.drain(..end).collect();
    Some((first, frame[head..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_the_shortest_length_and_a_mask() {
        assert_eq!(frame(0x82, b"")[..2], [0x82, 0x80]);
        assert_eq!(frame(0x82, &[0; 126])[..4], [0x82, 0xFE, 0, 126]);
        assert_eq!(head(0x82, 65_536)[..2], [0x82, 0xFF]);
        let masked = frame(0x82, b"ab");
        assert_eq!(masked[6..], [b'a' ^ 0x37, b'b' ^ 0xFA]);
    }

    #[test]
    fn a_plan_makes_fragments_of_one_message() {
        let plan = FramePlan {
            payload: 2,
            fragments: true,
            ..FramePlan::default()
        };
        let bytes = plan.frames(b"abcde");
        let ping = frame(FIN | PING, b"between");
        let expected = [
            frame(BINARY, b"ab"),
            ping.clone(),
            frame(CONTINUATION, b"cd"),
            ping.clone(),
            frame(FIN | CONTINUATION, b"e"),
            ping,
        ];
        assert_eq!(bytes, expected.concat());
    }
}
