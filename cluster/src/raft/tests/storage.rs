//! The consensus library's own suite for stores.
#![allow(clippy::unwrap_used)]

use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use crate::journal::{GroupId, Journal, JournalConfig};
use crate::raft::apply::{Applier, Progress};
use crate::raft::log::LogStore;
use crate::raft::machine::{Fatal, FrozenState, Machine, RestoreError};
use crate::raft::snapshot::SnapshotStore;
use crate::raft::types::Types;

/// Knows no state.
struct Nothing;

impl Machine for Nothing {
    fn apply(&self, _: u64, _: u64, _: Bytes) -> Result<Bytes, Fatal> {
        Ok(Bytes::new())
    }

    fn freeze(&self) -> Box<dyn FrozenState> {
        Box::new(Nothing)
    }

    fn restore(&self, _: u64, data: &mut dyn Read) -> Result<(), RestoreError> {
        io::copy(data, &mut io::sink())?;
        Ok(())
    }
}

impl FrozenState for Nothing {
    fn write(self: Box<Self>, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }
}

struct OnDisk;

impl StoreBuilder<Types, LogStore, Applier, TempDir> for OnDisk {
    async fn build(&self) -> Result<(TempDir, LogStore, Applier), StorageError<Types>> {
        let dir = tempfile::tempdir().unwrap();
        let config = JournalConfig {
            segment_bytes: 64 << 10,
            ..JournalConfig::default()
        };
        let journal = Journal::open(&dir.path().join("journal"), config).unwrap();
        let group = GroupId(1);
        let snapshots = SnapshotStore::open(&dir.path().join("snapshots")).unwrap();
        let snapshots = Arc::new(snapshots.group(group).unwrap());
        let progress = Arc::new(Progress::new());
        let applier = Applier::new(Arc::new(Nothing), snapshots, progress);
        Ok((dir, LogStore::new(group, journal), applier))
    }
}

#[tokio::test]
async fn our_store_passes_the_suite_of_the_library() {
    Suite::test_all(OnDisk).await.unwrap();
}
