//! What the data directory of a stopped member shows besides where its WAL ends.

use std::fs;
use std::io;
use std::path::Path;

use proto::{Lsn, SystemIdentifier, Timeline, TimelineHistory};

use super::control::{ControlFile, ControlState};
use super::wal_files;

/// A stopped member's own word on its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    pub system_identifier: SystemIdentifier,
    /// The timelines of its log, along which the end of its WAL was found.
    pub history: TimelineHistory,
    pub pages: Pages,
    /// Why pg_rewind would not take this data.
    pub cannot_rewind: Option<&'static str>,
}

/// How far the data files may have got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// It ended as a primary, on this timeline: they may hold what any of its WAL says, and what was never in it.
    Primary { timeline: Timeline, clean: bool },
    /// It ended as a standby: they hold nothing beyond this position of this timeline, whatever it had received.
    Replayed { lsn: Lsn, timeline: Timeline },
    /// It ended on its way from the one to the other.
    Unknown,
}

/// Reads it, for a log that ends on `timeline`.
pub fn read(data_dir: &Path, timeline: Timeline) -> anyhow::Result<Stopped> {
    let control = ControlFile::read(data_dir)?;
    Ok(Stopped {
        system_identifier: control.system_identifier,
        history: wal_files::history(&wal_files::pg_wal_of(data_dir)?, timeline)?,
        pages: pages(&control),
        cannot_rewind: cannot_rewind(data_dir, &control),
    })
}

/// Returns how many bytes the data of a stopped member has, without its WAL. Looks at every file.
pub fn data_bytes(data_dir: &Path) -> io::Result<u64> {
    ["base", "global", "pg_tblspc"].iter().try_fold(0, |sum, part| {
        let part = data_dir.join(part);
        Ok(sum + if part.is_dir() { bytes_under(&part)? } else { 0 })
    })
}

/// Links lead to tablespaces and are followed.
fn bytes_under(dir: &Path) -> io::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let found = fs::metadata(&path)?;
        sum += if found.is_dir() { bytes_under(&path)? } else { found.len() };
    }
    Ok(sum)
}

fn pages(control: &ControlFile) -> Pages {
    let (lsn, timeline) = (control.min_recovery_point, control.min_recovery_timeline);
    match control.state {
        // A page is written only after the position of its last change is in the control file.
        ControlState::ShutDownInRecovery | ControlState::InArchiveRecovery if lsn > Lsn(0) => {
            Pages::Replayed { lsn, timeline }
        }
        ControlState::ShutDown
        | ControlState::InProduction
        | ControlState::ShuttingDown
        | ControlState::InCrashRecovery
            if lsn == Lsn(0) =>
        {
            Pages::Primary { timeline: control.checkpoint_timeline, clean: control.is_clean() }
        }
        ControlState::StartingUp
        | ControlState::ShutDown
        | ControlState::ShutDownInRecovery
        | ControlState::ShuttingDown
        | ControlState::InCrashRecovery
        | ControlState::InArchiveRecovery
        | ControlState::InProduction => Pages::Unknown,
    }
}

fn cannot_rewind(data_dir: &Path, control: &ControlFile) -> Option<&'static str> {
    if !control.data_checksums && !control.wal_log_hints {
        return Some("neither data checksums nor wal_log_hints are on");
    }
    if control.state == ControlState::InArchiveRecovery {
        // Its checkpoint records are the primary's and say nothing of its own files.
        return Some("it is the data of a standby that crashed");
    }
    let label = data_dir.join("backup_label").exists();
    label.then_some("an earlier copy or rewind of it was never replayed to its end")
}
