//! Members of shared subscriptions that go, wait or have no room: what they were to get goes to others.

use std::time::{Duration, Instant};

use flotte_tests::{
    Client, Version, block_on, connect, fresh, pubcomp, publish, pubrec, pubrel, unsubscribe,
};

use crate::common::{durable, numbers, publish_numbers, take};
use crate::shared::*;

/// What a member was sent and did not acknowledge, and what waited for it, goes to another in order, at another node.
#[test]
fn what_a_lost_member_did_not_acknowledge_goes_on() {
    on_patient(|cluster| async move {
        for (from, left, stays) in [(0, 1, 2), (1, 1, 2), (0, 1, 0), (0, 1, 1), (2, 0, 2)] {
            let topic = fresh("share");
            let filter = format!("$share/g/{topic}");
            let mut leaving = narrow(cluster, left, 5).await;
            leaving.subscribe(&filter, 1).await;
            let mut publisher = cluster.client(from, Version::V311).await;
            publish_numbers(&mut publisher, &topic, 0..20).await;
            // Two are acknowledged; five more were sent.
            assert_eq!(numbers(&take(&mut leaving, 2).await), [0, 1]);
            leaving.fence_past_messages().await;
            let mut staying = cluster.client(stays, Version::V5).await;
            staying.subscribe(&filter, 1).await;
            leaving.cut();
            let got = numbers(&take(&mut staying, 18).await);
            assert!(got.iter().copied().eq(2..20), "{got:?}");
            staying.fence().await;
        }
    });
}

/// Who unsubscribes completes what it was sent; the rest goes to others.
#[test]
fn what_was_not_sent_goes_on_when_a_member_unsubscribes() {
    on_patient(|cluster| async move {
        let topic = fresh("share");
        let filter = format!("$share/g/{topic}");
        let mut leaving = narrow(cluster, 1, 2).await;
        leaving.subscribe(&filter, 1).await;
        let mut publisher = cluster.client(0, Version::V5).await;
        publish_numbers(&mut publisher, &topic, 0..10).await;
        let sent = [leaving.recv_publish().await, leaving.recv_publish().await];
        let mut staying = cluster.client(2, Version::V5).await;
        staying.subscribe(&filter, 1).await;
        leaving.send(unsubscribe(9).from(&filter)).await;
        assert_eq!(leaving.recv_kind(11).await.codes(), [0]);
        let got = numbers(&take(&mut staying, 8).await);
        assert!(got.iter().copied().eq(2..10), "{got:?}");
        for message in &sent {
            leaving.acknowledge(message).await;
        }
        leaving.fence().await;
        leaving.leave().await;
        staying.fence().await;
    });
}

/// Another connection of the same client ends the session of a member: its messages go on, too.
#[test]
fn what_a_member_held_goes_on_when_its_client_connects_elsewhere() {
    on_patient(|cluster| async move {
        let (topic, id) = (fresh("share"), fresh("c"));
        let filter = format!("$share/g/{topic}");
        let mut first = Client::connect(cluster.mqtt(1), Version::V5, connect(&id)).await;
        first.subscribe(&filter, 1).await;
        let mut publisher = cluster.client(0, Version::V5).await;
        publish_numbers(&mut publisher, &topic, 0..5).await;
        let mut staying = cluster.client(1, Version::V5).await;
        staying.subscribe(&filter, 1).await;
        let _second = Client::connect(cluster.mqtt(2), Version::V5, connect(&id)).await;
        let got = numbers(&take(&mut staying, 5).await);
        assert!(got.iter().copied().eq(0..5), "{got:?}");
    });
}

/// QoS 2 that was sent goes to no other member, whether the client has answered or not; what waited does.
#[test]
fn qos_2_that_was_sent_goes_to_nobody_else() {
    on_patient(|cluster| async move {
        for (left, stays) in [(1, 2), (1, 1), (0, 2)] {
            let topic = fresh("share");
            let filter = format!("$share/g/{topic}");
            let mut leaving = narrow(cluster, left, 2).await;
            leaving.subscribe(&filter, 2).await;
            let mut publisher = cluster.client(0, Version::V5).await;
            for number in 0..4u16 {
                let packet = publish(&topic).qos2(number + 1).payload(number.to_string());
                publisher.publish(packet).await;
            }
            let first = leaving.recv_publish().await;
            assert_eq!(numbers(&[leaving.recv_publish().await]), [1]);
            leaving.send(pubrec(first.packet_id())).await;
            leaving.recv(pubrel(first.packet_id())).await;
            let mut staying = cluster.client(stays, Version::V5).await;
            staying.subscribe(&filter, 2).await;
            leaving.cut();
            assert_eq!(numbers(&take(&mut staying, 2).await), [2, 3]);
            staying.expect_silence(Duration::from_millis(300)).await;
        }
    });
}

/// A durable member that was half through a QoS 2 message finishes it, while the others get what came meanwhile.
#[test]
fn a_returning_member_finishes_what_is_its_own() {
    on_patient(|cluster| async move {
        let (topic, id) = (fresh("share"), fresh("d"));
        let filter = format!("$share/g/{topic}");
        let packet = durable(Version::V5, &id);
        let mut first = Client::connect(cluster.mqtt(1), Version::V5, packet.clone()).await;
        first.subscribe(&filter, 2).await;
        let mut publisher = cluster.client(0, Version::V5).await;
        publisher
            .publish(publish(&topic).qos2(1).payload("0"))
            .await;
        let message = first.recv_publish().await;
        first.send(pubrec(message.packet_id())).await;
        first.recv(pubrel(message.packet_id())).await;
        let mut other = cluster.client(2, Version::V5).await;
        other.subscribe(&filter, 2).await;
        first.cut();
        let mut again = Client::connect(cluster.mqtt(1), Version::V5, packet).await;
        again.recv(pubrel(message.packet_id())).await;
        again.send(pubcomp(message.packet_id())).await;
        again.fence().await;
        other.fence().await;
    });
}

/// A durable session that is offline gets only what no connected member can get, and gives what it held to one.
#[test]
fn connected_members_go_before_sessions_that_wait() {
    on_patient(|cluster| async move {
        let (topic, id) = (fresh("share"), fresh("d"));
        let filter = format!("$share/g/{topic}");
        let packet = durable(Version::V5, &id);
        let mut waiting = Client::connect(cluster.mqtt(0), Version::V5, packet.clone()).await;
        waiting.subscribe(&filter, 1).await;
        let mut publisher = cluster.client(0, Version::V5).await;
        waiting.leave().await;
        // Nobody else is there.
        publish_numbers(&mut publisher, &topic, 0..5).await;
        let mut waiting = Client::connect(cluster.mqtt(0), Version::V5, packet.clone()).await;
        assert_eq!(numbers(&take(&mut waiting, 5).await), [0, 1, 2, 3, 4]);
        publish_numbers(&mut publisher, &topic, 5..8).await;
        let mut other = cluster.client(2, Version::V5).await;
        other.subscribe(&filter, 1).await;
        waiting.cut();
        // What it held at its end, then what comes after it.
        assert_eq!(numbers(&take(&mut other, 3).await), [5, 6, 7]);
        publish_numbers(&mut publisher, &topic, 8..28).await;
        let got = numbers(&take(&mut other, 20).await);
        assert!(got.iter().copied().eq(8..28), "{got:?}");
        let mut back = Client::connect(cluster.mqtt(0), Version::V5, packet).await;
        back.fence().await;
        let started = Instant::now();
        let mut number = 28;
        while take_what_is_there(&mut back).await.is_empty() {
            assert!(started.elapsed() < RECOVERY, "it gets nothing any more");
            publish_numbers(&mut publisher, &topic, number..number + 1).await;
            number += 1;
        }
    });
}

/// A member that acknowledges nothing gets what fits into its window while another has room.
#[test]
fn a_member_without_room_is_passed_over() {
    on_patient(|cluster| async move {
        let topic = fresh("share");
        let filter = format!("$share/g/{topic}");
        let mut stuck = narrow(cluster, 1, 3).await;
        stuck.subscribe(&filter, 1).await;
        let mut free = cluster.client(1, Version::V5).await;
        free.subscribe(&filter, 1).await;
        let mut publisher = cluster.client(0, Version::V5).await;
        publish_numbers(&mut publisher, &topic, 0..50).await;
        assert_eq!(stuck.collect_to_fence().await.len(), 3);
        assert_eq!(take_what_is_there(&mut free).await.len(), 47);
    });
}

/// A member whose queue is full is passed over in favour of another node's, and nothing is dropped.
#[test]
fn a_full_member_is_passed_over_across_nodes() {
    block_on(async {
        let cluster = patient_cluster("FLOTTE_SESSION__QUEUE_MAX_MESSAGES", "5");
        let topic = fresh("share");
        let filter = format!("$share/g/{topic}");
        let mut stuck = narrow(&cluster, 1, 1).await;
        stuck.subscribe(&filter, 1).await;
        let mut free = cluster.client(2, Version::V5).await;
        free.subscribe(&filter, 1).await;
        let mut publisher = cluster.client(0, Version::V5).await;
        let mut got = Vec::new();
        for number in 0..40 {
            publish_numbers(&mut publisher, &topic, number..number + 1).await;
            got.extend(take_what_is_there(&mut free).await);
        }
        assert_eq!(got.len(), 35, "{got:?}");
        got.extend(numbers(&take(&mut stuck, 5).await));
        got.sort_unstable();
        assert!(got.iter().copied().eq(0..40), "{got:?}");
    });
}
