//! One consistent reading of all that etcd holds of a cluster, as documents.
//!
//! A spec or state of a newer format ends the command: nothing is read into it. Other documents that cannot be
//! read are named, and the rest is shown.

use std::collections::BTreeMap;

use anyhow::Context;
use proto::explanation::Explanation;
use proto::history::HistoryRecord;
use proto::proxy::ProxyReport;
use proto::schedule::Scheduled;
use proto::{ClusterSpec, ClusterState, Document, LeaderKey, MemberName, MemberReport, document};
use store::etcd::EtcdStore;
use store::keys::Keys;
use store::{Entry, Snapshot, Store};

use crate::target::{StoreArgs, Target};

/// All documents of one cluster at one revision.
#[derive(Debug, Default)]
pub struct Documents {
    pub revision: i64,
    pub spec: Option<ClusterSpec>,
    pub state: Option<ClusterState>,
    pub reports: BTreeMap<MemberName, MemberReport>,
    pub leader: Option<LeaderKey>,
    /// The identities of the sentinels that live.
    pub sentinels: Vec<String>,
    pub proxies: Vec<ProxyReport>,
    /// Switchovers that wait for their time.
    pub scheduled: Vec<Scheduled>,
    pub explanation: Option<Explanation>,
    /// Oldest first.
    pub history: Vec<HistoryRecord>,
    /// What could not be read, one sentence each.
    pub unreadable: Vec<String>,
}

/// Connects to etcd.
pub async fn connect(args: &StoreArgs) -> anyhow::Result<EtcdStore> {
    Ok(EtcdStore::connect(args.access()?).await?)
}

/// Reads the documents of `target`, which must have been initialised.
pub async fn documents(store: &dyn Store, target: &Target) -> anyhow::Result<Documents> {
    let keys = target.keys();
    let snapshot = store.read(keys.prefix()).await.context("read the cluster's documents")?;
    let documents = Documents::of(&snapshot, &keys)?;
    anyhow::ensure!(
        documents.spec.is_some() || documents.state.is_some(),
        "cluster {} is not known to this etcd: create it with `pgdeputy init --cluster {0} --etcd ...`",
        target.cluster
    );
    Ok(documents)
}

impl Documents {
    /// Decodes everything in `snapshot`.
    pub fn of(snapshot: &Snapshot, keys: &Keys) -> anyhow::Result<Self> {
        let mut documents = Self { revision: snapshot.revision, ..Self::default() };
        for (key, entry) in &snapshot.entries {
            let Some(name) = keys.strip(key) else { continue };
            documents.add(name, entry)?;
        }
        documents.history.sort_by_key(|r| (r.epoch, r.restart));
        documents.scheduled.sort_by_key(|s| s.at);
        Ok(documents)
    }

    fn add(&mut self, name: &str, entry: &Entry) -> anyhow::Result<()> {
        match name.split_once('/') {
            None if name == "spec" => self.spec = Some(document::decode(&entry.value)?),
            None if name == "state" => self.state = Some(document::decode(&entry.value)?),
            None if name == "leader" => self.leader = self.readable(name, entry),
            None if name == "explanation" => self.explanation = self.readable(name, entry),
            Some(("members", _)) => {
                if let Some(report) = self.readable::<MemberReport>(name, entry) {
                    self.reports.insert(report.member.clone(), report);
                }
            }
            Some(("sentinels", id)) => self.sentinels.push(id.to_owned()),
            Some(("proxies", _)) => {
                let report = self.readable(name, entry);
                self.proxies.extend(report);
            }
            Some(("scheduled", _)) => {
                let scheduled = self.readable(name, entry);
                self.scheduled.extend(scheduled);
            }
            Some(("history", _)) => {
                let record = self.readable(name, entry);
                self.history.extend(record);
            }
            // Keys of other processes: `primary`, `secrets` (never shown), and those of later versions.
            None | Some(_) => {}
        }
        Ok(())
    }

    fn readable<D: Document>(&mut self, name: &str, entry: &Entry) -> Option<D> {
        match document::decode(&entry.value) {
            Ok(document) => Some(document),
            Err(problem) => {
                self.unreadable.push(format!("{name}: {problem}"));
                None
            }
        }
    }
}
