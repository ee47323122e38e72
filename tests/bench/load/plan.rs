//! What a load looks like: who subscribes to what, and which topic each message goes to. It does no IO.

use std::io::Write;

use anyhow::ensure;

/// A load. A *stream* is a numbered row of messages: it has one publisher, a row of topics used in turn, and
/// `copies` subscribers, each of which gets every message of the stream. A subscriber gets one stream only.
pub struct Plan {
    streams: u32,
    publishers: u32,
    topics_per_stream: u32,
    copies: u32,
}

impl Plan {
    pub fn pairs(pairs: u32) -> anyhow::Result<Self> {
        Self::new(pairs, pairs, 1, 1)
    }

    pub fn fanout(subscribers: u32) -> anyhow::Result<Self> {
        Self::new(1, 1, 1, subscribers)
    }

    pub fn filters(filters: u32, pairs: u32) -> anyhow::Result<Self> {
        ensure!(
            pairs > 0 && filters >= pairs && filters.is_multiple_of(pairs),
            "--filters must be a multiple of --pairs"
        );
        Self::new(pairs, pairs, filters / pairs, 1)
    }

    pub fn idle(connections: u32) -> anyhow::Result<Self> {
        Self::new(connections, 1, 1, 1)
    }

    fn new(
        streams: u32,
        publishers: u32,
        topics_per_stream: u32,
        copies: u32,
    ) -> anyhow::Result<Self> {
        ensure!(
            streams > 0 && copies > 0,
            "a load needs a publisher and a subscriber"
        );
        Ok(Self {
            streams,
            publishers,
            topics_per_stream,
            copies,
        })
    }

    pub fn streams(&self) -> u32 {
        self.streams
    }

    pub fn publishers(&self) -> u32 {
        self.publishers
    }

    /// Deliveries for each message.
    pub fn copies(&self) -> u32 {
        self.copies
    }

    pub fn subscribers(&self) -> u32 {
        self.streams * self.copies
    }

    pub fn connections(&self) -> u32 {
        self.subscribers() + self.publishers
    }

    /// The stream that a subscriber gets.
    pub fn stream_of_subscriber(&self, subscriber: u32) -> u32 {
        subscriber / self.copies
    }

    /// The publisher that sends a stream.
    pub fn publisher_of_stream(&self, stream: u32) -> u32 {
        stream % self.publishers
    }

    pub fn filters_per_subscriber(&self) -> u32 {
        self.topics_per_stream
    }

    /// Writes the topic of message `number` of a stream; `number` below `filters_per_subscriber` gives each once.
    pub fn write_topic(&self, stream: u32, number: u64, into: &mut Vec<u8>) {
        into.clear();
        // A stride prime to every row length in use visits all topics, neighbours in time far apart in the alphabet.
        const STRIDE: u64 = 7_919;
        let row = u64::from(self.topics_per_stream);
        let topic = number % row * STRIDE % row;
        write!(into, "bench/{stream}/{topic}/state").expect("writing to memory does not fail");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_topic_of_a_stream_is_used_once_a_round() {
        let plan = Plan::filters(200_000, 50).unwrap();
        let mut topic = Vec::new();
        let mut seen = HashSet::new();
        for number in 0..4_000 {
            plan.write_topic(3, number, &mut topic);
            assert!(seen.insert(topic.clone()));
        }
        plan.write_topic(3, 4_000, &mut topic);
        assert!(!seen.insert(topic));
    }

    #[test]
    fn all_subscribers_of_a_fanout_get_its_one_stream() {
        let plan = Plan::fanout(500).unwrap();
        assert_eq!((plan.subscribers(), plan.streams()), (500, 1));
        assert_eq!(plan.stream_of_subscriber(499), 0);
    }

    #[test]
    fn a_plan_without_anyone_is_refused() {
        assert!(Plan::pairs(0).is_err());
        assert!(Plan::fanout(0).is_err());
        assert!(Plan::filters(7, 2).is_err());
    }
}
