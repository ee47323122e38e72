//! Snapshot files: written whole, checked whole, replaced by rename.
//!
//! `<group number>-<index>.snap` holds
//! ```text
//! "FLOTSNP1" | length of meta, u32 | meta (raft.proto, SnapshotMeta) | state ... | crc32 of all before, u32
//! ```
//! (numbers little-endian). Only the newest of a group is kept. A file under its final name was
//! synced before it got it, so one that fails its check is a fault of the disk: it is refused by
//! name, never skipped. It knows nothing of what the state means.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use flotte_proto as proto;
use parking_lot::Mutex;
use prost::Message;

use super::codec;
use super::machine::FrozenState;
use super::types::SnapshotMeta;
use super::writing::{Steady, Summed};
use crate::journal::GroupId;

const MAGIC: &[u8; 8] = b"FLOTSNP1";
/// Magic and length of meta.
const HEAD_LEN: u64 = 12;
const CRC_LEN: u64 = 4;
/// Meta names the members: thousands of them fit.
const META_LEN_MAX: u32 = 1 << 20;
const COPY_BYTES: usize = 256 << 10;

/// Why a snapshot cannot be written or used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("snapshot {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    /// What was written is not what is read.
    #[error("snapshot {path} is corrupt: {reason}")]
    Corrupt { path: PathBuf, reason: &'static str },
}

impl From<SnapshotError> for io::Error {
    fn from(error: SnapshotError) -> Self {
        let kind = match &error {
            SnapshotError::Io { source, .. } => source.kind(),
            SnapshotError::Corrupt { .. } => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}

/// The directory of all groups' snapshots.
#[derive(Clone, Debug)]
pub struct SnapshotStore {
    dir: Arc<PathBuf>,
}

impl SnapshotStore {
    /// Makes the directory if it is missing, and removes what an earlier life left half-written.
    pub fn open(dir: &Path) -> Result<Self, SnapshotError> {
        let failed = |source| SnapshotError::Io {
            path: dir.to_owned(),
            source,
        };
        fs::create_dir_all(dir).map_err(failed)?;
        for entry in fs::read_dir(dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "tmp") {
                fs::remove_file(&path).map_err(failed)?;
            }
        }
        Ok(Self {
            dir: Arc::new(dir.to_owned()),
        })
    }

    /// The snapshots of one group. Reads and checks the newest one.
    pub(super) fn group(&self, group: GroupId) -> Result<GroupSnapshots, SnapshotError> {
        let snapshots = GroupSnapshots {
            dir: Arc::clone(&self.dir),
            group,
            current: Mutex::new(None),
            staged: AtomicU64::new(0),
        };
        let mut indices = snapshots.indices()?;
        indices.sort_unstable();
        if let Some(newest) = indices.pop() {
            let path = snapshots.path(newest);
            let file = File::open(&path).map_err(|source| SnapshotError::Io {
                path: path.clone(),
                source,
            })?;
            let (meta, file) = SnapshotFile::check(file, &path, group)?;
            *snapshots.current.lock() = Some(Stored { meta, file });
            for older in indices {
                snapshots.remove(older);
            }
        }
        Ok(snapshots)
    }

    /// Removes all that is kept of a group that this node no longer has a replica of.
    pub fn forget(&self, group: GroupId) -> Result<(), SnapshotError> {
        let snapshots = GroupSnapshots {
            dir: Arc::clone(&self.dir),
            group,
            current: Mutex::new(None),
            staged: AtomicU64::new(0),
        };
        for index in snapshots.indices()? {
            snapshots.remove(index);
        }
        snapshots.sync_dir()
    }
}

/// A snapshot and what it covers.
#[derive(Clone, Debug)]
pub struct Stored {
    pub meta: SnapshotMeta,
    pub file: SnapshotFile,
}

/// The snapshots of one group.
#[derive(Debug)]
pub struct GroupSnapshots {
    dir: Arc<PathBuf>,
    group: GroupId,
    /// The newest one. Changed together with the directory, under this lock.
    current: Mutex<Option<Stored>>,
    /// Counts the temporary files, so that no two have one name.
    staged: AtomicU64,
}

impl GroupSnapshots {
    /// The newest snapshot.
    pub fn current(&self) -> Option<Stored> {
        self.current.lock().clone()
    }

    /// Bytes of the newest snapshot; 0 without one.
    pub fn current_bytes(&self) -> u64 {
        self.current.lock().as_ref().map_or(0, |s| s.file.size)
    }

    /// Writes a state and makes it the newest snapshot, unless there is a newer one: that one is
    /// returned then. Blocks.
    pub fn write(
        &self,
        meta: &SnapshotMeta,
        state: Box<dyn FrozenState>,
    ) -> Result<Stored, SnapshotError> {
        let staged = self.stage()?;
        let failed = |source| SnapshotError::Io {
            path: staged.path.clone(),
            source,
        };
        let mut out = Summed {
            inner: BufWriter::with_capacity(COPY_BYTES, Steady::new(&staged.file)),
            crc: crc32fast::Hasher::new(),
        };
        let encoded = codec::meta_out(self.group.0, meta).encode_to_vec();
        let length = u32::try_from(encoded.len()).unwrap_or(u32::MAX);
        if length > META_LEN_MAX {
            return Err(failed(io::Error::other("the membership is too large")));
        }
        out.write_all(MAGIC).map_err(failed)?;
        out.write_all(&length.to_le_bytes()).map_err(failed)?;
        out.write_all(&encoded).map_err(failed)?;
        state.write(&mut out).map_err(failed)?;
        let Summed { mut inner, crc } = out;
        inner
            .write_all(&crc.finalize().to_le_bytes())
            .map_err(failed)?;
        inner.flush().map_err(failed)?;
        drop(inner);
        staged.file.sync_all().map_err(failed)?;
        let file = SnapshotFile {
            size: staged.file.metadata().map_err(failed)?.len(),
            file: Arc::new(staged.file.try_clone().map_err(failed)?),
            state_at: HEAD_LEN + u64::from(length),
            staged: None,
        };
        let meta = meta.clone();
        self.commit(&staged.path, Stored { meta, file })
    }

    /// A new temporary file, removed when it is dropped without becoming a snapshot.
    pub fn stage(&self) -> Result<Staged, SnapshotError> {
        let count = self.staged.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("{}-{count}.tmp", self.group.0));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(|source| SnapshotError::Io {
                path: path.clone(),
                source,
            })?;
        Ok(Staged { file, path })
    }

    /// Checks a file that was received in full. It is not the newest snapshot until it is adopted.
    /// Blocks.
    pub fn check(&self, staged: Staged) -> Result<Stored, SnapshotError> {
        let failed = |source| SnapshotError::Io {
            path: staged.path.clone(),
            source,
        };
        staged.file.sync_all().map_err(failed)?;
        let file = staged.file.try_clone().map_err(failed)?;
        let (meta, mut file) = SnapshotFile::check(file, &staged.path, self.group)?;
        file.staged = Some(Arc::new(staged));
        Ok(Stored { meta, file })
    }

    /// Makes a snapshot that did not begin here the newest one; a newer one is kept and returned
    /// instead. Blocks.
    pub fn adopt(&self, file: &SnapshotFile) -> Result<Stored, SnapshotError> {
        if let Some(staged) = &file.staged
            && staged.path.parent() == Some(&**self.dir)
        {
            let (meta, file) = SnapshotFile::check(
                staged
                    .file
                    .try_clone()
                    .map_err(|source| SnapshotError::Io {
                        path: staged.path.clone(),
                        source,
                    })?,
                &staged.path,
                self.group,
            )?;
            return self.commit(&staged.path, Stored { meta, file });
        }
        let staged = self.stage()?;
        let failed = |source| SnapshotError::Io {
            path: staged.path.clone(),
            source,
        };
        let mut offset = 0;
        while offset < file.size {
            let piece = file.piece(offset, COPY_BYTES).map_err(failed)?;
            staged.file.write_all_at(&piece, offset).map_err(failed)?;
            offset += piece.len() as u64;
        }
        let stored = self.check(staged)?;
        self.adopt(&stored.file)
    }

    /// Gives a synced file its final name, and removes the older ones.
    fn commit(&self, temporary: &Path, stored: Stored) -> Result<Stored, SnapshotError> {
        let mut current = self.current.lock();
        let index = index_of(&stored.meta);
        if let Some(newer) = current
            .as_ref()
            .filter(|s| s.meta.last_log_id >= stored.meta.last_log_id)
        {
            return Ok(newer.clone());
        }
        let path = self.path(index);
        fs::rename(temporary, &path).map_err(|source| SnapshotError::Io { path, source })?;
        self.sync_dir()?;
        if let Some(older) = current.replace(stored.clone())
            && index_of(&older.meta) != index
        {
            self.remove(index_of(&older.meta));
        }
        Ok(stored)
    }

    /// An old file that stays costs room only, and goes with the next start.
    fn remove(&self, index: u64) {
        let path = self.path(index);
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove an old snapshot");
        }
    }

    fn path(&self, index: u64) -> PathBuf {
        self.dir.join(format!("{}-{index}.snap", self.group.0))
    }

    /// Indices of the group's files, in no order.
    fn indices(&self) -> Result<Vec<u64>, SnapshotError> {
        let failed = |source| SnapshotError::Io {
            path: (*self.dir).clone(),
            source,
        };
        let prefix = format!("{}-", self.group.0);
        let mut indices = Vec::new();
        for entry in fs::read_dir(&*self.dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let index: Option<u64> = name
                .to_str()
                .and_then(|name| name.strip_prefix(&prefix))
                .and_then(|rest| rest.strip_suffix(".snap"))
                .and_then(|index| index.parse().ok());
            indices.extend(index);
        }
        Ok(indices)
    }

    fn sync_dir(&self) -> Result<(), SnapshotError> {
        File::open(&*self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|source| SnapshotError::Io {
                path: (*self.dir).clone(),
                source,
            })
    }
}

fn index_of(meta: &SnapshotMeta) -> u64 {
    meta.last_log_id.map_or(0, |id| id.index)
}

/// A temporary file.
#[derive(Debug)]
pub struct Staged {
    pub file: File,
    path: PathBuf,
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Fails once the file has its final name; what else may fail is cleaned up at the next start.
        let _ = fs::remove_file(&self.path);
    }
}

/// An open snapshot file. It can be read even after a newer one has replaced it.
#[derive(Clone, Debug)]
pub struct SnapshotFile {
    file: Arc<File>,
    /// Length of the whole file.
    pub size: u64,
    /// Where the state begins.
    state_at: u64,
    /// The temporary file of a received snapshot, until it is adopted.
    staged: Option<Arc<Staged>>,
}

impl SnapshotFile {
    /// Reads a whole file and checks that it is what was written, and of this group.
    fn check(
        file: File,
        path: &Path,
        group: GroupId,
    ) -> Result<(SnapshotMeta, Self), SnapshotError> {
        let corrupt = |reason| SnapshotError::Corrupt {
            path: path.to_owned(),
            reason,
        };
        let failed = |source| SnapshotError::Io {
            path: path.to_owned(),
            source,
        };
        let size = file.metadata().map_err(failed)?.len();
        if size < HEAD_LEN + CRC_LEN {
            return Err(corrupt("too short"));
        }
        let summed = sum(&file, size - CRC_LEN).map_err(failed)?;
        let mut crc = [0; CRC_LEN as usize];
        file.read_exact_at(&mut crc, size - CRC_LEN)
            .map_err(failed)?;
        if summed != u32::from_le_bytes(crc) {
            return Err(corrupt("the checksum differs"));
        }
        let mut head = [0; HEAD_LEN as usize];
        file.read_exact_at(&mut head, 0).map_err(failed)?;
        let (magic, length) = head.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(corrupt("not a snapshot of this version"));
        }
        let length = length
            .try_into()
            .map(u32::from_le_bytes)
            .map_err(|_| corrupt("too short"))?;
        let state_at = HEAD_LEN + u64::from(length);
        if length > META_LEN_MAX || state_at + CRC_LEN > size {
            return Err(corrupt("its head is too long"));
        }
        let mut encoded = vec![0; length as usize];
        file.read_exact_at(&mut encoded, HEAD_LEN).map_err(failed)?;
        let meta = proto::SnapshotMeta::decode(Bytes::from(encoded))
            .map_err(|_| corrupt("its head cannot be decoded"))?;
        if meta.group != group.0 {
            return Err(corrupt("it is of another group"));
        }
        let meta = codec::meta_in(meta).map_err(|_| corrupt("its head makes no sense"))?;
        let file = Self {
            file: Arc::new(file),
            size,
            state_at,
            staged: None,
        };
        Ok((meta, file))
    }

    /// Up to `max` bytes of the file from an offset. Blocks.
    pub fn piece(&self, offset: u64, max: usize) -> io::Result<Bytes> {
        let left = self.size.saturating_sub(offset);
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(max);
        let mut piece = vec![0; length];
        self.file.read_exact_at(&mut piece, offset)?;
        Ok(piece.into())
    }

    /// The state. Blocks.
    pub fn state(&self) -> impl Read + use<> {
        let state = State {
            file: Arc::clone(&self.file),
            at: self.state_at,
            end: self.size - CRC_LEN,
        };
        io::BufReader::with_capacity(COPY_BYTES, state)
    }
}

/// Reads the state by position: several may read one file.
struct State {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for State {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        let read = self.file.read_at(&mut buffer[..length], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// The crc32 of the first `length` bytes of a file.
fn sum(file: &File, length: u64) -> io::Result<u32> {
    let mut crc = crc32fast::Hasher::new();
    let mut buffer = vec![0; COPY_BYTES];
    let mut offset = 0;
    while offset < length {
        let left = usize::try_from(length - offset).unwrap_or(usize::MAX);
        let piece = &mut buffer[..left.min(COPY_BYTES)];
        file.read_exact_at(piece, offset)?;
        crc.update(piece);
        offset += piece.len() as u64;
    }
    Ok(crc.finalize())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    struct Text(&'static str);

    impl FrozenState for Text {
        fn write(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
            out.write_all(self.0.as_bytes())
        }
    }

    fn meta(index: u64) -> SnapshotMeta {
        SnapshotMeta {
            last_log_id: Some(codec::log_id(1, index)),
            ..SnapshotMeta::default()
        }
    }

    fn text(stored: &Stored) -> String {
        let mut text = String::new();
        stored.file.state().read_to_string(&mut text).unwrap();
        text
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn only_the_newest_is_kept_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = SnapshotStore::open(dir.path()).unwrap();
        let group = store.group(GroupId(3)).unwrap();
        assert!(group.current().is_none());
        group.write(&meta(5), Box::new(Text("five"))).unwrap();
        let older = group.current().unwrap();
        group.write(&meta(9), Box::new(Text("nine"))).unwrap();
        assert_eq!(names(dir.path()), ["3-9.snap"]);
        assert_eq!(text(&older), "five", "an open one can still be read");
        let late = group.write(&meta(7), Box::new(Text("seven"))).unwrap();
        assert_eq!(text(&late), "nine");
        let again = SnapshotStore::open(dir.path()).unwrap();
        let found = again.group(GroupId(3)).unwrap().current().unwrap();
        assert_eq!((text(&found), found.meta), ("nine".to_owned(), meta(9)));
        assert!(again.group(GroupId(30)).unwrap().current().is_none());
        again.forget(GroupId(3)).unwrap();
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn half_written_files_go_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("3-0.tmp"), b"half").unwrap();
        SnapshotStore::open(dir.path()).unwrap();
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn every_changed_byte_is_noticed_and_the_file_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = SnapshotStore::open(dir.path()).unwrap();
        let group = store.group(GroupId(3)).unwrap();
        group.write(&meta(5), Box::new(Text("five"))).unwrap();
        let path = dir.path().join("3-5.snap");
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            fs::write(&path, &bad).unwrap();
            let error = store.group(GroupId(3)).unwrap_err();
            assert!(error.to_string().contains("3-5.snap"), "{error}");
            fs::write(&path, &good[..at]).unwrap();
            assert!(store.group(GroupId(3)).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_snapshot_from_elsewhere_is_adopted_but_not_that_of_another_group() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let source = SnapshotStore::open(there.path()).unwrap();
        let theirs = source
            .group(GroupId(3))
            .unwrap()
            .write(&meta(5), Box::new(Text("five")))
            .unwrap();
        let store = SnapshotStore::open(here.path()).unwrap();
        let group = store.group(GroupId(3)).unwrap();
        assert_eq!(text(&group.adopt(&theirs.file).unwrap()), "five");
        assert_eq!(names(here.path()), ["3-5.snap"]);
        let other = store.group(GroupId(4)).unwrap();
        assert!(other.adopt(&theirs.file).is_err());
        assert_eq!(names(here.path()), ["3-5.snap"]);
    }
}
