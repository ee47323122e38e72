//! MQTT 3.1: its own name and level, and otherwise as 3.1.1. It has no numbered clauses.

use flotte_tests::Version;
use flotte_tests::{Packet as _, connect, fresh, publish};

use crate::bodies::{connecting, field, publishing, retaining, sessions, wills};
use crate::target::Target;

clauses! { Version::V31;
    connect_is_accepted => connecting::accepted_connect_gets_code_0,
    level_of_another_version_is_refused => other_level_is_refused,
    answer_follows_the_qos => publishing::answer_follows_the_qos,
    repeated_qos2_publish_is_delivered_once => publishing::repeated_qos2_publish_is_delivered_once,
    offline_messages_wait => sessions::messages_wait_for_an_offline_session,
    retained_message_is_kept => retaining::retained_message_is_kept_with_its_qos,
    will_is_published => wills::will_is_published_when_the_connection_is_lost,
    takeover => connecting::older_connection_of_an_id_is_closed,
    clean_session_is_never_reused => sessions::clean_session_is_never_reused,
    unacknowledged_packets_are_sent_again => sessions::unacknowledged_packets_are_sent_again,
    overlapping_filters => publishing::overlapping_filters_deliver_at_the_highest_qos,
    silence_ends_the_connection => connecting::silence_beyond_the_keep_alive_ends_the_connection,
    long_client_ids => connecting::long_client_ids_are_accepted,
    empty_client_id => connecting::empty_id_of_3_1_is_refused,
    goodbye => wills::goodbye_drops_the_will,
    bridge => field::bridge_gets_messages_as_published_and_none_of_its_own,
    bytes_of_a_session_are_those_of_the_standard => literal_session,
}

/// Level 4 under the old name.
async fn other_level_is_refused(t: Target) {
    let mut client = t.dial().await;
    client.send(connect(fresh("c")).level(4)).await;
    if let Some(answer) = client.next_or_end().await.expect("an answer or the end") {
        assert_eq!(answer.bytes, [0x20, 2, 0, 1]);
        client.expect_closed().await;
    }
}

/// The whole exchange written out: `MQIsdp`, level 3.
async fn literal_session(t: Target) {
    let topic = fresh("v31");
    let mut client = t.dial().await;
    let id = fresh("c");
    let mut bytes = vec![0x10, u8::try_from(14 + id.len()).expect("a short id"), 0, 6];
    bytes.extend(b"MQIsdp");
    bytes.extend([3, 2, 0, 60, 0, u8::try_from(id.len()).expect("a short id")]);
    bytes.extend(id.as_bytes());
    client.send(bytes).await;
    client.recv([0x20, 2, 0, 0]).await;
    client.subscribe(&topic, 1).await;
    client.send(publish(&topic).payload("x")).await;
    client
        .recv(publish(&topic).payload("x").encode(Version::V31))
        .await;
    client.send([0xc0, 0]).await;
    client.recv([0xd0, 0]).await;
    client.send([0xe0, 0]).await;
    client.expect_closed().await;
}
