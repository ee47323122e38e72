//! What lies between a socket and MQTT at the client's end: nothing, TLS, WebSocket or both. It does no IO.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore};

/// The name in the broker's certificate.
const SERVER: &str = "localhost";
const REQUEST: &[u8] = b"GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";
const RESPONSE_BYTES_MAX: usize = 4 << 10;
/// A mask that changes bytes, so that the broker has to undo it.
const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
/// What TLS holds of a record that is not all there: so much more than was received may become readable.
pub const HELD_BYTES_MAX: usize = 32 << 10;

/// Which versions of TLS are offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Versions {
    All,
    Tls12,
}

/// How clients connect.
#[derive(Clone, Default)]
pub struct Transport {
    tls: Option<Arc<ClientConfig>>,
    ws: bool,
}

impl Transport {
    /// `tls` names the authority that is trusted. Tickets are kept in memory, for as long as the transport lives, where
    /// handshakes are to be resumed.
    pub fn new(
        tls: Option<&Path>,
        ws: bool,
        versions: Versions,
        resume: bool,
    ) -> anyhow::Result<Self> {
        let tls = tls.map(|ca| client_config(ca, versions, resume));
        Ok(Self {
            tls: tls.transpose()?.map(Arc::new),
            ws,
        })
    }

    /// The layers of one connection, and what they have to send first.
    pub fn link(&self) -> anyhow::Result<Link> {
        let tls = match &self.tls {
            None => None,
            Some(config) => {
                let name = SERVER.try_into().context("a server's name")?;
                Some(Box::new(ClientConnection::new(config.clone(), name)?))
            }
        };
        Ok(Link {
            tls,
            ws: self.ws.then(Box::default),
        })
    }
}

fn client_config(ca: &Path, versions: Versions, resume: bool) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(ca)
        .map_err(|error| anyhow::anyhow!("{}: {error}", ca.display()))?;
    roots.add(authority)?;
    let versions = match versions {
        Versions::All => rustls::ALL_VERSIONS,
        Versions::Tls12 => &[&rustls::version::TLS12],
    };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    if !resume {
        config.resumption = Resumption::disabled();
    }
    Ok(config)
}

/// The layers of one connection.
#[derive(Default)]
pub struct Link {
    tls: Option<Box<ClientConnection>>,
    ws: Option<Box<WebSocket>>,
}

impl Link {
    pub fn is_plain(&self) -> bool {
        self.tls.is_none() && self.ws.is_none()
    }

    /// Whether TLS resumed an earlier session.
    pub fn is_resumed(&self) -> bool {
        let kind = self.tls.as_ref().and_then(|tls| tls.handshake_kind());
        kind == Some(HandshakeKind::Resumed)
    }

    /// Turns what was received into data.
    pub fn open(&mut self, mut received: &[u8], data: &mut Vec<u8>) -> anyhow::Result<()> {
        let Some(tls) = &mut self.tls else {
            return self.unframe(received, data);
        };
        let mut plain = Vec::new();
        while !received.is_empty() {
            tls.read_tls(&mut received)?;
            let state = tls.process_new_packets()?;
            let start = plain.len();
            plain.resize(start + state.plaintext_bytes_to_read(), 0);
            tls.reader().read_exact(&mut plain[start..])?;
        }
        self.unframe(&plain, data)
    }

    /// Takes `data` as far as the layers are ready for it, and appends what the socket gets.
    pub fn seal(&mut self, data: &mut Vec<u8>, sealed: &mut Vec<u8>) -> anyhow::Result<()> {
        if let Some(ws) = &mut self.ws
            && !ws.has_asked
        {
            ws.has_asked = true;
            self.encrypt(REQUEST, sealed)?;
        }
        match &self.ws {
            _ if data.is_empty() => {}
            None => self.encrypt(&std::mem::take(data), sealed)?,
            Some(ws) if ws.is_open => self.encrypt(&frame(&std::mem::take(data)), sealed)?,
            Some(_) => {}
        }
        while let Some(tls) = &mut self.tls
            && tls.wants_write()
        {
            tls.write_tls(sealed)?;
        }
        Ok(())
    }

    /// Before the end of the handshake rustls keeps it until then.
    fn encrypt(&mut self, bytes: &[u8], sealed: &mut Vec<u8>) -> anyhow::Result<()> {
        match &mut self.tls {
            None => sealed.extend_from_slice(bytes),
            Some(tls) => tls.writer().write_all(bytes)?,
        }
        Ok(())
    }

    fn unframe(&mut self, bytes: &[u8], data: &mut Vec<u8>) -> anyhow::Result<()> {
        match &mut self.ws {
            None => data.extend_from_slice(bytes),
            Some(ws) => ws.take(bytes, data)?,
        }
        Ok(())
    }
}

/// What is read of a WebSocket.
#[derive(Default)]
struct WebSocket {
    has_asked: bool,
    is_open: bool,
    /// The response, or the head of a frame, that is not all there.
    head: Vec<u8>,
    /// Payload of this frame that has not come.
    left: usize,
}

impl WebSocket {
    fn take(&mut self, mut bytes: &[u8], data: &mut Vec<u8>) -> anyhow::Result<()> {
        while let Some((&byte, rest)) = bytes.split_first() {
            if self.left > 0 {
                let (payload, rest) = bytes.split_at(self.left.min(bytes.len()));
                data.extend_from_slice(payload);
                self.left -= payload.len();
                bytes = rest;
                continue;
            }
            self.head.push(byte);
            bytes = rest;
            if !self.is_open {
                self.take_response()?;
            } else if let Some(length) = frame_length(&self.head)? {
                self.left = length;
                self.head = Vec::new();
            }
        }
        Ok(())
    }

    fn take_response(&mut self) -> anyhow::Result<()> {
        ensure!(
            self.head.len() <= RESPONSE_BYTES_MAX,
            "an endless answer to the request for a WebSocket"
        );
        if self.head.ends_with(b"\r\n\r\n") {
            ensure!(
                self.head.starts_with(b"HTTP/1.1 101 "),
                "no WebSocket: {}",
                String::from_utf8_lossy(&self.head)
            );
            self.is_open = true;
            self.head = Vec::new();
        }
        Ok(())
    }
}

/// Payload of the frame with this head, once that is complete.
fn frame_length(head: &[u8]) -> anyhow::Result<Option<usize>> {
    ensure!(
        head[0] == 0x82,
        "the broker sent a frame with first byte {:#04x}",
        head[0]
    );
    Ok(match *head {
        [_, short @ 0..=125] => Some(short.into()),
        [_, 126, high, low] => Some(u16::from_be_bytes([high, low]).into()),
        [_, 127, _, _, _, _, a, b, c, d] => Some(u32::from_be_bytes([a, b, c, d]) as usize),
        _ => None,
    })
}

/// One masked frame.
fn frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x82];
    match payload.len() {
        short @ 0..=125 => frame.push(0x80 | short as u8),
        medium @ 126..=0xFFFF => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&MASK);
    let masked = payload.iter().zip(MASK.iter().cycle());
    frame.extend(masked.map(|(byte, mask)| byte ^ mask));
    frame
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn websocket() -> Link {
        let transport = Transport::new(None, true, Versions::All, false).unwrap();
        transport.link().unwrap()
    }

    #[test]
    fn data_waits_for_the_answer_and_goes_out_in_a_frame() {
        let mut link = websocket();
        let (mut data, mut sealed) = (b"ab".to_vec(), Vec::new());
        link.seal(&mut data, &mut sealed).unwrap();
        assert_eq!((&data[..], &sealed[..]), (&b"ab"[..], REQUEST));
        sealed.clear();
        let mut came = Vec::new();
        let answer =
            b"HTTP/1.1 101 Switching Protocols\r\nX: y\r\n\r\n\x82\x03one\x82\x7E\x00\x03two";
        for byte in answer.chunks(1) {
            link.open(byte, &mut came).unwrap();
        }
        assert_eq!(came, b"onetwo");
        link.seal(&mut data, &mut sealed).unwrap();
        assert_eq!(sealed, b"\x82\x82\x37\xFA\x21\x3D\x56\x98");
        assert!(data.is_empty());
    }

    #[test]
    fn a_refusal_and_a_close_frame_are_errors() {
        let refusal = b"HTTP/1.1 404 Not Found\r\n\r\n";
        assert!(websocket().open(refusal, &mut Vec::new()).is_err());
        let closed = b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x88\x02\x03\xE8";
        assert!(websocket().open(closed, &mut Vec::new()).is_err());
    }
}
