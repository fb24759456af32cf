//! Chooses the way by which a stopped member with data comes back, from what its disk, the agreed state and its primary
//! say. `docs/rejoin.md` has the table, `way/tests.rs` its cases.
//!
//! Rule: nothing is tried out. WAL that is provably a prefix of the primary's is followed; whatever else is done is the
//! cheapest that is right, and what cannot be right is refused with what a person can do.

use proto::spec::Permission;
use proto::{ClusterState, Lsn, WalPosition};

use crate::facts::Room;
use crate::member_files::{Fork, Role};
use crate::postgres::compare::{Proof, SourceSays};
use crate::postgres::fork::fork_of;
use crate::postgres::stopped::{Pages, Stopped};

#[cfg(test)]
mod tests;

/// How a stopped member may come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// Its WAL is a prefix of the primary's.
    Follow,
    /// It received WAL past the fork and never replayed it: that WAL is set aside, and then it follows.
    DropUnreplayed {
        fork: Fork,
        reason: String,
    },
    /// Its pages may hold what the primary does not have.
    Rewind {
        reason: String,
    },
    FreshCopy {
        reason: String,
    },
    Refuse(Refusal),
}

/// Why nothing is done with the data, and what a person can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub reason: String,
    pub next_step: &'static str,
}

/// What a choice rests on.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    pub state: &'a ClusterState,
    pub role: Role,
    /// It counts: what it has replayed it once held. Otherwise its pages came with a copy or rewind, ahead of its WAL.
    pub complete: bool,
    /// Where its WAL ends.
    pub end: WalPosition,
    /// What else its disk shows; `None` where that is not looked at.
    pub disk: Option<&'a Stopped>,
    /// What the primary says; `None` where it was not asked, or gave no answer.
    pub source: Option<&'a SourceSays>,
    /// This member's data and the room beside it, where that was looked at.
    pub room: Option<Room>,
    pub copy: Permission,
}

const SET_IT_ASIDE: &str = "if this member's data is not needed, stop its keeper, move the data directory away and start the keeper: it then copies the primary";
const FIND_OUT: &str =
    "find out which of the two has the right data before anything else: docs/rejoin.md, `Refused`";
const ALLOW: &str = "set rejoin.copy = \"allowed\" in the spec, or put a copy of the primary in place of this data by hand";

/// Returns the way.
pub fn choose(case: &Case<'_>) -> Way {
    if let Some(refusal) = strange(case) {
        return Way::Refuse(refusal);
    }
    let way = match fork(case) {
        Parting::Nowhere => {
            return Way::Refuse(Refusal {
                reason: format!(
                    "no timeline of its log is one of timeline {}'s",
                    case.state.timeline
                ),
                next_step: SET_IT_ASIDE,
            });
        }
        Parting::Unknown => past(case, None),
        Parting::At(fork) if case.end.lsn <= fork.lsn => at_or_before(case, fork),
        Parting::At(fork) => past(case, Some(fork)),
    };
    let way = match (way, removed(case)) {
        (Way::Follow | Way::DropUnreplayed { .. } | Way::Rewind { .. }, Some(reason)) => {
            Way::FreshCopy { reason }
        }
        (way, _) => way,
    };
    match way {
        Way::FreshCopy { reason } if case.copy == Permission::Never => {
            Way::Refuse(Refusal::of_a_copy(reason))
        }
        way => way,
    }
}

/// Returns why the data is not this cluster's, or not what its timelines say.
fn strange(case: &Case<'_>) -> Option<Refusal> {
    let disk = case.disk?;
    let told = case.source.map(|s| s.system_identifier);
    let agreed = case.state.system_identifier;
    if let Some(theirs) =
        [agreed, told].into_iter().flatten().find(|s| *s != disk.system_identifier)
    {
        return Some(Refusal {
            reason: format!(
                "its data is of another cluster: system identifier {} instead of {theirs}",
                disk.system_identifier
            ),
            next_step: SET_IT_ASIDE,
        });
    }
    match &case.source?.proof {
        Proof::Differs { at, timeline } => Some(Refusal {
            reason: format!(
                "its WAL and the primary's differ at {at} of timeline {timeline}, which both should have"
            ),
            next_step: FIND_OUT,
        }),
        Proof::Same { .. } | Proof::Removed { .. } | Proof::Unknown(_) => None,
    }
}

/// Returns why this member could only wait for the primary's WAL, however it came back: that WAL is there no more.
fn removed(case: &Case<'_>) -> Option<String> {
    match &case.source?.proof {
        Proof::Removed { at, timeline } => Some(format!(
            "the primary has removed the WAL with which this member would go on, from {at} of timeline {timeline}"
        )),
        Proof::Same { .. } | Proof::Differs { .. } | Proof::Unknown(_) => None,
    }
}

/// Where this member's log leaves the primary's.
enum Parting {
    /// At the greatest position there is: it is on the primary's own timeline.
    At(Fork),
    /// They have nothing in common.
    Nowhere,
    /// The agreed state does not say, and the primary was not asked.
    Unknown,
}

/// By the files of both sides where they are known, and never further than by what was agreed.
fn fork(case: &Case<'_>) -> Parting {
    let agreed = case.state.shared_until(case.end.timeline);
    let both = case.disk.zip(case.source);
    let (timeline, until) = match (both.map(|(d, s)| fork_of(&d.history, &s.history)), agreed) {
        (None, None) => return Parting::Unknown,
        (None, Some(agreed)) => (case.end.timeline, agreed),
        (Some(None), _) => return Parting::Nowhere,
        (Some(Some(fork)), agreed) => {
            let agreed = agreed.filter(|_| fork.timeline == case.end.timeline);
            let greatest = Lsn(u64::MAX);
            (fork.timeline, fork.until.unwrap_or(greatest).min(agreed.unwrap_or(greatest)))
        }
    };
    Parting::At(Fork { timeline, lsn: until })
}

/// All its WAL is the primary's: unless it has less than it once had, it follows.
fn at_or_before(case: &Case<'_>, fork: Fork) -> Way {
    let end = case.end;
    let lost = match case.disk.map(|d| d.pages) {
        // The primary's WAL up to the fork came from this member, which sends nothing before it has flushed it.
        Some(Pages::Primary { timeline, clean: false })
            if case.source.is_some() && timeline == fork.timeline && fork.lsn < Lsn(u64::MAX) =>
        {
            (end.lsn < fork.lsn).then_some(fork.lsn)
        }
        Some(Pages::Replayed { lsn, .. }) if case.complete || lsn > fork.lsn => {
            (end.lsn < lsn).then_some(lsn)
        }
        Some(Pages::Replayed { .. } | Pages::Primary { .. } | Pages::Unknown) | None => None,
    };
    match lost {
        None => Way::Follow,
        Some(had) => Way::FreshCopy {
            reason: format!(
                "its WAL ends at {} of timeline {} and once reached {had}: its disk has lost some",
                end.lsn, end.timeline
            ),
        },
    }
}

/// It has WAL that the primary does not have.
fn past(case: &Case<'_>, fork: Option<Fork>) -> Way {
    let end = case.end;
    let fork_text = match fork {
        Some(fork) => format!(
            "its WAL ends at {} of timeline {}, past the fork at {}",
            end.lsn, end.timeline, fork.lsn
        ),
        None => format!(
            "its timeline {} is not in the history of timeline {}",
            end.timeline, case.state.timeline
        ),
    };
    let Some(disk) = case.disk else {
        return match case.role {
            Role::Primary => Way::Rewind { reason: fork_text },
            Role::Standby | Role::None => {
                Way::FreshCopy { reason: format!("{fork_text}, and it was a standby") }
            }
        };
    };
    match (disk.pages, fork) {
        (Pages::Replayed { lsn, timeline }, Some(fork))
            if case.role != Role::Primary && lsn <= fork.lsn && timeline <= fork.timeline =>
        {
            let reason = format!("{fork_text}, and it had replayed only up to {lsn}");
            Way::DropUnreplayed { fork, reason }
        }
        (Pages::Replayed { .. } | Pages::Primary { .. } | Pages::Unknown, _) => {
            let why = disk.cannot_rewind.map(str::to_owned);
            match why.or_else(|| copy_is_cheaper(case, fork)) {
                Some(why) => Way::FreshCopy { reason: format!("{fork_text}, and {why}") },
                None => Way::Rewind { reason: fork_text },
            }
        }
    }
}

/// A rewind that has less WAL to go through takes a minute at most: a copy would save nothing that anybody notices, and
/// take disk beside the old data.
pub const LONG_REWIND: u64 = 4 << 30;

/// Returns how much WAL a rewind goes through: it reads this member's since the fork for the blocks to copy, and all that
/// the source has written since then is copied, and replayed.
pub fn wal_of_a_rewind(end: Lsn, flushed: Lsn, fork: Lsn) -> u64 {
    end.0.saturating_sub(fork.0).saturating_add(flushed.0.saturating_sub(fork.0))
}

/// Returns why a fresh copy takes less than a rewind, if it does: there is more WAL than data. A copy that is not
/// allowed, or would fill the disk, is none.
fn copy_is_cheaper(case: &Case<'_>, fork: Option<Fork>) -> Option<String> {
    let (source, fork, room) = (case.source?, fork?, case.room?);
    let wal = wal_of_a_rewind(case.end.lsn, source.flushed, fork.lsn);
    // The WAL of the time in which it is copied comes on top.
    let fits = room.available > room.data.saturating_add(room.data / 4);
    let is_cheaper = wal >= LONG_REWIND && wal > room.data;
    (is_cheaper && fits && case.copy == Permission::Allowed).then(|| {
        let gb = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        format!(
            "a copy of {:.1} GB is cheaper than a rewind with {:.1} GB of WAL",
            gb(room.data),
            gb(wal)
        )
    })
}

impl Refusal {
    /// What the spec forbids.
    pub fn of_a_copy(reason: String) -> Self {
        Self { reason: format!("{reason}, and rejoin.copy is never"), next_step: ALLOW }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}; {}", self.reason, self.next_step)
    }
}
