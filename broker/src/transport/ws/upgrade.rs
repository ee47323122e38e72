//! The HTTP request that makes a connection a WebSocket, and what is answered. It does no IO.

use std::fmt::Write as _;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::Rules;

/// A request may be this long, with all its headers.
const REQUEST_BYTES_MAX: usize = 8 << 10;
const HEADERS_MAX: usize = 64;
/// RFC 6455, 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Where MQTT is found.
const PATH: &str = "/mqtt";
/// [MQTT-6.0.0-3]
const PROTOCOL: &str = "mqtt";
/// What clients of 3.1 called it; taken where nothing else is offered.
const OLD_PROTOCOL: &str = "mqttv3.1";

/// The request of one client, as it comes.
#[derive(Debug, Default)]
pub(super) struct Request {
    /// At most [`REQUEST_BYTES_MAX`].
    head: Vec<u8>,
}

/// What there is to say to a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is not all there.
    Partial,
    /// From now on frames come, the first of them maybe in `rest`.
    Accepted { response: String, rest: Vec<u8> },
    /// The response is the last word; without any nothing is said.
    Refused { response: String },
}

impl Request {
    /// Takes all of `input`.
    pub(super) fn take(&mut self, input: &[u8], rules: &Rules) -> Answer {
        let room = REQUEST_BYTES_MAX - self.head.len();
        let (now, beyond) = input.split_at(input.len().min(room));
        self.head.extend_from_slice(now);
        if !self.head.first().is_none_or(u8::is_ascii_uppercase) {
            // That is no HTTP, and would not understand an answer in it.
            let response = String::new();
            return Answer::Refused { response };
        }
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        let head_len = match request.parse(&self.head) {
            Ok(httparse::Status::Complete(head_len)) => head_len,
            Ok(httparse::Status::Partial) if beyond.is_empty() => return Answer::Partial,
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                return refuse("431 Request Header Fields Too Large", "");
            }
            Err(_) => return refuse("400 Bad Request", ""),
        };
        match Offer::read(&request, rules) {
            Ok(offer) => Answer::Accepted {
                response: offer.response(),
                rest: [&self.head[head_len..], beyond].concat(),
            },
            Err(refused) => refused,
        }
    }
}

/// An upgrade that can be accepted.
#[derive(Debug, PartialEq, Eq)]
struct Offer {
    accept: String,
    protocol: &'static str,
}

impl Offer {
    fn read(request: &httparse::Request<'_, '_>, rules: &Rules) -> Result<Offer, Answer> {
        let headers = Headers(request.headers);
        if request.method != Some("GET") {
            return Err(refuse("405 Method Not Allowed", "Allow: GET\r\n"));
        }
        let path = request.path.unwrap_or_default();
        if path.split('?').next() != Some(PATH) {
            return Err(refuse("404 Not Found", ""));
        }
        if request.version != Some(1) || !headers.has_one("host") {
            return Err(refuse("400 Bad Request", ""));
        }
        // What follows the head would be a body for some on the way, and frames for us.
        let is_length_0 = headers.all("content-length").all(|length| length == "0");
        if !is_length_0 || headers.all("transfer-encoding").next().is_some() {
            return Err(refuse("400 Bad Request", ""));
        }
        if !headers.has_word("upgrade", "websocket") {
            return Err(refuse("426 Upgrade Required", "Upgrade: websocket\r\n"));
        }
        if !headers.has_word("connection", "upgrade") {
            return Err(refuse("400 Bad Request", ""));
        }
        if headers.one("sec-websocket-version") != Some("13") {
            let version = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
            return Err(refuse("426 Upgrade Required", version));
        }
        let key = headers.one("sec-websocket-key").unwrap_or_default();
        if !BASE64_STANDARD
            .decode(key)
            .is_ok_and(|nonce| nonce.len() == 16)
        {
            return Err(refuse("400 Bad Request", ""));
        }
        let is_listed = |origin: &str| {
            let mut listed = rules.origins.iter();
            rules.origins.is_empty() || listed.any(|one| one.eq_ignore_ascii_case(origin))
        };
        if !headers.all("origin").all(is_listed) {
            return Err(refuse("403 Forbidden", ""));
        }
        // [MQTT-6.0.0-4]
        let offered = |name: &str| headers.words("sec-websocket-protocol").any(|w| w == name);
        let protocol = match (offered(PROTOCOL), offered(OLD_PROTOCOL)) {
            (true, _) => PROTOCOL,
            (false, true) => OLD_PROTOCOL,
            (false, false) => return Err(refuse("400 Bad Request", "")),
        };
        Ok(Offer {
            accept: accept_of(key),
            protocol,
        })
    }

    fn response(&self) -> String {
        let Offer { accept, protocol } = self;
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
        )
    }
}

/// The proof that a key was read.
pub(super) fn accept_of(key: &str) -> String {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key.as_bytes());
    context.update(GUID);
    BASE64_STANDARD.encode(context.finish())
}

fn refuse(status: &str, headers: &str) -> Answer {
    let mut response = format!("HTTP/1.1 {status}\r\n{headers}Connection: close\r\n");
    let body = format!("{}\n", status.get(4..).unwrap_or_default());
    let _ = write!(
        response,
        "Content-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    Answer::Refused { response }
}

struct Headers<'a>(&'a [httparse::Header<'a>]);

impl<'a> Headers<'a> {
    /// The values of all headers of this name; what is not UTF-8 is nothing that is looked for.
    fn all(&self, name: &str) -> impl Iterator<Item = &'a str> {
        let named = self
            .0
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| std::str::from_utf8(header.value).map_or("\u{FFFD}", str::trim))
    }

    /// The value of a header that may stand there once.
    fn one(&self, name: &str) -> Option<&'a str> {
        let mut all = self.all(name);
        let first = all.next();
        first.filter(|_| all.next().is_none())
    }

    fn has_one(&self, name: &str) -> bool {
        self.one(name).is_some()
    }

    /// The items of a list, over all headers of this name.
    fn words(&self, name: &str) -> impl Iterator<Item = &'a str> {
        self.all(name)
            .flat_map(|value| value.split(','))
            .map(str::trim)
    }

    fn has_word(&self, name: &str, word: &str) -> bool {
        self.words(name).any(|one| one.eq_ignore_ascii_case(word))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REQUEST: &str = "GET /mqtt HTTP/1.1\r\nHost: broker:8083\r\nUpgrade: websocket\r\n\
        Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\nOrigin: https://good.example\r\n\r\n";

    fn ask(request: &str) -> Answer {
        Request::default().take(request.as_bytes(), &Rules::default())
    }

    fn status(answer: &Answer) -> &str {
        let (Answer::Accepted { response, .. } | Answer::Refused { response }) = answer else {
            return "";
        };
        response
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3))
            .unwrap_or_default()
    }

    #[test]
    fn the_example_of_the_standard_is_accepted() {
        let Answer::Accepted { response, rest } = ask(&format!("{REQUEST}\u{1}more")) else {
            panic!("refused");
        };
        assert!(response.starts_with("HTTP/1.1 101 Switching Protocols\r\n"));
        assert!(response.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
        assert!(response.contains("Sec-WebSocket-Protocol: mqtt\r\n"));
        assert!(response.ends_with("\r\n\r\n"));
        assert_eq!(rest, b"\x01more");
    }

    #[test]
    fn every_fault_has_its_status() {
        let cases = [
            ("GET /mqtt", "POST /mqtt", "405"),
            ("GET /mqtt ", "GET /mqtt?token=x ", "101"),
            ("GET /mqtt", "GET /", "404"),
            ("GET /mqtt", "GET /mqtt/", "404"),
            ("GET /mqtt", "GET /MQTT", "404"),
            ("HTTP/1.1", "HTTP/1.0", "400"),
            ("Host: broker:8083\r\n", "", "400"),
            ("Upgrade: websocket\r\n", "", "426"),
            ("Upgrade: websocket\r\n", "Upgrade: h2c\r\n", "426"),
            ("Upgrade: websocket\r\n", "upgrade: WebSocket\r\n", "101"),
            ("keep-alive, Upgrade", "keep-alive", "400"),
            ("Version: 13", "Version: 8", "426"),
            ("Sec-WebSocket-Version: 13\r\n", "", "426"),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZQ==", "400"),
            ("dGhlIHNhbXBsZSBub25jZQ==", "?", "400"),
            ("Sec-WebSocket-Protocol: mqtt\r\n", "", "400"),
            ("Protocol: mqtt\r\n", "Protocol: MQTT\r\n", "400"),
            ("Protocol: mqtt\r\n", "Protocol: mqttv3.1\r\n", "101"),
            ("Protocol: mqtt\r\n", "Protocol: chat\r\n", "400"),
            ("\r\nHost", "\r\nHost: other\r\nHost", "400"),
            ("\r\nHost", "\r\nX: folded\r\n line\r\nHost", "400"),
            ("\r\nHost", "\r\nContent-Length: 0\r\nHost", "101"),
            ("\r\nHost", "\r\nContent-Length: 1\r\nHost", "400"),
            ("\r\nHost", "\r\nTransfer-Encoding: chunked\r\nHost", "400"),
            (
                "GET /mqtt HTTP/1.1\r\n",
                "GET /mqtt HTTP/1.1\r\nno header\r\n",
                "400",
            ),
        ];
        for (from, to, expected) in cases {
            let changed = REQUEST.replace(from, to);
            assert_ne!(changed, REQUEST);
            let answer = ask(&changed);
            assert_eq!(status(&answer), expected, "{from} -> {to}: {answer:?}");
        }
    }

    #[test]
    fn a_refusal_names_the_version_that_is_spoken() {
        let answer = ask(&REQUEST.replace("Version: 13", "Version: 8"));
        let Answer::Refused { response } = answer else {
            panic!("accepted");
        };
        assert!(response.contains("Sec-WebSocket-Version: 13\r\n"));
    }

    #[test]
    fn mqtt_is_selected_wherever_it_stands_in_the_list() {
        for offer in [
            "mqttv3.1, mqtt",
            "chat,mqtt , x",
            "chat\r\nSec-WebSocket-Protocol: mqtt",
        ] {
            let request = REQUEST.replace("Protocol: mqtt", &format!("Protocol: {offer}"));
            let Answer::Accepted { response, .. } = ask(&request) else {
                panic!("{offer}");
            };
            assert!(
                response.contains("Sec-WebSocket-Protocol: mqtt\r\n"),
                "{offer}"
            );
        }
    }

    #[test]
    fn browsers_come_from_the_origins_that_are_listed() {
        let rules = Rules {
            origins: vec!["https://good.example".to_owned()].into(),
            ..Rules::default()
        };
        let ask = |request: &str| Request::default().take(request.as_bytes(), &rules);
        assert_eq!(status(&ask(REQUEST)), "101");
        let bad = REQUEST.replace("good.example", "good.example.evil.example");
        assert_eq!(status(&ask(&bad)), "403");
        let both = "\r\nOrigin: https://evil.example\r\nOrigin";
        assert_eq!(status(&ask(&REQUEST.replace("\r\nOrigin", both))), "403");
        let none = REQUEST.replace("Origin: https://good.example\r\n", "");
        assert_eq!(status(&ask(&none)), "101", "no browser");
    }

    #[test]
    fn an_endless_request_ends() {
        let mut request = Request::default();
        let mut taken = request.take(b"GET /mqtt HTTP/1.1\r\nX: ", &Rules::default());
        let mut sent = 0;
        while taken == Answer::Partial {
            taken = request.take(&[b'x'; 100], &Rules::default());
            sent += 100;
            assert!(sent < 2 * REQUEST_BYTES_MAX);
        }
        assert_eq!(status(&taken), "431");
    }

    #[test]
    fn what_is_no_http_gets_no_answer() {
        for bytes in [&b"\x10\x0C\x00\x04MQTT"[..], b"\x16\x03\x01\x02\x00"] {
            let answer = Request::default().take(bytes, &Rules::default());
            assert_eq!(
                answer,
                Answer::Refused {
                    response: String::new()
                }
            );
        }
    }

    proptest! {
        #[test]
        fn however_it_is_cut_the_answer_is_the_same(piece in 1..60_usize, rest in prop::collection::vec(any::<u8>(), 0..20)) {
            let bytes = [REQUEST.as_bytes(), &rest].concat();
            let mut request = Request::default();
            let mut pieces = bytes.chunks(piece);
            let mut after = Vec::new();
            for piece in &mut pieces {
                match request.take(piece, &Rules::default()) {
                    Answer::Partial => {}
                    Answer::Accepted { rest, .. } => {
                        after = rest;
                        break;
                    }
                    Answer::Refused { response } => panic!("{response}"),
                }
            }
            after.extend(pieces.flatten());
            prop_assert_eq!(after, rest);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Request::default().take(&bytes, &Rules::default());
            let text = [b"GET /mqtt HTTP/1.1\r\n", &bytes[..]].concat();
            let _ = Request::default().take(&text, &Rules::default());
        }
    }
}
