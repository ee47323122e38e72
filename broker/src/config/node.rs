//! `[node]`: who this node is and where it keeps its data.

use std::path::PathBuf;

use super::section::section;
use super::types::NodeName;

section! {
    /// Who this node is, and where it keeps its data.
    "node" {
        /// The name in the cluster, in metrics and in `$SYS`; every node has its own. Unset: the host name.
        name: Option<NodeName> = None;
        /// The directory of the journal, of snapshots and of the node's identity; one node at a time holds it.
        data_dir: PathBuf = PathBuf::from("./flotte-data");
    }
}

impl Config {
    /// The name of this node: as configured, or else the host name.
    pub fn effective_name(&self) -> NodeName {
        self.name.clone().unwrap_or_else(NodeName::of_this_host)
    }
}
