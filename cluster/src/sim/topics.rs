//! The few topics and filters of a simulation, and how clients are named.

use bytes::Bytes;
use flotte_mqtt::topic::{TopicFilter, TopicName};

use crate::id::GroupId;

pub const TOPICS: [&str; 4] = ["t/0", "t/1", "t/2", "w"];
/// Wills are published here.
pub const WILLS: usize = 3;
pub const FILTERS: [&str; 4] = ["t/0", "t/1", "t/+", "#"];
/// It matches all.
pub const ALL: usize = 3;

pub fn filter(index: usize) -> TopicFilter {
    TopicFilter::try_from(FILTERS[index]).expect("it is one")
}

pub fn matches(filter: usize, topic: usize) -> bool {
    let name = TopicName::try_from(TOPICS[topic]).expect("it is one");
    self::filter(filter).matches(&name)
}

pub fn index_of_topic(topic: &[u8]) -> Option<usize> {
    TOPICS.iter().position(|name| name.as_bytes() == topic)
}

pub fn client_id(client: usize) -> Bytes {
    format!("c{client}").into()
}

pub fn client_of(id: &[u8]) -> Option<usize> {
    std::str::from_utf8(id)
        .ok()?
        .strip_prefix('c')?
        .parse()
        .ok()
}

pub fn group_of(client: usize, groups: u32) -> GroupId {
    GroupId(1 + client as u32 % groups)
}

/// Messages are told apart by their payload.
pub fn payload(message: u64) -> Bytes {
    Bytes::copy_from_slice(&message.to_le_bytes())
}

pub fn message_of(payload: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(payload.try_into().ok()?))
}
