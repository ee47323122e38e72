//! Rules and users of real nodes: what clients may publish, subscribe to and get, on one node and across nodes, and what a
//! reload changes for clients that are connected.

use std::path::PathBuf;

use flotte_tests::broker::{Launch, fresh_dir};
use flotte_tests::wire::prop;
use flotte_tests::{
    Broker, Client, Cluster, Connect, Version, admin, block_on, connect, fresh, props, puback,
    publish, pubrec, suback, subscribe, will,
};
use serde_json::{Value, json};

use crate::common::VERSIONS;

/// The password of every user here, and its hash by mosquitto_passwd: $6$ is fast.
pub(crate) const PASSWORD: &str = "secret é";
pub(crate) const HASH: &str = "$6$0kaY5rJrkZ2JqXlc$fqVHr1SCXN7KvAeQF/eHUq1Hn5tRkawtLU2kOnK6CEF7ERpjl82CHpRxmchKMu6fghH5oro+IA5SYhjeQ439TA==";

/// Everyone may do everything below `open/`, and everything but publish and get `secret` below `part/`.
pub(crate) const RULES: &str = r#"
[[rule]]
effect = "deny"
topics = ["part/+/secret"]
[[rule]]
effect = "allow"
topics = ["open/#", "part/#", "own/%c/#", "user/%u"]
[[rule]]
effect = "allow"
user = "ann"
action = "subscribe"
topics = ["ann/#"]
"#;

/// The files of a node: configuration, users and rules.
pub(crate) struct Files {
    pub(crate) dir: PathBuf,
}

impl Files {
    pub(crate) fn new(format: &str, rules: &str, more: &str) -> Self {
        let files = Self {
            dir: fresh_dir("access"),
        };
        files.rules(rules);
        files.users(&["ann", "bob"]);
        let path = |name: &str| format!("{:?}", files.dir.join(name).display().to_string());
        let text = format!(
            "{more}\n[auth]\nallow_anonymous = true\n[auth.password-file]\nfile = {}\n[acl]\nformat = \"{format}\"\nfile = {}\n",
            path("users"),
            path("rules")
        );
        files.write("flotte.toml", &text);
        files
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.join(name), text).expect("the file can be written");
    }

    pub(crate) fn rules(&self, text: &str) {
        self.write("rules", text);
    }

    pub(crate) fn users(&self, names: &[&str]) {
        let line = |name: &&str| format!("{name}:{HASH}\n");
        self.write("users", &names.iter().map(line).collect::<String>());
    }

    pub(crate) fn configure(&self, launch: Launch) -> Launch {
        let path = self.dir.join("flotte.toml");
        launch.arg("--config").arg(path.display().to_string())
    }

    pub(crate) fn start(&self) -> Broker {
        self.configure(Launch::new("guarded")).start()
    }
}

pub(crate) fn user(name: &str, id: &str) -> Connect {
    connect(id).username(name).password(PASSWORD)
}

/// Has a node read its files again, and demands that all was well.
pub(crate) fn reload(node: &Broker) -> Value {
    let (status, body) = ask_reload(node);
    assert_eq!(status, 200, "{body:#}");
    body
}

pub(crate) fn ask_reload(node: &Broker) -> (u16, Value) {
    let (status, body) =
        admin::post(node.admin(), "/api/v1/reload", &json!({})).expect("the node answers");
    (status, serde_json::from_str(&body).expect("JSON"))
}

pub(crate) fn denied(node: &Broker, action: &str) -> f64 {
    let series = format!("flotte_acl_denied_total{{action=\"{action}\"}}");
    admin::metric(node.admin(), &series).unwrap_or(0.0)
}

/// Subscribes and gives the code of the answer.
pub(crate) async fn ask(client: &mut Client, filter: &str) -> u8 {
    let id = client.fresh_id();
    client.send(subscribe(id).to(filter, 1)).await;
    let answer = client.recv_kind(9).await;
    assert_eq!(answer.packet_id(), id);
    answer.codes()[0]
}

pub(crate) fn refused(version: Version) -> u8 {
    if version.is_v5() { 0x87 } else { 0x80 }
}

#[test]
fn publishes_that_are_refused_reach_nobody_and_are_answered() {
    let files = Files::new("flotte", RULES, "");
    let node = files.start();
    block_on(async {
        for version in VERSIONS {
            let mut watcher = Client::connect(node.mqtt(), version, connect(fresh("w"))).await;
            watcher.subscribe("part/#", 2).await;
            let mut client = Client::connect(node.mqtt(), version, connect(fresh("p"))).await;
            let before = denied(&node, "publish");
            let refusal = if version.is_v5() { 0x87 } else { 0 };
            for topic in ["part/a/secret", "ann/x", "own/other/x", "user/"] {
                client.send(publish(topic).payload("0").retain()).await;
                client
                    .send(publish(topic).qos1(1).payload("1").retain())
                    .await;
                client.recv(puback(1).reason(refusal)).await;
                client.send(publish(topic).qos2(2).payload("2")).await;
                client.recv(pubrec(2).reason(refusal)).await;
                if !version.is_v5() {
                    client.send(flotte_tests::pubrel(2)).await;
                    client.recv(flotte_tests::pubcomp(2)).await;
                }
            }
            client
                .publish(publish("part/a/b").qos1(3).payload("end"))
                .await;
            watcher.take("end").await;
            assert_eq!(denied(&node, "publish") - before, 12.0);
            // Nothing was retained.
            let mut later = Client::connect(node.mqtt(), version, connect(fresh("l"))).await;
            later.subscribe("part/#", 0).await;
            later.fence().await;
        }
    });
}

#[test]
fn a_3x_client_is_disconnected_where_that_is_configured() {
    let files = Files::new("flotte", RULES, "[mqtt]\nacl_refused = \"disconnect\"\n");
    let node = files.start();
    block_on(async {
        let mut old = Client::connect(node.mqtt(), Version::V311, connect(fresh("p"))).await;
        old.send(publish("ann/x").qos1(1)).await;
        old.expect_closed().await;
        let mut new = Client::connect(node.mqtt(), Version::V5, connect(fresh("p"))).await;
        new.send(publish("ann/x").qos1(1)).await;
        new.recv(puback(1).reason(0x87)).await;
        new.send(publish("ann/x")).await;
        new.fence().await;
    });
}

#[test]
fn subscriptions_are_granted_wholly_in_part_or_not() {
    let files = Files::new("flotte", RULES, "");
    let node = files.start();
    block_on(async {
        for version in VERSIONS {
            let id = fresh("s");
            let mut ann = Client::connect(node.mqtt(), version, user("ann", &id)).await;
            let own = format!("own/{id}/+");
            for filter in [
                "open/+",
                "ann/#",
                &own,
                "user/ann",
                "$share/g/open/x",
                "part/#",
            ] {
                assert_eq!(ask(&mut ann, filter).await, 1, "{filter}");
            }
            for filter in [
                "#",
                "+/x",
                "part/a/secret",
                "$share/g/part/a/secret",
                "own/#",
                "user/+",
                "$SYS/#",
            ] {
                assert_eq!(ask(&mut ann, filter).await, refused(version), "{filter}");
            }
            let mut bob = Client::connect(node.mqtt(), version, user("bob", "#")).await;
            for filter in ["ann/#", "own/#", "own/+/x", "user/ann"] {
                assert_eq!(ask(&mut bob, filter).await, refused(version), "{filter}");
            }
            // One SUBSCRIBE, judged filter by filter.
            let both = subscribe(77)
                .to("open/a", 0)
                .to("ann/a", 0)
                .to("user/bob", 2);
            bob.send(both).await;
            bob.recv(suback(77, &[0, refused(version), 2])).await;
            bob.leave().await;
        }
        assert_eq!(denied(&node, "subscribe"), 24.0);
    });
}

/// Of a subscription that is granted in part only that part is delivered: live, retained, and by a shared one.
#[test]
fn what_may_not_be_read_is_not_delivered() {
    let files = Files::new(
        "flotte",
        &format!("[[rule]]\neffect = \"allow\"\nclient = \"root*\"\n{RULES}"),
        "",
    );
    let node = files.start();
    block_on(async {
        for version in VERSIONS {
            let mut root = Client::connect(node.mqtt(), version, connect(fresh("root"))).await;
            let branch = fresh("b");
            let (secret, plain) = (
                format!("part/{branch}/secret"),
                format!("part/{branch}/plain"),
            );
            for topic in [&secret, &plain] {
                root.publish(publish(topic).qos1(1).retain().payload("kept"))
                    .await;
            }
            let mut client = Client::connect(node.mqtt(), version, connect(fresh("s"))).await;
            client.subscribe(format!("part/{branch}/#"), 1).await;
            assert_eq!(client.take("kept").await.topic(), plain);
            let mut member = Client::connect(node.mqtt(), version, connect(fresh("m"))).await;
            member
                .subscribe(format!("$share/g/part/{branch}/#"), 1)
                .await;
            for round in 0..3 {
                for topic in [&secret, &plain] {
                    root.publish(publish(topic).qos1(1).payload(round.to_string()))
                        .await;
                }
            }
            for client in [&mut client, &mut member] {
                for round in 0..3 {
                    assert_eq!(client.take(round.to_string()).await.topic(), plain);
                }
                client.fence().await;
            }
        }
        assert!(denied(&node, "deliver") > 0.0);
    });
}

#[test]
fn a_will_that_may_not_be_published_is_refused_at_connect() {
    let files = Files::new("flotte", RULES, "");
    let node = files.start();
    block_on(async {
        for version in VERSIONS {
            let mut client = Client::dial(node.mqtt(), version).await;
            client
                .send(connect(fresh("w")).will(will("part/a/secret", "x")))
                .await;
            let answer = client.recv_kind(2).await;
            assert_eq!(answer.reason(), if version.is_v5() { 0x87 } else { 5 });
            client.expect_closed().await;
            let allowed = connect(fresh("w")).will(will("open/a", "x"));
            Client::connect(node.mqtt(), version, allowed)
                .await
                .leave()
                .await;
        }
        assert_eq!(denied(&node, "will"), 2.0);
    });
}

/// The node that holds a session judges what it delivers, wherever that comes from.
#[test]
fn rules_hold_across_nodes_and_change_on_each_by_its_own_reload() {
    let files = Files::new(
        "flotte",
        &format!("[[rule]]\neffect = \"allow\"\nclient = \"root*\"\n{RULES}"),
        "",
    );
    let cluster = Cluster::start_with(|launch| files.configure(launch));
    block_on(async {
        for version in VERSIONS {
            let mut root = Client::connect(cluster.mqtt(1), version, connect(fresh("root"))).await;
            let mut client = Client::connect(cluster.mqtt(0), version, connect(fresh("s"))).await;
            client.subscribe("part/#", 1).await;
            for round in 0..3 {
                root.publish(publish("part/x/secret").qos1(1).payload("hidden"))
                    .await;
                root.publish(publish("part/x/y").qos1(1).payload(round.to_string()))
                    .await;
                client.take(round.to_string()).await;
            }
            let mut other = Client::connect(cluster.mqtt(2), version, connect(fresh("p"))).await;
            other.send(publish("part/x/secret").qos1(1)).await;
            other
                .recv(puback(1).reason(if version.is_v5() { 0x87 } else { 0 }))
                .await;
            client.fence().await;
        }
        // The rules of the subscriber's node count, once it has read them.
        let mut root = Client::connect(cluster.mqtt(1), Version::V5, connect(fresh("root"))).await;
        let mut client = Client::connect(cluster.mqtt(0), Version::V5, connect(fresh("s"))).await;
        client.subscribe("part/#", 1).await;
        client.subscribe("open/end", 1).await;
        files.rules("[[rule]]\neffect = \"allow\"\nclient = \"root*\"\n[[rule]]\neffect = \"allow\"\ntopics = [\"open/#\"]\n");
        reload(&cluster.nodes[0]);
        root.publish(publish("part/x/y").qos1(1).payload("hidden"))
            .await;
        root.publish(publish("open/end").qos1(1).payload("end"))
            .await;
        client.take("end").await;
        assert_eq!(ask(&mut client, "part/#").await, 0x87);
    });
}

#[test]
fn a_reload_under_traffic_changes_what_is_allowed_and_drops_nobody() {
    let files = Files::new("flotte", RULES, "");
    let node = files.start();
    block_on(async {
        let mut watcher = Client::connect(node.mqtt(), Version::V5, connect(fresh("w"))).await;
        watcher.subscribe("open/#", 1).await;
        let mut client = Client::connect(node.mqtt(), Version::V5, connect(fresh("p"))).await;
        let narrow = "[[rule]]\neffect = \"allow\"\naction = \"publish\"\ntopics = [\"open/#\"]\n\
                      [[rule]]\neffect = \"allow\"\naction = \"subscribe\"\ntopics = [\"open/even\"]\n";
        let none = "[[rule]]\neffect = \"allow\"\naction = \"subscribe\"\n";
        let mut number = 0_u32;
        for (rules, answer, delivered) in [
            (RULES, 0, &["open/even", "open/odd"][..]),
            (narrow, 0, &["open/even"]),
            (none, 0x87, &[]),
            (RULES, 0, &["open/even", "open/odd"]),
        ] {
            files.rules(rules);
            let report = reload(&node);
            assert!(
                report["parts"].as_array().is_some_and(|parts| {
                    parts
                        .iter()
                        .any(|part| part["name"] == "acl" && part["ok"] == true)
                }),
                "{report:#}"
            );
            for _ in 0..20 {
                for topic in ["open/even", "open/odd"] {
                    number += 1;
                    client
                        .send(publish(topic).qos1(1).payload(number.to_string()))
                        .await;
                    let ack = client.recv_kind(4).await;
                    // Nobody may get it: that is said, too.
                    let nobody = answer == 0 && !delivered.contains(&topic);
                    assert_eq!(ack.reason(), if nobody { 0x10 } else { answer });
                    if delivered.contains(&topic) {
                        watcher.take(number.to_string()).await;
                    }
                }
            }
            watcher.fence().await;
        }
        client.leave().await;
    });
}

/// A session that goes on for another user is judged as that user's.
#[test]
fn a_session_is_judged_by_who_has_it_now() {
    let files = Files::new("flotte", RULES, "");
    let node = files.start();
    block_on(async {
        let id = fresh("d");
        let of = |name: &str| {
            let packet = connect(&id).resume().username(name).password(PASSWORD);
            packet.props(props().u32(prop::SESSION_EXPIRY, 300))
        };
        let mut ann = Client::connect(node.mqtt(), Version::V5, of("ann")).await;
        ann.subscribe("ann/#", 1).await;
        ann.subscribe("open/#", 1).await;
        ann.leave().await;
        files.rules(&format!(
            "[[rule]]\neffect = \"allow\"\nclient = \"root*\"\n{RULES}"
        ));
        reload(&node);
        let mut root = Client::connect(node.mqtt(), Version::V5, connect(fresh("root"))).await;
        let mut bob = Client::connect(node.mqtt(), Version::V5, of("bob")).await;
        assert!(bob.session_present());
        root.publish(publish("ann/x").qos1(1).payload("hidden"))
            .await;
        root.publish(publish("open/x").qos1(1).payload("seen"))
            .await;
        bob.take("seen").await;
        bob.fence().await;
    });
}

#[test]
fn mosquittos_acl_file_means_what_it_means_there() {
    let rules = "topic read public/#\n\nuser ann\ntopic a/#\ntopic deny a/secret\n\nuser bob\ntopic write a/#\npattern readwrite own/%c/#\n";
    let files = Files::new("mosquitto", rules, "");
    let node = files.start();
    block_on(async {
        for version in VERSIONS {
            let mut ann = Client::connect(node.mqtt(), version, user("ann", &fresh("a"))).await;
            let mut bob = Client::connect(node.mqtt(), version, user("bob", &fresh("b"))).await;
            assert_eq!(ask(&mut ann, "#").await, 1, "it gives what ann may read");
            for filter in ["public/#", "a/secret", "b/+"] {
                assert_eq!(ask(&mut ann, filter).await, refused(version), "{filter}");
            }
            assert_eq!(ask(&mut bob, "a/#").await, refused(version));
            bob.publish(publish("a/secret").qos1(1).payload("hidden"))
                .await;
            bob.publish(publish("a/x").qos1(1).payload("seen")).await;
            assert_eq!(ann.take("seen").await.topic(), "a/x");
            bob.send(publish("public/x").qos1(1)).await;
            bob.recv(puback(1).reason(if version.is_v5() { 0x87 } else { 0 }))
                .await;
            let mut nobody = Client::connect(node.mqtt(), version, connect(fresh("n"))).await;
            assert_eq!(ask(&mut nobody, "public/+").await, 1);
            assert_eq!(ask(&mut nobody, "a/#").await, refused(version));
            ann.fence().await;
        }
    });
}
