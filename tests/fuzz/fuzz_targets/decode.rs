//! Any bytes, in any split: the decoder never panics, fails alike however the bytes arrive, and
//! what it has read can be written and read again.
#![no_main]

use bytes::BytesMut;
use flotte_mqtt::Version;
use flotte_mqtt::codec::{DecodeError, Decoder, encode, encoded_len};
use flotte_mqtt::packet::Packet;
use libfuzzer_sys::fuzz_target;

const MAX_PACKET_SIZE: usize = 64 * 1024;

fuzz_target!(|input: &[u8]| {
    let [mode, step, bytes @ ..] = input else {
        return;
    };
    let decoder = decoder(*mode);
    let (packets, error) = decode_all(decoder.clone(), [bytes]);
    let in_steps = decode_all(decoder, bytes.chunks(usize::from(*step).max(1)));
    assert_eq!((&packets, error), (&in_steps.0, in_steps.1));
    check_round_trip(*mode, packets);
});

/// A server's decoder, which starts with CONNECT, or a client's of some version.
fn decoder(mode: u8) -> Decoder {
    let mut decoder = Decoder::new(MAX_PACKET_SIZE);
    if let Some(version) = Version::from_level(mode) {
        decoder.set_version(version);
    }
    decoder
}

fn decode_all<'a>(
    mut decoder: Decoder,
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Packet>, Option<DecodeError>) {
    let mut src = BytesMut::new();
    let mut packets = Vec::new();
    for chunk in chunks {
        src.extend_from_slice(chunk);
        loop {
            if let Some(missing) = decoder.missing(&src) {
                assert!(src.len() + missing <= MAX_PACKET_SIZE);
            }
            match decoder.decode(&mut src) {
                Ok(Some(packet)) => packets.push(packet),
                Ok(None) => break,
                Err(error) => return (packets, Some(error)),
            }
        }
    }
    (packets, None)
}

fn check_round_trip(mode: u8, packets: Vec<Packet>) {
    // A client's decoder was told the version, a server's has it from its first packet.
    let told = Version::from_level(mode);
    let mut named = None;
    for packet in packets {
        let version = match &packet {
            Packet::Connect(connect) => *named.insert(connect.version),
            _ => told.or(named).expect("CONNECT came first"),
        };
        let mut written = BytesMut::new();
        encode(&packet, version, &mut written).expect("what was read can be written");
        assert_eq!(written.len(), encoded_len(&packet, version));
        let mut decoder = Decoder::new(usize::MAX);
        decoder.set_version(version);
        let again = decoder.decode(&mut written).expect("it can be read again");
        assert_eq!(again, Some(packet));
        assert!(written.is_empty());
    }
}
