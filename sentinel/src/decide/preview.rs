//! What a switchover would come to that was asked for now, for people who want to know before they ask.
//!
//! The one rule: the answer is that of the very code that answers requests, on the same kind of snapshot.

use std::collections::{BTreeMap, BTreeSet};

use proto::report::NEAR;
use proto::request::{Request, RequestId, Terms, Wanted};
use proto::{ClusterSpec, ClusterState, MemberName, Moment, Phase, WallTime};

use super::requests::{self, Answer};
use super::successor::eligible;
use super::switchover::holders;
use super::{Inputs, health, synchronous};
use crate::observe::Observations;
use crate::plan::list;

/// What would come of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preview {
    /// Who would take over, or why nobody would.
    pub target: Result<MemberName, String>,
    /// Every member but the primary.
    pub members: BTreeMap<MemberName, Candidate>,
    /// The proxies that would hold their clients.
    pub holders: Vec<String>,
    /// Whose clients would be cut although they could be held, and why.
    pub cut: Vec<String>,
}

/// One member that could be the next primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Why it cannot take over, if so.
    pub cannot: Option<String>,
    /// How many bytes it has left to receive and to replay, where that is known.
    pub left: Option<u64>,
    /// What its keeper complains of; the healthiest member is preferred.
    pub problems: BTreeSet<String>,
}

/// Returns what the cluster waits for or lacks, if it is not fully redundant.
pub fn missing_redundancy(
    spec: &ClusterSpec,
    state: &ClusterState,
    seen: &Observations,
) -> Option<String> {
    let inputs = Inputs { spec, state, seen, now: Moment::default(), wall: WallTime(0) };
    if state.phase != Phase::Open || state.sealing.is_some() {
        return Some(format!("epoch {} is not open", state.epoch));
    }
    if !inputs.right_is_held() {
        return Some(format!("{} does not hold the right of a primary", inputs.primary()));
    }
    if synchronous::is_redundant(&inputs) {
        return None;
    }
    match synchronous::missing(&inputs) {
        missing if missing.is_empty() => Some("a change of the voters is under way".to_owned()),
        missing => Some(format!("{} not in its place", list(&missing))),
    }
}

/// Returns what a switchover with `terms` would come to. `left` is what members had left to receive and to replay when
/// they were asked.
pub fn preview(
    (spec, state): (&ClusterSpec, &ClusterState),
    seen: &Observations,
    terms: &Terms,
    left: &BTreeMap<MemberName, u64>,
    (now, wall): (Moment, WallTime),
) -> Preview {
    let inputs = Inputs { spec, state, seen, now, wall };
    let away_from = terms.away_from.as_deref();
    // While the cluster is being founded there is no primary, and nobody to take over from it.
    let others = state
        .members
        .keys()
        .filter(|m| state.primary.as_ref().is_some_and(|primary| primary != *m));
    let candidate = |member: &MemberName| Candidate {
        cannot: eligible(&inputs, member, away_from).err().or_else(|| too_far(member, left)),
        left: left.get(member).copied(),
        problems: inputs.report(member).map(|r| r.problems.clone()).unwrap_or_default(),
    };
    Preview {
        target: target(&inputs, terms, left),
        members: others.map(|member| (member.clone(), candidate(member))).collect(),
        holders: holders(&inputs).into_iter().map(|p| p.id.clone()).collect(),
        cut: seen.proxies.values().flat_map(|p| p.cut()).collect(),
    }
}

fn target(
    inputs: &Inputs,
    terms: &Terms,
    left: &BTreeMap<MemberName, u64>,
) -> Result<MemberName, String> {
    if let Some((member, why)) = health::set_back(inputs) {
        return Err(format!("{member} is frozen ({why}): nothing is decided until adopt-store"));
    }
    let request = Request {
        id: RequestId("preview".into()),
        by: "preview".into(),
        asked: inputs.wall,
        valid_for: terms.hold,
        wanted: Wanted::Switchover(terms.clone()),
    };
    let next = match requests::judge(inputs, &request) {
        Answer::Started { next, .. } | Answer::Done { next, .. } => next,
        Answer::Refused(reason) => return Err(reason),
        Answer::Later => {
            return Err("the last change is not settled yet: try again in a moment".into());
        }
    };
    let target = next.switchover().map(|s| s.target.clone());
    let target = target.ok_or("the leader would do something else")?;
    match too_far(&target, left).filter(|_| terms.to.is_some()) {
        Some(reason) => Err(reason),
        None => Ok(target),
    }
}

/// The primary's keeper waits for a target that has more than this left, and gives up in the end.
fn too_far(member: &MemberName, left: &BTreeMap<MemberName, u64>) -> Option<String> {
    let bytes = left.get(member).filter(|bytes| **bytes > NEAR)?;
    Some(format!(
        "{member} has {} MB left to receive and replay, {} are allowed: wait until it has caught up",
        bytes >> 20,
        NEAR >> 20
    ))
}
