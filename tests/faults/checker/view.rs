//! A history arranged for questions: connections, messages, faults. It judges nothing.

use std::collections::BTreeMap;

use crate::history::{Ack, Body, Event, Kind, Phase, Side, What};

/// Microseconds since the run began.
pub type Micros = u64;

pub struct View<'a> {
    pub events: &'a [Event],
    pub connections: BTreeMap<u32, Connection>,
    pub messages: BTreeMap<u64, Message>,
    pub faults: Vec<Fault>,
    /// When everything that had to arrive had its time.
    pub settled: Option<Micros>,
}

/// One connection, from its CONNECT to its end.
#[derive(Debug)]
pub struct Connection {
    pub number: u32,
    pub client: String,
    pub node: u8,
    pub will: Option<(u64, String)>,
    pub connecting: Micros,
    pub connected: Option<Micros>,
    pub leaving: Option<Micros>,
    pub ended: Option<(Micros, Side)>,
    /// Filters that were asked for, granted or not, and when.
    pub asked: Vec<(Micros, String)>,
    /// Granted filters: when SUBACK came, the filter, the granted QoS.
    pub subscriptions: Vec<(Micros, String, u8)>,
    /// In the order in which they came.
    pub deliveries: Vec<Delivery>,
    /// When broker's acknowledgements of any kind came.
    pub acks: Vec<Micros>,
}

#[derive(Clone, Copy, Debug)]
pub struct Delivery {
    pub at: Micros,
    pub message: u64,
    pub qos: u8,
    pub retain: bool,
}

/// A message that a client published; wills are none of these.
#[derive(Debug)]
pub struct Message {
    pub number: u64,
    pub conn: u32,
    pub topic: String,
    pub qos: u8,
    pub retain: bool,
    pub body: Body,
    pub sent: Micros,
    /// When its PUBACK or PUBREC of success came.
    pub acked: Option<Micros>,
}

/// A fault of a node. What has not happened yet is `None`.
#[derive(Debug)]
pub struct Fault {
    pub node: u8,
    pub kind: Kind,
    pub begins: Micros,
    pub holds: Option<Micros>,
    pub ends: Option<Micros>,
    pub over: Option<Micros>,
}

impl Connection {
    /// Whether it was up from its CONNACK until `time` at least.
    pub fn lives_until(&self, time: Micros) -> bool {
        let open = self.ended.is_none_or(|(at, _)| at > time);
        open && self.leaving.is_none_or(|at| at > time)
    }

    /// When the earliest subscription that matches the topic was acknowledged, and the highest QoS granted.
    pub fn subscribed(&self, topic: &str) -> Option<(Micros, u8)> {
        let matching = self
            .subscriptions
            .iter()
            .filter(|(_, filter, _)| matches(filter, topic));
        matching.fold(None, |best, (at, _, qos)| {
            let (first, highest) = best.unwrap_or((*at, *qos));
            Some((first.min(*at), highest.max(*qos)))
        })
    }

    pub fn got(&self, message: u64) -> impl Iterator<Item = &Delivery> {
        self.deliveries
            .iter()
            .filter(move |delivery| delivery.message == message)
    }
}

impl<'a> View<'a> {
    pub fn new(events: &'a [Event]) -> Self {
        let mut view = Self {
            events,
            connections: BTreeMap::new(),
            messages: BTreeMap::new(),
            faults: Vec::new(),
            settled: None,
        };
        events.iter().for_each(|event| view.take(event));
        view
    }

    /// Whether `node` suffers any fault, recovery included, at any time from `from` to `to`.
    pub fn faulty(&self, node: u8, from: Micros, to: Micros) -> bool {
        let overlaps =
            |fault: &Fault| fault.begins <= to && fault.over.is_none_or(|over| over >= from);
        self.faults
            .iter()
            .any(|fault| fault.node == node && overlaps(fault))
    }

    /// Whether the broker ended a connection at `node` from `from` to `to` that neither its client nor a takeover asked to
    /// end: a node that is declared Down closes all its clients, scheduled fault or not.
    pub fn lost_clients(&self, node: u8, from: Micros, to: Micros) -> bool {
        let dropped = |one: &Connection| {
            let lost = one
                .ended
                .is_some_and(|(at, by)| by == Side::Broker && (from..=to).contains(&at));
            one.node == node && one.leaving.is_none() && lost && !self.taken_over(one)
        };
        self.connections.values().any(dropped)
    }

    /// Whether the end of a connection may come from a newer one of the same client.
    pub fn taken_over(&self, older: &Connection) -> bool {
        let mut newer = self
            .connections
            .range(older.number + 1..)
            .map(|(_, newer)| newer);
        let ended = older.ended.map_or(Micros::MAX, |(at, _)| at);
        newer.any(|newer| newer.client == older.client && newer.connecting < ended)
    }

    fn take(&mut self, event: &Event) {
        let at = event.at;
        match &event.what {
            What::Connecting { client, node, will } => {
                let connection = Connection::new(event, client, *node, will.clone());
                self.connections.insert(event.conn, connection);
            }
            What::Published {
                message,
                topic,
                qos,
                retain,
                body,
            } => {
                let published = Message {
                    number: *message,
                    conn: event.conn,
                    topic: topic.clone(),
                    qos: *qos,
                    retain: *retain,
                    body: *body,
                    sent: at,
                    acked: None,
                };
                self.messages.insert(*message, published);
            }
            What::Acked {
                message,
                ack,
                reason,
            } => {
                let success = *reason < 0x80 && *ack != Ack::Pubcomp;
                if let Some(message) = self.messages.get_mut(message).filter(|_| success) {
                    message.acked.get_or_insert(at);
                }
            }
            What::Fault { node, kind, phase } => self.take_fault(at, *node, *kind, *phase),
            What::Settled => self.settled = Some(at),
            _ => {}
        }
        if let Some(connection) = self.connections.get_mut(&event.conn) {
            connection.take(event);
        }
    }

    fn take_fault(&mut self, at: Micros, node: u8, kind: Kind, phase: Phase) {
        if phase == Phase::Begins {
            self.faults.push(Fault {
                node,
                kind,
                begins: at,
                holds: None,
                ends: None,
                over: None,
            });
            return;
        }
        let Some(fault) = self.faults.last_mut() else {
            return;
        };
        match phase {
            Phase::Begins => {}
            Phase::Holds => fault.holds = Some(at),
            Phase::Ends => fault.ends = Some(at),
            Phase::Over => fault.over = Some(at),
        }
    }
}

impl Connection {
    fn new(event: &Event, client: &str, node: u8, will: Option<(u64, String)>) -> Self {
        Self {
            number: event.conn,
            client: client.to_owned(),
            node,
            will,
            connecting: event.at,
            connected: None,
            leaving: None,
            ended: None,
            asked: Vec::new(),
            subscriptions: Vec::new(),
            deliveries: Vec::new(),
            acks: Vec::new(),
        }
    }

    fn take(&mut self, event: &Event) {
        let at = event.at;
        match &event.what {
            What::Connected { .. } => self.connected = Some(at),
            What::Leaving => self.leaving = Some(at),
            What::Ended { by } => self.ended = Some((at, *by)),
            What::Subscribing { filter, .. } => self.asked.push((at, filter.clone())),
            What::Subscribed { filter, code } => {
                self.acks.push(at);
                if *code < 0x80 {
                    self.subscriptions.push((at, filter.clone(), *code));
                }
            }
            What::Acked { .. } => self.acks.push(at),
            What::Delivered {
                message,
                qos,
                retain,
                ..
            } => self.deliveries.push(Delivery {
                at,
                message: *message,
                qos: *qos,
                retain: *retain,
            }),
            _ => {}
        }
    }
}

/// Whether a filter matches a topic; topics here never begin with `$`.
pub fn matches(filter: &str, topic: &str) -> bool {
    let mut levels = topic.split('/');
    for wanted in filter.split('/') {
        if wanted == "#" {
            return true;
        }
        match levels.next() {
            Some(level) if wanted == "+" || wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn filters_match_as_the_standard_says() {
        for filter in ["a/b", "a/+", "+/b", "#", "a/#", "a/b/#"] {
            assert!(matches(filter, "a/b"), "{filter}");
        }
        for filter in ["a", "a/b/c", "a/+/c", "b/#", "+"] {
            assert!(!matches(filter, "a/b"), "{filter}");
        }
    }
}
