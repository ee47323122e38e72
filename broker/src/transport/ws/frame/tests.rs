//! Frames cut anywhere, fragments, control frames between them, and what is refused.

use proptest::prelude::*;

use super::*;

const MAX: u64 = 1 << 20;

/// A frame as a client sends it, with any first byte and any length field.
fn frame(first: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        short @ 0..=125 => out.push(0x80 | short as u8),
        medium @ 126..=0xFFFF => {
            out.push(0x80 | 126);
            out.extend((medium as u16).to_be_bytes());
        }
        long => {
            out.push(0x80 | 127);
            out.extend((long as u64).to_be_bytes());
        }
    }
    out.extend(mask);
    out.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    out
}

const MASK: [u8; 4] = [1, 2, 3, 4];

struct Read {
    data: Vec<u8>,
    answers: Vec<u8>,
    end: Result<(), Closed>,
}

fn read_in_pieces(bytes: &[u8], piece: usize) -> Read {
    let mut decoder = Decoder::new(Side::Server, MAX);
    let (mut data, mut answers) = (BytesMut::new(), BytesMut::new());
    let end = bytes
        .chunks(piece)
        .try_for_each(|piece| decoder.decode(piece, &mut data, &mut answers, 0));
    Read {
        data: data.to_vec(),
        answers: answers.to_vec(),
        end,
    }
}

fn read(bytes: &[u8]) -> Read {
    read_in_pieces(bytes, bytes.len().max(1))
}

fn refused_with(bytes: &[u8]) -> u16 {
    let Read { answers, end, .. } = read(bytes);
    let Err(Closed::Refused { code, why }) = end else {
        panic!("{end:?}");
    };
    assert_eq!(answers[..2], [0x88, 2], "{why}: a close frame");
    assert_eq!(answers[2..], code.to_be_bytes(), "{why}");
    code
}

#[test]
fn data_comes_out_unmasked_whatever_its_length() {
    for length in [0, 1, 125, 126, 127, 65_535, 65_536, 200_000] {
        let payload: Vec<u8> = (0..length).map(|at: u32| at as u8).collect();
        let out = read(&frame(0x82, [0xA5, 0x5A, 0xFF, 0x01], &payload));
        assert_eq!((out.data == payload, out.end), (true, Ok(())), "{length}");
    }
}

#[test]
fn data_is_passed_on_before_its_frame_is_complete() {
    let bytes = frame(0x82, MASK, b"0123456789");
    let out = read(&bytes[..bytes.len() - 4]);
    assert_eq!(out.data, b"012345");
}

#[test]
fn control_frames_come_between_fragments() {
    let mut bytes = frame(0x02, MASK, b"ab");
    bytes.extend(frame(0x89, MASK, b"you there?"));
    bytes.extend(frame(0x00, MASK, b"cd"));
    bytes.extend(frame(0x8A, MASK, b"not asked for"));
    bytes.extend(frame(0x80, MASK, b"ef"));
    bytes.extend(frame(0x82, MASK, b"gh"));
    for piece in 1..bytes.len() {
        let out = read_in_pieces(&bytes, piece);
        assert_eq!(out.data, b"abcdefgh");
        assert_eq!(out.answers, b"\x8A\x0Ayou there?");
        assert_eq!(out.end, Ok(()));
    }
}

#[test]
fn a_close_is_echoed_with_its_code_and_nothing_after_it_is_read() {
    let mut bytes = frame(0x88, MASK, b"\x03\xE8bye");
    bytes.extend(frame(0x82, MASK, b"late"));
    let out = read(&bytes);
    assert_eq!(out.end, Err(Closed::ByPeer));
    assert_eq!(out.answers, b"\x88\x02\x03\xE8");
    assert!(out.data.is_empty());
    assert_eq!(read(&frame(0x88, MASK, b"")).answers, b"\x88\x00");
}

#[test]
fn what_is_not_well_formed_is_refused_with_the_code_for_it() {
    let cases: [(&str, Vec<u8>, u16); 21] = [
        ("text", frame(0x81, MASK, b"hello"), 1003),
        ("text in fragments", frame(0x01, MASK, b"hello"), 1003),
        ("unmasked", b"\x82\x02hi".to_vec(), 1002),
        ("unmasked ping", b"\x89\x00".to_vec(), 1002),
        ("RSV1", frame(0xC2, MASK, b"hi"), 1002),
        ("RSV2", frame(0xA2, MASK, b"hi"), 1002),
        ("RSV3", frame(0x92, MASK, b"hi"), 1002),
        ("opcode 3", frame(0x83, MASK, b"hi"), 1002),
        ("opcode 11", frame(0x8B, MASK, b"hi"), 1002),
        ("ping in fragments", frame(0x09, MASK, b"hi"), 1002),
        ("ping of 126 bytes", frame(0x89, MASK, &[0; 126]), 1002),
        ("continuation of nothing", frame(0x80, MASK, b"hi"), 1002),
        (
            "message in a message",
            [frame(0x02, MASK, b"a"), frame(0x82, MASK, b"b")].concat(),
            1002,
        ),
        ("close with half a code", frame(0x88, MASK, b"\x03"), 1002),
        ("close with 1005", frame(0x88, MASK, b"\x03\xED"), 1002),
        ("close with 999", frame(0x88, MASK, b"\x03\xE7"), 1002),
        ("close with 5000", frame(0x88, MASK, b"\x13\x88"), 1002),
        (
            "close, not UTF-8",
            frame(0x88, MASK, b"\x03\xE8\xFF\xFE"),
            1007,
        ),
        (
            "longer length than need be",
            b"\x82\xFE\x00\x02\0\0\0\0hi".to_vec(),
            1002,
        ),
        (
            "negative length",
            b"\x82\xFF\xFF\0\0\0\0\0\0\0\0\0\0\0".to_vec(),
            1002,
        ),
        (
            "too large",
            b"\x82\xFF\0\0\0\0\0\x10\0\x01\0\0\0\0".to_vec(),
            1009,
        ),
    ];
    for (name, bytes, code) in cases {
        assert_eq!(refused_with(&bytes), code, "{name}");
        let in_pieces = read_in_pieces(&bytes, 1).end;
        assert!(
            matches!(in_pieces, Err(Closed::Refused { code: piecewise, .. }) if piecewise == code)
        );
    }
}

#[test]
fn the_head_alone_is_enough_to_refuse() {
    for head in [&b"\xC2"[..], b"\x81", b"\x82\x05", b"\x89\xFE"] {
        refused_with(head);
    }
}

#[test]
fn endless_empty_fragments_end() {
    let mut bytes = frame(0x02, MASK, b"");
    for _ in 0..EMPTY_FRAMES_MAX {
        bytes.extend(frame(0x00, MASK, b""));
    }
    assert_eq!(refused_with(&bytes), 1008);
    // With data between them they may go on.
    let mut bytes = frame(0x02, MASK, b"");
    for _ in 0..3 * EMPTY_FRAMES_MAX {
        bytes.extend(frame(0x00, MASK, b""));
        bytes.extend(frame(0x00, MASK, b"x"));
    }
    assert_eq!(read(&bytes).end, Ok(()));
}

#[test]
fn pings_without_end_are_not_all_answered() {
    let bytes = frame(0x89, MASK, &[7; 125]).repeat(10_000);
    let out = read(&bytes);
    assert_eq!(out.end, Ok(()));
    assert!(!out.answers.is_empty());
    assert!(out.answers.len() < 2 * ANSWER_BYTES_MAX);
    let mut decoder = Decoder::new(Side::Server, MAX);
    let mut answers = BytesMut::new();
    decoder
        .decode(&bytes, &mut BytesMut::new(), &mut answers, ANSWER_BYTES_MAX)
        .unwrap();
    assert!(answers.is_empty(), "so much waits already");
}

#[test]
fn a_decoder_keeps_no_buffer_while_nothing_is_under_way() {
    let mut decoder = Decoder::new(Side::Server, MAX);
    let bytes = [frame(0x89, MASK, &[7; 125]), frame(0x82, MASK, &[7; 300])].concat();
    decoder
        .decode(&bytes, &mut BytesMut::new(), &mut BytesMut::new(), 0)
        .unwrap();
    assert!(decoder.begun.is_none());
}

/// Frames of a message with pings between them, as a client sends them.
fn conversation() -> impl Strategy<Value = (Vec<u8>, Vec<u8>, Vec<u8>)> {
    let part = (
        prop::collection::vec(any::<u8>(), 0..300),
        any::<[u8; 4]>(),
        prop::option::of(prop::collection::vec(any::<u8>(), 0..125)),
        any::<bool>(),
    );
    prop::collection::vec(part, 1..12).prop_map(|parts| {
        let (mut bytes, mut data, mut answers) = (Vec::new(), Vec::new(), BytesMut::new());
        let mut in_message = false;
        let last = parts.len() - 1;
        for (at, (payload, mask, ping, fin)) in parts.into_iter().enumerate() {
            let fin = fin || at == last;
            let opcode = if in_message { 0 } else { 2 };
            bytes.extend(frame(if fin { 0x80 } else { 0 } | opcode, mask, &payload));
            in_message = !fin;
            data.extend(payload);
            if let Some(ping) = ping {
                bytes.extend(frame(0x89, mask, &ping));
                put_frame(&mut answers, Side::Server, Opcode::Pong, &ping);
            }
        }
        (bytes, data, answers.to_vec())
    })
}

proptest! {
    #[test]
    fn however_it_is_cut_the_same_comes_out((bytes, data, answers) in conversation(), piece in 1..50_usize) {
        let out = read_in_pieces(&bytes, piece);
        prop_assert_eq!(out.end, Ok(()));
        prop_assert_eq!(out.data, data);
        prop_assert_eq!(out.answers, answers);
    }

    #[test]
    fn whatever_comes_the_end_does_not_depend_on_how_it_is_cut(bytes in prop::collection::vec(any::<u8>(), 0..200), piece in 1..20_usize) {
        let (whole, cut) = (read(&bytes), read_in_pieces(&bytes, piece));
        prop_assert_eq!(whole.data, cut.data);
        prop_assert_eq!(whole.answers, cut.answers);
        prop_assert_eq!(whole.end, cut.end);
    }

    #[test]
    fn what_one_side_writes_the_other_reads(payload in prop::collection::vec(any::<u8>(), 0..3_000), times in 1..30_usize) {
        for (writes, reads) in [(Side::Client, Side::Server), (Side::Server, Side::Client)] {
            let (mut bytes, mut data) = (BytesMut::new(), BytesMut::new());
            let payload = payload.repeat(times);
            put_frame(&mut bytes, writes, Opcode::Binary, &payload);
            let mut decoder = Decoder::new(reads, MAX);
            prop_assert_eq!(decoder.decode(&bytes, &mut data, &mut BytesMut::new(), 0), Ok(()));
            prop_assert_eq!(&data[..], &payload[..]);
        }
    }
}
