//! Any bytes as frames of WebSocket, in any split: the decoder never panics, ends alike however the bytes arrive, and
//! makes no more of them than came. What one side writes the other reads.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;

// The broker as a whole would take minutes to build; the codec needs nothing of it.
#[path = "../../../broker/src/transport/ws/frame.rs"]
#[allow(dead_code, reason = "a part of it is for the broker")]
mod frame;

use frame::{Closed, Decoder, Opcode, Side, put_frame};

const FRAME_BYTES_MAX: u64 = 1 << 20;
/// What the decoder may answer: see `ANSWER_BYTES_MAX`, and a pong and a close frame beyond.
const ANSWER_BYTES_MAX: usize = (4 << 10) + 256;

fuzz_target!(|input: &[u8]| {
    let [mode, step, bytes @ ..] = input else {
        return;
    };
    let side = if mode & 1 == 0 { Side::Server } else { Side::Client };
    let whole = decode_all(side, [bytes]);
    let in_steps = decode_all(side, bytes.chunks(usize::from(*step).max(1)));
    assert!(whole.0.len() <= bytes.len());
    assert_eq!((&whole.0, &whole.2), (&in_steps.0, &in_steps.2));
    // Pongs may be dropped at other places; masks of a client's answers are random anyway.
    assert!(whole.1.len().max(in_steps.1.len()) <= ANSWER_BYTES_MAX);
    check_round_trip(bytes);
});

fn decode_all<'a>(
    side: Side,
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> (BytesMut, BytesMut, Result<(), Closed>) {
    let mut decoder = Decoder::new(side, FRAME_BYTES_MAX);
    let (mut data, mut answers) = (BytesMut::new(), BytesMut::new());
    for chunk in chunks {
        let end = decoder.decode(chunk, &mut data, &mut answers, 0);
        if end.is_err() {
            return (data, answers, end);
        }
    }
    (data, answers, Ok(()))
}

fn check_round_trip(payload: &[u8]) {
    for (writes, reads) in [(Side::Client, Side::Server), (Side::Server, Side::Client)] {
        let mut bytes = BytesMut::new();
        put_frame(&mut bytes, writes, Opcode::Binary, payload);
        let (data, _, end) = decode_all(reads, [&bytes[..]]);
        assert_eq!((&data[..], end), (payload, Ok(())));
    }
}
