//! Load averages as Mosquitto has them: what happens in a minute, over the last 1, 5 and 15 minutes, each moment weighing
//! less the longer ago it is. Pure: the totals are an argument.

use std::time::Duration;

use flotte_mqtt::PacketType;
use flotte_mqtt::session::DropReason;

use crate::metrics::{Count, packets_in, packets_out};

/// Topic part and length of each average.
const SPANS: [(&str, f64); 3] = [("1min", 60.0), ("5min", 300.0), ("15min", 900.0)];

/// What is averaged.
const NAMES: [&str; 9] = [
    "messages/received",
    "messages/sent",
    "bytes/received",
    "bytes/sent",
    "publish/received",
    "publish/sent",
    "publish/dropped",
    "connections",
    "sockets",
];

/// What has happened since the start, in the order of the names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals([u64; NAMES.len()]);

impl Totals {
    /// As it is now.
    pub fn now() -> Totals {
        Totals([
            all_in(),
            all_out(),
            Count::BYTES_IN.total(),
            Count::BYTES_OUT.total(),
            packets_in(PacketType::Publish),
            packets_out(PacketType::Publish),
            dropped(),
            packets_in(PacketType::Connect),
            Count::SOCKETS.total(),
        ])
    }
}

/// Packets from clients.
pub fn all_in() -> u64 {
    PacketType::ALL.iter().map(|kind| packets_in(*kind)).sum()
}

/// Packets to clients.
pub fn all_out() -> u64 {
    PacketType::ALL.iter().map(|kind| packets_out(*kind)).sum()
}

/// Copies dropped, whatever for.
pub fn dropped() -> u64 {
    let reasons = DropReason::ALL.into_iter();
    reasons.map(|reason| Count::dropped(reason).total()).sum()
}

/// The averages.
#[derive(Debug)]
pub struct Loads {
    interval_s: f64,
    last: Totals,
    averages: [[f64; SPANS.len()]; NAMES.len()],
}

impl Loads {
    /// Nothing has happened yet; a turn comes once in each interval.
    pub fn new(interval: Duration) -> Loads {
        Loads {
            interval_s: interval.as_secs_f64(),
            last: Totals::default(),
            averages: Default::default(),
        }
    }

    /// An interval is over.
    pub fn turn(&mut self, totals: &Totals) {
        for (at, averages) in self.averages.iter_mut().enumerate() {
            let more = totals.0[at].saturating_sub(self.last.0[at]);
            let a_minute = more as f64 * 60.0 / self.interval_s;
            for (average, (_, span_s)) in averages.iter_mut().zip(SPANS) {
                let keep = (-self.interval_s / span_s).exp();
                *average = *average * keep + a_minute * (1.0 - keep);
            }
        }
        self.last = *totals;
    }

    /// Topic parts and values.
    pub fn values(&self) -> impl Iterator<Item = (String, f64)> {
        NAMES.iter().zip(&self.averages).flat_map(|(name, values)| {
            let spans = SPANS.iter().zip(values);
            spans.map(move |((span, _), value)| (format!("{name}/{span}"), *value))
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn value(loads: &Loads, name: &str) -> f64 {
        let mut values = loads.values();
        values.find(|(one, _)| one == name).unwrap().1
    }

    #[test]
    fn a_steady_rate_is_reached_the_sooner_the_shorter_the_span() {
        let mut loads = Loads::new(Duration::from_secs(10));
        let mut totals = Totals::default();
        for _ in 0..30 {
            // 10 a second.
            totals.0[0] += 100;
            loads.turn(&totals);
        }
        let minute = value(&loads, "messages/received/1min");
        let five = value(&loads, "messages/received/5min");
        assert!((minute - 600.0).abs() < 6.0, "{minute}");
        assert!(
            (five - 600.0 * (1.0 - (-1.0_f64).exp())).abs() < 1.0,
            "{five}"
        );
        assert!(value(&loads, "messages/received/15min") < five);
        assert_eq!(value(&loads, "messages/sent/1min"), 0.0);
    }

    #[test]
    fn what_stopped_fades() {
        let mut loads = Loads::new(Duration::from_secs(60));
        let mut totals = Totals::default();
        totals.0[8] = 60;
        loads.turn(&totals);
        let then = value(&loads, "sockets/1min");
        loads.turn(&totals);
        let now = value(&loads, "sockets/1min");
        assert!((now - then * (-1.0_f64).exp()).abs() < 1e-9);
        assert_eq!(loads.values().count(), NAMES.len() * SPANS.len());
    }
}
