//! The lab's etcd set back to a backup, and an operator who vouches for it.
//!
//! The one rule: it was set back only if every member says by itself that it believes the store no longer.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::config::CLUSTER;
use super::etcd::{process_name, run};
use super::{Lab, Struck};

/// A keeper reads a store that is back within a second; this is for a machine under load.
const SEEN_BOUND: Duration = Duration::from_secs(30);

/// For a failover, and the return of who was replaced, on a machine under load.
const CHANGED_BOUND: Duration = Duration::from_secs(90);

/// How the backup of a drill is called, in the lab's directory.
const BACKUP: &str = "etcd.backup";

impl Lab {
    /// Writes a backup of etcd, as an operator does.
    pub fn save_etcd(&self, file: &Path) -> anyhow::Result<()> {
        let mut command = self.etcdctl("backup")?;
        command.env("ETCDCTL_ENDPOINTS", &self.addresses.access.endpoints[0]);
        run(command.args(["snapshot", "save"]).arg(file))
    }

    /// Kills etcd, sets its data aside and starts every member of it on the backup `file`. With another `token` than before
    /// the cluster's id is another one too.
    pub async fn restore_etcd(&mut self, file: &Path, token: &str) -> anyhow::Result<Struck> {
        let struck = self.kill_etcd()?;
        for index in 0..self.addresses.etcd.len() {
            self.restore_member(index, file, token)?;
        }
        self.start_etcd().await.map(|()| struck)
    }

    fn restore_member(&self, index: usize, file: &Path, token: &str) -> anyhow::Result<()> {
        let name = process_name(index);
        let directory = self.home.layout.process(&name);
        let data = directory.join("data");
        let aside = directory.join(format!("data-before-{token}"));
        std::fs::rename(&data, aside).context("set etcd's data aside")?;
        let peers = self.addresses.etcd_peers();
        let all: Vec<String> =
            (0..).zip(&peers).map(|(i, url)| format!("{}={url}", process_name(i))).collect();
        let mut command = self.etcdctl("restore")?;
        command.args(["snapshot", "restore"]).arg(file).arg("--data-dir").arg(&data);
        command.args(["--name", &name, "--initial-cluster", &all.join(",")]);
        command.args(["--initial-cluster-token", token]);
        run(command.args(["--initial-advertise-peer-urls", &peers[index]]))
    }

    /// Writes a backup, and then has the primary replaced, so that the backup names one that no longer is.
    pub async fn outlive_a_backup(&mut self) -> anyhow::Result<()> {
        self.save_etcd(&self.layout().root.join(BACKUP))?;
        let before = self.cluster().await?.service().context("no primary takes writes")?;
        self.kill_postgres(&before.1)?;
        self.wait_served_after(before.0, CHANGED_BOUND).await?;
        self.wait_redundant(CHANGED_BOUND).await.map(drop)
    }

    /// Restores that backup, and waits until all members have seen that it is none of theirs.
    pub async fn set_etcd_back(&mut self) -> anyhow::Result<Struck> {
        let file = self.layout().root.join(BACKUP);
        let token = format!("restored-{}", self.cluster().await?.revision);
        let struck = self.restore_etcd(&file, &token).await?;
        self.frozen("all members are frozen", true).await?;
        Ok(struck)
    }

    /// Has an operator vouch for the store as it is, and waits until all members believe it.
    pub async fn adopt_store(&self) -> anyhow::Result<()> {
        let mut command = Command::new(&self.config.pgdeputy);
        command.arg("adopt-store").args(["--cluster", CLUSTER, "--confirm", CLUSTER]);
        for (flag, value) in self.etcd_flags() {
            command.arg(flag).arg(value);
        }
        // The load runs in this process and does not wait for it.
        let done = tokio::process::Command::from(command).output().await;
        let done = done.context("start pgdeputy adopt-store")?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "pgdeputy adopt-store: {}", said.trim_end());
        self.frozen("nobody is frozen", false).await
    }

    async fn frozen(&self, what: &str, expected: bool) -> anyhow::Result<()> {
        let members = self.members();
        self.await_cluster(what, SEEN_BOUND, |cluster| {
            let is = |name| cluster.reports.get(name).map(|report| report.frozen.is_some());
            members.iter().all(|name| is(name) == Some(expected)).then_some(())
        })
        .await
    }
}
