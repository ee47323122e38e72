//! What operators see of topics: subscriptions, routes, retained messages; by the API and by `flotte ctl`.

use std::process::Command;

use flotte_tests::broker::{Broker, binary};
use flotte_tests::{Client, Version, admin, connect, fresh, publish, until};
use serde_json::{Value, json};

use crate::common::on_shared;

fn get(node: &Broker, path: &str) -> Value {
    admin::json(node.admin(), &format!("/api/v1{path}")).expect("200")
}

/// Output and exit code of `flotte ctl`.
fn ctl(node: &Broker, arguments: &[&str]) -> (Vec<u8>, Option<i32>) {
    let url = format!("http://{}", node.admin());
    let run = Command::new(binary())
        .args(["ctl", "--url", &url])
        .args(arguments)
        .output();
    let run = run.expect("it runs");
    (run.stdout, run.status.code())
}

#[test]
fn routes_tell_where_a_topic_goes() {
    on_shared(|cluster| async move {
        let topic = fresh("routes/a");
        let mut plain = cluster.client(1, Version::V5).await;
        plain.subscribe(&topic, 1).await;
        let mut member = cluster.client(2, Version::V311).await;
        member.subscribe(format!("$share/g/{topic}"), 1).await;
        let found = get(&cluster.nodes[0], &format!("/routes?topic={topic}"));
        assert_eq!(found["nodes"], json!([cluster.nodes[1].name()]));
        let members = json!([{ "node": cluster.nodes[2].name(), "members": 1, "connected": true }]);
        let share = json!([{ "group": "g", "filter": topic, "members": members }]);
        assert_eq!(found["shares"], share);
        let (shown, code) = ctl(&cluster.nodes[0], &["routes", "match", &topic]);
        let shown = String::from_utf8(shown).expect("text");
        assert_eq!(code, Some(0));
        assert!(shown.contains(cluster.nodes[1].name()), "{shown}");
        assert!(shown.contains(&format!("$share/g/{topic}")), "{shown}");
        let (_, code) = ctl(&cluster.nodes[0], &["routes", "match", "a/+"]);
        assert_eq!(code, Some(1), "a filter is no topic");
    });
}

#[test]
fn subscriptions_of_a_client_are_listed_where_its_session_is() {
    on_shared(|cluster| async move {
        let id = fresh("subs");
        let (plain, shared) = (format!("{id}/+/thing"), format!("$share/g/{id}/#"));
        let mut client = Client::connect(cluster.mqtt(0), Version::V5, connect(&id)).await;
        client.subscribe(&plain, 2).await;
        client.subscribe(&shared, 0).await;
        let listed =
            |node: usize| get(&cluster.nodes[node], &format!("/subscriptions?client={id}"));
        let mut filters: Vec<_> = listed(0)["items"].as_array().expect("a list").clone();
        filters.sort_by_key(|one| one["filter"].to_string());
        let filters: Vec<_> = filters
            .iter()
            .map(|one| (&one["filter"], &one["qos"]))
            .collect();
        assert_eq!(
            filters,
            [(&json!(shared), &json!(0)), (&json!(plain), &json!(2))]
        );
        assert_eq!(listed(1)["items"], json!([]));
        let (shown, _) = ctl(&cluster.nodes[0], &["subscriptions", "--client", &id]);
        assert!(String::from_utf8_lossy(&shown).contains(&plain));
    });
}

#[test]
fn retained_messages_are_listed_shown_and_deleted() {
    on_shared(|cluster| async move {
        let root = fresh("kept");
        let payload = b"\xff\x00binary";
        let mut publisher = cluster.client(0, Version::V5).await;
        for number in 1..=3 {
            let message = publish(format!("{root}/{number}"))
                .payload(payload)
                .retain();
            publisher.publish(message.qos1(number)).await;
        }
        let seen = |node: usize| {
            let path = format!("/retained?filter={root}/%23&limit=2");
            get(&cluster.nodes[node], &path)["items"]
                .as_array()
                .map_or(0, Vec::len)
        };
        // Other nodes apply it a moment later.
        until(flotte_tests::broker::START_LIMIT, "a page", async || {
            (seen(2) == 2).then_some(())
        })
        .await;
        let topic = format!("{root}/2");
        let (shown, code) = ctl(&cluster.nodes[0], &["retained", "get", &topic]);
        assert_eq!((shown.as_slice(), code), (&payload[..], Some(0)));
        let (listed, _) = ctl(
            &cluster.nodes[0],
            &["retained", "list", &format!("{root}/#")],
        );
        assert_eq!(String::from_utf8_lossy(&listed).matches(&root).count(), 3);
        let mut subscriber = cluster.client(1, Version::V5).await;
        subscriber.subscribe(&topic, 1).await;
        subscriber.take(payload).await;
        assert_eq!(
            ctl(&cluster.nodes[0], &["retained", "delete", &topic]).1,
            Some(0)
        );
        assert_eq!(
            ctl(&cluster.nodes[0], &["retained", "delete", &topic]).1,
            Some(1),
            "it is gone"
        );
        assert!(
            subscriber.collect_to_fence().await.is_empty(),
            "nobody gets anything for it"
        );
        let (listed, _) = ctl(
            &cluster.nodes[0],
            &["--json", "retained", "list", &format!("{root}/#")],
        );
        let listed: Value = serde_json::from_slice(&listed).expect("JSON");
        assert_eq!(listed["items"].as_array().map(Vec::len), Some(2));
    });
}
