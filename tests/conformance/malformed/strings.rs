//! Each string of each packet with each kind of bytes that are no UTF-8 of MQTT, and binary fields
//! with the same bytes, which they take.

use super::model::{Case, Kind, Model};
use super::properties::{self, Form};
use super::table::{
    AUTH_SPOILED, CLIENT_ID_NOT_UTF8, DISCOURAGED_TEXT, NOT_UTF8, NUL, Row, WRONG_NAME,
};
use super::templates::{self, VERSIONS};

/// Bytes that are not well-formed UTF-8, by the table 3-7 of Unicode.
const ILL_FORMED: &[(&str, &[u8])] = &[
    ("a lone continuation byte", b"a\x80b"),
    ("a sequence of two cut short", b"a\xc3"),
    ("a sequence of three cut short", b"a\xe2\x82"),
    ("a sequence of four cut short", b"a\xf0\x9f\x98"),
    ("a sequence broken by a letter", b"\xe2\x82a"),
    ("an overlong slash of two bytes", b"\xc0\xaf"),
    ("an overlong slash of three bytes", b"\xe0\x80\xaf"),
    ("an overlong slash of four bytes", b"\xf0\x80\x80\xaf"),
    ("an overlong NUL", b"\xc0\x80"),
    ("the first surrogate", b"\xed\xa0\x80"),
    ("the last surrogate", b"\xed\xbf\xbf"),
    ("a pair of surrogates", b"\xed\xa0\xbd\xed\xb8\x80"),
    ("beyond U+10FFFF", b"\xf4\x90\x80\x80"),
    ("a byte that never occurs", b"\xff"),
    ("a sequence of five", b"\xf8\x88\x80\x80\x80"),
];

const DISCOURAGED: &[(&str, &[u8])] = &[
    ("a control character", b"a\x01b"),
    ("U+009F", "a\u{9f}b".as_bytes()),
    ("U+FFFF", "a\u{ffff}b".as_bytes()),
];

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for version in VERSIONS {
        for which in 0..templates::all(version).len() {
            let make = || templates::all(version).swap_remove(which);
            // The plain CONNECT has no string that the full one has not.
            for at in 0..make().fields.len() {
                match make().fields[at].kind {
                    Kind::Text => cases.extend(text(&make, at)),
                    Kind::Binary => cases.extend(binary(&make, at)),
                    Kind::Raw | Kind::Props | Kind::Rest => {}
                }
            }
        }
    }
    cases.extend(in_properties());
    cases
}

fn text(make: &impl Fn() -> Model, at: usize) -> Vec<Case> {
    let field = make().fields[at].name;
    let case = |what: &str, bytes: &[u8], row: &'static Row| {
        let model = make();
        // Behind what makes a client id its own.
        let content = [&model.fields[at].content, bytes].concat();
        let model = model.with(field, content);
        model.case(format!("{field} with {what}"), row)
    };
    let (ill_formed, nul, discouraged) = match field {
        "protocol name" => (&WRONG_NAME, &WRONG_NAME, &WRONG_NAME),
        "client id" => (&CLIENT_ID_NOT_UTF8, &NUL, &DISCOURAGED_TEXT),
        _ => (&NOT_UTF8, &NUL, &DISCOURAGED_TEXT),
    };
    let mut cases: Vec<_> = ILL_FORMED
        .iter()
        .map(|(what, bytes)| case(what, bytes, ill_formed))
        .collect();
    cases.push(case("U+0000", b"\0", nul));
    for (what, bytes) in DISCOURAGED {
        cases.push(case(what, bytes, discouraged));
    }
    // [MQTT-1.5.3-3], [MQTT-1.5.4-3]: a byte order mark is a character as any other.
    if field != "protocol name" {
        let row = make().row;
        cases.push(case("U+FEFF", "\u{feff}".as_bytes(), row));
        cases.push(case("four bytes a character", "\u{1f600}".as_bytes(), row));
    }
    cases
}

fn binary(make: &impl Fn() -> Model, at: usize) -> Vec<Case> {
    let field = make().fields[at].name;
    let case = |(what, bytes): &(&str, &[u8])| {
        let model = make();
        let row = model.row;
        model
            .with(field, bytes)
            .case(format!("{field} with {what}"), row)
    };
    ILL_FORMED.iter().map(case).collect()
}

fn in_properties() -> Vec<Case> {
    let mut cases = Vec::new();
    for place in properties::PLACES {
        for property in properties::ALL {
            if !property.is_in(place.name) {
                continue;
            }
            let row = if place.name == "AUTH" {
                &AUTH_SPOILED
            } else {
                &NOT_UTF8
            };
            for (what, bytes) in ILL_FORMED.iter().chain(&[("U+0000", &b"\0"[..])]) {
                for value in spoiled(property.form, bytes) {
                    let list = [&[property.id][..], &value].concat();
                    let what = format!("property {:#04x} with {what}", property.id);
                    cases.push(place.with(&list).case(what, row));
                }
            }
        }
    }
    cases
}

fn spoiled(form: Form, bytes: &[u8]) -> Vec<Vec<u8>> {
    use flotte_tests::wire::text;
    match form {
        Form::Text => vec![text(bytes)],
        Form::Pair => vec![
            [text(bytes), text("v")].concat(),
            [text("k"), text(bytes)].concat(),
        ],
        _ => Vec::new(),
    }
}
