//! MQTT over WebSocket (RFC 6455; MQTT 5.0, section 6): the upgrade and the frames. It does no IO.

mod client;
mod frame;
mod upgrade;

use std::sync::Arc;

use bytes::BytesMut;

use client::Handshake;
use frame::{Closed, Decoder, Opcode, Side, put_close, put_frame};
use upgrade::{Answer, Request};

/// A frame may carry many packets: it is passed on as it comes, so its size is bounded for good order only.
const FRAME_BYTES_MIN: u64 = 16 << 20;
/// How much larger than the largest packet a frame may be.
const FRAME_BYTES_OVER: u64 = 64 << 10;

/// What a listener asks of its clients.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// The origins that a browser may come from; empty: any. A client that names none is no browser.
    pub origins: Arc<[String]>,
    /// The largest packet of MQTT.
    pub packet_bytes_max: u64,
}

impl Rules {
    fn decoder(&self) -> Decoder {
        let most = (self.packet_bytes_max + FRAME_BYTES_OVER).max(FRAME_BYTES_MIN);
        Decoder::new(Side::Server, most)
    }
}

/// A connection that is, or becomes, a WebSocket.
#[derive(Debug)]
pub struct WebSocket {
    state: State,
}

#[derive(Debug)]
enum State {
    /// Of a server: until the request is there. Boxed, as all that is idle is open.
    Asked(Box<(Request, Rules)>),
    /// Of a client: until the answer is there.
    Asking(Box<Handshake>),
    Open(Decoder),
    /// Nothing more is read or written.
    Closed,
}

/// Why a WebSocket is over.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    #[error(transparent)]
    Closed(#[from] Closed),
    #[error("the request for a WebSocket was refused")]
    Refused,
    /// Of a client.
    #[error("{0}")]
    NotAccepted(String),
}

impl WebSocket {
    /// One that a client is to ask for.
    pub fn server(rules: Rules) -> WebSocket {
        let state = State::Asked(Box::new((Request::default(), rules)));
        WebSocket { state }
    }

    /// One that a client asks for, and the request.
    pub fn client(host: &str) -> (WebSocket, String) {
        let (handshake, request) = Handshake::new(host);
        let state = State::Asking(Box::new(handshake));
        (WebSocket { state }, request)
    }

    /// Whether frames can be sent.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    /// Takes all of `input`: data goes to `data`, what has to be said to `answers`. `unwritten` is how many bytes wait to
    /// be written to the peer already.
    pub fn decode(
        &mut self,
        input: &[u8],
        data: &mut BytesMut,
        answers: &mut BytesMut,
        unwritten: usize,
    ) -> Result<(), Ended> {
        let decoded = match &mut self.state {
            State::Open(decoder) => decoder
                .decode(input, data, answers, unwritten)
                .map_err(Ended::from),
            State::Closed => Ok(()),
            State::Asked(_) | State::Asking(_) => match self.shake_hands(input, answers) {
                Ok(Some(rest)) => return self.decode(&rest, data, answers, unwritten),
                Ok(None) => Ok(()),
                Err(ended) => Err(ended),
            },
        };
        if decoded.is_err() {
            self.state = State::Closed;
        }
        decoded
    }

    /// Gives what came behind the handshake once that is done.
    fn shake_hands(
        &mut self,
        input: &[u8],
        answers: &mut BytesMut,
    ) -> Result<Option<Vec<u8>>, Ended> {
        let (rest, decoder) = match &mut self.state {
            State::Asked(asked) => {
                let (request, rules) = &mut **asked;
                match request.take(input, rules) {
                    Answer::Partial => return Ok(None),
                    Answer::Accepted { response, rest } => {
                        answers.extend_from_slice(response.as_bytes());
                        (rest, rules.decoder())
                    }
                    Answer::Refused { response } => {
                        answers.extend_from_slice(response.as_bytes());
                        return Err(Ended::Refused);
                    }
                }
            }
            State::Asking(handshake) => match handshake.take(input).map_err(Ended::NotAccepted)? {
                None => return Ok(None),
                Some(rest) => (rest, Decoder::new(Side::Client, u64::MAX)),
            },
            State::Open(_) | State::Closed => return Ok(None),
        };
        self.state = State::Open(decoder);
        Ok(Some(rest))
    }

    /// Appends `data` as one frame, where frames can be sent.
    pub fn encode(&self, data: &[u8], out: &mut BytesMut) {
        if let State::Open(decoder) = &self.state {
            put_frame(out, decoder.side(), Opcode::Binary, data);
        }
    }

    /// Appends the last word, where none was said.
    pub fn close(&mut self, out: &mut BytesMut) {
        if let State::Open(decoder) = &self.state {
            put_close(out, decoder.side(), 1000);
            self.state = State::Closed;
        }
    }
}
