//! One start of a node in a simulation: its proposers, its lease, its barrier, its orders to other nodes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use flotte_proto::{Up, meta_command};

use super::ctx::{Broken, Ctx, id_of};
use super::links::{Frame, LinkOut, Placing};
use super::message::{Input, Kick, Message, Renewed};
use super::net::MS;
use super::process::Process;
use super::sessions::{Asked, Sessions};
use crate::barrier::Barrier;
use crate::id::{GroupId, NodeId, NodeRef};
use crate::lease::Renewer;
use crate::link::Receiver;
use crate::proposer::Core;

const AGAIN: u64 = 200 * MS;
const KICK_TIMEOUT: u64 = 500 * MS;

/// Who waits for a command.
#[derive(Debug, Clone, Copy)]
pub enum Ticket {
    Up,
    /// A route, and what it was set to.
    Route(usize, bool),
    Retain(u64),
    Open(usize),
    /// Nobody.
    Quiet,
    Duty(GroupId),
    WillDone(GroupId, u64),
    /// A ReadIndex for what a subscription finds retained.
    Replay(usize, usize),
}

/// A question to a node that waits for its answer; those of a start of this node end with it.
#[derive(Debug, Clone, Copy)]
pub enum Call {
    Propose {
        group: GroupId,
        incarnation: u64,
        sequence: u64,
        to: usize,
    },
    Renew {
        incarnation: u64,
        sent_ns: u64,
    },
    Applied {
        incarnation: u64,
        node: NodeRef,
        index: u64,
    },
    Kick {
        incarnation: u64,
        kick: Kick,
    },
    Read {
        incarnation: u64,
        conn: usize,
        filter: usize,
    },
    Time {
        group: GroupId,
        node: NodeId,
        term: u64,
    },
}

pub struct Proposer {
    pub core: Core<(u64, Ticket)>,
    pub pausing: bool,
    pub hint: Option<usize>,
}

pub struct Life {
    pub me: NodeRef,
    pub up: bool,
    pub up_index: u64,
    pub proposers: BTreeMap<GroupId, Proposer>,
    renewer: Renewer,
    pub barrier: Barrier<Asked>,
    /// Orders that were not carried out yet, and the connection whose CONNACK waits for it.
    kicks: BTreeMap<Kick, Option<usize>>,
    /// Replies that count once their index is applied here.
    pub after_meta: Vec<(u64, Ticket)>,
    pub links: BTreeMap<NodeId, LinkOut>,
    pub receiver: Receiver,
    /// Connections of other nodes that this start took.
    pub accepted: BTreeSet<u64>,
    /// Frames that came while there was no lease.
    pub held: VecDeque<Frame>,
    pub placings: BTreeMap<u64, (Placing, usize)>,
    pub sessions: Sessions,
}

impl Life {
    fn new(me: NodeRef, t_ns: u64) -> Life {
        Life {
            me,
            up: false,
            up_index: 0,
            proposers: BTreeMap::from([(GroupId::META, Proposer::new(me))]),
            renewer: Renewer::new(t_ns),
            barrier: Barrier::new(me),
            kicks: BTreeMap::new(),
            after_meta: Vec::new(),
            links: BTreeMap::new(),
            receiver: Receiver::default(),
            accepted: BTreeSet::new(),
            held: VecDeque::new(),
            placings: BTreeMap::new(),
            sessions: Sessions::default(),
        }
    }
}

impl Proposer {
    fn new(me: NodeRef) -> Proposer {
        Proposer {
            core: Core::new(me),
            pausing: false,
            hint: None,
        }
    }
}

impl Process {
    /// A node that is not Up proposes to be, with its next incarnation.
    pub fn begin(&mut self, ctx: &mut Ctx) {
        if self.life.is_some() {
            return;
        }
        let meta = self.meta();
        let id = id_of(self.idx);
        let was_cut = meta.members().get(&id).is_some_and(|member| member.cut);
        let mut up = meta.up_nodes().map(|up| ctx.node_of(up.node));
        let is_missing = |node: usize| !ctx.net.seems_reached(self.idx, node, ctx.now);
        let must_wait = meta.cluster_id() == 0 || was_cut && up.any(is_missing);
        drop(up);
        if must_wait {
            return ctx.input(self.idx, AGAIN, Input::Begin);
        }
        let disk = &mut ctx.machines[self.idx].disk;
        disk.incarnation += 1;
        let me = NodeRef {
            node: id,
            incarnation: disk.incarnation,
        };
        ctx.note(|| format!("{me} wants to come up"));
        self.life = Some(Life::new(me, ctx.t_ns(self.idx)));
        let up = Up {
            name: format!("n{}", self.idx),
            feature_level: ctx.machines[self.idx].level,
            down_after_ms: u32::try_from(ctx.t_ns(self.idx) / MS).unwrap_or(u32::MAX),
            ..Up::default()
        };
        self.propose_meta(ctx, meta_command::Command::Up(up), Ticket::Up);
    }

    fn came_up(&mut self, ctx: &mut Ctx, up_index: u64) {
        let groups = ctx.logs.len() as u32;
        let Some(life) = &mut self.life else { return };
        (life.up, life.up_index) = (true, up_index);
        for group in 1..groups {
            life.proposers
                .insert(GroupId(group), Proposer::new(life.me));
        }
        let me = life.me;
        ctx.note(|| format!("{me} is up, index {up_index}"));
        self.membership_changed = true;
    }

    /// This start of the node is over, and all that belonged to it.
    pub fn end_life(&mut self, ctx: &mut Ctx, why: &str) {
        let Some(life) = self.life.take() else { return };
        ctx.note(|| format!("{} is over: {why}", life.me));
        self.lease = 0;
        ctx.oracle.lease(self.idx, life.me, 0);
        for conn in life.sessions.all_conns() {
            ctx.closed(conn);
        }
        for duty in self.duties.values_mut() {
            *duty = Default::default();
        }
        let delay = if life.up { MS } else { AGAIN };
        ctx.input(self.idx, delay, Input::Begin);
    }

    // ---- what goes on in a life ----

    pub fn pump_life(&mut self, ctx: &mut Ctx) {
        let applied = self.meta_applied();
        let is_up = self.me().is_some_and(|me| self.meta().is_up(me));
        let Some(life) = &mut self.life else { return };
        let (ready, rest) = std::mem::take(&mut life.after_meta)
            .into_iter()
            .partition(|(index, _)| *index <= applied);
        life.after_meta = rest;
        let ready: Vec<(u64, Ticket)> = ready;
        if life.up
            && let Some(deadline) = life.renewer.handle_applied(applied, || is_up)
        {
            self.extend(ctx, deadline);
        }
        for (index, ticket) in ready {
            match ticket {
                Ticket::Up => self.came_up(ctx, index),
                Ticket::Route(filter, present) => self.routed(ctx, filter, present, index),
                Ticket::Retain(message) => self.retained(ctx, message, index),
                Ticket::Replay(conn, filter) => self.replay(ctx, conn, filter, index),
                _ => {}
            }
        }
        self.pump_barrier(ctx);
        self.pump_sessions(ctx);
        self.pump_links(ctx);
        self.send_batches(ctx);
    }

    fn extend(&mut self, ctx: &mut Ctx, deadline: u64) {
        let Some(me) = self.me() else { return };
        self.lease = self.lease.max(deadline);
        ctx.oracle.lease(self.idx, me, self.lease);
    }

    pub fn renew_tick(&mut self, ctx: &mut Ctx) {
        let t_ns = ctx.t_ns(self.idx);
        ctx.input(self.idx, t_ns / 8, Input::RenewTick);
        let (Some(node), Some(leader)) = (self.me(), ctx.belief(GroupId::META, self.idx).leader)
        else {
            return;
        };
        let others = self.meta().up_nodes().map(|up| up.node);
        let is_cut = |id: &NodeId| !ctx.net.seems_reached(self.idx, ctx.node_of(*id), ctx.now);
        let unreachable = others.filter(is_cut).collect();
        let applied = self.meta_applied();
        let call = Call::Renew {
            incarnation: node.incarnation,
            sent_ns: ctx.boot_ns(self.idx),
        };
        self.call(ctx, (leader, t_ns), call, |call| Message::Renew {
            call,
            node,
            applied,
            unreachable,
        });
    }

    pub fn renewed(
        &mut self,
        ctx: &mut Ctx,
        incarnation: u64,
        sent_ns: u64,
        answer: Option<Message>,
    ) {
        let is_up = self.me().is_some_and(|me| self.meta().is_up(me));
        let Some(life) = self.current(incarnation) else {
            return;
        };
        match answer {
            Some(Message::Renewed(_, Renewed::Lease { read_index, lowest })) => {
                life.barrier.handle_lowest(lowest);
                let deadline = life.renewer.handle_answer(sent_ns, read_index, || is_up);
                if let Some(deadline) = deadline {
                    self.extend(ctx, deadline);
                }
            }
            // A leader whose replica has not applied our Up yet says so, too.
            Some(Message::Renewed(_, Renewed::Down)) if !is_up => {
                self.end_life(ctx, "the leader says that it is Down")
            }
            _ => {}
        }
    }

    fn up_since(&self) -> Vec<(NodeRef, u64)> {
        let up = self.meta().members().values().filter(|member| member.up);
        up.map(|member| {
            let node = NodeRef {
                node: NodeId(member.node_id),
                incarnation: member.incarnation,
            };
            (node, member.since_index)
        })
        .collect()
    }

    /// A subscription waits until all that are Up have applied its route.
    pub fn wait_for_barrier(&mut self, ctx: &mut Ctx, index: u64, asked: Asked) {
        if ctx.broken == Some(Broken::Barrier) {
            return self.passed(asked);
        }
        let (up, read) = (self.up_since(), self.meta().index());
        if let Some(life) = &mut self.life {
            life.barrier.handle_members(&up, read);
            life.barrier.handle_wait(index, asked);
        }
    }

    fn pump_barrier(&mut self, ctx: &mut Ctx) {
        let (up, read) = (self.up_since(), self.meta().index());
        let Some(life) = self.life.as_mut().filter(|life| life.up) else {
            return;
        };
        if life.barrier.waiting() == 0 {
            return;
        }
        life.barrier.handle_members(&up, read);
        let incarnation = life.me.incarnation;
        let asks = life.barrier.poll_asks();
        let passed = life.barrier.poll_passed();
        for (node, index) in asks {
            let call = Call::Applied {
                incarnation,
                node,
                index,
            };
            let to = ctx.node_of(node.node);
            self.call(ctx, (to, 2_000 * MS), call, |call| Message::Applied {
                call,
                index,
            });
        }
        passed.into_iter().for_each(|asked| self.passed(asked));
    }

    pub fn ask_again(&mut self, node: NodeRef) {
        if let Some(life) = &mut self.life {
            life.barrier.handle_unanswered(node);
        }
    }

    // ---- kicks ----

    pub fn kick(&mut self, ctx: &mut Ctx, kick: Kick) {
        self.kick_for(ctx, kick, None);
    }

    /// Has a node end a connection; `waits` is told when it has.
    pub fn kick_for(&mut self, ctx: &mut Ctx, kick: Kick, waits: Option<usize>) {
        if ctx.broken == Some(Broken::Kicks) {
            return;
        }
        let Some(life) = &mut self.life else { return };
        if kick.node == life.me {
            self.kicked(ctx, kick);
            self.home_told(ctx, kick);
            if let Some(conn) = waits {
                self.former_waited(ctx, conn);
            }
            return;
        }
        let known = life.kicks.contains_key(&kick);
        let entry = life.kicks.entry(kick).or_default();
        *entry = entry.or(waits);
        if !known {
            self.send_kick(ctx, kick);
        }
    }

    fn send_kick(&mut self, ctx: &mut Ctx, kick: Kick) {
        let Some(me) = self.me() else { return };
        let incarnation = me.incarnation;
        let to = ctx.node_of(kick.node.node);
        let call = Call::Kick { incarnation, kick };
        let timeout = match ctx.net.seems_reached(self.idx, to, ctx.now) {
            true => KICK_TIMEOUT,
            false => 100 * MS,
        };
        self.call(ctx, (to, timeout), call, |call| Message::Kick(call, kick));
    }

    pub fn kick_answered(&mut self, ctx: &mut Ctx, kick: Kick, done: bool) {
        if !done && !self.meta().is_gone(kick.node) {
            return ctx.input(self.idx, 100 * MS, Input::KickAgain(kick));
        }
        self.home_told(ctx, kick);
        let Some(life) = &mut self.life else { return };
        if let Some(Some(conn)) = life.kicks.remove(&kick) {
            self.former_waited(ctx, conn);
        }
    }

    pub fn kick_again(&mut self, ctx: &mut Ctx, kick: Kick) {
        let is_wanted = |life: &Life| life.kicks.contains_key(&kick);
        if self.life.as_ref().is_some_and(is_wanted) {
            self.send_kick(ctx, kick);
        }
    }

    /// What is left to be done, for the end of a simulation.
    pub fn unfinished(&self, ctx: &Ctx) -> Vec<String> {
        let Some(life) = self.life.as_ref().filter(|life| life.up) else {
            return vec!["it is not up".into()];
        };
        let mut left: Vec<String> = Vec::new();
        if !self.has_lease(ctx) {
            left.push("it has no lease".into());
        }
        let open: BTreeSet<GroupId> = life
            .proposers
            .iter()
            .filter(|(_, proposer)| proposer.core.pending().commands > 0)
            .map(|(group, _)| *group)
            .collect();
        if !open.is_empty() {
            left.push(format!("proposals wait for {open:?}"));
        }
        if life.barrier.waiting() > 0 {
            left.push(format!("barriers wait for {:?}", life.barrier.laggards()));
        }
        if !life.kicks.is_empty() || !life.after_meta.is_empty() || !life.held.is_empty() {
            left.push("kicks, replies or frames wait".into());
        }
        if !life.placings.is_empty() {
            left.push(format!("not placed: {:?}", life.placings));
        }
        if self.untold() > 0 {
            left.push(format!("{} former homes were not told", self.untold()));
        }
        left.extend(life.sessions.unfinished());
        left
    }
}
