//! A QoS 1/2 publish on its way to other nodes: counts who has still to place it, and tells the publisher's session once,
//! when all is placed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use flotte_cluster::handle::{Placement, Progress as _};
use flotte_cluster::id::NodeRef;
use flotte_cluster::link::Placed;
use flotte_mqtt::reason::ReasonCode;
use flotte_mqtt::session::Ticket;
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Who is told when all is placed.
#[derive(Debug)]
pub enum Notify {
    /// The publisher's session; its ticket is completed.
    Session(Arc<crate::session::Session>, Ticket),
    /// A task, such as that of a will.
    Task(Mutex<Option<oneshot::Sender<()>>>),
}

/// One publish that other nodes have still to place.
#[derive(Debug)]
pub struct Placing {
    left: AtomicU32,
    notify: Notify,
}

impl Placing {
    /// Waits for one: whoever made it, until [`Placing::done`].
    pub fn new(notify: Notify) -> Arc<Placing> {
        Arc::new(Placing {
            left: AtomicU32::new(1),
            notify,
        })
    }

    /// One more has to place it.
    pub fn add(&self) {
        self.left.fetch_add(1, Ordering::Relaxed);
    }

    /// One has placed it. Says whether it was the last.
    pub fn done(&self) -> bool {
        if self.left.fetch_sub(1, Ordering::AcqRel) != 1 {
            return false;
        }
        match &self.notify {
            Notify::Session(session, ticket) => session.complete(*ticket, ReasonCode::Success),
            Notify::Task(task) => {
                if let Some(task) = task.lock().take() {
                    let _ = task.send(());
                }
            }
        }
        true
    }
}

impl Placement for Placing {
    fn placed(&self, _node: NodeRef, _placed: Placed) {
        // A node that is gone took its live sessions with it: nothing of what matched there is left.
        self.done();
    }

    fn progressed(&self) {
        if let Notify::Session(session, _) = &self.notify {
            session.progressed();
        }
    }
}
