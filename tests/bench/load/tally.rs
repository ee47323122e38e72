//! What was sent and what arrived, message by message. It knows nothing of sockets or of time but the stamps it is
//! given.

use crate::bits::Bits;
use crate::plan::Plan;
use crate::report::{Latencies, Report};
use crate::wire::{QoS, Stamp};

/// What one subscriber got of its stream.
pub struct Receipt {
    pub stream: u32,
    seen: Bits,
    highest: Option<u64>,
}

impl Receipt {
    pub fn new(stream: u32) -> Self {
        Self {
            stream,
            seen: Bits::default(),
            highest: None,
        }
    }
}

/// Counts of all streams.
pub struct Tally {
    qos: QoS,
    copies: u64,
    /// Order is promised for each topic: it is judged where a stream has only one.
    judges_order: bool,
    /// Messages sent and copies delivered for each stream.
    sent: Vec<u64>,
    delivered: Vec<u64>,
    delivered_total: u64,
    /// Only messages due from then on count for latency.
    measured_from_ns: u64,
    latencies: Latencies,
    lateness: Latencies,
    damaged: u64,
    duplicates: u64,
    reordered: u64,
}

impl Tally {
    pub fn new(plan: &Plan, qos: QoS) -> Self {
        let streams = plan.streams() as usize;
        Self {
            qos,
            copies: u64::from(plan.copies()),
            judges_order: plan.filters_per_subscriber() == 1,
            sent: vec![0; streams],
            delivered: vec![0; streams],
            delivered_total: 0,
            measured_from_ns: u64::MAX,
            latencies: Latencies::default(),
            lateness: Latencies::default(),
            damaged: 0,
            duplicates: 0,
            reordered: 0,
        }
    }

    pub fn measure_from(&mut self, ns: u64) {
        self.measured_from_ns = ns;
    }

    /// The number of the next message of a stream, which counts as sent from now on.
    pub fn send(&mut self, stream: u32, due_ns: u64, now_ns: u64) -> u64 {
        if due_ns >= self.measured_from_ns {
            self.lateness.record(now_ns.saturating_sub(due_ns));
        }
        let sent = &mut self.sent[stream as usize];
        *sent += 1;
        *sent - 1
    }

    pub fn deliver(&mut self, receipt: &mut Receipt, qos: QoS, payload: &[u8], now_ns: u64) {
        let stream = receipt.stream as usize;
        let Some(stamp) = Stamp::read(payload).filter(|stamp| {
            qos == self.qos && stamp.stream == receipt.stream && stamp.number < self.sent[stream]
        }) else {
            self.damaged += 1;
            return;
        };
        if !receipt.seen.insert(stamp.number) {
            self.duplicates += 1;
            return;
        }
        let overtaken = receipt.highest > Some(stamp.number);
        self.reordered += u64::from(overtaken && self.judges_order);
        receipt.highest = receipt.highest.max(Some(stamp.number));
        self.delivered[stream] += 1;
        self.delivered_total += 1;
        if stamp.due_ns >= self.measured_from_ns {
            self.latencies.record(now_ns.saturating_sub(stamp.due_ns));
        }
    }

    /// Messages of a stream that have not come to all their subscribers.
    pub fn under_way(&self, stream: u32) -> u64 {
        let stream = stream as usize;
        self.sent[stream] - self.delivered[stream] / self.copies
    }

    pub fn delivered(&self) -> u64 {
        self.delivered_total
    }

    pub fn expected(&self) -> u64 {
        self.sent.iter().sum::<u64>() * self.copies
    }

    pub fn missing(&self, receipt: &Receipt) -> u64 {
        self.sent[receipt.stream as usize] - receipt.seen.count()
    }

    pub fn write(mut self, report: &mut Report) {
        report.sent = self.sent.iter().sum();
        report.expected = self.expected();
        report.delivered = self.delivered_total;
        report.damaged = self.damaged;
        report.duplicates = self.duplicates;
        report.reordered = self.reordered;
        report.latencies(&mut self.latencies, &mut self.lateness);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn payload(number: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        let stamp = Stamp {
            stream: 0,
            number,
            due_ns: 0,
        };
        stamp.write(&mut bytes, 64);
        bytes
    }

    /// Sends three messages of one stream and delivers the given numbers.
    fn after(numbers: &[u64]) -> (Report, u64) {
        let mut tally = Tally::new(&Plan::pairs(1).unwrap(), QoS::Zero);
        let mut receipt = Receipt::new(0);
        for _ in 0..3 {
            tally.send(0, 0, 0);
        }
        for &number in numbers {
            tally.deliver(&mut receipt, QoS::Zero, &payload(number), 0);
        }
        let missing = tally.missing(&receipt);
        let mut report = Report::default();
        tally.write(&mut report);
        (report, missing)
    }

    #[test]
    fn all_in_order_is_whole() {
        let (report, missing) = after(&[0, 1, 2]);
        assert!(report.is_whole());
        assert_eq!((report.delivered, report.expected, missing), (3, 3, 0));
    }

    #[test]
    fn a_duplicate_does_not_hide_a_loss() {
        let (report, missing) = after(&[0, 1, 1]);
        assert_eq!((report.duplicates, missing), (1, 1));
    }

    #[test]
    fn an_overtaken_message_is_reordered() {
        assert_eq!(after(&[1, 0, 2]).0.reordered, 1);
    }

    #[test]
    fn a_message_that_was_never_sent_is_damage() {
        assert_eq!(after(&[3]).0.damaged, 1);
    }

    #[test]
    fn a_delivery_at_another_qos_is_damage() {
        let mut tally = Tally::new(&Plan::pairs(1).unwrap(), QoS::One);
        tally.send(0, 0, 0);
        tally.deliver(&mut Receipt::new(0), QoS::Zero, &payload(0), 0);
        let mut report = Report::default();
        tally.write(&mut report);
        assert_eq!((report.damaged, report.delivered), (1, 0));
    }
}
