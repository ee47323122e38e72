//! Members that come and go, as an operator would have it: joining, leaving, draining, removal by force; and waiting until
//! all that follows from it has come true.

use std::time::{Duration, Instant};

use flotte_tests::{Launch, admin};
use serde_json::{Value, json};

use super::{Arena, ENDED_LIMIT, name, next};
use crate::schedule::GUEST;

/// Meta and eight session groups.
const GROUPS: usize = 9;
/// How long replicas may take to move, on a busy machine.
const WHOLE_LIMIT: Duration = Duration::from_secs(120);
/// How long an order may be refused for want of an answer.
const ORDER_LIMIT: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(150);

impl Arena {
    /// The fourth node joins.
    pub(super) fn welcome(&mut self) {
        let guest = Launch::start(self.invitation.clone());
        self.guest = Some(guest);
        let begin = Instant::now();
        while !self.ask(GUEST, admin::is_ready) {
            assert!(
                begin.elapsed() < WHOLE_LIMIT,
                "the guest is not ready\n{}",
                self.logs()
            );
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// The fourth node is told to leave, and ends by itself.
    pub(super) fn see_off(&mut self) {
        let body = json!({ "node": name(GUEST) });
        self.order(1, "/api/v1/cluster/leave", body, 202);
        let mut guest = self.guest.take().expect("the guest is there");
        let code = guest.wait_end(ENDED_LIMIT).code();
        assert_eq!(code, Some(0), "the guest ends\n{}", guest.log());
        let words = "has left the cluster";
        if !guest.logged(words) {
            eprintln!("the guest could not say that it leaves\n{}", guest.log());
        }
    }

    /// Another node is told that this one leaves, which ends by itself.
    pub(super) fn leave(&mut self, node: u8) {
        let body = json!({ "node": name(node) });
        self.order(next(node), "/api/v1/cluster/leave", body, 202);
        self.wait_end(node);
    }

    /// Another node is told that this one, which is dead, is gone for good.
    pub(super) fn expel(&self, node: u8) {
        let body = json!({ "node": name(node), "force": true });
        self.order(next(node), "/api/v1/cluster/leave", body, 200);
    }

    /// A node comes back under its name, with nothing on its disk.
    pub(super) fn return_anew(&mut self, node: u8) {
        self.node(node).restart_empty();
    }

    pub(super) fn drain(&self, node: u8) {
        self.order(node, "/api/v1/drain", json!({}), 202);
    }

    /// A node that drains is told to end when it has.
    pub(super) fn stop_drained(&mut self, node: u8) {
        self.order(node, "/api/v1/drain", json!({ "stop": true }), 202);
        self.wait_end(node);
    }

    /// Asks until it is done. Who did not hear the first answer may find that it has been done.
    fn order(&self, at: u8, path: &'static str, body: Value, wanted: u16) {
        let begin = Instant::now();
        let mut asked_before = false;
        loop {
            let body = body.clone();
            let answer = self.ask(at, move |address| admin::post(address, path, &body));
            match &answer {
                Some((code, _)) if *code == wanted || (*code == 404 && asked_before) => return,
                _ => asked_before = true,
            }
            assert!(
                begin.elapsed() < ORDER_LIMIT,
                "{path} at n{at}: {answer:?}\n{}",
                self.logs()
            );
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Waits until three nodes are the members, and each group has all three as voters.
    pub(super) fn wait_whole(&self) {
        let begin = Instant::now();
        loop {
            let seen = (1..=3).map(|node| {
                self.ask(node, |address| admin::json(address, "/api/v1/status"))
                    .unwrap_or_default()
            });
            let seen: Vec<Value> = seen.collect();
            if seen.iter().all(is_whole) {
                return;
            }
            assert!(
                begin.elapsed() < WHOLE_LIMIT,
                "the cluster is not whole: {seen:#?}\n{}",
                self.logs()
            );
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

/// Whether a node sees three members that are up, and a leader and three voters in each of its groups.
fn is_whole(status: &Value) -> bool {
    let list = |what: &str| status[what].as_array().cloned().unwrap_or_default();
    let (nodes, groups) = (list("nodes"), list("groups"));
    let has_all = |group: &Value| {
        let voters = group["voters"].as_array().map_or(0, Vec::len);
        voters == 3 && group["leader"].is_string()
    };
    nodes.len() == 3
        && nodes.iter().all(|node| node["state"] == "up")
        && groups.len() == GROUPS
        && groups.iter().all(has_all)
}
