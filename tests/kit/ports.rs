//! Ports for nodes whose addresses must be known before they start.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Mutex, PoisonError};

use rand::RngExt as _;

/// Below the range from which the kernel takes ports for outgoing connections: a port of a node that
/// is down for a moment cannot be taken by a client meanwhile.
const CANDIDATES: std::ops::Range<u16> = 12_000..32_000;

static TAKEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

/// A loopback address whose port is free now and given to no one else in this process.
pub fn free_address() -> SocketAddr {
    let mut guard = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let taken = guard.get_or_insert_with(HashSet::new);
    for _ in 0..1_000 {
        let port = rand::rng().random_range(CANDIDATES);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if !taken.contains(&port) && TcpListener::bind(address).is_ok() {
            taken.insert(port);
            return address;
        }
    }
    panic!(
        "no free port between {} and {}",
        CANDIDATES.start, CANDIDATES.end
    );
}
