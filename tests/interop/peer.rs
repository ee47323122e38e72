//! A client of rumqttc whose event loop runs in a task of its own and tells what it sees. One face for both versions; it
//! reconnects as the event loop does when it is polled on.

use std::net::SocketAddr;
use std::time::Duration;

use rumqttc::{AsyncClient, Event, EventLoop, LastWill, MqttOptions, Outgoing, Packet, QoS, v5};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use flotte_tests::fresh;

use crate::PATIENCE;

/// More than any test leaves unread.
const SEEN_MAX: usize = 10_000;
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Between attempts to connect.
const RETRY: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V311,
    V5,
}

/// rumqttc has a type for each version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::enum_variant_names, reason = "the names of the standard")]
pub enum Level {
    AtMostOnce,
    AtLeastOnce,
    ExactlyOnce,
}

#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A fresh one where none is given.
    pub id: Option<String>,
    pub keep_session: bool,
    /// The topic of a will whose payload is the client identifier.
    pub will: Option<String>,
}

/// What the event loop told.
#[derive(Debug)]
pub enum Seen {
    Connected {
        session_present: bool,
    },
    Subscribed,
    /// A publish of this client is complete.
    Published,
    Message(Message),
    /// The connection ended; the event loop tries again.
    Ended(String),
}

#[derive(Debug)]
pub struct Message {
    pub topic: String,
    pub payload: String,
    pub level: Level,
    pub retain: bool,
}

enum Client {
    V311(AsyncClient),
    V5(v5::AsyncClient),
}

pub struct Peer {
    id: String,
    client: Client,
    events: JoinHandle<()>,
    seen: mpsc::Receiver<Seen>,
    session_present: bool,
}

impl Peer {
    /// Connects and waits for the CONNACK.
    pub async fn connect(version: Version, node: SocketAddr, options: Options) -> Self {
        let id = options.id.clone().unwrap_or_else(|| fresh("rumqttc"));
        let (tell, seen) = mpsc::channel(SEEN_MAX);
        let (client, events) = match version {
            Version::V311 => {
                let (client, events) = AsyncClient::new(options_v311(&id, node, &options), 100);
                (
                    Client::V311(client),
                    tokio::spawn(follow_v311(events, tell)),
                )
            }
            Version::V5 => {
                let (client, events) = v5::AsyncClient::new(options_v5(&id, node, &options), 100);
                (Client::V5(client), tokio::spawn(follow_v5(events, tell)))
            }
        };
        let mut peer = Self {
            id,
            client,
            events,
            seen,
            session_present: false,
        };
        peer.session_present = match peer.next().await {
            Seen::Connected { session_present } => session_present,
            other => panic!("no CONNACK but {other:?}"),
        };
        peer
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn session_present(&self) -> bool {
        self.session_present
    }

    /// Returns once the SUBACK is there.
    pub async fn subscribe(&mut self, filter: &str, level: Level) {
        match &self.client {
            Client::V311(client) => client
                .subscribe(filter, qos_v311(level))
                .await
                .expect("it runs"),
            Client::V5(client) => client
                .subscribe(filter, qos_v5(level))
                .await
                .expect("it runs"),
        }
        match self.next().await {
            Seen::Subscribed => {}
            other => panic!("no SUBACK but {other:?}"),
        }
    }

    /// Returns once the handshake is complete, or the message is sent where there is none.
    pub async fn publish(&mut self, topic: &str, level: Level, retain: bool, text: &str) {
        let text = text.to_owned();
        match &self.client {
            Client::V311(client) => {
                let sent = client.publish(topic, qos_v311(level), retain, text);
                sent.await.expect("it runs");
            }
            Client::V5(client) => {
                let sent = client.publish(topic, qos_v5(level), retain, text);
                sent.await.expect("it runs");
            }
        }
        match self.next().await {
            Seen::Published => {}
            other => panic!("the publish is not answered: {other:?}"),
        }
    }

    /// The next message.
    pub async fn message(&mut self) -> Message {
        match self.next().await {
            Seen::Message(message) => message,
            other => panic!("no message but {other:?}"),
        }
    }

    /// Skips to something.
    pub async fn wait_for(&mut self, wanted: impl Fn(&Seen) -> bool) -> Seen {
        loop {
            let seen = self.next().await;
            if wanted(&seen) {
                return seen;
            }
        }
    }

    /// Ends with a DISCONNECT.
    pub async fn disconnect(mut self) {
        match &self.client {
            Client::V311(client) => client.disconnect().await.expect("it runs"),
            Client::V5(client) => client.disconnect().await.expect("it runs"),
        }
        self.wait_for(|seen| matches!(seen, Seen::Ended(_))).await;
    }

    /// Ends without a DISCONNECT.
    pub fn vanish(self) {}

    async fn next(&mut self) -> Seen {
        let seen = timeout(PATIENCE, self.seen.recv()).await;
        let seen = seen.unwrap_or_else(|_| panic!("{} has waited for {PATIENCE:?}", self.id));
        let seen = seen.expect("the event loop runs");
        if let Seen::Ended(why) = &seen {
            eprintln!("{} lost its connection: {why}", self.id);
        }
        seen
    }
}

/// The socket closes with the event loop.
impl Drop for Peer {
    fn drop(&mut self) {
        self.events.abort();
    }
}

fn options_v311(id: &str, node: SocketAddr, options: &Options) -> MqttOptions {
    let mut made = MqttOptions::new(id, node.ip().to_string(), node.port());
    made.set_keep_alive(KEEP_ALIVE);
    made.set_clean_session(!options.keep_session);
    if let Some(topic) = &options.will {
        made.set_last_will(LastWill::new(topic, id, QoS::AtLeastOnce, false));
    }
    made
}

fn options_v5(id: &str, node: SocketAddr, options: &Options) -> v5::MqttOptions {
    let mut made = v5::MqttOptions::new(id, node.ip().to_string(), node.port());
    made.set_keep_alive(KEEP_ALIVE);
    made.set_clean_start(!options.keep_session);
    if options.keep_session {
        made.set_session_expiry_interval(Some(300));
    }
    if let Some(topic) = &options.will {
        let qos = v5::mqttbytes::QoS::AtLeastOnce;
        let will = v5::mqttbytes::v5::LastWill::new(topic, id, qos, false, None);
        made.set_last_will(will);
    }
    made
}

async fn follow_v311(mut events: EventLoop, tell: mpsc::Sender<Seen>) {
    loop {
        let seen = match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(ack))) => Seen::Connected {
                session_present: ack.session_present,
            },
            Ok(Event::Incoming(Packet::SubAck(_))) => Seen::Subscribed,
            Ok(Event::Incoming(Packet::PubAck(_) | Packet::PubComp(_))) => Seen::Published,
            // Packet id 0: nothing answers it.
            Ok(Event::Outgoing(Outgoing::Publish(0))) => Seen::Published,
            Ok(Event::Incoming(Packet::Publish(message))) => Seen::Message(Message {
                topic: message.topic,
                payload: text(&message.payload),
                level: match message.qos {
                    QoS::AtMostOnce => Level::AtMostOnce,
                    QoS::AtLeastOnce => Level::AtLeastOnce,
                    QoS::ExactlyOnce => Level::ExactlyOnce,
                },
                retain: message.retain,
            }),
            Ok(_) => continue,
            Err(error) => Seen::Ended(format!("{error:?}")),
        };
        if !told(&tell, seen).await {
            return;
        }
    }
}

async fn follow_v5(mut events: v5::EventLoop, tell: mpsc::Sender<Seen>) {
    use v5::mqttbytes::v5::Packet;
    loop {
        let seen = match events.poll().await {
            Ok(v5::Event::Incoming(Packet::ConnAck(ack))) => Seen::Connected {
                session_present: ack.session_present,
            },
            Ok(v5::Event::Incoming(Packet::SubAck(_))) => Seen::Subscribed,
            Ok(v5::Event::Incoming(Packet::PubAck(_) | Packet::PubComp(_))) => Seen::Published,
            // Packet id 0: nothing answers it.
            Ok(v5::Event::Outgoing(Outgoing::Publish(0))) => Seen::Published,
            Ok(v5::Event::Incoming(Packet::Publish(message))) => Seen::Message(Message {
                topic: text(&message.topic),
                payload: text(&message.payload),
                level: match message.qos {
                    v5::mqttbytes::QoS::AtMostOnce => Level::AtMostOnce,
                    v5::mqttbytes::QoS::AtLeastOnce => Level::AtLeastOnce,
                    v5::mqttbytes::QoS::ExactlyOnce => Level::ExactlyOnce,
                },
                retain: message.retain,
            }),
            Ok(_) => continue,
            Err(error) => Seen::Ended(format!("{error:?}")),
        };
        if !told(&tell, seen).await {
            return;
        }
    }
}

/// Whether anyone still listens. After the end of a connection there is a pause.
async fn told(tell: &mpsc::Sender<Seen>, seen: Seen) -> bool {
    let ended = matches!(seen, Seen::Ended(_));
    let heard = tell.send(seen).await.is_ok();
    if ended {
        sleep(RETRY).await;
    }
    heard
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn qos_v311(level: Level) -> QoS {
    match level {
        Level::AtMostOnce => QoS::AtMostOnce,
        Level::AtLeastOnce => QoS::AtLeastOnce,
        Level::ExactlyOnce => QoS::ExactlyOnce,
    }
}

fn qos_v5(level: Level) -> v5::mqttbytes::QoS {
    match level {
        Level::AtMostOnce => v5::mqttbytes::QoS::AtMostOnce,
        Level::AtLeastOnce => v5::mqttbytes::QoS::AtLeastOnce,
        Level::ExactlyOnce => v5::mqttbytes::QoS::ExactlyOnce,
    }
}
