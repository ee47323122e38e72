//! What another node keeps for this one: shared deliveries that it sent here and that their members have not done yet.
//! It needs them if this node goes. Here they are only numbers; a guard in each copy tells when it is over.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Settlements that come with no frame to answer are gathered this long. Nobody waits for them: the other node only keeps
/// its messages so much longer.
const GATHER: Duration = Duration::from_millis(10);

/// The duty of another node to keep one shared message. It ends when the last clone is dropped.
#[derive(Debug)]
pub struct Kept {
    keeps: Arc<Keeps>,
    sequence: u64,
}

/// All that one incarnation of another node keeps for this one.
#[derive(Debug, Default)]
pub(crate) struct Keeps {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Not settled. Bounded by the queues of the members.
    open: BTreeSet<u64>,
    /// Settled, and not told yet. Bounded by what was open.
    settled: Vec<u64>,
    /// Found no member; kept until the other node has confirmed that it knows.
    not_placed: BTreeSet<u64>,
    /// The newest one: what comes on another is not taken, and only this one tells what is settled. None = there is none
    /// yet, or the other node is no more.
    connection: Option<Connection>,
}

/// One connection of the other node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Connection {
    /// Something is settled, or it is not the newest any more.
    changed: Arc<Notify>,
}

/// What a new connection begins with.
#[derive(Debug)]
pub(crate) struct Resumed {
    pub(crate) connection: Connection,
    pub(crate) open: Vec<u64>,
    pub(crate) not_placed: Vec<u64>,
}

impl Keeps {
    /// A shared delivery came.
    pub(crate) fn keep(self: &Arc<Self>, sequence: u64) -> Kept {
        self.state.lock().open.insert(sequence);
        Kept {
            keeps: Arc::clone(self),
            sequence,
        }
    }

    /// A shared delivery found no member.
    pub(crate) fn note_not_placed(&self, sequence: u64) {
        self.state.lock().not_placed.insert(sequence);
    }

    /// Whether a shared delivery found no member, and the other node may not know.
    pub(crate) fn is_not_placed(&self, sequence: u64) -> bool {
        self.state.lock().not_placed.contains(&sequence)
    }

    /// A frame came; the other node has the answers up to this sequence. Says whether it may be delivered: its connection
    /// is the newest, and its node there. To be asked under the lock under which connections begin.
    #[must_use]
    pub(crate) fn handle_frame(&self, connection: &Connection, confirmed: u64) -> bool {
        let mut state = self.state.lock();
        if !state.is_newest(connection) {
            return false;
        }
        let first = state.not_placed.first();
        if first.is_some_and(|first| *first <= confirmed) {
            state.not_placed = state.not_placed.split_off(&(confirmed + 1));
        }
        true
    }

    /// A connection begins, and is the only one from now on. To be called while nothing is delivered.
    pub(crate) fn handle_connected(&self) -> Resumed {
        let mut state = self.state.lock();
        let connection = Connection::default();
        state.replace(Some(connection.clone()));
        // What is not open is settled.
        state.settled = Vec::new();
        Resumed {
            connection,
            open: state.open.iter().copied().collect(),
            not_placed: state.not_placed.iter().copied().collect(),
        }
    }

    /// The other node is no more, or was started anew: its connection ends.
    pub(crate) fn handle_gone(&self) {
        self.state.lock().replace(None);
    }

    /// What was settled since the last call. None = this connection is over.
    pub(crate) fn poll_settled(&self, connection: &Connection) -> Option<Vec<u64>> {
        let mut state = self.state.lock();
        let is_newest = state.is_newest(connection);
        is_newest.then(|| std::mem::take(&mut state.settled))
    }

    fn settle(&self, sequence: u64) {
        let mut state = self.state.lock();
        state.open.remove(&sequence);
        state.settled.push(sequence);
        if state.settled.len() == 1
            && let Some(connection) = &state.connection
        {
            connection.changed.notify_one();
        }
    }
}

impl State {
    fn replace(&mut self, connection: Option<Connection>) {
        let former = std::mem::replace(&mut self.connection, connection);
        if let Some(former) = former {
            former.changed.notify_one();
        }
    }

    fn is_newest(&self, connection: &Connection) -> bool {
        let newest = self.connection.as_ref();
        newest.is_some_and(|newest| Arc::ptr_eq(&newest.changed, &connection.changed))
    }
}

impl Connection {
    /// Resolves when [`Keeps::poll_settled`] is due, if nothing else asks for it before. Cancel safe for callers that poll
    /// after every other event, too.
    pub(crate) async fn due(&self) {
        self.changed.notified().await;
        tokio::time::sleep(GATHER).await;
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.keeps.settle(self.sequence);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_settled_and_told_once() {
        let keeps = Arc::new(Keeps::default());
        let connection = keeps.handle_connected().connection;
        let (one, two) = (keeps.keep(1), keeps.keep(2));
        assert!(keeps.poll_settled(&connection).unwrap().is_empty());
        drop(two);
        assert_eq!(keeps.poll_settled(&connection).unwrap(), [2]);
        drop(one);
        assert_eq!(keeps.poll_settled(&connection).unwrap(), [1]);
        assert!(keeps.poll_settled(&connection).unwrap().is_empty());
    }

    #[test]
    fn a_new_connection_learns_what_is_open_and_the_old_one_tells_nothing_more() {
        let keeps = Arc::new(Keeps::default());
        let old = keeps.handle_connected().connection;
        let (one, _two, three) = (keeps.keep(1), keeps.keep(2), keeps.keep(3));
        drop(one);
        let resumed = keeps.handle_connected();
        assert_eq!(resumed.open, [2, 3]);
        drop(three);
        assert_eq!(keeps.poll_settled(&old), None);
        assert_eq!(keeps.poll_settled(&resumed.connection).unwrap(), [3]);
    }

    #[test]
    fn what_found_no_member_is_known_until_it_is_confirmed() {
        let keeps = Keeps::default();
        keeps.note_not_placed(4);
        keeps.note_not_placed(7);
        assert_eq!(keeps.handle_connected().not_placed, [4, 7]);
        let left = |confirmed| {
            let connection = keeps.handle_connected().connection;
            assert!(keeps.handle_frame(&connection, confirmed));
            keeps.handle_connected().not_placed
        };
        assert_eq!(left(3), [4, 7]);
        assert_eq!(left(6), [7]);
        assert!(keeps.is_not_placed(7) && !keeps.is_not_placed(4));
        assert!(left(7).is_empty());
    }

    #[tokio::test]
    async fn settlements_are_due_until_they_are_polled() {
        let keeps = Arc::new(Keeps::default());
        let connection = keeps.handle_connected().connection;
        drop(keeps.keep(1));
        connection.due().await;
        assert_eq!(keeps.poll_settled(&connection).unwrap(), [1]);
        drop(keeps.keep(2));
        connection.due().await;
        assert_eq!(keeps.poll_settled(&connection).unwrap(), [2]);
    }

    #[tokio::test]
    async fn a_connection_that_is_replaced_or_whose_node_goes_ends_though_nothing_comes() {
        let keeps = Arc::new(Keeps::default());
        let old = keeps.handle_connected().connection;
        assert!(keeps.handle_frame(&old, 0));
        let newer = keeps.handle_connected().connection;
        assert!(!keeps.handle_frame(&old, 0) && keeps.handle_frame(&newer, 0));
        old.due().await;
        assert_eq!(keeps.poll_settled(&old), None);
        // The old one takes no wake-up from the newer.
        drop(keeps.keep(1));
        newer.due().await;
        assert_eq!(keeps.poll_settled(&newer).unwrap(), [1]);
        keeps.handle_gone();
        newer.due().await;
        assert_eq!(keeps.poll_settled(&newer), None);
        assert!(!keeps.handle_frame(&newer, 0));
        drop(keeps.keep(2));
    }
}
