//! Chooses the standby that a fresh copy is taken from, so that the primary is spared.
//!
//! Rule: only one that commits do not wait for, or nothing is spared. Whether it is far enough is asked of itself
//! before it is copied, and the copy is judged by what is in it; nothing here has to be true for the copy to be right.

use std::cmp::Reverse;

use proto::assignment::Follow;
use proto::report::{Server, Stream};
use proto::spec::CopyFrom;
use proto::{ClusterState, MemberName, MemberReport};

use super::standby::primary_is_open;
use crate::action::ActionKind;
use crate::facts::{ClusterView, Facts};

/// Returns that standby; `None`: the primary is copied.
pub fn spare(view: &ClusterView, facts: &Facts, follow: &Follow) -> Option<MemberName> {
    let state = view.state.as_ref()?;
    let allowed = view.spec.as_ref().is_none_or(|s| s.rejoin.copy_from == CopyFrom::Standby);
    // One copy that has failed shows that something is the matter: the next is of the primary, with which less can be.
    let failed = facts.local.failures.contains_key(&ActionKind::Copy);
    // A primary that is not open may wait for this very member.
    if !allowed || failed || !primary_is_open(view, follow) || state.handing_over().is_some() {
        return None;
    }
    let zone = view.reports.get(&facts.member).and_then(|own| own.zone.as_ref());
    view.reports
        .iter()
        .filter(|(name, report)| {
            **name != facts.member && follows(state, report, follow) && is_spare(view, state, name)
        })
        .max_by_key(|(name, report)| {
            (!is_voter(state, name), zone.is_some() && report.zone.as_ref() == zone, Reverse(*name))
        })
        .map(|(name, _)| name.clone())
}

fn follows(state: &ClusterState, report: &MemberReport, follow: &Follow) -> bool {
    let runs = matches!(report.server, Server::Standby { timeline } if timeline == follow.timeline);
    let hears = matches!(report.stream, Stream::Live { epoch, timeline, .. }
        if epoch == follow.epoch && timeline == follow.timeline);
    let stays = !report.leaving && report.frozen.is_none();
    state.members.contains_key(&report.member) && report.complete && runs && hears && stays
}

fn is_voter(state: &ClusterState, member: &MemberName) -> bool {
    state.cfgs.iter().any(|cfg| cfg.voters.contains(member))
}

/// Returns whether in each Cfg enough other voters receive: commits then do not wait for this one.
fn is_spare(view: &ClusterView, state: &ClusterState, member: &MemberName) -> bool {
    let receives = |voter: &MemberName| {
        let report = view.reports.get(voter);
        report.is_some_and(
            |r| matches!(r.stream, Stream::Live { epoch, voter: true, .. } if epoch == state.epoch),
        )
    };
    state.cfgs.iter().all(|cfg| {
        let others = cfg.voters.iter().filter(|voter| *voter != member && receives(voter));
        !cfg.voters.contains(member) || others.count() >= cfg.k
    })
}
