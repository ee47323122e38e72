//! Clients are spread evenly over the nodes: the node that an operator asks looks how many each has, and has those with too
//! many send some to those with too few, as a draining node does. Sessions that outlive their connections stay: what they
//! hold is on their node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flotte_cluster::handle::{Cluster, Load, Shed};
use flotte_cluster::id::NodeId;
use flotte_mqtt::Version;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::connection::Shared;
use crate::drain;
use crate::session::Session;

/// Clients of 3.x are not told where to go and may come back: it is looked again so often.
const PASSES_MAX: u32 = 10;
/// A pass may take so long.
const PASS_MAX: Duration = Duration::from_secs(60);
/// How often it is looked whether a pass is over.
const LOOK: Duration = Duration::from_millis(250);
/// And for how long all counts must stand still.
const QUIET: Duration = Duration::from_secs(1);
/// Clients that were sent away are waited for so long: some come back only after a pause of their own.
const RETURN_MAX: Duration = Duration::from_secs(20);
/// The time in which one node sends its surplus away, unless that is small.
const SHED_TIME: Duration = Duration::from_secs(10);

/// What this node does of it.
#[derive(Debug, Default)]
pub struct Rebalancing {
    /// It was asked to see to the whole.
    runs: AtomicBool,
    /// It sends clients to these.
    sheds: Mutex<Option<Vec<NodeId>>>,
}

impl Rebalancing {
    /// Whether this node sees to a rebalancing.
    pub fn runs(&self) -> bool {
        self.runs.load(Ordering::Acquire)
    }

    /// Where clients that are sent away go; empty = anywhere.
    pub fn targets(&self) -> Vec<NodeId> {
        self.sheds.lock().clone().unwrap_or_default()
    }

    fn sheds(&self) -> bool {
        self.sheds.lock().is_some()
    }
}

/// Begins one, unless one runs.
pub fn begin(shared: &Arc<Shared>) {
    if shared.rebalancing.runs.swap(true, Ordering::AcqRel) {
        return;
    }
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        run(shared.cluster()).await;
        shared.rebalancing.runs.store(false, Ordering::Release);
    });
}

/// How each node that serves is doing, with its name. None = it does not answer.
pub async fn loads(cluster: &Cluster) -> Vec<(NodeId, String, Option<Load>)> {
    let serving = cluster.serving().into_iter().map(|(id, name)| async move {
        let load = cluster.load(id, None).await;
        (id, name, load)
    });
    futures::future::join_all(serving).await
}

/// Whether counts differ by less than a tenth, or as little as whole clients can.
pub fn is_even(counts: &[u64]) -> bool {
    let max = counts.iter().max().copied().unwrap_or(0);
    let min = counts.iter().min().copied().unwrap_or(0);
    max - min <= 1 || (max - min) * 10 < max
}

/// How this node is doing; with `shed` it begins to send clients away, unless it does so already.
pub fn handle_load(shared: &Arc<Shared>, shed: Option<Shed>) -> Load {
    let mut sessions = shared.registry.all();
    sessions.retain(|session| session.is_connected());
    let clients = sessions.len() as u64;
    if let Some(shed) = shed
        && shared.departures.reason().is_none()
    {
        let surplus = clients.saturating_sub(shed.keep);
        let going = who_goes(sessions, usize::try_from(surplus).unwrap_or(usize::MAX));
        send(shared, going, shed.to);
    }
    Load {
        clients,
        sheds: shared.rebalancing.sheds(),
    }
}

fn send(shared: &Arc<Shared>, going: Vec<Arc<Session>>, to: Vec<NodeId>) {
    let mut sheds = shared.rebalancing.sheds.lock();
    if sheds.is_some() || going.is_empty() {
        return;
    }
    *sheds = Some(to);
    drop(sheds);
    info!(
        clients = going.len(),
        "sent to other nodes, which have fewer"
    );
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        drain::send_some_away(going, SHED_TIME).await;
        *shared.rebalancing.sheds.lock() = None;
    });
}

/// Those of 5.0 first, who are told where to.
fn who_goes(mut sessions: Vec<Arc<Session>>, count: usize) -> Vec<Arc<Session>> {
    sessions.retain(|session| !session.is_durable());
    sessions.sort_by_key(|session| session.output().lock().version() != Some(Version::V5));
    sessions.truncate(count);
    sessions
}

async fn run(cluster: &Cluster) {
    for _ in 0..PASSES_MAX {
        let loads = answers(cluster).await;
        let counts: Vec<u64> = loads.iter().map(|(_, clients)| *clients).collect();
        if is_even(&counts) {
            info!(?counts, "clients are spread evenly");
            return;
        }
        let (sheds, to) = plan(&loads);
        for (node, keep) in sheds {
            let shed = Shed {
                keep,
                to: to.clone(),
            };
            if cluster.load(node, Some(shed)).await.is_none() {
                warn!(%node, "does not answer, and sends no clients away");
            }
        }
        let before = counts.iter().sum();
        let after = settled(cluster, before).await;
        if !are_back(before, after) {
            warn!(
                before,
                after, "clients that were sent away are not back: no more are"
            );
            return;
        }
    }
    warn!(
        "clients are not spread evenly: they come back, or their sessions are to stay where they are"
    );
}

async fn answers(cluster: &Cluster) -> Vec<(NodeId, u64)> {
    let loads = loads(cluster).await.into_iter();
    loads
        .filter_map(|(id, _, load)| Some((id, load?.clients)))
        .collect()
}

/// How many each node with too many keeps, and who gets the others.
fn plan(loads: &[(NodeId, u64)]) -> (Vec<(NodeId, u64)>, Vec<NodeId>) {
    let total: u64 = loads.iter().map(|(_, clients)| clients).sum();
    let nodes = loads.len().max(1) as u64;
    let (floor, keep) = (total / nodes, total.div_ceil(nodes));
    let too_many = loads.iter().filter(|(_, clients)| *clients > keep);
    let too_few = loads.iter().filter(|(_, clients)| *clients < floor.max(1));
    (
        too_many.map(|(id, _)| (*id, keep)).collect(),
        too_few.map(|(id, _)| *id).collect(),
    )
}

/// Whether as good as all are there again: sending more away would only make them fewer.
fn are_back(before: u64, after: u64) -> bool {
    before.saturating_sub(after) * 20 <= before
}

/// Waits until nobody sends clients away any more and they have found their places. Returns how many there are.
async fn settled(cluster: &Cluster, before: u64) -> u64 {
    let begin = Instant::now();
    let mut last = (Vec::new(), begin);
    while begin.elapsed() < PASS_MAX {
        tokio::time::sleep(LOOK).await;
        let now: Vec<Option<Load>> = loads(cluster).await.into_iter().map(|one| one.2).collect();
        if now != last.0 {
            last = (now, Instant::now());
        }
        let quiet = last.1.elapsed();
        let sheds = last.0.iter().flatten().any(|load| load.sheds);
        let patience = match are_back(before, total(&last.0)) {
            true => QUIET,
            false => RETURN_MAX,
        };
        if !sheds && quiet >= patience {
            break;
        }
    }
    total(&last.0)
}

fn total(loads: &[Option<Load>]) -> u64 {
    loads.iter().flatten().map(|load| load.clients).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_sent_away_while_one_in_twenty_is_missing() {
        assert!(are_back(100, 95) && are_back(3, 3) && are_back(5, 9));
        assert!(!are_back(100, 94) && !are_back(6, 5));
    }

    #[test]
    fn counts_are_even_below_a_tenth() {
        assert!(is_even(&[]) && is_even(&[7]) && is_even(&[0, 1]));
        assert!(is_even(&[100, 91, 95]));
        assert!(!is_even(&[100, 90]) && !is_even(&[2, 0]));
    }

    #[test]
    fn those_with_too_many_keep_the_mean_and_those_below_it_get_the_rest() {
        let loads = [(NodeId(1), 9), (NodeId(2), 0), (NodeId(3), 4)];
        let (sheds, to) = plan(&loads);
        assert_eq!((sheds, to), (vec![(NodeId(1), 5)], vec![NodeId(2)]));
        let (sheds, to) = plan(&[(NodeId(1), 2), (NodeId(2), 0), (NodeId(3), 0)]);
        assert_eq!(
            (sheds, to),
            (vec![(NodeId(1), 1)], vec![NodeId(2), NodeId(3)])
        );
    }
}
