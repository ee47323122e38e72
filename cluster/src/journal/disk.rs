//! The few things the journal asks of a disk, behind a trait so that the tests can break it.
//! It never caches, retries or orders: that is the journal's work.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Zeroes are written in pieces of this size when a segment is allocated.
const ZERO_CHUNK: usize = 256 * 1024;

/// One directory of files.
pub(super) trait Disk: Send + Sync {
    /// Names of all files in the directory.
    fn list(&self) -> io::Result<Vec<String>>;
    /// An empty file for reading and writing; fails when the name exists.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// Bytes that an unprivileged process may still allocate.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// One open file. Writes are durable after `sync_data` only.
pub(super) trait DiskFile: Send + Sync {
    fn len(&self) -> io::Result<u64>;
    /// Fills `buf` from `offset`; fails when the file is shorter.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes a first part of `buf`, at least one byte, and says how much.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize>;
    /// Gives the file `len` bytes of real blocks.
    fn allocate(&self, len: u64) -> io::Result<()>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    fn sync_data(&self) -> io::Result<()>;
}

/// The real thing.
pub(super) struct RealDisk {
    dir: PathBuf,
    /// The open directory, for its sync and its free space.
    handle: File,
}

impl RealDisk {
    /// Opens the directory, creating it when it is missing.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        if !dir.is_dir() {
            std::fs::create_dir_all(dir)?;
            if let Some(parent) = dir.parent().filter(|parent| parent.is_dir()) {
                File::open(parent)?.sync_all()?;
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            handle: File::open(dir)?,
        })
    }
}

impl Disk for RealDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        Ok(Arc::new(options.open(self.dir.join(name))?))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        Ok(Arc::new(options.open(self.dir.join(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.dir.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.handle.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.handle)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

impl DiskFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(self, buf, offset)
    }

    /// Writes zeroes: blocks that `fallocate` only reserves must be converted at the first write, which
    /// makes every fdatasync commit the file system's own journal too.
    fn allocate(&self, len: u64) -> io::Result<()> {
        let zeroes = vec![0; ZERO_CHUNK];
        let mut offset = 0;
        while offset < len {
            let piece =
                usize::try_from(len - offset).map_or(ZERO_CHUNK, |left| left.min(ZERO_CHUNK));
            write_all_at(self, &zeroes[..piece], offset).map_err(|(_, error)| error)?;
            offset += piece as u64;
        }
        self.sync_all()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn sync_data(&self) -> io::Result<()> {
        Self::sync_data(self)
    }
}

/// Writes all of `buf`; an error comes with the number of bytes that were written before it.
pub(super) fn write_all_at(
    file: &dyn DiskFile,
    buf: &[u8],
    offset: u64,
) -> Result<(), (usize, io::Error)> {
    let mut written = 0;
    while written < buf.len() {
        match file.write_at(&buf[written..], offset + written as u64) {
            Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((written, error)),
        }
    }
    Ok(())
}
