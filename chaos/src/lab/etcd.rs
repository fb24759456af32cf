//! Takes the lab's etcd away, all of it, and gives it back with its data, or with those of a backup.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use store::clock;

use super::network::Site;
use super::{Lab, Struck, commands};

/// A killed process is reaped within milliseconds; one that starts again elects a leader within two seconds.
const ENDED_BOUND: Duration = Duration::from_secs(5);
const BACK_BOUND: Duration = Duration::from_secs(30);

impl Lab {
    /// Kills every etcd member, as close together as can be.
    pub fn kill_etcd(&self) -> anyhow::Result<Struck> {
        let pids = self.etcd_pids();
        ensure!(!pids.is_empty(), "no etcd runs in this lab");
        let struck = Struck::now();
        for pid in pids {
            kill(Pid::from_raw(pid), Signal::SIGKILL)
                .with_context(|| format!("kill etcd, process {pid}"))?;
        }
        Ok(struck)
    }

    /// Starts every etcd member again on its own data, and waits until they answer together.
    pub async fn start_etcd(&mut self) -> anyhow::Result<()> {
        let deadline = clock::now() + ENDED_BOUND;
        while self.etcd_pids().iter().any(|pid| self.home.spawner.ended(*pid).is_none()) {
            ensure!(clock::now() < deadline, "a killed etcd does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.others.retain(|(name, _)| !is_etcd(name));
        for index in (0..self.addresses.etcd.len()).rev() {
            let command = commands::etcd(&self.home.layout, &self.addresses, index)?;
            let pid = self.start_at(&Site::Etcd(index), command)?;
            // First in the list, because it is ended last.
            self.others.insert(0, (format!("etcd{}", index + 1), pid));
        }
        let deadline = clock::now() + BACK_BOUND;
        while self.store.read(self.keys.prefix()).await.is_err() {
            ensure!(clock::now() < deadline, "etcd does not answer after its restart");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Stops all threads of every etcd member, each proven to stand still. They answer nobody and hold no lease's end up.
    pub async fn freeze_etcd(&self) -> anyhow::Result<Struck> {
        let struck = Struck::now();
        for pid in self.etcd_pids() {
            self.freeze_process(pid).await?;
        }
        Ok(struck)
    }

    /// Lets every etcd member go on.
    pub fn thaw_etcd(&self) -> anyhow::Result<Struck> {
        for pid in self.etcd_pids() {
            kill(Pid::from_raw(pid), Signal::SIGCONT)
                .with_context(|| format!("let etcd go on, process {pid}"))?;
        }
        Ok(Struck::now())
    }

    /// The processes of etcd's members, in no order.
    pub fn etcd_pids(&self) -> Vec<i32> {
        self.others.iter().filter(|(name, _)| is_etcd(name)).map(|(_, pid)| *pid).collect()
    }
}

impl Lab {
    /// Writes a backup of etcd, as an operator does.
    pub fn save_etcd(&self, file: &Path) -> anyhow::Result<()> {
        let mut command = self.etcdctl("backup")?;
        run(command.args(["snapshot", "save"]).arg(file))
    }

    /// Kills etcd, sets its data aside and starts it on the backup `file`. With another `token` than before the cluster's id is
    /// another one too. For a lab with one etcd member.
    pub async fn restore_etcd(&mut self, file: &Path, token: &str) -> anyhow::Result<()> {
        ensure!(self.addresses.etcd.len() == 1, "a backup is restored on one etcd member here");
        self.kill_etcd()?;
        let directory = self.home.layout.process("etcd1");
        let data = directory.join("data");
        let aside = directory.join(format!("data-before-{token}"));
        std::fs::rename(&data, aside).context("set etcd's data aside")?;
        let own = self.addresses.etcd[0];
        let peer = format!("http://{}:{}", own.host, own.peer);
        let mut command = self.etcdctl("restore")?;
        command.args(["snapshot", "restore"]).arg(file).arg("--data-dir").arg(&data);
        command.args(["--name", "etcd1", "--initial-cluster", &format!("etcd1={peer}")]);
        command.args(["--initial-cluster-token", token, "--initial-advertise-peer-urls", &peer]);
        run(&mut command)?;
        self.start_etcd().await
    }

    /// Runs etcd's own tool with `words`.
    pub fn etcdctl_with(&self, words: &[&str]) -> anyhow::Result<()> {
        run(self.etcdctl("etcdctl")?.args(words))
    }

    fn etcdctl(&self, log: &str) -> anyhow::Result<Command> {
        let layout = &self.home.layout;
        let mut command = commands::prepare(layout, log, Path::new("etcdctl"), &layout.root)?;
        command.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", self.etcd_urls().join(","));
        Ok(command)
    }
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().context("start etcdctl: run `make deps`")?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

fn is_etcd(name: &str) -> bool {
    name.starts_with("etcd")
}
