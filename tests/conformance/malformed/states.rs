//! Each packet where it has no place: before CONNECT, after DISCONNECT, a second CONNECT, what only a
//! server sends, types that are reserved, and packets that are larger than the limit.

use flotte_tests::Version;
use flotte_tests::wire::{frame, text, varint};

use super::model::{Case, Phase};
use super::table::{
    BEFORE_CONNECT, GOODBYE, Row, SECOND_CONNECT, SERVER_ONLY, TOO_LARGE, TOO_LARGE_CONNECT,
    TYPE_0, TYPE_15, VALID,
};
use super::templates::{self, VERSIONS, connect_with, disconnect, flag, publish};

/// `mqtt.max_packet_size` of the node under test.
const PACKET_BYTES_MAX: usize = 1 << 20;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for version in VERSIONS {
        cases.extend(before_connect(version));
        cases.extend(server_only(version));
        cases.extend(after(version));
        cases.extend(sizes(version));
    }
    cases
}

fn case(version: Version, phase: Phase, what: &str, bytes: Vec<u8>, row: &'static Row) -> Case {
    Case {
        name: format!("{version:?} {what}"),
        version,
        phase,
        bytes,
        row,
    }
}

/// What only a server sends, well formed.
fn of_server(version: Version) -> Vec<(&'static str, Vec<u8>)> {
    let is_v5 = version.is_v5();
    let none: &[u8] = if is_v5 { &[0] } else { &[] };
    let code: &[u8] = if is_v5 { &[0, 0] } else { &[] };
    vec![
        ("CONNACK", frame(0x20, &[&[0, 0], none].concat())),
        ("SUBACK", frame(0x90, &[&[0, 1], none, &[0]].concat())),
        ("UNSUBACK", frame(0xb0, &[&[0, 1], code].concat())),
        ("PINGRESP", vec![0xd0, 0]),
    ]
}

fn before_connect(version: Version) -> Vec<Case> {
    let mut packets: Vec<_> = templates::all(version)
        .into_iter()
        .filter(|model| model.name != "CONNECT")
        .map(|model| (model.name, frame(model.first, &model.body())))
        .collect();
    packets.extend(of_server(version));
    packets.push(("type 0", vec![0x00, 0]));
    packets.push(("type 15", vec![0xf0, 0]));
    let case = |(name, bytes): (&str, Vec<u8>)| {
        let what = format!("{name} before CONNECT");
        case(version, Phase::First, &what, bytes, &BEFORE_CONNECT)
    };
    packets.into_iter().map(case).collect()
}

fn server_only(version: Version) -> Vec<Case> {
    let case = |what: &str, bytes, row| case(version, Phase::Connected, what, bytes, row);
    let mut cases: Vec<_> = of_server(version)
        .into_iter()
        .map(|(name, bytes)| case(&format!("{name} from a client"), bytes, &SERVER_ONLY))
        .collect();
    for flags in 0..16 {
        let what = format!("type 0, flags {flags:#06b}");
        cases.push(case(&what, vec![flags, 0], &TYPE_0));
    }
    cases.push(case("type 15, empty", vec![0xf0, 0], &TYPE_15));
    cases
}

/// A second packet behind the first.
fn after(version: Version) -> Vec<Case> {
    let case = |what: &str, bytes, row| case(version, Phase::Connected, what, bytes, row);
    let whole = |model: super::model::Model| frame(model.first, &model.body());
    let connect = whole(connect_with(version, flag::CLEAN));
    let message = whole(publish(version, 0));
    let goodbye = whole(disconnect(version));
    vec![
        case("a second CONNECT", connect.clone(), &SECOND_CONNECT),
        case(
            "a second CONNECT behind a PUBLISH",
            [&message[..], &connect].concat(),
            &SECOND_CONNECT,
        ),
        case(
            "PUBLISH behind DISCONNECT",
            [&goodbye[..], &message].concat(),
            &GOODBYE,
        ),
        case(
            "DISCONNECT twice",
            [&goodbye[..], &goodbye].concat(),
            &GOODBYE,
        ),
    ]
}

/// Just the largest packet, and one byte more.
fn sizes(version: Version) -> Vec<Case> {
    let publish = |size: usize| {
        let begin = [&[0x30][..], &varint(size - 4), &text("t")].concat();
        let none: &[u8] = if version.is_v5() { &[0] } else { &[] };
        let mut bytes = [&begin[..], none].concat();
        bytes.resize(size, b'x');
        bytes
    };
    let beyond = varint(PACKET_BYTES_MAX - 4 + 1);
    vec![
        case(
            version,
            Phase::Connected,
            "the largest PUBLISH",
            publish(PACKET_BYTES_MAX),
            &VALID,
        ),
        case(
            version,
            Phase::Connected,
            "the header of a PUBLISH one byte larger",
            [&[0x30][..], &beyond].concat(),
            &TOO_LARGE,
        ),
        case(
            version,
            Phase::First,
            "the header of a CONNECT one byte larger",
            [&[0x10][..], &beyond].concat(),
            &TOO_LARGE_CONNECT,
        ),
    ]
}
