//! What is read again while a node runs: broken files, users and sessions that are gone, what needs a restart.

use std::time::Duration;

use flotte_tests::broker::{Launch, START_LIMIT, binary};
use flotte_tests::{Client, Version, admin, block_on, connect, fresh, publish, until};
use serde_json::json;

use crate::access::*;
use crate::common::{VERSIONS, durable};

#[test]
fn a_broken_file_changes_nothing_and_whoever_asked_is_told() {
    let files = Files::new("flotte", RULES, "");
    let node = files.start();
    block_on(async {
        let mut ann = Client::connect(node.mqtt(), Version::V5, user("ann", "ann")).await;
        files.rules("[[rule]]\neffect = \"maybe\"\n");
        files.users(&["bob"]);
        let (status, problem) = ask_reload(&node);
        assert_eq!(status, 422, "{problem:#}");
        let detail = problem["detail"].as_str().unwrap_or_default();
        for word in ["acl", "line 2", "maybe", "\"allow\" or \"deny\""] {
            assert!(detail.contains(word), "{detail} does not name {word}");
        }
        // Each part for itself: the users are the new ones.
        ann.expect_refused(&[0x87]).await;
        let mut bob = Client::connect(node.mqtt(), Version::V5, user("bob", "bob")).await;
        bob.publish(publish("open/x").qos1(1)).await;
        assert_eq!(
            ask(&mut bob, "ann/#").await,
            0x87,
            "the rules are the old ones"
        );

        let ctl = std::process::Command::new(binary())
            .args([
                "ctl",
                "--url",
                &format!("http://{}", node.admin()),
                "reload",
            ])
            .output()
            .expect("ctl starts");
        assert_eq!(ctl.status.code(), Some(1));
        let said = String::from_utf8_lossy(&ctl.stderr).into_owned();
        assert!(said.contains("line 2"), "{said}");
    });
}

#[test]
fn a_reload_closes_whose_user_is_gone_and_nobody_else() {
    let files = Files::new("flotte", RULES, "");
    let node = files.start();
    block_on(async {
        let mut ann = Client::connect(node.mqtt(), Version::V5, user("ann", "ann")).await;
        let mut old_ann = Client::connect(node.mqtt(), Version::V311, user("ann", "ann3")).await;
        let mut bob = Client::connect(node.mqtt(), Version::V5, user("bob", "bob")).await;
        let mut nobody = Client::connect(node.mqtt(), Version::V5, connect("nobody")).await;
        files.users(&["bob", "eve"]);
        node.sighup();
        ann.expect_refused(&[0x87]).await;
        old_ann.expect_closed().await;
        bob.fence().await;
        nobody.fence().await;
        let mut again = Client::dial(node.mqtt(), Version::V5).await;
        again.send(user("ann", "ann")).await;
        assert_eq!(again.recv_kind(2).await.reason(), 0x86);
        let eve = Client::connect(node.mqtt(), Version::V5, user("eve", "eve")).await;
        eve.leave().await;
    });
}

/// A session that waits for its client is judged by the rules that are in force when something is delivered to it.
#[test]
fn a_reload_counts_for_sessions_whose_client_is_away() {
    let files = Files::new("flotte", RULES, "");
    let node = files.start();
    block_on(async {
        for version in VERSIONS {
            files.rules(RULES);
            reload(&node);
            let id = fresh("d");
            let with_user = || {
                let packet = durable(version, &id);
                packet.username("ann").password(PASSWORD)
            };
            let mut client = Client::connect(node.mqtt(), version, with_user()).await;
            client.subscribe("ann/#", 1).await;
            client.subscribe("open/#", 1).await;
            client.leave().await;
            files.rules("[[rule]]\neffect = \"allow\"\nuser = \"\"\n[[rule]]\neffect = \"allow\"\ntopics = [\"open/#\"]\n");
            reload(&node);
            let mut publisher = Client::connect(node.mqtt(), version, connect(fresh("p"))).await;
            publisher
                .publish(publish("ann/x").qos1(1).payload("hidden"))
                .await;
            publisher
                .publish(publish("open/x").qos1(2).payload("seen"))
                .await;
            let mut client = Client::connect(node.mqtt(), version, with_user()).await;
            assert!(client.session_present());
            client.take("seen").await;
            client.fence().await;
            client.leave().await;
        }
    });
}

#[test]
fn a_file_with_mistakes_is_refused_at_the_start() {
    for (format, rules, words) in [
        (
            "flotte",
            "[[rule]]\neffect = \"allow\"\ntopic = [\"a\"]\n",
            ["line 3", "`topics`"],
        ),
        (
            "mosquitto",
            "user ann\ntopic rd a\n",
            ["line 2", "`readwrite`"],
        ),
    ] {
        let files = Files::new(format, rules, "");
        let (code, log) = files.configure(Launch::new("bad")).run_to_end(START_LIMIT);
        assert_eq!(code, Some(64), "{log}");
        assert!(words.iter().all(|word| log.contains(word)), "{log}");
        assert!(log.contains(&files.dir.display().to_string()), "{log}");
    }
}

#[test]
fn what_needs_a_restart_is_named_and_the_log_level_is_set() {
    let files = Files::new("flotte", RULES, "[mqtt]\nreceive_maximum = 10\n");
    let node = files.start();
    block_on(async {
        let text = std::fs::read_to_string(files.dir.join("flotte.toml")).expect("it is there");
        let changed = text.replace("receive_maximum = 10", "receive_maximum = 11");
        files.write(
            "flotte.toml",
            &format!("{changed}\n[log]\nlevel = \"debug\"\n"),
        );
        let report = reload(&node);
        assert_eq!(
            report["restart"],
            json!(["mqtt.receive_maximum"]),
            "{report:#}"
        );
        let id = fresh("seen");
        Client::connect(node.mqtt(), Version::V5, connect(&id))
            .await
            .leave()
            .await;
        until(
            Duration::from_secs(10),
            "a line about the client",
            || async { node.logged(&id).then_some(()) },
        )
        .await;
        let set =
            |level: &str| admin::post(node.admin(), "/api/v1/log", &json!({ "level": level }));
        assert_eq!(set("error").map(|(status, _)| status), Some(200));
        assert_eq!(set("loud").map(|(status, _)| status), Some(400));
        let quiet = fresh("unseen");
        Client::connect(node.mqtt(), Version::V5, connect(&quiet))
            .await
            .leave()
            .await;
        assert_eq!(set("debug").map(|(status, _)| status), Some(200));
        let end = fresh("end");
        Client::connect(node.mqtt(), Version::V5, connect(&end))
            .await
            .leave()
            .await;
        until(
            Duration::from_secs(10),
            "a line about the last client",
            || async { node.logged(&end).then_some(()) },
        )
        .await;
        assert!(!node.logged(&quiet), "nothing is said at level error");
        // A configuration that is wrong is told, and the files are read all the same.
        files.write("flotte.toml", "[mqtt]\nno_such_key = 1\n");
        let (status, problem) = ask_reload(&node);
        assert_eq!(status, 422);
        assert!(problem.to_string().contains("no_such_key"), "{problem:#}");
        let acl = problem["parts"]
            .as_array()
            .and_then(|parts| parts.iter().find(|part| part["name"] == "acl").cloned());
        assert!(acl.is_some_and(|acl| acl["ok"] == true), "{problem:#}");
    });
}
