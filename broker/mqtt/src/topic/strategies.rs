//! Topics for property tests: few distinct levels, so that names and filters meet often.

use proptest::prelude::*;

pub(super) fn name_text() -> impl Strategy<Value = String> {
    let level = prop::sample::select(vec![
        "",
        "a",
        "b",
        "ab",
        "$x",
        "a!",
        "a level beyond what is inline",
    ]);
    prop::collection::vec(level, 1..5)
        .prop_map(|levels| levels.join("/"))
        .prop_filter("a name has a character", |text| !text.is_empty())
}

pub(super) fn filter_text() -> impl Strategy<Value = String> {
    let level = prop::sample::select(vec![
        "",
        "a",
        "b",
        "ab",
        "$x",
        "a!",
        "+",
        "+",
        "a level beyond what is inline",
    ]);
    (prop::collection::vec(level, 0..5), any::<bool>())
        .prop_map(|(mut levels, hash)| {
            if hash {
                levels.push("#");
            }
            levels.join("/")
        })
        .prop_filter("a filter has a character", |text| !text.is_empty())
}
