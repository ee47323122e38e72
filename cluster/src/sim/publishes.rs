//! Publishes of the clients of a node in a simulation, and what is retained.

use bytes::Bytes;
use flotte_proto::meta_command::Command as Meta;
use flotte_proto::{Retain, RetainBegin, RetainPart, RetainedMessage, WillKey};

use super::ctx::{Broken, Ctx};
use super::life::{Call, Ticket};
use super::links::Placing;
use super::message::Message;
use super::net::MS;
use super::process::Process;
use super::sessions::Ack;
use super::topics::{TOPICS, client_id, index_of_topic, matches, message_of, payload};
use crate::id::GroupId;

impl Process {
    // ---- retained messages ----

    /// SUBACK was sent: what is retained follows, as of a ReadIndex begun now.
    pub fn want_replay(&mut self, ctx: &mut Ctx, conn: usize, filter: usize) {
        let Some(me) = self.me() else { return };
        if !ctx.oracle.is_subscribed(conn, filter) {
            return;
        }
        let leader = ctx.belief(GroupId::META, self.idx).leader;
        let call = Call::Read {
            incarnation: me.incarnation,
            conn,
            filter,
        };
        self.call(
            ctx,
            (leader.unwrap_or(self.idx), 500 * MS),
            call,
            Message::Read,
        );
    }

    pub fn replay(&mut self, ctx: &mut Ctx, conn: usize, filter: usize, index: u64) {
        let mut items = Vec::new();
        let tree = self.meta().retained().tree();
        tree.page(&super::topics::filter(filter), None, 1_000, |retained| {
            let topic = index_of_topic(retained.topic());
            if let Some(topic) = topic.filter(|_| retained.index() <= index) {
                let message = message_of(retained.payload());
                items.push((topic, message.unwrap_or(0), retained.index()));
            }
        });
        ctx.oracle.replayed((conn, filter), index, &items);
    }

    // ---- publishes ----

    pub fn publish(&mut self, ctx: &mut Ctx, conn: usize, message: u64) {
        let msg = ctx.messages[message as usize];
        if !msg.retain {
            return self.route(ctx, message, Placing::Publish(message));
        }
        if let Some(connected) = self.sessions().and_then(|s| s.connected.get_mut(&conn)) {
            connected.retaining = true;
        }
        let mut retained = RetainedMessage {
            topic: TOPICS[msg.topic].into(),
            qos: 1,
            payload: payload(message),
            publisher: client_id(ctx.conns[conn].client),
            ..RetainedMessage::default()
        };
        let mut assembly = 0;
        if message.is_multiple_of(2) {
            assembly = message + 1;
            let payload = std::mem::take(&mut retained.payload);
            self.propose_parts(ctx, assembly, &retained, payload);
        }
        let retain = Retain {
            message: Some(retained),
            assembly,
            ..Retain::default()
        };
        if ctx.broken == Some(Broken::RetainedEarly) {
            self.route(ctx, message, Placing::Publish(message));
        }
        self.propose_meta(ctx, Meta::Retain(retain), Ticket::Retain(message));
    }

    /// As a large payload goes: in parts, which a crash or the loss of a batch may come between.
    fn propose_parts(
        &mut self,
        ctx: &mut Ctx,
        number: u64,
        retained: &RetainedMessage,
        payload: Bytes,
    ) {
        let middle = payload.len() / 2;
        let begin = RetainBegin {
            topic: retained.topic.clone(),
            payload_bytes: payload.len() as u64,
            bytes: (retained.topic.len() + payload.len()) as u64,
            ..RetainBegin::default()
        };
        for (offset, end) in [(0, middle), (middle, payload.len())] {
            let part = RetainPart {
                number,
                offset: offset as u64,
                data: payload.slice(offset..end),
                begin: (offset == 0).then(|| begin.clone()),
            };
            self.propose_meta(ctx, Meta::RetainPart(part), Ticket::Quiet);
        }
    }

    /// A retained publish is committed and applied here: only now it is matched.
    pub fn retained(&mut self, ctx: &mut Ctx, message: u64, index: u64) {
        let conn = ctx.messages[message as usize].conn;
        ctx.oracle.retained(message, index);
        if ctx.broken != Some(Broken::RetainedEarly) {
            self.route(ctx, message, Placing::Publish(message));
        }
        loop {
            let Some(connected) = self.sessions().and_then(|s| s.connected.get_mut(&conn)) else {
                return;
            };
            connected.retaining = false;
            let Some(next) = connected.blocked.pop_front() else {
                return;
            };
            self.publish(ctx, conn, next);
            if ctx.messages[next as usize].retain {
                return;
            }
        }
    }

    pub fn fan_out_will(&mut self, ctx: &mut Ctx, message: u64, key: WillKey) {
        self.route(ctx, message, Placing::Will(key));
    }

    /// All that were to place a message have done so.
    pub fn placed(&mut self, ctx: &mut Ctx, placing: Placing) {
        match placing {
            Placing::Publish(message) => {
                if let Some(sessions) = self.sessions() {
                    sessions.acks.push_back(Ack::Publish(message));
                }
            }
            Placing::Will(key) => self.will_placed(ctx, key),
        }
    }

    pub fn deliver_here(&mut self, ctx: &mut Ctx, message: u64) {
        let msg = ctx.messages[message as usize];
        let Some(sessions) = self.sessions() else {
            return;
        };
        let wants = |connected: &super::sessions::Connected| {
            let mut filters = connected.filters.keys();
            filters.any(|filter| matches(*filter, msg.topic))
        };
        let all = sessions.connected.iter();
        let targets = all.filter(|(_, connected)| wants(connected));
        for (conn, _) in targets {
            ctx.oracle.delivered(*conn, message, msg);
        }
    }
}
