//! `flotte serve`: gathers the configuration, sets up logging, and hands over to the node.

use std::path::PathBuf;

use clap::Args;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use super::Exit;
use super::output::tell;
use crate::config::{Config, ConfigError, Flag, Loaded, Raw, Sources};
use crate::log;

/// Set by `flotte dev` to its process id: a node whose `dev` dies ends, too.
pub const DEV_PARENT_VARIABLE: &str = "FLOTTE_DEV_PARENT";

#[derive(Debug, Default, Args)]
pub struct Arguments {
    /// The configuration file (TOML); `flotte config default` prints one.
    #[arg(long, value_name = "FILE", env = "FLOTTE_CONFIG")]
    pub config: Option<PathBuf>,
    /// The name of this node in the cluster.
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Where this node keeps its data.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// The address of the listener `mqtt`.
    #[arg(long, value_name = "ADDR:PORT")]
    pub mqtt_bind: Option<String>,
    /// The address of the listener `ws`.
    #[arg(long, value_name = "ADDR:PORT")]
    pub ws_bind: Option<String>,
    /// The address for other nodes.
    #[arg(long, value_name = "ADDR:PORT")]
    pub cluster_bind: Option<String>,
    /// How other nodes reach this one.
    #[arg(long, value_name = "HOST:PORT")]
    pub cluster_advertise: Option<String>,
    /// A node to ask at the start; may be repeated.
    #[arg(long, value_name = "HOST:PORT")]
    pub join: Vec<String>,
    /// A name whose addresses are the nodes to ask, or one with SRV records, as _flotte._tcp.example.
    #[arg(long, value_name = "HOST:PORT")]
    pub discover_dns: Option<String>,
    /// How many nodes make the first cluster.
    #[arg(long, value_name = "N")]
    pub bootstrap_expect: Option<String>,
    /// The address of the admin port.
    #[arg(long, value_name = "ADDR:PORT")]
    pub admin_bind: Option<String>,
    /// Take clients without a user name, on every listener.
    #[arg(long)]
    pub allow_anonymous: bool,
    /// text or json.
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
}

impl Arguments {
    /// Runs a node until it is told to end.
    pub fn run(self) -> Exit {
        if !follow_dev_parent() {
            // The parent was gone before this node could follow it.
            return Exit::Done;
        }
        let sources = self.sources();
        let loaded = match Config::load(&sources) {
            Ok(loaded) => loaded,
            Err(errors) => return refused(&errors),
        };
        let log = match log::init(&loaded.config.log) {
            Ok(log) => log,
            Err(error) => {
                tell(format_args!("flotte: {error}"));
                return Exit::BadConfiguration;
            }
        };
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        run_node(loaded, sources, log)
    }

    /// Flags over the environment of this process over the file.
    pub fn sources(self) -> Sources {
        Sources {
            file: self.config.clone(),
            flags: self.flags(),
            ..Sources::of_process()
        }
    }

    fn flags(self) -> Vec<Flag> {
        let word = |flag, key, value: Option<String>| {
            value.map(|value| Flag {
                flag,
                key,
                value: Raw::Word(value),
            })
        };
        let join = (!self.join.is_empty()).then(|| Flag {
            flag: "--join",
            key: "cluster.join",
            value: Raw::List(self.join.into_iter().map(Raw::Word).collect()),
        });
        let anonymous = self.allow_anonymous.then_some(Flag {
            flag: "--allow-anonymous",
            key: "auth.allow_anonymous",
            value: Raw::Bool(true),
        });
        [
            word("--node-name", "node.name", self.node_name),
            word("--data-dir", "node.data_dir", self.data_dir),
            word("--mqtt-bind", "listener.mqtt.bind", self.mqtt_bind),
            word("--ws-bind", "listener.ws.bind", self.ws_bind),
            word("--cluster-bind", "cluster.bind", self.cluster_bind),
            word(
                "--cluster-advertise",
                "cluster.advertise",
                self.cluster_advertise,
            ),
            join,
            word("--discover-dns", "cluster.discover_dns", self.discover_dns),
            word(
                "--bootstrap-expect",
                "cluster.bootstrap_expect",
                self.bootstrap_expect,
            ),
            word("--admin-bind", "admin.bind", self.admin_bind),
            anonymous,
            word("--log-format", "log.format", self.log_format),
            word("--log-level", "log.level", self.log_level),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// The one place where the command line hands over to the node. A reload reads `sources` again.
fn run_node(loaded: Loaded, sources: Sources, log: log::Handle) -> Exit {
    crate::node::run(loaded, sources, log)
}

/// Tells every error of a configuration.
pub fn refused(errors: &[ConfigError]) -> Exit {
    for error in errors {
        tell(format_args!("flotte: {error}"));
    }
    Exit::BadConfiguration
}

/// Makes a node that `flotte dev` started end when `dev` dies, however it dies. False when it is dead already.
fn follow_dev_parent() -> bool {
    let Some(parent) = std::env::var(DEV_PARENT_VARIABLE)
        .ok()
        .and_then(|pid| pid.parse().ok())
        .and_then(Pid::from_raw)
    else {
        return true;
    };
    if let Err(error) = set_parent_process_death_signal(Some(Signal::TERM)) {
        tell(format_args!(
            "flotte: this node will outlive its `flotte dev`: {error}"
        ));
        return true;
    }
    // It may have died before the line above took effect.
    getppid() == Some(parent)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn load(line: &str) -> Result<Loaded, Vec<ConfigError>> {
        let words = ["serve"]
            .into_iter()
            .chain(line.split(' ').filter(|word| !word.is_empty()));
        let arguments = Line::try_parse_from(words).unwrap().arguments;
        Config::load(&Sources {
            flags: arguments.flags(),
            ..Sources::default()
        })
    }

    #[test]
    fn every_flag_reaches_its_key() {
        let config = load(
            "--node-name n1 --data-dir d --mqtt-bind 127.0.0.1:1 --cluster-bind 127.0.0.1:2 --cluster-advertise n1:2 \
             --join n2:7883 --join n3:7883 --discover-dns nodes:7883 --bootstrap-expect 3 --admin-bind 127.0.0.1:3 --allow-anonymous \
             --log-format json --log-level debug",
        )
        .unwrap()
        .config;
        assert_eq!(config.node.effective_name().as_str(), "n1");
        assert_eq!(config.node.data_dir.to_str(), Some("d"));
        assert_eq!(config.listeners[0].bind.port(), Some(1));
        assert_eq!(config.cluster.bind.port(), 2);
        assert_eq!(config.cluster.advertise.unwrap().host(), "n1");
        assert_eq!(config.cluster.join.len(), 2);
        let discover_dns = config.cluster.discover_dns.map(|name| name.to_string());
        assert_eq!(discover_dns.as_deref(), Some("nodes:7883"));
        assert_eq!(config.cluster.bootstrap_expect, Some(3));
        assert_eq!(config.admin.bind.port(), 3);
        assert_eq!(config.auth.allow_anonymous, Some(true));
        assert_eq!(config.log.format, crate::config::log::Format::Json);
        assert_eq!(config.log.level.as_str(), "debug");
    }

    #[test]
    fn no_flag_is_no_value() {
        assert_eq!(load("").unwrap().config, Config::default());
    }

    #[test]
    fn a_bad_flag_names_itself_and_what_is_allowed() {
        let errors = load("--mqtt-bind here --discover-dns nodes").unwrap_err();
        let shown: Vec<String> = errors.iter().map(ConfigError::to_string).collect();
        assert_eq!(
            shown,
            [
                "flag --discover-dns: `cluster.discover_dns = \"nodes\"` is not allowed: allowed is a name and a port, as nodes.example:7883, or the name of SRV records, as _flotte._tcp.example",
                "flag --mqtt-bind: `listener.bind = \"here\"` is not allowed: allowed is an IP address and a port, as 127.0.0.1:1883 or [::1]:1883, or the path of a unix socket, as unix:/run/flotte.sock",
            ]
        );
    }

    #[test]
    fn a_node_without_dev_follows_nobody() {
        assert!(follow_dev_parent());
    }
}
