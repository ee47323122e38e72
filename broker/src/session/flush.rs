//! The sessions that this thread has put something in since its last flush. A wake-up routes all it has read, then
//! writes once to each subscriber it touched.

use std::cell::RefCell;
use std::sync::Arc;

use flotte_cluster::lease::Lease;

use super::{Session, now_ms};

thread_local! {
    /// Emptied at the end of each wake-up; bounded by the sessions of the node, as each stands in one list at most.
    static DIRTY: RefCell<Vec<Arc<Session>>> = const { RefCell::new(Vec::new()) };
}

/// Notes a session for the next [`flush_dirty`] of this thread.
pub fn mark_dirty(session: &Arc<Session>) {
    DIRTY.with_borrow_mut(|dirty| dirty.push(Arc::clone(session)));
}

/// Writes to all sessions that were marked on this thread, under the lease.
pub fn flush_dirty(lease: &Lease) {
    let mut dirty = DIRTY.with_borrow_mut(std::mem::take);
    if dirty.is_empty() {
        return;
    }
    let (now, leased) = (now_ms(), lease.held());
    for session in dirty.drain(..) {
        session.output().lock().flush(now, leased);
    }
    // The allocation is kept for the next time.
    DIRTY.with_borrow_mut(|list| {
        if list.is_empty() {
            *list = dirty;
        }
    });
}
