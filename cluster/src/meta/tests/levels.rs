//! Nodes of two versions: what all of them understand is used, and who understands less is not taken in.

use super::*;
use crate::level::FeatureLevel;

fn up_of(name: &str, feature_level: u32) -> Command {
    Command::Up(Up {
        name: name.into(),
        feature_level,
        ..Up::default()
    })
}

fn level(rig: &Rig) -> u32 {
    rig.state.feature_level().number()
}

/// Why an Up is not taken.
fn refusal(rig: &mut Rig, from: NodeRef, name: &str, known: u32) -> String {
    let (reply, _) = rig.batch(from, 1, vec![up_of(name, known)]);
    match reply.result {
        Some(batch_reply::Result::Refused(why)) => why,
        other => panic!("{other:?}"),
    }
}

/// A cluster of three whose nodes all know level 2.
fn raised() -> Rig {
    let mut rig = Rig::new();
    for id in 1..=3 {
        rig.run(node(id, 2), up_of(&format!("n{id}"), 2));
    }
    assert_eq!(level(&rig), 2);
    rig
}

#[test]
fn a_mixed_cluster_uses_the_lower_level_until_the_last_node_is_raised() {
    let mut rig = Rig::new();
    assert_eq!(level(&rig), 1, "nobody said anything");
    rig.run(node(1, 2), up_of("n1", 2));
    rig.run(node(2, 2), up_of("n2", 3));
    assert_eq!(level(&rig), 1);
    rig.run(node(3, 2), up_of("n3", 2));
    assert_eq!(level(&rig), 2, "with this command, at this index");
    assert_eq!(rig.state.feature_level(), FeatureLevel::said(2));
}

#[test]
fn a_node_that_is_down_counts_until_it_is_forgotten() {
    let mut rig = Rig::new();
    rig.run(node(1, 2), up_of("n1", 2));
    rig.run(node(2, 2), up_of("n2", 2));
    rig.run(node(1, 2), down(node(3, 1)));
    assert_eq!(level(&rig), 1, "it may come back as it was");
    let forget = Command::Forget(flotte_proto::Forget { node_id: 3 });
    rig.run(node(1, 2), forget);
    assert_eq!(level(&rig), 2);
}

#[test]
fn who_knows_less_than_the_cluster_uses_comes_up_no_more() {
    let mut rig = raised();
    let why = refusal(&mut rig, node(3, 3), "n3", 1);
    assert!(why.contains("\"n3\" knows feature level 1"), "{why}");
    assert!(why.contains("the cluster uses level 2"), "{why}");
    assert!(
        rig.state.is_up(node(3, 2)),
        "the start before is not touched"
    );
    rig.run(node(3, 4), up_of("n3", 2));
    assert_eq!(level(&rig), 2);
}

#[test]
fn who_knows_less_does_not_join() {
    let mut rig = raised();
    let join = |known| {
        Command::Join(Join {
            node_id: 8,
            name: "n8".into(),
            feature_level: known,
            ..Join::default()
        })
    };
    let reply = rig.run(node(1, 2), join(1));
    let why = flotte_proto::RefusedReply::decode(reply).unwrap().reason;
    assert!(why.contains("needs a newer version"), "{why}");
    assert!(!rig.state.members().contains_key(&NodeId(8)));
    assert!(rig.run(node(1, 2), join(3)).is_empty());
    assert_eq!(level(&rig), 2, "the others know no more");
}

#[test]
fn the_level_never_falls_and_survives_a_snapshot() {
    let mut rig = raised();
    rig.run(
        node(1, 2),
        Command::Forget(flotte_proto::Forget { node_id: 1 }),
    );
    let mut restored = MetaState::default();
    for record in rig.state.records() {
        restored.restore(record).unwrap();
    }
    assert_eq!(restored.feature_level(), FeatureLevel::said(2));
    assert_eq!(restored.records(), rig.state.records());
}

#[test]
fn a_command_of_a_later_version_stops_the_node_with_its_number() {
    let mut state = MetaState::default();
    let batch = Batch {
        node_id: 1,
        incarnation: 0,
        sequence: 1,
        commands: vec![Bytes::from_static(&[0x9a, 0x06, 0x00])],
    };
    let entry = GroupEntry {
        time_ms: 1,
        batches: vec![batch],
    };
    let refused = state.apply(5, TERM, &entry.encode_to_vec(), &mut Effects::default());
    let why = refused.unwrap_err().to_string();
    assert!(
        why.contains("entry 5") && why.contains("command 99"),
        "{why}"
    );
}
