//! Who is let in, who goes, and who is told that it is out: names of others, removals at the same time, the last one.

use super::*;

fn join(id: u64, name: &str) -> Command {
    Command::Join(Join {
        node_id: id,
        name: name.into(),
        advertise: format!("{name}:7883"),
        ..Join::default()
    })
}

fn leaving(id: u64, expel: bool, stays: bool) -> Command {
    Command::Leaving(Leaving {
        node_id: id,
        stays,
        expel,
    })
}

/// Why a command is refused; empty where it is not.
fn reason(rig: &mut Rig, command: Command) -> String {
    let reply = rig.run(node(1, 1), command);
    RefusedReply::decode(reply).unwrap().reason
}

/// Why a batch is refused as a whole.
fn refusal(rig: &mut Rig, from: NodeRef, sequence: u64, command: Command) -> String {
    let (reply, _) = rig.batch(from, sequence, vec![command]);
    match reply.result {
        Some(batch_reply::Result::Refused(why) | batch_reply::Result::Banned(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nobody_takes_the_name_of_a_member_that_is_up() {
    let mut rig = Rig::new();
    rig.run(node(3, 1), route("a", true));
    let why = reason(&mut rig, join(33, "n3"));
    assert!(why.contains("a member of this name is up"), "{why}");
    assert!(
        why.contains("n3:7883") && why.contains("node.name"),
        "{why}"
    );
    assert!(rig.state.is_up(node(3, 1)), "it serves on");
    assert_eq!(rig.nodes("a"), [3]);
    assert!(!rig.state.members().contains_key(&NodeId(33)));
    rig.run(node(1, 1), down(node(3, 1)));
    assert_eq!(reason(&mut rig, join(33, "n3")), "");
    assert!(rig.state.is_banned(NodeId(3)));
    assert!(rig.state.members().contains_key(&NodeId(33)));
}

/// It was cut off while it was forgotten and goes on where it was: it is told so, and asked for nothing again.
#[test]
fn whoever_is_no_member_is_refused_whatever_it_proposes() {
    let mut rig = Rig::new();
    for _ in 0..3 {
        rig.run(node(2, 1), route("a", true));
    }
    rig.run(node(1, 1), down(node(2, 1)));
    rig.run(node(1, 1), forget(2));
    for sequence in [5, 6, 1] {
        let why = refusal(&mut rig, node(2, 1), sequence, route("b", true));
        assert!(why.contains("is refused for ever"), "{why}");
    }
    let why = refusal(&mut rig, node(9, 1), 5, route("b", true));
    assert!(why.contains("not a member"), "{why}");
}

/// A copy of a disk draws the number that the node itself drew after the copy was made: its Up is no repeat of that one.
#[test]
fn another_process_with_a_known_number_is_refused_for_ever() {
    let mut rig = Rig::new();
    let up_of = |process| {
        Command::Up(Up {
            name: "n2".into(),
            process,
            ..Up::default()
        })
    };
    rig.run(node(2, 6), up_of(77));
    let (again, _) = rig.batch(node(2, 6), 1, vec![up_of(77)]);
    assert!(
        matches!(again.result, Some(batch_reply::Result::Replies(_))),
        "a repeat: {again:?}"
    );
    for incarnation in [6, 5, 1] {
        let (reply, _) = rig.batch(node(2, incarnation), 1, vec![up_of(78)]);
        let Some(batch_reply::Result::Banned(why)) = reply.result else {
            panic!("start {incarnation}: {reply:?}");
        };
        assert!(why.contains("older copy"), "{why}");
    }
    assert!(rig.state.is_up(node(2, 6)), "the one that was there first");
    let hello = |incarnation, process| flotte_proto::Hello {
        node_id: 2,
        incarnation,
        process,
        ..flotte_proto::Hello::default()
    };
    let is_older = |incarnation, process| rig.state.is_older_copy(&hello(incarnation, process));
    assert!(is_older(5, 77) && is_older(5, 78) && is_older(6, 78));
    assert!(!is_older(6, 77) && !is_older(7, 78));
}

#[test]
fn nobody_is_expelled_while_another_one_is() {
    let mut rig = Rig::new();
    rig.run(node(1, 1), join(4, "n4"));
    rig.run(node(4, 1), up("n4"));
    assert_eq!(reason(&mut rig, leaving(2, true, false)), "");
    assert_eq!(reason(&mut rig, leaving(2, true, false)), "", "again");
    let why = reason(&mut rig, leaving(3, true, false));
    assert!(why.contains("n2"), "{why}");
    assert!(!rig.state.members()[&NodeId(3)].expelled);
    assert_eq!(
        reason(&mut rig, leaving(3, false, false)),
        "",
        "on its own it may"
    );
    rig.run(node(1, 1), down(node(2, 1)));
    let why = reason(&mut rig, leaving(4, true, false));
    assert!(why.contains("n2"), "it is not gone yet: {why}");
    rig.run(node(1, 1), forget(2));
    assert_eq!(reason(&mut rig, leaving(3, true, false)), "");
    assert_eq!(
        reason(&mut rig, leaving(3, true, true)),
        "",
        "or it stays after all"
    );
    assert_eq!(reason(&mut rig, leaving(4, true, false)), "");
}

#[test]
fn the_last_member_that_stays_does_not_leave() {
    let mut rig = Rig::new();
    assert_eq!(reason(&mut rig, leaving(1, false, false)), "");
    assert_eq!(reason(&mut rig, leaving(2, false, false)), "");
    for expel in [false, true] {
        let why = reason(&mut rig, leaving(3, expel, false));
        assert!(why.contains("last"), "{why}");
        let third = &rig.state.members()[&NodeId(3)];
        assert!(!third.leaving && !third.expelled);
    }
    assert_eq!(reason(&mut rig, leaving(2, false, true)), "");
    assert_eq!(reason(&mut rig, leaving(3, false, false)), "");
}
