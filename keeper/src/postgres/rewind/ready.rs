//! Makes a stopped member ready for pg_rewind, which takes only data that was shut down.
//!
//! Rule: only of a primary that crashed is the end of WAL recorded in the place of crash recovery. All that it flushed
//! was flushed before the checkpoint record that says so; a standby's checkpoint records say nothing of its own files.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, ensure};
use proto::spec::CrashRecovery;

use super::Target;
use crate::durable;
use crate::postgres::binaries::PostgresBinaries;
use crate::postgres::control::{ControlFile, ControlState, stopped_at};
use crate::postgres::copy::CopyPhase;
use crate::postgres::program;
use crate::postgres::wal_scan;

/// The greatest value there is.
const KEEP_ALL_WAL: &str = "wal_keep_size=2147483647MB";

/// A control file as it was before the end of WAL was recorded in it.
pub(super) struct Before(Option<Vec<u8>>);

impl Before {
    /// Puts it back, for a rewind that changed nothing else.
    pub(super) fn restore(&self, data_dir: &Path) -> anyhow::Result<()> {
        match &self.0 {
            Some(bytes) => overwrite(data_dir, bytes).context("put the control file back"),
            None => Ok(()),
        }
    }
}

/// Checks that the member can be rewound. Of one that crashed the end of WAL is recorded, or it is recovered.
pub(super) async fn ready(
    binaries: &PostgresBinaries,
    target: &Target<'_>,
) -> anyhow::Result<Before> {
    let control = prepare(target.data_dir)?;
    if control.is_clean() {
        return Ok(Before(None));
    }
    if target.crash_recovery == CrashRecovery::Skip {
        match record_end(target).await {
            Ok(before) => return Ok(Before(Some(before))),
            Err(error) => {
                let why = format!("{error:#}");
                tracing::warn!(why, "this member's crash recovery is not skipped");
            }
        }
    }
    recover(binaries, target).await?;
    Ok(Before(None))
}

/// Checks that the member can be rewound, and takes away what stands in the way of its crash recovery.
fn prepare(data_dir: &Path) -> anyhow::Result<ControlFile> {
    let control = ControlFile::read(data_dir)?;
    // Crash recovery of a standby would end its standby life on its own timeline.
    ensure!(
        control.state != ControlState::InArchiveRecovery,
        "the data is of a standby that crashed: start it as a standby without a source and stop it, or copy it anew"
    );
    ensure!(
        !data_dir.join("backup_label").exists(),
        "there is a backup_label: an earlier copy or rewind was never replayed, copy this member anew"
    );
    ensure!(
        control.data_checksums || control.wal_log_hints,
        "neither data checksums nor wal_log_hints are on: copy this member anew"
    );
    // With one of these in place the single-user recovery refuses to run.
    let mut removed = false;
    for name in ["standby.signal", "recovery.signal"] {
        let path = data_dir.join(name);
        removed |= durable::remove_if_there(&path)
            .with_context(|| format!("remove {}", path.display()))?;
    }
    if removed {
        durable::fsync_dir(data_dir).with_context(|| format!("sync {}", data_dir.display()))?;
    }
    Ok(control)
}

/// Writes the end of WAL, found by our own scan, into the control file of a primary that crashed. pg_rewind then reads
/// the WAL up to there, which is what crash recovery would have replayed: a page that changed since the last common
/// checkpoint is either copied for that, or replayed from there on. Returns the file as it was.
async fn record_end(target: &Target<'_>) -> anyhow::Result<Vec<u8>> {
    let data_dir = target.data_dir;
    let (end, timeline) = match target.end {
        Some(known) => known,
        None => {
            let path = data_dir.to_owned();
            let scanned = tokio::task::spawn_blocking(move || wal_scan::scan(&path)).await;
            let end = scanned.context("scan for the end of WAL")??;
            (end.lsn, end.timeline)
        }
    };
    let before = fs::read(data_dir.join(CONTROL)).context("read the control file")?;
    let after = stopped_at(&before, end, timeline)?;
    overwrite(data_dir, &after).context("record the end of WAL in the control file")?;
    tracing::info!(%end, %timeline, "recorded the end of WAL instead of recovering");
    Ok(before)
}

const CONTROL: &str = "global/pg_control";

/// In place and in one write, as PostgreSQL does it: all that is in use lies within one sector.
fn overwrite(data_dir: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let file = File::options().write(true).open(data_dir.join(CONTROL))?;
    file.write_all_at(bytes, 0)?;
    file.sync_all()
}

/// Lets PostgreSQL recover a crashed member, alone and without connections.
///
/// Not left to `pg_rewind`, whose recovery ends with a checkpoint that recycles the WAL from before the divergence,
/// so that the rewind itself then cannot begin (measured).
async fn recover(binaries: &PostgresBinaries, target: &Target<'_>) -> anyhow::Result<()> {
    let mut command = program::command(&binaries.postgres(), binaries.user());
    command.arg("--single").arg("-D").arg(target.data_dir);
    if let Some(config_file) = target.config_file {
        command.arg("-c").arg(format!("config_file={}", config_file.display()));
    }
    command.args(["-c", KEEP_ALL_WAL, "-c", "logging_collector=off"]);
    // Opening each file to sync it takes as long as there are files.
    command.args(["-c", "recovery_init_sync_method=syncfs", "template1"]);
    let finished = program::run(command, |_| CopyPhase::Preparing.patience()).await?;
    ensure!(
        finished.status.success(),
        "crash recovery {}: {}",
        finished.ending(),
        finished.last_words()
    );
    let control = ControlFile::read(target.data_dir)?;
    ensure!(control.is_clean(), "crash recovery left the data {}", control.state.describe());
    Ok(())
}
