//! The members that one shared subscription has on this node, and which of them gets the next message. Pure: whether a
//! member takes it is asked of the caller.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use flotte_cluster::meta::ShareMembers;
use flotte_mqtt::session::{Keeper, Readiness, SharedCopy};
use flotte_mqtt::topic::SubscriptionFilter;

use super::choosing::{Ask, Round, key_of, mixed};
use super::subscriptions::Subscriber;
use crate::config::shared::Strategy;
use crate::session::Session;

/// Members that are asked for one message: beyond, it is likelier that nobody has room.
const ASKED_MAX: usize = 64;

/// All members of one shared subscription on this node.
#[derive(Debug)]
pub struct Members {
    filter: Arc<SubscriptionFilter>,
    connected: Vec<Member>,
    /// Durable sessions that wait for their clients.
    away: Vec<Member>,
    /// Whose turn it is.
    turn: AtomicU32,
    /// For "sticky": the id of a member; 0 = none yet.
    stuck_to: AtomicU64,
    next_id: u64,
}

/// One of them.
#[derive(Debug)]
pub struct Member {
    /// Session and options.
    pub subscriber: Subscriber,
    /// QoS 1 and 2 copies of this subscription that it has not done. Counted down by the copies themselves.
    load: Arc<AtomicU32>,
    /// Within this subscription.
    id: u64,
    /// Of its client, the same on every node.
    key: u64,
}

/// What a member said to a message that it was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offered {
    /// It has it.
    Taken,
    /// It would take it only like this.
    Not(Readiness),
    /// Its session is no more.
    Gone,
}

/// What each copy for a member carries.
#[derive(Debug)]
pub struct ShareCopy {
    filter: Arc<SubscriptionFilter>,
    load: Arc<AtomicU32>,
    keeper: Option<KeeperOf>,
}

/// A keeper that can be shown.
struct KeeperOf(Keeper);

impl std::fmt::Debug for KeeperOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keeper")
    }
}

impl Members {
    /// A subscription without members.
    pub fn new(filter: &SubscriptionFilter) -> Members {
        Members {
            filter: Arc::new(filter.clone()),
            connected: Vec::new(),
            away: Vec::new(),
            turn: AtomicU32::new(0),
            stuck_to: AtomicU64::new(0),
            next_id: 1,
        }
    }

    /// What other nodes have to know.
    pub fn summary(&self) -> ShareMembers {
        let away = self.connected.is_empty();
        let list = if away { &self.away } else { &self.connected };
        ShareMembers {
            count: u32::try_from(list.len()).unwrap_or(u32::MAX),
            away: away && !self.away.is_empty(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.connected.is_empty() && self.away.is_empty()
    }

    /// Adds a connected member, or replaces its options. Says whether it is new.
    pub fn insert(&mut self, subscriber: Subscriber) -> bool {
        let session = &subscriber.session;
        if let Some(at) = place_of(&self.away, session) {
            let member = self.away.swap_remove(at);
            self.connected.push(Member {
                subscriber,
                ..member
            });
            return false;
        }
        if let Some(at) = place_of(&self.connected, session) {
            self.connected[at].subscriber = subscriber;
            return false;
        }
        let key = key_of(session.client.as_str());
        self.connected.push(Member {
            subscriber,
            load: Arc::default(),
            id: self.next_id,
            key,
        });
        self.next_id += 1;
        true
    }

    /// Removes a member. Says whether there was one.
    pub fn remove(&mut self, session: &Arc<Session>) -> bool {
        for list in [&mut self.connected, &mut self.away] {
            if let Some(at) = place_of(list, session) {
                list.swap_remove(at);
                return true;
            }
        }
        false
    }

    /// A member's client came or went.
    pub fn set_connected(&mut self, session: &Arc<Session>, connected: bool) {
        let (from, to) = if connected {
            (&mut self.away, &mut self.connected)
        } else {
            (&mut self.connected, &mut self.away)
        };
        if let Some(at) = place_of(from, session) {
            to.push(from.swap_remove(at));
        }
    }

    /// Whether a member other than this session is connected.
    pub fn has_other(&self, session: &Arc<Session>) -> bool {
        self.connected
            .iter()
            .any(|member| !Arc::ptr_eq(&member.subscriber.session, session))
    }

    /// Offers a message to members, the one to be preferred first, until one takes it; `offer` says with what readiness it
    /// is to be taken at worst. False = nobody took it.
    pub fn give(&self, ask: &Ask, mut offer: impl FnMut(&Member, Readiness) -> Offered) -> bool {
        let first = self.first(ask);
        let mut fallback: Option<(Readiness, &Member)> = None;
        for member in in_order(&self.connected, first).take(ASKED_MAX) {
            match offer(member, Readiness::Ready) {
                Offered::Taken => return true,
                Offered::Not(readiness) if fallback.is_none_or(|(best, _)| readiness < best) => {
                    fallback = Some((readiness, member));
                }
                Offered::Not(_) | Offered::Gone => {}
            }
        }
        let worst = match ask.round {
            Round::First => Readiness::Waiting,
            Round::Last => Readiness::Full,
        };
        if let Some((readiness, member)) = fallback
            && readiness <= worst
            && offer(member, Readiness::Full) == Offered::Taken
        {
            return true;
        }
        ask.round == Round::Last
            && in_order(&self.away, first)
                .take(ASKED_MAX)
                .any(|member| offer(member, Readiness::Away) == Offered::Taken)
    }

    /// Where the member to be preferred stands among those that are connected.
    fn first(&self, ask: &Ask) -> usize {
        let turn = || self.turn.fetch_add(1, Ordering::Relaxed) as usize;
        let draw = usize::try_from(ask.draw >> 32).unwrap_or_default();
        if self.connected.is_empty() {
            return turn();
        }
        match ask.strategy {
            Strategy::RoundRobin | Strategy::LocalFirst => turn(),
            Strategy::Random => draw,
            Strategy::LeastInflight => self.least(turn()),
            Strategy::HashClient | Strategy::HashTopic => {
                let score = |member: &Member| (mixed(ask.key ^ member.key), member.id);
                let best = (0..self.connected.len()).max_by_key(|at| score(&self.connected[*at]));
                best.unwrap_or(0)
            }
            Strategy::Sticky => {
                let stuck = self.stuck_to.load(Ordering::Relaxed);
                if let Some(at) = self.connected.iter().position(|member| member.id == stuck) {
                    return at;
                }
                let at = draw % self.connected.len();
                self.stuck_to
                    .store(self.connected[at].id, Ordering::Relaxed);
                at
            }
        }
    }

    /// The member with the least under way; the next in turn among equals.
    fn least(&self, turn: usize) -> usize {
        let count = self.connected.len();
        let in_turn = (0..count).map(|step| (turn + step) % count);
        let least = in_turn.min_by_key(|at| self.connected[*at].load.load(Ordering::Relaxed));
        least.unwrap_or(0)
    }

    /// What a QoS 1 or 2 copy for a member carries.
    pub fn copy(&self, member: &Member, keeper: Option<Keeper>) -> Arc<ShareCopy> {
        member.load.fetch_add(1, Ordering::Relaxed);
        Arc::new(ShareCopy {
            filter: Arc::clone(&self.filter),
            load: Arc::clone(&member.load),
            keeper: keeper.map(KeeperOf),
        })
    }
}

impl SharedCopy for ShareCopy {
    fn filter(&self) -> &SubscriptionFilter {
        &self.filter
    }

    fn keeper(&self) -> Option<Keeper> {
        self.keeper.as_ref().map(|keeper| Arc::clone(&keeper.0))
    }
}

impl Drop for ShareCopy {
    fn drop(&mut self) {
        self.load.fetch_sub(1, Ordering::Relaxed);
    }
}

fn place_of(list: &[Member], session: &Arc<Session>) -> Option<usize> {
    list.iter()
        .position(|member| Arc::ptr_eq(&member.subscriber.session, session))
}

fn in_order(list: &[Member], first: usize) -> impl Iterator<Item = &Member> {
    let (before, from) = list.split_at(first % list.len().max(1));
    from.iter().chain(before)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use flotte_mqtt::QoS;
    use flotte_mqtt::packet::SubscribeOptions;

    use super::super::subscriptions::testing::session;
    use super::*;

    fn members(names: &[&str]) -> (Members, Vec<Arc<Session>>) {
        let filter = SubscriptionFilter::try_from("$share/g/t").unwrap();
        let mut members = Members::new(&filter);
        let sessions: Vec<_> = names.iter().map(|name| session(name)).collect();
        for session in &sessions {
            assert!(members.insert(subscriber(session)));
        }
        (members, sessions)
    }

    fn subscriber(session: &Arc<Session>) -> Subscriber {
        Subscriber {
            session: Arc::clone(session),
            options: SubscribeOptions::with_qos(QoS::AtLeastOnce),
            id: 0,
        }
    }

    fn ask(strategy: Strategy, key: u64, draw: u64) -> Ask {
        Ask {
            strategy,
            key,
            draw,
            round: Round::First,
            now_ms: 0,
        }
    }

    fn last() -> Ask {
        Ask {
            round: Round::Last,
            ..ask(Strategy::RoundRobin, 0, 0)
        }
    }

    /// Who takes a message where each is as ready as `of` says.
    fn taker(
        members: &Members,
        ask: &Ask,
        of: impl Fn(&str) -> Option<Readiness>,
    ) -> Option<String> {
        let mut taker = None;
        let taken = members.give(ask, |member, worst| {
            let name = member.subscriber.session.client.as_str();
            match of(name) {
                None => Offered::Gone,
                Some(readiness) if readiness > worst => Offered::Not(readiness),
                Some(_) => {
                    taker = Some(name.to_owned());
                    Offered::Taken
                }
            }
        });
        assert_eq!(taken, taker.is_some());
        taker
    }

    fn ready(_: &str) -> Option<Readiness> {
        Some(Readiness::Ready)
    }

    #[test]
    fn members_take_turns() {
        let (members, _sessions) = members(&["a", "b", "c"]);
        let mut count: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..9 {
            let taker = taker(&members, &ask(Strategy::RoundRobin, 0, 0), ready).unwrap();
            *count.entry(taker).or_default() += 1;
        }
        assert!(count.values().all(|count| *count == 3), "{count:?}");
    }

    #[test]
    fn a_key_keeps_its_member_and_few_move_when_one_goes() {
        let (mut members, sessions) = members(&["a", "b", "c", "d"]);
        let of = |members: &Members, number: u64| {
            let ask = ask(Strategy::HashTopic, key_of(&number.to_string()), 0);
            taker(members, &ask, ready).unwrap()
        };
        let before: Vec<_> = (0..400).map(|number| of(&members, number)).collect();
        for name in ["a", "b", "c", "d"] {
            let count = before.iter().filter(|taker| *taker == name).count();
            assert!(count.abs_diff(100) < 50, "{name}: {count}");
        }
        assert!(members.remove(&sessions[1]));
        for (number, former) in (0..).zip(&before) {
            assert!(former == "b" || of(&members, number) == *former);
        }
    }

    #[test]
    fn sticky_stays_with_its_member_until_that_one_goes() {
        let (mut members, sessions) = members(&["a", "b", "c"]);
        let of = |members: &Members, draw: u64| {
            taker(members, &ask(Strategy::Sticky, 0, draw << 32), ready).unwrap()
        };
        assert_eq!(of(&members, 1), "b");
        assert_eq!(of(&members, 2), "b");
        members.remove(&sessions[0]);
        assert_eq!(of(&members, 0), "b", "though another one went");
        members.remove(&sessions[1]);
        assert_eq!(of(&members, 0), "c");
    }

    #[test]
    fn the_member_with_the_least_under_way_is_next() {
        let (members, _sessions) = members(&["a", "b"]);
        let copies: Vec<_> = (0..3)
            .map(|_| members.copy(&members.connected[0], None))
            .collect();
        let one = members.copy(&members.connected[1], None);
        let ask = ask(Strategy::LeastInflight, 0, 0);
        for _ in 0..3 {
            assert_eq!(taker(&members, &ask, ready).unwrap(), "b");
        }
        drop(copies);
        for _ in 0..3 {
            assert_eq!(taker(&members, &ask, ready).unwrap(), "a");
        }
        drop(one);
        let takers: Vec<_> = (0..2)
            .map(|_| taker(&members, &ask, ready).unwrap())
            .collect();
        assert_ne!(takers[0], takers[1], "equals take turns");
    }

    #[test]
    fn who_has_no_room_is_passed_over() {
        let (members, _sessions) = members(&["full", "waits", "gone"]);
        let of = |name: &str| match name {
            "full" => Some(Readiness::Full),
            "waits" => Some(Readiness::Waiting),
            _ => None,
        };
        for _ in 0..6 {
            let taker = taker(&members, &ask(Strategy::RoundRobin, 0, 0), of);
            assert_eq!(taker.as_deref(), Some("waits"));
        }
    }

    #[test]
    fn who_is_full_or_blocked_takes_it_only_when_no_node_has_better() {
        let (members, _sessions) = members(&["full", "blocked"]);
        let of = |name: &str| match name {
            "full" => Some(Readiness::Full),
            _ => Some(Readiness::Blocked),
        };
        assert_eq!(
            taker(&members, &ask(Strategy::RoundRobin, 0, 0), of),
            None,
            "perhaps another node has better"
        );
        for _ in 0..4 {
            assert_eq!(taker(&members, &last(), of).as_deref(), Some("blocked"));
        }
        let full = |_: &str| Some(Readiness::Full);
        assert!(taker(&members, &last(), full).is_some());
    }

    #[test]
    fn a_member_that_is_away_comes_last() {
        let (mut members, sessions) = members(&["a", "b"]);
        members.set_connected(&sessions[0], false);
        let counted = |members: &Members| (members.summary().count, members.summary().away);
        assert_eq!(counted(&members), (1, false));
        assert!(members.has_other(&sessions[0]) && !members.has_other(&sessions[1]));
        let of = |name: &str| match name {
            "a" => Some(Readiness::Away),
            _ => Some(Readiness::Full),
        };
        assert_eq!(taker(&members, &last(), of).as_deref(), Some("b"));
        members.set_connected(&sessions[1], false);
        assert_eq!(counted(&members), (2, true));
        let away = |_: &str| Some(Readiness::Away);
        assert_eq!(taker(&members, &ask(Strategy::Random, 0, 0), away), None);
        assert!(taker(&members, &last(), away).is_some());
        members.set_connected(&sessions[1], true);
        assert!(!members.insert(subscriber(&sessions[0])), "it is known");
        assert_eq!(counted(&members), (2, false));
        for session in &sessions {
            assert!(members.remove(session) && !members.remove(session));
        }
        assert!(members.is_empty());
        assert_eq!(counted(&members), (0, false));
        assert_eq!(taker(&members, &last(), ready), None);
    }
}
