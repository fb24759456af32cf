//! Tells how far a rejoin is: its steps and, while it copies, how much is there and how fast it comes.
//!
//! Rule: a report is a write to etcd, so it changes ten times for a copy at most. What moves faster is told over HTTP.

use proto::history::PhaseRecord;
use proto::rejoin::RejoinDetails;
use proto::report::RejoinOutcome;

use super::Worker;
use crate::facts::Copying;
use crate::postgres::copy::{CopyPhase, CopyProgress};

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
