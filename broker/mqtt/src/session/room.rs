//! How much a session holds for its client, and what becomes of more.

use super::config::Overflow;
use super::message::Delivery;
use super::outbound::Outbound;
use super::tally::{DropReason, Tally};

/// Copies in the queue above which no retained messages are replayed.
const REPLAYED_MAX: usize = 1_000;

impl Outbound {
    /// Makes room for one more copy by the overflow policy. What was ever sent is never removed, and a copy that would be alone
    /// is always taken, one that is larger than the limit also beside others up to half of it: the packet size limit bounds it.
    pub(super) fn make_room(
        &mut self,
        delivery: &Delivery,
        now_ms: u64,
        tally: &mut Tally,
    ) -> bool {
        let bytes = delivery.message.held_bytes();
        let bytes_max = self.config.queue_max_bytes;
        if self.is_full_for(bytes) {
            // [MQTT-3.3.2-5]
            tally.expired += self.queue.drop_expired(now_ms) as u32;
        }
        while self.is_full_for(bytes) {
            if self.config.overflow == Overflow::DropNew || bytes > bytes_max {
                return self.is_empty();
            }
            let Some(oldest) = self.queue.pop_oldest(delivery.qos) else {
                return self.is_empty();
            };
            if oldest.message.is_expired(now_ms) {
                tally.expired += 1;
            } else {
                tally.drop_one(DropReason::QueueFull);
            }
        }
        true
    }

    /// Whether a copy of this size leaves three quarters of the limits, or is alone.
    pub fn has_room_to_replay(&self, bytes: usize) -> bool {
        let config = &self.config;
        let messages_fit = self.queued() < (config.queue_max_messages / 4).min(REPLAYED_MAX);
        self.is_empty() || messages_fit && self.bytes() + bytes <= config.queue_max_bytes / 4
    }

    pub(super) fn is_full_for(&self, bytes: usize) -> bool {
        let bytes_max = self.config.queue_max_bytes;
        let counted = match bytes {
            _ if bytes > bytes_max => bytes_max.div_ceil(2),
            _ => bytes,
        };
        self.queued() >= self.config.queue_max_messages || self.bytes() + counted > bytes_max
    }
}
