//! Lengths and flags: each packet cut at each byte and stretched, each length off by one and far too
//! long, each variable byte integer padded or endless, each value of the flags.

use flotte_tests::Version;
use flotte_tests::wire::varint;

use super::model::{Case, Kind, Model, Phase};
use super::table::{
    self, AUTH_SPOILED, CUT_IN_VERSION, DUP_QOS_0, FLAGS, FLAGS_OF_CONNECT, MALFORMED,
    NAMES_LEFT_OUT, NO_FILTER, QOS_3, Row, TOO_LARGE, TOO_LARGE_CONNECT, UNREADABLE, VARINT_PADDED,
    VARINT_PADDED_CONNECT, VARINT_PADDED_DISCONNECT, VARINT_TOO_LONG,
};
use super::templates::{self, VERSIONS};

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for version in VERSIONS {
        let count = templates::all(version).len();
        for which in 0..count {
            // Made anew for each case: two CONNECTs with one client id would meet.
            let make = || templates::all(version).swap_remove(which);
            cases.push(make().case("as it is", make().row));
            cases.extend(cut(&make));
            cases.extend(stretched(&make));
            cases.extend(field_lengths(&make));
            cases.extend(integers(&make));
            cases.extend(flags(&make));
        }
    }
    cases
}

/// What a packet that is malformed in itself gets.
fn malformed(model: &Model) -> &'static Row {
    if model.name == "AUTH" {
        &AUTH_SPOILED
    } else {
        &MALFORMED
    }
}

/// The packet ends at each of its bytes.
fn cut(make: &impl Fn() -> Model) -> Vec<Case> {
    (0..make().body().len())
        .map(|length| {
            let model = make();
            let body = model.body();
            let row = row_of_cut(&model, length);
            model.case_of(format!("cut after {length} bytes"), &body[..length], row)
        })
        .collect()
}

fn row_of_cut(model: &Model, length: usize) -> &'static Row {
    let mut begin = 0;
    for field in &model.fields {
        let end = begin + field.encoded().len();
        if length == begin && field.may_miss {
            return model.row;
        }
        if length < end {
            return row_of_cut_in(model, field.name, field.kind, length - begin);
        }
        begin = end;
    }
    unreachable!("it is cut before its end");
}

fn row_of_cut_in(model: &Model, field: &str, kind: Kind, at: usize) -> &'static Row {
    match (model.name, field) {
        ("CONNECT", "protocol name" | "protocol level") => &CUT_IN_VERSION,
        ("CONNECT", "user name" | "password") if at == 0 => &NAMES_LEFT_OUT,
        ("SUBSCRIBE" | "UNSUBSCRIBE", "filter") if at == 0 => &NO_FILTER,
        // A payload ends where its packet ends.
        _ if kind == Kind::Rest => model.row,
        _ => malformed(model),
    }
}

/// Bytes behind the last field.
fn stretched(make: &impl Fn() -> Model) -> Vec<Case> {
    let tails: [&[u8]; 3] = [&[0], &[0xff], &[0xff; 64]];
    let takes_more = make()
        .fields
        .last()
        .is_some_and(|field| field.kind == Kind::Rest);
    let case = |tail: &&[u8]| {
        let model = make();
        let body = [&model.body()[..], tail].concat();
        let row = if takes_more {
            model.row
        } else {
            malformed(&model)
        };
        // In 5.0 an empty DISCONNECT could go on with a reason; the models have one already.
        model.case_of(format!("with {} bytes more", tail.len()), &body, row)
    };
    tails.iter().map(case).collect()
}

/// Strings, binary fields and property lists whose length is not theirs.
fn field_lengths(make: &impl Fn() -> Model) -> Vec<Case> {
    let mut cases = Vec::new();
    let fields = make().fields;
    for (at, field) in fields.iter().enumerate() {
        let own = field.content.len();
        let lengths = match field.kind {
            Kind::Text | Kind::Binary => vec![own + 1, own - 1, 0xffff],
            Kind::Props => vec![own + 1, own - 1, 1_000, 0x0fff_ffff],
            Kind::Raw | Kind::Rest => continue,
        };
        for length in lengths {
            let model = make();
            let content = &model.fields[at].content;
            let prefix = match field.kind {
                Kind::Props => varint(length),
                _ => vec![(length >> 8) as u8, length as u8],
            };
            let body = model.body_with(at, &[&prefix[..], content].concat());
            let Some(row) = row_of_length(&model, field.name, length) else {
                continue;
            };
            cases.push(model.case_of(
                format!("{} of {own} bytes says {length}", field.name),
                &body,
                row,
            ));
        }
    }
    cases
}

/// None where it is another packet, and a good one.
fn row_of_length(model: &Model, field: &str, length: usize) -> Option<&'static Row> {
    let own = model.fields[model.at(field)].content.len();
    let is_topic = model.name.starts_with("PUBLISH") && field == "topic";
    let is_plain = !model.version.is_v5();
    Some(match (field, length) {
        ("protocol name", _) if length == own - 1 || length == own + 1 => &table::WRONG_NAME,
        ("protocol name", _) => &CUT_IN_VERSION,
        // The payload or the packet id begins a byte earlier or later, and both take anything.
        _ if is_topic && is_plain && length == own - 1 => return None,
        _ if is_topic && is_plain && length == own + 1 => return None,
        _ => malformed(model),
    })
}

/// Variable byte integers that are longer than they must be, or than they may be.
fn integers(make: &impl Fn() -> Model) -> Vec<Case> {
    let mut cases = Vec::new();
    let whole = |model: &Model, length: &[u8]| {
        let body = model.body();
        [&[model.first][..], length, &body].concat()
    };
    let model = make();
    let own = varint(model.body().len());
    let row = match (model.phase(), model.name) {
        (Phase::First, _) => &VARINT_PADDED_CONNECT,
        (_, "DISCONNECT") => &VARINT_PADDED_DISCONNECT,
        (_, "AUTH") => &AUTH_SPOILED,
        _ => &VARINT_PADDED,
    };
    cases.push(model.case_raw("remaining length padded", whole(&model, &padded(&own)), row));
    let model = make();
    let row = match model.phase() {
        Phase::First => &UNREADABLE,
        Phase::Connected => &VARINT_TOO_LONG,
    };
    let endless = [0xff, 0xff, 0xff, 0xff, 0x01];
    cases.push(model.case_raw("remaining length of 5 bytes", whole(&model, &endless), row));
    let model = make();
    let row = match model.phase() {
        Phase::First => &TOO_LARGE_CONNECT,
        Phase::Connected => &TOO_LARGE,
    };
    let largest = [0xff, 0xff, 0xff, 0x7f];
    cases.push(model.case_raw("remaining length of 256 MB", whole(&model, &largest), row));
    for (at, field) in make().fields.iter().enumerate() {
        if field.kind != Kind::Props {
            continue;
        }
        let prefixes = [padded(&varint(field.content.len())), endless.to_vec()];
        for prefix in prefixes {
            let model = make();
            let content = [&prefix[..], &field.content].concat();
            let body = model.body_with(at, &content);
            let what = format!("length of {} in {} bytes", field.name, prefix.len());
            cases.push(model.case_of(what, &body, malformed(&model)));
        }
    }
    cases
}

/// The same number with a byte that adds nothing.
fn padded(integer: &[u8]) -> Vec<u8> {
    let (last, former) = integer.split_last().expect("an integer has a byte");
    [former, &[last | 0x80, 0]].concat()
}

/// Every value of the four flag bits but the right ones.
fn flags(make: &impl Fn() -> Model) -> Vec<Case> {
    let own = make().first & 0x0f;
    let is_publish = make().name.starts_with("PUBLISH");
    let mut cases = Vec::new();
    for flags in (0..16).filter(|flags| *flags != own) {
        let model = Model {
            first: make().first & 0xf0 | flags,
            ..make()
        };
        let row = match flags {
            _ if !is_publish && model.first >> 4 == 1 => &FLAGS_OF_CONNECT,
            _ if model.name == "AUTH" => &AUTH_SPOILED,
            // It is a DISCONNECT all the same.
            _ if model.name == "DISCONNECT" && model.version == Version::V31 => &MALFORMED,
            _ if !is_publish => &FLAGS,
            _ if flags & 0x06 == 0x06 => &QOS_3,
            8 | 9 if model.name == "PUBLISH of QoS 0" => &DUP_QOS_0,
            // Another QoS, hence other fields; RETAIN and DUP alone are right.
            _ if flags & 0x06 != own & 0x06 => continue,
            _ => model.row,
        };
        cases.push(model.case(format!("flags {flags:#06b}"), row));
    }
    cases
}
