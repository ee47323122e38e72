//! A growing set of message numbers: how losses and duplicates are told apart. It never forgets.

/// Which numbers were seen, one bit each.
#[derive(Default)]
pub struct Bits {
    words: Vec<u64>,
    count: u64,
}

impl Bits {
    /// Adds a number; false if it was there already.
    pub fn insert(&mut self, number: u64) -> bool {
        let (word, bit) = ((number / 64) as usize, 1u64 << (number % 64));
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        let fresh = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.count += u64::from(fresh);
        fresh
    }

    /// How many distinct numbers were added.
    pub fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_counts_once() {
        let mut bits = Bits::default();
        assert!(bits.insert(0));
        assert!(bits.insert(130));
        assert!(!bits.insert(130));
        assert_eq!(bits.count(), 2);
    }
}
