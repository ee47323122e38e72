//! Lets old segments go. It never drops a segment before what it alone still says is durable elsewhere.
//!
//! Segments go from the oldest on, so that what remains is always an unbroken end of the journal. Entries
//! keep their segment; votes and purge marks last written in a segment that goes are written again first.

use super::writer::{Flushed, Writer};
use super::{JournalError, Mark};

impl Writer {
    /// Drops all segments before the oldest one that still holds a live entry.
    pub(super) fn reclaim(&mut self) -> Result<(), JournalError> {
        let keep = self
            .shared
            .floor()
            .unwrap_or(u64::MAX)
            .min(self.active.number);
        if self
            .shared
            .oldest_segment()
            .is_none_or(|oldest| oldest >= keep)
        {
            return Ok(());
        }
        match self.rehome(keep).and_then(|()| self.flush()) {
            Ok(Flushed::Whole) => {}
            // Nothing was lost; the next purge tries again.
            Ok(Flushed::WithoutAppends) => return Ok(()),
            Err(JournalError::Full { .. }) => return self.flush().map(|_| ()),
            Err(error) => return Err(error),
        }
        let segments = self.shared.drop_segments(keep);
        self.spares.discard(segments, self.synced);
        Ok(())
    }

    fn rehome(&mut self, keep: u64) -> Result<(), JournalError> {
        // The present segment must say where it begins before it becomes the oldest.
        self.start();
        let mut votes = Vec::new();
        let mut marks: Vec<(_, Mark)> = Vec::new();
        for (group, kept) in &self.kept {
            if let Some((vote, segment)) = &kept.vote
                && *segment < keep
            {
                votes.push((*group, vote.clone()));
            }
            if let Some((mark, segment)) = kept.purged
                && segment < keep
            {
                marks.push((*group, mark));
            }
        }
        for (group, vote) in votes {
            self.put_vote(group, &vote)?;
        }
        for (group, mark) in marks {
            self.put_purge(group, mark)?;
        }
        Ok(())
    }
}
