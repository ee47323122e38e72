//! A node that is a cluster of one and goes into another cluster: whether it may, and what it writes down for its next start,
//! which sets its data aside and joins with a new identity.

use std::time::Duration;

use flotte_proto::{Hello, Member, ProbeRequest, ProbeResponse};

use super::node::Node;
use crate::net::{CallError, check};
use crate::store::StoreError;

/// How long the node at the address may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Why a node does not join another cluster.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Nobody answers there.
    #[error("{address} does not answer as a node: {why}")]
    Unreachable {
        /// host:port.
        address: String,
        /// What happened.
        why: CallError,
    },
    /// It is this node.
    #[error("{0} is this node itself")]
    Itself(String),
    /// They do not understand each other.
    #[error("{0}")]
    Protocol(String),
    /// There is nothing to join.
    #[error("the node at {0} is in no cluster yet: {1}")]
    NoCluster(String, &'static str),
    /// It is in there.
    #[error("this node is a member of that cluster already")]
    Member,
    /// Its own cluster would be left with a hole.
    #[error(
        "this node is one of {0} members of its cluster: only a node that is alone can join another; `flotte ctl leave` it first"
    )]
    NotAlone(usize),
    /// It would take the place of another.
    #[error(
        "that cluster has a member of this name, which is up: {0}; give this node another `node.name`"
    )]
    NameTaken(String),
    /// This start of it is over, or not there yet.
    #[error("this node is not up")]
    NotUp,
    /// It is not written down.
    #[error(transparent)]
    Disk(#[from] StoreError),
}

/// What a node would join, and give up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinPlan {
    /// The other cluster.
    pub cluster_id: u64,
    /// Where it was found, and where its other members are.
    pub addresses: Vec<String>,
    /// Retained messages that this node holds.
    pub retained: usize,
}

impl Node {
    /// Looks at the cluster at an address, and at whether this node may join it.
    pub(crate) async fn plan_join(&self, address: &str) -> Result<JoinPlan, JoinError> {
        if self.life().is_none() {
            return Err(JoinError::NotUp);
        }
        let hello = Hello {
            // As the node that it is to be: one of its own cluster would be told nothing.
            cluster_id: 0,
            cluster_level: 0,
            ..self.identity.hello()
        };
        let request = ProbeRequest {
            hello: Some(hello.clone()),
            ..ProbeRequest::default()
        };
        let answer = self.network.probe(address, request, ANSWER_MAX).await;
        let answer = answer.map_err(|why| JoinError::Unreachable {
            address: address.to_owned(),
            why,
        })?;
        let plan = judge(address, &hello, self.identity.cluster_id(), &answer)?;
        let meta = self.meta.read();
        if meta.members().len() > 1 {
            return Err(JoinError::NotAlone(meta.members().len()));
        }
        Ok(JoinPlan {
            retained: meta.retained().len(),
            ..plan
        })
    }

    /// Writes down that the next start of this node sets its data aside and joins there. From then on there is no way back.
    pub(crate) fn mark_join(&self, plan: &JoinPlan) -> Result<(), JoinError> {
        Ok(self.store.mark_join(&plan.addresses)?)
    }
}

/// What the answer of the node at `address` means for one that introduces itself as `hello`.
fn judge(
    address: &str,
    hello: &Hello,
    cluster_id: u64,
    answer: &ProbeResponse,
) -> Result<JoinPlan, JoinError> {
    let Some(theirs) = answer.hello.as_ref().filter(|theirs| theirs.node_id != 0) else {
        return Err(JoinError::NoCluster(address.into(), "it is starting"));
    };
    if theirs.node_id == hello.node_id {
        return Err(JoinError::Itself(address.into()));
    }
    check(hello, theirs).map_err(JoinError::Protocol)?;
    if theirs.cluster_id == 0 || answer.members.is_empty() {
        let why = "it waits to be found, or to found one";
        return Err(JoinError::NoCluster(address.into(), why));
    }
    if theirs.cluster_id == cluster_id {
        return Err(JoinError::Member);
    }
    let is_namesake = |member: &&Member| member.name == hello.name && member.up;
    if let Some(namesake) = answer.members.iter().find(is_namesake) {
        return Err(JoinError::NameTaken(namesake.advertise.clone()));
    }
    let mut addresses = vec![address.to_owned()];
    let others = answer.members.iter().map(|member| &member.advertise);
    addresses.extend(others.filter(|other| !other.is_empty()).cloned());
    addresses.dedup();
    Ok(JoinPlan {
        cluster_id: theirs.cluster_id,
        addresses,
        retained: 0,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn hello(node_id: u64, cluster_id: u64, name: &str) -> Hello {
        Hello {
            cluster_id,
            node_id,
            name: name.into(),
            ..Hello::default()
        }
    }

    fn answer(hello: Hello) -> ProbeResponse {
        let member = |id: u64| Member {
            node_id: id,
            name: format!("n{id}"),
            advertise: format!("n{id}:7883"),
            up: id != 3,
            ..Member::default()
        };
        ProbeResponse {
            hello: Some(hello),
            members: (1..=3).map(member).collect(),
            ..ProbeResponse::default()
        }
    }

    fn judged(name: &str, answer: &ProbeResponse) -> Result<JoinPlan, String> {
        judge("n1:7883", &hello(9, 0, name), 9, answer).map_err(|e| e.to_string())
    }

    #[test]
    fn a_plan_holds_all_members() {
        let plan = judged("new", &answer(hello(1, 1, "n1"))).unwrap();
        assert_eq!((plan.cluster_id, plan.addresses.len()), (1, 3), "{plan:?}");
        // The name of one that is down is taken over, as a machine that was replaced does.
        assert!(judged("n3", &answer(hello(1, 1, "n1"))).is_ok());
    }

    #[test]
    fn what_cannot_be_joined_is_said_in_words() {
        let none = ProbeResponse::default();
        let founding = ProbeResponse {
            members: Vec::new(),
            ..answer(hello(1, 0, "n1"))
        };
        let other_protocol = answer(Hello {
            protocol: 99,
            ..hello(1, 1, "n1")
        });
        for (name, answer, words) in [
            ("new", none, "in no cluster yet: it is starting"),
            ("new", founding, "waits to be found"),
            ("new", other_protocol, "version 99 of the protocol"),
            ("new", answer(hello(9, 9, "new")), "this node itself"),
            (
                "new",
                answer(hello(1, 9, "n1")),
                "a member of that cluster already",
            ),
            (
                "n2",
                answer(hello(1, 1, "n1")),
                "member of this name, which is up: n2:7883",
            ),
        ] {
            let said = judged(name, &answer).unwrap_err();
            assert!(said.contains(words), "{said}");
        }
    }
}
