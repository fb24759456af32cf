//! Sets aside WAL that a stopped standby received past the fork and never replayed; then it only has to follow.
//!
//! Rule: the mark *incomplete* and the marker are on disk before the first segment goes. Pages are not touched.

use anyhow::Context;
use proto::report::RejoinBy;

use super::Worker;
use super::diverged::Diverged;
use super::rejoin::{catch_up, mark, source_is_ready, source_of};
use crate::action::Dropping;
use crate::member_files::RejoinPhase;
use crate::postgres::control::ControlFile;
use crate::postgres::settings::REWIND_ROLE;
use crate::postgres::wal_files;

/// Sets it aside. Safe to repeat.
pub async fn drop_unreplayed(worker: &Worker, dropping: &Dropping) -> anyhow::Result<()> {
    let Dropping { follow, fork, reason } = dropping;
    worker.begin_rejoin(follow.epoch, RejoinBy::Follow, reason);
    worker.rejoin_step("ask");
    let source = source_of(worker, follow, REWIND_ROLE, &worker.secrets.rewind)?;
    source_is_ready(worker, follow, &source).await?;
    mark(worker, follow, RejoinBy::Follow, RejoinPhase::Modifying, Some(*fork))?;
    let diverged = Diverged::new(worker, follow.epoch)?;
    diverged.sum_up(worker, *fork).await;
    let size = ControlFile::read(&worker.place.data_dir)?.wal_segment_size;
    let pg_wal = wal_files::pg_wal_of(&worker.place.data_dir)?;
    let removed = wal_files::remove_from(&pg_wal, fork.timeline, fork.lsn, size, |path, name| {
        diverged.save(path, name)
    })
    .context("set WAL from past the fork aside")?;
    wal_files::set_unreached_aside(&pg_wal, fork.timeline, size)?;
    tracing::info!(?removed, fork = %fork.lsn, "set aside WAL that was never replayed");
    let until = source_is_ready(worker, follow, &source).await?;
    catch_up(worker, until)
}
