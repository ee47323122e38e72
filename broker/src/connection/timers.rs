//! Deadlines of the connections of one worker: a wheel, no timer per connection. A connection moves its deadline by
//! writing a number; the wheel finds out when it gets there.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use slab::Slab;

use crate::session::{Signal, Wake};

/// How late a deadline may be noticed.
pub const TICK_MS: u64 = 100;
const SLOTS: usize = 256;

/// All deadlines of a worker.
#[derive(Debug)]
pub struct Wheel {
    inner: RefCell<Inner>,
    /// Milliseconds of this worker's monotonic clock, as of the last tick or [`Wheel::now_ms`].
    began: tokio::time::Instant,
}

#[derive(Debug)]
struct Inner {
    entries: Slab<Entry>,
    /// Keys by the tick at which they are looked at.
    slots: Vec<Vec<usize>>,
    /// The next tick.
    tick: u64,
}

#[derive(Debug)]
struct Entry {
    /// Moved by the connection.
    deadline_ms: u64,
    signal: Arc<Signal>,
    /// The tick at which it is looked at. Keys of it in other slots are leftovers: they are dropped there.
    due: u64,
}

/// A connection's place in the wheel; it leaves with it.
#[derive(Debug)]
pub struct Deadline {
    wheel: Rc<Wheel>,
    key: usize,
}

/// A moment on the worker's clock since which something has held, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Since(u64);

impl Since {
    /// It does not hold.
    pub(super) const NEVER: Since = Since(u64::MAX);

    /// It has held since this moment.
    pub(super) fn at(now_ms: u64) -> Since {
        Since(now_ms.min(u64::MAX - 1))
    }

    /// It has held from now on at the latest.
    pub(super) fn set_first(&mut self, now_ms: u64) {
        if !self.is_set() {
            *self = Since::at(now_ms);
        }
    }

    pub(super) fn is_set(self) -> bool {
        self != Since::NEVER
    }

    /// The moment.
    pub(super) fn ms(self) -> Option<u64> {
        self.is_set().then_some(self.0)
    }
}

impl Wheel {
    /// An empty wheel.
    pub fn new() -> Rc<Wheel> {
        let inner = Inner {
            entries: Slab::new(),
            slots: vec![Vec::new(); SLOTS],
            tick: 0,
        };
        Rc::new(Wheel {
            inner: RefCell::new(inner),
            began: tokio::time::Instant::now(),
        })
    }

    /// Milliseconds since the worker began.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Takes a connection in; `signal` is raised with [`Wake::TIMER`] when its deadline passed.
    pub fn insert(self: &Rc<Self>, signal: Arc<Signal>, at_ms: u64) -> Deadline {
        let mut inner = self.inner.borrow_mut();
        let key = inner.entries.insert(Entry {
            deadline_ms: at_ms,
            signal,
            due: u64::MAX,
        });
        inner.place(key, at_ms);
        drop(inner);
        Deadline {
            wheel: Rc::clone(self),
            key,
        }
    }

    /// Has every connection look at once, such as when the lease is gone.
    pub fn wake_all(&self) {
        for (_, entry) in &self.inner.borrow().entries {
            entry.signal.raise(Wake::TIMER);
        }
    }

    /// Looks at all that is due. To be called each `TICK_MS`.
    pub fn turn(&self) {
        self.turn_to(self.now_ms());
    }

    fn turn_to(&self, now_ms: u64) {
        let mut inner = self.inner.borrow_mut();
        // After a long stall every slot is looked at once; more would find nothing new.
        let last = now_ms / TICK_MS;
        inner.tick = inner.tick.max(last.saturating_sub(SLOTS as u64 - 1));
        while inner.tick <= last {
            let tick = inner.tick;
            inner.tick += 1;
            for key in std::mem::take(&mut inner.slots[slot_of(tick)]) {
                inner.visit(key, tick, now_ms);
            }
        }
    }
}

impl Inner {
    fn visit(&mut self, key: usize, tick: u64, now_ms: u64) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        // Later than its tick only after a stall, when all slots are looked at.
        if entry.due > tick {
            return;
        }
        entry.due = u64::MAX;
        let deadline = entry.deadline_ms;
        if deadline > now_ms {
            return self.place(key, deadline);
        }
        entry.signal.raise(Wake::TIMER);
        // It will have moved its deadline, or be gone, by then.
        self.place(key, now_ms + TICK_MS);
    }

    /// Has it looked at when `at_ms` has come, or before.
    fn place(&mut self, key: usize, at_ms: u64) {
        let tick = at_ms
            .div_ceil(TICK_MS)
            .clamp(self.tick, self.tick + SLOTS as u64 - 1);
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        if tick < entry.due {
            entry.due = tick;
            self.slots[slot_of(tick)].push(key);
        }
    }
}

fn slot_of(tick: u64) -> usize {
    usize::try_from(tick % SLOTS as u64).unwrap_or(0)
}

impl Deadline {
    /// Moves it. One that comes nearer is put into its slot; a later one is found out about when the old one has come.
    pub fn pull(&self, at_ms: u64) {
        let mut inner = self.wheel.inner.borrow_mut();
        let Some(entry) = inner.entries.get_mut(self.key) else {
            return;
        };
        let nearer = at_ms < entry.deadline_ms;
        entry.deadline_ms = at_ms;
        if nearer {
            inner.place(self.key, at_ms);
        }
    }

    /// Milliseconds since the worker began.
    pub fn now_ms(&self) -> u64 {
        self.wheel.now_ms()
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        let mut inner = self.wheel.inner.borrow_mut();
        inner.entries.remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn fired(signal: &Signal) -> bool {
        tokio::time::timeout(std::time::Duration::ZERO, signal.wait())
            .await
            .is_ok_and(|wake| wake.has(Wake::TIMER))
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_fires_when_it_passed_and_not_before() {
        let (wheel, signal) = (Wheel::new(), Arc::new(Signal::default()));
        let deadline = wheel.insert(Arc::clone(&signal), 1_000);
        wheel.turn_to(900);
        assert!(!fired(&signal).await);
        deadline.pull(5_000);
        wheel.turn_to(1_100);
        assert!(!fired(&signal).await, "it was moved");
        wheel.turn_to(5_000);
        assert!(fired(&signal).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_beyond_the_wheel_and_one_pulled_nearer_fire() {
        let (wheel, signal) = (Wheel::new(), Arc::new(Signal::default()));
        let deadline = wheel.insert(Arc::clone(&signal), 100_000);
        for now in (0..100_000).step_by(100) {
            wheel.turn_to(now);
        }
        assert!(!fired(&signal).await);
        wheel.turn_to(100_000);
        assert!(fired(&signal).await);
        deadline.pull(300_000);
        wheel.turn_to(100_200);
        deadline.pull(101_000);
        wheel.turn_to(101_000);
        assert!(fired(&signal).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_is_pulled_often_stands_in_few_slots() {
        let (wheel, signal) = (Wheel::new(), Arc::new(Signal::default()));
        let deadline = wheel.insert(signal, 100_000);
        for now in (0..50_000).step_by(100) {
            deadline.pull(now + 20_000);
            deadline.pull(now + 1_000);
            wheel.turn_to(now);
        }
        let held: usize = wheel.inner.borrow().slots.iter().map(Vec::len).sum();
        assert!(held <= SLOTS, "{held}");
    }

    #[tokio::test(start_paused = true)]
    async fn deadlines_that_come_and_go_leave_nothing_behind() {
        let (wheel, signal) = (Wheel::new(), Arc::new(Signal::default()));
        let deadline = wheel.insert(Arc::clone(&signal), 2_000);
        for now in (0..60_000).step_by(10) {
            deadline.pull(now + 1_000);
            deadline.pull(now + 2_000);
            wheel.turn_to(now);
        }
        let keys: usize = wheel.inner.borrow().slots.iter().map(Vec::len).sum();
        assert!(keys <= 4, "{keys} keys of one connection");
        assert!(!fired(&signal).await);
        wheel.turn_to(62_000);
        assert!(fired(&signal).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_left_is_not_woken_nor_its_successor_early() {
        let (wheel, first, second) = (
            Wheel::new(),
            Arc::new(Signal::default()),
            Arc::new(Signal::default()),
        );
        drop(wheel.insert(Arc::clone(&first), 1_000));
        let _kept = wheel.insert(Arc::clone(&second), 9_000);
        wheel.turn_to(2_000);
        assert!(!fired(&first).await && !fired(&second).await);
        wheel.turn_to(9_000);
        assert!(fired(&second).await);
    }
}
