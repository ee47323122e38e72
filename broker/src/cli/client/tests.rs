//! The clients against a broker played by the test, byte by byte.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use clap::Parser;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

#[derive(Debug, Parser)]
enum Line {
    Pub(PubArguments),
    Sub(SubArguments),
}

/// Parses a command line and adds the address.
fn parse(line: &str) -> Line {
    Line::try_parse_from(["flotte"].into_iter().chain(line.split(' '))).unwrap()
}

/// Runs a client against `address` on a thread of its own, as it brings its own runtime.
fn start(line: &str, address: SocketAddr) -> tokio::task::JoinHandle<Result<Exit, ClientError>> {
    let line = parse(&format!("{line} -h 127.0.0.1 -p {}", address.port()));
    tokio::task::spawn_blocking(move || match line {
        Line::Pub(arguments) => arguments.run(),
        Line::Sub(arguments) => arguments.run(),
    })
}

struct Broker {
    stream: TcpStream,
}

impl Broker {
    async fn accept(listener: &TcpListener, connack: &[u8]) -> Self {
        let mut broker = Self {
            stream: listener.accept().await.unwrap().0,
        };
        assert_eq!(broker.read_packet().await[0], 0x10, "CONNECT comes first");
        broker.send(connack).await;
        broker
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// One packet, with its header; all here are shorter than 128 bytes.
    async fn read_packet(&mut self) -> Vec<u8> {
        let mut packet = vec![0; 2];
        self.stream.read_exact(&mut packet).await.unwrap();
        let mut body = vec![0; usize::from(packet[1])];
        self.stream.read_exact(&mut body).await.unwrap();
        packet.extend(body);
        packet
    }

    async fn expect(&mut self, bytes: &[u8]) {
        assert_eq!(self.read_packet().await, bytes);
    }

    async fn expect_end(&mut self) {
        self.expect(&[0xE0, 0]).await;
        assert_eq!(self.stream.read(&mut [0]).await.unwrap(), 0);
    }
}

const CONNACK: &[u8] = &[0x20, 2, 0, 0];

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test]
async fn pub_qos_0_is_written_before_the_end() {
    let (listener, address) = listen().await;
    let client = start("pub -t a/b -m hello -r", address);
    let mut broker = Broker::accept(&listener, CONNACK).await;
    broker.expect(b"\x31\x0a\x00\x03a/bhello").await;
    broker.expect_end().await;
    drop(broker);
    assert_eq!(client.await.unwrap().unwrap(), Exit::Done);
}

#[tokio::test]
async fn pub_qos_1_waits_for_its_acknowledgement() {
    let (listener, address) = listen().await;
    let client = start("pub -t a -m x -q 1", address);
    let mut broker = Broker::accept(&listener, CONNACK).await;
    broker.expect(b"\x32\x06\x00\x01a\x00\x01x").await;
    broker.send(&[0x40, 2, 0, 1]).await;
    broker.expect_end().await;
    drop(broker);
    assert_eq!(client.await.unwrap().unwrap(), Exit::Done);
}

#[tokio::test]
async fn pub_qos_2_goes_through_all_four_steps() {
    let (listener, address) = listen().await;
    let client = start("pub -t a -m x -q 2", address);
    let mut broker = Broker::accept(&listener, CONNACK).await;
    broker.expect(b"\x34\x06\x00\x01a\x00\x01x").await;
    broker.send(&[0x50, 2, 0, 1]).await;
    broker.expect(&[0x62, 2, 0, 1]).await;
    broker.send(&[0x70, 2, 0, 1]).await;
    broker.expect_end().await;
    drop(broker);
    assert_eq!(client.await.unwrap().unwrap(), Exit::Done);
}

#[tokio::test]
async fn a_message_refused_in_5_0_ends_with_1() {
    let (listener, address) = listen().await;
    let client = start("pub -t a -m x -q 1 -V 5", address);
    let mut broker = Broker::accept(&listener, &[0x20, 3, 0, 0, 0]).await;
    broker.expect(b"\x32\x07\x00\x01a\x00\x01\x00x").await;
    broker.send(&[0x40, 3, 0, 1, 0x87]).await;
    broker.expect_end().await;
    drop(broker);
    assert_eq!(client.await.unwrap().unwrap(), Exit::Refused);
}

#[tokio::test]
async fn what_the_broker_does_not_take_is_not_sent() {
    let (listener, address) = listen().await;
    let client = start("pub -t a -m x -q 2 -V 5", address);
    // Maximum QoS 1.
    let mut broker = Broker::accept(&listener, &[0x20, 5, 0, 0, 2, 0x24, 1]).await;
    assert_eq!(broker.stream.read(&mut [0]).await.unwrap(), 0);
    let error = client.await.unwrap().unwrap_err();
    assert!(matches!(error, ClientError::NotTaken(_)));
    assert_eq!(error.exit(), Exit::Refused);
}

#[tokio::test]
async fn sub_answers_every_qos_and_ends_after_its_count() {
    let (listener, address) = listen().await;
    let client = start("sub -t a -t b -q 2 -C 3", address);
    let mut broker = Broker::accept(&listener, CONNACK).await;
    broker
        .expect(b"\x82\x0a\x00\x01\x00\x01a\x02\x00\x01b\x02")
        .await;
    broker.send(&[0x90, 4, 0, 1, 2, 2]).await;
    broker.send(b"\x30\x04\x00\x01a0").await;
    broker.send(b"\x32\x06\x00\x01a\x00\x051").await;
    broker.expect(&[0x40, 2, 0, 5]).await;
    broker.send(b"\x34\x06\x00\x01a\x00\x062").await;
    broker.expect(&[0x50, 2, 0, 6]).await;
    // The same again: acknowledged, not counted.
    broker.send(b"\x3c\x06\x00\x01a\x00\x062").await;
    broker.expect(&[0x50, 2, 0, 6]).await;
    // One too many: not acknowledged.
    broker.send(b"\x32\x06\x00\x01a\x00\x073").await;
    broker.send(&[0x62, 2, 0, 6]).await;
    broker.expect(&[0x70, 2, 0, 6]).await;
    broker.expect_end().await;
    drop(broker);
    assert_eq!(client.await.unwrap().unwrap(), Exit::Done);
}

#[tokio::test]
async fn sub_that_waits_in_vain_ends_with_27() {
    let (listener, address) = listen().await;
    let client = start("sub -t a -W 1", address);
    let mut broker = Broker::accept(&listener, CONNACK).await;
    broker.read_packet().await;
    broker.send(&[0x90, 3, 0, 1, 0]).await;
    broker.expect_end().await;
    drop(broker);
    assert_eq!(client.await.unwrap().unwrap(), Exit::TimedOut);
}

#[tokio::test]
async fn a_refused_subscription_ends_with_1() {
    let (listener, address) = listen().await;
    let client = start("sub -t a", address);
    let mut broker = Broker::accept(&listener, CONNACK).await;
    broker.read_packet().await;
    broker.send(&[0x90, 3, 0, 1, 0x80]).await;
    assert_eq!(client.await.unwrap().unwrap_err().exit(), Exit::Refused);
}

#[tokio::test]
async fn a_refused_connection_says_why() {
    let (listener, address) = listen().await;
    let client = start("sub -t a", address);
    let _broker = Broker::accept(&listener, &[0x20, 2, 0, 5]).await;
    let error = client.await.unwrap().unwrap_err();
    assert_eq!(
        error.to_string(),
        "the broker refused the connection: not authorized (0x87)"
    );
    assert_eq!(error.exit(), Exit::Refused);
}

#[tokio::test]
async fn a_taken_over_session_says_so() {
    let (listener, address) = listen().await;
    let client = start("sub -t a -V 5", address);
    let mut broker = Broker::accept(&listener, &[0x20, 3, 0, 0, 0]).await;
    broker.read_packet().await;
    broker.send(&[0xE0, 1, 0x8E]).await;
    let error = client.await.unwrap().unwrap_err();
    assert_eq!(
        error.to_string(),
        "the broker ended the connection: session taken over (0x8e)"
    );
}

#[tokio::test]
async fn nobody_there_and_a_lost_connection_are_unreachable() {
    let (listener, address) = listen().await;
    let client = start("sub -t a", address);
    drop(Broker::accept(&listener, CONNACK).await);
    assert_eq!(client.await.unwrap().unwrap_err().exit(), Exit::Unreachable);
    drop(listener);
    assert_eq!(
        start("pub -t a -n", address)
            .await
            .unwrap()
            .unwrap_err()
            .exit(),
        Exit::Unreachable
    );
}

#[tokio::test]
async fn garbage_from_the_broker_is_no_panic() {
    let (listener, address) = listen().await;
    let client = start("sub -t a", address);
    let _broker = Broker::accept(&listener, &[0xff; 40]).await;
    assert!(matches!(client.await.unwrap(), Err(ClientError::Decode(_))));
}

#[tokio::test]
async fn a_quiet_client_pings() {
    let (listener, address) = listen().await;
    let _client = start("sub -t a -k 1 -W 3", address);
    let mut broker = Broker::accept(&listener, CONNACK).await;
    broker.read_packet().await;
    broker.send(&[0x90, 3, 0, 1, 0]).await;
    broker.expect(&[0xC0, 0]).await;
    broker.send(&[0xD0, 0]).await;
    broker.expect(&[0xC0, 0]).await;
}

#[test]
fn every_letter_of_mosquitto_is_understood() {
    parse("pub -h broker -p 1884 -t a -m x -q 2 -r -i me -c -V 5 -u ann -P secret");
    parse("pub -t a -f file --id me");
    parse("pub -t a -l -V 31");
    parse("pub -t a -s -V mqttv311");
    parse(
        "sub -h broker -p 1884 -t a -t b/# -q 1 -i me -c -V 311 -C 5 -W 10 -u ann -P secret -v -k 5",
    );
    parse("pub -t a -m -5");
}

#[test]
fn what_is_not_there_or_contradicts_itself_ends_with_2() {
    for line in [
        "pub -t a -n --cafile does/not/exist",
        "pub -t a -n --insecure --cert does/not/exist --key does/not/exist",
        "pub -t a -n --cert a --key b",
        "sub -t a -c",
        "sub -t a -P secret",
        "pub -t a/+ -n",
        "pub -t a -f does/not/exist",
    ] {
        let result = match parse(line) {
            Line::Pub(arguments) => arguments.run(),
            Line::Sub(arguments) => arguments.run(),
        };
        assert_eq!(result.unwrap_err().exit(), Exit::Usage, "{line}");
    }
    for line in [
        "pub -t a",
        "pub -m x",
        "pub -t a -m x -n",
        "pub -t a -n -q 3",
        "sub -t a -V 4",
        "sub -t a -C 0",
        "sub -t a -W 0",
        "sub -t a --cert a",
        "sub -t a --unix a --ws",
    ] {
        assert!(
            Line::try_parse_from(["flotte"].into_iter().chain(line.split(' '))).is_err(),
            "{line}"
        );
    }
}
