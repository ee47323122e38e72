//! Tests of the decoder's state, and properties over arbitrary packets.

mod strategy;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::packet::testing::*;
use crate::packet::{PubAck, QoS};
use crate::reason::ReasonCode;

const CONNECT_V4: &[u8] = b"\x10\x0C\0\x04MQTT\x04\x02\0\x3C\0\0";
const CONNECT_V5: &[u8] = b"\x10\x0D\0\x04MQTT\x05\x02\0\x3C\0\0\0";

#[test]
fn the_version_comes_from_connect() {
    let mut decoder = Decoder::new(1000);
    assert_eq!(decoder.version(), None);
    let mut src = BytesMut::from(CONNECT_V5);
    src.extend_from_slice(&[0xF0, 0]);
    let connect = decoder.decode(&mut src).unwrap().unwrap();
    assert_eq!(connect.packet_type(), PacketType::Connect);
    assert_eq!(decoder.version(), Some(V5));
    let auth = decoder.decode(&mut src).unwrap().unwrap();
    assert_eq!(auth.packet_type(), PacketType::Auth);
    assert_eq!(decoder.decode(&mut src), Ok(None));
}

#[test]
fn a_refused_connect_still_tells_its_version() {
    let mut decoder = Decoder::new(1000);
    let mut src = BytesMut::from(&b"\x10\x0A\0\x04MQTT\x05\x01\0\0"[..]);
    let error = decoder.decode(&mut src).unwrap_err();
    assert_eq!(error.reason(), ReasonCode::MalformedPacket);
    assert_eq!(decoder.version(), Some(V5));
}

#[test]
fn connect_comes_first_and_once() {
    let expected = Violation::ConnectExpected(PacketType::PingReq);
    assert_eq!(first(&[0xC0]), Err(expected.into()));
    let expected = Violation::ConnectExpected(PacketType::Auth);
    assert_eq!(first(&[0xF0]), Err(expected.into()));
    assert_eq!(
        from_client(V4, &CONNECT_V4[..1]),
        Err(Violation::SecondConnect.into())
    );
}

#[test]
fn the_first_byte_is_judged_before_the_length() {
    let expected = Violation::ConnectExpected(PacketType::Publish);
    assert_eq!(first(&[0x30, 0x80, 0x80, 0x80, 0x80]), Err(expected.into()));
}

#[test]
fn connect_is_read_in_its_own_version() {
    let connect = from_server(V3, CONNECT_V5).unwrap();
    assert_eq!(first(CONNECT_V5), Ok(connect));
}

#[test]
fn packets_of_a_server_are_refused_from_a_client_at_their_first_byte() {
    for (number, packet) in [
        (0x20, PacketType::ConnAck),
        (0x90, PacketType::SubAck),
        (0xB0, PacketType::UnsubAck),
        (0xD0, PacketType::PingResp),
    ] {
        let refused = Violation::NotFromClient(packet);
        assert_eq!(from_client(V5, &[number]), Err(refused.into()));
    }
}

#[test]
fn an_oversized_packet_is_refused_by_its_header() {
    let mut decoder = Decoder::after_connect(V4, 100);
    let mut src = BytesMut::from(&[0x30, 99][..]);
    let too_large = DecodeError::PacketTooLarge {
        size: 101,
        max: 100,
    };
    assert_eq!(decoder.missing(&src), None);
    assert_eq!(decoder.decode(&mut src), Err(too_large));
    assert_eq!(too_large.reason(), ReasonCode::PacketTooLarge);
    let mut src = BytesMut::from(&[0x30, 98][..]);
    assert_eq!(decoder.missing(&src), Some(98));
    assert_eq!(decoder.decode(&mut src), Ok(None));
}

#[test]
fn a_padded_length_is_malformed_in_5_alone() {
    let expected = Ok(PubAck::new(id(1), ReasonCode::Success).into());
    let padded = [0x40, 0x82, 0x80, 0x00, 0, 1];
    assert_eq!(from_client(V3, &padded), expected);
    assert_eq!(from_client(V4, &padded), expected);
    assert_eq!(from_client(V5, &padded), Err(Malformed::VarInt.into()));
    let pad = |connect: &[u8]| [&[0x10, connect[1] | 0x80, 0], &connect[2..]].concat();
    assert!(first(&pad(CONNECT_V4)).is_ok());
    assert_eq!(first(&pad(CONNECT_V5)), Err(Malformed::VarInt.into()));
}

#[test]
fn missing_counts_down_to_a_whole_packet() {
    let whole = b"\x30\x07\0\x03a/bhi";
    let decoder = Decoder::after_connect(V4, 100);
    let missing = |len: usize| decoder.missing(&BytesMut::from(&whole[..len]));
    assert_eq!(missing(0), None);
    assert_eq!(missing(1), None);
    assert_eq!(missing(2), Some(7));
    assert_eq!(missing(8), Some(1));
    assert_eq!(missing(9), None);
}

#[test]
fn decoding_leaves_what_follows() {
    let mut decoder = Decoder::after_connect(V4, 100);
    let mut src = BytesMut::from(&b"\x40\x02\0\x01\xC0"[..]);
    assert!(decoder.decode(&mut src).unwrap().is_some());
    assert_eq!(&src[..], [0xC0]);
}

#[test]
fn a_packet_beyond_the_four_byte_length_is_not_written() {
    let payload = vec![0; VARINT_MAX as usize];
    let properties = crate::property::Properties::new();
    let parts = PublishParts {
        dup: false,
        qos: QoS::AtMostOnce,
        retain: false,
        topic: "t",
        packet_id: None,
        properties: &properties,
        subscription_ids: &[],
        topic_alias: None,
        message_expiry_s: None,
        payload: &payload,
    };
    let mut dst = BytesMut::new();
    let written = encode_publish(&parts, V4, &mut dst);
    let size = publish_len(&parts, V4);
    assert_eq!(written, Err(EncodeError::PacketTooLarge(size)));
    assert!(dst.is_empty());
}

#[test]
fn errors_know_the_reason_to_answer_with() {
    for (error, reason) in [
        (
            DecodeError::UnsupportedVersion { level: 6 },
            ReasonCode::UnsupportedProtocolVersion,
        ),
        (
            DecodeError::TopicAliasInvalid,
            ReasonCode::TopicAliasInvalid,
        ),
        (Malformed::Truncated.into(), ReasonCode::MalformedPacket),
        (Violation::SecondConnect.into(), ReasonCode::ProtocolError),
    ] {
        assert_eq!(error.reason(), reason);
    }
    assert_eq!(DecodeError::TopicAliasInvalid.answer_version(), None);
}

/// Decodes all of `chunks` as they arrive, until the first error.
fn decode_all<'a>(
    mut decoder: Decoder,
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Packet>, Option<DecodeError>) {
    let mut src = BytesMut::new();
    let mut packets = Vec::new();
    for chunk in chunks {
        src.extend_from_slice(chunk);
        loop {
            let missing = decoder.missing(&src);
            match decoder.decode(&mut src) {
                Ok(Some(packet)) => packets.push(packet),
                Ok(None) => break,
                Err(error) => return (packets, Some(error)),
            }
            assert_eq!(missing, None, "nothing was missing");
        }
    }
    (packets, None)
}

fn decoder_for(version: Version) -> Decoder {
    let mut decoder = Decoder::new(1 << 20);
    decoder.set_version(version);
    decoder
}

fn versions() -> impl Strategy<Value = Version> {
    prop_oneof![Just(V3), Just(V4), Just(V5)]
}

/// Bytes that look like packets more often than plain noise does.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let packet = (any::<u8>(), proptest::collection::vec(any::<u8>(), 0..60));
    let framed = packet.prop_map(|(first, body)| [&[first, body.len() as u8][..], &body].concat());
    let connect = prop_oneof![
        Just(CONNECT_V4.to_vec()),
        Just(CONNECT_V5.to_vec()),
        Just(Vec::new())
    ];
    let rest = prop_oneof![
        proptest::collection::vec(framed, 0..6).prop_map(|frames| frames.concat()),
        proptest::collection::vec(any::<u8>(), 0..200),
    ];
    (connect, rest).prop_map(|(connect, rest)| [connect, rest].concat())
}

proptest! {
    #[test]
    fn packets_are_read_as_they_were_written(
        (version, packet) in versions().prop_flat_map(|v| (Just(v), strategy::packet(v))),
    ) {
        let mut src = encoded(packet.clone(), version).unwrap();
        let decoded = decoder_for(version).decode(&mut src);
        prop_assert_eq!(decoded, Ok(Some(packet)));
        prop_assert!(src.is_empty());
    }

    #[test]
    fn any_split_of_the_bytes_gives_the_same_packets(
        (version, packets) in versions().prop_flat_map(|version| {
            (Just(version), proptest::collection::vec(strategy::packet(version), 1..5))
        }),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let mut bytes = BytesMut::new();
        for packet in &packets {
            encode(packet, version, &mut bytes).unwrap();
        }
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let chunks = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]);
        let (decoded, error) = decode_all(decoder_for(version), chunks);
        prop_assert_eq!(error, None);
        prop_assert_eq!(decoded, packets);
    }

    #[test]
    fn noise_never_panics_and_fails_alike_in_any_split(bytes in noise(), step in 1..7_usize) {
        let whole = decode_all(Decoder::new(200), [&bytes[..]]);
        let in_steps = decode_all(Decoder::new(200), bytes.chunks(step));
        prop_assert_eq!(&whole, &in_steps);
        for version in [V3, V4, V5] {
            decode_all(decoder_for(version), [&bytes[..]]);
        }
    }

    #[test]
    fn what_was_read_can_be_written_and_read_again(version in versions(), bytes in noise()) {
        let (packets, _) = decode_all(decoder_for(version), [&bytes[..]]);
        for packet in packets {
            let version = match &packet {
                Packet::Connect(connect) => connect.version,
                _ => version,
            };
            let written = encoded(packet.clone(), version).unwrap();
            prop_assert_eq!(from_server(version, &written), Ok(packet));
        }
    }

    #[test]
    fn a_changed_byte_never_panics(
        (version, packet) in versions().prop_flat_map(|v| (Just(v), strategy::packet(v))),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = encoded(packet, version).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let (packets, _) = decode_all(decoder_for(version), [&bytes[..]]);
        for packet in packets {
            let shown = format!("{packet:?}");
            prop_assert!(!shown.is_empty());
        }
    }

    #[test]
    fn property_bytes_between_nodes_are_read_as_they_were_written(
        properties in strategy::properties(Context::Publish),
    ) {
        let mut dst = BytesMut::new();
        properties.encode(&mut dst).unwrap();
        prop_assert_eq!(dst.len(), properties.encoded_len());
        let mut src: Bytes = dst.freeze();
        let decoded = crate::property::Properties::decode(&mut src, Context::Publish);
        prop_assert_eq!(decoded, Ok(properties.clone()));
        prop_assert!(src.is_empty());
        prop_assert_eq!(properties.compact(), properties);
    }
}
