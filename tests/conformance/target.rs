//! Where a clause test runs: the single node or the follower, both started once for all tests.

use std::future::Future;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, OnceLock};

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

/// How the broker is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Not at all.
    Usual,
    /// Every limit is low and every optional feature is off.
    Limited,
    /// What may be allowed is; limits that cannot stand beside those of `Limited`.
    Loose,
}

impl Setting {
    const ALL: [Self; 3] = [Self::Usual, Self::Limited, Self::Loose];

    fn apply(self, launch: Launch) -> Launch {
        let keys: &[(&str, &str)] = match self {
            Self::Usual => &[],
            Self::Limited => &[
                ("MQTT__MAX_PACKET_SIZE", "1000"),
                ("MQTT__SERVER_KEEP_ALIVE_S", "8"),
                ("MQTT__RECEIVE_MAXIMUM", "2"),
                ("MQTT__TOPIC_ALIAS_MAXIMUM", "0"),
                ("MQTT__MAX_QOS", "1"),
                ("MQTT__RETAIN_AVAILABLE", "false"),
                ("MQTT__WILDCARD_AVAILABLE", "false"),
                ("MQTT__SHARED_AVAILABLE", "false"),
                ("MQTT__SUBSCRIPTION_IDS_AVAILABLE", "false"),
                ("MQTT__MAX_TOPIC_LEVELS", "4"),
                ("MQTT__MAX_CLIENT_ID_BYTES", "40"),
                ("MQTT__ALLOW_EMPTY_CLIENT_ID", "false"),
                ("MQTT__SESSION_EXPIRY_MAX_S", "2"),
                ("MQTT__SESSION_EXPIRY_3X_S", "2"),
                ("MQTT__RESPONSE_INFORMATION", "reply/%c"),
            ],
            Self::Loose => &[
                ("MQTT__MAX_KEEP_ALIVE_S", "8"),
                ("MQTT__CONNECT_TIMEOUT_S", "1"),
                ("MQTT__DOLLAR_TOPICS", "allow"),
                ("MQTT__STRICT", "false"),
                ("SESSION__INFLIGHT_MAX", "2"),
                ("SESSION__QUEUE_MAX_MESSAGES", "5"),
                ("SESSION__QUEUE_QOS0", "true"),
                ("SESSION__OVERFLOW", "drop-new"),
            ],
        };
        let launch = launch.bind("ws", SocketAddr::from(([127, 0, 0, 1], 0)));
        keys.iter().fold(launch, |launch, (key, value)| {
            launch.env(&format!("FLOTTE_{key}"), value)
        })
    }
}

/// What a test body gets: a broker's address and the version to speak.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: SocketAddr,
    /// Where other clients connect: in a cluster, another node.
    pub elsewhere: SocketAddr,
    /// The same broker through WebSocket; where it is not ours, `FLOTTE_TEST_WS_ADDR` or none.
    pub ws: Option<SocketAddr>,
    pub version: Version,
    /// Whether it is this project's broker, of which more is demanded than the standard does.
    pub is_ours: bool,
}

impl Target {
    pub fn is_v5(&self) -> bool {
        self.version.is_v5()
    }

    /// A connection on which nothing was sent yet.
    pub async fn dial(&self) -> Client {
        let mut client = Client::dial(self.address, self.version).await;
        client.wants_reasons = self.is_ours;
        client
    }

    /// A connected client with an id of its own, a clean start and no keep alive.
    pub async fn client(&self) -> Client {
        self.connect(connect(fresh("c"))).await
    }

    /// An accepted connection.
    pub async fn connect(&self, packet: Connect) -> Client {
        let mut client = Client::connect(self.address, self.version, packet).await;
        client.wants_reasons = self.is_ours;
        client
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
        let id = connect(fresh("p"));
        let mut publisher = Client::connect(self.elsewhere, self.version, id).await;
        let is_settled = packet.qos() > 0;
        publisher.publish(packet).await;
        if !is_settled {
            self.settle(&mut publisher).await;
        }
        publisher.leave().await;
    }

    /// Waits until all that `publisher` sent so far was taken over: by a QoS 1 behind it that goes the same way.
    pub async fn settle(&self, publisher: &mut Client) {
        let topic = fresh("settle/");
        let _watcher = if self.address == self.elsewhere {
            None
        } else {
            Some(self.subscriber(&topic, 0).await)
        };
        publisher.publish(publish(&topic).qos1(60_000)).await;
    }
}

/// Runs a test body; on failure the logs of its brokers are printed.
pub fn run<F, Fut>((place, setting): (Place, Setting), version: Version, body: F)
where
    F: FnOnce(Target) -> Fut,
    Fut: Future<Output = ()>,
{
    let target = match std::env::var("FLOTTE_TEST_ADDR") {
        Err(_) => own_target(place, setting, version),
        Ok(_) if (place, setting) != (Place::Single, Setting::Usual) => {
            eprintln!("FLOTTE_TEST_ADDR names a single broker: nothing to do");
            return;
        }
        Ok(text) => {
            let address = text.parse().expect("FLOTTE_TEST_ADDR is ADDRESS:PORT");
            Target {
                address,
                elsewhere: address,
                ws: external_ws(),
                version,
                is_ours: false,
            }
        }
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| flotte_tests::block_on(body(target))));
    if let Err(panic) = outcome {
        print_logs(place, setting);
        resume_unwind(panic);
    }
}

fn own_target(place: Place, setting: Setting, version: Version) -> Target {
    let (address, elsewhere) = match place {
        Place::Single => {
            let address = single(setting).mqtt();
            (address, address)
        }
        Place::Follower => follower(setting),
    };
    Target {
        address,
        elsewhere,
        ws: nodes(place, setting)
            .iter()
            .find(|node| node.mqtt() == address)
            .map(|node| node.listener("ws")),
        version,
        is_ours: true,
    }
}

static SINGLES: [OnceLock<Option<Broker>>; 3] = [const { OnceLock::new() }; 3];
/// Its nodes are configured alike: as usual. With the leader as the first test found it.
static CLUSTER: OnceLock<Option<(Cluster, usize)>> = OnceLock::new();
/// Its nodes are configured as the settings, in their order.
static MIXED: OnceLock<Option<(Cluster, usize)>> = OnceLock::new();

/// Starts it at the first use; when that fails, every later test fails at once.
fn single(setting: Setting) -> &'static Broker {
    let start = || setting.apply(Launch::new("single")).start();
    let started = SINGLES[setting as usize].get_or_init(|| catch_unwind(start).ok());
    started
        .as_ref()
        .expect("the single node did not start: see the first failure")
}

/// A node of a cluster with this setting, and one that is configured as usual. Without a setting of its own it is a
/// follower, and the other one the leader.
fn follower(setting: Setting) -> (SocketAddr, SocketAddr) {
    let (cluster, settings) = match setting {
        Setting::Usual => (&CLUSTER, [Setting::Usual; 3]),
        Setting::Limited | Setting::Loose => (&MIXED, Setting::ALL),
    };
    let start = || {
        let mut settings = settings.into_iter();
        let next = Mutex::new(|| settings.next().unwrap_or(Setting::Usual));
        let cluster = Cluster::start_with(|launch| {
            let setting = (next.lock().expect("nobody panics with it"))();
            // Clauses are not about nodes that go: a busy machine shall not take one down.
            let launch = launch.env("FLOTTE_CLUSTER__NODE_DOWN_AFTER_MS", 10_000);
            setting.apply(launch)
        });
        let leader = cluster.leader();
        (cluster, leader)
    };
    let started = cluster.get_or_init(|| catch_unwind(AssertUnwindSafe(start)).ok());
    let (cluster, leader) = started
        .as_ref()
        .expect("the cluster did not start: see the first failure");
    match setting {
        Setting::Usual => {
            let follower = (leader + 1) % cluster.nodes.len();
            (cluster.mqtt(follower), cluster.mqtt(*leader))
        }
        Setting::Limited | Setting::Loose => (
            cluster.mqtt(setting as usize),
            cluster.mqtt(Setting::Usual as usize),
        ),
    }
}

fn external_ws() -> Option<SocketAddr> {
    let text = std::env::var("FLOTTE_TEST_WS_ADDR").ok()?;
    Some(text.parse().expect("FLOTTE_TEST_WS_ADDR is ADDRESS:PORT"))
}

fn print_logs(place: Place, setting: Setting) {
    let nodes = nodes(place, setting);
    nodes.iter().for_each(|node| eprintln!("{}", node.log()));
}

/// Those that were started.
fn nodes(place: Place, setting: Setting) -> Vec<&'static Broker> {
    match place {
        Place::Single => {
            let single = SINGLES[setting as usize].get();
            single.and_then(Option::as_ref).into_iter().collect()
        }
        Place::Follower => {
            let cluster = if setting == Setting::Usual {
                CLUSTER.get()
            } else {
                MIXED.get()
            };
            let cluster = cluster.and_then(Option::as_ref);
            cluster.map_or(Vec::new(), |(cluster, _)| cluster.nodes.iter().collect())
        }
    }
}

/// Makes two tests of each line, `single::NAME` and `follower::NAME`, and the list `NAMES`. The broker is configured as
/// the setting behind the version says.
macro_rules! clauses {
    ($version:expr; $($name:ident => $body:path,)*) => {
        clauses! { $version, $crate::target::Setting::Usual; $($name => $body,)* }
    };
    ($version:expr, $setting:expr; $($name:ident => $body:path,)*) => {
        #[allow(dead_code)] // 3.1 has no numbered clauses to list.
        pub const NAMES: &[&str] = &[$(stringify!($name)),*];

        mod single {
            use super::*;
            $(#[test] fn $name() {
                $crate::target::run(($crate::target::Place::Single, $setting), $version, $body);
            })*
        }

        mod follower {
            use super::*;
            $(#[test] fn $name() {
                $crate::target::run(($crate::target::Place::Follower, $setting), $version, $body);
            })*
        }
    };
}
