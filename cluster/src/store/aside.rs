//! Data that is set aside: of a node that joins another cluster. It is moved, not deleted, and a crash at any moment leaves
//! either the old node as it was, or a start that goes on with it.
//!
//! ```text
//!   mark: `joining` (a name for the old data, where to join) -- from here on there is no way back
//!   next start: each of the rooms -> `left-SECONDS/`, then `joining` becomes `join`
//!   until it is a member, and to find its cluster again: `join`
//! ```

use std::fs::{File, rename};
use std::io::{self, Write};
use std::path::Path;

/// What a start has still to do: the name of the directory for the old data, then addresses, one a line.
const JOINING: &str = "joining";
/// The same once it is done.
const JOINED: &str = "join";
/// What belongs to the identity that is given up.
const ROOMS: [&str; 3] = ["state", "journal", "snapshots"];

/// Writes down where the next start is to join.
pub(super) fn mark(dir: &Path, addresses: &[String], now_s: u64) -> io::Result<()> {
    let mut text = format!("left-{now_s}\n");
    for address in addresses {
        text.push_str(address);
        text.push('\n');
    }
    let new = dir.join("joining.new");
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    rename(new, dir.join(JOINING))?;
    sync(dir)
}

/// Does what is written down, if anything is. Nobody may use the data meanwhile.
pub(super) fn finish(dir: &Path) -> io::Result<()> {
    let text = match std::fs::read_to_string(dir.join(JOINING)) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let name = text.lines().next().unwrap_or_default();
    let seconds = name.strip_prefix("left-").map(str::parse::<u64>);
    if !matches!(seconds, Some(Ok(_))) {
        return Err(io::Error::other("the file `joining` in it cannot be read"));
    }
    let aside = dir.join(name);
    std::fs::create_dir_all(&aside)?;
    for room in ROOMS {
        let from = dir.join(room);
        // Else it was moved before a crash, or never there.
        if from.exists() {
            rename(from, aside.join(room))?;
        }
    }
    sync(&aside)?;
    sync(dir)?;
    rename(dir.join(JOINING), dir.join(JOINED))?;
    sync(dir)
}

/// Where this node joined, and may find its cluster again.
pub(super) fn joined(dir: &Path) -> io::Result<Vec<String>> {
    match std::fs::read_to_string(dir.join(JOINED)) {
        Ok(text) => Ok(text.lines().skip(1).map(str::to_owned).collect()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::store::Store;

    fn addresses() -> Vec<String> {
        vec!["a:1".into(), "b:2".into()]
    }

    fn left(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("left-")).collect()
    }

    #[test]
    fn a_marked_node_starts_anew_and_its_data_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let old = Store::open(dir.path()).unwrap();
        std::fs::create_dir(dir.path().join("journal")).unwrap();
        let id = old.node_id().unwrap();
        assert_eq!(old.joined().unwrap(), Vec::<String>::new());
        old.mark_join(&addresses()).unwrap();
        assert_eq!(
            old.node_id().unwrap(),
            id,
            "nothing changes until it starts again"
        );
        drop(old);
        for _ in 0..2 {
            let new = Store::open(dir.path()).unwrap();
            assert_ne!(new.node_id().unwrap(), id);
            assert_eq!(new.cluster_id().unwrap(), 0);
            assert_eq!(new.joined().unwrap(), addresses());
        }
        let left = left(dir.path());
        assert_eq!(left.len(), 1, "{left:?}");
        let kept = dir.path().join(&left[0]);
        assert!(kept.join("state").exists() && kept.join("journal").exists());
    }

    /// After each step of the job, as a crash would leave it.
    #[test]
    fn a_job_that_was_cut_short_is_finished() {
        for moved in 0..=ROOMS.len() {
            let dir = tempfile::tempdir().unwrap();
            let here = |room: &str| dir.path().join(room);
            ROOMS
                .iter()
                .for_each(|room| std::fs::create_dir(here(room)).unwrap());
            mark(dir.path(), &addresses(), 7).unwrap();
            let aside = here("left-7");
            std::fs::create_dir(&aside).unwrap();
            for room in &ROOMS[..moved] {
                rename(here(room), aside.join(room)).unwrap();
            }
            for _ in 0..2 {
                finish(dir.path()).unwrap();
                assert_eq!(joined(dir.path()).unwrap(), addresses());
                for room in ROOMS {
                    assert!(
                        aside.join(room).exists() && !here(room).exists(),
                        "{moved}: {room}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_mark_that_was_not_finished_counts_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let id = Store::open(dir.path()).unwrap().node_id().unwrap();
        std::fs::write(dir.path().join("joining.new"), "left-").unwrap();
        assert_eq!(Store::open(dir.path()).unwrap().node_id().unwrap(), id);
        std::fs::write(dir.path().join(JOINING), "left-../elsewhere\n").unwrap();
        let refused = Store::open(dir.path()).map(drop);
        assert!(
            refused.is_err(),
            "nothing is moved by a file that is damaged"
        );
        assert!(dir.path().join("state").exists());
    }
}
