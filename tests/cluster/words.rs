//! What an operator reads when something is the matter: `flotte ctl status`, `ctl nodes`, /readyz. Nodes go one after the other.

use std::process::Command;
use std::time::{Duration, Instant};

use flotte_tests::broker::{START_LIMIT, binary};
use flotte_tests::run::until_blocking;
use flotte_tests::{Broker, Cluster, admin};
use serde_json::{Value, json};

/// What `flotte ctl` prints, and it does so at once.
fn ctl(node: &Broker, what: &str) -> String {
    let url = format!("http://{}", node.admin());
    let asked = Instant::now();
    let run = Command::new(binary())
        .args(["ctl", "--url", &url, what])
        .output();
    let run = run.expect("it runs");
    assert_eq!(run.status.code(), Some(0));
    assert!(
        asked.elapsed() < Duration::from_secs(5),
        "{:?}",
        asked.elapsed()
    );
    String::from_utf8(run.stdout).expect("text")
}

/// Waits until `ctl status` at a node says all of this, and returns what it says.
fn wait_said(node: &Broker, words: &[&str]) -> String {
    let what = format!("{words:?} of {}", node.name());
    let mut last = String::new();
    let begin = Instant::now();
    until_blocking(START_LIMIT, &what, || {
        last = ctl(node, "status");
        if begin.elapsed() > START_LIMIT - Duration::from_secs(5) {
            eprintln!("{last}");
        }
        words.iter().all(|word| last.contains(word)).then_some(())
    });
    last
}

/// The row of a node in `ctl nodes`.
fn row(observer: &Broker, node: &Broker) -> String {
    let all = ctl(observer, "nodes");
    let rows: Vec<&str> = all
        .lines()
        .filter(|line| line.starts_with(node.name()))
        .collect();
    assert_eq!(rows.len(), 1, "{all}");
    rows[0].to_owned()
}

fn readiness(node: &Broker) -> (u16, Value) {
    let (code, body) = admin::get(node.admin(), "/readyz").expect("an answer");
    (code, serde_json::from_str(&body).expect("JSON"))
}

#[test]
fn what_is_the_matter_is_said_in_words() {
    let mut cluster = Cluster::start();
    let whole = ctl(&cluster.nodes[0], "status");
    assert!(!whole.contains("problem"), "nothing is the matter: {whole}");
    let meta = whole.lines().find(|line| line.starts_with("meta "));
    let voters = meta.unwrap_or_default();
    assert!(
        ["n1", "n2", "n3"].iter().all(|name| voters.contains(name)),
        "who votes: {whole}"
    );

    admin::post(cluster.nodes[2].admin(), "/api/v1/drain", &json!({})).expect("an answer");
    wait_said(&cluster.nodes[0], &["problem: node n3 is draining"]);
    assert!(row(&cluster.nodes[0], &cluster.nodes[2]).contains("up, draining"));
    let (code, said) = readiness(&cluster.nodes[2]);
    assert_eq!(code, 503);
    assert!(
        said["reasons"][0]
            .as_str()
            .is_some_and(|why| why.contains("drains")),
        "{said}"
    );

    cluster.nodes[2].kill9();
    let address = cluster.nodes[2].cluster().to_string();
    let down = format!("problem: node n3 ({address}) is down since ");
    let said = wait_said(&cluster.nodes[0], &[&down]);
    assert!(!said.contains("no quorum"), "two of three are one: {said}");
    assert!(
        row(&cluster.nodes[0], &cluster.nodes[2]).contains("s ago)"),
        "since when"
    );
    assert_eq!(
        readiness(&cluster.nodes[0]).0,
        200,
        "that of others is no reason"
    );

    cluster.nodes[1].kill9();
    let said = wait_said(
        &cluster.nodes[0],
        &[
            "problem: this node has had no lease to serve for ",
            "may be old",
            "problem: no quorum of the meta group and groups 1-8 from here: of 3 voters 2 are missing: ",
            "n2 (not reached at ",
            "n3 (down since ",
        ],
    );
    assert!(
        said.starts_with("problem: this node has had no lease"),
        "first things first: {said}"
    );
    let (code, said) = readiness(&cluster.nodes[0]);
    assert_eq!(code, 503);
    let reasons = said["reasons"].to_string();
    assert!(reasons.contains("no quorum of the meta group"), "{reasons}");

    // One is back: it is enough, and what the others know is new again.
    cluster.nodes[1].restart();
    let said = wait_said(&cluster.nodes[1], &[&down]);
    assert!(
        !said.contains("no quorum") && !said.contains("may be old"),
        "{said}"
    );
}
