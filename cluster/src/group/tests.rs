//! Steps through the state machine of a session group.

use bytes::Bytes;
use flotte_proto::session_command::Command;
use flotte_proto::{
    Batch, BatchReply, Close, End, EntryReply, FireWill, GroupEntry, HomeGone, Offline, Open,
    OpenReply, SessionCommand, Told, Will, WillDone, batch_reply,
};
use prost::Message;

use super::*;
use crate::id::{GroupId, NodeId, NodeRef};

const A: NodeRef = NodeRef {
    node: NodeId(1),
    incarnation: 1,
};
const B: NodeRef = NodeRef {
    node: NodeId(2),
    incarnation: 1,
};

/// A group and the proposers of its nodes.
#[derive(Default)]
struct Rig {
    state: GroupState,
    index: u64,
    now_ms: u64,
    sequences: std::collections::HashMap<NodeRef, u64>,
}

impl Rig {
    fn batch(&mut self, from: NodeRef, sequence: u64, command: Command) -> (BatchReply, Effects) {
        self.index += 1;
        let command = SessionCommand {
            command: Some(command),
        }
        .encode_to_vec()
        .into();
        let batch = Batch {
            node_id: from.node.0,
            incarnation: from.incarnation,
            sequence,
            commands: vec![command],
        };
        let entry = GroupEntry {
            time_ms: self.now_ms,
            batches: vec![batch],
        }
        .encode_to_vec();
        let mut effects = Effects::default();
        let reply = self
            .state
            .apply(GroupId(1), self.index, &entry, &mut effects)
            .unwrap();
        self.state.check_invariants();
        self.check_snapshot();
        (
            EntryReply::decode(reply).unwrap().batches.remove(0),
            effects,
        )
    }

    fn check_snapshot(&self) {
        let mut restored = GroupState::default();
        for record in self.state.records() {
            restored.restore(record).unwrap();
        }
        restored.check_invariants();
        assert_eq!(restored.records(), self.state.records());
    }

    fn run(&mut self, from: NodeRef, command: Command) -> (Bytes, Effects) {
        let sequence = *self
            .sequences
            .entry(from)
            .and_modify(|s| *s += 1)
            .or_insert(1);
        let (reply, effects) = self.batch(from, sequence, command);
        match reply.result.unwrap() {
            batch_reply::Result::Replies(mut replies) => (replies.replies.remove(0), effects),
            other => panic!("not applied: {other:?}"),
        }
    }

    /// By a node that has seen all that is committed.
    fn open(&mut self, from: NodeRef, open: Open) -> OpenReply {
        OpenReply::decode(self.run(from, self.up_to_date(open)).0).unwrap()
    }

    fn up_to_date(&self, open: Open) -> Command {
        self.having_seen(self.state.last_epoch(), open)
    }

    fn having_seen(&self, displaces: u64, open: Open) -> Command {
        Command::Open(Open { displaces, ..open })
    }

    /// By a node that has seen nothing after an epoch.
    fn open_late(&mut self, from: NodeRef, displaces: u64, open: Open) -> OpenReply {
        let late = self.having_seen(displaces, open);
        OpenReply::decode(self.run(from, late).0).unwrap()
    }

    fn close(&mut self, from: NodeRef, epoch: u64, discard_will: bool) -> Effects {
        let close = Close {
            client: "c".into(),
            epoch,
            discard_will,
            expiry_s: None,
        };
        self.run(from, Command::Close(close)).1
    }

    fn wills(&self) -> Vec<&str> {
        let wills = self.state.outbox().publishable(self.now_ms);
        wills
            .map(|(_, fired)| std::str::from_utf8(&fired.will.topic).unwrap())
            .collect()
    }
}

fn open(clean: bool, expiry_s: u32) -> Open {
    Open {
        client: "c".into(),
        clean,
        expiry_s,
        ..Open::default()
    }
}

fn will(delay_s: u32) -> Option<Will> {
    Some(Will {
        topic: "will".into(),
        delay_s,
        ..Will::default()
    })
}

#[test]
fn a_session_is_present_only_at_its_home() {
    let mut rig = Rig::default();
    let first = rig.open(A, open(false, 60));
    assert!(!first.session_present && first.former.is_none());
    rig.close(A, first.epoch, true);
    let second = rig.open(A, open(false, 60));
    assert!(second.session_present && second.epoch > first.epoch);
    rig.close(A, second.epoch, true);
    let third = rig.open(B, open(false, 60));
    assert!(
        !third.session_present,
        "its queue is in the memory of another node"
    );
    assert_eq!(third.former_home.unwrap().node_id, A.node.0);
    assert!(third.former.is_none(), "it was offline");
}

#[test]
fn a_session_that_opens_elsewhere_ends_at_its_home() {
    let mut rig = Rig::default();
    let first = rig.open(A, open(false, 60));
    let moved = rig.run(B, rig.up_to_date(open(false, 60))).1;
    let ended = Ended {
        client: "c".into(),
        epoch: first.epoch,
        home: A,
    };
    assert_eq!(moved.ended, [ended], "it was connected");
    assert!(moved.openers.iter().eq([&B]));
    let here = rig.run(B, rig.up_to_date(open(true, 60))).1;
    assert!(here.ended.is_empty(), "whoever opens it there sees to it");
    let epoch = rig.state.client(b"c").unwrap().epoch;
    rig.close(B, epoch, true);
    let back = rig.run(A, rig.up_to_date(open(false, 60))).1;
    assert_eq!(
        (back.ended[0].epoch, back.ended[0].home),
        (epoch, B),
        "it was offline"
    );
}

#[test]
fn a_clean_start_ends_the_old_session() {
    let mut rig = Rig::default();
    let first = rig.open(A, open(false, 60));
    rig.close(A, first.epoch, true);
    let second = rig.open(A, open(true, 60));
    assert!(!second.session_present);
    assert_eq!(second.former_home.unwrap().epoch, first.epoch);
}

#[test]
fn takeover_names_the_former_owner_and_fences_its_epoch() {
    let mut rig = Rig::default();
    let old = rig.open(A, open(true, 0));
    let new = rig.open(B, open(true, 0));
    let former = new.former.unwrap();
    assert_eq!(
        (former.node_id, former.incarnation, former.epoch),
        (A.node.0, A.incarnation, old.epoch)
    );
    rig.close(A, old.epoch, false);
    assert_eq!(
        rig.state.client(b"c").unwrap().owner(),
        Some(B),
        "an old epoch changes nothing"
    );
}

#[test]
fn a_will_fires_when_the_connection_is_lost_and_not_after_disconnect() {
    let mut rig = Rig::default();
    let first = rig.open(
        A,
        Open {
            will: will(0),
            ..open(true, 0)
        },
    );
    assert!(!rig.close(A, first.epoch, true).fired);
    assert!(rig.wills().is_empty());
    let second = rig.open(
        A,
        Open {
            will: will(0),
            ..open(true, 0)
        },
    );
    assert!(rig.close(A, second.epoch, false).fired);
    assert_eq!(rig.wills(), ["will"]);
    assert!(rig.state.is_empty());
}

#[test]
fn a_delayed_will_waits_and_a_resumed_session_drops_it() {
    let mut rig = Rig {
        now_ms: 1_000,
        ..Rig::default()
    };
    let first = rig.open(
        A,
        Open {
            will: will(10),
            ..open(false, 60)
        },
    );
    rig.close(A, first.epoch, false);
    assert!(rig.wills().is_empty());
    assert!(rig.state.due(10_999, 10).is_empty());
    assert_eq!(
        rig.state.due(11_000, 10),
        [Command::FireWill(FireWill {
            client: "c".into(),
            epoch: first.epoch
        })]
    );
    let second = rig.open(
        A,
        Open {
            will: will(10),
            ..open(false, 60)
        },
    );
    rig.now_ms = 20_000;
    rig.run(
        A,
        Command::FireWill(FireWill {
            client: "c".into(),
            epoch: first.epoch,
        }),
    );
    assert!(
        rig.wills().is_empty(),
        "the timer was meant for an older epoch"
    );
    rig.close(A, second.epoch, false);
    rig.now_ms = 30_000;
    rig.run(
        A,
        Command::FireWill(FireWill {
            client: "c".into(),
            epoch: second.epoch,
        }),
    );
    assert_eq!(rig.wills(), ["will"]);
    assert!(rig.state.client(b"c").unwrap().will.is_none());
}

#[test]
fn a_will_fires_no_later_than_its_session_ends() {
    let mut rig = Rig::default();
    let first = rig.open(
        A,
        Open {
            will: will(100),
            ..open(false, 5)
        },
    );
    rig.close(A, first.epoch, false);
    rig.now_ms = 5_000;
    assert_eq!(
        rig.state.due(5_000, 10),
        [Command::End(End {
            client: "c".into(),
            epoch: first.epoch
        })]
    );
    let (_, effects) = rig.run(
        B,
        Command::End(End {
            client: "c".into(),
            epoch: first.epoch,
        }),
    );
    assert_eq!(rig.wills(), ["will"]);
    assert_eq!(
        effects.ended,
        [Ended {
            client: "c".into(),
            epoch: first.epoch,
            home: A
        }]
    );
}

#[test]
fn a_timer_that_comes_early_changes_nothing() {
    let mut rig = Rig::default();
    let first = rig.open(
        A,
        Open {
            will: will(3),
            ..open(false, 5)
        },
    );
    rig.close(A, first.epoch, false);
    rig.run(
        A,
        Command::FireWill(FireWill {
            client: "c".into(),
            epoch: first.epoch,
        }),
    );
    rig.run(
        A,
        Command::End(End {
            client: "c".into(),
            epoch: first.epoch,
        }),
    );
    assert!(rig.wills().is_empty() && rig.state.len() == 1);
}

#[test]
fn a_clean_start_fires_the_delayed_will_of_the_session_it_ends() {
    let mut rig = Rig::default();
    let first = rig.open(
        A,
        Open {
            will: will(100),
            ..open(false, 500)
        },
    );
    rig.close(A, first.epoch, false);
    rig.open(B, open(true, 0));
    assert_eq!(rig.wills(), ["will"]);
}

#[test]
fn node_down_takes_clients_offline_and_keeps_the_will_delay() {
    let mut rig = Rig::default();
    let plain = rig.open(
        A,
        Open {
            client: "plain".into(),
            will: will(0),
            ..open(true, 0)
        },
    );
    let late = rig.open(
        A,
        Open {
            will: will(10),
            ..open(false, 60)
        },
    );
    let orphans = rig.state.orphans(|node| node != A, 10);
    assert_eq!(orphans.len(), 2);
    for orphan in orphans {
        rig.run(B, orphan);
    }
    assert_eq!(rig.wills(), ["will"], "only that without a delay");
    assert!(rig.state.client(b"plain").is_none());
    assert!(rig.state.orphans(|node| node != A, 10).is_empty());
    rig.run(
        B,
        Command::Offline(Offline {
            client: "plain".into(),
            epoch: plain.epoch,
        }),
    );
    rig.now_ms = 10_000;
    let reopened = rig.open(B, open(false, 60));
    assert!(
        !reopened.session_present && reopened.former_home.is_none() && reopened.epoch > late.epoch
    );
    assert_eq!(
        rig.wills().len(),
        1,
        "the client came back within the delay"
    );
}

#[test]
fn an_offline_session_is_lost_with_its_home() {
    let mut rig = Rig::default();
    let first = rig.open(A, open(false, 60));
    rig.close(A, first.epoch, true);
    let orphans = rig.state.orphans(|node| node != A, 10);
    assert_eq!(orphans.len(), 1);
    for orphan in orphans {
        rig.run(B, orphan);
    }
    assert!(rig.state.is_empty());
}

/// A client with a will at A is taken over by B.
fn taken_over_elsewhere() -> (Rig, u64) {
    let mut rig = Rig::default();
    let will = will(0);
    let former = rig.open(
        A,
        Open {
            will,
            ..open(true, 0)
        },
    );
    rig.open(B, open(true, 0));
    assert_eq!(rig.wills(), [""; 0], "A may have been told goodbye");
    (rig, former.epoch)
}

#[test]
fn a_goodbye_that_an_open_elsewhere_overtook_discards_the_will() {
    let (mut rig, epoch) = taken_over_elsewhere();
    rig.close(A, epoch, true);
    rig.now_ms = 60_000;
    assert_eq!(rig.wills(), [""; 0]);
    assert_eq!(rig.state.outbox().floor(), 2, "nothing is left of it");
}

#[test]
fn the_will_of_a_client_that_is_taken_over_elsewhere_waits_for_the_former_owner() {
    let (mut rig, epoch) = taken_over_elsewhere();
    let effects = rig.close(A, epoch, false);
    assert!(effects.fired, "the leader is told");
    assert_eq!(rig.wills(), ["will"]);
    rig.close(A, epoch, true);
    assert_eq!(rig.wills(), ["will"], "its word is given");
}

#[test]
fn the_will_of_a_client_that_is_taken_over_waits_for_a_silent_owner_no_longer_than_allowed() {
    let (mut rig, _) = taken_over_elsewhere();
    rig.now_ms = 1_999;
    assert_eq!(rig.wills(), [""; 0]);
    rig.now_ms = 2_000;
    assert_eq!(rig.wills(), ["will"]);
    rig.run(B, Command::WillDone(WillDone { key: 1 }));
    assert_eq!(rig.wills(), [""; 0]);
}

#[test]
fn each_of_several_owners_gives_its_own_word() {
    let mut rig = Rig::default();
    let with_will = || Open {
        will: will(0),
        ..open(true, 0)
    };
    let first = rig.open(A, with_will());
    let second = rig.open(B, with_will());
    rig.open(A, open(true, 0));
    rig.close(B, second.epoch, true);
    assert_eq!(rig.wills(), [""; 0]);
    rig.close(A, first.epoch, false);
    assert_eq!(rig.wills(), ["will"]);
}

#[test]
fn wills_leave_the_outbox_once_done_and_raise_the_floor() {
    let mut rig = Rig::default();
    for _ in 0..2 {
        let opened = rig.open(
            A,
            Open {
                will: will(0),
                ..open(true, 0)
            },
        );
        rig.close(A, opened.epoch, false);
    }
    assert_eq!((rig.wills().len(), rig.state.outbox().floor()), (2, 1));
    rig.run(A, Command::WillDone(WillDone { key: 1 }));
    assert_eq!(rig.state.outbox().floor(), 2);
    rig.run(A, Command::WillDone(WillDone { key: 2 }));
    assert_eq!(rig.state.outbox().floor(), 3);
}

#[test]
fn a_repeated_batch_opens_once() {
    let mut rig = Rig::default();
    let (first, _) = rig.batch(A, 1, Command::Open(open(true, 0)));
    let (again, _) = rig.batch(A, 1, Command::Open(open(true, 0)));
    assert_eq!(first, again);
    assert_eq!(rig.state.client(b"c").unwrap().epoch, 1);
}

#[test]
fn disconnect_may_change_the_expiry() {
    let mut rig = Rig::default();
    let first = rig.open(A, open(false, 60));
    let close = Close {
        client: "c".into(),
        epoch: first.epoch,
        discard_will: true,
        expiry_s: Some(0),
    };
    rig.run(A, Command::Close(close));
    assert!(rig.state.is_empty());
}

#[test]
fn a_late_open_leaves_a_newer_connection_elsewhere_alone() {
    let mut rig = Rig::default();
    let with_will = Open {
        will: will(0),
        ..open(true, 0)
    };
    let seen = rig.state.last_epoch();
    let newer = rig.open(B, with_will);
    let before = rig.state.client(b"c").cloned();
    let (reply, effects) = rig.run(A, rig.having_seen(seen, open(true, 0)));
    let conflict = OpenReply {
        conflict: newer.epoch,
        ..OpenReply::default()
    };
    assert_eq!(OpenReply::decode(reply).unwrap(), conflict);
    assert_eq!(effects, Effects::default(), "nobody is told anything");
    assert_eq!(rig.state.client(b"c").cloned(), before);
    assert_eq!(rig.state.last_epoch(), newer.epoch, "no epoch is used up");
    rig.now_ms = 60_000;
    assert_eq!(rig.wills(), [""; 0], "its client is connected");
}

#[test]
fn a_late_open_does_not_move_a_session_that_is_at_another_node_by_now() {
    let mut rig = Rig::default();
    let seen = rig.open(A, open(false, 60)).epoch;
    rig.close(A, seen, true);
    let moved = rig.open(B, open(false, 60));
    rig.close(B, moved.epoch, true);
    let late = rig.open_late(A, seen, open(false, 60));
    assert_eq!((late.conflict, late.epoch), (moved.epoch, 0));
    let back = rig.open(B, open(false, 60));
    assert!(back.session_present, "its home is where it was last");
}

#[test]
fn an_open_displaces_what_its_node_had_seen() {
    let mut rig = Rig::default();
    let older = rig.open(B, open(true, 0));
    let newer = rig.open_late(A, older.epoch, open(true, 0));
    assert_eq!(
        (newer.conflict, newer.former.unwrap().epoch),
        (0, older.epoch)
    );
    assert_eq!(rig.state.client(b"c").unwrap().owner(), Some(A));
}

#[test]
fn opens_of_one_node_come_in_order_whatever_it_has_seen() {
    let mut rig = Rig::default();
    let first = rig.open_late(A, 0, open(true, 0));
    let second = rig.open_late(A, 0, open(true, 0));
    assert_eq!(
        (second.conflict, second.former.unwrap().epoch),
        (0, first.epoch)
    );
    let again = NodeRef {
        incarnation: 2,
        ..A
    };
    let third = rig.open_late(again, 0, open(true, 0));
    assert_eq!(
        (third.conflict, third.former.unwrap().epoch),
        (0, second.epoch)
    );
}

#[test]
fn a_client_whose_node_went_down_is_open_to_all() {
    let mut rig = Rig::default();
    let with_will = Open {
        will: will(10),
        ..open(false, 60)
    };
    rig.open(B, with_will);
    for orphan in rig.state.orphans(|node| node != B, 10) {
        rig.run(A, orphan);
    }
    assert!(rig.state.client(b"c").unwrap().home.is_none());
    assert_eq!(rig.open_late(A, 0, open(false, 60)).conflict, 0);
}

/// Three nodes, none of which has seen anything, open one client again and again, each of them after a conflict with what it has
/// learned from that: each gets its turn, in at most as many rounds as there are Opens, and one is left.
#[test]
fn a_storm_of_opens_settles_with_one_connection() {
    const EACH: usize = 5;
    let mut rig = Rig::default();
    let nodes = [1, 2, 3].map(|node| NodeRef {
        node: NodeId(node),
        incarnation: 1,
    });
    // Under way: by whom, and what it displaces.
    let mut under_way: Vec<(NodeRef, u64)> = Vec::new();
    under_way.extend(nodes.repeat(EACH).into_iter().map(|node| (node, 0)));
    let mut opened = Vec::new();
    let mut rounds = 0;
    while !under_way.is_empty() {
        rounds += 1;
        for (node, displaces) in std::mem::take(&mut under_way) {
            let reply = rig.open_late(node, displaces, open(true, 0));
            match reply.conflict {
                0 => opened.push((reply.epoch, node, reply.former)),
                conflict => under_way.push((node, conflict)),
            }
        }
    }
    assert!(rounds <= 3 * EACH, "{rounds} rounds");
    assert_eq!(opened.len(), 3 * EACH);
    for pair in opened.windows(2) {
        let former = pair[1].2.map(|former| former.epoch);
        assert_eq!(former, Some(pair[0].0), "each ends the one before it");
    }
    let (epoch, last, _) = opened[opened.len() - 1];
    let client = rig.state.client(b"c").unwrap();
    assert_eq!((client.owner(), client.epoch), (Some(last), epoch));
}

fn untold(rig: &Rig) -> Vec<(u64, u64)> {
    let all = rig.state.untold().iter();
    all.map(|(ended, _)| (ended.home.node.0, ended.epoch))
        .collect()
}

#[test]
fn a_former_home_is_to_be_told_until_it_has_closed_that_epoch() {
    let mut rig = Rig::default();
    let first = rig.open(A, open(true, 0));
    let second = rig.open(B, open(true, 0));
    assert_eq!(untold(&rig), [(A.node.0, first.epoch)]);
    rig.close(B, first.epoch, false);
    rig.close(A, second.epoch, false);
    assert_eq!(untold(&rig).len(), 1, "that was not its word");
    rig.close(A, first.epoch, false);
    assert_eq!(untold(&rig), []);
}

#[test]
fn a_former_home_without_a_connection_has_only_to_be_told() {
    let mut rig = Rig::default();
    let first = rig.open(A, open(false, 60));
    rig.close(A, first.epoch, true);
    rig.open(B, open(false, 60));
    let told = |epoch| {
        Command::Told(Told {
            node_id: A.node.0,
            client: "c".into(),
            epoch,
        })
    };
    rig.run(B, told(first.epoch + 1));
    assert_eq!(untold(&rig), [(A.node.0, first.epoch)]);
    rig.run(B, told(first.epoch));
    assert_eq!(untold(&rig), []);
}

#[test]
fn the_home_of_an_expired_session_is_to_be_told() {
    let mut rig = Rig::default();
    let first = rig.open(A, open(false, 5));
    rig.close(A, first.epoch, true);
    rig.now_ms = 5_000;
    for end in rig.state.due(5_000, 10) {
        rig.run(B, end);
    }
    assert!(rig.state.is_empty());
    assert_eq!(untold(&rig), [(A.node.0, first.epoch)]);
}

#[test]
fn of_several_epochs_a_home_is_told_the_newest() {
    let mut rig = Rig::default();
    let first = rig.open(A, open(true, 0));
    rig.open(B, open(true, 0));
    let third = rig.open(A, open(true, 0));
    let fourth = rig.open(B, open(true, 0));
    let second = (B.node.0, fourth.epoch - 2);
    assert_eq!(untold(&rig), [(A.node.0, third.epoch), second]);
    rig.close(A, first.epoch, false);
    assert_eq!(untold(&rig).len(), 2, "a newer one is there");
    rig.close(A, third.epoch, false);
    assert_eq!(untold(&rig), [second]);
}

#[test]
fn a_home_that_is_no_more_is_told_nothing() {
    let mut rig = Rig::default();
    rig.open(A, open(true, 0));
    rig.open(B, open(true, 0));
    assert!(rig.state.untold().homes().iter().eq([&A]));
    let gone = |incarnation| {
        Command::HomeGone(HomeGone {
            node_id: A.node.0,
            incarnation,
        })
    };
    rig.run(B, gone(0));
    assert_eq!(untold(&rig).len(), 1);
    rig.run(B, gone(A.incarnation));
    assert_eq!(untold(&rig), []);
}

/// Its own word makes it needless in the usual takeover; then so many at once, so that one home does not keep others waiting.
#[test]
fn homes_are_told_after_a_moment_and_so_many_at_once() {
    let mut rig = Rig::default();
    for number in 0..5 {
        let client = Bytes::from(format!("c{number}"));
        for node in [A, B] {
            let client = client.clone();
            rig.open(
                node,
                Open {
                    client,
                    ..open(true, 0)
                },
            );
        }
    }
    let none = std::collections::BTreeSet::new();
    let due = |rig: &Rig, now, under_way| rig.state.untold().due(now, under_way, 3);
    assert_eq!(due(&rig, 99, &none), []);
    let first = due(&rig, 100, &none);
    assert_eq!(first.len(), 3);
    assert!(first.iter().all(|ended| ended.home == A));
    let two = first[..2].iter().cloned().collect();
    let next = due(&rig, 100, &two);
    assert_eq!(next, first[2..], "there is room for one more");
}
