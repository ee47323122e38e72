//! The handle by which the rest of the node reaches its peers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use flotte_proto::envelope::Body;
use flotte_proto::node_client::NodeClient;
use flotte_proto::{ProbeRequest, ProbeResponse};
use hyper_util::client::legacy::connect::HttpConnector;
use parking_lot::{Mutex, RwLock};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::{Channel, Endpoint};

use super::peer::Peer;
use super::{
    Answer, CallError, Handler, Haste, Identity, NetConfig, NetError, NodeId, OutboundLink, link,
    listener,
};

/// All peers of this node, and the port they come in by. Clones share one transport.
///
/// Its tasks run on the runtime it was started on; calls may come from any runtime.
#[derive(Clone)]
pub struct Network {
    shared: Arc<Shared>,
}

/// The cluster port, bound and not yet answering.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    local: SocketAddr,
}

impl Bound {
    /// The address it is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

/// What the tasks of the transport share.
pub(super) struct Shared {
    pub(super) config: NetConfig,
    pub(super) identity: Arc<Identity>,
    pub(super) handler: Arc<dyn Handler>,
    /// Ends everything.
    pub(super) shutdown: CancellationToken,
    pub(super) tasks: TaskTracker,
    /// Where all tasks of the transport run, whoever asks for them.
    runtime: Handle,
    /// Peers to call, set by the owner of the membership; as many as there are members.
    pub(super) peers: RwLock<HashMap<NodeId, Arc<Peer>>>,
    /// Counts the streams that came up or went down.
    pub(super) changes: watch::Sender<u64>,
    /// The one control stream of each peer to this node; at most `peers_max`.
    pub(super) callers: Mutex<HashMap<NodeId, CancellationToken>>,
    /// Counts those that came or went.
    caller_changes: watch::Sender<u64>,
}

impl Network {
    /// Binds the cluster port: an identity names its address.
    pub async fn bind(bind: SocketAddr) -> Result<Bound, NetError> {
        let (listener, local) = listener::bind(bind).await?;
        Ok(Bound { listener, local })
    }

    /// Begins to answer on a bound port. All tasks of the transport run on the current runtime.
    pub fn start(
        config: NetConfig,
        bound: Bound,
        identity: Arc<Identity>,
        handler: Arc<dyn Handler>,
        shutdown: CancellationToken,
    ) -> Self {
        let shared = Arc::new(Shared {
            config,
            identity,
            handler,
            shutdown,
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
            peers: RwLock::new(HashMap::new()),
            changes: watch::Sender::new(0),
            callers: Mutex::default(),
            caller_changes: watch::Sender::new(0),
        });
        shared.spawn(listener::run(bound.listener, Arc::clone(&shared)));
        Self { shared }
    }

    /// Who this node is.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.shared.identity
    }

    /// Keeps a control stream open to a node, at the `host:port` of one of its starts: one of an older start changes nothing,
    /// one of the same start only where there is no stream, one of a newer start ends the current stream. The name is resolved
    /// anew for each connection.
    pub fn set_peer(&self, id: NodeId, address: &str, incarnation: u64) {
        if id == self.shared.identity.node_id() || self.shared.shutdown.is_cancelled() {
            return;
        }
        let mut peers = self.shared.peers.write();
        match peers.get(&id) {
            Some(peer) => peer.set_address(address, incarnation),
            None => {
                let peer = Peer::new(id, address, incarnation, self.shared.shutdown.child_token());
                peers.insert(id, Arc::clone(&peer));
                self.shared.spawn(peer.run(Arc::clone(&self.shared)));
            }
        }
    }

    /// Ends the control stream to a node for good.
    pub fn remove_peer(&self, id: NodeId) {
        if let Some(peer) = self.shared.peers.write().remove(&id) {
            peer.stop();
        }
    }

    /// The peers that were set, and whether each can be called now.
    pub fn peers(&self) -> Vec<(NodeId, bool)> {
        let peers = self.shared.peers.read();
        peers
            .iter()
            .map(|(id, peer)| (*id, peer.session().is_ok()))
            .collect()
    }

    /// Whether the control stream to a node stands.
    pub fn connected(&self, id: NodeId) -> bool {
        self.session_of(id).is_ok()
    }

    /// The incarnation of a peer, as the standing control stream to it knows it.
    pub fn incarnation_of(&self, id: NodeId) -> Option<u64> {
        let session = self.session_of(id).ok()?;
        Some(session.peer.incarnation)
    }

    /// Changes whenever a control stream to a peer comes up or goes down.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Whether a node has a control stream to this one.
    pub fn is_called_by(&self, id: NodeId) -> bool {
        self.shared.callers.lock().contains_key(&id)
    }

    /// Changes whenever a control stream from a peer comes or goes.
    pub fn caller_changes(&self) -> watch::Receiver<u64> {
        self.shared.caller_changes.subscribe()
    }

    /// Asks a peer, and waits for the answer. Fails at once where there is no stream.
    pub async fn call(
        &self,
        to: NodeId,
        request: Body,
        limit: Duration,
    ) -> Result<Body, CallError> {
        let session = self.session_of(to)?;
        let call = async move { session.send(request, Haste::Now).await?.wait().await };
        timeout(limit, call)
            .await
            .unwrap_or(Err(CallError::Timeout))
    }

    /// Sends a request, and leaves the wait for its answer to the caller. One task's requests to
    /// one peer go out in the order of these calls.
    pub async fn send(
        &self,
        to: NodeId,
        request: Body,
        limit: Duration,
        haste: Haste,
    ) -> Result<Answer, CallError> {
        let session = self.session_of(to)?;
        timeout(limit, session.send(request, haste))
            .await
            .unwrap_or(Err(CallError::Timeout))
    }

    /// Asks whoever listens at `host:port` who it is.
    pub async fn probe(
        &self,
        address: &str,
        request: ProbeRequest,
        limit: Duration,
    ) -> Result<ProbeResponse, CallError> {
        let probe = async {
            let channel = self.shared.connect(address).await.map_err(|text| {
                tracing::debug!(address, error = text, "cannot probe");
                CallError::Unreachable
            })?;
            NodeClient::new(channel)
                .probe(request)
                .await
                .map(tonic::Response::into_inner)
                .map_err(|status| CallError::Remote(status.message().to_owned()))
        };
        timeout(limit, probe)
            .await
            .unwrap_or(Err(CallError::Timeout))
    }

    /// Opens a link stream to a node, on a connection of its own.
    pub async fn open_link(&self, to: NodeId) -> Result<OutboundLink, CallError> {
        let address = {
            let peers = self.shared.peers.read();
            peers.get(&to).ok_or(CallError::Unreachable)?.address()
        };
        let shared = Arc::clone(&self.shared);
        let limit = shared.config.connect_timeout;
        let opening = async move {
            timeout(limit, link::open(&shared, to, &address))
                .await
                .unwrap_or(Err(CallError::Timeout))
        };
        // The connection's own tasks have to live on the transport's runtime.
        let opened = self.shared.runtime.spawn(opening).await;
        opened.unwrap_or(Err(CallError::Unreachable))
    }

    /// Resolves once all tasks have ended, after the shutdown token was cancelled.
    pub async fn stopped(&self) {
        self.shared.shutdown.cancelled().await;
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    pub(super) fn session_of(&self, id: NodeId) -> Result<Arc<super::calls::Session>, CallError> {
        let peers = self.shared.peers.read();
        peers.get(&id).ok_or(CallError::Unreachable)?.session()
    }
}

impl Shared {
    /// A new connection to `host:port`. The error is text for people.
    pub(super) async fn connect(&self, address: &str) -> Result<Channel, String> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| format!("{address:?} is no address: {}", chain(&error)))?
            .connect_timeout(self.config.connect_timeout)
            .http2_keep_alive_interval(self.config.keep_alive_interval)
            .keep_alive_timeout(self.config.keep_alive_timeout)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let mut connector = HttpConnector::new_with_resolver(self.config.names.clone());
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(self.config.connect_timeout));
        let connected = endpoint.connect_with_connector(connector).await;
        connected.map_err(|error| chain(&error))
    }

    /// Starts a task of the transport.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(task, &self.runtime);
    }

    /// Says that a stream of a peer came or went.
    pub(super) fn callers_changed(&self) {
        self.caller_changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Says that a stream came up or went down.
    pub(super) fn changed(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// HTTP/2 flow control: what may be on its way to a reader that has not taken it.
pub(super) const STREAM_WINDOW: u32 = 4 << 20;
pub(super) const CONNECTION_WINDOW: u32 = 8 << 20;

/// An error with its causes, as one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
