//! What CONNECTs that are not complete may hold, all clients of the node together. Nobody has been asked for credentials
//! yet, so this must stay small whoever sends what; a CONNECT of usual size is never refused for the greed of others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// This much each connection may hold, however full the budget is.
const EACH_BYTES: usize = 4 << 10;

/// The bytes of all CONNECTs under way.
#[derive(Debug)]
pub struct PendingConnects {
    bytes: AtomicUsize,
    /// `mqtt.pending_connect_bytes`.
    bytes_max: usize,
}

/// The bytes of one of them, given back when it goes.
#[derive(Debug)]
pub struct PendingConnect {
    all: Arc<PendingConnects>,
    bytes: usize,
}

impl PendingConnects {
    /// None are under way yet.
    pub fn new(bytes_max: usize) -> Arc<PendingConnects> {
        Arc::new(PendingConnects {
            bytes: AtomicUsize::new(0),
            bytes_max,
        })
    }

    /// One that has nothing yet.
    pub fn begin(self: &Arc<Self>) -> PendingConnect {
        PendingConnect {
            all: Arc::clone(self),
            bytes: 0,
        }
    }
}

impl PendingConnect {
    /// More has come. False = it is too much: the connection has to go.
    #[must_use]
    pub fn grow(&mut self, bytes: usize) -> bool {
        self.bytes += bytes;
        let before = self.all.bytes.fetch_add(bytes, Ordering::Relaxed);
        before + bytes <= self.all.bytes_max || self.bytes <= EACH_BYTES
    }
}

impl Drop for PendingConnect {
    fn drop(&mut self) {
        self.all.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greedy_are_refused_and_the_usual_are_not() {
        let all = PendingConnects::new(100_000);
        let mut greedy = all.begin();
        assert!(greedy.grow(60_000));
        let mut another = all.begin();
        assert!(!another.grow(60_000));
        let mut usual = all.begin();
        assert!(usual.grow(EACH_BYTES));
        assert!(!usual.grow(1));
    }

    #[test]
    fn what_one_held_is_free_when_it_goes() {
        let all = PendingConnects::new(10_000);
        let mut first = all.begin();
        assert!(first.grow(10_000));
        drop(first);
        assert!(all.begin().grow(10_000));
        assert_eq!(all.bytes.load(Ordering::Relaxed), 0);
    }
}
