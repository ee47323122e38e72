//! A count of the sessions of this node. It walks over all of them, so it is taken only when somebody asks.

use crate::connection::Shared;

/// What there was at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Census {
    /// Sessions: live and durable, and of each offline and connected.
    pub sessions: [[u64; 2]; 2],
    /// Copies held, in flight included.
    pub copies: u64,
    /// Of them those sent and not done.
    pub inflight: u64,
    /// Their bytes.
    pub copy_bytes: u64,
    /// Ordinary subscriptions.
    pub subscriptions: u64,
    /// Shared ones.
    pub shared_subscriptions: u64,
}

impl Census {
    /// Counts.
    pub fn take(shared: &Shared) -> Census {
        let mut census = Census::default();
        for session in shared.registry.all() {
            let connected = session.is_connected();
            census.sessions[usize::from(session.is_durable())][usize::from(connected)] += 1;
            let output = session.output().lock();
            let (copies, inflight) = output.counts();
            census.copies += copies as u64;
            census.inflight += inflight as u64;
            census.copy_bytes += output.held_bytes() as u64;
            drop(output);
            for (filter, _) in session.subscriptions().lock().iter() {
                match filter.share {
                    None => census.subscriptions += 1,
                    Some(_) => census.shared_subscriptions += 1,
                }
            }
        }
        census
    }

    /// Sessions whose clients are connected.
    pub fn connected(&self) -> u64 {
        self.sessions[0][1] + self.sessions[1][1]
    }

    /// Sessions without their clients.
    pub fn offline(&self) -> u64 {
        self.sessions[0][0] + self.sessions[1][0]
    }
}
