//! Histories for the tests of the checker, written by hand: times in milliseconds, in the order in which they are given.

use crate::history::{Ack, Body, Event, Kind, NOBODY, Phase, Side, What};

#[derive(Default)]
pub struct Script {
    pub events: Vec<Event>,
}

impl Script {
    pub fn add(mut self, at_ms: u64, conn: u32, what: What) -> Self {
        let at = at_ms * 1_000;
        assert!(
            self.events.last().is_none_or(|last| last.at <= at),
            "out of order: {what:?}"
        );
        self.events.push(Event { at, conn, what });
        self
    }

    /// A connection that is accepted at once, its client named after it.
    pub fn connects(self, at: u64, conn: u32, node: u8) -> Self {
        self.connects_as(at, conn, node, &format!("c{conn}"))
    }

    pub fn connects_as(self, at: u64, conn: u32, node: u8, client: &str) -> Self {
        let client = client.to_owned();
        self.add(
            at,
            conn,
            What::Connecting {
                client,
                node,
                will: None,
            },
        )
        .add(
            at,
            conn,
            What::Connected {
                session_present: false,
            },
        )
    }

    pub fn connects_with_will(self, at: u64, conn: u32, node: u8, message: u64) -> Self {
        let will = Some((message, "wills/1".to_owned()));
        let client = format!("c{conn}");
        self.add(at, conn, What::Connecting { client, node, will })
            .add(
                at,
                conn,
                What::Connected {
                    session_present: false,
                },
            )
    }

    pub fn asks(self, at: u64, conn: u32, filter: &str) -> Self {
        let filter = filter.to_owned();
        self.add(at, conn, What::Subscribing { filter, qos: 2 })
    }

    /// Asked for and granted at once.
    pub fn subscribed(self, at: u64, conn: u32, filter: &str) -> Self {
        let script = self.asks(at, conn, filter);
        let filter = filter.to_owned();
        script.add(at, conn, What::Subscribed { filter, code: 2 })
    }

    /// A message on topic `t` at QoS 2.
    pub fn sends(self, at: u64, conn: u32, message: u64) -> Self {
        self.publishes(at, conn, message, "t", 2)
    }

    /// A message of QoS 1 to those who share `t`.
    pub fn sends_shared(self, at: u64, conn: u32, message: u64) -> Self {
        self.publishes(at, conn, message, "t", 1)
    }

    fn publishes(self, at: u64, conn: u32, message: u64, topic: &str, qos: u8) -> Self {
        let what = What::Published {
            message,
            topic: topic.to_owned(),
            qos,
            retain: false,
            body: Body::Number,
        };
        self.add(at, conn, what)
    }

    /// A retained message on topic `t` at QoS 2.
    pub fn sends_retained(self, at: u64, conn: u32, message: u64) -> Self {
        self.retains(at, conn, message, Body::Number)
    }

    pub fn deletes_retained(self, at: u64, conn: u32, message: u64) -> Self {
        self.retains(at, conn, message, Body::Nothing)
    }

    pub fn retains_briefly(self, at: u64, conn: u32, message: u64) -> Self {
        self.retains(at, conn, message, Body::Brief)
    }

    fn retains(self, at: u64, conn: u32, message: u64, body: Body) -> Self {
        let what = What::Published {
            message,
            topic: "t".to_owned(),
            qos: 2,
            retain: true,
            body,
        };
        self.add(at, conn, what)
    }

    pub fn acked(self, at: u64, conn: u32, message: u64) -> Self {
        self.acked_with(at, conn, message, 0)
    }

    pub fn acked_with(self, at: u64, conn: u32, message: u64, reason: u8) -> Self {
        self.add(
            at,
            conn,
            What::Acked {
                message,
                ack: Ack::Pubrec,
                reason,
            },
        )
    }

    /// On topic `t` at QoS 2.
    pub fn gets(self, at: u64, conn: u32, message: u64) -> Self {
        let topic = "t".to_owned();
        self.add(
            at,
            conn,
            What::Delivered {
                message,
                topic,
                qos: 2,
                dup: false,
                retain: false,
            },
        )
    }

    pub fn leaves(self, at: u64, conn: u32) -> Self {
        self.add(at, conn, What::Leaving)
    }

    pub fn ended(self, at: u64, conn: u32, by: Side) -> Self {
        self.add(at, conn, What::Ended { by })
    }

    pub fn fault(self, at: u64, node: u8, kind: Kind, phase: Phase) -> Self {
        self.add(at, NOBODY, What::Fault { node, kind, phase })
    }

    /// At the end of all.
    pub fn accounts(self, node: u8, accepted: u64, accounted: u64) -> Self {
        let what = What::Accounted {
            node,
            accepted,
            accounted,
        };
        self.add(90_000, NOBODY, what)
    }

    pub fn kept(self, at: u64, node: u8, message: impl Into<Option<u64>>) -> Self {
        let topic = "t".to_owned();
        let message = message.into();
        self.add(
            at,
            NOBODY,
            What::Kept {
                node,
                topic,
                message,
            },
        )
    }

    pub fn settled(self, at: u64) -> Self {
        self.add(at, NOBODY, What::Settled)
    }
}

/// How many violations the check finds.
pub fn count(script: &Script, check: fn(&super::View<'_>) -> Vec<super::Violation>) -> usize {
    check(&super::View::new(&script.events)).len()
}
