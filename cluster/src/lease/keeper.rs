//! The meta leader's side of all leases: answers renewals after a ReadIndex begun after they arrived, and decides which
//! node is Down. Pure: times are arguments; `handle_*` are inputs, `poll_*` outputs. Deciding and answering are one
//! machine, so that once a node is condemned nothing more is answered to it, not even by a ReadIndex under way.
//!
//! ```text
//!            renewal answered (deadline moves)
//!               +----+
//!               v    |   T without an answer              Down applied
//!   Up ------> watched ---------------------> condemned ---------------> (gone)
//!               |  applied stays below what it was answered T ago, or it is expelled: unanswered from then on
//!               |  or, of two nodes that do not reach each other for T, it is the one to go: the same
//!               +-----------> shunned ------ T later --^
//! ```

use std::collections::BTreeMap;

use super::cuts::Cuts;
use crate::id::{NodeId, NodeRef};

/// Times of the lease, in ns.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// T of this node: a node is Down this long after its last sign, or its own T where that is longer.
    pub down_after_ns: u64,
    /// A tick that comes later than this after the last one is a stall of our own timer; a ReadIndex that takes longer is one of the
    /// quorum.
    pub stall_ns: u64,
}

/// A node that is Up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// Which start of it.
    pub node: NodeRef,
    /// Its own T, by which its leases are counted; 0 = not known.
    pub down_after_ns: u64,
}

/// A renewal that waits for its answer; `ticket` is how to answer it.
#[derive(Debug)]
pub struct Renewal<T> {
    /// Who asks.
    pub node: NodeRef,
    /// Meta index it has applied.
    pub applied: u64,
    /// Nodes that it does not reach.
    pub unreachable: Vec<NodeId>,
    /// How to answer.
    pub ticket: T,
}

/// What goes back to a node.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The lease, once `read_index` is applied; every Up node has applied at least `lowest_applied`.
    Lease {
        /// Index of the ReadIndex begun after the renewal arrived.
        read_index: u64,
        /// Lowest applied index over all Up nodes; 0 while one was not heard.
        lowest_applied: u64,
    },
    /// This incarnation is not Up.
    Down,
    /// This node does not lead meta, or could not confirm that it does.
    NotLeader,
}

/// Leases of all nodes, at the meta leader.
#[derive(Debug)]
pub struct Keeper<T> {
    timing: Timing,
    me: NodeId,
    leading: bool,
    watched: BTreeMap<NodeId, Watch>,
    /// Meta index up to which `watched` holds every node that is Up.
    members_index: u64,
    /// Arrived since the ReadIndex under way began.
    arrived: Vec<Renewal<T>>,
    /// When the ReadIndex under way began, and what it answers.
    reading: Option<(u64, Vec<Renewal<T>>)>,
    answers: Vec<(T, Answer)>,
    last_tick_ns: u64,
    cuts: Cuts,
}

#[derive(Debug)]
struct Watch {
    incarnation: u64,
    /// T for this node: the longer one of ours and its own. Nodes are given another T one after the other.
    down_after_ns: u64,
    /// Latest of: last renewal answered, the node's Up, our election, a stall of our timer or of the quorum.
    sign_ns: u64,
    applied: u64,
    /// (answered index, when): what it has still to apply.
    owes: Option<(u64, u64)>,
    condemned: bool,
    /// It is to go, whether it renews or not.
    expelled: bool,
    /// So that two nodes that do not reach each other are not both there.
    cut: bool,
}

impl<T> Keeper<T> {
    /// A keeper that does not lead yet.
    pub fn new(me: NodeId, timing: Timing) -> Self {
        Keeper {
            timing,
            me,
            leading: false,
            watched: BTreeMap::new(),
            members_index: 0,
            arrived: Vec::new(),
            reading: None,
            answers: Vec::new(),
            last_tick_ns: 0,
            cuts: Cuts::default(),
        }
    }

    /// This node became, or is no more, the meta leader.
    pub fn handle_leadership(&mut self, leading: bool, now_ns: u64) {
        self.leading = leading;
        self.last_tick_ns = now_ns;
        self.cuts.clear();
        for watch in self.watched.values_mut() {
            *watch = Watch {
                expelled: watch.expelled,
                ..Watch::new(watch.incarnation, watch.down_after_ns, now_ns)
            };
        }
        if !leading {
            let waiting = self
                .arrived
                .drain(..)
                .chain(self.reading.take().into_iter().flat_map(|(_, read)| read));
            self.answers
                .extend(waiting.map(|renewal| (renewal.ticket, Answer::NotLeader)));
        }
    }

    /// Members that are to be declared Down though they may renew: they are answered no more.
    pub fn handle_expelled(&mut self, expelled: &[NodeId]) {
        for (node, watch) in &mut self.watched {
            watch.expelled = expelled.contains(node);
        }
    }

    /// The nodes that are Up in this node's replica, which has applied `index`.
    pub fn handle_members(&mut self, up: &[Served], index: u64, now_ns: u64) {
        self.members_index = index;
        self.watched.retain(|node, watch| {
            let incarnation = watch.incarnation;
            let node = NodeRef {
                node: *node,
                incarnation,
            };
            up.iter().any(|up| up.node == node)
        });
        self.cuts
            .retain(|node| up.iter().any(|up| up.node.node == node));
        for up in up {
            let t_ns = up.down_after_ns.max(self.timing.down_after_ns);
            self.watched
                .entry(up.node.node)
                .or_insert_with(|| Watch::new(up.node.incarnation, t_ns, now_ns));
        }
    }

    /// A node asks for its lease.
    pub fn handle_renewal(&mut self, renewal: Renewal<T>) {
        if !self.leading {
            self.answers.push((renewal.ticket, Answer::NotLeader));
        } else if self.known(renewal.node).is_none() {
            self.answers.push((renewal.ticket, Answer::Down));
        } else {
            self.arrived.push(renewal);
        }
    }

    /// A ReadIndex is to begin now for all that arrived, if none is under way.
    pub fn poll_read(&mut self, now_ns: u64) -> bool {
        if self.reading.is_some() || self.arrived.is_empty() {
            return false;
        }
        self.reading = Some((now_ns, std::mem::take(&mut self.arrived)));
        true
    }

    /// The ReadIndex ended: with an index, or none when leadership could not be confirmed.
    pub fn handle_read(&mut self, index: Option<u64>, now_ns: u64) {
        let Some((_, renewals)) = self.reading.take() else {
            return;
        };
        for renewal in &renewals {
            let node = renewal.node.node;
            self.cuts.handle_report(node, &renewal.unreachable, now_ns);
            if let Some(watch) = self.watched.get_mut(&node) {
                watch.applied = watch.applied.max(renewal.applied);
                watch.settle();
            }
        }
        let lowest_applied = self
            .watched
            .values()
            .map(|watch| watch.applied)
            .min()
            .unwrap_or(0)
            // A node may serve under a lease of the leader before, though its Up is not applied here: beyond what is
            // applied here nothing is known of all.
            .min(self.members_index);
        for renewal in renewals {
            let answer = match (index, self.known(renewal.node)) {
                (_, None) => Answer::Down,
                (None, _) => Answer::NotLeader,
                // Nothing more is answered: its lease runs out before it is declared Down.
                (Some(_), Some(watch))
                    if watch.condemned || watch.expelled || watch.cut || watch.shunned(now_ns) =>
                {
                    Answer::NotLeader
                }
                (Some(read_index), Some(watch)) => {
                    watch.answered(read_index, now_ns);
                    Answer::Lease {
                        read_index,
                        lowest_applied,
                    }
                }
            };
            self.answers.push((renewal.ticket, answer));
        }
    }

    /// Time passes. Returns the nodes to be declared Down now, and again at each tick until they are.
    pub fn handle_tick(&mut self, now_ns: u64) -> Vec<NodeRef> {
        let is_late = |since_ns| now_ns.saturating_sub(since_ns) > self.timing.stall_ns;
        // While no quorum answers nobody can be answered: that a node is not is no sign of its own silence.
        let stalled = is_late(self.last_tick_ns)
            || self
                .reading
                .as_ref()
                .is_some_and(|(since, _)| is_late(*since));
        self.last_tick_ns = now_ns;
        if !self.leading {
            return Vec::new();
        }
        if stalled {
            self.cuts.clear();
        }
        self.cut_off_one(now_ns);
        let mut down = Vec::new();
        for (node, watch) in &mut self.watched {
            if stalled {
                watch.stalled(now_ns);
            }
            // Never itself: it would have to hand leadership over first.
            if *node != self.me && now_ns.saturating_sub(watch.sign_ns) >= watch.down_after_ns {
                watch.condemned = true;
                down.push(NodeRef {
                    node: *node,
                    incarnation: watch.incarnation,
                });
            }
        }
        down
    }

    /// Answers to be sent.
    pub fn poll_answers(&mut self) -> Vec<(T, Answer)> {
        std::mem::take(&mut self.answers)
    }

    /// Where two nodes do not reach each other, one has to go; one at a time, as that may mend more than one link.
    fn cut_off_one(&mut self, now_ns: u64) {
        if self.watched.values().any(|watch| watch.cut) {
            return;
        }
        // What a link is reported for is reported as seldom as the node with the longest T renews.
        let longest = self.watched.values().map(|watch| watch.down_after_ns);
        let t_ns = longest.max().unwrap_or(self.timing.down_after_ns);
        // It renews a few times in this time.
        let is_fresh =
            |watch: &Watch| now_ns.saturating_sub(watch.sign_ns) < watch.down_after_ns / 2;
        let heard = |node| self.watched.get(&node).is_some_and(is_fresh);
        let victim = self.cuts.victim(self.me, t_ns, now_ns, heard);
        if let Some(watch) = victim.and_then(|victim| self.watched.get_mut(&victim)) {
            watch.cut = true;
        }
    }

    /// Whether a node goes, or went, because a link of its is cut.
    pub fn is_cut(&self, node: NodeId) -> bool {
        self.watched.get(&node).is_some_and(|watch| watch.cut)
    }

    fn known(&mut self, node: NodeRef) -> Option<&mut Watch> {
        self.watched
            .get_mut(&node.node)
            .filter(|watch| watch.incarnation == node.incarnation)
    }
}

impl Watch {
    fn new(incarnation: u64, down_after_ns: u64, now_ns: u64) -> Self {
        Watch {
            incarnation,
            down_after_ns,
            sign_ns: now_ns,
            applied: 0,
            owes: None,
            condemned: false,
            expelled: false,
            cut: false,
        }
    }

    fn answered(&mut self, read_index: u64, now_ns: u64) {
        self.sign_ns = now_ns;
        if self.owes.is_none() && read_index > self.applied {
            self.owes = Some((read_index, now_ns));
        }
    }

    fn stalled(&mut self, now_ns: u64) {
        if !self.condemned {
            self.sign_ns = now_ns;
            self.owes = self.owes.map(|(index, _)| (index, now_ns));
        }
    }

    fn settle(&mut self) {
        if self.owes.is_some_and(|(index, _)| index <= self.applied) {
            self.owes = None;
        }
    }

    /// It renews, but has not applied what it was answered T ago: it is answered no more, and Down T later.
    fn shunned(&self, now_ns: u64) -> bool {
        self.owes
            .is_some_and(|(_, since_ns)| now_ns.saturating_sub(since_ns) >= self.down_after_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: u64 = 1_000;
    const ME: NodeRef = NodeRef {
        node: NodeId(1),
        incarnation: 1,
    };
    const OTHER: NodeRef = NodeRef {
        node: NodeId(2),
        incarnation: 3,
    };

    /// All with the T of the keeper.
    fn served(up: &[NodeRef]) -> Vec<Served> {
        let served = |node: &NodeRef| Served {
            node: *node,
            down_after_ns: T,
        };
        up.iter().map(served).collect()
    }

    /// OTHER has a T of its own.
    fn keeper_of(down_after_ns: u64) -> Keeper<&'static str> {
        let mut keeper = keeper();
        keeper.handle_members(&served(&[ME]), u64::MAX, 0);
        let up = [ME, OTHER].map(|node| Served {
            node,
            down_after_ns: if node == OTHER { down_after_ns } else { T },
        });
        keeper.handle_members(&up, u64::MAX, 0);
        keeper
    }

    /// The first tick at which it is declared Down.
    fn down_at(keeper: &mut Keeper<&'static str>, from: u64) -> Option<u64> {
        let mut ticks = (from..from + 20 * T).step_by(50);
        ticks.find(|now| !keeper.handle_tick(*now).is_empty())
    }

    fn keeper() -> Keeper<&'static str> {
        let mut keeper = Keeper::new(
            ME.node,
            Timing {
                down_after_ns: T,
                stall_ns: T / 4,
            },
        );
        keeper.handle_leadership(true, 0);
        keeper.handle_members(&served(&[ME, OTHER]), u64::MAX, 0);
        keeper
    }

    fn renew(keeper: &mut Keeper<&'static str>, node: NodeRef, applied: u64, ticket: &'static str) {
        keeper.handle_renewal(Renewal {
            node,
            applied,
            unreachable: Vec::new(),
            ticket,
        });
    }

    fn tick_to(keeper: &mut Keeper<&'static str>, from: u64, to: u64) -> Vec<NodeRef> {
        (from..=to)
            .step_by(50)
            .flat_map(|now| keeper.handle_tick(now))
            .collect()
    }

    #[test]
    fn a_renewal_is_answered_by_a_read_begun_after_it_arrived() {
        let mut keeper = keeper();
        renew(&mut keeper, OTHER, 5, "first");
        assert!(keeper.poll_read(0));
        renew(&mut keeper, OTHER, 5, "second");
        assert!(!keeper.poll_read(0), "one at a time");
        keeper.handle_read(Some(7), 10);
        let lease = |read_index| Answer::Lease {
            read_index,
            lowest_applied: 0,
        };
        assert_eq!(keeper.poll_answers(), [("first", lease(7))]);
        assert!(keeper.poll_read(0));
        renew(&mut keeper, ME, 6, "mine");
        keeper.handle_read(Some(8), 20);
        assert_eq!(keeper.poll_answers(), [("second", lease(8))]);
        assert!(keeper.poll_read(0));
        keeper.handle_read(Some(8), 30);
        assert_eq!(
            keeper.poll_answers(),
            [(
                "mine",
                Answer::Lease {
                    read_index: 8,
                    lowest_applied: 5
                }
            )]
        );
    }

    #[test]
    fn a_silent_node_is_down_after_t_and_not_before() {
        let mut keeper = keeper();
        assert!(tick_to(&mut keeper, 50, 950).is_empty());
        assert_eq!(keeper.handle_tick(1_000), [OTHER], "never itself");
    }

    #[test]
    fn a_condemned_node_gets_no_answer_even_from_a_read_under_way() {
        let mut keeper = keeper();
        tick_to(&mut keeper, 50, 950);
        renew(&mut keeper, OTHER, 5, "late");
        assert!(keeper.poll_read(950));
        assert_eq!(keeper.handle_tick(1_000), [OTHER]);
        keeper.handle_read(Some(9), 1_001);
        assert_eq!(keeper.poll_answers(), [("late", Answer::NotLeader)]);
        assert_eq!(keeper.handle_tick(1_050), [OTHER], "until it is applied");
        keeper.handle_members(&served(&[ME]), u64::MAX, 1_060);
        assert!(keeper.handle_tick(1_100).is_empty());
        renew(&mut keeper, OTHER, 5, "down");
        assert_eq!(keeper.poll_answers(), [("down", Answer::Down)]);
    }

    /// Its lease is 0.75 of its own T, which was raised on its machine first.
    #[test]
    fn a_node_whose_own_t_is_longer_is_waited_for_as_long() {
        assert_eq!(
            down_at(&mut keeper_of(3 * T), 50),
            Some(3 * T),
            "since its Up"
        );
        assert_eq!(
            down_at(&mut keeper_of(T / 2), 50),
            Some(T),
            "never shorter than ours"
        );
        assert_eq!(down_at(&mut keeper_of(0), 50), Some(T), "it did not say");

        let mut elected = keeper_of(3 * T);
        tick_to(&mut elected, 50, 500);
        elected.handle_leadership(false, 500);
        elected.handle_leadership(true, 600);
        assert_eq!(
            down_at(&mut elected, 650),
            Some(600 + 3 * T),
            "since an election"
        );

        let mut stalled = keeper_of(3 * T);
        assert!(stalled.handle_tick(5 * T).is_empty());
        assert_eq!(
            down_at(&mut stalled, 5 * T + 50),
            Some(8 * T),
            "since a stall"
        );

        let mut answered = keeper_of(3 * T);
        tick_to(&mut answered, 50, 500);
        renew(&mut answered, OTHER, 5, "x");
        answered.poll_read(500);
        answered.handle_read(Some(9), 500);
        assert_eq!(
            down_at(&mut answered, 550),
            Some(500 + 3 * T),
            "since an answer"
        );

        let mut expelled = keeper_of(3 * T);
        expelled.handle_expelled(&[OTHER.node]);
        assert_eq!(
            down_at(&mut expelled, 50),
            Some(3 * T),
            "it serves on till then"
        );
    }

    #[test]
    fn a_stall_of_our_own_timer_counts_as_a_sign_of_all() {
        let mut keeper = keeper();
        assert!(keeper.handle_tick(5_000).is_empty());
        assert!(tick_to(&mut keeper, 5_050, 5_950).is_empty());
        assert_eq!(keeper.handle_tick(6_000), [OTHER]);
    }

    #[test]
    fn a_time_without_a_quorum_counts_against_nobody() {
        let mut keeper = keeper();
        tick_to(&mut keeper, 50, 500);
        keeper.handle_renewal(Renewal {
            node: ME,
            applied: 5,
            unreachable: vec![OTHER.node],
            ticket: "me",
        });
        assert!(keeper.poll_read(500));
        assert!(tick_to(&mut keeper, 550, 5_000).is_empty());
        keeper.handle_read(Some(9), 5_000);
        assert!(tick_to(&mut keeper, 5_050, 5_950).is_empty());
        assert!(!keeper.is_cut(OTHER.node));
        assert_eq!(keeper.handle_tick(6_000), [OTHER], "it is silent since");
    }

    #[test]
    fn who_was_condemned_stays_so_while_there_is_no_quorum() {
        let mut keeper = keeper();
        assert_eq!(tick_to(&mut keeper, 50, 1_000), [OTHER]);
        renew(&mut keeper, ME, 5, "me");
        assert!(keeper.poll_read(1_000));
        let told = tick_to(&mut keeper, 1_050, 1_500);
        assert!(told.len() == 10 && told.iter().all(|node| *node == OTHER));
    }

    #[test]
    fn an_election_starts_the_count_anew() {
        let mut keeper = keeper();
        tick_to(&mut keeper, 50, 900);
        keeper.handle_leadership(false, 900);
        renew(&mut keeper, OTHER, 5, "x");
        assert_eq!(keeper.poll_answers(), [("x", Answer::NotLeader)]);
        keeper.handle_leadership(true, 950);
        assert!(tick_to(&mut keeper, 1_000, 1_900).is_empty());
        assert_eq!(keeper.handle_tick(1_950), [OTHER]);
    }

    #[test]
    fn losing_leadership_answers_all_that_wait() {
        let mut keeper = keeper();
        renew(&mut keeper, OTHER, 5, "reading");
        keeper.poll_read(0);
        renew(&mut keeper, OTHER, 5, "arrived");
        keeper.handle_leadership(false, 10);
        let answers = keeper.poll_answers();
        assert_eq!(answers.len(), 2);
        assert!(
            answers
                .iter()
                .all(|(_, answer)| *answer == Answer::NotLeader)
        );
        keeper.handle_read(Some(9), 11);
        assert!(
            keeper.poll_answers().is_empty(),
            "the read of a former leader answers nobody"
        );
    }

    #[test]
    fn a_node_that_renews_but_does_not_apply_is_taken_down() {
        let mut keeper = keeper();
        let mut down = Vec::new();
        for now in (50..=3_000).step_by(50) {
            renew(&mut keeper, OTHER, 5, "slow");
            renew(&mut keeper, ME, 100, "me");
            keeper.poll_read(now);
            keeper.handle_read(Some(100), now);
            let leased = keeper
                .poll_answers()
                .iter()
                .any(|(t, a)| *t == "slow" && matches!(a, Answer::Lease { .. }));
            assert_eq!(leased, now < 50 + T, "at {now}");
            down.extend(keeper.handle_tick(now).into_iter().map(|node| (now, node)));
        }
        assert_eq!(
            down.first(),
            Some(&(2_000, OTHER)),
            "T after its last answer"
        );
    }

    #[test]
    fn of_two_nodes_that_are_cut_off_from_each_other_one_is_taken_down_and_none_for_a_silent_one() {
        const THIRD: NodeRef = NodeRef {
            node: NodeId(3),
            incarnation: 1,
        };
        for is_silent in [false, true] {
            let mut keeper = keeper();
            keeper.handle_members(&served(&[ME, OTHER, THIRD]), u64::MAX, 0);
            let mut down = Vec::new();
            for now in (50..=3_000).step_by(50) {
                renew(&mut keeper, ME, 9, "me");
                if !is_silent {
                    renew(&mut keeper, OTHER, 9, "other");
                }
                keeper.handle_renewal(Renewal {
                    node: THIRD,
                    applied: 9,
                    unreachable: vec![OTHER.node],
                    ticket: "third",
                });
                keeper.poll_read(now);
                keeper.handle_read(Some(9), now);
                down.extend(keeper.handle_tick(now));
            }
            down.dedup();
            let expected = if is_silent { OTHER } else { THIRD };
            assert_eq!(down, [expected], "silent: {is_silent}");
            assert_eq!(keeper.is_cut(THIRD.node), !is_silent);
        }
    }

    #[test]
    fn a_newer_incarnation_is_watched_in_place_of_the_older() {
        let mut keeper = keeper();
        let newer = NodeRef {
            incarnation: 4,
            ..OTHER
        };
        tick_to(&mut keeper, 50, 500);
        keeper.handle_members(&served(&[ME, newer]), u64::MAX, 500);
        renew(&mut keeper, OTHER, 5, "old");
        assert_eq!(keeper.poll_answers(), [("old", Answer::Down)]);
        assert!(tick_to(&mut keeper, 550, 1_450).is_empty());
        assert_eq!(keeper.handle_tick(1_500), [newer]);
    }

    #[test]
    fn a_node_whose_up_is_not_applied_here_counts_too() {
        let mut keeper = keeper();
        keeper.handle_members(&served(&[ME]), 5, 0);
        renew(&mut keeper, ME, 9, "me");
        keeper.poll_read(0);
        keeper.handle_read(Some(9), 10);
        let lease = Answer::Lease {
            read_index: 9,
            lowest_applied: 5,
        };
        assert_eq!(
            keeper.poll_answers(),
            [("me", lease)],
            "another node may have come Up with index 6"
        );
    }
}
