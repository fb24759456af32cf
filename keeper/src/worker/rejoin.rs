//! Bringing back a member whose data cannot simply follow by pg_rewind; `copy` is the other way.
//!
//! The rule: the mark *incomplete* and the rejoin marker are on disk before the first byte of data changes, and
//! nothing here deletes a data directory.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use proto::assignment::Follow;
use proto::cfg::joining_name;
use proto::report::RejoinBy;
use proto::{Epoch, Lsn, MemberName, Timeline, TimelineHistory};
use tokio::time::timeout;
use tokio_postgres::Client;

use super::Worker;
use super::diverged::Diverged;
use super::follow::passfile_line;
use super::leftovers::remove_unfinished;
use super::progress::{CATCH_UP, note_progress};
use crate::durable::write_atomic;
use crate::member_files::{Fork, RejoinMarker, RejoinPhase, Role};
use crate::postgres::control::ControlFile;
use crate::postgres::fork::fork_of;
use crate::postgres::kept_wal::ForkSegment;
use crate::postgres::rewind::{self, Delta, RewindOutcome, Route, Target};
use crate::postgres::session::describe;
use crate::postgres::settings::REWIND_ROLE;
use crate::postgres::source::Source;
use crate::postgres::{wal_files, wal_scan};

/// The source's keeper begins it at once, or when it sees the rejoin (see `checkpoint`); with very large buffers it takes
/// minutes.
pub(super) const SOURCE_CHECKPOINT_AT_MOST: Duration = Duration::from_secs(600);

/// A source that is silent for longer is frozen or cut off. Waiting for it would keep this member from sealing.
pub(super) const SOURCE_ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// Rewinds the data directory of a former primary onto the timeline of `follow`.
pub async fn rewind(worker: &Worker, follow: &Follow, reason: &str) -> anyhow::Result<()> {
    worker.begin_rejoin(follow.epoch, RejoinBy::Rewind, reason);
    worker.rejoin_step("ask");
    // Asked before anything changes: a source that cannot be reached costs nothing but a retry.
    let source = source_of(worker, follow, REWIND_ROLE, &worker.secrets.rewind)?;
    source_is_ready(worker, follow, &source).await?;
    let cut = worker.files().rejoin.filter(|m| {
        m.by == RejoinBy::Rewind && m.source_timeline == follow.timeline && !m.may_start()
    });
    let boot = cut.as_ref().and_then(|marker| marker.boot.clone());
    let fork = match cut.and_then(|marker| marker.fork) {
        Some(fork) => fork,
        None => find_fork(worker, follow, &source).await?,
    };
    worker.rejoin_step("mark");
    mark(worker, follow, RejoinBy::Rewind, RejoinPhase::Modifying, Some(fork))?;
    remove_unfinished_copies(worker).await?;
    // pg_rewind wants them where the source has them.
    worker.settle_tablespaces();
    let data_dir = &worker.place.data_dir;
    // A lock file that names a dead postmaster's zombie would stop the recovery that a rewind begins with.
    crate::fencer::clear_stale_locks(data_dir);
    let diverged = Diverged::new(worker, follow.epoch)?;
    diverged.sum_up(worker, fork).await;
    let delta = Delta {
        password: &worker.secrets.rewind,
        place: &worker.place.state_dir,
        expected: (fork.timeline, fork.lsn),
        // It is in the marker.
        on_fork: &|_| Ok(()),
        on_diverged: &|path, name| diverged.save(path, name),
    };
    if rewind::was_finished(data_dir, follow.timeline)? {
        // It says so first and syncs the rest after that.
        ensure!(
            boot.is_some() && boot == boot_id(),
            "the machine was started anew since pg_rewind ended: some of what it wrote may be gone"
        );
        let segment_size = ControlFile::read(data_dir)?.wal_segment_size;
        let number = fork.lsn.0 / u64::from(segment_size);
        let fork = ForkSegment { common: fork.timeline, number, segment_size };
        rewind::finish(data_dir, &fork, &delta)?;
        tracing::info!("the rewind had been finished before the keeper was cut");
    } else {
        run_rewind(worker, &source, &delta, reason).await?;
    }
    let until = source_is_ready(worker, follow, &source).await?;
    catch_up(worker, until)
}

async fn run_rewind(
    worker: &Worker,
    source: &Source,
    delta: &Delta<'_>,
    reason: &str,
) -> anyhow::Result<()> {
    let target = Target {
        data_dir: &worker.place.data_dir,
        config_file: None,
        source,
        crash_recovery: worker.spec().rejoin.crash_recovery,
        end: worker.local().end_of_wal.map(|end| (end.lsn, end.timeline)),
    };
    let note = |progress| note_progress(worker, progress);
    match rewind::rewind_delta(&worker.binaries, &target, delta, note).await {
        RewindOutcome::Rewound(done) => {
            let (bytes, without_gateway) = match &done.route {
                Route::Gateway(traffic) => (traffic.bytes, None),
                Route::Stock(why) => (0, Some(why.as_str())),
            };
            worker.tell(|details| {
                if without_gateway.is_none() {
                    details.copied_bytes = Some(bytes);
                }
                details.without_gateway = without_gateway.map(str::to_owned);
            });
            let (ready, rewind, sync) = (done.took.ready, done.took.rewind, done.took.sync);
            tracing::info!(
                diverged_at = %done.diverged_at, from = %done.from_checkpoint,
                bytes, without_gateway, ?ready, ?rewind, ?sync, "rewound"
            );
            Ok(())
        }
        RewindOutcome::NotRequired => bail!("pg_rewind found nothing to do, although {reason}"),
        RewindOutcome::Failed(failure) => {
            bail!("pg_rewind ({:?} damage): {}", failure.damage, failure.problem)
        }
    }
}

/// Returns where this member's log leaves the source's, by both histories. Fails if the two show no divergence.
async fn find_fork(worker: &Worker, follow: &Follow, source: &Source) -> anyhow::Result<Fork> {
    let local = worker.local();
    let told = local.compared.filter(|compared| compared.epoch == follow.epoch);
    let told = told.and_then(|compared| compared.says).map(|says| says.history);
    let theirs = match told.filter(|history| history.timeline == follow.timeline) {
        Some(told) => told,
        None => source_history(worker, follow, source).await?,
    };
    let (end, timeline) = match local.end_of_wal {
        Some(end) => (end.lsn, end.timeline),
        None => {
            let data_dir = worker.place.data_dir.clone();
            let end = tokio::task::spawn_blocking(move || wal_scan::scan(&data_dir))
                .await
                .context("scan for the end of WAL")??;
            (end.lsn, end.timeline)
        }
    };
    let ours = wal_files::history(&worker.pg_wal(), timeline)?;
    let fork = fork_of(&ours, &theirs).context("no timeline is common with the source")?;
    let lsn = fork.until.context("the source is on this member's own timeline")?;
    ensure!(
        end > lsn,
        "this member's WAL ends at {end} and does not pass the fork at {lsn} of timeline {}",
        fork.timeline
    );
    Ok(Fork { timeline: fork.timeline, lsn })
}

async fn source_history(
    worker: &Worker,
    follow: &Follow,
    source: &Source,
) -> anyhow::Result<TimelineHistory> {
    if follow.timeline == Timeline(1) {
        return Ok(TimelineHistory::first(follow.timeline));
    }
    let path = format!("pg_wal/{}", follow.timeline.history_file_name());
    let (client, connection) = session_with(worker, source).await?;
    let asking =
        async { client.query_one("SELECT pg_catalog.pg_read_binary_file($1)", &[&path]).await };
    let row = timeout(SOURCE_ANSWERS_WITHIN, asking).await;
    connection.abort();
    let row = row
        .context("the source does not answer")?
        .map_err(|e| anyhow::anyhow!("read the source's history: {}", describe(&e)))?;
    let text = String::from_utf8_lossy(row.get::<_, &[u8]>(0)).into_owned();
    TimelineHistory::parse(follow.timeline, &text).context("read the source's history")
}

/// Removes what copies that were cut have left: a disk that is too full for one is soon filled by ten.
pub(super) async fn remove_unfinished_copies(worker: &Worker) -> anyhow::Result<()> {
    let data_dir = worker.place.data_dir.clone();
    let removed = tokio::task::spawn_blocking(move || remove_unfinished(&data_dir))
        .await?
        .context("remove what a copy that was cut has left")?;
    if !removed.is_empty() {
        tracing::info!(?removed, "removed what copies that were cut had left");
    }
    Ok(())
}

/// From here on PostgreSQL may be started, under a name that no list holds, until it has flushed past `until`.
pub(super) fn catch_up(worker: &Worker, until: Lsn) -> anyhow::Result<()> {
    worker.rejoin_step(CATCH_UP);
    worker.save(|files| {
        if let Some(marker) = &mut files.rejoin {
            marker.phase = RejoinPhase::CatchingUp;
            marker.until = Some(until);
        }
    })
}

pub(super) fn mark(
    worker: &Worker,
    follow: &Follow,
    by: RejoinBy,
    phase: RejoinPhase,
    fork: Option<Fork>,
) -> anyhow::Result<()> {
    worker.save(|files| {
        let before =
            files.rejoin.take().filter(|m| m.by == by && m.source_timeline == follow.timeline);
        let goes_on =
            before.as_ref().is_some_and(|m| m.phase != phase && phase == RejoinPhase::Swapping);
        files.complete = false;
        files.promise = files.promise.max(follow.epoch);
        files.epoch = follow.epoch;
        files.role = Role::Standby;
        files.rejoin = Some(RejoinMarker {
            by,
            epoch: follow.epoch,
            source: follow.primary.clone(),
            source_timeline: follow.timeline,
            attempt: before.map_or(0, |m| m.attempt) + u32::from(!goes_on),
            phase,
            until: None,
            fork,
            boot: boot_id(),
            started: store::clock::wall(),
        });
    })
}

/// Returns what tells this boot of the machine from others; `None` where the kernel does not say.
fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
}

pub(super) fn source_of(
    worker: &Worker,
    follow: &Follow,
    user: &str,
    password: &str,
) -> anyhow::Result<Source> {
    source_at(worker, &follow.primary, follow.epoch, (user, password))
}

/// Returns `member` as a source, for a role and its password.
pub(super) fn source_at(
    worker: &Worker,
    member: &MemberName,
    epoch: Epoch,
    (user, password): (&str, &str),
) -> anyhow::Result<Source> {
    let (host, port) = worker.address_of(member)?;
    let passfile = worker.place.state_dir.join(format!("{user}.pgpass"));
    let line = passfile_line(&host, port, user, password);
    write_atomic(&passfile, line.as_bytes(), 0o600).context("write a password file")?;
    let application_name = joining_name(&worker.place.member, epoch);
    let tls = worker.place.tls.clone();
    Ok(Source { host, port, user: user.to_owned(), passfile, application_name, tls })
}

/// Waits until the source is the primary of the timeline wanted and has written a checkpoint on it: pg_rewind of 15
/// takes a source without one for a server on the old timeline. Returns what the source has flushed: no page that was
/// copied from its disk is newer. (What it has inserted may lie a page header further, which an idle source never
/// sends.)
pub(super) async fn source_is_ready(
    worker: &Worker,
    follow: &Follow,
    source: &Source,
) -> anyhow::Result<Lsn> {
    let (client, connection) = session_with(worker, source).await?;
    let asking = async {
        let deadline = store::clock::now() + SOURCE_CHECKPOINT_AT_MOST;
        loop {
            let question = client.query_one(
                "SELECT NOT pg_is_in_recovery(), (SELECT timeline_id FROM pg_control_checkpoint()),
                        CASE WHEN pg_is_in_recovery() THEN '0/0' ELSE pg_current_wal_flush_lsn() END::text",
                &[],
            );
            let row = timeout(SOURCE_ANSWERS_WITHIN, question)
                .await
                .context("the source does not answer")?
                .map_err(|e| anyhow::anyhow!("ask the source: {}", describe(&e)))?;
            ensure!(row.get::<_, bool>(0), "the source is no primary any more");
            if Timeline(row.get::<_, i32>(1) as u32) == follow.timeline {
                return Ok(row.get::<_, &str>(2).parse::<Lsn>()?);
            }
            ensure!(
                store::clock::now() < deadline,
                "the source wrote no checkpoint on timeline {}",
                follow.timeline
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let answer = asking.await;
    connection.abort();
    answer
}

pub(super) async fn session_with(
    worker: &Worker,
    source: &Source,
) -> anyhow::Result<(Client, Talking)> {
    let (client, connection) =
        timeout(SOURCE_ANSWERS_WITHIN, source.session(&worker.secrets.rewind))
            .await
            .context("the source accepts no session")?
            .context("connect to the source")?;
    Ok((client, tokio::spawn(connection)))
}

/// The task that carries a session.
pub(super) type Talking = tokio::task::JoinHandle<Result<(), tokio_postgres::Error>>;
