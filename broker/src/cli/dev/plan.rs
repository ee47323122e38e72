//! Which nodes a `dev` cluster has: names, addresses, directories and command lines. It checks that the addresses are free and
//! makes directories, and starts nothing.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::{Arguments, DevError};

/// More would need ports above 65,535.
pub const NODES_MAX: u8 = 5;
/// What each further node adds to every port.
const PORT_STEP: u16 = 10_000;

/// The nodes of a cluster on this machine.
#[derive(Debug)]
pub struct Plan {
    pub nodes: Vec<NodePlan>,
    pub log_level: String,
    /// Removed with all that is in it when this goes away.
    _scratch: Option<ScratchDirectory>,
}

/// One node.
#[derive(Debug)]
pub struct NodePlan {
    pub name: String,
    pub mqtt: SocketAddr,
    pub ws: Option<SocketAddr>,
    pub cluster: SocketAddr,
    pub admin: SocketAddr,
    pub data_dir: PathBuf,
}

impl Plan {
    /// Gives every node its name, addresses and directory.
    pub fn make(arguments: &Arguments) -> Result<Self, DevError> {
        let bases = [
            ("--mqtt-port", Some(arguments.mqtt_port)),
            ("--cluster-port", Some(arguments.cluster_port)),
            ("--admin-port", Some(arguments.admin_port)),
            ("--ws-port", arguments.ws_port),
        ];
        let bases = bases.map(|(flag, port)| Some((flag, port?)));
        let bases: Vec<_> = bases.into_iter().flatten().collect();
        for (at, &(flag, port)) in bases.iter().enumerate() {
            if address(port, arguments.nodes - 1).is_none() {
                return Err(DevError::PortsTooHigh {
                    flag,
                    port,
                    nodes: arguments.nodes,
                });
            }
            for (other, taken) in &bases[..at] {
                // Bases that differ by the distance of two nodes meet, too.
                let apart = port.abs_diff(*taken);
                if apart % PORT_STEP == 0 && apart / PORT_STEP < u16::from(arguments.nodes) {
                    return Err(DevError::PortsClash {
                        flag,
                        other,
                        port: port.max(*taken),
                    });
                }
            }
        }
        let (data_dir, scratch) = match &arguments.data_dir {
            Some(path) => (absolute(path)?, None),
            None => {
                let scratch = ScratchDirectory::make()?;
                (scratch.0.clone(), Some(scratch))
            }
        };
        let node = |index: u8| {
            let name = format!("dev-{}", index + 1);
            Some(NodePlan {
                mqtt: address(arguments.mqtt_port, index)?,
                ws: arguments.ws_port.and_then(|port| address(port, index)),
                cluster: address(arguments.cluster_port, index)?,
                admin: address(arguments.admin_port, index)?,
                data_dir: data_dir.join(&name),
                name,
            })
        };
        let nodes = (0..arguments.nodes).filter_map(node).collect();
        Ok(Self {
            nodes,
            log_level: arguments.log_level.clone(),
            _scratch: scratch,
        })
    }

    /// Tells before anything runs when an address is taken.
    pub fn check_ports(&self) -> Result<(), DevError> {
        for node in &self.nodes {
            let all = [
                ("--mqtt-port", Some(node.mqtt)),
                ("--cluster-port", Some(node.cluster)),
                ("--admin-port", Some(node.admin)),
                ("--ws-port", node.ws),
            ];
            for (flag, address) in all {
                let Some(address) = address else { continue };
                TcpListener::bind(address).map_err(|source| DevError::PortBusy {
                    address,
                    node: node.name.clone(),
                    flag,
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// The arguments that make an executable this node.
    pub fn arguments_of(&self, node: &NodePlan) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["serve".into()];
        let mut flag = |flag: &str, value: OsString| arguments.extend([flag.into(), value]);
        flag("--node-name", node.name.clone().into());
        flag("--data-dir", node.data_dir.clone().into());
        flag("--mqtt-bind", node.mqtt.to_string().into());
        if let Some(ws) = node.ws {
            flag("--ws-bind", ws.to_string().into());
        }
        flag("--cluster-bind", node.cluster.to_string().into());
        flag("--admin-bind", node.admin.to_string().into());
        for other in &self.nodes {
            flag("--join", other.cluster.to_string().into());
        }
        flag("--bootstrap-expect", self.nodes.len().to_string().into());
        flag("--log-level", self.log_level.clone().into());
        arguments
    }

    /// The same for a shell.
    pub fn command_line(&self, node: &NodePlan) -> String {
        let words = self.arguments_of(node);
        let quoted = words.iter().map(|word| shell_word(&word.to_string_lossy()));
        ["flotte".to_owned()]
            .into_iter()
            .chain(quoted)
            .collect::<Vec<_>>()
            .join(" ")
    }
}

fn address(base: u16, index: u8) -> Option<SocketAddr> {
    let port = base.checked_add(u16::from(index).checked_mul(PORT_STEP)?)?;
    Some((Ipv4Addr::LOCALHOST, port).into())
}

fn absolute(path: &Path) -> Result<PathBuf, DevError> {
    let made = std::fs::create_dir_all(path).and_then(|()| path.canonicalize());
    made.map_err(|source| DevError::DataDirectory {
        path: path.to_owned(),
        source,
    })
}

fn shell_word(word: &str) -> String {
    let plain = |char: char| char.is_ascii_alphanumeric() || "-_./:=,@".contains(char);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// A new directory for this process alone.
#[derive(Debug)]
struct ScratchDirectory(PathBuf);

impl ScratchDirectory {
    fn make() -> Result<Self, DevError> {
        let name = format!(
            "flotte-dev-{}-{:08x}",
            std::process::id(),
            rand::random::<u32>()
        );
        let path = std::env::temp_dir().join(name);
        // It fails where something is there already.
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|source| DevError::DataDirectory {
                path: path.clone(),
                source,
            })?;
        Ok(Self(path))
    }
}

impl Drop for ScratchDirectory {
    fn drop(&mut self) {
        match std::fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                super::tell(format_args!(
                    "flotte dev: {} stays behind: {error}",
                    self.0.display()
                ));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Exit, Failure as _};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn plan(line: &str) -> Result<Plan, DevError> {
        let words = ["dev"]
            .into_iter()
            .chain(line.split(' ').filter(|word| !word.is_empty()));
        Plan::make(&Line::try_parse_from(words).unwrap().arguments)
    }

    #[test]
    fn each_further_node_has_ten_thousand_more() {
        let plan = plan("").unwrap();
        let ports: Vec<[u16; 3]> = plan
            .nodes
            .iter()
            .map(|node| [node.mqtt.port(), node.cluster.port(), node.admin.port()])
            .collect();
        assert_eq!(
            ports,
            [
                [1883, 7883, 8080],
                [11883, 17883, 18080],
                [21883, 27883, 28080]
            ]
        );
    }

    #[test]
    fn a_node_is_told_of_all_nodes_and_their_number() {
        let plan = plan(
            "--nodes 2 --mqtt-port 2000 --cluster-port 3000 --admin-port 4000 --log-level debug",
        )
        .unwrap();
        let second = &plan.nodes[1];
        assert_eq!(second.ws, None);
        let expected = format!(
            "flotte serve --node-name dev-2 --data-dir {} --mqtt-bind 127.0.0.1:12000 --cluster-bind 127.0.0.1:13000 \
             --admin-bind 127.0.0.1:14000 --join 127.0.0.1:3000 --join 127.0.0.1:13000 --bootstrap-expect 2 --log-level debug",
            second.data_dir.display()
        );
        assert_eq!(plan.command_line(second), expected);
    }

    #[test]
    fn websocket_is_there_when_asked_for() {
        let plan = plan("--ws-port 8083").unwrap();
        let ports: Vec<_> = plan.nodes.iter().filter_map(|node| node.ws).collect();
        let ports: Vec<u16> = ports.iter().map(SocketAddr::port).collect();
        assert_eq!(ports, [8083, 18083, 28083]);
        let line = plan.command_line(&plan.nodes[1]);
        assert!(line.contains(" --ws-bind 127.0.0.1:18083 "), "{line}");
    }

    #[test]
    fn ports_that_do_not_fit_are_bad_usage() {
        let too_high = plan("--nodes 5 --admin-port 26000").unwrap_err();
        assert!(matches!(
            too_high,
            DevError::PortsTooHigh {
                flag: "--admin-port",
                ..
            }
        ));
        let clash = plan("--mqtt-port 1883 --cluster-port 11883").unwrap_err();
        assert!(matches!(clash, DevError::PortsClash { port: 11883, .. }));
        assert_eq!((too_high.exit(), clash.exit()), (Exit::Usage, Exit::Usage));
        let clash = plan("--ws-port 18080").unwrap_err();
        assert!(matches!(
            clash,
            DevError::PortsClash {
                flag: "--ws-port",
                ..
            }
        ));
        plan("--nodes 1 --mqtt-port 1883 --cluster-port 11883").unwrap();
    }

    #[test]
    fn a_busy_port_is_named() {
        // A free port low enough for the second node's.
        let taken = (20_000..21_000)
            .find_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok())
            .unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = plan(&format!("--nodes 1 --admin-port {port}"))
            .unwrap()
            .check_ports()
            .unwrap_err();
        // The default ports may be taken here, too.
        let busy = matches!(error, DevError::PortBusy { ref node, .. } if node == "dev-1");
        assert!(busy, "{error}");
        assert_eq!(error.exit(), Exit::CannotBind);
    }

    #[test]
    fn a_scratch_directory_goes_away_and_a_given_one_stays() {
        let scratch = plan("").unwrap();
        let path = scratch.nodes[0].data_dir.parent().unwrap().to_owned();
        assert!(path.is_dir());
        drop(scratch);
        assert!(!path.exists());

        let dir = tempfile::tempdir().unwrap();
        let given = dir.path().join("data dir");
        let arguments = ["dev", "--data-dir", given.to_str().unwrap()];
        let plan = Plan::make(&Line::try_parse_from(arguments).unwrap().arguments).unwrap();
        assert!(
            plan.command_line(&plan.nodes[0])
                .contains("/data dir/dev-1'")
        );
        drop(plan);
        assert!(given.is_dir());
    }
}
