//! Topic names in order, read by filter in pages: the index of retained messages. It never visits
//! subtrees that the filter cannot match, and bounds the work of one page.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::collections::btree_set::Range;
use std::ops::Bound;

use smallvec::SmallVec;

use super::{TopicFilter, TopicName};

/// Names looked at in one page for each one asked for, before the page ends early.
const STEPS_PER_ITEM: usize = 8;
const STEPS_MIN: usize = 256;

/// What stands in a [`NameTree`]: it holds its own name, so that the tree needs no copy of it.
pub trait Named: 'static {
    /// The bytes of the topic name it stands under; the same for as long as it is in the tree.
    fn name(&self) -> &[u8];
}

/// A set of values under their topic names, ordered so that a topic is directly followed by all
/// topics below it. Getters and commands only; iteration order depends on the content alone, so
/// replicas agree.
#[derive(Debug, Clone)]
pub struct NameTree<V> {
    set: BTreeSet<Item<V>>,
}

impl<V: Named> NameTree<V> {
    pub fn new() -> Self {
        Self {
            set: BTreeSet::new(),
        }
    }

    /// Puts a value under its name and returns the former one.
    pub fn insert(&mut self, value: V) -> Option<V> {
        let former = self.set.replace(Item(value))?;
        Some(former.0)
    }

    pub fn remove(&mut self, name: &TopicName) -> Option<V> {
        self.take(name.as_str().as_bytes())
    }

    /// Removes what stands under the name of another value.
    pub fn remove_named_as(&mut self, other: &V) -> Option<V> {
        self.take(other.name())
    }

    fn take(&mut self, name: &[u8]) -> Option<V> {
        let former = self.set.take(probe(&name))?;
        Some(former.0)
    }

    pub fn get(&self, name: &TopicName) -> Option<&V> {
        self.find(name.as_str().as_bytes())
    }

    /// What stands under the name of another value.
    pub fn get_named_as(&self, other: &V) -> Option<&V> {
        self.find(other.name())
    }

    fn find(&self, name: &[u8]) -> Option<&V> {
        let found = self.set.get(probe(&name))?;
        Some(&found.0)
    }

    pub fn len(&self) -> usize {
        self.set.len()
    }

    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// All values, in the order of their names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &V> {
        self.set.iter().map(|item| &item.0)
    }

    /// Visits, in order, at most `limit` values whose names `filter` matches and come after `after`
    /// (which need not be there any more). Returns the cursor to pass as `after` for the next page,
    /// or None when there is none. A page may hold fewer than `limit` values, even none, and still
    /// have a next one: its work is bounded too.
    pub fn page(
        &self,
        filter: &TopicFilter,
        after: Option<&str>,
        limit: usize,
        mut visit: impl FnMut(&V),
    ) -> Option<String> {
        let levels: SmallVec<[&[u8]; 16]> = filter.levels().map(str::as_bytes).collect();
        let steps_max = limit.saturating_mul(STEPS_PER_ITEM).max(STEPS_MIN);
        let (mut steps, mut visited) = (0, 0);
        let mut seek = Vec::new();
        let mut range = match after {
            Some(after) => self.range(Bound::Excluded(&after.as_bytes())),
            None => self.set.range::<dyn Leveled, _>(..),
        };
        loop {
            let Item(value) = range.next()?;
            match judge(&levels, value.name(), &mut seek) {
                Verdict::Match => {
                    visit(value);
                    visited += 1;
                }
                Verdict::Pass => {}
                Verdict::Seek => range = self.range(Bound::Included(&&*seek)),
                Verdict::End => return None,
            }
            steps += 1;
            if visited == limit || steps == steps_max {
                return Some(String::from_utf8_lossy(value.name()).into_owned());
            }
        }
    }

    fn range<'a>(&self, start: Bound<&&'a [u8]>) -> Range<'_, Item<V>> {
        let start = start.map(probe);
        self.set
            .range::<dyn Leveled + 'a, _>((start, Bound::Unbounded))
    }
}

impl<V: Named> Default for NameTree<V> {
    fn default() -> Self {
        Self::new()
    }
}

enum Verdict {
    Match,
    /// No match, but the next name in order may be one.
    Pass,
    /// No match before the bytes left in the buffer.
    Seek,
    /// No match from here on.
    End,
}

/// Judges a name against a filter's levels, and where it does not match finds the least bytes at or
/// behind which the next match can be. What it seeks is always greater than `name`.
fn judge(filter: &[&[u8]], name: &[u8], seek: &mut Vec<u8>) -> Verdict {
    let starts_wild = matches!(filter.first(), Some(&(b"+" | b"#")));
    if starts_wild && name.starts_with(b"$") {
        // [MQTT-4.7.2-1]; `%` is the character after `$`.
        return seek_to(seek, b"", b"%");
    }
    let mut start = 0;
    // Where the last level ends that a `+` took: the place that can still vary.
    let mut plus_end = None;
    for wanted in filter {
        if *wanted == b"#" {
            return Verdict::Match;
        }
        if start > name.len() {
            // The name is too short; names below it come directly behind it.
            return Verdict::Pass;
        }
        let rest = &name[start..];
        let slash = rest.iter().position(|byte| *byte == b'/');
        let level = &rest[..slash.unwrap_or(rest.len())];
        let end = start + level.len();
        match level.cmp(wanted) {
            _ if *wanted == b"+" => plus_end = Some(end),
            Ordering::Equal => {}
            Ordering::Less => return seek_to(seek, &name[..start], wanted),
            Ordering::Greater => return seek_behind(seek, name, plus_end),
        }
        start = end + 1;
    }
    if start > name.len() {
        Verdict::Match
    } else {
        seek_behind(seek, name, plus_end)
    }
}

fn seek_to(seek: &mut Vec<u8>, prefix: &[u8], level: &[u8]) -> Verdict {
    seek.clear();
    seek.extend_from_slice(prefix);
    seek.extend_from_slice(level);
    Verdict::Seek
}

/// Seeks behind the whole subtree of the name's part that the last `+` took, if there was one.
fn seek_behind(seek: &mut Vec<u8>, name: &[u8], plus_end: Option<usize>) -> Verdict {
    match plus_end {
        // U+0001 is the least character that can follow other than a slash, which is ordered first.
        Some(end) => seek_to(seek, &name[..end], b"\x01"),
        None => Verdict::End,
    }
}

/// A topic name in level order: a slash is less than any other character. MQTT text has no NUL,
/// so the slash can take its place.
fn level_order(a: &[u8], b: &[u8]) -> Ordering {
    let weight = |byte: u8| if byte == b'/' { 0 } else { byte };
    match a.iter().zip(b).find(|(a, b)| a != b) {
        Some((a, b)) => weight(*a).cmp(&weight(*b)),
        None => a.len().cmp(&b.len()),
    }
}

/// A value, ordered by its name.
#[derive(Debug, Clone)]
struct Item<V>(V);

/// What values and borrowed names have in common, so that the set is searched without allocating.
trait Leveled {
    fn bytes(&self) -> &[u8];
}

impl<V: Named> Leveled for Item<V> {
    fn bytes(&self) -> &[u8] {
        self.0.name()
    }
}

impl Leveled for &[u8] {
    fn bytes(&self) -> &[u8] {
        self
    }
}

fn probe<'a, 'b>(name: &'a &'b [u8]) -> &'a (dyn Leveled + 'b) {
    name
}

impl<'a, V: Named> Borrow<dyn Leveled + 'a> for Item<V> {
    fn borrow(&self) -> &(dyn Leveled + 'a) {
        self
    }
}

impl Ord for dyn Leveled + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        level_order(self.bytes(), other.bytes())
    }
}

impl PartialOrd for dyn Leveled + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn Leveled + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for dyn Leveled + '_ {}

impl<V: Named> Ord for Item<V> {
    fn cmp(&self, other: &Self) -> Ordering {
        level_order(self.bytes(), other.bytes())
    }
}

impl<V: Named> PartialOrd for Item<V> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<V: Named> PartialEq for Item<V> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl<V: Named> Eq for Item<V> {}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::topic::strategies::{filter_text, name_text};

    fn name(text: &str) -> TopicName {
        TopicName::try_from(text).unwrap()
    }

    fn filter(text: &str) -> TopicFilter {
        TopicFilter::try_from(text).unwrap()
    }

    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Kept {
        name: String,
        value: usize,
    }

    impl Named for Kept {
        fn name(&self) -> &[u8] {
            self.name.as_bytes()
        }
    }

    fn kept(name: &str, value: usize) -> Kept {
        Kept {
            name: name.to_owned(),
            value,
        }
    }

    fn tree(names: &[&str]) -> NameTree<Kept> {
        let mut tree = NameTree::new();
        for (index, text) in names.iter().enumerate() {
            tree.insert(kept(text, index));
        }
        tree
    }

    fn pages(tree: &NameTree<Kept>, filter: &TopicFilter, limit: usize) -> Vec<String> {
        let mut found = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let before = found.len();
            after = tree.page(filter, after.as_deref(), limit, |kept| {
                found.push(kept.name.clone())
            });
            assert!(found.len() - before <= limit);
            if after.is_none() {
                return found;
            }
        }
    }

    #[test]
    fn a_topic_is_followed_by_what_is_below_it() {
        let tree = tree(&["a!", "b", "a/b", "a", "a/", "a b", "a//x"]);
        let order: Vec<_> = tree.iter().map(|kept| kept.name.as_str()).collect();
        assert_eq!(order, ["a", "a/", "a//x", "a/b", "a b", "a!", "b"]);
    }

    #[test]
    fn insert_replaces_and_remove_returns_the_value() {
        let mut tree = NameTree::new();
        assert_eq!(tree.insert(kept("a/b", 1)), None);
        assert_eq!(tree.insert(kept("a/b", 2)), Some(kept("a/b", 1)));
        assert_eq!(tree.get(&name("a/b")), Some(&kept("a/b", 2)));
        assert_eq!(tree.len(), 1);
        assert_eq!(tree.remove(&name("a")), None);
        assert_eq!(tree.remove_named_as(&kept("a", 2)), None);
        assert_eq!(tree.remove_named_as(&kept("a/b", 9)), Some(kept("a/b", 2)));
        assert!(tree.is_empty());
    }

    #[test]
    fn a_page_goes_on_behind_a_topic_that_is_gone() {
        let mut tree = tree(&["a/1", "a/2", "a/3", "b"]);
        let mut first = Vec::new();
        let cursor = tree.page(&filter("a/+"), None, 2, |kept| {
            first.push(kept.name.clone())
        });
        assert_eq!(
            (first.as_slice(), cursor.as_deref()),
            (["a/1".into(), "a/2".into()].as_slice(), Some("a/2"))
        );
        tree.remove(&name("a/2"));
        let mut second = Vec::new();
        let cursor = tree.page(&filter("a/+"), Some("a/2"), 2, |kept| {
            second.push(kept.name.clone())
        });
        assert_eq!((second, cursor), (vec!["a/3".to_owned()], None));
    }

    #[test]
    fn a_page_that_finds_nothing_still_ends_and_can_be_continued() {
        let mut tree = NameTree::new();
        for i in 0..STEPS_MIN * 3 {
            tree.insert(kept(&format!("room/{i:05}/temperature"), i));
        }
        tree.insert(kept("room/99999/door", 0));
        let mut calls = 0;
        let cursor = tree.page(&filter("room/+/door"), None, 1, |_| calls += 1);
        assert!(
            cursor.is_some() && calls == 0,
            "the work of one page is bounded"
        );
        assert_eq!(pages(&tree, &filter("room/+/door"), 1), ["room/99999/door"]);
    }

    #[test]
    fn subtrees_that_cannot_match_are_skipped() {
        let mut tree = NameTree::new();
        for i in 0..STEPS_MIN * 4 {
            tree.insert(kept(&format!("big/{i}"), i));
        }
        tree.insert(kept("zoo/x", 0));
        let mut found = 0;
        assert_eq!(tree.page(&filter("zoo/#"), None, 10, |_| found += 1), None);
        assert_eq!(tree.page(&filter("+/x"), None, 10, |_| found += 1), None);
        assert_eq!(found, 2, "both were reached within one page");
    }

    #[test]
    fn dollar_topics_are_hidden_from_first_level_wildcards() {
        let tree = tree(&["$SYS/a", "#nope".trim_start_matches('#'), "$", "%"]);
        assert_eq!(pages(&tree, &filter("#"), 1), ["%", "nope"]);
        assert_eq!(pages(&tree, &filter("$SYS/#"), 1), ["$SYS/a"]);
    }

    #[test]
    fn a_name_of_32768_levels_is_no_trouble() {
        let deep = "/".repeat(32_767);
        let tree = tree(&[&deep]);
        assert_eq!(pages(&tree, &filter("#"), 3).len(), 1);
        assert_eq!(
            pages(&tree, &filter(&format!("{}+", "+/".repeat(32_000))), 3).len(),
            0
        );
        assert_eq!(
            pages(&tree, &filter(&format!("{}+", "+/".repeat(32_767))), 3).len(),
            1
        );
    }

    proptest! {
        #[test]
        fn pages_hold_what_the_naive_matcher_finds(
            names in prop::collection::vec(name_text(), 0..40),
            filters in prop::collection::vec(filter_text(), 1..8),
            limit in 1usize..6,
        ) {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let tree = tree(&names);
            for text in &filters {
                let filter = filter(text);
                let expected: Vec<String> = tree
                    .iter()
                    .map(|kept| kept.name.clone())
                    .filter(|text| filter.matches(&name(text)))
                    .collect();
                prop_assert_eq!(pages(&tree, &filter, limit), expected, "{}", text);
            }
        }
    }
}
