//! The retained messages of the cluster: their number, bytes and ends. A pure function of commands and state time.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use flotte_mqtt::topic::{NameTree, Named, TopicName};
use flotte_proto::RetainedMessage;

use super::assemblies::PART_BYTES;

/// A retained message, in one piece of memory that is shared with whoever reads it; a large payload is a second one.
///
/// ```text
/// index u64 | time_ms u64 | expires_at_ms u64 | length of properties u32, of topic u16, of publisher u16 | qos u8
/// | topic | publisher | properties | payload
/// ```
/// There may be a million of them on each node: with one allocation each, and a pointer in the tree, they cost a third of
/// what their fields would.
#[derive(Clone)]
pub struct Retained(Kept);

#[derive(Clone)]
enum Kept {
    Whole(Arc<[u8]>),
    /// Its payload stands apart, as it came.
    Apart(Arc<Apart>),
}

struct Apart {
    /// As above, without payload.
    head: Bytes,
    payload: Bytes,
}

const TIME_AT: usize = 8;
const END_AT: usize = 16;
const PROPERTIES_AT: usize = 24;
const TOPIC_AT: usize = 28;
const PUBLISHER_AT: usize = 30;
const QOS_AT: usize = 32;
const HEAD: usize = 33;

impl Retained {
    /// What was published, the meta index that stored it and the state time of that. None = no MQTT message is like that.
    pub fn new(message: &RetainedMessage, index: u64, time_ms: u64) -> Option<Self> {
        let topic = u16::try_from(message.topic.len()).ok()?;
        let publisher = u16::try_from(message.publisher.len()).ok()?;
        let properties = u32::try_from(message.properties.len()).ok()?;
        let apart = message.payload.len() > PART_BYTES;
        let (inside, nothing) = (&message.payload, &Bytes::new());
        let parts = [
            &message.topic,
            &message.publisher,
            &message.properties,
            if apart { nothing } else { inside },
        ];
        let length = HEAD + parts.iter().map(|part| part.len()).sum::<usize>();
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(&index.to_le_bytes());
        bytes.extend_from_slice(&time_ms.to_le_bytes());
        bytes.extend_from_slice(&message.expires_at_ms.to_le_bytes());
        bytes.extend_from_slice(&properties.to_le_bytes());
        bytes.extend_from_slice(&topic.to_le_bytes());
        bytes.extend_from_slice(&publisher.to_le_bytes());
        bytes.push(u8::try_from(message.qos).ok()?);
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        Some(Retained(match apart {
            false => Kept::Whole(bytes.into()),
            true => Kept::Apart(Arc::new(Apart {
                head: bytes.into(),
                payload: message.payload.clone(),
            })),
        }))
    }

    /// Meta index that stored it.
    pub fn index(&self) -> u64 {
        u64::from_le_bytes(self.number(0))
    }

    /// State time of that.
    pub fn time_ms(&self) -> u64 {
        u64::from_le_bytes(self.number(TIME_AT))
    }

    /// The end of its life in state time; 0 = never.
    pub fn expires_at_ms(&self) -> u64 {
        u64::from_le_bytes(self.number(END_AT))
    }

    /// As published.
    pub fn qos(&self) -> u32 {
        u32::from(self.piece()[QOS_AT])
    }

    /// Bytes of its topic name.
    pub fn topic(&self) -> &[u8] {
        &self.piece()[self.ranges()[0].clone()]
    }

    /// Bytes of the id of the client that published it.
    pub fn publisher(&self) -> &[u8] {
        &self.piece()[self.ranges()[1].clone()]
    }

    /// Its payload.
    pub fn payload(&self) -> &[u8] {
        match &self.0 {
            Kept::Whole(piece) => &piece[self.ranges()[3].clone()],
            Kept::Apart(apart) => &apart.payload,
        }
    }

    /// Whether its payload stands apart.
    pub fn is_large(&self) -> bool {
        matches!(self.0, Kept::Apart(_))
    }

    /// What was published. The parts share this memory.
    pub fn message(&self) -> RetainedMessage {
        let whole = match &self.0 {
            Kept::Whole(piece) => Bytes::from_owner(Arc::clone(piece)),
            Kept::Apart(apart) => apart.head.clone(),
        };
        let [topic, publisher, properties, mut payload] =
            self.ranges().map(|part| whole.slice(part));
        if let Kept::Apart(apart) = &self.0 {
            payload = apart.payload.clone();
        }
        RetainedMessage {
            topic,
            qos: self.qos(),
            properties,
            payload,
            publisher,
            expires_at_ms: self.expires_at_ms(),
        }
    }

    /// What is left of its life at a state time: none = it stays; 0 = it is over.
    pub fn left_ms(&self, now_ms: u64) -> Option<u64> {
        match self.expires_at_ms() {
            0 => None,
            at => Some(at.saturating_sub(now_ms)),
        }
    }

    /// Of topic, properties and payload.
    fn bytes(&self) -> u64 {
        let [topic, _, properties, _] = self.ranges();
        (topic.len() + properties.len() + self.payload().len()) as u64
    }

    /// Where topic, publisher, properties and payload are.
    fn ranges(&self) -> [Range<usize>; 4] {
        let properties = u32::from_le_bytes(self.number(PROPERTIES_AT)) as usize;
        let topic = usize::from(u16::from_le_bytes(self.number(TOPIC_AT)));
        let publisher = usize::from(u16::from_le_bytes(self.number(PUBLISHER_AT)));
        let topic_end = HEAD + topic;
        let publisher_end = topic_end + publisher;
        let properties_end = publisher_end + properties;
        [
            HEAD..topic_end,
            topic_end..publisher_end,
            publisher_end..properties_end,
            properties_end..self.piece().len(),
        ]
    }

    fn piece(&self) -> &[u8] {
        match &self.0 {
            Kept::Whole(piece) => piece,
            Kept::Apart(apart) => &apart.head,
        }
    }

    fn number<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.piece()[at..at + N]);
        bytes
    }
}

impl fmt::Debug for Retained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Retained");
        shown.field("index", &self.index());
        shown.field("time_ms", &self.time_ms());
        shown.field("message", &self.message()).finish()
    }
}

impl Named for Retained {
    fn name(&self) -> &[u8] {
        self.topic()
    }
}

/// A retained message, ordered by its end, then its topic.
#[derive(Debug)]
struct End(Retained);

impl End {
    fn order(&self) -> (u64, &[u8]) {
        (self.0.expires_at_ms(), self.0.topic())
    }
}

impl Ord for End {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order().cmp(&other.order())
    }
}

impl PartialOrd for End {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for End {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl Eq for End {}

/// How much may be retained; 0 = no limit.
#[derive(Debug, Clone, Copy)]
pub struct RetainedLimits {
    /// Messages.
    pub messages_max: u64,
    /// Bytes of topics, properties and payloads.
    pub bytes_max: u64,
}

impl RetainedLimits {
    /// What they leave where so many bytes are promised to others.
    pub fn besides(self, bytes: u64) -> RetainedLimits {
        let bytes_max = match self.bytes_max {
            0 => 0,
            max => max.saturating_sub(bytes).max(1),
        };
        RetainedLimits { bytes_max, ..self }
    }
}

/// All retained messages, in the order of their topics.
#[derive(Debug, Default)]
pub struct RetainedSet {
    tree: NameTree<Retained>,
    /// Topics, properties and payloads.
    bytes: u64,
    /// Those that have an end.
    ends: BTreeSet<End>,
}

impl RetainedSet {
    /// Stores a message in place of the former one of its topic. False = it does not fit, and nothing changed.
    pub fn store(&mut self, retained: Retained, limits: RetainedLimits) -> bool {
        let former = self.tree.get_named_as(&retained);
        let fits = self.fits(former, retained.bytes(), limits);
        if fits {
            self.insert(retained);
        }
        fits
    }

    /// Whether there is room for a message of so many bytes in place of the former one of its topic.
    pub fn has_room(&self, topic: &TopicName, bytes: u64, limits: RetainedLimits) -> bool {
        self.fits(self.tree.get(topic), bytes, limits)
    }

    fn fits(&self, former: Option<&Retained>, bytes: u64, limits: RetainedLimits) -> bool {
        let bytes = (self.bytes - former.map_or(0, Retained::bytes)).saturating_add(bytes);
        let messages = self.tree.len() as u64 + u64::from(former.is_none());
        let fits = |value, max| max == 0 || value <= max;
        fits(bytes, limits.bytes_max) && fits(messages, limits.messages_max)
    }

    /// Takes a message in place of the former one of its topic, whatever the limits.
    pub fn insert(&mut self, retained: Retained) {
        self.bytes += retained.bytes();
        if let Some(former) = self.tree.insert(retained.clone()) {
            self.forget(former);
        }
        if retained.expires_at_ms() != 0 {
            self.ends.insert(End(retained));
        }
    }

    /// Removes the message of a topic, if there is one.
    pub fn remove(&mut self, topic: &TopicName) {
        if let Some(former) = self.tree.remove(topic) {
            self.forget(former);
        }
    }

    fn forget(&mut self, former: Retained) {
        self.bytes -= former.bytes();
        if former.expires_at_ms() != 0 {
            self.ends.remove(&End(former));
        }
    }

    /// Removes those whose end has come, the oldest first, at most `limit`.
    pub fn expire(&mut self, now_ms: u64, limit: usize) {
        for _ in 0..limit {
            if self.next_end_ms().is_none_or(|end| end > now_ms) {
                return;
            }
            let Some(End(due)) = self.ends.pop_first() else {
                return;
            };
            if let Some(former) = self.tree.remove_named_as(&due) {
                self.bytes -= former.bytes();
            }
        }
    }

    /// When the next one expires, in state time.
    pub fn next_end_ms(&self) -> Option<u64> {
        self.ends.first().map(|end| end.0.expires_at_ms())
    }

    /// All of them, by topic.
    pub fn tree(&self) -> &NameTree<Retained> {
        &self.tree
    }

    /// How many there are; expired ones count until an entry has removed them.
    pub fn len(&self) -> usize {
        self.tree.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tree.is_empty()
    }

    /// Their topics, properties and payloads in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NO_LIMITS: RetainedLimits = RetainedLimits {
        messages_max: 0,
        bytes_max: 0,
    };

    fn topic(text: &str) -> TopicName {
        TopicName::try_from(text).unwrap()
    }

    fn ending(text: &str, expires_at_ms: u64) -> Retained {
        let message = RetainedMessage {
            topic: Bytes::copy_from_slice(text.as_bytes()),
            payload: Bytes::from_static(b"p"),
            expires_at_ms,
            ..Default::default()
        };
        Retained::new(&message, 1, 1).unwrap()
    }

    #[test]
    fn a_message_comes_out_as_it_went_in() {
        let message = RetainedMessage {
            topic: Bytes::from_static(b"site/7/state"),
            qos: 2,
            properties: Bytes::from_static(&[1, 1]),
            payload: Bytes::from_static(b"on"),
            publisher: Bytes::from_static(b"device"),
            expires_at_ms: 30,
        };
        let retained = Retained::new(&message, 7, 10).unwrap();
        assert_eq!(retained.message(), message);
        assert_eq!((retained.index(), retained.time_ms()), (7, 10));
        assert_eq!(retained.topic(), b"site/7/state");
        assert_eq!(retained.publisher(), b"device");
        assert_eq!(retained.payload(), b"on");
        assert_eq!(retained.left_ms(10), Some(20));
        assert_eq!(retained.bytes(), 12 + 2 + 2);
        let copy = retained.message().payload;
        drop(retained);
        assert_eq!(copy, "on", "it keeps what it shares");
    }

    #[test]
    fn a_large_payload_is_not_copied_and_the_message_is_the_same() {
        let message = RetainedMessage {
            topic: Bytes::from_static(b"site/7/state"),
            qos: 1,
            properties: Bytes::from_static(&[1, 1]),
            payload: Bytes::from(vec![7; PART_BYTES + 1]),
            publisher: Bytes::from_static(b"device"),
            expires_at_ms: 30,
        };
        let retained = Retained::new(&message, 7, 10).unwrap();
        assert!(retained.is_large());
        assert_eq!(retained.message(), message);
        assert_eq!(
            retained.message().payload.as_ptr(),
            message.payload.as_ptr()
        );
        assert_eq!(
            (retained.index(), retained.topic()),
            (7, &b"site/7/state"[..])
        );
        assert_eq!(retained.bytes(), 12 + 2 + PART_BYTES as u64 + 1);
        assert_eq!(
            size_of::<Retained>(),
            16,
            "a million of them stand in a tree"
        );
    }

    #[test]
    fn what_is_too_long_for_mqtt_is_not_taken() {
        let message = RetainedMessage {
            topic: Bytes::from_static(b"t"),
            publisher: Bytes::from(vec![b'x'; 65_536]),
            ..Default::default()
        };
        assert!(Retained::new(&message, 1, 1).is_none());
    }

    #[test]
    fn those_whose_end_has_come_go_first_and_no_others() {
        let mut set = RetainedSet::default();
        for (name, end) in [("late", 30), ("never", 0), ("soon", 10), ("then", 20)] {
            assert!(set.store(ending(name, end), NO_LIMITS));
        }
        assert_eq!(set.next_end_ms(), Some(10));
        set.expire(9, 10);
        assert_eq!(set.len(), 4);
        set.expire(100, 2);
        let left: Vec<&[u8]> = set.tree().iter().map(Retained::topic).collect();
        assert_eq!(
            left,
            [&b"late"[..], b"never"],
            "two at most, the oldest first"
        );
        set.expire(100, 10);
        assert_eq!((set.len(), set.next_end_ms()), (1, None));
        assert_eq!(set.bytes(), "never".len() as u64 + 1);
    }

    #[test]
    fn a_replaced_or_deleted_message_takes_its_end_with_it() {
        let mut set = RetainedSet::default();
        set.store(ending("a", 10), NO_LIMITS);
        set.store(ending("a", 0), NO_LIMITS);
        set.store(ending("b", 10), NO_LIMITS);
        set.remove(&topic("b"));
        assert_eq!(set.next_end_ms(), None);
        set.expire(u64::MAX, 10);
        assert_eq!((set.len(), set.bytes()), (1, 2));
    }
}
