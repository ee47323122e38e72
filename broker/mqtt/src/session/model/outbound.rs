//! The outbound half against a subscriber with a session.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use crate::codec::Decoder;
use crate::packet::{Packet, PacketId, Publish, QoS, Version};
use crate::reason::ReasonCode;
use crate::session::message::testing::Tag;
use crate::session::{
    AckOutcome, Delivery, DropReason, Message, Outbound, OutboundConfig, Overflow, Peer, Tally,
};
use crate::topic::TopicName;

#[derive(Debug, Clone)]
enum Op {
    Enqueue {
        qos: u8,
        topic: u8,
        share: bool,
        padding: usize,
        lifetime_ms: Option<u64>,
    },
    /// The client answers one of the packets it has not answered; an error instead of success.
    Answer {
        which: usize,
        refuse: bool,
    },
    Connect(Peer),
    Disconnect,
    Congested,
    Writable,
    Wait(u64),
    /// The connection is lost and the shared copies go to other members.
    Leave,
    Expire,
}

fn peer() -> impl Strategy<Value = Peer> {
    let version = prop::sample::select(vec![Version::V4, Version::V5]);
    let size = prop_oneof![3 => Just(None), 1 => (60u32..300).prop_map(Some)];
    (version, 1u16..8, size, 0u16..3).prop_map(|(version, receive_maximum, size, aliases)| Peer {
        version,
        receive_maximum,
        max_packet_size: size,
        topic_alias_maximum: aliases,
        mountpoint: None,
    })
}

fn op() -> impl Strategy<Value = Op> {
    let lifetime = prop_oneof![3 => Just(None), 1 => (0u64..5_000).prop_map(Some)];
    let enqueue = (
        0u8..3,
        0u8..3,
        prop::bool::weighted(0.2),
        0usize..200,
        lifetime,
    );
    prop_oneof![
        12 => enqueue.prop_map(|(qos, topic, share, padding, lifetime_ms)| {
            Op::Enqueue { qos, topic, share, padding, lifetime_ms }
        }),
        16 => (0usize..8, prop::bool::weighted(0.1))
            .prop_map(|(which, refuse)| Op::Answer { which, refuse }),
        4 => peer().prop_map(Op::Connect),
        1 => Just(Op::Disconnect),
        1 => Just(Op::Congested),
        2 => Just(Op::Writable),
        2 => (0u64..3_000).prop_map(Op::Wait),
        1 => Just(Op::Leave),
        1 => Just(Op::Expire),
    ]
}

fn config() -> impl Strategy<Value = OutboundConfig> {
    let overflow = prop::sample::select(vec![Overflow::DropOld, Overflow::DropNew]);
    (
        2usize..30,
        500usize..8_000,
        overflow,
        any::<bool>(),
        1u16..10,
        20usize..400,
    )
        .prop_map(
            |(messages, bytes, overflow, queue_qos0_offline, inflight_max, dst_bytes_max)| {
                OutboundConfig {
                    queue_max_messages: messages,
                    queue_max_bytes: bytes,
                    overflow,
                    queue_qos0_offline,
                    inflight_max,
                    topic_alias_max: 2,
                    dst_bytes_max,
                }
            },
        )
}

/// What the client has not answered yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Ack,
    Rec,
    Comp,
}

/// A subscriber with a session. Messages are numbered by their payload's first bytes.
#[derive(Debug)]
struct Client {
    peer: Peer,
    aliases: HashMap<u16, String>,
    /// Answers not given on this connection, by packet id.
    due: BTreeMap<PacketId, Due>,
    /// Publishes of this connection that count against its receive maximum.
    quota_used: BTreeSet<PacketId>,
    /// The message of each packet id that is not done from the client's view, over connections.
    known: BTreeMap<PacketId, u64>,
    /// The last number received for the first time, by topic, QoS and share.
    last: HashMap<(String, QoS, bool), u64>,
    received: BTreeSet<u64>,
}

impl Client {
    fn new() -> Self {
        Self {
            peer: Peer::unlimited(Version::V5),
            aliases: HashMap::new(),
            due: BTreeMap::new(),
            quota_used: BTreeSet::new(),
            known: BTreeMap::new(),
            last: HashMap::new(),
            received: BTreeSet::new(),
        }
    }

    fn connect(&mut self, peer: Peer) {
        self.peer = peer;
        self.aliases.clear();
        self.due.clear();
        self.quota_used.clear();
    }

    fn read(&mut self, dst: &mut BytesMut) {
        let mut decoder = Decoder::new(
            self.peer
                .max_packet_size
                .map_or(usize::MAX, |max| max as usize),
        );
        decoder.set_version(self.peer.version);
        while let Some(packet) = decoder.decode(dst).expect("valid and not too large") {
            match packet {
                Packet::Publish(publish) => self.publish(&publish),
                Packet::PubRel(pubrel) => {
                    self.due.insert(pubrel.packet_id, Due::Comp);
                }
                other => panic!("{other:?} is not for a subscriber"),
            }
        }
    }

    fn publish(&mut self, publish: &Publish) {
        let number = number_of(&publish.payload);
        let topic = match publish.properties.topic_alias() {
            Some(alias) if publish.topic.is_empty() => self.aliases[&alias].clone(),
            Some(alias) => {
                assert!(alias <= self.peer.topic_alias_maximum);
                self.aliases.insert(alias, publish.topic.to_string());
                publish.topic.to_string()
            }
            None => publish.topic.to_string(),
        };
        let Some(id) = publish.packet_id else {
            assert!(!publish.dup && publish.qos == QoS::AtMostOnce);
            return self.first_time(number, (topic, publish.qos, false));
        };
        if publish.dup {
            assert_eq!(
                self.known.get(&id),
                Some(&number),
                "a resend of what was sent before"
            );
        } else {
            assert_eq!(
                self.known.insert(id, number),
                None,
                "the id of {number} is in use"
            );
            self.first_time(number, (topic, publish.qos, id.value() > 32_767));
        }
        let due = if publish.qos == QoS::AtLeastOnce {
            Due::Ack
        } else {
            Due::Rec
        };
        assert_eq!(self.due.insert(id, due), None, "sent once on a connection");
        self.quota_used.insert(id);
        assert!(self.quota_used.len() <= usize::from(self.peer.receive_maximum));
    }

    fn first_time(&mut self, number: u64, class: (String, QoS, bool)) {
        assert!(self.received.insert(number), "{number} is new only once");
        let last = self.last.insert(class, number);
        assert!(last < Some(number), "{number} after {last:?}");
    }
}

fn number_of(payload: &[u8]) -> u64 {
    u64::from_be_bytes(
        payload[..8]
            .try_into()
            .expect("payloads begin with their number"),
    )
}

struct World {
    outbound: Outbound,
    client: Client,
    is_connected: bool,
    is_congested: bool,
    dst: BytesMut,
    now_ms: u64,
    enqueued: u64,
    moved: u64,
    total: Tally,
}

impl World {
    fn new(config: OutboundConfig) -> Self {
        Self {
            outbound: Outbound::new(Arc::new(config)),
            client: Client::new(),
            is_connected: false,
            is_congested: false,
            dst: BytesMut::new(),
            now_ms: 1_000,
            enqueued: 0,
            moved: 0,
            total: Tally::default(),
        }
    }

    fn step(&mut self, op: Op) {
        let tally = self.apply(op);
        self.total += tally;
        let published: u32 = tally.published.iter().sum();
        assert!(
            !self.is_congested || published == 0,
            "nothing is published into a full socket"
        );
        if self.is_connected {
            self.client.read(&mut self.dst);
        }
        assert!(self.dst.is_empty());
        self.outbound.check_invariants();
        let held = self.total.held_change() - self.moved as i64;
        assert_eq!(held, self.outbound.queued() as i64, "the accounting law");
    }

    fn apply(&mut self, op: Op) -> Tally {
        match op {
            Op::Enqueue {
                qos,
                topic,
                share,
                padding,
                lifetime_ms,
            } => {
                let copy = self.copy(qos, topic, share, padding, lifetime_ms);
                self.outbound
                    .enqueue(copy, self.now_ms, &mut self.dst)
                    .tally
            }
            Op::Answer { which, refuse } => self.answer(which, refuse),
            Op::Connect(peer) => {
                (self.is_connected, self.is_congested) = (true, false);
                self.client.connect(peer.clone());
                self.outbound.connect(peer, self.now_ms, &mut self.dst)
            }
            Op::Disconnect => {
                (self.is_connected, self.is_congested) = (false, false);
                self.client.due.clear();
                self.outbound.disconnect()
            }
            Op::Congested => {
                self.is_congested = self.is_connected;
                self.outbound.handle_congested();
                Tally::default()
            }
            Op::Writable => {
                self.is_congested = false;
                self.outbound.handle_writable(self.now_ms, &mut self.dst)
            }
            Op::Wait(ms) => {
                self.now_ms += ms;
                Tally::default()
            }
            Op::Leave => {
                let taken = self.outbound.take_undelivered_shared(|_| true);
                self.moved += taken.len() as u64;
                for copy in taken {
                    assert!(copy.share.is_some());
                    let number = number_of(&copy.message.payload);
                    // What QoS 2 was sent is never given to another.
                    let was_sent = self.client.received.contains(&number);
                    assert!(!was_sent || copy.qos == QoS::AtLeastOnce);
                    self.client.known.retain(|_, known| *known != number);
                }
                self.apply(Op::Disconnect)
            }
            Op::Expire => self.outbound.expire(self.now_ms),
        }
    }

    fn copy(
        &mut self,
        qos: u8,
        topic: u8,
        share: bool,
        padding: usize,
        lifetime_ms: Option<u64>,
    ) -> Delivery {
        let mut payload = self.enqueued.to_be_bytes().to_vec();
        payload.resize(8 + padding, b'.');
        self.enqueued += 1;
        let message = Message {
            topic: TopicName::try_from(["a", "b", "c/d"][usize::from(topic)]).unwrap(),
            payload: Bytes::from(payload),
            properties: Default::default(),
            qos: QoS::ExactlyOnce,
            retain: false,
            publisher: "publisher".try_into().unwrap(),
            expires_at_ms: lifetime_ms.map(|lifetime| self.now_ms + lifetime),
        };
        Delivery {
            message: Arc::new(message),
            qos: QoS::try_from(qos).unwrap(),
            retain: false,
            subscription_ids: Default::default(),
            share: share.then(|| Tag::of("$share/g/#")),
        }
    }

    fn answer(&mut self, which: usize, refuse: bool) -> Tally {
        let answers = self.client.due.len();
        let Some((id, due)) = self.client.due.iter().nth(which % answers.max(1)) else {
            return Tally::default();
        };
        let (id, due) = (*id, *due);
        self.client.due.remove(&id);
        let refuse = refuse && self.client.peer.version == Version::V5;
        let reason = if refuse {
            ReasonCode::UnspecifiedError
        } else {
            ReasonCode::Success
        };
        let (outbound, now_ms, dst) = (&mut self.outbound, self.now_ms, &mut self.dst);
        let is_done = due != Due::Rec || refuse;
        if is_done {
            self.client.known.remove(&id);
            self.client.quota_used.remove(&id);
        }
        let acked = match due {
            Due::Ack => outbound.handle_puback(id, reason, now_ms, dst),
            Due::Rec => outbound.handle_pubrec(id, reason, now_ms, dst),
            Due::Comp => outbound.handle_pubcomp(id, now_ms, dst),
        };
        let acked = acked.expect("the client keeps to the protocol");
        assert_ne!(acked.outcome, AckOutcome::Unknown, "{due:?} for {id}");
        acked.tally
    }

    /// A patient client without limits takes all there is.
    fn drain(&mut self) {
        self.step(Op::Connect(Peer::unlimited(Version::V5)));
        while !self.outbound.is_empty() {
            let before = (self.outbound.queued(), self.client.due.clone());
            self.step(Op::Answer {
                which: 0,
                refuse: false,
            });
            self.step(Op::Writable);
            assert_ne!(
                before,
                (self.outbound.queued(), self.client.due.clone()),
                "no progress"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn outbound_satisfies_a_strict_client(
        config in config(),
        ops in prop::collection::vec(op(), 1..200),
    ) {
        let mut world = World::new(config);
        for op in ops {
            world.step(op);
        }
        world.drain();
        // Whatever was accepted reached the client or is accounted for otherwise.
        let gone = u64::from(world.total.expired + world.total.dropped_total()) + world.moved;
        prop_assert!(world.client.received.len() as u64 + gone >= world.enqueued);
        prop_assert_eq!(u64::from(world.total.accepted), world.enqueued);
        prop_assert!(world.client.known.is_empty() || world.total.dropped(DropReason::TooLarge) > 0);
    }
}
