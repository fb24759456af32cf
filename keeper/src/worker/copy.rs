//! A fresh copy of the primary, or of a standby that holds as much, beside the data directory, which it then replaces in
//! one step.
//!
//! The rule: until that step nothing of this member's data is touched and it counts as it did; from then on the copy
//! counts, which holds all that the primary was chosen with. So a copy waits for no Cfg, and nothing here deletes a data
//! directory.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use proto::assignment::Follow;
use proto::report::RejoinBy;
use proto::{Lsn, MemberName, SystemIdentifier};

use super::found::put_in_place;
use super::progress::{CATCH_UP, note_progress};
use super::rejoin::{mark, remove_unfinished_copies};
use super::{Worker, copy_source, slots, tablespaces};
use crate::durable::{fsync_dir, parent};
use crate::member_files::{RejoinPhase, Role};
use crate::postgres::control::ControlFile;
use crate::postgres::copy::{self, Copied, CopyTerms};
use crate::postgres::tablespaces::beside;
use crate::postgres::wal_scan;

/// Copies the standby `from` if it is fit, else the primary, into a new directory and puts it in the place of the old
/// one, which is kept.
///
/// Of the primary nothing is needed but its replication: one that is closed, because it waits for this very member, has
/// that.
pub async fn copy(
    worker: &Worker,
    follow: &Follow,
    from: Option<&MemberName>,
    reason: &str,
) -> anyhow::Result<()> {
    worker.begin_rejoin(follow.epoch, RejoinBy::Copy, reason);
    worker.rejoin_step("ask");
    let origin = copy_source::ready(worker, follow, from).await?;
    if let Some(standby) = &origin.standby {
        let reason = format!("{reason}; copied from standby {standby}");
        worker.update(|local| local.rejoin.iter_mut().for_each(|r| r.reason.clone_from(&reason)));
    }
    let counts = worker.files().complete;
    if !counts {
        // Half of what is there may be another timeline's: nothing but a copy may be started from now on.
        mark(worker, follow, RejoinBy::Copy, RejoinPhase::Copying, None)?;
    }
    remove_unfinished_copies(worker).await?;
    slots::renew_own(worker, follow).await;
    let suffix = format!("copy-e{}", follow.epoch);
    let tablespaces = tablespaces::plan(worker, &origin.source, &suffix).await?;
    let terms = CopyTerms { rate_mb: worker.spec().rejoin.copy_rate_mb, tablespaces };
    let fresh = beside(&worker.place.data_dir, &suffix)?;
    let progress = |progress| note_progress(worker, progress);
    let copied =
        copy::base_backup(&worker.binaries, &origin.source, &fresh, &terms, progress).await?;
    let system_identifier = check(worker, follow, &fresh, copied, origin.at_least).await?;
    let promised = worker.files().promise;
    ensure!(promised <= follow.epoch, "epoch {promised} was promised meanwhile");
    worker.promise(follow.epoch)?;
    let kept = replace(worker, follow, &fresh)?;
    worker.settle_tablespaces();
    worker.rejoin_step(CATCH_UP);
    worker.update(|local| {
        if let Some(rejoin) = &mut local.rejoin {
            rejoin.kept = kept.map(|k| k.display().to_string());
        }
        // All of it was true of the old data.
        local.copying = None;
        local.settings = None;
        local.seal = None;
        local.end_of_wal = None;
        local.compared = None;
        local.unreached.clear();
    });
    worker.save(|files| {
        files.complete = true;
        files.epoch = files.epoch.max(follow.epoch);
        files.role = Role::Standby;
        files.confirmed = None;
        files.rejoin = None;
        files.system_identifier = Some(system_identifier);
    })
}

/// Refuses a copy that is not whole by itself: it must reach, on the primary's timeline, all that its pages can show and
/// with that all that the epoch began with. Returns its system identifier.
async fn check(
    worker: &Worker,
    follow: &Follow,
    fresh: &Path,
    copied: Copied,
    at_least: Lsn,
) -> anyhow::Result<SystemIdentifier> {
    let control = ControlFile::read(fresh)?;
    let expected = worker.state()?.system_identifier;
    ensure!(
        expected == Some(control.system_identifier),
        "the copy has system identifier {}, this cluster has {expected:?}",
        control.system_identifier
    );
    ensure!(
        copied.timeline == follow.timeline,
        "the copy is of timeline {}, the primary's is {}",
        copied.timeline,
        follow.timeline
    );
    // Of a standby's copy. One that went on to another timeline meanwhile has pages of that.
    let (replayed, of) = (control.min_recovery_point, control.min_recovery_timeline);
    ensure!(
        replayed == Lsn(0) || of == follow.timeline,
        "the copy was replayed to {replayed} of timeline {of}"
    );
    let needed = copied.end.max(replayed).max(at_least);
    let scanned = fresh.to_owned();
    let end = tokio::task::spawn_blocking(move || wal_scan::scan(&scanned))
        .await
        .context("scan the copy's WAL")??;
    ensure!(
        end.timeline == follow.timeline && end.lsn >= needed,
        "the copy's WAL ends at {} of timeline {}, before it is whole at {needed}",
        end.lsn,
        end.timeline
    );
    Ok(control.system_identifier)
}

/// Puts `fresh` in the place of the data directory. Returns where the old data is kept, if there was any.
fn replace(worker: &Worker, follow: &Follow, fresh: &Path) -> anyhow::Result<Option<PathBuf>> {
    let data_dir = &worker.place.data_dir;
    if !data_dir.join("PG_VERSION").exists() {
        put_in_place(fresh, data_dir)?;
        return Ok(None);
    }
    let kept = beside(data_dir, &format!("old-e{}", follow.epoch))?;
    if !exchange(fresh, data_dir, &kept)? {
        // Cut between the two names there is no data directory: the mark says so before.
        mark(worker, follow, RejoinBy::Copy, RejoinPhase::Swapping, None)?;
        fs::rename(data_dir, &kept).context("keep the old data directory under another name")?;
        fsync_dir(parent(data_dir)?).context("sync the parent directory")?;
        put_in_place(fresh, data_dir)?;
    }
    Ok(Some(kept))
}

/// Gives `fresh` the data directory's name and the old data the name `kept`, in one step that cannot be cut. Returns
/// whether the file system can do that.
fn exchange(fresh: &Path, data_dir: &Path, kept: &Path) -> anyhow::Result<bool> {
    // First, so that old data never stands under a name that the next copy would remove.
    fs::rename(fresh, kept).context("give the finished copy its last name but one")?;
    match renameat2(AT_FDCWD, kept, AT_FDCWD, data_dir, RenameFlags::RENAME_EXCHANGE) {
        Ok(()) => {
            fsync_dir(parent(data_dir)?).context("sync the parent directory")?;
            Ok(true)
        }
        Err(errno) => {
            fs::rename(kept, fresh).context("give the finished copy its name back")?;
            match errno {
                Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP => Ok(false),
                errno => Err(errno).context("exchange the data directory with the finished copy"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_new_data_change_places_at_once_and_the_old_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let [data, fresh, kept] =
            ["a", "a.copy-e3.1", "a.old-e3.1"].map(|name| dir.path().join(name));
        for (path, text) in [(&data, "old"), (&fresh, "new")] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("PG_VERSION"), text).unwrap();
        }
        assert!(exchange(&fresh, &data, &kept).unwrap());
        let text = |path: &Path| fs::read_to_string(path.join("PG_VERSION")).unwrap();
        assert_eq!((text(&data).as_str(), text(&kept).as_str()), ("new", "old"));
        assert!(!fresh.exists());
    }
}
