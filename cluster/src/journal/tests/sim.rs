//! A disk that breaks on command. What is not synced may be lost at a crash: any subset of the writes, each
//! whole, in part, or cut at any byte; names only from the last one back, as a journaling file system does.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use parking_lot::Mutex;

use super::super::disk::{Disk, DiskFile};
use super::Dice;

const SECTOR: usize = 512;
/// How long a thread may take to get somewhere.
pub(super) const LIMIT: Duration = Duration::from_secs(30);

/// What a crash does to writes that are not synced.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fate {
    AllLost,
    AllKept,
    /// Each on its own: lost, kept, some of its sectors, or cut at any byte.
    Random(u64),
    /// All kept, but of the last one this many bytes.
    LastCut(usize),
}

/// A failure to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The next sync fails.
    Sync,
    /// The next write fails.
    Write,
    /// The next write stops for lack of room after this many bytes.
    NoRoom(usize),
}

#[derive(Clone)]
enum Change {
    Write { offset: usize, data: Vec<u8> },
    SetLen(usize),
}

#[derive(Clone)]
enum Naming {
    Add(String, usize),
    Rename(String, String),
    Remove(String),
}

#[derive(Clone, Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Default)]
struct State {
    files: Vec<Content>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending_names: Vec<Naming>,
    /// Operations that change anything, so far.
    ops: u64,
    crash_at: Option<u64>,
    crashed: bool,
    /// Syncs return without doing anything.
    lying: bool,
    capacity: u64,
    fault: Option<Fault>,
    /// A write was cut short for lack of room, so the next fails.
    no_room: bool,
    /// The writer's next sync waits here.
    gate: Option<Gate>,
}

/// Where a sync says that it has begun, and is let go on.
struct Gate {
    begun: mpsc::Sender<()>,
    go_on: mpsc::Receiver<()>,
}

/// A sync to come, which takes until it is let go on.
pub(super) struct Held {
    begun: mpsc::Receiver<()>,
    go_on: mpsc::Sender<()>,
}

impl Held {
    /// Waits until it is under way.
    pub(super) fn wait(&self) {
        self.begun.recv_timeout(LIMIT).expect("a sync begins");
    }

    pub(super) fn go_on(self) {
        self.go_on.send(()).expect("the sync waits");
    }
}

#[derive(Clone)]
pub(super) struct SimDisk(Arc<Mutex<State>>);

struct SimFile {
    disk: SimDisk,
    id: usize,
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::SetLen(len) => bytes.resize(*len, 0),
        Change::Write { offset, data } => {
            if bytes.len() < offset + data.len() {
                bytes.resize(offset + data.len(), 0);
            }
            bytes[*offset..offset + data.len()].copy_from_slice(data);
        }
    }
}

fn name(names: &mut BTreeMap<String, usize>, naming: &Naming) {
    match naming {
        Naming::Add(name, id) => {
            names.insert(name.clone(), *id);
        }
        Naming::Rename(from, to) => {
            if let Some(id) = names.remove(from) {
                names.insert(to.clone(), id);
            }
        }
        Naming::Remove(name) => {
            names.remove(name);
        }
    }
}

impl Content {
    fn change(&mut self, change: Change) {
        apply(&mut self.now, &change);
        self.pending.push(change);
    }

    fn survive(&self, fate: Fate, dice: &mut Dice) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for (at, change) in self.pending.iter().enumerate() {
            let last = at + 1 == self.pending.len();
            match (fate, change) {
                (Fate::AllLost, _) => {}
                (Fate::LastCut(len), Change::Write { offset, data }) if last => {
                    let data = data[..len.min(data.len())].to_vec();
                    apply(
                        &mut bytes,
                        &Change::Write {
                            offset: *offset,
                            data,
                        },
                    );
                }
                (Fate::AllKept | Fate::LastCut(_), _) => apply(&mut bytes, change),
                (Fate::Random(_), Change::SetLen(_)) => {
                    if dice.below(2) == 0 {
                        apply(&mut bytes, change);
                    }
                }
                (Fate::Random(_), Change::Write { offset, data }) => {
                    torn(&mut bytes, *offset, data, dice)
                }
            }
        }
        bytes
    }
}

fn torn(bytes: &mut Vec<u8>, offset: usize, data: &[u8], dice: &mut Dice) {
    let mut keep = |from: usize, to: usize| {
        let data = data[from..to].to_vec();
        apply(
            bytes,
            &Change::Write {
                offset: offset + from,
                data,
            },
        );
    };
    match dice.below(4) {
        0 => {}
        1 => keep(0, data.len()),
        2 => keep(0, dice.below(data.len() as u64 + 1) as usize),
        _ => {
            for from in (0..data.len()).step_by(SECTOR) {
                if dice.below(2) == 0 {
                    keep(from, (from + SECTOR).min(data.len()));
                }
            }
        }
    }
}

impl State {
    /// Counts an operation; false when the power goes off at it.
    fn op(&mut self) -> io::Result<bool> {
        if self.crashed {
            return Err(io::Error::other("the power is off"));
        }
        self.ops += 1;
        self.crashed = self.crash_at == Some(self.ops);
        Ok(!self.crashed)
    }

    fn done(alive: bool) -> io::Result<()> {
        if alive {
            Ok(())
        } else {
            Err(io::Error::other("the power went off"))
        }
    }

    fn rename_all(&mut self, naming: Naming) -> io::Result<()> {
        let alive = self.op()?;
        name(&mut self.names, &naming);
        self.pending_names.push(naming);
        Self::done(alive)
    }

    fn used(&self) -> u64 {
        self.names
            .values()
            .map(|id| self.files[*id].now.len() as u64)
            .sum()
    }

    fn check_room(&self, id: usize, end: usize) -> io::Result<()> {
        let more = end.saturating_sub(self.files[id].now.len()) as u64;
        if more > 0 && self.used() + more > self.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl SimDisk {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            capacity: u64::MAX,
            ..State::default()
        })))
    }

    /// The disk after the power came back. Names are lost from a random one on, or as the fate says.
    pub(super) fn reboot(&self, fate: Fate) -> Self {
        let state = self.0.lock();
        let mut dice = Dice(if let Fate::Random(seed) = fate {
            seed
        } else {
            0
        });
        let mut names = state.durable_names.clone();
        let kept = match fate {
            Fate::AllLost => 0,
            Fate::AllKept | Fate::LastCut(_) => state.pending_names.len(),
            Fate::Random(_) => dice.below(state.pending_names.len() as u64 + 1) as usize,
        };
        for naming in &state.pending_names[..kept] {
            name(&mut names, naming);
        }
        let survived = |content: &Content| {
            let now = content.survive(fate, &mut dice);
            Content {
                durable: now.clone(),
                now,
                pending: Vec::new(),
            }
        };
        Self(Arc::new(Mutex::new(State {
            files: state.files.iter().map(survived).collect(),
            durable_names: names.clone(),
            names,
            capacity: state.capacity,
            ..State::default()
        })))
    }

    pub(super) fn ops(&self) -> u64 {
        self.0.lock().ops
    }

    pub(super) fn crash_at(&self, op: u64) {
        self.0.lock().crash_at = Some(op);
    }

    pub(super) fn crash_now(&self) {
        self.0.lock().crashed = true;
    }

    /// The process was killed and the power stayed on: nothing is lost, and nothing more is durable.
    pub(super) fn revive(&self) {
        let mut state = self.0.lock();
        state.crashed = false;
        state.crash_at = None;
    }

    pub(super) fn lie(&self) {
        self.0.lock().lying = true;
    }

    pub(super) fn limit(&self, capacity: u64) {
        self.0.lock().capacity = capacity;
    }

    pub(super) fn used(&self) -> u64 {
        self.0.lock().used()
    }

    pub(super) fn fail(&self, fault: Fault) {
        self.0.lock().fault = Some(fault);
    }

    /// Holds the next sync of the writer's thread.
    pub(super) fn hold_sync(&self) -> Held {
        let ((begin, begun), (go_on, gone_on)) = (mpsc::channel(), mpsc::channel());
        self.0.lock().gate = Some(Gate {
            begun: begin,
            go_on: gone_on,
        });
        Held { begun, go_on }
    }

    /// Waits at the gate, if there is one and this is the writer.
    fn pass_gate(&self) {
        if std::thread::current().name() != Some("journal") {
            return;
        }
        let gate = self.0.lock().gate.take();
        if let Some(gate) = gate {
            gate.begun.send(()).expect("the test waits");
            gate.go_on.recv_timeout(LIMIT).expect("it is let go on");
        }
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.0.lock().names.keys().cloned().collect()
    }

    pub(super) fn bytes(&self, name: &str) -> Vec<u8> {
        let state = self.0.lock();
        state.files[state.names[name]].now.clone()
    }

    pub(super) fn flip(&self, name: &str, byte: usize, bit: u32) {
        let mut state = self.0.lock();
        let id = state.names[name];
        state.files[id].now[byte] ^= 1 << bit;
        state.files[id].durable[byte] ^= 1 << bit;
    }

    pub(super) fn lose(&self, name: &str) {
        let mut state = self.0.lock();
        state.names.remove(name);
        state.durable_names.remove(name);
    }

    /// Length of the last write that is not synced.
    pub(super) fn last_write(&self, name: &str) -> usize {
        let state = self.0.lock();
        match state.files[state.names[name]].pending.last() {
            Some(Change::Write { data, .. }) => data.len(),
            _ => 0,
        }
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.0.lock();
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let id = state.files.len();
        state.files.push(Content::default());
        state.rename_all(Naming::Add(name.to_owned(), id))?;
        Ok(Arc::new(SimFile {
            disk: self.clone(),
            id,
        }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.0.lock();
        let id = *state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile {
            disk: self.clone(),
            id,
        }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0
            .lock()
            .rename_all(Naming::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.lock().rename_all(Naming::Remove(name.to_owned()))
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        let alive = state.op()?;
        if alive && !state.lying {
            state.pending_names.clear();
            state.durable_names = state.names.clone();
        }
        State::done(alive)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let state = self.0.lock();
        Ok(state.capacity - state.used())
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.0.lock().files[self.id].now.len() as u64)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.disk.0.lock();
        let from = offset as usize;
        let bytes = state.files[self.id].now.get(from..from + buf.len());
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.0.lock();
        let offset = offset as usize;
        if std::mem::take(&mut state.no_room) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.check_room(self.id, offset + buf.len())?;
        let mut len = buf.len();
        match state.fault {
            Some(Fault::Write) => return Err(io::Error::other("a bad block")),
            Some(Fault::NoRoom(after)) if after == 0 || after >= len => {
                state.fault = None;
                return Err(io::ErrorKind::StorageFull.into());
            }
            Some(Fault::NoRoom(after)) => {
                state.fault = None;
                state.no_room = true;
                len = after;
            }
            _ => {}
        }
        let alive = state.op()?;
        let data = buf[..len].to_vec();
        state.files[self.id].change(Change::Write { offset, data });
        State::done(alive).map(|()| len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let free = self.disk.free_bytes()?;
        let zeroes = vec![0; len.min(free) as usize];
        self.write_at(&zeroes, 0)?;
        if free < len {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.sync_data()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        state.check_room(self.id, len as usize)?;
        let alive = state.op()?;
        state.files[self.id].change(Change::SetLen(len as usize));
        State::done(alive)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.pass_gate();
        let mut state = self.disk.0.lock();
        if state.fault == Some(Fault::Sync) {
            return Err(io::Error::other("the disk is gone"));
        }
        let alive = state.op()?;
        if alive && !state.lying {
            let file = &mut state.files[self.id];
            file.pending.clear();
            file.durable = file.now.clone();
        }
        State::done(alive)
    }
}
