//! Clients behind a link with a round trip of 600 ms that stalls now and then.

use std::time::{Duration, Instant};

use flotte_tests::slow::{Quality, SlowLink};
use flotte_tests::{Client, Connect, connect, fresh, pingreq, publish, pubrel};

use crate::target::Target;

/// How long one answer may take: several stalls in a row.
const PATIENCE: Duration = Duration::from_secs(20);

/// A link with stalls of its own, the same in every run.
async fn link(t: &Target, seed: u64) -> SlowLink {
    SlowLink::start(t.address, Quality::poor(), seed).await
}

async fn join(t: &Target, link: &SlowLink, packet: Connect) -> Client {
    let mut client = Client::dial(link.address(), t.version).await;
    client.patience = PATIENCE;
    client.send(packet).await;
    let answer = client.recv_kind(2).await;
    assert_eq!(answer.reason(), 0, "{answer:?}");
    client.connack = Some(answer);
    client
}

/// Ten messages at each QoS at once: each arrives, in order, and above QoS 0 is acknowledged once.
pub async fn messages_flow_both_ways(t: Target) {
    let topic = fresh("slow");
    let (up, down) = (link(&t, 11).await, link(&t, 12).await);
    let mut subscriber = join(&t, &down, connect(fresh("s"))).await;
    let mut publisher = join(&t, &up, connect(fresh("p"))).await;
    subscriber.subscribe(format!("{topic}/+"), 2).await;
    for qos in 0..3u8 {
        for number in 1..=10 {
            let id = u16::from(qos) * 10 + number;
            let packet = publish(format!("{topic}/{qos}")).qos_bits(qos, id);
            publisher.send(packet.payload([number as u8])).await;
        }
    }
    for id in 11..=20 {
        publisher.recv_ack(4, id).await;
    }
    for id in 21..=30 {
        publisher.recv_ack(5, id).await;
    }
    for id in 21..=30 {
        publisher.send(pubrel(id)).await;
    }
    for id in 21..=30 {
        publisher.recv_ack(7, id).await;
    }
    let mut last = [0; 3];
    let mut answers = Vec::new();
    while last != [10; 3] {
        let message = subscriber.recv_publish().await;
        let seen = &mut last[usize::from(message.qos())];
        assert_eq!(message.payload(), [*seen + 1], "{message:?}");
        assert!(!message.dup(), "{message:?}");
        *seen += 1;
        answers.push(message);
    }
    for message in &answers {
        subscriber.acknowledge(message).await;
        if message.qos() == 2 {
            break;
        }
    }
}

/// Pings that are under way when the keep alive ends count when they come: one and a half of it is enough.
pub async fn keep_alive_holds(t: Target) {
    let link = link(&t, 21).await;
    let mut client = join(&t, &link, connect(fresh("ka")).keep_alive(3)).await;
    let begin = Instant::now();
    let mut pings = 0;
    while begin.elapsed() < Duration::from_secs(7) {
        client.send(pingreq()).await;
        pings += 1;
        tokio::time::sleep(Duration::from_millis(1_000)).await;
    }
    for _ in 0..pings {
        client.recv_kind(13).await;
    }
    // And silence is still noticed through it.
    client.expect_refused(&[0x8d]).await;
}

/// A message of nearly a megabyte up and down, and small ones around it.
pub async fn large_messages_flow(t: Target) {
    let topic = fresh("large");
    let (up, down) = (link(&t, 31).await, link(&t, 32).await);
    let mut subscriber = join(&t, &down, connect(fresh("s"))).await;
    subscriber.subscribe(&topic, 1).await;
    let mut publisher = join(&t, &up, connect(fresh("p")).keep_alive(6)).await;
    let large: Vec<u8> = (0..900_000u32).map(|n| (n % 253) as u8).collect();
    publisher
        .send(publish(&topic).qos1(1).payload("before"))
        .await;
    publisher
        .send(publish(&topic).qos1(2).payload(&large))
        .await;
    publisher
        .send(publish(&topic).qos1(3).payload("behind"))
        .await;
    for id in 1..=3 {
        publisher.recv_ack(4, id).await;
    }
    subscriber.take("before").await;
    subscriber.take(&large).await;
    subscriber.take("behind").await;
}

/// The link is cut in the middle: what was not acknowledged comes again on the next one, and nothing is lost.
pub async fn session_is_resumed_over_another_link(t: Target) {
    let (id, topic) = (fresh("d"), fresh("cut"));
    let first_link = link(&t, 41).await;
    let mut first = join(&t, &first_link, t.durable(&id)).await;
    first.subscribe(&topic, 1).await;
    for number in 1..=6 {
        let packet = publish(&topic).qos1(number).payload(number.to_string());
        t.publish_from_elsewhere(packet).await;
    }
    for number in 1..=2 {
        first.take(number.to_string()).await;
    }
    first.cut();
    drop(first_link);
    let second_link = link(&t, 42).await;
    let mut second = join(&t, &second_link, t.durable(&id)).await;
    // Whether the first two acknowledgements arrived nobody knows.
    let mut seen = Vec::new();
    while seen.last() != Some(&6) {
        let message = second.recv_publish().await;
        second.acknowledge(&message).await;
        let text = String::from_utf8(message.payload()).expect("a number");
        seen.push(text.parse::<u16>().expect("a number"));
    }
    assert!(seen.ends_with(&[3, 4, 5, 6]), "{seen:?}");
    assert!(seen.is_sorted() && seen.len() <= 6, "{seen:?}");
}
