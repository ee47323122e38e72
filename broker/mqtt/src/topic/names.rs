//! Topic names in order, read by filter in pages: the index of retained messages. It never visits
//! subtrees that the filter cannot match, and bounds the work of one page.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::collections::btree_map::Range;
use std::ops::Bound;

use smallvec::SmallVec;

use super::{TopicFilter, TopicName, is_hidden};

/// Names looked at in one page for each one asked for, before the page ends early.
const STEPS_PER_ITEM: usize = 8;
const STEPS_MIN: usize = 256;

/// A map from topic names to `V`, ordered so that a topic is directly followed by all topics below
/// it. Getters and commands only; iteration order depends on the content alone, so replicas agree.
#[derive(Debug, Clone)]
pub struct NameTree<V> {
    map: BTreeMap<Key, V>,
}

impl<V> NameTree<V> {
    pub fn new() -> Self {
        Self {
            map: BTreeMap::new(),
        }
    }

    /// Sets the value of a name and returns the former one.
    pub fn insert(&mut self, name: &TopicName, value: V) -> Option<V> {
        if let Some(present) = self.map.get_mut(probe(&name.as_str())) {
            return Some(std::mem::replace(present, value));
        }
        self.map.insert(Key(name.as_str().into()), value)
    }

    pub fn remove(&mut self, name: &TopicName) -> Option<V> {
        self.map.remove(probe(&name.as_str()))
    }

    pub fn get(&self, name: &TopicName) -> Option<&V> {
        self.map.get(probe(&name.as_str()))
    }

    pub fn get_mut(&mut self, name: &TopicName) -> Option<&mut V> {
        self.map.get_mut(probe(&name.as_str()))
    }

    pub fn len(&self) -> usize {
        self.map.len()
    }

    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// All names, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        self.map.iter().map(|(key, value)| (&*key.0, value))
    }

    /// Visits, in order, at most `limit` names that `filter` matches and that come after `after`
    /// (which need not be there any more). Returns the cursor to pass as `after` for the next page,
    /// or None when there is none. A page may hold fewer than `limit` names, even none, and still
    /// have a next one: its work is bounded too.
    pub fn page(
        &self,
        filter: &TopicFilter,
        after: Option<&str>,
        limit: usize,
        mut visit: impl FnMut(&str, &V),
    ) -> Option<String> {
        let levels: SmallVec<[&str; 16]> = filter.levels().collect();
        let steps_max = limit.saturating_mul(STEPS_PER_ITEM).max(STEPS_MIN);
        let (mut steps, mut visited) = (0, 0);
        let mut seek = String::new();
        let mut range = match &after {
            Some(after) => self.range(Bound::Excluded(after)),
            None => self.map.range::<dyn Leveled, _>(..),
        };
        loop {
            let (Key(name), value) = range.next()?;
            match judge(&levels, name, &mut seek) {
                Verdict::Match => {
                    visit(name, value);
                    visited += 1;
                }
                Verdict::Pass => {}
                Verdict::Seek => range = self.range(Bound::Included(&&*seek)),
                Verdict::End => return None,
            }
            steps += 1;
            if visited == limit || steps == steps_max {
                return Some(name.to_string());
            }
        }
    }

    fn range<'a>(&self, start: Bound<&&'a str>) -> Range<'_, Key, V> {
        let start = start.map(probe);
        self.map
            .range::<dyn Leveled + 'a, _>((start, Bound::Unbounded))
    }
}

impl<V> Default for NameTree<V> {
    fn default() -> Self {
        Self::new()
    }
}

enum Verdict {
    Match,
    /// No match, but the next name in order may be one.
    Pass,
    /// No match before the text left in the buffer.
    Seek,
    /// No match from here on.
    End,
}

/// Judges a name against a filter's levels, and where it does not match finds the least text at or
/// behind which the next match can be. What it seeks is always greater than `name`.
fn judge(filter: &[&str], name: &str, seek: &mut String) -> Verdict {
    let starts_wild = matches!(filter.first(), Some(&("+" | "#")));
    if starts_wild && is_hidden(name) {
        // [MQTT-4.7.2-1]; `%` is the character after `$`.
        return seek_to(seek, "", "%");
    }
    let mut start = 0;
    // Where the last level ends that a `+` took: the place that can still vary.
    let mut plus_end = None;
    for wanted in filter {
        if *wanted == "#" {
            return Verdict::Match;
        }
        if start > name.len() {
            // The name is too short; names below it come directly behind it.
            return Verdict::Pass;
        }
        let rest = &name[start..];
        let level = &rest[..rest.find('/').unwrap_or(rest.len())];
        let end = start + level.len();
        match level.cmp(wanted) {
            _ if *wanted == "+" => plus_end = Some(end),
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

fn seek_to(seek: &mut String, prefix: &str, level: &str) -> Verdict {
    seek.clear();
    seek.push_str(prefix);
    seek.push_str(level);
    Verdict::Seek
}

/// Seeks behind the whole subtree of the name's part that the last `+` took, if there was one.
fn seek_behind(seek: &mut String, name: &str, plus_end: Option<usize>) -> Verdict {
    match plus_end {
        // U+0001 is the least character that can follow other than a slash, which is ordered first.
        Some(end) => seek_to(seek, &name[..end], "\u{1}"),
        None => Verdict::End,
    }
}

/// A topic name in level order: a slash is less than any other character. MQTT text has no NUL,
/// so the slash can take its place.
fn level_order(a: &str, b: &str) -> Ordering {
    let weight = |byte: u8| if byte == b'/' { 0 } else { byte };
    let pairs = a.bytes().zip(b.bytes());
    match pairs.into_iter().find(|(a, b)| a != b) {
        Some((a, b)) => weight(a).cmp(&weight(b)),
        None => a.len().cmp(&b.len()),
    }
}

#[derive(Debug, Clone)]
struct Key(Box<str>);

/// What keys and borrowed texts have in common, so that the map is searched without allocating.
trait Leveled {
    fn text(&self) -> &str;
}

impl Leveled for Key {
    fn text(&self) -> &str {
        &self.0
    }
}

impl Leveled for &str {
    fn text(&self) -> &str {
        self
    }
}

fn probe<'a, 'b>(text: &'a &'b str) -> &'a (dyn Leveled + 'b) {
    text
}

impl<'a> Borrow<dyn Leveled + 'a> for Key {
    fn borrow(&self) -> &(dyn Leveled + 'a) {
        self
    }
}

impl Ord for dyn Leveled + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        level_order(self.text(), other.text())
    }
}

impl PartialOrd for dyn Leveled + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn Leveled + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl Eq for dyn Leveled + '_ {}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        level_order(&self.0, &other.0)
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Key {}

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

    fn tree(names: &[&str]) -> NameTree<usize> {
        let mut tree = NameTree::new();
        for (index, text) in names.iter().enumerate() {
            tree.insert(&name(text), index);
        }
        tree
    }

    fn pages(tree: &NameTree<usize>, filter: &TopicFilter, limit: usize) -> Vec<String> {
        let mut found = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let before = found.len();
            after = tree.page(filter, after.as_deref(), limit, |name, _| {
                found.push(name.to_owned())
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
        let order: Vec<_> = tree.iter().map(|(name, _)| name).collect();
        assert_eq!(order, ["a", "a/", "a//x", "a/b", "a b", "a!", "b"]);
    }

    #[test]
    fn insert_replaces_and_remove_returns_the_value() {
        let mut tree = NameTree::new();
        assert_eq!(tree.insert(&name("a/b"), 1), None);
        assert_eq!(tree.insert(&name("a/b"), 2), Some(1));
        assert_eq!((tree.len(), tree.get(&name("a/b"))), (1, Some(&2)));
        *tree.get_mut(&name("a/b")).unwrap() = 3;
        assert_eq!(tree.remove(&name("a")), None);
        assert_eq!(tree.remove(&name("a/b")), Some(3));
        assert!(tree.is_empty());
    }

    #[test]
    fn a_page_goes_on_behind_a_topic_that_is_gone() {
        let mut tree = tree(&["a/1", "a/2", "a/3", "b"]);
        let mut first = Vec::new();
        let cursor = tree.page(&filter("a/+"), None, 2, |name, _| {
            first.push(name.to_owned())
        });
        assert_eq!(
            (first.as_slice(), cursor.as_deref()),
            (["a/1".into(), "a/2".into()].as_slice(), Some("a/2"))
        );
        tree.remove(&name("a/2"));
        let mut second = Vec::new();
        let cursor = tree.page(&filter("a/+"), Some("a/2"), 2, |name, _| {
            second.push(name.to_owned())
        });
        assert_eq!((second, cursor), (vec!["a/3".to_owned()], None));
    }

    #[test]
    fn a_page_that_finds_nothing_still_ends_and_can_be_continued() {
        let mut tree = NameTree::new();
        for i in 0..STEPS_MIN * 3 {
            tree.insert(&name(&format!("room/{i:05}/temperature")), i);
        }
        tree.insert(&name("room/99999/door"), 0);
        let mut calls = 0;
        let cursor = tree.page(&filter("room/+/door"), None, 1, |_, _| calls += 1);
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
            tree.insert(&name(&format!("big/{i}")), i);
        }
        tree.insert(&name("zoo/x"), 0);
        let mut found = 0;
        assert_eq!(
            tree.page(&filter("zoo/#"), None, 10, |_, _| found += 1),
            None
        );
        assert_eq!(tree.page(&filter("+/x"), None, 10, |_, _| found += 1), None);
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
                    .filter(|(text, _)| filter.matches(&name(text)))
                    .map(|(text, _)| text.to_owned())
                    .collect();
                prop_assert_eq!(pages(&tree, &filter, limit), expected, "{}", text);
            }
        }
    }
}
