//! Whether a CONNECT may be tried: by the standard, the configuration, and who it is.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use flotte_cluster::handle::Arrived;
use flotte_cluster::wire::Will;
use flotte_mqtt::packet::Connect;
use flotte_mqtt::reason::ReasonCode;
use flotte_mqtt::topic::TopicName;
use flotte_mqtt::{ByteStr, ClientId, Version};
use metrics::counter;

use super::handshake::Arrival;
use super::{access, publish};
use crate::admission::Refusal;
use crate::auth::acl::Subject;
use crate::auth::{Attempt, AuthError, Proof};

/// A CONNECT that may be tried, with what this broker makes of it.
pub(super) struct Admitted {
    pub(super) connect: Connect,
    pub(super) client: ClientId,
    pub(super) arrived: Arrived,
    /// It was given its id by this broker.
    pub(super) assigned: bool,
    pub(super) subject: Arc<Subject>,
    pub(super) proof: Proof,
    pub(super) keep_alive_s: u16,
    pub(super) expiry_s: u32,
    pub(super) will: Option<Will>,
}

impl Arrival {
    /// Checks a CONNECT by the standard and the configuration, and who it is.
    pub(super) async fn admit(&self, connect: Connect) -> Result<Admitted, ReasonCode> {
        let shared = &self.worker.shared;
        if !self.listener.config.versions.contains(&connect.version) {
            return Err(ReasonCode::UnsupportedProtocolVersion);
        }
        let (client, assigned) = self.client_id(&connect)?;
        let arrived = shared.cluster().arrived(client.as_bytes());
        if let Some(elsewhere) = shared.departures.reason() {
            return Err(elsewhere);
        }
        if connect.properties.auth_method().is_some() {
            // [MQTT-4.12.0-1]
            return Err(ReasonCode::BadAuthenticationMethod);
        }
        let will = self.will(&connect)?;
        if !shared.cluster().lease().held() {
            return Err(ReasonCode::ServerUnavailable);
        }
        let certificate = self.socket.peer();
        let attempt = Attempt {
            listener: &self.listener.config,
            username: connect.username.as_ref().map(ByteStr::as_str),
            password: connect.password.as_deref(),
            certificate: certificate.as_deref(),
            peer: self.peer,
        };
        let identity = shared
            .auth
            .authenticate(attempt)
            .await
            .map_err(|e| match e {
                AuthError::BadCredentials => ReasonCode::BadUserNameOrPassword,
                AuthError::NotAuthorized => ReasonCode::NotAuthorized,
                AuthError::Unavailable => ReasonCode::ServerUnavailable,
            })?;
        let subject = Arc::new(Subject::new(
            identity.username,
            client.clone(),
            self.address().map(|address| address.ip()),
        ));
        if let (Some((topic, _)), Some(asked)) = (&will, &connect.will) {
            access::check_will(shared, &subject, topic, asked)?;
        }
        if shared.admission.flaps(&client) {
            return Err(Refusal::Flapping.reason());
        }
        let admitted = Admitted {
            client,
            arrived,
            assigned,
            subject,
            proof: identity.proof,
            keep_alive_s: self.keep_alive_s(&connect),
            expiry_s: self.expiry_s(&connect),
            will: will.map(|(_, will)| will),
            connect,
        };
        if !admitted.takes_its_connack(shared, &self.listener.config) {
            return Err(ReasonCode::PacketTooLarge);
        }
        Ok(admitted)
    }

    /// How long the session outlives its connection.
    fn expiry_s(&self, connect: &Connect) -> u32 {
        let config = &self.worker.shared.config.mqtt;
        match connect.version {
            Version::V5 => {
                let asked = connect.properties.session_expiry().unwrap_or(0);
                config
                    .session_expiry_max_s
                    .map_or(asked, |max| asked.min(max))
            }
            Version::V3 | Version::V4 if connect.clean_start => 0,
            Version::V3 | Version::V4 => config.session_expiry_3x_s,
        }
    }

    fn client_id(&self, connect: &Connect) -> Result<(ClientId, bool), ReasonCode> {
        let config = &self.worker.shared.config.mqtt;
        if connect.client_id.len() > usize::from(config.max_client_id_bytes) {
            return Err(ReasonCode::ClientIdentifierNotValid);
        }
        if !connect.client_id.is_empty() {
            return Ok((ClientId::from(connect.client_id.compact()), false));
        }
        // [MQTT-3.1.3-8] of 3.1.1; 3.1 knows no empty ones at all.
        let allowed = match connect.version {
            Version::V3 => false,
            Version::V4 => connect.clean_start,
            Version::V5 => true,
        };
        if !allowed || !config.allow_empty_client_id {
            return Err(ReasonCode::ClientIdentifierNotValid);
        }
        let id = format!(
            "flotte-{:016x}{:08x}",
            rand::random::<u64>(),
            rand::random::<u32>()
        );
        let id = ClientId::try_from(id).map_err(|_| ReasonCode::UnspecifiedError)?;
        Ok((id, true))
    }

    fn keep_alive_s(&self, connect: &Connect) -> u16 {
        let config = &self.worker.shared.config.mqtt;
        if connect.version != Version::V5 {
            return connect.keep_alive_s;
        }
        if let Some(ours) = config.server_keep_alive_s {
            return ours;
        }
        match config.max_keep_alive_s {
            Some(max) if connect.keep_alive_s == 0 || connect.keep_alive_s > max => max,
            _ => connect.keep_alive_s,
        }
    }

    /// The will, and where it goes.
    fn will(&self, connect: &Connect) -> Result<Option<(TopicName, Will)>, ReasonCode> {
        let Some(will) = &connect.will else {
            return Ok(None);
        };
        let shared = &self.worker.shared;
        // [MQTT-4.7.0-1], [MQTT-4.7.3-1]: of a name, whatever is wrong with it.
        let topic =
            TopicName::parse(will.topic.clone()).map_err(|_| ReasonCode::TopicNameInvalid)?;
        if will.qos > shared.config.max_qos(&self.listener.config) {
            // [MQTT-3.2.2-12]
            return Err(ReasonCode::QoSNotSupported);
        }
        if will.retain && !shared.config.mqtt.retain_available {
            // [MQTT-3.2.2-13]
            return Err(ReasonCode::RetainNotSupported);
        }
        if topic.level_count() > usize::from(shared.config.mqtt.max_topic_levels) {
            return Err(ReasonCode::TopicNameInvalid);
        }
        if shared.config.mqtt.strict
            && publish::is_no_text(will.properties.payload_format(), &will.payload)
        {
            return Err(ReasonCode::PayloadFormatInvalid);
        }
        if shared.config.mqtt.refuses_topic(&topic) {
            counter!("flotte_acl_denied_total", "action" => "will").increment(1);
            return Err(ReasonCode::NotAuthorized);
        }
        // Judged, retained and published by the name that all others know.
        let topic = match &self.listener.config.mountpoint {
            None => topic.compact(),
            Some(mountpoint) => {
                let whole = mountpoint.name(&topic);
                whole.map_err(|_| ReasonCode::TopicNameInvalid)?
            }
        };
        let mut properties = BytesMut::new();
        will.properties
            .forwardable()
            .encode(&mut properties)
            .map_err(|_| ReasonCode::MalformedPacket)?;
        let will = Will {
            topic: topic.text().as_bytes().clone(),
            qos: u32::from(will.qos as u8),
            retain: will.retain,
            properties: properties.freeze(),
            payload: Bytes::copy_from_slice(&will.payload),
            delay_s: will.properties.will_delay().unwrap_or(0),
        };
        Ok(Some((topic, will)))
    }
}
