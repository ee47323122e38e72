//! The client's side of the upgrade, for the commands of this binary. It does no IO.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::upgrade::accept_of;

/// An answer may be this long, with all its headers.
const RESPONSE_BYTES_MAX: usize = 8 << 10;

/// A request that was sent, and the answer as it comes.
#[derive(Debug)]
pub struct Handshake {
    key: String,
    head: Vec<u8>,
}

impl Handshake {
    /// A new one, and the request that asks for it.
    pub fn new(host: &str) -> (Handshake, String) {
        let key = BASE64_STANDARD.encode(rand::random::<[u8; 16]>());
        let request = format!(
            "GET /mqtt HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
        );
        let head = Vec::new();
        (Handshake { key, head }, request)
    }

    /// Takes all of `input`. Gives what came behind the answer once that is complete; the error is for people.
    pub fn take(&mut self, input: &[u8]) -> Result<Option<Vec<u8>>, String> {
        self.head.extend_from_slice(input);
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut headers);
        let head_len = match response.parse(&self.head) {
            Ok(httparse::Status::Complete(head_len)) => head_len,
            Ok(httparse::Status::Partial) if self.head.len() <= RESPONSE_BYTES_MAX => {
                return Ok(None);
            }
            _ => return Err("the answer is no HTTP".to_owned()),
        };
        if response.code != Some(101) {
            let (code, reason) = (
                response.code.unwrap_or_default(),
                response.reason.unwrap_or_default(),
            );
            return Err(format!("no WebSocket: {code} {reason}"));
        }
        let has = |name: &str, value: &str| {
            response.headers.iter().any(|header| {
                header.name.eq_ignore_ascii_case(name) && header.value == value.as_bytes()
            })
        };
        if !has("sec-websocket-accept", &accept_of(&self.key)) {
            return Err("the answer is to another request".to_owned());
        }
        if !has("sec-websocket-protocol", "mqtt") {
            return Err("the server does not speak MQTT".to_owned());
        }
        Ok(Some(self.head[head_len..].to_vec()))
    }
}
