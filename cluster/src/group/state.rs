//! State machine of a session group: for each of its clients the owner, epoch, will and home. A pure function of state
//! and entry.
//!
//! ```text
//!            Open                      Close / Offline
//!  (none) ---------> connected ----------------------------> offline ----> (none)
//!                    |   ^  Open: new epoch, former owner      |   End: expiry passed
//!                    +---+  is kicked                          |   FireWill: delay passed
//!                      ^--------------- Open ------------------+
//! ```
//! A will leaves the client for the *outbox* under a key of the group; the leader publishes it from there and commits
//! `WillDone`. Commands with an old epoch change nothing, but for one: a goodbye may come after the Open of another node that
//! it overtook on the way here. So a will that fires as another node takes the client over is *held* until the former one has
//! said how the connection ended.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotte_proto::session_command::Command;
use flotte_proto::{
    Batch, BatchReply, Close, EntryReply, GroupEntry, Open, OpenReply, Owner, Replies,
    SessionCommand, Will, batch_reply,
};
use prost::Message;

use super::outbox::{FiredWill, Held, Outbox};
use super::untold::{Ended, Untold};
use crate::id::{GroupId, NodeId, NodeRef};
use crate::ledger::{Admission, Ledger};
use crate::level::unknown_command;
use crate::meta::UnknownEntry;

/// A session expiry interval that never passes [MQTT5 3.1.2.11.2].
pub const NEVER_S: u32 = u32::MAX;

/// What the group knows of a client.
#[derive(Debug, Clone, PartialEq)]
pub struct Client {
    /// Assigned at Open; rises with every one in the group.
    pub epoch: u64,
    /// Who holds its session in memory, and has its connection while there is one; none once that node went Down.
    pub home: Option<NodeRef>,
    /// 0: the session ends with the connection.
    pub expiry_s: u32,
    /// Not yet fired.
    pub will: Option<Box<Will>>,
    /// State time at which the connection ended; none while there is one.
    pub offline_since_ms: Option<u64>,
}

impl Client {
    /// Where it is connected.
    pub fn owner(&self) -> Option<NodeRef> {
        self.home.filter(|_| self.is_connected())
    }

    fn is_connected(&self) -> bool {
        self.offline_since_ms.is_none()
    }
}

/// What an entry changed that the runtime must act on.
#[derive(Debug, Default, PartialEq)]
pub struct Effects {
    /// The outbox has new wills.
    pub fired: bool,
    /// Homes to be told.
    pub ended: Vec<Ended>,
    /// Nodes with an Open in the entry: whether they are Up is for the leader to judge.
    pub openers: BTreeSet<NodeRef>,
}

/// The state of one session group.
#[derive(Debug, Default)]
pub struct GroupState {
    pub(super) clients: BTreeMap<Bytes, Client>,
    /// When something is due for an offline client: (state time, client). Derived; at most one entry per client.
    timers: BTreeSet<(u64, Bytes)>,
    pub(super) outbox: Outbox,
    pub(super) untold: Untold,
    pub(super) last_epoch: u64,
    pub(super) ledger: Ledger,
    pub(super) time_ms: u64,
    pub(super) index: u64,
}

impl GroupState {
    /// Applies one entry. Returns the encoded [`EntryReply`].
    pub fn apply(
        &mut self,
        group: GroupId,
        index: u64,
        entry: &[u8],
        effects: &mut Effects,
    ) -> Result<Bytes, UnknownEntry> {
        let unknown = |what: String| UnknownEntry { group, index, what };
        let entry = GroupEntry::decode(entry).map_err(|e| unknown(e.to_string()))?;
        self.index = index;
        self.time_ms = self.time_ms.max(entry.time_ms);
        let mut reply = EntryReply::default();
        for batch in entry.batches {
            reply
                .batches
                .push(self.apply_batch(batch, effects).map_err(unknown)?);
        }
        Ok(reply.encode_to_vec().into())
    }

    fn apply_batch(&mut self, batch: Batch, effects: &mut Effects) -> Result<BatchReply, String> {
        use batch_reply::Result as R;
        let from = NodeRef {
            node: NodeId(batch.node_id),
            incarnation: batch.incarnation,
        };
        let result = match self
            .ledger
            .admit(from.node, from.incarnation, batch.sequence)
        {
            Admission::Repeat(reply) => {
                return BatchReply::decode(reply).map_err(|e| e.to_string());
            }
            Admission::Gap(last) => R::Gap(last),
            Admission::Stale => R::Stale(true),
            Admission::Take => {
                let mut replies = Replies::default();
                for command in batch.commands {
                    let decoded = SessionCommand::decode(command.clone());
                    let decoded = decoded.map_err(|e| e.to_string())?.command;
                    let command = decoded.ok_or_else(|| unknown_command(&command))?;
                    replies
                        .replies
                        .push(self.apply_command(from, command, effects));
                }
                let reply = BatchReply {
                    index: self.index,
                    result: Some(R::Replies(replies)),
                };
                self.ledger.record(
                    from.node,
                    from.incarnation,
                    batch.sequence,
                    reply.encode_to_vec().into(),
                );
                return Ok(reply);
            }
        };
        Ok(BatchReply {
            index: self.index,
            result: Some(result),
        })
    }

    fn apply_command(&mut self, from: NodeRef, command: Command, effects: &mut Effects) -> Bytes {
        match command {
            Command::Open(open) => return self.open(from, open, effects).encode_to_vec().into(),
            Command::Close(close) => self.close(from.node, close, effects),
            Command::Offline(o) => self.offline(&o.client, o.epoch, effects),
            Command::FireWill(f) => self.fire_due_will(&f.client, f.epoch, effects),
            Command::WillDone(done) => self.outbox.remove(done.key),
            Command::End(end) => self.end_due(&end.client, end.epoch, effects),
            Command::Told(t) => self.untold.heard(NodeId(t.node_id), &t.client, t.epoch),
            Command::HomeGone(gone) => self.untold.gone(NodeRef {
                node: NodeId(gone.node_id),
                incarnation: gone.incarnation,
            }),
        }
        Bytes::new()
    }

    fn open(&mut self, from: NodeRef, open: Open, effects: &mut Effects) -> OpenReply {
        if let Some(conflict) = self.conflict(from, &open) {
            return OpenReply {
                conflict,
                ..OpenReply::default()
            };
        }
        self.last_epoch += 1;
        effects.openers.insert(from);
        let mut reply = OpenReply {
            epoch: self.last_epoch,
            ..OpenReply::default()
        };
        if let Some(old) = self.remove(&open.client) {
            let was_durable = old.expiry_s > 0;
            reply.session_present = !open.clean && was_durable && old.home == Some(from);
            reply.former = old.owner().map(|node| owner(node, old.epoch));
            if !reply.session_present {
                reply.former_home = old.home.map(|node| owner(node, old.epoch));
            }
            if let Some(home) = old.home.filter(|home| home.node != from.node) {
                self.leave_behind(home, &open.client, old.epoch, effects);
            }
            // A will whose delay had not passed is dropped when its session goes on, or went down with its node while
            // the client is back in time; it fires when the client itself ended the session [MQTT-3.1.2-8].
            let resumed = !open.clean && was_durable;
            let delayed = old.will.as_ref().is_some_and(|will| will.delay_s > 0);
            let elsewhere = old.owner().is_some_and(|owner| owner != from);
            let held = elsewhere.then(|| Held::of(old.epoch, self.time_ms));
            if let Some(will) = old.will.filter(|_| !(resumed && delayed)) {
                self.fire(open.client.clone(), *will, held, effects);
            }
        }
        let client = Client {
            epoch: self.last_epoch,
            home: Some(from),
            expiry_s: open.expiry_s,
            will: open.will.map(Box::new),
            offline_since_ms: None,
        };
        self.clients.insert(open.client, client);
        reply
    }

    /// An Open may be committed long after its CONNECT: what the client did at another node meanwhile stands. Opens of one
    /// node come in the order of their CONNECTs.
    fn conflict(&self, from: NodeRef, open: &Open) -> Option<u64> {
        let held = self.clients.get(&open.client)?;
        let elsewhere = held.home.is_some_and(|home| home.node != from.node);
        (elsewhere && held.epoch > open.displaces).then_some(held.epoch)
    }

    fn close(&mut self, from: NodeId, close: Close, effects: &mut Effects) {
        self.untold.heard(from, &close.client, close.epoch);
        let Some(client) = self.connected(&close.client, close.epoch) else {
            // The word of a former owner comes after the Open that took its client.
            let held = (close.client, close.epoch);
            effects.fired |= self.outbox.release(held, close.discard_will);
            return;
        };
        if close.discard_will {
            client.will = None;
        }
        if let Some(expiry_s) = close.expiry_s {
            client.expiry_s = expiry_s;
        }
        self.disconnected(close.client, effects);
    }

    /// The owner went Down or was superseded, and the session it held in memory with it.
    fn offline(&mut self, id: &Bytes, epoch: u64, effects: &mut Effects) {
        let Some(client) = self.clients.get_mut(id).filter(|c| c.epoch == epoch) else {
            return;
        };
        client.home = None;
        if client.is_connected() {
            self.disconnected(id.clone(), effects);
        } else if client.will.is_none() {
            self.remove(id);
        }
    }

    fn disconnected(&mut self, id: Bytes, effects: &mut Effects) {
        let now = self.time_ms;
        let Some(mut client) = self.remove(&id) else {
            return;
        };
        client.offline_since_ms = Some(now);
        let lost = client.home.is_none();
        // The will of a client whose node died keeps its delay, though the session is gone: the client did not end it.
        let expiry_s = client.expiry_s;
        if let Some(will) = client
            .will
            .take_if(|will| will.delay_s == 0 || expiry_s == 0)
        {
            self.fire(id.clone(), *will, None, effects);
        }
        if client.expiry_s == 0 || (lost && client.will.is_none()) {
            return;
        }
        self.arm(&id, &client);
        self.clients.insert(id, client);
    }

    fn fire_due_will(&mut self, id: &Bytes, epoch: u64, effects: &mut Effects) {
        let now = self.time_ms;
        let due = |c: &Client| {
            c.epoch == epoch && !c.is_connected() && will_due(c).is_some_and(|due| due <= now)
        };
        if !self.clients.get(id).is_some_and(due) {
            return;
        }
        let Some(mut client) = self.remove(id) else {
            return;
        };
        if let Some(will) = client.will.take() {
            self.fire(id.clone(), *will, None, effects);
        }
        if client.home.is_some() {
            self.arm(id, &client);
            self.clients.insert(id.clone(), client);
        }
    }

    fn end_due(&mut self, id: &Bytes, epoch: u64, effects: &mut Effects) {
        let now = self.time_ms;
        let due = |c: &Client| {
            c.epoch == epoch && !c.is_connected() && end_due(c).is_some_and(|due| due <= now)
        };
        if !self.clients.get(id).is_some_and(due) {
            return;
        }
        let Some(client) = self.remove(id) else {
            return;
        };
        if let Some(will) = client.will {
            self.fire(id.clone(), *will, None, effects);
        }
        if let Some(home) = client.home {
            self.leave_behind(home, id, epoch, effects);
        }
    }

    /// A home still holds what is over: it is told until it has said so.
    fn leave_behind(&mut self, home: NodeRef, id: &Bytes, epoch: u64, effects: &mut Effects) {
        let client = id.clone();
        let ended = Ended {
            home,
            client,
            epoch,
        };
        self.untold.insert(ended.clone(), self.time_ms);
        effects.ended.push(ended);
    }

    fn fire(&mut self, client: Bytes, will: Will, held: Option<Held>, effects: &mut Effects) {
        self.outbox.fire(FiredWill { client, will, held });
        effects.fired = true;
    }

    fn connected(&mut self, id: &Bytes, epoch: u64) -> Option<&mut Client> {
        self.clients
            .get_mut(id)
            .filter(|client| client.epoch == epoch && client.is_connected())
    }

    fn remove(&mut self, id: &Bytes) -> Option<Client> {
        let client = self.clients.remove(id)?;
        if let Some(due) = next_due(&client) {
            self.timers.remove(&(due, id.clone()));
        }
        Some(client)
    }

    pub(super) fn arm(&mut self, id: &Bytes, client: &Client) {
        if let Some(due) = next_due(client) {
            self.timers.insert((due, id.clone()));
        }
    }

    /// Timer commands that are due at a state time, soonest first, at most `limit`.
    pub fn due(&self, now_ms: u64, limit: usize) -> Vec<Command> {
        let passed = self
            .timers
            .iter()
            .take_while(|(due, _)| *due <= now_ms)
            .take(limit);
        passed
            .filter_map(|(_, id)| {
                let client = self.clients.get(id)?;
                let (client_id, epoch) = (id.clone(), client.epoch);
                Some(if end_due(client).is_some_and(|due| due <= now_ms) {
                    Command::End(flotte_proto::End {
                        client: client_id,
                        epoch,
                    })
                } else {
                    Command::FireWill(flotte_proto::FireWill {
                        client: client_id,
                        epoch,
                    })
                })
            })
            .collect()
    }

    /// Offline commands for all clients whose home is not Up, at most `limit`.
    pub fn orphans(&self, is_up: impl Fn(NodeRef) -> bool, limit: usize) -> Vec<Command> {
        let down = |node: Option<NodeRef>| node.is_some_and(|node| !is_up(node));
        let orphans = self.clients.iter().filter(|(_, client)| down(client.home));
        let offline = |(id, client): (&Bytes, &Client)| {
            Command::Offline(flotte_proto::Offline {
                client: id.clone(),
                epoch: client.epoch,
            })
        };
        orphans.map(offline).take(limit).collect()
    }

    /// Wills to be published.
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// Former homes that have to be told.
    pub fn untold(&self) -> &Untold {
        &self.untold
    }

    /// What is known of a client.
    pub fn client(&self, id: &[u8]) -> Option<&Client> {
        self.clients.get(id)
    }

    /// Number of clients that are known.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Whether no client is known.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// The highest epoch that was assigned.
    pub fn last_epoch(&self) -> u64 {
        self.last_epoch
    }

    /// State time in ms since the epoch.
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// Panics where the parts of the state contradict each other. For tests.
    pub fn check_invariants(&self) {
        for (id, client) in &self.clients {
            assert!(client.epoch <= self.last_epoch);
            assert!(client.home.is_some() || !client.is_connected(), "{id:?}");
            assert!(
                client.home.is_some() || client.will.is_some(),
                "{id:?} is kept for nothing"
            );
            if let Some(due) = next_due(client) {
                assert!(
                    self.timers.contains(&(due, id.clone())),
                    "{id:?} has no timer"
                );
            }
        }
        for (_, id) in &self.timers {
            assert!(self.clients.contains_key(id), "a timer without a client");
        }
        self.outbox.check_invariants();
        self.untold.check_invariants(self.last_epoch);
    }
}

pub(super) fn owner(node: NodeRef, epoch: u64) -> Owner {
    Owner {
        node_id: node.node.0,
        incarnation: node.incarnation,
        epoch,
    }
}

/// The node that a record names.
pub fn node_ref(owner: Owner) -> NodeRef {
    NodeRef {
        node: NodeId(owner.node_id),
        incarnation: owner.incarnation,
    }
}

fn after(since_ms: u64, seconds: u32) -> Option<u64> {
    (seconds != NEVER_S).then(|| since_ms.saturating_add(u64::from(seconds) * 1000))
}

fn end_due(client: &Client) -> Option<u64> {
    after(client.offline_since_ms?, client.expiry_s)
}

/// The delay or the end of the session, whichever comes first [MQTT-3.1.3-9] of 5.0.
fn will_due(client: &Client) -> Option<u64> {
    let will = client.will.as_ref()?;
    let delay = client
        .offline_since_ms?
        .saturating_add(u64::from(will.delay_s) * 1000);
    Some(end_due(client).map_or(delay, |end| end.min(delay)))
}

fn next_due(client: &Client) -> Option<u64> {
    match (will_due(client), end_due(client)) {
        (Some(will), Some(end)) => Some(will.min(end)),
        (will, end) => will.or(end),
    }
}
