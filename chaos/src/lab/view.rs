//! The cluster as etcd shows it at one revision, and whether it is redundant.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use proto::document::decode;
use proto::explanation::Explanation;
use proto::history::HistoryRecord;
use proto::report::Stream;
use proto::{ClusterState, Document, Epoch, MemberName, MemberReport, Phase};
use store::Snapshot;
use store::keys::Keys;

/// All of a cluster that others wrote, at one revision.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    pub revision: i64,
    pub state: Option<ClusterState>,
    pub reports: BTreeMap<MemberName, MemberReport>,
    pub explanation: Option<Explanation>,
    /// In the order of what happened.
    pub history: Vec<HistoryRecord>,
}

/// How often writes were given back: it rises with every promotion and every restart in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Service {
    pub epoch: Epoch,
    pub restart: u64,
}

impl Cluster {
    /// Reads one snapshot of the cluster's keys.
    pub fn from_snapshot(keys: &Keys, snapshot: &Snapshot) -> anyhow::Result<Self> {
        let mut cluster = Cluster { revision: snapshot.revision, ..Cluster::default() };
        for (key, entry) in &snapshot.entries {
            let Some(name) = keys.strip(key) else { continue };
            let value = entry.value.as_slice();
            match name.split('/').next() {
                Some("state") => cluster.state = Some(read(key, value)?),
                Some("explanation") => cluster.explanation = Some(read(key, value)?),
                Some("history") => cluster.history.push(read(key, value)?),
                Some("members") => {
                    let report: MemberReport = read(key, value)?;
                    cluster.reports.insert(report.member.clone(), report);
                }
                _ => {}
            }
        }
        Ok(cluster)
    }

    /// Returns the epoch, zero before there is a state.
    pub fn epoch(&self) -> Epoch {
        self.state.as_ref().map_or(Epoch(0), |s| s.epoch)
    }

    /// Returns the number of the service that is given now, if the state lets clients write.
    pub fn service(&self) -> Option<(Service, MemberName)> {
        let state = self.state.as_ref()?;
        let primary = state.writable_primary()?.clone();
        let restart =
            state.restart.as_ref().filter(|r| r.epoch == state.epoch).map_or(0, |r| r.number);
        Some((Service { epoch: state.epoch, restart }, primary))
    }

    /// Returns the primary that the state names, also while it is being replaced.
    pub fn primary(&self) -> Option<&MemberName> {
        self.state.as_ref()?.primary.as_ref()
    }

    /// Returns what is missing until each of `expected` streams or serves and votes as far as it may.
    pub fn missing_redundancy(&self, expected: &BTreeSet<MemberName>) -> Option<String> {
        let Some(state) = &self.state else { return Some("there is no state yet".into()) };
        let Some(primary) = state.primary.as_ref().filter(|_| state.phase == Phase::Open) else {
            return Some(format!("epoch {} is not open yet: {:?}", state.epoch, state.phase));
        };
        if let Some(sealing) = state.sealing {
            return Some(format!("epoch {sealing} is being sealed"));
        }
        let standbys: BTreeSet<MemberName> =
            expected.iter().filter(|m| *m != primary).cloned().collect();
        if let Some(problem) = standbys.iter().find_map(|m| self.standby_problem(m, state.epoch)) {
            return Some(problem);
        }
        let [cfg] = state.cfgs.as_slice() else {
            let cfgs: Vec<String> = state.cfgs.iter().map(ToString::to_string).collect();
            return Some(format!("configurations are still joint: {}", cfgs.join(" and ")));
        };
        let confirmed = self.reports.get(primary).and_then(|r| r.confirmed.as_ref());
        if confirmed.is_none_or(|c| c.cfg != cfg.id) {
            return Some(format!("{primary} has not confirmed configuration {cfg}"));
        }
        let absent: Vec<&str> = standbys.difference(&cfg.voters).map(MemberName::as_str).collect();
        (!absent.is_empty())
            .then(|| format!("{} not yet among the voters of {cfg}", absent.join(" and ")))
    }

    fn standby_problem(&self, member: &MemberName, epoch: Epoch) -> Option<String> {
        let Some(report) = self.reports.get(member) else {
            return Some(format!("{member} does not report"));
        };
        if !report.complete {
            return Some(format!("{member} is not complete: {:?}", report.rejoin));
        }
        match report.stream {
            Stream::Live { epoch: of, voter: true, .. } if of == epoch => None,
            stream => {
                Some(format!("{member} does not stream as a voter of epoch {epoch}: {stream:?}"))
            }
        }
    }
}

fn read<D: Document>(key: &str, value: &[u8]) -> anyhow::Result<D> {
    decode(value).with_context(|| format!("read {key}"))
}

/// An open cluster of epoch 2 with primary a and voter b, and no reports.
#[cfg(test)]
pub fn scene() -> Cluster {
    let state = serde_json::json!({
        "format_version": 1, "number": 9, "etcd_cluster_id": "1", "system_identifier": null, "epoch": 2,
        "phase": { "name": "open" }, "primary": "a", "sealing": null, "last_cfg": 4, "timeline": 2,
        "cfgs": [{ "id": 4, "epoch": 2, "leader": "a", "voters": ["b"], "k": 1, "round": 0 }],
        "highest_timeline": 2, "chosen": null, "open_at_once": false, "epochs": [], "members": {},
        "restart": null,
    });
    let state = decode(state.to_string().as_bytes()).expect("the scene is a state");
    Cluster { state: Some(state), ..Cluster::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_without_reports_is_not_redundant_and_says_whom_it_misses() {
        let members = BTreeSet::from(["a".parse().unwrap(), "b".parse().unwrap()]);
        let mut cluster = scene();
        assert_eq!(cluster.missing_redundancy(&members).unwrap(), "b does not report");
        cluster.state.as_mut().unwrap().sealing = Some(Epoch(3));
        assert_eq!(cluster.missing_redundancy(&members).unwrap(), "epoch 3 is being sealed");
        assert!(cluster.service().is_none());
    }

    #[test]
    fn a_restart_is_a_new_service_of_the_same_epoch() {
        let mut cluster = scene();
        let (before, primary) = cluster.service().unwrap();
        assert_eq!(primary.as_str(), "a");
        cluster.state.as_mut().unwrap().restart =
            Some(proto::state::RestartOrder { member: primary, epoch: Epoch(2), number: 5 });
        assert!(cluster.service().unwrap().0 > before);
        cluster.state.as_mut().unwrap().epoch = Epoch(3);
        assert_eq!(cluster.service().unwrap().0, Service { epoch: Epoch(3), restart: 0 });
    }
}
