//! `flotte sub`: subscribes and prints what comes, until it is told to end, has seen enough, or has waited too long.

use std::collections::HashSet;
use std::time::Duration;

use clap::Args;
use flotte_mqtt::packet::{
    Packet, PubAck, PubComp, PubRec, Publish, SubAck, Subscribe, SubscribeOptions,
};
use flotte_mqtt::property::Properties;
use flotte_mqtt::reason::ReasonCode;
use flotte_mqtt::{ByteStr, PacketId, QoS, Version};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use super::connection::Connection;
use super::options::{ConnectOptions, parse_qos, parse_seconds};
use super::{ClientError, block_on};
use crate::cli::Exit;
use crate::cli::output::{print_bytes, tell};

/// How long the handshakes of the last messages may take once enough have come.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);
/// Where nothing limits the time.
const FAR_AWAY: Duration = Duration::from_secs(365 * 24 * 3600);

#[derive(Debug, Args)]
#[command(disable_help_flag = true, disable_version_flag = true)]
pub struct SubArguments {
    #[command(flatten)]
    connect: ConnectOptions,
    /// A topic filter; may be repeated.
    #[arg(short, long, required = true)]
    topic: Vec<String>,
    /// The highest quality of service that is wanted: 0, 1 or 2.
    #[arg(short, long, value_name = "QOS", default_value = "0", value_parser = parse_qos)]
    qos: QoS,
    /// End after so many messages.
    #[arg(short = 'C', value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so many seconds, with 27.
    #[arg(short = 'W', value_name = "SECONDS", value_parser = parse_seconds)]
    timeout: Option<Duration>,
    /// Print the topic before each message.
    #[arg(short, long)]
    verbose: bool,
}

impl SubArguments {
    /// Subscribes and prints.
    pub fn run(self) -> Result<Exit, ClientError> {
        self.connect.check()?;
        let filters = self
            .topic
            .iter()
            .map(|text| topic_filter(text))
            .collect::<Result<Vec<_>, _>>()?;
        block_on(self.subscribe(filters))
    }

    async fn subscribe(self, filters: Vec<ByteStr>) -> Result<Exit, ClientError> {
        let deadline = Instant::now() + self.timeout.unwrap_or(FAR_AWAY);
        let mut interrupt = signal(SignalKind::interrupt()).map_err(ClientError::Setup)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(ClientError::Setup)?;
        let connection = tokio::select! {
            connection = Connection::open(&self.connect, "sub") => connection?,
            () = sleep_until(deadline) => return Ok(timed_out()),
            _ = interrupt.recv() => return Ok(Exit::Done),
            _ = terminate.recv() => return Ok(Exit::Done),
        };
        let mut subscriber = Subscriber::new(connection, self.count, self.verbose);
        subscriber.subscribe(filters, self.qos)?;
        let exit = tokio::select! {
            result = subscriber.run() => result.map(|()| Exit::Done)?,
            () = sleep_until(deadline) => timed_out(),
            _ = interrupt.recv() => Exit::Done,
            _ = terminate.recv() => Exit::Done,
        };
        subscriber.connection.close().await?;
        Ok(exit)
    }
}

fn timed_out() -> Exit {
    tell("flotte: timed out");
    Exit::TimedOut
}

fn topic_filter(text: &str) -> Result<ByteStr, ClientError> {
    if text.is_empty() {
        return Err(ClientError::Usage(
            "a topic filter must not be empty".to_owned(),
        ));
    }
    ByteStr::try_from(text).map_err(|source| ClientError::Text {
        what: "the topic filter",
        source,
    })
}

struct Subscriber {
    connection: Connection,
    /// What was asked for, until the broker has answered.
    asked: Vec<ByteStr>,
    /// How many more messages are to be printed; `None`: any number.
    remaining: Option<u64>,
    verbose: bool,
    /// QoS 2 messages that were printed and are not released yet; there are at most 65,535 ids.
    unreleased: HashSet<PacketId>,
}

impl Subscriber {
    fn new(connection: Connection, remaining: Option<u64>, verbose: bool) -> Self {
        Self {
            connection,
            asked: Vec::new(),
            remaining,
            verbose,
            unreleased: HashSet::new(),
        }
    }

    fn subscribe(&mut self, filters: Vec<ByteStr>, qos: QoS) -> Result<(), ClientError> {
        let packet_id = PacketId::new(1).ok_or(ClientError::Protocol("1 is no packet id"))?;
        let options = SubscribeOptions::with_qos(qos);
        let subscribe = Subscribe {
            packet_id,
            properties: Properties::new(),
            filters: filters
                .iter()
                .map(|filter| (filter.clone(), options))
                .collect(),
        };
        self.asked = filters;
        self.connection.queue(&Packet::Subscribe(subscribe))
    }

    /// Prints until enough has come, and ends the handshakes of what was printed.
    async fn run(&mut self) -> Result<(), ClientError> {
        let mut finish_until = None;
        loop {
            while let Some(packet) = self.connection.next_packet()? {
                self.handle(packet)?;
            }
            if self.remaining == Some(0) {
                if self.unreleased.is_empty() && self.connection.is_flushed() {
                    return Ok(());
                }
                finish_until.get_or_insert_with(|| Instant::now() + FINISH_TIMEOUT);
            }
            tokio::select! {
                moved = self.connection.exchange() => moved?,
                () = sleep_until(finish_until.unwrap_or_else(Instant::now)), if finish_until.is_some() => return Ok(()),
            }
        }
    }

    fn handle(&mut self, packet: Packet) -> Result<(), ClientError> {
        match packet {
            Packet::Publish(publish) => self.message(&publish),
            Packet::PubRel(release) => {
                let known = self.unreleased.remove(&release.packet_id);
                // After a restart of this client the broker may release what it does not know of.
                let reason = if known || self.connection.version() != Version::V5 {
                    ReasonCode::Success
                } else {
                    ReasonCode::PacketIdentifierNotFound
                };
                self.connection
                    .queue(&Packet::PubComp(PubComp::new(release.packet_id, reason)))
            }
            Packet::SubAck(answer) => self.answered(&answer),
            _ => Err(ClientError::Protocol("a packet that nobody asked for")),
        }
    }

    fn message(&mut self, publish: &Publish) -> Result<(), ClientError> {
        let again = publish
            .packet_id
            .is_some_and(|id| publish.qos == QoS::ExactlyOnce && self.unreleased.contains(&id));
        if !again {
            // Enough: what is not acknowledged stays with the broker, for the next one if the session is kept.
            if self.remaining == Some(0) {
                return Ok(());
            }
            self.print(publish)?;
            self.remaining = self.remaining.map(|remaining| remaining - 1);
        }
        match (publish.qos, publish.packet_id) {
            (QoS::AtLeastOnce, Some(id)) => self
                .connection
                .queue(&Packet::PubAck(PubAck::new(id, ReasonCode::Success))),
            (QoS::ExactlyOnce, Some(id)) => {
                self.unreleased.insert(id);
                self.connection
                    .queue(&Packet::PubRec(PubRec::new(id, ReasonCode::Success)))
            }
            _ => Ok(()),
        }
    }

    fn print(&self, publish: &Publish) -> Result<(), ClientError> {
        let mut line = Vec::with_capacity(publish.topic.len() + publish.payload.len() + 2);
        if self.verbose {
            line.extend_from_slice(publish.topic.as_bytes());
            line.push(b' ');
        }
        line.extend_from_slice(&publish.payload);
        line.push(b'\n');
        print_bytes(&line).map_err(ClientError::Output)
    }

    fn answered(&mut self, answer: &SubAck) -> Result<(), ClientError> {
        let asked = std::mem::take(&mut self.asked);
        if asked.is_empty() || answer.reasons.len() != asked.len() {
            return Err(ClientError::Protocol(
                "a SUBACK that does not fit the SUBSCRIBE",
            ));
        }
        for (filter, reason) in asked
            .iter()
            .zip(&answer.reasons)
            .filter(|(_, reason)| reason.is_error())
        {
            tell(format_args!(
                "flotte: the broker refused the subscription to {filter}: {reason}"
            ));
        }
        match answer.reasons.first() {
            Some(first) if answer.reasons.iter().all(|reason| reason.is_error()) => {
                Err(ClientError::SubscriptionRefused(*first))
            }
            _ => Ok(()),
        }
    }
}
