//! The first checkpoint on a new timeline. `pg_rewind` of 15 takes a source without one for a server on the old timeline,
//! and calls a diverged target clean: whoever may have to be rewound waits for it.
//!
//! The one rule: written at once where somebody may wait for it. Otherwise PostgreSQL's own, which it begins with every
//! promotion and spreads over minutes, does: all buffers at once would hold up commits just when clients come back.

use std::time::Duration;

use proto::report::{MemberReport, Stream};
use proto::{ClusterState, Epoch, WalPosition};
use tokio::time::timeout;

use super::{Worker, slots};
use crate::facts::ClusterView;

/// Voters follow within a tenth of a second here; a member that waits to be rewound can wait this long too.
const AT_THE_LATEST: Duration = Duration::from_millis(300);

impl Worker {
    /// Writes a checkpoint in the background once somebody may need it, and ends with `epoch`. It begins when a voter has
    /// followed, or soon: its fsyncs would stand in the way of the first commits.
    pub fn checkpoint_soon(&self, epoch: Epoch) {
        let (door, member) = (self.door.clone(), self.place.member.clone());
        let (voters, mut view) = (self.voters_follow.clone(), self.view.clone());
        let members = self.state().map(|state| state.members).unwrap_or_default();
        let others: Vec<_> = members.into_keys().filter(|name| *name != member).collect();
        tokio::spawn(async move {
            let wanted = |view: &ClusterView, absent| {
                let Some(state) = view.state.as_ref().filter(|s| s.epoch == epoch) else {
                    return absent;
                };
                let mut others = state.members.keys().filter(|m| **m != member);
                others.any(|m| match view.reports.get(m) {
                    Some(report) => may_be_past_the_fork(report, epoch, state.chosen),
                    None => absent,
                })
            };
            // Without voters it begins all the same: the one to come may be waiting for it.
            let _ = timeout(AT_THE_LATEST, voters.notified()).await;
            // Once more, for a slot that took too long before the promotion.
            let reserved = async { slots::reserve(&door.open().await?, &others).await };
            // Whoever is down now may be for long; one that fails costs that member a copy at worst.
            if let Err(error) = reserved.await {
                tracing::warn!(%error, "make slots before the first checkpoint");
            }
            // Nobody knows what a member holds that is away now. One that goes later holds a prefix.
            if !wanted(&view.borrow(), true) {
                loop {
                    if view.changed().await.is_err() {
                        return;
                    }
                    let view = view.borrow_and_update();
                    let still = |s: &ClusterState| {
                        s.epoch == epoch && s.sealing.is_none() && s.handing_over().is_none()
                    };
                    if !view.state.as_ref().is_some_and(still) {
                        return;
                    }
                    if wanted(&view, false) {
                        break;
                    }
                }
            }
            let checkpoint = async {
                let session = door.open().await?;
                session.run_within(Duration::from_secs(3600), "CHECKPOINT").await
            };
            if let Err(error) = checkpoint.await {
                tracing::warn!(%error, "checkpoint after the promotion");
            }
        });
    }
}

/// Returns whether a member may hold WAL or data of another history than `epoch`, which began at `chosen`.
fn may_be_past_the_fork(report: &MemberReport, epoch: Epoch, chosen: Option<WalPosition>) -> bool {
    let sealed = report.sealed_for(epoch);
    let is_prefix = sealed.is_some_and(|s| s.clean && chosen.is_some_and(|c| s.position <= c));
    let follows = matches!(report.stream, Stream::Live { epoch: of, .. } if of == epoch);
    !report.complete || !(is_prefix || follows)
}

#[cfg(test)]
mod tests {
    use proto::report::Seal;
    use proto::{Lsn, Timeline};

    use super::*;
    use crate::reconcile::tests::report;

    fn at(lsn: u64) -> WalPosition {
        WalPosition { epoch: Epoch(1), lsn: Lsn(lsn), timeline: Timeline(1) }
    }

    fn sealed(lsn: u64) -> MemberReport {
        let (sealing, position) = (Epoch(2), at(lsn));
        let seal = Seal { sealing, position, replayed: position.lsn, clean: true };
        MemberReport { seal: Some(seal), ..report("b") }
    }

    #[test]
    fn after_a_clean_change_nobody_needs_a_checkpoint_and_whoever_may_have_diverged_does() {
        let needs = |report: &MemberReport| may_be_past_the_fork(report, Epoch(2), Some(at(100)));
        assert!(!needs(&sealed(100)), "all that it has is shared");
        assert!(needs(&sealed(101)));
        assert!(needs(&report("b")), "it has not said what it holds");
        let torn = sealed(100).seal.map(|seal| Seal { clean: false, ..seal });
        assert!(needs(&MemberReport { seal: torn, ..report("b") }));
        assert!(needs(&MemberReport { complete: false, ..sealed(100) }));
        let (epoch, timeline) = (Epoch(2), Timeline(2));
        let stream = Stream::Live { epoch, timeline, voter: true };
        assert!(!needs(&MemberReport { stream, ..report("b") }), "it follows already");
    }
}
