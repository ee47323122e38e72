//! The data directory and the small state in it: who this node is, which start this is, whom it granted its bootstrap,
//! where its peers were last seen. sled holds it; every write is synced before it is relied upon.

mod aside;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;

use crate::id::NodeId;
use crate::leader::wall_ms;
use crate::membership::Grant;

/// sled defaults to 1 GiB; what is kept here is a few hundred bytes.
const SLED_CACHE_BYTES: u64 = 1 << 20;
/// Layout of the directory; another one is refused.
const FORMAT: &[u8] = b"flotte-data 1\n";

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("data directory {0} is locked: another process uses it")]
    Locked(PathBuf),
    /// It holds something else, or a layout that this version does not know.
    #[error("{0} is not a data directory of this version: {1}")]
    Foreign(PathBuf, String),
    /// Its node has left its cluster, and its id is refused there for ever.
    #[error(
        "the node of data directory {0} has left its cluster: take another directory, or remove this one, to join again"
    )]
    Left(PathBuf),
    /// Its node is no member of its cluster any more, and its id is refused there for ever.
    #[error(
        "the cluster refuses the node of data directory {0}: {1}: take another directory, or remove this one, to join again"
    )]
    Refused(PathBuf, String),
    /// What it holds is damaged.
    #[error("data directory {0} is corrupt: {1}")]
    Corrupt(PathBuf, String),
    /// The disk failed.
    #[error("data directory {0}: {1}")]
    Io(PathBuf, io::Error),
}

/// The small state of one node, open and locked.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    db: sled::Db,
    /// The lock goes with it.
    _lock: File,
}

impl Store {
    /// Opens a directory, makes it where there is none, and keeps others out of it.
    pub fn open(dir: &Path) -> Result<Store, StoreError> {
        let failed = |e| StoreError::Io(dir.to_owned(), e);
        std::fs::create_dir_all(dir).map_err(failed)?;
        let lock_path = dir.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(failed)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(StoreError::Locked(dir.to_owned())),
            Err(e) => return Err(failed(e.into())),
        }
        check_format(dir)?;
        aside::finish(dir).map_err(failed)?;
        let config = sled::Config::new()
            .path(dir.join("state"))
            .cache_capacity(SLED_CACHE_BYTES)
            .flush_every_ms(None);
        let db = config.open().map_err(|e| sled_error(dir, e))?;
        let store = Store {
            dir: dir.to_owned(),
            db,
            _lock: lock,
        };
        if store.number("left")?.is_some() {
            return Err(StoreError::Left(dir.to_owned()));
        }
        match store.bytes("refused")? {
            None => Ok(store),
            Some(why) => {
                let why = String::from_utf8_lossy(&why).into_owned();
                Err(StoreError::Refused(dir.to_owned(), why))
            }
        }
    }

    /// The node of this directory is no member any more, and never will be again.
    pub fn set_left(&self) -> Result<(), StoreError> {
        self.put_number("left", 1)
    }

    /// The cluster refuses the node of this directory, and always will.
    pub fn set_refused(&self, why: &str) -> Result<(), StoreError> {
        self.put("refused", why.as_bytes())
    }

    /// The next start of this node sets all of its data aside, draws a new identity and joins where one of these is.
    pub fn mark_join(&self, addresses: &[String]) -> Result<(), StoreError> {
        let now_s = wall_ms() / 1_000;
        let failed = |e| StoreError::Io(self.dir.clone(), e);
        aside::mark(&self.dir, addresses, now_s).map_err(failed)
    }

    /// Where a former start of this node was told to join.
    pub fn joined(&self) -> Result<Vec<String>, StoreError> {
        let failed = |e| StoreError::Io(self.dir.clone(), e);
        aside::joined(&self.dir).map_err(failed)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// This node's id; drawn at random with the directory.
    pub fn node_id(&self) -> Result<NodeId, StoreError> {
        if let Some(id) = self.number("node_id")? {
            return Ok(NodeId(id));
        }
        // 53 bits: it goes through JSON numbers unharmed.
        let id = rand::random_range(1..1_u64 << 53);
        self.put_number("node_id", id)?;
        Ok(NodeId(id))
    }

    /// A higher number than ever before, on disk before it is returned.
    pub fn next_incarnation(&self) -> Result<u64, StoreError> {
        let next = self.number("incarnation")?.unwrap_or(0) + 1;
        self.put_number("incarnation", next)?;
        Ok(next)
    }

    /// The cluster that this node belongs to; 0 = none yet.
    pub fn cluster_id(&self) -> Result<u64, StoreError> {
        Ok(self.number("cluster_id")?.unwrap_or(0))
    }

    /// Writes down which cluster this node belongs to.
    pub fn set_cluster_id(&self, id: u64) -> Result<(), StoreError> {
        self.put_number("cluster_id", id)
    }

    /// The bootstrap grant that this node gave.
    pub fn grant(&self) -> Result<Option<Grant>, StoreError> {
        let bytes = self.bytes("grant")?.unwrap_or_default();
        if bytes.is_empty() {
            return Ok(None);
        }
        let number = |bytes: &[u8]| Some(u64::from_be_bytes(bytes.try_into().ok()?));
        let grant = bytes.split_at_checked(8).and_then(|(holder, attempt)| {
            Some(Grant {
                holder: NodeId(number(holder)?),
                attempt: number(attempt)?,
            })
        });
        let wrong = || StoreError::Corrupt(self.dir.clone(), "`grant` is not a grant".into());
        grant.map(Some).ok_or_else(wrong)
    }

    /// Writes down the bootstrap grant that this node gives, or that it is free.
    pub fn set_grant(&self, grant: Option<Grant>) -> Result<(), StoreError> {
        let bytes = grant.map(|grant| [grant.holder.0, grant.attempt].map(u64::to_be_bytes));
        self.put(
            "grant",
            bytes.as_ref().map_or(&[], |bytes| bytes.as_flattened()),
        )
    }

    /// The attempt under which this node asks for grants.
    pub fn attempt(&self) -> Result<u64, StoreError> {
        Ok(self.number("attempt")?.unwrap_or(0))
    }

    /// Writes down the attempt under which this node asks for grants from now on.
    pub fn set_attempt(&self, attempt: u64) -> Result<(), StoreError> {
        self.put_number("attempt", attempt)
    }

    /// The nodes that were to found the cluster together with this one, if it began to.
    pub fn founders(&self) -> Result<Vec<NodeId>, StoreError> {
        let bytes = self.bytes("founders")?.unwrap_or_default();
        Ok(bytes
            .chunks_exact(8)
            .map(|c| NodeId(u64::from_be_bytes(c.try_into().unwrap_or_default())))
            .collect())
    }

    /// Writes down with whom this node founds the cluster.
    pub fn set_founders(&self, founders: &[NodeId]) -> Result<(), StoreError> {
        let bytes: Vec<u8> = founders.iter().flat_map(|id| id.0.to_be_bytes()).collect();
        self.put("founders", &bytes)
    }

    /// Where other nodes were last known to be reached.
    pub fn addresses(&self) -> Result<Vec<(NodeId, String)>, StoreError> {
        let bytes = self.bytes("addresses")?.unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let entry = |line: &str| {
            let (id, address) = line.split_once(' ')?;
            Some((NodeId(id.parse().ok()?), address.to_owned()))
        };
        Ok(text.lines().filter_map(entry).collect())
    }

    /// Writes down where other nodes are reached.
    pub fn set_addresses(&self, addresses: &[(NodeId, String)]) -> Result<(), StoreError> {
        let lines: Vec<String> = addresses
            .iter()
            .map(|(id, address)| format!("{} {address}", id.0))
            .collect();
        self.put("addresses", lines.join("\n").as_bytes())
    }

    fn number(&self, key: &str) -> Result<Option<u64>, StoreError> {
        let Some(bytes) = self.bytes(key)? else {
            return Ok(None);
        };
        let bytes = <[u8; 8]>::try_from(bytes.as_slice());
        let wrong = |_| StoreError::Corrupt(self.dir.clone(), format!("`{key}` is not a number"));
        Ok(Some(u64::from_be_bytes(bytes.map_err(wrong)?)))
    }

    fn put_number(&self, key: &str, value: u64) -> Result<(), StoreError> {
        self.put(key, &value.to_be_bytes())
    }

    fn bytes(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self
            .db
            .get(key)
            .map_err(|e| sled_error(&self.dir, e))?
            .map(|v| v.to_vec()))
    }

    /// Returns once it is on stable storage. The tasks of the cluster have one thread where there are two cores: they go on in
    /// another one while this waits for the disk.
    fn put(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        let flavor = Handle::try_current().map(|handle| handle.runtime_flavor());
        match flavor {
            Ok(RuntimeFlavor::MultiThread) => block_in_place(|| self.put_blocking(key, value)),
            _ => self.put_blocking(key, value),
        }
    }

    /// sled's own flush does not fsync.
    fn put_blocking(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.db
            .insert(key, value)
            .map_err(|e| sled_error(&self.dir, e))?;
        self.db.flush().map_err(|e| sled_error(&self.dir, e))?;
        let failed = |e| StoreError::Io(self.dir.clone(), e);
        let file = File::open(self.dir.join("state").join("db")).map_err(failed)?;
        file.sync_data().map_err(failed)
    }
}

/// Marks an empty directory as ours; refuses one that holds something else.
fn check_format(dir: &Path) -> Result<(), StoreError> {
    let failed = |e| StoreError::Io(dir.to_owned(), e);
    let path = dir.join("format");
    match std::fs::read(&path) {
        Ok(found) if found == FORMAT => return Ok(()),
        Ok(found) => {
            let what = format!(
                "its format is `{}`",
                String::from_utf8_lossy(&found[..found.len().min(64)]).trim()
            );
            return Err(StoreError::Foreign(dir.to_owned(), what));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(e)),
    }
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        // `format.new` is what a crash within the lines below leaves behind.
        if !matches!(name.to_str(), Some("lock" | "format.new" | "lost+found")) {
            return Err(StoreError::Foreign(
                dir.to_owned(),
                format!("it holds {name:?} and no format file"),
            ));
        }
    }
    let new = dir.join("format.new");
    let mut file = File::create(&new).map_err(failed)?;
    file.write_all(FORMAT)
        .and_then(|()| file.sync_all())
        .map_err(failed)?;
    std::fs::rename(&new, &path).map_err(failed)?;
    File::open(dir).and_then(|d| d.sync_all()).map_err(failed)
}

fn sled_error(dir: &Path, error: sled::Error) -> StoreError {
    match error {
        sled::Error::Io(e) => StoreError::Io(dir.to_owned(), e),
        other => StoreError::Corrupt(dir.to_owned(), other.to_string()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn identity_stays_and_incarnations_rise() {
        let dir = tempfile::tempdir().unwrap();
        let first = Store::open(dir.path()).unwrap();
        let id = first.node_id().unwrap();
        assert_eq!(first.next_incarnation().unwrap(), 1);
        assert_eq!(first.cluster_id().unwrap(), 0);
        first.set_cluster_id(7).unwrap();
        let grant = Grant {
            holder: NodeId(3),
            attempt: 4,
        };
        first.set_grant(Some(grant)).unwrap();
        first.set_attempt(2).unwrap();
        first.set_founders(&[NodeId(1), NodeId(2)]).unwrap();
        drop(first);
        let second = Store::open(dir.path()).unwrap();
        assert_eq!(second.node_id().unwrap(), id);
        assert_eq!(second.next_incarnation().unwrap(), 2);
        assert_eq!(second.cluster_id().unwrap(), 7);
        assert_eq!(second.grant().unwrap(), Some(grant));
        assert_eq!(second.attempt().unwrap(), 2);
        assert_eq!(second.founders().unwrap(), [NodeId(1), NodeId(2)]);
        second
            .set_addresses(&[(NodeId(1), "a:1".into()), (NodeId(2), "b:2".into())])
            .unwrap();
        assert_eq!(
            second.addresses().unwrap()[1],
            (NodeId(2), "b:2".to_owned())
        );
        second.set_grant(None).unwrap();
        assert_eq!(second.grant().unwrap(), None);
    }

    #[test]
    fn the_directory_of_a_node_that_has_left_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Store::open(dir.path()).unwrap().set_left().unwrap();
        assert!(matches!(Store::open(dir.path()), Err(StoreError::Left(_))));
    }

    #[test]
    fn the_directory_of_a_node_that_the_cluster_refuses_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.set_refused("its disk is an older copy").unwrap();
        drop(store);
        for _ in 0..2 {
            let refused = Store::open(dir.path()).unwrap_err();
            assert!(matches!(refused, StoreError::Refused(..)), "{refused:?}");
            let words = refused.to_string();
            assert!(words.contains("its disk is an older copy"), "{words}");
        }
    }

    #[test]
    fn a_directory_in_use_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _held = Store::open(dir.path()).unwrap();
        assert!(matches!(
            Store::open(dir.path()),
            Err(StoreError::Locked(_))
        ));
    }

    #[test]
    fn a_foreign_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("precious"), "x").unwrap();
        assert!(matches!(
            Store::open(dir.path()),
            Err(StoreError::Foreign(..))
        ));
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("format"), "flotte-data 99\n").unwrap();
        assert!(matches!(
            Store::open(dir.path()),
            Err(StoreError::Foreign(..))
        ));
    }
}
