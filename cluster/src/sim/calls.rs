//! What a node of a simulation asks of others: proposals on their way to leaders, and calls with their answers.

use bytes::Bytes;
use flotte_proto::{Batch, MetaCommand, OpenReply, SessionCommand, meta_command, session_command};
use prost::Message as _;

use super::ctx::Ctx;
use super::life::{Call, Life, Ticket};
use super::message::{Input, Message, Proposed};
use super::net::MS;
use super::process::Process;
use crate::id::GroupId;
use crate::proposer::{Outcome, Waiting};

const PROPOSE_TIMEOUT: u64 = 2_000 * MS;

impl Process {
    pub fn propose_meta(&mut self, ctx: &mut Ctx, command: meta_command::Command, ticket: Ticket) {
        let command = MetaCommand {
            command: Some(command),
        };
        self.propose(ctx, GroupId::META, command.encode_to_vec().into(), ticket);
    }

    pub fn propose_session(
        &mut self,
        ctx: &mut Ctx,
        group: GroupId,
        command: session_command::Command,
        ticket: Ticket,
    ) {
        let command = SessionCommand {
            command: Some(command),
        };
        self.propose(ctx, group, command.encode_to_vec().into(), ticket);
    }

    fn propose(&mut self, ctx: &mut Ctx, group: GroupId, command: Bytes, ticket: Ticket) {
        let Some(life) = &mut self.life else { return };
        let me = life.me;
        if let Some(proposer) = life.proposers.get_mut(&group) {
            let ordinal = ctx.oracle.pushed(group, me, command.clone());
            if let Ticket::Open(conn) = ticket {
                ctx.oracle.opens.insert((group, me, ordinal), conn);
            }
            let ticket = (ordinal, ticket);
            proposer.core.push(Waiting { command, ticket });
        }
    }

    pub fn call(
        &mut self,
        ctx: &mut Ctx,
        (to, timeout): (usize, u64),
        call: Call,
        message: impl FnOnce(u64) -> Message,
    ) {
        let number = ctx.next_id();
        self.calls.insert(number, call);
        let is_reached = to == self.idx || ctx.net.seems_reached(self.idx, to, ctx.now);
        let timeout = if is_reached { timeout } else { MS };
        ctx.input(self.idx, timeout, Input::Timeout(number));
        if is_reached {
            self.reply(ctx, to, message(number));
        }
    }

    pub fn send_batches(&mut self, ctx: &mut Ctx) {
        let Some(life) = &mut self.life else { return };
        let incarnation = life.me.incarnation;
        let mut batches: Vec<(GroupId, Option<usize>, Batch)> = Vec::new();
        for (group, proposer) in &mut life.proposers {
            while let Some(batch) = (!proposer.pausing)
                .then(|| proposer.core.poll_send())
                .flatten()
            {
                batches.push((*group, proposer.hint, batch));
            }
        }
        for (group, hint, batch) in batches {
            let known = ctx.belief(group, self.idx).leader.or(hint);
            let replicas = &ctx.logs[&group].replicas;
            let any = ctx.rng.pick(replicas).unwrap_or(self.idx);
            let to = known.unwrap_or(any);
            let call = Call::Propose {
                group,
                incarnation,
                sequence: batch.sequence,
                to,
            };
            self.call(ctx, (to, PROPOSE_TIMEOUT), call, |call| Message::Propose {
                call,
                group,
                batch,
            });
        }
    }

    /// What a former leader still says comes too late to wait for.
    pub fn succeeded(&mut self, ctx: &mut Ctx, group: GroupId) {
        let Some(leader) = ctx.belief(group, self.idx).leader else {
            return;
        };
        let is_late = |call: &Call| match call {
            Call::Propose { group: of, to, .. } => *of == group && *to != leader,
            _ => false,
        };
        let late = self.calls.iter().filter(|(_, call)| is_late(call));
        let late: Vec<u64> = late.map(|(number, _)| *number).collect();
        for number in late {
            self.answered(ctx, number, None);
        }
    }

    pub fn retry(&mut self, _ctx: &mut Ctx, group: GroupId, incarnation: u64) {
        if let Some(life) = self.current(incarnation)
            && let Some(proposer) = life.proposers.get_mut(&group)
        {
            proposer.pausing = false;
        }
    }

    pub fn current(&mut self, incarnation: u64) -> Option<&mut Life> {
        self.life
            .as_mut()
            .filter(|life| life.me.incarnation == incarnation)
    }

    /// An answer came, or never will.
    pub fn answered(&mut self, ctx: &mut Ctx, number: u64, answer: Option<Message>) {
        let Some(call) = self.calls.remove(&number) else {
            return;
        };
        match call {
            Call::Propose {
                group,
                incarnation,
                sequence,
                ..
            } => self.proposed(ctx, (group, incarnation, sequence), answer),
            Call::Renew {
                incarnation,
                sent_ns,
            } => self.renewed(ctx, incarnation, sent_ns, answer),
            Call::Applied {
                incarnation,
                node,
                index,
            } => {
                let Some(life) = self.current(incarnation) else {
                    return;
                };
                match answer {
                    Some(Message::AppliedIs(_, is)) if is >= index => {
                        life.barrier.handle_applied(node, is)
                    }
                    _ => ctx.input(self.idx, 50 * MS, Input::AskAgain(node)),
                }
            }
            Call::Time { group, node, term } => self.told_time(ctx, group, (node, term), answer),
            Call::Kick { incarnation, kick } => {
                if self.current(incarnation).is_some() {
                    self.kick_answered(ctx, kick, answer.is_some());
                }
            }
            Call::Read {
                incarnation,
                conn,
                filter,
            } => {
                let Some(life) = self.current(incarnation) else {
                    return;
                };
                match answer {
                    Some(Message::ReadIs(_, Some(index))) => {
                        life.after_meta.push((index, Ticket::Replay(conn, filter)))
                    }
                    _ => ctx.input(self.idx, 50 * MS, Input::Replay { conn, filter }),
                }
            }
        }
    }

    fn proposed(
        &mut self,
        ctx: &mut Ctx,
        (group, incarnation, sequence): (GroupId, u64, u64),
        answer: Option<Message>,
    ) {
        let Some(life) = self.current(incarnation) else {
            return;
        };
        let me = life.me;
        let Some(proposer) = life.proposers.get_mut(&group) else {
            return;
        };
        let reply = match answer {
            Some(Message::Proposed(_, Proposed::Reply(reply))) => reply,
            Some(Message::Proposed(_, Proposed::NotLeader(hint))) => {
                proposer.hint = hint;
                return self.lost(ctx, group, sequence);
            }
            _ => {
                proposer.hint = None;
                return self.lost(ctx, group, sequence);
            }
        };
        match proposer.core.handle_reply(sequence, reply) {
            Outcome::Nothing => {}
            Outcome::Stale => self.end_life(ctx, "its proposals are stale"),
            Outcome::Refused(why) => ctx.oracle.fail("refused", format!("{me}: {why}")),
            Outcome::Applied(index, replies) => {
                for ((ordinal, ticket), reply) in replies {
                    ctx.oracle.resolved((group, me, ordinal), index, &reply);
                    self.resolved(ctx, index, ticket, &reply);
                }
            }
        }
    }

    fn lost(&mut self, ctx: &mut Ctx, group: GroupId, sequence: u64) {
        let Some(life) = &mut self.life else { return };
        let incarnation = life.me.incarnation;
        if let Some(proposer) = life.proposers.get_mut(&group) {
            proposer.core.handle_lost(sequence);
            proposer.pausing = true;
            ctx.input(self.idx, 20 * MS, Input::Retry(group, incarnation));
        }
    }

    fn resolved(&mut self, ctx: &mut Ctx, index: u64, ticket: Ticket, reply: &Bytes) {
        match ticket {
            Ticket::Up | Ticket::Route(..) | Ticket::Retain(_) | Ticket::Replay(..) => {
                if let Some(life) = &mut self.life {
                    life.after_meta.push((index, ticket));
                }
            }
            Ticket::Quiet => {}
            Ticket::Open(conn) => {
                let reply = OpenReply::decode(reply.clone()).expect("it was made by apply");
                self.open_committed(ctx, conn, &reply);
            }
            Ticket::Duty(group) => {
                if let Some(duty) = self.duties.get_mut(&group) {
                    duty.open = duty.open.saturating_sub(1);
                }
            }
            Ticket::WillDone(group, key) => {
                if let Some(duty) = self.duties.get_mut(&group) {
                    duty.publishing.remove(&key);
                }
            }
        }
    }
}
