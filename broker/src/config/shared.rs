//! `[shared]`: how a message finds its member of a shared subscription.

use super::section::section;
use super::value::choice;

choice! {
    /// How a message finds its member.
    Strategy {
        /// One after the other, over all nodes.
        RoundRobin = "round-robin",
        /// Any, by chance.
        Random = "random",
        /// The one with the fewest messages under way.
        LeastInflight = "least-inflight",
        /// One of this node, if there is any.
        LocalFirst = "local-first",
        /// By the publisher's client id.
        HashClient = "hash-client",
        /// By the topic.
        HashTopic = "hash-topic",
        /// Always the same one, as long as it is there.
        Sticky = "sticky",
    }
}

section! {
    /// How a message finds its member of a shared subscription. The publisher's node chooses a node, weighing it by how
    /// many connected members it has; that node chooses among its members. One that is full or does not read is passed
    /// over as long as another can take the message. All nodes should have the same value.
    "shared" {
        /// "round-robin": each member of the cluster in turn. "random": any.
        /// "least-inflight": the one with the fewest messages it has not acknowledged; between nodes, by what this node
        /// has sent to each and is not acknowledged at QoS 1 (otherwise in turn).
        /// "local-first": in turn among the members of the publisher's node, where it has any; otherwise as "round-robin".
        /// "hash-client", "hash-topic": one publisher's messages, or those of one topic, go to one member, the same from
        /// every node; when members come or go, few move.
        /// "sticky": what a node's clients publish goes to one member until that one leaves; nodes may have the same one.
        strategy: Strategy = Strategy::RoundRobin;
    }
}
