//! rumqttc's client for 5.0.

use std::time::Duration;

use rumqttc::Outgoing;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnectProperties, Filter as Wanted, LastWill, Packet, PublishProperties, RetainForwardRule,
    SubscribeProperties, SubscribeReasonCode,
};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};

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
    made.set_clean_start(session.session_s == 0);
    let mut properties = ConnectProperties::new();
    properties.max_packet_size = Some(PACKET_BYTES_MAX as u32);
    properties.session_expiry_interval = Some(session.session_s);
    properties.receive_maximum = (session.receive_maximum > 0).then_some(session.receive_maximum);
    properties.topic_alias_max = (session.topic_aliases > 0).then_some(session.topic_aliases);
    made.set_connect_properties(properties);
    if let Some(will) = &session.will {
        let payload = will.payload.0.clone();
        let last = LastWill::new(&will.topic, payload, qos(will.qos)?, will.retain, None);
        made.set_last_will(last);
    }
    Ok(made)
}

pub fn subscribe(client: &AsyncClient, filters: &[Filter]) -> anyhow::Result<()> {
    let mut wanted = Vec::new();
    for filter in filters {
        wanted.push(Wanted {
            path: filter.topic.clone(),
            qos: qos(filter.qos)?,
            nolocal: filter.no_local,
            preserve_retain: filter.retain_as_published,
            retain_forward_rule: match filter.retain_handling {
                0 => RetainForwardRule::OnEverySubscribe,
                1 => RetainForwardRule::OnNewSubscribe,
                _ => RetainForwardRule::Never,
            },
        });
    }
    let identifier = filters.first().map_or(0, |filter| filter.identifier);
    if identifier == 0 {
        return Ok(client.try_subscribe_many(wanted)?);
    }
    let properties = SubscribeProperties {
        id: Some(identifier),
        user_properties: Vec::new(),
    };
    Ok(client.try_subscribe_many_with_properties(wanted, properties)?)
}

pub async fn publish(client: &AsyncClient, publish: Publish) -> anyhow::Result<()> {
    let said = publish.properties;
    let properties = PublishProperties {
        payload_format_indicator: said.format,
        message_expiry_interval: said.expiry,
        topic_alias: None,
        response_topic: said.response_topic,
        correlation_data: said.correlation.map(|octets| octets.0.into()),
        user_properties: said.user.unwrap_or_default(),
        subscription_identifiers: Vec::new(),
        content_type: said.content_type,
    };
    for message in publish.messages {
        let (level, octets) = (qos(publish.qos)?, message.payload.0);
        let properties = properties.clone();
        client
            .publish_with_properties(message.topic, level, publish.retain, octets, properties)
            .await?;
    }
    Ok(())
}

fn qos(level: u8) -> anyhow::Result<QoS> {
    rumqttc::v5::mqttbytes::qos(level).ok_or_else(|| anyhow::anyhow!("no QoS {level}"))
}

fn properties_of(found: Option<PublishProperties>) -> Properties {
    let Some(found) = found else {
        return Properties::default();
    };
    let identifiers = found.subscription_identifiers;
    Properties {
        format: found.payload_format_indicator,
        expiry: found.message_expiry_interval,
        content_type: found.content_type,
        response_topic: found.response_topic,
        correlation: found.correlation_data.map(|octets| Octets(octets.to_vec())),
        user: (!found.user_properties.is_empty()).then_some(found.user_properties),
        identifiers: (!identifiers.is_empty()).then_some(identifiers),
    }
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
                        _ => 0x80,
                    })
                    .collect(),
            ),
            Event::Incoming(Packet::UnsubAck(_)) => Happened::Unsubscribed,
            // Packet identifier 0: QoS 0, and nothing answers it.
            Event::Incoming(Packet::PubAck(_) | Packet::PubComp(_))
            | Event::Outgoing(Outgoing::Publish(0)) => Happened::Published,
            Event::Incoming(Packet::Publish(message)) => Happened::Message(Message {
                topic: String::from_utf8_lossy(&message.topic).into_owned(),
                payload: Octets(message.payload.to_vec()),
                qos: message.qos as u8,
                retain: message.retain,
                dup: message.dup,
                properties: properties_of(message.properties),
            }),
            _ => Happened::Other,
        })
    }

    fn go_to(&mut self, session: &Session, address: &Address) -> anyhow::Result<()> {
        self.options = options(session, address)?;
        Ok(())
    }
}
