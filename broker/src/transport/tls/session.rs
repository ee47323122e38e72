//! One TLS session, driven by hand: bytes in, bytes out, and no buffer of its own while it waits. It does no IO.

use std::fmt;
use std::sync::Arc;

use bytes::BytesMut;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic,
};
use rustls::{ClientConfig, ServerConfig};

use super::certificate::Identity;

/// What may wait for the rest of a record or of a handshake message. A record has at most 16 KiB and a little; a client
/// hello or a chain of certificates of this length is none.
const INCOMING_BYTES_MAX: usize = 32 << 10;
/// A record adds less than this to what is in it.
const RECORD_OVERHEAD: usize = 64;
/// The first byte of every handshake.
const HANDSHAKE: u8 = 0x16;

/// Why a session is over. What is to be said about it stands in what is to be sent.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Nothing is said.
    #[error("what came first is no TLS")]
    NotTls,
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("TLS: a message that is too long")]
    TooLong,
    #[error("TLS: nothing may be sent now")]
    NotOpen,
}

/// A session of either side.
#[derive(Debug)]
pub struct Session {
    connection: Side,
    /// Received and not complete; without capacity while there is nothing.
    incoming: Vec<u8>,
    state: State,
    identity: Identity,
}

enum Side {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

impl fmt::Debug for Side {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Side::Server(_) => "Server",
            Side::Client(_) => "Client",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing has come yet.
    New,
    Handshaking,
    Open,
    /// The peer sends nothing more.
    Ended,
    /// After an error the connection must not be asked anything.
    Failed,
}

impl Session {
    /// The side of the broker.
    pub fn server(config: Arc<ServerConfig>, identity: Identity) -> Result<Session, rustls::Error> {
        let connection = Side::Server(UnbufferedServerConnection::new(config)?);
        Ok(Session::new(connection, State::New, identity))
    }

    /// The side of a client.
    pub fn client(
        config: Arc<ClientConfig>,
        server: ServerName<'static>,
    ) -> Result<Session, rustls::Error> {
        let connection = Side::Client(UnbufferedClientConnection::new(config, server)?);
        let identity = Identity(crate::config::listener::CertIdentity::CommonName);
        Ok(Session::new(connection, State::Handshaking, identity))
    }

    fn new(connection: Side, state: State, identity: Identity) -> Session {
        Session {
            connection,
            incoming: Vec::new(),
            state,
            identity,
        }
    }

    /// Whether the handshake is done.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Whether the peer said that it sends nothing more.
    pub fn has_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Who the certificate of the client names, where it showed one.
    pub fn peer(&self) -> Option<Box<str>> {
        let chain = match &self.connection {
            Side::Server(connection) => connection.peer_certificates(),
            Side::Client(_) => None,
        };
        chain
            .and_then(|chain| chain.first())
            .and_then(|first| self.identity.of(first))
    }

    /// Takes what was received: data goes to `data`, what has to be sent to `out`.
    pub fn open(
        &mut self,
        received: &mut [u8],
        out: &mut BytesMut,
        data: &mut dyn FnMut(&[u8]),
    ) -> Result<(), SessionError> {
        match (self.state, received.first()) {
            (State::New, None) => return Ok(()),
            (State::New, Some(&HANDSHAKE)) => self.state = State::Handshaking,
            (State::New, Some(_)) => {
                self.state = State::Failed;
                return Err(SessionError::NotTls);
            }
            (State::Failed, _) => return Err(SessionError::NotOpen),
            (State::Handshaking | State::Open | State::Ended, _) => {}
        }
        if self.incoming.is_empty() {
            let taken = self.process(received, out, data)?;
            self.incoming.extend_from_slice(&received[taken..]);
        } else {
            let mut incoming = std::mem::take(&mut self.incoming);
            incoming.extend_from_slice(received);
            let taken = self.process(&mut incoming, out, data)?;
            if taken < incoming.len() {
                incoming.drain(..taken);
                self.incoming = incoming;
            }
        }
        if self.incoming.len() > INCOMING_BYTES_MAX {
            self.state = State::Failed;
            return Err(SessionError::TooLong);
        }
        Ok(())
    }

    /// Puts the first message of a client into `out`.
    pub fn begin(&mut self, out: &mut BytesMut) -> Result<(), SessionError> {
        self.open(&mut [], out, &mut |_| ())
    }

    /// Appends records with all of `plain` to `out`.
    pub fn seal(&mut self, plain: &[u8], out: &mut BytesMut) -> Result<(), SessionError> {
        self.when_writable(out, &mut |traffic, out| {
            let records = plain.len() / (16 << 10) + 1;
            fill(out, plain.len() + records * RECORD_OVERHEAD, |out| {
                traffic.encrypt(plain, out)
            })
        })
    }

    /// Appends the last word, if one may be said.
    pub fn close(&mut self, out: &mut BytesMut) {
        // What cannot be said need not be.
        let _ = self.when_writable(out, &mut |traffic, out| {
            fill(out, RECORD_OVERHEAD, |out| traffic.queue_close_notify(out))
        });
    }

    /// Drives the connection as far as `received` goes. Returns how much of it was taken.
    fn process(
        &mut self,
        received: &mut [u8],
        out: &mut BytesMut,
        data: &mut dyn FnMut(&[u8]),
    ) -> Result<usize, SessionError> {
        let mut taken = 0;
        loop {
            let rest = &mut received[taken..];
            let (discard, step) = match &mut self.connection {
                Side::Server(side) => step(side.process_tls_records(rest), out, data),
                Side::Client(side) => step(side.process_tls_records(rest), out, data),
            };
            taken += discard;
            match step {
                Ok(Step::Again) => {}
                Ok(Step::Blocked) => return Ok(taken),
                Ok(Step::Writable) => {
                    if self.state == State::Handshaking {
                        self.state = State::Open;
                    }
                    return Ok(taken);
                }
                Ok(Step::Ended) => self.state = State::Ended,
                Ok(Step::Closed) => {
                    self.state = State::Ended;
                    return Ok(received.len());
                }
                Err(e) => {
                    self.put_alert(&mut received[taken..], out);
                    return Err(e.into());
                }
            }
        }
    }

    /// After an error: what the peer is told. It is the first that is asked for, and nothing else may be.
    fn put_alert(&mut self, rest: &mut [u8], out: &mut BytesMut) {
        self.state = State::Failed;
        let (_, _) = match &mut self.connection {
            Side::Server(side) => step(side.process_tls_records(rest), out, &mut |_| ()),
            Side::Client(side) => step(side.process_tls_records(rest), out, &mut |_| ()),
        };
    }

    /// Calls `write` once something may be sent.
    fn when_writable(
        &mut self,
        out: &mut BytesMut,
        write: &mut dyn FnMut(&mut dyn Traffic, &mut BytesMut) -> Result<(), EncryptError>,
    ) -> Result<(), SessionError> {
        if self.state == State::Failed {
            return Err(SessionError::NotOpen);
        }
        loop {
            // Empty, or the head of a record: nothing can be read from it.
            let incoming = &mut self.incoming[..];
            let step = match &mut self.connection {
                Side::Server(side) => write_step(side.process_tls_records(incoming), out, write),
                Side::Client(side) => write_step(side.process_tls_records(incoming), out, write),
            };
            let step = step.inspect_err(|_| self.state = State::Failed)?;
            match step {
                Step::Again => {}
                Step::Writable => return Ok(()),
                Step::Ended => self.state = State::Ended,
                Step::Blocked | Step::Closed => return Err(SessionError::NotOpen),
            }
        }
    }
}

/// What one step of the connection came to.
enum Step {
    /// There is more to do.
    Again,
    /// The handshake waits for the peer.
    Blocked,
    /// Nothing is left of what was received; data may be sent.
    Writable,
    /// The peer sends nothing more.
    Ended,
    /// Neither side sends anything more.
    Closed,
}

fn step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    out: &mut BytesMut,
    data: &mut dyn FnMut(&[u8]),
) -> (usize, Result<Step, rustls::Error>) {
    let UnbufferedStatus { mut discard, state } = status;
    let state = match state {
        Ok(state) => state,
        Err(e) => return (discard, Err(e)),
    };
    let step = match state {
        ConnectionState::ReadTraffic(mut traffic) => loop {
            match traffic.next_record() {
                Some(Ok(record)) => {
                    discard += record.discard;
                    data(record.payload);
                }
                Some(Err(e)) => break Err(e),
                None => break Ok(Step::Again),
            }
        },
        ConnectionState::EncodeTlsData(mut message) => encode(&mut message, out),
        ConnectionState::TransmitTlsData(message) => {
            message.done();
            Ok(Step::Again)
        }
        ConnectionState::BlockedHandshake => Ok(Step::Blocked),
        ConnectionState::WriteTraffic(_) => Ok(Step::Writable),
        ConnectionState::PeerClosed => Ok(Step::Ended),
        ConnectionState::Closed => Ok(Step::Closed),
        // Early data is not offered.
        _ => Err(rustls::Error::General("an unexpected state".to_owned())),
    };
    (discard, step)
}

/// As [`step`], where nothing is there to be read, and writes when that is possible.
fn write_step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    out: &mut BytesMut,
    write: &mut dyn FnMut(&mut dyn Traffic, &mut BytesMut) -> Result<(), EncryptError>,
) -> Result<Step, SessionError> {
    match status {
        UnbufferedStatus {
            state: Ok(ConnectionState::WriteTraffic(mut traffic)),
            ..
        } => match write(&mut traffic, out) {
            Ok(()) => Ok(Step::Writable),
            Err(_) => Err(SessionError::NotOpen),
        },
        status => Ok(step(status, out, &mut |_| ()).1?),
    }
}

fn encode<Data>(
    message: &mut EncodeTlsData<'_, Data>,
    out: &mut BytesMut,
) -> Result<Step, rustls::Error> {
    let encoded = fill(out, 4 << 10, |out| {
        message.encode(out).map_err(|e| match e {
            EncodeError::InsufficientSize(e) => EncryptError::InsufficientSize(e),
            EncodeError::AlreadyEncoded => EncryptError::EncryptExhausted,
        })
    });
    match encoded {
        Ok(()) => Ok(Step::Again),
        Err(e) => Err(rustls::Error::General(e.to_string())),
    }
}

/// The two things that can be written, whichever side it is.
trait Traffic {
    fn encrypt(&mut self, plain: &[u8], out: &mut [u8]) -> Result<usize, EncryptError>;
    fn queue_close_notify(&mut self, out: &mut [u8]) -> Result<usize, EncryptError>;
}

impl<Data> Traffic for WriteTraffic<'_, Data> {
    fn encrypt(&mut self, plain: &[u8], out: &mut [u8]) -> Result<usize, EncryptError> {
        WriteTraffic::encrypt(self, plain, out)
    }

    fn queue_close_notify(&mut self, out: &mut [u8]) -> Result<usize, EncryptError> {
        WriteTraffic::queue_close_notify(self, out)
    }
}

/// Lets `write` fill the room behind the end of `out`; `guess` bytes of it first, as many as it asks for then.
fn fill(
    out: &mut BytesMut,
    guess: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, EncryptError>,
) -> Result<(), EncryptError> {
    let start = out.len();
    let mut room = guess;
    for _ in 0..2 {
        out.resize(start + room, 0);
        match write(&mut out[start..]) {
            Ok(written) => {
                out.truncate(start + written);
                return Ok(());
            }
            Err(EncryptError::InsufficientSize(e)) => room = e.required_size,
            Err(e) => {
                out.truncate(start);
                return Err(e);
            }
        }
    }
    out.truncate(start);
    Err(EncryptError::EncryptExhausted)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
