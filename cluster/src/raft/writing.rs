//! How snapshot files are written: summed up on the way, and to the disk as they grow. It knows nothing of what they hold.

use std::fs::File;
use std::io::{self, Write};

/// A growing file is synced each time it has grown by this much: a large one would hold up the journal, which waits for the
/// same disk.
const SYNC_BYTES: u64 = 8 << 20;

/// Whether there is something to be synced between two offsets of a file that grows; see [`SYNC_BYTES`].
pub fn passes_sync(before: u64, after: u64) -> bool {
    before / SYNC_BYTES != after / SYNC_BYTES
}

/// Writes a file steadily to the disk, not all of it in the end.
pub struct Steady<'a> {
    file: &'a File,
    written: u64,
}

impl<'a> Steady<'a> {
    /// From the beginning of a file.
    pub fn new(file: &'a File) -> Self {
        Self { file, written: 0 }
    }
}

impl Write for Steady<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.file.write(data)?;
        let after = self.written + written as u64;
        if passes_sync(self.written, after) {
            self.file.sync_data()?;
        }
        self.written = after;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Sums up what is written.
pub struct Summed<W> {
    pub inner: W,
    pub crc: crc32fast::Hasher,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(data)?;
        self.crc.update(&data[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
