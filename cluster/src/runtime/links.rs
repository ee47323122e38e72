//! The links of one start of this node to all others: who gets what is decided elsewhere; here it gets there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotte_proto::{Forward, LinkFrame, LinkReply, Part};
use metrics::counter;
use parking_lot::{Mutex, MutexGuard, RwLock};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span};

use crate::handle::Placement;
use crate::id::{NodeId, NodeRef};
use crate::link::{Lane, LinkLimits, Meter, Placed, Pushed, Queued, Sender};
use crate::meta::MetaMachine;
use crate::net::{Network, OutboundLink};

/// What a link holds before it pushes back.
const LIMITS: LinkLimits = LinkLimits {
    messages: 100_000,
    bytes: 64 << 20,
    // One of the greatest, and no second beside it.
    large_bytes: 256 << 20,
    // More than one member's queue holds by default: so one that never acknowledges uses up only its own.
    kept_messages: 100_000,
    kept_bytes: 128 << 20,
};
/// Who waits for a node that is gone is told so this many at a time.
const TOLD_AT_ONCE: usize = 256;
/// How often those who wait for large messages of others are told that these go on.
const WAITING: Duration = Duration::from_secs(1);
/// Pause between attempts to connect.
const RETRY: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// All outgoing links of one start of this node.
pub struct Links {
    network: Network,
    meta: Arc<MetaMachine>,
    /// By node; at most one per member.
    peers: RwLock<BTreeMap<NodeId, Arc<Peer>>>,
    /// Pushes come from the workers; the links run with the cluster.
    runtime: tokio::runtime::Handle,
    shutdown: CancellationToken,
}

/// Who waits for a QoS 1/2 message.
type Waiter = Arc<dyn Placement>;

struct Peer {
    node: NodeRef,
    sender: Mutex<Sender<Waiter>>,
    meter: Meter,
    /// There is something to send.
    work: Notify,
    /// A lane that was full has room again, or the end.
    room: Notify,
    ended: CancellationToken,
    /// When those who wait in the lane of large messages were last told that it goes on.
    told: Mutex<Option<Instant>>,
}

impl Links {
    pub(super) fn new(
        network: Network,
        meta: Arc<MetaMachine>,
        shutdown: CancellationToken,
    ) -> Self {
        Links {
            network,
            meta,
            peers: RwLock::default(),
            runtime: tokio::runtime::Handle::current(),
            shutdown,
        }
    }

    /// Hands a message to the link to one incarnation of a node; makes the link where there is none.
    pub fn push(
        &self,
        to: NodeRef,
        message: Forward,
        waiter: Option<Arc<dyn Placement>>,
    ) -> Pushed {
        let Some(peer) = self.peer(to) else {
            if let Some(waiter) = waiter {
                waiter.placed(to, Placed::NodeGone);
            }
            return Pushed::Dropped;
        };
        let pushed = {
            let mut sender = peer.sender.lock();
            if !peer.ended.is_cancelled() {
                let pushed = sender.push(message, waiter);
                drop(sender);
                peer.work.notify_one();
                return pushed;
            }
            Pushed::Dropped
        };
        if let Some(waiter) = waiter {
            waiter.placed(to, Placed::NodeGone);
        }
        pushed
    }

    /// Resolves when a lane of the link has room, or the link is no more.
    pub async fn room(&self, to: NodeRef, lane: Lane) {
        let Some(peer) = self
            .peers
            .read()
            .get(&to.node)
            .filter(|peer| peer.node == to)
            .cloned()
        else {
            return;
        };
        loop {
            let changed = peer.room.notified();
            if peer.ended.is_cancelled() || !peer.sender.lock().handle_waiting(lane) {
                return;
            }
            changed.await;
        }
    }

    /// Members changed: ends the links to all that are gone. Whoever waits there is told so.
    pub(super) fn handle_members(&self) {
        let peers: Vec<Arc<Peer>> = self.peers.read().values().cloned().collect();
        for peer in peers {
            self.end_if_gone(&peer);
        }
    }

    /// A link to a node that is gone would hold what waits there until its publishers give up.
    fn end_if_gone(&self, peer: &Arc<Peer>) {
        if !self.meta.read().is_gone(peer.node) {
            return;
        }
        let mut peers = self.peers.write();
        if peers
            .get(&peer.node.node)
            .is_some_and(|held| Arc::ptr_eq(held, peer))
        {
            peers.remove(&peer.node.node);
        }
        drop(peers);
        peer.end();
    }

    /// Ends all links.
    pub(super) fn end(&self) {
        let peers = std::mem::take(&mut *self.peers.write());
        peers.values().for_each(|peer| peer.end());
    }

    /// What waits on each link, for metrics.
    pub fn queued(&self) -> Vec<(NodeId, Queued)> {
        self.peers
            .read()
            .iter()
            .map(|(node, peer)| (*node, peer.sender.lock().queued()))
            .collect()
    }

    fn peer(&self, to: NodeRef) -> Option<Arc<Peer>> {
        if let Some(peer) = self.peers.read().get(&to.node) {
            match peer.node.incarnation.cmp(&to.incarnation) {
                std::cmp::Ordering::Equal => return Some(Arc::clone(peer)),
                std::cmp::Ordering::Greater => return None,
                std::cmp::Ordering::Less => {}
            }
        }
        self.make(to)
    }

    fn make(&self, to: NodeRef) -> Option<Arc<Peer>> {
        if self.shutdown.is_cancelled() {
            return None;
        }
        let mut peers = self.peers.write();
        if let Some(peer) = peers
            .get(&to.node)
            .filter(|peer| peer.node.incarnation >= to.incarnation)
        {
            return (peer.node == to).then(|| Arc::clone(peer));
        }
        let peer = Arc::new(Peer {
            node: to,
            sender: Mutex::new(Sender::new(LIMITS)),
            meter: Meter::new(to.node),
            work: Notify::new(),
            room: Notify::new(),
            ended: self.shutdown.child_token(),
            told: Mutex::default(),
        });
        let older = peers.insert(to.node, Arc::clone(&peer));
        drop(peers);
        if let Some(older) = older {
            older.end();
        }
        let task = run(Arc::clone(&peer), self.network.clone());
        self.runtime
            .spawn(task.instrument(info_span!("link", to = %to)));
        // Matched before its Down was applied, and here only after the links heard of that.
        self.end_if_gone(&peer);
        Some(peer)
    }
}

impl Peer {
    fn end(&self) {
        self.ended.cancel();
        let waiters = self.sender.lock().end();
        self.room.notify_waiters();
        let node = self.node;
        if waiters.len() <= TOLD_AT_ONCE {
            waiters
                .into_iter()
                .for_each(|(waiter, placed)| waiter.placed(node, placed));
            return;
        }
        // Each shared delivery looks for another member: others of this thread have their turns meanwhile.
        tokio::spawn(async move {
            for (number, (waiter, placed)) in waiters.into_iter().enumerate() {
                waiter.placed(node, placed);
                if number % TOLD_AT_ONCE == 0 {
                    tokio::task::yield_now().await;
                }
            }
        });
    }

    /// The next frame; none while there is nothing to send.
    fn poll_frame(&self) -> Option<LinkFrame> {
        let mut sender = self.sender.lock();
        let messages = sender.poll_frame();
        let parts: Vec<Part> = sender.poll_part().into_iter().collect();
        let confirmed = sender.confirmed();
        // Of QoS 0 this is all that is ever heard.
        let has_room = sender.poll_room();
        drop(sender);
        if has_room {
            self.room.notify_waiters();
        }
        (!messages.is_empty() || !parts.is_empty()).then(|| LinkFrame {
            messages,
            parts,
            confirmed,
            ..LinkFrame::default()
        })
    }

    fn settle(&self, reply: &LinkReply) {
        self.meter.acknowledged(reply.acked);
        let mut sender = self.sender.lock();
        let placed = sender.handle_ack(reply.acked, &reply.not_placed, &reply.settled);
        let progressed = sender.handle_taken(&reply.taken);
        self.tell(sender, placed, progressed);
    }

    /// As [`Peer::settle`], for the first reply of a connection.
    fn resume(&self, reply: &LinkReply) {
        self.meter.acknowledged(reply.acked);
        let mut sender = self.sender.lock();
        let placed = sender.handle_resumed(reply.acked, &reply.not_placed, &reply.open);
        let progressed = sender.handle_taken_before(&reply.taken);
        self.tell(sender, placed, progressed);
    }

    /// Tells all whom a reply concerns, without the lock.
    fn tell(
        &self,
        mut sender: MutexGuard<'_, Sender<Waiter>>,
        placed: Vec<(Waiter, Placed)>,
        progressed: Vec<Waiter>,
    ) {
        let (unkept, has_room) = (sender.poll_unkept(), sender.poll_room());
        let waiting = if sender.has_moved() && self.tells_waiting() {
            sender.poll_waiting()
        } else {
            Vec::new()
        };
        drop(sender);
        waiting.iter().for_each(|waiter| waiter.progressed());
        progressed.iter().for_each(|waiter| waiter.progressed());
        if unkept > 0 {
            counter!("flotte_share_unkept_total").increment(unkept);
        }
        for (waiter, placed) in placed {
            waiter.placed(self.node, placed);
        }
        if has_room {
            self.room.notify_waiters();
        }
    }

    /// Whether it is time to tell those who wait, there may be many, that others go on.
    fn tells_waiting(&self) -> bool {
        let mut told = self.told.lock();
        let is_due = told.is_none_or(|at| at.elapsed() >= WAITING);
        if is_due {
            *told = Some(Instant::now());
        }
        is_due
    }
}

async fn run(peer: Arc<Peer>, network: Network) {
    let ended = peer.ended.clone();
    let mut pause = RETRY;
    let forever = async {
        loop {
            match network.open_link(peer.node.node).await {
                Ok(stream) => {
                    let why = converse(&peer, stream, &mut pause).await;
                    peer.sender.lock().handle_disconnected();
                    peer.meter.disconnected();
                    info!(%why, "link lost");
                }
                Err(e) => debug!(error = %e, "link not possible yet"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    };
    ended.run_until_cancelled(forever).await;
    // A push that came between the end and now.
    peer.end();
}

/// Sends and settles until the stream fails; says why it did.
async fn converse(peer: &Peer, mut stream: OutboundLink, pause: &mut Duration) -> String {
    if stream.peer.incarnation != peer.node.incarnation {
        return format!(
            "the node is in its incarnation {} now",
            stream.peer.incarnation
        );
    }
    let first = LinkFrame {
        to_incarnation: peer.node.incarnation,
        ..LinkFrame::default()
    };
    if stream.frames.send(first).await.is_err() {
        return "closed".into();
    }
    match stream.replies.message().await {
        Ok(Some(reply)) if !reply.refused.is_empty() => return reply.refused,
        Ok(Some(reply)) => peer.resume(&reply),
        Ok(None) => return "closed".into(),
        Err(status) => return status.message().to_owned(),
    }
    *pause = RETRY;
    let OutboundLink {
        frames,
        mut replies,
        ..
    } = stream;
    loop {
        tokio::select! {
            reply = replies.message() => match reply {
                Ok(Some(reply)) => peer.settle(&reply),
                Ok(None) => return "closed".into(),
                Err(status) => return status.message().to_owned(),
            },
            sent = send_waiting(peer, &frames) => if !sent {
                return "closed".into();
            },
        }
    }
}

/// Waits for room in the stream, then for something to send, and sends one frame. Cancel safe: a frame is taken from the
/// sender only when it is handed over.
async fn send_waiting(peer: &Peer, frames: &mpsc::Sender<LinkFrame>) -> bool {
    let Ok(permit) = frames.reserve().await else {
        return false;
    };
    loop {
        let changed = peer.work.notified();
        if let Some(frame) = peer.poll_frame() {
            peer.meter.sent(&frame);
            permit.send(frame);
            return true;
        }
        changed.await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::inbound::Inbound;
    use super::*;
    use crate::meta::a_founded_machine;
    use crate::net::{Claims, Identity, NetConfig};

    #[derive(Default)]
    struct Told(Mutex<Vec<(NodeRef, Placed)>>);

    impl Placement for Told {
        fn placed(&self, node: NodeRef, placed: Placed) {
            self.0.lock().push((node, placed));
        }
    }

    async fn network(shutdown: &CancellationToken) -> Network {
        let bind = ([127, 0, 0, 1], 0).into();
        let claims = Claims {
            cluster_id: 1,
            incarnation: 1,
        };
        let identity = Arc::new(Identity::new(NodeId(1), "n1", "127.0.0.1:1", claims));
        let listener = Network::bind(bind).await.unwrap();
        let handler = Arc::new(Inbound::default());
        Network::start(
            NetConfig::new(bind),
            listener,
            identity,
            handler,
            shutdown.clone(),
        )
    }

    /// A link that nobody runs.
    fn peer(node: NodeRef, limits: LinkLimits) -> Arc<Peer> {
        Arc::new(Peer {
            node,
            sender: Mutex::new(Sender::new(limits)),
            meter: Meter::new(node.node),
            work: Notify::new(),
            room: Notify::new(),
            ended: CancellationToken::new(),
            told: Mutex::default(),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_room_goes_on_as_soon_as_sent_qos_0_has_made_it() {
        let shutdown = CancellationToken::new();
        let meta = Arc::new(a_founded_machine(2));
        let links = Links::new(network(&shutdown).await, meta, shutdown.clone());
        let to = NodeRef {
            node: NodeId(3),
            incarnation: 0,
        };
        let limits = LinkLimits {
            messages: 8,
            ..LIMITS
        };
        let peer = peer(to, limits);
        links.peers.write().insert(to.node, Arc::clone(&peer));
        while links.push(to, Forward::default(), None) == Pushed::Room {}
        let waiter = || Some(Arc::new(Told::default()) as Arc<dyn Placement>);
        let full = links.push(to, Forward::default(), waiter());
        assert_eq!(full, Pushed::Full(Lane::Main));
        let mut room = Box::pin(links.room(to, Lane::Main));
        assert!(futures::poll!(room.as_mut()).is_pending(), "it is full");
        assert!(peer.poll_frame().is_some());
        let in_time = tokio::time::timeout(Duration::from_secs(60), room).await;
        assert!(
            in_time.is_ok(),
            "nothing was acknowledged, and all was sent"
        );
        shutdown.cancel();
    }

    #[tokio::test]
    async fn a_push_that_comes_after_the_down_of_its_node_waits_for_nothing() {
        let shutdown = CancellationToken::new();
        // Both are members, and neither has come Up with incarnation 0, nor ever will.
        let meta = Arc::new(a_founded_machine(2));
        let links = Links::new(network(&shutdown).await, meta, shutdown.clone());
        let (gone, on_its_way) = (NodeId(2), NodeId(3));
        for node in [gone, on_its_way] {
            let to = NodeRef {
                node,
                incarnation: 0,
            };
            let told = Arc::new(Told::default());
            links.push(to, Forward::default(), Some(told.clone()));
            let answer = told.0.lock().first().copied();
            let expected = (node == gone).then_some((to, Placed::NodeGone));
            assert_eq!(answer, expected, "{node}");
        }
        assert_eq!(links.queued().len(), 1, "no link to what is gone");
        shutdown.cancel();
    }
}
