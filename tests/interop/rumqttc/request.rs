//! What is asked, as `clients/remote_client.py` writes it, and what the two clients of rumqttc have in common.

use std::path::PathBuf;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rumqttc::{TlsConfiguration, Transport};
use serde::{Deserialize, Serialize};

/// rumqttc takes no packet over 10 KiB unless it is told so.
pub const PACKET_BYTES_MAX: usize = 1024 * 1024;
/// Requests that may wait for the event loop.
pub const REQUESTS_MAX: usize = 200;

#[derive(Debug, Deserialize)]
pub struct Request {
    pub id: u64,
    pub peer: Option<u64>,
    #[serde(flatten)]
    pub operation: Operation,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Operation {
    Hello,
    Open(Session),
    Publish(Publish),
    Unsubscribe { topic: String },
    Close,
    Abandon,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Session {
    pub version: String,
    transport: String,
    pub client_id: String,
    /// Where it connects, and where it goes when it has lost its node; one: it never reconnects.
    pub addresses: Vec<Address>,
    pub filters: Vec<Filter>,
    /// How long the session is kept; 0: not.
    pub session_s: u32,
    pub will: Option<Will>,
    pub keep_alive_s: u64,
    pub retry_ms: u64,
    /// Of 5.0; 0: not said.
    pub receive_maximum: u16,
    pub topic_aliases: u16,
    ca: PathBuf,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Address {
    host: String,
    pub port: u16,
    path: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Filter {
    pub topic: String,
    pub qos: u8,
    pub no_local: bool,
    pub retain_as_published: bool,
    pub retain_handling: u8,
    /// 0: none.
    pub identifier: usize,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Will {
    pub topic: String,
    pub payload: Octets,
    pub qos: u8,
    pub retain: bool,
}

#[derive(Debug, Deserialize)]
pub struct Publish {
    pub messages: Vec<Outgoing>,
    pub qos: u8,
    pub retain: bool,
    pub properties: Properties,
}

#[derive(Debug, Deserialize)]
pub struct Outgoing {
    pub topic: String,
    pub payload: Octets,
}

/// As it came.
#[derive(Debug, Serialize)]
pub struct Message {
    pub topic: String,
    pub payload: Octets,
    pub qos: u8,
    pub retain: bool,
    pub dup: bool,
    pub properties: Properties,
}

/// Properties of a PUBLISH, by the names of the steps.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Properties {
    pub format: Option<u8>,
    pub expiry: Option<u32>,
    pub content_type: Option<String>,
    pub response_topic: Option<String>,
    pub correlation: Option<Octets>,
    pub user: Option<Vec<(String, String)>>,
    pub identifiers: Option<Vec<usize>>,
}

/// Base64 on the way.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Octets(pub Vec<u8>);

impl TryFrom<String> for Octets {
    type Error = base64::DecodeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        STANDARD.decode(text).map(Self)
    }
}

impl From<Octets> for String {
    fn from(octets: Octets) -> Self {
        STANDARD.encode(octets.0)
    }
}

impl Session {
    /// rumqttc wants a URL for a WebSocket, and the path of a unix socket instead of a host.
    pub fn host(&self, address: &Address) -> String {
        let Address { host, port, path } = address;
        match self.transport.as_str() {
            "ws" | "wss" => format!("{}://{host}:{port}{path}", self.transport),
            "unix" => path.clone(),
            _ => host.clone(),
        }
    }

    pub fn transport(&self) -> anyhow::Result<Transport> {
        Ok(match self.transport.as_str() {
            "tcp" => Transport::Tcp,
            "ws" => Transport::Ws,
            "unix" => Transport::Unix,
            "tls" => Transport::Tls(self.tls()?),
            "wss" => Transport::Wss(self.tls()?),
            other => anyhow::bail!("no transport {other}"),
        })
    }

    fn tls(&self) -> anyhow::Result<TlsConfiguration> {
        let read = |path: &PathBuf| std::fs::read(path).with_context(|| path.display().to_string());
        let client_auth = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
            _ => None,
        };
        Ok(TlsConfiguration::Simple {
            ca: read(&self.ca)?,
            alpn: None,
            client_auth,
        })
    }
}
