//! Thousands of TLS handshakes that never end, while others connect and publish.

use std::sync::Arc;
use std::time::Duration;

use flotte_tests::tls::Authority;
use flotte_tests::{Broker, Client, Launch, Version, block_on, connect, fresh, publish, skip};
use rustls::ClientConnection;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::watch::Watch;
use super::{raise_open_files, wait_few_files};

/// Of each kind; three kinds.
const COUNT: usize = 1_667;
/// Long enough that all are there at once on a slow machine, too.
const CONNECT_TIMEOUT_S: u64 = 8;
/// What one that was accepted, or that sent three bytes, may cost.
const SILENT_KIB_MAX: u64 = 8;
/// What one may cost whose server has answered and waits for the rest.
const ANSWERED_KIB_MAX: u64 = 16;

fn node(authority: &Authority) -> Launch {
    let path = |name: &str| authority.path(name).display().to_string();
    Launch::new("handshakes")
        .env("FLOTTE_MQTT__CONNECT_TIMEOUT_S", CONNECT_TIMEOUT_S)
        .env("FLOTTE_LISTENER__MQTTS__BIND", "127.0.0.1:0")
        .env("FLOTTE_LISTENER__MQTTS__TLS__CERT", path("server.pem"))
        .env("FLOTTE_LISTENER__MQTTS__TLS__KEY", path("server.key"))
}

/// The first message of a client.
fn client_hello(authority: &Authority) -> Vec<u8> {
    let config = Arc::new(authority.client_config(None));
    let name = "localhost".try_into().expect("a name");
    let mut client = ClientConnection::new(config, name).expect("a client");
    let mut hello = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut hello).expect("memory");
    }
    hello
}

/// Opens connections that send `bytes`, and waits until the node has answered where it does.
async fn half_open(node: &Broker, bytes: &[u8], is_answered: bool) -> Vec<TcpStream> {
    let mut streams = Vec::with_capacity(COUNT);
    for _ in 0..COUNT {
        let stream = TcpStream::connect(node.listener("mqtts")).await;
        let mut stream = stream.expect("it listens");
        stream.write_all(bytes).await.expect("it is open");
        streams.push(stream);
    }
    for stream in &mut streams {
        if is_answered {
            let mut kind = [0];
            stream.read_exact(&mut kind).await.expect("an answer");
            assert_eq!(kind, [0x16], "a handshake goes on");
        }
    }
    streams
}

/// Someone connects over TLS, publishes, and gets the message.
async fn serve_another(node: &Broker, authority: &Authority) {
    let address = node.listener("mqtts");
    let client = authority.client_at(address, None, Version::V5).await;
    let mut client = client.accepted(connect(fresh("h"))).await;
    let topic = fresh("meanwhile");
    client.subscribe(&topic, 1).await;
    let mut plain = Client::connect(node.mqtt(), Version::V311, connect(fresh("h"))).await;
    plain.publish(publish(&topic).qos1(1).payload("fine")).await;
    client.take("fine").await;
    client.leave().await;
}

#[test]
fn five_thousand_half_open_handshakes_cost_little_and_end() {
    if let Err(why) = raise_open_files(3 * COUNT as u64 + 500) {
        skip!(why);
    }
    block_on(async {
        let authority = Authority::new();
        let node = node(&authority).start();
        serve_another(&node, &authority).await;
        let hello = client_hello(&authority);
        let watch = Watch::begin(&node).await;
        let mut open = Vec::new();
        let mut before = node.resident_kib();
        for (what, bytes, kib_max) in [
            ("accepted, nothing sent", &b""[..], SILENT_KIB_MAX),
            ("three bytes sent", &b"\x16\x03\x01"[..], SILENT_KIB_MAX),
            ("a client hello sent", &hello, ANSWERED_KIB_MAX),
        ] {
            open.extend(half_open(&node, bytes, kib_max == ANSWERED_KIB_MAX).await);
            serve_another(&node, &authority).await;
            let now = node.resident_kib();
            let grown = now.saturating_sub(before);
            eprintln!("{what}: {:.1} KiB each", grown as f64 / COUNT as f64);
            assert!(grown <= COUNT as u64 * kib_max, "{what}: {grown} KiB");
            before = now;
        }
        let peak = watch.grown_kib();
        for mut stream in open {
            let mut end = Vec::new();
            let limit = Duration::from_secs(CONNECT_TIMEOUT_S + 20);
            let read = tokio::time::timeout(limit, stream.read_to_end(&mut end));
            // It may be a reset: what the node said last is unread.
            let _ = read.await.expect("the connect timeout ends it");
        }
        wait_few_files(&node).await;
        serve_another(&node, &authority).await;
        // What was freed serves again, whether or not the allocator gave it back.
        let again = half_open(&node, &hello, true).await;
        let grown = watch.grown_kib();
        assert!(
            grown <= peak + peak / 8 + 2 * 1024,
            "{grown} KiB, {peak} before"
        );
        drop(again);
        watch.end().await;
    });
}
