//! Topic aliases towards a client: the first topics sent on a connection get one each, until the
//! client's maximum or our own bound is reached. They never change within a connection.

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use crate::topic::TopicName;

/// The aliases of one connection; made anew for each. [MQTT-3.3.2-7]
#[derive(Debug)]
pub(super) struct AliasTable {
    aliases: HashMap<TopicName, u16, RandomState>,
    max: u16,
}

/// How a topic may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alias {
    /// The client knows it: the topic may be left out.
    Known(u16),
    /// Free: sent along with the topic, it will be known.
    Free(u16),
    /// All are taken.
    None,
}

impl AliasTable {
    /// A table of up to `max` aliases, at least 1.
    pub(super) fn new(max: u16) -> Self {
        Self {
            aliases: HashMap::default(),
            max,
        }
    }

    pub(super) fn look_up(&self, topic: &TopicName) -> Alias {
        if let Some(alias) = self.aliases.get(topic) {
            return Alias::Known(*alias);
        }
        // [MQTT-3.3.2-8], [MQTT-3.3.2-11]: from 1 to the maximum.
        let used = self.aliases.len() as u16;
        if used < self.max {
            Alias::Free(used + 1)
        } else {
            Alias::None
        }
    }

    /// Records that a free alias was sent with its topic.
    pub(super) fn assign(&mut self, topic: &TopicName, alias: u16) {
        self.aliases.insert(topic.clone(), alias);
    }
}
