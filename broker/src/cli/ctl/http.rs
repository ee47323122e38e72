//! Questions to the admin port, one after the other, over HTTP.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::Agent;

use super::model::Problem;
use crate::cli::{Exit, Failure};

/// How long the node has for an answer.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// The largest answer that is read.
const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    #[error("{url} cannot be reached: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("{0}")]
    Refused(String),
    #[error("{url} does not answer like a Flotte node: {reason}")]
    Strange { url: String, reason: String },
    #[error("the URL {url:?} makes no sense: {reason}")]
    BadUrl { url: String, reason: String },
    #[error("{}: the token cannot be read: {reason}", path.display())]
    Token { path: PathBuf, reason: String },
    #[error("the result cannot be written: {0}")]
    Output(#[source] std::io::Error),
}

impl Failure for CtlError {
    fn exit(&self) -> Exit {
        match self {
            Self::Unreachable { .. } | Self::Strange { .. } => Exit::Unreachable,
            Self::Refused(_) => Exit::Refused,
            Self::BadUrl { .. } | Self::Token { .. } => Exit::Usage,
            Self::Output(_) => Exit::DiskFailed,
        }
    }
}

/// The admin API of one node.
#[derive(Debug)]
pub struct Api {
    agent: Agent,
    /// Without a slash at the end.
    url: String,
    /// The value of the header `Authorization`.
    authorization: Option<String>,
}

impl Api {
    /// An API that has not been asked yet.
    pub fn new(url: &str, token_file: Option<&Path>) -> Result<Self, CtlError> {
        let bad_url = |reason: &str| CtlError::BadUrl {
            url: url.to_owned(),
            reason: reason.to_owned(),
        };
        if url.starts_with("https://") {
            return Err(bad_url("https is not available in this version"));
        }
        if !url.starts_with("http://") {
            return Err(bad_url("it has to begin with http://"));
        }
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(ANSWER_TIMEOUT))
            .max_redirects(0)
            // The admin port is never behind the proxy of a browser.
            .proxy(None)
            .user_agent(concat!("flotte/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        let authorization = token_file
            .map(read_token)
            .transpose()?
            .map(|token| format!("Bearer {token}"));
        Ok(Self {
            agent,
            url: url.trim_end_matches('/').to_owned(),
            authorization,
        })
    }

    /// Whom it asks.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// `GET /api/v1{path}`.
    pub fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, CtlError> {
        let mut request = self
            .agent
            .get(self.url_of(path))
            .query_pairs(query.iter().copied());
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let text = self.answer(request.call())?;
        serde_json::from_str(&text).map_err(|error| self.strange(error.to_string()))
    }

    /// `POST /api/v1{path}` with a JSON document.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, CtlError> {
        self.post_within(path, body, ANSWER_TIMEOUT)
    }

    /// The same, of what takes so long.
    pub fn post_within<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
        limit: Duration,
    ) -> Result<T, CtlError> {
        let mut request = self
            .agent
            .post(self.url_of(path))
            .config()
            .timeout_global(Some(limit))
            .build()
            .content_type("application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let text = self.answer(request.send(body.to_string()))?;
        serde_json::from_str(&text).map_err(|error| self.strange(error.to_string()))
    }

    /// `DELETE /api/v1{path}`.
    pub fn delete(&self, path: &str) -> Result<(), CtlError> {
        let mut request = self.agent.delete(self.url_of(path));
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        self.answer(request.call()).map(|_| ())
    }

    fn url_of(&self, path: &str) -> String {
        format!("{}/api/v1{path}", self.url)
    }

    /// The text of a good answer; what the node says in a bad one.
    fn answer(
        &self,
        answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<String, CtlError> {
        let failed = |error: ureq::Error| match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => CtlError::BadUrl {
                url: self.url.clone(),
                reason: error.to_string(),
            },
            ureq::Error::Protocol(_) => self.strange(error.to_string()),
            _ => CtlError::Unreachable {
                url: self.url.clone(),
                reason: error.to_string(),
            },
        };
        let mut answer = answer.map_err(failed)?;
        let status = answer.status();
        let text = answer
            .body_mut()
            .with_config()
            .limit(ANSWER_BYTES_MAX)
            .read_to_string()
            .map_err(failed)?;
        if status.is_success() {
            return Ok(text);
        }
        match serde_json::from_str::<Problem>(&text) {
            Ok(Problem {
                title,
                detail: Some(detail),
                ..
            }) => Err(CtlError::Refused(format!("{title}: {detail}"))),
            Ok(Problem {
                title,
                detail: None,
                ..
            }) => Err(CtlError::Refused(title)),
            Err(_) => Err(CtlError::Refused(format!("{} answers {status}", self.url))),
        }
    }

    fn strange(&self, reason: String) -> CtlError {
        CtlError::Strange {
            url: self.url.clone(),
            reason,
        }
    }
}

fn read_token(path: &Path) -> Result<String, CtlError> {
    let failed = |reason: String| CtlError::Token {
        path: path.to_owned(),
        reason,
    };
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(failed(
            "it has to be one line of printable characters".to_owned(),
        ));
    }
    Ok(token.to_owned())
}

/// A client identifier as a segment of a path.
pub fn path_segment(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    // A segment of dots alone would mean another path.
    let dots = text.bytes().all(|byte| byte == b'.');
    text.bytes().fold(String::new(), |mut segment, byte| {
        if plain(byte) && !dots {
            segment.push(char::from(byte));
        } else {
            segment.push_str(&format!("%{byte:02X}"));
        }
        segment
    })
}
