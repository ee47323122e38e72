//! Clients of a node in a simulation that connect: their Opens, conflicts with other nodes, and the former connections.

use std::collections::{BTreeMap, VecDeque};

use flotte_proto::session_command::Command as Session;
use flotte_proto::{Open, OpenReply, Will};

use super::ctx::{Broken, Ctx};
use super::life::Ticket;
use super::message::{Input, Kick};
use super::net::MS;
use super::process::Process;
use super::sessions::{Connected, End};
use super::topics::{TOPICS, client_id, group_of, payload};
use crate::group::node_ref;

const FORMER_WAIT: u64 = 500 * MS;
const CONTEST: u64 = 2_000 * MS;

/// A connection that waits for its Open or for the former one.
#[derive(Debug)]
pub struct Opening {
    pub open: Open,
    pub since: u64,
    /// None = it waits for its Open.
    pub epoch: Option<u64>,
}

impl Process {
    pub fn open(&mut self, ctx: &mut Ctx, conn: usize) {
        let client = ctx.conns[conn].client;
        let (will, expiry_s) = (ctx.conns[conn].will, ctx.conns[conn].expiry_s);
        let Some(life) = &mut self.life else { return };
        life.sessions.pending.entry(client).or_default().0 += 1;
        let up_index = life.up_index;
        let will = will.map(|(delay_s, message)| Will {
            topic: TOPICS[super::topics::WILLS].into(),
            qos: 1,
            payload: payload(message),
            delay_s,
            ..Will::default()
        });
        let open = Open {
            client: client_id(client),
            clean: expiry_s == 0,
            expiry_s,
            will,
            up_index,
            displaces: 0,
        };
        let group = group_of(client, ctx.logs.len() as u32 - 1);
        let seen = self.group(group).map_or(0, |state| state.last_epoch());
        let opening = Opening {
            open,
            since: ctx.now,
            epoch: None,
        };
        if let Some(sessions) = self.sessions() {
            sessions.opening.insert(conn, opening);
        }
        self.propose_open(ctx, conn, seen);
    }

    fn propose_open(&mut self, ctx: &mut Ctx, conn: usize, displaces: u64) {
        let group = group_of(ctx.conns[conn].client, ctx.logs.len() as u32 - 1);
        let displaces = match ctx.broken {
            Some(Broken::Displaces) => u64::MAX,
            _ => displaces,
        };
        let opening = self.sessions().and_then(|s| s.opening.get(&conn));
        let Some(open) = opening.map(|opening| opening.open.clone()) else {
            return;
        };
        let open = Session::Open(Open { displaces, ..open });
        self.propose_session(ctx, group, open, Ticket::Open(conn));
    }

    /// Another node has opened the client since: once more, for as long as the client waits for it here.
    fn contest(&mut self, ctx: &mut Ctx, conn: usize, conflict: u64) {
        let client = ctx.conns[conn].client;
        let Some(sessions) = self.sessions() else {
            return;
        };
        let since = sessions.opening.get(&conn).map_or(0, |o| o.since);
        let later = |other: &usize| *other > conn && ctx.conns[*other].client == client;
        let is_latest = !sessions.all_conns().iter().any(later);
        let is_wanted = is_latest && !sessions.vanished.contains(&conn);
        if is_wanted && ctx.now - since < CONTEST {
            return self.propose_open(ctx, conn, conflict);
        }
        ctx.note(|| format!("c{client}, conn {conn} is refused for epoch {conflict}"));
        sessions.opening.remove(&conn);
        sessions.vanished.remove(&conn);
        sessions.settle(client);
        ctx.closed(conn);
    }

    pub fn open_committed(&mut self, ctx: &mut Ctx, conn: usize, reply: &OpenReply) {
        let client = ctx.conns[conn].client;
        let Some(sessions) = self.sessions() else {
            return;
        };
        if reply.conflict > 0 {
            return self.contest(ctx, conn, reply.conflict);
        }
        if let Some(opening) = sessions.opening.get_mut(&conn) {
            opening.epoch = Some(reply.epoch);
        }
        match reply.former {
            None => self.former_waited(ctx, conn),
            Some(former) => {
                let kick = Kick {
                    client,
                    epoch: former.epoch,
                    node: node_ref(former),
                };
                ctx.input(self.idx, FORMER_WAIT, Input::FormerWaited(conn));
                self.kick_for(ctx, kick, Some(conn));
            }
        }
    }

    /// The former connection is closed, or was waited for long enough.
    pub fn former_waited(&mut self, ctx: &mut Ctx, conn: usize) {
        let client = ctx.conns[conn].client;
        let Some(life) = &mut self.life else { return };
        let (me, sessions) = (life.me, &mut life.sessions);
        let Some(epoch) = sessions.opening.get(&conn).and_then(|o| o.epoch) else {
            return;
        };
        sessions.opening.remove(&conn);
        let kicked = sessions.settle(client) >= epoch;
        let former = sessions.by_client.get(&client).copied();
        let newer = former.and_then(|former| sessions.connected.get(&former));
        if kicked || newer.is_some_and(|newer| newer.epoch > epoch) {
            sessions.vanished.remove(&conn);
            ctx.closed(conn);
            return self.commit_close(ctx, client, epoch, true);
        }
        if let Some(former) = former {
            self.close(ctx, former, End::TakenOver);
        }
        let Some(sessions) = self.sessions() else {
            return;
        };
        let connected = Connected {
            client,
            epoch,
            filters: BTreeMap::new(),
            inbox: VecDeque::new(),
            retaining: false,
            blocked: VecDeque::new(),
        };
        sessions.connected.insert(conn, connected);
        sessions.by_client.insert(client, conn);
        if sessions.vanished.remove(&conn) {
            return self.close(ctx, conn, End::Vanished);
        }
        ctx.note(|| format!("{me}: c{client} is connected, conn {conn}, epoch {epoch}"));
        ctx.conns[conn].is_connected = true;
        ctx.oracle.opened(conn, client, me, epoch);
    }
}
