//! How other tasks and threads wake the task of a connection: flags and one waker, nothing queued.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;

/// Reasons to wake; a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wake(u32);

impl Wake {
    /// Acknowledgements may go out.
    pub const ACKS: Wake = Wake(1);
    /// The socket took less than there was: wait until it takes more.
    pub const BLOCKED: Wake = Wake(2);
    /// A deadline passed.
    pub const TIMER: Wake = Wake(4);
    /// Another connection of the same client took over.
    pub const TAKEN_OVER: Wake = Wake(8);
    /// The node closes this connection: an operator, or the node's end.
    pub const CLOSE: Wake = Wake(16);
    /// This start of the node is over: close without a word to the cluster.
    pub const RESET: Wake = Wake(32);
    /// The socket failed while someone else wrote to it.
    pub const BROKEN: Wake = Wake(64);
    /// The node drains, and the cluster knows that this client goes: now, unless there is more for it.
    pub const DRAIN: Wake = Wake(128);
    /// The client may not be here any more: its user is gone.
    pub const UNAUTHORIZED: Wake = Wake(256);
    /// The node drains: the client goes, whatever waits for it.
    pub const GO: Wake = Wake(512);
    /// Some more of a large publish of the client has arrived where it goes.
    pub const PROGRESS: Wake = Wake(1024);

    /// Whether any of `other` is in it.
    pub fn has(self, other: Wake) -> bool {
        self.0 & other.0 != 0
    }
}

/// Wakes one connection's task. Raising what is raised already costs one atomic operation.
#[derive(Debug, Default)]
pub struct Signal {
    flags: AtomicU32,
    task: AtomicWaker,
}

impl Signal {
    /// Adds reasons and wakes the task.
    pub fn raise(&self, wake: Wake) {
        if self.flags.fetch_or(wake.0, Ordering::AcqRel) & wake.0 != wake.0 {
            self.task.wake();
        }
    }

    /// Waits for reasons and takes them all. One task waits at a time.
    pub fn poll_wait(&self, cx: &mut Context<'_>) -> Poll<Wake> {
        // First, so that what is raised from here on wakes.
        self.task.register(cx.waker());
        if self.flags.load(Ordering::Acquire) == 0 {
            return Poll::Pending;
        }
        Poll::Ready(Wake(self.flags.swap(0, Ordering::AcqRel)))
    }

    /// As [`Signal::poll_wait`]. Cancel safe.
    pub async fn wait(&self) -> Wake {
        poll_fn(|cx| self.poll_wait(cx)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reasons_add_up_and_are_taken_once() {
        let signal = Signal::default();
        signal.raise(Wake::ACKS);
        signal.raise(Wake::TIMER);
        let woken = signal.wait().await;
        assert!(woken.has(Wake::ACKS) && woken.has(Wake::TIMER) && !woken.has(Wake::CLOSE));
        let nothing =
            tokio::time::timeout(std::time::Duration::from_millis(1), signal.wait()).await;
        assert!(nothing.is_err());
    }
}
