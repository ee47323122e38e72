//! Listeners with TLS: who comes in, who does not, and what a reload changes.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use flotte_tests::broker::STOP_LIMIT;
use flotte_tests::tls::{self, Authority, Identity};
use flotte_tests::websocket::{Request, WebSocket};
use flotte_tests::wire::prop;
use flotte_tests::{
    Broker, Client, Launch, Version, admin, block_on, connect, fresh, props, publish, until,
};
use rustls::HandshakeKind;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A node with a listener of each kind, all certificates from `authority`.
fn node(authority: &Authority) -> Launch {
    let mut launch = Launch::new("tls").env("FLOTTE_MQTT__CONNECT_TIMEOUT_S", 3);
    for listener in ["MQTTS", "WSS"] {
        let key = |name: &str| format!("FLOTTE_LISTENER__{listener}__{name}");
        let path = |name: &str| authority.path(name).display().to_string();
        launch = launch
            .env(&key("BIND"), "127.0.0.1:0")
            .env(&key("TLS__CERT"), path("server.pem"))
            .env(&key("TLS__KEY"), path("server.key"));
    }
    launch
}

/// The same, where clients are asked for certificates.
fn asking(authority: &Authority, client_cert: &str) -> Launch {
    let path = |name: &str| authority.path(name).display().to_string();
    node(authority)
        .env("FLOTTE_LISTENER__MQTTS__TLS__CLIENT_CERT", client_cert)
        .env("FLOTTE_LISTENER__MQTTS__TLS__CLIENT_CA", path("ca.pem"))
        .env("FLOTTE_LISTENER__MQTTS__TLS__CRL", path("crl.pem"))
}

async fn tls_client(node: &Broker, authority: &Authority, identity: Option<&Identity>) -> Client {
    let address = node.listener("mqtts");
    let client = authority.client_at(address, identity, Version::V5).await;
    client.accepted(connect(fresh("t"))).await
}

/// Whether a client with this certificate is let in; TLS 1.3 tells it only after its own handshake.
async fn is_let_in(node: &Broker, authority: &Authority, identity: Option<&Identity>) -> bool {
    let stream = authority.dial(node.listener("mqtts"), identity).await;
    let Ok(stream) = stream else { return false };
    let mut client = Client::over(stream, Version::V5);
    if client.try_send(connect(fresh("t"))).await.is_err() {
        return false;
    }
    matches!(client.next_or_end().await, Ok(Some(answer)) if answer.reason() == 0)
}

fn username(node: &Broker, client: &Client) -> Option<String> {
    let path = format!("/api/v1/clients/{}", client.name);
    let found = admin::json(node.admin(), &path).expect("it is connected");
    found["username"].as_str().map(str::to_owned)
}

#[test]
fn messages_go_through_every_kind_of_listener() {
    block_on(async {
        let authority = Authority::new();
        let node = node(&authority).start();
        let mut over_tls = tls_client(&node, &authority, None).await;
        let stream = authority
            .dial(node.listener("wss"), None)
            .await
            .expect("TLS");
        let socket = WebSocket::ask_over(stream, &Request::default()).await;
        socket.assert_granted();
        let over_wss = socket.into_client(Version::V5);
        let mut over_wss = over_wss.accepted(connect(fresh("t"))).await;
        let mut plain = Client::connect(node.mqtt(), Version::V5, connect(fresh("t"))).await;
        let topic = fresh("all");
        for client in [&mut over_tls, &mut over_wss, &mut plain] {
            client.subscribe(&topic, 2).await;
        }
        // From nothing to many records and frames.
        for size in [0, 1, 16_384, 400_000] {
            let payload = vec![7; size];
            over_wss
                .send(publish(&topic).qos1(1).payload(&payload))
                .await;
            for client in [&mut over_tls, &mut plain] {
                client.take(&payload).await;
            }
            let mut came = [over_wss.next().await, over_wss.next().await];
            came.sort_by_key(|packet| packet.kind());
            assert_eq!((came[0].kind(), came[1].kind()), (3, 4));
            assert_eq!(came[0].payload(), payload);
            over_wss.acknowledge(&came[0]).await;
        }
        over_tls.leave().await;
        over_wss.leave().await;
    });
}

#[test]
fn a_handshake_is_resumed_in_either_version() {
    block_on(async {
        let authority = Authority::new();
        let node = node(&authority).start();
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let mut roots = rustls::RootCertStore::empty();
            let pem = std::fs::read(authority.path("ca.pem")).expect("it was written");
            let ca = CertificateDer::from_pem_slice(&pem).expect("PEM");
            roots.add(ca).expect("an authority");
            let config = rustls::ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(&[version])
                .expect("a version of the provider")
                .with_root_certificates(roots)
                .with_no_client_auth();
            let config = Arc::new(config);
            for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
                let address = node.listener("mqtts");
                let mut stream = tls::dial(address, config.clone()).await.expect("TLS");
                stream
                    .write_all(b"\x10\x0C\x00\x04MQTT\x04\x02\x00\x00\x00\x00")
                    .await
                    .expect("open");
                let mut connack = [0; 4];
                // The ticket of 1.3 comes before it.
                stream.read_exact(&mut connack).await.expect("CONNACK");
                assert_eq!(connack, [0x20, 2, 0, 0]);
                assert_eq!(
                    stream.get_ref().1.handshake_kind(),
                    Some(expected),
                    "{version:?}"
                );
            }
        }
    });
}

#[test]
fn who_has_no_good_certificate_stays_outside_where_one_is_required() {
    block_on(async {
        let (authority, stranger) = (Authority::new(), Authority::new());
        authority.revoke(&[13]);
        let node = asking(&authority, "required")
            .env("FLOTTE_AUTH__CHAIN", "certificate")
            .start();
        let good = authority.client("device-7", 7);
        let client = tls_client(&node, &authority, Some(&good)).await;
        assert_eq!(username(&node, &client).as_deref(), Some("device-7"));
        for (name, identity) in [
            ("none", None),
            ("revoked", Some(authority.client("device-13", 13))),
            ("of a stranger", Some(stranger.client("device-7", 7))),
            ("over", Some(authority.client_of(2019, "device-7", 7))),
            ("of later", Some(authority.client_of(2119, "device-7", 7))),
        ] {
            let let_in = is_let_in(&node, &authority, identity.as_ref()).await;
            assert!(!let_in, "a certificate that is {name}");
        }
        assert!(is_let_in(&node, &authority, Some(&good)).await);
    });
}

/// As in most fleets: devices have their certificates from an authority below the one that is trusted.
#[test]
fn clients_of_an_intermediate_authority_are_known_by_their_chain_or_by_the_file() {
    block_on(async {
        let root = Authority::new();
        let plant = root.subordinate("the plant");
        plant.revoke(&[13]);
        let both = |name: &str| {
            let text = |of: &Authority| std::fs::read_to_string(of.path(name)).expect("a file");
            root.write(name, &[text(&root), text(&plant)].concat());
        };
        both("crl.pem");
        let node = asking(&root, "required")
            .env("FLOTTE_AUTH__CHAIN", "certificate")
            .start();
        let (device, revoked) = (plant.client("device-7", 7), plant.client("device-13", 13));
        let client = tls_client(&node, &root, Some(&device)).await;
        assert_eq!(username(&node, &client).as_deref(), Some("device-7"));
        let alone = |identity: &Identity| Identity {
            chain: Vec::new(),
            ..identity.clone()
        };
        assert!(!is_let_in(&node, &root, Some(&alone(&device))).await);
        assert!(!is_let_in(&node, &root, Some(&revoked)).await);
        both("ca.pem");
        node.sighup();
        until(STOP_LIMIT, "the file with both authorities", async || {
            is_let_in(&node, &root, Some(&alone(&device)))
                .await
                .then_some(())
        })
        .await;
        assert!(is_let_in(&node, &root, Some(&device)).await);
        for identity in [&revoked, &alone(&revoked)] {
            assert!(!is_let_in(&node, &root, Some(identity)).await);
        }
    });
}

/// Writes `users` with one user.
fn make_user(authority: &Authority, name: &str, password: &str) {
    let mut made = Command::new(flotte_tests::broker::binary())
        .arg("passwd")
        .arg(authority.path("users"))
        .arg(name)
        .stdin(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut stdin = made.stdin.take().expect("piped");
    writeln!(stdin, "{password}").expect("it is read");
    drop(stdin);
    assert!(made.wait().expect("it ends").success());
}

#[test]
fn without_a_certificate_the_next_method_is_asked() {
    block_on(async {
        let authority = Authority::new();
        make_user(&authority, "ann", "a");
        let node = asking(&authority, "optional")
            .env("FLOTTE_AUTH__CHAIN", "certificate,password-file")
            .env(
                "FLOTTE_AUTH__PASSWORD_FILE__FILE",
                authority.path("users").display(),
            )
            .start();
        let good = authority.client("device-7", 7);
        let client = tls_client(&node, &authority, Some(&good)).await;
        assert_eq!(username(&node, &client).as_deref(), Some("device-7"));
        let address = node.listener("mqtts");
        for (password, reason) in [("a", 0), ("b", 0x86)] {
            let mut client = authority.client_at(address, None, Version::V5).await;
            client
                .send(connect(fresh("t")).username("ann").password(password))
                .await;
            assert_eq!(client.next().await.reason(), reason);
        }
        let mut nobody = authority.client_at(address, None, Version::V5).await;
        nobody.send(connect(fresh("t"))).await;
        assert_eq!(nobody.next().await.reason(), 0x87);
    });
}

#[test]
fn a_reload_takes_new_files_and_leaves_who_is_there() {
    block_on(async {
        let authority = Authority::new();
        let node = asking(&authority, "required").start();
        let (seven, eight) = (authority.client("seven", 7), authority.client("eight", 8));
        let mut there = tls_client(&node, &authority, Some(&seven)).await;
        let shown = async |identity: &Identity| {
            let stream = authority.dial(node.listener("mqtts"), Some(identity)).await;
            let stream = stream.expect("a handshake");
            let chain = stream.get_ref().1.peer_certificates().expect("one");
            chain[0].clone().into_owned()
        };
        let before = shown(&eight).await;
        authority.revoke(&[7]);
        let renewed = authority.renew_server();
        node.sighup();
        until(STOP_LIMIT, "the new certificate", async || {
            (shown(&eight).await == renewed.cert).then_some(())
        })
        .await;
        assert_ne!(before, renewed.cert);
        assert!(
            !is_let_in(&node, &authority, Some(&seven)).await,
            "revoked by now"
        );
        there.fence().await;
        // What cannot be read changes nothing, and is said.
        authority.write("server.key", "no key");
        node.sighup();
        until(STOP_LIMIT, "a word about the key", async || {
            node.logged("listener.mqtts.tls.key").then_some(())
        })
        .await;
        assert_eq!(shown(&eight).await, renewed.cert);
        there.fence().await;
    });
}

#[test]
fn files_that_cannot_be_used_end_the_start() {
    let authority = Authority::new();
    let other = Authority::new().renew_server();
    for (file, text, key) in [
        (
            "server.key",
            other.key_pem.as_str(),
            "listener.mqtts.tls.key",
        ),
        ("server.pem", "nothing", "listener.mqtts.tls.cert"),
    ] {
        authority.renew_server();
        authority.write(file, text);
        let (code, log) = node(&authority).run_to_end(STOP_LIMIT);
        assert_eq!(code, Some(64), "{log}");
        assert!(log.contains(key), "{log}");
    }
}

#[test]
fn who_speaks_something_else_is_closed_without_a_word() {
    block_on(async {
        let authority = Authority::new();
        let node = node(&authority).start();
        let mqtt = b"\x10\x0C\x00\x04MQTT\x04\x02\x00\x00\x00\x00".to_vec();
        let hello = [
            &b"\x16\x03\x01\x00\x20\x01\x00\x00\x1C\x03\x03"[..],
            &[0; 26],
        ]
        .concat();
        for (listener, bytes) in [("mqtts", &mqtt), ("wss", &mqtt), ("mqtt", &hello)] {
            let mut stream = TcpStream::connect(node.listener(listener))
                .await
                .expect("it listens");
            stream.write_all(bytes).await.expect("it is open");
            let mut answer = Vec::new();
            let read = stream.read_to_end(&mut answer);
            let read = tokio::time::timeout(Duration::from_secs(2), read).await;
            read.expect("closed at once").expect("an orderly end");
            assert!(answer.is_empty(), "{listener}: {answer:02x?}");
        }
    });
}

#[test]
fn the_last_words_arrive_though_the_client_still_sends() {
    block_on(async {
        let authority = Authority::new();
        let node = node(&authority)
            .bind("ws", ([127, 0, 0, 1], 0).into())
            .start();
        let over_tls = authority
            .client_at(node.listener("mqtts"), None, Version::V5)
            .await;
        let over_ws = WebSocket::dial(node.listener("ws"))
            .await
            .into_client(Version::V5);
        let plain = Client::dial(node.mqtt(), Version::V5).await;
        for (name, client) in [("tls", over_tls), ("ws", over_ws), ("plain", plain)] {
            let mut client = client.accepted(connect(fresh("t"))).await;
            // Packet type 0 is forbidden; what follows is never read by the session.
            let junk = [vec![0, 0], vec![0; 200_000]].concat();
            let _ = client.try_send_raw(&junk).await;
            let words = client.next_or_end().await.expect("in time");
            let words = words.unwrap_or_else(|| panic!("{name}: closed without a word"));
            assert_eq!((words.kind(), words.reason()), (14, 0x81), "{name}");
            client.expect_closed().await;
        }
    });
}

#[test]
fn a_takeover_across_listeners_is_told() {
    block_on(async {
        let authority = Authority::new();
        let node = node(&authority).start();
        let id = fresh("same");
        let expiry = || props().u32(prop::SESSION_EXPIRY, 60);
        let first = authority
            .client_at(node.listener("mqtts"), None, Version::V5)
            .await;
        let mut first = first.accepted(connect(&id).props(expiry())).await;
        let second = connect(&id).resume().props(expiry());
        let second = Client::connect(node.mqtt(), Version::V5, second).await;
        assert!(second.session_present());
        let words = first.next().await;
        assert_eq!((words.kind(), words.reason()), (14, 0x8E));
        first.expect_closed().await;
    });
}
