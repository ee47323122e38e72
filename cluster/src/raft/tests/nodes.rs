//! Nodes in one process, each with a journal and snapshots of its own, over real connections.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotte_proto::envelope::Body;
use flotte_proto::raft_response::Response;
use flotte_proto::{Hello, ProbeRequest, ProbeResponse, RaftResponse};
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::journal::{GroupId, Journal, JournalConfig};
use crate::net::{
    Claims, Handler, Haste, Identity, InboundLink, NetConfig, Network, NodeId, PeerIdentity,
};
use crate::raft::{
    Fatal, FatalSignal, FrozenState, Group, GroupConfig, GroupStatus, Host, Machine, NodeInfo,
    ProposeError, RestoreError, Role, SnapshotStore, SubmitError,
};

pub const GROUP: GroupId = GroupId(1);
pub const LIMIT: Duration = Duration::from_secs(9);

/// Keeps all entries, and replies with how many there are.
#[derive(Default)]
pub struct Ledger {
    entries: Mutex<Vec<Bytes>>,
}

/// Stops the node, as an unknown command does.
pub const POISON: &[u8] = b"poison";

impl Ledger {
    pub fn entries(&self) -> Vec<Bytes> {
        self.entries.lock().clone()
    }

    pub fn len(&self) -> usize {
        self.entries.lock().len()
    }
}

impl Machine for Ledger {
    fn apply(&self, _: u64, _: u64, entry: Bytes) -> Result<Bytes, Fatal> {
        if entry == POISON {
            return Err(Fatal("an unknown command".to_owned()));
        }
        let mut entries = self.entries.lock();
        entries.push(entry);
        Ok(entries.len().to_string().into())
    }

    fn freeze(&self) -> Box<dyn FrozenState> {
        Box::new(Frozen(self.entries()))
    }

    fn restore(&self, _: u64, data: &mut dyn Read) -> Result<(), RestoreError> {
        let mut entries = Vec::new();
        let mut length = [0; 4];
        while data.read(&mut length[..1])? == 1 {
            data.read_exact(&mut length[1..])?;
            let mut entry = vec![0; u32::from_le_bytes(length) as usize];
            data.read_exact(&mut entry)?;
            entries.push(Bytes::from(entry));
        }
        *self.entries.lock() = entries;
        Ok(())
    }
}

struct Frozen(Vec<Bytes>);

impl FrozenState for Frozen {
    fn write(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
        for entry in self.0 {
            out.write_all(&(entry.len() as u32).to_le_bytes())?;
            out.write_all(&entry)?;
        }
        Ok(())
    }
}

/// Hands consensus requests to the one group.
#[derive(Default)]
struct Router {
    group: RwLock<Option<Group>>,
}

impl Handler for Router {
    fn handle(&self, from: &PeerIdentity, request: Body) -> BoxFuture<'static, Body> {
        let group = self.group.read().clone();
        match (request, group) {
            (Body::RaftRequest(request), Some(group)) => group
                .handle(from.node_id, request)
                .map(Body::RaftResponse)
                .boxed(),
            _ => {
                let response = RaftResponse {
                    group: GROUP.0,
                    response: Some(Response::Failed("no such group".to_owned())),
                };
                futures::future::ready(Body::RaftResponse(response)).boxed()
            }
        }
    }

    fn accept(&self, _: &Hello) -> Result<(), String> {
        Ok(())
    }

    fn link(&self, _: PeerIdentity, _: InboundLink) -> BoxFuture<'static, ()> {
        futures::future::ready(()).boxed()
    }

    fn probe(&self, _: ProbeRequest) -> BoxFuture<'static, ProbeResponse> {
        futures::future::ready(ProbeResponse::default()).boxed()
    }
}

/// A running node.
pub struct Node {
    pub id: NodeId,
    pub group: Group,
    pub machine: Arc<Ledger>,
    pub fatal: FatalSignal,
    pub network: Network,
    pub address: SocketAddr,
    pub journal: Journal,
    shutdown: CancellationToken,
    router: Arc<Router>,
}

impl Node {
    /// Starts on what the directory holds; port 0 for any.
    pub async fn start(id: u64, dir: &Path, config: GroupConfig, port: u16) -> Self {
        Self::start_in(id, dir, config, port, 7).await
    }

    pub async fn start_in(
        id: u64,
        dir: &Path,
        config: GroupConfig,
        port: u16,
        cluster_id: u64,
    ) -> Self {
        let id = NodeId(id);
        let claims = Claims {
            cluster_id,
            incarnation: 1,
        };
        let router = Arc::new(Router::default());
        let shutdown = CancellationToken::new();
        let bind = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let handler = Arc::clone(&router) as Arc<dyn Handler>;
        let bound = Network::bind(bind).await.unwrap();
        let address = bound.local_addr();
        let identity = Identity::new(id, &id.to_string(), &address.to_string(), claims);
        let identity = Arc::new(identity);
        let network = Network::start(
            NetConfig::new(bind),
            bound,
            identity,
            handler,
            shutdown.clone(),
        );
        let journal_config = JournalConfig {
            segment_bytes: 1 << 20,
            ..JournalConfig::default()
        };
        let journal = Journal::open(&dir.join("journal"), journal_config).unwrap();
        let host = Host {
            node_id: id,
            journal: journal.clone(),
            snapshots: SnapshotStore::open(&dir.join("snapshots")).unwrap(),
            network: network.clone(),
            fatal: FatalSignal::new(),
        };
        let machine = Arc::new(Ledger::default());
        let group = Group::start(GROUP, config, machine.clone(), &host)
            .await
            .unwrap();
        *router.group.write() = Some(group.clone());
        Self {
            id,
            group,
            machine,
            fatal: host.fatal,
            network,
            address,
            journal,
            shutdown,
            router,
        }
    }

    /// Ends without saying goodbye to anyone. The journal must be closed for the next start.
    pub async fn kill(self) {
        self.shutdown.cancel();
        self.group.shutdown().await;
        self.router.group.write().take();
        self.network.stopped().await;
        self.journal.shutdown();
    }

    /// From now on nothing can be written.
    pub fn break_journal(&self) {
        self.journal.shutdown();
    }

    pub fn knows(&self, other: NodeId, address: SocketAddr) {
        self.network.set_peer(other, &address.to_string(), 0);
    }
}

/// Nodes 1, 2, ... with their directories.
pub struct Cluster {
    pub nodes: BTreeMap<u64, Node>,
    pub config: GroupConfig,
    dirs: BTreeMap<u64, TempDir>,
    addresses: BTreeMap<u64, SocketAddr>,
}

/// Times that make tests short.
pub fn quick() -> GroupConfig {
    GroupConfig {
        heartbeat_ms: 50,
        election_min_ms: 150,
        election_max_ms: 300,
        ..GroupConfig::meta()
    }
}

impl Cluster {
    /// Nodes that know each other, without a group yet.
    pub async fn start(count: u64, config: GroupConfig) -> Self {
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            config,
            dirs: BTreeMap::new(),
            addresses: BTreeMap::new(),
        };
        for id in 1..=count {
            cluster.add(id).await;
        }
        cluster
    }

    /// Three nodes with a group of all of them.
    pub async fn founded(config: GroupConfig) -> Self {
        let cluster = Self::start(3, config).await;
        cluster.found(&[1, 2, 3]).await;
        cluster
    }

    /// A new node, known to all others.
    pub async fn add(&mut self, id: u64) {
        self.dirs.insert(id, tempfile::tempdir().unwrap());
        self.run(id).await;
    }

    /// Starts a node on its directory, on the address it had.
    pub async fn run(&mut self, id: u64) {
        let port = self.addresses.get(&id).map_or(0, SocketAddr::port);
        let node = Node::start(id, self.dirs[&id].path(), self.config.clone(), port).await;
        self.addresses.insert(id, node.address);
        self.nodes.insert(id, node);
        for node in self.nodes.values() {
            for (id, address) in &self.addresses {
                node.knows(NodeId(*id), *address);
            }
        }
    }

    pub async fn kill(&mut self, id: u64) {
        self.nodes.remove(&id).unwrap().kill().await;
    }

    pub fn dir(&self, id: u64) -> &Path {
        self.dirs[&id].path()
    }

    pub async fn found(&self, voters: &[u64]) {
        let members: BTreeMap<NodeId, NodeInfo> = voters
            .iter()
            .map(|id| (NodeId(*id), self.info(*id)))
            .collect();
        for id in voters {
            // All may; the later ones find the group made already.
            let _ = self.nodes[id].group.initialize(members.clone()).await;
        }
    }

    pub fn info(&self, id: u64) -> NodeInfo {
        NodeInfo {
            name: format!("n{id}"),
            advertise: self.addresses[&id].to_string(),
        }
    }

    /// The node that leads and has shown that it can: it answers a read.
    pub async fn leader(&self) -> &Node {
        let start = Instant::now();
        loop {
            for node in self.nodes.values() {
                if node.group.is_leader() && node.group.read_index(Haste::Now).await.is_ok() {
                    return node;
                }
            }
            assert!(start.elapsed() < LIMIT, "no leader: {:?}", self.statuses());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn statuses(&self) -> Vec<GroupStatus> {
        self.nodes
            .values()
            .map(|node| node.group.status())
            .collect()
    }

    /// Proposes at whoever leads, until it is taken. An entry may get in twice if its leader goes.
    pub async fn propose(&self, entry: &str) -> Bytes {
        let start = Instant::now();
        loop {
            match propose_at(self.leader().await, entry).await {
                Ok(reply) => return reply,
                Err(error) => assert!(start.elapsed() < LIMIT, "{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until all running nodes hold the same number of entries, and the same ones.
    pub async fn agree(&self, count: usize) {
        let start = Instant::now();
        while self.nodes.values().any(|node| node.machine.len() != count) {
            let lengths: Vec<usize> = self.nodes.values().map(|n| n.machine.len()).collect();
            let late = start.elapsed() >= LIMIT;
            assert!(!late, "{count} expected: {lengths:?} {:?}", self.statuses());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut states = self.nodes.values().map(|node| node.machine.entries());
        let first = states.next().unwrap();
        assert!(states.all(|state| state == first), "the states differ");
    }

    pub async fn stop(self) {
        for node in self.nodes.into_values() {
            node.kill().await;
        }
    }
}

pub async fn propose_at(node: &Node, entry: &str) -> Result<Bytes, ProposeError> {
    match node.group.submit(Bytes::from(entry.to_owned())).await {
        Ok(pending) => pending.await,
        Err(SubmitError::NotLeader(leader)) => Err(ProposeError::NotLeader(leader)),
        Err(error) => panic!("{error}"),
    }
}

/// Waits for a state of a node's group.
pub async fn until(node: &Node, what: &str, condition: impl FnMut(&GroupStatus) -> bool) {
    let mut watch = node.group.watch();
    let reached = tokio::time::timeout(LIMIT, watch.wait_for(condition)).await;
    assert!(
        reached.is_ok(),
        "still not: {what}; {:?}",
        node.group.status()
    );
}

pub fn is_follower(status: &GroupStatus) -> bool {
    status.role == Role::Follower && status.leader.is_some()
}
