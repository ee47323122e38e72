//! One client: a task that connects, does what its role says, notes all it sends and receives, and connects again,
//! elsewhere where its node is gone. No message is ever sent twice, so that each has one fate.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotte_tests::packets::{Packet, Publish};
use flotte_tests::wire::prop;
use flotte_tests::{
    Client, Received, Version, connect, disconnect, pingreq, props, puback, pubcomp, publish,
    pubrec, pubrel, subscribe, will,
};
use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::time::MissedTickBehavior;

use crate::history::{Ack, BRIEF_S, Body, Side, What};
use crate::load::{
    BRIEF_TOPICS, KEPT_TOPICS, Mode, SHARE, World, brief_topic, kept_topic, number, until,
};

/// How long a connection may be silent, pings unanswered, before its client gives it up.
const PATIENCE: Duration = Duration::from_secs(12);
/// The same for those whose work cannot wait: a paused node keeps its sockets open.
const SHORT_PATIENCE: Duration = Duration::from_secs(4);
/// Messages that a publisher has under way at most.
const UNDER_WAY_MAX: usize = 20;
const TICK: Duration = Duration::from_millis(150);
/// A client comes back no sooner.
const BACKOFF: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Hears everything but what others subscribe to at once.
    Listener,
    /// Subscribes to a new topic at every turn; a publisher publishes there as soon as SUBACK came.
    Churner,
    Publisher,
    /// Has a will, and leaves with or without goodbye.
    Mortal,
    /// Shares its client id with another client at another node.
    Twin,
    /// Shares a subscription with all others of its kind, and stays.
    Member,
    /// The same, and leaves at times, with or without goodbye.
    Casual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roams {
    Everywhere,
    /// It waits for its home.
    Nowhere,
}

/// One client.
pub struct Actor {
    pub world: Arc<World>,
    pub name: String,
    pub role: Role,
    pub version: Version,
    /// The node it connects to first, from 0.
    pub home: usize,
    /// Where it goes when its home does not take it.
    pub roams: Roams,
    pub rng: StdRng,
    /// Counts its ticks over all connections.
    pub turn: u64,
}

/// One connection of an actor.
struct Link {
    client: Client,
    number: u32,
    /// Its messages under way, by packet id.
    under_way: BTreeMap<u16, u64>,
    /// Its SUBSCRIBEs under way.
    asked: BTreeMap<u16, String>,
    heard: Instant,
    pinged: Instant,
}

/// The connection is over, and it is noted.
struct Gone;

impl Actor {
    /// Connects again and again until all is over.
    pub async fn run(mut self) {
        let mut place = self.home;
        while self.world.mode() != Mode::Over {
            match self.open(place).await {
                Some(mut link) => {
                    let _: Result<(), Gone> = self.live(&mut link).await;
                    place = self.home;
                }
                None if self.roams == Roams::Nowhere => {}
                None => place = (place + 1) % self.world.addresses.len(),
            }
            if self.role == Role::Twin {
                self.wait_to_strike_back().await;
            } else {
                tokio::time::sleep(BACKOFF).await;
            }
        }
    }

    /// Twins would drive each other out without end: each waits a while, and none comes back once it is quiet.
    async fn wait_to_strike_back(&mut self) {
        self.home = self.rng.random_range(0..self.world.addresses.len());
        let pause = Duration::from_millis(self.rng.random_range(500..3_000));
        let mut mode = self.world.mode.subscribe();
        let _ = tokio::time::timeout(pause, until(&mut mode, Mode::Quiet)).await;
        if self.world.mode() != Mode::Load {
            until(&mut mode, Mode::Over).await;
        }
    }

    /// Connects to a node, and says whether that was accepted.
    async fn open(&mut self, place: usize) -> Option<Link> {
        let address = self.world.addresses[place];
        let mut client = Client::try_dial(address, self.version).await.ok()?;
        client.name.clone_from(&self.name);
        let number = self.world.recorder.fresh_connection();
        let mut packet = connect(&self.name);
        let mut last = None;
        if self.role == Role::Mortal {
            let (message, topic) = (
                self.world.recorder.fresh_message(),
                format!("wills/{}", self.name),
            );
            packet = packet.will(will(&topic, message.to_string()).qos(2));
            last = Some((message, topic));
        }
        let connecting = What::Connecting {
            client: self.name.clone(),
            node: u8::try_from(place + 1).expect("few nodes"),
            will: last,
        };
        self.world.note(number, connecting);
        let mut link = Link {
            client,
            number,
            under_way: BTreeMap::new(),
            asked: BTreeMap::new(),
            heard: Instant::now(),
            pinged: Instant::now(),
        };
        self.send(&mut link, packet).await.ok()?;
        self.is_accepted(&mut link).await.then_some(link)
    }

    /// Waits for CONNACK.
    async fn is_accepted(&mut self, link: &mut Link) -> bool {
        let by = match link.client.next_or_end().await {
            Ok(Some(answer)) if answer.kind() == 2 && answer.reason() == 0 => {
                let session_present = answer.session_present();
                self.world
                    .note(link.number, What::Connected { session_present });
                link.client.patience = Duration::from_secs(3_600);
                return true;
            }
            Ok(Some(answer)) if answer.kind() == 2 => {
                self.world.note(
                    link.number,
                    What::Refused {
                        reason: answer.reason(),
                    },
                );
                Side::Broker
            }
            Ok(Some(answer)) => panic!("{}: no CONNACK: {answer:?}", self.name),
            Ok(None) => Side::Broker,
            Err(_) => Side::Client,
        };
        let _: Gone = self.ended(link, by);
        false
    }

    /// Lives on a connection until it is over.
    async fn live(&mut self, link: &mut Link) -> Result<(), Gone> {
        self.greet(link).await?;
        let (world, wanted_here) = (Arc::clone(&self.world), self.role == Role::Publisher);
        let mut mode = world.mode.subscribe();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                packet = link.client.next_or_end() => match packet {
                    Ok(Some(packet)) => self.take(link, &packet).await?,
                    Ok(None) | Err(_) => return Err(self.ended(link, Side::Broker)),
                },
                () = world.wants.notified(), if wanted_here => {
                    if let Some(topic) = world.take_wanted() {
                        self.publish(link, publish(topic), 1, Body::Number).await?;
                    }
                }
                _ = ticks.tick() => self.act(link).await?,
                () = until(&mut mode, Mode::Over) => return self.say_goodbye(link).await,
            }
        }
    }

    async fn greet(&mut self, link: &mut Link) -> Result<(), Gone> {
        let filters: &[&str] = match self.role {
            Role::Listener => &["load/#", "kept/#", "wills/#"],
            Role::Twin => &["load/+/1"],
            Role::Member | Role::Casual => &[SHARE],
            Role::Churner | Role::Publisher | Role::Mortal => &[],
        };
        for filter in filters {
            self.subscribe(link, (*filter).to_owned()).await?;
        }
        Ok(())
    }

    /// One turn.
    async fn act(&mut self, link: &mut Link) -> Result<(), Gone> {
        self.turn += 1;
        let patience = match self.role {
            Role::Listener | Role::Twin | Role::Member => PATIENCE,
            Role::Churner | Role::Publisher | Role::Mortal | Role::Casual => SHORT_PATIENCE,
        };
        if link.heard.elapsed() > patience {
            return Err(self.ended(link, Side::Client));
        }
        if link.pinged.elapsed() > Duration::from_secs(1) {
            link.pinged = Instant::now();
            self.send(link, pingreq()).await?;
        }
        if self.world.mode() != Mode::Load {
            return Ok(());
        }
        let slow = self.turn.is_multiple_of(4);
        match self.role {
            Role::Publisher => self.publish_next(link).await,
            Role::Twin | Role::Mortal if slow => {
                let topic = format!("load/{}/1", self.name);
                self.publish(link, publish(topic), 1, Body::Number).await?;
                if self.role == Role::Mortal {
                    self.perhaps_die(link).await
                } else {
                    Ok(())
                }
            }
            Role::Casual if slow => self.perhaps_die(link).await,
            Role::Churner if slow && link.asked.is_empty() => {
                let topic = format!("churn/{}/{}", self.name, self.turn);
                self.subscribe(link, topic).await
            }
            _ => Ok(()),
        }
    }

    /// Retained messages and work for members now and then, else something for the listeners.
    async fn publish_next(&mut self, link: &mut Link) -> Result<(), Gone> {
        match self.turn % 10 {
            0 | 5 => {
                let topic = kept_topic(self.rng.random_range(0..KEPT_TOPICS));
                let packet = publish(topic).retain();
                let deletes = self.rng.random_range(0..4) == 0;
                let body = if deletes { Body::Nothing } else { Body::Number };
                self.publish(link, packet, 1, body).await
            }
            2 | 6 => {
                let topic = format!("jobs/{}", self.name);
                self.publish(link, publish(topic), 1, Body::Number).await
            }
            8 if self.version == Version::V5 => {
                let topic = brief_topic(self.rng.random_range(0..BRIEF_TOPICS));
                let expiry = props().u32(prop::MESSAGE_EXPIRY, BRIEF_S);
                let packet = publish(topic).retain().props(expiry);
                self.publish(link, packet, 1, Body::Brief).await
            }
            _ => {
                let qos = u8::try_from(self.turn % 3).expect("below 3");
                let topic = format!("load/{}/{qos}", self.name);
                self.publish(link, publish(topic), qos, Body::Number).await
            }
        }
    }

    /// About once in four seconds: with a goodbye, or without.
    async fn perhaps_die(&mut self, link: &mut Link) -> Result<(), Gone> {
        match self.rng.random_range(0..14) {
            0 => self.say_goodbye(link).await,
            1 => Err(self.ended(link, Side::Client)),
            _ => Ok(()),
        }
    }

    /// DISCONNECT, and whatever comes until the broker closes.
    async fn say_goodbye(&mut self, link: &mut Link) -> Result<(), Gone> {
        self.world.note(link.number, What::Leaving);
        self.send(link, disconnect()).await?;
        link.client.patience = SHORT_PATIENCE;
        loop {
            match link.client.next_or_end().await {
                Ok(Some(packet)) => self.receive(link, &packet),
                Ok(None) => return Err(self.ended(link, Side::Broker)),
                Err(_) => return Err(self.ended(link, Side::Client)),
            }
        }
    }

    async fn subscribe(&mut self, link: &mut Link, filter: String) -> Result<(), Gone> {
        let id = link.client.fresh_id();
        let packet = subscribe(id).to(&filter, 2);
        self.world.note(
            link.number,
            What::Subscribing {
                filter: filter.clone(),
                qos: 2,
            },
        );
        link.asked.insert(id, filter);
        self.send(link, packet).await
    }

    async fn publish(
        &mut self,
        link: &mut Link,
        packet: Publish,
        qos: u8,
        body: Body,
    ) -> Result<(), Gone> {
        if link.under_way.len() >= UNDER_WAY_MAX {
            return Ok(());
        }
        let message = self.world.recorder.fresh_message();
        let id = link.client.fresh_id();
        let packet = match body {
            Body::Number | Body::Brief => packet.payload(message.to_string()),
            Body::Nothing => packet,
        };
        let packet = packet.qos_bits(qos, id);
        if qos > 0 {
            link.under_way.insert(id, message);
        }
        let what = What::Published {
            message,
            topic: packet.topic(),
            qos,
            retain: packet.is_retained(),
            body,
        };
        self.world.note(link.number, what);
        self.send(link, packet).await
    }

    async fn take(&mut self, link: &mut Link, packet: &Received) -> Result<(), Gone> {
        link.heard = Instant::now();
        self.receive(link, packet);
        match (
            packet.kind(),
            if packet.is_publish() { packet.qos() } else { 0 },
        ) {
            (3, 1) => self.send(link, puback(packet.packet_id())).await,
            (3, 2) => self.send(link, pubrec(packet.packet_id())).await,
            (5, _) if packet.reason() < 0x80 => self.send(link, pubrel(packet.packet_id())).await,
            (6, _) => self.send(link, pubcomp(packet.packet_id())).await,
            _ => Ok(()),
        }
    }

    /// Notes what came.
    fn receive(&mut self, link: &mut Link, packet: &Received) {
        let what = match packet.kind() {
            // A delete says no number.
            3 if packet.payload().is_empty() => return,
            3 => What::Delivered {
                message: number(packet),
                topic: packet.topic(),
                qos: packet.qos(),
                dup: packet.dup(),
                retain: packet.retain(),
            },
            4 => acked(link, packet, Ack::Puback),
            5 => acked(link, packet, Ack::Pubrec),
            7 => acked(link, packet, Ack::Pubcomp),
            9 => {
                let filter = link
                    .asked
                    .remove(&packet.packet_id())
                    .expect("SUBACK of a SUBSCRIBE");
                let code = packet.codes()[0];
                self.world.note(
                    link.number,
                    What::Subscribed {
                        filter: filter.clone(),
                        code,
                    },
                );
                if self.role == Role::Churner && code < 0x80 {
                    self.world.want(filter);
                }
                return;
            }
            14 => What::SentAway {
                reason: packet.reason(),
            },
            6 | 13 => return,
            _ => panic!("{}: unexpected {packet:?}", self.name),
        };
        self.world.note(link.number, what);
    }

    async fn send(&mut self, link: &mut Link, packet: impl Packet) -> Result<(), Gone> {
        let usual = std::mem::replace(&mut link.client.patience, SHORT_PATIENCE);
        let sent = link.client.try_send(packet).await;
        link.client.patience = usual;
        match sent {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::TimedOut => {
                Err(self.ended(link, Side::Client))
            }
            Err(_) => Err(self.ended(link, Side::Broker)),
        }
    }

    fn ended(&self, link: &Link, by: Side) -> Gone {
        self.world.note(link.number, What::Ended { by });
        Gone
    }
}

/// An acknowledgement; the last one of a message frees its packet id.
fn acked(link: &mut Link, packet: &Received, ack: Ack) -> What {
    let (id, reason) = (packet.packet_id(), packet.reason());
    let message = *link
        .under_way
        .get(&id)
        .expect("an acknowledgement of a message under way");
    if ack != Ack::Pubrec || reason >= 0x80 {
        link.under_way.remove(&id);
    }
    What::Acked {
        message,
        ack,
        reason,
    }
}
