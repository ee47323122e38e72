//! Who a node is to others: its id, its cluster, its incarnation, and the check of a handshake.
//! It opens no connection.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

use flotte_proto::Hello;
use tokio::sync::watch;

use crate::id::NodeId;
use crate::level::FeatureLevel;

/// Version of the protocol between nodes. A peer with another one is refused.
pub const PROTOCOL: u32 = 4;

/// What this node says of itself. The cluster and the incarnation may change while it runs; each
/// change is made known to all peers by a new handshake.
#[derive(Debug)]
pub struct Identity {
    node_id: NodeId,
    name: String,
    /// `host:port` of the cluster port, as others reach it.
    advertise: String,
    claims: watch::Sender<Claims>,
    /// The highest that this node knows.
    known: FeatureLevel,
    /// Drawn at random by this process.
    process: u64,
    /// That of the cluster, as far as it has been heard; 0 before. Told in handshakes to come: all who are members now know it.
    cluster_level: AtomicU32,
}

/// The part of an identity that changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claims {
    /// 0 until the node belongs to a cluster.
    pub cluster_id: u64,
    /// Number of the current life of the node, higher at every start.
    pub incarnation: u64,
}

impl Identity {
    /// An identity whose name and address stay as they are.
    pub fn new(node_id: NodeId, name: &str, advertise: &str, claims: Claims) -> Self {
        Self {
            node_id,
            name: name.to_owned(),
            advertise: advertise.to_owned(),
            claims: watch::Sender::new(claims),
            known: FeatureLevel::KNOWN,
            process: 0,
            cluster_level: AtomicU32::new(0),
        }
    }

    /// The same, of a node that knows another feature level.
    pub fn knowing(self, known: FeatureLevel) -> Self {
        Self { known, ..self }
    }

    /// The same, of a process that drew this number.
    pub fn of_process(self, process: u64) -> Self {
        Self { process, ..self }
    }

    /// What this process drew.
    pub fn process(&self) -> u64 {
        self.process
    }

    /// The cluster's feature level is known here.
    pub fn set_cluster_level(&self, level: FeatureLevel) {
        self.cluster_level.store(level.number(), Ordering::Relaxed);
    }

    /// The id of this node.
    pub fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// The cluster this node belongs to; 0 for none.
    pub fn cluster_id(&self) -> u64 {
        self.claims.borrow().cluster_id
    }

    /// The current incarnation of this node.
    pub fn incarnation(&self) -> u64 {
        self.claims.borrow().incarnation
    }

    /// Makes this node a member of a cluster.
    pub fn set_cluster_id(&self, cluster_id: u64) {
        self.change(|claims| claims.cluster_id = cluster_id);
    }

    /// Begins a new incarnation.
    pub fn set_incarnation(&self, incarnation: u64) {
        self.change(|claims| claims.incarnation = incarnation);
    }

    fn change(&self, edit: impl FnOnce(&mut Claims)) {
        self.claims.send_if_modified(|claims| {
            let before = *claims;
            edit(claims);
            *claims != before
        });
    }

    /// Follows the claims; the current ones count as seen.
    pub fn watch(&self) -> watch::Receiver<Claims> {
        self.claims.subscribe()
    }

    /// The handshake of this node as of now.
    pub fn hello(&self) -> Hello {
        let claims = *self.claims.borrow();
        Hello {
            cluster_id: claims.cluster_id,
            node_id: self.node_id.0,
            incarnation: claims.incarnation,
            name: self.name.clone(),
            advertise: self.advertise.clone(),
            protocol: PROTOCOL,
            feature_level: self.known.number(),
            cluster_level: self.cluster_level.load(Ordering::Relaxed),
            meant_for: 0,
            process: self.process,
        }
    }

    /// The same, for this node and no other that may be at its address by now.
    pub fn hello_to(&self, callee: NodeId) -> Hello {
        Hello {
            meant_for: callee.0,
            ..self.hello()
        }
    }
}

/// A peer, as it introduced itself on the stream a request came by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    pub node_id: NodeId,
    /// 0 while the peer belongs to no cluster.
    pub cluster_id: u64,
    pub incarnation: u64,
    pub name: String,
    pub advertise: String,
}

impl From<Hello> for PeerIdentity {
    fn from(hello: Hello) -> Self {
        Self {
            node_id: NodeId(hello.node_id),
            cluster_id: hello.cluster_id,
            incarnation: hello.incarnation,
            name: hello.name,
            advertise: hello.advertise,
        }
    }
}

/// Whether two nodes may talk at all: the same protocol, not one node with itself, not members
/// of different clusters, and each knows the feature level of the other's cluster. The error names both sides and is fit to be sent to the other one.
pub fn check(ours: &Hello, theirs: &Hello) -> Result<(), String> {
    let (us, them) = (Named(ours), Named(theirs));
    if theirs.protocol != ours.protocol {
        return Err(format!(
            "{them} speaks version {} of the protocol between nodes, {us} version {}",
            theirs.protocol, ours.protocol
        ));
    }
    if theirs.node_id == 0 {
        return Err(format!("{them} has no node id; it talks to {us}"));
    }
    if theirs.node_id == ours.node_id {
        return Err(format!("{them} has the same node id as {us}"));
    }
    if theirs.cluster_id != ours.cluster_id && theirs.cluster_id != 0 && ours.cluster_id != 0 {
        return Err(format!(
            "{them} belongs to another cluster ({:016x}) than {us} ({:016x})",
            theirs.cluster_id, ours.cluster_id
        ));
    }
    check_level((&them, theirs), (&us, ours))?;
    check_level((&us, ours), (&them, theirs))
}

/// Whether a node knows the level that the other's cluster uses.
fn check_level(
    (one, hello): (&Named<'_>, &Hello),
    (other, of): (&Named<'_>, &Hello),
) -> Result<(), String> {
    let known = FeatureLevel::said(hello.feature_level);
    let used = FeatureLevel::said(of.cluster_level);
    if known < used {
        return Err(format!(
            "{one} knows feature level {known}, and the cluster of {other} uses level {used}: {one} needs a newer version"
        ));
    }
    Ok(())
}

/// Whether a node that calls may do so, and means this one: a stream that is meant for a former node at this address would
/// end that of the same caller which is meant for this one.
pub fn check_caller(ours: &Hello, theirs: &Hello) -> Result<(), String> {
    check(ours, theirs)?;
    match theirs.meant_for {
        0 => Ok(()),
        meant => check_met(theirs, ours, NodeId(meant)),
    }
}

/// Whether the node that answered at an address is the one that was meant.
pub fn check_callee(ours: &Hello, theirs: &Hello, expected: NodeId) -> Result<(), String> {
    check(ours, theirs)?;
    check_met(ours, theirs, expected)
}

fn check_met(caller: &Hello, callee: &Hello, expected: NodeId) -> Result<(), String> {
    if callee.node_id != expected.0 {
        return Err(format!(
            "{} answers where {} expects node {expected}",
            Named(callee),
            Named(caller)
        ));
    }
    Ok(())
}

/// Names a node for people.
struct Named<'a>(&'a Hello);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Names come from the network: escaped and cut, as they end up in logs.
        let name: String = self.0.name.chars().take(64).collect();
        write!(f, "node {} ({name:?})", NodeId(self.0.node_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(node_id: u64, cluster_id: u64) -> Hello {
        let claims = Claims {
            cluster_id,
            incarnation: 1,
        };
        Identity::new(NodeId(node_id), "n", "h:1", claims).hello()
    }

    #[test]
    fn unknown_cluster_is_accepted_on_either_side() {
        assert_eq!(check(&hello(1, 0), &hello(2, 7)), Ok(()));
        assert_eq!(check(&hello(1, 7), &hello(2, 0)), Ok(()));
        assert_eq!(check(&hello(1, 7), &hello(2, 7)), Ok(()));
    }

    #[test]
    fn wrong_cluster_names_both_sides() {
        let text = check(&hello(1, 0xa), &hello(2, 0xb)).expect_err("another cluster");
        assert!(
            text.contains("node 0000000000000002") && text.contains("000000000000000b"),
            "{text}"
        );
        assert!(
            text.contains("node 0000000000000001") && text.contains("000000000000000a"),
            "{text}"
        );
    }

    #[test]
    fn wrong_node_protocol_or_own_id_is_refused() {
        assert!(check_callee(&hello(1, 7), &hello(3, 7), NodeId(2)).is_err());
        assert!(check(&hello(1, 7), &hello(1, 7)).is_err());
        assert!(check(&hello(1, 7), &hello(0, 7)).is_err());
        let newer = Hello {
            protocol: PROTOCOL + 1,
            ..hello(2, 7)
        };
        assert!(check(&hello(1, 7), &newer).is_err());
    }

    #[test]
    fn who_does_not_know_the_level_of_the_cluster_is_refused_by_both_sides() {
        let claims = Claims {
            cluster_id: 7,
            incarnation: 1,
        };
        let of = |id: u64, known: u32, used: u32| {
            let identity = Identity::new(NodeId(id), "n", "h:1", claims);
            let identity = identity.knowing(FeatureLevel::said(known));
            if used > 0 {
                identity.set_cluster_level(FeatureLevel::said(used));
            }
            identity.hello()
        };
        let (old, new) = (of(1, 1, 0), of(2, 3, 2));
        for refused in [check(&old, &new), check(&new, &old)] {
            let text = refused.expect_err("level 2 is used");
            let what = "node 0000000000000001 (\"n\") knows feature level 1, and the cluster of node 0000000000000002";
            assert!(text.starts_with(what), "{text}");
            assert!(text.contains("uses level 2"), "{text}");
        }
        assert_eq!(check(&of(1, 2, 0), &new), Ok(()));
        assert_eq!(check(&of(1, 1, 1), &of(2, 3, 1)), Ok(()), "a mixed cluster");
        let silent = Hello {
            feature_level: 0,
            ..hello(1, 7)
        };
        assert_eq!(
            check(&silent, &of(2, 3, 1)),
            Ok(()),
            "of a version before levels"
        );
    }

    #[test]
    fn only_a_real_change_is_announced() {
        let claims = Claims {
            cluster_id: 0,
            incarnation: 1,
        };
        let identity = Identity::new(NodeId(1), "a", "h:1", claims);
        let watch = identity.watch();
        identity.set_cluster_id(0);
        assert!(!watch.has_changed().expect("alive"));
        identity.set_cluster_id(9);
        assert!(watch.has_changed().expect("alive"));
        assert_eq!(identity.hello().cluster_id, 9);
    }
}
