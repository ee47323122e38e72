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

/// Clients of a worker that are gone and whose publishes wait, and what those hold where there is more than one such
/// client; those of further ones are dropped, and counted.
const LEAVING_MAX: usize = 1_024;
const LEAVING_BYTES_MAX: usize = 64 << 20;

/// How many there are.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Leaving {
    clients: usize,
    bytes: usize,
}

impl Leaving {
    fn has_room(self, bytes: usize) -> bool {
        let fits = self.bytes.saturating_add(bytes) <= LEAVING_BYTES_MAX;
        self.clients == 0 || self.clients < LEAVING_MAX && fits
    }

    fn with(self, bytes: usize) -> Leaving {
        Leaving {
            clients: self.clients + 1,
            bytes: self.bytes + bytes,
        }
    }

    fn without(self, bytes: usize) -> Leaving {
        Leaving {
            clients: self.clients.saturating_sub(1),
            bytes: self.bytes.saturating_sub(bytes),
        }
    }
}

impl Worker {
    /// Places what is in the line, in order, as soon as it can be.
    pub(super) fn place_later(self: &Rc<Self>, mut line: WaitingLine, version: Version) {
        if line.is_empty() {
            return;
        }
        let bytes = line.bytes();
        if !self.leaving.get().has_room(bytes) {
            counter!("flotte_publishes_abandoned_total").increment(line.len() as u64);
            return;
        }
        self.leaving.update(|leaving| leaving.with(bytes));
        self.shared.closing.fetch_add(1, Ordering::AcqRel);
        let worker = Rc::clone(self);
        tokio::task::spawn_local(async move {
            while !line.is_empty() {
                poll_fn(|cx| line.poll_placeable(cx)).await;
                worker.place_first(&mut line, version);
            }
            worker.leaving.update(|leaving| leaving.without(bytes));
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
                flush_dirty(self.shared.cluster().lease());
            }
            Settled::Refused | Settled::Failed => {
                counter!("flotte_publishes_abandoned_total").increment(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_left_are_bounded_by_number_and_by_bytes() {
        let one = Leaving::default().with(LEAVING_BYTES_MAX - 1);
        assert!(one.has_room(1) && !one.has_room(2));
        assert!(one.without(LEAVING_BYTES_MAX - 1).has_room(usize::MAX));
        let many = (0..LEAVING_MAX).fold(Leaving::default(), |leaving, _| leaving.with(1));
        assert!(!many.has_room(1) && many.without(1).has_room(1));
    }
}
