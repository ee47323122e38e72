//! What `pub` and `sub` have in common on the command line, and the CONNECT that comes of it.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use flotte_mqtt::packet::Connect;
use flotte_mqtt::property::{Properties, Property};
use flotte_mqtt::{ByteStr, QoS, Version};

use super::ClientError;

#[derive(Debug, Clone, Args)]
pub struct ConnectOptions {
    /// Print help.
    #[arg(long, action = clap::ArgAction::HelpLong)]
    help: Option<bool>,
    /// The broker's host.
    #[arg(short = 'h', long, value_name = "HOST", default_value = "localhost")]
    pub host: String,
    /// The broker's port.
    #[arg(short, long, value_name = "PORT", default_value_t = 1883)]
    pub port: u16,
    /// The client identifier; a random one where none is given.
    #[arg(short, long, value_name = "ID")]
    pub id: Option<String>,
    /// Keep the session after the end, and take up the one that was kept; needs -i.
    #[arg(short = 'c', long)]
    pub disable_clean_session: bool,
    /// The version of MQTT: 31, 311 or 5.
    #[arg(short = 'V', long, value_name = "VERSION", default_value = "311", value_parser = parse_version)]
    pub protocol_version: Version,
    /// The user name.
    #[arg(short, long, value_name = "NAME")]
    pub username: Option<String>,
    /// The password.
    #[arg(short = 'P', long = "pw", value_name = "PASSWORD")]
    pub password: Option<String>,
    /// Say something at least this often, in seconds; 0: never.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 60)]
    pub keepalive: u16,
    /// Connect with TLS; the file holds who signs the broker's certificate.
    #[arg(long, value_name = "FILE")]
    pub cafile: Option<PathBuf>,
    /// The certificate that is shown to the broker.
    #[arg(long, value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,
    /// The key of that certificate.
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
    /// Connect with TLS, and believe whatever certificate the broker shows.
    #[arg(long)]
    pub insecure: bool,
    /// Connect through a WebSocket, path /mqtt.
    #[arg(long)]
    pub ws: bool,
    /// Connect to a unix socket.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["cafile", "cert", "insecure", "ws"])]
    pub unix: Option<PathBuf>,
}

impl ConnectOptions {
    /// Whether the options ask for TLS.
    pub fn is_tls(&self) -> bool {
        self.cafile.is_some() || self.cert.is_some() || self.insecure
    }

    /// Refuses what contradicts itself.
    pub fn check(&self) -> Result<(), ClientError> {
        if self.disable_clean_session && self.id.is_none() {
            return Err(ClientError::Usage(
                "-c needs -i: a session is found again by its client identifier".to_owned(),
            ));
        }
        // [MQTT-3.1.2-22] of 3.1.1; 5.0 allows it.
        if self.password.is_some()
            && self.username.is_none()
            && self.protocol_version != Version::V5
        {
            return Err(ClientError::Usage("-P needs -u".to_owned()));
        }
        Ok(())
    }

    /// The first packet.
    pub fn connect(&self, kind: &str) -> Result<Connect, ClientError> {
        let text = |what, text: &str| {
            ByteStr::try_from(text).map_err(|source| ClientError::Text { what, source })
        };
        let client_id = match &self.id {
            Some(id) => text("the client identifier", id)?,
            // 3.1 allows 23 characters.
            None => text(
                "the client identifier",
                &format!("flotte-{kind}-{:08x}", rand::random::<u32>()),
            )?,
        };
        let mut properties = Properties::new();
        if self.protocol_version == Version::V5 && self.disable_clean_session {
            properties.push(Property::SessionExpiry(u32::MAX));
        }
        Ok(Connect {
            version: self.protocol_version,
            client_id,
            clean_start: !self.disable_clean_session,
            keep_alive_s: self.keepalive,
            will: None,
            username: self
                .username
                .as_deref()
                .map(|name| text("the user name", name))
                .transpose()?,
            password: self
                .password
                .as_ref()
                .map(|password| Bytes::copy_from_slice(password.as_bytes())),
            properties,
        })
    }

    /// The broker, for people.
    pub fn address(&self) -> String {
        if let Some(path) = &self.unix {
            format!("unix:{}", path.display())
        } else if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// 31, 311 or 5, also as mosquitto spells them out.
fn parse_version(text: &str) -> Result<Version, String> {
    match text {
        "31" | "mqttv31" => Ok(Version::V3),
        "311" | "mqttv311" => Ok(Version::V4),
        "5" | "50" | "mqttv5" => Ok(Version::V5),
        _ => Err("allowed are 31, 311 and 5".to_owned()),
    }
}

/// 0, 1 or 2.
pub fn parse_qos(text: &str) -> Result<QoS, String> {
    let number: Option<u8> = text.parse().ok();
    number
        .and_then(|number| QoS::try_from(number).ok())
        .ok_or_else(|| "allowed are 0, 1 and 2".to_owned())
}

/// Seconds, at least one.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u32>() {
        Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(u64::from(seconds))),
        _ => Err("allowed are whole seconds, at least 1".to_owned()),
    }
}
