//! Turns a member that diverged into a copy of its new primary with PostgreSQL's own `pg_rewind`.
//!
//! Rule: a rewind counts only if the program said what it did and the data directory shows it. Exit status 0 alone
//! proves nothing: against a source without a checkpoint on its new timeline `pg_rewind` finds nothing to do and
//! says so with status 0, although both have diverged.
//!
//! A stock pg_rewind copies all WAL of its source. `rewind_delta` lets it see, through the gateway, only what is
//! missing; where that cannot be it goes on without, and says so.

mod reading;
mod ready;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use proto::spec::CrashRecovery;
use proto::{Lsn, Moment, Timeline};
use tokio::sync::watch;

use super::binaries::PostgresBinaries;
use super::control::{ControlFile, ControlState};
use super::copy::{CopyPhase, CopyProgress};
use super::gateway::{self, Gateway, Traffic, Trouble};
use super::kept_wal::{self, ForkSegment};
use super::program::{self, Finished};
use super::source::Source;
use super::wal_files;
use crate::durable;
use reading::Reading;
use ready::{Before, ready};

/// What is rewound: a stopped member whose keeper has fsynced the mark *incomplete* and the rejoin marker.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    pub data_dir: &'a Path,
    /// The server's configuration, where it is not in the data directory. A crashed member is recovered under it.
    pub config_file: Option<&'a Path>,
    /// The new primary, by the rewind role, in a database where that role may read files.
    pub source: &'a Source,
    /// Whether a primary that crashed is recovered by PostgreSQL first.
    pub crash_recovery: CrashRecovery,
    /// Where its WAL ends, and on which timeline, if that was looked for since it stopped.
    pub end: Option<(Lsn, Timeline)>,
}

/// What became of a rewind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RewindOutcome {
    Rewound(Rewound),
    /// The program saw no divergence and left the data as it was, but for crash recovery. Believe it only where the
    /// end of this member's WAL and the source's history say the same.
    NotRequired,
    Failed(RewindFailure),
}

/// A rewind that was done and seen in the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewound {
    pub diverged_at: Lsn,
    /// The common timeline, which ended there.
    pub diverged_timeline: Timeline,
    /// Replay begins at or before this checkpoint.
    pub from_checkpoint: Lsn,
    /// How far it must be replayed to be consistent, and on which timeline.
    pub consistent_at: Lsn,
    pub timeline: Timeline,
    pub route: Route,
    pub took: Took,
}

/// How long each part of a rewind took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Took {
    /// To make the data such that pg_rewind takes it: crash recovery, or the scan that stands for it.
    pub ready: Duration,
    /// pg_rewind itself.
    pub rewind: Duration,
    /// To make durable what it wrote.
    pub sync: Duration,
}

/// How the source's files came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// Only what was missing.
    Gateway(Traffic),
    /// With all of the source's WAL, and why.
    Stock(String),
}

/// What a rewind through the gateway needs besides.
pub struct Delta<'a> {
    pub password: &'a str,
    /// A directory of this member alone, outside its data: the gateway's socket lies in one of its own in it, which a killed
    /// keeper leaves there and the next rewind takes over.
    pub place: &'a Path,
    /// Where both histories part: pg_rewind must find the same.
    pub expected: (Timeline, Lsn),
    /// Notes the fork, durably, before the first file of the member gets a second name.
    pub on_fork: &'a (dyn Fn(ForkSegment) -> anyhow::Result<()> + Sync),
    /// Saves a segment of the member's own WAL from the fork on, before it goes.
    pub on_diverged: &'a (dyn Fn(&Path, &str) -> std::io::Result<()> + Sync),
}

/// Why it failed, and what that did to the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RewindFailure {
    pub damage: Damage,
    pub problem: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// The data directory holds what it held, but for crash recovery: trying again is safe.
    None,
    /// The source's files may be mixed in: the directory must not be started, only rewound again against the same
    /// timeline or replaced.
    Modified,
}

/// Rewinds `target` and copies only what it lacks; without the gateway where that cannot be. A rewind that was cut
/// before is taken up again: the member's own WAL is first put back.
pub async fn rewind_delta(
    binaries: &PostgresBinaries,
    target: &Target<'_>,
    delta: &Delta<'_>,
    progress: impl Fn(CopyProgress) + Send,
) -> RewindOutcome {
    if let Err(error) = take_up_again(target.data_dir) {
        return untouched(&error);
    }
    let begun = store::clock::now();
    let before = match ready(binaries, target).await {
        Ok(before) => before,
        Err(error) => return untouched(&error),
    };
    let ready = store::clock::now().since(begun);
    let outcome = gated_or_stock(binaries, target, delta, &progress).await;
    match outcome {
        RewindOutcome::Rewound(mut rewound) => {
            rewound.took.ready = ready;
            RewindOutcome::Rewound(rewound)
        }
        outcome => put_back(outcome, &before, target.data_dir),
    }
}

/// Gives a member of which nothing else was changed its control file back. To any other one it would say that it is to
/// be recovered, and its pages are a mixture by now.
fn put_back(outcome: RewindOutcome, before: &Before, data_dir: &Path) -> RewindOutcome {
    let is_unchanged = match &outcome {
        RewindOutcome::Rewound(_) => false,
        RewindOutcome::NotRequired => true,
        RewindOutcome::Failed(failure) => failure.damage == Damage::None,
    };
    match is_unchanged.then(|| before.restore(data_dir)) {
        Some(Err(error)) => untouched(&error),
        Some(Ok(())) | None => outcome,
    }
}

async fn gated_or_stock(
    binaries: &PostgresBinaries,
    target: &Target<'_>,
    delta: &Delta<'_>,
    progress: &(impl Fn(CopyProgress) + Send),
) -> RewindOutcome {
    let fork = std::sync::Mutex::new(None);
    let on_fork = |segment: ForkSegment| {
        *fork.lock().expect("no thread panics while it holds this lock") = Some(segment);
        (delta.on_fork)(segment)
    };
    let plan = gateway::Plan {
        source: target.source,
        password: delta.password,
        data_dir: target.data_dir,
        place: delta.place,
        expected: delta.expected,
        on_fork: &on_fork,
    };
    let outcome = match Gateway::listen(plan, binaries.user()) {
        Ok(gateway) => through(binaries, target, gateway, progress).await,
        Err(error) => Err(error),
    };
    let fork = *fork.lock().expect("no thread panics while it holds this lock");
    let settled = match (&outcome, fork) {
        (Ok(RewindOutcome::Rewound(_)), Some(fork)) => finish(target.data_dir, &fork, delta),
        _ => take_up_again(target.data_dir),
    };
    match (outcome, settled) {
        (Ok(outcome), Ok(())) => outcome,
        (Ok(_) | Err(_), Err(error)) => RewindOutcome::Failed(RewindFailure {
            damage: Damage::Modified,
            problem: format!("settle the WAL after the rewind: {error:#}"),
        }),
        (Err(why), Ok(())) => {
            let why = format!("{why:#}");
            tracing::warn!(
                why,
                "pg_rewind copies all WAL of the source: it runs without the gateway"
            );
            stock(binaries, target, why, progress).await
        }
    }
}

/// Ends a rewind that pg_rewind had finished: settles the member's own WAL. Safe to repeat.
pub fn finish(data_dir: &Path, fork: &ForkSegment, delta: &Delta<'_>) -> anyhow::Result<()> {
    let pg_wal = wal_files::pg_wal_of(data_dir)?;
    kept_wal::finish(&pg_wal, fork, |path, name| (delta.on_diverged)(path, name))
        .context("put back this member's own WAL")
}

/// Returns whether pg_rewind had finished on `timeline` before its keeper was cut: it writes the control file last.
/// What it had written is durable when this returns true.
pub fn was_finished(data_dir: &Path, timeline: Timeline) -> anyhow::Result<bool> {
    let control = ControlFile::read(data_dir)?;
    let finished = control.state == ControlState::InArchiveRecovery
        && control.min_recovery_timeline == timeline
        && data_dir.join("backup_label").exists()
        && wal_files::pg_wal_of(data_dir)?.join(timeline.history_file_name()).exists();
    if finished {
        make_durable(data_dir)?;
    }
    Ok(finished)
}

/// Makes all of a data directory durable, one call for each file system that holds a part of it: opening each file, as
/// pg_rewind would, takes as long as there are files.
fn make_durable(data_dir: &Path) -> anyhow::Result<()> {
    let mut dirs = vec![data_dir.to_owned(), wal_files::pg_wal_of(data_dir)?];
    let tablespaces = data_dir.join("pg_tblspc");
    for entry in fs::read_dir(&tablespaces).context("list tablespaces")? {
        dirs.push(entry.context("list tablespaces")?.path());
    }
    let mut devices = std::collections::BTreeSet::new();
    for dir in &dirs {
        let context = || format!("sync the file system of {}", dir.display());
        let dir = fs::File::open(dir).with_context(context)?;
        if devices.insert(dir.metadata().with_context(context)?.dev()) {
            nix::unistd::syncfs(&dir).with_context(context)?;
        }
    }
    Ok(())
}

/// Syncs what a rewind has written, if it was one.
async fn synced(mut outcome: RewindOutcome, data_dir: PathBuf) -> RewindOutcome {
    let RewindOutcome::Rewound(rewound) = &mut outcome else { return outcome };
    let begun = store::clock::now();
    let synced = tokio::task::spawn_blocking(move || make_durable(&data_dir)).await;
    rewound.took.sync = store::clock::now().since(begun);
    match synced.context("sync what was rewound").and_then(std::convert::identity) {
        Ok(()) => outcome,
        Err(error) => RewindOutcome::Failed(RewindFailure {
            damage: Damage::Modified,
            problem: format!("{error:#}"),
        }),
    }
}

/// Puts back the member's own WAL, and takes away the label of a rewind that did not get to its end.
fn take_up_again(data_dir: &Path) -> anyhow::Result<()> {
    let restored = kept_wal::restore(&wal_files::pg_wal_of(data_dir)?)
        .context("put back this member's own WAL")?;
    let label = data_dir.join("backup_label");
    let text = durable::read_optional(&label).context("read backup_label")?;
    if text.is_some_and(|text| is_of_a_cut_rewind(&text)) && ControlFile::read(data_dir)?.is_clean()
    {
        durable::remove_if_there(&label).context("remove backup_label")?;
    }
    if restored > 0 {
        tracing::info!(restored, "put this member's own WAL back");
    }
    Ok(())
}

/// Returns whether pg_rewind has left this label beside a control file that still says *shut down*. It makes an empty file
/// first; no server that was shut down leaves one.
fn is_of_a_cut_rewind(label: &[u8]) -> bool {
    label.is_empty() || String::from_utf8_lossy(label).contains("BACKUP METHOD: pg_rewind")
}

/// Runs pg_rewind through `gateway`. An error: it cannot be used here, and nothing of the data has changed.
async fn through(
    binaries: &PostgresBinaries,
    target: &Target<'_>,
    gateway: Gateway<'_>,
    progress: &(impl Fn(CopyProgress) + Send),
) -> anyhow::Result<RewindOutcome> {
    let (tell, said) = watch::channel(None);
    let mut reading = Reading::default();
    let mut command = command(binaries, target, &gateway.conninfo());
    command.arg("--no-sync");
    let begun = store::clock::now();
    let running = program::run(command, |line| {
        reading.take(line);
        tell.send_replace(reading.divergence());
        progress(reading.progress());
        reading.phase().patience()
    });
    // When the gateway gives up, the program is killed with what it started.
    let ended = tokio::select! {
        ended = running => Ok(ended),
        trouble = gateway.serve(&said) => Err(trouble),
    };
    let traffic = gateway.traffic();
    reading.copying |= traffic.listed;
    let route = match traffic.listed {
        true => Route::Gateway(traffic),
        false => Route::Stock(
            "this pg_rewind asks for the list of files in another way than is known".to_owned(),
        ),
    };
    let outcome = match ended {
        Ok(Ok(finished)) => judge(&reading, &finished, target.data_dir, route),
        Err(Trouble::Unfit(why)) if !reading.copying => return Err(why),
        Ok(Err(error)) | Err(Trouble::Unfit(error) | Trouble::Failed(error)) => {
            reading.failure(format!("{error:#}"))
        }
    };
    if let RewindOutcome::Rewound(Rewound { route: Route::Stock(why), .. }) = &outcome {
        tracing::warn!(why, "pg_rewind has copied all WAL of the source");
    }
    let outcome = timed(outcome, begun);
    progress(CopyProgress { phase: CopyPhase::Syncing, ..reading.progress() });
    Ok(synced(outcome, target.data_dir.to_owned()).await)
}

fn timed(mut outcome: RewindOutcome, begun: Moment) -> RewindOutcome {
    if let RewindOutcome::Rewound(rewound) = &mut outcome {
        rewound.took.rewind = store::clock::now().since(begun);
    }
    outcome
}

/// Rewinds `target` without the gateway. Dropping the future kills `pg_rewind` and what it started; the data is then as after a failure
/// with `Damage::Modified`.
pub async fn rewind(
    binaries: &PostgresBinaries,
    target: &Target<'_>,
    progress: impl Fn(CopyProgress) + Send,
) -> RewindOutcome {
    let begun = store::clock::now();
    let before = match ready(binaries, target).await {
        Ok(before) => before,
        Err(error) => return untouched(&error),
    };
    let ready = store::clock::now().since(begun);
    match stock(binaries, target, "as asked".to_owned(), &progress).await {
        RewindOutcome::Rewound(mut rewound) => {
            rewound.took.ready = ready;
            RewindOutcome::Rewound(rewound)
        }
        outcome => put_back(outcome, &before, target.data_dir),
    }
}

async fn stock(
    binaries: &PostgresBinaries,
    target: &Target<'_>,
    why: String,
    progress: &(impl Fn(CopyProgress) + Send),
) -> RewindOutcome {
    let begun = store::clock::now();
    let mut reading = Reading::default();
    let conninfo = target.source.conninfo(binaries.major(), Some(gateway::DATABASE));
    // A temporary table of some versions must not wait for a synchronous standby, which may be this very member.
    let conninfo = format!("{conninfo} options='-c synchronous_commit=local'");
    let ended = program::run(command(binaries, target, &conninfo), |line| {
        reading.take(line);
        progress(reading.progress());
        reading.phase().patience()
    })
    .await;
    let outcome = match ended {
        Ok(finished) => judge(&reading, &finished, target.data_dir, Route::Stock(why)),
        Err(error) => reading.failure(format!("{error:#}")),
    };
    timed(outcome, begun)
}

fn untouched(error: &anyhow::Error) -> RewindOutcome {
    let problem = format!("{error:#}");
    RewindOutcome::Failed(RewindFailure { damage: Damage::None, problem })
}

fn command(
    binaries: &PostgresBinaries,
    target: &Target<'_>,
    conninfo: &str,
) -> tokio::process::Command {
    let mut command = program::command(&binaries.pg_rewind(), binaries.user());
    command
        .arg("--target-pgdata")
        .arg(target.data_dir)
        .arg("--source-server")
        .arg(conninfo)
        .args(["--progress", "--no-ensure-shutdown"]);
    command
}

fn judge(reading: &Reading, finished: &Finished, data_dir: &Path, route: Route) -> RewindOutcome {
    if !finished.status.success() {
        let text = format!("pg_rewind {}: {}", finished.ending(), finished.last_words());
        return reading.failure(text);
    }
    if reading.not_required {
        return RewindOutcome::NotRequired;
    }
    let (Some((diverged_at, diverged_timeline)), Some(from_checkpoint)) =
        (reading.diverged, reading.from_checkpoint)
    else {
        return reading.failure("pg_rewind exited with 0 and did not say what it did".into());
    };
    match verify(data_dir, diverged_at) {
        Ok(control) => RewindOutcome::Rewound(Rewound {
            diverged_at,
            diverged_timeline,
            from_checkpoint,
            consistent_at: control.min_recovery_point,
            timeline: control.min_recovery_timeline,
            route,
            took: Took::default(),
        }),
        Err(error) => reading.failure(format!("pg_rewind exited with 0, but {error:#}")),
    }
}

/// Returns the control file of a data directory that shows a finished rewind.
fn verify(data_dir: &Path, diverged_at: Lsn) -> anyhow::Result<ControlFile> {
    let control = ControlFile::read(data_dir)?;
    ensure!(
        control.state == ControlState::InArchiveRecovery,
        "the data is {} instead of in archive recovery",
        control.state.describe()
    );
    ensure!(
        control.min_recovery_point >= diverged_at,
        "the data needs replay only to {}, which is before the divergence",
        control.min_recovery_point
    );
    ensure!(data_dir.join("backup_label").exists(), "there is no backup_label");
    Ok(control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_that_a_cut_rewind_has_left_is_known_also_before_a_word_is_in_it() {
        let of_a_backup = b"START WAL LOCATION: 0/2000028\nBACKUP METHOD: streamed\n";
        assert!(is_of_a_cut_rewind(b""));
        assert!(is_of_a_cut_rewind(b"START WAL LOCATION: 0/2000028\nBACKUP METHOD: pg_rewind\n"));
        assert!(!is_of_a_cut_rewind(of_a_backup));
    }
}
