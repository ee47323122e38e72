//! MQTT over WebSocket: frames cut in every way, and clients that do not keep to RFC 6455.

use std::time::Duration;

use flotte_tests::websocket::{
    BINARY, CLOSE, CONTINUATION, FIN, FramePlan, PING, Request, TEXT, WebSocket, frame, head,
};
use flotte_tests::{Broker, Client, Launch, Version, block_on, connect, fresh, publish};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What a node may grow by, whatever its clients send.
const GROWTH_KIB_MAX: u64 = 32 * 1024;

fn node() -> Launch {
    Launch::new("ws")
        .bind("ws", ([127, 0, 0, 1], 0).into())
        .env("FLOTTE_MQTT__CONNECT_TIMEOUT_S", 3)
}

const CONNECT: &[u8] = b"\x10\x0C\x00\x04MQTT\x04\x02\x00\x00\x00\x00";
const CONNACK: &[u8] = b"\x20\x02\x00\x00";

/// A WebSocket on which a client of 3.1.1 was let in.
async fn accepted(node: &Broker) -> WebSocket {
    let mut socket = WebSocket::dial(node.listener("ws")).await;
    socket.send(FIN | BINARY, CONNECT).await;
    let connack = socket.next().await.expect("CONNACK");
    assert_eq!(connack, (FIN | BINARY, CONNACK.to_vec()));
    socket
}

#[test]
fn packets_arrive_however_they_are_cut_into_frames() {
    block_on(async {
        let node = node().start();
        let plans = [
            (usize::MAX, usize::MAX, false),
            (1, usize::MAX, false),
            (1, 1, true),
            (3, 2, true),
            (130, 7, false),
            (70_000, 999, true),
        ];
        for version in [Version::V31, Version::V311, Version::V5] {
            for (payload, piece, fragments) in plans {
                let plan = FramePlan {
                    payload,
                    piece,
                    fragments,
                };
                let socket = WebSocket::dial(node.listener("ws")).await;
                let client = socket.into_client_with(version, plan);
                let mut client = client.accepted(connect(fresh("w"))).await;
                let topic = fresh("frames");
                client.subscribe(&topic, 0).await;
                // A frame for every few bytes of a large message is work for a debug build.
                let sizes: &[usize] = match (payload, piece) {
                    (_, 1) => &[300],
                    (1 | 3, _) => &[1, 300, 10_000],
                    _ => &[1, 300, 150_000],
                };
                for size in sizes {
                    let message = vec![b'x'; *size];
                    client.send(publish(&topic).payload(&message)).await;
                    client.take(&message).await;
                }
                client.leave().await;
            }
        }
    });
}

#[test]
fn a_request_that_is_not_right_gets_its_status() {
    block_on(async {
        let node = node()
            .env("FLOTTE_LISTENER__WS__WS_ORIGINS", "https://good.example")
            .start();
        let request = Request::default;
        let cases = [
            (request().line("GET /other HTTP/1.1"), 404),
            (request().line("POST /mqtt HTTP/1.1"), 405),
            (request().header("Upgrade", None), 426),
            (request().header("Sec-WebSocket-Version", Some("8")), 426),
            (request().header("Sec-WebSocket-Key", Some("short")), 400),
            (request().header("Sec-WebSocket-Protocol", None), 400),
            (
                request().header("Sec-WebSocket-Protocol", Some("chat")),
                400,
            ),
            (
                request().header("Origin", Some("https://evil.example")),
                403,
            ),
            (request().header("X-Long", Some(&"x".repeat(9_000))), 431),
            (
                request().header("Origin", Some("https://good.example")),
                101,
            ),
            (request().line("GET /mqtt?token=1 HTTP/1.1"), 101),
        ];
        for (request, status) in cases {
            let socket = WebSocket::ask(node.listener("ws"), &request).await;
            assert_eq!(socket.response.status, status, "{request:?}");
        }
    });
}

#[test]
fn the_subprotocol_is_selected_by_its_exact_name() {
    block_on(async {
        let node = node().start();
        for (offer, selected) in [
            ("mqtt", "mqtt"),
            ("chat, mqttv3.1, mqtt", "mqtt"),
            ("mqttv3.1", "mqttv3.1"),
        ] {
            let request = Request::default().header("Sec-WebSocket-Protocol", Some(offer));
            let socket = WebSocket::ask(node.listener("ws"), &request).await;
            socket.assert_granted();
            let found = socket.response.header("Sec-WebSocket-Protocol");
            assert_eq!(found, Some(selected), "{offer}");
        }
    });
}

#[test]
fn what_breaks_the_rules_of_frames_is_closed_with_its_code() {
    block_on(async {
        let node = node().start();
        let pingreq: &[u8] = b"\xC0\x00";
        let cases: Vec<(&str, Vec<u8>, u16)> = vec![
            ("text", frame(FIN | TEXT, pingreq), 1003),
            ("unmasked", [&[FIN | BINARY, 2], pingreq].concat(), 1002),
            ("RSV1", frame(FIN | 0x40 | BINARY, pingreq), 1002),
            ("RSV2", frame(FIN | 0x20 | BINARY, pingreq), 1002),
            ("RSV3", frame(FIN | 0x10 | BINARY, pingreq), 1002),
            ("opcode 3", frame(FIN | 3, pingreq), 1002),
            ("fragmented ping", frame(PING, b""), 1002),
            ("long ping", frame(FIN | PING, &[0; 126]), 1002),
            (
                "lone continuation",
                frame(FIN | CONTINUATION, pingreq),
                1002,
            ),
            ("terabytes", head(FIN | BINARY, 1 << 40), 1009),
            ("negative", head(FIN | BINARY, 1 << 63), 1002),
            ("half a code", frame(FIN | CLOSE, b"\x03"), 1002),
        ];
        for (name, bytes, code) in cases {
            let mut socket = accepted(&node).await;
            let mask = if bytes.len() < 15 { &[0; 4][..] } else { &[] };
            socket.send_raw(&[&bytes[..], mask].concat()).await;
            eprintln!("{name}");
            socket.expect_close(code).await;
        }
    });
}

#[test]
fn a_close_is_answered_and_pings_too() {
    block_on(async {
        let node = node().start();
        let mut socket = accepted(&node).await;
        socket.send(FIN | PING, b"are you there").await;
        let pong = socket.next().await.expect("a pong");
        assert_eq!(pong, (FIN | 0x0A, b"are you there".to_vec()));
        socket.send(FIN | CLOSE, b"\x03\xE8bye").await;
        socket.expect_close(1000).await;
        // DISCONNECT is the end of MQTT; the WebSocket ends in order, too.
        let mut socket = accepted(&node).await;
        socket.send(FIN | BINARY, b"\xE0\x00").await;
        socket.expect_close(1000).await;
    });
}

#[test]
fn bombs_cost_nothing_and_others_go_on() {
    block_on(async {
        let node = node().start();
        let mut there = Client::connect(node.mqtt(), Version::V5, connect(fresh("w"))).await;
        accepted(&node).await;
        let before = node.resident_kib();
        let mut bombs = Vec::new();
        for _ in 0..20 {
            // A frame of the largest size, and what fits into the socket of it.
            let mut socket = WebSocket::dial(node.listener("ws")).await;
            let start = [head(FIN | BINARY, 16 << 20), vec![0; 4]].concat();
            socket.send_raw(&start).await;
            let _ = socket.try_send_raw(&vec![0x30; 1 << 20]).await;
            bombs.push(socket);
            // Fragments without end and without data.
            let mut socket = accepted(&node).await;
            let _ = socket.try_send_raw(&frame(BINARY, b"")).await;
            let _ = socket
                .try_send_raw(&frame(CONTINUATION, b"").repeat(5_000))
                .await;
            socket.expect_close(1008).await;
            // Pings, and nobody who reads the answers.
            let mut socket = accepted(&node).await;
            let pings = frame(FIN | PING, &[1; 125]).repeat(100);
            for _ in 0..200 {
                let sent = socket.try_send_raw(&pings);
                if tokio::time::timeout(Duration::from_millis(500), sent)
                    .await
                    .is_err()
                {
                    break;
                }
            }
            bombs.push(socket);
        }
        there.fence().await;
        let grown = node.resident_kib().saturating_sub(before);
        assert!(grown < GROWTH_KIB_MAX, "{grown} KiB");
    });
}

#[test]
fn half_a_request_ends_with_the_connect_timeout() {
    block_on(async {
        let node = node().start();
        let mut streams = Vec::new();
        for bytes in [&b""[..], b"GET /mqtt HTT", &Request::default().bytes()] {
            let mut stream = TcpStream::connect(node.listener("ws"))
                .await
                .expect("it listens");
            stream.write_all(bytes).await.expect("it is open");
            streams.push(stream);
        }
        for mut stream in streams {
            let mut end = Vec::new();
            let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut end));
            read.await
                .expect("connect timeout")
                .expect("an orderly end");
        }
    });
}
