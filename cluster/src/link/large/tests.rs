//! Both ends of a link, with frames and replies on their way between them, under every loss that a link can have.

use super::super::core::{Lane, LinkLimits, Placed, Pushed, Sender};
use super::super::parts::PartError;
use super::super::receiver::{Arrival, Receiver};
use super::*;
use crate::id::{NodeId, NodeRef};

const LIMITS: LinkLimits = LinkLimits {
    messages: 1_000,
    bytes: 1 << 30,
    large_bytes: 1 << 30,
    kept_messages: 1_000,
    kept_bytes: 1 << 30,
};
const FROM: NodeRef = NodeRef {
    node: NodeId(1),
    incarnation: 1,
};
const NEWER: NodeRef = NodeRef {
    incarnation: 2,
    ..FROM
};

struct Frame {
    messages: Vec<Forward>,
    part: Option<Part>,
}

#[derive(Default)]
struct Reply {
    acked: u64,
    taken: Vec<Taken>,
}

/// Two ends; what is on its way is lost by [`Bench::cut`].
struct Bench {
    from: NodeRef,
    sender: Sender<u32>,
    receiver: Receiver,
    frames: VecDeque<Frame>,
    replies: VecDeque<Reply>,
    delivered: Vec<Forward>,
    placed: Vec<(u32, Placed)>,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(LIMITS)
    }

    fn with(limits: LinkLimits) -> Bench {
        Bench {
            from: FROM,
            sender: Sender::new(limits),
            receiver: Receiver::default(),
            frames: VecDeque::new(),
            replies: VecDeque::new(),
            delivered: Vec::new(),
            placed: Vec::new(),
        }
    }

    /// Puts one frame on its way. False = there is nothing to send.
    fn send(&mut self) -> bool {
        let frame = Frame {
            messages: self.sender.poll_frame(),
            part: self.sender.poll_part(),
        };
        let sent = frame.part.is_some() || !frame.messages.is_empty();
        if sent {
            self.frames.push_back(frame);
        }
        sent
    }

    /// The other node takes one frame. False = none is on its way.
    fn receive(&mut self) -> bool {
        let Some(frame) = self.frames.pop_front() else {
            return false;
        };
        let mut reply = Reply::default();
        if let Some(part) = &frame.part {
            let taken = self.receiver.handle_part(self.from, part);
            reply.taken.extend(taken.expect("a sound sender"));
        }
        for mut message in frame.messages {
            if message.sequence == 0 {
                self.delivered.push(message);
                continue;
            }
            match self.receiver.handle(self.from, &mut message) {
                Arrival::New => self.delivered.push(message),
                Arrival::Repeat => {}
                Arrival::Gap | Arrival::Gone => {
                    panic!("a gap, though nothing was lost: {message:?}")
                }
            }
        }
        reply.acked = self.receiver.last(self.from);
        self.replies.push_back(reply);
        true
    }

    /// This node takes one reply. False = none is on its way.
    fn settle(&mut self) -> bool {
        let Some(reply) = self.replies.pop_front() else {
            return false;
        };
        let placed = self.sender.handle_ack(reply.acked, &[], &[]);
        self.placed.extend(placed);
        self.sender.handle_taken(&reply.taken);
        true
    }

    /// The connection is lost with all that was on its way, and made anew.
    fn cut(&mut self) {
        self.frames.clear();
        self.resume();
    }

    /// The connection is made anew, while frames of the old one have still to be taken.
    fn resume(&mut self) {
        self.replies.clear();
        self.sender.handle_disconnected();
        let placed = self
            .sender
            .handle_resumed(self.receiver.last(self.from), &[], &[]);
        self.placed.extend(placed);
        let taken = self.receiver.taken(self.from);
        self.sender.handle_taken_before(&taken);
    }

    /// Until something is delivered, and its answer is on its way.
    fn run_to_delivery(&mut self) {
        loop {
            self.send();
            self.receive();
            if !self.delivered.is_empty() {
                return;
            }
            self.settle();
        }
    }

    /// Until all is sent and answered.
    fn run(&mut self) {
        while self.send() | self.receive() | self.settle() {}
    }

    fn names(&self) -> Vec<String> {
        self.delivered.iter().map(name).collect()
    }
}

/// `publisher:number`, where the payload begins with the number, and is whole.
fn name(message: &Forward) -> String {
    let publisher = String::from_utf8_lossy(&message.publisher);
    let number = message.payload[0];
    let whole = vec![number; message.payload.len()];
    assert!(message.payload == whole, "mixed up");
    format!("{publisher}:{number}")
}

fn message(publisher: &'static str, number: u8, bytes: usize) -> Forward {
    Forward {
        publisher: publisher.into(),
        payload: vec![number; bytes].into(),
        all: true,
        ..Forward::default()
    }
}

fn small(publisher: &'static str, number: u8) -> Forward {
    message(publisher, number, 10)
}

fn large(publisher: &'static str, number: u8) -> Forward {
    message(publisher, number, LARGE_BYTES * 2 + 7)
}

#[test]
fn what_is_just_not_large_goes_whole() {
    let mut bench = Bench::new();
    bench.sender.push(message("p", 1, LARGE_BYTES), Some(1));
    assert_eq!(bench.sender.poll_frame().len(), 1);
    assert_eq!(bench.sender.poll_part(), None);
}

#[test]
fn small_messages_of_others_pass_and_those_of_the_same_publisher_do_not() {
    let mut bench = Bench::new();
    bench.sender.push(small("p", 1), Some(1));
    bench.sender.push(large("p", 2), Some(2));
    bench.sender.push(small("p", 3), Some(3));
    bench.sender.push(small("p", 4), None);
    bench.sender.push(small("q", 5), Some(5));
    assert!(bench.send() && bench.receive());
    assert_eq!(bench.names(), ["p:1", "q:5"]);
    bench.run();
    assert_eq!(bench.names(), ["p:1", "q:5", "p:2", "p:3", "p:4"]);
    let sequences: Vec<u64> = bench.delivered.iter().map(|m| m.sequence).collect();
    assert_eq!(sequences, [1, 2, 3, 4, 0]);
    assert!(bench.sender.is_empty());
}

#[test]
fn a_message_arrives_whole_with_its_properties() {
    let mut bench = Bench::new();
    let sent = Forward {
        properties: vec![7; LARGE_BYTES + 5].into(),
        topic: "t".into(),
        qos: 1,
        ..large("p", 1)
    };
    bench.sender.push(sent.clone(), Some(1));
    bench.run();
    let expected = Forward {
        sequence: 1,
        ..sent
    };
    assert_eq!(bench.delivered, [expected]);
    assert_eq!(bench.placed, [(1, Placed::Queued)]);
}

#[test]
fn several_large_messages_go_in_turn() {
    let mut bench = Bench::new();
    bench.sender.push(large("p", 1), Some(1));
    bench.sender.push(large("q", 2), Some(2));
    let ids: Vec<u64> = (0..4)
        .filter_map(|_| bench.sender.poll_part())
        .map(|part| part.id)
        .collect();
    assert_eq!(ids, [1, 2, 1, 2]);
}

#[test]
fn no_more_than_a_window_is_on_its_way() {
    let mut bench = Bench::new();
    bench.sender.push(message("p", 1, 4 << 20), Some(1));
    let mut bytes = 0;
    while let Some(part) = bench.sender.poll_part() {
        bytes += part.data.len();
    }
    assert_eq!(bytes, WINDOW_BYTES);
    bench.sender.handle_taken(&[Taken {
        id: 1,
        bytes: PART_BYTES as u64,
    }]);
    assert!(bench.sender.poll_part().is_some());
    assert_eq!(bench.sender.poll_part(), None);
}

#[test]
fn two_large_messages_of_one_publisher_keep_their_order() {
    let mut bench = Bench::new();
    for number in 1..=4 {
        let message = if number % 2 == 0 { small } else { large }("p", number);
        bench.sender.push(message, Some(u32::from(number)));
    }
    bench.run();
    assert_eq!(bench.names(), ["p:1", "p:2", "p:3", "p:4"]);
    assert!(bench.sender.is_empty());
}

#[test]
fn large_messages_of_qos_0_arrive_once_and_leave_nothing() {
    let mut bench = Bench::new();
    bench.sender.push(large("p", 1), None);
    bench.run_to_delivery();
    // The answer is lost: it is not delivered again.
    bench.cut();
    bench.run();
    assert_eq!(bench.names(), ["p:1"]);
    assert!(bench.sender.is_empty() && bench.placed.is_empty());
    assert!(bench.receiver.taken(FROM).is_empty());
}

#[test]
fn a_full_lane_holds_back_its_own_publishers_only() {
    let mut bench = Bench::with(LinkLimits {
        large_bytes: 1 << 20,
        ..LIMITS
    });
    let sender = &mut bench.sender;
    assert_eq!(sender.push(large("p", 1), Some(1)), Pushed::Room);
    assert_eq!(
        sender.push(message("q", 2, 1 << 20), Some(2)),
        Pushed::Full(Lane::Large)
    );
    assert_eq!(
        sender.push(large("r", 3), None),
        Pushed::Dropped,
        "QoS 0 is dropped"
    );
    assert_eq!(sender.push(small("s", 4), Some(4)), Pushed::Room);
    assert_eq!(sender.push(small("s", 5), None), Pushed::Room);
    assert_eq!(
        sender.push(small("p", 6), Some(6)),
        Pushed::Full(Lane::Large)
    );
    bench.run();
    assert!(!bench.sender.is_full(Lane::Large));
    assert_eq!(bench.delivered.len(), 5);
}

#[test]
fn a_connection_lost_after_any_number_of_steps_loses_and_doubles_nothing() {
    for steps in 0..80 {
        let mut bench = Bench::new();
        bench.sender.push(large("p", 1), Some(1));
        bench.sender.push(small("p", 2), Some(2));
        bench.sender.push(large("q", 3), Some(3));
        bench.sender.push(small("r", 4), Some(4));
        for step in 0..steps {
            match step % 4 {
                0 | 1 => drop(bench.send()),
                2 => drop(bench.receive()),
                _ => drop(bench.settle()),
            }
        }
        bench.cut();
        bench.run();
        let mut names = bench.names();
        let place = |wanted: &str| names.iter().position(|name| name == wanted);
        assert!(place("p:1") < place("p:2"), "{steps}: {names:?}");
        names.sort();
        assert_eq!(names, ["p:1", "p:2", "q:3", "r:4"], "{steps}");
        assert!(bench.sender.is_empty(), "{steps}");
        assert!(bench.receiver.taken(FROM).is_empty(), "{steps}");
    }
}

#[test]
fn frames_of_the_old_connection_that_come_late_change_nothing() {
    for late in 1..12 {
        let mut bench = Bench::new();
        bench.sender.push(large("p", 1), Some(1));
        for _ in 0..3 {
            bench.send();
            bench.receive();
        }
        let taken = bench.receiver.taken(FROM);
        for _ in 0..late {
            bench.send();
        }
        // The new connection begins with what was here before the late ones came.
        bench.replies.clear();
        bench.sender.handle_disconnected();
        bench.sender.handle_resumed(0, &[], &[]);
        bench.sender.handle_taken_before(&taken);
        bench.run();
        assert_eq!(bench.names(), ["p:1"]);
        assert!(bench.sender.is_empty());
        assert!(bench.receiver.taken(FROM).is_empty());
    }
}

#[test]
fn a_part_of_what_is_done_begins_nothing_anew() {
    let mut bench = Bench::new();
    bench.sender.push(large("p", 1), Some(1));
    let first = bench.sender.poll_part().expect("a part");
    bench.cut();
    bench.run();
    assert_eq!(bench.receiver.handle_part(FROM, &first), Ok(None));
    assert!(bench.receiver.taken(FROM).is_empty());
}

#[test]
fn a_new_incarnation_of_the_sender_ends_what_it_had_begun() {
    let mut bench = Bench::new();
    bench.sender.push(large("p", 1), Some(1));
    bench.send();
    bench.receive();
    assert_eq!(bench.receiver.taken(FROM).len(), 1);
    let mut again = Bench::new();
    (again.from, again.receiver) = (NEWER, bench.receiver);
    again.sender.push(large("p", 2), Some(1));
    again.run();
    assert_eq!(again.names(), ["p:2"]);
    let late = bench.sender.poll_part().expect("a part");
    assert_eq!(again.receiver.handle_part(FROM, &late), Ok(None));
    assert!(again.receiver.taken(FROM).is_empty());
}

#[test]
fn a_sender_that_is_gone_leaves_nothing_and_begins_nothing() {
    let mut bench = Bench::new();
    bench.sender.push(large("p", 1), Some(1));
    bench.sender.push(large("q", 2), Some(2));
    let late = bench.sender.poll_part().expect("a part");
    bench.send();
    bench.receive();
    assert_eq!(bench.receiver.senders(), [FROM]);
    bench.receiver.handle_gone(FROM);
    assert_eq!(bench.receiver.handle_part(FROM, &late), Ok(None));
    assert!(bench.receiver.taken(FROM).is_empty());
}

#[test]
fn the_end_of_the_other_node_releases_all_who_wait() {
    let mut bench = Bench::new();
    bench.sender.push(large("p", 1), Some(1));
    bench.run();
    bench.sender.push(large("p", 2), Some(2));
    bench.sender.push(small("p", 3), Some(3));
    bench.sender.push(small("p", 4), None);
    bench.send();
    let mut ended = bench.sender.end();
    ended.sort_by_key(|(ticket, _)| *ticket);
    assert_eq!(ended, [(2, Placed::NodeGone), (3, Placed::NodeGone)]);
    assert!(bench.sender.is_empty());
}

#[test]
fn one_whose_answer_is_open_at_the_end_may_have_been_placed() {
    let mut bench = Bench::new();
    bench.sender.push(large("p", 1), Some(1));
    bench.run_to_delivery();
    bench.replies.clear();
    assert_eq!(bench.sender.end(), [(1, Placed::Unknown)]);
}

#[test]
fn what_the_other_node_holds_is_bounded() {
    let mut bench = Bench::new();
    for number in 0..=GOING_MAX {
        let publisher = Bytes::from(number.to_string());
        let message = Forward {
            publisher,
            ..large("", 1)
        };
        bench.sender.push(message, Some(0));
    }
    let mut begun = std::collections::BTreeSet::new();
    for _ in 0..20 * GOING_MAX {
        bench.send();
        if let Some(Frame {
            part: Some(part), ..
        }) = bench.frames.front()
        {
            begun.insert(part.id);
        }
        bench.receive();
        if bench.delivered.is_empty() {
            assert!(begun.len() <= GOING_MAX);
        }
        bench.settle();
    }
    bench.run();
    assert_eq!(bench.delivered.len(), GOING_MAX + 1);
}

fn part(id: u64, offset: u64, total: u64, bytes: usize) -> Part {
    Part {
        id,
        offset,
        total,
        data: vec![0; bytes].into(),
    }
}

#[test]
fn a_bad_peer_is_found_out() {
    let handle = |before: &[Part], bad: Part| {
        let mut receiver = Receiver::default();
        for part in before {
            receiver.handle_part(FROM, part).expect("a good part");
        }
        receiver.handle_part(FROM, &bad)
    };
    let begun = [part(1, 0, 100, 10)];
    assert_eq!(handle(&[], part(1, 10, 100, 10)), Err(PartError::Gap));
    assert_eq!(handle(&begun, part(1, 11, 100, 10)), Err(PartError::Gap));
    assert_eq!(handle(&begun, part(1, 10, 100, 91)), Err(PartError::Length));
    assert_eq!(handle(&begun, part(1, 10, 101, 10)), Err(PartError::Length));
    assert_eq!(
        handle(&begun, part(1, u64::MAX, 100, 10)),
        Err(PartError::Length)
    );
    assert_eq!(handle(&[], part(1, 0, u64::MAX, 1)), Err(PartError::Length));
    let many: Vec<Part> = (1..=GOING_MAX as u64).map(|id| part(id, 0, 9, 1)).collect();
    assert_eq!(handle(&many, part(99, 0, 9, 1)), Err(PartError::TooMuch));
    let giants = [part(1, 0, 256 << 20, 1), part(2, 0, 256 << 20, 1)];
    assert_eq!(handle(&giants, part(3, 0, 9, 1)), Err(PartError::TooMuch));
}

#[test]
fn a_message_without_all_of_its_parts_is_not_taken() {
    let mut receiver = Receiver::default();
    let parts = part(1, 0, 20, 10);
    receiver.handle_part(FROM, &parts).expect("a good part");
    for (bytes, properties_bytes) in [(20, 0), (10, 0), (20, 21)] {
        let mut message = Forward {
            sequence: 1,
            large: Some(Large {
                id: 1,
                properties_bytes,
                bytes,
            }),
            ..Forward::default()
        };
        assert_eq!(receiver.handle(FROM, &mut message), Arrival::Gap);
    }
    assert_eq!(receiver.last(FROM), 0, "it can still come");
}

#[test]
fn who_waits_behind_others_hears_that_they_go_on() {
    let mut sender = Sender::new(LinkLimits {
        messages: 1_000,
        bytes: usize::MAX,
        large_bytes: usize::MAX,
        kept_messages: 1,
        kept_bytes: 1,
    });
    let payload = Bytes::from(vec![0; LARGE_BYTES + 1]);
    let message = |publisher: usize| Forward {
        publisher: publisher.to_string().into(),
        payload: payload.clone(),
        ..Forward::default()
    };
    // The first is QoS 0: nobody waits for it, but for what is behind it. The last does not begin.
    sender.push(message(0), None);
    let behind = Forward {
        payload: Bytes::new(),
        ..message(0)
    };
    sender.push(behind, Some(0));
    let last = GOING_MAX;
    for publisher in 1..=last {
        sender.push(message(publisher), Some(publisher));
    }
    let part = sender.poll_part().expect("there is room for parts");
    assert!(!sender.has_moved(), "nothing has arrived");
    let bytes = part.data.len() as u64;
    let progressed = sender.handle_taken(&[Taken { id: part.id, bytes }]);
    assert!(progressed.is_empty(), "nobody waits for that one");
    assert!(sender.has_moved());
    let mut told = sender.poll_waiting();
    told.sort_unstable();
    assert_eq!(told, (0..=last).collect::<Vec<_>>());
    assert!(!sender.has_moved(), "told once");
}

/// Small and fast, and the same for ever.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

#[test]
fn any_mix_of_messages_and_losses_keeps_each_publisher_in_order() {
    for seed in 1..=100_u64 {
        let (mut dice, mut bench) = (Dice(seed), Bench::new());
        let mut sent = Vec::new();
        for turn in 0..200_u8 {
            let publisher = ["p", "q", "r"][dice.roll(3) as usize];
            let choice = dice.roll(16);
            if choice < 4 {
                let make = if choice == 0 { large } else { small };
                bench.sender.push(make(publisher, turn), Some(0));
                sent.push(format!("{publisher}:{turn}"));
            }
            match choice {
                4..=7 => drop(bench.send()),
                8..=11 => drop(bench.receive()),
                12 | 13 => drop(bench.settle()),
                14 => bench.cut(),
                // What is on its way comes late, on the old connection.
                15 => bench.resume(),
                _ => {}
            }
        }
        bench.run();
        for publisher in ["p", "q", "r"] {
            let of = |names: &[String]| -> Vec<String> {
                let mut names = names.to_vec();
                names.retain(|name| name.starts_with(publisher));
                names
            };
            assert_eq!(of(&bench.names()), of(&sent), "seed {seed}");
        }
        assert!(bench.sender.is_empty(), "seed {seed}");
        assert!(bench.receiver.taken(FROM).is_empty(), "seed {seed}");
        assert_eq!(bench.placed.len(), sent.len(), "seed {seed}");
    }
}
