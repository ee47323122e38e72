//! `[mqtt]`: what clients may do within the protocol.

use flotte_mqtt::QoS;
use flotte_mqtt::topic::TopicName;

use super::section::section;
use super::types::{ShortText, Size};
use super::value::choice;

choice! {
    /// What a client may do with topics that begin with `$`.
    DollarTopics {
        /// Its PUBLISH or will to them is refused (0x87).
        Refuse = "refuse",
        /// Only those to `$SYS` and `$share` are.
        Allow = "allow",
    }
}

choice! {
    /// What happens to a 3.x client whose publish the ACL refuses.
    AclRefused {
        /// It is acknowledged as any other, and dropped.
        Drop = "drop",
        /// The connection is closed.
        Disconnect = "disconnect",
    }
}

section! {
    /// What clients may do within the protocol.
    "mqtt" {
        /// The largest packet that is taken from a client.
        max_packet_size: Size = Size::mib(1), in 128..=268_435_460;
        /// The largest CONNECT that is taken, at most `max_packet_size`: nobody has asked for credentials before. All fields
        /// of 3.x at their longest fit into the default.
        max_connect_size: Size = Size::kib(384), in 128..=268_435_460;
        /// How much CONNECTs that are not complete may hold, all clients together: beyond it a client that has sent more
        /// than 4 KiB is closed.
        pending_connect_bytes: Size = Size::mib(64), in 65_536..=1_099_511_627_776;
        /// The longest keep alive that a 5.0 client gets when it asks for more, or for none; unset: any.
        max_keep_alive_s: Option<u16> = None, in 1..=65_535;
        /// The keep alive that every 5.0 client is told, whatever it asks for; unset: what it asks for.
        server_keep_alive_s: Option<u16> = None, in 1..=65_535;
        /// How many QoS 1 and 2 publishes a client may have under way towards the broker.
        receive_maximum: u16 = 1024, in 1..=65_535;
        /// How many topic aliases a client may use; 0: none.
        topic_alias_maximum: u16 = 64;
        /// The highest QoS.
        max_qos: QoS = QoS::ExactlyOnce;
        /// Whether messages are retained.
        retain_available: bool = true;
        /// Whether filters may hold wildcards.
        wildcard_available: bool = true;
        /// Whether there are shared subscriptions.
        shared_available: bool = true;
        /// Whether subscriptions may have identifiers.
        subscription_ids_available: bool = true;
        /// How long a new connection may take until its CONNECT is there and answered.
        connect_timeout_s: u32 = 10, in 1..=3_600;
        /// How many levels a topic or filter may have.
        max_topic_levels: u16 = 128, in 1..=65_535;
        /// How long a client identifier may be.
        max_client_id_bytes: u16 = 65_535, in 1..=65_535;
        /// Whether a client may come without an identifier and be given one.
        allow_empty_client_id: bool = true;
        /// The longest that a 5.0 session is kept without its client; unset: what the client asks for.
        session_expiry_max_s: Option<u32> = None;
        /// How long a 3.x session with clean session 0 is kept without its client.
        session_expiry_3x_s: u32 = 604_800;
        /// A publish that is not placed within this time ends its connection unacknowledged.
        publish_timeout_ms: u32 = 10_000, in 100..=600_000;
        /// A client's own publish or will to `$...`: "refuse" (0x87), or "allow" for all but `$SYS` and `$share`.
        dollar_topics: DollarTopics = DollarTopics::Refuse;
        /// A publish of a 3.x client that the ACL refuses: "drop" it (acknowledged as any other), or "disconnect" the
        /// client. A 5.0 client is told (0x87) and stays; at QoS 0 the publish is dropped.
        acl_refused: AclRefused = AclRefused::Drop;
        /// Whether what only its content can tell is checked too: a payload that is announced as UTF-8 text must be that
        /// (0x99).
        strict: bool = true;
        /// What a 5.0 client that asks for it is told as the basis of its response topics; `%c` stands for its
        /// identifier; unset: nothing.
        response_information: Option<ShortText> = None;
        /// The other servers that a 5.0 client is told of when it is sent away (0x9C, 0x9D), as the standard writes them:
        /// "host" or "host:port", separated by spaces; unset: a listener of another node that is there.
        server_reference: Option<ShortText> = None;
    }
}

impl Config {
    /// Whether a client's own publish or will to this topic is refused (0x87).
    pub fn refuses_topic(&self, topic: &TopicName) -> bool {
        if !topic.starts_with_dollar() || is_state_of_a_bridge(topic) {
            return false;
        }
        let first = topic.as_str().split('/').next();
        match self.dollar_topics {
            DollarTopics::Refuse => true,
            DollarTopics::Allow => matches!(first, Some("$SYS" | "$share")),
        }
    }
}

/// What a bridge says of itself, as its will and retained: that is where mosquitto's do, and without it they do not connect.
fn is_state_of_a_bridge(topic: &TopicName) -> bool {
    let below = topic.as_str().strip_prefix("$SYS/broker/connection/");
    let bridge = below.and_then(|below| below.strip_suffix("/state"));
    bridge.is_some_and(|name| !name.is_empty() && !name.contains('/'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn dollar_topics_are_refused_but_for_those_that_may_be_allowed() {
        let refused = |dollar_topics, topic: &str| {
            let config = Config {
                dollar_topics,
                ..Config::default()
            };
            config.refuses_topic(&TopicName::try_from(topic).unwrap())
        };
        use DollarTopics::{Allow, Refuse};
        for topic in [
            "$",
            "$x",
            "$x/y",
            "$SYS",
            "$SYS/broker/uptime",
            "$share/g/t",
            "$SYSTEM",
        ] {
            assert!(refused(Refuse, topic), "{topic}");
        }
        for topic in ["$SYS", "$SYS/broker/uptime", "$share", "$share/g/t"] {
            assert!(refused(Allow, topic), "{topic}");
        }
        for topic in ["$", "$x/y", "$SYSTEM", "$sys/x"] {
            assert!(!refused(Allow, topic), "{topic}");
        }
        for mode in [Refuse, Allow] {
            assert!(!refused(mode, "a/$SYS") && !refused(mode, "/$SYS"));
            assert!(!refused(mode, "$SYS/broker/connection/host.up/state"));
            for topic in ["state", "/state", "a", "a/b/state", "a/state/"] {
                let topic = format!("$SYS/broker/connection/{topic}");
                assert!(refused(mode, &topic), "{topic}");
            }
        }
    }
}
