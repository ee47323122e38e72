//! What became of copies: the counts by which the law accepted = delivered + queued + expired +
//! dropped{reason} is kept. Every operation returns what it changed; nothing is counted here over
//! time.

use std::ops::AddAssign;

use super::message::Delivery;

/// Why a copy was dropped; a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// The session's queue reached its limit.
    QueueFull,
    /// The PUBLISH would exceed the client's Maximum Packet Size.
    TooLarge,
    /// It makes no valid packet, such as one with a subscription identifier of 0.
    Invalid,
    /// The session ended with the copy still held.
    SessionEnd,
    /// QoS 0 for a client that is not connected.
    QoS0Offline,
    /// A shared copy that went to another member, where it counts as accepted again.
    ShareMoved,
    /// Its topic is not below the mountpoint of the client's listener.
    Unmounted,
    /// A message for a shared subscription whose last member went meanwhile.
    NoMember,
    /// The client may not have it any more, by rules that changed or because the session is another user's.
    Denied,
}

impl DropReason {
    pub const ALL: [Self; 9] = [
        Self::QueueFull,
        Self::TooLarge,
        Self::Invalid,
        Self::SessionEnd,
        Self::QoS0Offline,
        Self::ShareMoved,
        Self::Unmounted,
        Self::NoMember,
        Self::Denied,
    ];

    /// The metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::TooLarge => "too_large",
            Self::Invalid => "invalid",
            Self::SessionEnd => "session_end",
            Self::QoS0Offline => "qos0_offline",
            Self::ShareMoved => "share_moved",
            Self::Unmounted => "unmounted",
            Self::NoMember => "no_member",
            Self::Denied => "denied",
        }
    }
}

/// What one operation did to copies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use = "the accounting law holds only if every tally is counted"]
pub struct Tally {
    /// Taken in, whatever became of them.
    pub accepted: u32,
    /// QoS 0 handed to the socket; QoS 1 and 2 acknowledged to the end, or refused, by the client.
    pub delivered: u32,
    /// Expired before they were first sent.
    pub expired: u32,
    dropped: [u32; DropReason::ALL.len()],
    /// PUBLISH packets written by QoS, repetitions included.
    pub published: [u32; 3],
    /// Their payloads in bytes, but for those that the caller encoded.
    pub payload_bytes: u64,
    /// PUBREL packets written, repetitions included.
    pub released: u32,
}

impl Tally {
    pub fn dropped(&self, reason: DropReason) -> u32 {
        self.dropped[reason as usize]
    }

    pub fn dropped_total(&self) -> u32 {
        self.dropped.iter().sum()
    }

    /// How the number of held copies changed: what was accepted less what left.
    pub fn held_change(&self) -> i64 {
        let left = self.delivered + self.expired + self.dropped_total();
        i64::from(self.accepted) - i64::from(left)
    }

    /// Copies that are dropped outside of a session.
    pub fn of_dropped(reason: DropReason, count: usize) -> Self {
        let mut tally = Self::default();
        tally.drop_many(reason, count);
        tally
    }

    /// A message that nobody takes any more, and that no session has counted.
    pub fn unplaced(reason: DropReason) -> Self {
        let mut tally = Self::accepted_one();
        tally.drop_one(reason);
        tally
    }

    pub(super) fn accepted_one() -> Self {
        Self {
            accepted: 1,
            ..Self::default()
        }
    }

    pub(super) fn released_one() -> Self {
        Self {
            released: 1,
            ..Self::default()
        }
    }

    /// One PUBLISH was written.
    pub(super) fn publish_one(&mut self, delivery: &Delivery) {
        self.published[delivery.qos as usize] += 1;
        self.payload_bytes += delivery.message.payload.len() as u64;
    }

    pub(super) fn expired(count: usize) -> Self {
        Self {
            expired: count as u32,
            ..Self::default()
        }
    }

    pub(super) fn drop_one(&mut self, reason: DropReason) {
        self.drop_many(reason, 1);
    }

    pub(super) fn drop_many(&mut self, reason: DropReason, count: usize) {
        self.dropped[reason as usize] += count as u32;
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.delivered += other.delivered;
        self.expired += other.expired;
        for (count, more) in self.dropped.iter_mut().zip(other.dropped) {
            *count += more;
        }
        for (count, more) in self.published.iter_mut().zip(other.published) {
            *count += more;
        }
        self.payload_bytes += other.payload_bytes;
        self.released += other.released;
    }
}
