//! The matching tree: from topic filters to values, walked by topic. It is the heart of routing and
//! the replicated route state itself. It never recurses, and a walk allocates nothing unless more
//! than sixteen `+` branches wait at once.

use std::hash::{BuildHasher, Hasher};
use std::mem;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use smallvec::SmallVec;

use super::segment::Segment;
use super::values::{NO_VALUE, Values};
use super::{TopicFilter, is_hidden};

/// A map from topic filters to `V`, matched by topic.
///
/// Nodes lie in one slab, one for each level of a filter that no other filter shares. A literal
/// level is found through one hash table over (parent, level) for the whole tree; the wildcards of
/// a node are direct links. So a step down costs one probe and one node, at a thousand filters as
/// at a million, and a filter that shares its prefix costs one node and a few bytes of table.
///
/// Matches come in an order that depends on the content alone. [`TopicTree::for_each`] follows the
/// slab, whose order depends on the history: replicas may see different orders.
#[derive(Debug, Clone)]
pub struct TopicTree<V> {
    /// The root is node 0. Free nodes form a list through `plus`.
    nodes: Vec<Node>,
    /// What filters have; as many as there are filters.
    values: Values<V>,
    /// Ids of all nodes reached by a literal level, under the hash of parent and level.
    literals: HashTable<u32>,
    hasher: RandomState,
    free_head: u32,
    free_count: usize,
}

const ROOT: u32 = 0;
/// No node.
const NONE: u32 = u32::MAX;
/// The parent of a node that is free.
const FREE: u32 = u32::MAX - 1;
/// Slabs below this size are not worth compacting.
const COMPACT_NODES_MIN: usize = 64;

#[derive(Debug, Clone)]
struct Node {
    parent: u32,
    /// The `+` below this node, or NONE.
    plus: u32,
    /// The `#` below this node, or NONE. It is a leaf and always has a value.
    hash: u32,
    /// How many literal levels are below this node.
    literals: u32,
    segment: Segment,
    /// The number of its value, or NO_VALUE.
    value: u32,
}

/// Where a walk stands: a node, and where in the topic the next level starts. Past the topic's
/// end there is no next level.
type Place = (u32, usize);

impl<V> TopicTree<V> {
    pub fn new() -> Self {
        Self::with_hasher(RandomState::default())
    }

    /// A tree whose table is seeded by the caller. Levels come from clients: the seed must be one
    /// they cannot know.
    pub fn with_hasher(hasher: RandomState) -> Self {
        Self {
            nodes: vec![Node::new(NONE, "")],
            values: Values::new(),
            literals: HashTable::new(),
            hasher,
            free_head: NONE,
            free_count: 0,
        }
    }

    /// How many filters have a value.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the slab and the table; levels longer than 22 bytes have their own on top.
    pub fn allocated_bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>()
            + self.values.allocated_bytes()
            + self.literals.allocation_size()
    }

    pub fn get(&self, filter: &TopicFilter) -> Option<&V> {
        let id = self.find(filter)?;
        self.value_of(id)
    }

    pub fn get_mut(&mut self, filter: &TopicFilter) -> Option<&mut V> {
        let id = self.find(filter)?;
        self.values.get_mut(self.nodes[id as usize].value)
    }

    /// The value of a filter, made first if there is none.
    pub fn entry_or_insert_with(
        &mut self,
        filter: &TopicFilter,
        make: impl FnOnce() -> V,
    ) -> &mut V {
        let mut at = ROOT;
        for level in filter.levels() {
            at = match self.child(at, level) {
                Some(child) => child,
                None => self.add(at, level),
            };
        }
        let node = &mut self.nodes[at as usize];
        if node.value == NO_VALUE {
            node.value = self.values.insert(make());
        }
        self.values
            .get_mut(node.value)
            .expect("the number of a node is that of its value")
    }

    /// Takes a filter out, with the nodes that only it needed.
    pub fn remove(&mut self, filter: &TopicFilter) -> Option<V> {
        let id = self.find(filter)?;
        let value = self.take_value(id)?;
        self.prune(id);
        self.compact_if_sparse();
        Some(value)
    }

    /// Visits the value of every filter that matches a topic, each once.
    pub fn for_each_match(&self, topic: &str, mut visit: impl FnMut(&V)) {
        // `+` branches still to be walked. Each step down adds one at most, so the topic's levels
        // bound it; the nodes of the tree bound the walk as a whole.
        let mut branches: SmallVec<[Place; 16]> = SmallVec::new();
        let mut next = Some((ROOT, 0));
        while let Some(place) = next {
            next = self.step(topic, place, &mut branches, &mut visit);
            if next.is_none() {
                next = branches.pop();
            }
        }
    }

    /// Visits all filters in no particular order.
    pub fn for_each(&self, mut visit: impl FnMut(&str, &V)) {
        let mut text = String::new();
        for (id, node) in self.nodes.iter().enumerate() {
            if let Some(value) = self.values.get(node.value) {
                self.write_filter(id as u32, &mut text);
                visit(&text, value);
            }
        }
    }

    /// Keeps the filters for which `keep` says so.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &mut V) -> bool) {
        let mut text = String::new();
        for id in 0..self.nodes.len() {
            let number = self.nodes[id].value;
            if number == NO_VALUE {
                continue;
            }
            self.write_filter(id as u32, &mut text);
            let value = self.values.get_mut(number);
            if value.is_some_and(|value| keep(&text, value)) {
                continue;
            }
            self.take_value(id as u32);
            self.prune(id as u32);
        }
        self.compact_if_sparse();
    }

    /// Asserts what must hold between calls. Linear; for tests.
    pub fn check_invariants(&self) {
        let free = self.nodes.iter().filter(|node| node.parent == FREE).count();
        assert_eq!(free, self.free_count);
        let mut numbers: Vec<u32> = self.nodes.iter().map(|node| node.value).collect();
        numbers.retain(|number| *number != NO_VALUE);
        numbers.sort_unstable();
        assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(
            numbers
                .iter()
                .all(|number| self.values.get(*number).is_some())
        );
        assert_eq!(numbers.len(), self.values.len());
        let mut below = vec![0; self.nodes.len()];
        for (id, node) in self
            .nodes
            .iter()
            .enumerate()
            .skip(1)
            .filter(|(_, node)| node.parent != FREE)
        {
            assert!(!node.is_bare(), "a node that no filter needs is gone");
            let parent = &self.nodes[node.parent as usize];
            let id = id as u32;
            if parent.plus == id || parent.hash == id {
                assert!(parent.plus == id || (node.value != NO_VALUE && node.literals == 0));
                continue;
            }
            below[node.parent as usize] += 1;
            assert_eq!(self.literal(node.parent, node.segment.as_bytes()), Some(id));
        }
        for (node, below) in self.nodes.iter().zip(&below) {
            assert!(node.parent == FREE || node.literals == *below);
        }
        assert_eq!(
            self.literals.len(),
            below.iter().map(|below| *below as usize).sum::<usize>()
        );
    }

    /// Visits what ends at a place and goes one level down. Returns the place below the literal level
    /// and leaves the `+` branch for later.
    fn step(
        &self,
        topic: &str,
        (at, start): Place,
        branches: &mut SmallVec<[Place; 16]>,
        visit: &mut impl FnMut(&V),
    ) -> Option<Place> {
        let node = &self.nodes[at as usize];
        // [MQTT-4.7.2-1]
        let wildcards = at != ROOT || !is_hidden(topic);
        // `#` takes the rest whatever it is, and none at all.
        if node.hash != NONE
            && wildcards
            && let Some(value) = self.value_of(node.hash)
        {
            visit(value);
        }
        let Some(rest) = topic.as_bytes().get(start..) else {
            if let Some(value) = self.values.get(node.value) {
                visit(value);
            }
            return None;
        };
        let length = rest
            .iter()
            .position(|byte| *byte == b'/')
            .unwrap_or(rest.len());
        let next_start = start + length + 1;
        if node.plus != NONE && wildcards {
            branches.push((node.plus, next_start));
        }
        if node.literals == 0 {
            return None;
        }
        let child = self.literal(at, &rest[..length])?;
        Some((child, next_start))
    }

    fn value_of(&self, id: u32) -> Option<&V> {
        self.values.get(self.nodes[id as usize].value)
    }

    fn take_value(&mut self, id: u32) -> Option<V> {
        let number = mem::replace(&mut self.nodes[id as usize].value, NO_VALUE);
        self.values.remove(number)
    }

    fn find(&self, filter: &TopicFilter) -> Option<u32> {
        let mut levels = filter.levels();
        levels.try_fold(ROOT, |at, level| self.child(at, level))
    }

    fn child(&self, at: u32, level: &str) -> Option<u32> {
        let node = &self.nodes[at as usize];
        match level {
            "+" => Some(node.plus).filter(|id| *id != NONE),
            "#" => Some(node.hash).filter(|id| *id != NONE),
            _ => self.literal(at, level.as_bytes()),
        }
    }

    fn literal(&self, parent: u32, level: &[u8]) -> Option<u32> {
        let hash = hash_of(&self.hasher, parent, level);
        let found = self.literals.find(hash, |id| {
            let node = &self.nodes[*id as usize];
            node.parent == parent && node.segment.as_bytes() == level
        });
        found.copied()
    }

    fn add(&mut self, parent: u32, level: &str) -> u32 {
        let id = self.allocate(parent, level);
        match level {
            "+" => self.nodes[parent as usize].plus = id,
            "#" => self.nodes[parent as usize].hash = id,
            _ => {
                self.nodes[parent as usize].literals += 1;
                insert_literal(&mut self.literals, &self.nodes, &self.hasher, id);
            }
        }
        id
    }

    fn allocate(&mut self, parent: u32, level: &str) -> u32 {
        let node = Node::new(parent, level);
        if self.free_head != NONE {
            let id = self.free_head;
            let slot = &mut self.nodes[id as usize];
            self.free_head = slot.plus;
            self.free_count -= 1;
            *slot = node;
            return id;
        }
        assert!(self.nodes.len() < FREE as usize, "node ids are 32 bits");
        if self.nodes.len() == self.nodes.capacity() {
            // A quarter at a time: memory for large trees matters more than a few more copies.
            self.nodes.reserve_exact((self.nodes.len() / 4).max(4));
        }
        self.nodes.push(node);
        (self.nodes.len() - 1) as u32
    }

    /// Frees a node that no filter needs any more, and its ancestors likewise.
    fn prune(&mut self, mut id: u32) {
        while id != ROOT && self.nodes[id as usize].is_bare() {
            let parent = self.nodes[id as usize].parent;
            self.unlink(parent, id);
            let node = &mut self.nodes[id as usize];
            node.parent = FREE;
            node.segment = Segment::new("");
            node.plus = mem::replace(&mut self.free_head, id);
            self.free_count += 1;
            id = parent;
        }
    }

    fn unlink(&mut self, parent: u32, id: u32) {
        let above = &mut self.nodes[parent as usize];
        if above.plus == id {
            above.plus = NONE;
        } else if above.hash == id {
            above.hash = NONE;
        } else {
            above.literals -= 1;
            let hash = hash_of(
                &self.hasher,
                parent,
                self.nodes[id as usize].segment.as_bytes(),
            );
            if let Ok(entry) = self.literals.find_entry(hash, |other| *other == id) {
                entry.remove();
            }
        }
    }

    /// Gives memory back once three quarters of the slab are free: moves the nodes together, so
    /// that a removal costs constant time on average.
    fn compact_if_sparse(&mut self) {
        let live = self.nodes.len() - self.free_count;
        if self.nodes.len() < COMPACT_NODES_MIN || live > self.nodes.len() / 4 {
            return;
        }
        let mut moved = vec![NONE; self.nodes.len()];
        let mut nodes = Vec::with_capacity(live);
        let mut values = Values::new();
        let mut literals = HashTable::with_capacity(self.literals.len());
        for (id, mut node) in mem::take(&mut self.nodes).into_iter().enumerate() {
            if node.parent != FREE {
                moved[id] = nodes.len() as u32;
                if let Some(value) = self.values.remove(node.value) {
                    node.value = values.insert(value);
                }
                nodes.push(node);
            }
        }
        let target = |id: u32| if id == NONE { NONE } else { moved[id as usize] };
        for node in &mut nodes {
            node.parent = target(node.parent);
            node.plus = target(node.plus);
            node.hash = target(node.hash);
        }
        for id in 1..nodes.len() as u32 {
            let above = &nodes[nodes[id as usize].parent as usize];
            if above.plus != id && above.hash != id {
                insert_literal(&mut literals, &nodes, &self.hasher, id);
            }
        }
        self.nodes = nodes;
        self.values = values;
        self.literals = literals;
        self.free_head = NONE;
        self.free_count = 0;
    }

    fn write_filter(&self, id: u32, text: &mut String) {
        let mut path: SmallVec<[u32; 16]> = SmallVec::new();
        let mut at = id;
        while at != ROOT {
            path.push(at);
            at = self.nodes[at as usize].parent;
        }
        text.clear();
        for id in path.into_iter().rev() {
            let node = &self.nodes[id as usize];
            if node.parent != ROOT {
                text.push('/');
            }
            text.push_str(node.segment.as_str());
        }
    }
}

impl<V> Default for TopicTree<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl Node {
    fn new(parent: u32, level: &str) -> Self {
        Self {
            parent,
            plus: NONE,
            hash: NONE,
            literals: 0,
            segment: Segment::new(level),
            value: NO_VALUE,
        }
    }

    fn is_bare(&self) -> bool {
        self.value == NO_VALUE && self.literals == 0 && self.plus == NONE && self.hash == NONE
    }
}

fn insert_literal(literals: &mut HashTable<u32>, nodes: &[Node], hasher: &RandomState, id: u32) {
    let hash = |id: &u32| {
        let node = &nodes[*id as usize];
        hash_of(hasher, node.parent, node.segment.as_bytes())
    };
    literals.insert_unique(hash(&id), id, hash);
}

fn hash_of(hasher: &RandomState, parent: u32, level: &[u8]) -> u64 {
    let mut hasher = hasher.build_hasher();
    hasher.write_u32(parent);
    hasher.write(level);
    hasher.finish()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::topic::TopicName;
    use crate::topic::strategies::{filter_text, name_text};

    fn filter(text: &str) -> TopicFilter {
        TopicFilter::try_from(text).unwrap()
    }

    fn tree(filters: &[&str]) -> TopicTree<String> {
        let mut tree = TopicTree::new();
        for text in filters {
            tree.entry_or_insert_with(&filter(text), || (*text).to_owned());
        }
        tree.check_invariants();
        tree
    }

    fn matches(tree: &TopicTree<String>, topic: &str) -> Vec<String> {
        let mut found = Vec::new();
        tree.for_each_match(topic, |value| found.push(value.clone()));
        found.sort();
        found
    }

    #[test]
    fn every_matching_filter_is_visited_once() {
        let tree = tree(&[
            "#", "+", "a", "a/#", "a/+", "a/b", "+/b", "+/+", "a/b/#", "a/c", "+/+/#",
        ]);
        assert_eq!(
            matches(&tree, "a/b"),
            ["#", "+/+", "+/+/#", "+/b", "a/#", "a/+", "a/b", "a/b/#"]
        );
        assert_eq!(matches(&tree, "a"), ["#", "+", "a", "a/#"]);
        assert_eq!(matches(&tree, "a/"), ["#", "+/+", "+/+/#", "a/#", "a/+"]);
    }

    #[test]
    fn dollar_topics_are_hidden_from_first_level_wildcards_only() {
        let tree = tree(&["#", "+/x", "$SYS/#", "$SYS/+", "a/#"]);
        assert_eq!(matches(&tree, "$SYS/x"), ["$SYS/#", "$SYS/+"]);
        assert_eq!(matches(&tree, "a/$SYS"), ["#", "a/#"]);
    }

    #[test]
    fn get_and_remove_see_exactly_one_filter() {
        let mut tree = tree(&["a/b", "a/b/c", "a/+"]);
        assert!(tree.get(&filter("a")).is_none() && tree.get(&filter("a/#")).is_none());
        tree.get_mut(&filter("a/+")).unwrap().push('!');
        assert_eq!(tree.get(&filter("a/+")).unwrap(), "a/+!");
        assert_eq!(tree.remove(&filter("a")), None);
        assert_eq!(tree.remove(&filter("a/b")).as_deref(), Some("a/b"));
        assert_eq!(tree.remove(&filter("a/b")), None);
        assert_eq!(tree.len(), 2);
        assert_eq!(matches(&tree, "a/b/c"), ["a/b/c"]);
        tree.check_invariants();
    }

    #[test]
    fn memory_comes_back_when_filters_go() {
        let mut tree = TopicTree::new();
        let empty = tree.allocated_bytes();
        let filters: Vec<_> = (0..5_000).map(|i| filter(&format!("a/{i}/+/b"))).collect();
        for each in &filters {
            tree.entry_or_insert_with(each, || 0u64);
        }
        let full = tree.allocated_bytes();
        for each in &filters[1..] {
            tree.remove(each);
        }
        tree.check_invariants();
        assert!(
            tree.allocated_bytes() < full / 20,
            "{} of {full}",
            tree.allocated_bytes()
        );
        let mut found = 0;
        tree.for_each_match("a/0/x/b", |_| found += 1);
        assert_eq!(found, 1);
        tree.remove(&filters[0]);
        assert!(tree.is_empty() && tree.allocated_bytes() < empty + 8 * 1024);
    }

    #[test]
    fn a_filter_costs_less_than_200_bytes() {
        const FILTERS: usize = 100_000;
        let mut tree = TopicTree::<[u64; 2]>::new();
        for i in 0..FILTERS {
            let text = format!("site/{}/device-{i}/temperature", i % 100);
            tree.entry_or_insert_with(&filter(&text), || [0; 2]);
        }
        let each = tree.allocated_bytes() / FILTERS;
        assert!(each <= 200, "{each} bytes with two levels of its own");
        let mut tree = TopicTree::<[u64; 2]>::new();
        for i in 0..FILTERS {
            tree.entry_or_insert_with(&filter(&format!("bench/{i}")), || [0; 2]);
        }
        let each = tree.allocated_bytes() / FILTERS;
        assert!(each <= 100, "{each} bytes with one level of its own");
    }

    #[test]
    fn topics_and_filters_of_32768_levels_are_no_trouble() {
        let deep = "/".repeat(32_767);
        let wild = format!("{}+", "+/".repeat(32_767));
        let mut tree = tree(&[&deep, &wild, "#", "+/#", "/+/#"]);
        assert_eq!(matches(&tree, &deep).len(), 5);
        tree.retain(|_, _| false);
        tree.check_invariants();
        assert_eq!((tree.len(), tree.nodes.len()), (0, 1));
    }

    #[test]
    fn retain_sees_each_filter_and_prunes_the_others() {
        let mut tree = tree(&["a/+/#", "a", "b//c", "/", "#"]);
        let mut seen = Vec::new();
        tree.retain(|text, value| {
            assert_eq!(text, value);
            seen.push(text.to_owned());
            text.starts_with('a')
        });
        tree.check_invariants();
        seen.sort();
        assert_eq!(seen, ["#", "/", "a", "a/+/#", "b//c"]);
        assert_eq!(matches(&tree, "a"), ["a"]);
        assert_eq!(matches(&tree, "a/x"), ["a/+/#"]);
    }

    #[derive(Debug, Clone)]
    enum Op {
        Insert(String),
        Remove(String),
        Match(String),
        RetainShort,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => filter_text().prop_map(Op::Insert),
            4 => filter_text().prop_map(Op::Remove),
            4 => name_text().prop_map(Op::Match),
            1 => Just(Op::RetainShort),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_map_with_the_naive_matcher(ops in prop::collection::vec(op(), 1..120)) {
            let mut tree = TopicTree::new();
            let mut model = BTreeMap::new();
            for (number, op) in ops.into_iter().enumerate() {
                match op {
                    Op::Insert(text) => {
                        let made = *tree.entry_or_insert_with(&filter(&text), || number);
                        prop_assert_eq!(made, *model.entry(text).or_insert(number));
                    }
                    Op::Remove(text) => {
                        prop_assert_eq!(tree.remove(&filter(&text)), model.remove(&text));
                    }
                    Op::Match(topic) => {
                        let name = TopicName::try_from(topic.as_str()).unwrap();
                        let mut found = Vec::new();
                        tree.for_each_match(&topic, |value| found.push(*value));
                        let hits = model.iter().filter(|(text, _)| filter(text).matches(&name));
                        let mut expected: Vec<_> = hits.map(|(_, value)| *value).collect();
                        found.sort_unstable();
                        expected.sort_unstable();
                        prop_assert_eq!(found, expected);
                    }
                    Op::RetainShort => {
                        tree.retain(|text, _| text.len() <= 4);
                        model.retain(|text, _| text.len() <= 4);
                    }
                }
                tree.check_invariants();
                prop_assert_eq!(tree.len(), model.len());
            }
            let mut all = BTreeMap::new();
            tree.for_each(|text, value| assert!(all.insert(text.to_owned(), *value).is_none()));
            prop_assert_eq!(&all, &model);
            for text in model.keys() {
                tree.remove(&filter(text));
            }
            tree.check_invariants();
            prop_assert!(tree.is_empty() && tree.literals.is_empty());
            prop_assert_eq!(tree.nodes.len() - tree.free_count, 1, "only the root is left");
        }
    }
}
