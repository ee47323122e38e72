//! One process of a node: its replicas, and the wiring of the cores as the runtime has it, step by step rather than by tasks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::ctx::{Broken, Ctx, id_of};
use super::leading::{Duty, Leading};
use super::life::{Call, Life};
use super::message::{Input, Message};
use super::net::{MS, Stream};
use super::oracle::digest;
use crate::group::{Effects as GroupEffects, GroupState};
use crate::id::{GroupId, NodeRef};
use crate::lease::{Keeper, Timing};
use crate::meta::{Effects as MetaEffects, MetaState};
use crate::snapshot::{read_records, write_records};
use crate::state_time::StateTime;
use crate::will_keys::WillKeys;

/// A replica is that far behind where it gets a snapshot.
const SNAPSHOT_LAG: u64 = 30;
/// A snapshot is written after so many entries.
const SNAPSHOT_EVERY: u64 = 25;

pub enum State {
    Meta(Box<MetaState>),
    Group(Box<GroupState>),
}

/// A replica of one group.
pub struct Replica {
    pub state: State,
    pub applied: u64,
    pub time: StateTime,
}

pub struct Process {
    pub idx: usize,
    pub replicas: BTreeMap<GroupId, Replica>,
    pub keeper: Keeper<(usize, u64)>,
    /// The term of meta in which this node leads, as the keeper knows it.
    pub led: Option<u64>,
    /// The ReadIndex that the keeper waits for.
    pub keeper_read: u64,
    pub leaders: BTreeMap<GroupId, Leading>,
    pub duties: BTreeMap<GroupId, Duty>,
    /// Deadline by the boot clock; 0 = none.
    pub lease: u64,
    pub life: Option<Life>,
    /// Of wills that were fanned out here.
    pub wills: WillKeys,
    pub calls: BTreeMap<u64, Call>,
    /// What this node asks of itself.
    pub local: VecDeque<Message>,
    /// Who waits until an index of meta is applied here.
    pub applied_waits: Vec<(u64, usize, u64)>,
    /// Declared Down already: by which start of this node, whom, in which term.
    pub condemned: BTreeSet<(NodeRef, NodeRef, u64)>,
    pub membership_changed: bool,
}

impl Process {
    pub fn start(ctx: &mut Ctx, idx: usize) -> Process {
        let timing = Timing {
            down_after_ns: ctx.t_ns(idx),
            stall_ns: ctx.t_ns(idx) / 4,
        };
        let mut process = Process {
            idx,
            replicas: BTreeMap::new(),
            keeper: Keeper::new(id_of(idx), timing),
            led: None,
            keeper_read: 0,
            leaders: BTreeMap::new(),
            duties: BTreeMap::new(),
            lease: 0,
            life: None,
            wills: WillKeys::default(),
            calls: BTreeMap::new(),
            local: VecDeque::new(),
            applied_waits: Vec::new(),
            condemned: BTreeSet::new(),
            membership_changed: true,
        };
        let held: Vec<GroupId> = ctx.logs.keys().copied().collect();
        for group in held {
            if ctx.logs[&group].replicas.contains(&idx) {
                process.open_replica(ctx, group);
            }
        }
        for input in [Input::KeeperTick, Input::RenewTick, Input::DutyTick] {
            let delay = ctx.rng.below(100 * MS);
            ctx.input(idx, delay, input);
        }
        ctx.input(idx, MS, Input::Begin);
        process
    }

    fn open_replica(&mut self, ctx: &mut Ctx, group: GroupId) {
        let state = match group {
            GroupId::META => State::Meta(Box::default()),
            _ => State::Group(Box::default()),
        };
        let mut replica = Replica {
            state,
            applied: 0,
            time: StateTime::default(),
        };
        if let Some((index, data)) = ctx.machines[self.idx].disk.snapshots.get(&group) {
            replica.restore(*index, data);
            replica
                .time
                .moved_at(replica.time_ms(), ctx.instant(self.idx));
        }
        if let Some(log) = ctx.logs.get_mut(&group) {
            log.applied.insert(self.idx, replica.applied);
            log.beliefs.insert(self.idx, Default::default());
        }
        self.replicas.insert(group, replica);
        self.leaders.insert(group, Leading::default());
        self.duties.insert(group, Duty::default());
    }

    pub fn meta(&self) -> &MetaState {
        match &self.replicas[&GroupId::META].state {
            State::Meta(meta) => meta,
            State::Group(_) => unreachable!("group 0 is meta"),
        }
    }

    pub fn meta_applied(&self) -> u64 {
        self.replicas[&GroupId::META].applied
    }

    pub fn group(&self, group: GroupId) -> Option<&GroupState> {
        match &self.replicas.get(&group)?.state {
            State::Group(state) => Some(state),
            State::Meta(_) => None,
        }
    }

    pub fn has_lease(&self, ctx: &Ctx) -> bool {
        self.lease > ctx.boot_ns(self.idx) || ctx.broken == Some(Broken::Lease)
    }

    /// The start of this node that is Up, if it is.
    pub fn me(&self) -> Option<NodeRef> {
        self.life
            .as_ref()
            .filter(|life| life.up)
            .map(|life| life.me)
    }

    pub fn handle(&mut self, ctx: &mut Ctx, input: Input) {
        match input {
            Input::Message { from, message } => self.handle_message(ctx, from, message),
            Input::Timeout(call) => self.answered(ctx, call, None),
            Input::KeeperTick => self.keeper_tick(ctx),
            Input::RenewTick => self.renew_tick(ctx),
            Input::DutyTick => self.duty_tick(ctx),
            Input::Begin => self.begin(ctx),
            Input::Gather(group) => self.gather(ctx, group),
            Input::Advance(group) => self.advance(ctx, group),
            Input::Status(group) => self.status(ctx, group),
            Input::ReadConfirm {
                term,
                index,
                reader,
            } => self.confirm_read(ctx, (term, index), reader),
            Input::ReadDone { index, reader } => self.read_done(ctx, index, reader),
            Input::Retry(group, incarnation) => self.retry(ctx, group, incarnation),
            Input::AskAgain(node) => self.ask_again(node),
            Input::Replay { conn, filter } => self.want_replay(ctx, conn, filter),
            Input::LinkRetry(node) => self.connect_link(ctx, node),
            Input::LinkBroken(node) => self.link_broken(ctx, node),
            Input::KickAgain(kick) => self.kick_again(ctx, kick),
            Input::FormerWaited(conn) => self.former_waited(ctx, conn),
            Input::Client { conn, want } => self.client_wants(ctx, conn, want),
        }
        self.pump(ctx);
    }

    fn handle_message(&mut self, ctx: &mut Ctx, from: usize, message: Message) {
        match message {
            Message::Propose { call, group, batch } => {
                self.take_batch(ctx, (from, call), group, batch)
            }
            Message::Renew {
                call,
                node,
                applied,
                unreachable,
            } => self.take_renewal((from, call), node, applied, unreachable),
            Message::Applied { call, index } => self.applied_waits.push((index, from, call)),
            Message::Kick(call, kick) => {
                if self.me() == Some(kick.node) {
                    self.kicked(ctx, kick);
                }
                self.reply(ctx, from, Message::Kicked(call));
            }
            Message::Read(call) => {
                self.begin_read(ctx, super::message::Reader::Call { from, call })
            }
            Message::Time { call, group } => self.tell_time(ctx, from, call, group),
            Message::Proposed(call, _)
            | Message::TimeIs(call, ..)
            | Message::Renewed(call, _)
            | Message::AppliedIs(call, _)
            | Message::Kicked(call)
            | Message::ReadIs(call, _) => self.answered(ctx, call, Some(message)),
            Message::Connect { link, sender, to } => {
                self.accept_link(ctx, from, link, (sender, to))
            }
            Message::Resumed { link, acked } => self.link_resumed(ctx, from, link, acked),
            Message::LinkRefused(link) => self.link_refused(ctx, from, link),
            Message::Frame {
                link,
                sender,
                messages,
            } => self.take_frame(ctx, (from, link), sender, messages),
            Message::LinkGap(link) => self.link_gap(ctx, from, link),
            Message::Acked { link, acked } => self.link_acked(ctx, from, link, acked),
        }
    }

    pub fn reply(&mut self, ctx: &mut Ctx, to: usize, message: Message) {
        if to == self.idx {
            self.local.push_back(message);
        } else {
            ctx.send(self.idx, to, Stream::Control, message);
        }
    }

    /// Does all that can be done now.
    fn pump(&mut self, ctx: &mut Ctx) {
        for _ in 0..10_000 {
            if std::mem::take(&mut self.membership_changed) {
                self.members_changed(ctx);
            }
            self.answer_applied(ctx);
            self.pump_keeper(ctx);
            self.pump_life(ctx);
            match self.local.pop_front() {
                Some(message) => self.handle_message(ctx, self.idx, message),
                None if !self.membership_changed => return,
                None => {}
            }
        }
        ctx.oracle
            .fail("liveness", format!("node {} never comes to rest", self.idx));
    }

    fn members_changed(&mut self, ctx: &mut Ctx) {
        self.take_members(ctx);
        for duty in self.duties.values_mut() {
            duty.reconcile = true;
        }
        let Some(me) = self.me() else { return };
        if !self.meta().is_up(me) {
            return self.end_life(ctx, "its own replica says that it is Down");
        }
        self.end_links(ctx);
    }

    /// Those who asked whether an index is applied here are told so.
    fn answer_applied(&mut self, ctx: &mut Ctx) {
        let applied = self.meta_applied();
        let (ready, rest) = std::mem::take(&mut self.applied_waits)
            .into_iter()
            .partition(|(index, ..)| *index <= applied);
        self.applied_waits = rest;
        let ready: Vec<(u64, usize, u64)> = ready;
        for (_, from, call) in ready {
            self.reply(ctx, from, Message::AppliedIs(call, applied));
        }
    }

    /// Applies what is committed, or a part of it.
    fn advance(&mut self, ctx: &mut Ctx, group: GroupId) {
        let (committed, first) = {
            let log = &ctx.logs[&group];
            (log.committed, self.replicas[&group].applied + 1)
        };
        if first + SNAPSHOT_LAG < committed && ctx.rng.percent(50) {
            self.install(ctx, group);
        }
        let first = self.replicas[&group].applied + 1;
        let last = match ctx.rng.percent(85) {
            true => committed,
            false => committed.min(first + ctx.rng.below(3)),
        };
        for index in first..=last {
            self.apply(ctx, group, index);
        }
        if let Some(log) = ctx.logs.get_mut(&group) {
            log.applied.insert(self.idx, self.replicas[&group].applied);
        }
    }

    fn apply(&mut self, ctx: &mut Ctx, group: GroupId, index: u64) {
        let entry = ctx.logs[&group].entry(index).clone();
        let at = ctx.instant(self.idx);
        let Some(replica) = self.replicas.get_mut(&group) else {
            return;
        };
        let mut reply = Bytes::new();
        let mut ended = Vec::new();
        let mut openers = BTreeSet::new();
        if let Some(data) = &entry.data {
            match &mut replica.state {
                State::Meta(meta) => {
                    let mut effects = MetaEffects::default();
                    reply = meta
                        .apply(index, entry.term, data, &mut effects)
                        .expect("it is understood");
                    self.membership_changed |= effects.membership;
                }
                State::Group(state) => {
                    let mut effects = GroupEffects::default();
                    reply = state
                        .apply(group, index, data, &mut effects)
                        .expect("it is understood");
                    state.check_invariants();
                    (ended, openers) = (effects.ended, effects.openers);
                }
            }
            replica.time.moved_at(replica.time_ms(), at);
        }
        replica.applied = index;
        ctx.oracle
            .check_digest(group, index, self.idx, || replica.digest());
        if index.is_multiple_of(SNAPSHOT_EVERY) {
            let snapshot = (index, replica.freeze());
            ctx.machines[self.idx]
                .disk
                .snapshots
                .insert(group, snapshot);
        }
        self.answer_entry(ctx, group, (index, entry.term), reply);
        self.ended_and_opened(ctx, group, ended, openers);
    }

    /// Takes over the state of the replica that is farthest.
    fn install(&mut self, ctx: &mut Ctx, group: GroupId) {
        let snapshots = ctx
            .machines
            .iter()
            .filter_map(|machine| machine.disk.snapshots.get(&group));
        let newest = snapshots.max_by_key(|(index, _)| *index).cloned();
        let at = ctx.instant(self.idx);
        let Some((index, data)) = newest else { return };
        let Some(replica) = self.replicas.get_mut(&group) else {
            return;
        };
        if index <= replica.applied {
            return;
        }
        replica.restore(index, &data);
        replica.time.moved_at(replica.time_ms(), at);
        ctx.oracle
            .check_digest(group, index, self.idx, || replica.digest());
        self.membership_changed |= group == GroupId::META;
        let node = self.idx;
        ctx.note(|| format!("node {node}: snapshot of group {group} at {index}"));
    }
}

impl Replica {
    pub fn time_ms(&self) -> u64 {
        match &self.state {
            State::Meta(meta) => meta.time_ms(),
            State::Group(group) => group.time_ms(),
        }
    }

    pub fn digest(&self) -> u32 {
        match &self.state {
            State::Meta(meta) => digest(&meta.records()),
            State::Group(group) => digest(&group.records()),
        }
    }

    fn freeze(&self) -> Bytes {
        let mut out = Vec::new();
        match &self.state {
            State::Meta(meta) => write_records(meta.records(), &mut out),
            State::Group(group) => write_records(group.records(), &mut out),
        }
        .expect("memory takes it");
        out.into()
    }

    fn restore(&mut self, index: u64, data: &Bytes) {
        let mut data = data.as_ref();
        match &mut self.state {
            State::Meta(meta) => {
                **meta = MetaState::default();
                read_records(&mut data, |record| meta.restore(record))
            }
            State::Group(group) => {
                **group = GroupState::default();
                read_records(&mut data, |record| group.restore(record))
            }
        }
        .expect("it was written by a replica");
        self.applied = index;
    }
}
