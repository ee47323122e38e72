//! What a client has published before it left, and what waits behind a retained message: that goes on without it. Many
//! clients publish, say goodbye and are gone. Nobody hears of an acknowledgement any more.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use flotte_mqtt::Version;
use metrics::counter;

use super::Worker;
use super::publish::{Settled, WaitingLine};
use crate::session::flush_dirty;

/// Clients of a worker that are gone and whose publishes wait; those of further ones are dropped, and counted.
pub(super) const LEAVING_MAX: usize = 1_024;

impl Worker {
    /// Places what is in the line, in order, as soon as it can be.
    pub(super) fn place_later(self: &Rc<Self>, mut line: WaitingLine, version: Version) {
        if line.is_empty() {
            return;
        }
        if self.leaving.get() >= LEAVING_MAX {
            counter!("flotte_publishes_abandoned_total").increment(line.len() as u64);
            return;
        }
        self.leaving.update(|count| count + 1);
        self.shared.closing.fetch_add(1, Ordering::AcqRel);
        let worker = Rc::clone(self);
        tokio::task::spawn_local(async move {
            while !line.is_empty() {
                poll_fn(|cx| line.poll_placeable(cx)).await;
                worker.place_first(&mut line, version);
            }
            worker.leaving.update(|count| count - 1);
            worker.shared.closing.fetch_sub(1, Ordering::AcqRel);
        });
    }

    fn place_first(&self, line: &mut WaitingLine, version: Version) {
        let Some(mut waiting) = line.pop_placeable() else {
            return;
        };
        match waiting.settle(version) {
            Settled::Goes => {
                self.shared.router.publish_once(&waiting.message, None);
                flush_dirty();
            }
            Settled::Refused | Settled::Failed => {
                counter!("flotte_publishes_abandoned_total").increment(1);
            }
        }
    }
}
