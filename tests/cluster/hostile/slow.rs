//! Those that are slow on purpose: a byte now and then, in CONNECT or later, and CONNECTs that grow and never end.

use std::time::{Duration, Instant};

use flotte_tests::wire::{frame, text, varint};
use flotte_tests::{Client, Packet as _, Version, block_on, connect, fresh, publish, until};

use super::impatient;
use super::watch::Watch;

/// A byte of each packet in each pause, until the node hangs up.
const DRIP: Duration = Duration::from_millis(250);

/// Sends byte after byte; true if the node hung up before the last one.
async fn drip(client: &mut Client, bytes: &[u8]) -> bool {
    let usual = std::mem::replace(&mut client.patience, DRIP);
    for byte in bytes {
        let sent = client.try_send_raw(&[*byte]).await;
        // Either nothing comes within the pause, or the end.
        if sent.is_err() || matches!(client.next_or_end().await, Ok(None)) {
            client.patience = usual;
            return true;
        }
    }
    client.patience = usual;
    false
}

#[test]
fn connects_of_a_byte_at_a_time_end_with_the_connect_timeout() {
    block_on(async {
        let node = impatient().start();
        let watch = Watch::begin(&node).await;
        let start = Instant::now();
        let address = node.mqtt();
        let drips = (0..300).map(|_| {
            tokio::spawn(async move {
                let mut client = Client::dial(address, Version::V5).await;
                let bytes = connect(fresh("drip").repeat(8)).encode(Version::V5);
                assert!(bytes.len() > 40, "more bytes than the timeout has pauses");
                drip(&mut client, &bytes).await
            })
        });
        for cut in futures::future::join_all(drips).await {
            assert!(cut.expect("a client"), "let in a byte at a time");
        }
        let took = start.elapsed();
        assert!(took < Duration::from_secs(12), "cut off after {took:?}");
        watch.check_memory("300 slow CONNECTs", 16 * 1024);
        watch.end().await;
    });
}

/// What keeps a connection alive is packets, not bytes: 1 s of keep alive, a byte every quarter of one.
#[test]
fn publish_of_a_byte_at_a_time_ends_with_the_keep_alive() {
    block_on(async {
        let node = impatient().start();
        let watch = Watch::begin(&node).await;
        let address = node.mqtt();
        let drips = (0..100).map(|number| {
            tokio::spawn(async move {
                let version = [Version::V311, Version::V5][number % 2];
                let hello = connect(fresh("drip")).keep_alive(1);
                let mut client = Client::connect(address, version, hello).await;
                let message = publish("drip").payload([b'x'; 200]).encode(version);
                drip(&mut client, &message[..40]).await
            })
        });
        for cut in futures::future::join_all(drips).await {
            assert!(cut.expect("a client"), "kept alive a byte at a time");
        }
        watch.end().await;
    });
}

/// A large packet on a slow link is alive as long as it goes on: it takes longer than its keep alive.
#[test]
fn large_publish_on_a_slow_link_is_not_cut_by_its_keep_alive() {
    block_on(async {
        let node = impatient().start();
        let hello = connect(fresh("slow")).keep_alive(1);
        let mut client = Client::connect(node.mqtt(), Version::V5, hello).await;
        let message = publish("slow").qos1(1).payload(vec![b'x'; 24 * 1024]);
        for piece in message.encode(Version::V5).chunks(2 * 1024) {
            client.send_raw(piece).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        client.recv_ack(4, 1).await;
    });
}

/// The longest CONNECT of 3.x there is, but for its last byte.
fn huge_connect() -> Vec<u8> {
    let long = "x".repeat(65_535);
    let head = [text("MQTT"), vec![4, 0xc6, 0, 0]].concat();
    let fields: Vec<u8> = (0..5).flat_map(|_| text(&long)).collect();
    let mut bytes = frame(0x10, &[head, fields].concat());
    bytes.pop();
    bytes
}

/// 500 clients hold back the last byte of a CONNECT of 320 KiB: 160 MiB, of which the node holds a part only, and for the
/// others only as long as the connect timeout lasts.
#[test]
fn huge_connects_that_never_end_hold_a_bounded_part() {
    const COUNT: usize = 500;
    block_on(async {
        let node = impatient()
            .env("FLOTTE_MQTT__PENDING_CONNECT_BYTES", 16 << 20)
            .env("FLOTTE_MQTT__CONNECT_TIMEOUT_S", 5)
            .start();
        let watch = Watch::begin(&node).await;
        let bytes = huge_connect();
        let mut held = Vec::with_capacity(COUNT);
        for _ in 0..COUNT {
            let mut client = Client::dial(node.mqtt(), Version::V311).await;
            let _ = client.try_send_raw(&bytes).await;
            held.push(client);
        }
        watch.check_memory("500 CONNECTs without an end", 64 * 1024);
        // Someone of usual size is let in all the while.
        let one = Client::connect(node.mqtt(), Version::V5, connect(fresh("usual"))).await;
        one.leave().await;
        for client in &mut held {
            client.patience = Duration::from_secs(10);
            assert_eq!(client.next_or_end().await, Ok(None));
        }
        drop(held);
        watch.end().await;
    });
}

/// Beyond `mqtt.max_connect_size` a CONNECT is refused at its header; up to it, it is taken.
#[test]
fn connect_has_a_limit_of_its_own() {
    block_on(async {
        let node = impatient().start();
        let mut bytes = huge_connect();
        bytes.push(b'x');
        let mut client = Client::dial(node.mqtt(), Version::V311).await;
        client.send_raw(&bytes).await;
        client.recv_plain_connack(false).await;
        for size in [384 * 1024 + 1, 1 << 20] {
            let mut client = Client::dial(node.mqtt(), Version::V311).await;
            let header = [&[0x10][..], &varint(size - 4)].concat();
            client.send_raw(&header).await;
            client.expect_closed().await;
        }
    });
}

/// Several hundred clients that never answer QoS 2 to the end.
#[test]
fn qos_2_ids_that_are_never_released_are_bounded() {
    block_on(async {
        let node = impatient().start();
        let watch = Watch::begin(&node).await;
        // 5.0: the receive maximum ends it [MQTT-3.3.4-7].
        let mut client = Client::connect(node.mqtt(), Version::V5, connect(fresh("q2"))).await;
        let max = client.server_receive_maximum();
        for id in 1..=max {
            client.send(publish("never").qos2(id)).await;
        }
        for _ in 1..=max {
            client.recv_kind(5).await;
        }
        client.send(publish("never").qos2(max + 1)).await;
        client.expect_refused(&[0x93]).await;
        // 3.1.1 knows no such limit: all ids, and one of them again.
        let mut client = Client::connect(node.mqtt(), Version::V311, connect(fresh("q2"))).await;
        for window in (1..=u16::MAX).collect::<Vec<_>>().chunks(500) {
            let packets = window.iter().map(|id| publish("never").qos2(*id));
            let bytes: Vec<u8> = packets.flat_map(|p| p.encode(Version::V311)).collect();
            client.send_raw(&bytes).await;
            for _ in window {
                client.recv_kind(5).await;
            }
        }
        client.send(publish("never").qos2(7).dup()).await;
        client.recv_kind(5).await;
        watch.check_memory("65,535 QoS 2 ids", 24 * 1024);
        client.fence().await;
        watch.end().await;
    });
}

/// The node gives a connection's room back when it goes.
#[test]
fn a_thousand_half_packets_leave_nothing_behind() {
    block_on(async {
        let node = impatient().start();
        let watch = Watch::begin(&node).await;
        for round in 0..2 {
            let mut held = Vec::new();
            for _ in 0..500 {
                let hello = connect(fresh("half"));
                let mut client = Client::connect(node.mqtt(), Version::V5, hello).await;
                // 1 MiB is announced, 8 KiB come.
                let mut bytes = vec![0x30, 0xf0, 0xff, 0x3f];
                bytes.extend(text("half"));
                bytes.resize(8 * 1024, 0);
                client.send_raw(&bytes).await;
                held.push(client);
            }
            watch.check_memory("500 begun packets of 1 MiB", 96 * 1024);
            drop(held);
            let what = format!("memory after round {round}");
            watch.wait_released(&what, 64 * 1024).await;
        }
        until(Duration::from_secs(10), "no more connections", || async {
            (watch.grown_kib() < 64 * 1024).then_some(())
        })
        .await;
        watch.end().await;
    });
}
