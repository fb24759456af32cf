//! Topology: where clients and their routers find the members, stored under `topology` by the leader. One small document
//! for whoever does not want to read the agreed state and every report.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::report::{Server, Stream};
use crate::{ClusterState, Document, Epoch, MemberName, MemberReport};

/// Who is who, in one epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Rises with each change of primary. Whoever has acted on one refuses those below it: see `Epochs`.
    pub epoch: Epoch,
    /// The member that takes writes; none while it is being replaced.
    pub primary: Option<MemberName>,
    pub members: BTreeMap<MemberName, Place>,
}

/// One member, as clients see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    pub role: Role,
    /// Where its PostgreSQL listens, `host:port`; the last known one while its keeper does not report.
    pub postgres: Option<String>,
    /// Where its keeper answers, `host:port`.
    pub http: Option<String>,
    pub zone: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It takes writes and reads.
    Primary,
    /// It streams in this epoch, and may be read from.
    Standby,
    /// Neither, for now.
    Away,
}

impl Document for Topology {
    const KIND: &'static str = "topology";
}

impl Topology {
    /// Returns the topology of `state`. `before` gives the addresses of members whose keepers do not report just now, and,
    /// while no primary serves, who could be read from.
    pub fn of(
        state: &ClusterState,
        reports: &BTreeMap<MemberName, MemberReport>,
        before: Option<&Topology>,
    ) -> Self {
        let primary = state.writable_primary().cloned();
        let place = |member: &MemberName| {
            let admitted = state.members.get(member);
            let report = reports
                .get(member)
                .filter(|r| admitted.is_some_and(|a| a.incarnation == r.incarnation));
            let known = before.and_then(|t| t.members.get(member));
            let role = match (&primary, report) {
                (Some(primary), _) if primary == member => Role::Primary,
                (Some(_), report) => standing(state, report),
                (None, _) => match known.map(|k| k.role) {
                    Some(Role::Standby) => Role::Standby,
                    Some(Role::Primary | Role::Away) | None => Role::Away,
                },
            };
            Place {
                role,
                postgres: report
                    .map(|r| r.postgres_address.clone())
                    .or_else(|| known?.postgres.clone()),
                http: report.map(|r| r.http_address.clone()).or_else(|| known?.http.clone()),
                zone: report.map_or_else(|| known?.zone.clone(), |r| r.zone.clone()),
            }
        };
        let members = state.members.keys().map(|m| (m.clone(), place(m))).collect();
        Self { epoch: state.epoch, primary: primary.clone(), members }
    }

    /// Returns the members that may be read from, without the primary.
    pub fn readers(&self) -> impl Iterator<Item = (&MemberName, &Place)> {
        self.members.iter().filter(|(_, place)| place.role == Role::Standby)
    }
}

fn standing(state: &ClusterState, report: Option<&MemberReport>) -> Role {
    let reads = report.is_some_and(|r| {
        matches!(r.server, Server::Standby { .. })
            && matches!(r.stream, Stream::Live { epoch, .. } if epoch == state.epoch)
    });
    if reads { Role::Standby } else { Role::Away }
}

/// The guard of a reader against going backwards (I19): what it has acted on once is never taken back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Epochs {
    highest: Epoch,
}

impl Epochs {
    /// A reader that has acted on `highest` before, such as in an earlier process.
    pub fn from(highest: Epoch) -> Self {
        Self { highest }
    }

    /// Returns whether a topology of `epoch` may be acted on, and remembers it if so.
    pub fn admit(&mut self, epoch: Epoch) -> bool {
        let admitted = epoch >= self.highest;
        self.highest = self.highest.max(epoch);
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_never_goes_back_to_a_lower_epoch() {
        let mut epochs = Epochs::from(Epoch(3));
        assert!(!epochs.admit(Epoch(2)));
        assert!(epochs.admit(Epoch(3)) && epochs.admit(Epoch(5)));
        assert!(!epochs.admit(Epoch(4)));
    }
}
