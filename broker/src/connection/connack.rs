//! What CONNACK tells a client of 5.0 about this broker.

use bytes::BytesMut;
use flotte_mqtt::codec;
use flotte_mqtt::packet::ConnAck;
use flotte_mqtt::property::{Properties, Property};
use flotte_mqtt::reason::ReasonCode;
use flotte_mqtt::{ByteStr, QoS};

use super::admit::Admitted;
use super::worker::Shared;
use crate::config::listener::Config as Listener;

impl Admitted {
    /// What CONNACK says in 5.0: only what differs from the standard's defaults.
    pub(super) fn capabilities(&self, shared: &Shared, listener: &Listener) -> Properties {
        let config = &shared.config.mqtt;
        let mut properties = Properties::new();
        let asked = self.connect.properties.session_expiry().unwrap_or(0);
        if asked != self.expiry_s {
            properties.push(Property::SessionExpiry(self.expiry_s));
        }
        if let Some(maximum) = std::num::NonZeroU16::new(shared.limits.inbound.receive_maximum) {
            properties.push(Property::ReceiveMaximum(maximum.into()));
        }
        let max_qos = shared.config.max_qos(listener);
        if max_qos < QoS::ExactlyOnce {
            properties.push(Property::MaximumQoS(max_qos));
        }
        if !config.retain_available {
            properties.push(Property::RetainAvailable(false));
        }
        properties.push(Property::MaximumPacketSize(
            u32::try_from(config.max_packet_size.as_usize()).unwrap_or(u32::MAX),
        ));
        if self.assigned {
            properties.push(Property::AssignedClientId(
                self.client.as_byte_str().clone(),
            ));
        }
        let aliases = shared.config.topic_alias_maximum(listener);
        if aliases > 0 {
            properties.push(Property::TopicAliasMaximum(aliases));
        }
        if !config.wildcard_available {
            properties.push(Property::WildcardAvailable(false));
        }
        if !config.subscription_ids_available {
            properties.push(Property::SubscriptionIdsAvailable(false));
        }
        if !config.shared_available {
            properties.push(Property::SharedAvailable(false));
        }
        if self.keep_alive_s != self.connect.keep_alive_s {
            properties.push(Property::ServerKeepAlive(self.keep_alive_s));
        }
        if let (Some(true), Some(basis)) = (
            self.connect.properties.request_response_info(),
            &config.response_information,
        ) {
            // [MQTT-3.1.2-28]
            let info = self.response_info(basis.as_str());
            info.into_iter()
                .for_each(|info| properties.push(Property::ResponseInfo(info)));
        }
        properties
    }

    fn response_info(&self, basis: &str) -> Option<ByteStr> {
        let client = self.client.as_str();
        // With a wildcard in it there would be no topic to respond to.
        if basis.contains("%c") && client.contains(['+', '#']) {
            return None;
        }
        ByteStr::try_from(basis.replace("%c", client)).ok()
    }

    /// Whether the client takes a CONNACK of the size that it would get [MQTT-3.1.2-24].
    pub(super) fn takes_its_connack(&self, shared: &Shared, listener: &Listener) -> bool {
        let Some(bytes_max) = self.connect.properties.maximum_packet_size() else {
            return true;
        };
        let connack = ConnAck {
            properties: self.capabilities(shared, listener),
            ..ConnAck::refused(ReasonCode::Success)
        };
        let mut bytes = BytesMut::new();
        let encoded = codec::encode(&connack.into(), self.connect.version, &mut bytes);
        encoded.is_ok() && bytes.len() <= usize::try_from(bytes_max).unwrap_or(usize::MAX)
    }
}
