//! A client that takes nothing of a large payload, and one that takes a little of it now and then; and what is not written
//! for want of a lease.

#![allow(clippy::unwrap_used)]

use std::future::poll_fn;
use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use flotte_mqtt::packet::ConnAck;
use flotte_mqtt::session::{Message, OutboundConfig};
use flotte_mqtt::topic::TopicName;
use flotte_mqtt::{ClientId, QoS};

use super::*;
use crate::transport::{Accepted, Stream};

/// A minute, as the documents say.
const LIMIT_MS: u64 = 60_000;

struct Bench {
    output: Output,
    socket: Arc<Socket>,
    /// The client's end.
    client: UnixStream,
}

impl Bench {
    async fn connected() -> Bench {
        let mut bench = Bench::connecting().await;
        bench.output.flush(0, true);
        bench
    }

    /// CONNACK is not written yet.
    async fn connecting() -> Bench {
        let (ours, client) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        client.set_nonblocking(true).unwrap();
        let stream = Stream::register(Accepted::Unix(ours)).unwrap();
        let socket = Arc::new(Socket::new(stream, None, None));
        poll_fn(|cx| socket.poll_write_ready(cx)).await.unwrap();
        let link = OutputLink {
            socket: Arc::clone(&socket),
            signal: Arc::default(),
            version: Version::V4,
        };
        let mut output = Output::new(Outbound::new(Arc::new(OutboundConfig::default())));
        let first = Packet::ConnAck(ConnAck {
            session_present: false,
            reason: ReasonCode::Success,
            properties: Default::default(),
        });
        output.connect(link, Peer::unlimited(Version::V4), &first, 0);
        Bench {
            output,
            socket,
            client,
        }
    }

    fn deliver(&mut self, payload: Vec<u8>) {
        self.enqueue(payload);
        self.output.flush(0, true);
    }

    fn enqueue(&mut self, payload: Vec<u8>) {
        let message = Message {
            topic: TopicName::try_from("t").unwrap(),
            payload: payload.into(),
            properties: Default::default(),
            qos: QoS::AtLeastOnce,
            retain: false,
            publisher: ClientId::try_from("p").unwrap(),
            expires_at_ms: None,
        };
        let delivery = Delivery {
            message: Arc::new(message),
            qos: QoS::AtLeastOnce,
            retain: false,
            subscription_ids: Default::default(),
            share: None,
        };
        self.output.enqueue(delivery, 0);
    }

    /// What the client reads now.
    fn read(&mut self) -> Vec<u8> {
        let (mut all, mut buffer) = (Vec::new(), [0; 1 << 10]);
        while let Ok(read @ 1..) = self.client.read(&mut buffer) {
            all.extend_from_slice(&buffer[..read]);
        }
        all
    }

    /// The client reads what there is, and the connection's task writes on as long as it has turns.
    async fn client_reads(&mut self) -> usize {
        let (mut bytes, mut buffer) = (0, vec![0; 64 << 10]);
        while let Ok(read @ 1..) = self.client.read(&mut buffer) {
            bytes += read;
        }
        poll_fn(|cx| self.socket.poll_write_ready(cx))
            .await
            .unwrap();
        self.output.writable(0, true);
        bytes
    }
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_a_large_payload_has_a_minute() {
    let mut bench = Bench::connected().await;
    assert_eq!(bench.output.stalled_at(1_000), None, "nothing is large");
    bench.deliver(vec![7; 4 << 20]);
    let has_to_go = 1_000 + LIMIT_MS;
    assert_eq!(bench.output.stalled_at(1_000), Some(has_to_go));
    // Whatever else is sent to it, and however often one looks.
    let answer = Packet::PingResp;
    for now_ms in [5_000, 30_000, has_to_go, has_to_go + 1] {
        bench.output.send(&answer).unwrap();
        bench.output.flush(now_ms, true);
        assert_eq!(bench.output.stalled_at(now_ms), Some(has_to_go));
    }
}

#[tokio::test]
async fn a_client_that_takes_a_little_now_and_then_may_stay() {
    let mut bench = Bench::connected().await;
    bench.deliver(vec![7; 4 << 20]);
    let (mut now_ms, mut taken) = (0, 0);
    while let Some(has_to_go) = bench.output.stalled_at(now_ms) {
        assert_eq!(has_to_go, now_ms + LIMIT_MS, "it has taken something");
        now_ms = has_to_go - 1;
        assert_eq!(bench.output.stalled_at(now_ms), Some(has_to_go));
        taken += bench.client_reads().await;
    }
    assert!(now_ms > 2 * LIMIT_MS, "it took its time");
    taken += bench.client_reads().await;
    // CONNACK, and the head of the PUBLISH.
    assert_eq!(taken, 4 + 4 + 1 + 3 + 2 + (4 << 20));
}

#[tokio::test]
async fn nothing_is_written_without_a_lease_and_all_of_it_once_it_is_back() {
    let mut bench = Bench::connected().await;
    bench.read();
    for payload in [b"a", b"b"] {
        bench.enqueue(payload.to_vec());
        bench.output.flush(0, false);
        assert!(!bench.output.writable(0, false), "there is no lease");
    }
    assert_eq!(bench.read(), b"");
    assert_eq!(bench.output.readiness(1), Readiness::Blocked);
    assert!(bench.output.writable(0, true));
    let packet = |id, payload| [0x32, 6, 0, 1, b't', 0, id, payload];
    assert_eq!(bench.read(), [packet(1, b'a'), packet(2, b'b')].concat());
    assert_eq!(bench.output.readiness(1), Readiness::Ready);
}

#[tokio::test]
async fn last_words_do_not_wait_for_what_was_withheld() {
    let mut bench = Bench::connected().await;
    bench.enqueue(b"a".to_vec());
    assert!(
        !bench.output.takes_last_words(),
        "it is to be written first"
    );
    bench.output.flush(0, false);
    assert!(bench.output.takes_last_words());
    // Of this something is written: a packet is complete or the last.
    assert!(bench.output.writable(0, true));
    bench.deliver(vec![7; 4 << 20]);
    bench.output.flush(0, false);
    assert!(!bench.output.takes_last_words());
}

/// [MQTT-3.14.0-1]
#[tokio::test]
async fn no_last_words_come_before_connack() {
    let mut bench = Bench::connecting().await;
    bench.output.flush(0, false);
    assert!(!bench.output.takes_last_words());
    assert!(bench.output.writable(0, true) && bench.output.takes_last_words());
}
