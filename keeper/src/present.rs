//! What the keeper shows of its facts: the HTTP view, the problems in its report, and how a rejoin ended.

use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proto::report::{DataDirectory, MemberReport, RejoinOutcome};
use proto::status::{MemberStatus, Positions, Prepared, StandbyPositions};
use proto::{Epoch, Lsn, MemberName, Moment};

use crate::config::Config;
use crate::facts::{ClusterView, Facts};
use crate::lag::Behind;
use crate::member_files::Role;
use crate::postgres::initdb::is_absent_or_empty;
use crate::postgres::probe::{SqlFacts, Walsender};
use crate::report::{Identity, report};
use crate::view::{Serving, View};
use crate::worker::progress::end_step;
use crate::worker::{self, Worker};

/// Enough for the last start's lines.
const LOG_TAIL: u64 = 32 << 10;

/// An operator should know of an action that failed this often in a row; less is the ordinary course of a failover.
const FAILURES_TO_TELL: u32 = 3;

/// Returns what stands in the data directory.
pub fn data(config: &Config) -> DataDirectory {
    match is_absent_or_empty(&config.data_dir) {
        Ok(true) => DataDirectory::Empty,
        Ok(false) | Err(_) => DataDirectory::Present,
    }
}

/// Returns the view before anything is known.
pub fn first_view(identity: &Identity, view: &ClusterView, facts: &Facts) -> View {
    let report = report(identity, view, facts, BTreeSet::new());
    self::view(view, facts, report, Moving::default())
}

/// What moves with every commit and every renewal.
#[derive(Debug, Default)]
pub struct Moving {
    pub serve_until: Option<Moment>,
    pub lag: Option<Behind>,
    pub fresh: bool,
}

/// Returns what the endpoints answer from.
pub fn view(view: &ClusterView, facts: &Facts, report: MemberReport, moving: Moving) -> View {
    let sql = facts.sql.as_ref();
    let serving = match (facts.local.opened, sql) {
        (Some(opened), _) if is_mine(view, facts, opened.epoch) => Serving::Primary,
        (None, Some(sql)) if sql.in_recovery => Serving::Standby,
        _ => Serving::Nobody,
    };
    View {
        status: MemberStatus {
            positions: sql.map(positions),
            standbys: sql.map_or_else(Vec::new, |s| s.walsenders.iter().map(standby).collect()),
            serve_for_ms: None,
            lag: None,
            fresh: false,
            remote_apply: facts.local.remote_apply,
            fenced_by: facts.local.fence_way.map(|way| way.to_string()),
            rejoin_progress: facts.local.copying.map(|copying| copying.progress()),
            prepared: Prepared {
                slots: facts.local.slots_for.as_ref().map(|(members, _)| members.clone()),
                ..facts.local.prepared.clone()
            },
            asked: store::clock::wall(),
            report,
        },
        cluster: view.state.clone(),
        serving,
        serve_until: moving.serve_until.filter(|_| facts.files.role == Role::Primary),
        lag: moving.lag,
        fresh: moving.fresh,
        synchronous: is_voter(view, &facts.member),
    }
}

fn is_mine(view: &ClusterView, facts: &Facts, epoch: Epoch) -> bool {
    view.state
        .as_ref()
        .is_some_and(|s| s.epoch == epoch && s.writable_primary() == Some(&facts.member))
}

fn is_voter(view: &ClusterView, member: &MemberName) -> bool {
    let cfg = view.state.as_ref().and_then(|s| s.newest_cfg());
    cfg.is_some_and(|c| c.voters.contains(member))
}

fn positions(sql: &SqlFacts) -> Positions {
    let flush_lsn = sql.flush_lsn.or(sql.replay_lsn).unwrap_or(Lsn(0));
    Positions {
        timeline: sql.timeline,
        flush_lsn: flush_lsn.max(sql.replay_lsn.unwrap_or(Lsn(0))),
        replay_lsn: sql.replay_lsn,
    }
}

fn standby(sender: &Walsender) -> StandbyPositions {
    let (member, epoch) = match sender.name.split_once(".e") {
        Some((member, rest)) => (
            member.parse().ok(),
            rest.split('.').next().and_then(|number| number.parse().ok()).map(Epoch),
        ),
        None => (None, None),
    };
    StandbyPositions {
        wire_name: sender.name.clone(),
        member,
        epoch,
        state: sender.state.clone(),
        sync_state: sender.sync_state.clone(),
        flush_lsn: sender.flush_lsn,
        replay_lsn: sender.replay_lsn,
    }
}

/// Returns PostgreSQL's last complaint in its log.
pub fn last_fatal(log: &Path) -> String {
    let tail = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let Ok(text) = tail() else { return format!("see {}", log.display()) };
    let complaint = text
        .lines()
        .rev()
        .find_map(|line| line.find("FATAL:").or(line.find("PANIC:")).map(|at| &line[at..]));
    match complaint {
        Some(said) => format!("it said {said:?}, see {}", log.display()),
        None => format!("see {}", log.display()),
    }
}

/// Returns what an operator should know.
pub fn problems(facts: &Facts) -> BTreeSet<String> {
    let failing = facts.local.failures.iter().filter(|(_, f)| f.times >= FAILURES_TO_TELL);
    let mut problems: BTreeSet<String> =
        failing.map(|(kind, f)| format!("{kind:?} fails: {}", f.problem)).collect();
    if let (Some(sql), Some(settings)) = (&facts.sql, &facts.local.settings)
        && sql.standby_names.is_empty()
        && !settings.standby_names.is_empty()
    {
        problems.insert(
            "synchronous_standby_names is empty although pgdeputy set it: commits do not wait"
                .to_owned(),
        );
    }
    problems.extend(facts.local.disks.problems().iter().cloned());
    problems.extend(facts.local.prerequisites.iter().cloned());
    problems
}

/// How often a sealed member tells how far replay has come: the leader takes standing still for a failed promotion,
/// and each telling is a write to etcd.
const REPLAY_TOLD_EVERY: Duration = Duration::from_secs(1);

/// Notes how far a sealed member has replayed, so that a promotion with much to replay is seen to move.
pub fn note_replay(worker: &Worker, facts: &Facts, now: Moment) {
    let Some(seal) = facts.local.seal.filter(|s| s.replayed < s.position.lsn) else { return };
    let Some(replayed) = facts.sql.as_ref().filter(|s| s.in_recovery).and_then(|s| s.replay_lsn)
    else {
        return;
    };
    if replayed > seal.replayed && now.since(facts.local.replay_told) >= REPLAY_TOLD_EVERY {
        worker.update(|local| {
            local.replay_told = now;
            if let Some(seal) = &mut local.seal {
                seal.replayed = replayed.min(seal.position.lsn);
            }
        });
    }
}

/// Notes the end of a rejoin: the member streams under the name that it should have.
pub fn note_rejoin(worker: &Arc<Worker>, view: &ClusterView, facts: &Facts) {
    let Some(rejoin) = &facts.local.rejoin else { return };
    if matches!(rejoin.outcome, RejoinOutcome::Done { .. }) || !facts.files.complete {
        return;
    }
    let streams = facts.sql.as_ref().and_then(|s| s.receiver.as_ref()).is_some_and(|receiver| {
        let timeline = view.state.as_ref().map(|s| s.timeline);
        receiver.streaming && Some(receiver.timeline) == timeline
    });
    if streams && matches!(rejoin.outcome, RejoinOutcome::Failed { .. }) {
        // It came back by a way that needed none: what failed is in the history, and is of no use any more.
        worker.update(|local| local.rejoin = None);
    } else if streams {
        worker.update(|local| {
            if let Some(rejoin) = &mut local.rejoin {
                let ended = store::clock::wall();
                end_step(&mut rejoin.details, ended);
                rejoin.outcome = RejoinOutcome::Done { ended };
                tracing::info!(by = ?rejoin.by, "rejoined");
            }
        });
        worker::leftovers::remove_replaced_soon(worker);
    }
}
