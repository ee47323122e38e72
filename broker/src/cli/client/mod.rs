//! `flotte pub` and `flotte sub`: small clients with mosquitto's letters, for people and scripts, towards any broker.

mod connection;
mod options;
mod publish;
mod source;
mod subscribe;
mod tls;

use std::io;

use flotte_mqtt::codec::{DecodeError, EncodeError};
use flotte_mqtt::reason::ReasonCode;
use flotte_mqtt::text::TextError;

pub use publish::PubArguments;
pub use subscribe::SubArguments;

use super::{Exit, Failure};

/// Why a client ended before its work was done.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{0}")]
    Usage(String),
    #[error("{what}: {source}")]
    Text {
        what: &'static str,
        source: TextError,
    },
    #[error("{0}: cannot be read: {1}")]
    Input(String, #[source] io::Error),
    #[error("a line of stdin is longer than {0} bytes")]
    LineTooLong(usize),
    #[error("cannot connect to {address}: {source}")]
    Connect { address: String, source: io::Error },
    #[error("no answer within {seconds} s from {address}")]
    NoAnswer { address: String, seconds: u64 },
    #[error("the connection to the broker is lost: {0}")]
    Lost(#[source] io::Error),
    #[error("the broker closed the connection")]
    Closed,
    #[error("the broker does not answer any more")]
    Silent,
    #[error("the broker sent what is not MQTT: {0}")]
    Decode(#[from] DecodeError),
    #[error("the broker broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("cannot be sent: {0}")]
    Encode(#[from] EncodeError),
    #[error("the broker refused the connection: {0}")]
    ConnectionRefused(Said),
    #[error("the broker ended the connection: {0}")]
    Disconnected(Said),
    #[error("the broker refused the subscription: {0}")]
    SubscriptionRefused(ReasonCode),
    #[error("the broker does not take this message: {0}")]
    NotTaken(&'static str),
    #[error("cannot be set up: {0}")]
    Setup(#[source] io::Error),
    #[error("the result cannot be written: {0}")]
    Output(#[source] io::Error),
}

/// A reason code with what the broker said about it.
#[derive(Debug)]
pub struct Said {
    pub reason: ReasonCode,
    pub text: Option<String>,
    /// Where to go instead.
    pub server: Option<String>,
}

impl std::fmt::Display for Said {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}", self.reason)?;
        if let Some(text) = &self.text {
            write!(out, ", {text}")?;
        }
        if let Some(server) = &self.server {
            write!(out, ", use {server}")?;
        }
        Ok(())
    }
}

impl Failure for ClientError {
    fn exit(&self) -> Exit {
        match self {
            Self::Usage(_)
            | Self::Text { .. }
            | Self::Input(..)
            | Self::LineTooLong(_)
            | Self::Encode(_) => Exit::Usage,
            Self::Connect { .. }
            | Self::NoAnswer { .. }
            | Self::Lost(_)
            | Self::Closed
            | Self::Silent
            | Self::Decode(_)
            | Self::Protocol(_) => Exit::Unreachable,
            Self::ConnectionRefused(_)
            | Self::Disconnected(_)
            | Self::SubscriptionRefused(_)
            | Self::NotTaken(_)
            | Self::Setup(_) => Exit::Refused,
            Self::Output(_) => Exit::DiskFailed,
        }
    }
}

/// Runs a client on this thread.
fn block_on<F: Future<Output = Result<Exit, ClientError>>>(client: F) -> Result<Exit, ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ClientError::Setup)?;
    let result = runtime.block_on(client);
    // Whatever still blocks, as a read of stdin, ends with the process.
    runtime.shutdown_background();
    match result {
        // `flotte sub ... | head` is not a failure.
        Err(ClientError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            Ok(Exit::Done)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests;
