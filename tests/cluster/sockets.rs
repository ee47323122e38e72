//! Unix sockets, and what a listener does when no more sockets can be had.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use flotte_tests::broker::{STOP_LIMIT, binary, fresh_dir};
use flotte_tests::{Client, Launch, Version, admin, block_on, connect, fresh, publish, until};

/// A node with a unix socket, and its path.
fn node(name: &str) -> (Launch, PathBuf) {
    let path = fresh_dir("socket").join("mqtt.sock");
    (with_socket(name, &path), path)
}

fn with_socket(name: &str, path: &Path) -> Launch {
    Launch::new(name).env("FLOTTE_LISTENER__UNIX__BIND", path.display())
}

#[test]
fn a_unix_socket_carries_mqtt_and_goes_with_the_node() {
    block_on(async {
        let (launch, path) = node("unix");
        let mut node = launch.start();
        let mode = std::fs::metadata(&path)
            .expect("it is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o660);
        let unix = Client::dial_unix(&path, Version::V5).await;
        let mut unix = unix.accepted(connect(fresh("u"))).await;
        let mut tcp = Client::connect(node.mqtt(), Version::V311, connect(fresh("u"))).await;
        let path_of = |id: &str| format!("/api/v1/clients/{id}");
        let shown = admin::json(node.admin(), &path_of(&unix.name)).expect("it is connected");
        assert_eq!(shown["address"], "unix");
        let topic = fresh("unix");
        for client in [&mut unix, &mut tcp] {
            client.subscribe(&topic, 1).await;
        }
        let payload = vec![9; 300_000];
        unix.send(publish(&topic).payload(&payload)).await;
        unix.take(&payload).await;
        tcp.take(&payload).await;
        unix.leave().await;
        tcp.leave().await;
        assert_eq!(node.sigterm(), Some(0));
        assert!(!path.exists());
    });
}

#[test]
fn the_socket_of_a_dead_process_is_replaced_and_that_of_a_live_one_is_not() {
    block_on(async {
        let (launch, path) = node("unix");
        let mut node = launch.start();
        node.kill9();
        assert!(path.exists());
        node.restart();
        let client = Client::dial_unix(&path, Version::V311).await;
        client.accepted(connect(fresh("u"))).await.leave().await;
        let (code, log) = with_socket("second", &path).run_to_end(STOP_LIMIT);
        assert_eq!(code, Some(71), "{log}");
        let client = Client::dial_unix(&path, Version::V311).await;
        client.accepted(connect(fresh("u"))).await.leave().await;
    });
}

#[test]
fn a_node_without_file_descriptors_takes_clients_again_when_it_has_some() {
    const FILES_MAX: usize = 150;
    block_on(async {
        use std::os::unix::fs::PermissionsExt as _;
        let script = fresh_dir("few-files").join("flotte");
        let text = format!(
            "#!/bin/sh\nulimit -n {FILES_MAX}\nexec {} \"$@\"\n",
            binary().display()
        );
        std::fs::write(&script, text).expect("it is ours");
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("ours");
        let node = Launch::new("starved").program(&script).start();
        let mut there = Client::connect(node.mqtt(), Version::V5, connect(fresh("e"))).await;
        let mut many = Vec::new();
        for _ in 0..2 * FILES_MAX {
            many.push(Client::dial(node.mqtt(), Version::V5).await);
        }
        until(STOP_LIMIT, "a word about it", async || {
            node.logged("no more clients can be accepted").then_some(())
        })
        .await;
        there.fence().await;
        drop(many);
        let late = Client::connect(node.mqtt(), Version::V5, connect(fresh("e"))).await;
        late.leave().await;
        there.fence().await;
        let said = node
            .log()
            .matches("no more clients can be accepted")
            .count();
        assert_eq!(said, 1, "once for each spell\n{}", node.log());
    });
}
