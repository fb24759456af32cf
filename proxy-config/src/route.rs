//! Chooses where writes and reads go. Never by an epoch below the one that was routed by before (I19), and never
//! by the absence of news: what is not known leaves the routes as they are (I18).

mod answers;
mod fresh;
mod pool;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::report::{Server, Stream};
use proto::{
    ClusterSpec, ClusterState, Epoch, HostPort, MemberName, MemberReport, Moment, PoolName,
};

pub use answers::{Answer, Answers, Lag};

/// Where clients are led.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routes {
    /// The epoch of the state that these routes follow; zero before there is any.
    pub epoch: Epoch,
    /// The one member that may get writes; none while a primary is being replaced or started.
    pub write: Option<MemberName>,
    /// The members among which reads are spread.
    pub read: BTreeSet<MemberName>,
    /// The members whose answers contain every write that was acknowledged before the question.
    pub fresh: BTreeSet<MemberName>,
    /// The members of each pool of its own that get its reads.
    pub pools: BTreeMap<PoolName, BTreeSet<MemberName>>,
    /// Of `read` and `pools`: those that would say themselves that they should get no reads, and are the best there is.
    pub reluctant: BTreeSet<MemberName>,
    /// All members of the cluster, also those that get nothing now.
    pub members: BTreeMap<MemberName, Addresses>,
    pub limits: Limits,
    /// What is remembered of those that get no reads.
    pub aside: BTreeMap<MemberName, Aside>,
}

/// Where one member is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    pub postgres: HostPort,
    /// The keeper's, for health checks.
    pub http: HostPort,
    /// The pool whose reads it gets, and no others; none: the common one.
    pub pool: Option<PoolName>,
}

/// The lag above which the checks refuse a standby.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub bytes: u64,
    pub time: Duration,
    /// How long the sessions on a member that has left may last.
    pub drain: Duration,
}

/// A member that gets no reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aside {
    /// When it left; the beginning of time for a replaced primary, whose sessions end at once.
    pub left: Moment,
    /// It left because of its lag, and has to show that this is over.
    pub lagged: bool,
    /// Since when its lag has been low.
    pub low_since: Option<Moment>,
}

/// What routes follow from.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    pub spec: &'a ClusterSpec,
    pub state: Option<&'a ClusterState>,
    /// Of members with a live lease only.
    pub reports: &'a BTreeMap<MemberName, MemberReport>,
    /// What the keepers themselves have answered of late.
    pub answers: &'a Answers,
}

/// Returns the routes that follow from what is known at `now`.
///
/// No state, or one of an epoch below that of `previous`, changes nothing: the store is away or was restored from
/// an old copy, and the primary of the higher epoch may well serve on.
pub fn route(known: &Known<'_>, previous: Option<&Routes>, now: Moment) -> Routes {
    let nothing = Routes::default();
    let previous = previous.unwrap_or(&nothing);
    let Some(state) = known.state.filter(|s| s.epoch >= previous.epoch) else {
        return previous.clone();
    };
    let members = members(known.spec, state, known.reports, previous);
    let write = state.writable_primary().filter(|w| members.contains_key(*w)).cloned();
    let mut next = Routes {
        epoch: state.epoch,
        fresh: fresh::members(known, state, now).filter(|m| members.contains_key(m)).collect(),
        write,
        members,
        limits: Limits::of(known.spec),
        ..Routes::default()
    };
    pool::fill(known, state, (previous, &mut next), now);
    next
}

impl Routes {
    /// Returns whether both lead clients to the same members.
    pub fn leads_as(&self, other: &Routes) -> bool {
        let led = |r: &Routes| (r.epoch, r.write.clone(), r.read.clone(), r.fresh.clone());
        led(self) == led(other) && self.pools == other.pools && self.members == other.members
    }

    /// Returns the same without what is remembered of those who get no reads, which changes all the time.
    pub fn as_led(&self) -> Routes {
        Routes { aside: BTreeMap::new(), reluctant: BTreeSet::new(), ..self.clone() }
    }

    /// Returns the spec as far as these routes were made by it, for as long as it cannot be read.
    pub fn as_spec(&self) -> ClusterSpec {
        let mut spec = ClusterSpec::default();
        spec.reads.max_lag_bytes = self.limits.bytes;
        spec.reads.max_lag_time = self.limits.time;
        spec.reads.drain = self.limits.drain;
        for (member, at) in self.members.iter().filter(|(_, at)| at.pool.is_some()) {
            spec.members.entry(member.clone()).or_default().pool = at.pool.clone();
        }
        spec
    }

    /// Returns the members that get the reads of `pool`, or the common ones.
    pub fn readers_of(&self, pool: Option<&PoolName>) -> BTreeSet<MemberName> {
        match pool {
            None => self.read.clone(),
            Some(pool) => self.pools.get(pool).cloned().unwrap_or_default(),
        }
    }
}

impl Limits {
    /// Returns the limits of a spec.
    pub fn of(spec: &ClusterSpec) -> Self {
        let reads = &spec.reads;
        Self { bytes: reads.max_lag_bytes, time: reads.max_lag_time, drain: reads.drain }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::of(&ClusterSpec::default())
    }
}

/// A member without a report keeps its addresses: a lapsed lease must not make HAProxy load another file.
fn members(
    spec: &ClusterSpec,
    state: &ClusterState,
    reports: &BTreeMap<MemberName, MemberReport>,
    previous: &Routes,
) -> BTreeMap<MemberName, Addresses> {
    let known = |member: &MemberName| {
        let fresh = reports.get(member).and_then(Addresses::of);
        let at = fresh.or_else(|| previous.members.get(member).cloned())?;
        Some(Addresses { pool: spec.member(member).pool, ..at })
    };
    state.members.keys().filter_map(|m| Some((m.clone(), known(m)?))).collect()
}

impl Addresses {
    /// Returns the addresses of a report; none if one cannot be connected to, which keepers refuse at start.
    fn of(report: &MemberReport) -> Option<Self> {
        let postgres = report.postgres_address.parse().ok()?;
        Some(Self { postgres, http: report.http_address.parse().ok()?, pool: None })
    }
}

/// Returns the members that stream in the epoch of `state`.
fn streaming<'a>(
    state: &'a ClusterState,
    reports: &'a BTreeMap<MemberName, MemberReport>,
) -> impl Iterator<Item = &'a MemberName> {
    let streams = |report: &MemberReport| {
        matches!(report.server, Server::Standby { .. })
            && matches!(report.stream, Stream::Live { epoch, .. } if epoch == state.epoch)
    };
    let admitted = reports.iter().filter(|(member, _)| state.members.contains_key(*member));
    admitted.filter(move |(_, report)| streams(report)).map(|(member, _)| member)
}
