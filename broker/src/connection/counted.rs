//! How many connections there are.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use metrics::gauge;

use super::worker::{ListenerInfo, Shared};
use crate::config::listener::Config as Listener;
use crate::metrics::Count;

/// Keeps the numbers of connections right, whatever happens.
pub(super) struct Counted {
    shared: Arc<Shared>,
    listener: Arc<ListenerInfo>,
}

impl Counted {
    /// Counts one, until this is dropped.
    pub(super) fn new(shared: &Arc<Shared>, listener: &Arc<ListenerInfo>) -> Counted {
        let all = shared.connections.fetch_add(1, Ordering::Relaxed) + 1;
        shared.connections_most.fetch_max(all, Ordering::Relaxed);
        Count::SOCKETS.add(1);
        let now = listener.connections.fetch_add(1, Ordering::Relaxed) + 1;
        gauge!("flotte_connections", "listener" => listener.config.name.to_string())
            .set(now as f64);
        Counted {
            shared: Arc::clone(shared),
            listener: Arc::clone(listener),
        }
    }

    /// Where the client came in.
    pub(super) fn listener(&self) -> &Listener {
        &self.listener.config
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
        let now = self.listener.connections.fetch_sub(1, Ordering::Relaxed) - 1;
        gauge!("flotte_connections", "listener" => self.listener.config.name.to_string())
            .set(now as f64);
    }
}
