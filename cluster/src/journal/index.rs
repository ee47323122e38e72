//! What the journal knows in memory: for each group its log's places on disk, purge mark, vote, and the most
//! recent entries. Pure: it never touches a file and has no lock of its own.
//!
//! Requests take effect here when they are admitted, before they are durable, so that reads see what was
//! appended. The writer tells later where the entries went (`place`) or that they could not be written
//! (`refuse`).

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use bytes::Bytes;

use super::found::{Found, OnDisk};
use super::{GroupId, JournalError, Mark, Record};

/// What a cached entry costs beside its data.
const CACHED_OVERHEAD: usize = 64;
/// Logs shorter than this are not worth shrinking.
const SHRINK_MIN: usize = 1024;

/// Where an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In the cache only; the ticket is that of the request which carries it.
    Queued { ticket: u64 },
    /// Its record starts at `offset` of the segment.
    Written { segment: u64, offset: u32 },
}

/// One entry of a group's log.
#[derive(Debug, Clone, Copy)]
struct Slot {
    term: u64,
    len: u32,
    place: Place,
}

#[derive(Debug, Default)]
struct Group {
    /// Index of the first slot; meaningless while there are none.
    first: u64,
    /// The log, without holes. Those still queued are at the end.
    slots: VecDeque<Slot>,
    /// Data of the last entries, at least of all queued ones.
    cached: VecDeque<Bytes>,
    cached_bytes: usize,
    purged: Option<Mark>,
    vote: Option<Bytes>,
    /// Truncations and purges that took effect here and are not durable yet.
    removals: usize,
    /// The segment of the first entry before the first of these removals: until they are durable it stays.
    held: Option<u64>,
}

/// All groups.
#[derive(Debug)]
pub(super) struct Index {
    groups: BTreeMap<GroupId, Group>,
    cached_bytes: usize,
    cache_max: usize,
}

fn cost(data: &Bytes) -> usize {
    data.len() + CACHED_OVERHEAD
}

impl Group {
    fn end(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    fn last(&self) -> Option<Mark> {
        let slot = self.slots.back()?;
        Some(Mark {
            index: self.end() - 1,
            term: slot.term,
        })
    }

    /// The index that an append must begin with, if there is only one.
    fn expected(&self) -> Option<u64> {
        if self.slots.is_empty() {
            self.purged.map(|mark| mark.index + 1)
        } else {
            Some(self.end())
        }
    }

    fn push(&mut self, index: u64, slot: Slot) {
        if self.slots.is_empty() {
            self.first = index;
        }
        debug_assert_eq!(index, self.end());
        self.slots.push_back(slot);
    }

    /// Removes all entries from `from` on.
    fn cut_back(&mut self, from: u64) {
        let keep = usize::try_from(from.saturating_sub(self.first)).unwrap_or(usize::MAX);
        while self.slots.len() > keep {
            self.slots.pop_back();
            if let Some(data) = self.cached.pop_back() {
                self.cached_bytes -= cost(&data);
            }
        }
        self.shrink();
    }

    /// Removes all entries up to `upto`.
    fn cut_front(&mut self, upto: u64) {
        while !self.slots.is_empty() && self.first <= upto {
            self.slots.pop_front();
            self.first += 1;
            if self.cached.len() > self.slots.len()
                && let Some(data) = self.cached.pop_front()
            {
                self.cached_bytes -= cost(&data);
            }
        }
        self.shrink();
    }

    /// Gives memory back after the log became much shorter.
    fn shrink(&mut self) {
        if self.slots.capacity() > SHRINK_MIN && self.slots.len() < self.slots.capacity() / 4 {
            self.slots.shrink_to(self.slots.len() * 2);
        }
        if self.cached.capacity() > SHRINK_MIN && self.cached.len() < self.cached.capacity() / 4 {
            self.cached.shrink_to(self.cached.len() * 2);
        }
    }

    /// Drops the oldest cached data that is on disk, down to `target` bytes or as far as possible.
    fn evict(&mut self, target: usize) {
        while self.cached_bytes > target {
            let oldest = self.slots.len() - self.cached.len();
            if matches!(self.slots[oldest].place, Place::Queued { .. }) {
                break;
            }
            match self.cached.pop_front() {
                Some(data) => self.cached_bytes -= cost(&data),
                None => break,
            }
        }
        self.shrink();
    }

    fn front_segment(&self) -> Option<u64> {
        match self.slots.front()?.place {
            Place::Written { segment, .. } => Some(segment),
            Place::Queued { .. } => None,
        }
    }

    /// The oldest segment that this group's log still needs.
    fn floor(&self) -> Option<u64> {
        match (self.held, self.front_segment()) {
            (Some(held), Some(front)) => Some(held.min(front)),
            (held, front) => held.or(front),
        }
    }

    fn hold(&mut self) {
        if self.held.is_none() && !self.slots.is_empty() {
            // Not written yet: any segment may be the one, so all stay.
            self.held = Some(self.front_segment().unwrap_or(0));
        }
        self.removals += 1;
    }
}

impl Index {
    pub(super) fn new(cache_max: usize) -> Self {
        Self {
            groups: BTreeMap::new(),
            cached_bytes: 0,
            cache_max,
        }
    }

    // Admission: a request takes effect, or is found to be the caller's bug and nothing happens.

    pub(super) fn append(
        &mut self,
        id: GroupId,
        records: &[Record],
        ticket: u64,
    ) -> Result<(), JournalError> {
        let Some(head) = records.first() else {
            return Ok(());
        };
        let first = head.index;
        let known = self.groups.get(&id).and_then(Group::expected);
        for (expected, record) in (known.unwrap_or(first)..).zip(records) {
            if record.index != expected || record.index == u64::MAX {
                return Err(JournalError::Gap {
                    group: id,
                    expected,
                    index: record.index,
                });
            }
        }
        let group = self.groups.entry(id).or_default();
        for record in records {
            group.push(
                record.index,
                Slot {
                    term: record.term,
                    len: record.data.len() as u32,
                    place: Place::Queued { ticket },
                },
            );
            group.cached.push_back(record.data.clone());
            group.cached_bytes += cost(&record.data);
            self.cached_bytes += cost(&record.data);
        }
        Ok(())
    }

    pub(super) fn truncate(&mut self, id: GroupId, from: u64) -> Result<(), JournalError> {
        let group = self.groups.entry(id).or_default();
        if let Some(mark) = group.purged.filter(|mark| from <= mark.index) {
            return Err(JournalError::Gap {
                group: id,
                expected: mark.index + 1,
                index: from,
            });
        }
        group.hold();
        let before = group.cached_bytes;
        group.cut_back(from);
        self.cached_bytes -= before - group.cached_bytes;
        Ok(())
    }

    /// Returns the mark that holds now: a mark that is not higher than the present one changes nothing.
    pub(super) fn purge(&mut self, id: GroupId, upto: Mark) -> Result<Mark, JournalError> {
        let group = self.groups.entry(id).or_default();
        let hole = !group.slots.is_empty() && upto.index.saturating_add(1) < group.first;
        if (hole && group.purged.is_none()) || upto.index == u64::MAX {
            return Err(JournalError::Gap {
                group: id,
                expected: group.first.saturating_sub(1),
                index: upto.index,
            });
        }
        group.hold();
        let before = group.cached_bytes;
        group.cut_front(upto.index);
        self.cached_bytes -= before - group.cached_bytes;
        let mark = group
            .purged
            .filter(|mark| mark.index >= upto.index)
            .unwrap_or(upto);
        group.purged = Some(mark);
        Ok(mark)
    }

    pub(super) fn save_vote(&mut self, id: GroupId, vote: Bytes) {
        self.groups.entry(id).or_default().vote = Some(vote);
    }

    // What the writer reports.

    /// The entries from `first` on, of the request with this ticket, are at these places. Those that were
    /// removed meanwhile are passed over.
    pub(super) fn place(&mut self, id: GroupId, first: u64, ticket: u64, places: &[(u64, u32)]) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        for (index, &(segment, offset)) in (first..).zip(places) {
            let at = index
                .checked_sub(group.first)
                .and_then(|at| usize::try_from(at).ok());
            if let Some(slot) = at.and_then(|at| group.slots.get_mut(at))
                && slot.place == (Place::Queued { ticket })
            {
                slot.place = Place::Written { segment, offset };
            }
        }
    }

    /// All entries of the group that are still queued are gone.
    pub(super) fn refuse(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        let queued = |slot: &&Slot| matches!(slot.place, Place::Queued { .. });
        let count = group.slots.iter().rev().take_while(queued).count() as u64;
        let before = group.cached_bytes;
        group.cut_back(group.end() - count);
        self.cached_bytes -= before - group.cached_bytes;
    }

    /// A truncation or purge of the group is durable.
    pub(super) fn settle(&mut self, id: GroupId) {
        if let Some(group) = self.groups.get_mut(&id) {
            group.removals = group.removals.saturating_sub(1);
            if group.removals == 0 {
                group.held = None;
            }
        }
    }

    /// Brings the cache back under its limit, taking from the group that holds most.
    pub(super) fn evict(&mut self) {
        if self.cached_bytes <= self.cache_max {
            return;
        }
        // A little below the limit, so that the search is not made for every entry.
        let target = self.cache_max - self.cache_max / 8;
        for _ in 0..self.groups.len() {
            let Some(group) = self
                .groups
                .values_mut()
                .max_by_key(|group| group.cached_bytes)
            else {
                return;
            };
            let before = group.cached_bytes;
            group.evict(before.saturating_sub(self.cached_bytes - target));
            self.cached_bytes -= before - group.cached_bytes;
            if self.cached_bytes <= target || before == group.cached_bytes {
                return;
            }
        }
    }

    // Replay at open: the records of the journal in their order, which may begin in the middle of its life.

    /// An entry that was read; false when it does not follow the one before it.
    pub(super) fn replay_entry(&mut self, id: GroupId, found: OnDisk) -> bool {
        let group = self.groups.entry(id).or_default();
        if found.index == u64::MAX || (!group.slots.is_empty() && found.index != group.end()) {
            return false;
        }
        group.push(
            found.index,
            Slot {
                term: found.term,
                len: found.len,
                place: Place::Written {
                    segment: found.segment,
                    offset: found.offset,
                },
            },
        );
        true
    }

    pub(super) fn replay_truncate(&mut self, id: GroupId, from: u64) {
        self.groups.entry(id).or_default().cut_back(from);
    }

    pub(super) fn replay_purge(&mut self, id: GroupId, upto: Mark) {
        let group = self.groups.entry(id).or_default();
        group.cut_front(upto.index);
        if group.purged.is_none_or(|mark| mark.index < upto.index) {
            group.purged = Some(upto);
        }
    }

    /// After all was replayed: the first group whose log does not begin right after its purge mark, with the
    /// index that is missing and the place of the entry that is there instead.
    pub(super) fn hole(&self) -> Option<(GroupId, u64, Place)> {
        self.groups.iter().find_map(|(id, group)| {
            let (mark, slot) = (group.purged?, group.slots.front()?);
            (group.first != mark.index + 1).then_some((*id, mark.index + 1, slot.place))
        })
    }

    // Getters.

    pub(super) fn groups(&self) -> Vec<GroupId> {
        let holds = |group: &Group| {
            !group.slots.is_empty() || group.purged.is_some() || group.vote.is_some()
        };
        let held = self.groups.iter().filter(|(_, group)| holds(group));
        held.map(|(id, _)| *id).collect()
    }

    pub(super) fn first(&self, id: GroupId) -> Option<u64> {
        let group = self.groups.get(&id)?;
        (!group.slots.is_empty()).then_some(group.first)
    }

    pub(super) fn last(&self, id: GroupId) -> Option<Mark> {
        self.groups.get(&id)?.last()
    }

    /// Bytes of the entries of a log, the last one first.
    pub(super) fn sizes(&self, id: GroupId) -> impl Iterator<Item = u64> {
        let slots = self.groups.get(&id).into_iter();
        let slots = slots.flat_map(|group| group.slots.iter().rev());
        slots.map(|slot| u64::from(slot.len))
    }

    pub(super) fn term(&self, id: GroupId, index: u64) -> Option<u64> {
        let group = self.groups.get(&id)?;
        let at = usize::try_from(index.checked_sub(group.first)?).ok()?;
        Some(group.slots.get(at)?.term)
    }

    pub(super) fn purged(&self, id: GroupId) -> Option<Mark> {
        self.groups.get(&id)?.purged
    }

    pub(super) fn vote(&self, id: GroupId) -> Option<Bytes> {
        self.groups.get(&id)?.vote.clone()
    }

    pub(super) fn cached_bytes(&self) -> usize {
        self.cached_bytes
    }

    pub(super) fn entries(&self) -> u64 {
        self.groups
            .values()
            .map(|group| group.slots.len() as u64)
            .sum()
    }

    /// The oldest segment that any log still needs.
    pub(super) fn floor(&self) -> Option<u64> {
        self.groups.values().filter_map(Group::floor).min()
    }

    /// The groups whose log reaches back behind segment `active`, and by how many segments; most first.
    pub(super) fn pinning(&self, active: u64) -> Vec<(GroupId, u64)> {
        let behind = |(id, group): (&GroupId, &Group)| {
            let floor = group.floor().filter(|floor| *floor < active)?;
            Some((*id, active - floor))
        };
        let mut pinning: Vec<_> = self.groups.iter().filter_map(behind).collect();
        pinning.sort_by_key(|(id, segments)| (std::cmp::Reverse(*segments), *id));
        pinning
    }

    /// The entries of the group in `range` that exist, up to `max_bytes` of data but at least one.
    pub(super) fn find(&self, id: GroupId, range: &Range<u64>, max_bytes: usize) -> Vec<Found> {
        let mut found = Vec::new();
        let Some(group) = self.groups.get(&id) else {
            return found;
        };
        let start = range.start.max(group.first);
        let uncached = group.slots.len() - group.cached.len();
        let mut bytes = 0;
        for index in start..range.end.min(group.end()) {
            let at = (index - group.first) as usize;
            let slot = &group.slots[at];
            bytes += slot.len as usize;
            if bytes > max_bytes && !found.is_empty() {
                break;
            }
            let cached = at.checked_sub(uncached).and_then(|at| group.cached.get(at));
            found.push(match (cached, slot.place) {
                (Some(data), _) => Found::Cached(Record {
                    index,
                    term: slot.term,
                    data: data.clone(),
                }),
                (None, Place::Written { segment, offset }) => Found::OnDisk(OnDisk {
                    index,
                    term: slot.term,
                    len: slot.len,
                    segment,
                    offset,
                }),
                (None, Place::Queued { .. }) => unreachable!("queued entries are always cached"),
            });
        }
        found
    }

    /// Panics when what must always hold does not.
    #[cfg(test)]
    pub(super) fn check_invariants(&self) {
        let mut total = 0;
        for group in self.groups.values() {
            assert!(group.cached.len() <= group.slots.len());
            let bytes: usize = group.cached.iter().map(cost).sum();
            assert_eq!(bytes, group.cached_bytes);
            total += bytes;
            let queued = |slot: &Slot| matches!(slot.place, Place::Queued { .. });
            let first_queued = group
                .slots
                .iter()
                .position(queued)
                .unwrap_or(group.slots.len());
            assert!(group.slots.iter().skip(first_queued).all(queued));
            assert!(group.slots.len() - group.cached.len() <= first_queued);
            if let (Some(mark), false) = (group.purged, group.slots.is_empty()) {
                assert_eq!(group.first, mark.index + 1);
            }
        }
        assert_eq!(total, self.cached_bytes);
    }
}
