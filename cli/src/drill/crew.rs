//! The sentinels and proxies of a cluster: who of them a drill may hit, and whether they are all back.
//!
//! The one rule: who was killed is back when as many live as before, and what the killed one has left is gone: until then
//! it looks as if it lived.

use std::collections::BTreeMap;

use proto::Epoch;
use proto::drill::{Carried, DrillTarget, Drilled, LiveFault};
use proto::proxy::ProxyReport;
use store::keys::Keys;
use store::{LeaseId, Snapshot};

/// Who there is besides the members.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Crew {
    /// The sentinel that leads, by its id.
    pub leader: Option<String>,
    /// By their ids, and the lease by which they are there.
    pub sentinels: BTreeMap<String, Option<LeaseId>>,
    /// The same, with the epoch that each has installed.
    pub proxies: BTreeMap<String, (Option<LeaseId>, Epoch)>,
}

impl Crew {
    /// Returns who is there by `snapshot`.
    pub fn of(snapshot: &Snapshot, keys: &Keys, leader: Option<String>) -> Self {
        let mut crew = Self { leader, ..Self::default() };
        for (key, entry) in &snapshot.entries {
            match keys.strip(key).and_then(|name| name.split_once('/')) {
                Some(("sentinels", id)) => {
                    crew.sentinels.insert(id.to_owned(), entry.lease);
                }
                Some(("proxies", id)) => {
                    let report = proto::document::decode::<ProxyReport>(&entry.value);
                    let epoch = report.map_or(Epoch(0), |report| report.epoch);
                    crew.proxies.insert(id.to_owned(), (entry.lease, epoch));
                }
                _ => {}
            }
        }
        crew
    }

    /// Returns what is not yet as it was `before` the drill `fault` on `target`, if something is not. What the target
    /// itself said last is `said`, and `epoch` is the cluster's.
    pub fn lacks(
        &self,
        before: &Self,
        (fault, target): (LiveFault, &DrillTarget),
        said: Option<&Drilled>,
        epoch: Epoch,
    ) -> Option<String> {
        let count = |now: usize, before: usize, what: &str| {
            (now < before).then(|| format!("{now} of {before} {what} are there without {target}"))
        };
        let left_over = |is_there: bool| {
            is_there.then(|| format!("the lease of the killed {target} has not ended yet"))
        };
        match fault {
            LiveFault::SentinelResign | LiveFault::Sentinel if self.leader.is_none() => {
                Some("no sentinel leads".into())
            }
            LiveFault::SentinelResign => (self.leader.as_deref() == Some(target.name()))
                .then(|| format!("{target} leads again, or still")),
            LiveFault::Sentinel => {
                let left = before.sentinels.get(target.name());
                let live = self.sentinels.values().filter(|lease| Some(*lease) != left).count();
                count(live, before.sentinels.len(), "sentinels")
                    .or_else(|| left_over(live < self.sentinels.len()))
            }
            LiveFault::ProxyConfig => {
                let left = before.proxies.get(target.name()).map(|(lease, _)| lease);
                let new =
                    |(lease, at): &&(Option<LeaseId>, Epoch)| Some(lease) != left && *at >= epoch;
                let live = self.proxies.values().filter(new).count();
                let is_there = self.proxies.values().any(|(lease, _)| Some(lease) == left);
                count(live, before.proxies.len(), "proxies").or_else(|| left_over(is_there))
            }
            LiveFault::Haproxy | LiveFault::Pgbouncer => {
                let is_back = said.is_some_and(|s| matches!(s.what, Carried::Undone { .. }));
                (!is_back).then(|| format!("the {fault} of {target} is not back"))
            }
            LiveFault::Crash
            | LiveFault::Backend
            | LiveFault::StandbyCrash
            | LiveFault::StandbyFreeze
            | LiveFault::Walreceiver
            | LiveFault::Keeper
            | LiveFault::StandbyKeeper
            | LiveFault::Switchover => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crew(leader: &str, sentinels: &[(&str, i64)], proxies: &[(&str, i64, u64)]) -> Crew {
        let lease = |lease: i64| Some(LeaseId(lease));
        Crew {
            leader: Some(leader.into()),
            sentinels: sentinels.iter().map(|(id, l)| ((*id).to_owned(), lease(*l))).collect(),
            proxies: proxies
                .iter()
                .map(|(id, l, epoch)| ((*id).to_owned(), (lease(*l), Epoch(*epoch))))
                .collect(),
        }
    }

    #[test]
    fn a_killed_sentinel_is_back_under_a_new_lease_and_not_by_what_it_has_left() {
        let before = crew("s1", &[("s1", 1), ("s2", 2)], &[]);
        let target = DrillTarget::Sentinel("s1".into());
        let lacks = |now: Crew| now.lacks(&before, (LiveFault::Sentinel, &target), None, Epoch(2));
        let left = lacks(crew("s2", &[("s1", 1), ("s2", 2)], &[]));
        assert!(left.unwrap().contains("1 of 2 sentinels"), "its key is left for a while");
        assert_eq!(lacks(crew("s2", &[("s1", 3), ("s2", 2)], &[])), None, "the same --id");
        let beside = lacks(crew("s2", &[("s1", 1), ("s2", 2), ("s9", 3)], &[]));
        assert!(beside.unwrap().contains("has not ended yet"), "another drill could choose it");
        assert_eq!(lacks(crew("s2", &[("s2", 2), ("s9", 3)], &[])), None, "an id of its process");
        let nobody = Crew { leader: None, ..crew("s2", &[("s1", 3), ("s2", 2)], &[]) };
        assert!(lacks(nobody).unwrap().contains("no sentinel leads"));
    }

    #[test]
    fn a_resigned_leader_is_followed_by_another_one() {
        let before = crew("s1", &[("s1", 1), ("s2", 2)], &[]);
        let what = (LiveFault::SentinelResign, &DrillTarget::Sentinel("s1".into()));
        assert!(before.lacks(&before, what, None, Epoch(2)).unwrap().contains("still"));
        let after = crew("s2", &[("s1", 1), ("s2", 2)], &[]);
        assert_eq!(after.lacks(&before, what, None, Epoch(2)), None);
    }

    #[test]
    fn a_killed_proxy_config_is_back_when_it_has_installed_the_epoch() {
        let before = crew("s1", &[], &[("p1", 1, 2)]);
        let what = (LiveFault::ProxyConfig, &DrillTarget::Proxy("p1".into()));
        assert!(before.lacks(&before, what, None, Epoch(2)).is_some());
        let starts = crew("s1", &[], &[("p1", 5, 0)]);
        assert!(starts.lacks(&before, what, None, Epoch(2)).is_some());
        let beside = crew("s1", &[], &[("p1", 1, 2), ("p9", 5, 2)]);
        let lacks = beside.lacks(&before, what, None, Epoch(2));
        assert!(lacks.unwrap().contains("has not ended yet"), "another drill could choose it");
        let after = crew("s1", &[], &[("p1", 5, 2)]);
        assert_eq!(after.lacks(&before, what, None, Epoch(2)), None);
    }
}
