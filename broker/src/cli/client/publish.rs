//! `flotte pub`: publishes what its source gives, at any QoS, and ends when the broker has answered for all of it.

use std::collections::HashMap;
use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use flotte_mqtt::packet::{Packet, PubRel, Publish};
use flotte_mqtt::property::Properties;
use flotte_mqtt::reason::ReasonCode;
use flotte_mqtt::{ByteStr, PacketId, QoS};

use super::connection::Connection;
use super::options::{ConnectOptions, parse_qos};
use super::source::Source;
use super::{ClientError, block_on};
use crate::cli::Exit;
use crate::cli::output::tell;

/// How many QoS 1 and 2 messages are under way at most, also where the broker takes more.
const IN_FLIGHT_MAX: u16 = 100;

#[derive(Debug, Args)]
#[command(disable_help_flag = true, disable_version_flag = true)]
#[command(group = clap::ArgGroup::new("payload").required(true))]
pub struct PubArguments {
    #[command(flatten)]
    connect: ConnectOptions,
    /// The topic.
    #[arg(short, long)]
    topic: String,
    /// The message.
    #[arg(short, long, group = "payload", allow_hyphen_values = true)]
    message: Option<String>,
    /// Send the content of a file as one message.
    #[arg(short, long, group = "payload")]
    file: Option<PathBuf>,
    /// Send each line of stdin as a message.
    #[arg(short = 'l', long, group = "payload")]
    stdin_line: bool,
    /// Send all of stdin as one message.
    #[arg(short = 's', long, group = "payload")]
    stdin_file: bool,
    /// Send an empty message; with -r it clears what is retained.
    #[arg(short, long, group = "payload")]
    null_message: bool,
    /// The quality of service: 0, 1 or 2.
    #[arg(short, long, value_name = "QOS", default_value = "0", value_parser = parse_qos)]
    qos: QoS,
    /// Let the broker keep the message for those who subscribe later.
    #[arg(short, long)]
    retain: bool,
}

impl PubArguments {
    /// Publishes.
    pub fn run(self) -> Result<Exit, ClientError> {
        self.connect.check()?;
        let topic = topic_name(&self.topic)?;
        let source = self.source()?;
        block_on(async move {
            let connection = Connection::open(&self.connect, "pub").await?;
            Publisher::new(connection, topic, self.qos, self.retain)?
                .run(source)
                .await
        })
    }

    fn source(&self) -> Result<Source, ClientError> {
        match (&self.message, &self.file) {
            (Some(text), _) => Ok(Source::text(text)),
            (None, Some(path)) => Source::file(path),
            (None, None) if self.stdin_line => Ok(Source::lines()),
            (None, None) if self.stdin_file => Source::stdin(),
            (None, None) => Ok(Source::text("")),
        }
    }
}

fn topic_name(text: &str) -> Result<ByteStr, ClientError> {
    if text.is_empty() || text.contains(['+', '#']) {
        return Err(ClientError::Usage(format!(
            "{text:?} is no topic to publish to: it must not be empty or hold `+` or `#`"
        )));
    }
    ByteStr::try_from(text).map_err(|source| ClientError::Text {
        what: "the topic",
        source,
    })
}

/// What the broker still owes for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owed {
    /// PUBACK.
    Acceptance,
    /// PUBREC.
    Receipt,
    /// PUBCOMP.
    Completion,
}

struct Publisher {
    connection: Connection,
    topic: ByteStr,
    qos: QoS,
    retain: bool,
    /// Messages under way; at most `window`.
    in_flight: HashMap<PacketId, Owed>,
    window: usize,
    /// The packet id that was used last.
    last_id: u16,
    /// How many messages the broker refused.
    refused: u64,
}

impl Publisher {
    fn new(
        connection: Connection,
        topic: ByteStr,
        qos: QoS,
        retain: bool,
    ) -> Result<Self, ClientError> {
        let limits = connection.limits();
        if qos > limits.qos {
            return Err(ClientError::NotTaken(
                "its QoS is higher than the broker's highest",
            ));
        }
        if retain && !limits.retain {
            return Err(ClientError::NotTaken("the broker retains no messages"));
        }
        let window = usize::from(limits.receive_maximum.clamp(1, IN_FLIGHT_MAX));
        Ok(Self {
            connection,
            topic,
            qos,
            retain,
            in_flight: HashMap::new(),
            window,
            last_id: 0,
            refused: 0,
        })
    }

    async fn run(mut self, mut source: Source) -> Result<Exit, ClientError> {
        let mut more = true;
        loop {
            while let Some(packet) = self.connection.next_packet()? {
                self.handle(packet)?;
            }
            if !more && self.in_flight.is_empty() && self.connection.is_flushed() {
                break;
            }
            let room =
                more && self.in_flight.len() < self.window && !self.connection.is_congested();
            tokio::select! {
                moved = self.connection.exchange() => moved?,
                payload = source.next(), if room => match payload {
                    Some(payload) => self.publish(payload?)?,
                    None => more = false,
                },
            }
        }
        self.connection.close().await?;
        Ok(if self.refused == 0 {
            Exit::Done
        } else {
            Exit::Refused
        })
    }

    fn publish(&mut self, payload: Bytes) -> Result<(), ClientError> {
        let owed = match self.qos {
            QoS::AtMostOnce => None,
            QoS::AtLeastOnce => Some(Owed::Acceptance),
            QoS::ExactlyOnce => Some(Owed::Receipt),
        };
        let packet_id = owed.map(|_| self.free_id());
        let publish = Publish {
            dup: false,
            qos: self.qos,
            retain: self.retain,
            topic: self.topic.clone(),
            packet_id,
            properties: Properties::new(),
            payload,
        };
        self.connection.queue(&Packet::Publish(publish))?;
        if let Some((id, owed)) = packet_id.zip(owed) {
            self.in_flight.insert(id, owed);
        }
        Ok(())
    }

    /// The next id that is not under way; there is one, as fewer are under way than there are ids.
    fn free_id(&mut self) -> PacketId {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if let Some(id) =
                PacketId::new(self.last_id).filter(|id| !self.in_flight.contains_key(id))
            {
                return id;
            }
        }
    }

    fn handle(&mut self, packet: Packet) -> Result<(), ClientError> {
        match packet {
            Packet::PubAck(ack) => self.done(ack.packet_id, Owed::Acceptance, ack.reason),
            Packet::PubRec(ack) if ack.reason.is_error() => {
                self.done(ack.packet_id, Owed::Receipt, ack.reason)
            }
            Packet::PubRec(ack) => match self.in_flight.get_mut(&ack.packet_id) {
                Some(owed @ (Owed::Receipt | Owed::Completion)) => {
                    *owed = Owed::Completion;
                    let release = PubRel::new(ack.packet_id, ReasonCode::Success);
                    self.connection.queue(&Packet::PubRel(release))
                }
                _ => Err(ClientError::Protocol("a PUBREC for nothing")),
            },
            Packet::PubComp(ack) => self.done(ack.packet_id, Owed::Completion, ReasonCode::Success),
            // A kept session may have subscriptions: what comes for them is for another time, and is not acknowledged.
            Packet::Publish(_) | Packet::PubRel(_) => Ok(()),
            _ => Err(ClientError::Protocol("a packet that nobody asked for")),
        }
    }

    fn done(&mut self, id: PacketId, what: Owed, reason: ReasonCode) -> Result<(), ClientError> {
        if self.in_flight.get(&id) != Some(&what) {
            return Err(ClientError::Protocol("an acknowledgement for nothing"));
        }
        self.in_flight.remove(&id);
        if reason.is_error() {
            self.refused += 1;
            tell(format_args!(
                "flotte: the broker refused a message: {reason}"
            ));
        }
        Ok(())
    }
}
