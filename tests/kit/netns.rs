//! Network namespaces: nodes with addresses of their own on one bridge, whose links a test can cut.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::broker::Launch;
use crate::reaper;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Ports inside the namespaces, where each node has an address of its own.
pub const MQTT: u16 = 1883;
pub const CLUSTER: u16 = 7883;
/// Where a node has its admin port, on its own loopback: to be asked from [`Netns::inside`].
pub const ADMIN_INSIDE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

/// A bridge of the host with one namespace for each node; all goes away on drop.
pub struct Netns {
    tag: String,
    subnet: u8,
    count: u8,
}

/// Why there can be no namespaces here, or `None`.
pub fn missing() -> Option<String> {
    for tool in ["ip", "nft"] {
        let found = Command::new(tool)
            .arg("-V")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if found.is_err() {
            return Some(format!("no {tool} on this machine"));
        }
    }
    let probe = format!("flotte-probe-{}", std::process::id());
    let made = try_ip(&["netns", "add", &probe]);
    let _ = try_ip(&["netns", "del", &probe]);
    made.err()
        .map(|why| format!("network namespaces are not allowed: {why}"))
}

impl Netns {
    /// Makes `count` namespaces on a bridge that the host is on too.
    pub fn new(count: u8) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let tag = format!("fl{:x}{number}", std::process::id() & 0xffff);
        let subnet = u8::try_from((std::process::id() + number) % 250).expect("below 250");
        let netns = Self { tag, subnet, count };
        let bridge = netns.bridge();
        reaper::watch_bridge(&bridge);
        ip(&["link", "add", &bridge, "type", "bridge"]);
        ip(&[
            "addr",
            "add",
            &format!("{}/24", netns.address(254)),
            "dev",
            &bridge,
        ]);
        ip(&["link", "set", &bridge, "up"]);
        (1..=count).for_each(|node| netns.add(node));
        netns
    }

    fn add(&self, node: u8) {
        let (name, host_end) = (self.name(node), format!("{}v{node}", self.tag));
        reaper::watch_namespace(&name);
        ip(&["netns", "add", &name]);
        ip(&[
            "link", "add", &host_end, "type", "veth", "peer", "name", "eth0", "netns", &name,
        ]);
        ip(&["link", "set", &host_end, "master", &self.bridge(), "up"]);
        ip(&[
            "-n",
            &name,
            "addr",
            "add",
            &format!("{}/24", self.address(node)),
            "dev",
            "eth0",
        ]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        ip(&["-n", &name, "link", "set", "eth0", "up"]);
    }

    fn bridge(&self) -> String {
        format!("{}br", self.tag)
    }

    /// The name of a node's namespace; nodes count from 1.
    pub fn name(&self, node: u8) -> String {
        format!("{}n{node}", self.tag)
    }

    pub fn address(&self, node: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, self.subnet, node)
    }

    pub fn socket(&self, node: u8, port: u16) -> SocketAddr {
        (self.address(node), port).into()
    }

    /// A node that looks for the first `founders` ones, by their addresses.
    pub fn launch(&self, node: u8, founders: u8) -> Launch {
        let mut launch = Launch::new(&format!("n{node}"))
            .namespace(&self.name(node))
            .bind("mqtt", self.socket(node, MQTT))
            .bind("cluster", self.socket(node, CLUSTER))
            .bind("admin", ADMIN_INSIDE)
            .env("FLOTTE_CLUSTER__INSECURE", true)
            .arg("--allow-anonymous");
        for peer in 1..=founders {
            launch = launch
                .arg("--join")
                .arg(self.socket(peer, CLUSTER).to_string());
        }
        launch
    }

    /// Drops all packets between two nodes, both ways.
    pub fn cut(&self, one: u8, other: u8) {
        let peer = self.address(other);
        let rules = format!(
            "table inet cut {{\n\
             chain in {{ type filter hook input priority 0; ip saddr {peer} drop; }}\n\
             chain out {{ type filter hook output priority 0; ip daddr {peer} drop; }}\n}}\n"
        );
        self.drop_by(one, &rules);
    }

    /// Drops what `other` sends to `deaf`; what `deaf` sends still arrives.
    pub fn deafen(&self, deaf: u8, other: u8) {
        let peer = self.address(other);
        let rules = format!(
            "table inet cut {{\n\
             chain in {{ type filter hook input priority 0; ip saddr {peer} drop; }}\n}}\n"
        );
        self.drop_by(deaf, &rules);
    }

    /// Drops what `caller` sends to a port of `callee`: its connections there end and it opens none. Those that `callee` opened stay.
    pub fn bar(&self, callee: u8, caller: u8, port: u16) {
        let peer = self.address(caller);
        let rules = format!(
            "table inet cut {{\n\
             chain in {{ type filter hook input priority 0; ip saddr {peer} tcp dport {port} drop; }}\n}}\n"
        );
        self.drop_by(callee, &rules);
    }

    /// Adds rules to table `cut` of a node's namespace.
    fn drop_by(&self, node: u8, rules: &str) {
        let script = format!(
            "printf '%s' '{rules}' | ip netns exec {} nft -f -",
            self.name(node)
        );
        run("sh", &["-c", &script]).unwrap_or_else(|why| panic!("cannot cut: {why}"));
    }

    /// Heals what [`Netns::cut`], [`Netns::deafen`] or [`Netns::bar`] cut at node `one`.
    pub fn heal(&self, one: u8) {
        ip(&[
            "netns",
            "exec",
            &self.name(one),
            "nft",
            "delete",
            "table",
            "inet",
            "cut",
        ]);
    }

    /// Runs `work` on a thread inside the node's namespace, where its loopback is reachable.
    pub fn inside<T: Send + 'static>(
        &self,
        node: u8,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let path = format!("/run/netns/{}", self.name(node));
        let thread = std::thread::spawn(move || {
            let namespace = std::fs::File::open(path).expect("the namespace exists");
            let network = Some(LinkNameSpaceType::Network);
            let moved = move_into_link_name_space(namespace.as_fd(), network);
            moved.expect("root may enter a namespace");
            work()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        for node in 1..=self.count {
            let _ = try_ip(&["netns", "del", &self.name(node)]);
        }
        let _ = try_ip(&["link", "del", &self.bridge()]);
    }
}

fn ip(args: &[&str]) {
    try_ip(args).unwrap_or_else(|why| panic!("ip {}: {why}", args.join(" ")));
}

fn try_ip(args: &[&str]) -> Result<(), String> {
    run("ip", args)
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let done = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| e.to_string())?;
    if done.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&done.stderr).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    const PORT: u16 = 4000;

    /// A thread in namespace `node` that answers every connection with one byte.
    fn serve(netns: &Netns, node: u8) {
        let address = netns.socket(node, PORT);
        let listener = netns
            .inside(node, move || TcpListener::bind(address))
            .expect("a listener");
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let _ = stream.write_all(b"!");
            }
        });
    }

    fn reaches(netns: &Netns, from: u8, to: u8) -> bool {
        let address = netns.socket(to, PORT);
        netns.inside(from, move || {
            let limit = Duration::from_millis(500);
            let Ok(mut stream) = TcpStream::connect_timeout(&address, limit) else {
                return false;
            };
            stream.set_read_timeout(Some(limit)).is_ok() && stream.read_exact(&mut [0]).is_ok()
        })
    }

    #[test]
    fn cut_parts_two_nodes_and_no_others() {
        if let Some(reason) = missing() {
            crate::skip!(reason);
        }
        let netns = Netns::new(3);
        (1..=3).for_each(|node| serve(&netns, node));
        assert!(reaches(&netns, 1, 2) && reaches(&netns, 2, 1) && reaches(&netns, 1, 3));
        netns.cut(1, 2);
        assert!(
            !reaches(&netns, 1, 2) && !reaches(&netns, 2, 1),
            "the cut does not cut"
        );
        assert!(
            reaches(&netns, 1, 3) && reaches(&netns, 3, 2),
            "the cut cuts too much"
        );
        netns.heal(1);
        assert!(
            reaches(&netns, 1, 2) && reaches(&netns, 2, 1),
            "the cut does not heal"
        );
        assert!(
            TcpStream::connect(netns.socket(3, PORT)).is_ok(),
            "the host is off the bridge"
        );
    }
}
