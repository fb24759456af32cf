//! Looks at the cluster, and waits until it is as it should be, with a bound and a reason when it is not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use proto::MemberName;
use proto::status::MemberStatus;
use store::keys::Keys;
use store::{Store, StoreError, clock};

use super::view::{Cluster, Service};
use super::{Lab, http};

/// A watch event wakes the wait; this is for a watch that broke.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Between two questions to an etcd that does not answer.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// How long the lab is left without an answer of etcd before it gives up.
const STORE_BOUND: Duration = Duration::from_secs(10);

/// The cluster from both sources: what was agreed, and what each keeper answers now.
pub struct LabStatus {
    pub cluster: Cluster,
    /// The keepers that answered.
    pub keepers: BTreeMap<MemberName, MemberStatus>,
    /// The others, and why not.
    pub silent: BTreeMap<MemberName, String>,
}

impl Lab {
    /// Returns the cluster as etcd shows it now.
    pub async fn cluster(&self) -> anyhow::Result<Cluster> {
        look(self.store.as_ref(), &self.keys).await
    }

    /// Asks etcd and every keeper.
    pub async fn status(&self) -> anyhow::Result<LabStatus> {
        let cluster = self.cluster().await?;
        let mut status = LabStatus { cluster, keepers: BTreeMap::new(), silent: BTreeMap::new() };
        for (name, member) in &self.members {
            let at = member.address;
            match http::get(&format!("{}:{}", at.host, at.http), "/status").await {
                Ok((200, body)) => {
                    let answer = serde_json::from_str(&body)
                        .with_context(|| format!("read the status of {name}"))?;
                    status.keepers.insert(name.clone(), answer);
                }
                Ok((code, body)) => {
                    drop(status.silent.insert(name.clone(), format!("HTTP {code}: {body}")))
                }
                Err(error) => drop(status.silent.insert(name.clone(), format!("{error:#}"))),
            }
        }
        Ok(status)
    }

    /// Returns the HTTP status of a keeper's endpoint, such as `/primary`.
    pub async fn endpoint(&self, member: &MemberName, path: &str) -> anyhow::Result<u16> {
        let at = self.address(member)?;
        Ok(http::get(&format!("{}:{}", at.host, at.http), path).await?.0)
    }

    /// Returns the primary to which clients may write.
    pub async fn primary(&self) -> anyhow::Result<MemberName> {
        let (_, primary) =
            self.cluster().await?.service().context("no primary takes writes now")?;
        Ok(primary)
    }

    /// Waits until `find` finds in the cluster what it looks for. It may be shown the same revision twice.
    pub async fn await_cluster<T>(
        &self,
        what: &str,
        bound: Duration,
        find: impl FnMut(&Cluster) -> Option<T>,
    ) -> anyhow::Result<T> {
        let Some(found) = await_cluster(self.store.as_ref(), &self.keys, bound, find).await? else {
            bail!("not within {bound:?}: {what}\n{}", describe(&self.cluster().await?));
        };
        Ok(found)
    }

    /// Waits until all members stream or serve and vote, whatever happened before.
    pub async fn wait_redundant(&self, bound: Duration) -> anyhow::Result<Cluster> {
        let members: BTreeSet<MemberName> = self.members.keys().cloned().collect();
        self.wait_redundant_among(&members, bound).await
    }

    /// Waits until these members stream or serve and vote: by the agreed state and the reports, and then by
    /// PostgreSQL itself, because the report of a member that has just died outlives it.
    pub async fn wait_redundant_among(
        &self,
        members: &BTreeSet<MemberName>,
        bound: Duration,
    ) -> anyhow::Result<Cluster> {
        let deadline = clock::now() + bound;
        loop {
            let cluster =
                self.wait_agreed_redundancy(members, deadline.since(clock::now())).await?;
            let Err(absent) = self.check_streams(&cluster).await else { return Ok(cluster) };
            ensure!(
                clock::now() < deadline,
                "redundancy is missing after {bound:?} though the reports show it: {absent:#}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn wait_agreed_redundancy(
        &self,
        members: &BTreeSet<MemberName>,
        bound: Duration,
    ) -> anyhow::Result<Cluster> {
        let mut missing = String::new();
        let redundant = self.await_cluster("the cluster is redundant", bound, |cluster| {
            if let Err(error) = self.check_keepers(members) {
                return Some(Err(error));
            }
            let Some(reason) = cluster.missing_redundancy(members) else {
                return Some(Ok(cluster.clone()));
            };
            missing = reason;
            None
        });
        let found = redundant.await;
        found.with_context(|| format!("redundancy is missing: {missing}"))?
    }

    /// Asks the primary's PostgreSQL whether every voter streams under its name.
    async fn check_streams(&self, cluster: &Cluster) -> anyhow::Result<()> {
        const STREAMING: &str = "SELECT application_name::text FROM pg_stat_replication \
             WHERE state = 'streaming' AND sync_state IN ('sync', 'quorum')";
        let primary = cluster.primary().context("there is no primary")?;
        let cfg = cluster.state.as_ref().and_then(|s| s.newest_cfg()).context("there is no Cfg")?;
        let session = self.superuser(primary).await?;
        let rows = session.client().query(STREAMING, &[]).await?;
        let names = rows.iter().map(|row| row.try_get(0));
        let streaming: BTreeSet<String> = names.collect::<Result<_, _>>()?;
        for voter in &cfg.voters {
            let name = cfg.wire_name(voter);
            ensure!(streaming.contains(&name), "{name} does not stream from {primary}");
        }
        Ok(())
    }

    /// Waits until writes are served by a later promotion or restart than `before`.
    pub async fn wait_served_after(
        &self,
        before: Service,
        bound: Duration,
    ) -> anyhow::Result<(Service, MemberName)> {
        self.await_cluster("writes are served again", bound, |cluster| {
            cluster.service().filter(|(service, _)| *service > before)
        })
        .await
    }

    /// Waits until the keeper of `member` has ended by itself; returns how.
    pub async fn keeper_ends(
        &self,
        member: &MemberName,
        bound: Duration,
    ) -> anyhow::Result<String> {
        let deadline = clock::now() + bound;
        loop {
            if let Some(how) = self.keeper_ended(member) {
                return Ok(how);
            }
            ensure!(clock::now() < deadline, "the keeper of {member} still runs after {bound:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn check_keepers(&self, members: &BTreeSet<MemberName>) -> anyhow::Result<()> {
        for name in members {
            if let Some(how) = self.keeper_ended(name) {
                let log = std::fs::read_to_string(self.home.layout.log(&format!("keeper-{name}")))
                    .unwrap_or_default();
                ensure!(false, "the keeper of {name} ended by itself ({how}):\n{log}");
            }
        }
        Ok(())
    }
}

/// An etcd that elects a leader answers a little later.
async fn look(store: &dyn Store, keys: &Keys) -> anyhow::Result<Cluster> {
    let deadline = clock::now() + STORE_BOUND;
    loop {
        match store.read(keys.prefix()).await {
            Err(StoreError::Unavailable(_)) if clock::now() < deadline => {
                tokio::time::sleep(ASK_AGAIN).await;
            }
            read => {
                let snapshot = read.context("read the cluster: etcd does not answer")?;
                return Cluster::from_snapshot(keys, &snapshot);
            }
        }
    }
}

/// Shows `find` the cluster whenever it changes, until it finds something or `bound` has passed.
pub async fn await_cluster<T>(
    store: &dyn Store,
    keys: &Keys,
    bound: Duration,
    mut find: impl FnMut(&Cluster) -> Option<T>,
) -> anyhow::Result<Option<T>> {
    let deadline = clock::now() + bound;
    let mut watch = None;
    loop {
        let cluster = look(store, keys).await?;
        if let Some(found) = find(&cluster) {
            return Ok(Some(found));
        }
        let left = deadline.since(clock::now());
        if left.is_zero() {
            return Ok(None);
        }
        let mut open = match watch.take() {
            Some(open) => open,
            None => match store.watch(keys.prefix(), cluster.revision + 1).await {
                Ok(open) => open,
                Err(StoreError::Unavailable(_)) => {
                    tokio::time::sleep(left.min(ASK_AGAIN)).await;
                    continue;
                }
                Err(error) => return Err(error).context("watch the cluster"),
            },
        };
        match tokio::time::timeout(left.min(LOOK_AGAIN), open.events.recv()).await {
            Ok(None) => {}
            Ok(Some(_)) | Err(_) => watch = Some(open),
        }
    }
}

fn describe(cluster: &Cluster) -> String {
    let verdict = cluster
        .explanation
        .as_ref()
        .map_or("the leader has explained nothing", |e| e.verdict.as_str());
    let state = cluster.state.as_ref().map_or_else(
        || "there is no state".to_owned(),
        |s| {
            format!(
                "epoch {}, {:?}, primary {:?}, sealing {:?}",
                s.epoch, s.phase, s.primary, s.sealing
            )
        },
    );
    let members = cluster.reports.values().map(|r| {
        format!(
            "\n  {}: {:?}, {:?}, complete: {}, problems: {:?}",
            r.member, r.server, r.stream, r.complete, r.problems
        )
    });
    format!("leader: {verdict}\nstate: {state}{}", members.collect::<String>())
}
