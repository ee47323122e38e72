//! The clients of a node in a simulation: connections, subscriptions, publishes. It goes by the rules of the broker: a subscription is
//! registered, then its route committed, then the barrier passed, then SUBACK sent; nothing is read or acknowledged without the lease.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use flotte_mqtt::topic::SubscriptionFilter;
use flotte_proto::meta_command::Command as Meta;
use flotte_proto::session_command::Command as Session;
use flotte_proto::{Close, SetRoute};

use super::ctx::{Broken, Ctx};
use super::life::Ticket;
use super::message::{Input, Kick, Want};
use super::opening::Opening;
use super::process::Process;
use super::topics::{FILTERS, client_id, group_of};

/// A connection that was let in.
#[derive(Debug)]
pub struct Connected {
    pub client: usize,
    pub epoch: u64,
    /// Each with the number of the SUBSCRIBE since which it stands.
    pub filters: BTreeMap<usize, u64>,
    /// What the client sent and was not read yet.
    pub inbox: VecDeque<Want>,
    /// A retained publish is being committed; others wait behind it.
    pub retaining: bool,
    pub blocked: VecDeque<u64>,
}

/// A SUBSCRIBE that waits. Its number tells it from a later one of the same filter, with an UNSUBSCRIBE between them: what was
/// given up vouches for nothing.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    conn: usize,
    filter: usize,
    number: u64,
}

#[derive(Debug, Clone, Copy)]
pub enum Ack {
    Publish(u64),
    Subscribe(Asked),
}

/// A route with a proposal under way.
#[derive(Debug)]
struct Unsettled {
    wanted: bool,
    waiters: Vec<Asked>,
}

#[derive(Debug, Default)]
pub struct Sessions {
    pub connected: BTreeMap<usize, Connected>,
    pub by_client: BTreeMap<usize, usize>,
    /// Opens that have not come back, by client: how many, and the highest epoch kicked meanwhile.
    pub pending: BTreeMap<usize, (u32, u64)>,
    pub opening: BTreeMap<usize, Opening>,
    /// Went away meanwhile.
    pub vanished: BTreeSet<usize>,
    unsettled: BTreeMap<usize, Unsettled>,
    pub acks: VecDeque<Ack>,
    passed: Vec<Asked>,
    /// SUBSCRIBEs so far.
    asked: u64,
}

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Left,
    Vanished,
    TakenOver,
}

impl Sessions {
    pub fn all_conns(&self) -> Vec<usize> {
        let opening = self.opening.keys();
        self.connected.keys().chain(opening).copied().collect()
    }

    /// An Open has come back. Returns the highest epoch that was kicked meanwhile.
    pub fn settle(&mut self, client: usize) -> u64 {
        let pending = self.pending.entry(client).or_default();
        pending.0 = pending.0.saturating_sub(1);
        let (left, kicked) = *pending;
        if left == 0 {
            self.pending.remove(&client);
        }
        kicked
    }

    pub fn unfinished(&self) -> Option<String> {
        let is_done = self.opening.is_empty() && self.unsettled.is_empty() && self.acks.is_empty();
        let is_read = self.connected.values().all(|c| c.inbox.is_empty());
        (!is_done || !is_read).then(|| format!("clients wait: {self:?}"))
    }
}

impl Process {
    pub fn sessions(&mut self) -> Option<&mut Sessions> {
        Some(&mut self.life.as_mut()?.sessions)
    }

    pub fn client_wants(&mut self, ctx: &mut Ctx, conn: usize, want: Want) {
        let is_up = self.me().is_some() && self.has_lease(ctx);
        if want == Want::Connect {
            return match is_up {
                true => self.open(ctx, conn),
                false => ctx.closed(conn),
            };
        }
        let Some(sessions) = self.sessions() else {
            return;
        };
        if sessions.opening.contains_key(&conn) {
            if want == Want::Vanish {
                sessions.vanished.insert(conn);
            }
            return;
        }
        let Some(connected) = sessions.connected.get_mut(&conn) else {
            return;
        };
        match want {
            Want::Vanish => self.close(ctx, conn, End::Vanished),
            _ => connected.inbox.push_back(want),
        }
    }

    pub fn kicked(&mut self, ctx: &mut Ctx, kick: Kick) {
        let Some(sessions) = self.sessions() else {
            return;
        };
        if let Some(pending) = sessions.pending.get_mut(&kick.client) {
            pending.1 = pending.1.max(kick.epoch);
        }
        let held = sessions.by_client.get(&kick.client).copied();
        let is_meant = |conn: &usize| {
            let connected = sessions.connected.get(conn);
            connected.is_some_and(|connected| connected.epoch <= kick.epoch)
        };
        if let Some(conn) = held.filter(is_meant) {
            self.close(ctx, conn, End::TakenOver);
        }
    }

    pub fn close(&mut self, ctx: &mut Ctx, conn: usize, end: End) {
        let Some(sessions) = self.sessions() else {
            return;
        };
        let Some(connected) = sessions.connected.remove(&conn) else {
            return;
        };
        let client = connected.client;
        if sessions.by_client.get(&client) == Some(&conn) {
            sessions.by_client.remove(&client);
        }
        ctx.note(|| format!("c{client}, conn {conn}: {end:?}"));
        ctx.closed(conn);
        for filter in connected.filters.into_keys() {
            self.withdraw(ctx, filter);
        }
        self.commit_close(ctx, client, connected.epoch, end == End::Left);
    }

    pub fn commit_close(&mut self, ctx: &mut Ctx, client: usize, epoch: u64, discard_will: bool) {
        let group = group_of(client, ctx.logs.len() as u32 - 1);
        let id = client_id(client);
        let current = self.group(group).and_then(|state| state.client(&id));
        let epoch = match ctx.broken {
            Some(Broken::Epochs) => current.map_or(epoch, |client| client.epoch),
            _ => epoch,
        };
        let close = Close {
            client: id,
            epoch,
            discard_will,
            expiry_s: None,
        };
        self.propose_session(ctx, group, Session::Close(close), Ticket::Quiet);
    }

    // ---- reading and acknowledging ----

    pub fn pump_sessions(&mut self, ctx: &mut Ctx) {
        let has_lease = self.has_lease(ctx);
        let Some(life) = self.life.as_mut().filter(|life| life.up && has_lease) else {
            return;
        };
        let me = life.me;
        let passed = std::mem::take(&mut life.sessions.passed);
        let acks = passed.into_iter().map(Ack::Subscribe);
        life.sessions.acks.extend(acks);
        for ack in std::mem::take(&mut life.sessions.acks) {
            let (conn, number) = match ack {
                Ack::Publish(message) => (ctx.messages[message as usize].conn, message),
                Ack::Subscribe(asked) => (asked.conn, asked.filter as u64),
            };
            let Some(connected) = life.sessions.connected.get(&conn) else {
                continue;
            };
            ctx.oracle.serves(conn, me, (ctx.now, ctx.calm_since));
            match ack {
                Ack::Publish(message) => ctx.oracle.acked(message, me),
                Ack::Subscribe(asked) => {
                    let filter = asked.filter;
                    if connected.filters.get(&filter) != Some(&asked.number) {
                        continue;
                    }
                    ctx.oracle.subscribed(conn, filter, me, ctx.now);
                    ctx.input(self.idx, 0, Input::Replay { conn, filter });
                }
            }
            ctx.note(|| format!("{me}: conn {conn} is told {ack:?} {number}"));
        }
        let unread = life.sessions.connected.iter_mut();
        let unread: Vec<(usize, Want)> = unread
            .flat_map(|(conn, connected)| {
                let conn = *conn;
                connected.inbox.drain(..).map(move |want| (conn, want))
            })
            .collect();
        for (conn, want) in unread {
            self.read(ctx, conn, want);
        }
    }

    fn read(&mut self, ctx: &mut Ctx, conn: usize, want: Want) {
        let Some(me) = self.me() else { return };
        let Some(sessions) = self.sessions() else {
            return;
        };
        let Some(connected) = sessions.connected.get_mut(&conn) else {
            return;
        };
        ctx.note(|| format!("{me}: conn {conn} wants {want:?}"));
        match want {
            Want::Subscribe(filter) => {
                sessions.asked += 1;
                let number = *connected.filters.entry(filter).or_insert(sessions.asked);
                let asked = Asked {
                    conn,
                    filter,
                    number,
                };
                self.announce(ctx, asked);
            }
            Want::Unsubscribe(filter) => {
                if connected.filters.remove(&filter).is_some() {
                    ctx.oracle.unsubscribed(conn, filter);
                    self.withdraw(ctx, filter);
                }
            }
            Want::Publish(message) => {
                if connected.retaining {
                    connected.blocked.push_back(message);
                } else {
                    self.publish(ctx, conn, message);
                }
            }
            Want::Leave => self.close(ctx, conn, End::Left),
            Want::Connect | Want::Vanish => {}
        }
    }

    // ---- routes ----

    fn has_subscriber(&self, filter: usize) -> bool {
        let sessions = self.life.as_ref().map(|life| &life.sessions);
        sessions.is_some_and(|sessions| {
            let mut all = sessions.connected.values();
            all.any(|connected| connected.filters.contains_key(&filter))
        })
    }

    /// The index of this node's own route, where its replica has one.
    fn own_route(&self, filter: usize) -> Option<u64> {
        let filter = SubscriptionFilter {
            share: None,
            filter: super::topics::filter(filter),
        };
        let (value, index) = self.meta().routes().route_of(&filter, self.me()?);
        (value > 0).then_some(index)
    }

    fn announce(&mut self, ctx: &mut Ctx, asked: Asked) {
        let filter = asked.filter;
        let settled = self.own_route(filter);
        let Some(sessions) = self.sessions() else {
            return;
        };
        if let Some(entry) = sessions.unsettled.get_mut(&filter) {
            entry.wanted = true;
            entry.waiters.push(asked);
        } else if let Some(index) = settled {
            self.wait_for_barrier(ctx, index, asked);
        } else {
            let waiters = vec![asked];
            let entry = Unsettled {
                wanted: true,
                waiters,
            };
            sessions.unsettled.insert(filter, entry);
            self.set_route(ctx, filter, true);
        }
    }

    fn withdraw(&mut self, ctx: &mut Ctx, filter: usize) {
        if self.has_subscriber(filter) {
            return;
        }
        let settled = self.own_route(filter);
        let Some(sessions) = self.sessions() else {
            return;
        };
        if let Some(entry) = sessions.unsettled.get_mut(&filter) {
            entry.wanted = false;
        } else if settled.is_some() {
            let entry = Unsettled {
                wanted: false,
                waiters: Vec::new(),
            };
            sessions.unsettled.insert(filter, entry);
            self.set_route(ctx, filter, false);
        }
    }

    fn set_route(&mut self, ctx: &mut Ctx, filter: usize, present: bool) {
        let route = SetRoute {
            filter: FILTERS[filter].into(),
            present,
        };
        self.propose_meta(ctx, Meta::SetRoute(route), Ticket::Route(filter, present));
    }

    pub fn routed(&mut self, ctx: &mut Ctx, filter: usize, present: bool, index: u64) {
        let Some(sessions) = self.sessions() else {
            return;
        };
        let Some(entry) = sessions.unsettled.get(&filter) else {
            return;
        };
        if entry.wanted != present {
            let wanted = entry.wanted;
            return self.set_route(ctx, filter, wanted);
        }
        let waiters = sessions.unsettled.remove(&filter).map(|e| e.waiters);
        for asked in waiters.unwrap_or_default() {
            self.wait_for_barrier(ctx, index, asked);
        }
    }

    /// The barrier let a subscription through.
    pub fn passed(&mut self, asked: Asked) {
        if let Some(sessions) = self.sessions() {
            sessions.passed.push(asked);
        }
    }
}
