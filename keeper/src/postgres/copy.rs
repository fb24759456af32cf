//! Makes a fresh copy of a running server with `pg_basebackup`, beside the old data and never over it.
//!
//! Rule: a copy counts only when the program has ended well and said where the copied WAL begins and ends.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use proto::{Lsn, Timeline};

use super::binaries::PostgresBinaries;
use super::initdb::is_absent_or_empty;
use super::program;
use super::source::Source;
use super::tablespaces::Mapping;

/// How far a copy or rewind has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyProgress {
    pub phase: CopyPhase,
    pub copied_bytes: u64,
    /// Known once copying has begun; the source may grow meanwhile.
    pub total_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyPhase {
    /// Connecting, and waiting for the source (its checkpoint) or for the local preparation.
    Preparing,
    Copying,
    /// All is here; it is being made durable.
    Syncing,
}

/// A copy that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Where replay of the copy begins.
    pub start: Lsn,
    pub timeline: Timeline,
    /// How far it must be replayed to be consistent: no less than all that the source had acknowledged at its begin.
    pub end: Lsn,
}

impl CopyPhase {
    /// Returns how long a program may be silent in this phase. Only copying talks all the time; a checkpoint of a
    /// large server, reading its WAL and syncing a large copy may take long and say nothing meanwhile.
    pub(super) fn patience(self) -> Duration {
        match self {
            Self::Preparing | Self::Syncing => Duration::from_secs(3600),
            Self::Copying => Duration::from_secs(120),
        }
    }
}

/// How a copy is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopyTerms {
    /// How many megabytes a second are taken from the source at most; 0 is without a limit.
    pub rate_mb: u32,
    /// The tablespaces that are copied to another place than theirs.
    pub tablespaces: Vec<Mapping>,
}

/// Copies the server at `source` into `into`, which must be absent or empty.
///
/// Dropping the future kills the program; what it had made stays in `into` and is the caller's to remove.
pub async fn base_backup(
    binaries: &PostgresBinaries,
    source: &Source,
    into: &Path,
    terms: &CopyTerms,
    progress: impl Fn(CopyProgress) + Send,
) -> anyhow::Result<Copied> {
    ensure!(is_absent_or_empty(into)?, "{} is not empty: it is not copied into", into.display());
    let mut command = program::command(&binaries.pg_basebackup(), binaries.user());
    command
        .arg("--dbname")
        .arg(source.conninfo(binaries.major(), None))
        .arg("--pgdata")
        .arg(into)
        .args(["--wal-method=stream", "--checkpoint=fast", "--progress", "--verbose"])
        .arg("--no-password");
    if terms.rate_mb > 0 {
        command.arg(format!("--max-rate={}M", terms.rate_mb));
    }
    for Mapping { from, to } in &terms.tablespaces {
        let escape = |path: &Path| path.to_string_lossy().replace('=', "\\=");
        command.arg(format!("--tablespace-mapping={}={}", escape(from), escape(to)));
    }
    let mut reading = Reading::new();
    let finished = program::run(command, |line| {
        reading.take(line);
        progress(reading.progress);
        reading.progress.phase.patience()
    })
    .await?;
    if !finished.status.success() {
        bail!("pg_basebackup {}: {}", finished.ending(), finished.last_words());
    }
    let (start, timeline) =
        reading.start.context("pg_basebackup did not say where the WAL begins")?;
    let end = reading.end.context("pg_basebackup did not say where the WAL ends")?;
    Ok(Copied { start, timeline, end })
}

/// What was understood of the program's lines so far.
struct Reading {
    progress: CopyProgress,
    start: Option<(Lsn, Timeline)>,
    end: Option<Lsn>,
}

impl Reading {
    fn new() -> Self {
        let progress =
            CopyProgress { phase: CopyPhase::Preparing, copied_bytes: 0, total_bytes: 0 };
        Self { progress, start: None, end: None }
    }

    fn take(&mut self, line: &str) {
        if let Some((copied, total)) = parse_progress(line) {
            self.progress = CopyProgress {
                phase: CopyPhase::Copying,
                copied_bytes: copied,
                total_bytes: total,
            };
        } else if line.contains("syncing data to disk") {
            self.progress.phase = CopyPhase::Syncing;
        } else if let Some((_, text)) = line.split_once("write-ahead log start point: ") {
            self.start = text.split_once(" on timeline ").and_then(|(lsn, timeline)| {
                Some((lsn.parse().ok()?, Timeline(timeline.parse().ok()?)))
            });
        } else if let Some((_, lsn)) = line.split_once("write-ahead log end point: ") {
            self.end = lsn.parse().ok();
        }
    }
}

/// Reads `  1024/40960 kB (2%), ...` as bytes copied and bytes in all.
pub(super) fn parse_progress(line: &str) -> Option<(u64, u64)> {
    let (numbers, _) = line.trim_start().split_once(" kB (")?;
    let (copied, total) = numbers.split_once('/')?;
    let bytes = |kb: &str| kb.parse::<u64>().ok()?.checked_mul(1024);
    Some((bytes(copied)?, bytes(total)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_own_lines_tell_phase_progress_and_both_ends_of_the_wal() {
        let mut reading = Reading::new();
        let mut phases = Vec::new();
        for line in [
            "pg_basebackup: initiating base backup, waiting for checkpoint to complete",
            "pg_basebackup: checkpoint completed",
            "pg_basebackup: write-ahead log start point: 0/2000028 on timeline 3",
            "pg_basebackup: starting background WAL receiver",
            "    0/22891 kB (0%), 0/1 tablespace (/tmp/into/backup_label       )",
            "22902/22902 kB (100%), 0/1 tablespace (/tmp/into/global/pg_control )",
            "pg_basebackup: write-ahead log end point: 0/2000100",
            "pg_basebackup: waiting for background process to finish streaming ...",
            "pg_basebackup: syncing data to disk ...",
            "pg_basebackup: base backup completed",
        ] {
            reading.take(line);
            phases.push(reading.progress.phase);
        }
        assert_eq!(reading.start, Some((Lsn(0x2000028), Timeline(3))));
        assert_eq!(reading.end, Some(Lsn(0x2000100)));
        assert_eq!(reading.progress.copied_bytes, 22902 * 1024);
        assert_eq!(phases[3], CopyPhase::Preparing);
        assert_eq!(phases[4], CopyPhase::Copying);
        assert_eq!(phases[9], CopyPhase::Syncing);
    }

    #[test]
    fn lines_that_only_look_like_progress_are_none() {
        for line in ["", "1/2", "a/b kB (", "1/ kB (", "99999999999999999999/1 kB (", "/ kB ("] {
            assert_eq!(parse_progress(line), None, "{line}");
        }
    }
}
