//! The way of a message to one member of a shared subscription, wherever in the cluster that is. The node that chooses
//! keeps it until the member has done it; what a member leaves behind goes to another one.
//!
//! ```text
//!   publish --> choose a node --> a member here takes it ---------------------------------> done with the member
//!                ^  ^   |                                                                        |
//!                |  |   +--> forward --> no member there, or none with room: the next node       |
//!                |  |             |                                                              |
//!                |  |             +----> placed there: the publisher is told, the link keeps it  |
//!                |  |                         |                    |                             |
//!                |  +-- the node goes: again <-+      its member has done it: forgotten          |
//!                |                                                                               |
//!                +--- the member goes first: what it was not sent, and QoS 1 it did not acknowledge
//! ```
//!
//! QoS 2 that was sent, or may have been, goes to no other member [MQTT-4.8.2-5].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use flotte_cluster::handle::Placement;
use flotte_cluster::id::{NodeId, NodeRef};
use flotte_cluster::link::{Placed, Pushed};
use flotte_cluster::meta::ShareMembers;
use flotte_cluster::wire::{Forward, SharePick};
use flotte_mqtt::QoS;
use flotte_mqtt::session::{Delivery, DropReason, Keeper, Tally};
use flotte_mqtt::topic::SubscriptionFilter;
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::Router;
use super::choosing::{Ask, Chooser, Round, Tried, key_of};
use super::handing::Handing;
use super::matched::MatchedShare;
use super::placing::Placing;
use super::publish::{Frames, Outgoing};
use crate::config::shared::Strategy;
use crate::metrics;
use crate::session::{Session, flush_dirty, now_ms};

/// Shared subscriptions that this node remembers having published to before it looks for those it can forget.
const SHARES_MIN: usize = 1_024;

/// A shared subscription, as this node publishes to it.
#[derive(Debug)]
pub struct Share {
    /// Group and filter.
    pub filter: SubscriptionFilter,
    /// Taken last and for one choice.
    chooser: Mutex<Chooser>,
}

/// One message on its way to one member.
struct Pick {
    router: Arc<Router>,
    share: Arc<Share>,
    message: Outgoing,
    /// Who waits for it to be placed; told once.
    placing: Mutex<Option<Arc<Placing>>>,
    /// Another node keeps the message until this one has placed it.
    keeper: Mutex<Option<Keeper>>,
    /// Another member had it, whose copy is still to be counted.
    moved: AtomicBool,
}

/// One attempt of a pick, at another node.
struct Attempt {
    pick: Arc<Pick>,
    /// Nodes that were asked before.
    tried: Tried,
    round: Round,
    /// Counts for the node as long as it is under way there.
    _given: Option<Given>,
}

/// Counts one message for a node, while it lives.
struct Given {
    share: Arc<Share>,
    node: NodeId,
}

impl Router {
    /// Gives a message of this node's to one member. Says which link took it.
    pub(super) fn publish_to_share(
        self: &Arc<Self>,
        message: &Outgoing,
        matched: &MatchedShare,
        placing: Option<&Arc<Placing>>,
    ) -> Option<(Pushed, NodeRef)> {
        let (share, ask) = (&matched.share, self.ask(message, Round::First));
        let mut tried = Tried::new();
        let me = self.cluster().node_id();
        let mut chosen = share.choose(&matched.members, &tried, me, &ask);
        if let Some(node) = chosen.filter(|node| node.node == me) {
            let keeper = self.given(share, me).map(|given| Arc::new(given) as Keeper);
            if self.give(message, &share.filter, &ask, keeper) {
                return None;
            }
            tried.push(node);
            chosen = None;
        }
        let pick = Arc::new(Pick {
            router: Arc::clone(self),
            share: Arc::clone(share),
            message: message.clone().compact(),
            placing: Mutex::new(placing.cloned()),
            keeper: Mutex::default(),
            moved: AtomicBool::new(false),
        });
        if let Some(placing) = placing {
            placing.add();
        }
        match chosen {
            Some(node) => Some((self.forward_pick(&pick, node, tried, Round::First), node)),
            None => self.advance(&pick, tried, Round::First),
        }
    }

    /// Gives a message of another node's to a member here. Says whether there was one to take it.
    pub fn deliver_share(
        &self,
        message: &Outgoing,
        filter: &SubscriptionFilter,
        round: Round,
        keeper: Option<Keeper>,
    ) -> bool {
        self.give(message, filter, &self.ask(message, round), keeper)
    }

    /// Gives what a member has left behind to others; `placing` is told of each.
    pub fn redeliver(self: &Arc<Self>, taken: Vec<Delivery>, placing: Option<&Arc<Placing>>) {
        for delivery in taken {
            let Some(copy) = delivery.share else { continue };
            if self.cluster().me().is_none() {
                // This start of the node is over: whoever keeps the message for it sees that, too.
                metrics::count(&Tally::of_dropped(DropReason::SessionEnd, 1));
                continue;
            }
            let pick = Arc::new(Pick {
                router: Arc::clone(self),
                share: self.share(copy.filter()),
                message: Outgoing::from(&*delivery.message),
                placing: Mutex::new(placing.cloned()),
                keeper: Mutex::new(copy.keeper()),
                moved: AtomicBool::new(true),
            });
            drop(copy);
            if let Some(placing) = placing {
                placing.add();
            }
            self.advance(&pick, Tried::new(), Round::First);
        }
        flush_dirty(self.cluster().lease());
    }

    /// A session's client came or went: its shared subscriptions prefer members that are connected. What it had not done
    /// goes to one of those, if there is any.
    pub fn refresh_shares(self: &Arc<Self>, session: &Arc<Session>) {
        let known = session.subscriptions().lock();
        let filters = known.iter().map(|(filter, _)| filter);
        let shares = filters.filter(|filter| filter.share.is_some());
        let filters: Vec<SubscriptionFilter> = shares.cloned().collect();
        drop(known);
        if filters.is_empty() {
            return;
        }
        let mut moving = Vec::new();
        for filter in filters {
            let mut subscriptions = self.subscriptions.write();
            // Looked up under the lock, so that the last look is right.
            let connected = session.output().lock().version().is_some();
            let change = subscriptions.set_connected(session, &filter, connected);
            self.withdraw(&filter, change);
            drop(subscriptions);
            if !connected && self.has_connected_member(&filter) {
                moving.push(filter);
            }
        }
        let taken = session
            .output()
            .lock()
            .take_undelivered_shared(|filter| moving.contains(filter));
        self.redeliver(taken, None);
    }

    /// A client unsubscribed: what it was not sent goes to others; what it was sent it completes [MQTT-3.10.4-3].
    pub fn leave_share(self: &Arc<Self>, session: &Arc<Session>, filter: &SubscriptionFilter) {
        if filter.share.is_some() {
            let taken = session.output().lock().take_unsent_shared(filter);
            self.redeliver(taken, None);
        }
    }

    /// The node leaves: members of others go first from now on.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    /// What this node remembers of a shared subscription that it publishes to.
    pub(super) fn share(&self, filter: &SubscriptionFilter) -> Arc<Share> {
        let mut shares = self.shares.lock();
        if let Some(share) = shares.get(filter) {
            return Arc::clone(share);
        }
        if shares.len() >= SHARES_MIN && shares.len() == shares.capacity() {
            // Those that no publisher's memory holds begin anew, if they are ever needed again.
            shares.retain(|_, share| Arc::strong_count(share) > 1);
        }
        let share = Arc::new(Share {
            filter: filter.clone(),
            chooser: Mutex::default(),
        });
        shares.insert(filter.clone(), Arc::clone(&share));
        share
    }

    /// Looks for a member until one has it, or a link, or there is none. Says which link took it.
    fn advance(
        self: &Arc<Self>,
        pick: &Arc<Pick>,
        mut tried: Tried,
        mut round: Round,
    ) -> Option<(Pushed, NodeRef)> {
        loop {
            let members = self.members_now(&pick.share.filter, round);
            let ask = self.ask(&pick.message, round);
            let me = self.cluster().node_id();
            let Some(node) = pick.share.choose(&members, &tried, me, &ask) else {
                if round == Round::Last {
                    pick.fail();
                    return None;
                }
                round = Round::Last;
                tried.clear();
                continue;
            };
            if node.node == me {
                let keeper = pick.keeper.lock().clone();
                if self.give(&pick.message, &pick.share.filter, &ask, keeper) {
                    pick.succeed();
                    return None;
                }
                pick.refused(node);
                tried.push(node);
                continue;
            }
            return Some((self.forward_pick(pick, node, tried, round), node));
        }
    }

    fn forward_pick(
        self: &Arc<Self>,
        pick: &Arc<Pick>,
        node: NodeRef,
        tried: Tried,
        round: Round,
    ) -> Pushed {
        let text = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let filter = &pick.share.filter;
        let waits = pick.message.qos > QoS::AtMostOnce;
        let shares = vec![SharePick {
            group: text(filter.share.as_ref().map_or("", |group| group.as_str())),
            filter: text(filter.filter.as_str()),
            // No answer comes for QoS 0.
            last: round == Round::Last || !waits,
        }];
        let forward = Forward {
            all: false,
            shares,
            ..pick.message.forward(now_ms())
        };
        if !waits {
            pick.succeed();
            return self.push(node, forward, None);
        }
        let attempt = Attempt {
            pick: Arc::clone(pick),
            tried,
            round,
            _given: self.given(&pick.share, node.node),
        };
        self.push(node, forward, Some(Arc::new(attempt)))
    }

    /// The members of a share as they are now: of other nodes as far as this one has heard, its own as they are.
    fn members_now(
        &self,
        filter: &SubscriptionFilter,
        round: Round,
    ) -> SmallVec<[(NodeRef, ShareMembers); 2]> {
        let (Some(group), Some(me)) = (&filter.share, self.cluster().me()) else {
            return SmallVec::new();
        };
        let mut members = self.cluster().share_members(group, &filter.filter);
        members.retain(|(node, _)| node.node != me.node);
        if round == Round::First && self.leaving.load(Ordering::Acquire) {
            return members;
        }
        if let Some(own) = self.subscriptions.read().members(filter) {
            members.push((me, own.summary()));
        }
        members
    }

    fn has_connected_member(&self, filter: &SubscriptionFilter) -> bool {
        let members = self.members_now(filter, Round::First);
        members
            .iter()
            .any(|(_, share)| share.count > 0 && !share.away)
    }

    fn ask(&self, message: &Outgoing, round: Round) -> Ask {
        let strategy = self.strategy;
        if let Some(will) = &message.will {
            // So that the next leader of its group, should it come again, chooses the node that knows of it.
            let text = format!("{}/{}", will.group, will.key);
            return Ask {
                strategy: Strategy::HashTopic,
                key: key_of(&text),
                draw: 0,
                round,
                now_ms: now_ms(),
            };
        }
        Ask {
            strategy,
            key: match strategy {
                Strategy::HashClient => key_of(message.publisher.as_str()),
                Strategy::HashTopic => key_of(message.topic.as_str()),
                _ => 0,
            },
            draw: match strategy {
                Strategy::Random | Strategy::Sticky => rand::random(),
                _ => 0,
            },
            round,
            now_ms: now_ms(),
        }
    }

    fn given(&self, share: &Arc<Share>, node: NodeId) -> Option<Given> {
        (self.strategy == Strategy::LeastInflight).then(|| {
            share.chooser.lock().handle_given(node);
            Given {
                share: Arc::clone(share),
                node,
            }
        })
    }

    /// Puts a message into the queue of one member here, a will once.
    fn give(
        &self,
        message: &Outgoing,
        filter: &SubscriptionFilter,
        ask: &Ask,
        keeper: Option<Keeper>,
    ) -> bool {
        let Some(will) = &message.will else {
            return self.give_one(message, filter, ask, keeper);
        };
        if !self.shared_wills.lock().insert(will, filter) {
            return true;
        }
        let given = self.give_one(message, filter, ask, keeper);
        if !given {
            self.shared_wills.lock().remove(will, filter);
        }
        given
    }

    fn give_one(
        &self,
        message: &Outgoing,
        filter: &SubscriptionFilter,
        ask: &Ask,
        keeper: Option<Keeper>,
    ) -> bool {
        let mut handing = Handing {
            message,
            keeper,
            rules: self.acl().rules(),
            frames: Frames::default(),
            kept: None,
        };
        let subscriptions = self.subscriptions.read();
        subscriptions.members(filter).is_some_and(|members| {
            members.give(ask, |member, worst| {
                handing.offer(members, member, worst, ask.now_ms)
            })
        })
    }
}

impl Share {
    fn choose(
        &self,
        members: &[(NodeRef, ShareMembers)],
        tried: &[NodeRef],
        me: NodeId,
        ask: &Ask,
    ) -> Option<NodeRef> {
        self.chooser.lock().choose(members, tried, me, ask)
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        self.share.chooser.lock().handle_done(self.node);
    }
}

impl Pick {
    /// It is with a member, or kept by the link to its node.
    fn succeed(&self) {
        self.end(|| Tally::of_dropped(DropReason::ShareMoved, 1), None);
    }

    /// There is no member left.
    fn fail(&self) {
        self.end(
            || Tally::of_dropped(DropReason::SessionEnd, 1),
            Some(Tally::unplaced(DropReason::NoMember)),
        );
    }

    /// The node that had it is gone, and what was in the queues there with it.
    fn give_up(&self) {
        self.end(|| Tally::of_dropped(DropReason::SessionEnd, 1), None);
    }

    fn end(&self, moved: impl FnOnce() -> Tally, else_count: Option<Tally>) {
        if self.moved.swap(false, Ordering::AcqRel) {
            metrics::count(&moved());
        } else if let Some(tally) = else_count {
            metrics::count(&tally);
        }
        // Dropped outside of the locks.
        let keeper = self.keeper.lock().take();
        let placing = self.placing.lock().take();
        drop(keeper);
        if let Some(placing) = placing {
            placing.done();
        }
    }

    fn refused(&self, node: NodeRef) {
        let mut chooser = self.share.chooser.lock();
        chooser.handle_refused(node.node, now_ms());
    }
}

impl Placement for Attempt {
    fn placed(&self, node: NodeRef, placed: Placed) {
        let pick = &self.pick;
        let mut tried = self.tried.clone();
        tried.push(node);
        match placed {
            Placed::Queued => pick.succeed(),
            Placed::NoMember => {
                pick.refused(node);
                pick.router.advance(pick, tried, self.round);
            }
            Placed::NodeGone => {
                pick.router.advance(pick, tried, self.round);
            }
            // It may have been sent to a member there. [MQTT-4.8.2-5]
            Placed::Unknown if pick.message.qos == QoS::ExactlyOnce => pick.give_up(),
            Placed::Unknown | Placed::Lost => {
                pick.router.advance(pick, tried, Round::First);
            }
        }
        flush_dirty(pick.router.cluster().lease());
    }

    fn progressed(&self) {
        if let Some(placing) = &*self.pick.placing.lock() {
            placing.progressed();
        }
    }
}
