//! The text of one level as the nodes of the tree keep it. It knows nothing of wildcards.

const INLINE_BYTES: usize = 22;

/// The text of one level: in the node where it is short, else in an allocation of its own.
#[derive(Debug, Clone)]
pub(super) enum Segment {
    Inline {
        length: u8,
        bytes: [u8; INLINE_BYTES],
    },
    Heap(Box<str>),
}

impl Segment {
    pub(super) fn new(level: &str) -> Self {
        let mut bytes = [0; INLINE_BYTES];
        match bytes.get_mut(..level.len()) {
            Some(head) => {
                head.copy_from_slice(level.as_bytes());
                Self::Inline {
                    length: level.len() as u8,
                    bytes,
                }
            }
            None => Self::Heap(level.into()),
        }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Inline { length, bytes } => &bytes[..usize::from(*length)],
            Self::Heap(text) => text.as_bytes(),
        }
    }

    pub(super) fn as_str(&self) -> &str {
        str::from_utf8(self.as_bytes()).expect("a level is cut from a filter at slashes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_levels_of_any_length_in_24_bytes() {
        assert_eq!(size_of::<Segment>(), 24);
        for length in [0, 1, INLINE_BYTES, INLINE_BYTES + 1, 65_535] {
            let text = "x".repeat(length);
            assert_eq!(Segment::new(&text).as_str(), text);
        }
    }
}
