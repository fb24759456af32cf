//! Founding, rewinding and copying, with the points at which each can be cut.

use anyhow::{Context, bail, ensure};
use keeper::member_files::{RejoinMarker, RejoinPhase, Role};
use proto::assignment::Follow;
use proto::report::RejoinBy;
use proto::{Epoch, Lsn, MemberName, Timeline};

use super::worker::Worker;
use crate::sim::disk::Data;
use crate::sim::executor::Node;
use crate::sim::postgres::Phase;
use crate::sim::rng::Stream;
use crate::sim::wal::At;
use crate::sim::world::{SYSTEM, World};

const SOURCE_ANSWERS_WITHIN: u64 = 5_000_000;
const STANDBY_REPLAYS_WITHIN: u64 = 10_000_000;

/// Creates the cluster's first data directory.
pub async fn found(worker: &Worker) -> anyhow::Result<()> {
    worker.sim.sleep(worker.sim.between(Stream::Keeper, 300_000, 1_500_000)).await;
    worker.save(|files| {
        files.promise = files.promise.max(Epoch(1));
        files.epoch = files.epoch.max(Epoch(1));
        files.role = Role::Primary;
        files.complete = true;
        files.system_identifier = Some(SYSTEM);
    });
    worker.sim.sleep(worker.sim.between(Stream::Keeper, 100, 3_000)).await;
    worker.sim.with(|w| {
        let branch = w.wal.fork(Timeline(1), None, 1);
        let lsn = w.wal.append(branch, 5_000);
        let at = At { branch, lsn };
        w.members[worker.member].disk.data = Some(Data {
            at,
            written: at,
            control: Timeline(1),
            clean: true,
            standby_signal: false,
            histories: [].into(),
            placeholders: [].into(),
            piece: None,
            mixed: false,
            needed: None,
        });
    });
    worker.update(|_| {});
    Ok(())
}

/// Rewinds the data directory of a former primary onto the timeline of `follow`.
pub async fn rewind(worker: &Worker, follow: &Follow, reason: &str) -> anyhow::Result<()> {
    worker.begin_rejoin(follow.epoch, RejoinBy::Rewind, reason);
    let far = source_of(worker, follow)?;
    source_is_ready(worker, follow, far).await?;
    if !worker.sim.mutant("rewind-without-mark") {
        mark(worker, follow, RejoinBy::Rewind, RejoinPhase::Modifying);
    }
    worker.sim.oracle_destroys(worker.member);
    worker.sim.with(|w| {
        if let Some(data) = &mut w.members[worker.member].disk.data {
            data.mixed = true;
        }
    });
    let copied = take_from(worker, far, Phase::Primary).await?;
    worker.sim.sleep(worker.sim.between(Stream::Keeper, 100_000, 1_500_000)).await;
    let until = source_is_ready(worker, follow, far).await?;
    // Its pages come while the source writes on; its WAL is what there was at first.
    put(worker, Data { needed: Some(At { lsn: until, ..copied.at }), ..copied });
    catch_up(worker, until);
    Ok(())
}

/// Copies the standby `from` if it is far enough, else the primary, beside the old data and puts the copy in its place in
/// one step; the old data is kept.
pub async fn copy(
    worker: &Worker,
    follow: &Follow,
    from: Option<&MemberName>,
    reason: &str,
) -> anyhow::Result<()> {
    worker.begin_rejoin(follow.epoch, RejoinBy::Copy, reason);
    let ready = match from {
        Some(standby) => ready_standby(worker, follow, standby).await.ok(),
        None => None,
    };
    let (far, phase, at_least) = match ready {
        Some((far, at_least)) => (far, Phase::Standby, at_least),
        None => (source_of(worker, follow)?, Phase::Primary, Lsn(0)),
    };
    if !worker.files().complete {
        mark(worker, follow, RejoinBy::Copy, RejoinPhase::Copying);
    }
    worker.sim.sleep(worker.sim.between(Stream::Keeper, 500_000, 6_000_000)).await;
    let copied = take_from(worker, far, phase).await?;
    ensure!(copied.control == follow.timeline, "the copy is of timeline {}", copied.control);
    ensure!(copied.at.lsn >= at_least, "the copy ends at {}, before {at_least}", copied.at.lsn);
    let promised = worker.files().promise;
    ensure!(promised <= follow.epoch, "epoch {promised} was promised meanwhile");
    worker.promise(follow.epoch);
    worker.sim.oracle_replaces(worker.member, copied.at);
    worker.sim.with(|w| {
        let disk = &mut w.members[worker.member].disk;
        disk.kept.extend(disk.data.replace(copied));
    });
    worker.update(|local| {
        local.settings = None;
        local.seal = None;
        local.end_of_wal = None;
        local.unreached.clear();
    });
    worker.sim.sleep(worker.sim.between(Stream::Keeper, 100, 5_000)).await;
    worker.save(|files| {
        files.complete = true;
        files.epoch = files.epoch.max(follow.epoch);
        files.role = Role::Standby;
        files.confirmed = None;
        files.rejoin = None;
        files.system_identifier = Some(SYSTEM);
    });
    if worker.sim.mutant("copy-resets-the-promise") {
        worker.save(|files| files.promise = Epoch(0));
    }
    Ok(())
}

fn put(worker: &Worker, copied: Data) {
    worker.sim.with(|w| w.members[worker.member].disk.data = Some(copied));
}

/// What a copy of the source's files holds now. The link must bear it.
async fn take_from(worker: &Worker, far: usize, phase: Phase) -> anyhow::Result<Data> {
    let (sim, to) = (&worker.sim, Node::Member(far));
    let reached = sim.within(SOURCE_ANSWERS_WITHIN, async {
        sim.pass(worker.node(), to).await;
        sim.pass(to, worker.node()).await;
    });
    reached.await.context("the source is away")?;
    ensure!(sim.session(far).is_some(), "the source is gone");
    sim.with(|w| {
        let data = w.members[far].disk.data.clone()?;
        let branch = w.server(far).filter(|s| s.phase == phase)?.branch;
        let at = match phase {
            Phase::Primary => At { branch, lsn: data.at.lsn },
            Phase::Standby | Phase::Starting => data.at,
        };
        let control = w.wal.branch(at.branch).tli;
        Some(Data {
            at,
            written: at,
            control,
            standby_signal: true,
            piece: None,
            mixed: false,
            needed: None,
            ..data
        })
    })
    .context("the source is no longer what it was")
}

/// Returns the standby once it has restarted from where the primary is now, and that position.
async fn ready_standby(
    worker: &Worker,
    follow: &Follow,
    standby: &MemberName,
) -> anyhow::Result<(usize, Lsn)> {
    let place = |(host, _): (String, u16)| World::member_at(&host).context("no such machine");
    let (primary, far) = (source_of(worker, follow)?, place(worker.address_of(standby)?)?);
    let (is_primary, timeline, at_least) = position_of(worker, primary).await?;
    ensure!(is_primary && timeline == follow.timeline, "the primary is another");
    let deadline = worker.sim.now() + STANDBY_REPLAYS_WITHIN;
    loop {
        let (is_primary, timeline, lsn) = position_of(worker, far).await?;
        ensure!(!is_primary, "it is no standby any more");
        if lsn >= at_least && timeline == follow.timeline {
            return Ok((far, at_least));
        }
        ensure!(worker.sim.now() < deadline, "the standby is behind");
        worker.sim.sleep(20_000).await;
    }
}

/// Asks a server whether it is a primary, which timeline its WAL is of, and how far that is flushed.
async fn position_of(worker: &Worker, far: usize) -> anyhow::Result<(bool, Timeline, Lsn)> {
    let sim = &worker.sim;
    let asked = sim.within(SOURCE_ANSWERS_WITHIN, async {
        sim.pass(worker.node(), Node::Member(far)).await;
        let session = sim.session(far).context("it accepts no session")?;
        let answer = session
            .sql(|pg| {
                let (primary, branch) = pg.with(|s| (s.phase == Phase::Primary, s.branch))?;
                let (at, of) = pg.with_world(|w| {
                    let at = w.members[pg.member].disk.data.as_ref()?.at;
                    let of = if primary { branch } else { at.branch };
                    Some((at, w.wal.branch(of).tli))
                })??;
                Some((primary, of, at.lsn))
            })
            .await?;
        sim.pass(Node::Member(far), worker.node()).await;
        anyhow::Ok(answer)
    });
    asked.await.context("it does not answer")?
}

fn catch_up(worker: &Worker, until: Lsn) {
    let whole = worker.sim.mutant("complete-after-rewind");
    worker.save(|files| {
        files.complete |= whole;
        if let Some(marker) = &mut files.rejoin {
            marker.phase = RejoinPhase::CatchingUp;
            marker.until = Some(until);
        }
    });
}

fn mark(worker: &Worker, follow: &Follow, by: RejoinBy, phase: RejoinPhase) {
    let started = worker.host.wall();
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
            fork: None,
            boot: None,
            started,
        });
    });
}

fn source_of(worker: &Worker, follow: &Follow) -> anyhow::Result<usize> {
    let (host, _) = worker.address_of(&follow.primary)?;
    World::member_at(&host).context("no such machine")
}

/// Waits until the source is the primary of the timeline wanted and has written a checkpoint on it; returns what it
/// has flushed.
async fn source_is_ready(worker: &Worker, follow: &Follow, far: usize) -> anyhow::Result<Lsn> {
    let sim = &worker.sim;
    loop {
        let asked = sim.within(SOURCE_ANSWERS_WITHIN, async {
            sim.pass(worker.node(), Node::Member(far)).await;
            let session = sim.session(far).context("the source accepts no session")?;
            let answer = session
                .sql(|pg| {
                    let primary = pg.with(|s| s.phase == Phase::Primary)?;
                    let data = pg.with_world(|w| w.members[pg.member].disk.data.clone())??;
                    Some((primary, data.control, data.at.lsn))
                })
                .await?;
            sim.pass(Node::Member(far), worker.node()).await;
            anyhow::Ok(answer)
        });
        let (primary, control, lsn) = asked.await.context("the source does not answer")??;
        ensure!(primary, "the source is no primary any more");
        if control == follow.timeline {
            return Ok(lsn);
        }
        if control > follow.timeline {
            bail!("the source is on timeline {control}");
        }
        sim.sleep(20_000).await;
    }
}
