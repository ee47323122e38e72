//! Both halves of a session against a client that answers whatever it likes: nothing panics, the
//! invariants and the accounting law hold after every step, and what goes out is valid, within the
//! client's limits, and never published again once it was released.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arbitrary::Arbitrary;
use bytes::{Bytes, BytesMut};
use flotte_mqtt::codec::Decoder;
use flotte_mqtt::packet::{Packet, Publish};
use flotte_mqtt::property::{Properties, Property};
use flotte_mqtt::reason::ReasonCode;
use flotte_mqtt::session::{
    Acked, Begin, Delivery, Inbound, InboundConfig, Keeper, Message, Outbound, OutboundConfig,
    Overflow, Peer, SessionError, SharedCopy, Tally, Ticket,
};
use flotte_mqtt::topic::{SubscriptionFilter, TopicName};
use flotte_mqtt::{PacketId, QoS, Version};
use libfuzzer_sys::fuzz_target;

/// What marks a copy of the one shared subscription there is.
#[derive(Debug)]
struct Tag(SubscriptionFilter);

impl Tag {
    fn of_one() -> Arc<dyn SharedCopy> {
        let filter = SubscriptionFilter::try_from("$share/group/#");
        Arc::new(Tag(filter.expect("it is a filter")))
    }
}

impl SharedCopy for Tag {
    fn filter(&self) -> &SubscriptionFilter {
        &self.0
    }

    fn keeper(&self) -> Option<Keeper> {
        None
    }
}

#[derive(Debug, Arbitrary)]
struct Limits {
    messages: u8,
    bytes: u16,
    drop_new: bool,
    qos0_offline: bool,
    inflight: u8,
    aliases: u8,
    buffer: u16,
    receive_maximum: u8,
    inbound_aliases: u8,
}

#[derive(Debug, Arbitrary)]
enum Step {
    Connect {
        version: u8,
        receive_maximum: u8,
        packet_bytes: Option<u16>,
        aliases: u8,
    },
    Disconnect,
    End,
    Enqueue {
        qos: u8,
        topic: u8,
        padding: u16,
        lifetime_ms: Option<u16>,
        share: bool,
        id: u32,
    },
    PubAck(u8, bool),
    PubRec(u8, bool),
    PubComp(u8),
    Congested,
    Writable,
    Wait(u16),
    Expire,
    Leave,
    Publish {
        qos: u8,
        id: u8,
    },
    Placed {
        which: u8,
        refused: bool,
    },
    PubRel(u8),
    Alias {
        alias: u16,
        topic: Option<u8>,
    },
}

fuzz_target!(|input: (Limits, Vec<Step>)| {
    let (limits, steps) = input;
    let mut world = World::new(&limits);
    for step in steps {
        world.take(step);
    }
});

struct World {
    outbound: Outbound,
    inbound: Inbound,
    /// None while the client is away.
    peer: Option<Peer>,
    inflight_max: usize,
    dst: BytesMut,
    now_ms: u64,
    total: Tally,
    /// Shared copies that went elsewhere.
    moved: i64,
    /// What the client was sent on this connection and has not answered to the end.
    unanswered: BTreeSet<PacketId>,
    /// Ids of PUBRELs whose PUBCOMP has not come, over connections.
    released: BTreeSet<PacketId>,
    aliases: BTreeMap<u16, String>,
    routing: Vec<Ticket>,
}

impl World {
    fn new(limits: &Limits) -> Self {
        let config = OutboundConfig {
            queue_max_messages: usize::from(limits.messages).max(1),
            queue_max_bytes: usize::from(limits.bytes).max(1),
            overflow: if limits.drop_new {
                Overflow::DropNew
            } else {
                Overflow::DropOld
            },
            queue_qos0_offline: limits.qos0_offline,
            inflight_max: u16::from(limits.inflight).max(1),
            topic_alias_max: limits.aliases.into(),
            dst_bytes_max: limits.buffer.into(),
        };
        let inbound = InboundConfig {
            receive_maximum: u16::from(limits.receive_maximum).max(1),
            topic_alias_maximum: limits.inbound_aliases.into(),
        };
        Self {
            inflight_max: config.inflight_max.into(),
            outbound: Outbound::new(Arc::new(config)),
            inbound: Inbound::new(inbound),
            peer: None,
            dst: BytesMut::new(),
            now_ms: 1_000,
            total: Tally::default(),
            moved: 0,
            unanswered: BTreeSet::new(),
            released: BTreeSet::new(),
            aliases: BTreeMap::new(),
            routing: Vec::new(),
        }
    }

    fn take(&mut self, step: Step) {
        let tally = self.apply(step);
        self.total += tally;
        self.read();
        self.outbound.check_invariants();
        self.inbound.check_invariants();
        let held = self.total.held_change() - self.moved;
        assert_eq!(held, self.outbound.queued() as i64, "the accounting law");
    }

    fn apply(&mut self, step: Step) -> Tally {
        let none = Tally::default();
        match step {
            Step::Connect {
                version,
                receive_maximum,
                packet_bytes,
                aliases,
            } => self.connect(Peer {
                version: [Version::V3, Version::V4, Version::V5][usize::from(version % 3)],
                receive_maximum: u16::from(receive_maximum).max(1),
                max_packet_size: packet_bytes.map(|bytes| u32::from(bytes).max(1)),
                topic_alias_maximum: aliases.into(),
                mountpoint: None,
            }),
            Step::Disconnect => self.disconnect(),
            Step::End => {
                self.released.clear();
                let mut tally = self.disconnect();
                tally += self.outbound.end();
                tally
            }
            Step::Enqueue {
                qos,
                topic,
                padding,
                lifetime_ms,
                share,
                id,
            } => {
                let mut copy = self.copy(qos, topic, padding, lifetime_ms);
                copy.share = share.then(Tag::of_one);
                copy.retain = id % 2 == 0;
                copy.subscription_ids.extend((id > 0).then_some(id));
                self.outbound
                    .enqueue(copy, self.now_ms, &mut self.dst)
                    .tally
            }
            Step::PubAck(..) | Step::PubRec(..) | Step::PubComp(_) => self.acknowledge(step),
            Step::Congested => {
                self.outbound.handle_congested();
                none
            }
            Step::Writable => self.outbound.handle_writable(self.now_ms, &mut self.dst),
            Step::Wait(ms) => {
                self.now_ms += u64::from(ms);
                none
            }
            Step::Expire => self.outbound.expire(self.now_ms),
            Step::Leave => {
                let taken = self.outbound.take_undelivered_shared(|_| true);
                assert!(taken.iter().all(|copy| copy.share.is_some()));
                self.moved += taken.len() as i64;
                self.disconnect()
            }
            Step::Publish { .. } | Step::Placed { .. } | Step::PubRel(_) | Step::Alias { .. } => {
                self.receive(step)
            }
        }
    }

    /// What the client says of what it was sent.
    fn acknowledge(&mut self, step: Step) -> Tally {
        match step {
            Step::PubAck(id, refused) => {
                let id = packet_id(id);
                let acked =
                    self.outbound
                        .handle_puback(id, reason(refused), self.now_ms, &mut self.dst);
                self.unanswered.remove(&id);
                self.acked(acked)
            }
            Step::PubRec(id, refused) => {
                let id = packet_id(id);
                let acked =
                    self.outbound
                        .handle_pubrec(id, reason(refused), self.now_ms, &mut self.dst);
                if refused {
                    self.unanswered.remove(&id);
                    self.released.remove(&id);
                }
                self.acked(acked)
            }
            Step::PubComp(id) => {
                let id = packet_id(id);
                let acked = self.outbound.handle_pubcomp(id, self.now_ms, &mut self.dst);
                self.unanswered.remove(&id);
                self.released.remove(&id);
                self.acked(acked)
            }
            _ => Tally::default(),
        }
    }

    /// What the client publishes.
    fn receive(&mut self, step: Step) -> Tally {
        if self.peer.is_none() {
            return Tally::default();
        }
        let mut refused = false;
        match step {
            Step::Publish { qos, id } => {
                let qos = [QoS::AtLeastOnce, QoS::ExactlyOnce][usize::from(qos % 2)];
                match self.inbound.start(packet_id(id), qos) {
                    Ok((ticket, Begin::Duplicate)) => {
                        self.inbound.complete(ticket, ReasonCode::Success);
                    }
                    Ok((ticket, _)) => self.routing.push(ticket),
                    Err(_) => refused = true,
                }
            }
            Step::Placed { which, refused } if !self.routing.is_empty() => {
                let ticket = self.routing.remove(usize::from(which) % self.routing.len());
                self.inbound.complete(ticket, reason(refused));
                while self.inbound.poll_ack().is_some() {}
            }
            Step::PubRel(id) => {
                self.inbound.handle_pubrel(packet_id(id));
            }
            Step::Alias { alias, topic } => {
                let topic = topic.map(topic_of);
                let named = topic.clone();
                match self.inbound.resolve_alias(alias, topic) {
                    Ok(found) => assert!(named.is_none_or(|named| named == found)),
                    Err(_) => refused = true,
                }
            }
            _ => {}
        }
        if refused {
            return self.disconnect();
        }
        Tally::default()
    }

    fn connect(&mut self, peer: Peer) -> Tally {
        let mut tally = self.disconnect();
        self.inbound.connect(peer.version);
        self.peer = Some(peer.clone());
        tally += self.outbound.connect(peer, self.now_ms, &mut self.dst);
        tally
    }

    fn disconnect(&mut self) -> Tally {
        self.read();
        self.peer = None;
        self.unanswered.clear();
        self.aliases.clear();
        self.inbound.disconnect();
        self.outbound.disconnect()
    }

    /// An error ends the connection.
    fn acked(&mut self, acked: Result<Acked, SessionError>) -> Tally {
        match acked {
            Ok(acked) => acked.tally,
            Err(_) => self.disconnect(),
        }
    }

    fn copy(&self, qos: u8, topic: u8, padding: u16, lifetime_ms: Option<u16>) -> Delivery {
        let text = "x".repeat(usize::from(topic)).as_str().try_into();
        let content = Property::ContentType(text.expect("a valid text"));
        let message = Message {
            topic: topic_of(topic),
            payload: Bytes::from(vec![0; usize::from(padding % 1_000)]),
            properties: Properties::from(vec![content]),
            qos: QoS::ExactlyOnce,
            retain: false,
            publisher: "publisher".try_into().expect("a valid text"),
            expires_at_ms: lifetime_ms.map(|lifetime| self.now_ms + u64::from(lifetime)),
        };
        Delivery {
            message: Arc::new(message),
            qos: QoS::try_from(qos % 3).expect("below 3"),
            retain: false,
            subscription_ids: Default::default(),
            share: None,
        }
    }

    /// What the session wrote, as a client reads it.
    fn read(&mut self) {
        let Some(peer) = self.peer.clone() else {
            // Whoever writes to nobody throws it away.
            return self.dst.clear();
        };
        let mut decoder = Decoder::new(usize::MAX);
        decoder.set_version(peer.version);
        while !self.dst.is_empty() {
            let before = self.dst.len();
            let packet = decoder.decode(&mut self.dst).expect("a valid packet");
            let bytes = before - self.dst.len();
            match packet.expect("a whole packet") {
                Packet::Publish(publish) => self.published(&peer, &publish, bytes),
                // The answer to a PUBREC for nothing releases nothing.
                Packet::PubRel(release) if !self.unanswered.contains(&release.packet_id) => {}
                Packet::PubRel(release) => {
                    self.released.insert(release.packet_id);
                }
                other => panic!("{other:?} is not for a subscriber"),
            }
        }
    }

    fn published(&mut self, peer: &Peer, publish: &Publish, bytes: usize) {
        // [MQTT-3.1.2-24]
        let bytes_max = peer.max_packet_size.map_or(usize::MAX, |max| max as usize);
        assert!(bytes <= bytes_max, "{bytes} bytes for {bytes_max}");
        if let Some(alias) = publish.properties.topic_alias() {
            assert!((1..=peer.topic_alias_maximum).contains(&alias));
            if publish.topic.is_empty() {
                assert!(self.aliases.contains_key(&alias), "alias {alias} unset");
            } else {
                self.aliases.insert(alias, publish.topic.to_string());
            }
        }
        let Some(id) = publish.packet_id else { return };
        // [MQTT-4.3.3-6]
        assert!(!self.released.contains(&id), "{id} after its PUBREL");
        self.unanswered.insert(id);
        // [MQTT-3.3.4-9]
        let window = usize::from(peer.receive_maximum).min(self.inflight_max);
        assert!(self.unanswered.len() <= window);
    }
}

fn packet_id(number: u8) -> PacketId {
    // Those of shared copies begin above the middle.
    let number = match number {
        0 => 1,
        number if number > 127 => 32_640 + u16::from(number),
        number => number.into(),
    };
    PacketId::new(number).expect("not zero")
}

fn topic_of(number: u8) -> TopicName {
    TopicName::try_from(format!("t/{number}").as_str()).expect("a valid name")
}

fn reason(refused: bool) -> ReasonCode {
    if refused {
        ReasonCode::UnspecifiedError
    } else {
        ReasonCode::Success
    }
}
