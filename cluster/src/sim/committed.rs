//! The oracle's view of each entry as it is committed: who may propose what, in which order, and what it may change.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotte_proto::session_command::Command as Session;
use flotte_proto::{
    Batch, BatchReply, EntryReply, GroupEntry, OpenReply, SessionCommand, batch_reply,
};
use prost::Message as _;

use super::log::Entry;
use super::net::MS;
use super::oracle::{Oracle, WillFate, digest};
use super::topics::{client_of, message_of};
use crate::group::{Client, Effects};
use crate::id::{GroupId, NodeId, NodeRef};
use crate::level::FeatureLevel;
use crate::meta;

/// Digests are compared at every so-manyth index.
const DIGEST_EVERY: u64 = 4;

impl Oracle {
    /// A proposer took a command. Returns its number.
    pub fn pushed(&mut self, group: GroupId, me: NodeRef, command: Bytes) -> u64 {
        let pushed = self.pushed.entry((group, me)).or_default();
        pushed.push(command);
        pushed.len() as u64 - 1
    }

    /// Whoever proposed a command got a reply.
    pub fn resolved(
        &mut self,
        (group, me, ordinal): (GroupId, NodeRef, u64),
        index: u64,
        reply: &Bytes,
    ) {
        let replies = self.replies.get(&(group, me));
        let expected = replies.and_then(|replies| replies.get(ordinal as usize));
        if expected != Some(&(index, reply.clone())) {
            let what = format!("command {ordinal} of {me} for group {group} got a wrong reply");
            self.fail("proposer", what);
        }
    }

    pub fn committed(&mut self, group: GroupId, index: u64, entry: &Entry, now: u64) {
        self.counts.entries += 1;
        let Some(data) = &entry.data else { return };
        let decoded = GroupEntry::decode(data.clone()).expect("it was made here");
        let reply = match group {
            GroupId::META => self.meta_committed(index, entry.term, data),
            _ => self.group_committed(group, index, (data, &decoded), now),
        };
        let replies = EntryReply::decode(reply).expect("it was made by apply");
        for (batch, reply) in decoded.batches.iter().zip(&replies.batches) {
            if self.check_batch(group, index, batch, reply) {
                self.check_opens(group, batch, reply);
            }
        }
        self.check_time(group, entry.stamped);
        if index.is_multiple_of(DIGEST_EVERY) {
            let digest = self.truth_digest(group);
            self.digests.insert((group, index), digest);
        }
    }

    pub fn truth_digest(&self, group: GroupId) -> u32 {
        match self.groups.get(&group) {
            Some(state) => digest(&state.records()),
            None => digest(&self.meta.records()),
        }
    }

    /// A replica is at an index.
    pub fn check_digest(
        &mut self,
        group: GroupId,
        index: u64,
        node: usize,
        digest: impl FnOnce() -> u32,
    ) {
        if let Some(expected) = self.digests.get(&(group, index))
            && *expected != digest()
        {
            let what = format!("the replica of group {group} at node {node}, index {index}");
            self.fail("P6", format!("{what}, differs from the log"));
        }
    }

    fn meta_committed(&mut self, index: u64, term: u64, data: &Bytes) -> Bytes {
        let up = self.meta.up_nodes().count();
        let before = self.meta.feature_level();
        let mut effects = meta::Effects::default();
        let reply = self.meta.apply(index, term, data, &mut effects);
        let downs = up.saturating_sub(self.meta.up_nodes().count());
        self.counts.downs += downs as u64;
        let level = self.meta.feature_level();
        let known = self.meta.members().values();
        let lacks =
            |member: &&flotte_proto::Member| FeatureLevel::said(member.feature_level) < level;
        if level < before || known.clone().any(|member| lacks(&member)) {
            let what = format!("{before} before, {level} now, of {known:?}");
            self.fail("feature level", what);
        }
        self.counts.levels += u64::from(level > before);
        reply.expect("it is understood")
    }

    fn group_committed(
        &mut self,
        group: GroupId,
        index: u64,
        (data, entry): (&Bytes, &GroupEntry),
        now: u64,
    ) -> Bytes {
        let commands: Vec<Session> = entry
            .batches
            .iter()
            .flat_map(|batch| &batch.commands)
            .filter_map(|command| SessionCommand::decode(command.clone()).ok()?.command)
            .collect();
        let before = self.stale_clients(group, &commands);
        self.note_discards(group, &commands);
        let known: Vec<u64> = self.outbox(group).map(|(key, _)| key).collect();
        let Some(state) = self.groups.get_mut(&group) else {
            return Bytes::new();
        };
        let mut effects = Effects::default();
        let reply = state.apply(group, index, data, &mut effects);
        let reply = reply.expect("it is understood");
        state.check_invariants();
        for (id, client) in before {
            if self.groups[&group].client(&id) != client.as_ref() {
                let what = format!("a command of an older epoch changed {id:?}");
                self.fail("P4", what);
            }
        }
        self.note_opens(entry, &reply, now);
        let fired = self.outbox(group).filter(|(key, _)| !known.contains(key));
        let fired: Vec<u64> = fired.filter_map(|(_, message)| message).collect();
        fired
            .into_iter()
            .for_each(|message| self.will_fired(message));
        self.check_connected(group);
        reply
    }

    /// All wills that left their clients and are not done, those that wait for a former owner's word among them.
    fn outbox(&self, group: GroupId) -> impl Iterator<Item = (u64, Option<u64>)> {
        let outbox = self.groups[&group].outbox().iter();
        outbox.map(|(key, fired)| (key, message_of(&fired.will.payload)))
    }

    /// Clients of which an entry has only commands of older epochs.
    fn stale_clients(&self, group: GroupId, commands: &[Session]) -> Vec<(Bytes, Option<Client>)> {
        let mut stale: BTreeMap<Bytes, bool> = BTreeMap::new();
        for command in commands {
            let (id, epoch) = match command {
                Session::Open(open) => (&open.client, None),
                Session::Close(c) => (&c.client, Some(c.epoch)),
                Session::Offline(c) => (&c.client, Some(c.epoch)),
                Session::FireWill(c) => (&c.client, Some(c.epoch)),
                Session::End(c) => (&c.client, Some(c.epoch)),
                Session::WillDone(_) | Session::Told(_) | Session::HomeGone(_) => continue,
            };
            let current = self.groups[&group].client(id).map(|client| client.epoch);
            let is_stale = epoch.is_some() && epoch != current;
            *stale.entry(id.clone()).or_insert(true) &= is_stale;
        }
        let only_stale = stale.into_iter().filter(|(_, is_stale)| *is_stale);
        only_stale
            .map(|(id, _)| {
                let client = self.groups[&group].client(&id).cloned();
                (id, client)
            })
            .collect()
    }

    /// Clients that said goodbye: their wills go with them.
    fn note_discards(&mut self, group: GroupId, commands: &[Session]) {
        for command in commands {
            if let Session::Close(close) = command
                && close.discard_will
                && let Some(client) = client_of(&close.client)
                && self.groups.contains_key(&group)
            {
                let of = |fate: &&mut WillFate| fate.client == client && fate.epoch == close.epoch;
                for fate in self.wills.values_mut().filter(of) {
                    fate.discarded = true;
                }
            }
        }
    }

    fn note_opens(&mut self, entry: &GroupEntry, reply: &Bytes, now: u64) {
        let replies = EntryReply::decode(reply.clone()).expect("it was made by apply");
        for (batch, reply) in entry.batches.iter().zip(replies.batches) {
            let Some(batch_reply::Result::Replies(replies)) = reply.result else {
                continue;
            };
            for (command, reply) in batch.commands.iter().zip(replies.replies) {
                let command = SessionCommand::decode(command.clone()).ok();
                if let Some(Session::Open(open)) = command.and_then(|c| c.command)
                    && let Some(client) = client_of(&open.client)
                    && let Ok(reply) = OpenReply::decode(reply)
                {
                    self.note_open(client, &open, &reply, now);
                }
            }
        }
    }

    fn note_open(&mut self, client: usize, open: &flotte_proto::Open, reply: &OpenReply, now: u64) {
        let newest = self.newest.entry(client).or_default();
        // A repeat of the batch gets the reply of before.
        if reply.epoch <= newest.0 {
            return;
        }
        *newest = (reply.epoch, now);
        self.counts.takeovers += u64::from(reply.former.is_some());
        let will = open.will.as_ref();
        if let Some((will, message)) = will.and_then(|w| Some((w, message_of(&w.payload)?))) {
            let fate = WillFate::new(client, reply.epoch, will.delay_s);
            self.wills.insert(message, fate);
        }
    }

    /// An Open whose client had gone ends nothing that the client began after that.
    fn check_opens(&mut self, group: GroupId, batch: &Batch, reply: &BatchReply) {
        let Some(batch_reply::Result::Replies(replies)) = &reply.result else {
            return;
        };
        let me = NodeRef {
            node: NodeId(batch.node_id),
            incarnation: batch.incarnation,
        };
        let taken = self.replies.get(&(group, me)).map_or(0, Vec::len);
        let first = taken.saturating_sub(batch.commands.len()) as u64;
        for (ordinal, reply) in (first..).zip(&replies.replies) {
            let Some(conn) = self.opens.get(&(group, me, ordinal)).copied() else {
                continue;
            };
            let reply = OpenReply::decode(reply.clone()).expect("it was made by apply");
            self.by_epoch.entry((group, reply.epoch)).or_insert(conn);
            for former in [reply.former, reply.former_home].into_iter().flatten() {
                let Some(former) = self.by_epoch.get(&(group, former.epoch)).copied() else {
                    continue;
                };
                let gone = self.gone.get(&conn).copied().unwrap_or(u64::MAX);
                if gone < self.began.get(&former).copied().unwrap_or(0) {
                    let what = format!("conn {conn}, whose client had gone, ends conn {former}");
                    self.fail("P4", what);
                }
            }
        }
    }

    /// A client whose newest connection stands is connected in the state, too.
    fn check_connected(&mut self, group: GroupId) {
        let groups = self.groups.len() as u32;
        let mut wrong = Vec::new();
        for (conn, alive) in &self.alive {
            let is_newest = self.newest.get(&alive.client).map(|n| n.0) == Some(alive.epoch);
            let is_here = super::topics::group_of(alive.client, groups) == group;
            if !is_here || !is_newest || !self.meta.is_up(alive.node) {
                continue;
            }
            let id = super::topics::client_id(alive.client);
            let known = self.groups[&group].client(&id);
            let is_connected =
                |client: &Client| client.epoch == alive.epoch && client.owner() == Some(alive.node);
            if !known.is_some_and(is_connected) {
                wrong.push(format!("conn {conn} stands, and its client is offline"));
            }
        }
        for what in wrong {
            self.fail("P4", what);
        }
    }

    /// Batches are taken once, in order, and with what their proposer put into them. Says whether it was taken just now.
    fn check_batch(
        &mut self,
        group: GroupId,
        index: u64,
        batch: &Batch,
        reply: &BatchReply,
    ) -> bool {
        let Some(batch_reply::Result::Replies(replies)) = &reply.result else {
            return false;
        };
        let me = NodeRef {
            node: NodeId(batch.node_id),
            incarnation: batch.incarnation,
        };
        if me.incarnation == 0 {
            return false;
        }
        let taken = self.taken.entry((group, me.node)).or_default();
        let last = match me.incarnation.cmp(&taken.0) {
            std::cmp::Ordering::Less => {
                let what = format!("a batch of {me} was taken after one of #{}", taken.0);
                self.fail("proposer", what);
                return false;
            }
            std::cmp::Ordering::Equal => taken.1,
            std::cmp::Ordering::Greater => 0,
        };
        if batch.sequence <= last {
            return false;
        }
        *taken = (me.incarnation, batch.sequence);
        let done = self.replies.entry((group, me)).or_default();
        let first = done.len();
        let answers = replies.replies.iter().map(|reply| (index, reply.clone()));
        done.extend(answers);
        let pushed = self.pushed.get(&(group, me));
        let expected = pushed.and_then(|all| all.get(first..first + batch.commands.len()));
        if batch.sequence != last + 1 || expected != Some(&batch.commands[..]) {
            let sequence = batch.sequence;
            let what = format!("batch {sequence} of {me} was taken after {last} in group {group}");
            self.fail("proposer", what);
        }
        true
    }

    /// State time may go on from here: no replica carried it that a leader could have asked.
    pub fn time_jumped(&mut self, group: GroupId, time_ms: u64, now: u64) {
        let ahead = time_ms as i64 * 100 - (now / MS) as i64 * 112;
        let most = self.time_ahead.entry(group).or_insert(ahead);
        *most = ahead.max(*most);
    }

    /// State time runs no more than a tenth faster than time, but for jumps that are allowed.
    fn check_time(&mut self, group: GroupId, stamped_at: u64) {
        let time_ms = match self.groups.get(&group) {
            Some(state) => state.time_ms(),
            None => self.meta.time_ms(),
        };
        // Clocks run up to a hundredth faster here, and milliseconds are rounded.
        let ahead = time_ms as i64 * 100 - (stamped_at / MS) as i64 * 112;
        let most = self.time_ahead.entry(group).or_insert(ahead);
        let is_late = time_ms == self.time_last.insert(group, time_ms).unwrap_or(0);
        if ahead > *most + 300 && !is_late {
            let what = format!("{} ms too many have passed", (ahead - *most) / 100);
            self.fail("state time", format!("group {group}: {what}"));
        } else if !is_late {
            *most = ahead.max(*most);
        }
    }
}
