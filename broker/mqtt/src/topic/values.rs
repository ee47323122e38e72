//! The values of the matching tree, apart from its nodes: many nodes have none.

/// Names no value.
pub(super) const NO_VALUE: u32 = u32::MAX;

/// A slab: values by number, and the numbers that are free again.
#[derive(Debug, Clone)]
pub(super) struct Values<V> {
    slots: Vec<Option<V>>,
    free: Vec<u32>,
}

impl<V> Values<V> {
    pub(super) const fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Number of values.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn allocated_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Option<V>>() + self.free.capacity() * size_of::<u32>()
    }

    /// The value of this number; none of [`NO_VALUE`].
    pub(super) fn get(&self, number: u32) -> Option<&V> {
        self.slots.get(number as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut V> {
        self.slots.get_mut(number as usize)?.as_mut()
    }

    /// Takes a value in and says its number.
    pub(super) fn insert(&mut self, value: V) -> u32 {
        if let Some(number) = self.free.pop() {
            self.slots[number as usize] = Some(value);
            return number;
        }
        assert!(self.slots.len() < NO_VALUE as usize, "numbers are 32 bits");
        if self.slots.len() == self.slots.capacity() {
            // As the nodes do.
            self.slots.reserve_exact((self.slots.len() / 4).max(4));
        }
        self.slots.push(Some(value));
        (self.slots.len() - 1) as u32
    }

    /// Takes a value out; its number is free again.
    pub(super) fn remove(&mut self, number: u32) -> Option<V> {
        let value = self.slots.get_mut(number as usize)?.take()?;
        self.free.push(number);
        Some(value)
    }
}
