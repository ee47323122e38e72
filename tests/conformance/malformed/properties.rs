//! Each property in each packet: where it may stand and where not, twice, cut, and out of range; and
//! identifiers that are none. The lists are those of section 2.2.2.2 and of the packets' own sections.

use flotte_tests::Version;
use flotte_tests::wire::{prop, text};

use super::model::{Case, Kind, Model};
use super::table::{
    ALIAS_0, ALIAS_TOO_HIGH, AUTH_DATA_ALONE, AUTH_METHOD, AUTH_SPOILED, AUTH_UNASKED,
    EXPIRY_RAISED, PAYLOAD_FORMAT, PROPERTY_CUT, PROPERTY_MISPLACED, PROPERTY_TWICE,
    PROPERTY_UNKNOWN, PROPERTY_VALUE, RESPONSE_TOPIC, RESPONSE_TOPIC_EMPTY, Row,
    SERVER_REFERENCE_FROM_CLIENT, SUBSCRIPTION_ID_FROM_CLIENT,
};
use super::templates::{acks, auth, connect_full, disconnect, publish, subscribe, unsubscribe};

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Byte,
    TwoBytes,
    FourBytes,
    VarInt,
    Text,
    Binary,
    Pair,
}

pub struct Property {
    pub id: u8,
    pub form: Form,
    /// The packets of a client in which it may stand.
    places: &'static [&'static str],
    /// A good value.
    value: &'static [u8],
    /// Values that are not good.
    bad: &'static [(&'static [u8], &'static Row)],
}

impl Property {
    pub fn is_in(&self, place: &str) -> bool {
        self.places.contains(&place)
    }
}

const fn property(
    id: u8,
    form: Form,
    places: &'static [&'static str],
    value: &'static [u8],
    bad: &'static [(&'static [u8], &'static Row)],
) -> Property {
    Property {
        id,
        form,
        places,
        value,
        bad,
    }
}

const MESSAGE: &[&str] = &["will", "PUBLISH"];
const EVERYWHERE: &[&str] = &[
    "CONNECT",
    "will",
    "PUBLISH",
    "PUBACK",
    "PUBREC",
    "PUBREL",
    "PUBCOMP",
    "SUBSCRIBE",
    "UNSUBSCRIBE",
    "DISCONNECT",
    "AUTH",
];
const REASONED: &[&str] = &[
    "PUBACK",
    "PUBREC",
    "PUBREL",
    "PUBCOMP",
    "DISCONNECT",
    "AUTH",
];

/// Above what CONNACK of the node under test allows, which is `mqtt.topic_alias_maximum` = 64.
const ALIAS_ABOVE_MAXIMUM: &[u8] = &[0, 65];

#[rustfmt::skip]
pub static ALL: &[Property] = &[
    property(prop::PAYLOAD_FORMAT, Form::Byte, MESSAGE, &[1], &[(&[2], &PAYLOAD_FORMAT), (&[0xff], &PAYLOAD_FORMAT)]),
    property(prop::MESSAGE_EXPIRY, Form::FourBytes, MESSAGE, &[0, 0, 0, 9], &[]),
    property(prop::CONTENT_TYPE, Form::Text, MESSAGE, b"\0\x01t", &[]),
    property(prop::RESPONSE_TOPIC, Form::Text, MESSAGE, b"\0\x01r",
        &[(b"\0\x01+", &RESPONSE_TOPIC), (b"\0\x03a/#", &RESPONSE_TOPIC), (b"\0\0", &RESPONSE_TOPIC_EMPTY)]),
    property(prop::CORRELATION_DATA, Form::Binary, MESSAGE, b"\0\x02\xff\0", &[]),
    property(prop::SUBSCRIPTION_ID, Form::VarInt, &["SUBSCRIBE"], &[0xff, 0xff, 0xff, 0x7f],
        &[(&[0], &PROPERTY_VALUE), (&[0x81, 0], &PROPERTY_CUT), (&[0x80, 0x80, 0x80, 0x80, 1], &PROPERTY_CUT)]),
    property(prop::SESSION_EXPIRY, Form::FourBytes, &["CONNECT", "DISCONNECT"], &[0, 0, 0, 0], &[]),
    property(prop::ASSIGNED_CLIENT_ID, Form::Text, &[], b"\0\x01c", &[]),
    property(prop::SERVER_KEEP_ALIVE, Form::TwoBytes, &[], &[0, 9], &[]),
    property(prop::AUTH_METHOD, Form::Text, &["CONNECT", "AUTH"], b"\0\x01m", &[]),
    property(prop::AUTH_DATA, Form::Binary, &["CONNECT", "AUTH"], b"\0\x01d", &[]),
    property(prop::REQUEST_PROBLEM_INFO, Form::Byte, &["CONNECT"], &[1], &[(&[2], &PROPERTY_VALUE), (&[0xff], &PROPERTY_VALUE)]),
    property(prop::WILL_DELAY, Form::FourBytes, &["will"], &[0, 0, 0, 0], &[]),
    property(prop::REQUEST_RESPONSE_INFO, Form::Byte, &["CONNECT"], &[0], &[(&[2], &PROPERTY_VALUE), (&[0xff], &PROPERTY_VALUE)]),
    property(prop::RESPONSE_INFO, Form::Text, &[], b"\0\x01r", &[]),
    property(prop::SERVER_REFERENCE, Form::Text, &["DISCONNECT"], b"\0\x01s", &[]),
    property(prop::REASON_STRING, Form::Text, REASONED, b"\0\x01r", &[]),
    property(prop::RECEIVE_MAXIMUM, Form::TwoBytes, &["CONNECT"], &[0, 1], &[(&[0, 0], &PROPERTY_VALUE)]),
    property(prop::TOPIC_ALIAS_MAXIMUM, Form::TwoBytes, &["CONNECT"], &[0, 0], &[]),
    property(prop::TOPIC_ALIAS, Form::TwoBytes, &["PUBLISH"], &[0, 1],
        &[(&[0, 0], &ALIAS_0), (ALIAS_ABOVE_MAXIMUM, &ALIAS_TOO_HIGH), (&[0xff, 0xff], &ALIAS_TOO_HIGH)]),
    property(prop::MAXIMUM_QOS, Form::Byte, &[], &[1], &[]),
    property(prop::RETAIN_AVAILABLE, Form::Byte, &[], &[1], &[]),
    property(prop::USER, Form::Pair, EVERYWHERE, b"\0\x01k\0\x01v", &[]),
    property(prop::MAXIMUM_PACKET_SIZE, Form::FourBytes, &["CONNECT"], &[0, 1, 0, 0], &[(&[0; 4], &PROPERTY_VALUE)]),
    property(prop::WILDCARD_AVAILABLE, Form::Byte, &[], &[1], &[]),
    property(prop::SUBSCRIPTION_IDS_AVAILABLE, Form::Byte, &[], &[1], &[]),
    property(prop::SHARED_AVAILABLE, Form::Byte, &[], &[1], &[]),
];

/// A packet in which properties stand.
pub struct Place {
    pub name: &'static str,
    field: &'static str,
    make: fn() -> Model,
}

const V5: Version = Version::V5;

#[rustfmt::skip]
pub static PLACES: &[Place] = &[
    Place { name: "CONNECT", field: "properties", make: || connect_full(V5) },
    Place { name: "will", field: "will properties", make: || connect_full(V5) },
    Place { name: "PUBLISH", field: "properties", make: || publish(V5, 0) },
    Place { name: "PUBLISH", field: "properties", make: || publish(V5, 1) },
    Place { name: "PUBACK", field: "properties", make: || acks(V5)[0].clone() },
    Place { name: "PUBREC", field: "properties", make: || acks(V5)[1].clone() },
    Place { name: "PUBREL", field: "properties", make: || acks(V5)[2].clone() },
    Place { name: "PUBCOMP", field: "properties", make: || acks(V5)[3].clone() },
    Place { name: "SUBSCRIBE", field: "properties", make: || subscribe(V5) },
    Place { name: "UNSUBSCRIBE", field: "properties", make: || unsubscribe(V5) },
    Place { name: "DISCONNECT", field: "properties", make: || disconnect(V5) },
    Place { name: "AUTH", field: "properties", make: auth },
];

impl Place {
    /// The packet with this list of properties.
    pub fn with(&self, list: &[u8]) -> Model {
        let model = (self.make)();
        assert_eq!(model.fields[model.at(self.field)].kind, Kind::Props);
        model.with(self.field, list)
    }

    /// What comes back, unless the connection ends in any case.
    fn row(&self, row: &'static Row) -> &'static Row {
        if self.name == "AUTH" {
            &AUTH_SPOILED
        } else {
            row
        }
    }

    fn case(&self, list: &[u8], what: &str, row: &'static Row) -> Case {
        let what = format!("{}: {what}", self.name);
        self.with(list).case(what, self.row(row))
    }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for place in PLACES {
        for property in ALL {
            if property.is_in(place.name) {
                cases.extend(allowed(place, property));
            } else {
                cases.push(misplaced(place, property));
            }
        }
        cases.extend(unknown(place));
    }
    cases.push(
        disconnect(V5)
            .with("properties", [prop::SESSION_EXPIRY, 0, 0, 0, 1])
            .case("session expiry where CONNECT had none", &EXPIRY_RAISED),
    );
    cases
}

fn allowed(place: &Place, property: &Property) -> Vec<Case> {
    let id = property.id;
    let one = [&[id][..], property.value].concat();
    let mut cases = vec![place.with(&one).case(
        format!("{}: property {id:#04x}", place.name),
        row_of_good(place, id),
    )];
    let twice = [&one[..], &one].concat();
    let row = if id == prop::USER {
        (place.make)().row
    } else {
        &PROPERTY_TWICE
    };
    let what = format!("property {id:#04x} twice");
    cases.push(if id == prop::USER {
        place
            .with(&twice)
            .case(format!("{}: {what}", place.name), row)
    } else {
        place.case(&twice, &what, row)
    });
    for length in 1..one.len() {
        let what = format!("property {id:#04x} cut after {length} bytes");
        cases.push(place.case(&one[..length], &what, &PROPERTY_CUT));
    }
    // Behind a good one, too.
    let behind = [&one[..], &[prop::USER, 0]].concat();
    let what = format!("property {id:#04x} and the begin of another");
    cases.push(place.case(&behind, &what, &PROPERTY_CUT));
    for (value, row) in property.bad {
        let list = [&[id][..], value].concat();
        cases.push(place.case(&list, &format!("property {id:#04x} of {value:02x?}"), row));
    }
    if matches!(property.form, Form::Text | Form::Binary | Form::Pair) {
        let list = [&[id][..], &[0xff, 0xff, b'x']].concat();
        let what = format!("property {id:#04x} says 65,535 bytes");
        cases.push(place.case(&list, &what, &PROPERTY_CUT));
    }
    cases
}

/// What a property where it may stand gets.
fn row_of_good(place: &Place, id: u8) -> &'static Row {
    match (place.name, id) {
        ("CONNECT", prop::AUTH_METHOD) => &AUTH_METHOD,
        ("CONNECT", prop::AUTH_DATA) => &AUTH_DATA_ALONE,
        ("AUTH", prop::AUTH_METHOD) => &AUTH_UNASKED,
        ("AUTH", _) => &AUTH_SPOILED,
        ("DISCONNECT", prop::SERVER_REFERENCE) => &SERVER_REFERENCE_FROM_CLIENT,
        _ => (place.make)().row,
    }
}

fn misplaced(place: &Place, property: &Property) -> Case {
    let list = [&[property.id][..], property.value].concat();
    let row = match (place.name, property.id) {
        ("PUBLISH", prop::SUBSCRIPTION_ID) => &SUBSCRIPTION_ID_FROM_CLIENT,
        _ => &PROPERTY_MISPLACED,
    };
    place.case(
        &list,
        &format!("property {:#04x} has no place", property.id),
        row,
    )
}

/// Identifiers that section 2.2.2.2 does not list.
fn unknown(place: &Place) -> Vec<Case> {
    let known = |id: &u8| ALL.iter().any(|property| property.id == *id);
    let mut cases = Vec::new();
    for id in (0..0x80).filter(|id| !known(id)) {
        // Whatever type it were, its value would be whole.
        let list = [&[id][..], &text("xxxx")].concat();
        cases.push(place.case(&list, &format!("no property {id:#04x}"), &PROPERTY_UNKNOWN));
    }
    let long: [&[u8]; 3] = [
        &[0x80, 0x01],
        &[0xff, 0x7f],
        &[0xff, 0xff, 0xff, 0xff, 0x01],
    ];
    for id in long {
        cases.push(place.case(id, &format!("no property {id:02x?}"), &PROPERTY_UNKNOWN));
    }
    let padded = [&[prop::USER | 0x80, 0][..], b"\0\x01k\0\x01v"].concat();
    cases.push(place.case(&padded, "a padded identifier", &PROPERTY_UNKNOWN));
    cases
}
