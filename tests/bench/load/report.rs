//! What is told at the end of a run. It only computes.

use std::time::Duration;

use serde::Serialize;

use crate::wire::QoS;

/// Latencies in units of 100 ns, which reach seven minutes in 32 bits.
#[derive(Default)]
pub struct Latencies(Vec<u32>);

impl Latencies {
    pub fn record(&mut self, latency_ns: u64) {
        self.0
            .push(u32::try_from(latency_ns / 100).unwrap_or(u32::MAX));
    }

    /// The quantile in microseconds; None if nothing was recorded.
    pub fn quantile_us(&mut self, quantile: f64) -> Option<f64> {
        let last = self.0.len().checked_sub(1)?;
        let rank = (last as f64 * quantile).round() as usize;
        let (_, value, _) = self.0.select_nth_unstable(rank);
        Some(f64::from(*value) / 10.0)
    }
}

/// CPU time, memory and deliveries at one moment.
#[derive(Clone, Copy, Default)]
pub struct Snapshot {
    pub at: Duration,
    pub cpu: Option<Duration>,
    pub delivered: u64,
}

/// Sums over the slices that count.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    seconds: f64,
    delivered: u64,
    cpu_us: Option<f64>,
}

#[derive(Serialize, Debug, Default)]
pub struct Report {
    #[serde(skip)]
    counted: Counted,
    pub qos: u8,
    /// Of the whole run, warm-up included: every message is looked for.
    pub sent: u64,
    pub expected: u64,
    pub delivered: u64,
    pub lost: u64,
    pub duplicates: u64,
    pub reordered: u64,
    pub damaged: u64,
    /// QoS 1 and 2: publishes whose handshake did not end.
    pub unacknowledged: u64,
    /// Of the counted seconds only.
    pub deliveries_per_s: f64,
    pub cpu_us_per_delivery: Option<f64>,
    pub cpu_percent: Option<f64>,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub max_us: Option<f64>,
    /// How late this program sent: large values mean that it could not keep the rate.
    pub late_p99_us: Option<f64>,
    pub setup_s: f64,
    /// Before the first connection and with all of them subscribed and silent.
    pub resident_kib_before: Option<u64>,
    pub resident_kib_connected: Option<u64>,
    pub resident_kib_after: Option<u64>,
    pub connections: u32,
}

impl Report {
    pub fn new(qos: QoS) -> Self {
        Self {
            qos: qos as u8,
            ..Self::default()
        }
    }

    /// Adds what lies between two snapshots.
    pub fn add(&mut self, from: Snapshot, to: Snapshot) {
        self.counted.seconds += (to.at - from.at).as_secs_f64();
        self.counted.delivered += to.delivered - from.delivered;
        if let (Some(start), Some(end)) = (from.cpu, to.cpu) {
            *self.counted.cpu_us.get_or_insert(0.0) += (end - start).as_secs_f64() * 1e6;
        }
        let Counted {
            seconds,
            delivered,
            cpu_us,
        } = self.counted;
        let delivered = delivered as f64;
        self.deliveries_per_s = round(delivered / seconds);
        self.cpu_us_per_delivery = cpu_us
            .filter(|_| delivered > 0.0)
            .map(|cpu_us| round(cpu_us / delivered));
        self.cpu_percent = cpu_us.map(|cpu_us| round(cpu_us / seconds / 1e4));
    }

    pub fn latencies(&mut self, latency: &mut Latencies, lateness: &mut Latencies) {
        self.p50_us = latency.quantile_us(0.5);
        self.p99_us = latency.quantile_us(0.99);
        self.max_us = latency.quantile_us(1.0);
        self.late_p99_us = lateness.quantile_us(0.99);
    }

    /// Whether every message arrived as it was sent. At QoS 1 the standard allows duplicates.
    pub fn is_whole(&self) -> bool {
        let duplicates = if self.qos == 1 { 0 } else { self.duplicates };
        self.lost + self.damaged + self.unacknowledged + self.reordered + duplicates == 0
    }
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duplicate_is_a_fault_except_at_qos_1() {
        for (qos, whole) in [(QoS::Zero, false), (QoS::One, true), (QoS::Two, false)] {
            let report = Report {
                duplicates: 1,
                ..Report::new(qos)
            };
            assert_eq!(report.is_whole(), whole);
        }
        assert!(
            !Report {
                lost: 1,
                ..Report::default()
            }
            .is_whole()
        );
    }

    #[test]
    fn quantiles_are_of_the_sorted_values() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.quantile_us(0.5), None);
        for value in (1..=101).rev() {
            latencies.record(value * 1_000);
        }
        assert_eq!(latencies.quantile_us(0.5), Some(51.0));
        assert_eq!(latencies.quantile_us(0.99), Some(100.0));
        assert_eq!(latencies.quantile_us(1.0), Some(101.0));
    }

    #[test]
    fn cpu_time_is_divided_by_the_deliveries_between_the_snapshots() {
        let from = Snapshot {
            at: Duration::from_secs(1),
            cpu: Some(Duration::from_millis(10)),
            delivered: 100,
        };
        let to = Snapshot {
            at: Duration::from_secs(2),
            cpu: Some(Duration::from_millis(20)),
            delivered: 1_100,
        };
        let mut report = Report::default();
        report.add(from, to);
        report.add(from, to);
        assert_eq!(report.cpu_us_per_delivery, Some(10.0));
        assert_eq!(report.cpu_percent, Some(1.0));
        assert_eq!(report.deliveries_per_s, 1_000.0);
    }
}
