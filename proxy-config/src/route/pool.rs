//! Fills the read pools. Lag costs a standby its place with hysteresis, and never empties a pool; between two primaries,
//! and where nothing is known, the pools stay as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::spec::ReadFallback;
use proto::{ClusterState, MemberName, MemberReport, Moment, PoolName};

use super::{Aside, Known, Lag, Routes, streaming};

/// How old a keeper's answer may be: five of its questions. An older one is no answer.
const ANSWERS_COUNT_FOR: Duration = Duration::from_secs(5);

/// Fills `next`'s pools, which knows its members and the primary already.
pub(super) fn fill(
    known: &Known<'_>,
    state: &ClusterState,
    (previous, next): (&Routes, &mut Routes),
    now: Moment,
) {
    let mut pools: BTreeSet<Option<PoolName>> =
        next.members.values().map(|at| at.pool.clone()).collect();
    pools.insert(None);
    for pool in pools {
        let of = Of { known, state, previous, pool: pool.as_ref(), now };
        let filled = of.fill(next);
        next.reluctant.extend(filled.reluctant);
        match pool {
            None => next.read = filled.members,
            Some(name) => drop(next.pools.insert(name, filled.members)),
        }
    }
    next.aside = aside(known, (previous, next), now);
}

/// One pool that is being filled.
struct Of<'a> {
    known: &'a Known<'a>,
    state: &'a ClusterState,
    previous: &'a Routes,
    pool: Option<&'a PoolName>,
    now: Moment,
}

#[derive(Default)]
struct Filled {
    members: BTreeSet<MemberName>,
    /// Those of them that are over a limit, or the primary.
    reluctant: BTreeSet<MemberName>,
}

impl Of<'_> {
    fn fill(&self, next: &Routes) -> Filled {
        let belongs = |member: &MemberName| {
            next.members.get(member).is_some_and(|at| at.pool.as_ref() == self.pool)
        };
        let here = |members: BTreeSet<MemberName>| {
            members.into_iter().filter(belongs).collect::<BTreeSet<_>>()
        };
        let before = here(self.previous.readers_of(self.pool));
        let streaming: BTreeSet<MemberName> =
            here(streaming(self.state, self.known.reports).cloned().collect());
        let Some(primary) = self.state.writable_primary() else {
            // Between two primaries no standby streams in the new epoch yet, and the leases of all may lapse together:
            // those stay that were read from and are not known to be down, but for the one that is being replaced.
            let stays = |m: &&MemberName| {
                let replaced =
                    self.state.sealing.is_some() && self.state.primary.as_ref() == Some(*m);
                !replaced && self.known.reports.get(*m).is_none_or(MemberReport::is_running)
            };
            let kept = before.iter().filter(stays).cloned().collect();
            return Filled::of(first_filled([kept, streaming, before]));
        };
        if self.known.reports.is_empty() {
            return Filled::of(before);
        }
        // A pool of its own is never filled by a member that others read or write at.
        let primary = Some(primary.clone()).filter(|p| self.pool.is_none() && belongs(p));
        if streaming.is_empty() {
            return Filled::of(primary.into_iter().collect());
        }
        self.within_limits(&streaming, primary)
    }

    fn within_limits(
        &self,
        streaming: &BTreeSet<MemberName>,
        primary: Option<MemberName>,
    ) -> Filled {
        let reads = &self.known.spec.reads;
        let is_near = |m: &&MemberName| !lagged(self.known, self.previous, m, self.now);
        let mut filled = Filled::of(streaming.iter().filter(is_near).cloned().collect());
        let missing = reads.min_members.saturating_sub(filled.members.len());
        let mut others: Vec<&MemberName> = streaming.difference(&filled.members).collect();
        others.sort_by_key(|m| self.place(m));
        let first = primary.filter(|_| reads.fallback == ReadFallback::Primary);
        let fallback: Vec<MemberName> =
            first.into_iter().chain(others.into_iter().cloned()).take(missing).collect();
        let alone = filled.members.is_empty() && self.state.primary.as_ref() == fallback.first();
        filled.members.extend(fallback.iter().cloned());
        // With the primary alone HAProxy falls back to its backend for writes, whose sessions end with its time.
        if !(alone && filled.members.len() == 1) {
            filled.reluctant.extend(fallback);
        }
        filled
    }

    /// Least lag first; who was read from keeps its place against one that is not twice as good, or the two would
    /// take turns.
    fn place(&self, member: &MemberName) -> (u64, MemberName) {
        let known = lag(self.known, member, self.now).map(|l| l.bytes);
        let served = self.previous.readers_of(self.pool).contains(member);
        let bytes = known.map_or(u64::MAX, |bytes| if served { bytes / 2 } else { bytes });
        (bytes, member.clone())
    }
}

impl Filled {
    fn of(members: BTreeSet<MemberName>) -> Self {
        Self { members, reluctant: BTreeSet::new() }
    }
}

fn was_lagging<'a>(previous: &'a Routes, member: &MemberName) -> Option<&'a Aside> {
    previous.aside.get(member).filter(|aside| aside.lagged)
}

/// The keeper's answer, if it is one of now.
fn lag<'a>(known: &'a Known<'_>, member: &MemberName, now: Moment) -> Option<&'a Lag> {
    let answer = known.answers.get(member)?;
    answer.lag.as_ref().filter(|_| now.since(answer.asked) <= ANSWERS_COUNT_FOR)
}

fn low_since(
    known: &Known<'_>,
    before: Option<&Aside>,
    member: &MemberName,
    now: Moment,
) -> Option<Moment> {
    let lag = lag(known, member, now)?;
    let low = known.spec.reads.is_low(lag.bytes, lag.time);
    low.then(|| before.and_then(|aside| aside.low_since).unwrap_or(now))
}

/// Notes who is left out, since when, and why.
fn aside(
    known: &Known<'_>,
    (previous, next): (&Routes, &Routes),
    now: Moment,
) -> BTreeMap<MemberName, Aside> {
    let replaced =
        |m: &MemberName| previous.write.as_ref() == Some(m) && next.write.as_ref() != Some(m);
    let mut all = BTreeMap::new();
    for (member, at) in &next.members {
        let serves = next.readers_of(at.pool.as_ref()).contains(member);
        let before = previous.aside.get(member);
        // Who serves although it lags has to show that this is over, as if it were out.
        let lagged = next.write.as_ref() != Some(member) && lagged(known, previous, member, now);
        if serves && !lagged {
            continue;
        }
        let left = match before {
            _ if serves => now,
            _ if replaced(member) => Moment::default(),
            Some(aside) if !previous.readers_of(at.pool.as_ref()).contains(member) => aside.left,
            Some(_) | None => now,
        };
        let low_since = low_since(known, before, member, now).filter(|_| lagged);
        all.insert(member.clone(), Aside { left, lagged, low_since });
    }
    all
}

/// Returns whether `member` is over a limit, or was and has not shown that this is over. One of which nothing is known is
/// not one that lags: it stays what it was.
fn lagged(known: &Known<'_>, previous: &Routes, member: &MemberName, now: Moment) -> bool {
    let reads = &known.spec.reads;
    match (was_lagging(previous, member), lag(known, member, now)) {
        (None, None) => false,
        (None, Some(lag)) => reads.is_over(lag.bytes, lag.time),
        (Some(_), None) => true,
        (Some(before), Some(_)) => low_since(known, Some(before), member, now)
            .is_none_or(|since| now.since(since) < reads.return_after),
    }
}

fn first_filled(choices: [BTreeSet<MemberName>; 3]) -> BTreeSet<MemberName> {
    choices.into_iter().find(|c| !c.is_empty()).unwrap_or_default()
}
