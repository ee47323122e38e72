//! Where a clause test runs: the single node or the follower, both started once for all tests.

use std::future::Future;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::OnceLock;

use flotte_tests::wire::prop;
use flotte_tests::{
    Broker, Client, Cluster, Connect, Launch, Version, connect, fresh, props, publish,
};

/// The broker a test runs against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Single,
    Follower,
}

/// What a test body gets: a broker's address and the version to speak.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: SocketAddr,
    pub version: Version,
}

impl Target {
    pub fn is_v5(&self) -> bool {
        self.version.is_v5()
    }

    /// A connection on which nothing was sent yet.
    pub async fn dial(&self) -> Client {
        Client::dial(self.address, self.version).await
    }

    /// A connected client with an id of its own, a clean start and no keep alive.
    pub async fn client(&self) -> Client {
        self.connect(connect(fresh("c"))).await
    }

    /// An accepted connection.
    pub async fn connect(&self, packet: Connect) -> Client {
        Client::connect(self.address, self.version, packet).await
    }

    /// A CONNECT of a session that outlives its connection.
    pub fn durable(&self, id: &str) -> Connect {
        let packet = connect(id).resume();
        if self.is_v5() {
            packet.props(props().u32(prop::SESSION_EXPIRY, 300))
        } else {
            packet
        }
    }

    /// A subscriber of one filter at one QoS.
    pub async fn subscriber(&self, filter: &str, qos: u8) -> Client {
        let mut client = self.client().await;
        client.subscribe(filter, qos).await;
        client
    }

    /// Publishes once from a client of its own and waits for the end of the handshake: everyone who
    /// is to get the message has it in the queue by then. QoS 0 is settled by a QoS 1 behind it.
    pub async fn publish_from_elsewhere(&self, packet: flotte_tests::Publish) {
        let mut publisher = self.client().await;
        publisher.publish(packet).await;
        self.settle(&mut publisher).await;
        publisher.leave().await;
    }

    /// Waits until all that `publisher` sent so far was taken over.
    pub async fn settle(&self, publisher: &mut Client) {
        publisher
            .publish(publish(fresh("settle/")).qos1(60_000))
            .await;
    }
}

/// Runs a test body; on failure the log of its broker is printed.
pub fn run<F, Fut>(place: Place, version: Version, body: F)
where
    F: FnOnce(Target) -> Fut,
    Fut: Future<Output = ()>,
{
    let Some(address) = address(place) else {
        eprintln!("FLOTTE_TEST_ADDR names a single broker: nothing to do for a follower");
        return;
    };
    let target = Target { address, version };
    let outcome = catch_unwind(AssertUnwindSafe(|| flotte_tests::block_on(body(target))));
    if let Err(panic) = outcome {
        print_logs(place);
        resume_unwind(panic);
    }
}

fn address(place: Place) -> Option<SocketAddr> {
    let external = std::env::var("FLOTTE_TEST_ADDR").ok();
    let external = external.map(|text| text.parse().expect("FLOTTE_TEST_ADDR is ADDRESS:PORT"));
    match place {
        Place::Single => external.or_else(|| Some(single().mqtt())),
        Place::Follower if external.is_some() => None,
        Place::Follower => Some(follower()),
    }
}

static SINGLE: OnceLock<Option<Broker>> = OnceLock::new();
static CLUSTER: OnceLock<Option<(Cluster, usize)>> = OnceLock::new();

/// Starts it at the first use; when that fails, every later test fails at once.
fn single() -> &'static Broker {
    let started = SINGLE.get_or_init(|| catch_unwind(|| Launch::new("single").start()).ok());
    started
        .as_ref()
        .expect("the single node did not start: see the first failure")
}

fn follower() -> SocketAddr {
    let started = CLUSTER.get_or_init(|| {
        let cluster = || {
            let cluster = Cluster::start();
            let follower = cluster.follower();
            (cluster, follower)
        };
        catch_unwind(cluster).ok()
    });
    let (cluster, follower) = started
        .as_ref()
        .expect("the cluster did not start: see the first failure");
    cluster.mqtt(*follower)
}

fn print_logs(place: Place) {
    let nodes: Vec<&Broker> = match place {
        Place::Single => SINGLE.get().and_then(Option::as_ref).into_iter().collect(),
        Place::Follower => match CLUSTER.get() {
            Some(Some((cluster, _))) => cluster.nodes.iter().collect(),
            _ => Vec::new(),
        },
    };
    nodes.iter().for_each(|node| eprintln!("{}", node.log()));
}

/// Makes two tests of each line, `single::NAME` and `follower::NAME`, and the list `NAMES`.
macro_rules! clauses {
    ($version:expr; $($name:ident => $body:path,)*) => {
        #[allow(dead_code)] // 3.1 has no numbered clauses to list.
        pub const NAMES: &[&str] = &[$(stringify!($name)),*];

        mod single {
            use super::*;
            $(#[test] fn $name() { $crate::target::run($crate::target::Place::Single, $version, $body); })*
        }

        mod follower {
            use super::*;
            $(#[test] fn $name() { $crate::target::run($crate::target::Place::Follower, $version, $body); })*
        }
    };
}
