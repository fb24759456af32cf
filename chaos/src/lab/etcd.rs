//! Takes the lab's etcd away, all of it or one of its members, and gives it back with its data.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use store::clock;

use super::network::Site;
use super::{Lab, Struck, commands, secured};

/// A killed process is reaped within milliseconds; one that starts again elects a leader within two seconds.
const ENDED_BOUND: Duration = Duration::from_secs(5);
const BACK_BOUND: Duration = Duration::from_secs(30);

impl Lab {
    /// Kills every etcd member, as close together as can be.
    pub fn kill_etcd(&mut self) -> anyhow::Result<Struck> {
        let pids = self.etcd_pids();
        ensure!(!pids.is_empty(), "no etcd runs in this lab");
        self.kill_etcds(&pids)
    }

    /// Kills one etcd member, counted from 0, and no other.
    pub fn kill_etcd_member(&mut self, index: usize) -> anyhow::Result<Struck> {
        let pid = self.etcd_pid(index)?;
        self.kill_etcds(&[pid])
    }

    fn kill_etcds(&mut self, pids: &[i32]) -> anyhow::Result<Struck> {
        let struck = Struck::now();
        for pid in pids {
            kill(Pid::from_raw(*pid), Signal::SIGKILL)
                .with_context(|| format!("kill etcd, process {pid}"))?;
        }
        self.others.retain(|(_, pid)| !pids.contains(pid));
        self.killed_etcds.extend(pids);
        Ok(struck)
    }

    /// Starts every etcd member that was killed on its own data, and waits until etcd answers.
    pub async fn start_etcd(&mut self) -> anyhow::Result<()> {
        let deadline = clock::now() + ENDED_BOUND;
        for pid in std::mem::take(&mut self.killed_etcds) {
            while self.home.spawner.ended(pid).is_none() {
                ensure!(clock::now() < deadline, "a killed etcd does not end");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        for index in (0..self.addresses.etcd.len()).rev() {
            if self.etcd_pid(index).is_ok() {
                continue;
            }
            let command = commands::etcd(&self.home.layout, &self.addresses, index)?;
            let pid = self.start_at(&Site::Etcd(index), command)?;
            // First in the list, because it is ended last.
            self.others.insert(0, (process_name(index), pid));
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

    /// Stops all threads of one etcd member, proven to stand still.
    pub async fn freeze_etcd_member(&self, index: usize) -> anyhow::Result<Struck> {
        self.freeze_process(self.etcd_pid(index)?).await
    }

    /// Lets every etcd member go on that was frozen.
    pub fn thaw_etcd(&self) -> anyhow::Result<Struck> {
        for pid in self.etcd_pids() {
            kill(Pid::from_raw(pid), Signal::SIGCONT)
                .with_context(|| format!("let etcd go on, process {pid}"))?;
        }
        Ok(Struck::now())
    }

    /// Waits until one of etcd's members leads, by its own word, that is none of `others`. Returns which; members that
    /// neither answer nor lead are passed over.
    pub async fn etcd_leader(&self, others: &[usize], bound: Duration) -> anyhow::Result<usize> {
        let deadline = clock::now() + bound;
        loop {
            for index in 0..self.addresses.etcd.len() {
                if !others.contains(&index) && self.leads(index).await? {
                    return Ok(index);
                }
            }
            ensure!(clock::now() < deadline, "no etcd member but {others:?} leads after {bound:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Returns whether this member answers that it leads.
    async fn leads(&self, index: usize) -> anyhow::Result<bool> {
        let mut command = self.etcdctl("etcdctl")?;
        command.env("ETCDCTL_ENDPOINTS", &self.addresses.access.endpoints[index]);
        command.args(["endpoint", "status", "--write-out", "json"]);
        command.args(["--dial-timeout", "1s", "--command-timeout", "1s"]).stdout(Stdio::piped());
        // The load runs in this process and must not wait for it.
        let output = tokio::process::Command::from(command).output().await;
        let output = output.context("start etcdctl: run `make deps`")?;
        let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let status = &said[0]["Status"];
        Ok(status["leader"].is_u64() && status["leader"] == status["header"]["member_id"])
    }

    fn etcd_pid(&self, index: usize) -> anyhow::Result<i32> {
        let name = process_name(index);
        let found = self.others.iter().find(|(known, _)| *known == name);
        found.map(|(_, pid)| *pid).with_context(|| format!("{name} does not run"))
    }

    /// The processes of etcd's members, in no order.
    pub fn etcd_pids(&self) -> Vec<i32> {
        self.others.iter().filter(|(name, _)| is_etcd(name)).map(|(_, pid)| *pid).collect()
    }
}

impl Lab {
    /// Runs etcd's own tool with `words`.
    pub fn etcdctl_with(&self, words: &[&str]) -> anyhow::Result<()> {
        run(self.etcdctl("etcdctl")?.args(words))
    }

    /// As etcd's administrator, where it asks for users.
    pub(super) fn etcdctl(&self, log: &str) -> anyhow::Result<Command> {
        let layout = &self.home.layout;
        let mut command = commands::etcdctl(layout, &self.addresses, log)?;
        if self.addresses.access.login.is_some() {
            let file = secured::password_file(layout, secured::ROOT);
            let password = std::fs::read_to_string(file).context("read etcd's root password")?;
            command.env("ETCDCTL_USER", format!("{}:{}", secured::ROOT, password.trim_end()));
        }
        Ok(command)
    }
}

pub(super) fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().context("start etcdctl: run `make deps`")?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

pub(super) fn process_name(index: usize) -> String {
    format!("etcd{}", index + 1)
}

fn is_etcd(name: &str) -> bool {
    name.starts_with("etcd")
}
