//! Links of a node in a simulation: publishes on their way to other nodes, through streams that break.

use flotte_proto::{Forward, WillKey};

use super::ctx::{Broken, Ctx};
use super::message::{Input, Message};
use super::net::{MS, Stream};
use super::process::Process;
use super::topics::{TOPICS, message_of, payload};
use crate::id::{NodeId, NodeRef};
use crate::link::{Arrival, LinkLimits, Placed, Sender};

const LIMITS: LinkLimits = LinkLimits {
    messages: 1_000,
    bytes: 1 << 20,
    large_bytes: 1 << 20,
    kept_messages: 10,
    kept_bytes: 1 << 20,
};
const RETRY: u64 = 50 * MS;
/// A connection that is not made after so long is tried anew.
const CONNECT_TIMEOUT: u64 = 1_000 * MS;

/// What is being placed at other nodes.
#[derive(Debug, Clone, Copy)]
pub enum Placing {
    Publish(u64),
    Will(WillKey),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Connection {
    Off,
    /// Since when it is being made.
    Connecting(u64, u64),
    On(u64),
}

pub struct LinkOut {
    to: NodeRef,
    sender: Sender<u64>,
    connection: Connection,
}

/// What came over a link.
pub struct Frame {
    from: usize,
    link: u64,
    sender: NodeRef,
    messages: Vec<Forward>,
}

impl Process {
    /// Puts a message on all its ways.
    pub fn route(&mut self, ctx: &mut Ctx, message: u64, placing: Placing) {
        let Some(me) = self.me() else { return };
        let msg = ctx.messages[message as usize];
        let will = match placing {
            Placing::Will(key) => Some(key),
            Placing::Publish(_) => None,
        };
        if will.is_none() {
            ctx.oracle.matched(message, msg);
        }
        if will.is_none_or(|key| self.is_new_will(ctx, &key)) {
            self.deliver_here(ctx, message);
        }
        let mut nodes = self.meta().routes().destinations(TOPICS[msg.topic]).nodes;
        nodes.retain(|node| node.node != me.node);
        ctx.note(|| format!("{me}: message {message} goes to {nodes:?}"));
        let number = ctx.next_id();
        let Some(life) = &mut self.life else { return };
        life.placings.insert(number, (placing, nodes.len() + 1));
        for node in nodes {
            self.push(ctx, node, number, (message, will));
        }
        self.one_placed(ctx, number);
    }

    fn is_new_will(&mut self, ctx: &Ctx, key: &WillKey) -> bool {
        self.wills.insert(key) || ctx.broken == Some(Broken::WillKeys)
    }

    fn one_placed(&mut self, ctx: &mut Ctx, number: u64) {
        let Some(life) = &mut self.life else { return };
        let Some((placing, left)) = life.placings.get_mut(&number) else {
            return;
        };
        *left -= 1;
        if *left == 0 {
            let placing = *placing;
            life.placings.remove(&number);
            self.placed(ctx, placing);
        }
    }

    fn all_placed(&mut self, ctx: &mut Ctx, placed: Vec<(u64, Placed)>) {
        for (number, _) in placed {
            self.one_placed(ctx, number);
        }
    }

    fn push(
        &mut self,
        ctx: &mut Ctx,
        to: NodeRef,
        number: u64,
        (message, will): (u64, Option<WillKey>),
    ) {
        let is_gone = self.meta().is_gone(to);
        let Some(life) = &mut self.life else { return };
        let known = life.links.get(&to.node).map(|link| link.to.incarnation);
        if is_gone || known.is_some_and(|incarnation| incarnation > to.incarnation) {
            return self.one_placed(ctx, number);
        }
        if known != Some(to.incarnation) {
            let link = LinkOut {
                to,
                sender: Sender::new(LIMITS),
                connection: Connection::Off,
            };
            let older = life.links.insert(to.node, link);
            if let Some(mut older) = older {
                let placed = older.sender.end();
                self.all_placed(ctx, placed);
            }
            ctx.input(self.idx, MS, Input::LinkRetry(to.node));
        }
        let Some(life) = &mut self.life else { return };
        let forward = Forward {
            payload: payload(message),
            will,
            all: true,
            ..Forward::default()
        };
        ctx.oracle.linked((life.me, to), message);
        if let Some(link) = life.links.get_mut(&to.node) {
            link.sender.push(forward, Some(number));
        }
    }

    /// Links to nodes that are no more end; whoever waits there is told so.
    pub fn end_links(&mut self, ctx: &mut Ctx) {
        let Some(life) = &self.life else { return };
        let links = life.links.values().map(|link| link.to);
        let gone: Vec<NodeRef> = links.filter(|to| self.meta().is_gone(*to)).collect();
        for node in gone {
            let life = self.life.as_mut();
            let link = life.and_then(|life| life.links.remove(&node.node));
            if let Some(mut link) = link {
                let placed = link.sender.end();
                self.all_placed(ctx, placed);
            }
        }
    }

    fn link_to(&mut self, node: NodeId) -> Option<&mut LinkOut> {
        self.life.as_mut()?.links.get_mut(&node)
    }

    pub fn connect_link(&mut self, ctx: &mut Ctx, node: NodeId) {
        let number = ctx.next_id();
        let now = ctx.now;
        let Some(me) = self.me() else { return };
        let Some(link) = self.link_to(node) else {
            return;
        };
        let is_due = match link.connection {
            Connection::Off => true,
            Connection::Connecting(_, since) => now - since >= CONNECT_TIMEOUT,
            Connection::On(_) => return,
        };
        let to = link.to;
        if is_due {
            link.connection = Connection::Connecting(number, now);
            let connect = Message::Connect {
                link: number,
                sender: me,
                to: to.incarnation,
            };
            ctx.send(self.idx, ctx.node_of(node), Stream::Link, connect);
        }
        ctx.input(self.idx, CONNECT_TIMEOUT, Input::LinkRetry(node));
    }

    pub fn link_broken(&mut self, ctx: &mut Ctx, node: usize) {
        let id = super::ctx::id_of(node);
        if let Some(link) = self.link_to(id) {
            link.sender.handle_disconnected();
            link.connection = Connection::Off;
            ctx.input(self.idx, RETRY, Input::LinkRetry(id));
        }
    }

    pub fn link_refused(&mut self, ctx: &mut Ctx, from: usize, number: u64) {
        let id = super::ctx::id_of(from);
        if let Some(link) = self.link_to(id)
            && matches!(link.connection, Connection::Connecting(of, _) if of == number)
        {
            link.connection = Connection::Off;
            ctx.input(self.idx, RETRY, Input::LinkRetry(id));
        }
    }

    pub fn link_resumed(&mut self, ctx: &mut Ctx, from: usize, number: u64, acked: u64) {
        let id = super::ctx::id_of(from);
        if let Some(link) = self.link_to(id)
            && matches!(link.connection, Connection::Connecting(of, _) if of == number)
        {
            link.connection = Connection::On(number);
            let placed = link.sender.handle_resumed(acked, &[], &[]);
            self.all_placed(ctx, placed);
        }
    }

    pub fn link_acked(&mut self, ctx: &mut Ctx, from: usize, number: u64, acked: u64) {
        let id = super::ctx::id_of(from);
        if let Some(link) = self.link_to(id)
            && link.connection == Connection::On(number)
        {
            let placed = link.sender.handle_ack(acked, &[], &[]);
            self.all_placed(ctx, placed);
        }
    }

    /// Another node calls on this one.
    pub fn accept_link(
        &mut self,
        ctx: &mut Ctx,
        from: usize,
        link: u64,
        (sender, to): (NodeRef, u64),
    ) {
        let is_meant = self.me().is_some_and(|me| me.incarnation == to);
        let member = self.meta().members().get(&sender.node);
        let is_stale = member.is_none_or(|member| {
            let known = member.incarnation;
            sender.incarnation < known || sender.incarnation == known && !member.up
        });
        let knows = ctx.broken != Some(Broken::LinkRepeats);
        let answer = match &mut self.life {
            Some(life) if is_meant && !is_stale => {
                life.accepted.insert(link);
                Message::Resumed {
                    link,
                    acked: if knows { life.receiver.last(sender) } else { 0 },
                }
            }
            _ => Message::LinkRefused(link),
        };
        ctx.send(self.idx, from, Stream::Link, answer);
    }

    pub fn take_frame(
        &mut self,
        ctx: &mut Ctx,
        (from, link): (usize, u64),
        sender: NodeRef,
        messages: Vec<Forward>,
    ) {
        let life = self.life.as_mut();
        // A connection ends with the start of the node that took it.
        match life.filter(|life| life.accepted.contains(&link)) {
            Some(life) => life.held.push_back(Frame {
                from,
                link,
                sender,
                messages,
            }),
            None => ctx.send(self.idx, from, Stream::Link, Message::LinkGap(link)),
        }
    }

    pub fn pump_links(&mut self, ctx: &mut Ctx) {
        let has_lease = self.has_lease(ctx);
        while let Some(frame) = self
            .life
            .as_mut()
            .filter(|life| life.up && has_lease)
            .and_then(|life| life.held.pop_front())
        {
            self.deliver_frame(ctx, frame);
        }
        let Some(life) = &mut self.life else { return };
        let mut frames = Vec::new();
        for link in life.links.values_mut() {
            let Connection::On(number) = link.connection else {
                continue;
            };
            let messages = link.sender.poll_frame();
            if !messages.is_empty() {
                frames.push((ctx.node_of(link.to.node), number, messages));
            }
        }
        let sender = life.me;
        for (to, link, messages) in frames {
            let frame = Message::Frame {
                link,
                sender,
                messages,
            };
            ctx.send(self.idx, to, Stream::Link, frame);
        }
    }

    /// Delivers what a link brought, under the lease.
    fn deliver_frame(&mut self, ctx: &mut Ctx, frame: Frame) {
        for mut forward in frame.messages {
            let Some(life) = &mut self.life else { return };
            let me = life.me;
            let message = message_of(&forward.payload).unwrap_or(0);
            match life.receiver.handle(frame.sender, &mut forward) {
                Arrival::New => {
                    ctx.oracle.arrived((frame.sender, me), message);
                    if forward.will.is_none_or(|key| self.is_new_will(ctx, &key)) {
                        self.deliver_here(ctx, message);
                    }
                }
                Arrival::Repeat if ctx.broken == Some(Broken::LinkRepeats) => {
                    ctx.oracle.arrived((frame.sender, me), message);
                    self.deliver_here(ctx, message);
                }
                Arrival::Repeat => {}
                // The stream has to be made anew.
                Arrival::Gap | Arrival::Gone => {
                    let refused = Message::LinkGap(frame.link);
                    return ctx.send(self.idx, frame.from, Stream::Link, refused);
                }
            }
        }
        let Some(life) = &self.life else { return };
        let acked = Message::Acked {
            link: frame.link,
            acked: life.receiver.last(frame.sender),
        };
        ctx.send(self.idx, frame.from, Stream::Link, acked);
    }

    /// The other end ended the connection, or found something missing.
    pub fn link_gap(&mut self, ctx: &mut Ctx, from: usize, number: u64) {
        let id = super::ctx::id_of(from);
        if self
            .link_to(id)
            .is_some_and(|link| link.connection == Connection::On(number))
        {
            self.link_broken(ctx, from);
        }
    }
}
