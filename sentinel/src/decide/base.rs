//! Which members together can lack no acknowledged commit, and which of them holds the most.
//!
//! The one rule: whoever is chosen holds all that a base holds, and a base meets every
//! acknowledging set of every recorded Cfg. Who is incomplete, sealed for another epoch or below
//! its floor counts for nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use proto::report::Seal;
use proto::state::Floor;
use proto::{Epoch, MemberName, WalPosition};

use super::{Inputs, switchover};

/// Why a member was not chosen, or could not be. `Display` goes into records and explanations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reject {
    NoReport,
    Unreadable(String),
    /// The report is of other member files than those admitted under this name.
    OtherIncarnation,
    OtherSystem,
    NotAdmitted,
    /// It was taken out of the cluster.
    Removed,
    Incomplete,
    NotSealed(Epoch),
    SealedFor(Epoch),
    Promise(Epoch),
    BelowFloor {
        floor: Floor,
        position: WalPosition,
    },
    /// The primary before: a base exists without it.
    NotNeeded,
    Behind {
        position: WalPosition,
        most: WalPosition,
    },
    MayNotBePromoted,
    NotRunning,
    MoreToReplay {
        bytes: u64,
    },
    LowerPriority,
    LaterName,
    NotVoter,
    NotStreaming,
    Leaving,
    /// Another one was asked for.
    NotTarget,
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoReport => f.write_str("no live report: nothing is known of it"),
            Self::Unreadable(problem) => write!(f, "its report cannot be read: {problem}"),
            Self::OtherIncarnation => {
                f.write_str("its member files are not those that were admitted under this name")
            }
            Self::OtherSystem => {
                f.write_str("its data directory is of another cluster (system identifier)")
            }
            Self::NotAdmitted => f.write_str("not admitted to the cluster yet"),
            Self::Removed => f.write_str(
                "it was removed from the cluster: stop its keeper, or take it back with pgdeputy readmit",
            ),
            Self::Incomplete => {
                f.write_str("incomplete: WAL or data may be missing until it has rejoined")
            }
            Self::NotSealed(sealing) => write!(f, "has not sealed for epoch {sealing}"),
            Self::SealedFor(other) => write!(f, "sealed for epoch {other} only"),
            Self::Promise(promise) => write!(f, "has promised no more than epoch {promise}"),
            Self::BelowFloor { floor, position } => write!(
                f,
                "holds {position}, less than the {} of epoch {} that it once held: a disk that lost data",
                floor.lsn, floor.epoch
            ),
            Self::NotNeeded => f.write_str("the primary before: the others form a base without it"),
            Self::Behind { position, most } => write!(f, "holds {position}, another holds {most}"),
            Self::MayNotBePromoted => f.write_str("the spec says promote = never"),
            Self::NotRunning => f.write_str("holds as much, but its PostgreSQL does not run"),
            Self::MoreToReplay { bytes } => {
                write!(f, "holds as much, but has {bytes} bytes left to replay")
            }
            Self::LowerPriority => f.write_str("holds as much, but another has a higher priority"),
            Self::LaterName => f.write_str("holds as much; the name broke the tie"),
            Self::NotVoter => f.write_str("not a voter of the newest Cfg"),
            Self::Leaving => f.write_str("its keeper was asked to stop"),
            Self::NotTarget => f.write_str("holds as much, but the switchover is to another"),
            Self::NotStreaming => f.write_str("does not stream from the primary of this epoch"),
        }
    }
}

/// Members whose seals count for one epoch, and why those of the others do not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sealed {
    pub members: BTreeMap<MemberName, Seal>,
    pub rejected: BTreeMap<MemberName, Reject>,
}

/// The member to be promoted, and why it and no other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub member: MemberName,
    pub seal: Seal,
    /// All whose seals count, also those beyond the base.
    pub sealed: BTreeMap<MemberName, Seal>,
    pub rejected: BTreeMap<MemberName, Reject>,
    /// No base exists without the primary before.
    pub needs_old_primary: bool,
}

/// What the seals of one epoch allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    NoBase,
    /// A base, but only these hold the most, and they may not be promoted.
    NoCandidate {
        holders: Vec<MemberName>,
    },
    Chosen(Box<Choice>),
}

/// Returns whose seals count for `sealing`.
pub(crate) fn sealed(inputs: &Inputs, sealing: Epoch) -> Sealed {
    let mut sealed = Sealed::default();
    for name in inputs.state.members.keys() {
        match standing(inputs, name, sealing) {
            Ok(seal) => {
                sealed.members.insert(name.clone(), seal);
            }
            Err(reject) => {
                sealed.rejected.insert(name.clone(), reject);
            }
        }
    }
    sealed
}

/// Returns why `member` can take no part in anything, if so.
pub(crate) fn unfit(inputs: &Inputs, member: &MemberName) -> Option<Reject> {
    if let Some(problem) = inputs.seen.unreadable.get(member) {
        return Some(Reject::Unreadable(problem.clone()));
    }
    let Some(report) = inputs.seen.members.get(member) else { return Some(Reject::NoReport) };
    let Some(admitted) = inputs.state.members.get(member) else { return Some(Reject::NotAdmitted) };
    if report.incarnation != admitted.incarnation {
        return Some(Reject::OtherIncarnation);
    }
    let foreign = |id| Some(id) != inputs.state.system_identifier;
    if report.system_identifier.is_some_and(foreign) {
        return Some(Reject::OtherSystem);
    }
    (!report.complete).then_some(Reject::Incomplete)
}

pub(super) fn standing(
    inputs: &Inputs,
    member: &MemberName,
    sealing: Epoch,
) -> Result<Seal, Reject> {
    if let Some(reject) = unfit(inputs, member) {
        return Err(reject);
    }
    let report = inputs.report(member).ok_or(Reject::NoReport)?;
    let seal = match report.seal {
        Some(seal) if seal.sealing == sealing => seal,
        // A seal names the epoch that it is for: an older one was given while its receiver could
        // come back.
        Some(seal) => return Err(Reject::SealedFor(seal.sealing)),
        None => return Err(Reject::NotSealed(sealing)),
    };
    if report.promise < sealing {
        return Err(Reject::Promise(report.promise));
    }
    let position = seal.position;
    match inputs.state.members.get(member).and_then(|admitted| admitted.floor) {
        Some(floor) if (position.epoch, position.lsn) < (floor.epoch, floor.lsn) => {
            Err(Reject::BelowFloor { floor, position })
        }
        Some(_) | None => Ok(seal),
    }
}

/// Chooses among those who sealed for `sealing`.
///
/// The primary before counts only where nobody can be chosen without it: its longer tail,
/// acknowledged or not, is then the measure. Otherwise a crashed machine would always win over a
/// healthy one.
pub(crate) fn choose(inputs: &Inputs, sealing: Epoch) -> Outcome {
    let sealed = sealed(inputs, sealing);
    let mut without = sealed.members.clone();
    without.remove(inputs.primary());
    let mut outcome = Outcome::NoBase;
    let candidates = without_longer_tails(inputs, &without);
    // One that has handed over holds the measure: whoever is chosen holds all of it.
    let pools = match switchover::handed_over(inputs) {
        Some(_) => [&sealed.members, &without, &candidates],
        None => [&without, &candidates, &sealed.members],
    };
    for pool in pools {
        let names: BTreeSet<MemberName> = pool.keys().cloned().collect();
        if !inputs.seal_all_cfgs(&names) {
            continue;
        }
        match best(inputs, pool) {
            Ok(member) => {
                return Outcome::Chosen(Box::new(explained(inputs, &sealed, pool, &member)));
            }
            Err(holders) => outcome = Outcome::NoCandidate { holders },
        }
    }
    outcome
}

/// Leaves out who holds more than anybody that may be promoted. What only such members hold was acknowledged by nobody, if
/// those who are left contain a seal set of every Cfg; they come back by rewind or copy.
fn without_longer_tails(
    inputs: &Inputs,
    pool: &BTreeMap<MemberName, Seal>,
) -> BTreeMap<MemberName, Seal> {
    let may_lead = pool.iter().filter(|(member, _)| inputs.may_be_promoted(member));
    let most = may_lead.map(|(_, seal)| seal.position).max();
    let fits = pool.iter().filter(|(_, seal)| Some(seal.position) <= most);
    fits.map(|(member, seal)| (member.clone(), *seal)).collect()
}

/// Returns the best of all whose seals count, although they are no base.
pub(crate) fn best_of_sealed(inputs: &Inputs, sealed: &Sealed) -> Option<Choice> {
    let member = best(inputs, &sealed.members).ok()?;
    Some(explained(inputs, sealed, &sealed.members, &member))
}

/// Orders members that hold equally much; the least is preferred.
type Rank<'a> = (Standby, bool, u64, Reverse<u8>, &'a MemberName);

/// What a member is to a switchover; all are the same to a failover, but for those whose keepers were asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standby {
    Target,
    Other,
    Leaving,
    /// The primary that hands over.
    Before,
}

fn rank<'a>(inputs: &Inputs, member: &'a MemberName, seal: &Seal) -> Rank<'a> {
    let runs = inputs.report(member).is_some_and(|r| r.is_running());
    let left = seal.position.lsn.bytes_ahead_of(seal.replayed);
    (standby(inputs, member), !runs, left, Reverse(inputs.spec.member(member).priority), member)
}

fn standby(inputs: &Inputs, member: &MemberName) -> Standby {
    match inputs.state.handing_over() {
        Some(switchover) if switchover.target == *member => Standby::Target,
        Some(_) if member == inputs.primary() => Standby::Before,
        Some(_) | None => match inputs.report(member).is_some_and(|r| r.leaving) {
            true => Standby::Leaving,
            false => Standby::Other,
        },
    }
}

fn best(inputs: &Inputs, pool: &BTreeMap<MemberName, Seal>) -> Result<MemberName, Vec<MemberName>> {
    let most = pool.values().map(|s| s.position).max();
    let holders = || pool.iter().filter(|(_, seal)| Some(seal.position) == most);
    holders()
        .filter(|(member, _)| inputs.may_be_promoted(member))
        .min_by_key(|(member, seal)| rank(inputs, member, seal))
        .map(|(member, _)| member.clone())
        .ok_or_else(|| holders().map(|(member, _)| member.clone()).collect())
}

/// Says of every other member why it was not chosen.
fn explained(
    inputs: &Inputs,
    sealed: &Sealed,
    pool: &BTreeMap<MemberName, Seal>,
    member: &MemberName,
) -> Choice {
    let seal = pool[member];
    let (standby, runs, left, priority, _) = rank(inputs, member, &seal);
    let mut rejected = sealed.rejected.clone();
    for (other, theirs) in sealed.members.iter().filter(|(name, _)| *name != member) {
        let (theirs_is, their_runs, their_left, their_priority, _) = rank(inputs, other, theirs);
        let reject = if !pool.contains_key(other) && other == inputs.primary() {
            Reject::NotNeeded
        } else if theirs.position < seal.position {
            Reject::Behind { position: theirs.position, most: seal.position }
        } else if !inputs.may_be_promoted(other) {
            Reject::MayNotBePromoted
        } else if theirs_is == Standby::Leaving && theirs_is != standby {
            Reject::Leaving
        } else if theirs_is != standby {
            Reject::NotTarget
        } else if their_runs != runs {
            Reject::NotRunning
        } else if their_left != left {
            Reject::MoreToReplay { bytes: their_left }
        } else if their_priority != priority {
            Reject::LowerPriority
        } else {
            Reject::LaterName
        };
        rejected.insert(other.clone(), reject);
    }
    Choice {
        member: member.clone(),
        seal,
        sealed: sealed.members.clone(),
        rejected,
        needs_old_primary: pool.contains_key(inputs.primary()),
    }
}
