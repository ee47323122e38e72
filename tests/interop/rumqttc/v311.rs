//! rumqttc's client for 3.1.1.

use std::time::Duration;

use rumqttc::{
    AsyncClient, Event, EventLoop, LastWill, MqttOptions, Outgoing, Packet, QoS, SubscribeFilter,
    SubscribeReasonCode,
};

use crate::peer::{Happened, Loop};
use crate::request::{
    Address, Filter, Message, Octets, PACKET_BYTES_MAX, Properties, Publish, REQUESTS_MAX, Session,
};

pub fn client(session: &Session, address: &Address) -> anyhow::Result<(AsyncClient, EventLoop)> {
    Ok(AsyncClient::new(options(session, address)?, REQUESTS_MAX))
}

fn options(session: &Session, address: &Address) -> anyhow::Result<MqttOptions> {
    let mut made = MqttOptions::new(&session.client_id, session.host(address), address.port);
    made.set_transport(session.transport()?);
    made.set_keep_alive(Duration::from_secs(session.keep_alive_s));
    made.set_clean_session(session.session_s == 0);
    made.set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX);
    if let Some(will) = &session.will {
        let payload = will.payload.0.clone();
        let last = LastWill::new(&will.topic, payload, qos(will.qos)?, will.retain);
        made.set_last_will(last);
    }
    Ok(made)
}

pub fn subscribe(client: &AsyncClient, filters: &[Filter]) -> anyhow::Result<()> {
    let mut wanted = Vec::new();
    for filter in filters {
        wanted.push(SubscribeFilter::new(filter.topic.clone(), qos(filter.qos)?));
    }
    Ok(client.try_subscribe_many(wanted)?)
}

pub async fn publish(client: &AsyncClient, publish: Publish) -> anyhow::Result<()> {
    for message in publish.messages {
        let level = qos(publish.qos)?;
        client
            .publish(message.topic, level, publish.retain, message.payload.0)
            .await?;
    }
    Ok(())
}

fn qos(level: u8) -> anyhow::Result<QoS> {
    rumqttc::qos(level).map_err(|error| anyhow::anyhow!("{error}"))
}

impl Loop for EventLoop {
    async fn poll(&mut self) -> Result<Happened, String> {
        let event = Self::poll(self).await.map_err(|error| error.to_string())?;
        Ok(match event {
            Event::Incoming(Packet::ConnAck(ack)) => Happened::Connected {
                session_present: ack.session_present,
            },
            Event::Incoming(Packet::SubAck(ack)) => Happened::Granted(
                ack.return_codes
                    .iter()
                    .map(|code| match code {
                        SubscribeReasonCode::Success(qos) => *qos as u8,
                        SubscribeReasonCode::Failure => 0x80,
                    })
                    .collect(),
            ),
            Event::Incoming(Packet::UnsubAck(_)) => Happened::Unsubscribed,
            // Packet identifier 0: QoS 0, and nothing answers it.
            Event::Incoming(Packet::PubAck(_) | Packet::PubComp(_))
            | Event::Outgoing(Outgoing::Publish(0)) => Happened::Published,
            Event::Incoming(Packet::Publish(message)) => Happened::Message(Message {
                topic: message.topic,
                payload: Octets(message.payload.to_vec()),
                qos: message.qos as u8,
                retain: message.retain,
                dup: message.dup,
                properties: Properties::default(),
            }),
            _ => Happened::Other,
        })
    }

    fn go_to(&mut self, session: &Session, address: &Address) -> anyhow::Result<()> {
        self.mqtt_options = options(session, address)?;
        Ok(())
    }
}
