//! State time between processes: a replica whose process does not carry its group's time gets it from the leader; a leader that does not
//! asks the others whether they do, before it stamps anything.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flotte_proto::{TimeRequest, TimeResponse, envelope};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::node::Node;
use crate::id::{GroupId, NodeId};
use crate::leader::wall_ms;
use crate::net::{Haste, Network};
use crate::raft::{Group, Role};
use crate::state_time::{Stamp, StateTime, Survey, Told, Verdict};

/// Pause before a node that did not answer is asked again, and a leader that does not carry the time itself yet.
const AGAIN: Duration = Duration::from_millis(50);
const CALL_TIMEOUT: Duration = Duration::from_millis(500);

/// Has one replica carry its group's time.
struct Keeping {
    me: NodeId,
    group: Group,
    time: Arc<StateTime>,
    network: Network,
    /// A silent node may carry it for so long; after that it counts as down.
    silent_max: Duration,
}

impl Node {
    /// Has the replica of a group carry its time, as soon as it can be known; ends then, or with `shutdown`.
    pub(super) fn keep_time(
        &self,
        group: Group,
        time: Arc<StateTime>,
        shutdown: CancellationToken,
    ) {
        let keeping = Keeping {
            me: self.id,
            group,
            time,
            network: self.network.clone(),
            silent_max: self.config.node_down_after,
        };
        tokio::spawn(async move { shutdown.run_until_cancelled(keeping.run()).await });
    }

    /// What this node knows of a group's time.
    pub(super) fn tell_time(&self, id: GroupId) -> envelope::Body {
        let known = match id {
            GroupId::META => Some((self.meta_group.applied(), Arc::clone(self.meta.time()))),
            _ => self.groups.read().get(&id).map(|replica| {
                let time = Arc::clone(replica.machine.time());
                (replica.group.applied(), time)
            }),
        };
        let Some((applied, time)) = known else {
            return envelope::Body::Error(format!("no replica of {id} here"));
        };
        let now = Instant::now();
        envelope::Body::TimeResponse(TimeResponse {
            wall_ms: wall_ms(),
            time_ms: time.carried().map_or(0, |carried| carried.ms_at(now)),
            applied,
        })
    }
}

impl Keeping {
    async fn run(self) {
        let mut status = self.group.watch();
        loop {
            let known = status.borrow_and_update().clone();
            let carried = async {
                match (known.role, known.leader) {
                    (Role::Stopped, _) | (_, None) => std::future::pending().await,
                    (Role::Leader, _) => self.lead(&known.voters, &known.learners).await,
                    (_, Some(leader)) => self.follow(leader).await,
                }
            };
            let is_other = |now: &crate::raft::GroupStatus| {
                (now.term, now.role, now.leader) != (known.term, known.role, known.leader)
            };
            tokio::select! {
                carried = carried => return self.time.carry(carried),
                changed = status.wait_for(is_other) => if changed.is_err() { return },
            }
        }
    }

    /// What the leader says, once all that it had applied by then is applied here: what is applied later says more.
    async fn follow(&self, leader: NodeId) -> Stamp {
        loop {
            if let Some((response, at)) = self.ask(leader).await
                && response.time_ms > 0
                && self.group.wait_applied(response.applied).await.is_ok()
            {
                return Stamp::of_ms(response.time_ms, at);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Asks all others, once all that was committed before is applied here.
    async fn lead(&self, voters: &[NodeId], learners: &[NodeId]) -> Stamp {
        while !self.has_applied_all().await {
            tokio::time::sleep(AGAIN).await;
        }
        let begin = Instant::now();
        let clock = (self.me, Stamp::of_ms(wall_ms(), begin));
        let (voters, learners) = (voters.iter().copied(), learners.iter().copied());
        let mut survey = Survey::new(clock, voters, learners, begin + self.silent_max);
        let mut asks: FuturesUnordered<_> = survey.silent().map(|node| self.insist(node)).collect();
        loop {
            let now = Instant::now();
            if let Some(verdict) = survey.verdict(now) {
                return self.go_on(&survey, verdict);
            }
            let patience = survey.patience(now);
            tokio::select! {
                Some((from, response, at)) = asks.next() => {
                    survey.handle_told(from, told(&response), at);
                }
                () = tokio::time::sleep(patience.unwrap_or_default()), if patience.is_some() => {}
                else => std::future::pending().await,
            }
        }
    }

    async fn has_applied_all(&self) -> bool {
        match self.group.read_index(Haste::Now).await {
            Ok(index) => self.group.wait_applied(index).await.is_ok(),
            Err(_) => false,
        }
    }

    fn go_on(&self, survey: &Survey, verdict: Verdict) -> Stamp {
        let group = self.group.id();
        match verdict {
            Verdict::Carried(stamp) => stamp,
            Verdict::Jump(stamp) => {
                let silent: Vec<NodeId> = survey.silent().collect();
                let from_ms = self.time.now_ms();
                let clocks_ms = stamp.ms_at(Instant::now());
                if from_ms == 0 {
                    debug!(%group, clocks_ms, "a group begins: state time is that of the voters' clocks");
                } else if silent.is_empty() {
                    info!(%group, from_ms, clocks_ms, "all replicas were down: state time goes on by the clocks of the voters");
                } else {
                    warn!(%group, from_ms, clocks_ms, ?silent, "no replica that answers has run since before: state time goes on by the clocks of the voters that do");
                }
                stamp
            }
        }
    }

    /// Asks until there is an answer.
    async fn insist(&self, node: NodeId) -> (NodeId, TimeResponse, Instant) {
        loop {
            if let Some((response, at)) = self.ask(node).await {
                return (node, response, at);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn ask(&self, node: NodeId) -> Option<(TimeResponse, Instant)> {
        let group = self.group.id().0;
        let request = envelope::Body::TimeRequest(TimeRequest { group });
        match self.network.call(node, request, CALL_TIMEOUT).await {
            Ok(envelope::Body::TimeResponse(response)) => Some((response, Instant::now())),
            _ => None,
        }
    }
}

fn told(response: &TimeResponse) -> Told {
    Told {
        carried_ms: (response.time_ms > 0).then_some(response.time_ms),
        wall_ms: response.wall_ms,
    }
}
