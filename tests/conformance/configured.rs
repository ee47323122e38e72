//! Clauses and rules about what a broker does not offer, and the keys of `[mqtt]` and `[session]` that say so: brokers
//! that are configured to the limits, see [`Setting`](crate::target::Setting).

use flotte_tests::wire::prop;
use flotte_tests::{Client, Launch, Version, connect, fresh, props};

pub mod limited_v31 {
    use crate::bodies::limited;
    use crate::target::Setting;
    use flotte_tests::Version;

    clauses! { Version::V31, Setting::Limited;
        behaviour_refused_client_id => limited::long_client_id_gets_return_code_2,
    }
}

pub mod limited_v311 {
    use crate::bodies::limited;
    use crate::target::Setting;
    use flotte_tests::Version;

    clauses! { Version::V311, Setting::Limited;
        mqtt_3_1_3_9_refused_client_id => limited::long_client_id_gets_return_code_2,
        mqtt_3_8_3_2_no_wildcards => limited::wildcards_are_refused_with_0x80,
        behaviour_empty_client_id => limited::empty_client_id_gets_return_code_2,
        behaviour_no_shared_subscriptions => limited::shared_subscriptions_are_refused_with_0x80,
        behaviour_will_beyond_the_limits => limited::will_beyond_the_limits_is_refused_in_silence,
        behaviour_publish_beyond_the_limits => limited::publish_beyond_the_limits_ends_the_connection,
        behaviour_topic_levels => limited::topics_have_a_limited_number_of_levels,
        behaviour_packet_size => limited::packet_size_is_limited,
        behaviour_granted_qos => limited::subscribe_at_any_qos_is_granted_what_there_is,
        behaviour_keep_alive_stays => limited::keep_alive_of_3x_is_not_changed,
        behaviour_session_expiry => limited::session_of_3x_ends_when_its_time_is_over,
    }
}

pub mod limited_v5 {
    use crate::bodies::limited;
    use crate::target::Setting;
    use flotte_tests::Version;

    clauses! { Version::V5, Setting::Limited;
        mqtt_3_1_2_21_server_keep_alive => limited::server_keep_alive_takes_the_place_of_the_clients,
        mqtt_3_1_3_8_refused_client_id => limited::refused_client_ids_get_0x85,
        mqtt_3_2_2_9_maximum_qos => limited::capabilities_are_told,
        mqtt_3_2_2_10_subscribe_at_any_qos => limited::subscribe_at_any_qos_is_granted_what_there_is,
        mqtt_3_2_2_11_publish_above_the_maximum_qos => limited::publish_above_the_maximum_qos_ends_the_connection,
        mqtt_3_2_2_12_will_above_the_maximum_qos => limited::will_above_the_maximum_qos_is_refused,
        mqtt_3_2_2_13_retained_will => limited::retained_will_is_refused,
        mqtt_3_2_2_14_retained_publish => limited::retained_publish_ends_the_connection,
        mqtt_3_2_2_18_no_topic_alias => limited::alias_where_none_is_taken_ends_the_connection,
        mqtt_3_2_2_21_server_keep_alive_counts => limited::server_keep_alive_takes_the_place_of_the_clients,
        behaviour_no_wildcards => limited::wildcards_end_the_connection,
        behaviour_no_shared_subscriptions => limited::shared_subscriptions_end_the_connection,
        behaviour_no_identifiers => limited::subscription_identifiers_end_the_connection,
        behaviour_topic_levels => limited::topics_have_a_limited_number_of_levels,
        behaviour_packet_size => limited::packet_size_is_limited,
        behaviour_session_expiry => limited::session_expiry_is_limited_and_told,
        behaviour_response_information => limited::response_information_is_given_to_who_asks,
    }
}

pub mod loose_v311 {
    use crate::bodies::loose;
    use crate::target::Setting;
    use flotte_tests::Version;

    clauses! { Version::V311, Setting::Loose;
        behaviour_connect_timeout => loose::connection_without_connect_ends,
        behaviour_dollar_topics => loose::dollar_topics_but_the_brokers_are_allowed,
        behaviour_inflight_maximum => loose::few_messages_are_under_way,
        behaviour_queued_qos0 => loose::qos0_waits_for_its_session,
        behaviour_full_queue => loose::full_queue_drops_what_comes_last,
    }
}

pub mod loose_v5 {
    use crate::bodies::loose;
    use crate::target::Setting;
    use flotte_tests::Version;

    clauses! { Version::V5, Setting::Loose;
        behaviour_connect_timeout => loose::connection_without_connect_ends,
        behaviour_dollar_topics => loose::dollar_topics_but_the_brokers_are_allowed,
        behaviour_inflight_maximum => loose::few_messages_are_under_way,
        behaviour_queued_qos0 => loose::qos0_waits_for_its_session,
        behaviour_full_queue => loose::full_queue_drops_what_comes_last,
        behaviour_expired_room => loose::expired_messages_make_room,
        behaviour_keep_alive_maximum => loose::keep_alive_is_shortened_and_told,
        behaviour_payload_format => loose::payload_format_is_not_checked,
    }
}

/// A node that leaves tells its 5.0 clients where else to go, where they take a packet of that size.
#[test]
fn clients_sent_away_are_told_of_other_servers() {
    const OTHERS: &str = "one.example two.example:1884";
    let mut node = Launch::new("leaving")
        .env("FLOTTE_MQTT__SERVER_REFERENCE", OTHERS)
        .start();
    let address = node.mqtt();
    flotte_tests::block_on(async {
        let limit = props().u32(prop::MAXIMUM_PACKET_SIZE, 20);
        let mut told = Client::connect(address, Version::V5, connect(fresh("c"))).await;
        let small = connect(fresh("c")).props(limit);
        let mut small = Client::connect(address, Version::V5, small).await;
        let mut old = Client::connect(address, Version::V311, connect(fresh("c"))).await;
        let ended = tokio::task::spawn_blocking(move || node.sigterm());
        let goodbye = told.recv_kind(14).await;
        assert_eq!(goodbye.reason(), 0x9c, "{goodbye:?}");
        let reference = goodbye.bytes_prop(prop::SERVER_REFERENCE);
        assert_eq!(reference, Some(OTHERS.as_bytes().to_vec()));
        let goodbye = small.recv_kind(14).await;
        assert_eq!((goodbye.reason(), goodbye.props()), (0x9c, vec![]));
        for client in [&mut told, &mut small, &mut old] {
            client.expect_closed().await;
        }
        assert_eq!(ended.await.expect("no panic"), Some(0));
    });
}
