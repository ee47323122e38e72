//! State time between processes, as the runtime has it; and whether a jump of it was allowed.

use std::collections::BTreeSet;
use std::time::Duration;

use super::ctx::{Broken, Ctx, T, id_of};
use super::life::Call;
use super::message::Message;
use super::net::MS;
use super::process::Process;
use crate::id::{GroupId, NodeId};
use crate::state_time::{Stamp, Survey, Told, Verdict};

/// When a survey began, and the nodes that carried the time and could be asked then.
pub type Expected = (u64, BTreeSet<usize>);

const ASK_TIMEOUT: u64 = 100 * MS;

impl Ctx {
    /// Other nodes that carry a group's time and would answer if they were asked now.
    fn carriers(&self, group: GroupId, me: usize) -> BTreeSet<usize> {
        let others = self.logs[&group].replicas.iter().copied();
        let answers = |node: &usize| self.machines[*node].works() && self.net.is_whole(me, *node);
        let carries = |node: &usize| self.oracle.carriers.contains(&(group, *node));
        others
            .filter(|node| *node != me && answers(node) && carries(node))
            .collect()
    }
}

impl Process {
    /// Has a replica carry its group's time.
    pub fn keep_time(&mut self, ctx: &mut Ctx, group: GroupId) {
        if self.replicas[&group].time.carried().is_some() {
            return;
        }
        let belief = ctx.belief(group, self.idx);
        match belief.leader {
            Some(leader) if leader == self.idx => self.survey(ctx, group, belief.term),
            Some(leader) => self.ask_time(ctx, group, (leader, belief.term)),
            None => {}
        }
    }

    /// The leader asks all others, once all that was committed before is applied here.
    fn survey(&mut self, ctx: &mut Ctx, group: GroupId, term: u64) {
        let log = &ctx.logs[&group];
        let has_all = self.replicas[&group].applied >= log.first_of_term;
        let replicas = log.replicas.clone();
        if !log.is_led_by(self.idx, term) || !has_all {
            return;
        }
        let at = ctx.instant(self.idx);
        let wall = Stamp::of_ms(ctx.machines[self.idx].wall_ms(ctx.now), at);
        let expected = (ctx.now, ctx.carriers(group, self.idx));
        if ctx.broken == Some(Broken::Survey) {
            return self.jump(ctx, group, wall, &expected);
        }
        let Some(leading) = self.leaders.get_mut(&group) else {
            return;
        };
        if leading.survey.as_ref().is_none_or(|(of, ..)| *of != term) {
            let voters = replicas.iter().map(|node| id_of(*node));
            let until = at + Duration::from_nanos(T);
            let survey = Survey::new((id_of(self.idx), wall), voters, [], until);
            leading.survey = Some((term, survey, expected));
        }
        let silent: Vec<NodeId> = leading
            .survey
            .iter()
            .flat_map(|(_, survey, _)| survey.silent())
            .collect();
        for node in silent {
            self.ask_time(ctx, group, (ctx.node_of(node), term));
        }
        self.judge_time(ctx, group);
    }

    fn ask_time(&mut self, ctx: &mut Ctx, group: GroupId, (to, term): (usize, u64)) {
        let node = id_of(to);
        let call = Call::Time { group, node, term };
        self.call(
            ctx,
            (to, ASK_TIMEOUT.max(ctx.net.slowness * 3)),
            call,
            |call| Message::Time { call, group },
        );
    }

    pub fn tell_time(&mut self, ctx: &mut Ctx, from: usize, call: u64, group: GroupId) {
        let replica = &self.replicas[&group];
        let at = ctx.instant(self.idx);
        let told = Told {
            carried_ms: replica.time.carried().map(|carried| carried.ms_at(at)),
            wall_ms: ctx.machines[self.idx].wall_ms(ctx.now),
        };
        let applied = replica.applied;
        self.reply(ctx, from, Message::TimeIs(call, told, applied));
    }

    pub fn told_time(
        &mut self,
        ctx: &mut Ctx,
        group: GroupId,
        (node, term): (NodeId, u64),
        answer: Option<Message>,
    ) {
        let Some(Message::TimeIs(_, told, applied)) = answer else {
            return;
        };
        let at = ctx.instant(self.idx);
        let survey = self.leaders.get_mut(&group).and_then(|l| l.survey.as_mut());
        if let Some((of, survey, _)) = survey
            && *of == term
        {
            survey.handle_told(node, told, at);
            return self.judge_time(ctx, group);
        }
        let replica = &self.replicas[&group];
        // What is not applied yet would set it back: it is asked again.
        if let Some(ms) = told.carried_ms
            && replica.applied >= applied
        {
            self.carry(ctx, group, Stamp::of_ms(ms, at));
        }
    }

    fn judge_time(&mut self, ctx: &mut Ctx, group: GroupId) {
        let belief = ctx.belief(group, self.idx);
        let at = ctx.instant(self.idx);
        let survey = self.leaders.get_mut(&group).and_then(|l| l.survey.take());
        let Some((term, survey, expected)) = survey else {
            return;
        };
        if (belief.leader, belief.term) != (Some(self.idx), term) {
            return;
        }
        match survey.verdict(at) {
            Some(Verdict::Carried(stamp)) => self.carry(ctx, group, stamp),
            Some(Verdict::Jump(stamp)) => self.jump(ctx, group, stamp, &expected),
            None => {
                if let Some(leading) = self.leaders.get_mut(&group) {
                    leading.survey = Some((term, survey, expected));
                }
            }
        }
    }

    /// Nobody disturbed whoever carried the time and could be asked: it had to be asked.
    fn jump(&mut self, ctx: &mut Ctx, group: GroupId, to: Stamp, (begin, expected): &Expected) {
        let at = ctx.instant(self.idx);
        let now = ctx.now;
        let carriers = ctx.carriers(group, self.idx);
        let forgotten = carriers.intersection(expected).next();
        if let Some(node) = forgotten
            && ctx.calm_since < *begin
        {
            let me = self.idx;
            let what = format!("node {me} makes it jump, and node {node} carried it");
            ctx.oracle
                .fail("state time", format!("group {group}: {what}"));
        }
        self.carry(ctx, group, to);
        let time_ms = self.replicas[&group].time.at_ms(at);
        ctx.oracle.time_jumped(group, time_ms, now);
    }

    fn carry(&mut self, ctx: &mut Ctx, group: GroupId, stamp: Stamp) {
        let idx = self.idx;
        self.replicas[&group].time.carry(stamp);
        ctx.oracle.carriers.insert((group, idx));
        ctx.note(|| format!("node {idx} carries the time of group {group}"));
        self.gather_again(ctx, group);
    }
}
