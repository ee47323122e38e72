//! `ctl` against a node played by the test.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::thread::JoinHandle;

use clap::Parser;

use super::*;
use crate::cli::Failure as _;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    arguments: Arguments,
}

/// Answers one request after the other, each with the next of `answers`; gives the heads of the requests.
fn node(answers: Vec<(&'static str, String)>) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let served = std::thread::spawn(move || {
        let serve = |(status, body): (&str, String)| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = BufReader::new(stream.try_clone().unwrap());
            let lines = request.by_ref().lines().map(Result::unwrap);
            let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            // All of it: a socket that is closed before resets the connection, and the answer may be lost.
            let sent = head.iter().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                let is_length = name.eq_ignore_ascii_case("content-length");
                is_length.then(|| value.trim().parse().unwrap())
            });
            request.read_exact(&mut vec![0; sent.unwrap_or(0)]).unwrap();
            let len = body.len();
            write!(
                stream,
                "HTTP/1.1 {status}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}"
            )
            .unwrap();
            head.join("\n")
        };
        answers.into_iter().map(serve).collect()
    });
    (url, served)
}

fn run(url: &str, line: &str) -> Result<Exit, CtlError> {
    let words = ["ctl", "--url", url].into_iter().chain(line.split(' '));
    Line::try_parse_from(words).unwrap().arguments.run()
}

fn client(id: &str) -> Client {
    Client {
        client_id: id.to_owned(),
        username: None,
        node: "n1".to_owned(),
        version: Some("5.0".to_owned()),
        address: Some("127.0.0.1:5".to_owned()),
        connected_at: Some("2026-11-21T10:00:00Z".to_owned()),
        keep_alive_s: Some(60),
        clean_start: Some(true),
        session: "live".to_owned(),
        connected: true,
        subscriptions: 1,
        queued: 0,
        inflight: 0,
    }
}

fn page(clients: &[Client], next: Option<&str>) -> String {
    serde_json::to_string(&Page {
        items: clients.to_vec(),
        next: next.map(str::to_owned),
    })
    .unwrap()
}

#[test]
fn the_status_of_a_newer_node_is_shown() {
    let text = r#"{"cluster_id":"c","node":{"name":"n1","id":"7","incarnation":2,"version":"0.1.0","uptime_s":61,"new":1},
        "state":"up","lease_ms_left":1200,"nodes":[{"name":"n1","id":"7","state":"up","incarnation":2,"address":"n1:7883","leader":true,"voter":true}],
        "groups":[{"id":0,"role":"leader","term":3,"leader":"n1","applied":9,"committed":9,"voters":["n1"]}],"clients":4,"problems":["slow disk"]}"#;
    let shown = show::status(&serde_json::from_str(text).unwrap());
    let expected = "problem: slow disk\n\
                    \n\
                    cluster  c\n\
                    node     n1 (id 7, incarnation 2)\n\
                    version  0.1.0\n\
                    uptime   1 min 1 s\n\
                    state    up\n\
                    lease    1200 ms left\n\
                    clients  4\n\
                    \n\
                    NODE  STATE  META    ADDRESS  INCARNATION  SINCE  LEVEL  ID\n\
                    n1    up     leader  n1:7883  2            -      -      7\n\
                    \n\
                    GROUP  ROLE    TERM  LEADER  APPLIED  COMMITTED  VOTERS  NOT REACHED\n\
                    meta   leader  3     n1      9        9          n1      -\n";
    assert_eq!(shown, expected);
}

/// Half-way through an upgrade.
#[test]
fn the_feature_level_is_shown_and_who_keeps_it_down() {
    let node = |name: &str, level: u32| {
        format!(
            r#"{{"name":"{name}","id":"7","state":"up","incarnation":2,"address":"{name}:7883","leader":false,"voter":true,"feature_level":{level}}}"#
        )
    };
    let status = |used: u32, levels: [u32; 3]| {
        let [a, b, c] = levels;
        let nodes = [node("n1", a), node("n2", b), node("n3", c)].join(",");
        let text = format!(
            r#"{{"cluster_id":"c","node":{{"name":"n1","id":"7","incarnation":2,"version":"0.1.0","uptime_s":61}},
            "state":"up","lease_ms_left":1200,"nodes":[{nodes}],"groups":[],"clients":4,"feature_level":{used}}}"#
        );
        show::status(&serde_json::from_str(&text).unwrap())
    };
    let mixed = status(2, [3, 2, 2]);
    let told = "feature level  2 (some know more; not yet: n2, n3)\n";
    assert!(mixed.contains(told), "{mixed}");
    assert!(status(3, [3, 3, 3]).contains("feature level  3\n"));
}

/// The node may wait for twice a barrier and T: 2(2T + 1.2 s) + T, by the longest T of all.
#[test]
fn a_removal_by_force_is_waited_for_as_long_as_it_may_take() {
    let member = |name: &str, t_ms: u32| {
        format!(
            r#"{{"name":"{name}","id":"7","state":"up","incarnation":2,"address":"{name}:7883","leader":false,"voter":true,"down_after_ms":{t_ms}}}"#
        )
    };
    let text = format!(
        r#"{{"cluster_id":"c","node":{{"name":"n1","id":"7","incarnation":2,"version":"0.1.0","uptime_s":61}},
        "state":"up","lease_ms_left":1200,"nodes":[{},{}],"groups":[],"clients":4,"feature_level":1}}"#,
        member("n1", 2_000),
        member("n2", 60_000)
    );
    let limit = super::removal_max(&serde_json::from_str(&text).unwrap());
    assert!(limit.as_secs() >= 2 * (2 * 60 + 2) + 60, "{limit:?}");
    let (url, served) = node(vec![("200 OK", text), ("200 OK", "{}".into())]);
    let done = run(&url, "leave --force n2").unwrap();
    assert_eq!(done, Exit::Done);
    let asked = served.join().unwrap();
    assert!(asked[0].starts_with("GET /api/v1/status"), "{asked:?}");
    assert!(
        asked[1].starts_with("POST /api/v1/cluster/leave"),
        "{asked:?}"
    );
}

#[test]
fn a_node_that_joins_is_waited_for() {
    let status = |cluster: &str, state: &str| {
        format!(
            r#"{{"cluster_id":"{cluster}","node":{{"name":"n4","id":"7","incarnation":1,"version":"0.1.0","uptime_s":1}},
            "state":"{state}","lease_ms_left":null,"nodes":[],"groups":[],"clients":0,"problems":["asking to join"]}}"#
        )
    };
    let joining = r#"{"cluster_id":"b","addresses":["n1:7883"],"retained":0,"sessions":0}"#;
    let (url, served) = node(vec![
        ("202 Accepted", joining.to_owned()),
        ("200 OK", status("a", "draining")),
        ("200 OK", status("b", "joining")),
        ("200 OK", status("b", "up")),
    ]);
    assert_eq!(run(&url, "join n1:7883").unwrap(), Exit::Done);
    let requests = served.join().unwrap();
    assert!(
        requests[0].starts_with("POST /api/v1/cluster/join"),
        "{requests:?}"
    );
    assert_eq!(requests.len(), 4);
}

#[test]
fn every_page_of_clients_is_asked_for() {
    for line in ["clients", "clients list", "--json clients"] {
        let (url, served) = node(vec![
            ("200 OK", page(&[client("a")], Some("a b"))),
            ("200 OK", page(&[client("b")], None)),
        ]);
        assert_eq!(run(&url, line).unwrap(), Exit::Done);
        let requests = served.join().unwrap();
        assert!(
            requests[0].starts_with("GET /api/v1/clients?limit=500 HTTP"),
            "{}",
            requests[0]
        );
        assert!(
            requests[1].starts_with("GET /api/v1/clients?limit=500&cursor=a%20b HTTP"),
            "{}",
            requests[1]
        );
    }
}

#[test]
fn a_client_is_named_by_any_identifier() {
    let (url, served) = node(vec![("204 No Content", String::new())]);
    assert_eq!(run(&url, "clients kick a/b%?é").unwrap(), Exit::Done);
    assert!(served.join().unwrap()[0].starts_with("DELETE /api/v1/clients/a%2Fb%25%3F%C3%A9 HTTP"));
    assert_eq!(path_segment(".."), "%2E%2E");
}

#[test]
fn the_token_is_shown_to_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "secret\n").unwrap();
    let (url, served) = node(vec![("200 OK", r#"{"items":[]}"#.to_owned())]);
    run(&url, &format!("nodes --token-file {}", path.display())).unwrap();
    assert!(
        served.join().unwrap()[0]
            .to_ascii_lowercase()
            .contains("authorization: bearer secret")
    );
    std::fs::write(&path, "two\nlines\n").unwrap();
    let error = run(&url, &format!("nodes --token-file {}", path.display())).unwrap_err();
    assert_eq!(error.exit(), Exit::Usage);
}

#[test]
fn a_problem_document_is_told_and_ends_with_1() {
    let problem = r#"{"type":"about:blank","title":"No such client","status":404,"detail":"nobody is called x"}"#;
    let (url, _served) = node(vec![
        ("404 Not Found", problem.to_owned()),
        ("503 Service Unavailable", "busy".to_owned()),
    ]);
    let error = run(&url, "clients show x").unwrap_err();
    assert_eq!(
        (error.to_string().as_str(), error.exit()),
        ("No such client: nobody is called x", Exit::Refused)
    );
    assert!(
        run(&url, "status")
            .unwrap_err()
            .to_string()
            .ends_with("answers 503 Service Unavailable")
    );
}

#[test]
fn a_reload_is_asked_for_and_told_part_by_part() {
    let answer = r#"{"parts":[{"name":"acl","ok":true},{"name":"users","ok":false,"error":"gone"}],"restart":["node.name"]}"#;
    for line in ["reload", "--json reload"] {
        let (url, served) = node(vec![("200 OK", answer.to_owned())]);
        assert_eq!(run(&url, line).unwrap(), Exit::Done);
        assert!(served.join().unwrap()[0].starts_with("POST /api/v1/reload HTTP"));
    }
    assert_eq!(
        show::reload(&serde_json::from_str(answer).unwrap()),
        "acl: reloaded\nusers: not reloaded: gone\nnode.name: changed; it needs a restart\n"
    );
}

#[test]
fn a_log_level_is_set_or_the_refusal_told() {
    let problem = r#"{"title":"No log level","status":400,"detail":"`loud` is neither"}"#;
    let (url, served) = node(vec![
        ("200 OK", r#"{"level":"debug"}"#.to_owned()),
        ("400 Bad Request", problem.to_owned()),
    ]);
    assert_eq!(run(&url, "log debug").unwrap(), Exit::Done);
    let error = run(&url, "log loud").unwrap_err();
    assert_eq!(error.to_string(), "No log level: `loud` is neither");
    assert!(served.join().unwrap()[0].starts_with("POST /api/v1/log HTTP"));
}

#[test]
fn nobody_there_and_somebody_else_are_unreachable() {
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    assert_eq!(
        run(&format!("http://{free}"), "status").unwrap_err().exit(),
        Exit::Unreachable
    );
    let (url, _served) = node(vec![("200 OK", "<html>".to_owned())]);
    assert_eq!(run(&url, "status").unwrap_err().exit(), Exit::Unreachable);
}

#[test]
fn a_bad_url_ends_with_2() {
    for url in ["127.0.0.1:8080", "https://127.0.0.1:8080", "http://"] {
        assert_eq!(run(url, "status").unwrap_err().exit(), Exit::Usage, "{url}");
    }
}
