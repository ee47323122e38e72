//! Two and three nodes in one process, over real connections.
#![allow(clippy::unwrap_used)]

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotte_proto::envelope::Body;
use flotte_proto::{
    AppliedRequest, AppliedResponse, Forward, Hello, KickRequest, KickResponse, LinkFrame,
    LinkReply, ProbeRequest, ProbeResponse, RaftRequest, RaftResponse, ReadIndexRequest,
    RenewRequest, RenewResponse,
};
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::*;

const LIMIT: Duration = Duration::from_secs(5);

/// Answers in ways the tests can tell apart.
#[derive(Default)]
struct Echo {
    /// Groups of the consensus requests, in the order of the calls.
    arrived: Mutex<Vec<u32>>,
    /// Node ids that are not accepted.
    unwanted: Mutex<Vec<u64>>,
}

impl Handler for Echo {
    fn handle(&self, from: &PeerIdentity, request: Body) -> BoxFuture<'static, Body> {
        let from = from.node_id.0;
        match request {
            Body::AppliedRequest(AppliedRequest { index }) => {
                let index = index + from;
                futures::future::ready(Body::AppliedResponse(AppliedResponse { index })).boxed()
            }
            Body::RenewRequest(_) => {
                futures::future::ready(Body::RenewResponse(RenewResponse::default())).boxed()
            }
            Body::RaftRequest(RaftRequest { group, .. }) => {
                self.arrived.lock().push(group);
                let response = RaftResponse {
                    group,
                    ..RaftResponse::default()
                };
                futures::future::ready(Body::RaftResponse(response)).boxed()
            }
            Body::KickRequest(_) => async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                Body::KickResponse(KickResponse {})
            }
            .boxed(),
            _ => futures::future::pending().boxed(),
        }
    }

    fn accept(&self, hello: &Hello) -> Result<(), String> {
        if self.unwanted.lock().contains(&hello.node_id) {
            return Err(format!("node {} was forgotten", hello.node_id));
        }
        Ok(())
    }

    fn link(&self, _: PeerIdentity, mut link: InboundLink) -> BoxFuture<'static, ()> {
        async move {
            while let Ok(Some(frame)) = link.frames.next().await {
                let acked = frame.messages.last().map_or(0, |message| message.sequence);
                let reply = LinkReply {
                    acked,
                    ..LinkReply::default()
                };
                if link.replies.send(reply).await.is_err() {
                    return;
                }
            }
        }
        .boxed()
    }

    fn probe(&self, request: ProbeRequest) -> BoxFuture<'static, ProbeResponse> {
        let grant_holder = request.hello.map_or(0, |hello| hello.node_id);
        futures::future::ready(ProbeResponse {
            grant_holder,
            ..ProbeResponse::default()
        })
        .boxed()
    }
}

struct TestNode {
    id: NodeId,
    network: Network,
    handler: Arc<Echo>,
    address: SocketAddr,
    shutdown: CancellationToken,
}

impl TestNode {
    async fn start(id: u64, cluster_id: u64, incarnation: u64) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self::start_with(id, cluster_id, incarnation, NetConfig::new(any)).await
    }

    async fn start_with(id: u64, cluster_id: u64, incarnation: u64, config: NetConfig) -> Self {
        let claims = Claims {
            cluster_id,
            incarnation,
        };
        let handler = Arc::new(Echo::default());
        let shutdown = CancellationToken::new();
        let bound = Network::bind(config.bind).await.unwrap();
        let address = bound.local_addr();
        let name = format!("n{id}");
        let identity = Identity::new(NodeId(id), &name, &address.to_string(), claims);
        let network = Network::start(
            config,
            bound,
            Arc::new(identity),
            Arc::clone(&handler) as Arc<dyn Handler>,
            shutdown.clone(),
        );
        Self {
            id: NodeId(id),
            network,
            handler,
            address,
            shutdown,
        }
    }

    fn knows(&self, other: &TestNode) {
        self.network
            .set_peer(other.id, &other.address.to_string(), 0);
    }

    async fn ask(&self, to: NodeId, index: u64) -> Result<u64, CallError> {
        let request = Body::AppliedRequest(AppliedRequest { index });
        match self.network.call(to, request, LIMIT).await? {
            Body::AppliedResponse(response) => Ok(response.index),
            other => panic!("unexpected answer {other:?}"),
        }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(LIMIT, self.network.stopped())
            .await
            .expect("all tasks end");
    }
}

/// Waits for a condition, at most five seconds.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn connected(from: &TestNode, to: &TestNode) {
    until("connected", || from.network.connected(to.id)).await;
}

#[tokio::test]
async fn calls_are_answered_and_name_their_caller() {
    let (a, b) = (
        TestNode::start(1, 7, 1).await,
        TestNode::start(2, 7, 1).await,
    );
    assert_eq!(a.ask(b.id, 0).await, Err(CallError::Unreachable));
    a.knows(&b);
    b.knows(&a);
    connected(&a, &b).await;
    connected(&b, &a).await;
    assert_eq!(a.ask(b.id, 100).await, Ok(101));
    assert_eq!(b.ask(a.id, 100).await, Ok(102));
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn requests_are_handed_over_in_the_order_they_were_sent() {
    let (a, b) = (
        TestNode::start(1, 7, 1).await,
        TestNode::start(2, 7, 1).await,
    );
    a.knows(&b);
    connected(&a, &b).await;
    let mut answers = Vec::new();
    for group in 0..500 {
        let request = Body::RaftRequest(RaftRequest {
            group,
            ..RaftRequest::default()
        });
        answers.push(
            a.network
                .send(b.id, request, LIMIT, Haste::Now)
                .await
                .unwrap(),
        );
    }
    for (group, answer) in answers.into_iter().enumerate() {
        match answer.wait().await.unwrap() {
            Body::RaftResponse(response) => assert_eq!(response.group as usize, group),
            other => panic!("unexpected answer {other:?}"),
        }
    }
    assert_eq!(*b.handler.arrived.lock(), (0..500).collect::<Vec<u32>>());
}

#[tokio::test]
async fn a_slow_request_holds_up_no_other() {
    let (a, b) = (
        TestNode::start(1, 7, 1).await,
        TestNode::start(2, 7, 1).await,
    );
    a.knows(&b);
    connected(&a, &b).await;
    let slow = Body::KickRequest(KickRequest::default());
    let slow = a.network.send(b.id, slow, LIMIT, Haste::Now).await.unwrap();
    let start = Instant::now();
    assert_eq!(a.ask(b.id, 1).await, Ok(2));
    assert!(start.elapsed() < Duration::from_millis(250));
    assert!(matches!(slow.wait().await, Ok(Body::KickResponse(_))));
}

#[tokio::test]
async fn too_many_requests_are_answered_busy_but_consensus_and_leases_go_on() {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let config = NetConfig {
        requests_max: 2,
        ..NetConfig::new(any)
    };
    let a = TestNode::start(1, 7, 1).await;
    let b = TestNode::start_with(2, 7, 1, config).await;
    a.knows(&b);
    connected(&a, &b).await;
    // These are never answered.
    let hang = || Body::ReadIndexRequest(ReadIndexRequest::default());
    let _first = a
        .network
        .send(b.id, hang(), LIMIT, Haste::Now)
        .await
        .unwrap();
    let _second = a
        .network
        .send(b.id, hang(), LIMIT, Haste::Now)
        .await
        .unwrap();
    match a.ask(b.id, 1).await {
        Err(CallError::Remote(text)) => assert!(text.contains("busy"), "{text}"),
        other => panic!("unexpected {other:?}"),
    }
    let consensus = Body::RaftRequest(RaftRequest::default());
    assert!(a.network.call(b.id, consensus, LIMIT).await.is_ok());
    let renewal = Body::RenewRequest(RenewRequest::default());
    assert!(a.network.call(b.id, renewal, LIMIT).await.is_ok());
}

#[tokio::test]
async fn a_node_knows_who_has_a_stream_to_it() {
    let (a, b) = (
        TestNode::start(1, 7, 1).await,
        TestNode::start(2, 7, 1).await,
    );
    let mut callers = b.network.caller_changes();
    a.knows(&b);
    connected(&a, &b).await;
    let of_a = callers.wait_for(|_| b.network.is_called_by(a.id));
    tokio::time::timeout(LIMIT, of_a).await.unwrap().unwrap();
    assert!(!a.network.is_called_by(b.id), "one way is not the other");
    a.network.remove_peer(b.id);
    let gone = callers.wait_for(|_| !b.network.is_called_by(a.id));
    tokio::time::timeout(LIMIT, gone).await.unwrap().unwrap();
}

#[tokio::test]
async fn no_answer_ends_in_a_timeout() {
    let (a, b) = (
        TestNode::start(1, 7, 1).await,
        TestNode::start(2, 7, 1).await,
    );
    a.knows(&b);
    connected(&a, &b).await;
    let hang = Body::ReadIndexRequest(ReadIndexRequest::default());
    let limit = Duration::from_millis(50);
    assert_eq!(
        a.network.call(b.id, hang, limit).await,
        Err(CallError::Timeout)
    );
}

#[tokio::test]
async fn a_stopped_peer_fails_calls_at_once_and_comes_back() {
    let (a, b) = (
        TestNode::start(1, 7, 1).await,
        TestNode::start(2, 7, 1).await,
    );
    a.knows(&b);
    connected(&a, &b).await;
    let hang = Body::ReadIndexRequest(ReadIndexRequest::default());
    let under_way = a.network.send(b.id, hang, LIMIT, Haste::Now).await.unwrap();
    let address = b.address;
    b.stop().await;
    assert_eq!(under_way.wait().await, Err(CallError::Unreachable));
    until("down", || !a.network.connected(NodeId(2))).await;
    assert_eq!(a.ask(NodeId(2), 1).await, Err(CallError::Unreachable));
    let again = TestNode::start_with(2, 7, 2, NetConfig::new(address)).await;
    connected(&a, &again).await;
    assert_eq!(a.ask(NodeId(2), 1).await, Ok(2));
}

#[tokio::test]
async fn a_peer_of_another_cluster_is_refused_in_both_directions() {
    let (a, b) = (
        TestNode::start(1, 0xa, 1).await,
        TestNode::start(2, 0xb, 1).await,
    );
    a.knows(&b);
    b.knows(&a);
    for (from, to) in [(&a, &b), (&b, &a)] {
        refused(from, to, "000000000000000b").await;
        refused(from, to, "000000000000000a").await;
    }
}

async fn refused(from: &TestNode, to: &TestNode, needle: &str) {
    let start = Instant::now();
    loop {
        match from.ask(to.id, 1).await {
            Err(CallError::Refused(text)) => {
                assert!(text.contains(needle), "{text}");
                return;
            }
            other => assert!(start.elapsed() < LIMIT, "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn another_node_at_the_address_is_an_error_that_names_both() {
    let (a, b) = (
        TestNode::start(1, 7, 1).await,
        TestNode::start(2, 7, 1).await,
    );
    a.network.set_peer(NodeId(3), &b.address.to_string(), 0);
    let start = Instant::now();
    loop {
        match a.ask(NodeId(3), 1).await {
            Err(CallError::Refused(text)) => {
                assert!(
                    text.contains("0000000000000002") && text.contains("0000000000000003"),
                    "{text}"
                );
                break;
            }
            other => assert!(start.elapsed() < LIMIT, "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Corrected, it connects.
    let c = TestNode::start(3, 7, 1).await;
    a.knows(&c);
    connected(&a, &c).await;
}

/// An address at which another node is now: that a former one is looked for there must not cost the new one its stream.
#[tokio::test]
async fn a_handshake_that_is_meant_for_another_node_ends_no_stream() {
    let (a, b) = (
        TestNode::start(1, 7, 1).await,
        TestNode::start(2, 7, 1).await,
    );
    a.knows(&b);
    connected(&a, &b).await;
    let former = NodeId(3);
    let changes = a.network.changes();
    for round in 0..5 {
        a.network.set_peer(former, &b.address.to_string(), 0);
        let is_refused = || {
            let asked = a.network.session_of(former);
            matches!(asked, Err(CallError::Refused(_)))
        };
        until("another node answers", is_refused).await;
        a.network.remove_peer(former);
        assert_eq!(a.ask(b.id, 1).await, Ok(2), "round {round}");
    }
    assert!(
        !changes.has_changed().unwrap(),
        "the stream to the new one ended"
    );
}

#[tokio::test]
async fn open_streams_end_when_a_node_joins_another_cluster() {
    let (a, b) = (
        TestNode::start(1, 0, 1).await,
        TestNode::start(2, 0, 1).await,
    );
    a.knows(&b);
    connected(&a, &b).await;
    a.network.identity().set_cluster_id(0xa);
    connected(&a, &b).await;
    b.network.identity().set_cluster_id(0xb);
    refused(&a, &b, "000000000000000b").await;
}

#[tokio::test]
async fn a_new_incarnation_is_known_to_the_peer() {
    let (a, b) = (
        TestNode::start(1, 7, 1).await,
        TestNode::start(2, 7, 1).await,
    );
    a.knows(&b);
    b.knows(&a);
    connected(&a, &b).await;
    connected(&b, &a).await;
    let known = |from: &TestNode, to: NodeId| {
        let peers = from.network.peers();
        peers.iter().any(|(id, up)| *id == to && *up) && from.network.incarnation_of(to) == Some(2)
    };
    b.network.identity().set_incarnation(2);
    until("known", || known(&a, NodeId(2))).await;
    assert_eq!(a.ask(NodeId(2), 1).await, Ok(2));
}

#[tokio::test]
async fn a_node_that_is_not_accepted_learns_why() {
    let (a, b) = (
        TestNode::start(1, 7, 1).await,
        TestNode::start(2, 7, 1).await,
    );
    b.handler.unwanted.lock().push(1);
    a.knows(&b);
    refused(&a, &b, "node 1 was forgotten").await;
    b.handler.unwanted.lock().clear();
    connected(&a, &b).await;
}

#[tokio::test]
async fn links_carry_frames_and_acknowledgements() {
    let (a, b) = (
        TestNode::start(1, 7, 1).await,
        TestNode::start(2, 7, 1).await,
    );
    a.knows(&b);
    let mut link = a.network.open_link(b.id).await.unwrap();
    assert_eq!(link.peer.node_id, b.id);
    for sequence in 1..=20 {
        let frame = LinkFrame {
            messages: vec![Forward {
                sequence,
                ..Forward::default()
            }],
            ..LinkFrame::default()
        };
        link.frames.send(frame).await.unwrap();
        assert_eq!(
            link.replies.message().await.unwrap().unwrap().acked,
            sequence
        );
    }
    // A wrong cluster finds no link either.
    let c = TestNode::start(3, 8, 1).await;
    a.knows(&c);
    assert!(matches!(
        a.network.open_link(c.id).await,
        Err(CallError::Refused(_))
    ));
}

#[tokio::test]
async fn a_probe_needs_no_membership() {
    let (a, b) = (
        TestNode::start(1, 0xa, 1).await,
        TestNode::start(2, 0xb, 1).await,
    );
    let request = ProbeRequest {
        hello: Some(a.network.identity().hello()),
        ..ProbeRequest::default()
    };
    let answer = a
        .network
        .probe(&b.address.to_string(), request, LIMIT)
        .await
        .unwrap();
    assert_eq!(answer.grant_holder, 1);
    let nobody = a
        .network
        .probe("127.0.0.1:1", ProbeRequest::default(), LIMIT)
        .await;
    assert_eq!(nobody, Err(CallError::Unreachable));
}

#[tokio::test]
async fn large_messages_pass_and_oversize_ones_fail_alone() {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let config = || NetConfig {
        message_bytes_max: 8 << 20,
        ..NetConfig::new(any)
    };
    let a = TestNode::start_with(1, 7, 1, config()).await;
    let b = TestNode::start_with(2, 7, 1, config()).await;
    a.knows(&b);
    connected(&a, &b).await;
    let kick = |size: usize| {
        let kick = flotte_proto::Kick {
            client: vec![0; size].into(),
            ..Default::default()
        };
        Body::KickRequest(KickRequest { kick: Some(kick) })
    };
    assert!(a.network.call(b.id, kick(7 << 20), LIMIT).await.is_ok());
    match a.network.call(b.id, kick(9 << 20), LIMIT).await {
        Err(CallError::Remote(text)) => assert!(text.contains("limit"), "{text}"),
        other => panic!("unexpected {other:?}"),
    }
    assert_eq!(a.ask(b.id, 1).await, Ok(2));
}

/// The transport works from a runtime other than its own.
#[test]
fn calls_may_come_from_another_runtime() {
    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    }
    fn assert_send<F: Future + Send>(future: F) -> F {
        future
    }
    let home = runtime();
    let (a, b) = home.block_on(async {
        let nodes = (
            TestNode::start(1, 7, 1).await,
            TestNode::start(2, 7, 1).await,
        );
        nodes.0.knows(&nodes.1);
        connected(&nodes.0, &nodes.1).await;
        nodes
    });
    let other = runtime();
    assert_eq!(other.block_on(assert_send(a.ask(b.id, 1))), Ok(2));
    home.shutdown_background();
    other.shutdown_background();
}
