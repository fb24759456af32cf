//! Chooses where writes and reads go. Never by an epoch below the one that was routed by before (I19), and never
//! by the absence of news: what is not known leaves the routes as they are (I18).

use std::collections::{BTreeMap, BTreeSet};

use proto::report::{Server, Stream};
use proto::{ClusterState, Epoch, HostPort, MemberName, MemberReport};

/// Where clients are led.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routes {
    /// The epoch of the state that these routes follow; zero before there is any.
    pub epoch: Epoch,
    /// The one member that may get writes; none while a primary is being replaced or started.
    pub write: Option<MemberName>,
    /// The members among which reads are spread.
    pub read: BTreeSet<MemberName>,
    /// All members of the cluster, also those that get nothing now.
    pub members: BTreeMap<MemberName, Addresses>,
}

/// Where one member is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    pub postgres: HostPort,
    /// The keeper's, for health checks.
    pub http: HostPort,
}

/// Returns the routes that follow from the agreed state and the live reports.
///
/// No state, or one of an epoch below that of `previous`, changes nothing: the store is away or was restored from
/// an old copy, and the primary of the higher epoch may well serve on.
pub fn route(
    state: Option<&ClusterState>,
    reports: &BTreeMap<MemberName, MemberReport>,
    previous: Option<&Routes>,
) -> Routes {
    let nothing = Routes::default();
    let previous = previous.unwrap_or(&nothing);
    let Some(state) = state.filter(|s| s.epoch >= previous.epoch) else { return previous.clone() };
    let members = members(state, reports, previous);
    let write = state.writable_primary().filter(|w| members.contains_key(*w)).cloned();
    let read = read(state, reports, previous)
        .into_iter()
        .filter(|member| members.contains_key(member))
        .collect();
    Routes { epoch: state.epoch, write, read, members }
}

/// A member without a report keeps its addresses: a lapsed lease must not make HAProxy load another file.
fn members(
    state: &ClusterState,
    reports: &BTreeMap<MemberName, MemberReport>,
    previous: &Routes,
) -> BTreeMap<MemberName, Addresses> {
    let known = |member: &MemberName| {
        let fresh = reports.get(member).and_then(Addresses::of);
        fresh.or_else(|| previous.members.get(member).cloned())
    };
    state.members.keys().filter_map(|m| Some((m.clone(), known(m)?))).collect()
}

impl Addresses {
    /// Returns the addresses of a report; none if one cannot be connected to, which keepers refuse at start.
    fn of(report: &MemberReport) -> Option<Self> {
        let postgres = report.postgres_address.parse().ok()?;
        Some(Self { postgres, http: report.http_address.parse().ok()? })
    }
}

/// Standbys that stream in this epoch; else the primary. Between two primaries no standby streams in the new epoch
/// yet and the leases of all may lapse together: then those stay that were read from and are not known to be down.
/// (A limit on the lag will be asked for here, per member.)
fn read(
    state: &ClusterState,
    reports: &BTreeMap<MemberName, MemberReport>,
    previous: &Routes,
) -> BTreeSet<MemberName> {
    let Some(primary) = state.writable_primary() else {
        let not_down = |m: &&MemberName| reports.get(*m).is_none_or(MemberReport::is_running);
        let kept: BTreeSet<MemberName> = previous.read.iter().filter(not_down).cloned().collect();
        let streaming = || streaming(state, reports);
        return first_filled([kept, streaming(), previous.read.clone()]);
    };
    if reports.is_empty() {
        return previous.read.clone();
    }
    first_filled([streaming(state, reports), BTreeSet::from([primary.clone()]), BTreeSet::new()])
}

fn streaming(
    state: &ClusterState,
    reports: &BTreeMap<MemberName, MemberReport>,
) -> BTreeSet<MemberName> {
    let streams = |report: &MemberReport| {
        matches!(report.server, Server::Standby { .. })
            && matches!(report.stream, Stream::Live { epoch, .. } if epoch == state.epoch)
    };
    let admitted = reports.iter().filter(|(member, _)| state.members.contains_key(*member));
    admitted.filter(|(_, report)| streams(report)).map(|(member, _)| member.clone()).collect()
}

fn first_filled(choices: [BTreeSet<MemberName>; 3]) -> BTreeSet<MemberName> {
    choices.into_iter().find(|c| !c.is_empty()).unwrap_or_default()
}
