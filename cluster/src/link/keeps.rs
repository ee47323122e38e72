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
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Not settled. Bounded by the queues of the members.
    open: BTreeSet<u64>,
    /// Settled, and not told yet. Bounded by what was open.
    settled: Vec<u64>,
    /// Found no member; kept until the other node has confirmed that it knows.
    not_placed: BTreeSet<u64>,
    /// Counts the connections: only the newest one tells what is settled.
    connection: u64,
}

/// What a new connection begins with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Resumed {
    pub(crate) connection: u64,
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

    /// The other node has the answers up to this sequence.
    pub(crate) fn handle_confirmed(&self, sequence: u64) {
        let mut state = self.state.lock();
        if state
            .not_placed
            .first()
            .is_some_and(|first| *first <= sequence)
        {
            state.not_placed = state.not_placed.split_off(&(sequence + 1));
        }
    }

    /// A connection begins. To be called while nothing is delivered.
    pub(crate) fn handle_connected(&self) -> Resumed {
        let mut state = self.state.lock();
        state.connection += 1;
        // What is not open is settled.
        state.settled = Vec::new();
        Resumed {
            connection: state.connection,
            open: state.open.iter().copied().collect(),
            not_placed: state.not_placed.iter().copied().collect(),
        }
    }

    /// What was settled since the last call. None = there is a newer connection.
    pub(crate) fn poll_settled(&self, connection: u64) -> Option<Vec<u64>> {
        let mut state = self.state.lock();
        (state.connection == connection).then(|| std::mem::take(&mut state.settled))
    }

    /// Resolves when [`Keeps::poll_settled`] is due, if nothing else asks for it before. Cancel safe for callers that poll
    /// after every other event, too.
    pub(crate) async fn due(&self) {
        self.changed.notified().await;
        tokio::time::sleep(GATHER).await;
    }

    fn settle(&self, sequence: u64) {
        let mut state = self.state.lock();
        state.open.remove(&sequence);
        state.settled.push(sequence);
        let first = state.settled.len() == 1;
        drop(state);
        if first {
            self.changed.notify_one();
        }
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
        assert!(keeps.poll_settled(connection).unwrap().is_empty());
        drop(two);
        assert_eq!(keeps.poll_settled(connection).unwrap(), [2]);
        drop(one);
        assert_eq!(keeps.poll_settled(connection).unwrap(), [1]);
        assert!(keeps.poll_settled(connection).unwrap().is_empty());
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
        assert_eq!(keeps.poll_settled(old), None);
        assert_eq!(keeps.poll_settled(resumed.connection).unwrap(), [3]);
    }

    #[test]
    fn what_found_no_member_is_known_until_it_is_confirmed() {
        let keeps = Keeps::default();
        keeps.note_not_placed(4);
        keeps.note_not_placed(7);
        assert_eq!(keeps.handle_connected().not_placed, [4, 7]);
        keeps.handle_confirmed(3);
        assert_eq!(keeps.handle_connected().not_placed, [4, 7]);
        keeps.handle_confirmed(6);
        assert_eq!(keeps.handle_connected().not_placed, [7]);
        keeps.handle_confirmed(7);
        assert!(keeps.handle_connected().not_placed.is_empty());
    }

    #[tokio::test]
    async fn settlements_are_due_until_they_are_polled() {
        let keeps = Arc::new(Keeps::default());
        let connection = keeps.handle_connected().connection;
        drop(keeps.keep(1));
        keeps.due().await;
        assert_eq!(keeps.poll_settled(connection).unwrap(), [1]);
        drop(keeps.keep(2));
        keeps.due().await;
        assert_eq!(keeps.poll_settled(connection).unwrap(), [2]);
    }
}
