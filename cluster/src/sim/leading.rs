//! What a process does as a leader: merges batches into entries, answers renewals, declares nodes Down, cares for wills and for clients
//! whose node is no more.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotte_proto::meta_command::Command as Meta;
use flotte_proto::session_command::Command as Session;
use flotte_proto::{
    Batch, Down, EntryReply, GroupEntry, HomeGone, Told, WillDone, WillKey, propose_response,
};
use prost::Message as _;

use super::ctx::{Broken, Ctx};
use super::life::Ticket;
use super::message::{Input, Kick, Message, Proposed, Reader, Renewed};
use super::net::MS;
use super::process::Process;
use super::times::Expected;
use super::topics::{client_id, client_of, group_of, message_of};
use crate::group::Ended;
use crate::id::{GroupId, NodeId, NodeRef};
use crate::leader::refusal;
use crate::lease::{Answer, Renewal};
use crate::state_time::{LeaderClock, Survey};

/// Who wants an answer: a node and the number of its call.
type Asked = (usize, u64);

/// The leader's side of proposals to one group.
#[derive(Default)]
pub struct Leading {
    waiting: Vec<(Batch, Asked)>,
    /// By index, each with the term that it has to have.
    under_way: BTreeMap<u64, (u64, Vec<Asked>)>,
    /// Of entries that went to nobody: this node only believed that it led.
    void: Vec<Asked>,
    clock: LeaderClock,
    /// Who carries the time? With the term, and whom the oracle expects to say so.
    pub survey: Option<(u64, Survey, Expected)>,
}

/// What the leader of a session group does for it.
#[derive(Default)]
pub struct Duty {
    pub reconcile: bool,
    led: bool,
    /// Commands of this round without an answer.
    pub open: usize,
    pub publishing: BTreeSet<u64>,
    /// Homes that are told what is over, and those that have answered.
    telling: BTreeSet<Ended>,
    told: Vec<Ended>,
}

impl Process {
    fn leads(&self, ctx: &Ctx, group: GroupId) -> bool {
        ctx.belief(group, self.idx).leader == Some(self.idx)
    }

    pub fn take_batch(&mut self, ctx: &mut Ctx, asked: Asked, group: GroupId, batch: Batch) {
        let refused = refusal(group, &batch, self.meta());
        if let Some(propose_response::Result::Reply(reply)) = refused.and_then(|is| is.result) {
            return self.reply(
                ctx,
                asked.0,
                Message::Proposed(asked.1, Proposed::Reply(reply)),
            );
        }
        let leads = self.leads(ctx, group);
        let delay = ctx.rng.below(2 * MS);
        match self.leaders.get_mut(&group) {
            Some(leading) if leads => {
                leading.waiting.push((batch, asked));
                if leading.waiting.len() == 1 {
                    ctx.input(self.idx, delay, Input::Gather(group));
                }
            }
            _ => {
                let leader = ctx.belief(group, self.idx).leader;
                let answer = Message::Proposed(asked.1, Proposed::NotLeader(leader));
                self.reply(ctx, asked.0, answer);
            }
        }
    }

    pub fn gather(&mut self, ctx: &mut Ctx, group: GroupId) {
        let (idx, belief) = (self.idx, ctx.belief(group, self.idx));
        let (wall, at) = (ctx.machines[idx].wall_ms(ctx.now), ctx.instant(idx));
        let carried = self.replicas[&group].time.carried();
        let Some(leading) = self.leaders.get_mut(&group) else {
            return;
        };
        if belief.leader != Some(idx) {
            leading.clock = LeaderClock::default();
            let asked = leading.waiting.drain(..).map(|(_, asked)| asked);
            let asked = asked.collect();
            return self.not_leader(ctx, group, asked);
        }
        // They wait until it is.
        let Some(carried) = carried else { return };
        let (batches, asked): (Vec<Batch>, Vec<Asked>) = leading.waiting.drain(..).unzip();
        leading.clock.lead(belief.term);
        let time_ms = leading.clock.stamp(wall, at, carried);
        ctx.note(|| {
            let (term, count) = (belief.term, batches.len());
            format!("node {idx} leads group {group} in term {term}: {count} batches at {time_ms}")
        });
        let entry = GroupEntry { time_ms, batches }.encode_to_vec();
        match ctx.append(group, (idx, belief.term), entry.into()) {
            Some(index) => drop(leading.under_way.insert(index, (belief.term, asked))),
            None => leading.void.extend(asked),
        }
    }

    /// Batches that waited for something are looked at once more.
    pub fn gather_again(&mut self, ctx: &mut Ctx, group: GroupId) {
        if self
            .leaders
            .get(&group)
            .is_some_and(|leading| !leading.waiting.is_empty())
        {
            ctx.input(self.idx, 0, Input::Gather(group));
        }
    }

    fn not_leader(&mut self, ctx: &mut Ctx, group: GroupId, asked: Vec<Asked>) {
        let leader = ctx.belief(group, self.idx).leader;
        for (from, call) in asked {
            let answer = Message::Proposed(call, Proposed::NotLeader(leader));
            self.reply(ctx, from, answer);
        }
    }

    /// An entry was applied here: whoever proposed it through this node is answered.
    pub fn answer_entry(
        &mut self,
        ctx: &mut Ctx,
        group: GroupId,
        (index, term): (u64, u64),
        reply: Bytes,
    ) {
        let leading = self.leaders.get_mut(&group);
        let Some((expected, asked)) = leading.and_then(|l| l.under_way.remove(&index)) else {
            return;
        };
        if expected != term {
            return;
        }
        let reply = EntryReply::decode(reply).expect("it was made by apply");
        for ((from, call), reply) in asked.into_iter().zip(reply.batches) {
            self.reply(ctx, from, Message::Proposed(call, Proposed::Reply(reply)));
        }
    }

    /// What this node believes of a group changed.
    pub fn status(&mut self, ctx: &mut Ctx, group: GroupId) {
        let belief = ctx.belief(group, self.idx);
        if let Some(leading) = self.leaders.get_mut(&group)
            && belief.leader != Some(self.idx)
        {
            let mut told = std::mem::take(&mut leading.void);
            let forget = ctx.rng.percent(50);
            for (_, asked) in std::mem::take(&mut leading.under_way).into_values() {
                // The others hear nothing, whatever becomes of the entry.
                if forget {
                    told.extend(asked);
                }
            }
            self.not_leader(ctx, group, told);
            self.gather_again(ctx, group);
        }
        self.keep_time(ctx, group);
        self.succeeded(ctx, group);
    }

    // ---- the lease ----

    pub fn take_renewal(
        &mut self,
        ticket: Asked,
        node: NodeRef,
        applied: u64,
        unreachable: Vec<NodeId>,
    ) {
        self.keeper.handle_renewal(Renewal {
            node,
            applied,
            unreachable,
            ticket,
        });
    }

    pub fn take_members(&mut self, ctx: &Ctx) {
        let mut up = self.meta().served();
        if ctx.broken == Some(Broken::OwnT) {
            up.iter_mut().for_each(|up| up.down_after_ns = 0);
        }
        let index = self.meta().index();
        self.keeper
            .handle_members(&up, index, ctx.boot_ns(self.idx));
    }

    pub fn keeper_tick(&mut self, ctx: &mut Ctx) {
        ctx.input(self.idx, ctx.t_ns(self.idx) / 20, Input::KeeperTick);
        let down = self.keeper.handle_tick(ctx.boot_ns(self.idx));
        for node in down {
            let (Some(me), Some(term)) = (self.me(), self.led) else {
                continue;
            };
            if !self.condemned.insert((me, node, term)) {
                continue;
            }
            let cut = self.keeper.is_cut(node.node);
            ctx.note(|| format!("{me} declares {node} down, term {term}, cut {cut}"));
            let down = Down {
                node_id: node.node.0,
                incarnation: node.incarnation,
                term,
                cut,
            };
            self.propose_meta(ctx, Meta::Down(down), Ticket::Quiet);
        }
    }

    pub fn pump_keeper(&mut self, ctx: &mut Ctx) {
        let belief = ctx.belief(GroupId::META, self.idx);
        let led = (belief.leader == Some(self.idx)).then_some(belief.term);
        let now = ctx.boot_ns(self.idx);
        if led != self.led {
            self.led = led;
            self.keeper.handle_leadership(false, now);
            if led.is_some() {
                self.keeper.handle_leadership(true, now);
            }
        }
        if self.keeper.poll_read(now) {
            let number = ctx.next_id();
            self.keeper_read = number;
            self.begin_read(ctx, Reader::Keeper(number));
        }
        for ((from, call), answer) in self.keeper.poll_answers() {
            let renewed = match answer {
                Answer::Lease {
                    read_index,
                    lowest_applied,
                } => Renewed::Lease {
                    read_index,
                    lowest: lowest_applied,
                },
                Answer::Down => Renewed::Down,
                Answer::NotLeader => Renewed::NotLeader,
            };
            self.reply(ctx, from, Message::Renewed(call, renewed));
        }
    }

    /// A ReadIndex of meta: a round of a quorum confirms that this node leads.
    pub fn begin_read(&mut self, ctx: &mut Ctx, reader: Reader) {
        let belief = ctx.belief(GroupId::META, self.idx);
        let log = &ctx.logs[&GroupId::META];
        let index = match log.is_led_by(self.idx, belief.term) {
            true => log.committed.max(log.first_of_term),
            false => 0,
        };
        let term = belief.term;
        let delay = match index {
            0 => 20 * MS,
            _ => ctx.rng.range(MS / 5, 8 * MS),
        };
        if belief.leader != Some(self.idx) {
            let index = None;
            ctx.input(self.idx, 0, Input::ReadDone { index, reader });
        } else if ctx.broken == Some(Broken::ReadIndex) {
            let index = Some(self.meta_applied());
            ctx.input(self.idx, 0, Input::ReadDone { index, reader });
        } else {
            let confirm = Input::ReadConfirm {
                term,
                index,
                reader,
            };
            ctx.input(self.idx, delay, confirm);
        }
    }

    pub fn confirm_read(&mut self, ctx: &mut Ctx, (term, index): (u64, u64), reader: Reader) {
        let log = &ctx.logs[&GroupId::META];
        let leads = log.is_led_by(self.idx, term) && index > 0;
        if leads && ctx.has_quorum(GroupId::META, self.idx) {
            let delay = ctx.rng.below(20 * MS);
            let index = Some(index);
            ctx.input(self.idx, delay, Input::ReadDone { index, reader });
        } else if ctx.belief(GroupId::META, self.idx).term == term {
            self.begin_read(ctx, reader);
        } else {
            let index = None;
            ctx.input(self.idx, 0, Input::ReadDone { index, reader });
        }
    }

    pub fn read_done(&mut self, ctx: &mut Ctx, index: Option<u64>, reader: Reader) {
        match reader {
            Reader::Keeper(number) if number == self.keeper_read => {
                self.take_members(ctx);
                self.keeper.handle_read(index, ctx.boot_ns(self.idx));
            }
            Reader::Keeper(_) => {}
            Reader::Call { from, call } => self.reply(ctx, from, Message::ReadIs(call, index)),
        }
    }

    // ---- session groups ----

    pub fn duty_tick(&mut self, ctx: &mut Ctx) {
        ctx.input(self.idx, 100 * MS, Input::DutyTick);
        let groups: Vec<GroupId> = self.duties.keys().copied().collect();
        groups.iter().for_each(|group| self.keep_time(ctx, *group));
        for group in groups.into_iter().filter(|group| *group != GroupId::META) {
            let leads = self.me().is_some() && self.leads(ctx, group) && self.has_lease(ctx);
            if leads {
                self.round(ctx, group);
                self.tell_homes(ctx, group);
                self.publish_wills(ctx, group);
            }
            if let Some(duty) = self.duties.get_mut(&group) {
                duty.led = leads;
            }
        }
    }

    fn is_gone(&self, node: NodeRef) -> bool {
        self.meta().is_gone(node)
    }

    fn round(&mut self, ctx: &mut Ctx, group: GroupId) {
        let at = ctx.instant(self.idx);
        let duty = &self.duties[&group];
        let (Some(state), 0) = (self.group(group), duty.open) else {
            return;
        };
        let now = self.replicas[&group].time.at_ms(at);
        let mut commands = state.due(now, 100);
        if duty.reconcile || !duty.led {
            commands.extend(state.orphans(|node| !self.is_gone(node), 100));
            let homes = state.untold().homes().into_iter();
            let gone = homes.filter(|home| self.is_gone(*home));
            commands.extend(gone.map(|home| {
                Session::HomeGone(HomeGone {
                    node_id: home.node.0,
                    incarnation: home.incarnation,
                })
            }));
        }
        let silent = duty.told.iter();
        let silent = silent.filter(|ended| state.untold().contains(ended));
        commands.extend(silent.map(|ended| {
            Session::Told(Told {
                node_id: ended.home.node.0,
                client: ended.client.clone(),
                epoch: ended.epoch,
            })
        }));
        if let Some(duty) = self.duties.get_mut(&group) {
            duty.told.clear();
            duty.reconcile = false;
            duty.open = commands.len();
        }
        for command in commands {
            self.propose_session(ctx, group, command, Ticket::Duty(group));
        }
    }

    fn publish_wills(&mut self, ctx: &mut Ctx, group: GroupId) {
        let at = ctx.instant(self.idx);
        let Some(state) = self.group(group) else {
            return;
        };
        let now = self.replicas[&group].time.at_ms(at);
        let floor = state.outbox().floor();
        let publishing = &self.duties[&group].publishing;
        let next = state
            .outbox()
            .publishable(now)
            .filter(|(key, _)| !publishing.contains(key));
        let next: Vec<(u64, Option<u64>)> = next
            .map(|(key, fired)| (key, message_of(&fired.will.payload)))
            .collect();
        for (key, message) in next {
            if let Some(duty) = self.duties.get_mut(&group) {
                duty.publishing.insert(key);
            }
            let key = WillKey {
                group: group.0,
                key,
                floor,
            };
            if let Some(message) = message {
                self.fan_out_will(ctx, message, key);
            }
        }
    }

    pub fn will_placed(&mut self, ctx: &mut Ctx, key: WillKey) {
        let (group, key) = (GroupId(key.group), key.key);
        let done = Session::WillDone(WillDone { key });
        self.propose_session(ctx, group, done, Ticket::WillDone(group, key));
    }

    /// The leader tells former homes what is over, by the state.
    fn tell_homes(&mut self, ctx: &mut Ctx, group: GroupId) {
        if ctx.broken == Some(Broken::Untold) {
            return;
        }
        let now = self.replicas[&group].time.at_ms(ctx.instant(self.idx));
        let telling = &self.duties[&group].telling;
        let Some(state) = self.group(group) else {
            return;
        };
        for ended in state.untold().due(now, telling, 8) {
            if let Some(duty) = self.duties.get_mut(&group) {
                duty.telling.insert(ended.clone());
            }
            self.kick(ctx, kick_of(&ended));
        }
    }

    /// A home has ended what it was told, or is no more.
    pub fn home_told(&mut self, ctx: &Ctx, kick: Kick) {
        let ended = Ended {
            home: kick.node,
            client: client_id(kick.client),
            epoch: kick.epoch,
        };
        let group = group_of(kick.client, ctx.logs.len() as u32 - 1);
        if let Some(duty) = self.duties.get_mut(&group)
            && duty.telling.remove(&ended)
        {
            duty.told.push(ended);
        }
    }

    /// A home whose own replica knows waits for nobody; Opens of nodes that are no more are found.
    pub fn ended_and_opened(
        &mut self,
        ctx: &mut Ctx,
        group: GroupId,
        ended: Vec<Ended>,
        openers: BTreeSet<NodeRef>,
    ) {
        if openers.into_iter().any(|node| self.is_gone(node))
            && let Some(duty) = self.duties.get_mut(&group)
        {
            duty.reconcile = true;
        }
        let Some(me) = self.me() else { return };
        for ended in ended.into_iter().filter(|ended| ended.home == me) {
            self.kick(ctx, kick_of(&ended));
        }
    }

    /// Former homes that have not heard what is over, for the end of a simulation.
    pub fn untold(&self) -> usize {
        let groups = self.replicas.keys().filter_map(|group| self.group(*group));
        groups.map(|state| state.untold().iter().count()).sum()
    }
}

fn kick_of(ended: &Ended) -> Kick {
    Kick {
        client: client_of(&ended.client).expect("it was made here"),
        epoch: ended.epoch,
        node: ended.home,
    }
}
