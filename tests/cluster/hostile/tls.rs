//! TLS peers that do what no honest client does, and ends of connections that are not in order.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use flotte_tests::tls::{self, Authority, Identity};
use flotte_tests::wire::text;
use flotte_tests::{
    Broker, Client, Launch, Packet as _, Version, block_on, connect, fresh, publish, skip,
    subscribe, will,
};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Bystanders;

const ALERT: u8 = 0x15;
const HANDSHAKE: u8 = 0x16;
const PROTOCOL_VERSION: u8 = 70;
/// Within it every answer must come.
const ANSWER: Duration = Duration::from_secs(10);

fn node(authority: &Authority, client_cert: &str) -> Launch {
    let mut launch = Launch::new("tls-hostile").env("FLOTTE_MQTT__CONNECT_TIMEOUT_S", 3);
    for listener in ["MQTTS", "WSS"] {
        let key = |name: &str| format!("FLOTTE_LISTENER__{listener}__{name}");
        let path = |name: &str| authority.path(name).display().to_string();
        launch = launch
            .env(&key("BIND"), "127.0.0.1:0")
            .env(&key("TLS__CERT"), path("server.pem"))
            .env(&key("TLS__KEY"), path("server.key"))
            .env(&key("TLS__CLIENT_CA"), path("ca.pem"))
            .env(&key("TLS__CLIENT_CERT"), client_cert);
    }
    launch
}

async fn client(node: &Broker, authority: &Authority) -> Client {
    let address = node.listener("mqtts");
    authority.client_at(address, None, Version::V5).await
}

/// A client hello by hand: this version, ECDHE with ECDSA and AES-GCM, and what else is put there.
fn hello(version: [u8; 2], server_name: Option<&[u8]>) -> Vec<u8> {
    let extension = |kind: u16, body: &[u8]| {
        let kind = kind.to_be_bytes();
        [&kind[..], &text(body)].concat()
    };
    let mut extensions = [
        extension(10, &[0, 2, 0, 23]),
        extension(11, &[1, 0]),
        extension(13, &[0, 2, 4, 3]),
    ]
    .concat();
    if let Some(name) = server_name {
        let entry = [&[0][..], &text(name)].concat();
        extensions.extend(extension(0, &text(&entry)));
    }
    let body = [
        &version[..],
        &[7; 32],
        &[0],
        &[0, 6, 0xC0, 0x2B, 0xC0, 0x09, 0x00, 0xFF],
        &[1, 0],
        &text(&extensions),
    ]
    .concat();
    let length = u32::try_from(body.len()).expect("short").to_be_bytes();
    let message = [&[1], &length[1..], &body].concat();
    [&[HANDSHAKE, 3, 1][..], &text(&message)].concat()
}

/// What the node answers until it closes, or until a first flight is there.
async fn answer(node: &Broker, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(node.listener("mqtts"))
        .await
        .expect("it listens");
    stream.write_all(bytes).await.expect("it is open");
    let mut came = Vec::new();
    let read = stream.read_buf(&mut came);
    let read = tokio::time::timeout(ANSWER, read).await;
    read.expect("an answer").expect("no reset");
    came
}

#[test]
fn versions_before_1_2_are_refused_with_their_alert() {
    block_on(async {
        let authority = Authority::new();
        let node = node(&authority, "none").start();
        for version in [[3, 0], [3, 1], [3, 2]] {
            let came = answer(&node, &hello(version, None)).await;
            assert_eq!(came.first(), Some(&ALERT), "{version:?}: {came:02x?}");
            assert_eq!(came[5..7], [2, PROTOCOL_VERSION], "{version:?}");
        }
        let came = answer(&node, &hello([3, 3], None)).await;
        assert_eq!(came.first(), Some(&HANDSHAKE), "{came:02x?}");
    });
}

#[test]
fn every_server_name_is_answered() {
    block_on(async {
        let authority = Authority::new();
        let node = node(&authority, "none").start();
        let mut bystanders = Bystanders::at(&node).await;
        let long = [b'x'; 300];
        for (name, expected) in [
            (&b"localhost"[..], HANDSHAKE),
            (b"LOCALHOST", HANDSHAKE),
            (b"nobody.example", HANDSHAKE),
            (b"my_broker", HANDSHAKE),
            // No name, but many clients send it.
            (b"127.0.0.1", HANDSHAKE),
            (b"", ALERT),
            (b"a..b", ALERT),
            (b"a\0b", ALERT),
            (b"\xFF\xFE", ALERT),
            (&long, ALERT),
        ] {
            let came = answer(&node, &hello([3, 3], Some(name))).await;
            let shown = String::from_utf8_lossy(name);
            assert_eq!(came.first(), Some(&expected), "{shown}: {came:02x?}");
        }
        bystanders.check().await;
    });
}

#[test]
fn a_protocol_is_agreed_on_or_the_handshake_fails() {
    block_on(async {
        let authority = Authority::new();
        let node = node(&authority, "none").start();
        for (listener, offered, selected) in [
            ("mqtts", &["mqtt"][..], Some("mqtt")),
            ("mqtts", &["h2", "x-amzn-mqtt-ca"], Some("x-amzn-mqtt-ca")),
            ("wss", &["h2", "http/1.1"], Some("http/1.1")),
            ("mqtts", &["h2"], None),
            ("mqtts", &["MQTT"], None),
            ("wss", &["h2"], None),
        ] {
            let mut config = authority.client_config(None);
            config.alpn_protocols = offered.iter().map(|name| (*name).into()).collect();
            let dialled = tls::dial(node.listener(listener), config.into()).await;
            let agreed = dialled.as_ref().ok().map(|stream| {
                let protocol = stream.get_ref().1.alpn_protocol();
                protocol.expect("one was agreed on")
            });
            assert_eq!(agreed, selected.map(str::as_bytes), "{offered:?}");
        }
        // Who offers none is let in.
        let client = client(&node, &authority).await;
        client.accepted(connect(fresh("a"))).await.leave().await;
    });
}

/// Whether a client with this chain is let in; TLS 1.3 tells it only after its own handshake.
async fn is_let_in(
    node: &Broker,
    authority: &Authority,
    chain: Vec<CertificateDer<'static>>,
    key: &Identity,
) -> bool {
    let mut config = authority.client_config(Some(key));
    let provider = Arc::clone(config.crypto_provider());
    let signing = provider.key_provider.load_private_key(key.key.clone_key());
    let certified = rustls::sign::CertifiedKey::new(chain, signing.expect("a key"));
    config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(certified));
    let Ok(stream) = tls::dial(node.listener("mqtts"), config.into()).await else {
        return false;
    };
    let mut client = Client::over(stream, Version::V5);
    if client.try_send(connect(fresh("c"))).await.is_err() {
        return false;
    }
    matches!(client.next_or_end().await, Ok(Some(answer)) if answer.reason() == 0)
}

#[test]
fn chains_without_end_and_certificates_out_of_time_stay_outside() {
    block_on(async {
        let authority = Authority::new();
        let node = node(&authority, "required").start();
        let mut bystanders = Bystanders::at(&node).await;
        let good = authority.client("good", 1);
        let chain = |count| vec![good.cert.clone(); count];
        assert!(is_let_in(&node, &authority, chain(1), &good).await);
        let before = node.resident_kib();
        for _ in 0..20 {
            // A message of more than 64 KiB is none; one below may hold what nobody needs.
            assert!(!is_let_in(&node, &authority, chain(1_000), &good).await);
            is_let_in(&node, &authority, chain(100), &good).await;
        }
        let grown = node.resident_kib().saturating_sub(before);
        assert!(grown < 16 * 1024, "{grown} KiB");
        for (what, from, to) in [("past", 2000, 2001), ("future", 2100, 2101)] {
            let other = authority.client_between("other", from, to);
            let let_in = is_let_in(&node, &authority, vec![other.cert.clone()], &other).await;
            assert!(!let_in, "a certificate of the {what}");
        }
        // The certificate of another with a key of one's own.
        let thief = authority.client("thief", 2);
        assert!(!is_let_in(&node, &authority, chain(1), &thief).await);
        assert!(is_let_in(&node, &authority, chain(1), &good).await);
        bystanders.check().await;
    });
}

#[test]
fn a_will_goes_out_however_the_connection_is_cut() {
    block_on(async {
        let authority = Authority::new();
        let node = node(&authority, "none").start();
        for ending in ["close_notify", "end of the stream alone", "reset"] {
            let topic = fresh("will");
            let mut watcher = Client::connect(node.mqtt(), Version::V5, connect(fresh("w"))).await;
            watcher.subscribe(&topic, 0).await;
            let mut stream = authority
                .dial(node.listener("mqtts"), None)
                .await
                .expect("TLS");
            let hello = connect(fresh("w")).will(will(&topic, ending));
            let hello = hello.encode(Version::V5);
            stream.write_all(&hello).await.expect("open");
            let mut first = [0];
            stream.read_exact(&mut first).await.expect("CONNACK");
            assert_eq!(first, [0x20]);
            match ending {
                // Its own side only: the node has to close the other.
                "close_notify" => {
                    stream.shutdown().await.expect("open");
                    let mut rest = Vec::new();
                    let read = tokio::time::timeout(ANSWER, stream.read_to_end(&mut rest));
                    read.await.expect("closed").expect("with a close_notify");
                }
                "reset" => {
                    let (socket, _) = stream.into_inner();
                    socket.set_zero_linger().expect("a socket");
                    drop(socket);
                }
                _ => drop(stream.into_inner()),
            }
            watcher.take(ending).await;
        }
    });
}

#[test]
fn what_came_before_a_close_notify_counts() {
    block_on(async {
        let authority = Authority::new();
        let node = node(&authority, "none").start();
        let topic = fresh("last");
        let mut watcher = Client::connect(node.mqtt(), Version::V5, connect(fresh("w"))).await;
        watcher.subscribe(&topic, 0).await;
        let mut stream = authority
            .dial(node.listener("mqtts"), None)
            .await
            .expect("TLS");
        let hello = connect(fresh("w")).encode(Version::V5);
        let all = [hello, publish(&topic).payload("last").encode(Version::V5)].concat();
        let (_, session) = stream.get_mut();
        std::io::Write::write_all(&mut session.writer(), &all).expect("memory");
        session.send_close_notify();
        stream.flush().await.expect("open");
        watcher.take("last").await;
    });
}

#[test]
fn records_of_one_byte_are_put_together() {
    block_on(async {
        let authority = Authority::new();
        let node = node(&authority, "none").start();
        let mut client = client(&node, &authority).await;
        client.version = Version::V311;
        let topic = fresh("bytes");
        let payload = vec![b'x'; 2_000];
        for (packet, answer) in [
            (connect(fresh("b")).encode(Version::V311), 2),
            (subscribe(1).to(&topic, 0).encode(Version::V311), 9),
            (publish(&topic).payload(&payload).encode(Version::V311), 3),
        ] {
            for byte in packet {
                client.send_raw(&[byte]).await;
            }
            let answered = client.next().await;
            assert_eq!(answered.kind(), answer);
            if answer == 3 {
                assert_eq!(answered.payload(), payload);
            }
        }
    });
}

/// Of OpenSSL, which asks for a new handshake when it reads "R".
#[test]
fn a_renegotiation_is_refused_and_the_node_goes_on() {
    if Command::new("openssl").arg("version").output().is_err() {
        skip!("there is no openssl here");
    }
    block_on(async {
        let authority = Authority::new();
        let node = node(&authority, "none").start();
        let mut bystanders = Bystanders::at(&node).await;
        let mut peer = Command::new("openssl")
            .args(["s_client", "-tls1_2", "-connect"])
            .arg(node.listener("mqtts").to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it is there");
        let mut stdin = peer.stdin.take().expect("piped");
        stdin.write_all(b"R\n").expect("it reads");
        let done = tokio::task::spawn_blocking(move || peer.wait_with_output());
        let done = tokio::time::timeout(2 * ANSWER, done).await;
        let done = done.expect("it ends").expect("no panic").expect("output");
        drop(stdin);
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(said.contains("RENEGOTIATING"), "{said}");
        assert!(!done.status.success(), "{said}");
        bystanders.check().await;
    });
}
