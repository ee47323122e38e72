//! Steps through the state machine of group 0.

mod levels;
mod members;

use bytes::Bytes;
use flotte_mqtt::topic::{TopicFilter, TopicName};
use flotte_proto::meta_command::Command;
use flotte_proto::{
    Batch, BatchReply, ClusterSettings, Down, EntryReply, Forget, Found, GroupEntry, Join, Leaving,
    Member, MetaCommand, Place, Placement, RefusedReply, Retain, RetainBegin, RetainPart,
    RetainReply, RetainedMessage, SetRoute, SetShare, Settled, Up, WillKey, batch_reply,
    propose_response, retain_reply,
};
use prost::Message;

use super::*;
use crate::id::{GroupId, NodeId, NodeRef};

/// Of every entry.
const TERM: u64 = 4;

fn node(id: u64, incarnation: u64) -> NodeRef {
    NodeRef {
        node: NodeId(id),
        incarnation,
    }
}

/// A machine with members 1 to `count`, none of which has come Up.
pub(crate) fn a_founded_machine(count: u64) -> MetaMachine {
    let machine = MetaMachine::default();
    crate::raft::Machine::apply(&machine, 1, TERM, a_founding_entry(count)).unwrap();
    machine
}

/// The first entry of a cluster of `count` members.
pub(crate) fn a_founding_entry(count: u64) -> Bytes {
    let member = |id: u64| Member {
        node_id: id,
        name: format!("n{id}"),
        ..Member::default()
    };
    let found = Found {
        cluster_id: 77,
        members: (1..=count).map(member).collect(),
        settings: Some(ClusterSettings::default()),
        placement: vec![],
    };
    let command = MetaCommand {
        command: Some(Command::Found(found)),
    };
    let batch = Batch {
        node_id: 1,
        incarnation: 0,
        sequence: 1,
        commands: vec![command.encode_to_vec().into()],
    };
    let entry = GroupEntry {
        time_ms: 1,
        batches: vec![batch],
    };
    entry.encode_to_vec().into()
}

fn message(topic: &'static str, payload: &'static str) -> RetainedMessage {
    RetainedMessage {
        topic: topic.into(),
        payload: payload.into(),
        ..RetainedMessage::default()
    }
}

/// Three messages of 100 bytes in all at most.
fn limited() -> Retain {
    Retain {
        messages_max: 3,
        bytes_max: 100,
        ..Retain::default()
    }
}

/// A founded group of three nodes.
struct Rig {
    state: MetaState,
    index: u64,
    sequences: std::collections::HashMap<NodeRef, u64>,
}

impl Rig {
    fn new() -> Self {
        let mut rig = Rig {
            state: MetaState::default(),
            index: 0,
            sequences: Default::default(),
        };
        let member = |id: u64| Member {
            node_id: id,
            name: format!("n{id}"),
            ..Member::default()
        };
        let settings = ClusterSettings {
            ..Default::default()
        };
        let found = Found {
            cluster_id: 77,
            members: (1..=3).map(member).collect(),
            settings: Some(settings),
            placement: vec![Placement {
                group: 1,
                members: vec![1, 2, 3],
                ..Placement::default()
            }],
        };
        rig.batch(node(1, 1), 1, vec![Command::Found(found), up("n1")]);
        rig.sequences.insert(node(1, 1), 1);
        rig.run(node(2, 1), up("n2"));
        rig.run(node(3, 1), up("n3"));
        rig
    }

    fn batch(
        &mut self,
        from: NodeRef,
        sequence: u64,
        commands: Vec<Command>,
    ) -> (BatchReply, Effects) {
        self.index += 1;
        let encode = |command| {
            Bytes::from(
                MetaCommand {
                    command: Some(command),
                }
                .encode_to_vec(),
            )
        };
        let commands = commands.into_iter().map(encode).collect();
        let batch = Batch {
            node_id: from.node.0,
            incarnation: from.incarnation,
            sequence,
            commands,
        };
        let entry = GroupEntry {
            time_ms: self.index,
            batches: vec![batch],
        }
        .encode_to_vec();
        let mut effects = Effects::default();
        let reply = self
            .state
            .apply(self.index, TERM, &entry, &mut effects)
            .unwrap();
        self.check_snapshot();
        (
            EntryReply::decode(reply).unwrap().batches.remove(0),
            effects,
        )
    }

    fn check_snapshot(&self) {
        let mut restored = MetaState::default();
        for record in self.state.records() {
            restored.restore(record).unwrap();
        }
        assert_eq!(restored.records(), self.state.records());
        assert_eq!(restored.routes().counts(), self.state.routes().counts());
        assert_eq!(restored.retained().bytes(), self.state.retained().bytes());
        assert_eq!(
            restored.retained().next_end_ms(),
            self.state.retained().next_end_ms()
        );
    }

    fn run(&mut self, from: NodeRef, command: Command) -> Bytes {
        let sequence = *self
            .sequences
            .entry(from)
            .and_modify(|s| *s += 1)
            .or_insert(1);
        let (reply, _) = self.batch(from, sequence, vec![command]);
        match reply.result.unwrap() {
            batch_reply::Result::Replies(mut replies) => replies.replies.remove(0),
            other => panic!("not applied: {other:?}"),
        }
    }

    fn retain(&mut self, topic: &'static str, payload: &'static str) -> retain_reply::Result {
        self.retain_with(topic, payload, limited())
    }

    fn retain_with(
        &mut self,
        topic: &'static str,
        payload: &'static str,
        retain: Retain,
    ) -> retain_reply::Result {
        let retain = Retain {
            message: Some(message(topic, payload)),
            ..retain
        };
        RetainReply::decode(self.run(node(1, 1), Command::Retain(retain)))
            .unwrap()
            .result()
    }

    /// An entry that only moves state time.
    fn pass_to(&mut self, time_ms: u64) {
        self.index += 1;
        let batches = vec![];
        let entry = GroupEntry { time_ms, batches }.encode_to_vec();
        let mut effects = Effects::default();
        self.state
            .apply(self.index, TERM, &entry, &mut effects)
            .unwrap();
        assert_eq!(effects, Effects::default());
        self.check_snapshot();
    }

    fn retain_will(&mut self, payload: &'static str, key: u64, floor: u64) {
        let will = WillKey {
            group: 1,
            key,
            floor,
        };
        let retain = Retain {
            message: Some(message("t", payload)),
            will: Some(will),
            ..Retain::default()
        };
        self.run(node(1, 1), Command::Retain(retain));
    }

    fn retained(&self, topic: &str) -> Option<Bytes> {
        let topic = TopicName::try_from(topic).unwrap();
        let item = self.state.retained().tree().get(&topic)?;
        Some(item.message().payload)
    }

    fn nodes(&self, topic: &str) -> Vec<u64> {
        self.state
            .routes()
            .destinations(topic)
            .nodes
            .iter()
            .map(|n| n.node.0)
            .collect()
    }
}

fn up(name: &str) -> Command {
    Command::Up(Up {
        name: name.into(),
        advertise: format!("{name}:7883"),
        ..Up::default()
    })
}

/// A node that drains is known to, until it comes Up anew without; one that is Down says nothing any more.
#[test]
fn a_draining_node_is_known_to_until_its_next_up() {
    let mut rig = Rig::new();
    let draining = |rig: &Rig| rig.state.members()[&NodeId(2)].draining;
    let drain = Command::Draining(flotte_proto::Draining { draining: true });
    rig.run(node(2, 1), drain.clone());
    assert!(draining(&rig) && !rig.state.members()[&NodeId(1)].draining);
    let (_, effects) = rig.batch(node(2, 2), 1, vec![up("n2")]);
    assert!(!draining(&rig) && effects.membership);
    rig.batch(node(2, 2), 2, vec![down(node(2, 2)), drain]);
    assert!(!rig.state.is_up(node(2, 2)) && !draining(&rig));
}

fn route(filter: &'static str, present: bool) -> Command {
    Command::SetRoute(SetRoute {
        filter: filter.into(),
        present,
    })
}

fn share(group: &'static str, filter: &'static str, members: u32) -> Command {
    Command::SetShare(SetShare {
        group: group.into(),
        filter: filter.into(),
        members,
        away: false,
    })
}

fn connected(count: u32) -> ShareMembers {
    ShareMembers { count, away: false }
}

fn down(node: NodeRef) -> Command {
    Command::Down(Down {
        node_id: node.node.0,
        incarnation: node.incarnation,
        term: TERM,
        cut: false,
    })
}

#[test]
fn down_that_the_leader_of_another_term_decided_is_void() {
    let mut rig = Rig::new();
    for term in [TERM - 1, TERM + 1] {
        let late = Down {
            node_id: 2,
            incarnation: 1,
            term,
            cut: false,
        };
        rig.run(node(1, 1), Command::Down(late));
        assert!(
            rig.state.is_up(node(2, 1)),
            "the leader of this term may have answered it since"
        );
    }
    rig.run(node(1, 1), down(node(2, 1)));
    assert!(!rig.state.is_up(node(2, 1)));
}

#[test]
fn only_the_node_itself_leaves_without_a_leaders_decision() {
    let mut rig = Rig::new();
    let leave = |node_id| {
        Command::Down(Down {
            node_id,
            incarnation: 1,
            term: 0,
            cut: false,
        })
    };
    rig.run(node(1, 1), leave(2));
    assert!(rig.state.is_up(node(2, 1)));
    rig.run(node(2, 1), leave(2));
    assert!(!rig.state.is_up(node(2, 1)));
}

#[test]
fn an_incarnation_that_is_not_known_yet_is_not_gone() {
    let mut rig = Rig::new();
    assert!(!rig.state.is_gone(node(2, 1)), "it is Up");
    assert!(!rig.state.is_gone(node(2, 2)), "its Up is on the way");
    assert!(!rig.state.is_gone(node(7, 1)), "its Join is on the way");
    rig.run(node(1, 1), down(node(2, 1)));
    assert!(rig.state.is_gone(node(2, 1)));
    rig.run(node(2, 2), up("n2"));
    assert!(rig.state.is_gone(node(2, 1)) && !rig.state.is_gone(node(2, 2)));
    let join = Join {
        node_id: 8,
        name: "n2".into(),
        ..Join::default()
    };
    rig.run(node(1, 1), down(node(2, 2)));
    rig.run(node(1, 1), Command::Join(join));
    assert!(rig.state.is_gone(node(2, 2)), "its name has another id now");
}

#[test]
fn batches_of_a_start_that_is_gone_are_not_taken_by_session_groups() {
    let mut rig = Rig::new();
    let refusal = |rig: &Rig, group, from: NodeRef| {
        let batch = Batch {
            node_id: from.node.0,
            incarnation: from.incarnation,
            sequence: 7,
            commands: Vec::new(),
        };
        crate::leader::refusal(GroupId(group), &batch, &rig.state)
            .and_then(|refusal| refusal.result)
    };
    assert_eq!(refusal(&rig, 3, node(2, 1)), None, "it is Up");
    assert_eq!(refusal(&rig, 3, node(2, 2)), None, "its Up is on the way");
    rig.run(node(1, 1), down(node(2, 1)));
    let Some(propose_response::Result::Reply(reply)) = refusal(&rig, 3, node(2, 1)) else {
        panic!("taken");
    };
    assert_eq!(reply.result, Some(batch_reply::Result::Stale(true)));
    assert_eq!(refusal(&rig, 0, node(2, 1)), None, "meta judges for itself");
}

#[test]
fn a_will_that_is_retained_again_replaces_nothing() {
    let mut rig = Rig::new();
    rig.retain_will("gone", 3, 3);
    assert_eq!(rig.retained("t").unwrap(), "gone");
    rig.retain("t", "back");
    rig.retain_will("gone", 3, 3);
    assert_eq!(
        rig.retained("t").unwrap(),
        "back",
        "a new leader repeats it"
    );
    rig.retain_will("gone again", 4, 4);
    assert_eq!(rig.retained("t").unwrap(), "gone again");
    rig.retain("t", "back");
    rig.retain_will("gone", 3, 3);
    assert_eq!(
        rig.retained("t").unwrap(),
        "back",
        "a late former leader repeats it"
    );
}

#[test]
fn routes_lead_to_every_node_once() {
    let mut rig = Rig::new();
    rig.run(node(1, 1), route("a/+", true));
    rig.run(node(2, 1), route("a/b", true));
    rig.run(node(2, 1), route("#", true));
    assert_eq!(rig.nodes("a/b"), [1, 2]);
    assert_eq!(rig.nodes("x"), [2]);
    assert!(rig.nodes("$SYS/x").is_empty());
    assert!(rig.state.routes().lead_beyond(NodeId(1)) && rig.state.routes().lead_beyond(NodeId(2)));
    rig.run(node(2, 1), route("#", false));
    rig.run(node(2, 1), route("a/b", false));
    assert_eq!(rig.nodes("a/b"), [1]);
    assert!(!rig.state.routes().lead_beyond(NodeId(1)));
    assert_eq!(rig.state.routes().counts(), (1, 0));
}

#[test]
fn down_takes_all_routes_of_the_incarnation() {
    let mut rig = Rig::new();
    rig.run(node(2, 1), route("a", true));
    rig.run(node(2, 1), share("g", "a", 2));
    rig.run(node(3, 1), route("a", true));
    rig.run(node(1, 1), down(node(2, 1)));
    assert_eq!(rig.nodes("a"), [3]);
    assert!(rig.state.routes().destinations("a").shares.is_empty());
    assert!(!rig.state.is_up(node(2, 1)));
    assert_eq!(rig.state.routes().counts(), (1, 0));
}

#[test]
fn a_down_node_may_propose_only_as_a_newer_incarnation() {
    let mut rig = Rig::new();
    rig.run(node(1, 1), down(node(2, 1)));
    let (reply, _) = rig.batch(node(2, 1), 2, vec![route("a", true)]);
    assert_eq!(reply.result, Some(batch_reply::Result::Stale(true)));
    let (reply, _) = rig.batch(node(2, 2), 1, vec![route("a", true)]);
    assert_eq!(
        reply.result,
        Some(batch_reply::Result::Stale(true)),
        "it has to begin with Up"
    );
    rig.run(node(2, 2), up("n2"));
    rig.run(node(2, 2), route("a", true));
    assert_eq!(rig.nodes("a"), [2]);
}

#[test]
fn up_does_to_the_older_incarnation_what_down_does() {
    let mut rig = Rig::new();
    rig.run(node(2, 1), route("a", true));
    rig.run(node(2, 2), up("n2"));
    assert!(rig.nodes("a").is_empty());
    rig.run(node(1, 1), down(node(2, 1)));
    assert!(
        rig.state.is_up(node(2, 2)),
        "a Down of an older incarnation is late"
    );
}

#[test]
fn an_incarnation_that_does_not_rise_is_refused() {
    let mut rig = Rig::new();
    rig.run(node(2, 5), up("n2"));
    let (reply, _) = rig.batch(node(2, 4), 1, vec![up("n2")]);
    assert_eq!(reply.result, Some(batch_reply::Result::Stale(true)));
    let mut fresh = Rig::new();
    fresh
        .state
        .restore(flotte_proto::MetaRecord {
            record: Some(flotte_proto::meta_record::Record::Member(Member {
                node_id: 9,
                incarnation: 7,
                ..Member::default()
            })),
        })
        .unwrap();
    let (reply, _) = fresh.batch(node(9, 7), 1, vec![up("n9")]);
    assert!(
        matches!(reply.result, Some(batch_reply::Result::Banned(_))),
        "{reply:?}"
    );
}

#[test]
fn a_stranger_is_refused() {
    let mut rig = Rig::new();
    let (reply, _) = rig.batch(node(8, 1), 1, vec![up("n8")]);
    assert!(matches!(
        reply.result,
        Some(batch_reply::Result::Refused(_))
    ));
}

#[test]
fn a_name_that_comes_back_with_another_id_replaces_the_old() {
    let mut rig = Rig::new();
    rig.run(node(3, 1), route("a", true));
    rig.run(node(1, 1), down(node(3, 1)));
    rig.run(
        node(1, 1),
        Command::Join(Join {
            node_id: 33,
            name: "n3".into(),
            advertise: "x:1".into(),
            ..Join::default()
        }),
    );
    assert!(rig.nodes("a").is_empty());
    rig.run(node(33, 1), up("n3"));
    assert!(rig.state.is_up(node(33, 1)));
    let (reply, _) = rig.batch(node(3, 2), 1, vec![up("n3")]);
    assert!(matches!(reply.result, Some(batch_reply::Result::Banned(_))));
    let again = Command::Join(Join {
        node_id: 3,
        name: "n3".into(),
        advertise: "x:1".into(),
        ..Join::default()
    });
    assert!(!rig.run(node(1, 1), again).is_empty(), "for ever");
    assert!(!rig.state.members().contains_key(&NodeId(3)));
}

#[test]
fn shares_count_members_by_node() {
    let mut rig = Rig::new();
    rig.run(node(1, 1), share("g", "a/#", 2));
    rig.run(node(2, 1), share("g", "a/#", 1));
    rig.run(node(2, 1), share("h", "a/b", 1));
    let shares = rig.state.routes().destinations("a/b").shares;
    assert_eq!(shares.len(), 2);
    let g = shares.iter().find(|s| s.group.as_str() == "g").unwrap();
    assert_eq!(g.filter, TopicFilter::try_from("a/#").unwrap());
    assert_eq!(
        g.members.as_slice(),
        [(node(1, 1), connected(2)), (node(2, 1), connected(1))]
    );
    rig.run(node(1, 1), share("g", "a/#", 0));
    assert_eq!(rig.state.routes().counts(), (0, 2));
}

#[test]
fn retained_is_replaced_deleted_and_limited() {
    let mut rig = Rig::new();
    assert_eq!(rig.retain("a", "1"), retain_reply::Result::Stored);
    assert_eq!(rig.retain("a", "22"), retain_reply::Result::Stored);
    assert_eq!(rig.retained("a").unwrap(), "22");
    assert_eq!(rig.state.retained().bytes(), 3);
    assert_eq!(rig.retain("b", "1"), retain_reply::Result::Stored);
    assert_eq!(rig.retain("c", "1"), retain_reply::Result::Stored);
    assert_eq!(rig.retain("d", "1"), retain_reply::Result::Quota);
    assert_eq!(rig.retain("a", ""), retain_reply::Result::Deleted);
    assert_eq!(rig.retain("d", "1"), retain_reply::Result::Stored);
    assert_eq!(rig.retain("nothing", ""), retain_reply::Result::Deleted);
    assert_eq!(rig.state.retained().len(), 3);
}

#[test]
fn limits_are_those_of_the_command_by_number_and_by_bytes() {
    let mut rig = Rig::new();
    let bytes = |bytes_max| Retain {
        bytes_max,
        ..Retain::default()
    };
    use retain_reply::Result::{Quota, Stored};
    assert_eq!(rig.retain_with("a", "123", bytes(4)), Stored);
    assert_eq!(rig.retain_with("b", "1", bytes(5)), Quota);
    assert_eq!(rig.retain_with("a", "1234", bytes(4)), Quota);
    assert_eq!(rig.retained("a").unwrap(), "123", "nothing changed");
    assert_eq!(
        rig.retain_with("a", "12", bytes(4)),
        Stored,
        "it gets smaller"
    );
    assert_eq!(rig.retain_with("b", "1", bytes(5)), Stored);
    assert_eq!(rig.retain_with("c", "12345", Retain::default()), Stored);
    assert_eq!(rig.retain("d", "1"), Quota);
}

#[test]
fn what_is_refused_without_a_word_ends_what_was_retained() {
    let mut rig = Rig::new();
    rig.retain("a", "old");
    let evict = Retain {
        bytes_max: 5,
        evict: true,
        ..Retain::default()
    };
    let result = rig.retain_with("a", "too large", evict);
    assert_eq!(result, retain_reply::Result::Quota);
    assert_eq!(rig.retained("a"), None);
    assert_eq!(rig.state.retained().bytes(), 0);
}

#[test]
fn retained_messages_expire_by_state_time_and_make_room() {
    let mut rig = Rig::new();
    let lasting = |expiry_ms| Retain {
        expiry_ms: Some(expiry_ms),
        ..limited()
    };
    rig.pass_to(1_000);
    rig.retain_with("a", "1", lasting(500));
    rig.retain_with("b", "1", lasting(0));
    rig.retain("c", "1");
    let left = |rig: &Rig, topic: &str, now| {
        let topic = TopicName::try_from(topic).unwrap();
        let retained = rig.state.retained().tree().get(&topic);
        retained.and_then(|item| item.left_ms(now))
    };
    assert_eq!(left(&rig, "a", 1_200), Some(300));
    assert_eq!(left(&rig, "a", 9_999), Some(0));
    assert_eq!(left(&rig, "c", 9_999), None);
    assert_eq!(rig.state.retained().len(), 2, "one had no time left");
    assert_eq!(rig.state.retained().next_end_ms(), Some(1_500));
    rig.pass_to(1_499);
    assert!(rig.retained("a").is_some());
    rig.pass_to(1_500);
    assert!(rig.retained("a").is_none());
    assert!(rig.retained("c").is_some());
    rig.pass_to(200);
    assert_eq!(rig.state.time_ms(), 1_500, "never backwards");
    assert_eq!(rig.retain("d", "1"), retain_reply::Result::Stored);
    assert_eq!(rig.retain("e", "1"), retain_reply::Result::Stored);
    assert_eq!(rig.retain("f", "1"), retain_reply::Result::Quota);
}

/// A message in parts, under limits.
struct Large {
    from: NodeRef,
    number: u64,
    payload: Bytes,
    limits: Retain,
}

impl Large {
    fn new(number: u64, payload: &'static str) -> Large {
        Large {
            from: node(1, 1),
            number,
            payload: payload.into(),
            limits: limited(),
        }
    }

    fn part(&self, offset: usize, bytes: usize) -> Command {
        let begin = RetainBegin {
            topic: "t".into(),
            payload_bytes: self.payload.len() as u64,
            bytes: 1 + self.payload.len() as u64,
            messages_max: self.limits.messages_max,
            bytes_max: self.limits.bytes_max,
        };
        Command::RetainPart(RetainPart {
            number: self.number,
            offset: offset as u64,
            data: self.payload.slice(offset..offset + bytes),
            begin: (offset == 0).then_some(begin),
        })
    }

    fn last(&self) -> Command {
        Command::Retain(Retain {
            message: Some(message("t", "")),
            assembly: self.number,
            ..self.limits.clone()
        })
    }

    fn run(&self, rig: &mut Rig, command: Command) -> retain_reply::Result {
        let reply = rig.run(self.from, command);
        RetainReply::decode(reply).unwrap().result()
    }
}

#[test]
fn a_message_that_came_in_parts_is_retained_at_once_and_at_the_index_of_its_end() {
    use retain_reply::Result::Stored;
    let mut rig = Rig::new();
    rig.retain("t", "before");
    let large = Large::new(4, "abcde");
    assert_eq!(large.run(&mut rig, large.part(0, 3)), Stored);
    assert_eq!(rig.state.assembling(), (1, 6));
    assert_eq!(rig.retain("other", "1"), Stored, "between the parts");
    assert_eq!(large.run(&mut rig, large.part(3, 2)), Stored);
    assert_eq!(rig.retained("t").unwrap(), "before");
    assert_eq!(large.run(&mut rig, large.last()), Stored);
    assert_eq!(rig.retained("t").unwrap(), "abcde");
    assert_eq!(rig.state.assembling(), (0, 0));
    let topic = TopicName::try_from("t").unwrap();
    let retained = rig.state.retained().tree().get(&topic).unwrap();
    assert_eq!(retained.index(), rig.index);
}

#[test]
fn a_message_that_did_not_come_whole_is_not_retained() {
    use retain_reply::Result::Quota;
    let mut rig = Rig::new();
    rig.retain("t", "before");
    let large = Large::new(4, "abcde");
    large.run(&mut rig, large.part(0, 3));
    assert_eq!(large.run(&mut rig, large.last()), Quota);
    assert_eq!(rig.state.assembling(), (0, 0));
    assert_eq!(
        large.run(&mut rig, large.part(3, 2)),
        Quota,
        "of nothing that began"
    );
    assert_eq!(rig.retained("t").unwrap(), "before", "nothing half-made");
    let evicts = Large {
        limits: Retain {
            evict: true,
            ..limited()
        },
        ..Large::new(5, "x")
    };
    assert_eq!(evicts.run(&mut rig, evicts.last()), Quota);
    assert_eq!(rig.retained("t"), None);
}

#[test]
fn parts_go_with_the_start_of_the_node_that_began_them() {
    let ends: [fn(&mut Rig); 3] = [
        |rig| drop(rig.run(node(1, 1), down(node(2, 1)))),
        |rig| drop(rig.run(node(2, 2), up("n2"))),
        |rig| drop(rig.run(node(2, 1), Command::Forget(Forget { node_id: 2 }))),
    ];
    for end in ends {
        let mut rig = Rig::new();
        let (theirs, ours) = (
            Large {
                from: node(2, 1),
                ..Large::new(4, "abcde")
            },
            Large::new(4, "12"),
        );
        theirs.run(&mut rig, theirs.part(0, 3));
        ours.run(&mut rig, ours.part(0, 1));
        end(&mut rig);
        assert_eq!(rig.state.assembling(), (1, 3), "that of the other stays");
    }
}

#[test]
fn parts_behind_the_end_of_their_start_in_one_batch_are_void() {
    let mut rig = Rig::new();
    let large = Large::new(4, "abcde");
    let commands = vec![down(node(1, 1)), large.part(0, 3), large.last()];
    let sequence = rig.sequences[&node(1, 1)] + 1;
    rig.batch(node(1, 1), sequence, commands);
    assert_eq!(rig.state.assembling(), (0, 0));
    assert_eq!(rig.retained("t"), None);
}

#[test]
fn room_for_a_message_in_parts_is_kept_from_its_first_part_on() {
    use retain_reply::Result::{Quota, Stored};
    let mut rig = Rig::new();
    let bytes = |bytes_max| Retain {
        bytes_max,
        ..Retain::default()
    };
    assert_eq!(rig.retain_with("a", "12345", bytes(0)), Stored);
    let large = |number, bytes_max| Large {
        limits: bytes(bytes_max),
        ..Large::new(number, "abcde")
    };
    let refused = large(1, 11);
    assert_eq!(refused.run(&mut rig, refused.part(0, 2)), Quota);
    assert_eq!(rig.state.assembling(), (0, 0));
    let taken = large(2, 12);
    assert_eq!(taken.run(&mut rig, taken.part(0, 5)), Stored);
    assert_eq!(
        rig.retain_with("b", "", bytes(12)),
        retain_reply::Result::Deleted
    );
    assert_eq!(
        rig.retain_with("b", "1", bytes(12)),
        Quota,
        "it is promised"
    );
    let second = large(3, 17);
    assert_eq!(second.run(&mut rig, second.part(0, 5)), Quota);
    assert_eq!(taken.run(&mut rig, taken.last()), Stored);
    assert_eq!(rig.state.retained().bytes(), 12);
    // In place of the former one of its topic.
    let again = large(4, 12);
    assert_eq!(again.run(&mut rig, again.part(0, 5)), Stored);
    assert_eq!(again.run(&mut rig, again.last()), Stored);
    // By number, too.
    let many = Large {
        limits: Retain {
            messages_max: 1,
            ..Retain::default()
        },
        ..Large::new(5, "abcde")
    };
    assert_eq!(
        rig.retain_with("t", "", bytes(0)),
        retain_reply::Result::Deleted
    );
    assert_eq!(many.run(&mut rig, many.part(0, 5)), Quota);
}

#[test]
fn a_repeated_part_gets_its_answer_and_is_not_taken_twice() {
    let mut rig = Rig::new();
    let large = Large::new(4, "abcde");
    large.run(&mut rig, large.part(0, 3));
    let sequence = rig.sequences[&node(1, 1)];
    let (reply, _) = rig.batch(node(1, 1), sequence, vec![large.part(0, 3)]);
    assert!(
        matches!(reply.result, Some(batch_reply::Result::Replies(_))),
        "{reply:?}"
    );
    let (reply, _) = rig.batch(node(1, 1), sequence + 2, vec![large.last()]);
    assert_eq!(reply.result, Some(batch_reply::Result::Gap(sequence)));
    large.run(&mut rig, large.part(3, 2));
    large.run(&mut rig, large.last());
    assert_eq!(rig.retained("t").unwrap(), "abcde");
}

/// As the state is applied and as it comes back from a snapshot at any point, with what came after it.
#[test]
fn a_snapshot_amid_the_parts_and_the_rest_make_the_same_state() {
    use super::assemblies::PART_BYTES;
    let payload: Bytes = (0..5 * PART_BYTES / 2).map(|n| n as u8).collect();
    let large = Large {
        payload: payload.clone(),
        limits: Retain::default(),
        ..Large::new(4, "")
    };
    let places = (0..payload.len()).step_by(PART_BYTES);
    let parts = places.map(|at| large.part(at, PART_BYTES.min(payload.len() - at)));
    let commands: Vec<Command> = parts.chain([large.last()]).collect();
    for cut in 0..=commands.len() {
        let mut rig = Rig::new();
        for (done, command) in commands.iter().enumerate() {
            if done == cut {
                rig.state = from_snapshot(&rig.state);
            }
            large.run(&mut rig, command.clone());
        }
        rig.state = from_snapshot(&rig.state);
        assert_eq!(rig.retained("t").unwrap(), payload, "cut at {cut}");
        assert_eq!(rig.state.assembling(), (0, 0));
    }
}

fn from_snapshot(state: &MetaState) -> MetaState {
    let mut restored = MetaState::default();
    for record in state.records() {
        assert!(record.encoded_len() < 600 << 10, "it is in parts");
        restored.restore(record).unwrap();
    }
    restored.restored().unwrap();
    restored
}

#[test]
fn a_snapshot_whose_parts_do_not_fit_is_refused() {
    use flotte_proto::{MetaRecord, meta_record::Record};
    let record = |record| MetaRecord {
        record: Some(record),
    };
    let retained = |payload_bytes| {
        record(Record::Retained(flotte_proto::RetainedRecord {
            message: Some(message("t", "")),
            payload_bytes,
            ..Default::default()
        }))
    };
    let part = |text: &'static str| record(Record::PayloadPart(text.into()));
    let taken = |records: Vec<MetaRecord>| {
        let mut state = MetaState::default();
        let all = records.into_iter().try_for_each(|one| state.restore(one));
        all.and_then(|()| state.restored())
    };
    assert!(taken(vec![retained(2), part("a"), part("b")]).is_ok());
    assert!(taken(vec![retained(2), part("a")]).is_err());
    assert!(taken(vec![retained(2), part("abc")]).is_err());
    assert!(taken(vec![retained(2), part("a"), part("")]).is_err());
    assert!(taken(vec![retained(2), retained(1), part("a")]).is_err());
    assert!(taken(vec![part("a")]).is_err());
    assert!(taken(vec![retained(u64::MAX), part("a")]).is_err());
}

#[test]
fn effects_name_the_filters_that_changed() {
    let mut rig = Rig::new();
    let (_, effects) = rig.batch(node(1, 1), 2, vec![route("a/+", true)]);
    assert_eq!(effects.routes, [TopicFilter::try_from("a/+").unwrap()]);
    assert!(!effects.membership && !effects.all_routes);
    let (_, effects) = rig.batch(node(1, 1), 3, vec![down(node(2, 1))]);
    assert!(effects.membership && effects.all_routes);
}

#[test]
fn a_command_from_the_future_is_an_error() {
    let mut rig = Rig::new();
    let commands = vec![Bytes::from_static(&[0xFA, 0x3E, 0x00])];
    let batch = Batch {
        node_id: 1,
        incarnation: 1,
        sequence: 2,
        commands,
    };
    let entry = GroupEntry {
        time_ms: 0,
        batches: vec![batch],
    }
    .encode_to_vec();
    assert!(
        rig.state
            .apply(99, TERM, &entry, &mut Effects::default())
            .is_err()
    );
}

fn forget(id: u64) -> Command {
    Command::Forget(Forget { node_id: id })
}

fn place(from: &[u64], members: &[u64]) -> Command {
    Command::Place(Place {
        group: 1,
        from: from.to_vec(),
        members: members.to_vec(),
    })
}

#[test]
fn a_member_is_forgotten_when_it_is_down_or_says_so_itself() {
    let mut rig = Rig::new();
    rig.run(node(2, 1), route("a", true));
    let refused = rig.run(node(1, 1), forget(2));
    let refused = RefusedReply::decode(refused).unwrap();
    assert!(refused.reason.contains("is up"), "{}", refused.reason);
    // Whatever stands behind it in the batch leaves nothing behind.
    let commands = vec![forget(2), route("b", true)];
    let (reply, _) = rig.batch(node(2, 1), 3, commands);
    assert!(matches!(
        reply.result,
        Some(batch_reply::Result::Replies(_))
    ));
    assert_eq!((rig.nodes("a"), rig.nodes("b")), (vec![], vec![]));
    assert!(!rig.state.members().contains_key(&NodeId(2)));
    assert!(rig.state.is_gone(node(2, 1)));
    let (reply, _) = rig.batch(node(2, 2), 1, vec![up("n2")]);
    assert!(matches!(reply.result, Some(batch_reply::Result::Banned(_))));
    rig.run(node(1, 1), down(node(3, 1)));
    assert!(rig.run(node(1, 1), forget(3)).is_empty());
    assert!(rig.run(node(1, 1), forget(3)).is_empty(), "again");
    rig.check_snapshot();
}

#[test]
fn an_expelled_member_does_not_come_up() {
    let mut rig = Rig::new();
    let leaving = |stays| {
        Command::Leaving(Leaving {
            node_id: 2,
            stays,
            expel: true,
        })
    };
    assert!(rig.run(node(1, 1), leaving(false)).is_empty());
    let (reply, _) = rig.batch(node(2, 2), 1, vec![up("n2")]);
    assert!(matches!(
        reply.result,
        Some(batch_reply::Result::Refused(_))
    ));
    rig.check_snapshot();
    rig.run(node(1, 1), leaving(true));
    let (reply, _) = rig.batch(node(2, 2), 1, vec![up("n2")]);
    assert!(matches!(
        reply.result,
        Some(batch_reply::Result::Replies(_))
    ));
}

#[test]
fn replicas_move_one_at_a_time_and_from_where_they_are() {
    let mut rig = Rig::new();
    let members = |rig: &Rig| {
        let placed = &rig.state.placement()[&GroupId(1)];
        let ids: Vec<u64> = placed.members.iter().map(|id| id.0).collect();
        (ids, placed.moving)
    };
    let join = Join {
        node_id: 4,
        name: "n4".into(),
        ..Join::default()
    };
    rig.run(node(1, 1), Command::Join(join));
    assert_eq!(members(&rig), (vec![1, 2, 3], false));
    for void in [
        place(&[1, 2], &[1, 2, 4]),
        place(&[1, 2, 3], &[1, 4, 5]),
        place(&[1, 2, 3], &[1, 2, 3]),
    ] {
        rig.run(node(1, 1), void);
        assert_eq!(members(&rig), (vec![1, 2, 3], false));
    }
    rig.run(node(1, 1), place(&[1, 2, 3], &[1, 2, 4]));
    assert_eq!(members(&rig), (vec![1, 2, 4], true));
    rig.run(node(1, 1), place(&[1, 2, 4], &[1, 2]));
    assert_eq!(members(&rig), (vec![1, 2, 4], true), "it moves still");
    rig.check_snapshot();
    let settled = |members: &[u64]| {
        Command::Settled(Settled {
            group: 1,
            members: members.to_vec(),
        })
    };
    rig.run(node(1, 1), settled(&[1, 2, 3]));
    assert_eq!(members(&rig), (vec![1, 2, 4], true), "that was before");
    rig.run(node(1, 1), settled(&[1, 2, 4]));
    assert_eq!(members(&rig), (vec![1, 2, 4], false));
    let first = &rig.state.placement()[&GroupId(1)].first;
    assert_eq!(first.len(), 3, "who made the group stays known");
}

#[test]
fn a_founder_that_does_not_come_is_away_since_the_founding() {
    let machine = a_founded_machine(2);
    let founders: Vec<_> = machine.read().members().values().cloned().collect();
    assert!(
        founders
            .iter()
            .all(|member| !member.up && member.since_ms == 1)
    );
}

#[test]
fn a_move_to_a_node_that_is_no_more_is_replaced() {
    let mut rig = Rig::new();
    rig.run(node(1, 1), place(&[1, 2, 3], &[1, 3]));
    rig.run(node(1, 1), place(&[1, 3], &[1, 2]));
    let members = |rig: &Rig| rig.state.placement()[&GroupId(1)].members.clone();
    assert_eq!(members(&rig), [NodeId(1), NodeId(3)], "it moves still");
    rig.run(node(1, 1), down(node(3, 1)));
    rig.run(node(1, 1), forget(3));
    rig.run(node(1, 1), place(&[1, 3], &[1, 2]));
    assert_eq!(members(&rig), [NodeId(1), NodeId(2)]);
    assert!(rig.state.placement()[&GroupId(1)].moving);
}
