//! What must hold, checked as it happens. The oracle sees what no node can: what is committed, and what every client was told. It goes by
//! its own replicas, to which the whole log is applied.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::ctx::{Machine, Msg};
use super::net::MS;
use super::topics::{WILLS, matches};
use crate::group::GroupState;
use crate::id::{GroupId, NodeId, NodeRef};
use crate::meta::MetaState;

/// A former connection may go on for so long where nothing is disturbed.
const OVERLAP_MAX: u64 = 4_000 * MS;

/// A connection that a node holds.
#[derive(Debug)]
pub(super) struct Alive {
    pub(super) client: usize,
    pub(super) node: NodeRef,
    pub(super) epoch: u64,
    /// In its queue.
    received: BTreeSet<u64>,
    /// Index of the newest retained message it has of each topic.
    retained: BTreeMap<usize, u64>,
    /// Of each publisher and topic.
    last_number: BTreeMap<(usize, usize), u64>,
}

/// A subscription with its SUBACK.
#[derive(Debug, Clone, Copy)]
struct Sub {
    node: NodeRef,
    since: u64,
    /// The ReadIndex as of which it got what is retained.
    replay: Option<u64>,
}

/// A will that was committed.
#[derive(Debug)]
pub(super) struct WillFate {
    pub(super) client: usize,
    pub(super) epoch: u64,
    pub(super) delay_s: u32,
    pub(super) discarded: bool,
    pub(super) fired: bool,
    /// Subscriptions that have to get it.
    expected: Vec<(usize, usize, u64)>,
}

impl WillFate {
    pub(super) fn new(client: usize, epoch: u64, delay_s: u32) -> WillFate {
        WillFate {
            client,
            epoch,
            delay_s,
            discarded: false,
            fired: false,
            expected: Vec::new(),
        }
    }
}

#[derive(Debug, Default)]
pub struct Oracle {
    pub violation: Option<String>,
    pub(super) meta: MetaState,
    pub(super) groups: BTreeMap<GroupId, GroupState>,
    pub(super) digests: BTreeMap<(GroupId, u64), u32>,
    pub(super) pushed: BTreeMap<(GroupId, NodeRef), Vec<Bytes>>,
    /// Incarnation, sequence and number of commands that were taken of each node.
    pub(super) taken: BTreeMap<(GroupId, NodeId), (u64, u64)>,
    pub(super) replies: BTreeMap<(GroupId, NodeRef), Vec<(u64, Bytes)>>,
    /// Connections by what they proposed, and by the epoch that they got.
    pub(super) opens: BTreeMap<(GroupId, NodeRef, u64), usize>,
    pub(super) by_epoch: BTreeMap<(GroupId, u64), usize>,
    /// When clients connected, and when they went; by connection.
    pub(super) began: BTreeMap<usize, u64>,
    pub(super) gone: BTreeMap<usize, u64>,
    leases: BTreeMap<usize, (NodeRef, u64)>,
    /// How far state time was ahead of a clock that runs a tenth too fast, at most; and its last value.
    pub(super) time_ahead: BTreeMap<GroupId, i64>,
    pub(super) time_last: BTreeMap<GroupId, u64>,
    /// Nodes whose processes carry the time of a group.
    pub carriers: BTreeSet<(GroupId, usize)>,
    pub(super) alive: BTreeMap<usize, Alive>,
    subs: BTreeMap<(usize, usize), Sub>,
    /// Subscriptions that have to have a message before it is acknowledged.
    owed: BTreeMap<u64, Vec<(usize, usize, u64)>>,
    /// The newest committed epoch of each client, and when it was committed.
    pub(super) newest: BTreeMap<usize, (u64, u64)>,
    pub(super) wills: BTreeMap<u64, WillFate>,
    /// Indexes of retained messages, and those that were acknowledged.
    retained: BTreeMap<u64, u64>,
    retained_acked: Vec<(u64, usize)>,
    links: BTreeMap<(NodeRef, NodeRef), (Vec<u64>, usize)>,
    pub counts: Counts,
}

/// How much happened: a simulation in which nothing does proves nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    pub acks: u64,
    pub subacks: u64,
    pub deliveries: u64,
    pub entries: u64,
    pub downs: u64,
    pub wills: u64,
    pub takeovers: u64,
    /// How often the feature level rose.
    pub levels: u64,
}

impl Oracle {
    pub fn new(groups: u32) -> Oracle {
        let groups = (1..=groups).map(|group| (GroupId(group), GroupState::default()));
        Oracle {
            groups: groups.collect(),
            ..Oracle::default()
        }
    }

    /// The first violation is the one that is told.
    pub fn fail(&mut self, promise: &str, what: impl Into<String>) {
        let what = format!("{promise}: {}", what.into());
        self.violation.get_or_insert(what);
    }

    // ---- leases ----

    pub fn lease(&mut self, node: usize, me: NodeRef, deadline: u64) {
        self.leases.insert(node, (me, deadline));
    }

    pub fn process_ended(&mut self, node: usize) {
        self.leases.remove(&node);
        self.carriers.retain(|(_, carrier)| *carrier != node);
    }

    /// After each step: whoever holds a lease is Up.
    pub fn step(&mut self, now: u64, machines: &[Machine]) {
        for (node, (me, deadline)) in &self.leases {
            if *deadline > machines[*node].boot_ns(now) && !self.meta.is_up(*me) {
                let what = format!("P7: {me} holds a lease though it is committed that it is Down");
                self.violation.get_or_insert(what);
            }
        }
    }

    // ---- connections ----

    /// A client connects.
    pub fn began(&mut self, conn: usize, now: u64) {
        self.began.insert(conn, now);
    }

    /// A client wants no more of a connection.
    pub fn gone(&mut self, conn: usize, now: u64) {
        self.gone.entry(conn).or_insert(now);
    }

    pub fn opened(&mut self, conn: usize, client: usize, node: NodeRef, epoch: u64) {
        let alive = Alive {
            client,
            node,
            epoch,
            received: BTreeSet::new(),
            retained: BTreeMap::new(),
            last_number: BTreeMap::new(),
        };
        self.alive.insert(conn, alive);
    }

    pub fn closed(&mut self, conn: usize) {
        self.alive.remove(&conn);
        self.subs.retain(|(of, _), _| *of != conn);
    }

    /// A node acknowledges something to a connection.
    pub fn serves(&mut self, conn: usize, me: NodeRef, (now, calm_since): (u64, u64)) {
        if !self.meta.is_up(me) {
            self.fail(
                "P7",
                format!("{me} acknowledges something though it is Down"),
            );
        }
        let Some(alive) = self.alive.get(&conn) else {
            return;
        };
        let newest = self.newest.get(&alive.client).copied().unwrap_or_default();
        if alive.epoch < newest.0 && now - newest.1.max(calm_since) > OVERLAP_MAX {
            let what = format!("conn {conn} is served though epoch {} has come", newest.0);
            self.fail("P4", what);
        }
    }

    // ---- subscriptions and messages ----

    pub fn subscribed(&mut self, conn: usize, filter: usize, node: NodeRef, now: u64) {
        self.counts.subacks += 1;
        let sub = Sub {
            node,
            since: now,
            replay: None,
        };
        self.subs.entry((conn, filter)).or_insert(sub);
    }

    pub fn unsubscribed(&mut self, conn: usize, filter: usize) {
        self.subs.remove(&(conn, filter));
    }

    pub fn is_subscribed(&self, conn: usize, filter: usize) -> bool {
        self.subs.contains_key(&(conn, filter))
    }

    /// Subscriptions to a topic that nothing excuses.
    pub(super) fn subscribers(&self, topic: usize) -> Vec<(usize, usize, u64)> {
        let subs = self.subs.iter();
        let wanted =
            subs.filter(|((_, filter), sub)| matches(*filter, topic) && self.meta.is_up(sub.node));
        wanted
            .map(|((conn, filter), sub)| (*conn, *filter, sub.since))
            .collect()
    }

    /// Whether a subscription has stood since, at a node that is Up.
    fn stands(&self, (conn, filter, since): (usize, usize, u64)) -> bool {
        let sub = self.subs.get(&(conn, filter));
        sub.is_some_and(|sub| sub.since == since && self.meta.is_up(sub.node))
    }

    fn has(&self, conn: usize, message: u64) -> bool {
        let alive = self.alive.get(&conn);
        alive.is_some_and(|alive| alive.received.contains(&message))
    }

    pub fn matched(&mut self, message: u64, msg: Msg) {
        let owed = self.subscribers(msg.topic);
        self.owed.insert(message, owed);
    }

    pub fn retained(&mut self, message: u64, index: u64) {
        self.retained.insert(message, index);
    }

    pub fn delivered(&mut self, conn: usize, message: u64, msg: Msg) {
        let index = self.retained.get(&message).copied();
        let Some(alive) = self.alive.get_mut(&conn) else {
            return;
        };
        self.counts.deliveries += 1;
        if !alive.received.insert(message) {
            let promise = if msg.is_will { "P5" } else { "P9" };
            return self.fail(promise, format!("conn {conn} got message {message} twice"));
        }
        if let Some(index) = index {
            let newest = alive.retained.entry(msg.topic).or_default();
            *newest = index.max(*newest);
        }
        if msg.is_will {
            return;
        }
        let last = alive.last_number.entry((msg.conn, msg.topic)).or_default();
        let before = std::mem::replace(last, msg.number);
        if before >= msg.number {
            let what = format!("conn {conn} got message {message} after a later one");
            self.fail("P9", what);
        }
    }

    /// PUBACK goes out.
    pub fn acked(&mut self, message: u64, me: NodeRef) {
        self.counts.acks += 1;
        for owed in self.owed.remove(&message).unwrap_or_default() {
            if self.stands(owed) && !self.has(owed.0, message) {
                let (conn, ..) = owed;
                let what =
                    format!("message {message}, acknowledged by {me}, is not at conn {conn}");
                self.fail("P3", what);
            }
        }
        if let Some(index) = self.retained.get(&message) {
            self.retained_acked.push((*index, message as usize));
        }
    }

    pub fn replayed(
        &mut self,
        (conn, filter): (usize, usize),
        index: u64,
        items: &[(usize, u64, u64)],
    ) {
        let (Some(sub), Some(alive)) = (
            self.subs.get_mut(&(conn, filter)),
            self.alive.get_mut(&conn),
        ) else {
            return;
        };
        sub.replay.get_or_insert(index);
        for (topic, _, index) in items {
            let newest = alive.retained.entry(*topic).or_default();
            *newest = (*index).max(*newest);
        }
    }

    // ---- links ----

    pub fn linked(&mut self, way: (NodeRef, NodeRef), message: u64) {
        self.links.entry(way).or_default().0.push(message);
    }

    pub fn arrived(&mut self, way: (NodeRef, NodeRef), message: u64) {
        let (sent, next) = self.links.entry(way).or_default();
        if sent.get(*next) != Some(&message) {
            let (from, to) = way;
            let what = format!("message {message} came from {from} to {to} out of its turn");
            return self.fail("P9", what);
        }
        *next += 1;
    }

    // ---- wills ----

    pub(super) fn will_fired(&mut self, message: u64) {
        let expected = self.subscribers(WILLS);
        self.counts.wills += 1;
        let Some(fate) = self.wills.get_mut(&message) else {
            return self.fail("P5", format!("will {message} was never committed"));
        };
        if fate.fired {
            return self.fail("P5", format!("will {message} fired twice"));
        }
        (fate.fired, fate.expected) = (true, expected);
        let (client, epoch) = (fate.client, fate.epoch);
        let is_connected = |alive: &Alive| {
            alive.client == client && alive.epoch == epoch && self.meta.is_up(alive.node)
        };
        let is_newest = self.newest.get(&client).is_some_and(|n| n.0 == epoch);
        if is_newest && self.alive.values().any(is_connected) {
            self.fail(
                "P5",
                format!("will {message} fired while c{client} is connected"),
            );
        }
    }

    // ---- the end ----

    /// What must hold once all is healed and quiet.
    pub fn settled(&mut self, messages: &[Msg]) {
        let mut clients = BTreeMap::new();
        for (conn, alive) in &self.alive {
            if let Some(other) = clients.insert(alive.client, conn) {
                let what = format!("P4: conns {conn} and {other} of c{}", alive.client);
                self.violation.get_or_insert(what);
            }
        }
        self.check_wills();
        for (index, message) in self.retained_acked.clone() {
            let topic = messages[message].topic;
            for (conn, filter, _) in self.subscribers(topic) {
                self.check_retained((conn, filter), (index, message as u64), topic);
            }
        }
    }

    fn check_wills(&mut self) {
        let mut lost = Vec::new();
        for (message, fate) in &self.wills {
            for expected in &fate.expected {
                let has = self.has(expected.0, *message);
                if !fate.discarded && self.stands(*expected) && !has {
                    lost.push(format!("will {message} never came to conn {}", expected.0));
                }
            }
            let group = super::topics::group_of(fate.client, self.groups.len() as u32);
            let id = super::topics::client_id(fate.client);
            let client = self.groups[&group].client(&id);
            let waits = client.is_some_and(|c| c.epoch == fate.epoch && c.will.is_some());
            if !fate.fired && !fate.discarded && !waits && fate.delay_s == 0 {
                lost.push(format!("will {message} of c{} is lost", fate.client));
            }
        }
        for what in lost {
            self.fail("P5", what);
        }
    }

    fn check_retained(&mut self, sub: (usize, usize), (index, message): (u64, u64), topic: usize) {
        let (conn, _) = sub;
        let Some(Sub {
            replay: Some(replay),
            ..
        }) = self.subs.get(&sub)
        else {
            return;
        };
        let newest = self
            .alive
            .get(&conn)
            .and_then(|alive| alive.retained.get(&topic))
            .copied();
        let is_there = match index > *replay {
            true => self.has(conn, message),
            false => newest >= Some(index),
        };
        if !is_there {
            let what = format!(
                "conn {conn} has retained message {message} (index {index}, read at {replay}) neither live nor replayed"
            );
            self.fail("P6", what);
        }
    }
}

/// Of records in whatever order.
pub fn digest<M: prost::Message>(records: &[M]) -> u32 {
    let mut encoded: Vec<Vec<u8>> = records.iter().map(M::encode_to_vec).collect();
    encoded.sort_unstable();
    let mut hasher = crc32fast::Hasher::new();
    for record in encoded {
        hasher.update(&(record.len() as u64).to_le_bytes());
        hasher.update(&record);
    }
    hasher.finalize()
}
