//! The limits of sessions, as the configuration sets them.

/// The limits of an outbound half; shared by all sessions.
#[derive(Debug, Clone)]
pub struct OutboundConfig {
    /// Copies held, those under way included.
    pub queue_max_messages: usize,
    /// Bytes of the copies held, a shared payload counting in each queue.
    pub queue_max_bytes: usize,
    pub overflow: Overflow,
    /// Whether QoS 0 is queued while the client is away.
    pub queue_qos0_offline: bool,
    /// The greatest window, whatever the client's Receive Maximum.
    pub inflight_max: u16,
    /// Topic aliases used towards a client at most.
    pub topic_alias_max: u16,
    /// Bytes waiting in the caller's buffer from which on publishes are queued instead.
    pub dst_bytes_max: usize,
}

impl Default for OutboundConfig {
    fn default() -> Self {
        Self {
            queue_max_messages: 10_000,
            queue_max_bytes: 64 << 20,
            overflow: Overflow::DropOld,
            queue_qos0_offline: false,
            inflight_max: 1_024,
            topic_alias_max: 64,
            dst_bytes_max: 256 << 10,
        }
    }
}

/// What a full queue does with the next copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// The oldest that was never sent makes room: QoS 0 first, and for QoS 0 nothing else.
    DropOld,
    /// The new one is dropped.
    DropNew,
}

/// The limits of an inbound half, as CONNACK announces them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InboundConfig {
    /// QoS 1 and 2 publishes that may be unacknowledged at once; at least 1.
    pub receive_maximum: u16,
    /// The greatest topic alias that the client may use; 0 for none.
    pub topic_alias_maximum: u16,
}

impl Default for InboundConfig {
    fn default() -> Self {
        Self {
            receive_maximum: 1_024,
            topic_alias_maximum: 64,
        }
    }
}
