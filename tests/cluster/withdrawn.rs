//! What waits for a client is judged by who gets it, and by the rules that are in force then.

use flotte_tests::wire::prop;
use flotte_tests::{Client, Connect, Version, admin, block_on, connect, fresh, props, publish};

use crate::access::*;
use crate::common::{VERSIONS, durable};

/// The operator, who may do everything.
const ROOT: &str = "[[rule]]\neffect = \"allow\"\nclient = \"root*\"\n";
const WITHOUT_ANN: &str = "[[rule]]\neffect = \"allow\"\ntopics = [\"open/#\"]\n";

fn of(version: Version, name: &str, id: &str) -> Connect {
    durable(version, id).username(name).password(PASSWORD)
}

fn dropped(node: &flotte_tests::Broker) -> f64 {
    let series = "flotte_copies_dropped_total{reason=\"denied\"}";
    admin::metric(node.admin(), series).unwrap_or(0.0)
}

/// A session of ann's with one message under way and two that wait, of each kind one that only ann may have.
async fn leave_messages(node: &flotte_tests::Broker, version: Version, id: &str) {
    let mut ann = Client::connect(node.mqtt(), version, of(version, "ann", id)).await;
    ann.subscribe("ann/#", 1).await;
    ann.subscribe("open/#", 1).await;
    let mut root = Client::connect(node.mqtt(), version, connect(fresh("root"))).await;
    for (topic, text) in [("ann/x", "sent"), ("open/x", "sent too")] {
        root.publish(publish(topic).qos1(1).payload(text)).await;
        assert_eq!(ann.recv_publish().await.payload(), text.as_bytes());
    }
    ann.leave().await;
    for (topic, text) in [("ann/x", "waits"), ("open/x", "waits too")] {
        root.publish(publish(topic).qos1(1).payload(text)).await;
    }
    root.leave().await;
}

#[test]
fn what_waits_is_judged_by_the_rules_in_force_when_the_client_returns() {
    let files = Files::new("flotte", &format!("{ROOT}{RULES}"), "");
    let node = files.start();
    block_on(async {
        for version in VERSIONS {
            let id = fresh("d");
            files.rules(&format!("{ROOT}{RULES}"));
            reload(&node);
            leave_messages(&node, version, &id).await;
            let before = dropped(&node);
            files.rules(&format!("{ROOT}{WITHOUT_ANN}"));
            reload(&node);
            let mut ann = Client::connect(node.mqtt(), version, of(version, "ann", &id)).await;
            assert!(ann.session_present());
            for text in ["sent too", "waits too"] {
                assert_eq!(ann.take(text).await.topic(), "open/x");
            }
            ann.fence().await;
            assert_eq!(dropped(&node) - before, 2.0);
            // The session is not to get what the next version leaves.
            let end = connect(&id).username("ann").password(PASSWORD);
            Client::connect(node.mqtt(), version, end)
                .await
                .leave()
                .await;
        }
    });
}

#[test]
fn what_waits_for_one_user_is_not_given_to_another() {
    let files = Files::new("flotte", &format!("{ROOT}{RULES}"), "");
    let node = files.start();
    block_on(async {
        for version in VERSIONS {
            let id = fresh("d");
            leave_messages(&node, version, &id).await;
            let mut bob = Client::connect(node.mqtt(), version, of(version, "bob", &id)).await;
            assert!(bob.session_present());
            for text in ["sent too", "waits too"] {
                assert_eq!(bob.take(text).await.topic(), "open/x");
            }
            bob.fence().await;
        }
    });
}

/// The client is there and has not acknowledged what it was sent: the rest waits, and a reload is about that.
#[test]
fn what_waits_behind_a_full_window_is_judged_at_the_reload() {
    let files = Files::new("flotte", &format!("{ROOT}{RULES}"), "");
    let node = files.start();
    block_on(async {
        let narrow = props().u16(prop::RECEIVE_MAXIMUM, 1);
        let packet = user("ann", &fresh("s")).props(narrow);
        let mut ann = Client::connect(node.mqtt(), Version::V5, packet).await;
        ann.subscribe("ann/#", 1).await;
        ann.subscribe("open/#", 1).await;
        let mut root = Client::connect(node.mqtt(), Version::V5, connect(fresh("root"))).await;
        for (topic, text) in [("ann/x", "sent"), ("ann/x", "hidden"), ("open/x", "seen")] {
            root.publish(publish(topic).qos1(1).payload(text)).await;
        }
        let first = ann.recv_publish().await;
        assert_eq!(first.payload(), b"sent");
        files.rules(&format!("{ROOT}{WITHOUT_ANN}"));
        reload(&node);
        ann.acknowledge(&first).await;
        ann.take("seen").await;
        ann.fence().await;
        assert_eq!(dropped(&node), 1.0);
    });
}

/// What a member of a group may no longer have goes to one that may.
#[test]
fn what_waits_for_a_member_goes_to_another() {
    let files = Files::new("flotte", &format!("{ROOT}{RULES}"), "");
    let node = files.start();
    block_on(async {
        let filter = "$share/group/ann/#";
        let narrow = props().u16(prop::RECEIVE_MAXIMUM, 1);
        let packet = user("ann", &fresh("s")).props(narrow);
        let mut ann = Client::connect(node.mqtt(), Version::V5, packet).await;
        ann.subscribe(filter, 1).await;
        let mut root = Client::connect(node.mqtt(), Version::V5, connect(fresh("root"))).await;
        for text in ["sent", "waits"] {
            root.publish(publish("ann/x").qos1(1).payload(text)).await;
        }
        let first = ann.recv_publish().await;
        assert_eq!(first.payload(), b"sent");
        let mut other = Client::connect(node.mqtt(), Version::V5, connect(fresh("root"))).await;
        other.subscribe(filter, 1).await;
        files.rules(&format!("{ROOT}{WITHOUT_ANN}"));
        reload(&node);
        other.take("waits").await;
        ann.acknowledge(&first).await;
        ann.fence().await;
    });
}
