//! Measures one link: bytes, and the time from a frame to its acknowledgement. One frame at a time is timed.

use std::time::Instant;

use flotte_proto::LinkFrame;
use metrics::{Counter, Histogram, counter, histogram};
use parking_lot::Mutex;

use super::bytes_of;
use crate::id::NodeId;

/// What is measured of the link to one node.
pub struct Meter {
    sent_bytes: Counter,
    rtt_seconds: Histogram,
    /// The last sequence of the frame that is timed, and when it was sent.
    timed: Mutex<Option<(u64, Instant)>>,
}

impl Meter {
    /// Measures the link to a node.
    pub fn new(to: NodeId) -> Meter {
        Meter {
            sent_bytes: bytes_total(to, "out"),
            rtt_seconds: histogram!("flotte_link_rtt_seconds", "peer" => to.to_string()),
            timed: Mutex::default(),
        }
    }

    /// A frame goes out.
    pub fn sent(&self, frame: &LinkFrame) {
        self.sent_bytes.increment(bytes_of(frame));
        // QoS 0 has no sequence and no acknowledgement.
        let last = frame
            .messages
            .iter()
            .rev()
            .find(|message| message.sequence > 0);
        if let Some(last) = last {
            self.timed
                .lock()
                .get_or_insert_with(|| (last.sequence, Instant::now()));
        }
    }

    /// All up to a sequence is acknowledged.
    pub fn acknowledged(&self, acked: u64) {
        let done = self.timed.lock().take_if(|(last, _)| *last <= acked);
        if let Some((_, since)) = done {
            self.rtt_seconds.record(since.elapsed());
        }
    }

    /// The connection is gone: what is sent again on the next one says nothing of the way.
    pub fn disconnected(&self) {
        *self.timed.lock() = None;
    }
}

/// Bytes of publishes that come from a node.
pub fn received_bytes(from: NodeId) -> Counter {
    bytes_total(from, "in")
}

fn bytes_total(peer: NodeId, direction: &'static str) -> Counter {
    counter!("flotte_link_bytes_total", "peer" => peer.to_string(), "direction" => direction)
}

#[cfg(test)]
mod tests {
    use flotte_proto::Forward;

    use super::*;

    fn frame(sequences: &[u64]) -> LinkFrame {
        let message = |sequence: &u64| Forward {
            sequence: *sequence,
            ..Forward::default()
        };
        LinkFrame {
            messages: sequences.iter().map(message).collect(),
            ..LinkFrame::default()
        }
    }

    #[test]
    fn one_frame_is_timed_until_all_of_it_is_acknowledged() {
        let meter = Meter::new(NodeId(1));
        meter.sent(&frame(&[0]));
        assert!(meter.timed.lock().is_none(), "nothing comes back for it");
        meter.sent(&frame(&[1, 2, 0]));
        meter.sent(&frame(&[3]));
        meter.acknowledged(1);
        assert!(meter.timed.lock().is_some_and(|(last, _)| last == 2));
        meter.acknowledged(2);
        assert!(meter.timed.lock().is_none());
        meter.sent(&frame(&[4]));
        meter.disconnected();
        assert!(meter.timed.lock().is_none());
    }
}
