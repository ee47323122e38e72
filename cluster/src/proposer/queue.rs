//! Commands on their way to the task of a proposer, in the order in which they were proposed, whoever waits for which.

use std::collections::VecDeque;

use metrics::counter;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::core::{Core, Waiting};
use super::service::Reply;

/// Commands that wait, at most. Their callers stay far below that, as each of them waits for what it proposed before: so
/// this is reached where callers go and others come while the group has no leader. Those beyond are refused.
const COMMANDS_MAX: usize = 1 << 18;
/// The same in bytes.
const BYTES_MAX: usize = 256 << 20;
/// Commands that the core holds before it takes no more.
const PENDING_MAX: usize = 65_536;
/// The same in bytes; one may go beyond.
const PENDING_BYTES_MAX: usize = 64 << 20;

pub(super) type Ticket = oneshot::Sender<Reply>;

/// Between the callers and the task.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// There is something, where there was nothing.
    news: Notify,
}

/// Commands, and what they hold.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Pending {
    /// How many.
    pub commands: usize,
    /// Their encoded size.
    pub bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Waiting<Ticket>>,
    /// What `waiting` holds.
    bytes: usize,
    /// What the core holds: sent, or soon to be.
    taken: Pending,
    closed: bool,
}

impl Queue {
    /// Takes a command; whoever calls first is first. Where it is refused its ticket is dropped.
    pub(super) fn push(&self, waiting: Waiting<Ticket>) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        let bytes = state.bytes + waiting.command.len();
        if state.waiting.len() >= COMMANDS_MAX || bytes > BYTES_MAX {
            drop(state);
            return counter!("flotte_proposals_refused_total").increment(1);
        }
        let was_empty = state.waiting.is_empty();
        state.bytes = bytes;
        state.waiting.push_back(waiting);
        drop(state);
        if was_empty {
            self.news.notify_one();
        }
    }

    /// Gives the core what it has room for.
    pub(super) fn drain_into(&self, core: &mut Core<Ticket>) {
        let mut state = self.state.lock();
        while has_room(core)
            && let Some(waiting) = state.waiting.pop_front()
        {
            state.bytes -= waiting.command.len();
            core.push(waiting);
        }
        state.taken = core.pending();
    }

    /// Resolves when there may be something to drain. Cancel safe: nothing is lost for who drains before each call.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    /// Takes nothing any more. Whoever waits here is told, by the end of its ticket.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        let state = std::mem::replace(
            &mut *state,
            State {
                closed: true,
                ..State::default()
            },
        );
        drop(state);
    }

    /// Commands that are not answered.
    pub(super) fn pending(&self) -> Pending {
        let state = self.state.lock();
        Pending {
            commands: state.waiting.len() + state.taken.commands,
            bytes: state.bytes + state.taken.bytes,
        }
    }
}

fn has_room(core: &Core<Ticket>) -> bool {
    let Pending { commands, bytes } = core.pending();
    commands < PENDING_MAX && bytes < PENDING_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::id::{NodeId, NodeRef};

    const COMMAND_BYTES: usize = 512 << 10;

    fn core() -> Core<Ticket> {
        Core::new(NodeRef {
            node: NodeId(1),
            incarnation: 1,
        })
    }

    /// Pushes so many that share their memory. Returns how many were taken.
    fn push(queue: &Queue, count: usize, command: &Bytes) -> usize {
        let taken = (0..count).filter(|_| {
            let (ticket, mut reply) = oneshot::channel();
            let command = command.clone();
            queue.push(Waiting { command, ticket });
            reply.try_recv() == Err(oneshot::error::TryRecvError::Empty)
        });
        taken.count()
    }

    #[test]
    fn the_core_takes_no_more_than_its_bytes_and_the_queue_no_more_than_its_own() {
        let (queue, mut core) = (Queue::default(), core());
        let command = Bytes::from(vec![0; COMMAND_BYTES]);
        let all = BYTES_MAX / COMMAND_BYTES;
        assert_eq!(push(&queue, all + 10, &command), all);
        assert_eq!(queue.pending().bytes, BYTES_MAX);
        queue.drain_into(&mut core);
        assert_eq!(core.pending().bytes, PENDING_BYTES_MAX);
        assert_eq!(queue.pending().commands, all, "none is lost");
        assert_eq!(push(&queue, 1, &command), 1, "there is room again");
        queue.close();
        assert_eq!(push(&queue, 1, &command), 0);
        assert_eq!(queue.pending(), Pending::default());
    }

    #[test]
    fn what_waits_is_bounded_by_count() {
        let queue = Queue::default();
        let taken = push(&queue, COMMANDS_MAX + 10, &Bytes::from_static(b"x"));
        assert_eq!(taken, COMMANDS_MAX);
        let mut core = core();
        queue.drain_into(&mut core);
        assert_eq!(core.pending().commands, PENDING_MAX);
    }
}
