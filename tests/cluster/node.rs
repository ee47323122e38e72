//! One process: its exit codes, configuration errors, authentication and signals.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use flotte_tests::broker::{START_LIMIT, binary, fresh_dir};
use flotte_tests::{Client, Launch, Version, admin, block_on, connect, fresh, publish};

const BAD_CONFIGURATION: Option<i32> = Some(64);
const CANNOT_BIND: Option<i32> = Some(71);

/// The node ends with this code and its log names what is wrong.
fn refuses(launch: Launch, code: Option<i32>, words: &[&str]) {
    let (found, log) = launch.run_to_end(START_LIMIT);
    assert_eq!(found, code, "{log}");
    for word in words {
        assert!(log.contains(word), "the log does not name {word}:\n{log}");
    }
}

#[test]
fn sigterm_of_a_single_node_exits_0() {
    let mut node = Launch::new("single").start();
    assert!(admin::get(node.admin(), "/healthz").is_some_and(|(status, _)| status == 200));
    assert_eq!(node.sigterm(), Some(0), "{}", node.log());
}

#[test]
fn ready_single_node_serves_metrics_and_status() {
    let node = Launch::new("single").start();
    flotte_tests::cluster::wait_node_ready(&node);
    let (status, metrics) = admin::get(node.admin(), "/metrics").expect("metrics");
    assert_eq!(status, 200);
    assert!(metrics.contains("flotte_build_info"), "{metrics}");
    let status = admin::json(node.admin(), "/api/v1/status").expect("a status");
    assert_eq!(status["node"]["name"], "single");
    assert_eq!(
        status["nodes"].as_array().map(Vec::len),
        Some(1),
        "{status:#}"
    );
}

#[test]
fn unknown_key_is_refused_with_the_nearest_known_one() {
    let launch = Launch::new("bad").env("FLOTTE_MQTT__MAX_PAKET_SIZE", "1 MiB");
    refuses(launch, BAD_CONFIGURATION, &["FLOTTE_MQTT__MAX_PACKET_SIZE"]);
}

#[test]
fn bad_value_is_refused_with_key_and_value() {
    let launch = Launch::new("bad").env("FLOTTE_MQTT__RECEIVE_MAXIMUM", "many");
    refuses(launch, BAD_CONFIGURATION, &["receive_maximum", "many"]);
}

#[test]
fn public_listener_needs_authentication() {
    let launch = Launch::new("open").bind("mqtt", ([0, 0, 0, 0], 0).into());
    refuses(launch, BAD_CONFIGURATION, &["allow_anonymous"]);
}

#[test]
fn public_cluster_port_needs_a_word() {
    let launch = Launch::new("open").bind("cluster", ([0, 0, 0, 0], 0).into());
    refuses(launch, BAD_CONFIGURATION, &["insecure"]);
}

#[test]
fn busy_port_is_refused() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound");
    refuses(
        Launch::new("busy").bind("mqtt", address),
        CANNOT_BIND,
        &[&address.port().to_string()],
    );
}

/// A password file with one user, written by `flotte passwd`.
fn password_file(user: &str, password: &str) -> PathBuf {
    let path = fresh_dir("passwords").join("users");
    let mut command = Command::new(binary());
    command.arg("passwd").arg(&path).arg(user);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("flotte passwd starts");
    let mut input = child.stdin.take().expect("piped");
    writeln!(input, "{password}").expect("it reads its input");
    drop(input);
    let done = child.wait_with_output().expect("it ends");
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    path
}

fn guarded() -> Launch {
    let config = fresh_dir("config").join("flotte.toml");
    let users = password_file("ada", "secret");
    let text = format!(
        "[auth]\nallow_anonymous = false\nchain = [\"password-file\"]\n[auth.password-file]\nfile = {:?}\n",
        users.display().to_string()
    );
    std::fs::write(&config, text).expect("the file can be written");
    Launch::new("guarded")
        .arg("--config")
        .arg(config.display().to_string())
}

/// The code of the CONNACK, after which a refused connection ends.
async fn answer(
    node: &flotte_tests::Broker,
    version: Version,
    packet: flotte_tests::Connect,
) -> u8 {
    let mut client = Client::dial(node.mqtt(), version).await;
    client.send(packet).await;
    let code = client.recv_kind(2).await.reason();
    if code != 0 {
        client.expect_closed().await;
    }
    code
}

#[test]
fn wrong_password_is_refused() {
    block_on(async {
        let node = guarded().start();
        let right = || connect(fresh("c")).username("ada").password("secret");
        for version in [Version::V31, Version::V311, Version::V5] {
            assert_eq!(answer(&node, version, right()).await, 0);
        }
        let wrong = [
            connect(fresh("c")).username("ada").password("wrong"),
            connect(fresh("c")).username("eve").password("secret"),
            connect(fresh("c")).username("ada"),
            connect(fresh("c")),
        ];
        for packet in wrong {
            let code = answer(&node, Version::V311, packet.clone()).await;
            assert!(matches!(code, 4 | 5), "{packet:?}: {code}");
            let code = answer(&node, Version::V5, packet.clone()).await;
            assert!(matches!(code, 0x86 | 0x87), "{packet:?}: {code:#04x}");
        }
    });
}

/// The node that serves two listeners names both in its ready line, and serves through both.
#[test]
fn second_listener_comes_from_the_file() {
    block_on(async {
        let config = fresh_dir("config").join("flotte.toml");
        let text = "[[listener]]\nname = \"extra\"\nprotocol = \"mqtt\"\nbind = \"127.0.0.1:0\"\n";
        std::fs::write(&config, text).expect("the file can be written");
        let node = Launch::new("two")
            .arg("--config")
            .arg(config.display().to_string())
            .start();
        let topic = fresh("t");
        let extra = node.listener("extra");
        let mut one = Client::connect(node.mqtt(), Version::V5, connect(fresh("c"))).await;
        one.subscribe(&topic, 1).await;
        let mut other = Client::connect(extra, Version::V311, connect(fresh("c"))).await;
        other.publish(publish(&topic).qos1(1).payload("x")).await;
        one.take("x").await;
    });
}

/// Live clients hear the end of the node before it goes.
#[test]
fn clients_of_a_stopping_node_are_told() {
    let mut node = Launch::new("single").start();
    let mut client = block_on(Client::connect(
        node.mqtt(),
        Version::V5,
        connect(fresh("c")),
    ));
    client.patience = Duration::from_secs(15);
    assert_eq!(node.sigterm(), Some(0), "{}", node.log());
    drop(client);
}
