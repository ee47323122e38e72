//! A client that takes nothing of a large payload, and one that takes a little of it now and then.

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
        output.flush(0);
        Bench {
            output,
            socket,
            client,
        }
    }

    fn deliver(&mut self, payload: Vec<u8>) {
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
        self.output.flush(0);
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
        self.output.writable(0);
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
        bench.output.flush(now_ms);
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
