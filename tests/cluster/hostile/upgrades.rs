//! Requests for a WebSocket as no browser writes them, and peers that are strange after it.

use std::time::Duration;

use flotte_tests::websocket::{BINARY, CLOSE, FIN, PING, PONG, Request, WebSocket, frame};
use flotte_tests::{Broker, Launch, block_on};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Bystanders;

const CONNECT: &[u8] = b"\x10\x0C\x00\x04MQTT\x04\x02\x00\x00\x00\x00";
const CONNACK: &[u8] = b"\x20\x02\x00\x00";

fn node() -> Broker {
    Launch::new("upgrades")
        .bind("ws", ([127, 0, 0, 1], 0).into())
        .env("FLOTTE_MQTT__CONNECT_TIMEOUT_S", 3)
        .start()
}

/// A request with one more header; others of its name stay.
fn with(name: &str, value: &str) -> Request {
    let mut request = Request::default();
    request.headers.push((name.to_owned(), value.to_owned()));
    request
}

fn lower_case() -> Request {
    let mut request = Request::default();
    for (name, value) in &mut request.headers {
        name.make_ascii_lowercase();
        if name == "upgrade" || name == "connection" {
            value.make_ascii_lowercase();
        }
    }
    request
}

#[test]
fn odd_requests_get_their_status() {
    block_on(async {
        let node = node();
        let mut bystanders = Bystanders::at(&node).await;
        let mut many = Request::default();
        let more = (0..100).map(|number| (format!("X-{number}"), "y".to_owned()));
        many.headers.extend(more);
        let cases = [
            (lower_case(), 101),
            (with("Cookie", "a=b; c=\"d, e\""), 101),
            (with("Content-Length", "0"), 101),
            (many, 431),
            (with("Host", "evil.example"), 400),
            (with("X-Folded", "one\r\n two"), 400),
            (with("X Blank", "in the name"), 400),
            (with("Transfer-Encoding", "chunked"), 400),
            (with("Content-Length", "5"), 400),
            (with("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="), 400),
            (with("Sec-WebSocket-Version", "8"), 426),
            (Request::default().line("GET /mqtt HTTP/1.0"), 400),
            (Request::default().line("PRI * HTTP/2.0"), 400),
            (
                Request::default().line("GET http://localhost/mqtt HTTP/1.1"),
                404,
            ),
            (Request::default().line("get /mqtt HTTP/1.1"), 0),
        ];
        for (request, status) in cases {
            if status == 0 {
                // No HTTP at all: nothing is answered.
                assert_eq!(raw(&node, &request.bytes()).await, b"", "{request:?}");
                continue;
            }
            let socket = WebSocket::ask(node.listener("ws"), &request).await;
            assert_eq!(socket.response.status, status, "{request:?}");
        }
        bystanders.check().await;
    });
}

/// All that is answered to `bytes`.
async fn raw(node: &Broker, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(node.listener("ws"))
        .await
        .expect("it listens");
    stream.write_all(bytes).await.expect("it is open");
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let read = tokio::time::timeout(Duration::from_secs(10), read).await;
    read.expect("it is closed").expect("an orderly end");
    answer
}

#[test]
fn frames_may_follow_the_request_at_once_and_nothing_else() {
    block_on(async {
        let node = node();
        let request = Request::default().bytes();
        let address = node.listener("ws");
        let ask = async |behind: &[u8]| {
            let stream = TcpStream::connect(address).await.expect("it listens");
            let request = [&request[..], behind].concat();
            WebSocket::ask_raw(stream, &request).await
        };
        let packets = [
            frame(FIN | BINARY, CONNECT),
            frame(FIN | BINARY, b"\xC0\x00"),
        ];
        let mut socket = ask(&packets.concat()).await;
        socket.assert_granted();
        let mut came = Vec::new();
        while came.len() < CONNACK.len() + 2 {
            let (first, payload) = socket.next().await.expect("answers");
            assert_eq!(first, FIN | BINARY);
            came.extend(payload);
        }
        assert_eq!(came, [CONNACK, b"\xD0\x00"].concat());
        let mut socket = ask(CONNECT).await;
        socket.expect_close(1002).await;
    });
}

#[test]
fn no_extension_is_agreed_on() {
    block_on(async {
        let node = node();
        let request = with(
            "Sec-WebSocket-Extensions",
            "permessage-deflate; client_max_window_bits",
        );
        let mut socket = WebSocket::ask(node.listener("ws"), &request).await;
        socket.assert_granted();
        assert_eq!(socket.response.header("Sec-WebSocket-Extensions"), None);
        // Who compresses all the same sets the bit that says so.
        socket.send(FIN | 0x40 | BINARY, CONNECT).await;
        socket.expect_close(1002).await;
    });
}

#[test]
fn the_subprotocol_is_found_in_one_header_or_in_several() {
    block_on(async {
        let node = node();
        for (offers, selected) in [
            (&["mqtt"][..], Some("mqtt")),
            (&["chat", "mqtt"], Some("mqtt")),
            (&["mqttv3.1", "chat, mqtt"], Some("mqtt")),
            (&["chat", "mqttv3.1"], Some("mqttv3.1")),
            (&["chat", "MQTT"], None),
            (&["mqtt5"], None),
        ] {
            let mut request = Request::default().header("Sec-WebSocket-Protocol", None);
            let name = "Sec-WebSocket-Protocol";
            let headers = offers.iter().map(|offer| (name.into(), (*offer).into()));
            request.headers.extend(headers);
            let socket = WebSocket::ask(node.listener("ws"), &request).await;
            let status = if selected.is_some() { 101 } else { 400 };
            assert_eq!(socket.response.status, status, "{offers:?}");
            assert_eq!(socket.response.header(name), selected, "{offers:?}");
        }
    });
}

#[test]
fn browsers_come_from_listed_origins_only_however_they_say_it() {
    block_on(async {
        let node = Launch::new("origins")
            .bind("ws", ([127, 0, 0, 1], 0).into())
            .env("FLOTTE_LISTENER__WS__WS_ORIGINS", "https://good.example")
            .start();
        let good = with("Origin", "https://good.example");
        let mut both = good.clone();
        both.headers
            .push(("Origin".into(), "https://evil.example".into()));
        for (request, status) in [(good, 101), (both, 403), (with("Origin", "null"), 403)] {
            let socket = WebSocket::ask(node.listener("ws"), &request).await;
            assert_eq!(socket.response.status, status, "{request:?}");
        }
        let mut bytes = Request::default().bytes();
        bytes.truncate(bytes.len() - 2);
        bytes.extend(b"Origin: https://\xFF.example\r\n\r\n");
        let answer = raw(&node, &bytes).await;
        assert!(answer.starts_with(b"HTTP/1.1 403 "), "{answer:?}");
    });
}

/// A WebSocket on which a client of 3.1.1 was let in.
async fn accepted(node: &Broker) -> WebSocket {
    let mut socket = WebSocket::dial(node.listener("ws")).await;
    socket.send(FIN | BINARY, CONNECT).await;
    let connack = socket.next().await.expect("CONNACK");
    assert_eq!(connack, (FIN | BINARY, CONNACK.to_vec()));
    socket
}

#[test]
fn codes_of_a_close_are_answered_or_refused() {
    block_on(async {
        let node = node();
        for (code, answered) in [
            (1000, 1000),
            (1001, 1001),
            (1009, 1009),
            (3000, 3000),
            (4999, 4999),
            (0, 1002),
            (999, 1002),
            (1004, 1002),
            (1005, 1002),
            (1006, 1002),
            (1015, 1002),
            (5000, 1002),
        ] {
            let mut socket = accepted(&node).await;
            let payload = u16::to_be_bytes(code);
            socket.send(FIN | CLOSE, &payload).await;
            eprintln!("{code}");
            socket.expect_close(answered).await;
        }
        let mut socket = accepted(&node).await;
        socket.send(FIN | CLOSE, b"\x03\xE8\xFF\xFE").await;
        socket.expect_close(1007).await;
        let mut socket = accepted(&node).await;
        socket.send(FIN | CLOSE, b"").await;
        assert_eq!(socket.next().await, Some((FIN | CLOSE, Vec::new())));
        assert_eq!(socket.next().await, None);
    });
}

#[test]
fn a_ping_has_125_bytes_at_most_and_comes_back_whole() {
    block_on(async {
        let node = node();
        let mut socket = accepted(&node).await;
        for length in [0, 1, 124, 125] {
            let payload = vec![0xA5; length];
            socket.send(FIN | PING, &payload).await;
            assert_eq!(socket.next().await, Some((FIN | PONG, payload)));
        }
        // One that nobody asked for is no fault.
        socket.send(FIN | PONG, b"by itself").await;
        socket.send(FIN | BINARY, b"\xC0\x00").await;
        let pingresp = b"\xD0\x00".to_vec();
        assert_eq!(socket.next().await, Some((FIN | BINARY, pingresp)));
        socket.send_raw(&frame(FIN | PING, &[0; 126])).await;
        socket.expect_close(1002).await;
    });
}
