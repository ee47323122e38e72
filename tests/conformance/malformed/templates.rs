//! The packets a client may send, each valid as it stands.

use flotte_tests::Version;
use flotte_tests::wire::prop;

use super::model::{Kind, Model, fresh_id};
use super::table::{
    AUTH_UNASKED, GOODBYE, PUBACK_UNKNOWN, PUBCOMP_UNKNOWN, PUBREC_UNKNOWN, PUBREL_UNKNOWN, Row,
    VALID,
};

pub const VERSIONS: [Version; 3] = [Version::V31, Version::V311, Version::V5];

/// A user property, which every packet of 5.0 may carry.
pub const USER: &[u8] = b"\x26\0\x01k\0\x01v";

/// The bits of the connect flags.
pub mod flag {
    pub const RESERVED: u8 = 0x01;
    pub const CLEAN: u8 = 0x02;
    pub const WILL: u8 = 0x04;
    pub const WILL_QOS: u8 = 0x18;
    pub const WILL_RETAIN: u8 = 0x20;
    pub const PASSWORD: u8 = 0x40;
    pub const USER_NAME: u8 = 0x80;
}

/// A CONNECT with these flags, and with the fields that they announce.
pub fn connect_with(version: Version, flags: u8) -> Model {
    let mut model = Model::new("CONNECT", version, 0x10, &VALID)
        .field("protocol name", Kind::Text, version.protocol())
        .field("protocol level", Kind::Raw, [version.level()])
        .field("connect flags", Kind::Raw, [flags])
        .field("keep alive", Kind::Raw, [0, 60])
        .props("properties", USER)
        .field("client id", Kind::Text, fresh_id());
    if flags & flag::WILL != 0 {
        model = model
            .props("will properties", USER)
            .field("will topic", Kind::Text, "malformed/will")
            .field("will payload", Kind::Binary, "gone");
    }
    if flags & flag::USER_NAME != 0 {
        model = model.field("user name", Kind::Text, "someone");
        model = allow_cut_in_31(model);
    }
    if flags & flag::PASSWORD != 0 {
        model = model.field("password", Kind::Binary, "secret");
        model = allow_cut_in_31(model);
    }
    model
}

fn allow_cut_in_31(model: Model) -> Model {
    if model.version == Version::V31 {
        model.may_miss()
    } else {
        model
    }
}

/// A CONNECT with every field there is.
pub fn connect_full(version: Version) -> Model {
    let flags = flag::CLEAN | flag::WILL | 0x08 | flag::USER_NAME | flag::PASSWORD;
    connect_with(version, flags)
}

pub fn publish(version: Version, qos: u8) -> Model {
    const NAMES: [&str; 3] = ["PUBLISH of QoS 0", "PUBLISH of QoS 1", "PUBLISH of QoS 2"];
    let at = usize::from(qos);
    let mut model = Model::new(NAMES[at], version, 0x30 | qos << 1, &VALID).field(
        "topic",
        Kind::Text,
        "malformed/topic",
    );
    if qos > 0 {
        model = model.field("packet id", Kind::Raw, [0x10, 0x01]);
    }
    model
        .props("properties", USER)
        .field("payload", Kind::Rest, "hello")
        .may_miss()
}

fn ack(name: &'static str, version: Version, first: u8, row: &'static Row) -> Model {
    let model = Model::new(name, version, first, row).field("packet id", Kind::Raw, [0x70, 0x01]);
    if !version.is_v5() {
        return model;
    }
    let model = model.field("reason", Kind::Raw, [0]).may_miss();
    model.props("properties", USER).may_miss()
}

/// PUBACK, PUBREC, PUBREL and PUBCOMP, for ids that nobody knows.
pub fn acks(version: Version) -> [Model; 4] {
    [
        ack("PUBACK", version, 0x40, &PUBACK_UNKNOWN),
        ack("PUBREC", version, 0x50, &PUBREC_UNKNOWN),
        ack("PUBREL", version, 0x62, &PUBREL_UNKNOWN),
        ack("PUBCOMP", version, 0x70, &PUBCOMP_UNKNOWN),
    ]
}

pub fn subscribe(version: Version) -> Model {
    Model::new("SUBSCRIBE", version, 0x82, &VALID)
        .field("packet id", Kind::Raw, [0x20, 0x01])
        .props("properties", USER)
        .field("filter", Kind::Text, "malformed/filter")
        .field("options", Kind::Raw, [0])
}

pub fn unsubscribe(version: Version) -> Model {
    Model::new("UNSUBSCRIBE", version, 0xa2, &VALID)
        .field("packet id", Kind::Raw, [0x20, 0x02])
        .props("properties", USER)
        .field("filter", Kind::Text, "malformed/filter")
}

pub fn pingreq(version: Version) -> Model {
    Model::new("PINGREQ", version, 0xc0, &VALID)
}

pub fn disconnect(version: Version) -> Model {
    let model = Model::new("DISCONNECT", version, 0xe0, &GOODBYE);
    if !version.is_v5() {
        return model;
    }
    let model = model.field("reason", Kind::Raw, [0]).may_miss();
    model.props("properties", USER).may_miss()
}

/// AUTH, which nobody asked for: whatever it says, the connection ends.
pub fn auth() -> Model {
    let method = [&[prop::AUTH_METHOD][..], b"\0\x01m"].concat();
    Model::new("AUTH", Version::V5, 0xf0, &AUTH_UNASKED)
        .field("reason", Kind::Raw, [0x18])
        .may_miss()
        .props("properties", method)
        .may_miss()
}

/// Every packet that a client of this version may send.
pub fn all(version: Version) -> Vec<Model> {
    let mut models = vec![
        connect_with(version, flag::CLEAN),
        connect_full(version),
        publish(version, 0),
        publish(version, 1),
        publish(version, 2),
        subscribe(version),
        unsubscribe(version),
        pingreq(version),
        disconnect(version),
    ];
    models.extend(acks(version));
    if version.is_v5() {
        models.push(auth());
    }
    models
}
