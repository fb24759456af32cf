//! Tells how far a rejoin is: its steps and, while it copies, how much is there and how fast it comes.
//!
//! Rule: a report is a write to etcd, so it changes ten times for a copy at most. What moves faster is told over HTTP.

use proto::history::PhaseRecord;
use proto::rejoin::RejoinDetails;
use proto::report::{RejoinBy, RejoinOutcome};
use proto::spec::Permission;

use super::Worker;
use crate::action::ActionKind;
use crate::facts::Copying;
use crate::member_files::MemberFiles;
use crate::postgres::copy::{CopyPhase, CopyProgress};
use crate::reconcile::REWIND_ATTEMPTS;

/// The step in which PostgreSQL is started and receives what is still missing.
pub const CATCH_UP: &str = "catch-up";

impl Worker {
    /// Begins a step of the rejoin, and ends the one before.
    pub fn rejoin_step(&self, name: &str) {
        let now = store::clock::wall();
        self.tell(|details| {
            if details.steps.last().is_none_or(|open| open.name != name) {
                end_step(details, now);
                details.steps.push(PhaseRecord { name: name.to_owned(), start: now, end: None });
            }
        });
    }

    /// Tells something of the rejoin; it is in the next report that another change calls for.
    pub fn tell(&self, change: impl FnOnce(&mut RejoinDetails)) {
        self.note_quietly(|local| {
            if let Some(rejoin) = &mut local.rejoin {
                change(&mut rejoin.details);
            }
        });
    }
}

impl Worker {
    /// Tells that the rejoin under way has failed by `error`, and what comes next. Does nothing where the action of this
    /// kind is no part of one.
    pub(super) fn rejoin_failed(&self, kind: ActionKind, error: &anyhow::Error) {
        let Some(by) = rejoins_by(kind) else { return };
        let next = next_step(by, &self.files(), self.spec().rejoin.copy);
        self.update(|local| {
            let Some(rejoin) = local.rejoin.as_mut().filter(|rejoin| {
                rejoin.by == by && matches!(rejoin.outcome, RejoinOutcome::Running { .. })
            }) else {
                return;
            };
            let ended = store::clock::wall();
            end_step(&mut rejoin.details, ended);
            rejoin.outcome = RejoinOutcome::Failed { ended, problem: format!("{error:#}; {next}") };
            local.copying = None;
        });
    }
}

fn rejoins_by(kind: ActionKind) -> Option<RejoinBy> {
    match kind {
        ActionKind::DropUnreplayed => Some(RejoinBy::Follow),
        ActionKind::Rewind => Some(RejoinBy::Rewind),
        ActionKind::Copy => Some(RejoinBy::Copy),
        ActionKind::Hold
        | ActionKind::Fence
        | ActionKind::Found
        | ActionKind::Seal
        | ActionKind::Scan
        | ActionKind::StartStandby
        | ActionKind::StartSealed
        | ActionKind::Repoint
        | ActionKind::MarkComplete
        | ActionKind::Promote
        | ActionKind::StartPrimary
        | ActionKind::Open
        | ActionKind::OpenBySigns
        | ActionKind::TakeRight
        | ActionKind::Confirm
        | ActionKind::TakeSettings
        | ActionKind::KeepSlots
        | ActionKind::PrepareHandOver
        | ActionKind::HandOver
        | ActionKind::Compare => None,
    }
}

/// Returns what comes after a failure, as `reconcile` goes on from what is on disk.
fn next_step(by: RejoinBy, files: &MemberFiles, copy: Permission) -> String {
    const AGAIN: &str = "it is tried again by itself";
    let marker = files.rejoin.as_ref().filter(|marker| marker.by == by && !marker.may_start());
    let Some(marker) = marker.filter(|_| !files.complete) else {
        return format!("nothing of its data has changed, {AGAIN}");
    };
    let copied = match copy {
        Permission::Allowed => "its data is copied anew, beside what is there",
        Permission::Never => {
            "its data waits for you, because rejoin.copy is never: allow it, or put a copy of the primary in its place"
        }
    };
    match by {
        RejoinBy::Copy => format!("what is there is not started, {AGAIN}"),
        RejoinBy::Follow => format!("while {} is primary {AGAIN}", marker.source),
        RejoinBy::Rewind if marker.attempt < REWIND_ATTEMPTS => {
            format!("while {} is primary {AGAIN}, once, and then {copied}", marker.source)
        }
        RejoinBy::Rewind => copied.to_owned(),
    }
}

/// Ends the step that is under way.
pub fn end_step(details: &mut RejoinDetails, now: proto::WallTime) {
    if let Some(open) = details.steps.last_mut().filter(|step| step.end.is_none()) {
        open.end = Some(now);
    }
}

/// Takes in what a program says of its progress.
pub(super) fn note_progress(worker: &Worker, progress: CopyProgress) {
    let tenths = (progress.copied_bytes * 10).checked_div(progress.total_bytes).unwrap_or(0);
    let (step, text) = match progress.phase {
        CopyPhase::Preparing => ("prepare", "preparing".to_owned()),
        CopyPhase::Copying => {
            ("copy", format!("{} % of {} MB", tenths * 10, progress.total_bytes >> 20))
        }
        CopyPhase::Syncing => ("sync", "syncing".to_owned()),
    };
    worker.rejoin_step(step);
    if progress.phase == CopyPhase::Copying {
        worker.tell(|details| details.copied_bytes = Some(progress.copied_bytes));
    }
    let now = store::clock::now();
    worker.note_quietly(|local| {
        local.copying = (progress.phase == CopyPhase::Copying).then(|| Copying {
            since: local.copying.map_or(now, |known| known.since),
            last: now,
            copied_bytes: progress.copied_bytes,
            total_bytes: progress.total_bytes,
        });
    });
    let next = RejoinOutcome::Running { progress: Some(text) };
    if worker.local().rejoin.is_some_and(|r| r.outcome != next) {
        worker.update(|local| {
            if let Some(rejoin) = &mut local.rejoin {
                rejoin.outcome = next;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member_files::{RejoinMarker, RejoinPhase};
    use proto::{Epoch, Incarnation, Timeline, WallTime};

    fn cut(by: RejoinBy, attempt: u32) -> MemberFiles {
        let mut files = MemberFiles::new("a".parse().unwrap(), Incarnation("one".into()));
        files.rejoin = Some(RejoinMarker {
            by,
            epoch: Epoch(2),
            source: "b".parse().unwrap(),
            source_timeline: Timeline(2),
            attempt,
            phase: RejoinPhase::Modifying,
            until: None,
            fork: None,
            boot: None,
            started: WallTime(0),
        });
        files
    }

    #[test]
    fn what_comes_after_a_failure_is_told_as_it_is_decided() {
        let next = |by, files: &MemberFiles, copy| next_step(by, files, copy);
        let (rewind, allowed) = (RejoinBy::Rewind, Permission::Allowed);
        let untouched = MemberFiles { complete: true, rejoin: None, ..cut(rewind, 1) };
        assert!(next(rewind, &untouched, allowed).starts_with("nothing of its data has changed"));
        assert!(next(rewind, &cut(rewind, 1), allowed).contains("while b is primary"));
        let last = cut(rewind, REWIND_ATTEMPTS);
        assert!(next(rewind, &last, allowed).starts_with("its data is copied anew"));
        assert!(next(rewind, &last, Permission::Never).contains("rejoin.copy is never"));
        assert!(next(RejoinBy::Copy, &cut(RejoinBy::Copy, 3), allowed).contains("is not started"));
        // A copy that begins beside data that counts marks nothing.
        assert!(next(RejoinBy::Copy, &untouched, allowed).starts_with("nothing of its data"));
    }
}
