//! Frames of WebSocket, as a byte machine: data is passed on as it comes, so that neither the size of a frame nor the
//! number of fragments costs memory. It does no IO and never keeps more than the head of a frame and the payload of a
//! control frame.

use bytes::{BufMut, BytesMut};

/// Answers to pings are dropped while this much waits to be written: only the most recent has to be answered
/// (RFC 6455, 5.5.3), and a client that sends them and never reads shall cost nothing.
const ANSWER_BYTES_MAX: usize = 4 << 10;
/// Frames of data without any, one after the other.
const EMPTY_FRAMES_MAX: u16 = 1_024;
/// Payload of a control frame.
const CONTROL_BYTES_MAX: u64 = 125;
const FIN: u8 = 0x80;
const RSV: u8 = 0x70;
const MASKED: u8 = 0x80;
/// Two bytes, the longest length, the mask.
const HEAD_BYTES_MAX: usize = 14;

type Head = [u8; HEAD_BYTES_MAX];

/// Who reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Takes masked frames only.
    Server,
    /// Takes unmasked frames only.
    Client,
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

impl Opcode {
    fn of(byte: u8) -> Option<Opcode> {
        Some(match byte & 0x0F {
            0 => Opcode::Continuation,
            1 => Opcode::Text,
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            _ => return None,
        })
    }

    fn is_control(self) -> bool {
        self as u8 & 8 != 0
    }
}

/// The stream is over. The close frame that answers, or says why, stands behind the answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    #[error("the peer closed the WebSocket")]
    ByPeer,
    #[error("WebSocket: {why}")]
    Refused {
        /// Status code of RFC 6455, 7.4.1.
        code: u16,
        why: &'static str,
    },
}

const fn protocol_error(why: &'static str) -> Closed {
    Closed::Refused { code: 1002, why }
}

/// Reads the frames of one connection. After an error it is of no more use.
#[derive(Debug)]
pub struct Decoder {
    side: Side,
    /// A message has begun and not ended: only its continuation may follow.
    in_message: bool,
    /// One after the other, at most [`EMPTY_FRAMES_MAX`].
    empty_frames: u16,
    /// The largest frame.
    frame_bytes_max: u64,
    /// What there is of a frame that is not all there; none between frames, which is where the idle are.
    begun: Option<Box<Frame>>,
}

/// A frame, as far as it has come.
#[derive(Debug, Default)]
struct Frame {
    /// Complete when `body` is there.
    head: Head,
    head_len: u8,
    body: Option<Body>,
    /// Payload of a control frame; at most [`CONTROL_BYTES_MAX`].
    control: Vec<u8>,
}

/// The payload of a frame, as it comes.
#[derive(Debug, Clone, Copy)]
struct Body {
    opcode: Opcode,
    left: u64,
    /// Zeroes where there is none, which changes nothing.
    mask: [u8; 4],
    /// Where in the mask the next byte stands.
    at: u8,
}

impl Decoder {
    /// A decoder for one side. Frames above `frame_bytes_max` are refused when they are announced.
    pub fn new(side: Side, frame_bytes_max: u64) -> Decoder {
        Decoder {
            side,
            in_message: false,
            empty_frames: 0,
            frame_bytes_max,
            begun: None,
        }
    }

    /// Who reads.
    pub fn side(&self) -> Side {
        self.side
    }

    /// Takes all of `input`: data goes to `data`, what has to be answered to `answers`, as frames. `unwritten` is how many
    /// bytes wait to be written to the peer already.
    pub fn decode(
        &mut self,
        mut input: &[u8],
        data: &mut BytesMut,
        answers: &mut BytesMut,
        unwritten: usize,
    ) -> Result<(), Closed> {
        let mut frame = self
            .begun
            .take()
            .map_or_else(Frame::default, |begun| *begun);
        let closed = loop {
            let body = match frame.body.take() {
                Some(body) => body,
                None => match self.read_head(&mut frame, &mut input) {
                    Ok(Some(body)) => body,
                    Ok(None) => break None,
                    Err(closed) => break Some(closed),
                },
            };
            frame.read_body(body, &mut input, data);
            if frame.body.is_some() {
                // [MQTT-6.0.0-2]: what there is of a packet is passed on, however it is cut.
                break None;
            }
            if body.opcode.is_control()
                && let Err(closed) =
                    self.handle_control(body.opcode, &mut frame, answers, unwritten)
            {
                break Some(closed);
            }
        };
        let Some(closed) = closed else {
            self.begun = frame.has_begun().then(|| Box::new(frame));
            return Ok(());
        };
        if let Closed::Refused { code, .. } = closed {
            put_close(answers, self.side, code);
        }
        Err(closed)
    }

    /// Takes the head of `frame`; gives its body once the head is complete.
    fn read_head(&mut self, frame: &mut Frame, input: &mut &[u8]) -> Result<Option<Body>, Closed> {
        while let Some((byte, rest)) = input.split_first() {
            let at = usize::from(frame.head_len);
            frame.head[at] = *byte;
            frame.head_len += 1;
            *input = rest;
            match at {
                0 => self.check_first(*byte)?,
                1 => self.check_second(&frame.head)?,
                _ => {}
            }
            if at > 0 && usize::from(frame.head_len) == self.head_size(&frame.head) {
                frame.head_len = 0;
                return self.begin(&frame.head).map(Some);
            }
        }
        Ok(None)
    }

    fn check_first(&mut self, byte: u8) -> Result<(), Closed> {
        if byte & RSV != 0 {
            return Err(protocol_error("a reserved bit is set"));
        }
        let opcode = Opcode::of(byte).ok_or(protocol_error("an unknown opcode"))?;
        match opcode {
            // [MQTT-6.0.0-1]
            Opcode::Text => Err(Closed::Refused {
                code: 1003,
                why: "a text frame",
            }),
            Opcode::Binary if self.in_message => {
                Err(protocol_error("a message begins before the last has ended"))
            }
            Opcode::Continuation if !self.in_message => {
                Err(protocol_error("a continuation of no message"))
            }
            _ if opcode.is_control() && byte & FIN == 0 => {
                Err(protocol_error("a control frame in fragments"))
            }
            _ => Ok(()),
        }
    }

    fn check_second(&self, &[first, byte, ..]: &Head) -> Result<(), Closed> {
        match (self.side, byte & MASKED != 0) {
            (Side::Server, false) => return Err(protocol_error("a frame without a mask")),
            (Side::Client, true) => return Err(protocol_error("a frame with a mask")),
            _ => {}
        }
        let is_control = first & 8 != 0;
        if is_control && u64::from(byte & !MASKED) > CONTROL_BYTES_MAX {
            return Err(protocol_error("a control frame that is too long"));
        }
        Ok(())
    }

    /// How long the head will be; its second byte is there.
    fn head_size(&self, head: &Head) -> usize {
        let length = match head[1] & !MASKED {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.side == Side::Server { 4 } else { 0 };
        2 + length + mask
    }

    fn begin(&mut self, head: &Head) -> Result<Body, Closed> {
        let [_, second, a, b, c, d, e, f, g, h, ..] = *head;
        let (left, shortest, mask_at) = match second & !MASKED {
            126 => (u64::from(u16::from_be_bytes([a, b])), 126, 4),
            127 => (u64::from_be_bytes([a, b, c, d, e, f, g, h]), 1 << 16, 10),
            short => (u64::from(short), 0, 2),
        };
        if left < shortest || left > u64::MAX >> 1 {
            return Err(protocol_error("a length that is not well formed"));
        }
        if left > self.frame_bytes_max {
            return Err(Closed::Refused {
                code: 1009,
                why: "a frame that is too large",
            });
        }
        let mask = match (self.side, &head[mask_at..]) {
            (Side::Server, [a, b, c, d, ..]) => [*a, *b, *c, *d],
            _ => [0; 4],
        };
        let opcode = Opcode::of(head[0]).ok_or(protocol_error("an unknown opcode"))?;
        if !opcode.is_control() {
            self.in_message = head[0] & FIN == 0;
            self.empty_frames = if left == 0 { self.empty_frames + 1 } else { 0 };
            if self.empty_frames > EMPTY_FRAMES_MAX {
                return Err(Closed::Refused {
                    code: 1008,
                    why: "frames without end and without data",
                });
            }
        }
        Ok(Body {
            opcode,
            left,
            mask,
            at: 0,
        })
    }

    /// What a complete control frame asks for.
    fn handle_control(
        &self,
        opcode: Opcode,
        frame: &mut Frame,
        answers: &mut BytesMut,
        unwritten: usize,
    ) -> Result<(), Closed> {
        let payload = std::mem::take(&mut frame.control);
        match opcode {
            Opcode::Ping if unwritten + answers.len() < ANSWER_BYTES_MAX => {
                put_frame(answers, self.side, Opcode::Pong, &payload);
                Ok(())
            }
            Opcode::Close => {
                match close_code(&payload)? {
                    Some(code) => put_close(answers, self.side, code),
                    None => put_frame(answers, self.side, Opcode::Close, &[]),
                }
                Err(Closed::ByPeer)
            }
            _ => Ok(()),
        }
    }
}

impl Frame {
    fn has_begun(&self) -> bool {
        self.head_len > 0 || self.body.is_some()
    }

    /// Takes what there is of a payload; what is not there yet stays in `body`.
    fn read_body(&mut self, mut body: Body, input: &mut &[u8], data: &mut BytesMut) {
        let take = usize::try_from(body.left).map_or(input.len(), |left| left.min(input.len()));
        let (bytes, rest) = input.split_at(take);
        *input = rest;
        body.left -= take as u64;
        if body.opcode.is_control() {
            let start = self.control.len();
            self.control.extend_from_slice(bytes);
            unmask(&mut self.control[start..], &mut body);
        } else {
            let start = data.len();
            data.extend_from_slice(bytes);
            unmask(&mut data[start..], &mut body);
        }
        self.body = (body.left > 0).then_some(body);
    }
}

/// The status code that a close frame names.
fn close_code(payload: &[u8]) -> Result<Option<u16>, Closed> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return if payload.is_empty() {
            Ok(None)
        } else {
            Err(protocol_error("a close frame with half a code"))
        };
    };
    let code = u16::from_be_bytes(*code);
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(protocol_error("a status code that may not be sent"));
    }
    if std::str::from_utf8(reason).is_err() {
        return Err(Closed::Refused {
            code: 1007,
            why: "a reason that is not UTF-8",
        });
    }
    Ok(Some(code))
}

fn unmask(bytes: &mut [u8], body: &mut Body) {
    let mut mask = body.mask;
    mask.rotate_left(usize::from(body.at));
    if mask == [0; 4] {
        return;
    }
    // Eight bytes at a time: the compiler makes more of it than of single ones.
    let wide = u64::from_ne_bytes([
        mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3],
    ]);
    let mut chunks = bytes.chunks_exact_mut(8);
    for chunk in &mut chunks {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        chunk.copy_from_slice(&(u64::from_ne_bytes(word) ^ wide).to_ne_bytes());
    }
    for (byte, mask) in chunks.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    body.at = (body.at + (bytes.len() % 4) as u8) % 4;
}

/// Appends a whole frame, as `side` sends it.
pub fn put_frame(out: &mut BytesMut, side: Side, opcode: Opcode, payload: &[u8]) {
    let masked = if side == Side::Client { MASKED } else { 0 };
    out.reserve(HEAD_BYTES_MAX + payload.len());
    out.put_u8(FIN | opcode as u8);
    match payload.len() {
        short @ 0..=125 => out.put_u8(masked | short as u8),
        medium @ 126..=0xFFFF => {
            out.put_u8(masked | 126);
            out.put_u16(medium as u16);
        }
        long => {
            out.put_u8(masked | 127);
            out.put_u64(long as u64);
        }
    }
    let mask = match side {
        Side::Server => [0; 4],
        Side::Client => {
            let mask = rand::random::<[u8; 4]>();
            out.put_slice(&mask);
            mask
        }
    };
    let start = out.len();
    out.put_slice(payload);
    let mut body = Body {
        opcode,
        left: 0,
        mask,
        at: 0,
    };
    unmask(&mut out[start..], &mut body);
}

/// Appends a close frame with a status code.
pub fn put_close(out: &mut BytesMut, side: Side, code: u16) {
    put_frame(out, side, Opcode::Close, &code.to_be_bytes());
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
