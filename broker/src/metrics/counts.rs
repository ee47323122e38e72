//! What is counted on hot paths: each thread adds to counters of its own cache lines, and whoever asks sums them up.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use flotte_mqtt::QoS;
use flotte_mqtt::packet::PacketType;
use flotte_mqtt::session::DropReason;

/// Threads beyond this many share counters.
const SHARDS: usize = 8;
const REASONS: usize = DropReason::ALL.len();
const TYPES: usize = 16;

/// One counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count(usize);

impl Count {
    /// Copies taken in.
    pub const ACCEPTED: Count = Count(0);
    /// Copies delivered.
    pub const DELIVERED: Count = Count(1);
    /// Copies that expired.
    pub const EXPIRED: Count = Count(2);
    /// Messages that matched nobody.
    pub const UNMATCHED: Count = Count(3);
    /// QoS 0 messages that a full link dropped.
    pub const LINK_DROPPED: Count = Count(4);
    /// Bytes from clients.
    pub const BYTES_IN: Count = Count(5);
    /// Bytes to clients.
    pub const BYTES_OUT: Count = Count(6);
    /// Payload bytes of PUBLISHes from clients.
    pub const PAYLOAD_IN: Count = Count(7);
    /// Payload bytes of PUBLISHes to clients.
    pub const PAYLOAD_OUT: Count = Count(8);
    /// Publishes that were not read on at once, as their client is over its rate.
    pub const HELD_BY_RATE: Count = Count(9);
    /// The same, as the node is over its memory mark.
    pub const HELD_BY_MEMORY: Count = Count(10);
    /// Sockets that were accepted and given to a worker.
    pub const SOCKETS: Count = Count(11);
    /// Sessions that ended while their clients were not connected.
    pub const SESSIONS_EXPIRED: Count = Count(12);
    const RECEIVED: usize = 13;
    const SENT: usize = Self::RECEIVED + 3;
    const DROPPED: usize = Self::SENT + 3;
    const PACKETS_IN: usize = Self::DROPPED + REASONS;
    const PACKETS_OUT: usize = Self::PACKETS_IN + TYPES;
    const ALL: usize = Self::PACKETS_OUT + TYPES;

    /// PUBLISHes from clients.
    pub const fn received(qos: QoS) -> Count {
        Count(Self::RECEIVED + qos as usize)
    }

    /// PUBLISHes to clients, repetitions included.
    pub const fn sent(qos: QoS) -> Count {
        Count(Self::SENT + qos as usize)
    }

    /// Copies dropped.
    pub const fn dropped(reason: DropReason) -> Count {
        Count(Self::DROPPED + reason as usize)
    }

    /// Packets from clients, but for PUBLISH, which is counted by QoS.
    pub const fn packets_in(kind: PacketType) -> Count {
        Count(Self::PACKETS_IN + kind as usize)
    }

    /// Packets to clients, but for PUBLISH.
    pub const fn packets_out(kind: PacketType) -> Count {
        Count(Self::PACKETS_OUT + kind as usize)
    }

    /// Adds to it.
    pub fn add(self, more: u64) {
        SHARD.with(|shard| COUNTS[shard.get()].0[self.0].fetch_add(more, Ordering::Relaxed));
    }

    /// Its sum over all threads.
    pub fn total(self) -> u64 {
        let shards = COUNTS.iter();
        shards
            .map(|shard| shard.0[self.0].load(Ordering::Relaxed))
            .sum()
    }
}

/// The counters of some threads, on cache lines of their own.
#[repr(align(128))]
struct Shard([AtomicU64; Count::ALL]);

static COUNTS: [Shard; SHARDS] =
    [const { Shard([const { AtomicU64::new(0) }; Count::ALL]) }; SHARDS];
static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SHARD: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn threads_add_up() {
        // No other test counts packets of this type.
        let count = Count::packets_in(PacketType::Auth);
        let threads = (0..20).map(|_| std::thread::spawn(move || count.add(3)));
        threads.for_each(|thread| thread.join().unwrap());
        assert_eq!(count.total(), 60);
    }

    #[test]
    fn no_two_counters_are_one() {
        let mut all: Vec<usize> = (0..=Count::SESSIONS_EXPIRED.0).collect();
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
            all.extend([Count::received(qos).0, Count::sent(qos).0]);
        }
        all.extend(DropReason::ALL.map(|reason| Count::dropped(reason).0));
        for kind in PacketType::ALL {
            all.extend([Count::packets_in(*kind).0, Count::packets_out(*kind).0]);
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert!(all.iter().all(|one| *one < Count::ALL));
    }
}
