//! Fields that can be read and hold what they must not: connect flags, protocol levels, packet ids,
//! topics, filters, subscription options and reason codes.

use flotte_tests::Version;
use flotte_tests::wire::prop;

use super::model::{Case, Model, fresh_id};
use super::table::{
    ALIAS_UNSET, AUTH_SPOILED, AUTH_UNASKED, CONNECT_RESERVED_BIT, EMPTY_CLIENT_ID_CLEAN, FILTER,
    FILTER_OF_UNSUBSCRIBE, GOODBYE, ID_0, ID_0_OF_ACK, LEVEL_ABOVE, LEVEL_BELOW, NO_CLIENT_ID,
    OPTIONS_BOTH, OPTIONS_RESERVED, OPTIONS_VALUE, PASSWORD_ALONE, PUBREC_UNKNOWN, REASON_CODE,
    REASON_OF_SERVER, Row, SHARE, SHARE_NO_LOCAL, TOPIC_EMPTY, TOPIC_WILDCARD, VALID,
    WILL_FLAGS_ALONE, WILL_QOS_3, WILL_TOPIC, WRONG_NAME,
};
use super::templates::{
    VERSIONS, acks, auth, connect_full, connect_with, disconnect, flag, publish, subscribe,
    unsubscribe,
};

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for version in VERSIONS {
        cases.extend(connect_flags(version));
        cases.extend(protocols(version));
        cases.extend(client_ids(version));
        cases.extend(packet_ids(version));
        cases.extend(topics(version));
        cases.extend(filters(version));
        cases.extend(options(version));
    }
    cases.extend(shares());
    cases.extend(reasons());
    cases
}

/// All 256, each with the payload that it announces.
fn connect_flags(version: Version) -> Vec<Case> {
    (0..=0xff)
        .map(|flags| {
            let model = connect_with(version, flags);
            model.case(format!("flags {flags:#010b}"), row_of_flags(flags))
        })
        .collect()
}

fn row_of_flags(flags: u8) -> &'static Row {
    let will_bits = flags & (flag::WILL_QOS | flag::WILL_RETAIN);
    if flags & flag::WILL_QOS == flag::WILL_QOS {
        // 3.1 too: without a will its QoS is not used, but 3 is reserved.
        &WILL_QOS_3
    } else if flags & flag::PASSWORD != 0 && flags & flag::USER_NAME == 0 {
        // In 5.0 a password alone is right, and what else is wrong decides.
        row_of_password_alone(flags, will_bits)
    } else if flags & flag::WILL == 0 && will_bits != 0 {
        &WILL_FLAGS_ALONE
    } else if flags & flag::RESERVED != 0 {
        &CONNECT_RESERVED_BIT
    } else {
        &VALID
    }
}

fn row_of_password_alone(flags: u8, will_bits: u8) -> &'static Row {
    static SPOILED: Row = Row {
        name: "PASSWORD_ALONE and other bits",
        source: "as PASSWORD_ALONE; 5.0 as WILL_FLAGS_ALONE or CONNECT_RESERVED_BIT",
        v31: PASSWORD_ALONE.v31,
        v311: PASSWORD_ALONE.v311,
        v5: WILL_FLAGS_ALONE.v5,
    };
    if flags & flag::RESERVED != 0 || (flags & flag::WILL == 0 && will_bits != 0) {
        &SPOILED
    } else {
        &PASSWORD_ALONE
    }
}

/// Names and levels that are none, in the shape of each version.
fn protocols(version: Version) -> Vec<Case> {
    let make = || connect_with(version, flag::CLEAN);
    let mut cases = Vec::new();
    let bridge = bridge_level(version);
    if let Some(level) = bridge {
        cases.push(
            make()
                .with("protocol level", [level])
                .case("level of a bridge", &VALID),
        );
    }
    let known = |level: &u8| [3, 4, 5].contains(level) || bridge == Some(*level);
    let of_others = |level: &u8| version.is_v5() && [0x83, 0x84].contains(level);
    for level in (0..=0xff).filter(|level| !known(level) && !of_others(level)) {
        // Bridges of 3.x mark their level with 0x80, which does not count.
        let row = if level & 0x7f < 5 {
            &LEVEL_BELOW
        } else {
            &LEVEL_ABOVE
        };
        let model = make().with("protocol level", [level]);
        cases.push(model.case(format!("protocol level {level}"), row));
    }
    let swapped = match version {
        Version::V31 => "MQTT",
        Version::V311 | Version::V5 => "MQIsdp",
    };
    for name in [
        swapped, "", "MQT", "MQTTT", "mqtt", "MQTt", "MQisdp", "HTTP",
    ] {
        let model = make().with("protocol name", name);
        cases.push(model.case(format!("protocol name {name:?}"), &WRONG_NAME));
    }
    cases
}

/// Bridges of 3.x mark their level, and get answers as others do.
fn bridge_level(version: Version) -> Option<u8> {
    (!version.is_v5()).then(|| 0x80 | version.level())
}

fn client_ids(version: Version) -> Vec<Case> {
    let with = |flags, id: &str| connect_with(version, flags).with("client id", id);
    let long = format!("{}{}", fresh_id(), "x".repeat(60_000));
    let odd = format!("{}+/#$ \u{e4}", fresh_id());
    vec![
        with(0, "").case("no client id to resume", &NO_CLIENT_ID),
        with(flag::CLEAN, "").case("no client id, clean", &EMPTY_CLIENT_ID_CLEAN),
        with(flag::CLEAN, &long).case("a client id of 60,000 bytes", &VALID),
        with(flag::CLEAN, &odd).case("a client id of odd characters", &VALID),
    ]
}

fn packet_ids(version: Version) -> Vec<Case> {
    let needed = [
        publish(version, 1),
        publish(version, 2),
        subscribe(version),
        unsubscribe(version),
    ];
    let needed = needed.into_iter().map(|model| (model, &ID_0));
    let acks = acks(version).into_iter().map(|model| (model, &ID_0_OF_ACK));
    let case = |(model, row): (Model, &'static Row)| {
        model.with("packet id", [0, 0]).case("packet id 0", row)
    };
    needed.chain(acks).map(case).collect()
}

fn topics(version: Version) -> Vec<Case> {
    let mut cases = Vec::new();
    for topic in ["+", "#", "a/+", "a/#", "+/a", "a+", "a#b", "a/+/b"] {
        for qos in [0, 1] {
            let model = publish(version, qos).with("topic", topic);
            cases.push(model.case(format!("topic {topic}"), &TOPIC_WILDCARD));
        }
        let model = connect_full(version).with("will topic", topic);
        cases.push(model.case(format!("will topic {topic}"), &WILL_TOPIC));
    }
    for qos in [0, 1, 2] {
        let model = publish(version, qos).with("topic", "");
        cases.push(model.case("no topic", &TOPIC_EMPTY));
    }
    let model = connect_full(version).with("will topic", "");
    cases.push(model.case("no will topic", &WILL_TOPIC));
    for topic in ["/", "//", "a//b", " ", "a b", "/a/", "\u{1f600}"] {
        let model = publish(version, 0).with("topic", topic);
        cases.push(model.case(format!("topic {topic:?}"), &VALID));
    }
    if version.is_v5() {
        let alias = [prop::TOPIC_ALIAS, 0, 7];
        let model = publish(version, 0)
            .with("topic", "")
            .with("properties", alias);
        cases.push(model.case("an alias that was never set", &ALIAS_UNSET));
    }
    cases
}

fn filters(version: Version) -> Vec<Case> {
    let mut cases = Vec::new();
    let bad = [
        "", "#/a", "a#", "a/#/b", "##", "/##", "a/b#", "+a", "a+", "a/+b", "++", "+#", "a/#b",
    ];
    for filter in bad {
        let model = subscribe(version).with("filter", filter);
        cases.push(model.case(format!("filter {filter:?}"), &FILTER));
        let model = unsubscribe(version).with("filter", filter);
        cases.push(model.case(format!("filter {filter:?}"), &FILTER_OF_UNSUBSCRIBE));
    }
    for filter in [
        "#", "+", "/", "+/+", "/+", "+/#", "a//#", "$SYS/#", " ", "$share",
    ] {
        let model = subscribe(version).with("filter", filter);
        cases.push(model.case(format!("filter {filter:?}"), &VALID));
    }
    // A good one before a bad one does not help it.
    let mut model = subscribe(version);
    let again = model.fields[model.at("filter")..].to_vec();
    model.fields.extend(again);
    let model = model.with("filter", "malformed/good");
    let second = Model {
        fields: spoil_last_filter(&model),
        ..model
    };
    static SECOND: Row = Row {
        name: "FILTER, the second one",
        source: "as FILTER; the first may be granted",
        v31: &[super::table::Allow::Silent, super::table::Allow::On],
        v311: &[super::table::Allow::Silent, super::table::Allow::On],
        v5: &[
            super::table::Allow::Code(0x81),
            super::table::Allow::Code(0x82),
            super::table::Allow::Code(0x8f),
            super::table::Allow::On,
        ],
    };
    cases.push(second.case("a good filter and a bad one", &SECOND));
    cases
}

fn spoil_last_filter(model: &Model) -> Vec<super::model::Field> {
    let mut fields = model.fields.clone();
    let last = fields.iter_mut().rfind(|field| field.name == "filter");
    last.expect("a filter").content = b"a/#/b".to_vec();
    fields
}

/// All 256.
fn options(version: Version) -> Vec<Case> {
    (0..=0xffu8)
        .map(|options| {
            let reserved = options & if version.is_v5() { 0xc0 } else { 0xfc } != 0;
            let handling = version.is_v5() && options & 0x30 == 0x30;
            let value = options & 3 == 3 || handling;
            let row = match (reserved, value) {
                (true, true) => &OPTIONS_BOTH,
                (true, false) => &OPTIONS_RESERVED,
                (false, true) => &OPTIONS_VALUE,
                (false, false) => &VALID,
            };
            let model = subscribe(version).with("options", [options]);
            model.case(format!("options {options:#010b}"), row)
        })
        .collect()
}

fn shares() -> Vec<Case> {
    let mut cases = Vec::new();
    let bad = [
        "$share/",
        "$share//a",
        "$share/g",
        "$share/g/",
        "$share/+/a",
        "$share/g#/a",
        "$share/g+/a",
    ];
    for version in VERSIONS {
        for filter in bad {
            let model = subscribe(version).with("filter", filter);
            cases.push(model.case(format!("filter {filter}"), &SHARE));
        }
        let model = subscribe(version).with("filter", "$share/g/a/#");
        cases.push(model.case("a good share", &VALID));
    }
    for options in [4, 5, 6, 0x0c] {
        let model = subscribe(Version::V5)
            .with("filter", "$share/g/a")
            .with("options", [options]);
        cases.push(model.case(
            format!("a share with options {options:#04x}"),
            &SHARE_NO_LOCAL,
        ));
    }
    cases
}

/// All 256 in each packet of 5.0 that has one, by the tables of its section.
fn reasons() -> Vec<Case> {
    const RECEIVED: &[u8] = &[0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99];
    const RELEASED: &[u8] = &[0x00, 0x92];
    const GONE: &[u8] = &[
        0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99,
    ];
    const GONE_BY_SERVER: &[u8] = &[
        0x87, 0x89, 0x8b, 0x8c, 0x8d, 0x8e, 0x8f, 0x9a, 0x9b, 0x9c, 0x9d, 0x9e, 0x9f, 0xa0, 0xa1,
        0xa2,
    ];
    let mut cases = Vec::new();
    for code in 0..=0xff {
        for (which, model) in acks(Version::V5).into_iter().enumerate() {
            let table = if which < 2 { RECEIVED } else { RELEASED };
            let row = match table.contains(&code) {
                false => &REASON_CODE,
                // [MQTT-4.4.0-2]: a refusal needs no PUBREL.
                true if model.row.name == PUBREC_UNKNOWN.name && code >= 0x80 => &VALID,
                true => model.row,
            };
            cases.push(
                model
                    .with("reason", [code])
                    .case(format!("reason {code:#04x}"), row),
            );
        }
        let row = match code {
            _ if GONE.contains(&code) => &GOODBYE,
            _ if GONE_BY_SERVER.contains(&code) => &REASON_OF_SERVER,
            _ => &REASON_CODE,
        };
        let model = disconnect(Version::V5).with("reason", [code]);
        cases.push(model.case(format!("reason {code:#04x}"), row));
        let row = match code {
            0x18 | 0x19 => &AUTH_UNASKED,
            _ => &AUTH_SPOILED,
        };
        let model = auth().with("reason", [code]);
        cases.push(model.case(format!("reason {code:#04x}"), row));
    }
    cases
}
