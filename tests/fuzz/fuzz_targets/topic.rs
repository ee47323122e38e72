//! Filters and names come and go in both trees; what they find is compared with a plain reading of
//! section 4.7 over a list, and so is what is taken for a filter, a share and a name at all.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use arbitrary::{Arbitrary, Result, Unstructured};
use flotte_mqtt::topic::{NameTree, Named, SubscriptionFilter, TopicFilter, TopicName, TopicTree};
use libfuzzer_sys::fuzz_target;

/// Few and short, so that filters meet; the long one does not fit into a node.
const LEVELS: [&str; 12] = [
    "",
    "a",
    "b",
    "+",
    "#",
    "$a",
    "$share",
    "a+",
    "#b",
    "ä",
    "ab",
    "a level that is longer than a node of the tree keeps inline",
];
const LEVELS_MAX: usize = 6;
const PAGE_MAX: usize = 7;

#[derive(Debug)]
struct Text(String);

impl<'a> Arbitrary<'a> for Text {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let count = u.int_in_range(0..=LEVELS_MAX)?;
        let levels = (0..count).map(|_| u.choose(&LEVELS).copied());
        Ok(Self(levels.collect::<Result<Vec<_>>>()?.join("/")))
    }
}

#[derive(Debug, Arbitrary)]
enum Step {
    Subscribe(Text),
    Unsubscribe(Text),
    Publish(Text),
    Keep(Text),
    Forget(Text),
    Replay(Text, u8),
    Share(Text),
}

#[derive(Default)]
struct World {
    filters: TopicTree<String>,
    known: BTreeSet<String>,
    names: NameTree<Kept>,
    kept: BTreeMap<String, usize>,
}

/// A number under a name.
#[derive(Debug)]
struct Kept(String, usize);

impl Named for Kept {
    fn name(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let mut world = World::default();
    for (number, step) in steps.into_iter().enumerate() {
        world.take(number, step);
        world.filters.check_invariants();
        assert_eq!(world.filters.len(), world.known.len());
        assert_eq!(world.names.len(), world.kept.len());
    }
});

impl World {
    fn take(&mut self, number: usize, step: Step) {
        match step {
            Step::Subscribe(Text(text)) => {
                let Some(filter) = filter(&text) else { return };
                self.filters.entry_or_insert_with(&filter, || text.clone());
                self.known.insert(text);
            }
            Step::Unsubscribe(Text(text)) => {
                let Some(filter) = filter(&text) else { return };
                let removed = self.filters.remove(&filter).is_some();
                assert_eq!(removed, self.known.remove(&text));
            }
            Step::Publish(Text(text)) => self.publish(&text),
            Step::Keep(Text(text)) => {
                if name(&text).is_none() {
                    return;
                }
                let former = self.names.insert(Kept(text.clone(), number));
                assert_eq!(former.map(|kept| kept.1), self.kept.insert(text, number));
            }
            Step::Forget(Text(text)) => {
                let Some(name) = name(&text) else { return };
                let former = self.names.remove(&name);
                assert_eq!(former.map(|kept| kept.1), self.kept.remove(&text));
            }
            Step::Replay(Text(text), limit) => self.replay(&text, usize::from(limit)),
            Step::Share(Text(text)) => share(&text),
        }
    }

    fn publish(&self, text: &str) {
        let Some(name) = name(text) else { return };
        let mut found = Vec::new();
        self.filters
            .for_each_match(text, |value| found.push(value.clone()));
        found.sort_unstable();
        let wanted = self.known.iter();
        let wanted: Vec<_> = wanted
            .filter(|known| matches(known, text))
            .cloned()
            .collect();
        assert_eq!(found, wanted, "{text}");
        for known in &self.known {
            let filter = TopicFilter::try_from(known.as_str()).expect("it was subscribed");
            assert_eq!(
                filter.matches(&name),
                matches(known, text),
                "{known} {text}"
            );
        }
    }

    fn replay(&self, text: &str, limit: usize) {
        let Some(filter) = filter(text) else { return };
        let limit = limit % PAGE_MAX + 1;
        let (mut found, mut after) = (BTreeMap::new(), None);
        loop {
            let mut page = 0;
            after = self
                .names
                .page(&filter, after.as_deref(), limit, |Kept(name, value)| {
                    page += 1;
                    let former = found.insert(name.clone(), *value);
                    assert_eq!(former, None, "{name} twice");
                });
            assert!(page <= limit);
            if after.is_none() {
                break;
            }
        }
        let wanted = self.kept.iter().filter(|(name, _)| matches(text, name));
        let wanted: BTreeMap<_, _> = wanted.map(|(name, value)| (name.clone(), *value)).collect();
        assert_eq!(found, wanted, "{text}");
    }
}

fn filter(text: &str) -> Option<TopicFilter> {
    let parsed = TopicFilter::try_from(text).ok();
    assert_eq!(parsed.is_some(), is_filter(text), "{text:?}");
    parsed
}

fn name(text: &str) -> Option<TopicName> {
    let parsed = TopicName::try_from(text).ok();
    assert_eq!(parsed.is_some(), is_name(text), "{text:?}");
    parsed
}

fn share(text: &str) {
    let wanted = match text.strip_prefix("$share/") {
        None => is_filter(text).then_some((None, text)),
        Some(rest) => rest
            .split_once('/')
            .filter(|(share, filter)| is_name(share) && is_filter(filter))
            .map(|(share, filter)| (Some(share), filter)),
    };
    let parsed = SubscriptionFilter::try_from(text).ok();
    let found = parsed.as_ref().map(|parsed| {
        let share = parsed.share.as_ref().map(|share| share.as_str());
        (share, parsed.filter.as_str())
    });
    assert_eq!(found, wanted, "{text:?}");
    if let Some(parsed) = &parsed {
        assert_eq!(parsed.to_string(), text);
    }
}

/// At least one character, and no wildcard (4.7.1, 4.7.3).
fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.contains(['+', '#'])
}

/// A wildcard has its level for itself; `#` is the last (4.7.1).
fn is_filter(text: &str) -> bool {
    let levels: Vec<_> = text.split('/').collect();
    let (last, former) = levels.split_last().expect("a split has a part");
    let is_plain = |level: &&str| *level == "+" || !level.contains(['+', '#']);
    !text.is_empty() && former.iter().all(is_plain) && (*last == "#" || is_plain(last))
}

/// Section 4.7 read word by word, of a filter and a name that are valid.
fn matches(filter: &str, name: &str) -> bool {
    // [MQTT-4.7.2-1]
    if name.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let filter: Vec<_> = filter.split('/').collect();
    let name: Vec<_> = name.split('/').collect();
    levels_match(&filter, &name)
}

fn levels_match(filter: &[&str], name: &[&str]) -> bool {
    match (filter, name) {
        ([], []) => true,
        // It stands for its parent too, and for any number of levels.
        (["#"], _) => true,
        ([wanted, filter @ ..], [level, name @ ..]) => {
            (*wanted == "+" || wanted == level) && levels_match(filter, name)
        }
        _ => false,
    }
}
