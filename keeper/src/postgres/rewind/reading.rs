//! What pg_rewind's own lines say of where it begins and how far it is.

use proto::{Lsn, Timeline};

use super::{Damage, RewindFailure, RewindOutcome};
use crate::postgres::copy::{CopyPhase, CopyProgress, parse_progress};
use crate::postgres::gateway::Divergence;

/// What was understood of the program's lines so far.
#[derive(Default)]
pub(super) struct Reading {
    pub(super) diverged: Option<(Lsn, Timeline)>,
    pub(super) from_checkpoint: Option<Lsn>,
    pub(super) not_required: bool,
    /// From here on files of the target change.
    pub(super) copying: bool,
    syncing: bool,
    copied_bytes: u64,
    total_bytes: u64,
}

impl Reading {
    pub(super) fn take(&mut self, line: &str) {
        let lsn_and_timeline = |text: &str| {
            let (lsn, timeline) = text.split_once(" on timeline ")?;
            Some((lsn.parse::<Lsn>().ok()?, Timeline(timeline.trim().parse().ok()?)))
        };
        if let Some((_, text)) = line.split_once("servers diverged at WAL location ") {
            self.diverged = lsn_and_timeline(text);
        } else if let Some((_, text)) = line.split_once("rewinding from last common checkpoint at ")
        {
            self.from_checkpoint = lsn_and_timeline(text).map(|(lsn, _)| lsn);
        } else if line.contains("no rewind required") {
            self.not_required = true;
        } else if line.contains("need to copy ") {
            self.copying = true;
        } else if line.contains("syncing target data directory") {
            self.syncing = true;
        } else if let Some((copied, total)) = parse_progress(line) {
            self.copying = true;
            (self.copied_bytes, self.total_bytes) = (copied, total);
        }
    }

    pub(super) fn divergence(&self) -> Option<Divergence> {
        let (at, timeline) = self.diverged?;
        Some(Divergence { at, timeline, from_checkpoint: self.from_checkpoint? })
    }

    pub(super) fn phase(&self) -> CopyPhase {
        match (self.syncing, self.copying) {
            (true, _) => CopyPhase::Syncing,
            (false, true) => CopyPhase::Copying,
            (false, false) => CopyPhase::Preparing,
        }
    }

    pub(super) fn progress(&self) -> CopyProgress {
        CopyProgress {
            phase: self.phase(),
            copied_bytes: self.copied_bytes,
            total_bytes: self.total_bytes,
        }
    }

    pub(super) fn failure(&self, problem: String) -> RewindOutcome {
        let damage = if self.copying { Damage::Modified } else { Damage::None };
        RewindOutcome::Failed(RewindFailure { damage, problem })
    }
}
