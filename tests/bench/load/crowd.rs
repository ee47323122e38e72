//! All clients of a load: connects and subscribes them, sends, reads, answers, and hands every delivery to the tally.
//! It does not decide when to send.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rand::seq::SliceRandom;
use rand::{SeedableRng, rngs::SmallRng};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use crate::client::{Client, Flushed};
use crate::link::Transport;
use crate::plan::Plan;
use crate::tally::{Receipt, Tally};
use crate::wire::{self, Packet, QoS, Stamp};

/// Handshakes under way at once: below the accept queue of any broker.
const HANDSHAKES_MAX: usize = 64;
/// Filters in one SUBSCRIBE.
const FILTERS_MAX: u32 = 100;
const READ_BYTES: usize = 256 * 1024;
const EVENTS_MAX: usize = 1024;
const SETUP_MAX: Duration = Duration::from_secs(120);
/// Packet ids in use at once, of a space of 65,535.
const UNACKNOWLEDGED_MAX: u64 = 60_000;

enum Role {
    Subscriber { receipt: Receipt, asked: u32 },
    Publisher { sent: u64, acknowledged: u64 },
}

struct Peer {
    client: Client,
    role: Role,
}

/// The listeners of a broker, or of the nodes of a cluster.
#[derive(Clone)]
pub struct Listeners {
    /// Subscribers are spread over these; never empty.
    pub subscribers: Vec<SocketAddr>,
    /// The same for publishers.
    pub publishers: Vec<SocketAddr>,
}

impl Listeners {
    pub fn one(addr: SocketAddr) -> Self {
        Self {
            subscribers: vec![addr],
            publishers: vec![addr],
        }
    }
}

fn spread(addrs: &[SocketAddr], number: u32) -> SocketAddr {
    addrs[number as usize % addrs.len()]
}

pub struct Crowd {
    pub plan: Plan,
    pub tally: Tally,
    qos: QoS,
    payload_bytes: usize,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    /// In the order of connecting.
    peers: Vec<Peer>,
    /// Where in `peers` each publisher stands.
    publishers: Vec<usize>,
    /// Peers with output written in this turn, flushed at its end.
    dirty: Vec<usize>,
    /// Peers whose handshake ended.
    ready: usize,
    epoch: Instant,
    buffer: Vec<u8>,
    topic: Vec<u8>,
    payload: Vec<u8>,
}

impl Crowd {
    /// Connects and subscribes everyone, in an order that is shuffled (always the same way), as the order must not
    /// decide which thread of the broker serves whom.
    pub fn connect(
        plan: Plan,
        (listeners, transport): (&Listeners, &Transport),
        qos: QoS,
        payload_bytes: usize,
    ) -> anyhow::Result<Self> {
        let mut crowd = Self {
            tally: Tally::new(&plan, qos),
            qos,
            payload_bytes,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(EVENTS_MAX),
            peers: Vec::new(),
            publishers: vec![0; plan.publishers() as usize],
            dirty: Vec::new(),
            ready: 0,
            epoch: Instant::now(),
            buffer: vec![0; READ_BYTES],
            topic: Vec::new(),
            payload: Vec::new(),
            plan,
        };
        let mut order: Vec<u32> = (0..crowd.plan.connections()).collect();
        order.shuffle(&mut SmallRng::seed_from_u64(1));
        for number in order {
            crowd.open(listeners, transport, number)?;
            while crowd.peers.len() - crowd.ready >= HANDSHAKES_MAX {
                crowd.turn_of_setup()?;
            }
        }
        while crowd.ready < crowd.peers.len() {
            crowd.turn_of_setup()?;
        }
        Ok(crowd)
    }

    /// Time since the first connection was opened; stamps count from there.
    pub fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Writes the next message of a stream into its publisher's output, which the next turn flushes.
    pub fn send(&mut self, stream: u32, due: Duration) -> anyhow::Result<()> {
        let due_ns = nanos(due);
        let number = self.tally.send(stream, due_ns, nanos(self.now()));
        self.plan.write_topic(stream, number, &mut self.topic);
        let stamp = Stamp {
            stream,
            number,
            due_ns,
        };
        stamp.write(&mut self.payload, self.payload_bytes);
        let index = self.publishers[self.plan.publisher_of_stream(stream) as usize];
        let Peer { client, role } = &mut self.peers[index];
        let Role::Publisher { sent, acknowledged } = role else {
            bail!("stream {stream} has no publisher")
        };
        ensure!(
            self.qos == QoS::Zero || *sent - *acknowledged < UNACKNOWLEDGED_MAX,
            "the broker acknowledges nothing any more"
        );
        let id = (*sent % u64::from(u16::MAX)) as u16 + 1;
        *sent += 1;
        if client.output.is_empty() {
            self.dirty.push(index);
        }
        wire::write_publish(&mut client.output, &self.topic, self.qos, id, &self.payload);
        Ok(())
    }

    /// Flushes what was sent, waits for sockets until `deadline`, reads and answers.
    pub fn turn(&mut self, deadline: Duration) -> anyhow::Result<()> {
        self.flush_dirty()?;
        let wait = deadline.saturating_sub(self.now());
        let timeout = Timespec::try_from(wait).context("a wait beyond all time")?;
        self.events.clear();
        let room = spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, room, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for sockets"),
        }
        let events = std::mem::take(&mut self.events);
        for event in &events {
            let (flags, index) = (event.flags, event.data.u64() as usize);
            if flags.contains(epoll::EventFlags::OUT) {
                self.flush(index)?;
            }
            if flags.intersects(!epoll::EventFlags::OUT) {
                self.read(index)?;
            }
        }
        self.events = events;
        self.flush_dirty()
    }

    /// Copies that did not reach their subscriber.
    pub fn missing(&self) -> u64 {
        let missing = |peer: &Peer| match &peer.role {
            Role::Subscriber { receipt, .. } => self.tally.missing(receipt),
            Role::Publisher { .. } => 0,
        };
        self.peers.iter().map(missing).sum()
    }

    /// Publishes at QoS 1 and 2 whose handshake did not end.
    pub fn unacknowledged(&self) -> u64 {
        let open = |&index: &usize| match &self.peers[index].role {
            Role::Publisher { sent, acknowledged } if self.qos != QoS::Zero => sent - acknowledged,
            _ => 0,
        };
        self.publishers.iter().map(open).sum()
    }

    /// Subscribers have the first numbers, publishers the rest.
    fn open(
        &mut self,
        listeners: &Listeners,
        transport: &Transport,
        number: u32,
    ) -> anyhow::Result<()> {
        let index = self.peers.len();
        let (addr, role) = match number.checked_sub(self.plan.subscribers()) {
            None => {
                let role = Role::Subscriber {
                    receipt: Receipt::new(self.plan.stream_of_subscriber(number)),
                    asked: 0,
                };
                (spread(&listeners.subscribers, number), role)
            }
            Some(publisher) => {
                self.publishers[publisher as usize] = index;
                let role = Role::Publisher {
                    sent: 0,
                    acknowledged: 0,
                };
                (spread(&listeners.publishers, publisher), role)
            }
        };
        let mut client = Client::connect(addr, number, transport)?;
        wire::write_connect(&mut client.output, &format!("load-{number}"));
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&self.epoll, &client.stream, data, epoll::EventFlags::IN)?;
        self.peers.push(Peer { client, role });
        self.flush(index)
    }

    fn turn_of_setup(&mut self) -> anyhow::Result<()> {
        let now = self.now();
        ensure!(
            now < SETUP_MAX,
            "only {} of {} handshakes ended",
            self.ready,
            self.peers.len()
        );
        self.turn(now + Duration::from_secs(1))
    }

    fn flush_dirty(&mut self) -> anyhow::Result<()> {
        let mut dirty = std::mem::take(&mut self.dirty);
        for index in dirty.drain(..) {
            self.flush(index)?;
        }
        self.dirty = dirty;
        Ok(())
    }

    fn flush(&mut self, index: usize) -> anyhow::Result<()> {
        let client = &mut self.peers[index].client;
        let blocked = client.flush()? == Flushed::Blocked;
        if blocked != client.watches_write {
            client.watches_write = blocked;
            let mut flags = epoll::EventFlags::IN;
            flags.set(epoll::EventFlags::OUT, blocked);
            let data = epoll::EventData::new_u64(index as u64);
            epoll::modify(&self.epoll, &client.stream, data, flags)?;
        }
        Ok(())
    }

    /// Reads once, as epoll tells again what was left; takes every whole packet.
    fn read(&mut self, index: usize) -> anyhow::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let client = &mut self.peers[index].client;
        let bytes = client.read(&mut buffer)?;
        let had_output = !client.output.is_empty();
        let mut partial = std::mem::take(&mut client.partial);
        if partial.is_empty() {
            let used = self.take_packets(index, &buffer[..bytes])?;
            partial.extend_from_slice(&buffer[used..bytes]);
        } else {
            partial.extend_from_slice(&buffer[..bytes]);
            let used = self.take_packets(index, &partial)?;
            partial.drain(..used);
        }
        self.buffer = buffer;
        let client = &mut self.peers[index].client;
        client.partial = partial;
        // Layers may have something to say by themselves.
        if !had_output && !client.output.is_empty() || !client.link.is_plain() {
            self.dirty.push(index);
        }
        Ok(())
    }

    fn take_packets(&mut self, index: usize, input: &[u8]) -> anyhow::Result<usize> {
        let now_ns = nanos(self.now());
        let mut used = 0;
        while let Some((packet, length)) = wire::decode(&input[used..])? {
            self.take_packet(index, packet, &input[used..used + length], now_ns)?;
            used += length;
        }
        Ok(used)
    }

    fn take_packet(
        &mut self,
        index: usize,
        packet: Packet,
        bytes: &[u8],
        now_ns: u64,
    ) -> anyhow::Result<()> {
        let Peer { client, role } = &mut self.peers[index];
        let output = &mut client.output;
        match (packet, role) {
            (Packet::ConnAck { code }, _) if code != 0 => bail!("CONNACK says no: code {code}"),
            (Packet::ConnAck { .. }, Role::Publisher { .. }) => self.ready += 1,
            (Packet::ConnAck { .. }, Role::Subscriber { .. }) => self.subscribe(index),
            (Packet::SubAck { codes }, Role::Subscriber { asked, .. }) => {
                let granted = bytes[codes].iter().all(|&code| code == self.qos as u8);
                ensure!(granted, "the broker granted less than was asked for");
                if *asked < self.plan.filters_per_subscriber() {
                    self.subscribe(index);
                } else {
                    self.ready += 1;
                }
            }
            (Packet::Publish { qos, id, payload }, Role::Subscriber { receipt, .. }) => {
                match qos {
                    QoS::Zero => {}
                    QoS::One => wire::write_ack(output, wire::PUBACK, id),
                    QoS::Two => wire::write_ack(output, wire::PUBREC, id),
                }
                self.tally.deliver(receipt, qos, &bytes[payload], now_ns);
            }
            (Packet::PubRel { id }, Role::Subscriber { .. }) => {
                wire::write_ack(output, wire::PUBCOMP, id);
            }
            (Packet::PubRec { id }, Role::Publisher { .. }) => {
                wire::write_ack(output, wire::PUBREL, id);
            }
            (
                Packet::PubAck { .. } | Packet::PubComp { .. },
                Role::Publisher { acknowledged, .. },
            ) => *acknowledged += 1,
            (packet, _) => bail!("the broker sent {packet:?} to the wrong client"),
        }
        Ok(())
    }

    /// Asks for the next filters of a subscriber.
    fn subscribe(&mut self, index: usize) {
        let Peer { client, role } = &mut self.peers[index];
        let Role::Subscriber { receipt, asked } = role else {
            return;
        };
        let first = *asked;
        *asked = self.plan.filters_per_subscriber().min(first + FILTERS_MAX);
        let filters: Vec<Vec<u8>> = (first..*asked)
            .map(|number| {
                let mut filter = Vec::new();
                self.plan
                    .write_topic(receipt.stream, u64::from(number), &mut filter);
                filter
            })
            .collect();
        let id = (first / FILTERS_MAX % u32::from(u16::MAX)) as u16 + 1;
        wire::write_subscribe(&mut client.output, id, &filters, self.qos);
    }
}

pub fn nanos(time: Duration) -> u64 {
    time.as_nanos() as u64
}
