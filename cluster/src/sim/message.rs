//! What nodes of a simulation say to each other, and what happens within one.

use flotte_proto::{Batch, BatchReply, Forward};

use crate::id::{GroupId, NodeId, NodeRef};
use crate::state_time::Told;

/// An order to end the connection of a client at or below an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kick {
    pub client: usize,
    pub epoch: u64,
    pub node: NodeRef,
}

#[derive(Debug, Clone)]
pub enum Proposed {
    Reply(BatchReply),
    NotLeader(Option<usize>),
}

#[derive(Debug, Clone, Copy)]
pub enum Renewed {
    Lease { read_index: u64, lowest: u64 },
    Down,
    NotLeader,
}

#[derive(Debug, Clone)]
pub enum Message {
    Propose {
        call: u64,
        group: GroupId,
        batch: Batch,
    },
    Proposed(u64, Proposed),
    Renew {
        call: u64,
        node: NodeRef,
        applied: u64,
        unreachable: Vec<NodeId>,
    },
    Renewed(u64, Renewed),
    /// Has it been applied?
    Applied {
        call: u64,
        index: u64,
    },
    AppliedIs(u64, u64),
    Kick(u64, Kick),
    Kicked(u64),
    Read(u64),
    ReadIs(u64, Option<u64>),
    Connect {
        link: u64,
        sender: NodeRef,
        to: u64,
    },
    Resumed {
        link: u64,
        acked: u64,
    },
    LinkRefused(u64),
    Frame {
        link: u64,
        sender: NodeRef,
        messages: Vec<Forward>,
    },
    Acked {
        link: u64,
        acked: u64,
    },
    LinkGap(u64),
    /// What is known of a group's time?
    Time {
        call: u64,
        group: GroupId,
    },
    /// And what the replica has applied.
    TimeIs(u64, Told, u64),
}

/// What a client wants of the node that it is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    Connect,
    Subscribe(usize),
    Unsubscribe(usize),
    Publish(u64),
    /// DISCONNECT: without its will.
    Leave,
    /// The socket is gone.
    Vanish,
}

/// Who wanted a ReadIndex.
#[derive(Debug, Clone, Copy)]
pub enum Reader {
    /// Its number: only the last one counts.
    Keeper(u64),
    Call {
        from: usize,
        call: u64,
    },
}

/// What happens within a node.
#[derive(Debug)]
pub enum Input {
    Message {
        from: usize,
        message: Message,
    },
    Timeout(u64),
    KeeperTick,
    RenewTick,
    DutyTick,
    /// A node that is not Up tries to be.
    Begin,
    /// The leader merges what waits.
    Gather(GroupId),
    /// The log has more for this replica.
    Advance(GroupId),
    /// What it believes of a group changed.
    Status(GroupId),
    ReadConfirm {
        term: u64,
        index: u64,
        reader: Reader,
    },
    ReadDone {
        index: Option<u64>,
        reader: Reader,
    },
    Retry(GroupId, u64),
    AskAgain(NodeRef),
    /// A subscription wants its retained messages.
    Replay {
        conn: usize,
        filter: usize,
    },
    LinkRetry(NodeId),
    LinkBroken(usize),
    KickAgain(Kick),
    /// CONNACK waits no longer for the former connection.
    FormerWaited(usize),
    Client {
        conn: usize,
        want: Want,
    },
}
