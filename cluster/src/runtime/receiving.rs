//! What other nodes send over their links to this one: taken while this node has the lease, from the newest connection of a
//! node that is there, and from nobody else.

use std::sync::Arc;

use flotte_proto::{LinkFrame, LinkReply};
use tracing::{info, warn};

use super::life::Life;
use super::node::Node;
use crate::handle::Local;
use crate::id::NodeRef;
use crate::link::{Arrival, Connection, Keeps, Receiver, Resumed, bytes_of, received_bytes};
use crate::net::{InboundLink, PeerIdentity};

/// Receives publishes of one node until the stream ends, the node is gone, or has another connection.
pub(super) async fn receive(node: Arc<Node>, from: PeerIdentity, mut link: InboundLink) {
    let refuse = |why: String| LinkReply {
        refused: why,
        ..LinkReply::default()
    };
    let Ok(Some(first)) = link.frames.next().await else {
        return;
    };
    let Some(life) = node.life() else {
        let _ = link.replies.send(refuse("not up".into())).await;
        return;
    };
    let sender = NodeRef {
        node: from.node_id,
        incarnation: from.incarnation,
    };
    let accepted = match judge_link(&node, &life, sender, first.to_incarnation) {
        Ok(()) => accept(&node, &life, sender),
        Err(why) => Err(why),
    };
    let from = match accepted {
        Ok((from, first)) => {
            if link.replies.send(first).await.is_err() {
                return;
            }
            from
        }
        Err(why) => {
            info!(from = %sender, %why, "link refused");
            let _ = link.replies.send(refuse(why)).await;
            return;
        }
    };
    let received = received_bytes(sender.node);
    loop {
        let mut reply = tokio::select! {
            frame = link.frames.next() => {
                let Ok(Some(frame)) = frame else { return };
                received.increment(bytes_of(&frame));
                if !under_lease(&node, &life).await {
                    return;
                }
                let Some(reply) = deliver(&node, &life, &from, frame) else {
                    return;
                };
                reply
            }
            () = from.connection.due() => LinkReply::default(),
        };
        let Some(settled) = from.keeps.poll_settled(&from.connection) else {
            return;
        };
        if !settled.is_empty() {
            // All of these were delivered before.
            reply.acked = life.receiver.lock().last(sender);
            reply.settled = settled;
        }
        let says_something = reply.acked > 0 || !reply.taken.is_empty();
        if says_something && link.replies.send(reply).await.is_err() {
            return;
        }
    }
}

/// Waits while this node has no lease: its clients may be elsewhere by now and must get nothing more here, least of all
/// what waited in a socket while the node was frozen. False where this start of the node is over.
async fn under_lease(node: &Node, life: &Life) -> bool {
    if !node.lease.held() {
        tokio::select! {
            biased;
            () = life.shutdown.cancelled() => {}
            () = node.up() => {}
        }
    }
    !life.shutdown.is_cancelled()
}

fn judge_link(node: &Node, life: &Life, sender: NodeRef, to: u64) -> Result<(), String> {
    if to != life.me.incarnation {
        return Err(format!(
            "it is for incarnation {to}, this is {}",
            life.me.incarnation
        ));
    }
    let meta = node.meta.read();
    if !meta.members().contains_key(&sender.node) {
        return Err(format!("{} is no member", sender.node));
    }
    // One that is higher than recorded is not gone: this replica has not applied its Up yet.
    if meta.is_gone(sender) {
        return Err(gone(sender));
    }
    Ok(())
}

/// A connection begins. Returns the first reply, too.
fn accept(node: &Node, life: &Life, sender: NodeRef) -> Result<(Caller, LinkReply), String> {
    let keeps = life.keeps_of(sender).ok_or_else(|| gone(sender))?;
    let (from, first) = Caller::begin(sender, keeps, &life.receiver.lock());
    // It may have gone just before there was a connection to be ended.
    if node.meta.read().is_gone(sender) {
        return Err(gone(sender));
    }
    Ok((from, first))
}

fn gone(sender: NodeRef) -> String {
    format!("{sender} is down or superseded")
}

/// None = this stream is over.
fn deliver(node: &Node, life: &Life, from: &Caller, frame: LinkFrame) -> Option<LinkReply> {
    let mut receiver = life.receiver.lock();
    // What was on its way when it went comes too late: its wills may be out.
    if node.meta.read().is_gone(from.sender) {
        return None;
    }
    from.deliver(&mut receiver, &*node.local, frame)
}

/// One connection of another node.
struct Caller {
    sender: NodeRef,
    keeps: Arc<Keeps>,
    connection: Connection,
}

impl Caller {
    /// Begins one. The first reply says what came of all that earlier ones brought.
    fn begin(sender: NodeRef, keeps: Arc<Keeps>, receiver: &Receiver) -> (Caller, LinkReply) {
        let Resumed {
            connection,
            open,
            not_placed,
        } = keeps.handle_connected();
        let first = LinkReply {
            acked: receiver.last(sender),
            taken: receiver.taken(sender),
            not_placed,
            open,
            ..LinkReply::default()
        };
        let from = Caller {
            sender,
            keeps,
            connection,
        };
        (from, first)
    }

    /// None = this stream is over: there is a newer one, or none should be, or something is missing.
    fn deliver(
        &self,
        receiver: &mut Receiver,
        local: &dyn Local,
        frame: LinkFrame,
    ) -> Option<LinkReply> {
        // It waited for the lease, perhaps: what it holds comes again on the newer connection, which was told of all before.
        if !self.keeps.handle_frame(&self.connection, frame.confirmed)
            || !receiver.takes_from(self.sender)
        {
            return None;
        }
        let mut reply = LinkReply::default();
        for part in frame.parts {
            match receiver.handle_part(self.sender, &part) {
                Ok(taken) => reply.taken.extend(taken),
                Err(why) => {
                    warn!(from = %self.sender, %why, "link broken");
                    return None;
                }
            }
        }
        let mut numbered = false;
        for mut message in frame.messages {
            let sequence = message.sequence;
            if sequence == 0 && message.large.is_none() {
                local.deliver(message, None);
                continue;
            }
            numbered = true;
            match receiver.handle(self.sender, &mut message) {
                Arrival::New => {
                    let is_shared = !message.shares.is_empty();
                    let kept = is_shared.then(|| self.keeps.keep(sequence));
                    if !local.deliver(message, kept) {
                        self.keeps.note_not_placed(sequence);
                        reply.not_placed.push(sequence);
                    }
                }
                Arrival::Repeat => {
                    // Acknowledged again below, so this has to be said again, too.
                    if self.keeps.is_not_placed(sequence) {
                        reply.not_placed.push(sequence);
                    }
                }
                Arrival::Gap | Arrival::Gone => {
                    local.flush();
                    return None;
                }
            }
        }
        local.flush();
        if numbered {
            reply.acked = receiver.last(self.sender);
        }
        Some(reply)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use flotte_proto::{Forward, WillKey};
    use futures::future::BoxFuture;
    use parking_lot::Mutex;

    use super::*;
    use crate::handle::{FiredWill, Kick, Load, Shed};
    use crate::id::NodeId;
    use crate::link::Kept;

    const SENDER: NodeRef = NodeRef {
        node: NodeId(1),
        incarnation: 1,
    };

    /// Clients that take all but shared messages.
    #[derive(Default)]
    struct Clients(Mutex<Vec<String>>);

    impl Local for Clients {
        fn deliver(&self, publish: Forward, _kept: Option<Kept>) -> bool {
            let payload = String::from_utf8(publish.payload.to_vec()).unwrap();
            self.0.lock().push(payload);
            publish.shares.is_empty()
        }
        fn flush(&self) {}
        fn kick(&self, _: Kick, done: Box<dyn FnOnce() + Send>) {
            done();
        }
        fn publish_will(&self, _: FiredWill, _: WillKey) -> BoxFuture<'static, bool> {
            Box::pin(async { true })
        }
        fn reset(&self) -> BoxFuture<'static, ()> {
            Box::pin(async {})
        }
        fn load(&self, _: Option<Shed>) -> Load {
            Load {
                clients: 0,
                sheds: false,
            }
        }
    }

    #[derive(Default)]
    struct Rig {
        receiver: Receiver,
        keeps: Arc<Keeps>,
        clients: Clients,
    }

    impl Rig {
        fn connect(&self) -> (Caller, LinkReply) {
            Caller::begin(SENDER, Arc::clone(&self.keeps), &self.receiver)
        }

        fn deliver(&mut self, from: &Caller, messages: Vec<Forward>) -> Option<LinkReply> {
            let frame = LinkFrame {
                messages,
                ..LinkFrame::default()
            };
            from.deliver(&mut self.receiver, &self.clients, frame)
        }

        fn delivered(&self) -> Vec<String> {
            std::mem::take(&mut *self.clients.0.lock())
        }
    }

    /// Sequence 0 is QoS 0.
    fn message(sequence: u64, payload: &'static str) -> Forward {
        Forward {
            sequence,
            payload: payload.into(),
            ..Forward::default()
        }
    }

    fn shared(sequence: u64, payload: &'static str) -> Forward {
        Forward {
            shares: vec![Default::default()],
            ..message(sequence, payload)
        }
    }

    #[test]
    fn a_former_connection_delivers_nothing_once_the_next_has_begun() {
        let mut rig = Rig::default();
        let (old, _) = rig.connect();
        // In hand while the lease is gone. The other node loses the connection meanwhile.
        let frame = || vec![shared(1, "share"), message(2, "plain"), message(0, "zero")];
        let (new, first) = rig.connect();
        assert_eq!(first.acked, 0);
        assert!(rig.deliver(&old, frame()).is_none());
        assert!(rig.delivered().is_empty(), "it all comes again");
        let reply = rig.deliver(&new, frame()).unwrap();
        assert_eq!((reply.acked, reply.not_placed), (2, vec![1]));
        assert_eq!(rig.delivered(), ["share", "plain", "zero"]);
    }

    #[test]
    fn a_repeat_is_not_acknowledged_as_placed_where_it_was_not() {
        let mut rig = Rig::default();
        let (from, _) = rig.connect();
        rig.deliver(&from, vec![shared(1, "a"), message(2, "b")]);
        let reply = rig.deliver(&from, vec![shared(1, "a"), message(2, "b")]);
        let reply = reply.unwrap();
        assert_eq!((reply.acked, reply.not_placed), (2, vec![1]));
        assert_eq!(rig.delivered(), ["a", "b"], "once");
    }

    #[test]
    fn nothing_of_a_node_that_is_gone_is_delivered_not_even_qos_0() {
        let mut rig = Rig::default();
        let (from, _) = rig.connect();
        rig.deliver(&from, vec![message(1, "before")]);
        rig.receiver.handle_gone(SENDER);
        for late in [message(2, "late"), message(0, "late zero")] {
            assert!(rig.deliver(&from, vec![late]).is_none());
        }
        assert_eq!(rig.delivered(), ["before"]);
    }

    #[test]
    fn nothing_of_a_superseded_start_is_delivered_not_even_qos_0() {
        let mut rig = Rig::default();
        let (from, _) = rig.connect();
        let newer = NodeRef {
            incarnation: 2,
            ..SENDER
        };
        rig.receiver.handle(newer, &mut message(1, "newer"));
        assert!(rig.deliver(&from, vec![message(0, "late zero")]).is_none());
        assert!(rig.delivered().is_empty());
    }
}
