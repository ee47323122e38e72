//! Nodes that find each other by DNS, and again where their addresses changed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use flotte_tests::broker::{START_LIMIT, binary};
use flotte_tests::cluster::wait_node_ready;
use flotte_tests::dns::{Dns, Record};
use flotte_tests::ports::free_address;
use flotte_tests::run::until_blocking;
use flotte_tests::{
    Broker, Client, Cluster, Launch, Version, admin, block_on, connect, fresh, publish,
};
use serde_json::Value;

const SERVICES: &str = "_flotte._tcp.example";

/// A node that asks this server for others.
fn launch(place: usize, dns: &Dns, name: &str, cluster: SocketAddr) -> Launch {
    Launch::new(&format!("n{}", place + 1))
        .bind("mqtt", free_address())
        .bind("admin", free_address())
        .bind("cluster", cluster)
        .env("FLOTTE_CLUSTER__DISCOVER_DNS_SERVER", dns.address())
        .arg("--discover-dns")
        .arg(name)
}

fn expecting(launch: Launch, nodes: usize) -> Launch {
    launch.arg("--bootstrap-expect").arg(nodes.to_string())
}

/// An address of this machine for each place; they differ in nothing else.
fn ip(place: usize) -> IpAddr {
    Ipv4Addr::new(127, 0, 5, u8::try_from(place + 1).expect("few nodes")).into()
}

fn host(place: usize) -> String {
    format!("node-{}.example", place + 1)
}

/// Names every node, and all of them by SRV records.
fn set_services(dns: &Dns, cluster: &[SocketAddr]) {
    for (place, address) in cluster.iter().enumerate() {
        dns.set_addresses(&host(place), [address.ip()]);
    }
    let records = cluster.iter().enumerate();
    dns.set(
        SERVICES,
        records.map(|(place, address)| Record::Service {
            host: host(place),
            port: address.port(),
        }),
    );
}

fn status(node: &Broker) -> Value {
    admin::json(node.admin(), "/api/v1/status").expect("a status")
}

fn wait_said(node: &Broker, words: &str) {
    let what = format!("/readyz of {} says {words:?}", node.name());
    until_blocking(START_LIMIT, &what, || {
        let (code, body) = admin::get(node.admin(), "/readyz")?;
        (code == 503 && body.contains(words)).then_some(())
    });
}

/// All of them are the members of one cluster, connected with each other.
fn assert_one(cluster: &Cluster) {
    cluster.leader();
    let ids: Vec<Value> = cluster
        .nodes
        .iter()
        .map(|node| status(node)["cluster_id"].clone())
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    for node in &cluster.nodes {
        wait_untroubled(node, cluster.nodes.len());
    }
}

/// This many nodes, and nothing is the matter with any.
fn wait_untroubled(node: &Broker, members: usize) {
    let what = format!("{} sees {members} nodes and no trouble", node.name());
    until_blocking(START_LIMIT, &what, || {
        let status = admin::json(node.admin(), "/api/v1/status")?;
        let nodes = status["nodes"].as_array()?.len();
        let problems = status["problems"].as_array()?.len();
        (nodes == members && problems == 0).then_some(())
    });
}

#[test]
fn nodes_find_each_other_by_address_records() {
    let dns = Dns::start();
    let port = free_address().port();
    dns.set_addresses("nodes.example", (0..3).map(ip));
    let name = format!("nodes.example:{port}");
    let node = |place| launch(place, &dns, &name, SocketAddr::new(ip(place), port));
    let mut cluster = Cluster {
        nodes: (0..3)
            .map(|place| expecting(node(place), 3).spawn())
            .collect(),
    };
    cluster.wait_ready();
    assert_one(&cluster);
    // Probes go out four times a second, questions do not.
    let before = dns.asked();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(dns.asked() - before < 20, "DNS is flooded");
}

#[test]
fn a_node_that_is_named_late_is_waited_for() {
    let dns = Dns::start();
    let port = free_address().port();
    dns.set_addresses("nodes.example", (0..2).map(ip));
    let name = format!("nodes.example:{port}");
    let node = |place| launch(place, &dns, &name, SocketAddr::new(ip(place), port));
    let mut nodes: Vec<Broker> = (0..2)
        .map(|place| expecting(node(place), 3).spawn())
        .collect();
    for node in &nodes {
        wait_said(node, "2 of 3 expected nodes found");
    }
    dns.set_addresses("nodes.example", (0..3).map(ip));
    nodes.push(expecting(node(2), 3).spawn());
    let mut cluster = Cluster { nodes };
    cluster.wait_ready();
    assert_one(&cluster);
}

#[test]
fn a_node_that_finds_no_name_says_so_and_waits() {
    let dns = Dns::start();
    let address = free_address();
    let node = launch(0, &dns, SERVICES, address).spawn();
    wait_said(&node, "discover_dns `_flotte._tcp.example`: no such name");
    dns.set(SERVICES, []);
    wait_said(&node, "discover_dns `_flotte._tcp.example`: no records");
    let url = format!("http://{}", node.admin());
    let shown = std::process::Command::new(binary())
        .args(["ctl", "--url", &url, "status"])
        .output()
        .expect("ctl runs");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("discover_dns `_flotte"), "{shown}");
    assert!(
        status(&node)["cluster_id"]
            .as_str()
            .is_none_or(|id| id.trim_matches('0').is_empty()),
        "it founded a cluster of its own: {:#}",
        status(&node)
    );
    // What it was told to find comes after all.
    let first = Launch::new("first").bind("cluster", free_address()).start();
    set_services(&dns, &[first.cluster()]);
    wait_node_ready(&node);
    assert_eq!(status(&node)["cluster_id"], status(&first)["cluster_id"]);
}

/// With no DNS server of its own, a node asks as every program of the machine does; each machine knows this name.
#[test]
fn a_name_that_the_machine_knows_is_found() {
    let first = Launch::new("first").bind("cluster", free_address()).start();
    let name = format!("localhost:{}", first.cluster().port());
    let second = Launch::new("second")
        .arg("--discover-dns")
        .arg(name)
        .start();
    wait_node_ready(&second);
    assert_eq!(status(&second)["cluster_id"], status(&first)["cluster_id"]);
}

/// By SRV records; then all stop, all addresses and ports change, and they are the same cluster again with what it kept.
#[test]
fn a_cluster_whose_addresses_all_changed_finds_itself_again() {
    let dns = Dns::start();
    let addresses: Vec<_> = (0..3).map(|_| free_address()).collect();
    set_services(&dns, &addresses);
    let node = |place: usize, cluster| expecting(launch(place, &dns, SERVICES, cluster), 3);
    let spawn = |(place, address): (usize, &SocketAddr)| node(place, *address).spawn();
    let mut before = Cluster {
        nodes: addresses.iter().enumerate().map(spawn).collect(),
    };
    before.wait_ready();
    assert_one(&before);
    let cluster_id = status(&before.nodes[0])["cluster_id"].clone();
    block_on(async {
        let mut client = before.client(0, Version::V5).await;
        let kept = publish("kept/through").qos1(1).retain().payload("it all");
        client.publish(kept).await;
    });
    for node in &mut before.nodes {
        assert_eq!(node.sigterm(), Some(0), "{}", node.log());
    }
    let addresses: Vec<_> = (0..3)
        .map(|place| SocketAddr::new(ip(place + 3), free_address().port()))
        .collect();
    set_services(&dns, &addresses);
    let respawn = |(place, address): (usize, &SocketAddr)| {
        let dir = before.nodes[place].data_dir();
        node(place, *address).data_dir(dir).spawn()
    };
    let mut after = Cluster {
        nodes: addresses.iter().enumerate().map(respawn).collect(),
    };
    after.wait_ready();
    assert_one(&after);
    assert_eq!(status(&after.nodes[0])["cluster_id"], cluster_id);
    block_on(async {
        for node in 0..3 {
            let mut client = after.client(node, Version::V311).await;
            client.subscribe("kept/through", 1).await;
            client.take("it all").await;
        }
    });
}

/// It is advertised by a name, and the name leads elsewhere when it returns: the others connect to it there.
#[test]
fn a_node_that_returns_at_another_address_of_its_name_is_reached() {
    let dns = Dns::start();
    let addresses: Vec<_> = (0..3)
        .map(|place| SocketAddr::new(ip(place + 6), free_address().port()))
        .collect();
    set_services(&dns, &addresses);
    let node = |place: usize, address: SocketAddr| {
        let launch = expecting(launch(place, &dns, SERVICES, address), 3);
        let advertised = format!("{}:{}", host(place), address.port());
        launch.arg("--cluster-advertise").arg(advertised)
    };
    let spawn = |(place, address): (usize, &SocketAddr)| node(place, *address).spawn();
    let mut cluster = Cluster {
        nodes: addresses.iter().enumerate().map(spawn).collect(),
    };
    cluster.wait_ready();
    assert_one(&cluster);
    cluster.nodes[2].kill9();
    let moved = SocketAddr::new(ip(9), addresses[2].port());
    dns.set_addresses(&host(2), [moved.ip()]);
    let dir = cluster.nodes[2].data_dir().to_owned();
    // Its directory goes with it.
    let _old = std::mem::replace(&mut cluster.nodes[2], node(2, moved).data_dir(&dir).spawn());
    cluster.wait_ready();
    assert_one(&cluster);
    block_on(async {
        let topic = fresh("moved");
        let address = cluster.mqtt(2);
        let mut subscriber = Client::connect(address, Version::V5, connect(fresh("s"))).await;
        subscriber.subscribe(&topic, 1).await;
        let mut publisher = cluster.client(0, Version::V5).await;
        let message = publish(&topic).qos1(1).payload("x");
        publisher.publish(message).await;
        subscriber.take("x").await;
    });
}
