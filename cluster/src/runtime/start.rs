//! From an open data directory to a member of a cluster: storage, network, the meta group, and, where the node is empty,
//! the way into a cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use flotte_proto::{
    Batch, ClusterSettings, Found, Hello, Member, MetaCommand, Placement, ProbeRequest,
    ProbeResponse, meta_command, probe_request,
};
use parking_lot::{Mutex, RwLock};
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::discovery::Discovery;
use super::inbound::Inbound;
use super::leases::Leases;
use super::life::ToLeader;
use super::node::Node;
use crate::config::Config;
use crate::handle::{Cluster, Local};
use crate::id::{GroupId, NodeId};
use crate::journal::{Journal, JournalConfig, JournalError};
use crate::leader::{Leader, wall_ms};
use crate::lease::Lease;
use crate::membership::{Bootstrap, Grant, Probed, Step, place, voter_count};
use crate::meta::MetaMachine;
use crate::net::{Claims, Identity, NameError, Names, NetConfig, NetError, Network};
use crate::proposer::Route;
use crate::raft::{
    Death, FatalSignal, Group, GroupConfig, Host, NodeInfo, SnapshotError, SnapshotStore,
};
use crate::store::{Store, StoreError};

/// Pause between rounds of probes.
pub(super) const PROBE_EVERY: Duration = Duration::from_millis(250);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The journal in it cannot be used.
    #[error("journal: {0}")]
    Journal(#[from] JournalError),
    /// The cluster port cannot be bound.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The meta group cannot be opened.
    #[error("meta group: {0}")]
    Group(#[from] crate::raft::StartError),
    /// The DNS server of the configuration cannot be used.
    #[error("DNS server: {0}")]
    Names(NameError),
    /// The snapshots in the data directory cannot be used.
    #[error(transparent)]
    Snapshots(#[from] SnapshotError),
}

/// Opens the data directory, binds the cluster port and begins to look for a cluster, to found or to return to. The node
/// serves once [`Cluster::me`] says so.
pub async fn start(
    mut config: Config,
    local: Arc<dyn Local>,
    shutdown: CancellationToken,
) -> Result<Cluster, StartError> {
    let store = Store::open(&config.data_dir)?;
    let id = store.node_id()?;
    config.joins(store.joined()?);
    let names = match config.dns_server {
        Some(server) => Names::of_server(server).map_err(StartError::Names)?,
        None => Names::system(),
    };
    let journal = Journal::open(&config.data_dir.join("journal"), JournalConfig::default())?;
    let snapshots = SnapshotStore::open(&config.data_dir.join("snapshots"))?;
    let inbound = Arc::new(Inbound::default());
    let (identity, network) =
        open_network(&config, &store, &names, inbound.clone(), &shutdown).await?;
    let meta = Arc::new(MetaMachine::default());
    let host = Host {
        node_id: id,
        journal,
        snapshots,
        network: network.clone(),
        fatal: FatalSignal::new(),
    };
    let meta_group = Group::start(GroupId::META, GroupConfig::meta(), meta.clone(), &host).await?;
    let bootstrap = Bootstrap::new(id, config.expect(), store.grant()?, store.attempt()?);
    let (down, downs) = mpsc::channel(64);
    let leases = Leases::start(
        id,
        config.node_down_after,
        meta_group.clone(),
        Arc::clone(&meta),
        down,
        shutdown.clone(),
    );
    let node = Arc::new(Node {
        meta_leader: Leader::start(
            meta_group.clone(),
            Arc::clone(meta.time()),
            shutdown.clone(),
        ),
        lease: Arc::new(Lease::default()),
        life: RwLock::default(),
        groups: RwLock::default(),
        discovery: Discovery::new(&config, names),
        bootstrap: Mutex::new(bootstrap),
        progress: Mutex::new("starting".into()),
        lives: watch::channel(0).0,
        drains: Default::default(),
        leaving: Default::default(),
        started_ms: AtomicU64::new(wall_ms()),
        host,
        config,
        id,
        identity,
        store,
        network,
        meta,
        meta_group,
        leases,
        local,
        shutdown: shutdown.clone(),
    });
    inbound.set(Arc::clone(&node));
    let life = Arc::clone(&node);
    tokio::spawn(async move { shutdown.run_until_cancelled(life.live(downs)).await });
    Ok(Cluster::new(node))
}

/// Binds the cluster port and calls on the nodes that were known when this one last ran.
async fn open_network(
    config: &Config,
    store: &Store,
    names: &Names,
    inbound: Arc<Inbound>,
    shutdown: &CancellationToken,
) -> Result<(Arc<Identity>, Network), StartError> {
    let bound = Network::bind(config.bind).await?;
    let local = || bound.local_addr().to_string();
    let advertise = config.advertise.clone().unwrap_or_else(local);
    let claims = Claims {
        cluster_id: store.cluster_id()?,
        incarnation: store.next_incarnation()?,
    };
    let identity = Identity::new(store.node_id()?, &config.node_name, &advertise, claims);
    let identity = identity.knowing(config.feature_level);
    let identity = Arc::new(identity.of_process(rand::random_range(1..=u64::MAX)));
    let network = Network::start(
        NetConfig {
            names: names.clone(),
            ..NetConfig::new(config.bind)
        },
        bound,
        Arc::clone(&identity),
        inbound,
        shutdown.clone(),
    );
    for (peer, address) in store.addresses()? {
        network.set_peer(peer, &address, 0);
    }
    Ok((identity, network))
}

impl Node {
    /// Finds or founds the cluster, if this node is in none.
    pub(super) async fn enter(self: &Arc<Self>) -> Result<(), StoreError> {
        if !self.store.founders()?.is_empty() {
            // It was founding when it stopped; the others have granted and wait.
            return self.found(&self.known_founders().await?).await;
        }
        while self.identity.cluster_id() == 0 {
            let probed = self.probe_expected().await;
            if self.identity.cluster_id() != 0 {
                break;
            }
            let step = self.take_probes(&probed);
            match step {
                Step::Wait(why) => self.progress(why),
                Step::Conflict(why) => {
                    warn!(%why, "cannot found a cluster");
                    self.progress(why);
                }
                Step::Join(cluster_id) => return self.join(cluster_id).await,
                Step::Ask(nodes) => self.ask(&nodes, &probed).await,
                Step::Release(grants) => self.give_back(&grants, &probed).await?,
                Step::Found(nodes) => {
                    let founders = self.describe(&nodes, &probed);
                    return self.found(&founders).await;
                }
            }
            tokio::time::sleep(PROBE_EVERY).await;
        }
        Ok(())
    }

    /// Asks every address to be found by, this node's own among them perhaps.
    pub(super) async fn probe_all(&self, ask: probe_request::Ask) -> Vec<(String, ProbeResponse)> {
        let request = ProbeRequest {
            ask: ask.into(),
            ..self.introduction()
        };
        let mut addresses = self.discovery.addresses().await;
        // Where members were when this node last heard of them.
        let known = self.store.addresses().unwrap_or_default();
        addresses.extend(known.into_iter().map(|(_, address)| address));
        self.probe_these(addresses, request).await
    }

    /// As long as fewer than expected answer where the configuration says, those that others have heard of count, too: lists may
    /// overlap and name some only.
    async fn probe_expected(&self) -> Vec<(String, ProbeResponse)> {
        let mut probed = self.probe_all(probe_request::Ask::Nothing).await;
        let expected = usize::try_from(self.config.expect()).unwrap_or(usize::MAX);
        let is_other =
            |(_, response): &&(_, ProbeResponse)| other(&response.hello, self.id).is_some();
        self.discovery
            .hear(probed.iter().flat_map(|(_, response)| &response.heard));
        if probed.iter().filter(is_other).count() + 1 < expected {
            let mut heard = self.discovery.heard();
            heard.retain(|address| !probed.iter().any(|(known, _)| known == address));
            probed.extend(self.probe_these(heard, self.introduction()).await);
        }
        probed
    }

    async fn probe_these(
        &self,
        addresses: BTreeSet<String>,
        request: ProbeRequest,
    ) -> Vec<(String, ProbeResponse)> {
        let probes = addresses.into_iter().map(|address| {
            let (request, network) = (request.clone(), self.network.clone());
            async move {
                let answer = network.probe(&address, request, PROBE_TIMEOUT).await;
                (address, answer)
            }
        });
        let answers = futures::future::join_all(probes).await.into_iter();
        let answered = answers.filter_map(|(address, answer)| Some((address, answer.ok()?)));
        answered.collect()
    }

    fn take_probes(&self, probed: &[(String, ProbeResponse)]) -> Step {
        let mut bootstrap = self.bootstrap.lock();
        bootstrap.forget_probes();
        for (address, response) in probed {
            let Some(hello) = other(&response.hello, self.id) else {
                continue;
            };
            self.network
                .set_peer(NodeId(hello.node_id), address, hello.incarnation);
            bootstrap.handle_probed(Probed {
                node: NodeId(hello.node_id),
                cluster_id: hello.cluster_id,
                expect: response.bootstrap_expect,
                grant: (response.grant_holder != 0).then_some(Grant {
                    holder: NodeId(response.grant_holder),
                    attempt: response.grant_attempt,
                }),
            });
        }
        bootstrap.poll()
    }

    async fn ask(&self, nodes: &BTreeSet<NodeId>, probed: &[(String, ProbeResponse)]) {
        self.progress("collecting the grants to found a cluster");
        // Its own first: where another has that, no one else is asked.
        let asked = self.bootstrap.lock().asks_for();
        if nodes.contains(&self.id) && self.grant(asked, self.config.expect()).is_err() {
            return;
        }
        let asked = nodes.iter().map(|node| (*node, asked.attempt)).collect();
        self.probe_some(&asked, probed, probe_request::Ask::Grant)
            .await;
    }

    async fn give_back(
        &self,
        grants: &BTreeMap<NodeId, u64>,
        probed: &[(String, ProbeResponse)],
    ) -> Result<(), StoreError> {
        info!("another node founds the cluster: giving grants back");
        {
            let mut bootstrap = self.bootstrap.lock();
            bootstrap.handle_giving_back(grants);
            self.store.set_attempt(bootstrap.asks_for().attempt)?;
            self.store.set_grant(bootstrap.grant())?;
        }
        self.probe_some(grants, probed, probe_request::Ask::Release)
            .await;
        Ok(())
    }

    /// Sends a request about grants, each with its attempt.
    async fn probe_some(
        &self,
        grants: &BTreeMap<NodeId, u64>,
        probed: &[(String, ProbeResponse)],
        ask: probe_request::Ask,
    ) {
        let requests = probed.iter().filter_map(|(address, response)| {
            let hello = other(&response.hello, self.id)?;
            let request = ProbeRequest {
                ask: ask.into(),
                attempt: *grants.get(&NodeId(hello.node_id))?,
                ..self.introduction()
            };
            Some(self.network.probe(address, request, PROBE_TIMEOUT))
        });
        futures::future::join_all(requests).await;
    }

    fn describe(&self, nodes: &BTreeSet<NodeId>, probed: &[(String, ProbeResponse)]) -> Vec<Hello> {
        let others = probed
            .iter()
            .filter_map(|(_, response)| other(&response.hello, self.id).cloned());
        let mut all: BTreeMap<u64, Hello> = others.map(|hello| (hello.node_id, hello)).collect();
        all.insert(self.id.0, self.identity.hello());
        all.into_values()
            .filter(|hello| nodes.contains(&NodeId(hello.node_id)))
            .collect()
    }

    /// The founders as they answer now; all of them are needed, as they were before.
    async fn known_founders(&self) -> Result<Vec<Hello>, StoreError> {
        let founders: BTreeSet<NodeId> = self.store.founders()?.into_iter().collect();
        loop {
            let probed = self.probe_expected().await;
            let described = self.describe(&founders, &probed);
            if described.len() == founders.len() {
                return Ok(described);
            }
            self.progress(format!(
                "{} of {} founders found",
                described.len(),
                founders.len()
            ));
            tokio::time::sleep(PROBE_EVERY).await;
        }
    }

    /// Founds the cluster with exactly these. Its id is that of the founder, which granted nodes know.
    async fn found(self: &Arc<Self>, founders: &[Hello]) -> Result<(), StoreError> {
        let ids: Vec<NodeId> = founders.iter().map(|hello| NodeId(hello.node_id)).collect();
        // Those that it only heard of it would not find again, should it stop before the cluster stands.
        let reached = ids
            .iter()
            .copied()
            .zip(founders.iter().map(|f| f.advertise.clone()));
        self.store.set_addresses(&reached.collect::<Vec<_>>())?;
        self.store.set_founders(&ids)?;
        if self.identity.cluster_id() == 0 {
            info!(nodes = ids.len(), "founding a cluster");
            self.adopt(self.id.0)?;
        }
        self.progress("founding the cluster");
        for hello in founders {
            self.network
                .set_peer(NodeId(hello.node_id), &hello.advertise, hello.incarnation);
        }
        let voters = voter_count(ids.len(), self.config.voters);
        let first: BTreeMap<NodeId, NodeInfo> = founders.iter().take(voters).map(info_of).collect();
        if !self.meta_group.is_initialized().await.unwrap_or(true)
            && let Err(e) = self.meta_group.initialize(first).await
        {
            self.die(Death::State(format!(
                "the meta group cannot be initialised: {e}"
            )));
            return Ok(());
        }
        self.commit_found(founders, &ids).await;
        self.store.set_founders(&[])
    }

    /// As incarnation 0, which no other batch of this node ever has. A repeat changes nothing.
    async fn commit_found(self: &Arc<Self>, founders: &[Hello], ids: &[NodeId]) {
        let config = &self.config;
        let (groups, factor) = (config.session_groups, config.replication_factor);
        let found = Found {
            cluster_id: self.id.0,
            members: founders.iter().map(member_of).collect(),
            settings: Some(ClusterSettings {
                voters: config.voters,
                session_groups: groups,
                replication_factor: factor,
            }),
            placement: (1..=groups)
                .map(|group| Placement {
                    group,
                    members: place(GroupId(group), ids, factor)
                        .iter()
                        .map(|n| n.0)
                        .collect(),
                    ..Placement::default()
                })
                .collect(),
        };
        let command = MetaCommand {
            command: Some(meta_command::Command::Found(found)),
        }
        .encode_to_vec();
        let batch = Batch {
            node_id: self.id.0,
            incarnation: 0,
            sequence: 1,
            commands: vec![command.into()],
        };
        let (hint, life) = (Arc::default(), CancellationToken::new());
        let route = ToLeader {
            node: Arc::clone(self),
            group: GroupId::META,
            hint,
            life,
        };
        while self.meta.read().cluster_id() == 0 {
            if route.send(batch.clone()).await.is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Becomes a member of a cluster that exists: asks until its leader agreed.
    async fn join(&self, cluster_id: u64) -> Result<(), StoreError> {
        self.adopt(cluster_id)?;
        self.progress("asking to join the cluster");
        self.ask_to_join().await;
        Ok(())
    }
}

pub(super) fn other(hello: &Option<Hello>, me: NodeId) -> Option<&Hello> {
    hello
        .as_ref()
        .filter(|hello| hello.node_id != 0 && hello.node_id != me.0)
}

fn info_of(hello: &Hello) -> (NodeId, NodeInfo) {
    (NodeId(hello.node_id), NodeInfo::from(&member_of(hello)))
}

fn member_of(hello: &Hello) -> Member {
    Member {
        node_id: hello.node_id,
        name: hello.name.clone(),
        advertise: hello.advertise.clone(),
        feature_level: hello.feature_level,
        ..Member::default()
    }
}
