//! What the leader of a session group does besides answering: takes orphans offline, fires what is due, publishes wills,
//! tells homes that their sessions ended. It begins anew on each election and depends on nothing that it saw before.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flotte_proto::session_command::Command;
use flotte_proto::{WillDone, WillKey};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

use super::life::Life;
use super::node::{Node, Replica};
use super::telling::{Telling, homes_gone};
use crate::beat;
use crate::id::{GroupId, NodeRef};

/// How late a timer may be.
const TICK: Duration = Duration::from_millis(100);
/// Commands of one round.
const ROUND_MAX: usize = 1_000;
/// Wills that are being published at once.
const WILLS_MAX: usize = 64;

/// The duties for one group during one start of this node.
pub(super) struct Duties {
    pub node: Arc<Node>,
    pub life: Arc<Life>,
    pub group: GroupId,
    pub replica: Replica,
    pub shutdown: CancellationToken,
}

impl Duties {
    pub async fn run(self) {
        let (shutdown, stop) = (self.shutdown.clone(), self.replica.stop.clone());
        let forever = stop.run_until_cancelled(self.forever());
        shutdown.run_until_cancelled(forever).await;
    }

    async fn forever(self) {
        let mut membership = self.node.meta().membership();
        let mut tick = beat::interval(TICK);
        let mut wills: FuturesUnordered<BoxFuture<'static, u64>> = FuturesUnordered::new();
        let mut publishing = BTreeSet::new();
        // Orphans arise by elections and changes of members only, not with every tick.
        let (mut reconcile, mut led) = (true, false);
        let mut telling = Telling::default();
        loop {
            let leads = self.serves();
            let told = telling.take_told(&self.replica.machine.read());
            if leads {
                reconcile = self.round(reconcile || !led, told).await;
                self.publish_wills(&mut wills, &mut publishing);
            }
            self.end_own();
            reconcile |= self.opened_by_the_dead();
            led = leads;
            tokio::select! {
                _ = tick.tick() => if leads {
                    self.tell_homes(&mut telling);
                },
                () = telling.answered() => {}
                () = self.replica.machine.work(), if leads => {}
                Ok(()) = membership.changed() => reconcile = true,
                Some(key) = wills.next() => {
                    publishing.remove(&key);
                }
            }
        }
    }

    /// Only the leader acts, only while its node is Up and under its lease.
    fn serves(&self) -> bool {
        self.replica.group.status().leader == Some(self.node.id()) && self.node.lease().held()
    }

    /// Proposes what is due, and that homes were told, and waits until it is done. Says whether there are more orphans.
    async fn round(&self, reconcile: bool, told: Vec<Command>) -> bool {
        let now = self.replica.machine.time().now_ms();
        let mut commands = self.replica.machine.read().due(now, ROUND_MAX);
        commands.extend(told);
        let mut more = false;
        if reconcile {
            let state = self.replica.machine.read();
            let orphans = state.orphans(|node| self.is_up(node), ROUND_MAX);
            more = orphans.len() == ROUND_MAX;
            commands.extend(orphans);
            commands.extend(homes_gone(&state, |node| self.is_up(node)));
        }
        let replies = commands
            .into_iter()
            .map(|command| self.life.propose_session(self.group, command));
        let replies = futures::future::join_all(replies).await;
        more || replies.iter().any(Result::is_err)
    }

    /// An incarnation is judged only once this replica of meta has heard of it.
    fn is_up(&self, node: NodeRef) -> bool {
        !self.node.meta().read().is_gone(node)
    }

    /// An Open may be committed long after its node went Down: nothing else would ever take that client offline.
    fn opened_by_the_dead(&self) -> bool {
        let openers = self.replica.machine.take_openers();
        openers.into_iter().any(|node| !self.is_up(node))
    }

    fn publish_wills(
        &self,
        wills: &mut FuturesUnordered<BoxFuture<'static, u64>>,
        publishing: &mut BTreeSet<u64>,
    ) {
        let now = self.replica.machine.time().now_ms();
        let state = self.replica.machine.read();
        let floor = state.outbox().floor();
        let next: Vec<_> = state
            .outbox()
            .publishable(now)
            .filter(|(key, _)| !publishing.contains(key))
            .take(WILLS_MAX - publishing.len())
            .map(|(key, fired)| (key, fired.clone()))
            .collect();
        drop(state);
        for (key, fired) in next {
            publishing.insert(key);
            let will_key = WillKey {
                group: self.group.0,
                key,
                floor,
            };
            let placed = self.node.local().publish_will(fired, will_key);
            let (life, group) = (Arc::clone(&self.life), self.group);
            wills.push(Box::pin(async move {
                if placed.await {
                    // Not committed: it is published again under the same key, and dropped where it was seen.
                    let _ = life
                        .propose_session(group, Command::WillDone(WillDone { key }))
                        .await;
                }
                key
            }));
        }
    }

    /// Whoever still holds a session that is over or elsewhere ends it. The node that opened it elsewhere says so too, but
    /// that one may have died since: so the leader does, for as long as the state says that a home has not heard of it.
    fn tell_homes(&self, telling: &mut Telling) {
        let now = self.replica.machine.time().now_ms();
        let due = telling.due(&self.replica.machine.read(), now);
        telling.begin(self.group, due, &self.life.kicks);
    }

    /// A home whose own replica knows waits for nobody.
    fn end_own(&self) {
        let ended = self.replica.machine.take_ended();
        for ended in ended.iter().filter(|ended| ended.home == self.life.me) {
            let (client, epoch) = (&ended.client, ended.epoch);
            let kicks = &self.life.kicks;
            drop(kicks.end_session(self.group, client, ended.home, epoch));
        }
    }
}
